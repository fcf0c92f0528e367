//! Metadata documents: typed for the application, JSON text inside.

use serde::{Serialize, de::DeserializeOwned};

use super::ServerError;
use crate::{backend::Json, protocol::EncodeError};

/// Reads a stored document. One that is `null` is none.
pub(super) fn typed<T: DeserializeOwned>(stored: Option<&Json>) -> Result<Option<T>, ServerError> {
    stored
        .filter(|json| &***json != "null")
        .map(|json| {
            serde_json::from_str(json).map_err(|error| ServerError::Shape(error.to_string()))
        })
        .transpose()
}

/// Writes a document, within the limit.
pub(super) fn json<T: Serialize + ?Sized>(value: &T, max: usize) -> Result<Json, ServerError> {
    let json = serde_json::to_string(value).map_err(EncodeError::from)?;
    checked(json.into(), max)
}

/// Lets a document pass that is within the limit.
pub(super) fn checked(json: Json, max: usize) -> Result<Json, ServerError> {
    let len = json.len();
    if len > max {
        return Err(ServerError::MetadataTooLong { len, max });
    }
    Ok(json)
}
