//! What is around all that travels on mesh's own topics: what it is, and the sender, so that it knows its own.
//!
//! ```text
//! 1 byte  1: a message of an instance · 2: a notice, which a script publishes along with what it changed
//! 8 bytes sender, random for each backend
//! …       the message, or the notice as text
//!
//! on a room's topic       cleared <generation>
//! on an instance's topic  left <connection>\0<room>
//!                         changed <connection>\0<revision> <document, or nothing>
//! ```
//!
//! Anything else is of another version: it is counted and ignored. Messages of channels have no envelope: they are what
//! any Redis client published.

use bytes::Bytes;
use mesh_core::backend::{ConnectionId, Notice, Topic};

use crate::ops::document;

const MESSAGE: u8 = 1;
const NOTICE: u8 = 2;
const HEADER: usize = 9;

/// Who sent a message.
pub(crate) type Sender = [u8; 8];

pub(crate) fn seal(sender: &Sender, message: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(HEADER + message.len());
    sealed.push(MESSAGE);
    sealed.extend_from_slice(sender);
    sealed.extend_from_slice(message);
    sealed
}

/// What a script puts before the text of a notice.
pub(crate) fn notice_head(sender: &Sender) -> [u8; HEADER] {
    let mut head = [NOTICE; HEADER];
    head[1..].copy_from_slice(sender);
    head
}

/// The notice that a room was cleared, as the script publishes it.
pub(crate) fn seal_cleared(sender: &Sender, generation: u64) -> Vec<u8> {
    let mut sealed = notice_head(sender).to_vec();
    sealed.extend_from_slice(format!("cleared {generation}").as_bytes());
    sealed
}

/// The sender, and what came on a topic; `None` for what is unknown.
pub(crate) fn open(topic: Topic, sealed: &Bytes) -> Option<(Sender, Notice)> {
    let header = sealed.get(..HEADER)?;
    let sender = header[1..].try_into().ok()?;
    let notice = match header[0] {
        MESSAGE => {
            let message = sealed.slice(HEADER..);
            Notice::Message { topic, message }
        }
        NOTICE => notice(topic, std::str::from_utf8(&sealed[HEADER..]).ok()?)?,
        _ => return None,
    };
    Some((sender, notice))
}

fn notice(topic: Topic, text: &str) -> Option<Notice> {
    let (kind, rest) = text.split_once(' ')?;
    match (topic, kind) {
        (Topic::Room(room), "cleared") => {
            let generation = rest.parse().ok()?;
            Some(Notice::RoomCleared { room, generation })
        }
        (Topic::Instance(_), "left") => {
            let (connection, room) = rest.split_once('\0')?;
            Some(Notice::MemberRemoved {
                room: room.into(),
                connection: ConnectionId::new(connection),
            })
        }
        (Topic::Instance(_), "changed") => {
            let (connection, stored) = rest.split_once('\0')?;
            Some(Notice::MetadataChanged {
                connection: ConnectionId::new(connection),
                document: document(stored)?,
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::backend::Document;

    use super::*;

    const SENDER: &Sender = b"12345678";

    fn told(topic: &Topic, text: &str) -> Option<Notice> {
        let mut sealed = notice_head(SENDER).to_vec();
        sealed.extend_from_slice(text.as_bytes());
        let (sender, notice) = open(topic.clone(), &sealed.into())?;
        assert_eq!(&sender, SENDER);
        Some(notice)
    }

    #[test]
    fn what_is_sealed_opens_and_nothing_else() {
        let topic = Topic::All;
        let sealed = seal(SENDER, b"hi");
        for text in ["hi", ""] {
            let sealed = seal(SENDER, text.as_bytes());
            let notice = Notice::Message {
                topic: Topic::All,
                message: text.into(),
            };
            let opened = open(topic.clone(), &sealed.into());
            assert_eq!(opened, Some((*SENDER, notice)));
        }
        let mut newer = sealed.clone();
        newer[0] = 3;
        assert_eq!(open(topic.clone(), &newer.into()), None);
        assert_eq!(open(topic, &sealed[..8].to_vec().into()), None);
    }

    #[test]
    fn notices_are_read_where_they_belong() {
        let (room, instance) = (Topic::Room("r".into()), Topic::Instance("i".into()));
        let connection = ConnectionId::from("i.1");
        let cleared = Notice::RoomCleared {
            room: "r".into(),
            generation: 7,
        };
        assert_eq!(told(&room, "cleared 7"), Some(cleared.clone()));
        let sealed = seal_cleared(SENDER, 7).into();
        assert_eq!(open(room.clone(), &sealed), Some((*SENDER, cleared)));
        let removed = Notice::MemberRemoved {
            room: "a \0\nb".into(),
            connection: connection.clone(),
        };
        assert_eq!(told(&instance, "left i.1\0a \0\nb"), Some(removed));
        for (text, json) in [("{\"a\": 1}", Some("{\"a\": 1}".into())), ("", None)] {
            let document = Document { json, revision: 3 };
            let changed = Notice::MetadataChanged {
                connection: connection.clone(),
                document,
            };
            let text = format!("changed i.1\0003 {text}");
            assert_eq!(told(&instance, &text), Some(changed));
        }
        for (topic, text) in [
            (&room, "left i.1\0r"),
            (&instance, "cleared 7"),
            (&room, "cleared x"),
            (&instance, "left i.1"),
            (&instance, "changed i.1\0x {}"),
            (&instance, "grown i.1\0r"),
            (&Topic::All, "cleared 7"),
            (&room, ""),
        ] {
            assert_eq!(told(topic, text), None, "{text:?} on {topic:?}");
        }
    }
}
