//! A set of recipients that is shared with deliveries under way.

use std::{
    hash::{BuildHasher, Hasher},
    sync::Arc,
};

use indexmap::IndexMap;
use siphasher::sip::SipHasher13;

use crate::backend::ConnectionId;

/// A keyed hasher: names come from outside, and a replayed seed has to give the same tables.
#[derive(Clone, Copy, Debug)]
pub struct Seeded(SipHasher13);

impl Seeded {
    /// Draws the key from a seed.
    pub fn new(seed: &[u8; 32]) -> Self {
        let mut key = [0; 16];
        key.copy_from_slice(&seed[..16]);
        Self(SipHasher13::new_with_key(&key))
    }

    /// Hashes a key to a number.
    pub fn hash(&self, key: &str) -> u64 {
        let mut hasher = self.0;
        hasher.write(key.as_bytes());
        hasher.finish()
    }
}

impl BuildHasher for Seeded {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        self.0
    }
}

/// A table whose order is the order of insertion, removals apart; never that of hashes.
pub(super) type Table<K, V> = IndexMap<K, V, Seeded>;

/// Who gets an event: connection ids with the driver's handles.
///
/// A clone is one count. Changing a set that a delivery still holds copies it, so a delivery sees
/// the members of the moment it was decided.
#[derive(Clone, Debug)]
pub struct Members<C>(Arc<Table<ConnectionId, C>>);

impl<C: Clone> Members<C> {
    pub(super) fn new(hasher: Seeded) -> Self {
        Self(Arc::new(Table::with_hasher(hasher)))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Is there nobody?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Is this connection one of them?
    pub fn contains(&self, id: &ConnectionId) -> bool {
        self.0.contains_key(id)
    }

    /// The handles, in no promised order but the same for the same history.
    pub fn handles(&self) -> impl Iterator<Item = &C> {
        self.0.values()
    }

    /// The handles of all but these.
    pub fn handles_except(&self, except: &[ConnectionId]) -> impl Iterator<Item = &C> {
        // One look-up each, then comparisons of numbers.
        let skip: Vec<usize> = except
            .iter()
            .filter_map(|id| self.0.get_index_of(id))
            .collect();
        self.0
            .values()
            .enumerate()
            .filter(move |(index, _)| !skip.contains(index))
            .map(|(_, handle)| handle)
    }

    /// The members' ids.
    pub fn ids(&self) -> impl Iterator<Item = &ConnectionId> {
        self.0.keys()
    }

    /// The handle of one member.
    pub fn get(&self, id: &ConnectionId) -> Option<&C> {
        self.0.get(id)
    }

    /// True if it was none before.
    pub(super) fn insert(&mut self, id: ConnectionId, handle: C) -> bool {
        Arc::make_mut(&mut self.0).insert(id, handle).is_none()
    }

    /// True if it was one.
    pub(super) fn remove(&mut self, id: &ConnectionId) -> bool {
        if !self.0.contains_key(id) {
            return false;
        }
        Arc::make_mut(&mut self.0).swap_remove(id).is_some()
    }
}
