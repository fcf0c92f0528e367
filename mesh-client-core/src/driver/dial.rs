//! Which of a host's addresses a client connects to.

use std::{future::Future, io, net::SocketAddr, time::Duration};

use futures_util::{
    future::{Either, select},
    stream::{FuturesUnordered, StreamExt},
};

use super::connector::ConnectRequest;

/// The head start of each address over the next (RFC 8305, section 5).
const HEAD_START: Duration = Duration::from_millis(250);

impl ConnectRequest {
    /// Connects to the first of `addresses` that answers. They are tried in their order, each as soon as the one before failed or used up
    /// its head start of 250 ms (RFC 8305), so that one that swallows everything (IPv6 without a route, often) does not take all the time
    /// there is.
    ///
    /// Dropping the future drops every attempt.
    ///
    /// # Errors
    /// There is no address, or the last of them to fail did so with this error.
    pub async fn dial<T, F>(
        &self,
        addresses: impl IntoIterator<Item = SocketAddr>,
        connect: impl Fn(SocketAddr) -> F,
    ) -> io::Result<T>
    where
        F: Future<Output = io::Result<T>>,
    {
        let mut addresses = addresses.into_iter().peekable();
        let mut attempts = FuturesUnordered::new();
        let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        loop {
            attempts.extend(addresses.next().map(&connect));
            let ended = if addresses.peek().is_some() {
                let head_start = self.runtime.now() + HEAD_START;
                match select(attempts.next(), self.runtime.sleep_until(head_start)).await {
                    Either::Left((ended, _)) => ended,
                    Either::Right(((), _)) => continue,
                }
            } else {
                attempts.next().await
            };
            match ended {
                Some(Ok(connected)) => return Ok(connected),
                Some(Err(error)) => failure = error,
                None => return Err(failure),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use http::HeaderMap;

    use super::*;
    use crate::driver::testing::Sim;

    /// What an address does to those who connect.
    #[derive(Clone, Copy)]
    enum Peer {
        Answers,
        Refuses,
        Swallows,
    }
    use Peer::{Answers, Refuses, Swallows};

    /// Dials hosts whose n-th address does what the n-th peer says; the number of the one that answered, and how long it took.
    fn dial(peers: &[Peer]) -> (io::Result<usize>, Duration) {
        let sim = Sim::new();
        let request = ConnectRequest {
            url: String::new(),
            headers: HeaderMap::new(),
            tls_roots: [].into(),
            message_bytes_max: 0,
            seed: [0; 32],
            runtime: sim.runtime(),
        };
        let start = sim.now();
        let address = |n: usize| SocketAddr::from(([192, 0, 2, 1], u16::try_from(n).unwrap()));
        let connect = |address: SocketAddr| {
            let n = usize::from(address.port());
            let peer = peers[n];
            async move {
                match peer {
                    Answers => Ok(n),
                    Refuses => Err(io::ErrorKind::ConnectionRefused.into()),
                    Swallows => pending().await,
                }
            }
        };
        let dialled = sim.block_on(request.dial((0..peers.len()).map(address), connect));
        (dialled, sim.now() - start)
    }

    #[test]
    fn an_address_that_refuses_is_passed_over_at_once() {
        let (dialled, took) = dial(&[Refuses, Refuses, Answers]);
        assert_eq!((dialled.unwrap(), took), (2, Duration::ZERO));
        let (dialled, _) = dial(&[Refuses, Refuses]);
        assert_eq!(
            dialled.unwrap_err().kind(),
            io::ErrorKind::ConnectionRefused
        );
    }

    #[test]
    fn no_address_is_an_error() {
        let (dialled, _) = dial(&[]);
        assert_eq!(dialled.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn an_address_that_swallows_everything_is_overtaken() {
        let (dialled, took) = dial(&[Swallows, Refuses, Swallows, Answers]);
        assert_eq!((dialled.unwrap(), took), (3, HEAD_START * 2));
        let (dialled, took) = dial(&[Answers, Swallows]);
        assert_eq!((dialled.unwrap(), took), (0, Duration::ZERO));
    }
}
