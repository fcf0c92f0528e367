//! Byte streams of futures-io as mesh wants them.

use std::{
    io, mem,
    net::{Shutdown, TcpStream},
    pin::Pin,
    task::{Context, Poll, ready},
};

use async_io::Async;
use futures_io::{AsyncRead, AsyncWrite};
use mesh_core::driver::ByteStream;

/// Any stream of futures-io as a [`ByteStream`]: TCP of async-std or smol, TLS, a Unix socket, an in-memory pipe.
///
/// It adds no buffer, so an idle connection costs what the stream itself costs.
///
/// ```
/// use mesh_async_std::Io;
/// use mesh_core::driver::ByteStream;
///
/// let stream = futures_util::io::Cursor::new(vec![0; 64]);
/// let _stream: Box<dyn ByteStream> = Box::new(Io(stream));
/// ```
#[derive(Debug)]
pub struct Io<T>(pub T);

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> ByteStream for Io<T> {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buffer)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_close(cx)
    }
}

/// TCP, as listeners and connectors have it.
///
/// A read that does not fill the buffer has drained the socket: the next one waits without asking the kernel first. And closing it ends
/// the writing side, which async-io's own stream leaves open.
#[derive(Debug)]
pub(crate) struct Tcp {
    stream: Async<TcpStream>,
    is_drained: bool,
}

impl Tcp {
    pub(crate) fn new(stream: Async<TcpStream>) -> Self {
        // Small frames leave at once: without it the kernel holds them back for an acknowledgement. A stream that refuses is only slower.
        let _ = stream.get_ref().set_nodelay(true);
        Self {
            stream,
            is_drained: false,
        }
    }
}

impl AsyncRead for Tcp {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        // Asked once only: with several threads in the reactor `poll_readable` may not know what this task was woken for, which a read does.
        if mem::take(&mut self.is_drained) {
            ready!(self.stream.poll_readable(cx))?;
        }
        let read = ready!(Pin::new(&mut &self.stream).poll_read(cx, buffer))?;
        // Of the end, where nothing is read either, the next read tells again.
        self.is_drained = (1..buffer.len()).contains(&read);
        Poll::Ready(Ok(read))
    }
}

impl AsyncWrite for Tcp {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut &self.stream).poll_write(cx, buffer)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(())) // The kernel has it.
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.stream.get_ref().shutdown(Shutdown::Write) {
            // The peer has ended both.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            ended => Poll::Ready(ended),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, net::TcpListener};

    use async_io::block_on;
    use futures_util::{AsyncReadExt, AsyncWriteExt, future::join};

    use super::*;

    async fn tcp_pair() -> (Tcp, Async<TcpStream>) {
        let listener = Async::<TcpListener>::bind(([127, 0, 0, 1], 0)).unwrap();
        let address = listener.get_ref().local_addr().unwrap();
        let (near, far) = join(Async::<TcpStream>::connect(address), listener.accept()).await;
        (Tcp::new(near.unwrap()), far.unwrap().0)
    }

    async fn read(near: &mut Io<Tcp>, buffer: &mut [u8]) -> io::Result<usize> {
        poll_fn(|cx| near.poll_read(cx, buffer)).await
    }

    #[test]
    fn bytes_go_both_ways_and_the_end_is_a_read_of_none() {
        block_on(async {
            let (near, mut far) = tcp_pair().await;
            let mut near = Io(near);
            let mut buffer = [0; 16];

            far.write_all(b"hello").await.unwrap();
            let len = read(&mut near, &mut buffer).await.unwrap();
            assert_eq!(&buffer[..len], b"hello");

            let written = poll_fn(|cx| near.poll_write(cx, b"world")).await.unwrap();
            assert_eq!(written, 5);
            poll_fn(|cx| near.poll_flush(cx)).await.unwrap();
            poll_fn(|cx| near.poll_shutdown(cx)).await.unwrap();
            let mut answer = String::new();
            far.read_to_string(&mut answer).await.unwrap();
            assert_eq!(answer, "world");

            drop(far);
            for _ in 0..2 {
                assert_eq!(read(&mut near, &mut buffer).await.unwrap(), 0);
            }
        });
    }

    #[test]
    fn a_drained_socket_waits_and_a_full_buffer_is_read_on() {
        block_on(async {
            let (near, mut far) = tcp_pair().await;
            let mut near = Io(near);
            let mut buffer = [0; 4];
            for round in 0..100 {
                far.write_all(b"abcdef").await.unwrap();
                // The whole buffer, and so there may be more; then less, and so there is no more.
                assert_eq!(read(&mut near, &mut buffer).await.unwrap(), 4);
                assert!(!near.0.is_drained);
                assert_eq!(
                    read(&mut near, &mut buffer).await.unwrap(),
                    2,
                    "round {round}"
                );
                assert!(near.0.is_drained);
                for _ in 0..2 {
                    let read = poll_fn(|cx| Poll::Ready(near.poll_read(cx, &mut buffer))).await;
                    assert!(read.is_pending());
                }
            }
        });
    }

    #[test]
    fn a_peer_that_does_not_read_pushes_back() {
        block_on(async {
            let (near, mut far) = tcp_pair().await;
            let mut near = Io(near);
            let chunk = vec![7; 1 << 20];
            let mut sent = 0;
            while let Poll::Ready(written) =
                poll_fn(|cx| Poll::Ready(near.poll_write(cx, &chunk))).await
            {
                sent += written.unwrap();
            }
            let mut taken = vec![0; sent];
            far.read_exact(&mut taken).await.unwrap();
            let written = poll_fn(|cx| near.poll_write(cx, &chunk)).await.unwrap();
            assert!(written > 0);
        });
    }
}
