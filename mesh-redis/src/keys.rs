//! The names of keys and topics.

use std::sync::Arc;

use mesh_core::backend::{ConnectionId, InstanceId, Topic};

/// How many partitions there are. A part of the key space's format: it never changes within one.
pub(crate) const PARTITIONS: u16 = 128;

/// How many partitions are read or cleaned up side by side: Redis has to have as many pages ready at once.
pub(crate) const PARTITIONS_AT_ONCE: usize = 16;

/// One of the fixed partitions; its number is its keys' hash tag, so that they share a slot.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Partition(u16);

impl Partition {
    /// Where a room or connection lives.
    pub(crate) fn of(name: &str) -> Self {
        // FNV-1a, folded: stable for ever, and even enough in its low bits.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let folded = hash ^ (hash >> 32);
        Self((folded % u64::from(PARTITIONS)) as u16)
    }

    /// Every partition.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..PARTITIONS).map(Self)
    }

    /// The number, for spans and for who keeps things together.
    pub(crate) fn number(self) -> u16 {
        self.0
    }
}

/// One life of an instance in the store, from a registration to the next: 64 random bits in hexadecimal.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct Incarnation(Arc<str>);

impl Incarnation {
    pub(crate) fn new(bits: u64) -> Self {
        Self(format!("{bits:016x}").into())
    }

    /// Reads what a script told: sixteen hexadecimal digits.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let valid = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        valid.then(|| Self(text.into()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Names everything under one prefix.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    prefix: Arc<str>,
    /// Topics of instances and rooms belong to a partition, whose slot they travel in.
    sharded: bool,
}

impl Keys {
    pub(crate) fn new(prefix: &str, sharded: bool) -> Self {
        Self {
            prefix: prefix.into(),
            sharded,
        }
    }

    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    fn instances(&self, what: &str) -> String {
        format!("{}{{i}}:{what}", self.prefix)
    }

    fn at(&self, partition: Partition, what: &str) -> String {
        format!("{}{{p{}}}:{what}", self.prefix, partition.0)
    }

    pub(crate) fn leases(&self) -> String {
        self.instances("leases")
    }

    pub(crate) fn dying(&self) -> String {
        self.instances("dying")
    }

    pub(crate) fn format(&self) -> String {
        self.instances("format")
    }

    /// What is kept for an instance that is away.
    pub(crate) fn kept(&self, instance: &InstanceId) -> String {
        self.instances(&format!("kept:{instance}"))
    }

    /// The incarnation that found the key space empty: while it stays, the store kept its data.
    pub(crate) fn birth(&self) -> String {
        self.instances("birth")
    }

    /// Everything that instances as such have, in the order in which scripts take it.
    pub(crate) fn all_instances(&self) -> [String; 4] {
        [self.leases(), self.dying(), self.format(), self.birth()]
    }

    pub(crate) fn connections(&self, at: Partition) -> String {
        self.at(at, "c")
    }

    /// The connections of an incarnation.
    pub(crate) fn connection_index(&self, at: Partition, incarnation: &Incarnation) -> String {
        self.at(at, &format!("c:{}", incarnation.as_str()))
    }

    /// The document that another instance set last.
    pub(crate) fn foreign_document(&self, connection: &ConnectionId) -> String {
        let at = Partition::of(connection.as_str());
        self.at(at, &format!("d:{connection}"))
    }

    pub(crate) fn members(&self, room: &str) -> String {
        self.at(Partition::of(room), &format!("m:{room}"))
    }

    /// The memberships of an incarnation.
    pub(crate) fn member_index(&self, at: Partition, incarnation: &Incarnation) -> String {
        self.at(at, &format!("i:{}", incarnation.as_str()))
    }

    pub(crate) fn generations(&self, at: Partition) -> String {
        self.at(at, "g")
    }

    pub(crate) fn room_documents(&self, at: Partition) -> String {
        self.at(at, "rm")
    }

    /// The generation that the last clearing began.
    pub(crate) fn cleared(&self, room: &str) -> String {
        self.at(Partition::of(room), &format!("x:{room}"))
    }

    /// The membership was ended by an instance that is not the connection's.
    pub(crate) fn foreign_leave(&self, room: &str, connection: &ConnectionId) -> String {
        self.at(Partition::of(room), &format!("l:{connection}\0{room}"))
    }

    /// A record: its version's number `n` and stamp `s`, and its value `d`.
    pub(crate) fn record(&self, record: &str) -> String {
        self.at(Partition::of(record), &format!("v:{record}"))
    }

    /// What was answered to the updates or the deletion of a record that begin with this stamp.
    pub(crate) fn answer(&self, record: &str, stamp: u64) -> String {
        let at = Partition::of(record);
        self.at(at, &format!("a:{stamp}:{record}"))
    }

    /// Records without a value, and when they were deleted.
    pub(crate) fn deleted_records(&self, at: Partition) -> String {
        self.at(at, "vd")
    }

    pub(crate) fn tombstone(&self, at: Partition, incarnation: &Incarnation) -> String {
        self.at(at, &format!("t:{}", incarnation.as_str()))
    }

    /// The list of a channel's messages: fixed, whatever the prefix, as other programs read it.
    pub(crate) fn history(channel: &str) -> String {
        format!("history:{channel}")
    }

    /// The Redis channel of a topic.
    pub(crate) fn topic(&self, topic: &Topic) -> String {
        match topic {
            Topic::Channel(name) => name.to_string(),
            Topic::Instance(instance) if self.sharded => {
                self.at(Partition::of(instance.as_str()), &format!("n:{instance}"))
            }
            Topic::Instance(instance) => self.owner_topic(instance),
            Topic::Record(record) => self.at(Partition::of(record), &format!("o:{record}")),
            Topic::Room(room) => self.at(Partition::of(room), &format!("r:{room}")),
            // `All`; and what a later core adds is refused before it comes here.
            _ => format!("{}all", self.prefix),
        }
    }

    /// The Redis channel on which scripts tell an instance what they changed of its connections. It is classic, whatever the slot of
    /// the script; an instance hears it along with its own topic.
    pub(crate) fn owner_topic(&self, instance: &InstanceId) -> String {
        format!("{}n:{instance}", self.prefix)
    }

    /// The Redis channel on which a session hears itself.
    #[cfg(feature = "cluster")]
    pub(crate) fn echo(&self, session: u64) -> String {
        format!("{}e:{session:016x}", self.prefix)
    }

    /// The Redis channels that one hears to hear a topic.
    pub(crate) fn heard(&self, topic: &Topic) -> Vec<String> {
        let mut names = vec![self.topic(topic)];
        if let Topic::Instance(instance) = topic
            && self.sharded
        {
            names.push(self.owner_topic(instance));
        }
        names
    }

    /// The command that publishes on a Redis channel.
    pub(crate) fn publish_command(&self, channel: &str) -> &'static str {
        if self.shard(channel).is_some() {
            "SPUBLISH"
        } else {
            "PUBLISH"
        }
    }

    /// The partition whose slot a topic travels in, by the name of its Redis channel; `None` for classic pub/sub. A
    /// channel of the application never has one, as its name does not begin with the prefix.
    pub(crate) fn shard(&self, channel: &str) -> Option<Partition> {
        let rest = channel.strip_prefix(&*self.prefix)?;
        let (number, _) = rest.strip_prefix("{p")?.split_once('}')?;
        let number = number.parse().ok().filter(|_| self.sharded)?;
        (number < PARTITIONS).then_some(Partition(number))
    }

    /// Is the name of a channel one of ours?
    pub(crate) fn is_reserved(&self, channel: &str) -> bool {
        channel.starts_with(&*self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_stable_and_even() {
        assert_eq!(Partition::of("").number(), 65);
        let mut counts = [0; PARTITIONS as usize];
        for number in 0..12_800 {
            counts[usize::from(Partition::of(&format!("i{number:x}.{number}")).number())] += 1;
        }
        assert!(
            counts.iter().all(|count| (50..200).contains(count)),
            "{counts:?}"
        );
    }

    #[test]
    fn keys_of_a_partition_share_a_hash_tag() {
        let keys = Keys::new("mesh:", false);
        let tag = |key: &str| key[key.find('{').unwrap()..=key.find('}').unwrap()].to_owned();
        let room = "r}{x";
        let at = Partition::of(room);
        let expected = format!("{{p{}}}", at.number());
        for key in [
            keys.members(room),
            keys.cleared(room),
            keys.foreign_leave(room, &"a.1".into()),
            keys.generations(at),
            keys.topic(&Topic::Room(room.into())),
        ] {
            assert_eq!(tag(&key), expected, "{key}");
        }
    }

    #[test]
    fn only_topics_with_a_partition_are_sharded() {
        let (classic, sharded) = (Keys::new("mesh:", false), Keys::new("mesh:", true));
        let shard = |keys: &Keys, topic| keys.shard(&keys.topic(&topic));
        for name in ["a", "{p3}", "}{", ""] {
            let at = Partition::of(name);
            for topic in [Topic::Room(name.into()), Topic::Instance(name.into())] {
                assert_eq!(shard(&sharded, topic.clone()), Some(at), "{topic:?}");
                assert_eq!(shard(&classic, topic), None);
            }
        }
        for topic in [
            Topic::All,
            Topic::Channel("{p3}:r:a".into()),
            Topic::Channel("mesh".into()),
        ] {
            assert_eq!(shard(&sharded, topic.clone()), None, "{topic:?}");
        }
        assert_eq!(sharded.shard("mesh:{p128}:r:a"), None);
    }
}
