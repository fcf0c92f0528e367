//! Shared state as data: the operations that machines and drivers ask of a backend, and what comes back.
//!
//! A backend belongs to one server instance. Whatever it does for one operation is atomic in the store, and
//! its cost does not grow with the number of members, connections or instances, except for
//! enumerations, [`Op::ClearRoom`] and [`Op::CloseInstance`].

mod mailbox;
pub(crate) mod memory;
mod op;

use std::{future::Future, pin::Pin, sync::Arc};

use futures_core::Stream;

pub use mailbox::{Mailbox, NOTICES_BYTES_MAX};
pub use memory::{MemoryBackend, MemoryCluster, Store};
pub use op::{
    BackendError, ConnectionId, Document, InstanceId, Json, MetadataChange, Name, Notice, Op,
    REPEAT_TIME_MAX, Record, RecordChange, RecordChangeKind, RecordUpdate, Reply, Topic, Version,
};

/// A boxed future, as object-safe traits need it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A boxed stream, as object-safe traits need it.
pub type BoxStream<'a, T> = Pin<Box<dyn Stream<Item = T> + Send + 'a>>;

/// Where instances share what they know: the embedded memory backend, or Redis.
///
/// One value serves one server instance.
pub trait Backend: Send + Sync + 'static {
    /// Carries out one operation. The reply means that it is in force: after the reply to [`Op::Subscribe`], whatever any instance
    /// publishes to the topic is noticed.
    ///
    /// Operations about the same connection or the same room take effect in the order of the calls, as long as each future is polled
    /// once before the next call. The server does so under a lock of its own: neither the call nor a poll may block, or call back into it.
    ///
    /// # Errors
    /// [`BackendError`]; where the store could not be reached, the outcome is unknown.
    fn execute(&self, op: Op) -> BoxFuture<'_, Result<Reply, BackendError>>;

    /// What the store tells this instance, in batches, each of which is all that waits; within one topic first in, first out.
    ///
    /// Notices and replies are not ordered among each other: a notice may be read before the reply to the
    /// operation that caused it, or after the reply to an [`Op::Unsubscribe`] of its topic. Only where the notice of a
    /// publish is there before its reply, as in memory, do a publisher's channel messages keep their order among its other events.
    ///
    /// Called once, by the server that owns the backend; a second call gives a stream that ends at once.
    fn notices(&self) -> BoxStream<'static, Vec<Notice>>;

    /// The name for health answers and logs: `"memory"`, `"redis"`.
    fn name(&self) -> &'static str;

    /// Is a channel of this name the backend's own? Such a channel is never exposed, whatever the pattern, and publishing to it is a
    /// usage error (`protocol.md`, section 8). Default: none is.
    fn reserves(&self, channel: &str) -> bool {
        let _ = channel;
        false
    }

    /// In which part of the store is what has this name: a room, a connection or a record? The server keeps together what is in one
    /// partition, so that what it asks for in batches, such as [`Op::Restore`] and [`Op::RecordVersions`], is in few partitions each. A name
    /// is always in the same one; they are best of one size. Default: `None`, the store has no partitions, or none that matter.
    fn partition(&self, name: &str) -> Option<u64> {
        let _ = name;
        None
    }
}

/// So that whoever builds a server keeps a handle of its backend, for the numbers that it tells.
impl<B: Backend + ?Sized> Backend for Arc<B> {
    fn execute(&self, op: Op) -> BoxFuture<'_, Result<Reply, BackendError>> {
        (**self).execute(op)
    }

    fn notices(&self) -> BoxStream<'static, Vec<Notice>> {
        (**self).notices()
    }

    fn name(&self) -> &'static str {
        (**self).name()
    }

    fn reserves(&self, channel: &str) -> bool {
        (**self).reserves(channel)
    }

    fn partition(&self, name: &str) -> Option<u64> {
        (**self).partition(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Picky;

    impl Backend for Picky {
        fn execute(&self, _: Op) -> BoxFuture<'_, Result<Reply, BackendError>> {
            Box::pin(std::future::ready(Ok(Reply::Done)))
        }

        fn notices(&self) -> BoxStream<'static, Vec<Notice>> {
            MemoryCluster::new().backend().notices()
        }

        fn name(&self) -> &'static str {
            "picky"
        }

        fn reserves(&self, channel: &str) -> bool {
            channel == "its own"
        }

        fn partition(&self, name: &str) -> Option<u64> {
            Some(name.len() as u64)
        }
    }

    #[test]
    fn a_shared_backend_says_of_names_what_the_backend_says() {
        let shared: Arc<dyn Backend> = Arc::new(Picky);
        assert_eq!(shared.name(), "picky");
        assert_eq!(
            ["its own", "another"].map(|channel| Arc::clone(&shared).reserves(channel)),
            [true, false]
        );
        // Through the handle, and not by going around it.
        assert_eq!(
            ["its own", "another"].map(|channel| Backend::reserves(&shared, channel)),
            [true, false]
        );
        assert_eq!(Arc::clone(&shared).partition("four"), Some(4));
        assert_eq!(Backend::partition(&shared, "four"), Some(4));
        let memory = MemoryCluster::new().backend();
        assert!(!memory.reserves("its own"), "by default none is");
        assert_eq!(memory.partition("four"), None, "by default there are none");
    }
}
