//! A shard between connections and a backend, and a model that watches every action.
//!
//! The model follows the answers that were given, not the shard's tables: whoever was told that they are a member gets
//! what a member gets, until they are told otherwise.

mod checks;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{id, options, origin, store::Store, unavailable};
use crate::{
    backend::{BackendError, ConnectionId, Document, Json, MetadataChange, Name, Op, Reply, Topic},
    instance::{Action, Instance, OpToken},
    websocket::TextFrame,
};

/// A few messages of the world.
const KEPT_BYTES_MAX: usize = 24;
/// Never reached here.
const LISTED_BYTES_MAX: usize = usize::MAX;

/// Connections are named by place, rooms and channels by number, operations by whatever index is left after a division.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Answer(usize, Answer),
    AnswerAgain(usize),
    Clear(usize),
    ClearElsewhere(usize),
    Close(usize),
    EventAll(usize),
    EventRoom(usize, usize),
    /// The backend does it, and tells later.
    Execute(usize),
    Join(usize, usize, bool),
    Leave(usize, usize),
    Message(usize),
    NoticeCleared,
    NoticeRemoved,
    Open(usize),
    RemoveElsewhere(usize, usize),
    /// The store was out of reach and is back, without its data if they are lost.
    Restore(bool),
    SetMetadata(usize, u8),
    SetMetadataElsewhere(usize, u8),
    Subscribe(usize, usize, usize),
    Unsubscribe(usize, usize),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Answer {
    Ok,
    /// It was done, and the answer got lost.
    Lost,
    /// It was not done, unless it was before.
    Refused,
}

#[derive(Debug, PartialEq)]
enum Request {
    Clear(Name),
    Close(u32),
    Join(u32, Name, bool),
    Leave(u32, Name),
    Metadata(u32),
    Open(u32),
    Restore,
    Subscribe {
        of: u32,
        channel: Name,
        limit: usize,
        /// What arrived while it was the first of its connection and the topic was taken.
        kept: Vec<String>,
        kept_bytes: usize,
    },
    Unsubscribe(u32, Name),
}

impl Request {
    /// The room, and the member if it is about one.
    fn in_room(&self) -> Option<(&Name, Option<u32>)> {
        match self {
            Self::Clear(room) => Some((room, None)),
            Self::Join(of, room, _) | Self::Leave(of, room) => Some((room, Some(*of))),
            _ => None,
        }
    }

    fn in_channel(&self) -> Option<(&Name, u32)> {
        match self {
            Self::Subscribe { of, channel, .. } | Self::Unsubscribe(of, channel) => {
                Some((channel, *of))
            }
            _ => None,
        }
    }

    fn in_directory(&self) -> Option<u32> {
        match self {
            Self::Close(of) | Self::Metadata(of) | Self::Open(of) => Some(*of),
            _ => None,
        }
    }

    /// Must the other one be answered before this one, if it came before?
    fn follows(&self, other: &Self) -> bool {
        let in_room = match (self.in_room(), other.in_room()) {
            (Some((room, of)), Some((other_room, other_of))) => {
                room == other_room && (of == other_of || of.is_none() || other_of.is_none())
            }
            _ => false,
        };
        let in_channel = self.in_channel().is_some() && self.in_channel() == other.in_channel();
        let in_directory =
            self.in_directory().is_some() && self.in_directory() == other.in_directory();
        in_room || in_channel || in_directory
    }

    /// Whose place it takes in the limit, until it is answered.
    fn takes(&self) -> Option<u32> {
        match self {
            Self::Join(of, ..) | Self::Subscribe { of, .. } => Some(*of),
            _ => None,
        }
    }
}

#[derive(Debug, Default)]
struct Connection {
    registered: bool,
    gone: bool,
    taken: usize,
    released: usize,
    document: Document,
    /// What its last change made of it; another may have come behind.
    changed: Option<Json>,
    /// With the generation of each membership.
    rooms: BTreeMap<Name, u64>,
    channels: BTreeSet<Name>,
}

#[derive(Debug)]
struct Asked {
    token: OpToken,
    op: Op,
    executed: Option<Result<Reply, BackendError>>,
    /// It was begun before the store was out of reach, and takes no effect any more.
    dead: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum TopicState {
    Subscribing,
    Held,
    Releasing,
}

pub(super) struct World {
    pub(super) log: Vec<String>,
    instance: Instance<u32, u32>,
    store: Store,
    connections: BTreeMap<u32, Connection>,
    /// Who has which place.
    places: [u32; 3],
    requests: BTreeMap<u32, Request>,
    last_token: u32,
    asked: Vec<Asked>,
    answered: Vec<OpToken>,
    topics: BTreeMap<Topic, TopicState>,
    /// Rooms that another instance cleared and the generation that began, which nobody has told yet.
    cleared: Vec<(Name, u64)>,
    /// Memberships that another instance ended, which nobody has told yet.
    removed: Vec<(Name, ConnectionId)>,
    /// The generation of each membership that the store wrote last.
    generations: BTreeMap<(Name, ConnectionId), u64>,
    messages: u32,
    /// Who got the event that is being delivered.
    delivered: Vec<(String, Vec<u32>)>,
    /// What has to come next: kept messages.
    owed: Option<(u32, Vec<String>)>,
    /// The store may know better than the shard, because an answer was an error.
    unknown_connections: BTreeSet<ConnectionId>,
    unknown_members: BTreeSet<(Name, ConnectionId)>,
    unknown_metadata: BTreeSet<ConnectionId>,
    unknown_topics: BTreeSet<Topic>,
    /// An operation failed since the store came back.
    disturbed: bool,
}

impl Connection {
    fn adopt(&mut self, document: &Document) {
        if document.revision > self.document.revision {
            self.document = document.clone();
        }
    }
}

impl World {
    /// Everybody is here, and in no room or channel.
    pub(super) fn new() -> Self {
        let mut world = Self {
            log: Vec::new(),
            instance: Instance::new(&options(KEPT_BYTES_MAX, LISTED_BYTES_MAX)),
            store: Store::default(),
            connections: BTreeMap::new(),
            places: [0; 3],
            requests: BTreeMap::new(),
            last_token: 0,
            asked: Vec::new(),
            answered: Vec::new(),
            topics: BTreeMap::new(),
            cleared: Vec::new(),
            removed: Vec::new(),
            generations: BTreeMap::new(),
            messages: 0,
            delivered: Vec::new(),
            owed: None,
            unknown_connections: BTreeSet::new(),
            unknown_members: BTreeSet::new(),
            unknown_metadata: BTreeSet::new(),
            unknown_topics: BTreeSet::new(),
            disturbed: false,
        };
        for place in 0..3 {
            world.open(place);
        }
        world.answer_all();
        world
    }

    pub(super) fn take(&mut self, step: Step) {
        match step {
            Step::Answer(at, answer) => {
                if !self.asked.is_empty() {
                    self.answer(at % self.asked.len(), answer);
                }
            }
            Step::AnswerAgain(at) => {
                if !self.answered.is_empty() {
                    let token = self.answered[at % self.answered.len()];
                    self.instance
                        .handle_backend(token, Ok(Reply::Done), origin());
                    let action = self.instance.poll_action();
                    assert!(action.is_none(), "an old answer caused {action:?}");
                }
            }
            Step::Clear(room) => {
                let room = name(room);
                let token = self.request(Request::Clear(room.clone()));
                self.instance.clear(&room, token);
            }
            Step::ClearElsewhere(room) => {
                let generation = self.store.clear(&name(room));
                self.cleared.push((name(room), generation));
            }
            Step::Close(place) => self.close(place),
            Step::EventAll(except) => {
                let (frame, except) = (self.frame(), self.except(except));
                self.instance.deliver_all(&except, &frame);
                self.settle();
                let registered = self.with(|connection| connection.registered);
                self.check_delivered(&frame, &registered, &registered, &except);
            }
            Step::EventRoom(room, except) => self.event_room(&name(room), except),
            Step::Execute(at) => {
                if !self.asked.is_empty() {
                    self.execute(at % self.asked.len());
                }
            }
            Step::Join(place, room, present) => {
                let (of, room) = (self.places[place], name(room));
                let token = self.request(Request::Join(of, room.clone(), present));
                let late = self.is_late(of);
                self.instance.join(&room, id(of), of, present, token);
                self.tell_late(of, late);
            }
            Step::Leave(place, room) => {
                let (of, room) = (self.places[place], name(room));
                let token = self.request(Request::Leave(of, room.clone()));
                self.instance.leave(&room, id(of), token);
            }
            Step::Message(channel) => self.message(&name(channel)),
            Step::NoticeCleared => {
                if !self.cleared.is_empty() {
                    let (room, generation) = self.cleared.remove(0);
                    self.notice_cleared(&room, generation);
                }
            }
            Step::NoticeRemoved => {
                if !self.removed.is_empty() {
                    let (room, id) = self.removed.remove(0);
                    self.instance.handle_member_removed(&room, &id);
                }
            }
            Step::Open(place) => {
                if self.connections[&self.places[place]].gone {
                    self.open(place);
                }
            }
            Step::RemoveElsewhere(place, room) => {
                let member = (name(room), id(self.places[place]));
                self.store.remove(&member.0, &member.1);
                self.removed.push(member);
            }
            Step::Restore(lost) => self.restore(lost),
            Step::SetMetadata(place, value) => {
                let of = self.places[place];
                let token = self.request(Request::Metadata(of));
                let change = MetadataChange::Replace(json(value));
                self.instance.set_metadata(&id(of), change, token);
            }
            Step::SetMetadataElsewhere(place, value) => {
                let id = id(self.places[place]);
                if let Some(document) = self.store.set(&id, &json(value)) {
                    self.connection(number(&id)).adopt(&document);
                    self.instance.handle_metadata_changed(&id, document);
                }
            }
            Step::Subscribe(place, channel, limit) => {
                let (of, channel) = (self.places[place], name(channel));
                let token = self.request(Request::Subscribe {
                    of,
                    channel: channel.clone(),
                    limit,
                    kept: Vec::new(),
                    kept_bytes: 0,
                });
                let late = self.is_late(of);
                self.instance.subscribe(&channel, id(of), of, limit, token);
                self.tell_late(of, late);
            }
            Step::Unsubscribe(place, channel) => {
                let (of, channel) = (self.places[place], name(channel));
                let token = self.request(Request::Unsubscribe(of, channel.clone()));
                self.instance.unsubscribe(&channel, &id(of), token);
            }
        }
        self.settle();
        self.check();
    }

    /// Answers everything. Then shard and store agree, as far as the store told the truth.
    pub(super) fn converge(&mut self) {
        for (room, generation) in std::mem::take(&mut self.cleared) {
            self.notice_cleared(&room, generation);
        }
        for (room, id) in std::mem::take(&mut self.removed) {
            self.instance.handle_member_removed(&room, &id);
            self.settle();
        }
        self.answer_all();
        assert!(self.requests.is_empty(), "unanswered: {:?}", self.requests);
        let (mut local, mut topics) = (BTreeSet::new(), BTreeSet::new());
        for of in self.with(|connection| !connection.gone) {
            let connection = &self.connections[&of];
            for room in connection.rooms.keys() {
                local.insert((room.clone(), id(of)));
                topics.insert(Topic::Room(room.clone()));
            }
            let channels = connection.channels.iter().cloned();
            topics.extend(channels.map(Topic::Channel));
            let unknown = [&self.unknown_metadata, &self.unknown_connections];
            if !unknown.iter().any(|unknown| unknown.contains(&id(of))) {
                let metadata = self.instance.metadata(&id(of)).flatten();
                assert_eq!(
                    self.store.connections[&id(of)].json,
                    metadata,
                    "metadata of {of}"
                );
            }
        }
        let known = |member: &&(Name, ConnectionId)| {
            !self.unknown_members.contains(*member) && !self.unknown_connections.contains(&member.1)
        };
        let here: Vec<_> = local.iter().filter(known).collect();
        let there: Vec<_> = self.store.members.iter().filter(known).collect();
        assert_eq!(here, there, "members here and in the store");
        let held = self.topics.iter();
        let held = held.map(|(topic, state)| {
            assert_eq!(*state, TopicState::Held, "{topic:?}");
            topic.clone()
        });
        assert_eq!(
            held.collect::<BTreeSet<_>>(),
            topics,
            "topics held and wanted"
        );
        let known = |topic: &&Topic| !self.unknown_topics.contains(*topic);
        let stored: Vec<_> = self.store.topics.iter().filter(known).collect();
        let wanted: Vec<_> = topics.iter().filter(known).collect();
        assert_eq!(stored, wanted, "topics in the store");
    }

    /// After an outage without a fault behind it nothing is unknown: shard and store agree, whatever went wrong before.
    pub(super) fn agree(&mut self) {
        self.converge();
        self.restore(false);
        self.settle();
        self.answer_all();
        let (mut members, mut connections) = (BTreeSet::new(), BTreeMap::new());
        for of in self.with(|connection| !connection.gone) {
            let connection = &self.connections[&of];
            members.extend(connection.rooms.keys().map(|room| (room.clone(), id(of))));
            connections.insert(id(of), connection.document.clone());
        }
        assert_eq!(self.store.members, members);
        assert_eq!(self.store.connections, connections);
    }

    /// What was unknown is no more, once all is stated and the rest is dropped; unless something failed meanwhile, which in truth is the next
    /// outage.
    pub(super) fn settled(&mut self) {
        self.store.settle();
        if self.disturbed {
            return;
        }
        for unknown in [&mut self.unknown_connections, &mut self.unknown_metadata] {
            unknown.clear();
        }
        self.unknown_members.clear();
    }

    /// What was under way fails, now or later, and takes no effect any more; what others told meanwhile is lost.
    fn restore(&mut self, lost: bool) {
        for asked in &mut self.asked {
            asked.dead = true;
        }
        self.cleared.clear();
        self.removed.clear();
        self.store.come_back(lost);
        self.disturbed = false;
        // What another instance changed unheard shows only in what the store answers.
        for of in self.connections.keys() {
            for room in [name(0), name(1)] {
                self.unknown_members.insert((room, id(*of)));
            }
            self.unknown_connections.insert(id(*of));
        }
        let token = self.request(Request::Restore);
        self.instance.handle_restored(
            |channel| TextFrame::new(&format!("gap {channel}")),
            token,
            origin(),
        );
    }

    /// A room is in this generation, so whoever is here of an older one is out.
    fn learn_generation(&mut self, room: &Name, generation: u64) {
        for connection in self.connections.values_mut() {
            if connection
                .rooms
                .get(room)
                .is_some_and(|of| *of < generation)
            {
                connection.rooms.remove(room);
            }
        }
    }

    /// Nothing and nobody is remembered.
    pub(super) fn everybody_leaves(&mut self) {
        for place in 0..3 {
            self.close(place);
            self.settle();
        }
        self.converge();
        assert!(self.instance.is_empty(), "{:?}", self.instance);
        for (of, connection) in &self.connections {
            assert_eq!(connection.taken, connection.released, "places of {of}");
        }
    }

    fn open(&mut self, place: usize) {
        let of = u32::try_from(self.connections.len()).unwrap() + 1;
        self.places[place] = of;
        let mut connection = Connection::default();
        connection.document.revision = 1;
        self.connections.insert(of, connection);
        let token = self.request(Request::Open(of));
        self.instance.handle_open(&id(of), of, None, token);
        self.settle();
    }

    /// As the driver does it: every shard, then the one that knows the connection.
    fn close(&mut self, place: usize) {
        let of = self.places[place];
        if self.connections[&of].gone {
            return;
        }
        self.gone(of);
        self.settle();
        let token = self.request(Request::Close(of));
        self.connection(of).registered = false;
        self.instance.handle_close(&id(of), token);
    }

    fn gone(&mut self, of: u32) {
        let connection = self.connection(of);
        connection.gone = true;
        connection.rooms.clear();
        connection.channels.clear();
        self.instance.handle_gone(&id(of), origin());
    }

    /// Was the end of this connection told already? Then the shard does not remember it.
    fn is_late(&mut self, of: u32) -> bool {
        std::mem::take(&mut self.connection(of).gone)
    }

    /// The end of a connection overtook its request: the driver tells of it once more.
    fn tell_late(&mut self, of: u32, late: bool) {
        if late {
            self.settle();
            self.gone(of);
        }
    }

    fn event_room(&mut self, room: &Name, except: usize) {
        let (frame, except) = (self.frame(), self.except(except));
        let members = self.with(|connection| connection.rooms.contains_key(room));
        let ends = |of: u32| {
            let end = |request: &Request| {
                *request == Request::Leave(of, room.clone())
                    || *request == Request::Clear(room.clone())
            };
            self.requests.values().any(end)
        };
        let certain: Vec<u32> = members.iter().copied().filter(|of| !ends(*of)).collect();
        self.instance.deliver_room(room, &except, &frame);
        self.settle();
        self.check_delivered(&frame, &certain, &members, &except);
    }

    fn message(&mut self, channel: &Name) {
        let frame = self.frame();
        let taken = matches!(
            self.topics.get(&Topic::Channel(channel.clone())),
            Some(TopicState::Held | TopicState::Subscribing)
        );
        let subscribers = self.with(|connection| connection.channels.contains(channel));
        let mut seen = BTreeSet::new();
        for request in self.requests.values_mut() {
            let first = request
                .in_channel()
                .is_some_and(|(of, at)| of == channel && seen.insert(at));
            if let Request::Subscribe {
                of,
                kept,
                kept_bytes,
                ..
            } = request
                && first
                && taken
                && !subscribers.contains(of)
            {
                kept.push(frame.text().to_owned());
                *kept_bytes += frame.len();
            }
        }
        self.instance
            .handle_channel_message(channel, || frame.clone());
        self.settle();
        self.check_delivered(&frame, &subscribers, &subscribers, &[]);
    }

    fn notice_cleared(&mut self, room: &Name, generation: u64) {
        self.learn_generation(room, generation);
        self.instance.handle_room_cleared(room, generation);
        self.settle();
    }

    fn request(&mut self, request: Request) -> u32 {
        if let Some(of) = request.takes() {
            self.connection(of).taken += 1;
        }
        self.last_token += 1;
        self.requests.insert(self.last_token, request);
        self.last_token
    }

    fn connection(&mut self, of: u32) -> &mut Connection {
        self.connections.get_mut(&of).unwrap()
    }

    fn with(&self, is: impl Fn(&Connection) -> bool) -> Vec<u32> {
        let those = self.connections.iter().filter(|(_, one)| is(one));
        those.map(|(of, _)| *of).collect()
    }

    fn frame(&mut self) -> TextFrame {
        self.messages += 1;
        TextFrame::new(&format!("m{}", self.messages))
    }

    /// Nobody, or whoever is at this place.
    fn except(&self, place: usize) -> Arc<[ConnectionId]> {
        let place = place.checked_sub(1);
        place
            .map(|place| id(self.places[place]))
            .into_iter()
            .collect()
    }

    fn execute(&mut self, at: usize) {
        let asked = &mut self.asked[at];
        if asked.executed.is_none() && !asked.dead {
            asked.executed = Some(self.store.execute(&asked.op));
        }
    }

    fn answer(&mut self, at: usize, answer: Answer) {
        if !matches!(answer, Answer::Refused) {
            self.execute(at);
        }
        let Asked {
            token,
            op,
            executed,
            dead,
        } = self.asked.remove(at);
        let result = match (answer, executed) {
            // Even of one that was executed before the store was lost, and that is handled behind its return.
            (Answer::Ok, Some(result)) => result,
            _ => Err(unavailable()),
        };
        self.answered.push(token);
        self.note(&op, &result, dead);
        self.instance.handle_backend(token, result, origin());
        self.settle();
    }

    fn answer_all(&mut self) {
        while !self.asked.is_empty() {
            self.answer(0, Answer::Ok);
            self.check();
        }
    }

    /// What the model learns from an answer.
    fn note(&mut self, op: &Op, result: &Result<Reply, BackendError>, dead: bool) {
        let answered = !matches!(result, Err(BackendError::Unavailable(_)));
        // What came of an operation from before an outage is settled with it. Topics outlive it.
        let known = answered;
        self.disturbed |= !answered && !dead;
        match op {
            Op::JoinRoom { room, connection } | Op::LeaveRoom { room, connection } => {
                let member = (room.clone(), connection.clone());
                if let (Ok(Reply::Joined { generation, .. }), false) = (result, dead) {
                    self.generations.insert(member.clone(), *generation);
                    self.learn_generation(room, *generation);
                }
                // Whoever left before an outage is not stated behind it.
                if !dead || known && matches!(op, Op::LeaveRoom { .. }) {
                    set(&mut self.unknown_members, member, !known);
                }
            }
            Op::IsInRoom { room, connection } if !dead => {
                let member = (room.clone(), connection.clone());
                if let Ok(Reply::Flag(false)) = result {
                    self.connection(number(connection)).rooms.remove(room);
                }
                if !known {
                    self.unknown_members.insert(member);
                }
            }
            Op::ClearRoom { room } if !dead => {
                for of in self.connections.keys() {
                    set(&mut self.unknown_members, (room.clone(), id(*of)), !known);
                }
            }
            Op::CloseConnection { connection } | Op::OpenConnection { connection, .. } if !dead => {
                set(&mut self.unknown_connections, connection.clone(), !known);
            }
            Op::SetConnectionMetadata { connection, .. } => {
                if !dead {
                    set(&mut self.unknown_metadata, connection.clone(), !known);
                }
                let of = number(connection);
                if let Ok(Reply::Changed(Some(document))) = result {
                    let connection = self.connection(of);
                    connection.adopt(document);
                    connection.changed = document.json.clone();
                }
            }
            Op::Subscribe { topics } | Op::Unsubscribe { topics } => {
                let topic = topics[0].clone();
                if known && matches!(op, Op::Subscribe { .. }) {
                    self.topics.insert(topic.clone(), TopicState::Held);
                } else {
                    self.topics.remove(&topic);
                }
                set(&mut self.unknown_topics, topic, !known);
            }
            // Of the one that is under way; the answers to others are not looked at.
            Op::Restore { connections, .. } if !dead => {
                for (id, _) in connections {
                    set(&mut self.unknown_connections, id.clone(), !known);
                }
                if let Ok(Reply::Restored { changed, ended }) = result {
                    for (id, document) in changed {
                        self.connection(number(id)).adopt(document);
                    }
                    for (room, id) in ended {
                        self.connection(number(id)).rooms.remove(room);
                    }
                }
            }
            _ => {}
        }
    }

    /// Takes all actions, as a driver does after every call.
    fn settle(&mut self) {
        while let Some(action) = self.instance.poll_action() {
            self.log.push(format!("{action:?}"));
            match action {
                Action::DeliverOne { to, frames } => {
                    let frames = frames.iter().map(|frame| frame.text().to_owned());
                    assert_eq!(self.owed.take(), Some((to, frames.collect())), "kept");
                    continue;
                }
                Action::Backend { token, op } => self.asks(token, op),
                Action::Complete { token, result } => {
                    self.expect_nothing_owed();
                    self.completes(token, result);
                    continue;
                }
                Action::Deliver { frame, .. } if frame.text().starts_with("gap") => {}
                Action::Deliver { to, except, frame } => self.delivers(&to, &except, &frame),
                Action::Left { connection, .. } => {
                    // It took a place, which was given back right before.
                    let released = format!("Release({})", number(&connection));
                    assert_eq!(self.log[self.log.len() - 2], released);
                    continue;
                }
                Action::Release(of) => self.connection(of).released += 1,
                Action::DeliverRecord { .. } | Action::RecordRefreshed { .. } => {
                    panic!("nobody has to do with records")
                }
            }
            self.expect_nothing_owed();
        }
        self.expect_nothing_owed();
    }

    fn expect_nothing_owed(&self) {
        assert_eq!(
            self.owed, None,
            "kept messages come right behind the answer"
        );
    }
}

/// Rooms and channels share their names, so that mixing them up shows.
fn name(number: usize) -> Name {
    ["a", "b"][number].into()
}

fn number(id: &ConnectionId) -> u32 {
    id.as_str()[2..].parse().unwrap()
}

fn json(value: u8) -> Json {
    ["null", "1", "2"][usize::from(value)].into()
}

fn set<K: Ord>(into: &mut BTreeSet<K>, key: K, holds: bool) {
    if holds {
        into.insert(key);
    } else {
        into.remove(&key);
    }
}
