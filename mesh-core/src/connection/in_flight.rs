//! The commands of one connection that have no reply yet.

use std::collections::VecDeque;

/// Slots that an idle connection keeps; more are given back.
const KEPT: usize = 8;

/// Names one command in flight; given out once, good for one reply.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct CommandToken {
    slot: u32,
    /// Told apart from other commands that used the slot.
    sequence: u32,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    /// `None` while the slot is free.
    sequence: Option<u32>,
    id: u32,
    bytes: usize,
}

/// Which commands wait for a reply, how many payload bytes they hold, and, where they run one by one, whose turn it is.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    slots: Vec<Slot>,
    free: Vec<u32>,
    sequence: u32,
    bytes: usize,
    /// Commands that wait for their turn, oldest first; only in sequential mode.
    waiting: VecDeque<CommandToken>,
}

impl InFlight {
    #[cfg(test)]
    pub(super) fn at_sequence(sequence: u32) -> Self {
        Self {
            sequence,
            ..Self::default()
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Payload bytes of the commands in flight.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes a command in.
    pub(super) fn insert(&mut self, id: u32, bytes: usize) -> CommandToken {
        self.sequence = self.sequence.wrapping_add(1);
        self.bytes += bytes;
        let fresh = Slot {
            sequence: Some(self.sequence),
            id,
            bytes,
        };
        let free = self.free.pop();
        let slot = match free.and_then(|slot| Some((slot, self.slots.get_mut(slot as usize)?))) {
            Some((slot, place)) => {
                *place = fresh;
                slot
            }
            None => {
                self.slots.push(fresh);
                (self.slots.len() - 1) as u32
            }
        };
        CommandToken {
            slot,
            sequence: self.sequence,
        }
    }

    /// Ends a command and tells its id; `None` if it has ended before.
    pub(super) fn remove(&mut self, token: CommandToken) -> Option<u32> {
        let slot = self.slots.get_mut(token.slot as usize)?;
        if slot.sequence != Some(token.sequence) {
            return None;
        }
        slot.sequence = None;
        self.bytes -= slot.bytes;
        let id = slot.id;
        self.free.push(token.slot);
        if self.free.len() == self.slots.len() && self.slots.len() > KEPT {
            self.slots = Vec::new();
            self.free = Vec::new();
        }
        Some(id)
    }

    /// Puts a command into the line of those that run one by one; true if it is first.
    pub(super) fn enqueue(&mut self, token: CommandToken) -> bool {
        self.waiting.push_back(token);
        self.waiting.len() == 1
    }

    /// Takes a command out of the line and tells whose turn has come.
    pub(super) fn dequeue(&mut self, token: CommandToken) -> Option<CommandToken> {
        if self.waiting.front() != Some(&token) {
            self.waiting.retain(|waiting| *waiting != token);
            return None;
        }
        self.waiting.pop_front();
        if self.waiting.is_empty() && self.waiting.capacity() > KEPT {
            self.waiting = VecDeque::new();
        }
        self.waiting.front().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fills and empties, and tells what is kept.
    fn kept_after(commands: usize) -> (usize, usize, usize) {
        let mut in_flight = InFlight::default();
        let tokens: Vec<_> = (0..commands as u32)
            .map(|id| in_flight.insert(id, 1))
            .collect();
        for token in &tokens {
            in_flight.enqueue(*token);
        }
        for token in tokens {
            in_flight.remove(token);
            in_flight.dequeue(token);
        }
        let InFlight {
            slots,
            free,
            waiting,
            ..
        } = in_flight;
        (slots.capacity(), free.capacity(), waiting.capacity())
    }

    #[test]
    fn a_burst_gives_its_memory_back_and_a_trickle_keeps_its_own() {
        assert_eq!(kept_after(KEPT * 4), (0, 0, 0));
        let (slots, free, waiting) = kept_after(KEPT);
        assert!(slots >= KEPT && free >= KEPT && waiting >= KEPT);
    }
}
