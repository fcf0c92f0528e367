//! The two things that are asked of a runtime: to run a task, and to wait.

use std::{future::Future, time::Duration};

/// Runs `task` to its end in the background.
pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    #[cfg(all(feature = "tokio", not(feature = "smol")))]
    tokio::spawn(task);
    #[cfg(all(feature = "smol", not(feature = "tokio")))]
    smol::spawn(task).detach();
    // The redis crate decides in the same way.
    #[cfg(all(feature = "tokio", feature = "smol"))]
    if tokio::runtime::Handle::try_current().is_ok() {
        tokio::spawn(task);
    } else {
        smol::spawn(task).detach();
    }
}

/// Waits.
pub(crate) async fn sleep(duration: Duration) {
    #[cfg(all(feature = "tokio", not(feature = "smol")))]
    tokio::time::sleep(duration).await;
    #[cfg(all(feature = "smol", not(feature = "tokio")))]
    smol::Timer::after(duration).await;
    #[cfg(all(feature = "tokio", feature = "smol"))]
    if tokio::runtime::Handle::try_current().is_ok() {
        tokio::time::sleep(duration).await;
    } else {
        smol::Timer::after(duration).await;
    }
}

/// Keeps operations in the order in which they are begun: tokio makes a task that did much wait in the middle of
/// sending a command, and others overtake it.
pub(crate) fn in_order<T>(operation: impl Future<Output = T>) -> impl Future<Output = T> {
    #[cfg(feature = "tokio")]
    return tokio::task::coop::unconstrained(operation);
    #[cfg(not(feature = "tokio"))]
    operation
}
