//! Records: who follows them, and who writes.

use std::pin::pin;
use std::time::Duration;

use mesh_client_core::driver::RecordChange;
use serde_json::{Value, json};

use super::super::host::{How, Write};
use super::super::world::Held;
use super::{AGAIN, COMMAND_TIMEOUT, Caller, FOREVER, LATE_MAX, RECORDS, before};

impl Caller {
    /// Versions come in order, and one of them is the same for everybody; for so long. For more than one at a time, others beside the first
    /// are guests.
    pub(super) async fn follow(
        self,
        record: &'static str,
        patch: bool,
        time: Duration,
        is_guest: bool,
    ) {
        let mut subscription = loop {
            let call = self.client.subscribe_record::<Value>(record);
            let call = if patch { call.patch() } else { call };
            match self.call("subscribe record", call).await {
                Some(subscription) => break subscription,
                None if time < FOREVER => return,
                None => self.sleep(AGAIN).await,
            }
        };
        let mut version = subscription.version();
        let held = Held {
            version,
            value: subscription.value().cloned(),
        };
        let since = self.world.now();
        let mut told = since;
        if is_guest {
            // He may be given what others were told.
            told = self.seat(|seat| seat.told.get(record).copied().unwrap_or(since));
        } else {
            self.seat(|seat| seat.listens.insert(record, since));
        }
        self.hold(record, held, told, is_guest);
        let mut end = pin!(self.sleep(time));
        while let Some(next) = before(&mut end, subscription.next()).await {
            let update = match next {
                Some(Ok(update)) => update,
                None => {
                    let end = subscription.end();
                    return self.violation(format_args!("{record} ends: {end:?}"));
                }
                Some(Err(error)) => {
                    self.violation(format_args!("{record}: {error}"));
                    continue;
                }
            };
            // What was told in the meantime may be of the history that is over.
            let begins_anew =
                update.change == RecordChange::Reset && self.world.may_have_lost(told);
            if update.version <= version && !begins_anew {
                let next = update.version;
                self.violation(format_args!("version {next} of {record} behind {version}"));
            }
            let online = self.seat(|seat| seat.online_since);
            let is_complete = online.is_some_and(|since| since < told)
                && self.is_whole_since(told)
                && self.world.is_told_since(self.n, told);
            if update.version > version + 1 && is_complete {
                let next = update.version;
                self.violation(format_args!("{next} of {record} comes behind {version}"));
            }
            told = self.world.now();
            version = update.version;
            let held = Held {
                version,
                value: update.value,
            };
            self.hold(record, held, told, is_guest);
        }
        if !is_guest {
            self.seat(|seat| {
                seat.listens.remove(record);
                seat.held.remove(record);
                seat.told.remove(record);
            });
        }
        self.end("unsubscribe record", subscription.unsubscribe())
            .await;
    }

    fn hold(&self, record: &'static str, held: Held, told: Duration, is_guest: bool) {
        self.world.compare(self.n, record, &held, told);
        if !is_guest {
            self.seat(|seat| {
                seat.held.insert(record, held);
                seat.told.insert(record, told);
            });
        }
    }

    /// Follows a record for a moment, beside who does so all the time or alone; one at a time.
    pub(super) fn glance(&self, until: &mut Duration) {
        let now = self.world.now();
        if now < *until {
            return;
        }
        let clock = &self.world.clock;
        let time = clock.between(Duration::from_secs(1), Duration::from_secs(4));
        // The answer may take as long as any.
        *until = now + time + COMMAND_TIMEOUT + LATE_MAX;
        let patch = clock.once_in(2);
        let guest = RECORDS.get(clock.below(6) as usize).copied();
        let record = guest.unwrap_or("pulse");
        let following = self.clone().follow(record, patch, time, guest.is_some());
        clock.spawn(self.node, following);
    }

    /// What another client, mostly of another server, publishes while a subscription is answered counts as well.
    pub(super) async fn beside(&self) {
        let (_, other) = self.neighbour();
        for _ in 0..=self.world.clock.below(3) {
            let called = self.world.now();
            let write = Write {
                record: "pulse".to_owned(),
                how: How::Replace,
                value: json!(self.world.mark()),
            };
            let version = other.command::<_, Option<u64>>("write", write).await;
            if let Ok(Some(version)) = version {
                self.world.expect_version("pulse", version, called);
            }
        }
    }

    /// Makes a value of any shape, by the client's own means or the application's.
    pub(super) async fn write(&self, name: &'static str) {
        let mark = self.world.mark();
        let value = match self.world.clock.below(8) {
            0 => json!({}),
            1 => json!(mark),
            2 => json!(format!("by {}", self.n)),
            3 => json!([mark, self.n]),
            4 => json!({ "by": self.n, "list": [1, mark, 3] }),
            _ => json!({ "by": self.n, "mark": mark, "deep": { "er": mark % 3 } }),
        };
        let called = self.world.now();
        let version = match self.world.clock.below(6) {
            0 if name == "doc" => {
                let publish = self.client.publish_record_update(name, &value);
                self.call("publish record", publish).await;
                None
            }
            how => {
                let how = match how {
                    1 => How::Delete,
                    2 => How::Merge,
                    3 => How::DeepMerge,
                    _ => How::Replace,
                };
                let record = name.to_owned();
                let write = Write { record, how, value };
                self.command::<Option<u64>>("write", write).await.flatten()
            }
        };
        if let Some(version) = version {
            self.world.expect_version(name, version, called);
        }
    }

    pub(super) async fn merge(&self) {
        let mark = self.world.mark();
        let deep = self.world.clock.once_in(2);
        let write = Write {
            record: "board".to_owned(),
            how: if deep { How::DeepMerge } else { How::Merge },
            value: json!({ format!("client{}", self.n): mark }),
        };
        let called = self.world.now();
        if let Some(Some(version)) = self.command::<Option<u64>>("write", write).await {
            let mut state = self.world.state();
            if state.is_kept_since(called) {
                state.board.insert(self.n, mark);
            }
            drop(state);
            self.world.expect_version("board", version, called);
        }
    }

    pub(super) async fn count(&self) {
        let called = self.world.now();
        match self.command::<u64>("count", ()).await {
            Some(version) => {
                let mut state = self.world.state();
                if state.is_kept_since(called) {
                    state.counted += 1;
                } else {
                    state.maybe_counted += 1;
                }
                drop(state);
                self.world.expect_version("count", version, called);
            }
            None => self.world.state().maybe_counted += 1,
        }
    }

    /// Nothing was deleted so long ago that it may be forgotten.
    pub(super) async fn purge(&self) {
        let forgotten = self.command::<u64>("purge", ()).await;
        if forgotten.is_some_and(|forgotten| forgotten > 0) {
            self.violation(format_args!("{forgotten:?} records are forgotten"));
        }
    }
}
