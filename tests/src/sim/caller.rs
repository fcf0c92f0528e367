//! The clients of a simulated cluster: what they do, and what they hold the servers to.

mod messages;
mod metadata;
mod records;
mod rooms;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::IntoFuture;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, Either, join, select};
use mesh_client_core::Status;
use mesh_client_core::driver::{
    ClientError, ConnectError, ConnectRequest, Connector, Loss, MeshClient,
};
use mesh_core::backend::ConnectionId;
use mesh_core::driver::{CloseCode, Runtime, Socket};
use mesh_core::protocol::codes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::host::{About, DRAIN, KICKED, Message, Slow};
use super::world::{Belonging, Mark, Naming, STAFF, Seat, VIP, World};
use super::{Clock, LEASE, Node};

pub(super) const CHANNELS: [&str; 2] = ["news", "side"];
/// The first and the last are in one shard of every server.
pub(super) const ROOMS: [&str; 3] = ["r1", "r2", "r23"];
pub(super) const RECORDS: [&str; 3] = ["doc", "board", "count"];

/// How long a call may take, from its beginning to its outcome.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(8);

/// How late an outcome may be.
const LATE_MAX: Duration = Duration::from_millis(500);

/// How long clients wait for a sign of life from their server, and how many are forgiven.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
const MISSED_PINGS_MAX: u32 = 1;

/// How many requests of some clients are under way at once: fewer than they have at times.
const IN_FLIGHT_MAX: usize = 5;

/// How long a client may take until it gives up a connection that is silent.
pub(super) const SILENCE_MAX: Duration =
    Duration::from_secs(PING_TIMEOUT.as_secs() * (MISSED_PINGS_MAX as u64 + 1) + 1);

/// How long until somebody who was not let in asks again.
const AGAIN: Duration = Duration::from_secs(1);

/// Where clients connect: one of the hosts is behind it.
const CLUSTER: &str = "cluster.test";

/// A time that does not come.
const FOREVER: Duration = Duration::from_secs(1 << 30);

/// Calls that the client puts through by itself, whatever becomes of a connection.
const PUT_THROUGH: [&str; 9] = [
    "double again",
    "join",
    "join vip",
    "leave",
    "metadata",
    "secret record",
    "secret room",
    "subscribe",
    "subscribe record",
];

/// Calls that may concern connections of another instance.
const ASKED_ELSEWHERE: [&str; 5] = ["close", "expel", "kick", "revoke", "tag"];

/// How long a server may be busy with commands that were given up, where it does one behind the other: two are called at once, each of which
/// waits 5 s for an instance that does not answer.
const BUSY_MAX: Duration = Duration::from_secs(10);

/// Is it an error that a call may end with while nothing is broken? Whether there was a reason for it is found out elsewhere.
fn is_answer(what: &str, error: &ClientError) -> bool {
    match error {
        ClientError::Command(error) => matches!(
            (what, error.code()),
            ("barred", "EBARRED")
                | ("constructor", codes::ENOTFOUND)
                | ("refuse", "ENO")
                | ("tag", codes::ESERVER)
        ),
        ClientError::NotExposed(_) => ["join vip", "secret record", "secret room"].contains(&what),
        error => *error == ClientError::Disconnected,
    }
}

/// What comes, unless the end does.
async fn before<T>(end: &mut (impl Future + Unpin), coming: impl Future<Output = T>) -> Option<T> {
    match select(pin!(coming), end).await {
        Either::Left((come, _)) => Some(come),
        Either::Right(_) => None,
    }
}

/// Connects a client with the host that it had, or now and then with another, as what stands before a cluster does.
struct Balancer {
    world: World,
    network: Arc<dyn Connector>,
    n: usize,
}

impl Connector for Balancer {
    fn connect(
        &self,
        mut request: ConnectRequest,
    ) -> BoxFuture<'_, Result<Box<dyn Socket>, ConnectError>> {
        let is_first = self.world.state().seats[self.n].losses == 0;
        if !is_first && self.world.clock.once_in(3) {
            let hosts = self.world.state().hosts.len() as u64;
            let host = self.world.clock.below(hosts);
            self.world.state().seats[self.n].host = host as usize;
        }
        let host = self.world.state().seats[self.n].host;
        request.url = request.url.replace(CLUSTER, &format!("host{host}.test"));
        self.network.connect(request)
    }
}

impl fmt::Debug for Balancer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Balancer")
            .field("n", &self.n)
            .finish_non_exhaustive()
    }
}

/// One client at work.
#[derive(Clone)]
pub(super) struct Caller {
    n: usize,
    world: World,
    node: Node,
    runtime: Arc<dyn Runtime>,
    client: MeshClient,
}

impl Caller {
    /// A client of a host, and all that it does until then.
    pub(super) fn begin(world: &World, n: usize, host: usize, until: Duration) {
        let (node, runtime) = world.process();
        let url = format!("ws://{CLUSTER}/?user={n}");
        let balancer = Balancer {
            world: world.clone(),
            network: world.network.connector(),
            n,
        };
        let is_patient = world.clock.once_in(2);
        let built = MeshClient::builder(&url)
            .backoff(Duration::from_millis(300), Duration::from_secs(2))
            .command_timeout(COMMAND_TIMEOUT)
            .ping_timeout(PING_TIMEOUT)
            .max_missed_pings(MISSED_PINGS_MAX)
            .config(|config| {
                if is_patient {
                    config.in_flight_max = IN_FLIGHT_MAX;
                }
            })
            .build_on(Arc::clone(&runtime), Arc::new(balancer));
        let client = match built {
            Ok(client) => client,
            Err(error) => return world.violation(format_args!("client {n}: {error}")),
        };
        world.state().seats.push(Seat {
            client: client.clone(),
            host,
            id: None,
            last_id: None,
            is_kicked: false,
            kicked_at: None,
            asking_elsewhere: 0,
            asked_elsewhere: Duration::ZERO,
            doubtful_until: Duration::ZERO,
            name: Naming::default(),
            online_since: None,
            lost_at: None,
            losses: 0,
            rooms: BTreeMap::new(),
            listens: BTreeMap::new(),
            heard: BTreeSet::new(),
            gaps: BTreeMap::new(),
            unsubscribing: 0,
            unsubscribed: 0,
            held: BTreeMap::new(),
            told: BTreeMap::new(),
            times_left: BTreeMap::new(),
        });
        let caller = Self {
            n,
            world: world.clone(),
            node,
            runtime,
            client,
        };
        let clock: &Clock = &world.clock;
        clock.spawn(node, caller.clone().watch());
        clock.spawn(node, caller.clone().measure());
        for room in ROOMS.into_iter().chain([STAFF, VIP]) {
            clock.spawn(node, caller.clone().overhear(room));
        }
        for event in ["announce", "whisper"] {
            clock.spawn(node, caller.clone().hear(event));
        }
        clock.spawn(node, caller.clone().listen("news", None));
        for (k, record) in RECORDS.into_iter().enumerate() {
            clock.spawn(
                node,
                caller
                    .clone()
                    .follow(record, (n + k).is_multiple_of(2), FOREVER, false),
            );
        }
        clock.spawn(node, caller.clone().work(until));
        clock.spawn(node, async move {
            if let Err(error) = caller.client.open().await {
                caller.log(error);
            }
        });
    }

    fn log(&self, what: impl std::fmt::Display) {
        self.world.log(format_args!("client {}: {what}", self.n));
    }

    fn violation(&self, what: impl std::fmt::Display) {
        self.world
            .violation(format_args!("client {}: {what}", self.n));
    }

    /// What this client has been told, for whoever asks or is told more.
    fn seat<T>(&self, change: impl FnOnce(&mut Seat) -> T) -> T {
        change(&mut self.world.state().seats[self.n])
    }

    async fn sleep(&self, pause: Duration) {
        let runtime = &self.runtime;
        runtime.sleep_until(runtime.now() + pause).await;
    }

    /// Follows the connection: a loss has a cause.
    async fn watch(self) {
        let mut statuses = self.client.on_status();
        while let Some(status) = statuses.next().await {
            let now = self.world.now();
            self.log(format_args!("{status:?}"));
            match status {
                Status::Connected | Status::Reconnected => {
                    let id = self.client.connection_id().map(ConnectionId::new);
                    self.seat(|seat| {
                        seat.online_since = Some(now);
                        seat.id = id;
                    });
                }
                Status::Disconnected { loss } => {
                    let (is_kicked, host) = self.loses(now, &loss);
                    let stopping = self.world.state().hosts[host].stopping_since;
                    let is_going_away = matches!(
                        &loss,
                        Loss::Closed(Some(frame)) if frame.code == CloseCode::GOING_AWAY
                    );
                    if is_kicked {
                        // As the application wished.
                    } else if let Some(since) = stopping {
                        if !is_going_away && self.is_whole_since(since) {
                            self.violation(format_args!("its server stopped and it saw {loss:?}"));
                        }
                    } else if self.is_whole_since(now) && !self.waited_elsewhere(&loss, now) {
                        self.violation(format_args!("{loss:?}, and nothing was broken"));
                    }
                }
                Status::ReconnectFailed { .. } | Status::Closed => {
                    self.violation("it gave up");
                }
                _ => {}
            }
        }
    }

    /// Whether an outcome may be late as another instance does not answer: until its lease ends one that died is asked, and a connection
    /// that is silent may be gone.
    fn waits_elsewhere(&self, what: &str, began: Duration) -> bool {
        let state = self.world.state();
        let seat = &state.seats[self.n];
        let is_behind = state.hosts[seat.host].is_sequential
            && (seat.asking_elsewhere > 0 || seat.asked_elsewhere >= began);
        let dead_until = state.dead_until;
        drop(state);
        let asked = if is_behind {
            began.saturating_sub(COMMAND_TIMEOUT + BUSY_MAX)
        } else if ASKED_ELSEWHERE.contains(&what) {
            // Who was away itself does not say of others for so long whether they are gone.
            began.saturating_sub(LEASE)
        } else {
            return false;
        };
        asked <= dead_until || !self.world.is_whole_since(asked)
    }

    /// Whether a connection may be given up as commands on it wait for another instance.
    fn waited_elsewhere(&self, loss: &Loss, now: Duration) -> bool {
        *loss == Loss::Unanswered && self.waits_elsewhere("", now.saturating_sub(COMMAND_TIMEOUT))
    }

    /// A connection is lost: what was its own is over. Whether the application wished it, and where it was.
    fn loses(&self, now: Duration, loss: &Loss) -> (bool, usize) {
        let (id, since, rooms) = self.seat(|seat| {
            let since = seat.online_since.take();
            seat.last_id = seat.id.take();
            (seat.last_id.clone(), since, seat.rooms.clone())
        });
        let is_member = |(room, belonging): (&&'static str, _)| match belonging {
            &Belonging::Member { since: joined } if *room != VIP => Some((*room, joined)),
            _ => None,
        };
        let memberships = rooms.iter().filter_map(is_member);
        for ((room, joined), id) in memberships.zip(std::iter::repeat(id)) {
            let (Some(id), Some(since)) = (id, since) else {
                break;
            };
            let was_whole = self.is_whole_since(since.max(joined));
            let before = self.seat(|seat| seat.times_left(room, &id));
            if was_whole && self.world.times_left(room, &id) == before {
                self.world.expect_leave(self.n, room, id, before);
            }
        }
        self.seat(|seat| {
            seat.lost_at = Some(now);
            seat.losses += 1;
            // Nobody puts it back there.
            seat.rooms.remove(STAFF);
            for belonging in seat.rooms.values_mut() {
                if let Belonging::Expelled { .. } = belonging {
                    *belonging = Belonging::Unknown;
                }
            }
            seat.doubtful_until = Duration::ZERO;
            seat.unsubscribing = 0;
            seat.name.now = seat.name.wish;
            seat.name.is_unsure = false;
            let was_told = matches!(loss, Loss::Closed(Some(frame)) if frame.code == KICKED);
            let is_kicked = std::mem::take(&mut seat.is_kicked) && was_told;
            if is_kicked {
                seat.kicked_at = Some(now);
            }
            (is_kicked, seat.host)
        })
    }

    async fn measure(self) {
        let mut latencies = self.client.on_latency();
        while let Some(latency) = latencies.next().await {
            if latency.is_zero() || latency > Duration::from_secs(60) {
                self.violation(format_args!("a latency of {latency:?}"));
            }
        }
    }

    /// A call, which has an outcome in time; what it was, if it is known.
    async fn call<T>(
        &self,
        what: &str,
        call: impl IntoFuture<Output = Result<T, ClientError>>,
    ) -> Option<T> {
        self.outcome(what, call).await.ok()
    }

    async fn outcome<T>(
        &self,
        what: &str,
        call: impl IntoFuture<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        let began = self.world.now();
        let online = self.seat(|seat| seat.online_since);
        let outcome = self.ends(what, COMMAND_TIMEOUT, call).await;
        let now = self.world.now();
        let (still_online, lost_at) = self.seat(|seat| (seat.online_since, seat.lost_at));
        // What was under way when the connection went is told at once, unless it is the client's own business to put it through.
        if online.is_some()
            && !PUT_THROUGH.contains(&what)
            && lost_at.is_some_and(|at| at > began && now > at + LATE_MAX)
            && matches!(outcome, Err(ClientError::Timeout { sent: true, .. }))
        {
            self.violation(format_args!("{what} was lost and told late"));
        }
        match &outcome {
            Ok(_) => {
                self.world.state().answered += 1;
                self.log(format_args!("{what} since {began:?}"));
            }
            Err(error) => {
                self.log(format_args!("{what}: {error}"));
                let is_outage = match error {
                    ClientError::Command(error) => error.code() == codes::EUNAVAILABLE,
                    error => matches!(error, ClientError::Timeout { .. }),
                };
                let was_whole =
                    online.is_some() && online == still_online && self.is_whole_since(began);
                if is_outage && was_whole && !self.waits_elsewhere(what, began) {
                    self.violation(format_args!("{what}: {error}, and nothing was broken"));
                }
                if !is_outage && !is_answer(what, error) {
                    self.violation(format_args!("{what}: {error:?}"));
                }
            }
        }
        outcome
    }

    /// A call that has an outcome within its timeout.
    async fn ends<T>(&self, what: &str, timeout: Duration, call: impl IntoFuture<Output = T>) -> T {
        if ASKED_ELSEWHERE.contains(&what) {
            let call = self.asks_elsewhere(self.n, timeout, call);
            self.ends_beside(what, timeout, call).await
        } else {
            self.ends_beside(what, timeout, call).await
        }
    }

    /// The same of a call on another connection.
    async fn ends_beside<T>(
        &self,
        what: &str,
        timeout: Duration,
        call: impl IntoFuture<Output = T>,
    ) -> T {
        let what = format!("client {}: {what}", self.n);
        let number = self.world.call(what, timeout + LATE_MAX);
        let outcome = call.await;
        self.world.end_call(number);
        outcome
    }

    /// Notes that a connection's server may be waiting for another one.
    async fn asks_elsewhere<T>(
        &self,
        n: usize,
        timeout: Duration,
        call: impl IntoFuture<Output = T>,
    ) -> T {
        self.world.state().seats[n].asking_elsewhere += 1;
        let began = self.world.now();
        let outcome = call.await;
        let now = self.world.now();
        // By a clock that may be fast.
        let is_over = now + LATE_MAX < began + timeout;
        let seat = &mut self.world.state().seats[n];
        seat.asking_elsewhere -= 1;
        let until = if is_over { now } else { now + BUSY_MAX };
        seat.asked_elsewhere = until.max(seat.asked_elsewhere);
        outcome
    }

    fn is_whole_since(&self, then: Duration) -> bool {
        self.world.is_whole_for(self.n, then)
    }

    async fn command<R: DeserializeOwned>(&self, name: &str, payload: impl Serialize) -> Option<R> {
        self.call(name, self.client.command(name, payload)).await
    }

    fn message(&self) -> Message {
        Message {
            from: self.n,
            mark: self.world.mark(),
            sent: u64::try_from(self.world.now().as_micros()).unwrap_or(u64::MAX),
            via: self.seat(|seat| seat.losses),
        }
    }

    fn about(&self, name: &str) -> About {
        About {
            name: name.to_owned(),
            message: self.message(),
            others: false,
        }
    }

    /// Now and then the sender himself is left out.
    fn about_others(&self, name: &str) -> About {
        let mut about = self.about(name);
        about.others = self.world.clock.once_in(4);
        if about.others {
            let mark = about.message.mark;
            self.world.state().left_out.insert(mark, self.n);
        }
        about
    }

    /// Does whatever the dice say, until then.
    async fn work(self, until: Duration) {
        let mut side = None;
        let mut pulse = Duration::ZERO;
        while self.world.now() < until {
            let clock = &self.world.clock;
            let pause = clock.between(Duration::ZERO, Duration::from_millis(700));
            self.sleep(pause).await;
            let clock = &self.world.clock;
            let room = ROOMS[usize::try_from(clock.below(3)).unwrap_or_default()];
            match clock.below(32) {
                0 => self.double().await,
                1 | 2 => self.wait().await,
                3 | 4 => self.join(room).await,
                5 => self.leave(room).await,
                6 | 7 => self.shout(room).await,
                8 => self.publish("news").await,
                9 => self.publish("side").await,
                10 => self.toggle(&mut side),
                11 if self.may_write("doc") => self.write("doc").await,
                12 if self.may_write("board") => self.merge().await,
                13 if self.may_write("count") => self.count().await,
                14 => self.announce().await,
                15 => self.whisper().await,
                16 => self.tag().await,
                17 => self.ask_in_vain().await,
                18 => match clock.below(4) {
                    0 => self.leave(VIP).await,
                    1 | 2 => self.join(VIP).await,
                    _ => self.shout(VIP).await,
                },
                19 => self.write("pulse").await,
                20 => {
                    self.glance(&mut pulse);
                    self.beside().await;
                }
                21 => self.revoke().await,
                22 => self.tell().await,
                23 => self.note(room).await,
                24 => self.enlist().await,
                25 => self.expel().await,
                26 => self.kick().await,
                27 => self.rename().await,
                28 => self.plan().await,
                29 if clock.once_in(2) => self.roster(room).await,
                29 => self.belongs(room).await,
                30 if clock.once_in(3) => self.census().await,
                30 => self.purge().await,
                _ => self.shout(STAFF).await,
            }
        }
    }

    /// Whether it is time to write a record.
    fn may_write(&self, record: &str) -> bool {
        let begin = self.world.state().begins.get(record).copied();
        begin.is_none_or(|begin| begin <= self.world.now())
    }

    async fn double(&self) {
        let mark = self.world.mark();
        let call = self.client.command("double", mark);
        let is_online = self.client.is_online();
        let doubled: Option<u64> = match self.world.clock.below(4) {
            0 => {
                // What does nothing has a reply as well.
                let _: Option<Value> = self.command("mesh/noop", ()).await;
                None
            }
            1 => self.call("double", call).await,
            // It is sent again where its connection went.
            2 => match self.outcome("double again", call.idempotent()).await {
                Err(ClientError::Disconnected) => {
                    self.violation(format_args!("{mark} may be doubled twice, and was not"));
                    None
                }
                outcome => outcome.ok(),
            },
            // It waits for no connection.
            _ => match self
                .ends("double now", COMMAND_TIMEOUT, call.fail_offline())
                .await
            {
                Err(ClientError::Offline) if is_online => {
                    self.violation("it is online, and was told otherwise");
                    None
                }
                outcome => outcome.ok(),
            },
        };
        if doubled.is_some_and(|doubled| doubled != mark * 2) {
            self.violation(format_args!("twice {mark} is {doubled:?}"));
        }
    }

    /// Two commands that take a while: each reply is that of its own.
    async fn wait(&self) {
        let patience = Duration::from_millis(1_200);
        let slow = || Slow {
            mark: self.world.mark(),
            millis: self.world.clock.below(2_000),
        };
        let (first, second) = (slow(), slow());
        let marks = [first.mark, second.mark];
        let began = self.world.now();
        let first = self
            .client
            .command::<_, Mark>("slow", first)
            .timeout(patience);
        let first = self.ends("slow", patience, first);
        let second = self.client.command("slow", second);
        let (first, second) = join(first, self.outcome("slow", second)).await;
        for (mark, reply) in marks.into_iter().zip([first, second]) {
            match reply {
                Ok(told) if told != mark => {
                    self.violation(format_args!("the reply to {mark} is {told}"));
                }
                // A server that stops sends the replies first.
                Err(ClientError::Disconnected) => {
                    let state = self.world.state();
                    let seat = &state.seats[self.n];
                    let stopping = state.hosts[seat.host].stopping_since;
                    let was_kicked = seat.is_kicked || seat.kicked_at.is_some_and(|at| at > began);
                    let work = state.handled.get(&mark).cloned();
                    drop(state);
                    if let (Some(since), Some(work)) = (stopping, work)
                        && !was_kicked
                        && work.start < since
                        && work.end + LATE_MAX < since + DRAIN
                        && self.is_whole_since(began)
                    {
                        self.violation(format_args!("the reply to {mark} was not waited for"));
                    }
                }
                _ => {}
            }
        }
    }

    /// The client next to this one, mostly of another server.
    fn neighbour(&self) -> (usize, MeshClient) {
        let state = self.world.state();
        let n = (self.n + 1) % state.seats.len();
        (n, state.seats[n].client.clone())
    }

    /// Some client's connection, by its id.
    fn somebody(&self) -> Option<String> {
        let state = self.world.state();
        let seats = u64::try_from(state.seats.len()).unwrap_or_default();
        drop(state);
        let n = usize::try_from(self.world.clock.below(seats)).unwrap_or_default();
        let state = self.world.state();
        let seat = &state.seats[n];
        seat.online_since?;
        seat.client.connection_id()
    }

    /// What this client may not do, it cannot do, and is told so.
    async fn ask_in_vain(&self) {
        let clock = &self.world.clock;
        let granted = match clock.below(7) {
            0 => {
                let record = self.client.subscribe_record::<Value>("secret");
                self.outcome("secret record", record).await.is_ok()
            }
            1 => self
                .outcome("secret room", self.client.join_room::<Value>("hidden"))
                .await
                .is_ok(),
            2 => {
                let barred = self.client.command::<_, Value>("barred", ());
                self.outcome("barred", barred).await.is_ok()
            }
            3 => {
                let Some(id) = self.somebody() else { return };
                let asked = json!({ "connectionId": id });
                let told: Option<Value> = self.command("mesh/get-connection-metadata", asked).await;
                let is_mine = self.client.connection_id() == Some(id);
                !is_mine && told.is_some_and(|told| !told["metadata"].is_null())
            }
            4 => self.command::<Value>("constructor", ()).await.is_some(),
            // Of somebody else's subscriptions, or nobody's.
            5 => {
                let asked = json!({ "channel": "elsewhere" });
                let was = self.command("mesh/unsubscribe-channel", asked).await;
                was == Some(true)
            }
            _ => {
                let mark = self.world.mark();
                match self
                    .outcome("refuse", self.client.command::<_, Value>("refuse", mark))
                    .await
                {
                    Err(ClientError::Command(error)) => {
                        error.code() != "ENO" || error.message() != format!("no {mark}")
                    }
                    outcome => outcome.is_ok(),
                }
            }
        };
        if granted {
            self.violation("it was granted what it may not do");
        }
    }
}
