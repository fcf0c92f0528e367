//! The shapes of the built-in commands and events (`protocol.md`, sections 4 and 5).
//!
//! Servers read payloads with [`payload::decode_object`](super::payload::decode_object) and write replies; clients do the reverse. Names are in
//! [`names`](super::names). Where the shape is a plain value there is no type: `unsubscribe-channel` and `unsubscribe-record` reply a boolean, `noop` replies `true`,
//! `get-my-connection-metadata` ignores its payload, the payload of `assign-id` is a string, that of the event `error` a
//! [`CommandError`](super::CommandError). Unknown keys are ignored.

use std::{borrow::Cow, fmt};

use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::value::RawValue;

/// The `limit` of `get-channel-history` where it is absent.
pub const HISTORY_LIMIT_DEFAULT: usize = 50;

/// `{channel}`: the payload of `unsubscribe-channel`, and of the event `gap`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ChannelRef<'a> {
    /// The channel.
    #[serde(borrow)]
    pub channel: Cow<'a, str>,
}

/// `{connectionId}`: the payload of `get-connection-metadata`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionRef<'a> {
    /// The connection.
    #[serde(borrow)]
    pub connection_id: Cow<'a, str>,
}

/// `{channel, limit?}`: the payload of `get-channel-history`.
///
/// Limits are whole numbers, 0 or more, however they are written: `5.0` and `5e0` are 5. A negative one or a fraction is `EINVALID`, `null` is
/// absent, and what `usize` cannot hold is its largest value.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct GetChannelHistory<'a> {
    /// The channel.
    #[serde(borrow)]
    pub channel: Cow<'a, str>,
    /// The most messages that are wanted; [`HISTORY_LIMIT_DEFAULT`] where it is absent.
    #[serde(
        default,
        deserialize_with = "count",
        skip_serializing_if = "Option::is_none"
    )]
    pub limit: Option<usize>,
}

/// `{success, history}`: the reply to `subscribe-channel` and `get-channel-history`.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct HistoryReply<'a> {
    /// False where the channel is not exposed to this connection.
    pub success: bool,
    /// Messages, newest first; empty without success.
    pub history: Vec<Cow<'a, str>>,
}

/// `{success, present}`: the reply to `join-room`.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct JoinRoomReply<'a> {
    /// False where the room is not exposed to this connection.
    pub success: bool,
    /// The ids of the room's members, in any order; empty without success.
    pub present: Vec<Cow<'a, str>>,
}

/// What `set-my-connection-metadata` does to the stored document.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum MetadataStrategy {
    /// The keys of the new object replace those of the stored one, one level deep.
    Merge,
    /// The new value replaces what is stored.
    #[default]
    Replace,
}

/// `{strategy?}`: the options of `set-my-connection-metadata`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct MetadataOptions {
    /// `"replace"` where it is absent.
    #[serde(default)]
    pub strategy: MetadataStrategy,
}

/// `{metadata}`: the reply to the commands that read metadata.
///
/// ```
/// use mesh_core::protocol::{builtin::MetadataReply, encode};
///
/// let stored = serde_json::from_str(r#"{"name": "Ada"}"#)?;
/// let reply = encode::reply(1, "c", &MetadataReply { metadata: Some(stored) })?;
/// assert_eq!(reply.text(), r#"{"id":1,"command":"c","payload":{"metadata":{"name": "Ada"}}}"#);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct MetadataReply<'a> {
    /// The document as JSON, `null` where there is none.
    #[serde(borrow)]
    pub metadata: Option<&'a RawValue>,
}

/// `{recordId, newValue, options?}`: the payload of `publish-record-update`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PublishRecordUpdate<'a> {
    /// The record.
    #[serde(borrow)]
    pub record_id: Cow<'a, str>,
    /// The value as JSON, of any kind.
    #[serde(borrow)]
    pub new_value: &'a RawValue,
    /// What to do with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<RecordOptions>,
}

/// `{recordId, version}`: the payload of the event `record-deleted`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordDeleted<'a> {
    /// The record.
    #[serde(borrow)]
    pub record_id: Cow<'a, str>,
    /// The version that the deletion is.
    pub version: u64,
}

/// How the versions of a record reach a subscriber.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum RecordMode {
    /// As whole values.
    #[default]
    Full,
    /// As patches (RFC 6902), where those are smaller.
    Patch,
}

/// `{strategy?}`: the options of `publish-record-update`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct RecordOptions {
    /// `"replace"` where it is absent.
    #[serde(default)]
    pub strategy: RecordStrategy,
}

/// `{recordId}`: the payload of `unsubscribe-record`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordRef<'a> {
    /// The record.
    #[serde(borrow)]
    pub record_id: Cow<'a, str>,
}

/// What `publish-record-update` does to the stored value.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum RecordStrategy {
    /// As `merge`, and so on inside of each key whose values are objects on both sides.
    DeepMerge,
    /// The keys of the new object replace those of the stored one, one level deep; where either is no object, as `replace`.
    Merge,
    /// The new value replaces what is stored.
    #[default]
    Replace,
}

/// `{recordId, full | patch, version}`: the payload of the event `record-update`.
///
/// ```
/// use mesh_core::protocol::{builtin::RecordUpdate, payload::decode_object};
///
/// let update: RecordUpdate<'_> = decode_object(r#"{"recordId":"r","full":null,"version":0}"#)?;
/// assert_eq!(update.full.map(|full| full.get()), Some("null"));
/// assert!(update.patch.is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordUpdate<'a> {
    /// The record.
    #[serde(borrow)]
    pub record_id: Cow<'a, str>,
    /// The value; `null` is one.
    #[serde(
        borrow,
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub full: Option<&'a RawValue>,
    /// What makes the value out of that of the version before, an RFC 6902 array.
    #[serde(
        borrow,
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub patch: Option<&'a RawValue>,
    /// The version.
    pub version: u64,
}

/// `{roomName}`: the payload of `join-room`, `leave-room` and `get-room-metadata`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RoomRef<'a> {
    /// The room.
    #[serde(borrow)]
    pub room_name: Cow<'a, str>,
}

/// `{metadata, options?}`: the payload of `set-my-connection-metadata`.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct SetMyConnectionMetadata<'a> {
    /// The document as JSON, of any kind.
    #[serde(borrow)]
    pub metadata: &'a RawValue,
    /// What to do with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<MetadataOptions>,
}

/// `{channel, historyLimit?}`: the payload of `subscribe-channel`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SubscribeChannel<'a> {
    /// The channel.
    #[serde(borrow)]
    pub channel: Cow<'a, str>,
    /// The most messages of the history that are wanted, as [`GetChannelHistory`] reads them; none where it is absent.
    #[serde(
        default,
        deserialize_with = "count",
        skip_serializing_if = "Option::is_none"
    )]
    pub history_limit: Option<usize>,
}

/// `{recordId, mode?}`: the payload of `subscribe-record`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SubscribeRecord<'a> {
    /// The record.
    #[serde(borrow)]
    pub record_id: Cow<'a, str>,
    /// How its versions are wanted.
    #[serde(default)]
    pub mode: RecordMode,
}

/// `{success, record, version}`: the reply to `subscribe-record`; where the record is not exposed it is a [`SuccessReply`].
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct SubscribeRecordReply<'a> {
    /// False where the record is not exposed to this connection.
    pub success: bool,
    /// The value, `null` where none is stored.
    #[serde(borrow, default)]
    pub record: Option<&'a RawValue>,
    /// Its version: 0 where there never was one, a deletion's where it is deleted.
    #[serde(default)]
    pub version: u64,
}

/// `{channel, message}`: the payload of the event `subscription-message`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SubscriptionMessage<'a> {
    /// The channel.
    #[serde(borrow)]
    pub channel: Cow<'a, str>,
    /// The message as it was published.
    #[serde(borrow)]
    pub message: Cow<'a, str>,
}

/// `{success}`: the reply to `leave-room`, `publish-record-update` and `set-my-connection-metadata`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct SuccessReply {
    /// Was it done?
    pub success: bool,
}

/// What is there, `null` included.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    Ok(Option::<Count>::deserialize(deserializer)?.map(|Count(count)| count))
}

/// A whole number, 0 or more. JSON has one kind of number, so 5.0 is one as well.
struct Count(usize);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_u64(CountVisitor).map(Self)
    }
}

struct CountVisitor;

impl de::Visitor<'_> for CountVisitor {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number, 0 or more")
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<usize, E> {
        Ok(usize::try_from(value).unwrap_or(usize::MAX))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<usize, E> {
        match u64::try_from(value) {
            Ok(value) => self.visit_u64(value),
            Err(_) => Err(E::invalid_value(de::Unexpected::Signed(value), &self)),
        }
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<usize, E> {
        if value >= 0.0 && value.fract() == 0.0 {
            Ok(value as usize) // Saturates.
        } else {
            Err(E::invalid_value(de::Unexpected::Float(value), &self))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::{Serialize, de::DeserializeOwned};
    use serde_json::value::RawValue;

    use super::*;
    use crate::protocol::payload::decode_object;

    fn json(value: &impl Serialize) -> String {
        serde_json::to_string(value).unwrap()
    }

    /// Replies with text in lists own it, so that a typed command can return them.
    fn owned<T: DeserializeOwned>(json: &str) -> T {
        decode_object(json).unwrap()
    }

    #[test]
    fn every_payload_has_its_shape_and_ignores_what_it_does_not_know() {
        let channel = ChannelRef {
            channel: "c".into(),
        };
        assert_eq!(json(&channel), r#"{"channel":"c"}"#);
        assert_eq!(decode_object(r#"{"x":1,"channel":"c"}"#), Ok(channel));

        let connection = ConnectionRef {
            connection_id: "i.1".into(),
        };
        assert_eq!(json(&connection), r#"{"connectionId":"i.1"}"#);
        assert_eq!(decode_object(&json(&connection)), Ok(connection));

        let room = RoomRef {
            room_name: "r".into(),
        };
        assert_eq!(json(&room), r#"{"roomName":"r"}"#);
        assert_eq!(decode_object(&json(&room)), Ok(room));

        let message = SubscriptionMessage {
            channel: "c".into(),
            message: "{\"a\"\n:1}".into(),
        };
        assert_eq!(json(&message), r#"{"channel":"c","message":"{\"a\"\n:1}"}"#);
        assert_eq!(decode_object(&json(&message)), Ok(message));

        let history = HistoryReply {
            success: true,
            history: vec!["b".into(), "a".into()],
        };
        assert_eq!(json(&history), r#"{"success":true,"history":["b","a"]}"#);
        assert_eq!(owned::<HistoryReply<'static>>(&json(&history)), history);
        assert_eq!(
            json(&HistoryReply::default()),
            r#"{"success":false,"history":[]}"#
        );

        let join = JoinRoomReply {
            success: true,
            present: vec!["i.1".into()],
        };
        assert_eq!(json(&join), r#"{"success":true,"present":["i.1"]}"#);
        assert_eq!(owned::<JoinRoomReply<'static>>(&json(&join)), join);
        assert_eq!(
            json(&JoinRoomReply::default()),
            r#"{"success":false,"present":[]}"#
        );

        assert_eq!(json(&SuccessReply { success: true }), r#"{"success":true}"#);
        assert_eq!(json(&SuccessReply::default()), r#"{"success":false}"#);
    }

    #[test]
    fn limits_are_whole_numbers_however_they_are_written() {
        let rows = [
            ("", None),
            (r#","historyLimit":null"#, None),
            (r#","historyLimit":0"#, Some(0)),
            (r#","historyLimit":5"#, Some(5)),
            (r#","historyLimit":5.0"#, Some(5)),
            (r#","historyLimit":5e1"#, Some(50)),
            (r#","historyLimit":-0.0"#, Some(0)),
            (r#","historyLimit":1e300"#, Some(usize::MAX)),
        ];
        for (rest, limit) in rows {
            let text = format!(r#"{{"channel":"c"{rest}}}"#);
            let subscribe: SubscribeChannel<'_> = decode_object(&text).unwrap();
            assert_eq!(subscribe.history_limit, limit, "{text}");
            let text = text.replace("historyLimit", "limit");
            let get: GetChannelHistory<'_> = decode_object(&text).unwrap();
            assert_eq!(get.limit, limit, "{text}");
        }
        for wrong in ["-1", "0.5", "-1e9", "1e999", "\"5\"", "true", "[5]", "{}"] {
            let text = format!(r#"{{"channel":"c","historyLimit":{wrong}}}"#);
            let error = decode_object::<SubscribeChannel<'_>>(&text).unwrap_err();
            assert_eq!(error.code(), "EINVALID", "{text}");
            assert!(error.message().starts_with("historyLimit: "), "{error}");
        }
        let none = SubscribeChannel {
            channel: "c".into(),
            history_limit: None,
        };
        assert_eq!(json(&none), r#"{"channel":"c"}"#);
        let some = SubscribeChannel {
            history_limit: Some(3),
            ..none
        };
        assert_eq!(json(&some), r#"{"channel":"c","historyLimit":3}"#);
    }

    #[test]
    fn records_have_their_shapes() {
        let record = RecordRef {
            record_id: "r".into(),
        };
        assert_eq!(json(&record), r#"{"recordId":"r"}"#);
        assert_eq!(decode_object(&json(&record)), Ok(record));

        let subscribe = |mode| SubscribeRecord {
            record_id: "r".into(),
            mode,
        };
        assert_eq!(
            json(&subscribe(RecordMode::Patch)),
            r#"{"recordId":"r","mode":"patch"}"#
        );
        let full = subscribe(RecordMode::Full);
        assert_eq!(decode_object(r#"{"recordId":"r"}"#), Ok(full.clone()));
        assert_eq!(decode_object(&json(&full)), Ok(full));
        let wrong = decode_object::<SubscribeRecord<'_>>(r#"{"recordId":"r","mode":"x"}"#);
        assert!(wrong.unwrap_err().message().starts_with("mode: "));

        let none = r#"{"success":true,"record":null,"version":3}"#;
        let reply: SubscribeRecordReply<'_> = decode_object(none).unwrap();
        assert!(reply.record.is_none());
        assert_eq!(json(&reply), none);
        let some = r#"{"success":true,"record":{"a": 1.50},"version":3}"#;
        let reply: SubscribeRecordReply<'_> = decode_object(some).unwrap();
        assert_eq!(json(&reply), some);
        let refused: SubscribeRecordReply<'_> = decode_object(r#"{"success":false}"#).unwrap();
        assert!(!refused.success);

        for update in [
            r#"{"recordId":"r","full":null,"version":0}"#,
            r#"{"recordId":"r","full":[1.50],"version":7}"#,
            r#"{"recordId":"r","patch":[],"version":18446744073709551615}"#,
        ] {
            let read: RecordUpdate<'_> = decode_object(update).unwrap();
            assert_eq!(json(&read), update);
        }
        let deleted = RecordDeleted {
            record_id: "r".into(),
            version: 4,
        };
        assert_eq!(json(&deleted), r#"{"recordId":"r","version":4}"#);
        assert_eq!(decode_object(&json(&deleted)), Ok(deleted));

        let publish = |text| decode_object::<PublishRecordUpdate<'_>>(text);
        let strategy = |text| publish(text).unwrap().options.unwrap_or_default().strategy;
        let plain = r#"{"recordId":"r","newValue":null}"#;
        assert_eq!(publish(plain).unwrap().new_value.get(), "null");
        assert_eq!(json(&publish(plain).unwrap()), plain);
        assert_eq!(strategy(plain), RecordStrategy::Replace);
        let deep = r#"{"recordId":"r","newValue":{},"options":{"strategy":"deepMerge"}}"#;
        assert_eq!(strategy(deep), RecordStrategy::DeepMerge);
        assert_eq!(json(&publish(deep).unwrap()), deep);
        let error = publish(r#"{"recordId":"r"}"#).unwrap_err();
        assert_eq!(error.message(), "missing field `newValue`");
    }

    #[test]
    fn metadata_travels_as_it_came() {
        let set = |text| decode_object::<SetMyConnectionMetadata<'_>>(text);
        let plain = set("{\"metadata\": {\"a\" :\n1}}").unwrap();
        assert_eq!(plain.metadata.get(), "{\"a\" :\n1}");
        assert_eq!(plain.options, None);
        assert_eq!(json(&plain), "{\"metadata\":{\"a\" :\n1}}");
        assert_eq!(set(r#"{"metadata":null}"#).unwrap().metadata.get(), "null");
        let options = |text| set(text).unwrap().options.unwrap_or_default().strategy;
        assert_eq!(
            options(r#"{"metadata":1,"options":{}}"#),
            MetadataStrategy::Replace
        );
        assert_eq!(
            options(r#"{"metadata":1,"options":{"strategy":"merge"}}"#),
            MetadataStrategy::Merge
        );
        let error = set(r#"{"metadata":1,"options":{"strategy":"deepMerge"}}"#).unwrap_err();
        assert!(
            error
                .message()
                .starts_with("options.strategy: unknown variant"),
            "{error}"
        );
        assert_eq!(set("{}").unwrap_err().message(), "missing field `metadata`");

        assert_eq!(json(&MetadataReply::default()), r#"{"metadata":null}"#);
        let reply: MetadataReply<'_> = decode_object(r#"{"metadata":null}"#).unwrap();
        assert!(reply.metadata.is_none());
        let reply: MetadataReply<'_> = decode_object(r#"{"metadata":[1]}"#).unwrap();
        assert_eq!(reply.metadata.map(RawValue::get), Some("[1]"));
    }
}
