//! Several servers that must behave as one, with clients that stay connected whatever happens behind the servers.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{Demo, RawClient, RedisClient, assert_error, until, until_some};

/// Within this time of a repair everything works again (`protocol.md`, section 9).
pub const RECOVERY: Duration = Duration::from_secs(15);

/// Within this time of its death an instance's connections are nowhere any more.
pub const REAPED: Duration = Duration::from_secs(20);

/// Within this time a command ends, and be it with `EUNAVAILABLE`.
pub const ANSWERED: Duration = Duration::from_secs(10);

/// Within this time `/health` tells that the backend is away, with a little for the telling.
pub const KNOWN: Duration = Duration::from_millis(5_500);

/// The room that every client of a fleet is in.
pub const ALL: &str = "room:all";
/// The room of the first client of each server.
pub const FIRSTS: &str = "room:firsts";
/// The channel that every client of a fleet is subscribed to.
pub const CHAT: &str = "chat:all";

/// What all that is left open about begins with: outcomes unknown to the client that asked.
const DOUBT: &str = "room:doubt";

/// Options of a server whose clients are too busy to answer pings.
pub const NO_PINGS: [&str; 4] = [
    "--ping-interval",
    "3600000",
    "--latency-interval",
    "3600000",
];

/// Starts servers that share this Redis.
#[track_caller]
pub fn servers<const N: usize>(url: &str) -> [Demo; N] {
    std::array::from_fn(|_| Demo::start_on(url, &NO_PINGS))
}

/// A list of ids, none of them twice.
///
/// # Errors
/// What is wrong with it.
pub fn id_set(list: &Value) -> Result<BTreeSet<String>, String> {
    let Some(items) = list.as_array() else {
        return Err(format!("not a list: {list}"));
    };
    let set: BTreeSet<String> = items
        .iter()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    if set.len() != items.len() {
        return Err(format!("something is there twice, or is no id: {list}"));
    }
    Ok(set)
}

/// The `[{id: metadata}, …]` of the demo as one map.
fn metadata_map(list: &Value) -> Result<BTreeMap<String, Value>, String> {
    let Some(items) = list.as_array() else {
        return Err(format!("not a list: {list}"));
    };
    let pairs = items.iter().filter_map(Value::as_object).flatten();
    let map: BTreeMap<String, Value> = pairs.map(|(id, it)| (id.clone(), it.clone())).collect();
    if map.len() != items.len() {
        return Err(format!("something is there twice: {list}"));
    }
    Ok(map)
}

/// Asks with little patience.
///
/// # Errors
/// The error that came, or that nothing came.
pub fn ask(client: &mut RawClient, command: &str, payload: Value) -> Result<Value, String> {
    let asked = format!("{command} {payload}");
    let id = client.send_command(command, payload);
    let reply = client
        .reply_within(id, Duration::from_secs(3))
        .ok_or_else(|| format!("no answer: {asked}"))?;
    if reply.get("error").is_some() {
        return Err(format!("{asked}: {reply}"));
    }
    Ok(reply)
}

fn room(name: &str) -> Value {
    json!({ "roomName": name })
}

/// A client, and the server it is connected to.
#[derive(Debug)]
pub struct Member {
    /// The connection.
    pub raw: RawClient,
    /// The index of its server.
    pub home: usize,
}

/// What a fleet's servers must say, each of them.
#[derive(Clone, Debug, Default)]
struct Expected {
    /// The ids of each room's members.
    rooms: BTreeMap<String, BTreeSet<String>>,
    /// Each connection's metadata; several values where the outcome of a change is unknown.
    metadata: BTreeMap<String, Vec<Value>>,
    room_metadata: BTreeMap<String, Value>,
}

/// Servers that share a Redis, clients on each of them, and what everybody must see.
#[derive(Debug)]
pub struct Fleet {
    /// The servers; `None` where one was killed.
    pub demos: Vec<Option<Demo>>,
    /// The clients, those of the first server first.
    pub clients: Vec<Member>,
    expected: Expected,
    round: u32,
}

impl Fleet {
    /// Starts a server on each of these addresses of one Redis, with so many clients each. All are in [`ALL`] and listen
    /// to [`CHAT`], the first of each server is in [`FIRSTS`] too; each has metadata, and so has each room.
    #[track_caller]
    pub fn on(urls: &[String], clients: usize) -> Self {
        let demos: Vec<_> = urls
            .iter()
            .map(|url| Some(Demo::start_on(url, &NO_PINGS)))
            .collect();
        let mut fleet = Self {
            demos,
            clients: Vec::new(),
            expected: Expected::default(),
            round: 0,
        };
        for home in 0..urls.len() {
            for n in 0..clients {
                let at = fleet.connect(home);
                fleet.join(at, ALL);
                if n == 0 {
                    fleet.join(at, FIRSTS);
                }
                fleet.set_metadata(at, json!({ "home": home, "n": n }));
                let granted = fleet.clients[at]
                    .raw
                    .command("mesh/subscribe-channel", json!({ "channel": CHAT }));
                assert_eq!(granted["success"], true, "{granted}");
            }
        }
        for name in [ALL, FIRSTS] {
            fleet.set_room_metadata(0, name, json!({ "topic": name }));
        }
        fleet.every_promise_holds(Instant::now());
        fleet
    }

    /// A server that lives.
    #[track_caller]
    pub fn demo(&self, at: usize) -> &Demo {
        self.demos[at].as_ref().expect("a server that lives")
    }

    /// The servers that live.
    pub fn living(&self) -> Vec<usize> {
        (0..self.demos.len())
            .filter(|&at| self.demos[at].is_some())
            .collect()
    }

    /// The first client of a server.
    #[track_caller]
    pub fn first(&self, home: usize) -> usize {
        let at = self.clients.iter().position(|member| member.home == home);
        at.expect("a client")
    }

    /// The client's connection.
    pub fn raw(&mut self, at: usize) -> &mut RawClient {
        &mut self.clients[at].raw
    }

    /// The id of a client.
    pub fn id(&self, at: usize) -> String {
        self.clients[at].raw.id().to_owned()
    }

    /// A new client, without metadata and in no room.
    #[track_caller]
    pub fn connect(&mut self, home: usize) -> usize {
        let raw = RawClient::connect(self.demo(home));
        let id = raw.id().to_owned();
        self.expected.metadata.insert(id, vec![Value::Null]);
        self.clients.push(Member { raw, home });
        self.clients.len() - 1
    }

    /// A join that succeeds.
    #[track_caller]
    pub fn join(&mut self, at: usize, name: &str) {
        let member = &mut self.clients[at].raw;
        member.succeed("join-room", room(name));
        let id = member.id().to_owned();
        self.expect_in(name, id);
    }

    /// From now on this connection must be a member of this room.
    pub fn expect_in(&mut self, name: &str, id: String) {
        let members = self.expected.rooms.entry(name.to_owned()).or_default();
        members.insert(id);
    }

    /// A removal that succeeds.
    #[track_caller]
    pub fn leave(&mut self, at: usize, name: &str) {
        let member = &mut self.clients[at].raw;
        member.succeed("leave-room", room(name));
        let id = member.id().to_owned();
        self.expected
            .rooms
            .entry(name.to_owned())
            .or_default()
            .remove(&id);
    }

    /// A clear that succeeds.
    #[track_caller]
    pub fn clear_room(&mut self, at: usize, name: &str) {
        self.clients[at].raw.succeed("clear-room", room(name));
        self.expected.rooms.insert(name.to_owned(), BTreeSet::new());
        self.expected.room_metadata.remove(name);
    }

    /// A change of a connection's metadata that succeeds.
    #[track_caller]
    pub fn set_metadata(&mut self, at: usize, metadata: Value) {
        let member = &mut self.clients[at].raw;
        member.succeed("set-metadata", metadata.clone());
        let id = member.id().to_owned();
        self.expected.metadata.insert(id, vec![metadata]);
    }

    /// A change of a room's metadata that succeeds.
    #[track_caller]
    pub fn set_room_metadata(&mut self, at: usize, name: &str, metadata: Value) {
        let wanted = json!({ "roomName": name, "metadata": metadata });
        self.clients[at].raw.succeed("set-room-metadata", wanted);
        self.expected
            .room_metadata
            .insert(name.to_owned(), metadata);
    }

    /// The members that a room must have.
    pub fn members_of(&self, name: &str) -> BTreeSet<String> {
        self.expected.rooms.get(name).cloned().unwrap_or_default()
    }

    /// This connection is over.
    pub fn forget(&mut self, id: &str) {
        self.expected.metadata.remove(id);
        for members in self.expected.rooms.values_mut() {
            members.remove(id);
        }
    }

    /// Redis has lost its data: what lived nowhere else is gone.
    pub fn data_lost(&mut self) {
        self.expected.room_metadata.clear();
    }

    /// Kills a server, and forgets its clients; returns their ids and when it died.
    #[track_caller]
    pub fn kill(&mut self, home: usize) -> (BTreeSet<String>, Instant) {
        self.demos[home].take().expect("a server that lives").kill();
        let died = Instant::now();
        let gone: BTreeSet<String> = self
            .clients
            .iter()
            .filter(|member| member.home == home)
            .map(|member| member.raw.id().to_owned())
            .collect();
        self.clients.retain(|member| member.home != home);
        for id in &gone {
            self.forget(id);
        }
        (gone, died)
    }

    /// Ends every server as an operator does, and asserts that Redis is as empty as before.
    #[track_caller]
    pub fn shut_down(mut self, redis: &mut [RedisClient]) {
        // Metadata of rooms outlives everybody, until the room is cleared.
        let at = self.first(self.living()[0]);
        for name in [ALL, FIRSTS] {
            self.clear_room(at, name);
        }
        drop(self.clients);
        shut_down(self.demos.into_iter().flatten().collect(), redis);
    }

    /// Within 15 s of the repair every promise holds again: who is in which room, broadcasts in order, channels,
    /// metadata, joining and leaving, coming and going, on every server and for clients that stayed all along.
    #[track_caller]
    pub fn every_promise_holds(&mut self, repaired: Instant) {
        self.whole_again(repaired);
        self.check();
        self.clear();
    }

    /// The same after these servers were without Redis: their subscribers are told of the gap, and whatever was left
    /// open is settled.
    #[track_caller]
    pub fn every_promise_holds_after(
        &mut self,
        repaired: Instant,
        homes: &[usize],
        doubts: &[Doubt],
    ) {
        self.whole_again(repaired);
        self.gaps_are_told(homes);
        for doubt in doubts {
            self.is_settled(doubt);
        }
        self.check();
        eprintln!(
            "every promise held {:?} after the repair",
            repaired.elapsed()
        );
        self.clear();
    }

    #[track_caller]
    fn whole_again(&mut self, repaired: Instant) {
        while let Err(why) = self.settled() {
            let took = repaired.elapsed();
            assert!(took < RECOVERY, "{took:?} after the repair: {why}");
            thread::sleep(Duration::from_millis(50));
        }
        eprintln!("whole {:?} after the repair", repaired.elapsed());
    }

    /// Whatever came late is no news.
    fn clear(&mut self) {
        for member in &mut self.clients {
            member.raw.set_aside();
        }
    }

    /// Whether all servers say what they must, and reach everybody.
    fn settled(&mut self) -> Result<(), String> {
        self.round += 1;
        for home in self.living() {
            let health = self.demo(home).get("/health");
            if health.status != 200 || !health.body.contains("\"ok\"") {
                return Err(format!("server {home}: {}", health.body));
            }
            self.tells(home)
                .map_err(|why| format!("server {home}: {why}"))?;
        }
        self.reaches_everybody()
    }

    /// Whether a server tells what it must.
    fn tells(&mut self, home: usize) -> Result<(), String> {
        let at = self.first(home);
        let expected = self.expected.clone();
        let asker = &mut self.clients[at].raw;
        let allowed = |id: &String, is: &Value| {
            let wanted = expected.metadata.get(id);
            wanted.is_some_and(|wanted| wanted.contains(is))
        };
        let all = metadata_map(&ask(asker, "all-metadata", Value::Null)?)?;
        if !all.keys().eq(expected.metadata.keys()) || !all.iter().all(|(id, is)| allowed(id, is)) {
            return Err(format!("metadata is {all:?}, not {:?}", expected.metadata));
        }
        for (name, members) in &expected.rooms {
            let is = id_set(&ask(asker, "room-members", room(name))?)?;
            if &is != members {
                return Err(format!("members of {name} are {is:?}, not {members:?}"));
            }
            let is = metadata_map(&ask(asker, "room-members-metadata", room(name))?)?;
            if !is.keys().eq(members) || !is.iter().all(|(id, is)| allowed(id, is)) {
                return Err(format!("metadata of members of {name} is {is:?}"));
            }
        }
        let is = ask(asker, "all-room-metadata", Value::Null)?;
        let is: BTreeMap<String, Value> = is
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(name, _)| !name.starts_with(DOUBT))
            .map(|(name, it)| (name.clone(), it.clone()))
            .collect();
        if is != expected.room_metadata {
            return Err(format!(
                "metadata of rooms is {is:?}, not {:?}",
                expected.room_metadata
            ));
        }
        Ok(())
    }

    /// Whether each server's events and messages reach all clients.
    fn reaches_everybody(&mut self) -> Result<(), String> {
        let token = format!("probe-{}", self.round);
        let everybody: Vec<String> = (0..self.clients.len()).map(|at| self.id(at)).collect();
        for home in self.living() {
            let at = self.first(home);
            let asker = &mut self.clients[at].raw;
            let to_room = json!({ "roomName": ALL, "command": token, "payload": home });
            ask(asker, "broadcast-room", to_room)?;
            for id in &everybody {
                let to_one =
                    json!({ "connectionId": id, "command": token, "payload": 1_000 + home });
                ask(asker, "send-to", to_one)?;
            }
            let message = json!({ "channel": CHAT, "message": format!("{token}-{home}") });
            ask(asker, "publish", message)?;
        }
        let living = self.living();
        let members = self.expected.rooms[ALL].clone();
        let patience = Instant::now() + Duration::from_secs(1);
        let left = || patience.saturating_duration_since(Instant::now());
        for member in &mut self.clients {
            let in_room = members.contains(member.raw.id());
            let mut missing: BTreeSet<usize> = living.iter().map(|home| 1_000 + home).collect();
            if in_room {
                missing.extend(&living);
            }
            while !missing.is_empty() {
                let event = member.raw.event_within(&token, left());
                let Some(from) = event.as_ref().and_then(Value::as_u64) else {
                    return Err(format!("{} lacks events of {missing:?}", member.raw.id()));
                };
                missing.remove(&(from as usize));
            }
            let mut missing: BTreeSet<String> = living
                .iter()
                .map(|home| format!("{token}-{home}"))
                .collect();
            // Those who came later are in the room or they are not; the room's members are the subscribers too.
            while in_room && !missing.is_empty() {
                let event = member.raw.event_within("mesh/subscription-message", left());
                let Some(event) = event else {
                    return Err(format!("{} lacks messages {missing:?}", member.raw.id()));
                };
                missing.remove(event["message"].as_str().unwrap_or_default());
            }
        }
        Ok(())
    }

    /// Every promise once, without any patience for what is missing, late or out of order.
    #[track_caller]
    fn check(&mut self) {
        self.check_events();
        self.check_channels();
        self.check_rooms_and_metadata();
        self.check_coming_and_going();
        for home in self.living() {
            self.tells(home)
                .unwrap_or_else(|why| panic!("server {home}, in the end: {why}"));
        }
    }

    /// Broadcasts of each server, at once; in order for each, and not to those who are left out.
    #[track_caller]
    fn check_events(&mut self) {
        const EVENTS: usize = 20;
        let name = format!("event-{}", self.round);
        let (excluding, announced) = (format!("{name}-x"), json!({ "token": name }));
        let askers: Vec<usize> = self.living().iter().map(|&home| self.first(home)).collect();
        let mut asked = Vec::new();
        for n in 0..EVENTS {
            for &at in &askers {
                let payload = json!({ "roomName": ALL, "command": name, "payload": [at, n] });
                let id = self.clients[at].raw.send_command("broadcast-room", payload);
                asked.push((at, id));
            }
        }
        for &at in &askers {
            let payload = json!({ "roomName": ALL, "command": excluding, "payload": at });
            let raw = &mut self.clients[at].raw;
            asked.push((at, raw.send_command("broadcast-room-exclude", payload)));
            asked.push((at, raw.send_command("broadcast", announced.clone())));
        }
        for (at, id) in asked {
            assert_eq!(self.clients[at].raw.reply(id), json!({ "sent": true }));
        }
        let members = &self.expected.rooms[ALL];
        for (at, member) in self.clients.iter_mut().enumerate() {
            for _ in &askers {
                until_event(&mut member.raw, "announcement", &announced);
            }
            if !members.contains(member.raw.id()) {
                continue;
            }
            let mut next: BTreeMap<usize, usize> = askers.iter().map(|&at| (at, 0)).collect();
            for _ in 0..EVENTS * askers.len() {
                let event = member.raw.event(&name);
                let from = event[0].as_u64().expect("a publisher") as usize;
                let next = next.get_mut(&from).expect("a publisher");
                assert_eq!(event, json!([from, *next]), "out of order");
                *next += 1;
            }
            let mut others: BTreeSet<usize> = askers.iter().copied().collect();
            others.remove(&at);
            let seen: BTreeSet<usize> = (0..others.len())
                .map(|_| member.raw.event(&excluding).as_u64().expect("a publisher") as usize)
                .collect();
            assert_eq!(
                seen, others,
                "whom an event was not for got it, or it came twice"
            );
        }
        for member in &mut self.clients {
            for name in [&name, &excluding] {
                let more = member.raw.events_until_now(name);
                assert_eq!(more, Vec::<Value>::new(), "more than was sent");
            }
        }
    }

    /// Messages of each server to all subscribers, in order; the history, the same everywhere.
    #[track_caller]
    fn check_channels(&mut self) {
        const MESSAGES: usize = 10;
        let token = format!("message-{}", self.round);
        let askers: Vec<usize> = self.living().iter().map(|&home| self.first(home)).collect();
        for n in 0..MESSAGES {
            for &at in &askers {
                let message = format!("{token}:{at}:{n}");
                let payload = json!({ "channel": CHAT, "message": message, "history": 5 });
                self.clients[at].raw.succeed("publish", payload);
            }
        }
        let last = askers
            .iter()
            .map(|at| format!("{token}:{at}:{}", MESSAGES - 1));
        let wanted: Vec<String> = last.rev().take(5).collect();
        for &at in &askers {
            let payload = json!({ "channel": CHAT, "limit": wanted.len() });
            let history = self.clients[at]
                .raw
                .command("mesh/get-channel-history", payload);
            assert_eq!(
                history["history"],
                json!(wanted),
                "newest first, everywhere"
            );
        }
        let members = &self.expected.rooms[ALL];
        for member in &mut self.clients {
            if !members.contains(member.raw.id()) {
                continue;
            }
            let mut next: BTreeMap<usize, usize> = askers.iter().map(|&at| (at, 0)).collect();
            while next.values().any(|&next| next < MESSAGES) {
                let event = member.raw.event("mesh/subscription-message");
                let message = event["message"].as_str().expect("a message");
                let Some(rest) = message.strip_prefix(&format!("{token}:")) else {
                    continue;
                };
                let (from, n) = rest.split_once(':').expect("a publisher and a number");
                let next = next
                    .get_mut(&from.parse().expect("a publisher"))
                    .expect("a publisher");
                assert_eq!(n, next.to_string(), "out of order");
                *next += 1;
            }
        }
    }

    /// Joins, leaves and metadata: what one server granted, every other knows at once.
    #[track_caller]
    fn check_rooms_and_metadata(&mut self) {
        let name = format!("room:round-{}", self.round);
        let living = self.living();
        for (nth, &home) in living.iter().enumerate() {
            let (at, other) = (
                self.first(home),
                self.first(living[(nth + 1) % living.len()]),
            );
            let id = self.id(at);
            self.raw(at).succeed("join-room", room(&name));
            let event = json!({ "roomName": name, "command": "joined", "payload": home });
            assert_eq!(
                self.raw(other).command("room-members", room(&name)),
                json!([id])
            );
            let sent = self.raw(other).command("broadcast-room", event.clone());
            assert_eq!(sent, json!({ "sent": true }));
            assert_eq!(self.raw(at).event("joined"), home);
            let metadata = json!({ "round": self.round, "home": home });
            self.set_metadata(at, metadata.clone());
            let wanted = json!({ "connectionId": id });
            assert_eq!(self.raw(other).command("get-metadata", wanted), metadata);
            let is = self
                .raw(other)
                .command("room-members-metadata", room(&name));
            assert_eq!(is, json!([{ &*id: metadata }]));
            let wanted = json!({ "roomName": name, "metadata": { "a": 1, "b": home } });
            self.raw(at).succeed("set-room-metadata", wanted);
            let wanted = json!({ "roomName": name, "metadata": { "b": 2 } });
            self.raw(other).succeed("update-room-metadata", wanted);
            let merged = json!({ "a": 1, "b": 2 });
            assert_eq!(
                self.raw(at).command("get-room-metadata", room(&name)),
                merged
            );
            // Setting metadata disturbs no routing.
            let event_to = json!({ "connectionId": id, "command": "to", "payload": home });
            self.raw(other).command("send-to", event_to);
            assert_eq!(self.raw(at).event("to"), home);
            self.raw(at).succeed("leave-room", room(&name));
            let members = self.raw(other).command("room-members", room(&name));
            assert_eq!(members, json!([]));
            self.raw(other).command("broadcast-room", event);
            self.raw(other).succeed("clear-room", room(&name));
            let metadata = self.raw(at).command("get-room-metadata", room(&name));
            assert_eq!(metadata, Value::Null);
            let late = self.raw(at).events_until_now("joined");
            assert_eq!(late, Vec::<Value>::new(), "an event after the leave");
        }
    }

    /// Connections that come, take part, and go.
    #[track_caller]
    fn check_coming_and_going(&mut self) {
        let living = self.living();
        for (nth, &home) in living.iter().enumerate() {
            let other = self.first(living[(nth + 1) % living.len()]);
            let mut guest = RawClient::connect(self.demo(home));
            let id = guest.id().to_owned();
            let wanted = json!({ "roomName": FIRSTS, "connectionId": id });
            guest.succeed("join-room", room(FIRSTS));
            guest.succeed("set-metadata", json!("guest"));
            let there = self.raw(other).command("is-in-room", wanted.clone());
            assert_eq!(there, true);
            let event = json!({ "connectionId": id, "command": "welcome", "payload": home });
            self.raw(other).command("send-to", event);
            assert_eq!(guest.event("welcome"), home);
            guest.vanish();
            until("a guest who went is gone everywhere", || {
                living.iter().all(|&home| {
                    let at = self.first(home);
                    let raw = self.raw(at);
                    let all = raw.command("all-metadata", Value::Null).to_string();
                    let there = raw.command("is-in-room", wanted.clone());
                    !all.contains(&id) && there == false
                })
            });
        }
    }

    /// While servers that lost their way to Redis at `since` go on without: what they know by themselves they do, what
    /// needs Redis is an error in time, and nothing hangs. Returns what was left open, to be looked at after the return.
    #[track_caller]
    pub fn goes_on_without(&mut self, homes: &[usize], since: Instant) -> Vec<Doubt> {
        for &home in homes {
            let health = until_some("/health tells", || {
                let health = self.demo(home).get("/health");
                (health.status != 200).then_some(health)
            });
            let took = since.elapsed();
            assert!(took < KNOWN, "known after {took:?}");
            assert_eq!(health.status, 503);
            assert!(health.body.contains("\"degraded\""), "{}", health.body);
        }
        homes.iter().map(|&home| self.is_without(home)).collect()
    }

    #[track_caller]
    fn is_without(&mut self, home: usize) -> Doubt {
        // New connections are accepted, and work as far as they can.
        let guest = self.connect(home);
        assert_eq!(self.raw(guest).command("echo", "x"), "echo: x");

        let at = self.first(home);
        self.round += 1;
        let names = ["join", "leave", "clear", "meta"];
        let doubt = Doubt {
            id: self.id(guest),
            rooms: names.map(|name| format!("{DOUBT}-{name}-{}", self.round)),
            remote: self
                .clients
                .iter()
                .find(|member| member.home != home)
                .map_or_else(String::new, |member| member.raw.id().to_owned()),
        };
        let [joined, left, cleared, with_metadata] = &doubt.rooms;
        let metadata = |name: &str| json!({ "roomName": name, "metadata": { "doubt": true } });
        let channel = json!({ "channel": "chat:doubt" });
        let message = json!({ "channel": "chat:doubt", "message": "m" });
        let kept = json!({ "channel": "chat:doubt", "message": "m", "history": 3 });
        let to = json!({ "connectionId": doubt.remote, "command": "doubt", "payload": 1 });
        let commands = [
            ("join-room", room(joined)),
            ("leave-room", room(left)),
            ("clear-room", room(cleared)),
            ("set-room-metadata", metadata(with_metadata)),
            ("update-room-metadata", metadata(with_metadata)),
            ("get-room-metadata", room(ALL)),
            ("all-room-metadata", Value::Null),
            ("room-members", room(ALL)),
            ("room-members-metadata", room(ALL)),
            ("is-in-room", room(ALL)),
            (
                "is-in-room",
                json!({ "roomName": ALL, "connectionId": doubt.remote }),
            ),
            ("set-metadata", json!("doubtful")),
            ("get-metadata", json!({ "connectionId": doubt.remote })),
            ("all-metadata", Value::Null),
            ("publish", message),
            ("publish", kept),
            ("send-to", to),
            ("mesh/subscribe-channel", channel.clone()),
            ("mesh/unsubscribe-channel", channel.clone()),
            ("mesh/get-channel-history", channel),
            ("mesh/join-room", room(joined)),
            ("mesh/get-room-metadata", room(ALL)),
        ];
        let maybe = self.expected.metadata.entry(doubt.id.clone()).or_default();
        maybe.push(json!("doubtful"));
        let asked = Instant::now();
        let ids: Vec<_> = commands
            .iter()
            .map(|(command, payload)| {
                let id = self.clients[guest]
                    .raw
                    .send_command(command, payload.clone());
                (command, id)
            })
            .collect();
        // Meanwhile everything else goes on.
        for command in ["echo", "reflect", "whoami", "mesh/noop"] {
            let begun = Instant::now();
            let reply = self.raw(at).command(command, "x");
            assert!(reply.get("error").is_none(), "{command}: {reply}");
            let took = begun.elapsed();
            assert!(took < Duration::from_secs(2), "{command} took {took:?}");
        }
        for (command, id) in ids {
            let left = (ANSWERED + Duration::from_secs(1)).saturating_sub(asked.elapsed());
            let reply = self.clients[guest].raw.reply_within(id, left);
            let reply = reply.unwrap_or_else(|| panic!("{command} has no answer within 10 s"));
            if reply.get("error").is_some() {
                assert_error(&reply, "EUNAVAILABLE", "BackendError");
            }
        }
        // A broadcast serves those who are here, and says that it reached nobody else.
        let name = format!("local-{}", self.round);
        let event = json!({ "roomName": ALL, "command": name, "payload": home });
        for (command, payload) in [("broadcast-room", event), ("broadcast", json!(name))] {
            let asked = Instant::now();
            let reply = self.raw(at).command(command, payload);
            let said = assert_error(&reply, "EUNAVAILABLE", "BackendError");
            eprintln!("{command} answers {said:?} after {:?}", asked.elapsed());
            assert!(asked.elapsed() < ANSWERED);
        }
        let members = self.expected.rooms[ALL].clone();
        for member in self.clients.iter_mut().filter(|member| member.home == home) {
            if members.contains(member.raw.id()) {
                assert_eq!(member.raw.event(&name), home, "a local member");
            }
            until_event(&mut member.raw, "announcement", &json!(name));
        }
        doubt
    }

    /// After the return: who was cut off is told of the gap in each of its channels.
    #[track_caller]
    pub fn gaps_are_told(&mut self, homes: &[usize]) {
        let members = self.expected.rooms[ALL].clone();
        for member in &mut self.clients {
            if homes.contains(&member.home) && members.contains(member.raw.id()) {
                assert_eq!(member.raw.event("mesh/gap"), json!({ "channel": CHAT }));
            }
        }
    }

    /// After the return: whatever became of an operation without an answer, all agree about it.
    #[track_caller]
    pub fn is_settled(&mut self, doubt: &Doubt) {
        let living = self.living();
        let guest = self
            .clients
            .iter()
            .position(|member| member.raw.id() == doubt.id);
        let guest = guest.expect("a client that stayed");
        let mine = self.clients[guest]
            .raw
            .command("mesh/get-my-connection-metadata", Value::Null);
        for name in &doubt.rooms {
            let wanted = json!({ "roomName": name, "connectionId": doubt.id });
            let event = json!({ "roomName": name, "command": name, "payload": 1 });
            let own = self.clients[guest]
                .raw
                .command("is-in-room", wanted.clone());
            let mut metadata = BTreeSet::new();
            for &home in &living {
                let at = self.first(home);
                let raw = self.raw(at);
                let there = raw.command("is-in-room", wanted.clone());
                assert_eq!(there, own, "server {home} about {name}");
                let members = raw.command("room-members", room(name));
                assert_eq!(
                    !members.to_string().contains(&doubt.id),
                    own == false,
                    "{name}"
                );
                metadata.insert(raw.command("get-room-metadata", room(name)).to_string());
                let id = json!({ "connectionId": doubt.id });
                assert_eq!(
                    raw.command("get-metadata", id)["metadata"],
                    mine["metadata"]["metadata"]
                );
                assert_eq!(
                    raw.command("broadcast-room", event.clone()),
                    json!({ "sent": true })
                );
            }
            assert_eq!(metadata.len(), 1, "metadata of {name}: {metadata:?}");
            if own == true {
                for _ in &living {
                    assert_eq!(self.clients[guest].raw.event(name), 1);
                }
            }
            eprintln!("{name}: member {own}, metadata {metadata:?}");
            self.clients[guest].raw.succeed("clear-room", room(name));
        }
        self.set_metadata(guest, json!("settled"));
    }
}

/// Operations whose outcome nobody knows before the return.
#[derive(Debug)]
pub struct Doubt {
    id: String,
    rooms: [String; 4],
    remote: String,
}

/// Reads up to an event with this payload.
#[track_caller]
fn until_event(client: &mut RawClient, name: &str, payload: &Value) {
    while &client.event(name) != payload {}
}

/// Ends servers with SIGTERM, and asserts that they leave nothing in Redis but what expires by itself.
#[track_caller]
pub fn shut_down(demos: Vec<Demo>, redis: &mut [RedisClient]) {
    let signalled = Instant::now();
    for demo in &demos {
        demo.signal("TERM");
    }
    for demo in demos {
        let outcome = demo.end(signalled);
        assert_eq!(outcome.status.code(), Some(0), "{outcome:?}");
    }
    for redis in redis {
        let keys = redis.keys();
        let left: Vec<_> = keys
            .iter()
            .filter(|key| key.expires_in.is_none() && !is_lasting(&key.name))
            .collect();
        assert!(left.is_empty(), "still in Redis: {left:#?}");
        eprintln!(
            "{} keys are left to expire or to last: {:?}",
            keys.len(),
            keys.iter()
                .map(|key| &key.name)
                .take(10)
                .collect::<Vec<_>>()
        );
    }
}

/// Whether a key is meant to outlive all servers.
fn is_lasting(name: &str) -> bool {
    name.starts_with("history:")
}
