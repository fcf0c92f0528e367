//! The clients of a simulated cluster: what they do, and what they hold the servers to.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::IntoFuture;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_channel::oneshot;
use futures_util::future::{BoxFuture, Either, join, select};
use mesh_client_core::Status;
use mesh_client_core::driver::{
    ChannelEvent, ClientError, ConnectError, ConnectRequest, Connector, Loss, MeshClient,
    RecordChange, Subscription,
};
use mesh_core::backend::ConnectionId;
use mesh_core::driver::{CloseCode, Runtime, Socket};
use mesh_core::protocol::codes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::host::{About, DRAIN, HISTORY, How, KICKED, Message, PLAN, Several, Slow, Write};
use super::world::{Belonging, DELIVERY_MAX, Held, Mark, Naming, STAFF, Seat, To, VIP, World};
use super::{Clock, Node};

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

/// How long a client may take until it gives up a connection that is silent.
pub(super) const SILENCE_MAX: Duration =
    Duration::from_secs(PING_TIMEOUT.as_secs() * (MISSED_PINGS_MAX as u64 + 1) + 1);

/// How many messages of a channel are told with a subscription.
const RECALLED: usize = 5;

/// How long until somebody who was not let in asks again.
const AGAIN: Duration = Duration::from_secs(1);

/// Where clients connect: one of the hosts is behind it.
const CLUSTER: &str = "cluster.test";

/// A time that does not come.
const FOREVER: Duration = Duration::from_secs(1 << 30);

/// What a client's second key of a document is higher by than its number.
const OTHER_KEY: usize = 1_000;

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

/// The longest that what takes somebody out of his rooms may take to do so.
const EXPULSION_MAX: Duration = Duration::from_secs(40);

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

/// What is told of the history of a channel.
#[derive(Deserialize)]
struct History {
    history: Vec<String>,
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
        let built = MeshClient::builder(&url)
            .backoff(Duration::from_millis(300), Duration::from_secs(2))
            .command_timeout(COMMAND_TIMEOUT)
            .ping_timeout(PING_TIMEOUT)
            .max_missed_pings(MISSED_PINGS_MAX)
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
                    .follow(record, (n + k).is_multiple_of(2), FOREVER),
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
                    } else if self.is_whole_since(now) {
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
            if was_whole && self.world.times_left(room, &id) == 0 {
                self.world.expect_leave(self.n, room, id.clone(), 0);
            }
            self.world.state().lost.insert((room.into(), id));
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
            (std::mem::take(&mut seat.is_kicked) && was_told, seat.host)
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

    /// Hears what is said in a room, and only while it is a member.
    async fn overhear(self, room: &'static str) {
        let event = format!("shout {room}");
        let mut shouts = self.client.on::<Message>(&event);
        let mut last = BTreeMap::new();
        while let Some(shout) = shouts.next().await {
            let Ok(message) = shout else {
                self.violation("a shout that is none");
                continue;
            };
            self.hears(&event, &message, &mut last);
            let now = self.world.now();
            let (belonging, online) = self.seat(|seat| {
                let belonging = seat.rooms.get(room).copied().unwrap_or_default();
                (belonging, seat.online_since)
            });
            match belonging {
                // What arrives in the same moment may have been read before the answer.
                Belonging::Left { since } | Belonging::Expelled { since } if since < now => {
                    self.violation(format_args!("it left {room} and hears {message:?}"));
                }
                Belonging::Member { since } if room == VIP => {
                    let revoked = self.world.state().revoked;
                    // With each connection it joins anew.
                    let joined = since.max(online.unwrap_or(now));
                    if let Some((called, done)) = revoked
                        && joined < called
                        && Duration::from_micros(message.sent) > done
                        && self.is_whole_since(joined)
                    {
                        self.violation(format_args!(
                            "its membership was revoked at {done:?} and it hears {message:?}"
                        ));
                    }
                }
                _ => {}
            }
        }
    }

    async fn hear(self, event: &'static str) {
        let mut events = self.client.on::<Message>(event);
        let mut last = BTreeMap::new();
        while let Some(Ok(message)) = events.next().await {
            self.hears(event, &message, &mut last);
        }
        self.violation(format_args!("it hears no {event} any more"));
    }

    /// A message is there: those of one publisher in its order, none of them twice, and none that it was left out of.
    fn hears(&self, what: &str, message: &Message, last: &mut BTreeMap<(usize, u64), Mark>) {
        self.log(format_args!("hears {what} {}", message.mark));
        let before = last.insert((message.from, message.via), message.mark);
        if before.is_some_and(|before| before >= message.mark) {
            self.violation(format_args!("{what} {message:?} behind {before:?}"));
        }
        let online = self.seat(|seat| {
            seat.heard.insert(message.mark);
            seat.online_since
        });
        let is_left_out = self.world.state().left_out.get(&message.mark) == Some(&self.n);
        if is_left_out && online.is_some_and(|since| since < Duration::from_micros(message.sent)) {
            self.violation(format_args!("it is left out of {what} {message:?}"));
        }
    }

    /// A history came that was asked for no earlier than then.
    fn recalls(&self, channel: &'static str, history: &[String], limit: usize, asked: Duration) {
        let read = |text: &String| serde_json::from_str::<Message>(text).ok();
        let messages: Vec<_> = history.iter().filter_map(read).collect();
        let mut oldest = BTreeMap::<_, Mark>::new();
        let is_in_order = messages.iter().all(|message| {
            let later = oldest.insert((message.from, message.via), message.mark);
            later.is_none_or(|later| later > message.mark)
        });
        if !is_in_order || messages.len() != history.len() || history.len() > limit {
            self.violation(format_args!("{channel} has the history {history:?}"));
        }
        let told = messages.iter().map(|message| message.mark).collect();
        if let Some(wrong) = (self.world).wrong_in_history(channel, limit, asked, &told) {
            self.violation(format_args!(
                "the history of {channel} is {told:?}: {wrong}"
            ));
        }
    }

    /// Messages of one publisher come in its order, none of them twice; until it is told to stop.
    async fn listen(self, channel: &'static str, stop: Option<oneshot::Receiver<()>>) {
        if stop.is_some()
            && self.world.clock.once_in(2)
            && let Ok(first) = self.client.subscribe(channel).await
        {
            // Given back and taken again at once.
            self.begins_to_unsubscribe();
            let _ = first.unsubscribe().await;
            self.seat(|seat| seat.unsubscribing = seat.unsubscribing.saturating_sub(1));
        }
        let (asked, mut subscription) = loop {
            let asked = self.world.now();
            let call = self.client.subscribe(channel).history(RECALLED as u32);
            match self.call("subscribe", call).await {
                Some(subscription) => break (asked, subscription),
                None if stop.is_some() => return,
                None => self.sleep(AGAIN).await,
            }
        };
        self.recalls(channel, subscription.history(), RECALLED, asked);
        let since = self.world.now();
        self.seat(|seat| seat.listens.insert(channel, since));
        let (_never, forever) = oneshot::channel();
        let mut stop = stop.unwrap_or(forever);
        let mut last = BTreeMap::new();
        while let Some(next) = before(&mut stop, subscription.next()).await {
            let Some(event) = next else {
                let end = subscription.end();
                return self.violation(format_args!("{channel} ends: {end:?}"));
            };
            match event {
                ChannelEvent::Message(text) => {
                    let Ok(message) = serde_json::from_str::<Message>(&text) else {
                        self.violation(format_args!("{text:?} is no message"));
                        continue;
                    };
                    self.hears(channel, &message, &mut last);
                }
                ChannelEvent::Resubscribed { history } => {
                    let lost = self.seat(|seat| seat.lost_at).unwrap_or_default();
                    self.recalls(channel, &history, RECALLED, lost);
                }
                ChannelEvent::Gap => {
                    let now = self.world.now();
                    self.log(format_args!("{channel} has a gap"));
                    self.seat(|seat| seat.gaps.insert(channel, now));
                }
                other => self.violation(format_args!("{channel}: {other:?}")),
            }
        }
        self.stop(channel, subscription).await;
    }

    async fn stop(&self, channel: &'static str, subscription: Subscription) {
        self.seat(|seat| seat.listens.remove(channel));
        self.end("unsubscribe", subscription.unsubscribe()).await;
    }

    /// What comes from now on may be what nobody is subscribed to any more. Since when it is connected.
    fn begins_to_unsubscribe(&self) -> Option<Duration> {
        self.seat(|seat| {
            seat.unsubscribing += 1;
            seat.unsubscribed += 1;
            seat.online_since
        })
    }

    /// A subscription ends, and nothing of it comes behind the answer.
    async fn end(&self, what: &str, end: impl Future<Output = Result<(), ClientError>>) {
        let online = self.begins_to_unsubscribe();
        let is_done = self.call(what, end).await.is_some();
        let is_same = |seat: &mut Seat| online.is_some() && seat.online_since == online;
        if !is_done || !self.seat(is_same) {
            return;
        }
        let (others, unsubscribed) = self.seat(|seat| {
            seat.unsubscribing -= 1;
            (seat.unsubscribing, seat.unsubscribed)
        });
        let before = self.client.stats().messages_unclaimed;
        self.sleep(DELIVERY_MAX).await;
        let is_only = others == 0 && self.seat(|seat| seat.unsubscribed) == unsubscribed;
        let after = self.client.stats().messages_unclaimed;
        if is_only && after > before && self.seat(is_same) {
            self.violation("it hears of what it has unsubscribed");
        }
    }

    /// Versions come in order, and one of them is the same for everybody; for so long.
    async fn follow(self, record: &'static str, patch: bool, time: Duration) {
        let mut subscription = loop {
            let call = self.client.subscribe_record::<Value>(record);
            let call = if patch { call.patch() } else { call };
            match self.call("subscribe record", call).await {
                Some(subscription) => break subscription,
                None if time < FOREVER => return,
                None => self.sleep(AGAIN).await,
            }
        };
        let mut version = subscription.version();
        let held = Held {
            version,
            value: subscription.value().cloned(),
        };
        self.hold(record, held);
        let since = self.world.now();
        self.seat(|seat| seat.listens.insert(record, since));
        let mut end = pin!(self.sleep(time));
        let mut told = since;
        while let Some(next) = before(&mut end, subscription.next()).await {
            let update = match next {
                Some(Ok(update)) => update,
                None => {
                    let end = subscription.end();
                    return self.violation(format_args!("{record} ends: {end:?}"));
                }
                Some(Err(error)) => {
                    self.violation(format_args!("{record}: {error}"));
                    continue;
                }
            };
            // What was told in the meantime may be of the history that is over.
            let begins_anew =
                update.change == RecordChange::Reset && self.world.may_have_lost(self.n, told);
            if update.version <= version && !begins_anew {
                let next = update.version;
                self.violation(format_args!("version {next} of {record} behind {version}"));
            }
            let online = self.seat(|seat| seat.online_since);
            let is_complete = online.is_some_and(|since| since < told)
                && self.is_whole_since(told)
                && self.world.is_told_since(self.n, told);
            if update.version > version + 1 && is_complete {
                let next = update.version;
                self.violation(format_args!("{next} of {record} comes behind {version}"));
            }
            told = self.world.now();
            version = update.version;
            let held = Held {
                version,
                value: update.value,
            };
            self.hold(record, held);
        }
        self.seat(|seat| {
            seat.listens.remove(record);
            seat.held.remove(record);
        });
        self.end("unsubscribe record", subscription.unsubscribe())
            .await;
    }

    fn hold(&self, record: &'static str, held: Held) {
        self.world.compare(self.n, record, &held);
        self.seat(|seat| seat.held.insert(record, held));
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
                // Until its lease ends one that died is asked, and does not answer; and a connection that is silent may be gone.
                let is_elsewhere = ASKED_ELSEWHERE.contains(&what)
                    && (began <= self.world.state().dead_until
                        || !self.world.is_whole_since(began));
                if is_outage && was_whole && !is_elsewhere {
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
        let what = format!("client {}: {what}", self.n);
        let number = self.world.call(what, timeout + LATE_MAX);
        let outcome = call.await;
        self.world.end_call(number);
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
                11 => self.write("doc").await,
                12 => self.merge().await,
                13 => self.count().await,
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
                    let stopping = state.hosts[state.seats[self.n].host].stopping_since;
                    let work = state.handled.get(&mark).cloned();
                    drop(state);
                    if let (Some(since), Some(work)) = (stopping, work)
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

    fn believe(&self, room: &'static str, belonging: Belonging) {
        let now = self.world.now();
        self.seat(|seat| {
            let is_sure = now >= seat.doubtful_until;
            let belonging = if is_sure {
                belonging
            } else {
                Belonging::Unknown
            };
            seat.rooms.insert(room, belonging);
        });
    }

    async fn join(&self, room: &'static str) {
        let asked = self.world.now();
        let before = self.seat(|seat| seat.rooms.insert(room, Belonging::Unknown));
        let what = if room == VIP { "join vip" } else { "join" };
        let joined = self.call(what, self.client.join_room::<Vec<String>>(room));
        if let Some(present) = joined.await {
            // One that was a member before stays one.
            let since = match before {
                Some(Belonging::Member { since }) if room != VIP => since,
                _ => self.world.now(),
            };
            self.believe(room, Belonging::Member { since });
            let mine = self.client.connection_id();
            if mine.is_some_and(|mine| !present.contains(&mine))
                && self.is_whole_since(asked)
                && room != VIP
            {
                self.violation(format_args!(
                    "it joined {room} and is not among {present:?}"
                ));
            }
        }
    }

    async fn leave(&self, room: &'static str) {
        let called = self.world.now();
        let (before, online, id) = self.seat(|seat| {
            let before = seat.rooms.insert(room, Belonging::Unknown);
            (before, seat.online_since, seat.id.clone())
        });
        let times = id.as_ref().map(|id| self.world.times_left(room, id));
        if self
            .call("leave", self.client.leave_room(room))
            .await
            .is_some()
        {
            let since = self.world.now();
            self.believe(room, Belonging::Left { since });
            let was_member = match before {
                Some(Belonging::Member { since }) => room != VIP && self.is_whole_since(since),
                _ => false,
            };
            let is_same = self.seat(|seat| seat.online_since) == online;
            if let (Some(id), Some(times), Some(online)) = (id, times, online)
                && was_member
                && is_same
                && online < called
                && self.is_whole_since(online)
            {
                self.world.expect_leave(self.n, room, id, times);
            }
        }
    }

    /// Is taken out of all its rooms by its server, or by that of another client.
    async fn expel(&self) {
        let called = self.world.now();
        let (online, id) = self.seat(|seat| (seat.online_since, seat.id.clone()));
        let (Some(_), Some(id)) = (online, id) else {
            return;
        };
        let before = self.seat(|seat| {
            let unknown = (seat.rooms.keys()).map(|room| (*room, Belonging::Unknown));
            let unknown = unknown.collect();
            std::mem::replace(&mut seat.rooms, unknown)
        });
        let about = self.about(id.as_str());
        let by_another = self.world.clock.once_in(2);
        let is_done = if by_another {
            let expel = self.neighbour().command::<_, bool>("expel", about);
            self.ends("expel", COMMAND_TIMEOUT, expel).await.is_ok()
        } else {
            self.command::<bool>("expel", about).await.is_some()
        };
        let is_same = self.seat(|seat| seat.online_since) == online;
        if !is_same {
            return;
        }
        let mut since = self.world.now();
        if !is_done || !self.is_whole_since(called) {
            self.seat(|seat| seat.doubtful_until = since + EXPULSION_MAX);
            return;
        }
        if by_another {
            // What was sent before may still be under way, over another cable.
            since += LATE_MAX;
        }
        for (room, belonging) in before {
            match belonging {
                Belonging::Unknown => {}
                Belonging::Left { .. } => self.believe(room, belonging),
                // Nobody wishes to be there by himself.
                _ if room == STAFF => self.believe(room, Belonging::Left { since }),
                _ => self.believe(room, Belonging::Expelled { since }),
            }
        }
    }

    /// Somebody's connection is closed by the application, wherever it is; more often one that is gone already.
    async fn kick(&self) {
        let seats = self.world.state().seats.len() as u64;
        let whose = self.world.clock.below(seats) as usize;
        let is_last = !self.world.clock.once_in(3);
        let id = {
            let mut state = self.world.state();
            let seat = &mut state.seats[whose];
            if is_last {
                seat.last_id.clone()
            } else {
                seat.is_kicked |= seat.id.is_some();
                seat.id.clone()
            }
        };
        let Some(id) = id else { return };
        let about = self.about(id.as_str());
        let called = self.world.now();
        if self.command::<bool>("kick", about).await.is_none() {
            return;
        }
        let world = self.world.clone();
        self.world.clock.after(DELIVERY_MAX, move || {
            let client = world.state().seats[whose].client.clone();
            let is_there = client.connection_id().as_deref() == Some(id.as_str());
            if is_there && world.is_whole_for(whose, called) {
                world.violation(format_args!("{id} was kicked, and is there"));
            }
        });
    }

    /// Whether somebody is a member is the same for everybody.
    async fn belongs(&self, room: &'static str) {
        let Some(id) = self.somebody() else { return };
        let belonging = || {
            let whose = self.world.whose(&id)?;
            let state = self.world.state();
            let seat = &state.seats[whose];
            Some((whose, seat.rooms.get(room).copied(), seat.online_since))
        };
        let before = belonging();
        let called = self.world.now();
        let asked = (room, id.as_str());
        let told = self.command::<bool>("belongs", asked).await;
        let (Some(told), Some((whose, Some(believed), Some(online)))) = (told, before) else {
            return;
        };
        let is_still_so = belonging() == before;
        let world = &self.world;
        // Since then nothing was that could have ended or restored it unseen.
        let is_sure =
            |since: Duration| since < called && world.is_whole_for(whose, since.max(online));
        let is_wrong = match believed {
            Belonging::Member { since } => is_sure(since) && !told,
            Belonging::Left { since } | Belonging::Expelled { since } => is_sure(since) && told,
            Belonging::Unknown => false,
        };
        if is_still_so && is_wrong {
            self.violation(format_args!("{id} is in {room}: {told}, and {believed:?}"));
        }
    }

    /// Replaces its metadata, by its own means or its server's.
    async fn rename(&self) {
        let mark = self.world.mark();
        let by_itself = self.world.clock.once_in(2);
        let forget_tags = || {
            let mut state = self.world.state();
            let id = state.seats[self.n]
                .client
                .connection_id()
                .unwrap_or_default();
            state.tags.retain(|(tagged, _), _| *tagged != id);
        };
        let online = self.seat(|seat| {
            seat.name.is_under_way = true;
            seat.online_since
        });
        forget_tags();
        let is_done = if by_itself {
            // What its server knows of it stays as it is.
            let metadata = json!({ "user": "admin", "name": mark });
            let set = self.client.set_metadata(&metadata);
            self.call("metadata", set).await.is_some()
        } else {
            self.command::<bool>("rename", mark).await.is_some()
        };
        forget_tags();
        let now = self.world.now();
        self.seat(|seat| {
            let is_same = online.is_some() && seat.online_since == online;
            let name = &mut seat.name;
            name.is_under_way = false;
            name.at = now;
            match (is_done, by_itself) {
                (true, true) => (name.now, name.wish) = (Some(mark), Some(mark)),
                (true, false) if is_same => name.now = Some(mark),
                (true, false) => name.now = None,
                (false, true) => (name.now, name.wish, name.is_unsure) = (None, None, true),
                (false, false) => (name.now, name.is_unsure) = (None, true),
            }
        });
        let told: Option<Value> = self
            .command("mesh/get-my-connection-metadata", json!({}))
            .await;
        let user = told.map(|told| told["metadata"]["user"].clone());
        if let Some(user) = user
            && user.as_str() != Some(&self.n.to_string())
        {
            self.violation(format_args!("it is the user {user}"));
        }
    }

    /// Replaces the metadata of a room, which is what it was replaced with last.
    async fn plan(&self) {
        let mark = self.world.mark();
        self.world.publish(PLAN, mark);
        if self.command::<bool>("plan", mark).await.is_some() {
            self.world.published(PLAN, mark);
        }
        let asked = self.world.now();
        let told = self.command::<Option<Mark>>("plans", ()).await;
        if let Some(told) = told
            && let Some(wrong) = self.world.wrong_in_plan(asked, told)
        {
            self.violation(format_args!("the plan is {told:?}: {wrong}"));
        }
    }

    /// Who is in a room is told with his metadata.
    async fn roster(&self, room: &'static str) {
        let (id, online, belonging) = self.seat(|seat| {
            let belonging = seat.rooms.get(room).copied();
            (seat.id.clone(), seat.online_since, belonging)
        });
        let Some(all) = self.command::<Vec<(String, Value)>>("roster", room).await else {
            return;
        };
        let is_same = self.seat(|seat| seat.rooms.get(room).copied()) == belonging;
        if let (Some(id), Some(online), Some(Belonging::Member { since })) = (id, online, belonging)
            && is_same
            && self.is_whole_since(online.max(since))
            && !all.contains(&(id.as_str().to_owned(), json!(self.n.to_string())))
        {
            self.violation(format_args!("it is in {room}, and not in {all:?}"));
        }
    }

    /// Everybody is told with his metadata.
    async fn census(&self) {
        let (id, online) = self.seat(|seat| (seat.id.clone(), seat.online_since));
        let all = self.command::<Vec<(String, Value)>>("census", ()).await;
        if let (Some(all), Some(id), Some(online)) = (all, id, online)
            && self.is_whole_since(online)
            && !all.contains(&(id.as_str().to_owned(), json!(self.n.to_string())))
        {
            self.violation(format_args!("it is not in {all:?}"));
        }
    }

    /// Nothing was deleted so long ago that it may be forgotten.
    async fn purge(&self) {
        let forgotten = self.command::<u64>("purge", ()).await;
        if forgotten.is_some_and(|forgotten| forgotten > 0) {
            self.violation(format_args!("{forgotten:?} records are forgotten"));
        }
    }

    async fn shout(&self, room: &'static str) {
        let about = self.about_others(room);
        let (mark, called) = (about.message.mark, self.world.now());
        // In a room that others clear nobody knows whether it is still a member.
        if self.command::<bool>("shout", about).await.is_some() && room != VIP {
            self.world.expect(mark, To::Room(room), called);
        }
    }

    async fn announce(&self) {
        let about = self.about_others("all");
        let (mark, called) = (about.message.mark, self.world.now());
        if self.command::<bool>("announce", about).await.is_some() {
            self.world.expect(mark, To::Everybody, called);
        }
    }

    /// The client next to this one, mostly of another server.
    fn neighbour(&self) -> MeshClient {
        let state = self.world.state();
        state.seats[(self.n + 1) % state.seats.len()].client.clone()
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

    async fn whisper(&self) {
        let Some(id) = self.somebody() else { return };
        let about = self.about(&id);
        let (mark, called) = (about.message.mark, self.world.now());
        if self.command::<bool>("whisper", about).await.is_some() {
            self.world.expect(mark, To::Connection(id), called);
        }
    }

    /// The same for two of them, one of whom is named twice.
    async fn tell(&self) {
        let (Some(one), Some(other)) = (self.somebody(), self.somebody()) else {
            return;
        };
        let told = Several {
            names: vec![one.clone(), other.clone(), one.clone()],
            message: self.message(),
        };
        let (mark, called) = (told.message.mark, self.world.now());
        if self.command::<bool>("tell", told).await.is_some() {
            for id in [one, other] {
                self.world.expect(mark, To::Connection(id), called);
            }
        }
    }

    /// Leaves a note in the metadata of a room, which everybody finds there.
    async fn note(&self, room: &'static str) {
        let about = self.about(room);
        let (mark, called) = (about.message.mark, self.world.now());
        if self.command::<bool>("note", about).await.is_none() {
            return;
        }
        let asked = json!({ "roomName": room });
        let told: Option<Value> = self.command("mesh/get-room-metadata", asked).await;
        let Some(told) = told else { return };
        let note = told["metadata"][self.n.to_string()].as_u64();
        let is_lost = note.is_none_or(|note| note < mark);
        if is_lost && self.world.state().is_kept_since(called) {
            self.violation(format_args!("it noted {mark} in {room}, and finds {told}"));
        }
    }

    /// Is made a member by its server, or none any more.
    async fn enlist(&self) {
        let before = self.seat(|seat| seat.online_since);
        self.seat(|seat| seat.rooms.remove(STAFF));
        let (command, is_member) = match self.world.clock.below(4) {
            0 => ("dismiss", false),
            1 => {
                // Both at once: one waits for the other, and whose turn is first is the server's business.
                let dismissed = self.command::<bool>("dismiss", ());
                join(dismissed, self.command::<bool>("enlist", ())).await;
                return;
            }
            _ => ("enlist", true),
        };
        let done = self.command::<bool>(command, ()).await.is_some();
        let since = self.world.now();
        // With another connection it is another's.
        if done && before.is_some() && self.seat(|seat| seat.online_since) == before {
            let belonging = if is_member {
                Belonging::Member { since }
            } else {
                Belonging::Left { since }
            };
            self.believe(STAFF, belonging);
        }
    }

    async fn tag(&self) {
        let Some(id) = self.somebody() else { return };
        // Two at once, with keys of their own.
        let (one, mut other) = (self.about(&id), self.about(&id));
        other.message.from += OTHER_KEY;
        let key = |about: &About| (id.clone(), about.message.from);
        let tags = [
            (key(&one), one.message.mark),
            (key(&other), other.message.mark),
        ];
        let called = self.world.now();
        let tagged = join(
            self.command::<bool>("tag", one),
            self.command::<bool>("tag", other),
        );
        let (one, other) = tagged.await;
        for ((key, mark), done) in tags.into_iter().zip([one, other]) {
            let whose = self.world.whose(&key.0);
            let mut state = self.world.state();
            // Who is replacing all of it may do away with it.
            let is_kept = whose.is_some_and(|whose| {
                let name = state.seats[whose].name;
                !name.is_under_way && !name.is_unsure && name.at < called
            });
            if done.is_some() && is_kept && state.is_kept_since(called) {
                state.tags.insert(key, mark);
            }
        }
    }

    async fn publish(&self, channel: &'static str) {
        let about = self.about(channel);
        let (mark, called) = (about.message.mark, self.world.now());
        self.world.publish(channel, mark);
        if self.command::<bool>("publish", about).await.is_none() {
            return;
        }
        self.world.published(channel, mark);
        self.world.expect(mark, To::Channel(channel), called);
        let asked = self.world.now();
        let limit = json!({ "channel": channel, "limit": 50 });
        let told = self.command("mesh/get-channel-history", limit).await;
        if let Some(History { history }) = told {
            self.recalls(channel, &history, HISTORY, asked);
        }
    }

    /// Begins or ends a subscription.
    fn toggle(&self, side: &mut Option<oneshot::Sender<()>>) {
        match side.take() {
            Some(stop) => drop(stop.send(())),
            None => {
                let (sender, stop) = oneshot::channel();
                let listening = self.clone().listen("side", Some(stop));
                self.world.clock.spawn(self.node, listening);
                *side = Some(sender);
            }
        }
    }

    /// Follows a record for a moment, unless it does so already.
    fn glance(&self, until: &mut Duration) {
        let now = self.world.now();
        if now < *until {
            return;
        }
        let clock = &self.world.clock;
        let time = clock.between(Duration::from_secs(1), Duration::from_secs(4));
        // The answer may take as long as any.
        *until = now + time + COMMAND_TIMEOUT + LATE_MAX;
        let patch = clock.once_in(2);
        clock.spawn(self.node, self.clone().follow("pulse", patch, time));
    }

    /// What another client, mostly of another server, publishes while a subscription is answered counts as well.
    async fn beside(&self) {
        let other = self.neighbour();
        for _ in 0..=self.world.clock.below(3) {
            let called = self.world.now();
            let write = Write {
                record: "pulse".to_owned(),
                how: How::Replace,
                value: json!(self.world.mark()),
            };
            let version = other.command::<_, Option<u64>>("write", write).await;
            if let Ok(Some(version)) = version {
                self.world.expect_version("pulse", version, called);
            }
        }
    }

    /// Makes a value of any shape, by the client's own means or the application's.
    async fn write(&self, name: &'static str) {
        let mark = self.world.mark();
        let value = match self.world.clock.below(8) {
            0 => json!({}),
            1 => json!(mark),
            2 => json!(format!("by {}", self.n)),
            3 => json!([mark, self.n]),
            4 => json!({ "by": self.n, "list": [1, mark, 3] }),
            _ => json!({ "by": self.n, "mark": mark, "deep": { "er": mark % 3 } }),
        };
        let called = self.world.now();
        let version = match self.world.clock.below(6) {
            0 if name == "doc" => {
                let publish = self.client.publish_record_update(name, &value);
                self.call("publish record", publish).await;
                None
            }
            how => {
                let how = match how {
                    1 => How::Delete,
                    2 => How::Merge,
                    3 => How::DeepMerge,
                    _ => How::Replace,
                };
                let record = name.to_owned();
                let write = Write { record, how, value };
                self.command::<Option<u64>>("write", write).await.flatten()
            }
        };
        if let Some(version) = version {
            self.world.expect_version(name, version, called);
        }
    }

    async fn merge(&self) {
        let mark = self.world.mark();
        let deep = self.world.clock.once_in(2);
        let write = Write {
            record: "board".to_owned(),
            how: if deep { How::DeepMerge } else { How::Merge },
            value: json!({ format!("client{}", self.n): mark }),
        };
        let called = self.world.now();
        if let Some(Some(version)) = self.command::<Option<u64>>("write", write).await {
            let mut state = self.world.state();
            if state.is_kept_since(called) {
                state.board.insert(self.n, mark);
            }
            drop(state);
            self.world.expect_version("board", version, called);
        }
    }

    async fn count(&self) {
        let called = self.world.now();
        match self.command::<u64>("count", ()).await {
            Some(version) => {
                let mut state = self.world.state();
                if state.is_kept_since(called) {
                    state.counted += 1;
                } else {
                    state.maybe_counted += 1;
                }
                drop(state);
                self.world.expect_version("count", version, called);
            }
            None => self.world.state().maybe_counted += 1,
        }
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

    /// Takes the room that may be taken from everybody, in one of three ways, or gives it back.
    async fn revoke(&self) {
        let how = match self.world.clock.below(6) {
            0..3 => "clear",
            3 => "revoke",
            4 => "close",
            _ => "open",
        };
        let called = self.world.now();
        if self.command::<bool>(how, ()).await.is_some() && how != "open" {
            let done = self.world.now();
            let mut state = self.world.state();
            // A guard that changed its mind again meanwhile may have let everybody stay.
            if how != "close" || state.opened < called {
                state.revoked = Some((called, done));
            }
        }
    }
}
