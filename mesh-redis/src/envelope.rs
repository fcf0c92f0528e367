//! What is around all that travels on mesh's own topics: what it is, and the sender, so that it knows its own.
//!
//! ```text
//! 1 byte  1: a message of an instance · 2: a notice, which a script publishes along with what it changed
//!         3: the same from another node of a cluster than its sender's messages, which it may have overtaken
//! 8 bytes sender, random for each backend
//! …       the message, or the notice as text
//!
//! on a room's topic       cleared <generation>
//! on a record's topic     versions <number> <stamp>, where they start, then for each \0<stamp> and a space,
//!                         and d for a deletion, f<value> or p<patch>
//! on an instance's topic  left <connection>\0<room>
//!                         changed <connection>\0<revision> <document, or nothing>
//! ```
//!
//! Anything else is of another version: it is counted and ignored. Messages of channels have no envelope: they are what
//! any Redis client published.

use bytes::Bytes;
use mesh_core::backend::{
    ConnectionId, Name, Notice, RecordChange, RecordChangeKind, Topic, Version,
};

use crate::ops::document;

const MESSAGE: u8 = 1;
const NOTICE: u8 = 2;
const LATE: u8 = 3;
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

/// What a script puts before the text of a notice; `late` if that may overtake messages of its sender.
pub(crate) fn notice_head(sender: &Sender, late: bool) -> [u8; HEADER] {
    let mut head = [if late { LATE } else { NOTICE }; HEADER];
    head[1..].copy_from_slice(sender);
    head
}

/// The notice that a room was cleared, as the script publishes it.
pub(crate) fn seal_cleared(sender: &Sender, generation: u64) -> Vec<u8> {
    let mut sealed = notice_head(sender, false).to_vec();
    sealed.extend_from_slice(format!("cleared {generation}").as_bytes());
    sealed
}

/// What came on a topic.
#[derive(Debug, PartialEq)]
pub(crate) struct Opened {
    pub(crate) sender: Sender,
    pub(crate) notice: Notice,
    /// It may have overtaken messages of its sender.
    pub(crate) late: bool,
}

/// Nobody: what its publisher hears, too.
pub(crate) const NOBODY: Sender = [0; 8];

/// Reads what came on a topic; `None` for what is unknown.
pub(crate) fn open(topic: Topic, sealed: &Bytes) -> Option<Opened> {
    let header = sealed.get(..HEADER)?;
    let sender = header[1..].try_into().ok()?;
    let notice = match header[0] {
        MESSAGE => {
            let message = sealed.slice(HEADER..);
            Notice::Message { topic, message }
        }
        NOTICE | LATE => notice(topic, std::str::from_utf8(&sealed[HEADER..]).ok()?)?,
        _ => return None,
    };
    Some(Opened {
        sender,
        notice,
        late: header[0] == LATE,
    })
}

fn notice(topic: Topic, text: &str) -> Option<Notice> {
    let (kind, rest) = text.split_once(' ')?;
    match (topic, kind) {
        (Topic::Room(room), "cleared") => {
            let generation = rest.parse().ok()?;
            Some(Notice::RoomCleared { room, generation })
        }
        (Topic::Record(record), "versions") => versions(record, rest),
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

fn versions(record: Name, text: &str) -> Option<Notice> {
    let mut parts = text.split('\0');
    let (number, stamp) = parts.next()?.split_once(' ')?;
    let base = Version {
        number: number.parse().ok()?,
        stamp: stamp.parse().ok()?,
    };
    let change = |part: &str| {
        let (stamp, change) = part.split_once(' ')?;
        let kind = match change.split_at_checked(1)? {
            ("d", "") => RecordChangeKind::Deleted,
            ("f", value) => RecordChangeKind::Full(value.into()),
            ("p", patch) => RecordChangeKind::Patch(patch.into()),
            _ => return None,
        };
        let stamp = stamp.parse().ok()?;
        Some(RecordChange { stamp, kind })
    };
    Some(Notice::RecordChanged {
        record,
        base,
        changes: parts.map(change).collect::<Option<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use mesh_core::backend::Document;

    use super::*;

    const SENDER: &Sender = b"12345678";

    fn sent(notice: Notice) -> Opened {
        Opened {
            sender: *SENDER,
            notice,
            late: false,
        }
    }

    fn told(topic: &Topic, text: &str) -> Option<Notice> {
        let told = [false, true].map(|late| {
            let mut sealed = notice_head(SENDER, late).to_vec();
            sealed.extend_from_slice(text.as_bytes());
            let opened = open(topic.clone(), &sealed.into())?;
            assert_eq!((&opened.sender, opened.late), (SENDER, late));
            Some(opened.notice)
        });
        assert_eq!(told[0], told[1]);
        told[0].clone()
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
            assert_eq!(opened, Some(sent(notice)));
        }
        let mut newer = sealed.clone();
        newer[0] = 4;
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
        assert_eq!(open(room.clone(), &sealed), Some(sent(cleared)));
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
        let record = Topic::Record("v".into());
        let versions = Notice::RecordChanged {
            record: "v".into(),
            base: Version {
                number: 2,
                stamp: u64::MAX,
            },
            changes: vec![
                RecordChange {
                    stamp: 7,
                    kind: RecordChangeKind::Full("\" f\"".into()),
                },
                RecordChange {
                    stamp: 8,
                    kind: RecordChangeKind::Patch("[]".into()),
                },
                RecordChange {
                    stamp: 9,
                    kind: RecordChangeKind::Deleted,
                },
            ],
        };
        let text = "versions 2 18446744073709551615\x007 f\" f\"\x008 p[]\x009 d";
        assert_eq!(told(&record, text), Some(versions));
        for (topic, text) in [
            (&record, "versions 2"),
            (&record, "versions 2 3\x007"),
            (&record, "versions 2 3\x007 x"),
            (&record, "versions 2 3\x007 d1"),
            (&room, "versions 2 3"),
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
