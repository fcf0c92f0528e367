//! Bodies of the fuzz targets; no part of the API that versions promise.

use mesh_core::record::{
    self,
    fuzzing::{Texts, patch},
};

pub use crate::client::fuzzing::machine;
use crate::{PatchError, apply_patch, patch::RECORD_BYTES_MAX};

/// Any texts as values and as a patch: [`patch`] holds, and who has no subscription gets the same.
///
/// # Panics
/// It does not.
pub fn record_patch(data: &[u8]) {
    patch(data);
    let Some(Texts { old, patch, .. }) = Texts::read(data) else {
        return;
    };
    let Ok(old) = record::normalize(&old, record::NESTING_MAX) else {
        return;
    };
    // The limit of what is short enough for it changes nothing else.
    let made = record::apply(Some(&old), &patch, RECORD_BYTES_MAX >> 8);
    if !matches!(made, Err(PatchError::TooLong { .. })) {
        assert_eq!(apply_patch(Some(&old), &patch), made);
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::record_patch;

    proptest! {
        #[test]
        fn any_choices_keep_every_promise(data in vec(any::<u8>(), 0..300)) {
            record_patch(&[&[1], &*data].concat());
        }
    }
}
