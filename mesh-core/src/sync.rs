//! Locks and atomics: `std`'s. In unit tests, where models run, those of `mesh-model`, which are the same outside of a model.

#[cfg(not(test))]
pub(crate) use std::sync::{Mutex, MutexGuard};
#[cfg(all(feature = "driver", not(test)))]
pub(crate) use std::sync::{RwLock, atomic};

#[cfg(test)]
pub(crate) use mesh_model::sync::{Mutex, MutexGuard};
#[cfg(all(feature = "driver", test))]
pub(crate) use mesh_model::sync::{RwLock, atomic};
