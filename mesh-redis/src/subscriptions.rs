//! The topics that this instance has taken, and how they become subscriptions of Redis.
//!
//! The table says what is wanted. Changes of it wait in a queue, and one order at a time brings Redis up to it: all
//! that waits becomes one `SUBSCRIBE` and one `UNSUBSCRIBE`. So the last word in the table is the last in Redis.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Mutex,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_channel::oneshot;
use mesh_core::backend::{BackendError, Topic};

use crate::lock;

/// How many topics one command names.
pub(crate) const TOPICS_PER_COMMAND: usize = 512;

/// How long the publisher of a channel message waits to hear it itself.
pub(crate) const ECHO_WAIT: Duration = Duration::from_secs(1);

/// Topics whose subscription is to be brought up to the table.
pub(crate) struct Order {
    pub(crate) names: Vec<String>,
    /// How often the store was lost when it was given: what it wants may be gone with a later loss.
    pub(crate) losses: u64,
    /// Told when it is so, or refused; dropped if it cannot be done.
    pub(crate) done: oneshot::Sender<Result<(), BackendError>>,
}

/// Topics that were taken and are not in force yet. Each is to be [settled](Topics::settle).
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct Wanting {
    /// With the serial numbers of their entries.
    pub(crate) names: Vec<(String, u64)>,
    pub(crate) losses: u64,
}

/// What one order has to do.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct Changes {
    /// With the serial number of the entry, for [`Topics::confirm`].
    pub(crate) subscribe: Vec<(String, u64)>,
    pub(crate) unsubscribe: Vec<String>,
}

/// The taken topics, by the names of their Redis channels.
#[derive(Default)]
pub(crate) struct Topics {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    taken: HashMap<String, Entry>,
    serial: u64,
    losses: u64,
    /// Own messages that are waited for, oldest first; no entry is empty.
    echoes: BTreeMap<String, VecDeque<Echo>>,
}

struct Entry {
    topic: Topic,
    /// Told apart from an earlier one of the same name.
    serial: u64,
    in_force: bool,
    /// How many wait for it to be in force.
    waiting: usize,
    /// One of them was told that it is. Without that nobody gives it back.
    held: bool,
}

struct Echo {
    message: Bytes,
    since: Instant,
    heard: oneshot::Sender<()>,
}

impl Topics {
    /// Takes topics. Those that nobody has yet are returned: they want an [`Order`].
    pub(crate) fn take(&self, topics: Vec<(String, Topic)>) -> Wanting {
        let mut table = lock(&self.table);
        let mut wanting = Wanting {
            names: Vec::new(),
            losses: table.losses,
        };
        for (name, topic) in topics {
            table.serial += 1;
            let serial = table.serial;
            let entry = table.taken.entry(name.clone()).or_insert_with(|| Entry {
                topic,
                serial,
                in_force: false,
                waiting: 0,
                held: false,
            });
            if !entry.held {
                entry.waiting += 1;
                wanting.names.push((name, entry.serial));
            }
        }
        wanting
    }

    /// Who took these was told that they are in force, or that they could not be taken. What nobody has then is taken
    /// out and returned: it wants an [`Order`].
    pub(crate) fn settle(&self, names: &[(String, u64)], taken: bool) -> Vec<String> {
        let mut table = lock(&self.table);
        let mut left = Vec::new();
        for (name, serial) in names {
            // Given back meanwhile, or lost.
            let Some(entry) = table.taken.get_mut(name).filter(|it| it.serial == *serial) else {
                continue;
            };
            entry.waiting -= 1;
            entry.held |= taken;
            if entry.waiting == 0 && !entry.held {
                table.taken.remove(name);
                table.echoes.remove(name);
                left.push(name.clone());
            }
        }
        left
    }

    /// How often the store was lost.
    pub(crate) fn losses(&self) -> u64 {
        lock(&self.table).losses
    }

    /// Gives topics back. Those that were taken are returned: they want an [`Order`].
    pub(crate) fn give_back(&self, names: Vec<String>) -> Vec<String> {
        let mut table = lock(&self.table);
        let is_taken = |name: &String| {
            // Who waits to hear something on it waits in vain.
            table.echoes.remove(name);
            table.taken.remove(name).is_some()
        };
        names.into_iter().filter(is_taken).collect()
    }

    /// What is to be done for these names, each of them once.
    pub(crate) fn changes<'a>(&self, names: impl IntoIterator<Item = &'a String>) -> Changes {
        let table = lock(&self.table);
        let mut wanted = BTreeMap::new();
        for name in names {
            let entry = table.taken.get(name);
            wanted.insert(
                name.clone(),
                entry.map(|entry| (entry.serial, entry.in_force)),
            );
        }
        let mut changes = Changes::default();
        for (name, entry) in wanted {
            match entry {
                Some((serial, false)) => changes.subscribe.push((name, serial)),
                // Another order was quicker.
                Some((_, true)) => {}
                None => changes.unsubscribe.push(name),
            }
        }
        changes
    }

    /// These are in force, as far as they are still wanted.
    pub(crate) fn confirm(&self, subscribed: &[(String, u64)]) {
        let mut table = lock(&self.table);
        for (name, serial) in subscribed {
            if let Some(entry) = table.taken.get_mut(name)
                && entry.serial == *serial
            {
                entry.in_force = true;
            }
        }
    }

    /// The store is lost: what is in force stays taken, what was under way is not.
    pub(crate) fn lose(&self) {
        let mut table = lock(&self.table);
        table.taken.retain(|_, entry| entry.in_force);
        table.losses += 1;
        // Nobody will hear anything any more.
        table.echoes.clear();
    }

    /// All names, to take them again.
    #[expect(
        clippy::iter_over_hash_type,
        reason = "the order in which topics are taken again has no meaning"
    )]
    pub(crate) fn names(&self) -> Vec<String> {
        let table = lock(&self.table);
        let mut names = Vec::with_capacity(table.taken.len());
        for name in table.taken.keys() {
            names.push(name.clone());
        }
        names
    }

    /// Those of `names` that nobody wants any more.
    pub(crate) fn unwanted(&self, names: Vec<String>) -> Vec<String> {
        let table = lock(&self.table);
        names
            .into_iter()
            .filter(|name| !table.taken.contains_key(name))
            .collect()
    }

    /// The topic of a Redis channel, if it is taken.
    pub(crate) fn topic(&self, channel: &str) -> Option<Topic> {
        lock(&self.table)
            .taken
            .get(channel)
            .map(|entry| entry.topic.clone())
    }

    /// Waits for one's own message, where its channel is in force. To be called before it is published.
    pub(crate) fn expect_echo(
        &self,
        channel: &str,
        message: &Bytes,
    ) -> Option<oneshot::Receiver<()>> {
        let mut table = lock(&self.table);
        if !table.taken.get(channel)?.in_force {
            return None;
        }
        let (heard, receiver) = oneshot::channel();
        table
            .echoes
            .entry(channel.to_owned())
            .or_default()
            .push_back(Echo {
                message: message.clone(),
                since: Instant::now(),
                heard,
            });
        Some(receiver)
    }

    /// A message was heard, and stands among the notices.
    pub(crate) fn hear(&self, channel: &str, message: &[u8]) {
        let heard = {
            let mut table = lock(&self.table);
            let Some(echoes) = table.echoes.get_mut(channel) else {
                return;
            };
            let first = echoes.iter().position(|echo| echo.message == message);
            let heard = first.and_then(|first| echoes.remove(first));
            if echoes.is_empty() {
                table.echoes.remove(channel);
            }
            heard
        };
        if let Some(echo) = heard {
            let _ = echo.heard.send(());
        }
    }

    /// Gives up on echoes that were waited for too long, and on those that nobody waits for any more.
    pub(crate) fn expire_echoes(&self, now: Instant) {
        lock(&self.table).echoes.retain(|_, echoes| {
            echoes.retain(|echo| now < echo.since + ECHO_WAIT && !echo.heard.is_canceled());
            !echoes.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanting(topics: &Topics, name: &str) -> Vec<(String, u64)> {
        let taken = topics.take(vec![(name.to_owned(), Topic::Channel(name.into()))]);
        taken.names
    }

    fn take(topics: &Topics, name: &str) -> Vec<String> {
        wanting(topics, name).into_iter().map(|it| it.0).collect()
    }

    fn carry_out(topics: &Topics, names: &[String]) -> Changes {
        let changes = topics.changes(names);
        topics.confirm(&changes.subscribe);
        topics.settle(&changes.subscribe, true);
        changes
    }

    #[test]
    fn the_last_word_counts() {
        let topics = Topics::default();
        let mut names = take(&topics, "a");
        names.extend(topics.give_back(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(names, ["a", "a"], "what was not taken is passed over");
        assert_eq!(carry_out(&topics, &names).unsubscribe, ["a"]);

        let names = take(&topics, "a");
        assert_eq!(carry_out(&topics, &names).subscribe.len(), 1);
        assert!(take(&topics, "a").is_empty(), "in force already");
    }

    #[test]
    fn an_old_confirmation_does_not_count_for_a_new_entry() {
        let topics = Topics::default();
        let names = take(&topics, "a");
        let changes = topics.changes(&names);
        topics.give_back(vec!["a".to_owned()]);
        take(&topics, "a");
        topics.confirm(&changes.subscribe);
        assert_eq!(topics.changes(&names).subscribe.len(), 1);
    }

    #[test]
    fn an_outage_keeps_what_is_in_force() {
        let topics = Topics::default();
        let names = take(&topics, "a");
        carry_out(&topics, &names);
        let late = wanting(&topics, "b");
        topics.lose();
        assert_eq!((topics.names(), topics.losses()), (vec!["a".to_owned()], 1));
        assert_eq!(topics.unwanted(vec!["a".into(), "b".into()]), ["b"]);
        // A confirmation that was on its way.
        topics.confirm(&late);
        assert!(topics.settle(&late, false).is_empty());
        assert_eq!(topics.names(), ["a"]);
    }

    #[test]
    fn what_nobody_was_told_of_is_taken_out() {
        let topics = Topics::default();
        let (one, two) = (wanting(&topics, "a"), wanting(&topics, "a"));
        assert_eq!(one, two);
        assert!(topics.settle(&one, false).is_empty(), "two waits");
        topics.confirm(&two);
        assert_eq!(topics.settle(&two, false), ["a"], "though it is in force");
        assert!(topics.names().is_empty());

        let (one, two) = (wanting(&topics, "a"), wanting(&topics, "a"));
        topics.confirm(&one);
        assert!(topics.settle(&one, true).is_empty());
        assert!(topics.settle(&two, false).is_empty(), "one has it");
        assert_eq!(topics.names(), ["a"]);
    }

    #[test]
    fn an_echo_is_heard_once_and_given_up_in_time() {
        let topics = Topics::default();
        assert!(
            topics.expect_echo("a", &"x".into()).is_none(),
            "not in force"
        );
        let names = take(&topics, "a");
        carry_out(&topics, &names);
        let mut first = topics.expect_echo("a", &"x".into()).unwrap();
        let mut second = topics.expect_echo("a", &"x".into()).unwrap();
        topics.hear("a", b"y");
        assert_eq!(first.try_recv(), Ok(None));
        topics.hear("a", b"x");
        assert_eq!(
            (first.try_recv(), second.try_recv()),
            (Ok(Some(())), Ok(None))
        );
        topics.expire_echoes(Instant::now() + ECHO_WAIT);
        assert!(second.try_recv().is_err());
    }
}
