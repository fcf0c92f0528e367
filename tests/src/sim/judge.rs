//! After the repair everything agrees: what the servers know, what the store holds, what the clients were told.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesh_core::backend::{ConnectionId, Topic};
use serde_json::Value;

use super::caller::{CHANNELS, RECORDS, ROOMS};
use super::world::{Belonging, Held, STAFF, VIP, World};

/// What runs in a server beside its connections and what it asked the store for, a task each: the listener, the timers, the reader of notices.
const TASKS: usize = 3;

/// Runs this in the world, for it needs time to pass.
fn ask<T: Send + 'static>(
    world: &World,
    question: impl Future<Output = T> + Send + 'static,
) -> Option<T> {
    let answer = Arc::new(Mutex::new(None));
    let slot = Arc::clone(&answer);
    world.clock.spawn(world.clock.node(), async move {
        let value = question.await;
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
    });
    for _ in 0..100 {
        world
            .clock
            .run_until(world.now() + Duration::from_millis(20));
        if let Some(answer) = answer.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Some(answer);
        }
    }
    None
}

/// Everything that must be so when nothing was broken for a while.
pub(super) fn judge(world: &World) {
    let ids = connections(world);
    ends(world, &ids);
    memberships(world, &ids);
    subscriptions(world);
    records(world);
    metadata(world);
    costs(world);
}

/// Every client is connected, and every server knows all of them and nobody else.
fn connections(world: &World) -> BTreeSet<ConnectionId> {
    let state = world.state();
    let mut offline = Vec::new();
    let mut ids = BTreeSet::new();
    for (n, seat) in state.seats.iter().enumerate() {
        match seat.client.connection_id() {
            Some(id) if seat.client.is_online() => {
                ids.insert(ConnectionId::new(id));
            }
            _ => offline.push(n),
        }
    }
    let hosts: Vec<_> = state.hosts.iter().map(|host| host.server.clone()).collect();
    drop(state);
    if !offline.is_empty() {
        world.violation(format_args!("clients {offline:?} are not connected"));
    }
    for server in hosts {
        let name = server.instance_id().clone();
        world.state().surveys += 1;
        let asked = server.clone();
        let known = ask(world, async move { asked.connections().ids().await });
        let known: BTreeSet<_> = known.and_then(Result::ok).into_iter().flatten().collect();
        if known != ids {
            world.violation(format_args!(
                "{name} knows {known:?}, and there are {ids:?}"
            ));
        }
        let local = ids
            .iter()
            .filter(|id| server.connections().local(*id).is_some());
        let (local, held) = (local.count(), server.metrics().connections);
        let known = server.check();
        if local != held || local != known {
            world.violation(format_args!(
                "{name} holds {held} connections and knows {known}, of {local} clients"
            ));
        }
    }
    ids
}

/// Every call had an outcome, the application knows of every connection that is there and of no other, and nobody said what is no sense.
fn ends(world: &World, ids: &BTreeSet<ConnectionId>) {
    let open = world.calls();
    if open > 0 {
        world.violation(format_args!("{open} calls have no outcome"));
    }
    let state = world.state();
    let mut wrong = Vec::new();
    for host in &state.hosts {
        let name = host.server.instance_id();
        let is_here = |id: &&ConnectionId| id.instance().as_ref() == Some(name);
        let (told, here) = (state.told_of.iter(), ids.iter());
        let (told, here) = (told.filter(is_here), here.filter(is_here));
        if !told.clone().eq(here) {
            let told: Vec<_> = told.collect();
            wrong.push(format!("the application of {name} knows {told:?}"));
        }
        let metrics = host.server.metrics();
        let tasks = world.clock.tasks(host.node);
        let expected = TASKS + metrics.connections + world.store.pending(host.wire);
        if tasks != expected {
            wrong.push(format!("{name} has {tasks} tasks, not {expected}"));
        }
        let under_way = host.under_way.load(Ordering::Relaxed);
        if under_way > 0 {
            wrong.push(format!("{name} has {under_way} commands under way"));
        }
        if metrics.handler_panics_total + metrics.backend_messages_dropped_total > 0 {
            wrong.push(format!("{name} is at fault: {metrics:?}"));
        }
    }
    for (n, seat) in state.seats.iter().enumerate() {
        let stats = seat.client.stats();
        if stats.frames_malformed + stats.replies_unknown > 0 {
            wrong.push(format!("client {n} was told what is no sense: {stats:?}"));
        }
    }
    drop(state);
    wrong.iter().for_each(|wrong| world.violation(wrong));
}

/// Servers, store and clients agree about who is in which room.
fn memberships(world: &World, ids: &BTreeSet<ConnectionId>) {
    let stored = world.store.members();
    for (room, id) in stored.iter().filter(|(_, id)| !ids.contains(id)) {
        world.violation(format_args!("{id} is gone and in {room}"));
    }
    let state = world.state();
    let mut wrong = Vec::new();
    for (n, seat) in state.seats.iter().enumerate() {
        let id = seat.client.connection_id().unwrap_or_default();
        for (room, belonging) in seat.rooms.iter().filter(|(room, _)| **room != VIP) {
            let is_member =
                (stored.iter()).any(|(name, member)| **name == **room && member.as_str() == id);
            let is_wrong = match belonging {
                Belonging::Member { .. } => !is_member,
                Belonging::Left { .. } | Belonging::Expelled { .. } => is_member,
                Belonging::Unknown => false,
            };
            if is_wrong {
                wrong.push(format!(
                    "client {n} in {room}: {is_member}, and {belonging:?}"
                ));
            }
        }
    }
    let hosts: Vec<_> = state
        .hosts
        .iter()
        .map(|host| (host.server.clone(), host.wire))
        .collect();
    drop(state);
    wrong.iter().for_each(|wrong| world.violation(wrong));
    for (server, wire) in hosts {
        let name = server.instance_id().clone();
        for room in ROOMS.into_iter().chain([STAFF, VIP]) {
            let asked = server.clone();
            let told = ask(world, async move { asked.room_members(room).await });
            let told: BTreeSet<_> = told.and_then(Result::ok).into_iter().flatten().collect();
            let held: BTreeSet<_> = (stored.iter())
                .filter(|(name, _)| **name == *room)
                .map(|(_, id)| id.clone())
                .collect();
            if told != held {
                world.violation(format_args!("{name} has {told:?} in {room}, not {held:?}"));
            }
            // What is not needed is not listened to.
            let is_here = held
                .iter()
                .any(|id| server.connections().local(id).is_some());
            let listens = world.store.topics(wire).contains(&Topic::Room(room.into()));
            if is_here != listens {
                world.violation(format_args!(
                    "{name} has members in {room}: {is_here}, and listens: {listens}"
                ));
            }
        }
        for (room, id) in &stored {
            let Some(local) = server.connections().local(id) else {
                continue;
            };
            let (asked, in_room) = (server.clone(), Arc::clone(room));
            let told = ask(
                world,
                async move { asked.is_in_room(&in_room, &local).await },
            );
            if told != Some(Ok(true)) {
                world.violation(format_args!("{name} says {told:?} of {id} in {room}"));
            }
        }
    }
}

/// Servers listen to what a client of theirs is subscribed to, and to nothing else.
fn subscriptions(world: &World) {
    let state = world.state();
    let mut wrong = Vec::new();
    for host in &state.hosts {
        let channels = CHANNELS.map(|name| (name, Topic::Channel(name.into())));
        let records = RECORDS.map(|name| (name, Topic::Record(name.into())));
        for (name, topic) in channels.into_iter().chain(records) {
            let is_wanted = state.seats.iter().any(|seat| {
                let id = seat.client.connection_id().map(ConnectionId::new);
                let is_here = id.is_some_and(|id| host.server.connections().local(&id).is_some());
                is_here && seat.listens.contains_key(name)
            });
            let listens = world.store.topics(host.wire).contains(&topic);
            if is_wanted != listens {
                let host = host.server.instance_id();
                wrong.push(format!(
                    "{host} has subscribers of {name}: {is_wanted}, and listens: {listens}"
                ));
            }
        }
    }
    drop(state);
    wrong.iter().for_each(|wrong| world.violation(wrong));
}

/// Every client holds what is stored, and nothing that was acknowledged is lost since the store last lost something.
fn records(world: &World) {
    let Some(server) = world.state().hosts.first().map(|host| host.server.clone()) else {
        return;
    };
    for name in RECORDS {
        let asked = server.clone();
        let record = ask(world, async move { asked.get_record::<Value>(name).await });
        let Some(Ok(record)) = record else {
            world.violation(format_args!("{name}: {record:?}"));
            continue;
        };
        let stored = Held {
            version: record.version,
            value: record.value.clone(),
        };
        let state = world.state();
        let mut wrong = Vec::new();
        for (n, seat) in state.seats.iter().enumerate() {
            // One whose subscription failed has none.
            if seat.listens.contains_key(name) && seat.held.get(name) != Some(&stored) {
                let held = seat.held.get(name);
                wrong.push(format!(
                    "client {n} holds {held:?} of {name}, not {stored:?}"
                ));
            }
        }
        if name == "board" {
            for (n, mark) in &state.board {
                let value = record.value.as_ref();
                let stored = value.and_then(|value| value[format!("client{n}")].as_u64());
                if stored.is_none_or(|stored| stored < *mark) {
                    wrong.push(format!("client {n} merged {mark}, and there is {stored:?}"));
                }
            }
        }
        if name == "count" {
            let count = record
                .value
                .as_ref()
                .and_then(Value::as_u64)
                .unwrap_or_default();
            let (sure, most) = (state.counted, state.counted + state.maybe_counted);
            if !(sure..=most).contains(&count) {
                wrong.push(format!(
                    "counted {sure} to {most} times, and there is {count}"
                ));
            }
        }
        drop(state);
        wrong.iter().for_each(|wrong| world.violation(wrong));
    }
}

/// What was merged into the metadata of a connection that is still there is in it, beside what it was let in with.
fn metadata(world: &World) {
    let state = world.state();
    let Some(server) = state.hosts.first().map(|host| host.server.clone()) else {
        return;
    };
    let tags = state.tags.clone();
    let users: Vec<_> = (state.seats.iter().enumerate())
        .filter_map(|(n, seat)| Some((n, seat.client.connection_id()?)))
        .collect();
    drop(state);
    for (n, id) in users {
        let (asked, of) = (server.clone(), id.clone());
        let told = ask(world, async move {
            asked.connections().metadata::<Value>(of.as_str()).await
        });
        let Some(Ok(Some(metadata))) = told else {
            world.violation(format_args!("client {n} has metadata {told:?}"));
            continue;
        };
        let user = n.to_string();
        if metadata["user"].as_str() != Some(&user) {
            world.violation(format_args!("client {n} has metadata {metadata}"));
        }
        let name = world.state().seats[n].name;
        let is_known = !name.is_under_way && !name.is_unsure;
        if is_known
            && name
                .now
                .is_some_and(|now| metadata["name"].as_u64() != Some(now))
        {
            world.violation(format_args!("client {n} is {name:?}: {metadata}"));
        }
        let mine = tags.iter().filter(|((tagged, _), _)| *tagged == id);
        for ((_, by), mark) in mine {
            let stored = metadata[format!("tag{by}")].as_u64();
            if stored.is_none_or(|stored| stored < *mark) {
                world.violation(format_args!(
                    "client {n} was tagged {mark} by {by}: {metadata}"
                ));
            }
        }
    }
}

/// Nobody reads the whole cluster whom the application did not tell to.
fn costs(world: &World) {
    let (surveys, asked) = (world.store.surveys(), world.state().surveys);
    if surveys > asked {
        world.violation(format_args!(
            "every connection was read {surveys} times, not {asked}"
        ));
    }
}
