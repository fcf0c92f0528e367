//! Which reply belongs to which command.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

/// The commands in flight on one connection, by id.
///
/// An id is used again only once its reply has come. After a timeout it stays reserved, with a note `L` for the
/// late reply, until that comes or the connection ends; so a late reply can never answer another command.
#[derive(Debug)]
pub(crate) struct Correlator<P, L> {
    next: u16,
    pending: BTreeMap<u16, Pending<P>>,
    abandoned: BTreeMap<u16, (String, L)>,
    deadlines: BTreeSet<(Instant, u16)>,
    bytes: usize,
}

#[derive(Debug)]
struct Pending<P> {
    value: P,
    name: String,
    deadline: Instant,
    bytes: usize,
}

/// Whom a reply is for.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Match<P, L> {
    Late(L),
    Pending(P),
    Unknown,
}

impl<P, L> Correlator<P, L> {
    pub(crate) fn new() -> Self {
        Self {
            next: 0,
            pending: BTreeMap::new(),
            abandoned: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            bytes: 0,
        }
    }

    /// Commands whose reply is awaited.
    pub(crate) fn len(&self) -> usize {
        self.pending.len()
    }

    /// Bytes of the commands whose reply is awaited.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Ids that are reserved for late replies.
    pub(crate) fn abandoned(&self) -> usize {
        self.abandoned.len()
    }

    /// The next free id; `None` if all 65 536 are taken.
    pub(crate) fn next_id(&self) -> Option<u16> {
        // Rolls on instead of taking the lowest, so that an id rests as long as possible.
        let mut id = self.next;
        loop {
            if !self.pending.contains_key(&id) && !self.abandoned.contains_key(&id) {
                return Some(id);
            }
            id = id.wrapping_add(1);
            if id == self.next {
                return None;
            }
        }
    }

    /// Registers what was sent with `id`, as [`next_id`](Self::next_id) gave it.
    pub(crate) fn insert(
        &mut self,
        id: u16,
        name: String,
        value: P,
        deadline: Instant,
        bytes: usize,
    ) {
        self.next = id.wrapping_add(1);
        self.bytes += bytes;
        self.deadlines.insert((deadline, id));
        self.pending.insert(
            id,
            Pending {
                value,
                name,
                deadline,
                bytes,
            },
        );
    }

    /// What `id` belongs to.
    pub(crate) fn value_mut(&mut self, id: u16) -> Option<&mut P> {
        self.pending.get_mut(&id).map(|pending| &mut pending.value)
    }

    /// Finds what a reply answers and frees its id. A reply repeats its command's name; one with another is not for it.
    pub(crate) fn handle_reply(&mut self, id: u32, name: &str) -> Match<P, L> {
        let Ok(id) = u16::try_from(id) else {
            return Match::Unknown;
        };
        if self
            .pending
            .get(&id)
            .is_some_and(|pending| pending.name == name)
        {
            return self
                .remove(id)
                .map_or(Match::Unknown, |pending| Match::Pending(pending.value));
        }
        if self
            .abandoned
            .get(&id)
            .is_some_and(|(sent, _)| sent == name)
        {
            return self
                .abandoned
                .remove(&id)
                .map_or(Match::Unknown, |(_, late)| Match::Late(late));
        }
        Match::Unknown
    }

    /// Gives up the next command whose deadline has passed and reserves its id, with what `note` makes of it.
    pub(crate) fn expire(&mut self, now: Instant, note: impl FnOnce(&P) -> L) -> Option<P> {
        let &(deadline, id) = self.deadlines.first()?;
        if now < deadline {
            return None;
        }
        let pending = self.remove(id)?;
        let late = note(&pending.value);
        self.abandoned.insert(id, (pending.name, late));
        Some(pending.value)
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.first().map(|&(deadline, _)| deadline)
    }

    /// The connection is over: every id is free again.
    pub(crate) fn clear(&mut self) -> impl Iterator<Item = P> + use<P, L> {
        self.abandoned.clear();
        self.deadlines.clear();
        self.bytes = 0;
        std::mem::take(&mut self.pending)
            .into_values()
            .map(|pending| pending.value)
    }

    fn remove(&mut self, id: u16) -> Option<Pending<P>> {
        let pending = self.pending.remove(&id)?;
        self.deadlines.remove(&(pending.deadline, id));
        self.bytes -= pending.bytes;
        Some(pending)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::time::origin;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u64),
        Reply { id: u32, own_name: bool },
        Wait(u64),
        Clear,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        vec(
            prop_oneof![
                4 => (1..50u64).prop_map(Step::Insert),
                4 => (0..40u32, prop::bool::weighted(0.9)).prop_map(|(id, own_name)| Step::Reply { id, own_name }),
                3 => (0..60u64).prop_map(Step::Wait),
                1 => Just(Step::Clear),
            ],
            0..200,
        )
    }

    proptest! {
        /// The model: for each id the number of the command it belongs to, and whether that timed out.
        #[test]
        fn a_reply_reaches_its_own_command_or_none(steps in steps()) {
            let mut now = origin();
            let mut correlator = Correlator::<u32, u32>::new();
            let mut model: BTreeMap<u16, (u32, Instant, bool)> = BTreeMap::new();
            for (n, step) in (0..).zip(steps) {
                match step {
                    Step::Insert(ms) => {
                        let id = correlator.next_id().unwrap();
                        let deadline = now + Duration::from_millis(ms);
                        correlator.insert(id, "x".into(), n, deadline, 3);
                        prop_assert!(model.insert(id, (n, deadline, false)).is_none(), "id {id} was in use");
                    }
                    Step::Reply { id, own_name } => {
                        let got = correlator.handle_reply(id, if own_name { "x" } else { "y" });
                        let entry = own_name.then(|| model.remove(&u16::try_from(id).unwrap())).flatten();
                        let expected = match entry {
                            None => Match::Unknown,
                            Some((n, _, false)) => Match::Pending(n),
                            Some((n, _, true)) => Match::Late(n),
                        };
                        prop_assert_eq!(got, expected);
                    }
                    Step::Wait(ms) => {
                        now += Duration::from_millis(ms);
                        let mut expired: Vec<_> = std::iter::from_fn(|| correlator.expire(now, |n| *n)).collect();
                        expired.sort_unstable();
                        let mut due = Vec::new();
                        for entry in model.values_mut().filter(|entry| !entry.2 && entry.1 <= now) {
                            entry.2 = true;
                            due.push(entry.0);
                        }
                        due.sort_unstable();
                        prop_assert_eq!(expired, due);
                        prop_assert!(correlator.poll_timeout().is_none_or(|at| at > now));
                    }
                    Step::Clear => {
                        let left = correlator.clear().count();
                        prop_assert_eq!(left, model.values().filter(|entry| !entry.2).count());
                        model.clear();
                    }
                }
                let live = model.values().filter(|entry| !entry.2).count();
                prop_assert_eq!((correlator.len(), correlator.bytes()), (live, 3 * live));
                prop_assert_eq!(correlator.abandoned(), model.len() - live);
            }
        }
    }

    #[test]
    fn ids_wrap_around_what_is_taken_and_run_out_at_65_536() {
        let deadline = origin();
        let mut correlator = Correlator::<u32, ()>::new();
        for n in 0..=u32::from(u16::MAX) {
            let id = correlator.next_id().unwrap();
            correlator.insert(id, String::new(), n, deadline, 0);
        }
        assert_eq!(correlator.next_id(), None);
        assert_eq!(correlator.handle_reply(7, ""), Match::Pending(7));
        assert_eq!(correlator.next_id(), Some(7));
        assert_eq!(correlator.handle_reply(65_536, ""), Match::Unknown);
    }
}
