//! Records: what the application publishes, and what it lets clients read and write.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::de::DeserializeOwned;

use super::{
    Connection, Expose, IntoPayload, MeshServer, Pattern, ServerError,
    connection::Shared,
    inside,
    registry::{Kind, Registry},
    server::{Completion, Inner, Shard},
};
use crate::{
    backend::{BackendError, Json, Name, Op, Reply},
    instance::{InstanceError, Outcome, RecordWrite, Update},
    protocol::{CommandError, builtin::RecordMode},
    record::normalize,
};

/// The levels of JSON that an event has around a patch's value.
const LEVELS_AROUND: usize = 4;

/// A record as it is stored.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Record<T> {
    /// The value, or none: there never was one, or it is deleted.
    pub value: Option<T>,
    /// Its version, a deletion's where it is deleted; 0 where there never was one.
    pub version: u64,
}

/// Records are versioned JSON values that every instance shares (`protocol.md`, section 6). Versions begin at 1 and rise by 1 with each
/// accepted update, whatever number of instances publish at once; each subscriber sees all of them in order, or the latest where it is too slow.
///
/// Who publishes is not asked by guards: they are for clients.
impl MeshServer {
    /// Replaces a record's value, and tells its version. A value that equals the stored one, as parsed JSON, is no update: the version stays.
    ///
    /// The subscribers of this instance have been handed the version when this returns.
    ///
    /// ```
    /// use mesh_core::driver::{MeshServer, ServerError};
    ///
    /// async fn rename(server: &MeshServer, name: &str) -> Result<u64, ServerError> {
    ///     server.publish_record_update("user:123", &serde_json::json!({ "name": name })).await
    /// }
    /// ```
    ///
    /// # Errors
    /// [`ServerError::Name`], [`ServerError::Encode`], [`ServerError::Value`] or [`ServerError::ValueTooLong`]: nothing was published.
    /// [`ServerError::Backend`]: whether it was published is unknown, where the backend could not be reached for longer than a moment;
    /// otherwise a publish whose reply was lost is repeated, and is one version all the same.
    pub async fn publish_record_update<T: IntoPayload + ?Sized>(
        &self,
        record: &str,
        value: &T,
    ) -> Result<u64, ServerError> {
        let json = self.inner.record_value(value)?;
        self.write_record(record, RecordWrite::Replace(json)).await
    }

    /// Puts the keys of an object over those of the stored one, one level deep and atomically. Where either is no object, it is as
    /// [`publish_record_update`](Self::publish_record_update).
    ///
    /// # Errors
    /// As there; [`ServerError::ValueTooLong`] also for what the merge would make.
    pub async fn merge_record<T: IntoPayload + ?Sized>(
        &self,
        record: &str,
        value: &T,
    ) -> Result<u64, ServerError> {
        let json = self.inner.record_value(value)?;
        let deep = false;
        self.write_record(record, RecordWrite::Merge { json, deep })
            .await
    }

    /// As [`merge_record`](Self::merge_record), and so on inside of each key whose values are objects on both sides.
    ///
    /// # Errors
    /// As there.
    pub async fn deep_merge_record<T: IntoPayload + ?Sized>(
        &self,
        record: &str,
        value: &T,
    ) -> Result<u64, ServerError> {
        let json = self.inner.record_value(value)?;
        let deep = true;
        self.write_record(record, RecordWrite::Merge { json, deep })
            .await
    }

    /// Makes a record's next value of the stored one, atomically: no update comes between. Tells the version.
    ///
    /// `update` is given `None` where nothing is stored. It is called again where another instance was faster, and has to be quick: other
    /// records wait for it. It must not wait for this server.
    ///
    /// ```
    /// use mesh_core::driver::{MeshServer, ServerError};
    ///
    /// async fn count_visit(server: &MeshServer) -> Result<u64, ServerError> {
    ///     server.update_record("visits", |visits: Option<u64>| visits.unwrap_or(0) + 1).await
    /// }
    /// ```
    ///
    /// # Errors
    /// As [`publish_record_update`](Self::publish_record_update); [`ServerError::Shape`] if what is stored is not a `T`,
    /// [`ServerError::UpdatePanicked`].
    pub async fn update_record<T: DeserializeOwned, U: IntoPayload>(
        &self,
        record: &str,
        mut update: impl FnMut(Option<T>) -> U + Send + 'static,
    ) -> Result<u64, ServerError> {
        self.try_update_record(record, move |old| Ok(update(old)))
            .await
    }

    /// As [`update_record`](Self::update_record), with a function that may say no: then nothing is changed.
    ///
    /// ```
    /// use mesh_core::driver::{CommandError, MeshServer, ServerError};
    ///
    /// async fn take_seat(server: &MeshServer) -> Result<u64, ServerError> {
    ///     let taken = server.try_update_record("free-seats", |free: Option<u64>| match free {
    ///         Some(free @ 1..) => Ok(free - 1),
    ///         _ => Err(CommandError::new("Sold out").with_code("ESOLDOUT")),
    ///     });
    ///     taken.await
    /// }
    /// ```
    ///
    /// # Errors
    /// As there, and [`ServerError::Refused`] with what the function said.
    pub async fn try_update_record<T: DeserializeOwned, U: IntoPayload>(
        &self,
        record: &str,
        mut update: impl FnMut(Option<T>) -> Result<U, CommandError> + Send + 'static,
    ) -> Result<u64, ServerError> {
        let failure = Arc::new(Mutex::new(None));
        let limits = self.limits().clone();
        let fails = Arc::clone(&failure);
        let transform = move |old: Option<&str>| {
            let made = catch_unwind(AssertUnwindSafe(|| {
                let _inside = inside::enter();
                let old = old.map(typed).transpose()?;
                checked(&update(old).map_err(ServerError::Refused)?, &limits)
            }));
            let made = made.unwrap_or(Err(ServerError::UpdatePanicked));
            let mut failure = fails.lock().unwrap_or_else(PoisonError::into_inner);
            // The last call counts.
            *failure = made.as_ref().err().cloned();
            made.ok()
        };
        let write = RecordWrite::Update(Update::new(transform));
        match self.ask_record(record, write).await? {
            Outcome::Written { version, .. } => Ok(version),
            Outcome::Withdrawn => {
                let failure = failure
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .take();
                Err(failure.unwrap_or(ServerError::UpdatePanicked))
            }
            other => Err(unexpected(&other)),
        }
    }

    /// A record as it is stored.
    ///
    /// # Errors
    /// [`ServerError`]: the name is none, the value is not a `T`, or the backend failed.
    pub async fn get_record<T: DeserializeOwned>(
        &self,
        record: &str,
    ) -> Result<Record<T>, ServerError> {
        let record = self.inner.name("record", record)?;
        let Reply::Record(stored) = self.inner.ask(Op::Record { record }).await? else {
            return Ok(Record {
                value: None,
                version: 0,
            });
        };
        Ok(Record {
            value: stored.value.as_deref().map(typed).transpose()?,
            version: stored.version.number,
        })
    }

    /// Deletes a record. The deletion takes the next version, which is told; `None` where nothing was stored.
    ///
    /// What is published next has a version behind it, until [`purge_deleted`](Self::purge_deleted) forgets the record.
    ///
    /// # Errors
    /// [`ServerError`]: the name is none, or the backend failed.
    pub async fn delete_record(&self, record: &str) -> Result<Option<u64>, ServerError> {
        match self.ask_record(record, RecordWrite::Delete).await? {
            Outcome::Deleted(version) => Ok(version),
            other => Err(unexpected(&other)),
        }
    }

    /// Forgets the versions of records that were deleted longer ago than this, and tells how many: they begin at 1 again. Nobody should hold
    /// an old value of them any more.
    ///
    /// # Errors
    /// The backend failed.
    pub async fn purge_deleted(&self, older_than: Duration) -> Result<u64, ServerError> {
        let now = self.inner.runtime.now();
        match self.inner.ask(Op::PurgeDeleted { older_than, now }).await? {
            Reply::Count(count) => Ok(count),
            _ => Ok(0),
        }
    }

    /// Lets clients subscribe to records. Nothing is exposed by default.
    pub fn expose_record(&self, pattern: impl Into<Pattern>) -> Expose<'_> {
        self.expose(Kind::Record, Some(pattern.into()))
    }

    /// Lets clients change records. Who may change one may subscribe to it, too, unless [`expose_record`](Self::expose_record) covers it: that
    /// alone decides then.
    pub fn expose_writable_record(&self, pattern: impl Into<Pattern>) -> Expose<'_> {
        self.expose(Kind::WritableRecord, Some(pattern.into()))
    }

    pub(super) async fn write_record(
        &self,
        record: &str,
        write: RecordWrite,
    ) -> Result<u64, ServerError> {
        match self.ask_record(record, write).await? {
            Outcome::Written { version, .. } => Ok(version),
            other => Err(unexpected(&other)),
        }
    }

    async fn ask_record(&self, record: &str, write: RecordWrite) -> Result<Outcome, ServerError> {
        let record = self.inner.name("record", record)?;
        self.start().await?;
        let now = self.inner.runtime.now();
        self.inner
            .request(&record, |shard, done| {
                shard.write_record(&record, write, done, now);
            })
            .await
    }
}

impl Inner {
    /// A value as it may be stored.
    pub(super) fn record_value<T: IntoPayload + ?Sized>(
        &self,
        value: &T,
    ) -> Result<Json, ServerError> {
        checked(value, &self.config.limits)
    }

    /// May a client read this record?
    pub(super) async fn may_read(&self, connection: &Connection, record: &Name) -> bool {
        let registry = self.registrations.snapshot();
        // Where both match, reading is for the one that is about reading.
        let kind = if registry.covers(Kind::Record, record) {
            Kind::Record
        } else {
            Kind::WritableRecord
        };
        Registry::allows(registry, kind, connection.clone(), record.to_string()).await
    }

    /// Subscribes a connection to a record, unless its close has begun; as for [`join`](Self::join).
    pub(super) fn subscribe_record(
        &self,
        shard: &mut Shard,
        record: &Name,
        connection: Arc<Shared>,
        mode: RecordMode,
        done: Completion,
    ) {
        if connection.is_over() {
            self.refuse(done, InstanceError::Gone);
        } else {
            let (id, now) = (connection.id.clone(), self.runtime.now());
            shard.subscribe_record(record, id, connection, mode, done, now);
        }
    }
}

/// The machine answers each request with an outcome of its kind.
fn unexpected(outcome: &Outcome) -> ServerError {
    ServerError::Backend(BackendError::Usage(format!(
        "a change of a record came to {outcome:?}"
    )))
}

/// The JSON text of a value, if a record can have it.
fn checked<T: IntoPayload + ?Sized>(
    value: &T,
    limits: &crate::protocol::Limits,
) -> Result<Json, ServerError> {
    let json = value.json()?;
    let max = limits.record_bytes_max;
    // Before it is looked through: only duplicate keys make it shorter.
    if json.len() > max {
        let len = json.len();
        return Err(ServerError::ValueTooLong { len, max });
    }
    let nesting_max = limits.nesting_max.saturating_sub(LEVELS_AROUND);
    Ok(Json::from(&*normalize(&json, nesting_max)?))
}

fn typed<T: DeserializeOwned>(json: &str) -> Result<T, ServerError> {
    serde_json::from_str(json).map_err(|error| ServerError::Shape(error.to_string()))
}
