//! What instances tell each other through the backend.
//!
//! ```text
//!   version(8) kind(8) field…      field: length(32, big-endian) bytes
//! ```
//!
//! A message of another version or kind is no error: it is counted and ignored, so that instances of two versions
//! work side by side.

#[cfg(feature = "__fuzzing")]
#[doc(hidden)]
pub mod fuzzing;

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    backend::{ConnectionId, Document, InstanceId, Json, Name},
    websocket::{CloseCode, CloseFrame},
};

/// The version of the format.
const VERSION: u8 = 1;

/// A message between instances.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Relay {
    /// Close a connection of yours.
    Disconnect {
        /// The connection.
        connection: ConnectionId,
        /// With this frame.
        frame: CloseFrame,
    },
    /// A request is done.
    Done {
        /// Its number.
        number: u64,
    },
    /// An event for everybody that the topic concerns.
    Event {
        /// But not for these.
        except: Vec<ConnectionId>,
        /// The whole frame, JSON.
        text: String,
    },
    /// End all room memberships of a connection of yours.
    LeaveAllRooms {
        /// The connection.
        connection: ConnectionId,
    },
    /// The metadata of a connection of yours changed in the store.
    MetadataChanged {
        /// The connection.
        connection: ConnectionId,
        /// What it is now.
        document: Document,
    },
    /// Ask the guards of a connection of yours again.
    RecheckGuards {
        /// The connection.
        connection: ConnectionId,
    },
    /// End a membership or subscription of a connection of yours.
    Revoke {
        /// The connection.
        connection: ConnectionId,
        /// What it loses.
        what: Membership,
    },
    /// One of the others, and the wish to be told when it is done, by [`Done`](Self::Done) on the topic of the instance that asks.
    Request {
        /// Comes back with the answer.
        number: u64,
        /// Who asks.
        from: InstanceId,
        /// What is to be done.
        relay: Box<Self>,
    },
    /// An event for connections of yours.
    SendTo {
        /// The connections.
        connections: Vec<ConnectionId>,
        /// The whole frame, JSON.
        text: String,
    },
}

/// Something that a connection holds.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum Membership {
    /// A subscription to a channel.
    Channel(Name),
    /// A subscription to a record.
    Record(Name),
    /// Membership of a room.
    Room(Name),
}

impl Membership {
    /// The name of what is held.
    pub fn name(&self) -> &Name {
        match self {
            Self::Channel(name) | Self::Record(name) | Self::Room(name) => name,
        }
    }
}

impl Relay {
    /// The message as it travels.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(64);
        out.put_u8(VERSION);
        self.put(&mut out);
        out.freeze()
    }

    fn put(&self, out: &mut BytesMut) {
        match self {
            Self::Disconnect { connection, frame } => {
                out.put_u8(0);
                put(out, connection.as_str());
                out.put_u16(frame.code.as_u16());
                put(out, &frame.reason);
            }
            Self::Event { except, text } => {
                out.put_u8(1);
                put_ids(out, except);
                put(out, text);
            }
            Self::MetadataChanged {
                connection,
                document,
            } => {
                out.put_u8(2);
                put(out, connection.as_str());
                out.put_u64(document.revision);
                // No JSON text is empty.
                put(out, document.json.as_deref().unwrap_or_default());
            }
            Self::RecheckGuards { connection } => {
                out.put_u8(3);
                put(out, connection.as_str());
            }
            Self::Revoke { connection, what } => {
                out.put_u8(4);
                put(out, connection.as_str());
                let (kind, name) = match what {
                    Membership::Channel(name) => (0, name),
                    Membership::Room(name) => (1, name),
                    Membership::Record(name) => (2, name),
                };
                out.put_u8(kind);
                put(out, name);
            }
            Self::SendTo { connections, text } => {
                out.put_u8(5);
                put_ids(out, connections);
                put(out, text);
            }
            Self::LeaveAllRooms { connection } => {
                out.put_u8(6);
                put(out, connection.as_str());
            }
            Self::Request {
                number,
                from,
                relay,
            } => {
                out.put_u8(REQUEST);
                out.put_u64(*number);
                put(out, from.as_str());
                relay.put(out);
            }
            Self::Done { number } => {
                out.put_u8(8);
                out.put_u64(*number);
            }
        }
    }

    /// How long an [`Event`](Self::Event) or [`SendTo`](Self::SendTo) with these ids and a text of this length travels, in bytes.
    #[cfg(any(test, feature = "driver"))]
    pub(crate) fn event_len(ids: &[ConnectionId], text_len: usize) -> usize {
        const LENGTH: usize = size_of::<u32>();
        let ids: usize = ids.iter().map(|id| LENGTH + id.as_str().len()).sum();
        2 + LENGTH + ids + LENGTH + text_len
    }

    /// Reads a message; `None` if it is none of this version.
    pub fn decode(message: &[u8]) -> Option<Self> {
        let mut input = Input(message);
        if input.byte()? != VERSION {
            return None;
        }
        let kind = input.byte()?;
        let relay = if kind == REQUEST {
            Self::Request {
                number: input.long()?,
                from: InstanceId::new(input.text()?),
                // A request for a request is none, so that no message nests without end.
                relay: Box::new(input.relay()?),
            }
        } else {
            input.relay_of(kind)?
        };
        input.0.is_empty().then_some(relay)
    }
}

/// The kind of a [`Relay::Request`].
const REQUEST: u8 = 7;

fn put(out: &mut BytesMut, text: &str) {
    out.put_u32(text.len() as u32);
    out.put_slice(text.as_bytes());
}

fn put_ids(out: &mut BytesMut, ids: &[ConnectionId]) {
    out.put_u32(ids.len() as u32);
    for id in ids {
        put(out, id.as_str());
    }
}

/// What is left to read.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// Any message but a request.
    fn relay(&mut self) -> Option<Relay> {
        let kind = self.byte()?;
        self.relay_of(kind)
    }

    /// Any message but a request, whose kind was read.
    fn relay_of(&mut self, kind: u8) -> Option<Relay> {
        Some(match kind {
            0 => Relay::Disconnect {
                connection: self.id()?,
                frame: CloseFrame {
                    code: CloseCode::new(u16::from_be_bytes([self.byte()?, self.byte()?]))?,
                    reason: self.text()?.to_owned(),
                },
            },
            1 => Relay::Event {
                except: self.ids()?,
                text: self.text()?.to_owned(),
            },
            2 => Relay::MetadataChanged {
                connection: self.id()?,
                document: Document {
                    revision: self.long()?,
                    json: Some(self.text()?)
                        .filter(|json| !json.is_empty())
                        .map(Json::from),
                },
            },
            3 => Relay::RecheckGuards {
                connection: self.id()?,
            },
            4 => Relay::Revoke {
                connection: self.id()?,
                what: match self.byte()? {
                    0 => Membership::Channel(self.text()?.into()),
                    1 => Membership::Room(self.text()?.into()),
                    2 => Membership::Record(self.text()?.into()),
                    _ => return None,
                },
            },
            5 => Relay::SendTo {
                connections: self.ids()?,
                text: self.text()?.to_owned(),
            },
            6 => Relay::LeaveAllRooms {
                connection: self.id()?,
            },
            8 => Relay::Done {
                number: self.long()?,
            },
            _ => return None,
        })
    }

    fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }

    fn number(&mut self) -> Option<usize> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        usize::try_from(u32::from_be_bytes(*number)).ok()
    }

    fn long(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_be_bytes(*number))
    }

    fn text(&mut self) -> Option<&'a str> {
        let len = self.number()?;
        let (text, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        std::str::from_utf8(text).ok()
    }

    fn id(&mut self) -> Option<ConnectionId> {
        self.text().map(ConnectionId::new)
    }

    fn ids(&mut self) -> Option<Vec<ConnectionId>> {
        // The announced number is not trusted with an allocation.
        let number = self.number()?;
        let mut ids = Vec::new();
        for _ in 0..number {
            ids.push(self.id()?);
        }
        Some(ids)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Membership, Relay};
    use crate::{
        backend::{ConnectionId, Document, InstanceId, Json},
        websocket::{CloseCode, CloseFrame},
    };

    fn relays() -> impl Strategy<Value = Relay> {
        let id = || "[a-z0-9]{0,4}\\.[a-z0-9é]{0,9}".prop_map(ConnectionId::new);
        let ids = || prop::collection::vec(id(), 0..4);
        prop_oneof![
            (id(), 3000..5000u16, ".{0,9}").prop_map(|(connection, code, reason)| {
                let code = CloseCode::new(code).unwrap();
                Relay::Disconnect {
                    connection,
                    frame: CloseFrame { code, reason },
                }
            }),
            (ids(), ".{0,99}").prop_map(|(except, text)| Relay::Event { except, text }),
            id().prop_map(|connection| Relay::LeaveAllRooms { connection }),
            (id(), any::<u64>(), proptest::option::of(".{1,9}")).prop_map(
                |(connection, revision, json)| Relay::MetadataChanged {
                    connection,
                    document: Document {
                        json: json.map(Json::from),
                        revision,
                    },
                }
            ),
            id().prop_map(|connection| Relay::RecheckGuards { connection }),
            (id(), ".{0,9}", 0..3).prop_map(|(connection, name, what)| Relay::Revoke {
                connection,
                what: match what {
                    0 => Membership::Channel(name.into()),
                    1 => Membership::Record(name.into()),
                    _ => Membership::Room(name.into()),
                },
            }),
            any::<u64>().prop_map(|number| Relay::Done { number }),
            (ids(), ".{0,99}").prop_map(|(connections, text)| Relay::SendTo { connections, text }),
        ]
    }

    fn requests() -> impl Strategy<Value = Relay> {
        let request = (any::<u64>(), "[0-9a-f]{0,9}", relays());
        request.prop_map(|(number, from, relay)| Relay::Request {
            number,
            from: InstanceId::new(from),
            relay: Box::new(relay),
        })
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_and_no_part_of_it_is(relay in prop_oneof![4 => relays(), 1 => requests()]) {
            let message = relay.encode();
            for len in 0..message.len() {
                prop_assert_eq!(Relay::decode(&message[..len]), None);
            }
            if let Relay::Event { except: ids, text } | Relay::SendTo { connections: ids, text } = &relay {
                prop_assert_eq!(Relay::event_len(ids, text.len()), message.len());
            }
            prop_assert_eq!(Relay::decode(&message), Some(relay));
        }

        #[test]
        fn any_bytes_are_a_message_or_none(bytes in prop::collection::vec(any::<u8>(), 0..99)) {
            if let Some(relay) = Relay::decode(&bytes) {
                prop_assert_eq!(relay.encode(), bytes);
            }
        }
    }

    #[test]
    fn another_version_is_ignored() {
        let mut message = Relay::Done { number: 1 }.encode().to_vec();
        message[0] += 1;
        assert_eq!(Relay::decode(&message), None);
    }
}
