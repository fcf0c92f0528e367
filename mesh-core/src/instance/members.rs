//! A set of recipients that is shared with deliveries under way.

use std::{
    hash::{BuildHasher, Hash, Hasher},
    sync::Arc,
};

use indexmap::{Equivalent, IndexMap};
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

/// What has room for no more entries than this keeps its memory: too little to be worth another allocation.
pub(super) const KEPT_CAPACITY: usize = 64;

/// Takes an entry out of a table, which gives its memory back when it is mostly empty: once a crowd has left, its tables are as
/// small as before it came.
///
/// It keeps room for twice what is left, so that as many entries have to come or to go before the next allocation as this one moved:
/// a constant cost for each.
pub(super) fn take<K, V, Q>(table: &mut Table<K, V>, key: &Q) -> Option<V>
where
    K: Eq + Hash,
    Q: Equivalent<K> + Hash + ?Sized,
{
    let value = table.swap_remove(key)?;
    if table.capacity() > KEPT_CAPACITY && table.len() < table.capacity() / 4 {
        table.shrink_to(table.len() * 2);
    }
    Some(value)
}

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
        take(Arc::make_mut(&mut self.0), id).is_some()
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.0.capacity()
    }
}

#[cfg(test)]
mod tests {
    use std::hash::BuildHasher;

    use super::{KEPT_CAPACITY, Seeded, Table, take};

    fn full(len: usize) -> Table<usize, usize> {
        let mut table = Table::with_hasher(Seeded::new(&[1; 32]));
        table.extend((0..len).map(|n| (n, n)));
        table
    }

    #[test]
    fn a_table_has_room_for_a_few_times_what_it_holds() {
        let mut table = full(10_000);
        let (mut shrunk, mut capacity) = (0, table.capacity());
        for n in 0..10_000 {
            assert_eq!(take(&mut table, &n), Some(n));
            assert_eq!(take(&mut table, &n), None);
            assert!(
                table.capacity() <= KEPT_CAPACITY.max(4 * table.len() + 4),
                "{} of {}",
                table.len(),
                table.capacity()
            );
            // By one it may be less for the trace that a removal leaves.
            if capacity - table.capacity() > 1 {
                assert!(
                    table.capacity() >= 2 * table.len(),
                    "no room for as many again"
                );
                shrunk += 1;
            }
            capacity = table.capacity();
        }
        assert!(shrunk < 20, "{shrunk} allocations");
        assert!(table.is_empty());
    }

    #[test]
    fn who_comes_and_goes_causes_no_allocation() {
        // Right behind a shrink, where one more or less must not matter.
        let mut table = full(1_000);
        let capacity = table.capacity();
        let mut n = 0;
        while table.capacity() > capacity / 2 {
            take(&mut table, &n);
            n += 1;
        }
        let capacity = table.capacity();
        for _ in 0..1_000 {
            table.insert(0, 0);
            take(&mut table, &0);
            assert_eq!(table.capacity(), capacity);
        }
    }

    #[test]
    fn a_small_table_keeps_its_memory() {
        let mut table = full(KEPT_CAPACITY / 2);
        let capacity = table.capacity();
        assert!(capacity <= KEPT_CAPACITY);
        for n in 0..KEPT_CAPACITY / 2 {
            take(&mut table, &n);
        }
        assert_eq!(table.capacity(), capacity);
    }

    #[test]
    fn where_a_name_is_in_a_table_is_not_known_without_the_seed() {
        let hash = |seed| Seeded::new(&[seed; 32]).hash_one("name");
        assert_eq!(hash(1), hash(1));
        assert_ne!(hash(1), hash(2));
    }
}
