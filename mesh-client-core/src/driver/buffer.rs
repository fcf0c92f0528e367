//! What waits for a reader that is slower than the server.

use std::{
    collections::VecDeque,
    fmt,
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;

use super::shared::Lock;

/// Items that wait in one stream at most; over it the oldest are dropped, and the reader is told.
pub(crate) const ITEMS_MAX: usize = 1_024;

/// Bytes that wait in one stream at most; one item is always kept.
pub(crate) const BYTES_MAX: usize = 4 << 20;

/// A bounded queue with one reader.
pub(crate) struct Buffer<T, E = ()> {
    state: Lock<State<T, E>>,
    waker: AtomicWaker,
}

struct State<T, E> {
    items: VecDeque<(T, usize)>,
    bytes: usize,
    lost: u64,
    end: Option<E>,
}

/// What the reader gets.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Received<T> {
    Item(T),
    /// This many were dropped here.
    Lost(u64),
}

impl<T, E: Clone> Buffer<T, E> {
    pub(crate) fn new() -> Self {
        Self {
            state: Lock::new(State {
                items: VecDeque::new(),
                bytes: 0,
                lost: 0,
                end: None,
            }),
            waker: AtomicWaker::new(),
        }
    }

    /// Adds an item that takes `bytes`. Does nothing after the end.
    pub(crate) fn push(&self, item: T, bytes: usize) {
        let mut state = self.state.lock();
        if state.end.is_some() {
            return;
        }
        while state.items.len() >= ITEMS_MAX
            || (state.bytes + bytes > BYTES_MAX && !state.items.is_empty())
        {
            if let Some((_, bytes)) = state.items.pop_front() {
                state.bytes -= bytes;
                state.lost += 1;
            }
        }
        state.bytes += bytes;
        state.items.push_back((item, bytes));
        drop(state);
        self.waker.wake();
    }

    /// Adds an item that takes `bytes`. Where there is no room for it, it takes the place of everything that waits, and
    /// `supersede` tells it what that was, oldest first. Does nothing after the end.
    pub(crate) fn push_latest(&self, mut item: T, bytes: usize, supersede: impl Fn(&mut T, &T)) {
        let mut state = self.state.lock();
        if state.end.is_some() {
            return;
        }
        if state.items.len() >= ITEMS_MAX || state.bytes + bytes > BYTES_MAX {
            for (older, _) in &state.items {
                supersede(&mut item, older);
            }
            state.items.clear();
            state.bytes = 0;
        }
        state.bytes += bytes;
        state.items.push_back((item, bytes));
        drop(state);
        self.waker.wake();
    }

    /// Nothing more comes; what is there can still be read.
    pub(crate) fn end(&self, end: E) {
        self.state.lock().end.get_or_insert(end);
        self.waker.wake();
    }

    /// Nothing more comes, and nothing more can be read.
    pub(crate) fn clear(&self, end: E) {
        let mut state = self.state.lock();
        state.end.get_or_insert(end);
        state.items.clear();
        (state.bytes, state.lost) = (0, 0);
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&self) -> Option<E> {
        self.state.lock().end.clone()
    }

    pub(crate) fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Option<Received<T>>> {
        self.waker.register(cx.waker());
        let mut state = self.state.lock();
        if state.lost > 0 {
            return Poll::Ready(Some(Received::Lost(std::mem::take(&mut state.lost))));
        }
        match state.items.pop_front() {
            Some((item, bytes)) => {
                state.bytes -= bytes;
                Poll::Ready(Some(Received::Item(item)))
            }
            None if state.end.is_some() => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

impl<T, E> fmt::Debug for Buffer<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer")
            .field("items", &self.state.lock().items.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(buffer: &Buffer<usize>) -> Poll<Option<Received<usize>>> {
        buffer.poll_next(&mut Context::from_waker(std::task::Waker::noop()))
    }

    #[test]
    fn the_oldest_give_way_and_the_reader_is_told() {
        let buffer = Buffer::new();
        for n in 0..ITEMS_MAX + 3 {
            buffer.push(n, 1);
        }
        assert_eq!(read(&buffer), Poll::Ready(Some(Received::Lost(3))));
        assert_eq!(read(&buffer), Poll::Ready(Some(Received::Item(3))));
        buffer.push(7, BYTES_MAX + 1);
        assert_eq!(
            read(&buffer),
            Poll::Ready(Some(Received::Lost(ITEMS_MAX as u64 - 1)))
        );
        assert_eq!(read(&buffer), Poll::Ready(Some(Received::Item(7))));
        assert_eq!(read(&buffer), Poll::Pending);
    }

    #[test]
    fn the_latest_takes_the_place_of_all_that_wait() {
        let buffer = Buffer::new();
        let push = |item, bytes| buffer.push_latest(item, bytes, |new, old| *new += old);
        for _ in 0..ITEMS_MAX {
            push(1, 1);
        }
        push(10_000, 1);
        assert_eq!(read(&buffer), Poll::Ready(Some(Received::Item(11_024))));
        assert_eq!(read(&buffer), Poll::Pending);
        push(1, BYTES_MAX - 1);
        push(2, 1);
        push(3, 1);
        push(4, BYTES_MAX - 1); // there is room again
        assert_eq!(read(&buffer), Poll::Ready(Some(Received::Item(6))));
        assert_eq!(read(&buffer), Poll::Ready(Some(Received::Item(4))));
        push(5, BYTES_MAX + 1); // alone
        push(7, 0);
        buffer.end(());
        push(8, 0);
        assert_eq!(read(&buffer), Poll::Ready(Some(Received::Item(12))));
        assert_eq!(read(&buffer), Poll::Ready(None));
    }

    #[test]
    fn what_is_there_is_read_before_the_end() {
        let buffer = Buffer::new();
        buffer.push(1, 1);
        buffer.end(());
        buffer.push(2, 1);
        assert_eq!(read(&buffer), Poll::Ready(Some(Received::Item(1))));
        assert_eq!(read(&buffer), Poll::Ready(None));
        buffer.push(3, 1);
        assert_eq!(read(&buffer), Poll::Ready(None));
    }

    #[test]
    fn what_was_read_or_gave_way_takes_no_room() {
        let buffer = Buffer::new();
        for n in 0..3 {
            buffer.push(n, BYTES_MAX);
            assert_eq!(read(&buffer), Poll::Ready(Some(Received::Item(n))));
        }
        buffer.push(3, BYTES_MAX);
        buffer.push(4, BYTES_MAX - 1); // in the place of the one before
        buffer.push(5, 1); // beside it, exactly
        assert_eq!(read(&buffer), Poll::Ready(Some(Received::Lost(1))));
        assert_eq!(read(&buffer), Poll::Ready(Some(Received::Item(4))));
        assert_eq!(read(&buffer), Poll::Ready(Some(Received::Item(5))));
        buffer.push(6, BYTES_MAX);
        buffer.push(7, 1);
        assert_eq!(read(&buffer), Poll::Ready(Some(Received::Lost(1))));
        assert_eq!(read(&buffer), Poll::Ready(Some(Received::Item(7))));
        assert_eq!(read(&buffer), Poll::Pending);
    }
}

#[cfg(test)]
mod models {
    use std::{future::poll_fn, sync::Arc};

    use mesh_model::{Thread, block_on, check, join_all, thread};

    use super::*;

    fn pushers(buffer: &Arc<Buffer<usize>>) -> [Thread<()>; 2] {
        [0, 10].map(|first| {
            let buffer = Arc::clone(buffer);
            thread(move || {
                for item in first..first + 2 {
                    buffer.push(item, 1);
                }
            })
        })
    }

    async fn read(buffer: &Buffer<usize>, count: usize) -> Vec<usize> {
        let mut all = Vec::new();
        while all.len() < count
            && let Some(received) = poll_fn(|cx| buffer.poll_next(cx)).await
        {
            match received {
                Received::Item(item) => all.push(item),
                Received::Lost(count) => panic!("{count} are lost"),
            }
        }
        all
    }

    fn is_in_order(read: &[usize]) -> bool {
        [0, 10].iter().all(|first| {
            let of_one = read.iter().filter(|item| *item / 10 == first / 10);
            of_one.zip(*first..).all(|(read, pushed)| *read == pushed)
        })
    }

    #[test]
    fn everything_that_is_pushed_is_read() {
        check(400, || {
            let buffer = Arc::new(Buffer::new());
            let reads = Arc::clone(&buffer);
            let reads = thread(move || block_on(read(&reads, 4)));
            join_all(pushers(&buffer));
            let read = reads.join();
            assert!(read.len() == 4 && is_in_order(&read), "{read:?}");
        });
    }

    #[test]
    fn an_end_ends_the_reader_behind_what_was_pushed_before() {
        check(400, || {
            let buffer = Arc::new(Buffer::new());
            let reads = Arc::clone(&buffer);
            let reads = thread(move || block_on(read(&reads, usize::MAX)));
            let pushers = pushers(&buffer);
            buffer.push(20, 1);
            buffer.end(());
            buffer.push(21, 1);
            join_all(pushers);
            let read = reads.join();
            assert!(read.contains(&20) && !read.contains(&21), "{read:?}");
            assert!(is_in_order(&read), "{read:?}");
        });
    }
}
