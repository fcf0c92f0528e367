//! Bodies of the fuzz targets; no part of the API that versions promise.

use super::{CommandError, model::check_parser};

/// Any bytes: the frame parser agrees with its model, at the default limit of nesting and at a tight one.
///
/// # Panics
/// It does not.
pub fn frame_parser(data: &[u8]) {
    // What is not UTF-8 ends in the WebSocket layer.
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    check_parser(text, 128);
    check_parser(text, 3);
    let _ = CommandError::from_reply(text);
}
