//! TCP connections of a client.

use std::{io, net::SocketAddr, time::Duration};

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::net::{TcpStream, lookup_host};

/// The head start of each address over the next (RFC 8305, section 5).
const HEAD_START: Duration = Duration::from_millis(250);

/// Connects to the first address of `host` that answers.
///
/// Dropping the future drops every attempt.
///
/// # Errors
/// The name has no address, or the last of them to fail did so with this error.
pub(crate) async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = connect_any(lookup_host((host, port)).await?).await?;
    // Without it the kernel holds small frames back for an acknowledgement; a stream that refuses is only slower.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// The addresses are tried in their order, each as soon as the one before failed or used up its head start, so that one that swallows everything
/// (IPv6 without a route, often) does not take all the time there is.
async fn connect_any(addresses: impl Iterator<Item = SocketAddr>) -> io::Result<TcpStream> {
    let mut addresses = addresses.peekable();
    let mut attempts = FuturesUnordered::new();
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        attempts.extend(addresses.next().map(TcpStream::connect));
        tokio::select! {
            ended = attempts.next() => match ended {
                Some(Ok(stream)) => return Ok(stream),
                Some(Err(error)) => failure = error,
                None => return Err(failure),
            },
            () = tokio::time::sleep(HEAD_START), if addresses.peek().is_some() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{net::TcpListener, time::Instant};

    use super::*;

    async fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    #[tokio::test]
    async fn an_address_that_refuses_is_passed_over_at_once() {
        let (closed, refuses) = listener().await;
        drop(closed);
        let (_listener, answers) = listener().await;
        let start = Instant::now();
        let stream = connect_any([refuses, answers].into_iter()).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), answers);
        assert!(start.elapsed() < HEAD_START);

        let error = connect_any([refuses, refuses].into_iter())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn no_address_is_an_error() {
        let error = connect_any([].into_iter()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn an_address_that_swallows_everything_is_overtaken() {
        // A listener with a full backlog drops what comes: it neither accepts nor refuses.
        let silent = tokio::net::TcpSocket::new_v4().unwrap();
        silent.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let silent = silent.listen(0).unwrap();
        let swallows = silent.local_addr().unwrap();
        let mut waiting = Vec::new();
        while let Ok(stream) =
            tokio::time::timeout(Duration::from_millis(50), TcpStream::connect(swallows)).await
        {
            waiting.push(stream.unwrap());
            assert!(waiting.len() < 64, "the backlog has no end");
        }

        let (_listener, answers) = listener().await;
        let connecting = connect_any([swallows, answers].into_iter());
        let connected = tokio::time::timeout(HEAD_START * 20, connecting).await;
        let stream = connected.unwrap().unwrap();
        assert_eq!(stream.peer_addr().unwrap(), answers);
    }
}
