//! The JSON of the built-in commands and events, as a client sees it (`protocol.md`, sections 4 and 5).

use mesh_core::protocol::{
    CommandError,
    builtin::{ChannelRef, RoomRef, SubscribeChannel},
    codes,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::action::Refusal;

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
    })
}

/// Whether asking again later may help.
pub(crate) fn is_transient(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::Error(error) if matches!(error.code(), codes::EUNAVAILABLE | codes::EOVERLOAD))
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
