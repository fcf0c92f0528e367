//! Body of the fuzz target of what Redis says; no part of the API that versions promise.

use std::fmt::Write;

use bytes::Bytes;
use mesh_core::{
    backend::{InstanceId, Notice, RecordChangeKind, Topic},
    fuzzing::Cursor,
};
use redis::Value;

use crate::{
    decode,
    envelope::{Sender, notice_head, open, seal},
    instances::read_beat,
    ops::{document, records::versions},
};

/// Any bytes as what comes on a topic, is stored, or answers a command: what can be read is the same after it was written again.
///
/// # Panics
/// It does not.
pub fn decoding(data: &[u8]) {
    let topics = [
        Topic::All,
        Topic::Instance(InstanceId::new("i")),
        Topic::Record("r".into()),
        Topic::Room("r".into()),
    ];
    let sealed = Bytes::copy_from_slice(data);
    for topic in topics {
        if let Some(opened) = open(topic.clone(), &sealed) {
            let again = written(&opened.sender, opened.late, &opened.notice);
            assert_eq!(open(topic, &again.into()), Some(opened));
        }
    }
    if let Ok(text) = str::from_utf8(data)
        && let Some(read) = document(text)
    {
        let json = read.json.as_deref().unwrap_or_default();
        let again = format!("{} {json}", read.revision);
        assert_eq!(document(&again), Some(read));
    }
    let reply = value(&mut Cursor::new(data), 4);
    let _ = decode::bytes(reply.clone());
    let _ = decode::integer(&reply);
    let _ = decode::maybe_text(reply.clone());
    let _ = decode::number(reply.clone());
    let _ = decode::page(reply.clone());
    let _ = read_beat(reply.clone());
    let _ = versions(reply.clone());
    #[cfg(feature = "cluster")]
    let _ = crate::shards::owners(&reply, "asked");
    let _ = decode::texts(reply);
}

/// What came, as it is sent.
fn written(sender: &Sender, late: bool, notice: &Notice) -> Vec<u8> {
    let text = match notice {
        Notice::Message { message, .. } => return seal(sender, message),
        Notice::MemberRemoved { room, connection } => format!("left {connection}\0{room}"),
        Notice::MetadataChanged {
            connection,
            document,
        } => {
            let json = document.json.as_deref().unwrap_or_default();
            format!("changed {connection}\0{} {json}", document.revision)
        }
        Notice::RecordChanged { base, changes, .. } => {
            let mut text = format!("versions {} {}", base.number, base.stamp);
            for change in changes {
                let (kind, json) = match &change.kind {
                    RecordChangeKind::Full(json) => ('f', &**json),
                    RecordChangeKind::Patch(json) => ('p', &**json),
                    _ => ('d', ""),
                };
                // Nothing fails that writes to a string.
                let _ = write!(text, "\0{} {kind}{json}", change.stamp);
            }
            text
        }
        Notice::RoomCleared { generation, .. } => format!("cleared {generation}"),
        other => panic!("no envelope holds {other:?}"),
    };
    [&notice_head(sender, late)[..], text.as_bytes()].concat()
}

/// Any reply.
fn value(cursor: &mut Cursor<'_>, levels: usize) -> Value {
    let kind = cursor.byte();
    match kind % 10 {
        0..3 if levels > 0 => {
            let values = (0..kind / 16).map(|_| value(cursor, levels - 1));
            let values = values.collect();
            if kind.is_multiple_of(10) {
                Value::Set(values)
            } else {
                Value::Array(values)
            }
        }
        3 => Value::Nil,
        4 => Value::SimpleString(cursor.text().into_owned()),
        5 => Value::Boolean(cursor.flag()),
        6 => Value::Int(match cursor.byte() {
            0xFF => i64::MAX,
            0xFE => i64::MIN,
            _ => i64::from(cursor.number()),
        }),
        7 => Value::BulkString(cursor.number().to_string().into()),
        8 => Value::Okay,
        _ => Value::BulkString(cursor.bytes().to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::decoding;

    #[test]
    fn inputs_replay() {
        for input in [
            &b""[..],
            b"\x0112345678message",
            b"\x0212345678cleared +7",
            b"\x0312345678left i.1\0room",
            b"\x0212345678changed i.1\x0007 {}",
            b"\x0212345678versions 1 2\x003 f{}\x004 p[]\x005 d",
            b"1 {\"a\":1}",
            // A page; lists of lists.
            b"\x21\x04\x010\x21\x09\x01a\x09\x01b",
            b"\x11\x31\x06\0\0\0\x06\0\x40\0\x21\x09\x01h\x06\0\0\x01",
        ] {
            decoding(input);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_not(data in vec(any::<u8>(), 0..200)) {
            decoding(&data);
        }

        #[test]
        fn what_begins_well_is_read_too(
            kind in 1..4u8,
            text in "(cleared|left|changed|versions) [0-9i.+ \0]{0,9}[a-z0-9 \0{}\"]{0,20}",
        ) {
            let mut data = vec![kind];
            data.extend_from_slice(b"12345678");
            data.extend_from_slice(text.as_bytes());
            decoding(&data);
        }
    }
}
