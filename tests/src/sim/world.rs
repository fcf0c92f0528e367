//! What the parts of a simulated cluster share, and the oracles that watch it all the time.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesh_client_core::driver::MeshClient;
use mesh_core::driver::Runtime;
use serde_json::Value;

use super::host::Host;
use super::{Clock, Network, Node, SharedStore};

/// How much too fast or too slow a process' clock may be, in parts of a million.
const DRIFT_PPM_MAX: i32 = 200;

/// How long a message may be on its way while nothing is broken.
pub(super) const DELIVERY_MAX: Duration = Duration::from_secs(2);

/// How long servers may take until they work on after they lost the store, once it is there again.
pub(super) const RECOVERY_MAX: Duration = Duration::from_secs(10);

/// What a line of the log begins with that tells of a broken promise.
pub(super) const VIOLATION: &str = "VIOLATION";

/// The numbers of messages: each is one of the whole run.
pub(super) type Mark = u64;

/// A run under way. Clones are handles.
#[derive(Clone)]
pub(super) struct World {
    pub clock: Clock,
    pub network: Network,
    pub store: SharedStore,
    state: Arc<Mutex<State>>,
}

/// What is known of a run, by those who cause it: not what a server or a client says of itself.
#[derive(Default)]
pub(super) struct State {
    pub hosts: Vec<Host>,
    pub seats: Vec<Seat>,
    pub violations: Vec<String>,
    pub answered: usize,
    marks: Mark,
    /// Something may be broken until then.
    pub disturbed_until: Duration,
    /// Somebody may count as alive who is dead, until then.
    pub dead_until: Duration,
    /// When a failover lost what was written last.
    pub failed_over: Option<Duration>,
    /// The values of records by version, since the last failover.
    pub values: BTreeMap<(&'static str, u64), Option<Value>>,
    /// Whether the guard of [`VIP`] says yes.
    pub is_vip_open: bool,
    /// When it last began to.
    pub opened: Duration,
    /// When the last revocation of all memberships of [`VIP`] was called for, and when it was done.
    pub revoked: Option<(Duration, Duration)>,
    /// Increments of the counter: acknowledged, and of unknown outcome.
    pub counted: u64,
    pub maybe_counted: u64,
    /// What clients merged last into the board, and were told so.
    pub board: BTreeMap<usize, Mark>,
    /// Commands whose handler came to its end, by their mark.
    pub handled: BTreeSet<Mark>,
    /// How often an application asked for every connection.
    pub surveys: u64,
    /// What was merged last into connections' metadata, by connection and by whom.
    pub tags: BTreeMap<(String, usize), Mark>,
}

/// A room whose guard may change its mind, and which others clear.
pub(super) const VIP: &str = "vip";

/// What a client has been told, and so may expect.
pub(super) struct Seat {
    pub client: MeshClient,
    pub host: usize,
    /// Its state is wholly there since.
    pub online_since: Option<Duration>,
    /// When it last lost a connection.
    pub lost_at: Option<Duration>,
    pub rooms: BTreeMap<&'static str, Belonging>,
    /// Channels and records that are subscribed, since when.
    pub listens: BTreeMap<&'static str, Duration>,
    pub heard: BTreeSet<Mark>,
    pub held: BTreeMap<&'static str, Held>,
}

/// What a client knows of its membership of a room.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Belonging {
    /// Under way, or of unknown outcome.
    #[default]
    Unknown,
    /// It was told so, then.
    Member { since: Duration },
    /// It was told so, then.
    Left { since: Duration },
}

/// What a client holds of a record.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Held {
    pub version: u64,
    pub value: Option<Value>,
}

/// Who must be reached by a message.
#[derive(Clone, Debug)]
pub(super) enum To {
    Everybody,
    Room(&'static str),
    Channel(&'static str),
    Connection(String),
}

impl Seat {
    /// Since when this client is one of those, without a break.
    fn belongs_since(&self, to: &To) -> Option<Duration> {
        let online = self.online_since?;
        let since = match to {
            To::Everybody => online,
            To::Room(room) => match self.rooms.get(room) {
                Some(Belonging::Member { since }) => *since,
                _ => return None,
            },
            To::Channel(channel) => *self.listens.get(channel)?,
            To::Connection(id) => {
                if self.client.connection_id().as_deref() != Some(id) {
                    return None;
                }
                online
            }
        };
        Some(since.max(online))
    }
}

impl World {
    pub(super) fn new(clock: Clock, network: Network, store: SharedStore) -> Self {
        let state = State {
            is_vip_open: true,
            ..State::default()
        };
        Self {
            clock,
            network,
            store,
            state: Arc::new(Mutex::new(state)),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> Duration {
        self.clock.now()
    }

    /// One more process, with a clock of its own.
    pub(super) fn process(&self) -> (Node, Arc<dyn Runtime>) {
        let node = self.clock.node();
        let drift = self
            .clock
            .below(2 * u64::from(DRIFT_PPM_MAX.unsigned_abs()));
        let drift = i32::try_from(drift).unwrap_or_default() - DRIFT_PPM_MAX;
        (node, self.clock.runtime(node, drift))
    }

    pub(super) fn mark(&self) -> Mark {
        let mut state = self.state();
        state.marks += 1;
        state.marks
    }

    pub(super) fn log(&self, what: impl fmt::Display) {
        self.clock.note(what);
    }

    pub(super) fn violation(&self, what: impl fmt::Display) {
        self.log(format_args!("{VIOLATION} {what}"));
        self.state().violations.push(what.to_string());
    }

    /// Something is broken for so long from now on.
    pub(super) fn disturb(&self, lasting: Duration) {
        let until = self.now() + lasting;
        let mut state = self.state();
        state.disturbed_until = state.disturbed_until.max(until);
    }

    /// Whether nothing was broken at any time from then until now.
    pub(super) fn is_whole_since(&self, then: Duration) -> bool {
        self.state().disturbed_until < then
    }

    /// A message was acknowledged that somebody called for at a time: whoever belonged to its recipients before, and still does in a while,
    /// has heard it by then, if nothing is broken meanwhile.
    pub(super) fn expect(&self, mark: Mark, to: To, called: Duration) {
        let state = self.state();
        let expected: Vec<_> = (state.seats.iter().enumerate())
            .filter_map(|(n, seat)| Some((n, seat.belongs_since(&to)?)))
            .filter(|(_, since)| *since < called)
            .collect();
        drop(state);
        let world = self.clone();
        self.clock.after(DELIVERY_MAX, move || {
            if !world.is_whole_since(called) {
                return;
            }
            for (n, since) in expected {
                let state = world.state();
                let seat = &state.seats[n];
                let is_lost = seat.belongs_since(&to) == Some(since) && !seat.heard.contains(&mark);
                drop(state);
                if is_lost {
                    world.violation(format_args!(
                        "client {n} did not hear {mark}, sent to {to:?}"
                    ));
                }
            }
        });
    }

    /// A version of a record was acknowledged: whoever follows it holds that or a later one in a while, if nothing is broken meanwhile.
    pub(super) fn expect_version(&self, record: &'static str, version: u64, called: Duration) {
        let to = To::Channel(record);
        let world = self.clone();
        self.clock.after(DELIVERY_MAX, move || {
            if !world.is_whole_since(called) {
                return;
            }
            let state = world.state();
            let behind: Vec<_> = (state.seats.iter().enumerate())
                .filter(|(_, seat)| {
                    let since = seat.belongs_since(&to);
                    since.is_some_and(|since| since + DELIVERY_MAX / 2 < world.now())
                })
                .map(|(n, seat)| (n, seat.held.get(record).map_or(0, |held| held.version)))
                .filter(|(_, held)| *held < version)
                .collect();
            drop(state);
            for (n, held) in behind {
                world.violation(format_args!(
                    "client {n} holds version {held} of {record}, not {version}"
                ));
            }
        });
    }

    /// A client was told a value of a record: it is everybody's of that version.
    pub(super) fn compare(&self, n: usize, record: &'static str, held: &Held) {
        let now = self.now();
        let mut state = self.state();
        if state.failed_over.is_some_and(|at| now < at + RECOVERY_MAX) {
            return; // Versions of a history that is over may still be under way.
        }
        let known = state
            .values
            .entry((record, held.version))
            .or_insert_with(|| held.value.clone());
        let (differs, known) = (*known != held.value, known.clone());
        drop(state);
        if differs {
            self.violation(format_args!(
                "client {n} holds {held:?} of {record}, and others {known:?}"
            ));
        }
    }
}
