//! Values of records: what may be stored, whether two are equal, and what turns one into the other (`protocol.md`, section 6).
//!
//! A value is JSON text and stays the text that its publisher wrote. What it costs to see an update through is the size of the
//! change and not that of the record: both sides of [`diff`], and what [`apply`] changes, are found in the texts, and only that is parsed.
//!
//! ```
//! use mesh_core::record::{Change, apply, diff, normalize};
//!
//! let old = r#"{"title": "Ludo", "players": [{"name": "Ada", "score": 41}, {"name": "Grace", "score": 17}]}"#;
//! let new = r#"{"title": "Ludo", "players": [{"name": "Ada", "score": 42}, {"name": "Grace", "score": 17}]}"#;
//! let new = normalize(new, 124)?;
//!
//! let patch = r#"[{"op":"replace","path":"/players/0/score","value":42}]"#;
//! assert_eq!(diff(Some(old), &new), Change::Patch(patch.to_owned()));
//! assert_eq!(apply(Some(old), patch, 1 << 20)?, new);
//!
//! // Equal are values, not texts.
//! assert_eq!(diff(Some(r#"{"a":1,"b":2}"#), r#"{"b": 2e0, "a": 1.0}"#), Change::Equal);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod apply;
mod diff;
#[cfg(feature = "__fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod merge;
mod region;
mod splice;
#[cfg(test)]
mod tests;
mod value;

pub use apply::{PatchError, apply};
pub use diff::{Change, diff};
pub use merge::merge;
pub use value::{ValueError, normalize};

/// The deepest nesting of a value, whatever the limits say: with the four levels that an event with a patch has around it, it is
/// a frame of 128 levels.
pub const NESTING_MAX: usize = 124;

/// The most operations of a patch that [`diff`] makes.
pub const OPERATIONS_MAX: usize = 1_000;

/// The most operations that [`apply`] carries out: who else makes patches may make longer ones.
pub const OPERATIONS_APPLIED_MAX: usize = 10_000;

/// Without the whitespace of JSON around it.
fn trim(text: &str) -> &str {
    text.trim_matches([' ', '\n', '\t', '\r'])
}
