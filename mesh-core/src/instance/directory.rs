//! The connections of this instance: registered, with their metadata, reachable by id.

use std::{collections::VecDeque, sync::Arc};

use super::{
    actions::{Action, Actions, InstanceError, Origin, Outcome},
    members::{Members, Seeded, Table, take},
};
use crate::{
    backend::{BackendError, ConnectionId, Document, Json, MetadataChange, Op, Reply},
    websocket::TextFrame,
};

/// What is to be done with the backend for one connection, one after the other.
#[derive(Debug)]
enum Step<T> {
    Close {
        token: T,
    },
    /// Registered, or not because the store cannot be reached: then it opens all the same, and is registered on return.
    Open {
        token: T,
    },
    /// The store may not know it, or know it as it was before an outage.
    Restore,
    SetMetadata {
        change: MetadataChange,
        token: T,
    },
}

#[derive(Debug)]
struct Entry<C, T> {
    handle: C,
    document: Document,
    steps: VecDeque<Step<T>>,
    /// The front step is in flight.
    asking: bool,
    /// The store was lost and came back since it was asked: what it did may be lost with it.
    stale: bool,
    /// The restoration that has yet to state it; the steps wait for that.
    restoring: Option<u64>,
    closing: bool,
}

/// The connections of one shard.
#[derive(Debug)]
pub(super) struct Directory<C, T> {
    entries: Table<ConnectionId, Entry<C, T>>,
    /// Those that a broadcast reaches: registered and not closing.
    open: Members<C>,
}

impl<C: Clone, T> Directory<C, T> {
    pub(super) fn new(hasher: Seeded) -> Self {
        Self {
            entries: Table::with_hasher(hasher),
            open: Members::new(hasher),
        }
    }

    pub(super) fn open(
        &mut self,
        id: &ConnectionId,
        handle: C,
        metadata: Option<Json>,
        token: T,
        actions: &mut Actions<C, T>,
    ) {
        if self.entries.contains_key(id) {
            // Ids are random: two alive with one id is a fault of the driver.
            let error = BackendError::Usage(format!("the connection id {id} is in use"));
            actions.complete(token, Err(error.into()));
            return;
        }
        let entry = Entry {
            handle,
            document: Document {
                json: metadata.filter(not_null),
                revision: 1,
            },
            steps: VecDeque::new(),
            asking: false,
            stale: false,
            restoring: None,
            closing: false,
        };
        self.entries.insert(id.clone(), entry);
        self.then(id, Step::Open { token }, actions);
    }

    /// Out of every list at once; answered when the backend has forgotten it too, or cannot be told.
    pub(super) fn close(&mut self, id: &ConnectionId, token: T, actions: &mut Actions<C, T>) {
        self.open.remove(id);
        match self.entries.get_mut(id) {
            Some(entry) if !entry.closing => {
                entry.closing = true;
                // What has not reached the backend yet does not need to.
                for step in entry.steps.split_off(entry.asking.into()) {
                    fail(step, actions);
                }
                self.then(id, Step::Close { token }, actions);
            }
            _ => actions.complete(token, Err(InstanceError::Gone)),
        }
    }

    pub(super) fn set_metadata(
        &mut self,
        id: &ConnectionId,
        change: MetadataChange,
        token: T,
        actions: &mut Actions<C, T>,
    ) {
        match self.entries.get(id) {
            Some(entry) if !entry.closing => {
                self.then(id, Step::SetMetadata { change, token }, actions);
            }
            _ => actions.complete(token, Err(InstanceError::Gone)),
        }
    }

    /// What is to be stated again now that the store is back: every connection but those that close, and those that are about to
    /// be registered for the first time. Their steps wait until [`handle_stated`](Self::handle_stated).
    pub(super) fn handle_restored(
        &mut self,
        restoration: u64,
        actions: &mut Actions<C, T>,
    ) -> Vec<ConnectionId> {
        let (mut stated, mut waited) = (Vec::new(), Vec::new());
        for (id, entry) in &mut self.entries {
            entry.stale = entry.asking;
            let opening = matches!(entry.steps.front(), Some(Step::Open { .. }));
            if !entry.closing && !opening {
                entry.restoring = Some(restoration);
                stated.push(id.clone());
            } else if entry.restoring.take().is_some() {
                waited.push(id.clone());
            }
        }
        for id in waited {
            self.ask(&id, actions);
        }
        stated
    }

    /// A connection as it is to be stated now, if it still is.
    pub(super) fn stated(&self, id: &ConnectionId) -> Option<Document> {
        let entry = self.entries.get(id).filter(|entry| !entry.closing)?;
        Some(entry.document.clone())
    }

    /// The restoration has stated the connection, or need not.
    pub(super) fn handle_stated(
        &mut self,
        id: &ConnectionId,
        restoration: u64,
        actions: &mut Actions<C, T>,
    ) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        if entry.restoring == Some(restoration) {
            entry.restoring = None;
            self.ask(id, actions);
        }
    }

    /// The store has metadata of this revision, which may be newer.
    pub(super) fn handle_changed(&mut self, id: &ConnectionId, document: Document) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.adopt(document);
        }
    }

    /// The metadata of a local connection; `None` if it is not here.
    pub(super) fn metadata(&self, id: &ConnectionId) -> Option<Option<Json>> {
        self.entries
            .get(id)
            .filter(|entry| !entry.closing)
            .map(|entry| entry.document.json.clone())
    }

    pub(super) fn handle(&self, id: &ConnectionId) -> Option<&C> {
        self.entries
            .get(id)
            .filter(|entry| !entry.closing)
            .map(|entry| &entry.handle)
    }

    pub(super) fn open_members(&self) -> &Members<C> {
        &self.open
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn deliver_all(
        &self,
        except: &Arc<[ConnectionId]>,
        frame: &TextFrame,
        actions: &mut Actions<C, T>,
    ) {
        if !self.open.is_empty() {
            actions.push(Action::Deliver {
                to: self.open.clone(),
                except: Arc::clone(except),
                frame: frame.clone(),
            });
        }
    }

    pub(super) fn handle_backend(
        &mut self,
        id: &ConnectionId,
        result: Result<Reply, BackendError>,
        actions: &mut Actions<C, T>,
    ) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        let Some(step) = entry.steps.pop_front() else {
            return;
        };
        entry.asking = false;
        let stale = std::mem::take(&mut entry.stale);
        match step {
            Step::Close { token } => {
                let result = result.map(|_| Outcome::Closed).map_err(Into::into);
                take(&mut self.entries, id);
                actions.complete(token, result);
                return;
            }
            Step::Open { token } if entry.closing => {
                actions.complete(token, Err(InstanceError::Gone));
            }
            Step::Open { token } => {
                let result = match result {
                    Ok(_) | Err(BackendError::Unavailable(_)) => Ok(Outcome::Opened),
                    Err(error) => Err(error.into()),
                };
                if result.is_ok() {
                    entry.state_again_if(stale);
                    self.open.insert(id.clone(), entry.handle.clone());
                }
                actions.complete(token, result);
            }
            Step::Restore => {
                if let Ok(Reply::Restored { changed, .. }) = result {
                    for (_, document) in changed {
                        entry.adopt(document);
                    }
                }
                entry.state_again_if(stale);
            }
            Step::SetMetadata { token, .. } => {
                let result = match result {
                    Ok(Reply::Changed(Some(document))) => {
                        let json = document.json.clone();
                        entry.adopt(document);
                        entry.state_again_if(stale);
                        Ok(Outcome::Metadata(json.unwrap_or_else(|| "null".into())))
                    }
                    Ok(_) => Err(InstanceError::Gone),
                    Err(error) => Err(error.into()),
                };
                actions.complete(token, result);
            }
        }
        self.ask(id, actions);
    }

    /// Of each table.
    #[cfg(test)]
    pub(super) fn capacities(&self) -> Vec<usize> {
        vec![self.entries.capacity(), self.open.capacity()]
    }

    /// Holds the tables against each other; true if they are empty.
    #[cfg(any(test, feature = "__fuzzing"))]
    pub(super) fn check(&self) -> bool {
        for id in self.open.ids() {
            assert!(!self.entries[id].closing, "{id} closes and is open");
        }
        self.entries.is_empty() && self.open.is_empty()
    }

    fn then(&mut self, id: &ConnectionId, step: Step<T>, actions: &mut Actions<C, T>) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        entry.steps.push_back(step);
        self.ask(id, actions);
    }

    /// Starts the front step, unless something is in its way.
    fn ask(&mut self, id: &ConnectionId, actions: &mut Actions<C, T>) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        if entry.asking || entry.restoring.is_some() {
            return;
        }
        let connection = id.clone();
        let op = match entry.steps.front() {
            None => {
                entry.steps = VecDeque::new();
                return;
            }
            Some(Step::Close { .. }) => Op::CloseConnection { connection },
            Some(Step::Open { .. }) => Op::OpenConnection {
                connection,
                metadata: entry.document.json.clone(),
            },
            Some(Step::Restore) => Op::Restore {
                connections: vec![(connection, entry.document.clone())],
                members: Vec::new(),
            },
            Some(Step::SetMetadata { change, .. }) => Op::SetConnectionMetadata {
                connection,
                change: change.clone(),
            },
        };
        entry.asking = true;
        actions.ask(Origin::Connection(id.clone()), op);
    }
}

impl<C, T> Entry<C, T> {
    /// Answers may overtake each other: the newest revision counts.
    fn adopt(&mut self, document: Document) {
        if document.revision > self.document.revision {
            self.document = document;
        }
    }

    /// What the store was told before an outage it may have forgotten. In front of what came later: it has to know of the connection first.
    fn state_again_if(&mut self, stale: bool) {
        if stale && !self.closing {
            self.steps.push_front(Step::Restore);
        }
    }
}

/// `null` is no metadata.
fn not_null(metadata: &Json) -> bool {
    metadata.trim() != "null"
}

/// Answers a step that will not happen.
fn fail<C, T>(step: Step<T>, actions: &mut Actions<C, T>) {
    match step {
        Step::Restore => {}
        Step::Close { token } | Step::Open { token } | Step::SetMetadata { token, .. } => {
            actions.complete(token, Err(InstanceError::Gone));
        }
    }
}
