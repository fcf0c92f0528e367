//! The notices that wait for the server, and the stream that hands them out.

use std::{
    collections::VecDeque,
    mem,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use futures_core::Stream;
use mesh_core::backend::{NOTICES_BYTES_MAX, Notice, Topic};

use crate::lock;

/// A queue with one reader. At most [`NOTICES_BYTES_MAX`] of messages wait; beyond it the oldest message is dropped
/// and counted, never anything else.
#[derive(Default)]
pub(crate) struct Mailbox {
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    notices: VecDeque<Notice>,
    bytes: usize,
    dropped: u64,
    /// Messages of this epoch only are let in; 0 while the store is lost.
    epoch: u64,
    /// Nobody reads any more: the instance is closed, or its stream was dropped.
    closed: bool,
    /// The stream was handed out.
    taken: bool,
    waker: Option<Waker>,
}

impl Mailbox {
    /// Puts a message in, unless its epoch is over.
    pub(crate) fn push_message(&self, epoch: u64, notice: Notice) {
        let mut queue = lock(&self.queue);
        if queue.epoch != epoch {
            return;
        }
        queue.push(notice);
        while queue.bytes > NOTICES_BYTES_MAX && queue.notices.len() > 1 {
            let is_message = |notice: &Notice| matches!(notice, Notice::Message { .. });
            let Some(oldest) = queue.notices.iter().position(is_message) else {
                break;
            };
            let Some(notice) = queue.notices.remove(oldest) else {
                break;
            };
            queue.bytes -= size(&notice);
            queue.dropped += 1;
        }
        wake(queue);
    }

    /// Puts in what is never dropped.
    pub(crate) fn push(&self, notice: Notice) {
        let mut queue = lock(&self.queue);
        queue.push(notice);
        wake(queue);
    }

    /// From here on messages of this epoch come in, or none; the notice stands before them. The waker is to be woken
    /// once no lock is held.
    pub(crate) fn turn(&self, epoch: u64, notice: Option<Notice>) -> Option<Waker> {
        let mut queue = lock(&self.queue);
        queue.epoch = epoch;
        queue.push(notice?);
        queue.waker.take()
    }

    /// Lets go of what waits and ends the stream.
    pub(crate) fn close(&self) {
        let mut queue = lock(&self.queue);
        queue.closed = true;
        queue.bytes = 0;
        let notices = mem::take(&mut queue.notices);
        wake(queue);
        drop(notices);
    }

    pub(crate) fn dropped(&self) -> u64 {
        lock(&self.queue).dropped
    }
}

impl Queue {
    fn push(&mut self, notice: Notice) {
        if !self.closed {
            self.bytes += size(&notice);
            self.notices.push_back(notice);
        }
    }
}

/// Wakes the reader once the lock is gone: a waker is foreign code.
fn wake(mut queue: std::sync::MutexGuard<'_, Queue>) {
    let waker = queue.waker.take();
    drop(queue);
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// The reader: everything that waits, batch by batch.
pub(crate) struct Notices {
    /// `None` for a second stream of the same backend, which is empty.
    mailbox: Option<Arc<Mailbox>>,
}

impl Notices {
    pub(crate) fn new(mailbox: Arc<Mailbox>) -> Self {
        let taken = mem::replace(&mut lock(&mailbox.queue).taken, true);
        Self {
            mailbox: (!taken).then_some(mailbox),
        }
    }
}

impl Stream for Notices {
    type Item = Vec<Notice>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Vec<Notice>>> {
        let Some(mailbox) = &self.mailbox else {
            return Poll::Ready(None);
        };
        let mut queue = lock(&mailbox.queue);
        if !queue.notices.is_empty() {
            queue.bytes = 0;
            return Poll::Ready(Some(mem::take(&mut queue.notices).into()));
        }
        if queue.closed {
            return Poll::Ready(None);
        }
        let old = queue.waker.replace(cx.waker().clone());
        drop(queue);
        drop(old);
        Poll::Pending
    }
}

impl Drop for Notices {
    fn drop(&mut self) {
        if let Some(mailbox) = &self.mailbox {
            mailbox.close();
        }
    }
}

/// What a notice counts for.
fn size(notice: &Notice) -> usize {
    let Notice::Message { topic, message } = notice else {
        return size_of::<Notice>();
    };
    let name = match topic {
        Topic::Channel(name) | Topic::Room(name) => name.len(),
        Topic::Instance(instance) => instance.as_str().len(),
        _ => 0,
    };
    size_of::<Notice>() + name + message.len()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn message(len: usize) -> Notice {
        Notice::Message {
            topic: Topic::All,
            message: Bytes::from(vec![0; len]),
        }
    }

    fn read(notices: &mut Notices) -> Vec<Notice> {
        match Pin::new(notices).poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(batch)) => batch,
            Poll::Ready(None) | Poll::Pending => Vec::new(),
        }
    }

    #[test]
    fn messages_go_at_the_bound_and_nothing_else() {
        let mailbox = Arc::new(Mailbox::default());
        let mut notices = Notices::new(mailbox.clone());
        mailbox.push(Notice::Lost);
        mailbox.turn(1, None);
        let half = NOTICES_BYTES_MAX / 2;
        for len in [half, half, 7] {
            mailbox.push_message(1, message(len));
        }
        assert_eq!(mailbox.dropped(), 1);
        assert_eq!(
            read(&mut notices),
            [Notice::Lost, message(half), message(7)]
        );
    }

    #[test]
    fn an_epoch_that_is_over_tells_nothing() {
        let mailbox = Arc::new(Mailbox::default());
        let mut notices = Notices::new(mailbox.clone());
        mailbox.turn(1, None);
        mailbox.push_message(1, message(1));
        mailbox.turn(0, Some(Notice::Lost));
        mailbox.push_message(1, message(2));
        mailbox.push_message(2, message(2));
        let restored = Notice::Restored {
            data_kept: None,
            number: 2,
        };
        mailbox.turn(2, Some(restored.clone()));
        mailbox.push_message(1, message(2));
        mailbox.push_message(2, message(3));
        assert_eq!(
            read(&mut notices),
            [message(1), Notice::Lost, restored, message(3)]
        );
    }

    #[test]
    fn a_second_stream_is_empty_and_harms_not_the_first() {
        let mailbox = Arc::new(Mailbox::default());
        let mut first = Notices::new(mailbox.clone());
        drop(Notices::new(mailbox.clone()));
        mailbox.push(Notice::Lost);
        assert_eq!(read(&mut first), [Notice::Lost]);
        drop(first);
        mailbox.push(Notice::Lost);
        assert!(lock(&mailbox.queue).notices.is_empty());
    }
}
