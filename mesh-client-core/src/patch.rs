//! Patches of records, for who holds values without a subscription.

use mesh_core::record;

pub use mesh_core::record::PatchError;

/// The longest value that patches make, unless the options say otherwise.
pub(crate) const RECORD_BYTES_MAX: usize = 16 << 20;

/// Applies an RFC 6902 patch to a record's value, all of it or nothing, as every subscription does by itself.
///
/// Both are JSON. Where nothing is stored (`None`) or the value is `null` the patch starts from `{}`. What the patch does not touch
/// stays as it is written.
///
/// # Errors
/// [`PatchError`] where the patch does not fit, or makes more than 16 MiB. To who holds a record that is a gap: the value itself has to be asked for.
///
/// ```
/// use mesh_client_core::{PatchError, apply_patch};
///
/// let patch = r#"[{"op":"replace","path":"/score","value":42},{"op":"remove","path":"/away"}]"#;
/// let value = apply_patch(Some(r#"{"name": "Ada", "score": 41, "away": true}"#), patch)?;
/// assert_eq!(value, r#"{"name": "Ada", "score": 42}"#);
///
/// assert_eq!(apply_patch(None, r#"[{"op":"add","path":"/a","value":1}]"#)?, r#"{"a":1}"#);
/// assert_eq!(apply_patch(None, patch), Err(PatchError::DoesNotFit { operation: 0 }));
/// # Ok::<(), PatchError>(())
/// ```
pub fn apply_patch(base: Option<&str>, patch: &str) -> Result<String, PatchError> {
    record::apply(base, patch, RECORD_BYTES_MAX)
}
