//! The metadata of connections and rooms.

use futures_util::future::join;
use serde_json::{Value, json};

use super::super::host::{About, PLAN};
use super::super::world::Mark;
use super::Caller;

/// What a client's second key of a document is higher by than its number.
const OTHER_KEY: usize = 1_000;

impl Caller {
    /// Replaces its metadata, by its own means or its server's.
    pub(super) async fn rename(&self) {
        let mark = self.world.mark();
        let by_itself = self.world.clock.once_in(2);
        let forget_tags = || {
            let mut state = self.world.state();
            let id = state.seats[self.n]
                .client
                .connection_id()
                .unwrap_or_default();
            state.tags.retain(|(tagged, _), _| *tagged != id);
        };
        let online = self.seat(|seat| {
            seat.name.is_under_way = true;
            seat.online_since
        });
        forget_tags();
        let is_done = if by_itself {
            // What its server knows of it stays as it is.
            let metadata = json!({ "user": "admin", "name": mark });
            let set = self.client.set_metadata(&metadata);
            self.call("metadata", set).await.is_some()
        } else {
            self.command::<bool>("rename", mark).await.is_some()
        };
        forget_tags();
        let now = self.world.now();
        self.seat(|seat| {
            let is_same = online.is_some() && seat.online_since == online;
            let name = &mut seat.name;
            name.is_under_way = false;
            name.at = now;
            match (is_done, by_itself) {
                (true, true) => (name.now, name.wish) = (Some(mark), Some(mark)),
                (true, false) if is_same => name.now = Some(mark),
                (true, false) => name.now = None,
                (false, true) => (name.now, name.wish, name.is_unsure) = (None, None, true),
                (false, false) => (name.now, name.is_unsure) = (None, true),
            }
        });
        let told: Option<Value> = self
            .command("mesh/get-my-connection-metadata", json!({}))
            .await;
        let user = told.map(|told| told["metadata"]["user"].clone());
        if let Some(user) = user
            && user.as_str() != Some(&self.n.to_string())
        {
            self.violation(format_args!("it is the user {user}"));
        }
    }

    pub(super) async fn tag(&self) {
        let Some(id) = self.somebody() else { return };
        // Two at once, with keys of their own.
        let (one, mut other) = (self.about(&id), self.about(&id));
        other.message.from += OTHER_KEY;
        let key = |about: &About| (id.clone(), about.message.from);
        let tags = [
            (key(&one), one.message.mark),
            (key(&other), other.message.mark),
        ];
        let called = self.world.now();
        let tagged = join(
            self.command::<bool>("tag", one),
            self.command::<bool>("tag", other),
        );
        let (one, other) = tagged.await;
        for ((key, mark), done) in tags.into_iter().zip([one, other]) {
            let whose = self.world.whose(&key.0);
            let mut state = self.world.state();
            // Who is replacing all of it may do away with it.
            let is_kept = whose.is_some_and(|whose| {
                let name = state.seats[whose].name;
                !name.is_under_way && !name.is_unsure && name.at < called
            });
            if done.is_some() && is_kept && state.is_kept_since(called) {
                state.tags.insert(key, mark);
            }
        }
    }

    /// Everybody is told with his metadata.
    pub(super) async fn census(&self) {
        let (id, online) = self.seat(|seat| (seat.id.clone(), seat.online_since));
        let all = self.command::<Vec<(String, Value)>>("census", ()).await;
        if let (Some(all), Some(id), Some(online)) = (all, id, online)
            && self.is_whole_since(online)
            && !all.contains(&(id.as_str().to_owned(), json!(self.n.to_string())))
        {
            self.violation(format_args!("it is not in {all:?}"));
        }
    }

    /// Leaves a note in the metadata of a room, which everybody finds there.
    pub(super) async fn note(&self, room: &'static str) {
        let about = self.about(room);
        let (mark, called) = (about.message.mark, self.world.now());
        if self.command::<bool>("note", about).await.is_none() {
            return;
        }
        let asked = json!({ "roomName": room });
        let told: Option<Value> = self.command("mesh/get-room-metadata", asked).await;
        let Some(told) = told else { return };
        let note = told["metadata"][self.n.to_string()].as_u64();
        let is_lost = note.is_none_or(|note| note < mark);
        if is_lost && self.world.state().is_kept_since(called) {
            self.violation(format_args!("it noted {mark} in {room}, and finds {told}"));
        }
    }

    /// Replaces the metadata of a room, which is what it was replaced with last.
    pub(super) async fn plan(&self) {
        let mark = self.world.mark();
        self.world.publish(PLAN, mark);
        if self.command::<bool>("plan", mark).await.is_some() {
            self.world.published(PLAN, mark);
        }
        let asked = self.world.now();
        let told = self.command::<Option<Mark>>("plans", ()).await;
        if let Some(told) = told
            && let Some(wrong) = self.world.wrong_in_plan(asked, told)
        {
            self.violation(format_args!("the plan is {told:?}: {wrong}"));
        }
    }
}
