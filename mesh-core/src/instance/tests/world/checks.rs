//! What the model asks of every action, and of the shard between any two steps.

use std::collections::BTreeSet;

use super::{Asked, KEPT_BYTES_MAX, Request, TopicState, World, name};
use crate::{
    backend::{ConnectionId, Name, Op, Topic},
    instance::{InstanceError, Members, OpToken, Outcome, tests::id},
    websocket::TextFrame,
};

impl World {
    pub(super) fn asks(&mut self, token: OpToken, op: Op) {
        for other in &self.asked {
            assert!(!conflict(&other.op, &op), "{op:?} beside {:?}", other.op);
        }
        if let Op::Subscribe { topics } | Op::Unsubscribe { topics } = &op {
            assert_eq!(topics.len(), 1);
            let state = self.topics.get(&topics[0]);
            let next = if let Op::Subscribe { .. } = op {
                assert_eq!(state, None, "{topics:?} is taken twice");
                TopicState::Subscribing
            } else {
                assert_eq!(state, Some(&TopicState::Held), "{topics:?} is not held");
                TopicState::Releasing
            };
            self.topics.insert(topics[0].clone(), next);
        }
        if let Op::JoinRoom { room, .. } = &op {
            let state = self.topics.get(&Topic::Room(room.clone()));
            assert_eq!(state, Some(&TopicState::Held), "a member without a topic");
        }
        if let Op::CloseConnection { connection } = &op {
            self.store.closed.insert(connection.clone());
        }
        self.asked.push(Asked {
            token,
            op,
            executed: None,
            dead: false,
        });
    }

    pub(super) fn completes(&mut self, token: u32, result: Result<Outcome, InstanceError>) {
        let request = self
            .requests
            .remove(&token)
            .expect("one answer for each request");
        let skipped = result == Err(InstanceError::Gone) && request.in_directory().is_some();
        for (earlier, other) in self.requests.range(..token) {
            let overtakes = request.follows(other) && !skipped;
            assert!(
                !overtakes,
                "{token} {request:?} overtakes {earlier} {other:?}"
            );
        }
        match (request, result) {
            (Request::Clear(room), Ok(Outcome::Cleared { .. })) => {
                for connection in self.connections.values_mut() {
                    connection.rooms.remove(&room);
                }
            }
            (Request::Close(_), Ok(Outcome::Closed)) => {}
            (Request::Restore, Ok(Outcome::Restored)) => self.settled(),
            (Request::Join(of, room, list), Ok(Outcome::Joined { present, .. })) => {
                let generation = self.generations[&(room.clone(), id(of))];
                let connection = self.connection(of);
                assert!(!connection.gone, "{of} is gone and joined");
                connection.rooms.insert(room, generation);
                assert!(list || present.is_empty());
            }
            (Request::Leave(of, room), Ok(Outcome::Left(was))) => {
                let connection = self.connection(of);
                let (member, gone) = (connection.rooms.remove(&room).is_some(), connection.gone);
                assert!(was || !member, "{of} was in {room}");
                let unknown = self.unknown_members.contains(&(room, id(of)));
                assert!(gone || !unknown, "{of} may be in the room that it left");
            }
            // It ended here all the same.
            (Request::Leave(of, room), Err(InstanceError::Backend(_))) => {
                self.connection(of).rooms.remove(&room);
            }
            (Request::Metadata(of), Ok(Outcome::Metadata(json))) => {
                let stored = Some(json).filter(|json| &**json != "null");
                assert_eq!(self.connections[&of].changed, stored);
            }
            (Request::Open(of), Ok(Outcome::Opened)) => {
                let connection = self.connection(of);
                assert!(!connection.gone, "{of} is gone and opened");
                connection.registered = true;
            }
            (
                Request::Subscribe {
                    of,
                    channel,
                    limit,
                    kept,
                    kept_bytes,
                },
                Ok(Outcome::Subscribed { history }),
            ) => {
                let connection = self.connection(of);
                assert!(!connection.gone, "{of} is gone and subscribed");
                assert_eq!(history.len(), limit);
                assert!(kept_bytes <= KEPT_BYTES_MAX, "{of} lost {kept:?}");
                if connection.channels.insert(channel) && !kept.is_empty() {
                    self.owed = Some((of, kept));
                }
            }
            (Request::Subscribe { kept_bytes, .. }, Err(InstanceError::Overflow { max })) => {
                assert_eq!(max, KEPT_BYTES_MAX);
                assert!(kept_bytes > max, "{kept_bytes} are not too many");
            }
            (Request::Unsubscribe(of, channel), Ok(Outcome::Unsubscribed(was))) => {
                let connection = self.connection(of);
                let subscribed = connection.channels.remove(&channel);
                assert!(was == subscribed || connection.gone, "{of} in {channel}");
            }
            (Request::Join(of, ..) | Request::Subscribe { of, .. }, Err(InstanceError::Gone)) => {
                assert!(self.connections[&of].gone, "{of} is not gone");
            }
            (Request::Open(_) | Request::Metadata(_), Err(InstanceError::Gone)) => {}
            (
                Request::Clear(_)
                | Request::Close(_)
                | Request::Join(..)
                | Request::Metadata(_)
                | Request::Open(_)
                | Request::Restore
                | Request::Subscribe { .. },
                Err(InstanceError::Backend(_)),
            ) => {}
            (request, result) => panic!("{request:?} came to {result:?}"),
        }
    }

    pub(super) fn delivers(
        &mut self,
        to: &Members<u32>,
        except: &[ConnectionId],
        frame: &TextFrame,
    ) {
        let mut to: Vec<u32> = to.handles_except(except).copied().collect();
        to.sort_unstable();
        self.delivered.push((frame.text().to_owned(), to));
    }

    /// The last event went to all of `certain`, and to nobody but `possible`.
    pub(super) fn check_delivered(
        &mut self,
        frame: &TextFrame,
        certain: &[u32],
        possible: &[u32],
        except: &[ConnectionId],
    ) {
        let mut to = Vec::new();
        for (text, recipients) in std::mem::take(&mut self.delivered) {
            assert_eq!(text, frame.text());
            to.extend(recipients);
        }
        let once: BTreeSet<u32> = to.iter().copied().collect();
        assert_eq!(once.len(), to.len(), "{to:?} got it twice");
        for of in &to {
            assert!(
                possible.contains(of) && !except.contains(&id(*of)),
                "{of} got it"
            );
        }
        for of in certain {
            assert!(
                to.contains(of) || except.contains(&id(*of)),
                "{of} missed it"
            );
        }
    }

    /// What holds between any two steps.
    pub(super) fn check(&self) {
        self.instance.check();
        assert!(
            self.delivered.is_empty(),
            "nobody asked for {:?}",
            self.delivered
        );
        for (of, connection) in &self.connections {
            let id = id(*of);
            let rooms: BTreeSet<Name> = self.instance.rooms_of(&id).into_iter().collect();
            let channels: BTreeSet<Name> = self.instance.channels_of(&id).into_iter().collect();
            assert_eq!(channels, connection.channels, "channels of {of}");
            let known = rooms.iter().all(|room| connection.rooms.contains_key(room));
            assert!(known, "{rooms:?} of {of}");
            for room in [name(0), name(1)] {
                let member = self.instance.is_member(&room, &id);
                assert_eq!(member, rooms.contains(&room), "{of} in {room}");
                let leaves = || {
                    let leave = Request::Leave(*of, room.clone());
                    self.requests.values().any(|request| *request == leave)
                };
                assert!(member || !connection.rooms.contains_key(&room) || leaves());
            }
            let pending = self
                .requests
                .values()
                .filter(|one| one.takes() == Some(*of));
            let held = rooms.len() + channels.len() + pending.count();
            assert_eq!(
                connection.taken,
                connection.released + held,
                "places of {of}"
            );
            let metadata = (!connection.gone).then(|| connection.document.json.clone());
            assert_eq!(self.instance.metadata(&id), metadata, "metadata of {of}");
            assert_eq!(self.instance.connection(&id).is_some(), !connection.gone);
            let registered = self.instance.connections().contains(&id);
            assert_eq!(registered, connection.registered, "{of}");
        }
    }
}

/// May two operations not be under way at once?
fn conflict(one: &Op, other: &Op) -> bool {
    let (Some(one), Some(other)) = (subject(one), subject(other)) else {
        return false;
    };
    match (one, other) {
        (Subject::Room(room, one), Subject::Room(other_room, other)) => {
            room == other_room && (one.is_none() || other.is_none() || one == other)
        }
        (one, other) => one == other,
    }
}

#[derive(PartialEq)]
enum Subject<'a> {
    Connection(&'a ConnectionId),
    Room(&'a Name, Option<&'a ConnectionId>),
    Topic(&'a [Topic]),
}

fn subject(op: &Op) -> Option<Subject<'_>> {
    Some(match op {
        Op::ClearRoom { room } => Subject::Room(room, None),
        Op::CloseConnection { connection }
        | Op::OpenConnection { connection, .. }
        | Op::SetConnectionMetadata { connection, .. } => Subject::Connection(connection),
        Op::IsInRoom { room, connection }
        | Op::JoinRoom { room, connection }
        | Op::LeaveRoom { room, connection } => Subject::Room(room, Some(connection)),
        Op::Subscribe { topics } | Op::Unsubscribe { topics } => Subject::Topic(topics),
        _ => return None,
    })
}
