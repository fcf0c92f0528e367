//! Who is in which room: by his own wish, his server's, or somebody else's.

use std::time::Duration;

use futures_util::future::join;
use serde_json::{Value, json};

use super::super::world::{Belonging, DELIVERY_MAX, STAFF, Seat, VIP};
use super::{COMMAND_TIMEOUT, Caller, LATE_MAX};

/// The longest that what takes somebody out of his rooms may take to do so.
const EXPULSION_MAX: Duration = Duration::from_secs(40);

impl Caller {
    fn believe(&self, room: &'static str, belonging: Belonging) {
        let now = self.world.now();
        self.seat(|seat| {
            let is_sure = now >= seat.doubtful_until;
            let belonging = if is_sure {
                belonging
            } else {
                Belonging::Unknown
            };
            seat.rooms.insert(room, belonging);
        });
    }

    /// Notes how often this connection has left a room that it is about to join.
    fn count_leaves(&self, room: &'static str) {
        if let Some(id) = self.seat(|seat| seat.id.clone()) {
            let times = self.world.times_left(room, &id);
            self.seat(|seat| seat.times_left.insert((room, id), times));
        }
    }

    pub(super) async fn join(&self, room: &'static str) {
        let asked = self.world.now();
        let is_member = |seat: &mut Seat| {
            let belonging = seat.rooms.get(room);
            matches!(belonging, Some(Belonging::Member { .. }))
        };
        if !self.seat(is_member) {
            self.count_leaves(room);
        }
        let before = self.seat(|seat| seat.rooms.insert(room, Belonging::Unknown));
        let what = if room == VIP { "join vip" } else { "join" };
        let joined = self.call(what, self.client.join_room::<Vec<String>>(room));
        if let Some(present) = joined.await {
            // One that was a member before stays one.
            let since = match before {
                Some(Belonging::Member { since }) if room != VIP => since,
                _ => self.world.now(),
            };
            self.believe(room, Belonging::Member { since });
            let mine = self.client.connection_id();
            if mine.is_some_and(|mine| !present.contains(&mine))
                && self.is_whole_since(asked)
                && room != VIP
            {
                self.violation(format_args!(
                    "it joined {room} and is not among {present:?}"
                ));
            }
        }
    }

    pub(super) async fn leave(&self, room: &'static str) {
        let called = self.world.now();
        let (before, online, id) = self.seat(|seat| {
            let before = seat.rooms.insert(room, Belonging::Unknown);
            (before, seat.online_since, seat.id.clone())
        });
        let times = id.as_ref().map(|id| self.world.times_left(room, id));
        if self
            .call("leave", self.client.leave_room(room))
            .await
            .is_some()
        {
            let since = self.world.now();
            self.believe(room, Belonging::Left { since });
            let was_member = match before {
                Some(Belonging::Member { since }) => room != VIP && self.is_whole_since(since),
                _ => false,
            };
            // Who is thrown out at this moment was told so, and left already.
            let is_same = self.seat(|seat| seat.online_since == online && !seat.is_kicked);
            if let (Some(id), Some(times), Some(online)) = (id, times, online)
                && was_member
                && is_same
                && online < called
                && self.is_whole_since(online)
            {
                self.world.expect_leave(self.n, room, id, times);
            }
        }
    }

    /// Is made a member by its server, or none any more.
    pub(super) async fn enlist(&self) {
        let before = self.seat(|seat| seat.online_since);
        self.seat(|seat| seat.rooms.remove(STAFF));
        self.count_leaves(STAFF);
        let (command, is_member) = match self.world.clock.below(4) {
            0 => ("dismiss", false),
            1 => {
                // Both at once: one waits for the other, and whose turn is first is the server's business.
                let dismissed = self.command::<bool>("dismiss", ());
                join(dismissed, self.command::<bool>("enlist", ())).await;
                return;
            }
            _ => ("enlist", true),
        };
        let done = self.command::<bool>(command, ()).await.is_some();
        let since = self.world.now();
        // With another connection it is another's.
        if done && before.is_some() && self.seat(|seat| seat.online_since) == before {
            let belonging = if is_member {
                Belonging::Member { since }
            } else {
                Belonging::Left { since }
            };
            self.believe(STAFF, belonging);
        }
    }

    /// Is taken out of all its rooms by its server, or by that of another client.
    pub(super) async fn expel(&self) {
        let called = self.world.now();
        let (online, id) = self.seat(|seat| (seat.online_since, seat.id.clone()));
        let (Some(_), Some(id)) = (online, id) else {
            return;
        };
        let before = self.seat(|seat| {
            let unknown = (seat.rooms.keys()).map(|room| (*room, Belonging::Unknown));
            let unknown = unknown.collect();
            std::mem::replace(&mut seat.rooms, unknown)
        });
        let about = self.about(id.as_str());
        let by_another = self.world.clock.once_in(2);
        let is_done = if by_another {
            let (n, neighbour) = self.neighbour();
            let expel = neighbour.command::<_, bool>("expel", about);
            let expel = self.asks_elsewhere(n, COMMAND_TIMEOUT, expel);
            let expel = self.ends_beside("expel", COMMAND_TIMEOUT, expel);
            expel.await.is_ok()
        } else {
            self.command::<bool>("expel", about).await.is_some()
        };
        let is_same = self.seat(|seat| seat.online_since) == online;
        if !is_same {
            return;
        }
        let mut since = self.world.now();
        if !is_done || !self.is_whole_since(called) {
            self.seat(|seat| seat.doubtful_until = since + EXPULSION_MAX);
            return;
        }
        if by_another {
            // What was sent before may still be under way, over another cable.
            since += LATE_MAX;
        }
        for (room, belonging) in before {
            match belonging {
                Belonging::Unknown => {}
                Belonging::Left { .. } => self.believe(room, belonging),
                // Nobody wishes to be there by himself.
                _ if room == STAFF => self.believe(room, Belonging::Left { since }),
                _ => self.believe(room, Belonging::Expelled { since }),
            }
        }
    }

    /// Somebody's connection is closed by the application, wherever it is; more often one that is gone already.
    pub(super) async fn kick(&self) {
        let seats = self.world.state().seats.len() as u64;
        let whose = self.world.clock.below(seats) as usize;
        let is_last = !self.world.clock.once_in(3);
        let id = {
            let mut state = self.world.state();
            let seat = &mut state.seats[whose];
            if is_last {
                seat.last_id.clone()
            } else {
                seat.is_kicked |= seat.id.is_some();
                seat.id.clone()
            }
        };
        let Some(id) = id else { return };
        let about = self.about(id.as_str());
        let called = self.world.now();
        let world = self.world.clone();
        if self.command::<bool>("kick", about).await.is_none() {
            // It may be done yet, but not for ever.
            return self.world.clock.after(EXPULSION_MAX, move || {
                let seat = &mut world.state().seats[whose];
                seat.is_kicked &= seat.id != Some(id);
            });
        }
        self.world.clock.after(DELIVERY_MAX, move || {
            let client = world.state().seats[whose].client.clone();
            let is_there = client.connection_id().as_deref() == Some(id.as_str());
            if is_there && world.is_whole_for(whose, called) {
                world.violation(format_args!("{id} was kicked, and is there"));
            }
        });
    }

    /// Whether somebody is a member is the same for everybody.
    pub(super) async fn belongs(&self, room: &'static str) {
        let Some(id) = self.somebody() else { return };
        let belonging = || {
            let whose = self.world.whose(&id)?;
            let state = self.world.state();
            let seat = &state.seats[whose];
            Some((whose, seat.rooms.get(room).copied(), seat.online_since))
        };
        let before = belonging();
        let called = self.world.now();
        let asked = (room, id.as_str());
        let told = self.command::<bool>("belongs", asked).await;
        let (Some(told), Some((whose, Some(believed), Some(online)))) = (told, before) else {
            return;
        };
        let is_still_so = belonging() == before;
        let world = &self.world;
        // Since then nothing was that could have ended or restored it unseen.
        let is_sure =
            |since: Duration| since < called && world.is_whole_for(whose, since.max(online));
        let is_wrong = match believed {
            Belonging::Member { since } => is_sure(since) && !told,
            Belonging::Left { since } | Belonging::Expelled { since } => is_sure(since) && told,
            Belonging::Unknown => false,
        };
        if is_still_so && is_wrong {
            self.violation(format_args!("{id} is in {room}: {told}, and {believed:?}"));
        }
    }

    /// Takes the room that may be taken from everybody, in one of three ways, or gives it back.
    pub(super) async fn revoke(&self) {
        let how = match self.world.clock.below(6) {
            0..3 => "clear",
            3 => "revoke",
            4 => "close",
            _ => "open",
        };
        let called = self.world.now();
        if self.command::<bool>(how, ()).await.is_some() && how != "open" {
            let done = self.world.now();
            let mut state = self.world.state();
            // A guard that changed its mind again meanwhile may have let everybody stay.
            if how != "close" || state.opened < called {
                state.revoked = Some((called, done));
            }
        }
    }

    /// Who is in a room is told with his metadata.
    pub(super) async fn roster(&self, room: &'static str) {
        let (id, online, belonging) = self.seat(|seat| {
            let belonging = seat.rooms.get(room).copied();
            (seat.id.clone(), seat.online_since, belonging)
        });
        let Some(all) = self.command::<Vec<(String, Value)>>("roster", room).await else {
            return;
        };
        let is_same = self.seat(|seat| seat.rooms.get(room).copied()) == belonging;
        if let (Some(id), Some(online), Some(Belonging::Member { since })) = (id, online, belonging)
            && is_same
            && !self.seat(|seat| seat.is_kicked)
            && self.is_whole_since(online.max(since))
            && !all.contains(&(id.as_str().to_owned(), json!(self.n.to_string())))
        {
            self.violation(format_args!("it is in {room}, and not in {all:?}"));
        }
    }
}
