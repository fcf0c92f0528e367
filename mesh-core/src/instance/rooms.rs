//! Rooms with members on this instance.
//!
//! Requests about one member, and the clearing of a room, happen one after the other in the order they came; requests
//! about different members happen side by side. So every race between them is a question of order, not of luck.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    actions::{Action, Actions, InstanceError, LeaveReason, Origin, Outcome},
    members::{Members, Seeded, Table, take},
    topic::Topic,
};
use crate::{
    backend::{self, BackendError, ConnectionId, Name, Op, Reply},
    protocol::strings_fit,
    websocket::TextFrame,
};

#[derive(Debug)]
enum Kind<C> {
    /// Somebody else ended a membership: is it over still?
    Check {
        id: ConnectionId,
    },
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
            Self::Check { id } | Self::Join { id, .. } | Self::Leave { id } => Some(id),
        }
    }
}

/// What a request waits for.
#[derive(Debug)]
enum Step {
    Checking,
    Clearing,
    Joining,
    /// `was`: it was a member here.
    Leaving {
        was: bool,
    },
    /// The member is registered; who else is there is being asked.
    Listing {
        new: bool,
        generation: u64,
    },
    /// Telling who is there failed with this, and the membership is being taken back.
    Undoing(InstanceError),
    /// An earlier request or the topic is in the way.
    Waiting,
}

#[derive(Debug)]
struct Request<C, T> {
    kind: Kind<C>,
    /// `None` if nobody asked for it.
    token: Option<T>,
    step: Step,
    /// The connection went away meanwhile.
    gone: bool,
    /// The generation that began while the backend was writing this membership.
    cleared: u64,
    /// The store was lost and came back since it was asked: what it did may be lost with it.
    stale: bool,
}

#[derive(Debug)]
struct Room<C, T> {
    topic: Topic,
    members: Members<C>,
    /// In order of arrival.
    requests: BTreeMap<u64, Request<C, T>>,
    /// Those that are [`Step::Waiting`].
    waiting: BTreeSet<u64>,
    /// Those that are [`Kind::Clear`].
    clears: BTreeSet<u64>,
    /// The newest that is known here; every member is of it.
    generation: u64,
    /// The restoration that has yet to state the members; the requests wait for that.
    restoring: Option<u64>,
}

/// The rooms of one shard.
#[derive(Debug)]
pub(super) struct Rooms<C, T> {
    hasher: Seeded,
    /// What of the members one answer may hold, in bytes of JSON.
    present_bytes_max: usize,
    rooms: Table<Name, Room<C, T>>,
    /// The reverse of `rooms`' members.
    of: Table<ConnectionId, BTreeSet<Name>>,
    /// The requests of each connection, so that its end finds them.
    asked: BTreeSet<(ConnectionId, Name, u64)>,
    last: u64,
}

impl<C: Clone, T> Rooms<C, T> {
    pub(super) fn new(hasher: Seeded, present_bytes_max: usize) -> Self {
        Self {
            hasher,
            present_bytes_max,
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
            Some(token),
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
        self.request(room, Kind::Leave { id }, Some(token), actions);
    }

    pub(super) fn clear(&mut self, room: &Name, token: T, actions: &mut Actions<C, T>) {
        self.request(room, Kind::Clear, Some(token), actions);
    }

    /// Another instance cleared the room, and began this generation.
    pub(super) fn handle_cleared(
        &mut self,
        room: &Name,
        generation: u64,
        actions: &mut Actions<C, T>,
    ) {
        self.begin_generation(room, generation, actions);
        self.advance(room, actions);
    }

    /// Another instance ended a membership, which may have begun anew since. Requests about the member are in order, so this one tells what
    /// came of those before it.
    pub(super) fn handle_member_removed(
        &mut self,
        room: &Name,
        id: &ConnectionId,
        actions: &mut Actions<C, T>,
    ) {
        let Some(state) = self.rooms.get(room) else {
            return;
        };
        let first = (id.clone(), room.clone(), 0);
        let last = (id.clone(), room.clone(), u64::MAX);
        let mut asked = self.asked.range(first..=last).peekable();
        if asked.peek().is_none() && !state.members.contains(id) {
            return;
        }
        // One that has not begun sees this end, too.
        let waits = asked.any(|(.., number)| {
            state.requests.get(number).is_some_and(|request| {
                matches!(
                    (&request.kind, &request.step),
                    (Kind::Check { .. }, Step::Waiting)
                )
            })
        });
        if !waits {
            self.request(room, Kind::Check { id: id.clone() }, None, actions);
        }
    }

    /// All members, by room, to be stated again now that the store is back. Their rooms' requests wait until
    /// [`handle_stated`](Self::handle_stated).
    pub(super) fn handle_restored(
        &mut self,
        restoration: u64,
        actions: &mut Actions<C, T>,
    ) -> Vec<(Name, Vec<ConnectionId>)> {
        let (mut stated, mut waited) = (Vec::new(), Vec::new());
        for (name, room) in &mut self.rooms {
            for request in room.requests.values_mut() {
                request.stale = !matches!(request.step, Step::Waiting);
            }
            if !room.members.is_empty() {
                room.restoring = Some(restoration);
                stated.push((name.clone(), room.members.ids().cloned().collect()));
            } else if room.restoring.take().is_some() {
                waited.push(name.clone());
            }
        }
        for room in waited {
            self.advance(&room, actions);
        }
        stated
    }

    /// The generation of a membership that is to be stated now, if it still is one.
    pub(super) fn stated(&self, room: &str, id: &ConnectionId) -> Option<u64> {
        let room = self.rooms.get(room)?;
        room.members.contains(id).then_some(room.generation)
    }

    /// The store knows that a membership is over.
    pub(super) fn handle_ended(
        &mut self,
        room: &Name,
        id: &ConnectionId,
        actions: &mut Actions<C, T>,
    ) {
        self.ended(room, id, actions);
    }

    /// The restoration has stated all members of a room.
    pub(super) fn handle_stated(
        &mut self,
        room: &Name,
        restoration: u64,
        actions: &mut Actions<C, T>,
    ) {
        let Some(state) = self.rooms.get_mut(room) else {
            return;
        };
        if state.restoring == Some(restoration) {
            state.restoring = None;
        }
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
            self.remove(&room, id, LeaveReason::Disconnected, actions);
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
        let refused = result.err().filter(|_| subscribing);
        if let Some(error) = &refused {
            // Whoever waited for nothing but the topic has failed with it. The next request asks anew.
            for number in self.ready(room) {
                self.finish(room, number, Err(error.clone().into()), actions);
            }
        }
        self.start_ready(room, actions);
        // For those who wait for something else as well it is time when that is over: a store that is away refuses at once, and would be
        // asked for ever.
        if refused.is_none() || !self.waits_elsewhere(room) {
            self.settle(room, actions);
        }
    }

    /// Does nobody want the topic but joins that wait for something else as well?
    fn waits_elsewhere(&self, room: &Name) -> bool {
        let Some(state) = self.rooms.get(room) else {
            return false;
        };
        state.members.is_empty() && !state.requests.is_empty() && self.ready(room).is_empty()
    }

    /// The answer to what a request asked of the backend.
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
        match (&request.step, result) {
            (Step::Waiting, _) => {}
            (Step::Checking | Step::Clearing, Ok(_)) if request.stale => self.again(room, number),
            (Step::Checking, result) => {
                let member = request.kind.member().cloned();
                if let (Ok(Reply::Flag(false)), Some(id)) = (result, member) {
                    self.ended(room, &id, actions);
                }
                // Behind a failure the store is lost, and what it knows better is told at its return.
                self.answer(room, number, Ok(Outcome::Left(false)), actions);
            }
            (Step::Clearing, Ok(reply)) => {
                let generation = match reply {
                    Reply::Cleared { generation } => generation,
                    _ => 0,
                };
                // Nobody joins meanwhile, so all who are here were here before.
                self.remove_all(room, actions);
                self.begin_generation(room, generation, actions);
                self.finish(room, number, Ok(Outcome::Cleared { generation }), actions);
            }
            (Step::Leaving { was }, Ok(reply)) => {
                let was = *was || reply == Reply::Flag(true);
                self.finish(room, number, Ok(Outcome::Left(was)), actions);
            }
            (Step::Joining | Step::Listing { .. }, Ok(_)) if request.stale => {
                self.again(room, number);
            }
            (Step::Joining, Ok(reply)) => {
                let (new, generation) = match reply {
                    Reply::Joined { new, generation } => (new, generation),
                    _ => (false, 0),
                };
                self.joined(room, number, new, generation, None, actions);
            }
            (Step::Listing { new, generation }, Ok(reply)) => {
                let (new, generation, max) = (*new, *generation, self.present_bytes_max);
                let present = match reply {
                    Reply::Connections(present) => present,
                    _ => Vec::new(),
                };
                if strings_fit(present.iter().map(ConnectionId::as_str), max) {
                    self.joined(room, number, new, generation, Some(present), actions);
                } else {
                    self.undo(room, number, InstanceError::TooLong { max }, actions);
                }
            }
            (Step::Listing { .. }, Err(error)) => self.undo(room, number, error.into(), actions),
            (Step::Undoing(error), _) => {
                let error = error.clone();
                self.finish(room, number, Err(error), actions);
            }
            (Step::Clearing | Step::Joining | Step::Leaving { .. }, Err(error)) => {
                self.finish(room, number, Err(error.into()), actions);
            }
        }
        self.advance(room, actions);
    }

    fn request(
        &mut self,
        room: &Name,
        kind: Kind<C>,
        token: Option<T>,
        actions: &mut Actions<C, T>,
    ) {
        self.last += 1;
        let number = self.last;
        let hasher = self.hasher;
        let state = self.rooms.entry(room.clone()).or_insert_with(|| Room {
            topic: Topic::Idle,
            members: Members::new(hasher),
            requests: BTreeMap::new(),
            waiting: BTreeSet::new(),
            clears: BTreeSet::new(),
            generation: 0,
            restoring: None,
        });
        match kind.member() {
            Some(member) => {
                self.asked.insert((member.clone(), room.clone(), number));
            }
            None => {
                state.clears.insert(number);
            }
        }
        state.waiting.insert(number);
        state.requests.insert(
            number,
            Request {
                kind,
                token,
                step: Step::Waiting,
                gone: false,
                cleared: 0,
                stale: false,
            },
        );
        // Only this one: what waited before still waits for the same.
        if self.is_ready(room, number) {
            self.start(room, number, actions);
        }
        self.settle(room, actions);
    }

    /// Starts every request that nothing is in the way of, and settles the topic.
    fn advance(&mut self, room: &Name, actions: &mut Actions<C, T>) {
        self.start_ready(room, actions);
        self.settle(room, actions);
    }

    fn start_ready(&mut self, room: &Name, actions: &mut Actions<C, T>) {
        loop {
            let mut answered = false;
            for number in self.ready(room) {
                answered |= self.start(room, number, actions);
            }
            if !answered {
                return;
            }
        }
    }

    /// Takes the topic or gives it back, and forgets a room that is nothing any more.
    fn settle(&mut self, room: &Name, actions: &mut Actions<C, T>) {
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
                op.of(backend::Topic::Room(room.clone())),
            );
        }
        if state.topic == Topic::Idle && !wanted && state.requests.is_empty() {
            take(&mut self.rooms, room);
        }
    }

    /// The requests that no earlier one is in the way of, but that have not started. Between two events they are joins that wait for the
    /// topic: everything else is started as soon as it can be.
    fn ready(&self, room: &Name) -> Vec<u64> {
        let Some(state) = self.rooms.get(room) else {
            return Vec::new();
        };
        // Nothing overtakes the clearing of a room.
        let last = state.clears.first().copied().unwrap_or(u64::MAX);
        state
            .waiting
            .range(..=last)
            .copied()
            .filter(|number| self.is_ready(room, *number))
            .collect()
    }

    fn is_ready(&self, room: &Name, number: u64) -> bool {
        let Some(state) = self.rooms.get(room) else {
            return false;
        };
        let Some(request) = state.requests.get(&number) else {
            return false;
        };
        if state.restoring.is_some() {
            return false;
        }
        match request.kind.member() {
            None => state
                .requests
                .first_key_value()
                .is_some_and(|(first, _)| *first == number),
            Some(member) => {
                let first = (member.clone(), room.clone(), 0);
                let this = (member.clone(), room.clone(), number);
                state.clears.first().is_none_or(|clear| number < *clear)
                    && self.asked.range(first..this).next().is_none()
            }
        }
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
        match &request.kind {
            Kind::Check { .. } if request.gone => {
                self.answer(room, number, Ok(Outcome::Left(false)), actions);
                return true;
            }
            Kind::Check { id } => {
                let connection = id.clone();
                let op = Op::IsInRoom {
                    room: room_name,
                    connection,
                };
                self.ask(room, number, Step::Checking, op, actions);
            }
            Kind::Join { .. } if request.gone => {
                self.finish(room, number, Err(InstanceError::Gone), actions);
                return true;
            }
            Kind::Join { .. } if !state.topic.is_held() => {}
            Kind::Join { id, .. } => {
                let connection = id.clone();
                let op = Op::JoinRoom {
                    room: room_name,
                    connection,
                };
                self.ask(room, number, Step::Joining, op, actions);
            }
            // The backend forgets a connection that is gone, with all its rooms.
            Kind::Leave { .. } if request.gone => {
                self.finish(room, number, Ok(Outcome::Left(false)), actions);
                return true;
            }
            // Asked for a stranger, too: the outcome of an earlier request may be unknown.
            Kind::Leave { id } => {
                let id = id.clone();
                let was = state.members.contains(&id);
                let op = Op::LeaveRoom {
                    room: room_name,
                    connection: id.clone(),
                };
                self.ask(room, number, Step::Leaving { was }, op, actions);
                // At once, so that no event follows the answer.
                self.remove(room, &id, LeaveReason::Left, actions);
            }
            Kind::Clear => {
                let op = Op::ClearRoom { room: room_name };
                self.ask(room, number, Step::Clearing, op, actions);
            }
        }
        false
    }

    /// What the backend did for a request is over already: it happens once more.
    fn again(&mut self, room: &Name, number: u64) {
        let Some(state) = self.rooms.get_mut(room) else {
            return;
        };
        if let Some(request) = state.requests.get_mut(&number) {
            request.cleared = 0;
            request.stale = false;
            request.step = Step::Waiting;
            state.waiting.insert(number);
        }
    }

    /// Takes a request to a step that the backend has to answer.
    fn ask(&mut self, room: &Name, number: u64, step: Step, op: Op, actions: &mut Actions<C, T>) {
        let Some(state) = self.rooms.get_mut(room) else {
            return;
        };
        let Some(request) = state.requests.get_mut(&number) else {
            return;
        };
        state.waiting.remove(&number);
        request.step = step;
        let origin = Origin::RoomRequest {
            room: room.clone(),
            request: number,
        };
        actions.ask(origin, op);
    }

    /// The backend has the membership, and `present` once it was asked for.
    fn joined(
        &mut self,
        room: &Name,
        number: u64,
        new: bool,
        generation: u64,
        present: Option<Vec<ConnectionId>>,
        actions: &mut Actions<C, T>,
    ) {
        // Whoever is here of an older generation was cleared, and the word of it is still on its way or got lost.
        self.begin_generation(room, generation, actions);
        let Some(state) = self.rooms.get_mut(room) else {
            return;
        };
        let Some(request) = state.requests.get_mut(&number) else {
            return;
        };
        let Kind::Join {
            id,
            handle,
            present: list,
        } = &request.kind
        else {
            return;
        };
        if request.gone {
            self.finish(room, number, Err(InstanceError::Gone), actions);
        } else if request.cleared > generation {
            // The clearing ended this membership, too.
            self.again(room, number);
        } else if *list && present.is_none() {
            let op = Op::RoomMembers { room: room.clone() };
            self.ask(room, number, Step::Listing { new, generation }, op, actions);
        } else {
            let (id, handle) = (id.clone(), handle.clone());
            let present = present.unwrap_or_default();
            let outcome = Outcome::Joined { new, present };
            if state.members.insert(id.clone(), handle) {
                self.of.entry(id).or_default().insert(room.clone());
                self.answer(room, number, Ok(outcome), actions);
            } else {
                self.finish(room, number, Ok(outcome), actions);
            }
        }
    }

    /// The members could not be listed or told, so the join fails; and because no event may reach a connection that was told so, a membership
    /// that it began ends again. One that was there before stays.
    fn undo(
        &mut self,
        room: &Name,
        number: u64,
        error: InstanceError,
        actions: &mut Actions<C, T>,
    ) {
        let Some(state) = self.rooms.get(room) else {
            return;
        };
        let Some(request) = state.requests.get(&number) else {
            return;
        };
        let Some(id) = request.kind.member() else {
            return;
        };
        if request.gone || state.members.contains(id) {
            self.finish(room, number, Err(error), actions);
            return;
        }
        let op = Op::LeaveRoom {
            room: room.clone(),
            connection: id.clone(),
        };
        self.ask(room, number, Step::Undoing(error), op, actions);
    }

    /// Answers a request that makes nobody a member.
    fn finish(
        &mut self,
        room: &Name,
        number: u64,
        result: Result<Outcome, InstanceError>,
        actions: &mut Actions<C, T>,
    ) {
        if let Some(Kind::Join { handle, .. }) = self.answer(room, number, result, actions) {
            actions.push(Action::Release(handle));
        }
    }

    /// Answers and forgets a request.
    fn answer(
        &mut self,
        room: &Name,
        number: u64,
        result: Result<Outcome, InstanceError>,
        actions: &mut Actions<C, T>,
    ) -> Option<Kind<C>> {
        let state = self.rooms.get_mut(room)?;
        let request = state.requests.remove(&number)?;
        state.waiting.remove(&number);
        match request.kind.member() {
            Some(member) => {
                self.asked.remove(&(member.clone(), room.clone(), number));
            }
            None => {
                state.clears.remove(&number);
            }
        }
        if let Some(token) = request.token {
            actions.complete(token, result);
        }
        Some(request.kind)
    }

    /// Ends what is left of older generations. An answer that is still to come may be of one, too.
    fn begin_generation(&mut self, room: &Name, generation: u64, actions: &mut Actions<C, T>) {
        let Some(state) = self.rooms.get_mut(room) else {
            return;
        };
        if generation > state.generation {
            state.generation = generation;
            for request in state.requests.values_mut() {
                if matches!(request.step, Step::Joining | Step::Listing { .. }) {
                    request.cleared = generation;
                }
            }
            self.remove_all(room, actions);
        }
    }

    /// The store says that a membership is over.
    fn ended(&mut self, room: &Name, id: &ConnectionId, actions: &mut Actions<C, T>) {
        if self.is_member(room, id) {
            self.remove(room, id, LeaveReason::Left, actions);
            forget(room, vec![id.clone()], actions);
        }
    }

    fn remove(
        &mut self,
        room: &Name,
        id: &ConnectionId,
        reason: LeaveReason,
        actions: &mut Actions<C, T>,
    ) {
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
                take(&mut self.of, id);
            }
        }
        actions.push(Action::Release(handle));
        actions.push(Action::Left {
            room: room.clone(),
            connection: id.clone(),
            reason,
        });
    }

    fn remove_all(&mut self, room: &Name, actions: &mut Actions<C, T>) {
        let ids: Vec<ConnectionId> = self
            .rooms
            .get(room)
            .map(|room| room.members.ids().cloned().collect())
            .unwrap_or_default();
        for id in &ids {
            self.remove(room, id, LeaveReason::Cleared, actions);
        }
        if !ids.is_empty() {
            forget(room, ids, actions);
        }
    }

    /// Of each table.
    #[cfg(test)]
    pub(super) fn capacities(&self) -> Vec<usize> {
        let members = self.rooms.values().map(|room| room.members.capacity());
        let mut all = vec![self.rooms.capacity(), self.of.capacity()];
        all.extend(members.max());
        all
    }

    /// Holds the tables against each other; true if they are empty.
    #[cfg(any(test, feature = "__fuzzing"))]
    pub(super) fn check(&self) -> bool {
        let (mut of, mut asked) = (BTreeSet::new(), BTreeSet::new());
        for (name, room) in &self.rooms {
            of.extend(room.members.ids().map(|id| (id.clone(), name.clone())));
            for (number, request) in &room.requests {
                let waits = matches!(request.step, Step::Waiting);
                assert_eq!(waits, room.waiting.contains(number), "{name} {number}");
                match request.kind.member() {
                    None => assert!(room.clears.contains(number), "{name} {number}"),
                    Some(id) => {
                        asked.insert((id.clone(), name.clone(), *number));
                    }
                }
            }
            let known = |number: &u64| room.requests.contains_key(number);
            assert!(room.waiting.iter().all(known), "{name}");
            assert!(room.clears.iter().all(known), "{name}");
            for number in self.ready(name) {
                let waits = matches!(room.requests[&number].kind, Kind::Join { .. });
                assert!(waits && !room.topic.is_held(), "{name} {number}");
            }
            let used = !room.members.is_empty() || !room.requests.is_empty();
            assert!(used || room.topic != Topic::Idle, "{name} is nothing");
        }
        let reverse = self.of.iter().flat_map(|(id, rooms)| {
            assert!(!rooms.is_empty(), "{id} is in no room");
            rooms.iter().map(|name| (id.clone(), name.clone()))
        });
        assert_eq!(of, reverse.collect());
        assert_eq!(asked, self.asked);
        self.rooms.is_empty() && self.of.is_empty() && self.asked.is_empty()
    }
}

/// What the backend notes of its own about memberships that are over is of no use any more.
fn forget<C, T>(room: &Name, connections: Vec<ConnectionId>, actions: &mut Actions<C, T>) {
    let room = room.clone();
    let op = Op::ForgetMembers { room, connections };
    actions.ask(Origin::Nobody, op);
}
