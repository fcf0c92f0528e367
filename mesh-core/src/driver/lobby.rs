//! Who is inside a listener before the upgrade, and who gives way where it is full.
//!
//! Connections that say nothing, or that stay for another plain request, cost a stranger little. So a place is not kept against
//! newcomers: everybody has [`TIME_MIN`] in peace, and then the one that has been quiet for longest goes first. To keep others out, one has to
//! connect as often as there are places in every such time, and to keep a place by asking for pages does not help, for answers end their
//! connection while places are few.
//!
//! Nobody gives way while the server decides about its request: the wait is the server's own, and whoever was sent away would come again
//! and make it longer. Where all are decided about, the newcomer waits.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// What everybody has, from its arrival or its last answer, before it gives way to a newcomer: several round trips around the world.
const TIME_MIN: Duration = Duration::from_secs(1);

/// Places are few once less than one in so many is free.
const FEW: usize = 8;

/// One place, as long as its connection is inside.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Ticket(u64);

/// What becomes of a newcomer.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Arrival<T> {
    /// It is inside.
    Admitted {
        ticket: Ticket,
        /// Who has to go for it, and holds no place any more.
        gives_way: Option<T>,
    },
    /// It waits, and arrives again once somebody has left, and at `until` in any case.
    Full { token: T, until: Instant },
}

/// The connections of one listener that are not upgraded, each with what tells it to go.
#[derive(Debug)]
pub(super) struct Lobby<T> {
    places_max: usize,
    inside: BTreeMap<Ticket, Guest<T>>,
    /// Those of `inside` that are quiet by arrival or last answer, the earliest first.
    quiet: BTreeSet<(Instant, Ticket)>,
    tickets: u64,
    /// Places are few until then, however many are free: the process has no room for more.
    exhausted_until: Option<Instant>,
}

#[derive(Debug)]
struct Guest<T> {
    /// Its arrival or its last answer.
    since: Instant,
    /// Its requests that are being decided about; it is quiet if there are none.
    deciding: usize,
    token: T,
}

impl<T> Lobby<T> {
    /// An empty one with `places_max` places, at least one.
    pub(super) fn new(places_max: usize) -> Self {
        Self {
            places_max: places_max.max(1),
            inside: BTreeMap::new(),
            quiet: BTreeSet::new(),
            tickets: 0,
            exhausted_until: None,
        }
    }

    /// A connection was accepted.
    pub(super) fn handle_arrival(&mut self, token: T, now: Instant) -> Arrival<T> {
        let mut gives_way = None;
        if self.is_full() {
            gives_way = self.give_way(now);
            if gives_way.is_none() {
                // Where nobody is quiet, nobody has been for its time before that, whoever is answered meanwhile.
                let since = self.quiet.first().map_or(now, |&(since, _)| since);
                let until = since + TIME_MIN;
                return Arrival::Full { token, until };
            }
        }
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        let guest = Guest {
            since: now,
            deciding: 0,
            token,
        };
        self.inside.insert(ticket, guest);
        self.quiet.insert((now, ticket));
        Arrival::Admitted { ticket, gives_way }
    }

    /// A connection was not accepted, for want of file descriptors or memory. Who has to go, so that there is room for the next?
    pub(super) fn handle_exhaustion(&mut self, now: Instant) -> Option<T> {
        // Until everybody who is quiet now may be told to go.
        self.exhausted_until = Some(now + TIME_MIN);
        self.give_way(now)
    }

    /// A connection asks for something, and keeps its place until the answer. One that has left already is passed over.
    pub(super) fn handle_request(&mut self, ticket: Ticket) {
        if let Some(guest) = self.inside.get_mut(&ticket) {
            self.quiet.remove(&(guest.since, ticket));
            guest.deciding += 1;
        }
    }

    /// The answer to a request, or its end without one: the connection is quiet, unless it has asked for more, and its time begins anew.
    pub(super) fn handle_answer(&mut self, ticket: Ticket, now: Instant) {
        if let Some(guest) = self.inside.get_mut(&ticket) {
            self.quiet.remove(&(guest.since, ticket));
            guest.deciding = guest.deciding.saturating_sub(1);
            guest.since = now;
            if guest.deciding == 0 {
                self.quiet.insert((now, ticket));
            }
        }
    }

    /// A connection was upgraded or is over. One that gave way is gone already.
    pub(super) fn handle_departure(&mut self, ticket: Ticket) -> Option<T> {
        let guest = self.inside.remove(&ticket)?;
        self.quiet.remove(&(guest.since, ticket));
        Some(guest.token)
    }

    /// The listener is no more: hands out everybody that is inside.
    pub(super) fn handle_end(&mut self) -> Vec<T> {
        self.quiet.clear();
        let inside = std::mem::take(&mut self.inside);
        inside.into_values().map(|guest| guest.token).collect()
    }

    /// Whether a newcomer would need the place of another.
    pub(super) fn is_full(&self) -> bool {
        self.inside.len() >= self.places_max
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.inside.is_empty() && self.quiet.is_empty()
    }

    /// Whether places are few, so that nobody should stay for another request.
    pub(super) fn is_crowded(&self, now: Instant) -> bool {
        self.inside.len() >= self.places_max - self.places_max / FEW
            || self.exhausted_until.is_some_and(|until| now < until)
    }

    /// The quietest goes, if it has had its time.
    fn give_way(&mut self, now: Instant) -> Option<T> {
        let &(since, ticket) = self.quiet.first()?;
        if now < since + TIME_MIN {
            return None;
        }
        self.handle_departure(ticket)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::Index};

    use super::*;
    use crate::testing::origin;

    const MS: Duration = Duration::from_millis(1);

    #[track_caller]
    fn admit(lobby: &mut Lobby<u32>, token: u32, now: Instant) -> (Ticket, Option<u32>) {
        match lobby.handle_arrival(token, now) {
            Arrival::Admitted { ticket, gives_way } => (ticket, gives_way),
            full @ Arrival::Full { .. } => panic!("{full:?}"),
        }
    }

    #[test]
    fn the_oldest_gives_way_once_it_has_had_its_time() {
        let start = origin();
        let mut lobby = Lobby::new(2);
        assert_eq!(admit(&mut lobby, 1, start).1, None);
        assert_eq!(admit(&mut lobby, 2, start + 10 * MS).1, None);
        let until = start + TIME_MIN;
        for now in [start + 10 * MS, until - MS] {
            let full = Arrival::Full { token: 3, until };
            assert_eq!(lobby.handle_arrival(3, now), full);
        }
        assert_eq!(admit(&mut lobby, 3, until).1, Some(1));
        let until = until + 10 * MS;
        let full = Arrival::Full { token: 4, until };
        assert_eq!(lobby.handle_arrival(4, until - MS), full);
        assert_eq!(admit(&mut lobby, 4, until).1, Some(2));
    }

    #[test]
    fn an_answer_begins_the_time_anew() {
        let start = origin();
        let mut lobby = Lobby::new(2);
        let (first, _) = admit(&mut lobby, 1, start);
        let (second, _) = admit(&mut lobby, 2, start + MS);
        lobby.handle_request(first);
        lobby.handle_answer(first, start + 2 * MS);
        assert_eq!(admit(&mut lobby, 3, start + TIME_MIN + MS).1, Some(2));
        // Too late: it has no place any more, and takes none.
        lobby.handle_request(second);
        lobby.handle_answer(second, start + TIME_MIN + MS);
        assert_eq!(lobby.handle_departure(second), None);
        assert_eq!(admit(&mut lobby, 4, start + TIME_MIN + 2 * MS).1, Some(1));
    }

    #[test]
    fn who_is_being_decided_about_keeps_its_place() {
        let start = origin();
        let mut lobby = Lobby::new(2);
        let (first, _) = admit(&mut lobby, 1, start);
        admit(&mut lobby, 2, start + MS);
        lobby.handle_request(first);
        lobby.handle_request(first);
        let (third, gives_way) = admit(&mut lobby, 3, start + TIME_MIN + MS);
        assert_eq!(gives_way, Some(2));
        lobby.handle_request(third);
        let now = start + 60 * TIME_MIN;
        assert_eq!(lobby.handle_exhaustion(now), None);
        let until = now + TIME_MIN;
        let full = Arrival::Full { token: 4, until };
        assert_eq!(lobby.handle_arrival(4, now), full);
        // One of its two answers.
        lobby.handle_answer(first, now);
        let full = Arrival::Full {
            token: 4,
            until: until + TIME_MIN,
        };
        assert_eq!(lobby.handle_arrival(4, until), full);
        lobby.handle_answer(first, now + MS);
        let until = until + MS;
        let full = Arrival::Full { token: 4, until };
        assert_eq!(lobby.handle_arrival(4, until - MS), full);
        assert_eq!(admit(&mut lobby, 4, until).1, Some(1));
        assert_eq!(lobby.handle_departure(third), Some(3));
    }

    #[test]
    fn who_leaves_makes_room_at_once() {
        let start = origin();
        let mut lobby = Lobby::new(1);
        let (ticket, _) = admit(&mut lobby, 1, start);
        assert!(lobby.is_full());
        assert_eq!(lobby.handle_departure(ticket), Some(1));
        assert!(!lobby.is_full());
        assert_eq!(admit(&mut lobby, 2, start).1, None);
        assert_eq!(lobby.handle_end(), [2]);
        assert!(!lobby.is_full());
    }

    #[test]
    fn it_is_crowded_before_it_is_full() {
        let now = origin();
        for (places_max, crowded_at) in [(0, 1), (1, 1), (2, 2), (8, 7), (16, 14), (4_096, 3_584)] {
            let mut lobby = Lobby::new(places_max);
            for token in 1..=crowded_at {
                assert!(!lobby.is_crowded(now), "{token} of {places_max}");
                admit(&mut lobby, token, now);
            }
            assert!(lobby.is_crowded(now), "{crowded_at} of {places_max}");
        }
    }

    #[test]
    fn exhaustion_is_a_crowd_and_the_oldest_goes() {
        let start = origin();
        let mut lobby = Lobby::new(4_096);
        admit(&mut lobby, 1, start);
        admit(&mut lobby, 2, start);
        assert_eq!(lobby.handle_exhaustion(start), None);
        assert!(lobby.is_crowded(start + TIME_MIN - MS));
        assert!(!lobby.is_crowded(start + TIME_MIN));
        assert_eq!(lobby.handle_exhaustion(start + TIME_MIN), Some(1));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Answer(Index),
        Arrive,
        Exhaust,
        Leave(Index),
        Request(Index),
        WaitMs(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            2 => any::<Index>().prop_map(Step::Answer),
            4 => Just(Step::Arrive),
            1 => Just(Step::Exhaust),
            1 => any::<Index>().prop_map(Step::Leave),
            2 => any::<Index>().prop_map(Step::Request),
            2 => (0..700_u64).prop_map(Step::WaitMs),
        ];
        vec(step, 0..120)
    }

    #[derive(Debug)]
    struct Entry {
        ticket: Ticket,
        since: Instant,
        deciding: usize,
        token: u32,
    }

    /// Where in the model the one is that has been quiet for longest; of two, the one that came first.
    fn quietest(model: &[Entry]) -> Option<usize> {
        let quiet = model
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry.deciding == 0);
        let first = quiet.min_by_key(|(_, entry)| (entry.since, entry.ticket));
        first.map(|(at, _)| at)
    }

    proptest! {
        /// The model is a list, searched from end to end.
        #[test]
        fn places_are_bounded_the_quietest_goes_first_and_who_is_decided_about_never(
            places_max in 1..6_usize,
            steps in steps(),
        ) {
            let mut now = origin();
            let mut lobby = Lobby::new(places_max);
            let mut model: Vec<Entry> = Vec::new();
            let mut gone: Vec<Ticket> = Vec::new();
            for (step, token) in steps.into_iter().zip(0..) {
                let quiet = quietest(&model);
                let may_go = quiet.filter(|at| now >= model[*at].since + TIME_MIN);
                let oldest = may_go.map(|at| model[at].token);
                match step {
                    Step::Answer(index) if !model.is_empty() => {
                        let at = index.index(model.len());
                        // There is an answer to each request, and no other.
                        if model[at].deciding > 0 {
                            model[at].deciding -= 1;
                            model[at].since = now;
                            lobby.handle_answer(model[at].ticket, now);
                        }
                    }
                    Step::Arrive => match lobby.handle_arrival(token, now) {
                        Arrival::Admitted { ticket, gives_way } => {
                            prop_assert_eq!(gives_way, oldest.filter(|_| model.len() == places_max));
                            if gives_way.is_some() {
                                let entry = model.remove(may_go.unwrap());
                                prop_assert_eq!(entry.deciding, 0, "it was decided about");
                                gone.push(entry.ticket);
                            }
                            model.push(Entry { ticket, since: now, deciding: 0, token });
                        }
                        Arrival::Full { token: back, until } => {
                            prop_assert_eq!(back, token);
                            prop_assert_eq!(model.len(), places_max);
                            prop_assert_eq!(oldest, None);
                            prop_assert_eq!(until, quiet.map_or(now, |at| model[at].since) + TIME_MIN);
                            prop_assert!(until > now, "the driver would spin");
                        }
                    },
                    Step::Exhaust => {
                        prop_assert_eq!(lobby.handle_exhaustion(now), oldest);
                        prop_assert!(lobby.is_crowded(now));
                        if let Some(at) = may_go {
                            gone.push(model.remove(at).ticket);
                        }
                    }
                    Step::Leave(index) if !model.is_empty() => {
                        let entry = model.remove(index.index(model.len()));
                        prop_assert_eq!(lobby.handle_departure(entry.ticket), Some(entry.token));
                        gone.push(entry.ticket);
                    }
                    Step::Request(index) if !model.is_empty() => {
                        let at = index.index(model.len());
                        model[at].deciding += 1;
                        lobby.handle_request(model[at].ticket);
                    }
                    Step::Answer(_) | Step::Leave(_) | Step::Request(_) => {}
                    Step::WaitMs(ms) => now += MS * u32::try_from(ms).unwrap(),
                }
                prop_assert!(model.len() <= places_max);
                prop_assert_eq!(lobby.is_full(), model.len() == places_max);
                for ticket in &gone {
                    lobby.handle_request(*ticket);
                    lobby.handle_answer(*ticket, now);
                    prop_assert_eq!(lobby.handle_departure(*ticket), None);
                }
            }
            // Whatever happened, once all have their answers a newcomer waits no longer than one time.
            for entry in &mut model {
                for _ in 0..std::mem::take(&mut entry.deciding) {
                    lobby.handle_answer(entry.ticket, now);
                    entry.since = now;
                }
            }
            now += TIME_MIN;
            let admitted = matches!(lobby.handle_arrival(u32::MAX, now), Arrival::Admitted { .. });
            prop_assert!(admitted);
            let mut left = lobby.handle_end();
            if model.len() == places_max {
                model.remove(quietest(&model).unwrap());
            }
            let mut expected: Vec<u32> = model.into_iter().map(|entry| entry.token).chain([u32::MAX]).collect();
            left.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(left, expected);
        }
    }
}
