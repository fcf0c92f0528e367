//! The notices that wait for one server.

use std::{
    collections::VecDeque,
    fmt, mem,
    pin::Pin,
    sync::{Arc, PoisonError},
    task::{Context, Poll, Waker},
};

use futures_core::Stream;

use super::{BoxStream, Notice, RecordChange, RecordChangeKind, Topic};
use crate::sync::{Mutex, MutexGuard};

/// The most that waits for a server that does not read its notices, in bytes: 32 MiB, as Redis allows a
/// subscriber (`client-output-buffer-limit pubsub`).
///
/// Beyond it the oldest versions of records and messages are dropped, and nothing else: what became of the shared state a server must hear, while it
/// notices by itself that a version is missing. One notice is always admitted to an empty queue. Every notice counts with its message, its names and its own size, though instances share the messages.
pub const NOTICES_BYTES_MAX: usize = 32 << 20;

/// The queue behind [`Backend::notices`](super::Backend::notices), for whoever writes a backend; a clone is the same queue.
///
/// ```
/// # use std::{pin::pin, task::{Context, Poll, Waker}};
/// use futures_core::Stream;
/// use mesh_core::backend::{Mailbox, Notice};
///
/// let mailbox = Mailbox::default();
/// let mut notices = mailbox.notices();
/// if let Some(reader) = mailbox.push(Notice::Lost) {
///     reader.wake();
/// }
/// # let mut cx = Context::from_waker(Waker::noop());
/// let batch = notices.as_mut().poll_next(&mut cx);
/// assert_eq!(batch, Poll::Ready(Some(vec![Notice::Lost])));
/// ```
#[derive(Clone, Default)]
pub struct Mailbox {
    queue: Arc<Mutex<Queue>>,
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
    /// Puts a notice in. The reader, if it sleeps, is to be woken once no lock is held: a waker is foreign code.
    #[must_use = "the reader sleeps until it is woken"]
    pub fn push(&self, notice: Notice) -> Option<Waker> {
        let mut queue = self.lock();
        if queue.closed {
            return None;
        }
        queue.bytes += size(&notice);
        queue.notices.push_back(notice);
        while queue.bytes > NOTICES_BYTES_MAX && queue.notices.len() > 1 {
            let may_be_missed = |notice: &Notice| {
                matches!(
                    notice,
                    Notice::Message { .. } | Notice::RecordChanged { .. }
                )
            };
            let oldest = queue.notices.iter().position(may_be_missed);
            let Some(oldest) = oldest.and_then(|oldest| queue.notices.remove(oldest)) else {
                break;
            };
            queue.bytes -= size(&oldest);
            queue.dropped += 1;
        }
        queue.waker.take()
    }

    /// Everything that waits, batch by batch. A second stream of the same queue ends at once.
    pub fn notices(&self) -> BoxStream<'static, Vec<Notice>> {
        let taken = mem::replace(&mut self.lock().taken, true);
        let mailbox = (!taken).then(|| self.clone());
        Box::pin(Notices { mailbox })
    }

    /// Lets go of what waits and ends the stream.
    pub fn close(&self) {
        let (notices, waker) = {
            let mut queue = self.lock();
            queue.closed = true;
            queue.bytes = 0;
            (mem::take(&mut queue.notices), queue.waker.take())
        };
        drop(notices);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// How many messages and versions were dropped because the server did not read them in time.
    pub fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    /// Are the two the same queue?
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.queue, &other.queue)
    }

    /// The queue is changed in whole steps, so what a panic elsewhere leaves behind is whole.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").finish_non_exhaustive()
    }
}

/// The reader.
struct Notices {
    /// `None` for a second stream of the same queue, which is empty.
    mailbox: Option<Mailbox>,
}

impl Stream for Notices {
    type Item = Vec<Notice>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Vec<Notice>>> {
        let Some(mailbox) = &self.mailbox else {
            return Poll::Ready(None);
        };
        let mut queue = mailbox.lock();
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
    let more = match notice {
        Notice::Lost | Notice::Restored { .. } | Notice::RoomsLeft(_) => 0,
        Notice::MemberRemoved { room, connection } => room.len() + connection.as_str().len(),
        Notice::Message { topic, message } => {
            let name = match topic {
                Topic::All => 0,
                Topic::Channel(name) | Topic::Record(name) | Topic::Room(name) => name.len(),
                Topic::Instance(instance) => instance.as_str().len(),
            };
            name + message.len()
        }
        Notice::MetadataChanged {
            connection,
            document,
        } => connection.as_str().len() + document.json.as_ref().map_or(0, |json| json.len()),
        Notice::RecordChanged {
            record, changes, ..
        } => record.len() + changes.iter().map(change_size).sum::<usize>(),
        Notice::RoomCleared { room, .. } => room.len(),
    };
    size_of::<Notice>() + more
}

/// What a change of a record counts for.
fn change_size(change: &RecordChange) -> usize {
    let text = match &change.kind {
        RecordChangeKind::Deleted => 0,
        RecordChangeKind::Full(text) | RecordChangeKind::Patch(text) => text.len(),
    };
    size_of::<RecordChange>() + text
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{
        backend::{Document, Version},
        testing::Wakes,
    };

    type Reader = BoxStream<'static, Vec<Notice>>;

    fn message(len: usize, first: u8) -> Notice {
        let mut message = vec![0; len];
        message[0] = first;
        Notice::Message {
            topic: Topic::All,
            message: Bytes::from(message),
        }
    }

    fn poll(notices: &mut Reader) -> Poll<Option<Vec<Notice>>> {
        let mut cx = Context::from_waker(Waker::noop());
        notices.as_mut().poll_next(&mut cx)
    }

    fn push(mailbox: &Mailbox, notice: Notice) {
        drop(mailbox.push(notice));
    }

    #[test]
    fn the_oldest_goes_at_the_bound_and_is_counted() {
        let mailbox = Mailbox::default();
        let mut notices = mailbox.notices();
        let half = NOTICES_BYTES_MAX / 2 - size_of::<Notice>();
        for first in 1..=2 {
            push(&mailbox, message(half, first));
        }
        assert_eq!(mailbox.dropped(), 0, "exactly at the bound");
        push(&mailbox, message(1, 3));
        assert_eq!(mailbox.dropped(), 1);
        assert_eq!(
            poll(&mut notices),
            Poll::Ready(Some(vec![message(half, 2), message(1, 3)]))
        );

        // What was read counts no more.
        push(&mailbox, message(half, 4));
        push(&mailbox, message(half, 5));
        assert_eq!(mailbox.dropped(), 1);
    }

    #[test]
    fn nothing_but_messages_is_dropped() {
        let mailbox = Mailbox::default();
        let mut notices = mailbox.notices();
        let cleared = Notice::RoomCleared {
            room: "r".into(),
            generation: 1,
        };
        push(&mailbox, Notice::Lost);
        push(&mailbox, cleared.clone());
        let half = NOTICES_BYTES_MAX / 2;
        for (len, first) in [(half, 1), (half, 2), (7, 3)] {
            push(&mailbox, message(len, first));
        }
        assert_eq!(mailbox.dropped(), 1);
        let left = vec![Notice::Lost, cleared, message(half, 2), message(7, 3)];
        assert_eq!(poll(&mut notices), Poll::Ready(Some(left)));
    }

    #[test]
    fn one_notice_is_always_admitted() {
        let mailbox = Mailbox::default();
        let mut notices = mailbox.notices();
        push(&mailbox, message(NOTICES_BYTES_MAX + 1, 1));
        assert_eq!(mailbox.dropped(), 0);
        assert!(matches!(poll(&mut notices), Poll::Ready(Some(batch)) if batch.len() == 1));
    }

    #[test]
    fn the_reader_is_woken_once_per_wait() {
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(wakes.clone());
        let mailbox = Mailbox::default();
        let mut notices = mailbox.notices();

        assert!(mailbox.push(message(1, 1)).is_none(), "nobody waits yet");
        assert!(poll(&mut notices).is_ready());
        let mut cx = Context::from_waker(&waker);
        assert!(notices.as_mut().poll_next(&mut cx).is_pending());
        mailbox.push(message(1, 2)).unwrap().wake();
        assert!(mailbox.push(message(1, 3)).is_none());
        assert!(poll(&mut notices).is_ready());
        assert!(notices.as_mut().poll_next(&mut cx).is_pending());
        mailbox.close();
        assert_eq!(wakes.count(), 2);
        assert_eq!(poll(&mut notices), Poll::Ready(None));
    }

    #[test]
    fn nothing_is_kept_for_a_reader_that_left() {
        let mailbox = Mailbox::default();
        let notices = mailbox.notices();
        push(&mailbox, message(9, 1));
        drop(notices);
        push(&mailbox, message(9, 2));
        assert!(mailbox.lock().notices.is_empty());
        assert_eq!(mailbox.dropped(), 0);
    }

    #[test]
    fn a_second_stream_is_empty_and_harms_not_the_first() {
        let mailbox = Mailbox::default();
        let mut first = mailbox.notices();
        let mut second = mailbox.notices();
        assert_eq!(poll(&mut second), Poll::Ready(None));
        drop(second);
        push(&mailbox, message(1, 1));
        assert!(poll(&mut first).is_ready());
    }

    #[test]
    fn a_notice_counts_with_every_text_it_holds() {
        let change = |kind| RecordChange { stamp: 0, kind };
        let document = |json: Option<&str>| Document {
            json: json.map(Into::into),
            revision: 0,
        };
        let metadata = |json| Notice::MetadataChanged {
            connection: "12345".into(),
            document: document(json),
        };
        let message = |topic| Notice::Message {
            topic,
            message: Bytes::from_static(b"1234567"),
        };
        let changes = vec![
            change(RecordChangeKind::Deleted),
            change(RecordChangeKind::Full("12345".into())),
            change(RecordChangeKind::Patch("1234567".into())),
        ];
        let member = Notice::MemberRemoved {
            room: "123".into(),
            connection: "12345".into(),
        };
        let record = Notice::RecordChanged {
            record: "123".into(),
            base: Version::default(),
            changes,
        };
        let cleared = Notice::RoomCleared {
            room: "123".into(),
            generation: 0,
        };
        let three = 3 * size_of::<RecordChange>();
        for (notice, more) in [
            (Notice::Lost, 0),
            (member, 3 + 5),
            (message(Topic::All), 7),
            (message(Topic::Channel("123".into())), 3 + 7),
            (message(Topic::Instance("12345".into())), 5 + 7),
            (metadata(None), 5),
            (metadata(Some("123")), 5 + 3),
            (record, 3 + three + 5 + 7),
            (cleared, 3),
        ] {
            assert_eq!(size(&notice), size_of::<Notice>() + more, "{notice:?}");
        }
    }
}

#[cfg(test)]
mod models {
    use std::future::poll_fn;

    use mesh_model::{Thread, block_on, check, join_all, thread};

    use super::*;

    fn notice(generation: u64) -> Notice {
        Notice::RoomCleared {
            room: "r".into(),
            generation,
        }
    }

    /// Two threads that push two notices each.
    fn pushers(mailbox: &Mailbox) -> [Thread<()>; 2] {
        [0, 10].map(|first| {
            let mailbox = mailbox.clone();
            thread(move || {
                for generation in first..first + 2 {
                    if let Some(reader) = mailbox.push(notice(generation)) {
                        reader.wake();
                    }
                }
            })
        })
    }

    /// Reads this many notices, or up to the end.
    async fn read(notices: &mut BoxStream<'static, Vec<Notice>>, count: usize) -> Vec<Notice> {
        let mut all = Vec::new();
        while all.len() < count
            && let Some(batch) = poll_fn(|cx| notices.as_mut().poll_next(cx)).await
        {
            all.extend(batch);
        }
        all
    }

    fn is_in_order(read: &[Notice]) -> bool {
        [0, 10].iter().all(|first| {
            let of_one = [notice(*first), notice(first + 1)];
            let read = read.iter().filter(|notice| of_one.contains(notice));
            read.zip(&of_one).all(|(read, pushed)| read == pushed)
        })
    }

    #[test]
    fn everything_that_is_pushed_is_read() {
        check(400, || {
            let mailbox = Mailbox::default();
            let mut notices = mailbox.notices();
            let reader = thread(move || block_on(read(&mut notices, 4)));
            join_all(pushers(&mailbox));
            let read = reader.join();
            assert!(read.len() == 4 && is_in_order(&read), "{read:?}");
        });
    }

    #[test]
    fn a_close_ends_the_reader_and_keeps_nothing() {
        check(400, || {
            let mailbox = Mailbox::default();
            let mut notices = mailbox.notices();
            let reader = thread(move || {
                let read = block_on(read(&mut notices, usize::MAX));
                (read, notices)
            });
            let pushers = pushers(&mailbox);
            mailbox.close();
            join_all(pushers);
            let (read, _notices) = reader.join();
            assert!(is_in_order(&read), "{read:?}");
            let queue = mailbox.lock();
            assert!(queue.notices.is_empty() && queue.waker.is_none());
        });
    }

    #[test]
    fn a_reader_that_goes_leaves_nothing_to_be_kept() {
        check(400, || {
            let mailbox = Mailbox::default();
            let mut notices = mailbox.notices();
            let pushers = pushers(&mailbox);
            let reader = thread(move || block_on(read(&mut notices, 1)));
            join_all(pushers);
            assert!(!reader.join().is_empty());
            assert!(mailbox.lock().notices.is_empty());
        });
    }
}
