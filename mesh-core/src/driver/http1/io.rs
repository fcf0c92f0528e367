//! Byte streams as hyper wants them, and hyper's as mesh does.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};

use crate::driver::ByteStream;

/// The most that one read of a [`ToHyper`] takes, in bytes: a head is rarely longer.
const READ_BYTES_MAX: usize = 4 << 10;

/// A [`ByteStream`] as hyper reads and writes it.
///
/// It adds no buffer. What is read goes through the stack, since hyper lends memory that is not initialized; a handshake is short.
#[derive(Debug)]
pub struct ToHyper<S>(pub S);

impl<S: ByteStream + Unpin> Read for ToHyper<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut scratch = [0; READ_BYTES_MAX];
        let len = scratch.len().min(buffer.remaining());
        let read = ready!(self.0.poll_read(cx, &mut scratch[..len]))?;
        buffer.put_slice(&scratch[..read]);
        Poll::Ready(Ok(()))
    }
}

impl<S: ByteStream + Unpin> Write for ToHyper<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_write(cx, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_shutdown(cx)
    }
}

/// A stream of hyper's, such as [`Upgraded`](hyper::upgrade::Upgraded), as a [`ByteStream`].
#[derive(Debug)]
pub struct FromHyper<T>(pub T);

impl<T: Read + Write + Send + Unpin + 'static> ByteStream for FromHyper<T> {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        ready!(Pin::new(&mut self.0).poll_read(cx, buffer.unfilled()))?;
        Poll::Ready(Ok(buffer.filled().len()))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buffer)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        sync::{Arc, Mutex},
    };

    use super::*;
    use crate::driver::testkit::{Sim, pipe};

    /// There and back: what hyper has of ours, as ours again.
    #[test]
    fn a_stream_passes_through_both_and_pushes_back() {
        let sim = Sim::new();
        let (mut near, far) = pipe(3 * READ_BYTES_MAX);
        let sent: Vec<u8> = (0..=255).cycle().take(10 * READ_BYTES_MAX).collect();
        let writing = sim.start({
            let sent = sent.clone();
            async move {
                near.write_all(&sent).await.unwrap();
                near.read_until(None).await
            }
        });
        sim.run();
        let mut far = FromHyper(ToHyper(far));
        let received = sim.wait(async move {
            let (mut received, mut buffer) = (Vec::new(), vec![0; 3 * READ_BYTES_MAX]);
            while received.len() < 10 * READ_BYTES_MAX {
                let read = poll_fn(|cx| far.poll_read(cx, &mut buffer)).await.unwrap();
                assert!((1..=READ_BYTES_MAX).contains(&read));
                received.extend_from_slice(&buffer[..read]);
            }
            assert_eq!(poll_fn(|cx| far.poll_write(cx, b"end")).await.unwrap(), 3);
            poll_fn(|cx| far.poll_flush(cx)).await.unwrap();
            poll_fn(|cx| far.poll_shutdown(cx)).await.unwrap();
            received
        });
        assert!(received == sent);
        assert_eq!(writing.take().unwrap(), "end");
    }

    /// Notes what it is asked for.
    struct Notes(Arc<Mutex<Vec<&'static str>>>);

    impl Notes {
        fn note(&self, what: &'static str) -> Poll<io::Result<()>> {
            self.0.lock().unwrap().push(what);
            Poll::Ready(Ok(()))
        }
    }

    impl ByteStream for Notes {
        fn poll_read(&mut self, _: &mut Context<'_>, _: &mut [u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(0))
        }

        fn poll_write(&mut self, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.note("flush")
        }

        fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.note("shutdown")
        }
    }

    #[test]
    fn a_flush_and_a_shutdown_reach_the_stream() {
        let asked = Arc::default();
        let mut both = FromHyper(ToHyper(Notes(Arc::clone(&asked))));
        let cx = &mut Context::from_waker(std::task::Waker::noop());
        assert!(both.poll_flush(cx).is_ready());
        assert!(both.poll_shutdown(cx).is_ready());
        assert_eq!(*asked.lock().unwrap(), ["flush", "shutdown"]);
    }
}
