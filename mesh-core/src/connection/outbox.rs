//! What is queued to the peer, bounded in bytes.

use std::collections::VecDeque;

use crate::websocket::TextFrame;

/// Room for this many frames stays with an idle connection, so that a single event allocates nothing; 128 bytes.
pub const FRAMES_KEPT: usize = 4;

/// The outgoing queue of one connection.
///
/// Bytes count from the moment a frame is queued until the socket took it, also while the driver holds it.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    queue: VecDeque<TextFrame>,
    /// Bytes in `queue`.
    queued: usize,
    /// Bytes handed to the driver that the socket has not taken.
    handed: usize,
    /// The socket took something since this was last asked.
    progress: bool,
    /// The length of what was let in over the limit; until the queue has drained to a quarter of it, others get that much more
    /// room. A long reply on a slow line is no reason to close whoever asked for it.
    grown: usize,
}

impl Outbox {
    /// Bytes that the peer is owed.
    pub(super) fn bytes(&self) -> usize {
        self.queued + self.handed
    }

    /// Queues an event unless that would exceed `bytes_max`. An empty queue admits any one.
    pub(super) fn push(&mut self, event: TextFrame, bytes_max: usize) -> Result<(), SlowPeer> {
        let before = self.bytes();
        if before <= bytes_max / 4 {
            self.grown = 0;
        }
        let room = bytes_max.saturating_add(self.grown);
        if before > 0 && before.saturating_add(event.len()) > room {
            return Err(SlowPeer);
        }
        self.admit(event, bytes_max);
        Ok(())
    }

    /// Queues what the peer asked for, as long as what is queued is within `bytes_max`, whatever its own length. Otherwise it is
    /// handed back.
    pub(super) fn push_reply(
        &mut self,
        reply: TextFrame,
        bytes_max: usize,
    ) -> Result<(), TextFrame> {
        if self.bytes() > bytes_max {
            return Err(reply);
        }
        self.admit(reply, bytes_max);
        Ok(())
    }

    /// Queues a frame that is short and rare enough to need no limit.
    pub(super) fn push_short(&mut self, frame: TextFrame) {
        self.queued += frame.len();
        self.queue.push_back(frame);
    }

    fn admit(&mut self, frame: TextFrame, bytes_max: usize) {
        if self.bytes().saturating_add(frame.len()) > bytes_max {
            self.grown = self.grown.max(frame.len());
        }
        self.push_short(frame);
    }

    /// Nothing waits for the driver.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Moves everything queued to the back of `into`.
    pub(super) fn take(&mut self, into: &mut VecDeque<TextFrame>) {
        self.handed += self.queued;
        self.queued = 0;
        if into.is_empty() {
            // The driver's emptied queue comes back for the next round: no allocation in a steady state.
            std::mem::swap(&mut self.queue, into);
        } else {
            into.append(&mut self.queue);
        }
    }

    /// Of what was handed to the driver, `unsent` bytes are still with it.
    pub(super) fn set_unsent(&mut self, unsent: usize) {
        self.progress |= unsent < self.handed;
        self.handed = unsent;
    }

    /// Has the socket taken anything since the last call?
    pub(super) fn took_progress(&mut self) -> bool {
        std::mem::take(&mut self.progress)
    }

    /// Forgets everything, and the memory it took.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Holds what is owed to `bytes_max`, beside short frames and one that is no longer than the longest; panics where it is more.
    #[cfg(all(feature = "driver", feature = "__fuzzing"))]
    pub(super) fn check(&self, bytes_max: usize, short: usize, longest: usize) {
        let (bytes, grown) = (self.bytes(), self.grown);
        assert!(
            grown <= longest && bytes <= bytes_max + grown + short,
            "{bytes} bytes are owed, {grown} of them at once, and {bytes_max} may be"
        );
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.queue.capacity()
    }

    /// Gives back the memory of a queue that was long once.
    pub(super) fn shrink(&mut self) {
        if self.queue.is_empty() && self.queue.capacity() > FRAMES_KEPT {
            self.queue = VecDeque::new();
        }
    }
}

/// The peer does not read as fast as it is sent to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct SlowPeer;

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 1_000;

    /// A frame of so many bytes.
    fn frame(len: usize) -> TextFrame {
        let header = if len < 128 { 2 } else { 4 };
        let frame = TextFrame::new(&"x".repeat(len - header));
        assert_eq!(frame.len(), len);
        frame
    }

    /// One that owes so many bytes, all of which the driver has taken.
    fn owing(bytes: usize) -> Outbox {
        let mut outbox = Outbox::default();
        outbox.push(frame(bytes), MAX).unwrap();
        outbox.take(&mut VecDeque::new());
        outbox
    }

    #[test]
    fn as_much_as_the_limit_is_queued_and_not_a_byte_more() {
        let mut outbox = owing(MAX / 2);
        assert_eq!(outbox.push(frame(MAX / 2 + 1), MAX), Err(SlowPeer));
        outbox.push(frame(MAX / 2), MAX).unwrap();
        // What just fits brings no room for others.
        assert_eq!(outbox.push(frame(100), MAX), Err(SlowPeer));
        assert_eq!(outbox.bytes(), MAX);
    }

    #[test]
    fn a_reply_is_queued_at_the_limit_and_refused_beyond_it() {
        let mut outbox = owing(MAX);
        outbox.push_reply(frame(5_000), MAX).unwrap();
        assert_eq!(outbox.bytes(), MAX + 5_000);
        let refused = outbox.push_reply(frame(100), MAX).unwrap_err();
        assert_eq!(refused.len(), 100);
    }

    #[test]
    fn the_room_that_a_long_reply_brings_is_there_until_a_quarter_of_the_limit_is_left() {
        for (left, is_there) in [(MAX / 4 + 1, true), (MAX / 4, false), (100, false)] {
            let mut outbox = owing(MAX);
            outbox.push_reply(frame(5_000), MAX).unwrap();
            outbox.take(&mut VecDeque::new());
            outbox.set_unsent(left);
            let pushed = outbox.push(frame(2_000), MAX);
            assert_eq!(pushed.is_ok(), is_there, "{left} bytes are left");
        }
    }

    #[test]
    fn a_long_queue_gives_its_memory_back_once_it_is_empty() {
        let mut outbox = Outbox::default();
        for _ in 0..FRAMES_KEPT {
            outbox.push_short(frame(100));
        }
        let mut held = VecDeque::from([frame(100)]);
        outbox.take(&mut held);
        let kept = outbox.queue.capacity();
        outbox.shrink();
        assert_eq!(outbox.queue.capacity(), kept, "what a few need stays");

        for _ in 0..100 {
            outbox.push_short(frame(100));
        }
        outbox.shrink();
        assert_eq!(outbox.queue.len(), 100);
        outbox.take(&mut held);
        assert!(outbox.queue.capacity() >= 100);
        outbox.shrink();
        assert_eq!(outbox.queue.capacity(), 0);
        assert_eq!(held.len(), 1 + FRAMES_KEPT + 100);
    }
}
