//! Where sharded topics are heard in a cluster, and when that ends.

use std::{
    collections::HashSet,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use redis::{PushInfo, PushKind, Value};

#[cfg(feature = "cluster")]
use crate::keys::Partition;
use crate::lock;

/// The address of a node.
#[cfg(feature = "cluster")]
pub(crate) type Node = (String, u16);

/// The slot of a partition's keys and topics: CRC16 (XMODEM) of the hash tag, as Redis has it.
#[cfg(feature = "cluster")]
fn slot(at: Partition) -> i64 {
    let tag = format!("p{}", at.number());
    let sum = tag.bytes().fold(0_u16, |sum, byte| {
        (0..8).fold(sum ^ (u16::from(byte) << 8), |sum, _| {
            (sum << 1) ^ (if sum & 0x8000 == 0 { 0 } else { 0x1021 })
        })
    });
    i64::from(sum % 16_384)
}

/// The primary of each partition, as `CLUSTER SLOTS` tells it; `None` where one has none, or the reply is no such.
/// A node that does not know its own host is where the question went.
#[cfg(feature = "cluster")]
pub(crate) fn owners(slots: &Value, asked: &str) -> Option<Vec<Node>> {
    let Value::Array(ranges) = slots else {
        return None;
    };
    let owner = |at| {
        let slot = slot(at);
        ranges.iter().find_map(|range| match range {
            Value::Array(range) => match &range[..] {
                [Value::Int(first), Value::Int(last), Value::Array(node), ..]
                    if (*first..=*last).contains(&slot) =>
                {
                    address(node, asked)
                }
                _ => None,
            },
            _ => None,
        })
    };
    Partition::all().map(owner).collect()
}

#[cfg(feature = "cluster")]
fn address(node: &[Value], asked: &str) -> Option<Node> {
    let [host, Value::Int(port), ..] = node else {
        return None;
    };
    let host = match host {
        Value::BulkString(host) => std::str::from_utf8(host).ok()?,
        Value::Nil => "",
        _ => return None,
    };
    let host = match host {
        "" | "0.0.0.0" | "::" => asked,
        // The node knows the other's name is to be used, and not the name.
        "?" => return None,
        host => host,
    };
    Some((host.to_owned(), u16::try_from(*port).ok()?))
}

/// Tells the confirmation of an `SUNSUBSCRIBE` from a node's word that a slot is its own no more. They look alike, and
/// the redis crate takes the latter for an answer to whatever is under way: from then on that connection's answers
/// are out of step, and the session has to end.
#[derive(Default)]
pub(crate) struct Watch {
    /// What is being given back.
    leaving: Mutex<HashSet<String>>,
    moved: AtomicBool,
}

impl Watch {
    /// To be called before these are given back.
    pub(crate) fn leave(&self, names: &[&str]) {
        lock(&self.leaving).extend(names.iter().map(|name| (*name).to_owned()));
    }

    /// Whether a push says anything beyond the answer that it is. It is called before that answer is handed out, so
    /// that no answer out of step is taken for true.
    pub(crate) fn lets_pass(&self, info: &PushInfo) -> bool {
        if info.kind != PushKind::SUnsubscribe {
            return true;
        }
        let name = match info.data.first() {
            Some(Value::BulkString(name)) => std::str::from_utf8(name).unwrap_or_default(),
            _ => "",
        };
        if lock(&self.leaving).remove(name) {
            return false;
        }
        self.moved.store(true, Ordering::Release);
        true
    }

    /// A slot moved away: answers are not to be believed.
    pub(crate) fn has_moved(&self) -> bool {
        self.moved.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    #[cfg(feature = "cluster")]
    fn range(first: i64, last: i64, host: Value, port: i64) -> Value {
        let node = Value::Array(vec![host, Value::Int(port), text("id")]);
        Value::Array(vec![Value::Int(first), Value::Int(last), node])
    }

    #[cfg(feature = "cluster")]
    #[test]
    fn slots_are_those_of_redis() {
        // By `CLUSTER KEYSLOT`.
        let slots: Vec<_> = Partition::all().map(slot).collect();
        assert_eq!((slots[0], slots[7], slots[127]), (15_882, 3_821, 5_539));
    }

    #[cfg(feature = "cluster")]
    #[test]
    fn every_partition_has_an_owner_or_none_counts() {
        let whole = |host| {
            Value::Array(vec![
                range(0, 8_191, host, 1),
                range(8_192, 16_383, text("b"), 2),
            ])
        };
        for (host, expected) in [
            (text("a"), "a"),
            (text(""), "asked"),
            (Value::Nil, "asked"),
            (text("0.0.0.0"), "asked"),
        ] {
            let owners = owners(&whole(host), "asked").unwrap();
            let (first, second) = ((expected.to_owned(), 1), ("b".to_owned(), 2));
            for (at, owner) in Partition::all().zip(owners) {
                assert_eq!(owner, *(if slot(at) < 8_192 { &first } else { &second }));
            }
        }
        for broken in [
            whole(text("?")),
            Value::Array(vec![range(0, 8_191, text("a"), 1)]),
            Value::Array(vec![range(0, 16_383, text("a"), 70_000)]),
            Value::Array(vec![Value::Nil, Value::Array(vec![])]),
            Value::Nil,
        ] {
            assert_eq!(owners(&broken, "asked"), None);
        }
    }

    #[test]
    fn what_is_given_back_is_no_move() {
        let push = |kind, name| PushInfo {
            kind,
            data: vec![text(name), Value::Int(0)],
        };
        let watch = Watch::default();
        watch.leave(&["a", "b"]);
        assert!(watch.lets_pass(&push(PushKind::SMessage, "a")));
        assert!(!watch.lets_pass(&push(PushKind::SUnsubscribe, "a")));
        assert!(!watch.lets_pass(&push(PushKind::SUnsubscribe, "b")));
        assert!(!watch.has_moved());
        assert!(watch.lets_pass(&push(PushKind::SUnsubscribe, "a")), "twice");
        assert!(watch.has_moved());
    }
}
