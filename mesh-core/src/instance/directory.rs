//! The connections of this instance: registered, with their metadata, reachable by id.

use std::{collections::VecDeque, sync::Arc};

use super::{
    actions::{Action, Actions, InstanceError, Origin, Outcome},
    members::{Members, Seeded, Table, take},
};
use crate::{
    backend::{BackendError, ConnectionId, Json, MetadataChange, Op, Reply},
    websocket::TextFrame,
};

/// What is to be done with the backend for one connection, one after the other.
#[derive(Debug)]
enum Step<T> {
    Close {
        token: T,
    },
    Open {
        token: T,
    },
    /// Another instance changed the metadata.
    Refresh,
    SetMetadata {
        change: MetadataChange,
        token: T,
    },
}

#[derive(Debug)]
struct Entry<C, T> {
    handle: C,
    metadata: Option<Json>,
    /// The front one is in flight.
    steps: VecDeque<Step<T>>,
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
            metadata: metadata.filter(not_null),
            steps: VecDeque::new(),
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
                for step in entry.steps.split_off(entry.steps.len().min(1)) {
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

    pub(super) fn handle_metadata_changed(
        &mut self,
        id: &ConnectionId,
        actions: &mut Actions<C, T>,
    ) {
        let Some(entry) = self.entries.get(id).filter(|entry| !entry.closing) else {
            return;
        };
        // One that has not begun yet sees this change too.
        if !matches!(entry.steps.iter().skip(1).next_back(), Some(Step::Refresh)) {
            self.then(id, Step::Refresh, actions);
        }
    }

    /// The metadata of a local connection; `None` if it is not here.
    pub(super) fn metadata(&self, id: &ConnectionId) -> Option<Option<Json>> {
        self.entries
            .get(id)
            .filter(|entry| !entry.closing)
            .map(|entry| entry.metadata.clone())
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
        match step {
            Step::Close { token } => {
                let result = result.map(|_| Outcome::Closed).map_err(Into::into);
                take(&mut self.entries, id);
                actions.complete(token, result);
                return;
            }
            Step::Open { token } => {
                let result = if entry.closing {
                    Err(InstanceError::Gone)
                } else {
                    result.map(|_| Outcome::Opened).map_err(Into::into)
                };
                if result.is_ok() {
                    self.open.insert(id.clone(), entry.handle.clone());
                }
                actions.complete(token, result);
            }
            Step::Refresh => {
                if let Ok(Reply::Metadata(metadata)) = result {
                    entry.metadata = metadata.filter(not_null);
                }
            }
            Step::SetMetadata { token, .. } => {
                let result = match result {
                    Ok(Reply::Changed(Some(metadata))) => {
                        entry.metadata = Some(metadata.clone()).filter(not_null);
                        Ok(Outcome::Metadata(metadata))
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
    #[cfg(test)]
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
        if entry.steps.len() == 1 {
            self.ask(id, actions);
        }
    }

    /// Starts the front step.
    fn ask(&mut self, id: &ConnectionId, actions: &mut Actions<C, T>) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        let connection = id.clone();
        let op = match entry.steps.front() {
            None => {
                entry.steps = VecDeque::new();
                return;
            }
            Some(Step::Close { .. }) => Op::CloseConnection { connection },
            Some(Step::Open { .. }) => Op::OpenConnection {
                connection,
                metadata: entry.metadata.clone(),
            },
            Some(Step::Refresh) => Op::ConnectionMetadata { connection },
            Some(Step::SetMetadata { change, .. }) => Op::SetConnectionMetadata {
                connection,
                change: change.clone(),
            },
        };
        actions.ask(Origin::Connection(id.clone()), op);
    }
}

/// `null` is no metadata.
fn not_null(metadata: &Json) -> bool {
    metadata.trim() != "null"
}

/// Answers a step that will not happen.
fn fail<C, T>(step: Step<T>, actions: &mut Actions<C, T>) {
    match step {
        Step::Refresh => {}
        Step::Close { token } | Step::Open { token } | Step::SetMetadata { token, .. } => {
            actions.complete(token, Err(InstanceError::Gone));
        }
    }
}
