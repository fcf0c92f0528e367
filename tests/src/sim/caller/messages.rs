//! What clients say to each other, on rooms' events and channels, and what they hear.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_channel::oneshot;
use mesh_client_core::driver::{ChannelEvent, ClientError, Subscription};
use serde::Deserialize;
use serde_json::json;

use super::super::host::{HISTORY, Message, Several};
use super::super::world::{Belonging, DELIVERY_MAX, Mark, Seat, To, VIP};
use super::{AGAIN, Caller, before};

/// How many messages of a channel are told with a subscription.
const RECALLED: usize = 5;

/// What is told of the history of a channel.
#[derive(Deserialize)]
struct History {
    history: Vec<String>,
}

impl Caller {
    /// Hears what is said in a room, and only while it is a member.
    pub(super) async fn overhear(self, room: &'static str) {
        let event = format!("shout {room}");
        let mut shouts = self.client.on::<Message>(&event);
        let mut last = BTreeMap::new();
        while let Some(shout) = shouts.next().await {
            let Ok(message) = shout else {
                self.violation("a shout that is none");
                continue;
            };
            self.hears(&event, &message, &mut last);
            let now = self.world.now();
            let (belonging, online) = self.seat(|seat| {
                let belonging = seat.rooms.get(room).copied().unwrap_or_default();
                (belonging, seat.online_since)
            });
            match belonging {
                // What arrives in the same moment may have been read before the answer.
                Belonging::Left { since } | Belonging::Expelled { since } if since < now => {
                    self.violation(format_args!("it left {room} and hears {message:?}"));
                }
                Belonging::Member { since } if room == VIP => {
                    let revoked = self.world.state().revoked;
                    // With each connection it joins anew.
                    let joined = since.max(online.unwrap_or(now));
                    if let Some((called, done)) = revoked
                        && joined < called
                        && Duration::from_micros(message.sent) > done
                        && self.is_whole_since(joined)
                    {
                        self.violation(format_args!(
                            "its membership was revoked at {done:?} and it hears {message:?}"
                        ));
                    }
                }
                _ => {}
            }
        }
    }

    pub(super) async fn hear(self, event: &'static str) {
        let mut events = self.client.on::<Message>(event);
        let mut last = BTreeMap::new();
        while let Some(Ok(message)) = events.next().await {
            self.hears(event, &message, &mut last);
        }
        self.violation(format_args!("it hears no {event} any more"));
    }

    /// A message is there: those of one publisher in its order, none of them twice, and none that it was left out of.
    fn hears(&self, what: &str, message: &Message, last: &mut BTreeMap<[u64; 3], Mark>) {
        self.log(format_args!("hears {what} {}", message.mark));
        // What is under way while a client goes from one server to another may reach both of its connections.
        let here = self.seat(|seat| seat.losses);
        let from = message.from as u64;
        let before = last.insert([from, message.via, here], message.mark);
        if before.is_some_and(|before| before >= message.mark) {
            self.violation(format_args!("{what} {message:?} behind {before:?}"));
        }
        let online = self.seat(|seat| {
            seat.heard.insert(message.mark);
            seat.online_since
        });
        let is_left_out = self.world.state().left_out.get(&message.mark) == Some(&self.n);
        if is_left_out && online.is_some_and(|since| since < Duration::from_micros(message.sent)) {
            self.violation(format_args!("it is left out of {what} {message:?}"));
        }
    }

    /// A history came that was asked for no earlier than then.
    fn recalls(&self, channel: &'static str, history: &[String], limit: usize, asked: Duration) {
        let read = |text: &String| serde_json::from_str::<Message>(text).ok();
        let messages: Vec<_> = history.iter().filter_map(read).collect();
        let mut oldest = BTreeMap::<_, Mark>::new();
        let is_in_order = messages.iter().all(|message| {
            let later = oldest.insert((message.from, message.via), message.mark);
            later.is_none_or(|later| later > message.mark)
        });
        if !is_in_order || messages.len() != history.len() || history.len() > limit {
            self.violation(format_args!("{channel} has the history {history:?}"));
        }
        let told = messages.iter().map(|message| message.mark).collect();
        if let Some(wrong) = (self.world).wrong_in_history(channel, limit, asked, &told) {
            self.violation(format_args!(
                "the history of {channel} is {told:?}: {wrong}"
            ));
        }
    }

    /// Messages of one publisher come in its order, none of them twice; until it is told to stop.
    pub(super) async fn listen(self, channel: &'static str, stop: Option<oneshot::Receiver<()>>) {
        if stop.is_some()
            && self.world.clock.once_in(2)
            && let Ok(first) = self.client.subscribe(channel).await
        {
            // Given back and taken again at once.
            self.begins_to_unsubscribe();
            let _ = first.unsubscribe().await;
            self.seat(|seat| seat.unsubscribing = seat.unsubscribing.saturating_sub(1));
        }
        let (asked, mut subscription) = loop {
            let asked = self.world.now();
            let call = self.client.subscribe(channel).history(RECALLED as u32);
            match self.call("subscribe", call).await {
                Some(subscription) => break (asked, subscription),
                None if stop.is_some() => return,
                None => self.sleep(AGAIN).await,
            }
        };
        self.recalls(channel, subscription.history(), RECALLED, asked);
        let since = self.world.now();
        self.seat(|seat| seat.listens.insert(channel, since));
        let (_never, forever) = oneshot::channel();
        let mut stop = stop.unwrap_or(forever);
        let mut last = BTreeMap::new();
        while let Some(next) = before(&mut stop, subscription.next()).await {
            let Some(event) = next else {
                let end = subscription.end();
                return self.violation(format_args!("{channel} ends: {end:?}"));
            };
            match event {
                ChannelEvent::Message(text) => {
                    let Ok(message) = serde_json::from_str::<Message>(&text) else {
                        self.violation(format_args!("{text:?} is no message"));
                        continue;
                    };
                    self.hears(channel, &message, &mut last);
                }
                ChannelEvent::Resubscribed { history } => {
                    let lost = self.seat(|seat| seat.lost_at).unwrap_or_default();
                    self.recalls(channel, &history, RECALLED, lost);
                }
                ChannelEvent::Gap => {
                    let now = self.world.now();
                    self.log(format_args!("{channel} has a gap"));
                    self.seat(|seat| seat.gaps.insert(channel, now));
                }
                other => self.violation(format_args!("{channel}: {other:?}")),
            }
        }
        self.stop(channel, subscription).await;
    }

    async fn stop(&self, channel: &'static str, subscription: Subscription) {
        self.seat(|seat| seat.listens.remove(channel));
        self.end("unsubscribe", subscription.unsubscribe()).await;
    }

    /// What comes from now on may be what nobody is subscribed to any more. Since when it is connected.
    fn begins_to_unsubscribe(&self) -> Option<Duration> {
        self.seat(|seat| {
            seat.unsubscribing += 1;
            seat.unsubscribed += 1;
            seat.online_since
        })
    }

    /// A subscription ends, and nothing of it comes behind the answer.
    pub(super) async fn end(&self, what: &str, end: impl Future<Output = Result<(), ClientError>>) {
        let online = self.begins_to_unsubscribe();
        let is_done = self.call(what, end).await.is_some();
        let is_same = |seat: &mut Seat| online.is_some() && seat.online_since == online;
        if !is_done || !self.seat(is_same) {
            return;
        }
        let (others, unsubscribed) = self.seat(|seat| {
            seat.unsubscribing -= 1;
            (seat.unsubscribing, seat.unsubscribed)
        });
        let before = self.client.stats().messages_unclaimed;
        self.sleep(DELIVERY_MAX).await;
        let is_only = others == 0 && self.seat(|seat| seat.unsubscribed) == unsubscribed;
        let after = self.client.stats().messages_unclaimed;
        if is_only && after > before && self.seat(is_same) {
            self.violation("it hears of what it has unsubscribed");
        }
    }

    pub(super) async fn shout(&self, room: &'static str) {
        let about = self.about_others(room);
        let (mark, called) = (about.message.mark, self.world.now());
        // In a room that others clear nobody knows whether it is still a member.
        if self.command::<bool>("shout", about).await.is_some() && room != VIP {
            self.world.expect(mark, To::Room(room), called);
        }
    }

    pub(super) async fn announce(&self) {
        let about = self.about_others("all");
        let (mark, called) = (about.message.mark, self.world.now());
        if self.command::<bool>("announce", about).await.is_some() {
            self.world.expect(mark, To::Everybody, called);
        }
    }

    pub(super) async fn whisper(&self) {
        let Some(id) = self.somebody() else { return };
        let about = self.about(&id);
        let (mark, called) = (about.message.mark, self.world.now());
        if self.command::<bool>("whisper", about).await.is_some() {
            self.world.expect(mark, To::Connection(id), called);
        }
    }

    /// The same for two of them, one of whom is named twice.
    pub(super) async fn tell(&self) {
        let (Some(one), Some(other)) = (self.somebody(), self.somebody()) else {
            return;
        };
        let told = Several {
            names: vec![one.clone(), other.clone(), one.clone()],
            message: self.message(),
        };
        let (mark, called) = (told.message.mark, self.world.now());
        if self.command::<bool>("tell", told).await.is_some() {
            for id in [one, other] {
                self.world.expect(mark, To::Connection(id), called);
            }
        }
    }

    pub(super) async fn publish(&self, channel: &'static str) {
        let about = self.about(channel);
        let (mark, called) = (about.message.mark, self.world.now());
        self.world.publish(channel, mark);
        if self.command::<bool>("publish", about).await.is_none() {
            return;
        }
        self.world.published(channel, mark);
        self.world.expect(mark, To::Channel(channel), called);
        let asked = self.world.now();
        let limit = json!({ "channel": channel, "limit": 50 });
        let told = self.command("mesh/get-channel-history", limit).await;
        if let Some(History { history }) = told {
            self.recalls(channel, &history, HISTORY, asked);
        }
    }

    /// Begins or ends a subscription.
    pub(super) fn toggle(&self, side: &mut Option<oneshot::Sender<()>>) {
        match side.take() {
            Some(stop) => drop(stop.send(())),
            None => {
                let (sender, stop) = oneshot::channel();
                let listening = self.clone().listen("side", Some(stop));
                self.world.clock.spawn(self.node, listening);
                *side = Some(sender);
            }
        }
    }
}
