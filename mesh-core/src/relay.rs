//! What instances tell each other through the backend.
//!
//! ```text
//!   version(8) kind(8) field…      field: length(32, big-endian) bytes
//! ```
//!
//! A message of another version or kind is no error: it is counted and ignored, so that instances of two versions
//! work side by side.

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    backend::{ConnectionId, Name},
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
    /// The room that the topic names was cleared.
    RoomCleared,
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
    /// Membership of a room.
    Room(Name),
}

impl Relay {
    /// The message as it travels.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(64);
        out.put_u8(VERSION);
        match self {
            Self::Disconnect { connection, frame } => {
                out.put_u8(0);
                put(&mut out, connection.as_str());
                out.put_u16(frame.code.as_u16());
                put(&mut out, &frame.reason);
            }
            Self::Event { except, text } => {
                out.put_u8(1);
                put_ids(&mut out, except);
                put(&mut out, text);
            }
            Self::MetadataChanged { connection } => {
                out.put_u8(2);
                put(&mut out, connection.as_str());
            }
            Self::RecheckGuards { connection } => {
                out.put_u8(3);
                put(&mut out, connection.as_str());
            }
            Self::Revoke { connection, what } => {
                out.put_u8(4);
                put(&mut out, connection.as_str());
                let (kind, name) = match what {
                    Membership::Channel(name) => (0, name),
                    Membership::Room(name) => (1, name),
                };
                out.put_u8(kind);
                put(&mut out, name);
            }
            Self::RoomCleared => out.put_u8(5),
            Self::SendTo { connections, text } => {
                out.put_u8(6);
                put_ids(&mut out, connections);
                put(&mut out, text);
            }
            Self::LeaveAllRooms { connection } => {
                out.put_u8(7);
                put(&mut out, connection.as_str());
            }
        }
        out.freeze()
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
        let relay = match input.byte()? {
            0 => Self::Disconnect {
                connection: input.id()?,
                frame: CloseFrame {
                    code: CloseCode::new(u16::from_be_bytes([input.byte()?, input.byte()?]))?,
                    reason: input.text()?.to_owned(),
                },
            },
            1 => Self::Event {
                except: input.ids()?,
                text: input.text()?.to_owned(),
            },
            2 => Self::MetadataChanged {
                connection: input.id()?,
            },
            3 => Self::RecheckGuards {
                connection: input.id()?,
            },
            4 => Self::Revoke {
                connection: input.id()?,
                what: match input.byte()? {
                    0 => Membership::Channel(input.text()?.into()),
                    1 => Membership::Room(input.text()?.into()),
                    _ => return None,
                },
            },
            5 => Self::RoomCleared,
            6 => Self::SendTo {
                connections: input.ids()?,
                text: input.text()?.to_owned(),
            },
            7 => Self::LeaveAllRooms {
                connection: input.id()?,
            },
            _ => return None,
        };
        input.0.is_empty().then_some(relay)
    }
}

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
        backend::ConnectionId,
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
            id().prop_map(|connection| Relay::MetadataChanged { connection }),
            id().prop_map(|connection| Relay::RecheckGuards { connection }),
            (id(), ".{0,9}", any::<bool>()).prop_map(|(connection, name, room)| Relay::Revoke {
                connection,
                what: if room {
                    Membership::Room(name.into())
                } else {
                    Membership::Channel(name.into())
                },
            }),
            Just(Relay::RoomCleared),
            (ids(), ".{0,99}").prop_map(|(connections, text)| Relay::SendTo { connections, text }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_and_no_part_of_it_is(relay in relays()) {
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
        let mut message = Relay::RoomCleared.encode().to_vec();
        message[0] += 1;
        assert_eq!(Relay::decode(&message), None);
    }
}
