//! What the tests of the Rust client share.
#![allow(dead_code, reason = "no file needs all of it")]

use std::future::IntoFuture;
use std::time::Duration;

use mesh_tests::PATIENCE;
use mesh_tests::prelude::*;
use mesh_tests::runtime::{self, sleep, timeout};

/// Long enough to notice that something did come that must not.
pub(crate) const A_WHILE: Duration = Duration::from_millis(300);

/// The wait between attempts of a client that wastes no time.
pub(crate) const SOON: Duration = Duration::from_millis(10);

/// Waits for what must happen.
pub(crate) async fn patiently<F: IntoFuture>(what: &str, future: F) -> F::Output {
    timeout(PATIENCE, future.into_future())
        .await
        .unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}

/// Polls until `holds` says true.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    patiently(what, async {
        while !holds() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// A client that is connected.
pub(crate) async fn connect(builder: ClientBuilder) -> MeshClient {
    patiently("a connection", runtime::connect(builder))
        .await
        .unwrap()
}

/// The first of the statuses to come that `wanted` finds something in.
pub(crate) async fn status<T>(
    statuses: &mut Notices<Status>,
    mut wanted: impl FnMut(Status) -> Option<T>,
) -> T {
    patiently("a status", async {
        loop {
            let status = statuses.next().await.expect("the client lives");
            if let Some(found) = wanted(status) {
                return found;
            }
        }
    })
    .await
}

/// Waits for the end of a connection, and returns the code of the server's close frame.
pub(crate) async fn disconnected(statuses: &mut Notices<Status>) -> Option<u16> {
    status(statuses, |status| match status {
        Status::Disconnected { loss } => Some(loss.code().map(CloseCode::as_u16)),
        _ => None,
    })
    .await
}

/// Waits until the client is connected again.
pub(crate) async fn reconnected(statuses: &mut Notices<Status>) {
    status(statuses, |status| {
        (status == Status::Reconnected).then_some(())
    })
    .await;
}
