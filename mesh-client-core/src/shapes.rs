//! The JSON of the built-in commands and events, as a client sees it (`protocol.md`, sections 4 and 5).

use std::sync::Arc;

use mesh_core::protocol::{
    CommandError,
    builtin::{
        ChannelRef, RecordMode, RecordRef, RoomRef, SubscribeChannel, SubscribeRecord,
        SubscribeRecordReply,
    },
    codes,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::action::{Outcome, Refusal};

/// The replies of all commands that grant something. `present` is raw: its shape differs between dialects.
#[derive(Deserialize)]
struct Answer<'a> {
    success: bool,
    history: Option<Vec<String>>,
    #[serde(borrow)]
    present: Option<&'a RawValue>,
}

/// What a reply granted.
#[derive(Debug, Default)]
pub(crate) struct Grant {
    pub(crate) history: Vec<String>,
    pub(crate) present: String,
    pub(crate) record: RecordState,
}

/// A record at one version.
#[derive(Clone, Debug, Default)]
pub(crate) struct RecordState {
    pub(crate) version: u64,
    /// JSON; `None` where nothing is stored, or `null`, which the wire does not tell apart.
    pub(crate) value: Option<Arc<str>>,
}

impl RecordState {
    pub(crate) fn new(version: u64, value: &str) -> Self {
        let value = (value != "null").then(|| value.into());
        Self { version, value }
    }

    /// What a new subscriber is told.
    pub(crate) fn subscribed(self) -> Outcome {
        let Self { version, value } = self;
        Outcome::RecordSubscribed { version, value }
    }
}

pub(crate) fn subscribe(channel: &str, history_limit: u32) -> String {
    json(&SubscribeChannel {
        channel: channel.into(),
        history_limit: (history_limit > 0).then_some(history_limit as usize),
    })
}

pub(crate) fn channel(channel: &str) -> String {
    json(&ChannelRef {
        channel: channel.into(),
    })
}

pub(crate) fn subscribe_record(record_id: &str, mode: RecordMode) -> String {
    json(&SubscribeRecord {
        record_id: record_id.into(),
        mode,
    })
}

pub(crate) fn record(record_id: &str) -> String {
    json(&RecordRef {
        record_id: record_id.into(),
    })
}

pub(crate) fn room(room_name: &str) -> String {
    json(&RoomRef {
        room_name: room_name.into(),
    })
}

/// `metadata` is JSON already, and travels as it is.
pub(crate) fn metadata(metadata: &str) -> String {
    format!("{{\"metadata\":{metadata}}}")
}

/// Reads `{"success": true, …}`; anything else is a refusal.
pub(crate) fn grant(payload: &str) -> Result<Grant, Refusal> {
    if let Some(error) = CommandError::from_reply(payload) {
        return Err(Refusal::Error(error));
    }
    let answer: Answer<'_> = serde_json::from_str(payload).map_err(|_| Refusal::Malformed)?;
    if !answer.success {
        return Err(Refusal::NotExposed);
    }
    Ok(Grant {
        history: answer.history.unwrap_or_default(),
        present: answer
            .present
            .map_or_else(|| "[]".to_owned(), |raw| raw.get().to_owned()),
        record: RecordState::default(),
    })
}

/// Reads `{"success": true, "record": …, "version": …}`; anything else is a refusal.
pub(crate) fn snapshot(payload: &str) -> Result<Grant, Refusal> {
    if let Some(error) = CommandError::from_reply(payload) {
        return Err(Refusal::Error(error));
    }
    let reply: SubscribeRecordReply<'_> =
        serde_json::from_str(payload).map_err(|_| Refusal::Malformed)?;
    if !reply.success {
        return Err(Refusal::NotExposed);
    }
    let value = reply.record.map_or("null", RawValue::get);
    Ok(Grant {
        record: RecordState::new(reply.version, value),
        ..Grant::default()
    })
}

/// Whether asking again later may help.
pub(crate) fn is_transient(refusal: &Refusal) -> bool {
    is_without_store(refusal)
        || matches!(refusal, Refusal::Error(error) if error.code() == codes::EOVERLOAD)
}

/// Whether the server said that its store is away.
pub(crate) fn is_without_store(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::Error(error) if error.code() == codes::EUNAVAILABLE)
}

/// Serialises a struct of strings and numbers, which cannot fail.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_their_shapes() {
        assert_eq!(
            subscribe("a\"b", 3),
            r#"{"channel":"a\"b","historyLimit":3}"#
        );
        assert_eq!(subscribe("a", 0), r#"{"channel":"a"}"#);
        assert_eq!(channel("a"), r#"{"channel":"a"}"#);
        assert_eq!(room("r"), r#"{"roomName":"r"}"#);
        assert_eq!(metadata("[1]"), r#"{"metadata":[1]}"#);
        assert_eq!(record("a"), r#"{"recordId":"a"}"#);
        assert_eq!(
            subscribe_record("a", RecordMode::Full),
            r#"{"recordId":"a","mode":"full"}"#
        );
        assert_eq!(
            subscribe_record("a", RecordMode::Patch),
            r#"{"recordId":"a","mode":"patch"}"#
        );
    }

    #[test]
    fn snapshots_are_states_or_refusals() {
        let state = |payload| {
            let RecordState { version, value } = snapshot(payload).unwrap().record;
            (version, value.as_deref().map(str::to_owned))
        };
        let text = Some("[1.50]".to_owned());
        assert_eq!(
            state(r#"{"success":true,"record":[1.50],"version":7,"mode":"full"}"#),
            (7, text)
        );
        assert_eq!(
            state(r#"{"success":true,"record":null,"version":3}"#),
            (3, None)
        );
        assert_eq!(state(r#"{"success":true}"#), (0, None));
        assert_eq!(
            snapshot(r#"{"success":false,"record":null,"version":0}"#).unwrap_err(),
            Refusal::NotExposed
        );
        for rubbish in [
            "17",
            "{}",
            r#"{"success":true,"version":-1}"#,
            r#"{"success":true,"version":"1"}"#,
        ] {
            assert_eq!(
                snapshot(rubbish).unwrap_err(),
                Refusal::Malformed,
                "{rubbish}"
            );
        }
        let error = r#"{"error":"e","code":"EUNAVAILABLE","name":"BackendError"}"#;
        assert!(is_transient(&snapshot(error).unwrap_err()));
    }

    #[test]
    fn answers_are_grants_or_refusals() {
        let granted = grant(r#"{"success":true,"history":["b","a"]}"#).unwrap();
        assert_eq!((granted.history.len(), granted.present.as_str()), (2, "[]"));
        // The living successor's wider shape.
        let granted = grant(r#"{"success":true,"present":[{"id":"x","metadata":null}]}"#).unwrap();
        assert_eq!(granted.present, r#"[{"id":"x","metadata":null}]"#);
        assert_eq!(
            grant(r#"{"success":false,"history":[]}"#).unwrap_err(),
            Refusal::NotExposed
        );
        for rubbish in [
            "true",
            "{}",
            r#"{"success":1}"#,
            r#"{"success":true,"history":[1]}"#,
        ] {
            assert_eq!(grant(rubbish).unwrap_err(), Refusal::Malformed, "{rubbish}");
        }
        let error = grant(r#"{"error":"no backend","code":"EUNAVAILABLE","name":"BackendError"}"#)
            .unwrap_err();
        assert!(is_transient(&error));
        assert!(!is_transient(&Refusal::NotExposed));
    }
}
