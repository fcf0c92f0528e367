//! The built-in commands (`protocol.md`, section 4).
//!
//! What is not exposed answers exactly as what does not exist.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use futures_channel::oneshot;
use serde_json::value::RawValue;

use super::{
    Connection, Context, IntoPayload, ServerError,
    handler::{Answer, Answering, ErasedHandler, Wanted},
    metadata,
    registry::{Kind, Registry},
    server::{Completion, Inner, Shard, listed_bytes_max},
};
use crate::{
    backend::{BoxFuture, ConnectionId, Json, MetadataChange, Name, Op, Reply},
    instance::{InstanceError, Outcome, RecordWrite},
    protocol::{
        CommandError,
        builtin::{
            ChannelRef, ConnectionRef, GetChannelHistory, HISTORY_LIMIT_DEFAULT, HistoryReply,
            JoinRoomReply, MetadataReply, MetadataStrategy, PublishRecordUpdate, RecordRef,
            RecordStrategy, RoomRef, SetMyConnectionMetadata, SubscribeChannel, SubscribeRecord,
            SuccessReply,
        },
        encode, names, payload, strings_fit,
    },
    relay::Membership,
};

/// A built-in command.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Builtin {
    GetChannelHistory,
    GetConnectionMetadata,
    GetMyConnectionMetadata,
    GetRoomMetadata,
    JoinRoom,
    LeaveRoom,
    Noop,
    PublishRecordUpdate,
    SetMyConnectionMetadata,
    SubscribeChannel,
    SubscribeRecord,
    UnsubscribeChannel,
    UnsubscribeRecord,
}

/// All built-ins by their bare names.
pub(super) fn all() -> impl Iterator<Item = (&'static str, ErasedHandler)> {
    [
        (names::GET_CHANNEL_HISTORY, Builtin::GetChannelHistory),
        (
            names::GET_CONNECTION_METADATA,
            Builtin::GetConnectionMetadata,
        ),
        (
            names::GET_MY_CONNECTION_METADATA,
            Builtin::GetMyConnectionMetadata,
        ),
        (names::GET_ROOM_METADATA, Builtin::GetRoomMetadata),
        (names::JOIN_ROOM, Builtin::JoinRoom),
        (names::LEAVE_ROOM, Builtin::LeaveRoom),
        (names::NOOP, Builtin::Noop),
        (names::PUBLISH_RECORD_UPDATE, Builtin::PublishRecordUpdate),
        (
            names::SET_MY_CONNECTION_METADATA,
            Builtin::SetMyConnectionMetadata,
        ),
        (names::SUBSCRIBE_CHANNEL, Builtin::SubscribeChannel),
        (names::SUBSCRIBE_RECORD, Builtin::SubscribeRecord),
        (names::UNSUBSCRIBE_CHANNEL, Builtin::UnsubscribeChannel),
        (names::UNSUBSCRIBE_RECORD, Builtin::UnsubscribeRecord),
    ]
    .into_iter()
    .map(|(name, builtin)| (name, ErasedHandler(Arc::new(builtin))))
}

impl Answering for Builtin {
    fn answer(&self, ctx: Context, wanted: Wanted) -> BoxFuture<'static, Answer> {
        let builtin = *self;
        Box::pin(async move {
            let answer = run(builtin, &ctx, wanted).await;
            answer.unwrap_or_else(Answer::Error)
        })
    }
}

async fn run(builtin: Builtin, ctx: &Context, wanted: Wanted) -> Result<Answer, CommandError> {
    let call = BuiltinCall { ctx, wanted };
    match builtin {
        Builtin::GetChannelHistory => call.get_channel_history().await,
        Builtin::GetConnectionMetadata => call.get_connection_metadata().await,
        Builtin::GetMyConnectionMetadata => {
            let metadata = call.server().local_metadata(ctx.connection.id());
            call.reply_metadata(metadata.flatten().as_ref())
        }
        Builtin::GetRoomMetadata => call.get_room_metadata().await,
        Builtin::JoinRoom => call.join_room().await,
        Builtin::LeaveRoom => call.leave_room().await,
        Builtin::Noop => call.reply(&true),
        Builtin::PublishRecordUpdate => call.publish_record_update().await,
        Builtin::SetMyConnectionMetadata => call.set_my_connection_metadata().await,
        Builtin::SubscribeChannel => call.subscribe_channel().await,
        Builtin::SubscribeRecord => call.subscribe_record().await,
        Builtin::UnsubscribeChannel => call.unsubscribe_channel().await,
        Builtin::UnsubscribeRecord => call.unsubscribe_record().await,
    }
}

struct BuiltinCall<'a> {
    ctx: &'a Context,
    wanted: Wanted,
}

impl BuiltinCall<'_> {
    fn server(&self) -> &Arc<Inner> {
        &self.ctx.server.inner
    }

    fn json(&self) -> &str {
        self.ctx.payload.json()
    }

    fn reply<T: serde::Serialize + ?Sized>(&self, reply: &T) -> Result<Answer, CommandError> {
        match reply.reply(self.wanted.id, self.ctx.command()) {
            Ok(frame) => Ok(Answer::Frame(frame)),
            Err(error) => Err(error.into()),
        }
    }

    fn reply_metadata(&self, stored: Option<&Json>) -> Result<Answer, CommandError> {
        let metadata = stored.and_then(|json| serde_json::from_str::<&RawValue>(json).ok());
        self.reply(&MetadataReply { metadata })
    }

    async fn allows(&self, kind: Kind, name: &str) -> bool {
        if kind == Kind::Channel && self.server().backend.reserves(name) {
            return false;
        }
        Registry::allows(
            self.server().registrations.snapshot(),
            kind,
            self.ctx.connection.clone(),
            name.to_owned(),
        )
        .await
    }

    /// Answers in the step in which the machine completes the request.
    async fn answered(
        &self,
        asked: Membership,
        request: impl FnOnce(&mut Shard, Completion),
    ) -> Result<Answer, CommandError> {
        let (sent, answered) = oneshot::channel();
        let connection = self.ctx.connection.clone();
        let key = Arc::clone(asked.name());
        self.server().with_shard(&key, |shard| {
            let ticket = ReplyTicket {
                wanted: self.wanted,
                name: self.ctx.command().into(),
                is_new: !shard.holds(&asked, connection.id()),
                connection,
                asked,
                sent,
            };
            request(shard, Completion::Reply(ticket));
        });
        match answered.await {
            Ok(Ok(())) => Ok(Answer::Sent),
            Ok(Err(error)) => Err(ServerError::from(error).into()),
            Err(_) => Err(ServerError::Gone.into()),
        }
    }

    async fn subscribe_channel(&self) -> Result<Answer, CommandError> {
        let request: SubscribeChannel<'_> = payload::decode_object(self.json())?;
        let server = self.server();
        let channel = server.name("channel", &request.channel)?;
        if !self.allows(Kind::Channel, &channel).await {
            return self.reply(&HistoryReply::default());
        }
        let shared = Arc::clone(&self.ctx.connection.shared);
        server.reserve_membership(&shared, &channel, |shard| {
            shard.is_subscribed(&channel, &shared.id)
        })?;
        let history = request.history_limit.unwrap_or(0);
        let history = history.min(server.config.limits.history_max);
        self.answered(Membership::Channel(channel.clone()), |shard, done| {
            server.subscribe(shard, &channel, shared, history, done);
        })
        .await
    }

    async fn unsubscribe_channel(&self) -> Result<Answer, CommandError> {
        let request: ChannelRef<'_> = payload::decode_object(self.json())?;
        let channel = self.server().name("channel", &request.channel)?;
        let outcome = self
            .server()
            .request(&channel, |shard, done| {
                shard.unsubscribe(&channel, self.ctx.connection.id(), done);
            })
            .await?;
        self.reply(&(outcome == Outcome::Unsubscribed(true)))
    }

    async fn subscribe_record(&self) -> Result<Answer, CommandError> {
        let request: SubscribeRecord<'_> = payload::decode_object(self.json())?;
        let server = self.server();
        let record = server.name("record", &request.record_id)?;
        if !server.may_read(&self.ctx.connection, &record).await {
            return self.reply(&SuccessReply { success: false });
        }
        let shared = Arc::clone(&self.ctx.connection.shared);
        server.reserve_membership(&shared, &record, |shard| {
            shard.is_record_subscribed(&record, &shared.id)
        })?;
        self.answered(Membership::Record(record.clone()), |shard, done| {
            server.subscribe_record(shard, &record, shared, request.mode, done);
        })
        .await
    }

    async fn unsubscribe_record(&self) -> Result<Answer, CommandError> {
        let request: RecordRef<'_> = payload::decode_object(self.json())?;
        let server = self.server();
        let record = server.name("record", &request.record_id)?;
        let now = server.runtime.now();
        let outcome = server
            .request(&record, |shard, done| {
                shard.unsubscribe_record(&record, self.ctx.connection.id(), done, now);
            })
            .await?;
        self.reply(&(outcome == Outcome::Unsubscribed(true)))
    }

    async fn publish_record_update(&self) -> Result<Answer, CommandError> {
        let request: PublishRecordUpdate<'_> = payload::decode_object(self.json())?;
        let server = self.server();
        let record = server.name("record", &request.record_id)?;
        if !self.allows(Kind::WritableRecord, &record).await {
            let message = format!("Record \"{record}\" is not writable by this connection.");
            return Err(CommandError::new(message));
        }
        let json = server.record_value(request.new_value)?;
        let write = match request.options.unwrap_or_default().strategy {
            RecordStrategy::DeepMerge => RecordWrite::Merge { json, deep: true },
            RecordStrategy::Merge => RecordWrite::Merge { json, deep: false },
            RecordStrategy::Replace => RecordWrite::Replace(json),
        };
        self.ctx.server.write_record(&record, write).await?;
        self.reply(&SuccessReply { success: true })
    }

    async fn get_channel_history(&self) -> Result<Answer, CommandError> {
        let request: GetChannelHistory<'_> = payload::decode_object(self.json())?;
        let server = self.server();
        let channel = server.name("channel", &request.channel)?;
        if !self.allows(Kind::Channel, &channel).await {
            return self.reply(&HistoryReply::default());
        }
        let limit = request.limit.unwrap_or(HISTORY_LIMIT_DEFAULT);
        let limit = limit.min(server.config.limits.history_max);
        let max = listed_bytes_max(&server.config.limits);
        let op = Op::History {
            channel,
            limit,
            bytes_max: max,
        };
        let Reply::History(history) = server.ask(op).await? else {
            return self.reply(&HistoryReply::default());
        };
        if !strings_fit(&history, max) {
            return Err(ServerError::ReplyTooLong { max }.into());
        }
        self.reply(&history_reply(&history))
    }

    async fn join_room(&self) -> Result<Answer, CommandError> {
        let request: RoomRef<'_> = payload::decode_object(self.json())?;
        let server = self.server();
        let room = server.name("room", &request.room_name)?;
        if !self.allows(Kind::Room, &room).await {
            return self.reply(&JoinRoomReply::default());
        }
        let shared = Arc::clone(&self.ctx.connection.shared);
        server.reserve_membership(&shared, &room, |shard| shard.is_member(&room, &shared.id))?;
        self.answered(Membership::Room(room.clone()), |shard, done| {
            server.join(shard, &room, shared, true, done);
        })
        .await
    }

    async fn leave_room(&self) -> Result<Answer, CommandError> {
        let request: RoomRef<'_> = payload::decode_object(self.json())?;
        let room = self.server().name("room", &request.room_name)?;
        // A room that is not exposed is the application's: leaving it is as leaving one that does not exist.
        let registry = self.server().registrations.snapshot();
        if registry.covers(Kind::Room, &room) {
            self.server()
                .request(&room, |shard, done| {
                    shard.leave(&room, self.ctx.connection.id().clone(), done);
                })
                .await?;
        }
        self.reply(&SuccessReply { success: true })
    }

    async fn get_room_metadata(&self) -> Result<Answer, CommandError> {
        let request: RoomRef<'_> = payload::decode_object(self.json())?;
        let server = self.server();
        let room = server.name("room", &request.room_name)?;
        if !self.allows(Kind::RoomMetadata, &room).await {
            return self.reply_metadata(None);
        }
        match server.ask(Op::RoomMetadata { room }).await? {
            Reply::Metadata(metadata) => self.reply_metadata(metadata.as_ref()),
            _ => self.reply_metadata(None),
        }
    }

    async fn get_connection_metadata(&self) -> Result<Answer, CommandError> {
        let request: ConnectionRef<'_> = payload::decode_object(self.json())?;
        let asked = ConnectionId::new(&*request.connection_id);
        let own = asked == *self.ctx.connection.id();
        if !own && !self.allows(Kind::ConnectionMetadata, asked.as_str()).await {
            return self.reply_metadata(None);
        }
        let metadata = self.server().metadata(&asked).await?;
        self.reply_metadata(metadata.as_ref())
    }

    async fn set_my_connection_metadata(&self) -> Result<Answer, CommandError> {
        let server = self.server();
        if !server.client_metadata {
            return self.reply(&SuccessReply { success: false });
        }
        let request: SetMyConnectionMetadata<'_> = payload::decode_object(self.json())?;
        // Whoever lists all metadata as typed values must be able to read this client's.
        payload::decode::<serde_json::Value>(request.metadata.get())?;
        let replace = request.options.unwrap_or_default().strategy == MetadataStrategy::Replace;
        let authenticated = self.ctx.connection.shared.authenticated.as_ref();
        let wished = request.metadata.get().into();
        let wished = metadata::checked(wished, server.config.limits.metadata_bytes_max)?;
        let Some(change) = client_change(wished, replace, authenticated) else {
            return self.reply(&SuccessReply { success: false });
        };
        server
            .change_metadata(self.ctx.connection.id(), change)
            .await?;
        self.reply(&SuccessReply { success: true })
    }
}

/// What a client's wish comes to: the keys that `authenticate` set are the server's and stay as they are when the change is made,
/// which may be another value than at the upgrade, or none. `None` where all of the document is the server's.
fn client_change(
    wished: Json,
    replace: bool,
    authenticated: Option<&Json>,
) -> Option<MetadataChange> {
    type Keys<'a> = BTreeMap<String, &'a RawValue>;
    let Some(authenticated) = authenticated else {
        return Some(if replace {
            MetadataChange::Replace(wished)
        } else {
            MetadataChange::Merge(wished)
        });
    };
    let fixed: Keys<'_> = serde_json::from_str(authenticated).ok()?;
    let mut keys: Keys<'_> = serde_json::from_str(&wished).ok()?;
    if replace {
        let keys = fixed.into_keys().map(Into::into).collect();
        return Some(MetadataChange::ReplaceExcept { json: wished, keys });
    }
    keys.retain(|key, _| !fixed.contains_key(key));
    let wished = serde_json::to_string(&keys).ok()?;
    Some(MetadataChange::Merge(wished.into()))
}

fn history_reply(history: &[bytes::Bytes]) -> HistoryReply<'_> {
    HistoryReply {
        success: true,
        history: history
            .iter()
            .map(|message| String::from_utf8_lossy(message))
            .collect(),
    }
}

/// The right to answer one command in the very step in which its request is completed.
pub(super) struct ReplyTicket {
    connection: Connection,
    wanted: Wanted,
    name: Name,
    asked: Membership,
    /// The connection did not hold it before.
    is_new: bool,
    sent: oneshot::Sender<Result<(), InstanceError>>,
}

/// What was granted without the client being told so, as it is owed too much already: it is to be taken back.
pub(super) struct Untold {
    pub(super) connection: ConnectionId,
    pub(super) asked: Membership,
}

impl ReplyTicket {
    pub(super) fn answer(
        self,
        result: Result<Outcome, InstanceError>,
        now: std::time::Instant,
    ) -> Option<Untold> {
        let frame = match result {
            Ok(Outcome::Joined { present, .. }) => {
                let present = present
                    .iter()
                    .map(|id| Cow::Borrowed(id.as_str()))
                    .collect();
                let reply = JoinRoomReply {
                    success: true,
                    present,
                };
                encode::reply(self.wanted.id, &self.name, &reply)
            }
            Ok(Outcome::Subscribed { history }) => {
                encode::reply(self.wanted.id, &self.name, &history_reply(&history))
            }
            Ok(Outcome::RecordSubscribed(record)) => {
                let value = record.value.as_deref().unwrap_or("null");
                let version = record.version.number;
                let id = self.wanted.id;
                Ok(encode::record_snapshot(id, &self.name, value, version))
            }
            Ok(_) => encode::reply(self.wanted.id, &self.name, &SuccessReply { success: true }),
            Err(error) => {
                // The command's own task makes the reply; it may be gone with its connection.
                let _ = self.sent.send(Err(error));
                return None;
            }
        };
        let shared = &self.connection.shared;
        let sent = match frame {
            Ok(frame) => shared.grant(self.wanted.token, &self.name, frame, now),
            // What has no JSON form is nothing that could be granted.
            Err(_) => Ok(()),
        };
        let untold = sent.is_err() && self.is_new;
        let _ = self.sent.send(sent);
        untold.then(|| Untold {
            connection: shared.id.clone(),
            asked: self.asked,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{MetadataChange, client_change};

    #[test]
    fn what_authenticate_set_stays() {
        let fixed = Some(r#"{"userId":1}"#.into());
        let change = |wish: &str, replace| client_change(wish.into(), replace, fixed.as_ref());
        let wish = r#"{"userId":2,"name":1.50}"#;
        let merge = MetadataChange::Merge(r#"{"name":1.50}"#.into());
        assert_eq!(change(wish, false), Some(merge));
        let except = MetadataChange::ReplaceExcept {
            json: wish.into(),
            keys: vec!["userId".into()],
        };
        assert_eq!(change(wish, true), Some(except));
        assert_eq!(change("[1]", true), None);
        assert_eq!(client_change("{}".into(), false, Some(&"7".into())), None);
        let merge = MetadataChange::Merge("[1]".into());
        assert_eq!(client_change("[1]".into(), false, None), Some(merge));
    }
}
