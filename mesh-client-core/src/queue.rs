//! Commands that wait to be sent.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// A caller's command.
#[derive(Debug)]
pub(crate) struct Command<T> {
    pub(crate) seq: u64, // the order of the calls
    pub(crate) token: T,
    pub(crate) name: String,
    pub(crate) payload: String, // JSON; empty once it was sent and is never sent again
    pub(crate) timeout: Duration,
    pub(crate) deadline: Instant,
    pub(crate) idempotent: bool,
    pub(crate) sent: bool,
}

impl<T> Command<T> {
    pub(crate) fn bytes(&self) -> usize {
        self.name.len() + self.payload.len()
    }
}

/// First in, first out; what comes back after a disconnect takes its old place.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    commands: BTreeMap<u64, (Command<T>, Instant)>,
    expiries: BTreeSet<(Instant, u64)>,
    bytes: usize,
}

impl<T> Queue<T> {
    pub(crate) fn new() -> Self {
        Self {
            commands: BTreeMap::new(),
            expiries: BTreeSet::new(),
            bytes: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.commands.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a command that waits until `expiry` or its own deadline, whichever is first.
    pub(crate) fn push(&mut self, command: Command<T>, expiry: Instant) {
        let expiry = expiry.min(command.deadline);
        self.bytes += command.bytes();
        self.expiries.insert((expiry, command.seq));
        self.commands.insert(command.seq, (command, expiry));
    }

    /// The size in bytes of the oldest command.
    pub(crate) fn front_bytes(&self) -> Option<usize> {
        self.commands
            .first_key_value()
            .map(|(_, (command, _))| command.bytes())
    }

    pub(crate) fn pop(&mut self) -> Option<Command<T>> {
        let seq = *self.commands.first_key_value()?.0;
        self.remove(seq)
    }

    /// The next command that waited too long.
    pub(crate) fn expire(&mut self, now: Instant) -> Option<Command<T>> {
        let &(expiry, seq) = self.expiries.first()?;
        if now < expiry {
            return None;
        }
        self.remove(seq)
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.expiries.first().map(|&(expiry, _)| expiry)
    }

    fn remove(&mut self, seq: u64) -> Option<Command<T>> {
        let (command, expiry) = self.commands.remove(&seq)?;
        self.expiries.remove(&(expiry, seq));
        self.bytes -= command.bytes();
        Some(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::origin;

    fn command(seq: u64, deadline: Instant) -> Command<u32> {
        Command {
            seq,
            token: 0,
            name: "x".into(),
            payload: "{}".into(),
            timeout: Duration::from_secs(30),
            deadline,
            idempotent: true,
            sent: false,
        }
    }

    #[test]
    fn a_command_that_comes_back_takes_its_old_place() {
        let now = origin();
        let later = now + Duration::from_secs(9);
        let mut queue = Queue::new();
        queue.push(command(1, later), later);
        queue.push(command(2, later), later);
        let first = queue.pop().unwrap();
        queue.push(command(3, later), later);
        queue.push(first, later);
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).map(|c| c.seq).collect();
        assert_eq!(order, [1, 2, 3]);
        assert_eq!(
            (queue.len(), queue.bytes(), queue.poll_timeout()),
            (0, 0, None)
        );
    }

    #[test]
    fn a_command_expires_at_the_earlier_of_both_deadlines() {
        let now = origin();
        let at = |s| now + Duration::from_secs(s);
        let mut queue = Queue::new();
        queue.push(command(1, at(9)), at(3));
        queue.push(command(2, at(2)), at(8));
        assert_eq!(queue.poll_timeout(), Some(at(2)));
        assert!(queue.expire(at(1)).is_none());
        assert_eq!(queue.expire(at(5)).map(|c| c.seq), Some(2));
        assert_eq!(queue.expire(at(5)).map(|c| c.seq), Some(1));
        assert_eq!((queue.len(), queue.bytes()), (0, 0));
    }

    #[test]
    fn each_command_counts_while_it_waits() {
        let later = origin() + Duration::from_secs(9);
        let mut queue = Queue::new();
        let one = command(1, later).bytes();
        for seq in 1..=3 {
            queue.push(command(seq, later), later);
            assert_eq!(queue.bytes(), seq as usize * one);
        }
        for left in [2, 1, 0] {
            queue.pop();
            assert_eq!(queue.bytes(), left * one);
        }
    }
}
