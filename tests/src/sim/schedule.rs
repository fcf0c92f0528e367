//! What a run of a cluster is made of: how large it is, and what breaks when.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::store::Trap;

/// The longest that a cable hears nothing: longer than any peer is waited for.
const STALL_MAX: Duration = Duration::from_secs(30);

/// The longest that an instance is without the store: longer than its lease.
const AWAY_MAX: Duration = Duration::from_secs(20);

/// The longest that a host is down.
const DOWN_MAX: Duration = Duration::from_secs(20);

/// How long somebody stays who has no business here: about as long as the store takes to hear of him.
const VISIT_MAX: Duration = Duration::from_millis(12);

/// The longest that the store hangs: no longer than it takes an instance to give it up.
const FREEZE_MAX: Duration = Duration::from_secs(3);

/// The longest that a wire waits for the operation over which it breaks.
pub(super) const TRAP_MAX: Duration = Duration::from_secs(20);

/// All that a store can be asked for, so that the wire breaks over each of it.
pub const KINDS: [&str; 31] = [
    "AllConnectionMetadata",
    "AllRoomMetadata",
    "ClearRoom",
    "CloseConnection",
    "CloseInstance",
    "ConnectionMetadata",
    "Connections",
    "DeleteRecord",
    "ForgetMembers",
    "History",
    "IsInRoom",
    "JoinRoom",
    "KeepFor",
    "LeaveRoom",
    "OpenConnection",
    "OpenInstance",
    "Publish",
    "PublishChannel",
    "PublishRecord",
    "PurgeDeleted",
    "Record",
    "RecordVersions",
    "Restore",
    "RoomMembers",
    "RoomMembersMetadata",
    "RoomMetadata",
    "SetConnectionMetadata",
    "SetRoomMetadata",
    "Settle",
    "Subscribe",
    "Unsubscribe",
];

/// Those of it that are asked for least, so that wires break over them often.
const RARE: [&str; 4] = ["CloseInstance", "ForgetMembers", "KeepFor", "OpenInstance"];

/// The longest tail that a failover loses.
const TAIL_MAX: Duration = Duration::from_secs(2);

/// What a run is made of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Plan {
    /// How many servers.
    pub instances: usize,
    /// How many clients, dealt to the servers in turn.
    pub clients: usize,
    /// How long they work, with faults, in simulated time. Behind it they work on for a while without.
    pub time: Duration,
    /// The mean pause between two faults.
    pub calm: Duration,
}

impl Plan {
    /// One that takes least, for very many seeds.
    pub const SMALL: Self = Self {
        instances: 2,
        clients: 3,
        time: Duration::from_secs(24),
        calm: Duration::from_secs(4),
    };
}

impl Default for Plan {
    /// Small, and as broken as it gets.
    fn default() -> Self {
        Self {
            instances: 3,
            clients: 5,
            time: Duration::from_secs(40),
            calm: Duration::from_secs(6),
        }
    }
}

/// What breaks. Hosts go by their numbers.
#[derive(Clone, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "the fields' names and types say all")]
pub enum Fault {
    /// The cables of a host's clients break, and both ends are told.
    CutClients { host: usize },
    /// Nothing arrives over them for a while, or over those laid meanwhile, and nobody is told.
    StallClients { host: usize, pause: Duration },
    /// They hear nothing for a while, and their server sends them more than it keeps for anybody.
    Flood { host: usize, pause: Duration },
    /// A host loses its wire to the store, and finds no other for so long.
    LoseStore { host: usize, away: Duration },
    /// All of them do.
    LoseStoreEverywhere { away: Duration },
    /// Nothing arrives at the store, or comes from it, for a while; then all of it does.
    FreezeStore { pause: Duration },
    /// A wire breaks over the next operation of a kind, whoever asks for it.
    Trap { trap: Trap, kind: &'static str },
    /// The next change of a record that a host is to hear of is lost, and its wire is whole.
    LoseChange { host: usize },
    /// The store goes back to a replica, which lacks what was written last.
    FailOver { tail: Duration },
    /// The store is back at once, and empty.
    LoseData,
    /// A host's process dies, and another one starts in its place.
    Crash { host: usize, down: Duration },
    /// A host's process is told to stop, and another one starts in its place.
    Restart { host: usize, down: Duration },
    /// Somebody says what is no WebSocket, in the packet of the handshake.
    Garbage { host: usize },
    /// Somebody comes, and goes before he is known everywhere.
    Visit { host: usize, stay: Duration },
}

/// The faults of a run, by when they happen.
pub type Schedule = Vec<(Duration, Fault)>;

struct Dice(ChaCha8Rng);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0.next_u64() % bound.max(1)
    }

    fn within(&mut self, max: Duration) -> Duration {
        let nanos = u64::try_from(max.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.below(nanos))
    }
}

impl Plan {
    /// The faults that a seed draws. What takes a while is over when the time is.
    pub fn schedule(&self, seed: u64) -> Schedule {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        // Not the numbers that the world itself draws.
        random.set_stream(1);
        let mut dice = Dice(random);
        let mut schedule = Schedule::new();
        let mut at = Duration::ZERO;
        loop {
            at += dice.within(self.calm * 2);
            if at >= self.time {
                return schedule;
            }
            let left = self.time - at;
            schedule.push((at, self.draw(&mut dice, left)));
        }
    }

    fn draw(&self, dice: &mut Dice, left: Duration) -> Fault {
        let hosts = u64::try_from(self.instances).unwrap_or(u64::MAX);
        let host = usize::try_from(dice.below(hosts)).unwrap_or_default();
        match dice.below(20) {
            0 | 1 => Fault::CutClients { host },
            2 => Fault::StallClients {
                host,
                pause: dice.within(left.min(STALL_MAX)),
            },
            // Longer than anybody waits, if there is time for it.
            3 => Fault::StallClients {
                host,
                pause: left.min(STALL_MAX),
            },
            4 => Fault::Flood {
                host,
                pause: dice.within(left.min(STALL_MAX)),
            },
            5 => Fault::LoseStore {
                host,
                away: Duration::ZERO,
            },
            6 => Fault::LoseStore {
                host,
                away: dice.within(left.min(AWAY_MAX)),
            },
            7 => Fault::LoseStoreEverywhere {
                away: dice.within(left.min(AWAY_MAX)),
            },
            8 | 9 => Fault::Trap {
                trap: [Trap::Request, Trap::Reply][dice.below(2) as usize],
                kind: match dice.below(2) {
                    0 => RARE[dice.below(RARE.len() as u64) as usize],
                    _ => KINDS[dice.below(KINDS.len() as u64) as usize],
                },
            },
            15 => Fault::FreezeStore {
                pause: dice.within(left.min(FREEZE_MAX)),
            },
            16 => Fault::LoseData,
            10 => Fault::FailOver {
                tail: dice.within(left.min(TAIL_MAX)),
            },
            11 | 12 => Fault::Crash {
                host,
                down: dice.within(left.min(DOWN_MAX)),
            },
            13 => Fault::Restart {
                host,
                down: dice.within(left.min(DOWN_MAX)),
            },
            14 => Fault::Garbage { host },
            17 | 18 => Fault::LoseChange { host },
            _ => Fault::Visit {
                host,
                stay: dice.within(VISIT_MAX),
            },
        }
    }
}
