//! Byte streams of tokio as mesh wants them.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use mesh_core::driver::ByteStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Any stream of tokio as a [`ByteStream`]: TCP, TLS, a Unix socket, an in-memory pipe.
///
/// It adds no buffer, so an idle connection costs what the stream itself costs. On TCP a read that does not fill the buffer tells
/// tokio that the socket is drained: the next one waits without asking the kernel first.
///
/// ```
/// use mesh_core::driver::ByteStream;
/// use mesh_tokio::Io;
///
/// let (near, _far) = tokio::io::duplex(64);
/// let _stream: Box<dyn ByteStream> = Box::new(Io(near));
/// ```
#[derive(Debug)]
pub struct Io<T>(pub T);

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> ByteStream for Io<T> {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        Pin::new(&mut self.0)
            .poll_read(cx, &mut buffer)
            .map_ok(|()| buffer.filled().len())
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
    use std::future::poll_fn;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    async fn tcp_pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    #[tokio::test]
    async fn bytes_go_both_ways_and_the_end_is_a_read_of_none() {
        let (near, mut far) = tcp_pair().await;
        let mut near: Box<dyn ByteStream> = Box::new(Io(near));
        let mut buffer = [0; 16];

        far.write_all(b"hello").await.unwrap();
        let read = poll_fn(|cx| near.poll_read(cx, &mut buffer)).await.unwrap();
        assert_eq!(&buffer[..read], b"hello");

        let written = poll_fn(|cx| near.poll_write(cx, b"world")).await.unwrap();
        assert_eq!(written, 5);
        poll_fn(|cx| near.poll_flush(cx)).await.unwrap();
        poll_fn(|cx| near.poll_shutdown(cx)).await.unwrap();
        let mut answer = String::new();
        far.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "world");

        drop(far);
        let read = poll_fn(|cx| near.poll_read(cx, &mut buffer)).await.unwrap();
        assert_eq!(read, 0);
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_pushes_back() {
        let (near, mut far) = tokio::io::duplex(4);
        let mut near = Io(near);
        let written = poll_fn(|cx| near.poll_write(cx, b"abcdef")).await.unwrap();
        assert_eq!(written, 4);
        let pending = poll_fn(|cx| Poll::Ready(near.poll_write(cx, b"ef").is_pending())).await;
        assert!(pending);
        let mut taken = [0; 4];
        far.read_exact(&mut taken).await.unwrap();
        assert_eq!(&taken, b"abcd");
        let written = poll_fn(|cx| near.poll_write(cx, b"ef")).await.unwrap();
        assert_eq!(written, 2);
    }
}
