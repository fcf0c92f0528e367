//! What clusters of any size cost their backend, by counting: the machines of many instances over one reference store, without sockets,
//! tasks and time.
//!
//! [`measure`] fills a cluster by a [`Plan`] and does each [`Case`] once. `cargo run --release -p mesh-tests --bin scale` prints that as a
//! [`table`], and `tests/scale.rs` asserts its last column.

mod cluster;
mod cost;
pub mod redis;

use std::fmt::Write as _;
use std::ops::RangeInclusive;

use mesh_core::backend::{ConnectionId, Name};
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

pub use cluster::Cluster;
pub use cost::Cost;

/// How many members rooms have on average. Every connection is in one room of each size, and in the one where everybody is.
const SIZES: [usize; 3] = [1_000, 100, 10];

/// The instance that begins what is measured.
const SENDER: usize = 0;

/// The only instance with members of the small room.
const ONLY: usize = 1;

/// The instances with members of the larger room, and with subscribers.
const SOME: RangeInclusive<usize> = 1..=5;

/// The instance that dies.
const VICTIM: usize = 6;

/// The members of the small room.
const FEW: usize = 10;

/// The members of the larger room, and the subscribers, on each instance that has any.
const MANY: usize = 100;

/// How large a cluster is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Plan {
    /// How many instances, at least [`INSTANCES_MIN`](Self::INSTANCES_MIN).
    pub instances: usize,
    /// How many connections, dealt to the instances in turn.
    pub connections: usize,
}

impl Plan {
    /// So that each part in what is measured is another instance's.
    pub const INSTANCES_MIN: usize = VICTIM + 1;
}

/// Something that is measured.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Case {
    /// All connections of the plan open and join their rooms.
    Fill,
    /// A connection opens.
    Connect,
    /// It joins the room where everybody is.
    Join,
    /// It joins a room where nobody of its instance is.
    JoinFirst,
    /// It leaves the room where everybody is.
    Leave,
    /// It leaves a room where nobody else of its instance is.
    LeaveLast,
    /// It ends in four rooms, and in one of them it is the only one of its instance.
    Disconnect,
    /// An event for a room of ten, on one other instance.
    BroadcastOne,
    /// An event for a room of five hundred, on five other instances.
    BroadcastSome,
    /// An event for the room where everybody is.
    BroadcastEverybody,
    /// An event for all connections.
    Broadcast,
    /// A message to a channel that keeps a history, with five hundred subscribers on five other instances.
    Channel,
    /// A record of 1 KiB with five hundred subscribers on five instances changes in one place, by one of those.
    Record,
    /// The room of five hundred is cleared.
    Clear,
    /// The store comes back without its data.
    Loss,
    /// An instance dies.
    Crash,
}

impl Case {
    /// All of them, in the order in which they are measured.
    pub const ALL: [Self; 16] = [
        Self::Fill,
        Self::Connect,
        Self::Join,
        Self::JoinFirst,
        Self::Leave,
        Self::LeaveLast,
        Self::Disconnect,
        Self::BroadcastOne,
        Self::BroadcastSome,
        Self::BroadcastEverybody,
        Self::Broadcast,
        Self::Channel,
        Self::Record,
        Self::Clear,
        Self::Loss,
        Self::Crash,
    ];

    fn title(self) -> &'static str {
        match self {
            Self::Fill => "all connect and join four rooms each",
            Self::Connect => "connect",
            Self::Join => "join, others of the instance are there",
            Self::JoinFirst => "join, the first of its instance",
            Self::Leave => "leave, others of the instance stay",
            Self::LeaveLast => "leave, the last of its instance",
            Self::Disconnect => "disconnect from four rooms, the last of its instance in one",
            Self::BroadcastOne => "broadcast to a room of 10 on 1 instance",
            Self::BroadcastSome => "broadcast to a room of 500 on 5 instances",
            Self::BroadcastEverybody => "broadcast to the room of all, from one of its instances",
            Self::Broadcast => "broadcast to all connections",
            Self::Channel => "publish to a channel, subscribers on 5 instances",
            Self::Record => "update a record, subscribers on 5 instances",
            Self::Clear => "clear a room of 500 on 5 instances",
            Self::Loss => "the store is back without its data",
            Self::Crash => "an instance dies",
        }
    }

    fn law(self) -> &'static str {
        match self {
            Self::Fill => "1 for each connection, membership, and room of an instance",
            Self::Connect | Self::Join | Self::Leave => "O(1)",
            Self::JoinFirst => "O(1): 1 more, to listen",
            Self::LeaveLast => "O(1): 1 more, to stop listening",
            Self::Disconnect => {
                "1, and 1 for each room that it is the last in; commands: 1 more for each partition with a room of it"
            }
            Self::BroadcastOne | Self::BroadcastSome | Self::BroadcastEverybody => {
                "1; a message to each other instance with members, whatever their number"
            }
            Self::Broadcast => "1; a message to each other instance",
            Self::Channel => "1; a message to each instance with subscribers",
            Self::Record => "1; a message with the patch to each instance with subscribers",
            Self::Clear => {
                "1; a message to each instance with members, and 2 there, to forget them and to stop listening; 512 members a command"
            }
            Self::Loss => {
                "each instance its own: 1 for 4 096 entries of a shard, and 1 to settle; commands: 1 for 512 connections or memberships of a partition"
            }
            Self::Crash => {
                "no machine asks for anything; a heartbeat of each survivor; one of them cleans up: at least 385, and 2 for 1 000 entries of a partition"
            }
        }
    }
}

/// Fills a cluster and tells what each case costs, in the order of [`Case::ALL`].
///
/// # Panics
/// Where the plan is too small, or something fails.
pub fn measure(plan: Plan) -> Vec<(Case, Cost)> {
    let mut cluster = Cluster::new(plan.instances);
    let mut town = None;
    let filling = cluster.cost(|cluster| town = Some(Town::fill(cluster, plan)));
    let mut town = town.expect("it is filled");
    town.prepare(&mut cluster);
    let others = Case::ALL.into_iter().skip(1);
    let others = others.map(|case| (case, town.measure(&mut cluster, case)));
    std::iter::once((Case::Fill, filling))
        .chain(others)
        .collect()
}

/// Who is in a cluster.
struct Town {
    plan: Plan,
    connections: Vec<ConnectionId>,
    /// Comes, joins, leaves and goes.
    newcomer: Option<ConnectionId>,
    everybody: Name,
    empty: Name,
    /// Rooms with somebody else of the newcomer's instance.
    shared: [Name; 2],
    small: Name,
    larger: Name,
    channel: Name,
    record: Name,
}

impl Town {
    /// Every connection opens and joins its rooms: who has the same is left to chance, as where they are connected is.
    fn fill(cluster: &mut Cluster, plan: Plan) -> Self {
        assert!(plan.instances >= Plan::INSTANCES_MIN, "{plan:?}");
        let town = Self {
            plan,
            connections: Vec::with_capacity(plan.connections),
            newcomer: None,
            everybody: "everybody".into(),
            empty: "empty".into(),
            shared: ["shared:1".into(), "shared:2".into()],
            small: "small".into(),
            larger: "larger".into(),
            channel: "channel".into(),
            record: "record".into(),
        };
        let mut random = ChaCha12Rng::seed_from_u64(2);
        let rooms = SIZES.map(|size| {
            let rooms = 0..plan.connections.div_ceil(size);
            let names = rooms.map(|number| Name::from(format!("room:{size}:{number}")));
            names.collect::<Vec<_>>()
        });
        let connect = |number| {
            let id = cluster.connect(number % plan.instances);
            cluster.join(&town.everybody, &id);
            for rooms in &rooms {
                let chosen = random.next_u64() % rooms.len() as u64;
                cluster.join(&rooms[chosen as usize], &id);
            }
            id
        };
        let connections = (0..plan.connections).map(connect).collect();
        Self {
            connections,
            ..town
        }
    }

    /// Some of an instance's connections.
    fn some_of(&self, instance: usize, most: usize) -> Vec<ConnectionId> {
        let theirs = self.connections.iter().skip(instance);
        let theirs = theirs.step_by(self.plan.instances).take(most);
        theirs.cloned().collect()
    }

    /// What is not measured, and has to be there for what is.
    fn prepare(&self, cluster: &mut Cluster) {
        for id in self.some_of(ONLY, FEW) {
            cluster.join(&self.small, &id);
        }
        for id in SOME.flat_map(|instance| self.some_of(instance, MANY)) {
            cluster.join(&self.larger, &id);
            cluster.subscribe(&self.channel, &id);
            cluster.subscribe_record(&self.record, &id);
        }
        for id in self.some_of(SENDER, 1) {
            for room in &self.shared {
                cluster.join(room, &id);
            }
        }
        cluster.write_record(&self.record, &value(1), ONLY);
    }

    fn measure(&mut self, cluster: &mut Cluster, case: Case) -> Cost {
        if case == Case::Disconnect {
            let rooms = self.shared.iter().chain([&self.everybody, &self.empty]);
            for room in rooms {
                cluster.join(room, self.newcomer());
            }
        }
        cluster.cost(|cluster| match case {
            Case::Fill => unreachable!("it was filled before anything else"),
            Case::Connect => self.newcomer = Some(cluster.connect(SENDER)),
            Case::Join => cluster.join(&self.everybody, self.newcomer()),
            Case::JoinFirst => cluster.join(&self.empty, self.newcomer()),
            Case::Leave => cluster.leave(&self.everybody, self.newcomer()),
            Case::LeaveLast => cluster.leave(&self.empty, self.newcomer()),
            Case::Disconnect => cluster.disconnect(self.newcomer()),
            Case::BroadcastOne => cluster.broadcast_room(&self.small, SENDER),
            Case::BroadcastSome => cluster.broadcast_room(&self.larger, SENDER),
            Case::BroadcastEverybody => cluster.broadcast_room(&self.everybody, SENDER),
            Case::Broadcast => cluster.broadcast(SENDER),
            Case::Channel => cluster.publish_channel(&self.channel, SENDER),
            Case::Record => cluster.write_record(&self.record, &value(2), ONLY),
            Case::Clear => cluster.clear(&self.larger, SENDER),
            Case::Loss => cluster.lose_data(),
            Case::Crash => drop(cluster.crash(VICTIM)),
        })
    }

    fn newcomer(&self) -> &ConnectionId {
        self.newcomer.as_ref().expect("it is connected")
    }
}

/// A record of 1 KiB.
fn value(number: u32) -> String {
    format!(r#"{{"number":{number},"text":"{}"}}"#, "x".repeat(1_000))
}

/// What was measured of clusters, as a table in Markdown. What costs the same in each of them is one row.
pub fn table(measured: &[(Plan, Vec<(Case, Cost)>)]) -> String {
    let mut table = String::from(
        "| what | instances / connections | operations | commands | of the busiest instance | bytes to the store | bytes from it \
         | messages | events | how it grows |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |\n",
    );
    for (at, case) in Case::ALL.into_iter().enumerate() {
        let costs = measured.iter().map(|(plan, costs)| (plan, &costs[at].1));
        let costs: Vec<_> = costs.collect();
        let (mut what, mut law) = (case.title(), case.law());
        if costs.windows(2).all(|two| two[0].1 == two[1].1) {
            // Nothing fails that writes to a string.
            let numbers = costs.first().map(|(_, cost)| numbers(cost));
            let _ = writeln!(
                table,
                "| {what} | each | {} | {law} |",
                numbers.unwrap_or_default()
            );
            continue;
        }
        for (plan, cost) in costs {
            let size = [plan.instances, plan.connections].map(|it| grouped(it as u64));
            let size = size.join(" / ");
            let _ = writeln!(table, "| {what} | {size} | {} | {law} |", numbers(cost));
            (what, law) = ("", "");
        }
    }
    table
}

/// A cost, in the order of the table's columns.
fn numbers(cost: &Cost) -> String {
    let busiest = cost.commands_of.values().max().copied();
    let numbers = [
        cost.operations(),
        cost.commands(),
        busiest.unwrap_or_default(),
        cost.sent,
        cost.received,
        cost.messages,
        cost.events,
    ];
    numbers.map(grouped).join(" | ")
}

/// A number that is easy to read.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(' ');
        }
        grouped.push(digit);
    }
    grouped
}
