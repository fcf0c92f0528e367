//! The embedded backend: instances of one process share their state without a server of its own.

mod merge;
#[cfg(test)]
mod model;
pub(crate) mod records;
mod store;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt,
    future::ready,
    sync::{Arc, OnceLock, PoisonError},
    task::Waker,
};

use super::{Backend, BackendError, BoxFuture, BoxStream, InstanceId, Mailbox, Notice, Op, Reply};
use crate::sync::{Mutex, MutexGuard};
pub use store::Store;

/// The state that the server instances of one process share; a clone is the same cluster.
///
/// Each server gets a [`backend`](Self::backend) of its own. What they tell each other follows the same
/// rules as over Redis. The cluster ends with its last handle: nothing is kept on disk.
///
/// ```
/// use mesh_core::backend::{Backend, MemoryCluster, Op, Reply, Topic};
/// # use std::{future::Future, task::{Context, Poll, Waker}};
/// # fn now<T>(mut future: std::pin::Pin<Box<dyn Future<Output = T> + Send + '_>>) -> T {
/// #     let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) else { panic!() };
/// #     output
/// # }
///
/// let cluster = MemoryCluster::new();
/// let (one, two) = (cluster.backend(), cluster.backend());
/// // `now` polls once: the futures of this backend are ready.
/// now(one.execute(Op::OpenInstance { instance: "one".into() }))?;
/// now(two.execute(Op::OpenInstance { instance: "two".into() }))?;
///
/// let connection = "one.1f".into();
/// now(one.execute(Op::OpenConnection { connection, metadata: None }))?;
/// assert_eq!(now(two.execute(Op::Connections))?, Reply::Connections(vec!["one.1f".into()]));
///
/// drop(one); // As if its process had died.
/// assert_eq!(now(two.execute(Op::Connections))?, Reply::Connections(vec![]));
/// # Ok::<(), mesh_core::backend::BackendError>(())
/// ```
#[derive(Clone, Default)]
pub struct MemoryCluster {
    shared: Arc<Mutex<Shared>>,
}

/// What the one lock of a cluster guards.
#[derive(Default)]
struct Shared {
    store: Store,
    /// Where the notices of the open instances go.
    mailboxes: BTreeMap<InstanceId, Mailbox>,
}

impl MemoryCluster {
    /// An empty cluster, with the default limit for metadata.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty cluster, in which no change key by key makes a metadata document longer than this, in bytes.
    ///
    /// Servers check what they are given, but only the store sees what such a change makes of it. The default is
    /// that of [`Limits::metadata_bytes_max`](crate::protocol::Limits::metadata_bytes_max).
    pub fn with_metadata_bytes_max(bytes: usize) -> Self {
        let store = Store::with_metadata_bytes_max(bytes);
        Self {
            shared: Arc::new(Mutex::new(Shared {
                store,
                mailboxes: BTreeMap::new(),
            })),
        }
    }

    /// The backend of one more server instance.
    pub fn backend(&self) -> MemoryBackend {
        MemoryBackend {
            shared: self.shared.clone(),
            mailbox: Mailbox::default(),
            instance: OnceLock::new(),
        }
    }
}

impl fmt::Debug for MemoryCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryCluster").finish_non_exhaustive()
    }
}

/// One instance's part in a [`MemoryCluster`].
///
/// An operation is carried out when [`execute`](Backend::execute) is called, in the order of the calls; the future
/// it returns is ready. Dropping the backend without [`Op::CloseInstance`] is the death of the instance: all that it
/// held is gone at once.
///
/// Notices wait in a queue of at most [`NOTICES_BYTES_MAX`](super::NOTICES_BYTES_MAX). An instance that does not read them loses the oldest,
/// counted by [`notices_dropped`](Self::notices_dropped), and slows nobody down.
pub struct MemoryBackend {
    shared: Arc<Mutex<Shared>>,
    mailbox: Mailbox,
    /// Set by [`Op::OpenInstance`], once and for all.
    instance: OnceLock<InstanceId>,
}

impl MemoryBackend {
    /// How many notices this instance lost because it did not read them in time.
    pub fn notices_dropped(&self) -> u64 {
        self.mailbox.dropped()
    }

    fn apply(&self, op: Op) -> Result<Reply, BackendError> {
        let mut shared = lock(&self.shared);
        let Some(instance) = self.instance.get() else {
            return self.open(&mut shared, op);
        };
        // Another backend may have the same id by now.
        if !shared
            .mailboxes
            .get(instance)
            .is_some_and(|mailbox| mailbox.is(&self.mailbox))
        {
            return Err(usage("the instance is closed"));
        }
        let closes = matches!(op, Op::CloseInstance);
        let reply = shared.store.apply(instance, op);
        if closes {
            shared.mailboxes.remove(instance);
        }
        let wakers = shared.deliver();
        // Only then is anybody woken: a waker is foreign code, which may come back here.
        drop(shared);
        wakers.into_iter().for_each(Waker::wake);
        if closes {
            self.mailbox.close();
        }
        reply
    }

    fn open(&self, shared: &mut Shared, op: Op) -> Result<Reply, BackendError> {
        let Op::OpenInstance { instance } = op else {
            return Err(usage("the instance is not open yet"));
        };
        let reply = shared.store.apply(
            &instance,
            Op::OpenInstance {
                instance: instance.clone(),
            },
        )?;
        shared
            .mailboxes
            .insert(instance.clone(), self.mailbox.clone());
        // The cluster's lock is held, so nobody else sets it.
        self.instance.get_or_init(|| instance);
        Ok(reply)
    }
}

impl Shared {
    /// Moves what the store has to tell into the mailboxes. Who is to be woken is returned.
    fn deliver(&mut self) -> Vec<Waker> {
        let mut wakers = Vec::new();
        while let Some((instance, notice)) = self.store.poll_notice() {
            if let Some(mailbox) = self.mailboxes.get(&instance) {
                wakers.extend(mailbox.push(notice));
            }
        }
        wakers
    }
}

impl Backend for MemoryBackend {
    fn execute(&self, op: Op) -> BoxFuture<'_, Result<Reply, BackendError>> {
        Box::pin(ready(self.apply(op)))
    }

    fn notices(&self) -> BoxStream<'static, Vec<Notice>> {
        self.mailbox.notices()
    }

    fn name(&self) -> &'static str {
        "memory"
    }
}

impl Drop for MemoryBackend {
    fn drop(&mut self) {
        // An error means that the instance was not open, or no longer: nothing is left of it.
        let _ = self.apply(Op::CloseInstance);
        self.mailbox.close();
    }
}

impl fmt::Debug for MemoryBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBackend")
            .field("instance", &self.instance.get())
            .finish_non_exhaustive()
    }
}

fn usage(what: &str) -> BackendError {
    BackendError::Usage(what.to_owned())
}

/// The store is changed only after all checks, so what a panic elsewhere leaves behind is still whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
