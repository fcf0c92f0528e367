//! Who gets what on this instance: its connections, and their rooms, channels and records.
//!
//! One [`Instance`] is one shard: a driver keeps several, by the hash of a key, so that cores work side by side. Each is
//! complete in itself. Connections live in the shard of their id, rooms, channels and records in that of their name; a connection that
//! goes is told to every shard.
//!
//! ```text
//!   join · leave · clear · subscribe · unsubscribe · write · open …    ┌──────────┐  Backend{token, op}
//!   ────────────────────────────────────────────────────────────────▶ │ Instance │ ─────────────────▶ driver
//!   handle_backend(token, result) · messages of topics                 └──────────┘  Complete · Deliver · Release
//! ```
//!
//! Every request with a token is answered with exactly one [`Action::Complete`], and every join and subscription gives
//! back the room it took in its connection's limit with exactly one [`Action::Release`].

mod actions;
mod channels;
mod directory;
#[cfg(feature = "__fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod members;
mod records;
mod restoration;
mod rooms;
mod topic;

#[cfg(test)]
mod tests;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

pub use actions::{Action, InstanceError, LeaveReason, OpToken, Outcome};
use actions::{Actions, Origin};
use channels::Channels;
use directory::Directory;
pub use members::{Members, Seeded};
pub use records::{RecordWrite, Update};
use records::{Records, Subscribe};
use restoration::{Part, Restoration};
use rooms::Rooms;

use crate::{
    backend::{
        BackendError, ConnectionId, Document, Json, MetadataChange, Name, Op, RecordChange, Reply,
        Version,
    },
    protocol::{Dialect, builtin::RecordMode},
    relay::Membership,
    websocket::TextFrame,
};

/// What a shard is told when it is made.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// For its tables, and for the choice of a shard.
    pub hasher: Seeded,
    /// Entropy for the stamps of versions; every shard needs its own.
    pub seed: [u8; 32],
    /// The names of events.
    pub dialect: Dialect,
    /// What may arrive on a channel while a subscription to it is under way, in bytes.
    pub kept_bytes_max: usize,
    /// The history or the members that an answer tells, in bytes of JSON.
    pub listed_bytes_max: usize,
    /// The longest value of a record, in bytes.
    pub record_bytes_max: usize,
    /// How often records with subscribers are held against the store, at least.
    pub record_check_interval: Duration,
}

/// One shard of an instance.
///
/// `C` is the driver's handle of a connection, `T` what it correlates requests with.
#[derive(Debug)]
pub struct Instance<C, T> {
    actions: Actions<C, T>,
    channels: Channels<C, T>,
    directory: Directory<C, T>,
    records: Records<C, T>,
    rooms: Rooms<C, T>,
    restoration: Option<Restoration<T>>,
    restorations: u64,
}

impl<C: Clone, T> Instance<C, T> {
    /// An empty shard.
    pub fn new(options: &Options) -> Self {
        let hasher = options.hasher;
        let listed_bytes_max = options.listed_bytes_max;
        Self {
            actions: Actions::new(),
            channels: Channels::new(hasher, options.kept_bytes_max, listed_bytes_max),
            directory: Directory::new(hasher),
            records: Records::new(options),
            rooms: Rooms::new(hasher, listed_bytes_max),
            restoration: None,
            restorations: 0,
        }
    }

    /// A connection opened whose id belongs to this shard. Answered with [`Outcome::Opened`] once it is registered. An
    /// id that is in use is refused.
    pub fn handle_open(&mut self, id: &ConnectionId, handle: C, metadata: Option<Json>, token: T) {
        self.directory
            .open(id, handle, metadata, token, &mut self.actions);
    }

    /// A connection of this shard is over. Answered with [`Outcome::Closed`] once the backend has forgotten it.
    ///
    /// Tell every shard with [`handle_gone`](Self::handle_gone) first.
    pub fn handle_close(&mut self, id: &ConnectionId, token: T) {
        self.directory.close(id, token, &mut self.actions);
    }

    /// A connection is over, whatever shard it belongs to: it leaves the rooms, channels and records of this one at once.
    ///
    /// A shard does not remember who is gone: hold back a join or subscription that comes later, or call this once more
    /// right behind it.
    pub fn handle_gone(&mut self, id: &ConnectionId, now: Instant) {
        self.rooms.handle_gone(id, &mut self.actions);
        self.channels.handle_gone(id, &mut self.actions);
        self.records.handle_gone(id, now, &mut self.actions);
    }

    /// Makes a local connection a member. Answered with [`Outcome::Joined`] once that is in force; with
    /// `present` it tells who is there.
    ///
    /// If the members cannot be listed, or are too many to be told, the join fails, and a membership that it began ends again, so that no event
    /// reaches a connection that was told of a failure. One that there was before stays.
    pub fn join(&mut self, room: &Name, id: ConnectionId, handle: C, present: bool, token: T) {
        self.rooms
            .join(room, id, handle, present, token, &mut self.actions);
    }

    /// Ends a membership. No event of the room reaches the connection after [`Outcome::Left`], nor after a failure.
    ///
    /// The backend is asked even about a stranger: the outcome of an earlier request that failed is unknown, and this
    /// settles it.
    pub fn leave(&mut self, room: &Name, id: ConnectionId, token: T) {
        self.rooms.leave(room, id, token, &mut self.actions);
    }

    /// Removes all members of a room and its metadata. Answered with [`Outcome::Cleared`].
    pub fn clear(&mut self, room: &Name, token: T) {
        self.rooms.clear(room, token, &mut self.actions);
    }

    /// Another instance cleared a room and began this generation. Whoever joined in it stays, and joins under way of an older one happen
    /// again.
    pub fn handle_room_cleared(&mut self, room: &Name, generation: u64) {
        self.rooms
            .handle_cleared(room, generation, &mut self.actions);
    }

    /// Another instance ended a membership. It may have begun anew since: the backend is asked whether it is over, unless it is not, or no
    /// longer, one that this shard knows.
    pub fn handle_member_removed(&mut self, room: &Name, id: &ConnectionId) {
        self.rooms
            .handle_member_removed(room, id, &mut self.actions);
    }

    /// The backend is back: all that this shard holds is stated again, part by part, and what the store knows better is taken over. What
    /// concerns a connection or room waits until it is stated. Answered with [`Outcome::Restored`], or the first failure; then the backend
    /// is about to be lost and restored once more. One that is not at its end when the next begins has failed.
    ///
    /// `gap` makes the frame that tells the subscribers of a channel that they may have missed messages.
    pub fn handle_restored(&mut self, gap: impl Fn(&Name) -> TextFrame, token: T, now: Instant) {
        self.channels.handle_restored(gap, &mut self.actions);
        self.records.handle_restored(now, &mut self.actions);
        self.state_again(token);
    }

    /// Begins the restoration anew, as the last one failed though the backend was there. Answered as it was.
    pub fn state_again(&mut self, token: T) {
        if let Some(Restoration { token, .. }) = self.restoration.take() {
            let lost = BackendError::Unavailable("it was lost once more".to_owned());
            self.actions.complete(token, Err(lost.into()));
        }
        self.restorations += 1;
        let number = self.restorations;
        let connections = self.directory.handle_restored(number, &mut self.actions);
        let rooms = self.rooms.handle_restored(number, &mut self.actions);
        self.restoration = Some(Restoration::new(number, token, connections, rooms));
        self.state_next();
    }

    /// Asks for the next part that there is something to state in, or ends the restoration.
    fn state_next(&mut self) {
        while let Some(restoration) = &mut self.restoration {
            let Some(part) = restoration.next() else {
                if let Some(Restoration { token, error, .. }) = self.restoration.take() {
                    let result = error.map_or(Ok(Outcome::Restored), |error| Err(error.into()));
                    self.actions.complete(token, result);
                }
                return;
            };
            let stated = |id: &ConnectionId| Some((id.clone(), self.directory.stated(id)?));
            let connections: Vec<_> = part.connections.iter().filter_map(stated).collect();
            let stated = |(room, id): &(Name, ConnectionId)| {
                Some((room.clone(), id.clone(), self.rooms.stated(room, id)?))
            };
            let members: Vec<_> = part.members.iter().filter_map(stated).collect();
            let number = restoration.number;
            if connections.is_empty() && members.is_empty() {
                self.handle_stated(&part, number);
                continue;
            }
            restoration.under_way = Some(part);
            let op = Op::Restore {
                connections,
                members,
            };
            self.actions.ask(Origin::Restore(number), op);
            return;
        }
    }

    /// What waited for a part goes on.
    fn handle_stated(&mut self, part: &Part, number: u64) {
        for id in &part.connections {
            self.directory.handle_stated(id, number, &mut self.actions);
        }
        for room in &part.rooms {
            self.rooms.handle_stated(room, number, &mut self.actions);
        }
    }

    /// Subscribes a local connection. Answered with [`Outcome::Subscribed`] and the newest `history` messages; every message
    /// that arrived meanwhile follows the answer, and may be in the history too. If that is more than `kept_bytes_max`
    /// the subscription fails with [`InstanceError::Overflow`], and with [`InstanceError::TooLong`] if the history is too long to be told.
    pub fn subscribe(
        &mut self,
        channel: &Name,
        id: ConnectionId,
        handle: C,
        history: usize,
        token: T,
    ) {
        self.channels
            .subscribe(channel, id, handle, history, token, &mut self.actions);
    }

    /// Ends a subscription. No message reaches the connection after [`Outcome::Unsubscribed`].
    pub fn unsubscribe(&mut self, channel: &Name, id: &ConnectionId, token: T) {
        self.channels
            .unsubscribe(channel, id, token, &mut self.actions);
    }

    /// Subscribes a local connection to a record. Answered with [`Outcome::RecordSubscribed`]; every later version follows the answer, as
    /// whole values or as patches. One that is subscribed already has the other mode from then on.
    pub fn subscribe_record(
        &mut self,
        record: &Name,
        id: ConnectionId,
        handle: C,
        mode: RecordMode,
        token: T,
        now: Instant,
    ) {
        let subscribe = Subscribe {
            id,
            handle,
            mode,
            token,
        };
        self.records
            .subscribe(record, subscribe, now, &mut self.actions);
    }

    /// Ends a subscription to a record. No version reaches the connection after [`Outcome::Unsubscribed`].
    pub fn unsubscribe_record(&mut self, record: &Name, id: &ConnectionId, token: T, now: Instant) {
        self.records
            .unsubscribe(record, id, token, now, &mut self.actions);
    }

    /// A subscriber was too slow for versions of a record, and has the room now to be told how it is. Answered with exactly one
    /// [`Action::RecordRefreshed`].
    pub fn refresh_record(&mut self, record: &Name, id: &ConnectionId, handle: C, now: Instant) {
        self.records
            .refresh(record, id, handle, now, &mut self.actions);
    }

    /// Changes a record. Answered with [`Outcome::Written`], [`Outcome::Deleted`] or [`Outcome::Withdrawn`], once the subscribers of this
    /// instance have been handed the version.
    ///
    /// An operation whose outcome is unknown, as the store went, is repeated when that is back, and makes one version all the same. It fails
    /// after five seconds.
    pub fn write_record(&mut self, record: &Name, write: RecordWrite, token: T, now: Instant) {
        self.records
            .write(record, write, token, now, &mut self.actions);
    }

    /// The backend tells of versions of a record.
    pub fn handle_record_changed(
        &mut self,
        record: &Name,
        base: Version,
        changes: Vec<RecordChange>,
        now: Instant,
    ) {
        self.records
            .handle_changed(record, base, changes, now, &mut self.actions);
    }

    /// The backend cannot be reached: who waits for a record, or wants to change one, is told so at once.
    pub fn handle_lost(&mut self, now: Instant) {
        self.records.handle_lost(now, &mut self.actions);
    }

    /// Changes the metadata of a connection of this shard. Answered with [`Outcome::Metadata`].
    pub fn set_metadata(&mut self, id: &ConnectionId, change: MetadataChange, token: T) {
        self.directory
            .set_metadata(id, change, token, &mut self.actions);
    }

    /// Another instance changed the metadata of a connection of this shard.
    pub fn handle_metadata_changed(&mut self, id: &ConnectionId, document: Document) {
        self.directory.handle_changed(id, document);
    }

    /// Hands an event to the local members of a room.
    pub fn deliver_room(&mut self, room: &str, except: &Arc<[ConnectionId]>, frame: &TextFrame) {
        self.rooms.deliver(room, except, frame, &mut self.actions);
    }

    /// Hands an event to every connection of this shard.
    pub fn deliver_all(&mut self, except: &Arc<[ConnectionId]>, frame: &TextFrame) {
        self.directory.deliver_all(except, frame, &mut self.actions);
    }

    /// A message of a channel arrived. `frame` is called only if somebody here is subscribed.
    pub fn handle_channel_message(&mut self, channel: &Name, frame: impl FnOnce() -> TextFrame) {
        self.channels
            .handle_message(channel, frame, &mut self.actions);
    }

    /// The answer to an operation. One that was not asked for is ignored.
    pub fn handle_backend(
        &mut self,
        token: OpToken,
        result: Result<Reply, BackendError>,
        now: Instant,
    ) {
        let actions = &mut self.actions;
        match actions.answered(token) {
            Some(Origin::ChannelHistory { channel, grant }) => {
                self.channels
                    .handle_history(&channel, grant, result, actions);
            }
            Some(Origin::ChannelTopic(channel)) => {
                self.channels.handle_topic(&channel, &result, actions);
            }
            Some(Origin::Connection(id)) => self.directory.handle_backend(&id, result, actions),
            Some(Origin::Nobody) | None => {}
            Some(Origin::RecordCheck { asked, returns }) => {
                self.records
                    .handle_checked(asked, returns, result, now, actions);
            }
            Some(Origin::RecordFetch { record, fetch }) => {
                self.records
                    .handle_fetched(&record, fetch, result, now, actions);
            }
            Some(Origin::RecordTopic(record)) => {
                self.records.handle_topic(&record, &result, now, actions);
            }
            Some(Origin::RecordWrite { record, returns }) => {
                self.records
                    .handle_written(&record, returns, result, now, actions);
            }
            Some(Origin::Restore(number)) => self.handle_part(number, result),
            Some(Origin::RoomRequest { room, request }) => {
                self.rooms.handle_request(&room, request, result, actions);
            }
            Some(Origin::RoomTopic(room)) => self.rooms.handle_topic(&room, result, actions),
        }
    }

    /// The answer to a part of a restoration. One that another began behind is not asked for any more.
    fn handle_part(&mut self, number: u64, result: Result<Reply, BackendError>) {
        let Some(restoration) = self.restoration.as_mut().filter(|it| it.number == number) else {
            return;
        };
        let Some(part) = restoration.under_way.take() else {
            return;
        };
        match result {
            Ok(Reply::Restored { changed, ended }) => {
                for (id, document) in changed {
                    self.directory.handle_changed(&id, document);
                }
                for (room, id) in ended {
                    self.rooms.handle_ended(&room, &id, &mut self.actions);
                }
            }
            Ok(_) => {}
            Err(error) => restoration.error = restoration.error.take().or(Some(error)),
        }
        self.handle_stated(&part, number);
        self.state_next();
    }

    /// When [`handle_timeout`](Self::handle_timeout) is next wanted, if ever.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.records.poll_timeout()
    }

    /// Advances time to `now`. Calling it early is harmless.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.records.handle_timeout(now, &mut self.actions);
    }

    /// The next thing to do, oldest first. Drain it after every call that may have caused one, before anything else is let in.
    pub fn poll_action(&mut self) -> Option<Action<C, T>> {
        self.actions.pop()
    }

    /// The handle of an open connection of this shard.
    pub fn connection(&self, id: &ConnectionId) -> Option<&C> {
        self.directory.handle(id)
    }

    /// All registered connections of this shard.
    pub fn connections(&self) -> &Members<C> {
        self.directory.open_members()
    }

    /// How many connections this shard holds, those that are opening or closing included.
    pub fn connection_count(&self) -> usize {
        self.directory.len()
    }

    /// The metadata of a connection of this shard; `None` if it is not here.
    pub fn metadata(&self, id: &ConnectionId) -> Option<Option<Json>> {
        self.directory.metadata(id)
    }

    /// Is a local connection a member of a room of this shard?
    pub fn is_member(&self, room: &str, id: &ConnectionId) -> bool {
        self.rooms.is_member(room, id)
    }

    /// Is a local connection subscribed to a channel of this shard?
    pub fn is_subscribed(&self, channel: &str, id: &ConnectionId) -> bool {
        self.channels.is_subscribed(channel, id)
    }

    /// Does anybody here have to do with a channel of this shard?
    pub fn listens(&self, channel: &str) -> bool {
        self.channels.listens(channel)
    }

    /// The rooms of this shard that a local connection is a member of.
    pub fn rooms_of(&self, id: &ConnectionId) -> Vec<Name> {
        self.rooms.rooms_of(id)
    }

    /// The channels of this shard that a local connection is subscribed to.
    pub fn channels_of(&self, id: &ConnectionId) -> Vec<Name> {
        self.channels.channels_of(id)
    }

    /// Is a local connection subscribed to a record of this shard?
    pub fn is_record_subscribed(&self, record: &str, id: &ConnectionId) -> bool {
        self.records.is_subscribed(record, id)
    }

    /// Does a local connection hold this?
    pub fn holds(&self, membership: &Membership, id: &ConnectionId) -> bool {
        match membership {
            Membership::Channel(channel) => self.is_subscribed(channel, id),
            Membership::Record(record) => self.is_record_subscribed(record, id),
            Membership::Room(room) => self.is_member(room, id),
        }
    }

    /// How often a record with subscribers was read again, since versions of it may have been missed.
    pub fn record_resyncs(&self) -> u64 {
        self.records.resyncs()
    }

    /// The records of this shard that a local connection is subscribed to.
    pub fn records_of(&self, id: &ConnectionId) -> Vec<Name> {
        self.records.records_of(id)
    }

    /// How many entries each table has room for.
    #[cfg(test)]
    fn capacities(&self) -> Vec<usize> {
        [
            self.rooms.capacities(),
            self.channels.capacities(),
            self.directory.capacities(),
            self.records.capacities(),
            vec![self.actions.capacity()],
        ]
        .concat()
    }

    /// What states the follower and the writers of a record are in.
    #[cfg(test)]
    fn record_states(&self, record: &Name) -> (&'static str, &'static str) {
        self.records.states(record)
    }

    /// Which part of a record asked for this: its follower (`true`) or its writers.
    #[cfg(test)]
    fn is_of_follower(&self, token: OpToken) -> bool {
        !matches!(self.actions.origin(token), Some(Origin::RecordWrite { .. }))
    }

    /// When the follower and the writers of a record want to hear of the time.
    #[cfg(test)]
    fn record_deadlines(&self, record: &Name) -> [Option<Instant>; 2] {
        self.records.deadlines(record)
    }

    /// What the subscribers of a record were told last.
    #[cfg(test)]
    fn record_version(&self, record: &Name) -> Option<Version> {
        self.records.version(record)
    }

    /// Holds all tables against each other, and panics where they differ. Which of them are empty.
    #[cfg(any(test, feature = "__fuzzing"))]
    pub(crate) fn check(&self) -> [bool; 4] {
        [
            self.rooms.check(),
            self.channels.check(),
            self.directory.check(),
            self.records.check_tables(),
        ]
    }

    /// Is nothing and nobody remembered?
    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.check() == [true; 4]
    }
}
