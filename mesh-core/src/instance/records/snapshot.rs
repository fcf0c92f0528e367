//! A record's value, as late as it may be.

use crate::{
    backend::{Json, Record, Version},
    record::{PatchError, apply},
};

/// Patches that wait at most; then they are applied, whether anybody needs the value or not.
const PATCHES_MAX: usize = 64;

/// Bytes of text that applying them goes through at most: some milliseconds, which others may have to wait for.
const WORK_BYTES_MAX: usize = 4 << 20;

/// A version of a record, and what its value is made of: patches that nobody has needed the outcome of yet wait.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    version: Version,
    /// The value before the patches.
    text: Option<Json>,
    patches: Vec<Json>,
    patches_bytes: usize,
}

impl Snapshot {
    pub(super) fn new(record: Record) -> Self {
        Self {
            version: record.version,
            text: record.value,
            patches: Vec::new(),
            patches_bytes: 0,
        }
    }

    pub(super) fn version(&self) -> Version {
        self.version
    }

    /// The next version, of this value.
    pub(super) fn set(&mut self, version: Version, value: Option<Json>) {
        *self = Self::new(Record { value, version });
    }

    /// The next version, which is what a patch makes of this one; `whole` if its value is wanted at once. `bytes_max` is for the length of a
    /// value.
    ///
    /// # Errors
    /// Patches were applied, and one did not fit: this is the version that it was, and its value is lost.
    pub(super) fn patch(
        &mut self,
        version: Version,
        patch: Json,
        whole: bool,
        bytes_max: usize,
    ) -> Result<(), PatchError> {
        self.patches_bytes += patch.len();
        self.patches.push(patch);
        let text = self.text.as_ref().map_or(0, |text| text.len());
        // No more memory than the value itself takes, and no more work at once than a reader may wait for.
        let many = self.patches.len() >= PATCHES_MAX || self.patches.len() * text > WORK_BYTES_MAX;
        if whole || many || self.patches_bytes > text {
            self.value(bytes_max)?;
        }
        self.version = version;
        Ok(())
    }

    /// The value.
    ///
    /// # Errors
    /// A patch does not fit: the value is lost.
    pub(super) fn value(&mut self, bytes_max: usize) -> Result<Option<Json>, PatchError> {
        self.patches_bytes = 0;
        for patch in std::mem::take(&mut self.patches) {
            self.text = Some(apply(self.text.as_deref(), &patch, bytes_max)?.into());
        }
        Ok(self.text.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::{PATCHES_MAX, Snapshot, WORK_BYTES_MAX};
    use crate::{
        backend::{Json, Record, Version},
        record::PatchError,
    };

    const BYTES_MAX: usize = 1 << 20;

    fn version(number: u64) -> Version {
        Version { number, stamp: 0 }
    }

    #[test]
    fn a_value_is_made_when_it_is_wanted_or_when_patches_are_many() {
        let value: Json = format!(r#"{{"pad":"{}","n":0}}"#, "x".repeat(9_000)).into();
        let mut snapshot = Snapshot::new(Record {
            value: Some(value.clone()),
            version: version(1),
        });
        for number in 2..200 {
            let patch = format!(r#"[{{"op":"replace","path":"/n","value":{number}}}]"#);
            snapshot
                .patch(version(number), patch.into(), false, BYTES_MAX)
                .unwrap();
            assert_eq!(snapshot.version(), version(number));
            assert!(snapshot.patches.len() < PATCHES_MAX);
        }
        assert!(!snapshot.patches.is_empty());
        let expected = value.replace(r#""n":0"#, r#""n":199"#);
        assert_eq!(snapshot.value(BYTES_MAX), Ok(Some(expected.into())));
        assert!(snapshot.patches.is_empty());
    }

    #[test]
    fn patches_never_take_more_memory_than_the_value() {
        let mut snapshot = Snapshot::new(Record {
            value: Some("{}".into()),
            version: version(1),
        });
        let patch = r#"[{"op":"add","path":"/n","value":1}]"#;
        snapshot
            .patch(version(2), patch.into(), false, BYTES_MAX)
            .unwrap();
        assert!(snapshot.patches.is_empty());
        let wrong = r#"[{"op":"remove","path":"/m"}]"#;
        let misfit = PatchError::DoesNotFit { operation: 0 };
        assert_eq!(
            snapshot.patch(version(3), wrong.into(), true, BYTES_MAX),
            Err(misfit)
        );
        assert_eq!(snapshot.version(), version(2));
    }

    #[test]
    fn patches_as_long_as_the_value_wait_and_longer_ones_do_not() {
        let patch = r#"[{"op":"add","path":"","value":1}]"#;
        for (less, waiting) in [(0, 1), (1, 0)] {
            let mut snapshot = Snapshot::new(Record {
                value: Some("1".repeat(patch.len() - less).into()),
                version: version(1),
            });
            snapshot
                .patch(version(2), patch.into(), false, BYTES_MAX)
                .unwrap();
            assert_eq!(snapshot.patches.len(), waiting, "{less} less");
        }
    }

    #[test]
    fn patches_of_a_long_value_wait_for_no_more_work_than_a_reader_may() {
        const WAITING_MAX: usize = PATCHES_MAX / 2;
        let (head, tail) = (r#"{"n":0,"pad":""#, r#""}"#);
        let pad = "x".repeat(WORK_BYTES_MAX / WAITING_MAX - head.len() - tail.len());
        let mut snapshot = Snapshot::new(Record {
            value: Some(format!("{head}{pad}{tail}").into()),
            version: version(1),
        });
        for number in 2..100 {
            let value = number % 10;
            let patch = format!(r#"[{{"op":"replace","path":"/n","value":{value}}}]"#);
            snapshot
                .patch(version(number), patch.into(), false, BYTES_MAX)
                .unwrap();
            // The one behind the last that may wait has them all applied.
            let waiting = (number - 1) as usize % (WAITING_MAX + 1);
            assert_eq!(snapshot.patches.len(), waiting);
        }
    }
}
