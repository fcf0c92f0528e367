//! The connections that this instance has open, and the rooms that each may be in.

use std::{collections::BTreeMap, sync::Mutex};

use futures_channel::oneshot;
use mesh_core::backend::{ConnectionId, Name};

use crate::lock;

/// Own connections. What the store knows of one is a part of what stands here, never more: so a close removes
/// everything, and a join of what is closed is refused without asking.
#[derive(Default)]
pub(crate) struct Table {
    connections: Mutex<BTreeMap<ConnectionId, Entry>>,
}

#[derive(Default)]
struct Entry {
    /// With the number of the note that tells so.
    rooms: BTreeMap<Name, u64>,
    notes: u64,
    /// Operations under way that may write something of this connection.
    under_way: usize,
    /// Closing: nothing begins any more, and the last of those under way tells.
    closing: Option<oneshot::Sender<()>>,
}

/// An operation that may write something of a connection; its end is told to who waits to close that.
pub(crate) struct UnderWay<'a> {
    table: &'a Table,
    connections: Vec<ConnectionId>,
}

/// Memberships that are about to be stated again.
pub(crate) struct RestoredMembers<'a> {
    pub(crate) under_way: UnderWay<'a>,
    /// With their generations.
    pub(crate) open: Vec<(Name, ConnectionId, u64)>,
    /// Their connections are not open any more.
    pub(crate) gone: Vec<(Name, ConnectionId)>,
}

impl Table {
    /// Puts a connection in and begins an operation on it; `None` while it is closing.
    pub(crate) fn open(&self, connection: &ConnectionId) -> Option<UnderWay<'_>> {
        let mut connections = lock(&self.connections);
        let entry = connections.entry(connection.clone()).or_default();
        self.begin(connection, entry)
    }

    /// Begins a join of an open connection; `None` where it is not open.
    pub(crate) fn join(&self, connection: &ConnectionId, room: &Name) -> Option<UnderWay<'_>> {
        let mut connections = lock(&self.connections);
        let entry = connections.get_mut(connection)?;
        let under_way = self.begin(connection, entry)?;
        entry.note(room);
        Some(under_way)
    }

    fn begin(&self, connection: &ConnectionId, entry: &mut Entry) -> Option<UnderWay<'_>> {
        if entry.closing.is_some() {
            return None;
        }
        entry.under_way += 1;
        Some(UnderWay {
            table: self,
            connections: vec![connection.clone()],
        })
    }

    /// The connection is a member now, whatever was told since the join began.
    pub(crate) fn joined(&self, connection: &ConnectionId, room: &Name) {
        if let Some(entry) = lock(&self.connections).get_mut(connection) {
            entry.note(room);
        }
    }

    /// Which note there is of a membership, for [`forget`](Self::forget).
    pub(crate) fn noted(&self, connection: &ConnectionId, room: &Name) -> Option<u64> {
        let connections = lock(&self.connections);
        connections.get(connection)?.rooms.get(room).copied()
    }

    /// A membership is over, unless another note of it was made since.
    pub(crate) fn forget(&self, connection: &ConnectionId, room: &Name, noted: Option<u64>) {
        if let Some(entry) = lock(&self.connections).get_mut(connection)
            && entry.rooms.get(room).copied() == noted
        {
            entry.rooms.remove(room);
        }
    }

    /// A membership is about to end.
    pub(crate) fn leave(&self, connection: &ConnectionId, room: &Name) {
        if let Some(entry) = lock(&self.connections).get_mut(connection) {
            entry.rooms.remove(room);
        }
    }

    /// Begins an operation on those connections that are open, and returns them. The others are closed here, or about
    /// to be: stating them again would bring them back for good.
    pub(crate) fn restore<T>(
        &self,
        connections: Vec<(ConnectionId, T)>,
    ) -> (UnderWay<'_>, Vec<(ConnectionId, T)>) {
        let mut table = lock(&self.connections);
        let mut begun = Vec::new();
        let mut open = connections;
        open.retain(|(connection, _)| {
            let entry = table.get_mut(connection);
            let Some(entry) = entry.filter(|it| it.closing.is_none()) else {
                return false;
            };
            entry.under_way += 1;
            begun.push(connection.clone());
            true
        });
        let under_way = UnderWay {
            table: self,
            connections: begun,
        };
        (under_way, open)
    }

    /// Begins an operation on those members' connections that are open; the others are told apart.
    pub(crate) fn restore_members(
        &self,
        members: Vec<(Name, ConnectionId, u64)>,
    ) -> RestoredMembers<'_> {
        let mut table = lock(&self.connections);
        let (mut begun, mut open, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        for (room, connection, generation) in members {
            match table.get_mut(&connection).filter(|it| it.closing.is_none()) {
                Some(entry) => {
                    entry.under_way += 1;
                    entry.note(&room);
                    begun.push(connection.clone());
                    open.push((room, connection, generation));
                }
                None => gone.push((room, connection)),
            }
        }
        let under_way = UnderWay {
            table: self,
            connections: begun,
        };
        RestoredMembers {
            under_way,
            open,
            gone,
        }
    }

    /// Closes a connection for all that comes later. Once nothing of it is under way any more, its rooms are
    /// returned; `None` where it is not open.
    pub(crate) async fn close(&self, connection: &ConnectionId) -> Option<Vec<Name>> {
        let wait = {
            let mut connections = lock(&self.connections);
            let entry = connections.get_mut(connection)?;
            if entry.closing.is_some() {
                // Whoever began it finishes it.
                return None;
            }
            if entry.under_way == 0 {
                return connections.remove(connection).map(Entry::into_rooms);
            }
            let (sender, receiver) = oneshot::channel();
            entry.closing = Some(sender);
            receiver
        };
        // The sender goes with the entry at the latest.
        let _ = wait.await;
        lock(&self.connections)
            .remove(connection)
            .map(Entry::into_rooms)
    }
}

impl Entry {
    fn note(&mut self, room: &Name) {
        self.notes += 1;
        self.rooms.insert(room.clone(), self.notes);
    }

    fn into_rooms(self) -> Vec<Name> {
        self.rooms.into_keys().collect()
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut connections = lock(&self.table.connections);
        for connection in &self.connections {
            let Some(entry) = connections.get_mut(connection) else {
                continue;
            };
            entry.under_way -= 1;
            if entry.under_way == 0
                && let Some(closing) = entry.closing.take()
            {
                // Still closing: a new one here keeps others from beginning.
                entry.closing = Some(oneshot::channel().0);
                let _ = closing.send(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Poll, Waker},
    };

    use super::*;

    #[test]
    fn a_close_waits_for_what_is_under_way_and_lets_nothing_begin() {
        let (table, id, room) = (Table::default(), ConnectionId::from("a.1"), Name::from("r"));
        assert!(table.join(&id, &room).is_none(), "not open");
        drop(table.open(&id));
        let join = table.join(&id, &room).unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        let mut close = pin!(table.close(&id));
        assert!(close.as_mut().poll(&mut cx).is_pending());
        assert!(table.join(&id, &"s".into()).is_none(), "closing");
        assert!(table.open(&id).is_none(), "closing");
        assert!(
            table.restore(vec![(id.clone(), ())]).1.is_empty(),
            "closing"
        );
        drop(join);
        assert!(table.join(&id, &"s".into()).is_none(), "still closing");
        let Poll::Ready(Some(rooms)) = close.as_mut().poll(&mut cx) else {
            panic!("nothing is under way");
        };
        assert_eq!(rooms, [room]);
        let mut again = pin!(table.close(&id));
        assert_eq!(again.as_mut().poll(&mut cx), Poll::Ready(None));
        assert!(table.restore(vec![(id.clone(), ())]).1.is_empty(), "closed");
        drop(table.open(&id));
        assert_eq!(table.restore(vec![(id.clone(), ())]).1.len(), 1);
    }

    #[test]
    fn a_membership_is_forgotten_as_it_was_noted() {
        let (table, id, room) = (Table::default(), ConnectionId::from("a.1"), Name::from("r"));
        let noted = |table: &Table| table.noted(&id, &room);
        drop(table.open(&id));
        table.forget(&id, &room, None);
        drop(table.join(&id, &room));
        let first = noted(&table);
        assert!(first.is_some());
        // Whoever joined meanwhile may be a member.
        table.joined(&id, &room);
        table.forget(&id, &room, first);
        let second = noted(&table);
        assert!(second.is_some());
        table.forget(&id, &room, second);
        assert_eq!(noted(&table), None);
    }
}
