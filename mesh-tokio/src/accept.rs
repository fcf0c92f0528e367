//! The accept loop: what it does when accepting fails.

use std::{io, time::Duration};

/// The first pause after accepting failed; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Hands every connection that `accept` yields to `serve`, for ever.
///
/// A connection that failed before it was accepted is passed over. Anything else (no file descriptor or memory left) gets better when connections
/// end, so the loop waits and tries again.
pub(crate) async fn accept_all<C, A>(mut accept: impl FnMut() -> A, mut serve: impl FnMut(C))
where
    A: Future<Output = io::Result<C>>,
{
    let mut pause = PAUSE_MIN;
    loop {
        match accept().await {
            Ok(connection) => {
                pause = PAUSE_MIN;
                serve(connection);
            }
            Err(error) if is_of_the_peer(error.kind()) => {
                tracing::debug!(%error, "a connection was gone before it was accepted");
            }
            Err(error) => {
                tracing::warn!(%error, ?pause, "cannot accept connections; trying again after a pause");
                tokio::time::sleep(pause).await;
                pause = PAUSE_MAX.min(pause * 2);
            }
        }
    }
}

fn is_of_the_peer(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
            | io::ErrorKind::TimedOut
    )
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tokio::time::{Instant, timeout};

    use super::*;

    const EMFILE: i32 = 24;

    #[tokio::test(start_paused = true)]
    async fn accepting_goes_on_after_any_error_without_spinning() {
        let calls = RefCell::new(0_u32);
        let served = RefCell::new(Vec::new());
        let start = Instant::now();
        let accept = || async {
            let call = calls.replace_with(|calls| *calls + 1);
            match call {
                0..20 => Err(io::Error::from_raw_os_error(EMFILE)),
                20 => Err(io::ErrorKind::ConnectionAborted.into()),
                21 | 22 => Ok(call),
                _ => std::future::pending().await,
            }
        };
        let accepting = accept_all(accept, |call| {
            served.borrow_mut().push((call, start.elapsed()));
        });
        assert!(
            timeout(Duration::from_secs(3_600), accepting)
                .await
                .is_err()
        );

        let served = served.into_inner();
        assert_eq!(
            served.iter().map(|(call, _)| *call).collect::<Vec<_>>(),
            [21, 22]
        );
        // 10 + 20 + … + 640 ms, then a second each: it neither spins nor gives up.
        let waited = served[0].1.as_secs();
        assert!((13..=15).contains(&waited), "{waited}");
    }
}
