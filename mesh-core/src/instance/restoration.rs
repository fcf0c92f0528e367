//! Stating again, part by part, what a shard holds.

use std::collections::VecDeque;

use crate::backend::{BackendError, ConnectionId, Name};

/// The connections or memberships of one part. Large enough that the store gets them in batches, and small enough that other operations
/// find their way between two parts.
const ENTRIES_PER_PART: usize = 4_096;

/// What one operation states. What has changed since is looked at when it is its turn.
#[derive(Debug, Default)]
pub(super) struct Part {
    pub(super) connections: Vec<ConnectionId>,
    pub(super) members: Vec<(Name, ConnectionId)>,
    /// The rooms whose last members are in this part.
    pub(super) rooms: Vec<Name>,
}

/// The parts of one restoration; one at a time is under way.
#[derive(Debug)]
pub(super) struct Restoration<T> {
    pub(super) number: u64,
    pub(super) token: T,
    parts: VecDeque<Part>,
    pub(super) under_way: Option<Part>,
    /// The first failure.
    pub(super) error: Option<BackendError>,
}

impl<T> Restoration<T> {
    pub(super) fn new(
        number: u64,
        token: T,
        connections: Vec<ConnectionId>,
        rooms: Vec<(Name, Vec<ConnectionId>)>,
    ) -> Self {
        let mut parts = VecDeque::new();
        let mut part = Part::default();
        let mut entries = 0;
        let mut full = |part: &mut Part| {
            entries += 1;
            if entries % ENTRIES_PER_PART == 0 {
                parts.push_back(std::mem::take(part));
            }
        };
        for id in connections {
            part.connections.push(id);
            full(&mut part);
        }
        for (room, members) in rooms {
            for id in members {
                part.members.push((room.clone(), id));
                full(&mut part);
            }
            part.rooms.push(room);
        }
        parts.push_back(part);
        Self {
            number,
            token,
            parts,
            under_way: None,
            error: None,
        }
    }

    pub(super) fn next(&mut self) -> Option<Part> {
        self.parts.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::{ENTRIES_PER_PART, Restoration};
    use crate::backend::ConnectionId;

    fn ids(number: usize) -> Vec<ConnectionId> {
        (0..number)
            .map(|id| ConnectionId::new(format!("i.{id}")))
            .collect()
    }

    #[test]
    fn parts_are_full_and_a_room_ends_with_its_last_member() {
        let rooms = vec![
            ("small".into(), ids(1)),
            ("large".into(), ids(2 * ENTRIES_PER_PART)),
            ("last".into(), ids(1)),
        ];
        let mut restoration = Restoration::new(1, (), ids(3), rooms);
        let parts: Vec<_> = std::iter::from_fn(|| restoration.next()).collect();
        let sizes = parts
            .iter()
            .map(|part| (part.connections.len(), part.members.len()));
        let full = ENTRIES_PER_PART;
        assert_eq!(
            sizes.collect::<Vec<_>>(),
            [(3, full - 3), (0, full), (0, 5)]
        );
        let rooms = parts
            .iter()
            .map(|part| part.rooms.iter().map(|room| &**room).collect());
        let rooms: Vec<Vec<&str>> = rooms.collect();
        assert_eq!(rooms, [vec!["small"], vec![], vec!["large", "last"]]);
    }
}
