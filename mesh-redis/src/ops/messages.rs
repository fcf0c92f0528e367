//! Topics, channels and their history.

use std::{pin::pin, sync::Arc};

use bytes::Bytes;
use futures_channel::oneshot;
use mesh_core::backend::{BackendError, Name, Reply, Topic};

use crate::{
    decode, envelope,
    keys::Keys,
    scripts,
    shared::{Shared, usage},
    stats::Counters,
    subscriptions::Order,
};

impl Shared {
    /// The Redis channel of a topic, if it may be taken.
    fn channel(&self, topic: &Topic) -> Result<String, BackendError> {
        match topic {
            Topic::Channel(name) if self.keys.is_reserved(name) => Err(usage(
                "the names of channels do not begin with the prefix of mesh's own",
            )),
            Topic::All | Topic::Channel(_) | Topic::Instance(_) | Topic::Room(_) => {
                Ok(self.keys.topic(topic))
            }
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
            named.push((self.channel(&topic)?, topic));
        }
        let names = self.topics.take(named);
        if names.is_empty() {
            return Ok(Reply::Done);
        }
        let (done, in_force) = oneshot::channel();
        let _ = self.orders.unbounded_send(Order { names, done });
        match open.session.or_end(in_force).await {
            Some(Ok(())) => Ok(Reply::Done),
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
            .filter_map(|topic| self.channel(topic).ok())
            .collect();
        let names = self.topics.give_back(names);
        // While the store is lost nothing is subscribed.
        if let (Ok(open), false) = (open, names.is_empty()) {
            let (done, in_force) = oneshot::channel();
            let _ = self.orders.unbounded_send(Order { names, done });
            let _ = open.session.or_end(in_force).await;
        }
        Ok(Reply::Done)
    }

    pub(super) async fn publish(
        self: &Arc<Self>,
        topic: &Topic,
        message: &Bytes,
    ) -> Result<Reply, BackendError> {
        let open = self.open_instance()?;
        if matches!(topic, Topic::Channel(_)) {
            return Err(usage(
                "messages of channels are published by `PublishChannel`",
            ));
        }
        let channel = self.channel(topic)?;
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
    ) -> Result<Reply, BackendError> {
        let open = self.open_instance()?;
        if limit == 0 {
            return Ok(Reply::History(Vec::new()));
        }
        let last = i64::try_from(limit - 1).unwrap_or(i64::MAX);
        let mut cmd = redis::cmd("LRANGE");
        cmd.arg(Keys::history(channel)).arg(0).arg(last);
        let reply = self.send(&open.session, &cmd).await?;
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
