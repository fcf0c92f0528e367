//! The clients of a simulated cluster: what they do, and what they hold the servers to.

use std::collections::{BTreeMap, BTreeSet};
use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use futures_channel::oneshot;
use futures_util::future::{Either, join, select};
use mesh_client_core::Status;
use mesh_client_core::driver::{
    ChannelEvent, ClientError, Loss, MeshClient, RecordChange, Subscription,
};
use mesh_core::driver::{CloseCode, Runtime};
use mesh_core::protocol::codes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::host::{About, DRAIN, HISTORY, How, Message, Slow, Write};
use super::world::{Belonging, Held, Mark, Seat, To, VIP, World};
use super::{Clock, Node};

pub(super) const ROOMS: [&str; 3] = ["r0", "r1", "r2"];
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

/// A time that does not come.
const FOREVER: Duration = Duration::from_secs(1 << 30);

/// What a client's second key of a document is higher by than its number.
const OTHER_KEY: usize = 1_000;

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
        let url = format!("ws://host{host}.test/?user={n}");
        let built = MeshClient::builder(&url)
            .backoff(Duration::from_millis(300), Duration::from_secs(2))
            .command_timeout(COMMAND_TIMEOUT)
            .ping_timeout(PING_TIMEOUT)
            .max_missed_pings(MISSED_PINGS_MAX)
            .build_on(Arc::clone(&runtime), world.network.connector());
        let client = match built {
            Ok(client) => client,
            Err(error) => return world.violation(format_args!("client {n}: {error}")),
        };
        world.state().seats.push(Seat {
            client: client.clone(),
            host,
            online_since: None,
            lost_at: None,
            rooms: BTreeMap::new(),
            listens: BTreeMap::new(),
            heard: BTreeSet::new(),
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
        for room in ROOMS.into_iter().chain([VIP]) {
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
                    self.seat(|seat| seat.online_since = Some(now));
                }
                Status::Disconnected { loss } => {
                    let host = self.seat(|seat| {
                        seat.lost_at = Some(now);
                        seat.online_since.take();
                        seat.host
                    });
                    let stopping = self.world.state().hosts[host].stopping_since;
                    let is_going_away = matches!(
                        &loss,
                        Loss::Closed(Some(frame)) if frame.code == CloseCode::GOING_AWAY
                    );
                    if let Some(since) = stopping {
                        if !is_going_away && self.world.is_whole_since(since) {
                            self.violation(format_args!("its server stopped and it saw {loss:?}"));
                        }
                    } else if self.world.is_whole_since(now) {
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
        let mut shouts = self.client.on::<Message>(&format!("shout {room}"));
        while let Some(shout) = shouts.next().await {
            let Ok(message) = shout else {
                self.violation("a shout that is none");
                continue;
            };
            let now = self.world.now();
            let (belonging, online) = self.seat(|seat| {
                seat.heard.insert(message.mark);
                let belonging = seat.rooms.get(room).copied().unwrap_or_default();
                (belonging, seat.online_since)
            });
            match belonging {
                // What arrives in the same moment may have been read before the answer.
                Belonging::Left { since } if since < now => {
                    self.violation(format_args!("it left {room} and hears {message:?}"));
                }
                Belonging::Member { since } if room == VIP => {
                    let revoked = self.world.state().revoked;
                    // With each connection it joins anew.
                    let joined = since.max(online.unwrap_or(now));
                    if let Some((called, done)) = revoked
                        && joined < called
                        && Duration::from_micros(message.sent) > done
                        && self.world.is_whole_since(joined)
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
        while let Some(Ok(message)) = events.next().await {
            let is_new = self.seat(|seat| seat.heard.insert(message.mark));
            if !is_new {
                self.violation(format_args!("{event} {message:?} came twice"));
            }
        }
    }

    /// Messages of one publisher come in its order, none of them twice; until it is told to stop.
    async fn listen(self, channel: &'static str, stop: Option<oneshot::Receiver<()>>) {
        if stop.is_some()
            && self.world.clock.once_in(2)
            && let Ok(first) = self.client.subscribe(channel).await
        {
            // Given back and taken again at once.
            let _ = first.unsubscribe().await;
        }
        let Ok(mut subscription) = self.client.subscribe(channel).history(5).await else {
            return;
        };
        let since = self.world.now();
        self.seat(|seat| seat.listens.insert(channel, since));
        let (_never, forever) = oneshot::channel();
        let mut stop = stop.unwrap_or(forever);
        let mut last = BTreeMap::<usize, Mark>::new();
        loop {
            let event = match select(std::pin::pin!(subscription.next()), &mut stop).await {
                Either::Left((Some(event), _)) => event,
                Either::Left((None, _)) => return,
                Either::Right(_) => break,
            };
            match event {
                ChannelEvent::Message(text) => {
                    let Ok(message) = serde_json::from_str::<Message>(&text) else {
                        self.violation(format_args!("{text:?} is no message"));
                        continue;
                    };
                    let before = last.insert(message.from, message.mark);
                    if before.is_some_and(|before| before >= message.mark) {
                        self.violation(format_args!("{message:?} behind {before:?}"));
                    }
                    self.seat(|seat| seat.heard.insert(message.mark));
                }
                other => self.log(format_args!("{channel}: {other:?}")),
            }
        }
        self.stop(channel, subscription).await;
    }

    async fn stop(&self, channel: &'static str, subscription: Subscription) {
        self.seat(|seat| seat.listens.remove(channel));
        if let Err(error) = subscription.unsubscribe().await {
            self.log(error);
        }
    }

    /// Versions come in order, and one of them is the same for everybody; for so long.
    async fn follow(self, record: &'static str, patch: bool, time: Duration) {
        let call = self.client.subscribe_record::<Value>(record);
        let call = if patch { call.patch() } else { call };
        let Ok(mut subscription) = call.await else {
            return;
        };
        let mut version = subscription.version();
        let held = Held {
            version,
            value: subscription.value().cloned(),
        };
        self.hold(record, held);
        let since = self.world.now();
        self.seat(|seat| seat.listens.insert(record, since));
        let mut end = std::pin::pin!(self.sleep(time));
        while let Either::Left((Some(update), _)) =
            select(std::pin::pin!(subscription.next()), &mut end).await
        {
            let update = match update {
                Ok(update) => update,
                Err(error) => {
                    self.violation(format_args!("{record}: {error}"));
                    continue;
                }
            };
            let begins_anew =
                update.change == RecordChange::Reset && self.world.state().failed_over.is_some();
            if update.version <= version && !begins_anew {
                let told = update.version;
                self.violation(format_args!("version {told} of {record} behind {version}"));
            }
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
        let outcome = call.await;
        let now = self.world.now();
        let (still_online, lost_at) = self.seat(|seat| (seat.online_since, seat.lost_at));
        if now > began + COMMAND_TIMEOUT + LATE_MAX {
            self.violation(format_args!("{what} took {:?}", now - began));
        }
        // What was under way when the connection went is told at once, unless it is the client's own business to put it through.
        let is_kept = ["join", "leave", "metadata", "secret record", "secret room"].contains(&what);
        if online.is_some()
            && !is_kept
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
                let is_an_answer = match error {
                    ClientError::Command(error) => error.code() != codes::EUNAVAILABLE,
                    // Whether there was a reason for it is found out elsewhere.
                    error => matches!(
                        error,
                        ClientError::NotExposed(_) | ClientError::Disconnected
                    ),
                };
                let was_whole =
                    online.is_some() && online == still_online && self.world.is_whole_since(began);
                // Until its lease ends one that died is asked, and does not answer.
                let is_asked = ["close", "revoke"].contains(&what);
                let waits_for_dead = is_asked && began <= self.world.state().dead_until;
                if !is_an_answer && was_whole && !waits_for_dead {
                    self.violation(format_args!("{what}: {error}, and nothing was broken"));
                }
            }
        }
        outcome
    }

    async fn command<R: DeserializeOwned>(&self, name: &str, payload: impl Serialize) -> Option<R> {
        self.call(name, self.client.command(name, payload)).await
    }

    fn message(&self) -> Message {
        Message {
            from: self.n,
            mark: self.world.mark(),
            sent: u64::try_from(self.world.now().as_micros()).unwrap_or(u64::MAX),
        }
    }

    fn about(&self, name: &str) -> About {
        About {
            name: name.to_owned(),
            message: self.message(),
        }
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
            match clock.below(22) {
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
                18 => match clock.below(3) {
                    0 => self.leave(VIP).await,
                    1 => self.join(VIP).await,
                    _ => self.shout(VIP).await,
                },
                19 => self.write("pulse").await,
                20 => {
                    self.glance(&mut pulse);
                    self.beside().await;
                }
                _ => self.revoke().await,
            }
        }
    }

    async fn double(&self) {
        let mark = self.world.mark();
        let doubled: Option<u64> = self.command("double", mark).await;
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
        let host = self.seat(|seat| seat.host);
        let began = self.world.now();
        let first = self
            .client
            .command::<_, Mark>("slow", first)
            .timeout(patience);
        let first = first.into_future();
        let second = self.client.command("slow", second);
        let (first, second) = join(first, self.outcome("slow", second)).await;
        for (mark, reply) in marks.into_iter().zip([first, second]) {
            match reply {
                Ok(told) if told != mark => {
                    self.violation(format_args!("the reply to {mark} is {told}"));
                }
                // A server that stops sends the replies first.
                Err(ClientError::Disconnected) => {
                    let stopping = self.world.state().hosts[host].stopping_since;
                    if stopping.is_some_and(|since| since > began) {
                        self.expect_no_end(mark, began);
                    }
                }
                _ => {}
            }
        }
    }

    /// The handler of a command that had no reply does not come to its end while there was time to wait for it.
    fn expect_no_end(&self, mark: Mark, began: Duration) {
        let caller = self.clone();
        self.world.clock.after(DRAIN, move || {
            let is_handled = caller.world.state().handled.contains(&mark);
            if is_handled && caller.world.is_whole_since(began) {
                caller.violation(format_args!("the reply to {mark} was not waited for"));
            }
        });
    }

    fn believe(&self, room: &'static str, belonging: Belonging) {
        self.seat(|seat| seat.rooms.insert(room, belonging));
    }

    async fn join(&self, room: &'static str) {
        let asked = self.world.now();
        let before = self.seat(|seat| seat.rooms.insert(room, Belonging::Unknown));
        let joined = self.call("join", self.client.join_room::<Vec<String>>(room));
        if let Some(present) = joined.await {
            // One that was a member before stays one.
            let since = match before {
                Some(Belonging::Member { since }) if room != VIP => since,
                _ => self.world.now(),
            };
            self.believe(room, Belonging::Member { since });
            let mine = self.client.connection_id();
            if mine.is_some_and(|mine| !present.contains(&mine))
                && self.world.is_whole_since(asked)
                && room != VIP
            {
                self.violation(format_args!(
                    "it joined {room} and is not among {present:?}"
                ));
            }
        }
    }

    async fn leave(&self, room: &'static str) {
        self.believe(room, Belonging::Unknown);
        if self
            .call("leave", self.client.leave_room(room))
            .await
            .is_some()
        {
            let since = self.world.now();
            self.believe(room, Belonging::Left { since });
        }
    }

    async fn shout(&self, room: &'static str) {
        let about = self.about(room);
        let (mark, called) = (about.message.mark, self.world.now());
        // In a room that others clear nobody knows whether it is still a member.
        if self.command::<bool>("shout", about).await.is_some() && room != VIP {
            self.world.expect(mark, To::Room(room), called);
        }
    }

    async fn announce(&self) {
        let about = self.about("all");
        let (mark, called) = (about.message.mark, self.world.now());
        if self.command::<bool>("announce", about).await.is_some() {
            self.world.expect(mark, To::Everybody, called);
        }
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
        let tagged = join(
            self.command::<bool>("tag", one),
            self.command::<bool>("tag", other),
        );
        let (one, other) = tagged.await;
        for ((key, mark), done) in tags.into_iter().zip([one, other]) {
            if done.is_some() {
                self.world.state().tags.insert(key, mark);
            }
        }
    }

    async fn publish(&self, channel: &'static str) {
        let about = self.about(channel);
        let (mark, called) = (about.message.mark, self.world.now());
        if self.command::<bool>("publish", about).await.is_none() {
            return;
        }
        self.world.expect(mark, To::Channel(channel), called);
        let asked = json!({ "channel": channel, "limit": 50 });
        let Some(reply) = self
            .command::<Value>("mesh/get-channel-history", asked)
            .await
        else {
            return;
        };
        let history: Vec<Message> = (reply["history"].as_array().into_iter().flatten())
            .filter_map(|text| serde_json::from_str(text.as_str()?).ok())
            .collect();
        let mut oldest = BTreeMap::<usize, Mark>::new();
        let is_in_order = history.iter().all(|message| {
            let later = oldest.insert(message.from, message.mark);
            later.is_none_or(|later| later > message.mark)
        });
        let is_there = history.iter().any(|message| message.mark == mark);
        if !is_in_order || history.len() > HISTORY || !is_there && self.world.is_whole_since(called)
        {
            self.violation(format_args!("behind {mark} the history is {history:?}"));
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
        let other = {
            let state = self.world.state();
            state.seats[(self.n + 1) % state.seats.len()].client.clone()
        };
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
        let write = Write {
            record: "board".to_owned(),
            how: How::Merge,
            value: json!({ format!("client{}", self.n): mark }),
        };
        let called = self.world.now();
        if let Some(Some(version)) = self.command::<Option<u64>>("write", write).await {
            self.world.state().board.insert(self.n, mark);
            self.world.expect_version("board", version, called);
        }
    }

    async fn count(&self) {
        let called = self.world.now();
        match self.command::<u64>("count", ()).await {
            Some(version) => {
                self.world.state().counted += 1;
                self.world.expect_version("count", version, called);
            }
            None => self.world.state().maybe_counted += 1,
        }
    }

    /// What this client may not do, it cannot do, and is told so.
    async fn ask_in_vain(&self) {
        let clock = &self.world.clock;
        let granted = match clock.below(6) {
            0 => {
                let record = self.client.subscribe_record::<Value>("secret");
                self.outcome("secret record", record).await.is_ok()
            }
            1 => self
                .outcome("secret room", self.client.join_room::<Value>("hidden"))
                .await
                .is_ok(),
            2 => {
                let metadata = json!({ "user": "admin" });
                self.outcome("metadata", self.client.set_metadata(&metadata))
                    .await
                    .is_ok()
            }
            3 => {
                let Some(id) = self.somebody() else { return };
                let asked = json!({ "connectionId": id });
                let told: Option<Value> = self.command("mesh/get-connection-metadata", asked).await;
                let is_mine = self.client.connection_id() == Some(id);
                !is_mine && told.is_some_and(|told| !told["metadata"].is_null())
            }
            4 => self.command::<Value>("constructor", ()).await.is_some(),
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
        let how = match self.world.clock.below(4) {
            0 => "clear",
            1 => "revoke",
            2 => "close",
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
