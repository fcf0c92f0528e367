//! Rooms with members on this instance.
//!
//! Requests about one member, and the clearing of a room, happen one after the other in the order they came; requests
//! about different members happen side by side. So every race between them is a question of order, not of luck.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    actions::{Action, Actions, InstanceError, Origin, Outcome},
    members::{Members, Seeded, Table},
    topic::{Topic, TopicOp},
};
use crate::{
    backend::{self, BackendError, ConnectionId, Name, Op, Reply},
    websocket::TextFrame,
};

#[derive(Debug)]
enum Kind<C> {
    Clear,
    Join {
        id: ConnectionId,
        handle: C,
        present: bool,
    },
    Leave {
        id: ConnectionId,
    },
}

impl<C> Kind<C> {
    /// The member it is about; `None` if it is about all.
    fn member(&self) -> Option<&ConnectionId> {
        match self {
            Self::Clear => None,
            Self::Join { id, .. } | Self::Leave { id } => Some(id),
        }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    /// An earlier request or the topic is in the way.
    Waiting,
    /// The membership, or its end, is on its way to the backend.
    Writing,
    /// The member is registered; who else is there is being asked.
    Listing { new: bool },
}

#[derive(Debug)]
struct Request<C, T> {
    kind: Kind<C>,
    token: T,
    step: Step,
    /// The connection went away meanwhile.
    gone: bool,
}

#[derive(Debug)]
struct Room<C, T> {
    topic: Topic,
    members: Members<C>,
    /// In order of arrival.
    requests: BTreeMap<u64, Request<C, T>>,
    /// How many of them are [`Step::Waiting`].
    waiting: usize,
}

/// The rooms of one shard.
#[derive(Debug)]
pub(super) struct Rooms<C, T> {
    hasher: Seeded,
    rooms: Table<Name, Room<C, T>>,
    /// The reverse of `rooms`' members.
    of: Table<ConnectionId, BTreeSet<Name>>,
    /// The requests of each connection, so that its end finds them.
    asked: BTreeSet<(ConnectionId, Name, u64)>,
    last: u64,
}

impl<C: Clone, T> Rooms<C, T> {
    pub(super) fn new(hasher: Seeded) -> Self {
        Self {
            hasher,
            rooms: Table::with_hasher(hasher),
            of: Table::with_hasher(hasher),
            asked: BTreeSet::new(),
            last: 0,
        }
    }

    pub(super) fn join(
        &mut self,
        room: &Name,
        id: ConnectionId,
        handle: C,
        present: bool,
        token: T,
        actions: &mut Actions<C, T>,
    ) {
        self.request(
            room,
            Kind::Join {
                id,
                handle,
                present,
            },
            token,
            actions,
        );
    }

    pub(super) fn leave(
        &mut self,
        room: &Name,
        id: ConnectionId,
        token: T,
        actions: &mut Actions<C, T>,
    ) {
        self.request(room, Kind::Leave { id }, token, actions);
    }

    pub(super) fn clear(&mut self, room: &Name, token: T, actions: &mut Actions<C, T>) {
        self.request(room, Kind::Clear, token, actions);
    }

    /// Another instance cleared the room.
    pub(super) fn handle_cleared(&mut self, room: &Name, actions: &mut Actions<C, T>) {
        self.remove_all(room, actions);
        self.advance(room, actions);
    }

    /// The connection is gone: out of every room at once. The backend is told by whoever closes the connection.
    pub(super) fn handle_gone(&mut self, id: &ConnectionId, actions: &mut Actions<C, T>) {
        let mut touched = self.of.get(id).cloned().unwrap_or_default();
        let first = (id.clone(), Name::from(""), 0);
        for (_, room, number) in self
            .asked
            .range(first..)
            .take_while(|(asker, ..)| asker == id)
        {
            if let Some(request) = self
                .rooms
                .get_mut(room)
                .and_then(|room| room.requests.get_mut(number))
            {
                request.gone = true;
            }
            touched.insert(room.clone());
        }
        for room in touched {
            self.remove(&room, id, actions);
            self.advance(&room, actions);
        }
    }

    /// An event for a room's local members.
    pub(super) fn deliver(
        &self,
        room: &str,
        except: &Arc<[ConnectionId]>,
        frame: &TextFrame,
        actions: &mut Actions<C, T>,
    ) {
        let Some(room) = self.rooms.get(room) else {
            return;
        };
        if !room.members.is_empty() {
            actions.push(Action::Deliver {
                to: room.members.clone(),
                except: Arc::clone(except),
                frame: frame.clone(),
            });
        }
    }

    pub(super) fn is_member(&self, room: &str, id: &ConnectionId) -> bool {
        self.rooms
            .get(room)
            .is_some_and(|room| room.members.contains(id))
    }

    /// The rooms that a local connection is a member of, by name.
    pub(super) fn rooms_of(&self, id: &ConnectionId) -> Vec<Name> {
        self.of
            .get(id)
            .map(|rooms| rooms.iter().cloned().collect())
            .unwrap_or_default()
    }

    pub(super) fn handle_topic(
        &mut self,
        room: &Name,
        result: Result<Reply, BackendError>,
        actions: &mut Actions<C, T>,
    ) {
        let Some(state) = self.rooms.get_mut(room) else {
            return;
        };
        let subscribing = state.topic == Topic::Subscribing;
        state.topic.handle_backend(result.is_ok());
        if let (true, Err(error)) = (subscribing, result) {
            // Whoever waited for the topic has failed with it. The next request asks anew.
            let waiting: Vec<u64> = state
                .requests
                .iter()
                .filter(|(_, request)| {
                    matches!(request.kind, Kind::Join { .. }) && request.step == Step::Waiting
                })
                .map(|(number, _)| *number)
                .collect();
            for number in waiting {
                self.finish(room, number, Err(error.clone().into()), actions);
            }
        }
        self.advance(room, actions);
    }

    pub(super) fn handle_request(
        &mut self,
        room: &Name,
        number: u64,
        result: Result<Reply, BackendError>,
        actions: &mut Actions<C, T>,
    ) {
        let Some(request) = self
            .rooms
            .get_mut(room)
            .and_then(|room| room.requests.get_mut(&number))
        else {
            return;
        };
        let result = match result {
            Ok(reply) => reply,
            Err(error) => {
                // Whether the listing worked or not, the membership before it did.
                if let Step::Listing { .. } = request.step {
                    self.activate(room, number, Err(error.into()), actions);
                } else {
                    self.finish(room, number, Err(error.into()), actions);
                }
                self.advance(room, actions);
                return;
            }
        };
        match (&request.kind, request.step) {
            (Kind::Join { present, .. }, Step::Writing) => {
                let new = result == Reply::Flag(true);
                if request.gone {
                    self.finish(room, number, Err(InstanceError::Gone), actions);
                } else if *present {
                    request.step = Step::Listing { new };
                    let origin = Origin::RoomRequest {
                        room: room.clone(),
                        request: number,
                    };
                    actions.ask(origin, Op::RoomMembers { room: room.clone() });
                } else {
                    let outcome = Outcome::Joined {
                        new,
                        present: Vec::new(),
                    };
                    self.activate(room, number, Ok(outcome), actions);
                }
            }
            (Kind::Join { .. }, Step::Listing { new }) => {
                let present = match result {
                    Reply::Connections(present) => present,
                    _ => Vec::new(),
                };
                self.activate(room, number, Ok(Outcome::Joined { new, present }), actions);
            }
            (Kind::Leave { .. }, _) => {
                self.finish(room, number, Ok(Outcome::Left(true)), actions);
            }
            (Kind::Clear, _) => {
                self.remove_all(room, actions);
                self.finish(room, number, Ok(Outcome::Cleared), actions);
            }
            (Kind::Join { .. }, Step::Waiting) => {}
        }
        self.advance(room, actions);
    }

    fn request(&mut self, room: &Name, kind: Kind<C>, token: T, actions: &mut Actions<C, T>) {
        self.last += 1;
        let hasher = self.hasher;
        let state = self.rooms.entry(room.clone()).or_insert_with(|| Room {
            topic: Topic::Idle,
            members: Members::new(hasher),
            requests: BTreeMap::new(),
            waiting: 0,
        });
        if let Some(member) = kind.member() {
            self.asked.insert((member.clone(), room.clone(), self.last));
        }
        state.waiting += 1;
        state.requests.insert(
            self.last,
            Request {
                kind,
                token,
                step: Step::Waiting,
                gone: false,
            },
        );
        self.advance(room, actions);
    }

    /// Starts every request that nothing is in the way of, settles the topic, and forgets a room that is nothing any more.
    fn advance(&mut self, room: &Name, actions: &mut Actions<C, T>) {
        loop {
            let mut answered = false;
            for number in self.ready(room) {
                answered |= self.start(room, number, actions);
            }
            if !answered {
                break;
            }
        }
        let Some(state) = self.rooms.get_mut(room) else {
            return;
        };
        let wanted = !state.members.is_empty()
            || state
                .requests
                .values()
                .any(|request| matches!(request.kind, Kind::Join { .. }) && !request.gone);
        if let Some(op) = state.topic.settle(wanted) {
            actions.ask(
                Origin::RoomTopic(room.clone()),
                topic_op(op, backend::Topic::Room(room.clone())),
            );
        }
        if state.topic == Topic::Idle && !wanted && state.requests.is_empty() {
            self.rooms.swap_remove(room);
        }
    }

    /// The requests that no earlier one is in the way of.
    fn ready(&self, room: &Name) -> Vec<u64> {
        let mut ready = Vec::new();
        let Some(state) = self.rooms.get(room).filter(|room| room.waiting > 0) else {
            return ready;
        };
        let mut busy = BTreeSet::new();
        for (number, request) in &state.requests {
            let member = request.kind.member();
            let free = member.map_or(busy.is_empty(), |member| !busy.contains(member));
            if free && request.step == Step::Waiting {
                ready.push(*number);
            }
            match member {
                Some(member) => busy.insert(member),
                // Nothing overtakes the clearing of a room.
                None => break,
            };
        }
        ready
    }

    /// Nothing is in the way of this request but, for a join, the topic. True if it was answered at once.
    fn start(&mut self, room: &Name, number: u64, actions: &mut Actions<C, T>) -> bool {
        let Some(state) = self.rooms.get_mut(room) else {
            return false;
        };
        let Some(request) = state.requests.get_mut(&number) else {
            return false;
        };
        let room_name = room.clone();
        let (op, leaver) = match &request.kind {
            Kind::Join { .. } if request.gone => {
                self.finish(room, number, Err(InstanceError::Gone), actions);
                return true;
            }
            Kind::Join { .. } if !state.topic.is_held() => return false,
            Kind::Join { id, .. } => {
                let connection = id.clone();
                (
                    Op::JoinRoom {
                        room: room_name,
                        connection,
                    },
                    None,
                )
            }
            Kind::Leave { id } if !state.members.contains(id) => {
                self.finish(room, number, Ok(Outcome::Left(false)), actions);
                return true;
            }
            Kind::Leave { id } => {
                let connection = id.clone();
                (
                    Op::LeaveRoom {
                        room: room_name,
                        connection,
                    },
                    Some(id.clone()),
                )
            }
            Kind::Clear => (Op::ClearRoom { room: room_name }, None),
        };
        request.step = Step::Writing;
        state.waiting -= 1;
        let origin = Origin::RoomRequest {
            room: room.clone(),
            request: number,
        };
        actions.ask(origin, op);
        if let Some(id) = leaver {
            // At once, so that no event follows the answer.
            self.remove(room, &id, actions);
        }
        false
    }

    /// The backend has the membership: events reach the member right behind the answer.
    fn activate(
        &mut self,
        room: &Name,
        number: u64,
        result: Result<Outcome, InstanceError>,
        actions: &mut Actions<C, T>,
    ) {
        let Some(state) = self.rooms.get_mut(room) else {
            return;
        };
        let Some(request) = state.requests.remove(&number) else {
            return;
        };
        let Kind::Join { id, handle, .. } = request.kind else {
            return;
        };
        self.asked.remove(&(id.clone(), room.clone(), number));
        if request.gone {
            actions.complete(request.token, Err(InstanceError::Gone));
            actions.push(Action::Release(handle));
            return;
        }
        actions.complete(request.token, result);
        if state.members.insert(id.clone(), handle.clone()) {
            self.of.entry(id).or_default().insert(room.clone());
        } else {
            actions.push(Action::Release(handle));
        }
    }

    /// Answers a request that leaves the members as they are.
    fn finish(
        &mut self,
        room: &Name,
        number: u64,
        result: Result<Outcome, InstanceError>,
        actions: &mut Actions<C, T>,
    ) {
        let Some(state) = self.rooms.get_mut(room) else {
            return;
        };
        let Some(request) = state.requests.remove(&number) else {
            return;
        };
        if request.step == Step::Waiting {
            state.waiting -= 1;
        }
        if let Some(member) = request.kind.member() {
            self.asked.remove(&(member.clone(), room.clone(), number));
        }
        actions.complete(request.token, result);
        if let Kind::Join { handle, .. } = request.kind {
            actions.push(Action::Release(handle));
        }
    }

    fn remove(&mut self, room: &Name, id: &ConnectionId, actions: &mut Actions<C, T>) {
        let Some(state) = self.rooms.get_mut(room) else {
            return;
        };
        let Some(handle) = state.members.get(id).cloned() else {
            return;
        };
        state.members.remove(id);
        if let Some(rooms) = self.of.get_mut(id) {
            rooms.remove(room);
            if rooms.is_empty() {
                self.of.swap_remove(id);
            }
        }
        actions.push(Action::Release(handle));
    }

    fn remove_all(&mut self, room: &Name, actions: &mut Actions<C, T>) {
        let ids: Vec<ConnectionId> = self
            .rooms
            .get(room)
            .map(|room| room.members.ids().cloned().collect())
            .unwrap_or_default();
        for id in ids {
            self.remove(room, &id, actions);
        }
    }
}

/// The backend operation for a topic.
pub(super) fn topic_op(op: TopicOp, topic: backend::Topic) -> Op {
    let topics = vec![topic];
    match op {
        TopicOp::Subscribe => Op::Subscribe { topics },
        TopicOp::Unsubscribe => Op::Unsubscribe { topics },
    }
}
