//! Topics, channels and their history.

use std::{pin::pin, sync::Arc};

use bytes::Bytes;
use futures_channel::oneshot;
use mesh_core::backend::{BackendError, Name, Reply, Topic};
use redis::Value;

use crate::{
    decode, envelope,
    keys::Keys,
    scripts,
    shared::{Shared, usage},
    stats::Counters,
    subscriptions::{Order, Wanting},
};

/// Topics that are being taken. Whatever becomes of it, none stays that nobody was told of.
struct Taking<'a> {
    shared: &'a Shared,
    wanting: Wanting,
    taken: bool,
}

impl Taking<'_> {
    /// They are in force, and who took them is told.
    fn done(mut self) {
        self.taken = true;
    }
}

impl Drop for Taking<'_> {
    fn drop(&mut self) {
        let shared = self.shared;
        let left = shared.topics.settle(&self.wanting.names, self.taken);
        if !left.is_empty() {
            drop(shared.order(left, shared.topics.losses()));
        }
    }
}

impl Shared {
    /// Has topics' subscriptions brought up to the table.
    pub(crate) fn order(
        &self,
        names: Vec<String>,
        losses: u64,
    ) -> oneshot::Receiver<Result<(), BackendError>> {
        let (done, receiver) = oneshot::channel();
        let _ = self.orders.unbounded_send(Order {
            names,
            losses,
            done,
        });
        receiver
    }

    /// Is there such a topic?
    fn check(&self, topic: &Topic) -> Result<(), BackendError> {
        match topic {
            Topic::Channel(name) if self.keys.is_reserved(name) => Err(usage(
                "the names of channels do not begin with the prefix of mesh's own",
            )),
            Topic::All
            | Topic::Channel(_)
            | Topic::Instance(_)
            | Topic::Record(_)
            | Topic::Room(_) => Ok(()),
            _ => Err(usage("this version of mesh-redis does not know the topic")),
        }
    }

    pub(super) async fn subscribe(
        self: &Arc<Self>,
        topics: Vec<Topic>,
    ) -> Result<Reply, BackendError> {
        let open = self.open_instance()?;
        let mut named = Vec::with_capacity(topics.len());
        for topic in topics {
            self.check(&topic)?;
            let names = self.keys.heard(&topic);
            named.extend(names.into_iter().map(|name| (name, topic.clone())));
        }
        let taking = Taking {
            shared: self,
            wanting: self.topics.take(named),
            taken: false,
        };
        if taking.wanting.names.is_empty() {
            return Ok(Reply::Done);
        }
        let names = taking.wanting.names.iter();
        let names = names.map(|(name, _)| name.clone()).collect();
        let in_force = self.order(names, taking.wanting.losses);
        match open.session.or_end(in_force).await {
            Some(Ok(Ok(()))) => {
                taking.done();
                Ok(Reply::Done)
            }
            Some(Ok(Err(refusal))) => Err(refusal),
            // The driver knows why.
            Some(Err(oneshot::Canceled)) | None => Err(match self.session() {
                Err(error) => error,
                Ok(_) => BackendError::Unavailable("the topics could not be taken".to_owned()),
            }),
        }
    }

    pub(super) async fn unsubscribe(
        self: &Arc<Self>,
        topics: &[Topic],
    ) -> Result<Reply, BackendError> {
        let open = self.open_instance();
        if let Err(error @ BackendError::Usage(_)) = open {
            return Err(error);
        }
        let names = topics
            .iter()
            .filter(|topic| self.check(topic).is_ok())
            .flat_map(|topic| self.keys.heard(topic))
            .collect();
        let names = self.topics.give_back(names);
        // While the store is lost nothing is subscribed.
        if let (Ok(open), false) = (open, names.is_empty()) {
            let done = self.order(names, self.topics.losses());
            let _ = open.session.or_end(done).await;
        }
        Ok(Reply::Done)
    }

    pub(super) async fn publish(
        self: &Arc<Self>,
        topic: &Topic,
        message: &Bytes,
    ) -> Result<Reply, BackendError> {
        let open = self.open_instance()?;
        if matches!(topic, Topic::Channel(_) | Topic::Record(_)) {
            return Err(usage(
                "channels and records are published by operations of their own",
            ));
        }
        self.check(topic)?;
        let channel = self.keys.topic(topic);
        let sealed = envelope::seal(&self.sender, message);
        Counters::add(&self.counters.commands, 1);
        let sent = open.session.publish(&channel, &sealed).await;
        sent.map_err(|failure| self.failed(&open.session, failure))?;
        Ok(Reply::Done)
    }

    pub(super) async fn publish_channel(
        self: &Arc<Self>,
        channel: &Name,
        message: Bytes,
        history: usize,
    ) -> Result<Reply, BackendError> {
        let open = self.open_instance()?;
        if self.keys.is_reserved(channel) {
            return Err(usage(
                "the names of channels do not begin with the prefix of mesh's own",
            ));
        }
        // Its subscribers here hear it from Redis, and other events from this server: the reply waits, so that what
        // its publisher does next comes after it.
        let echo = self.topics.expect_echo(channel, &message);
        if history == 0 {
            Counters::add(&self.counters.commands, 1);
            let sent = open.session.publish(channel, &message).await;
            sent.map_err(|failure| self.failed(&open.session, failure))?;
        } else {
            let kept = history.to_string();
            let arguments = [channel.as_bytes(), &message, kept.as_bytes()];
            let call = scripts::CHANNEL_PUBLISH.call([Keys::history(channel)], arguments);
            self.send(&open.session, &call).await?;
        }
        if let Some(echo) = echo {
            let _ = open.session.or_end(pin!(echo)).await;
        }
        Ok(Reply::Done)
    }

    pub(super) async fn history(
        self: &Arc<Self>,
        channel: &Name,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Reply, BackendError> {
        let open = self.open_instance()?;
        if limit == 0 {
            return Ok(Reply::History(Vec::new()));
        }
        let arguments = [limit.to_string(), bytes_max.to_string()];
        let arguments = arguments.iter().map(String::as_bytes);
        let call = scripts::CHANNEL_HISTORY.call([Keys::history(channel)], arguments);
        let reply = self.send(&open.session, &call).await?;
        if reply == Value::Int(0) {
            return Err(BackendError::ReplyTooLong { max: bytes_max });
        }
        let messages = decode::list(reply)
            .and_then(|list| {
                list.into_iter()
                    .map(decode::bytes)
                    .collect::<Result<Vec<_>, _>>()
            })
            .map_err(|failure| self.failed(&open.session, failure))?;
        Ok(Reply::History(
            messages.into_iter().map(Bytes::from).collect(),
        ))
    }
}
