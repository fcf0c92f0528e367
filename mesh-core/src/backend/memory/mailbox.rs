//! The notices that wait for one instance.

use std::{
    collections::VecDeque,
    mem,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use futures_core::Stream;

use super::{
    super::{Notice, Topic},
    lock,
};

/// The most that waits for an instance that does not read its notices, in bytes: 32 MiB, as Redis allows a
/// subscriber (`client-output-buffer-limit pubsub`).
///
/// Beyond it the oldest notices are dropped; one notice is always admitted to an empty queue. Every notice counts with
/// its message, its topic's name and its own size, though instances share the messages.
pub const NOTICES_BYTES_MAX: usize = 32 << 20;

/// A queue with one reader.
#[derive(Default)]
pub(super) struct Mailbox {
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    notices: VecDeque<Notice>,
    bytes: usize,
    dropped: u64,
    /// Nobody reads any more: the instance is closed, or its stream was dropped.
    closed: bool,
    /// The stream was handed out.
    taken: bool,
    waker: Option<Waker>,
}

impl Mailbox {
    /// Puts a notice in; the waker is to be woken once no lock is held.
    pub(super) fn push(&self, notice: Notice) -> Option<Waker> {
        let mut queue = lock(&self.queue);
        if queue.closed {
            return None;
        }
        queue.bytes += size(&notice);
        queue.notices.push_back(notice);
        while queue.bytes > NOTICES_BYTES_MAX && queue.notices.len() > 1 {
            let Some(oldest) = queue.notices.pop_front() else {
                break;
            };
            queue.bytes -= size(&oldest);
            queue.dropped += 1;
        }
        queue.waker.take()
    }

    /// Lets go of what waits and ends the stream.
    pub(super) fn close(&self) {
        let mut queue = lock(&self.queue);
        queue.closed = true;
        queue.bytes = 0;
        let notices = mem::take(&mut queue.notices);
        let waker = queue.waker.take();
        drop(queue);
        drop(notices);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(super) fn dropped(&self) -> u64 {
        lock(&self.queue).dropped
    }
}

/// The reader: everything that waits, batch by batch.
pub(super) struct Notices {
    /// `None` for a second stream of the same backend, which is empty.
    mailbox: Option<Arc<Mailbox>>,
}

impl Notices {
    pub(super) fn new(mailbox: Arc<Mailbox>) -> Self {
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
        // An old waker is dropped after the lock: it is foreign code.
        let waker = queue.waker.replace(cx.waker().clone());
        drop(queue);
        drop(waker);
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
        Topic::All => 0,
        Topic::Channel(name) | Topic::Room(name) => name.len(),
        Topic::Instance(instance) => instance.as_str().len(),
    };
    size_of::<Notice>() + name + message.len()
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        task::Wake,
    };

    use bytes::Bytes;

    use super::*;

    fn message(len: usize, first: u8) -> Notice {
        let mut message = vec![0; len];
        message[0] = first;
        Notice::Message {
            topic: Topic::All,
            message: Bytes::from(message),
        }
    }

    fn poll(notices: &mut Notices) -> Poll<Option<Vec<Notice>>> {
        Pin::new(notices).poll_next(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn the_oldest_goes_at_the_bound_and_is_counted() {
        let mailbox = Arc::new(Mailbox::default());
        let mut notices = Notices::new(mailbox.clone());
        let half = NOTICES_BYTES_MAX / 2 - size_of::<Notice>();
        for first in 1..=2 {
            mailbox.push(message(half, first));
        }
        assert_eq!(mailbox.dropped(), 0, "exactly at the bound");
        mailbox.push(message(1, 3));
        assert_eq!(mailbox.dropped(), 1);
        assert_eq!(
            poll(&mut notices),
            Poll::Ready(Some(vec![message(half, 2), message(1, 3)]))
        );

        // What was read counts no more.
        mailbox.push(message(half, 4));
        mailbox.push(message(half, 5));
        assert_eq!(mailbox.dropped(), 1);
    }

    #[test]
    fn one_notice_is_always_admitted() {
        let mailbox = Arc::new(Mailbox::default());
        let mut notices = Notices::new(mailbox.clone());
        mailbox.push(message(NOTICES_BYTES_MAX + 1, 1));
        assert_eq!(mailbox.dropped(), 0);
        assert!(matches!(poll(&mut notices), Poll::Ready(Some(batch)) if batch.len() == 1));
    }

    #[test]
    fn the_reader_is_woken_once_per_wait() {
        struct Count(AtomicUsize);
        impl Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(count.clone());
        let mailbox = Arc::new(Mailbox::default());
        let mut notices = Notices::new(mailbox.clone());

        assert!(mailbox.push(message(1, 1)).is_none(), "nobody waits yet");
        assert!(poll(&mut notices).is_ready());
        let mut cx = Context::from_waker(&waker);
        assert!(Pin::new(&mut notices).poll_next(&mut cx).is_pending());
        mailbox.push(message(1, 2)).unwrap().wake();
        assert!(mailbox.push(message(1, 3)).is_none());
        assert!(poll(&mut notices).is_ready());
        assert!(Pin::new(&mut notices).poll_next(&mut cx).is_pending());
        mailbox.close();
        assert_eq!(count.0.load(Ordering::Relaxed), 2);
        assert_eq!(poll(&mut notices), Poll::Ready(None));
    }

    #[test]
    fn nothing_is_kept_for_a_reader_that_left() {
        let mailbox = Arc::new(Mailbox::default());
        let notices = Notices::new(mailbox.clone());
        mailbox.push(message(9, 1));
        drop(notices);
        mailbox.push(message(9, 2));
        assert!(lock(&mailbox.queue).notices.is_empty());
        assert_eq!(mailbox.dropped(), 0);
    }

    #[test]
    fn a_second_stream_is_empty_and_harms_not_the_first() {
        let mailbox = Arc::new(Mailbox::default());
        let mut first = Notices::new(mailbox.clone());
        let mut second = Notices::new(mailbox.clone());
        assert_eq!(poll(&mut second), Poll::Ready(None));
        drop(second);
        mailbox.push(message(1, 1));
        assert!(poll(&mut first).is_ready());
    }
}
