//! What a patch makes of a value (RFC 6902).

use std::{borrow::Cow, slice};

use json_patch::{
    AddOperation, CopyOperation, MoveOperation, PatchOperation, RemoveOperation, ReplaceOperation,
    TestOperation,
    jsonptr::{Pointer, PointerBuf},
};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::{
    NESTING_MAX, OPERATIONS_APPLIED_MAX,
    splice::{Edit, place, splice},
    trim,
    value::equal,
};
/// Patches of up to this many operations are applied to the text, one operation after the other.
const SPLICES_MAX: usize = 4;

/// How many elements of arrays all operations of a patch may move up or down: less than a second of work.
const SHIFTED_MAX: usize = 1 << 25;

/// Applies a patch to a value that has passed [`normalize`](super::normalize), all of it or nothing.
///
/// Where nothing is stored (`None`) or the value is `null`, the patch starts from `{}` (`protocol.md`, section 6.3). Numbers are compared by
/// `test` as they are everywhere here: `1` equals `1.0`. A few
/// operations change the text where they belong, and more of them the smallest value that holds all they touch: the rest is not parsed and stays as it is. What comes out is normalized too.
///
/// # Errors
/// [`PatchError`]. The limits are `bytes_max` for the result, and for all that is copied or moved to deeper levels,
/// [`NESTING_MAX`] for the nesting of the result, and [`OPERATIONS_APPLIED_MAX`].
///
/// ```
/// use mesh_core::record::{PatchError, apply};
///
/// let patch = r#"[{"op":"add","path":"/a","value":[1]},{"op":"copy","from":"/a/0","path":"/a/-"}]"#;
/// assert_eq!(apply(None, patch, 100)?, r#"{"a":[1,1]}"#);
/// assert_eq!(apply(None, patch, 10), Err(PatchError::TooLong { max: 10 }));
///
/// let patch = r#"[{"op":"remove","path":"/b"}]"#;
/// assert_eq!(apply(Some(r#"{"a":1}"#), patch, 100), Err(PatchError::DoesNotFit { operation: 0 }));
/// # Ok::<(), PatchError>(())
/// ```
pub fn apply(base: Option<&str>, patch: &str, bytes_max: usize) -> Result<String, PatchError> {
    let operations: Vec<Operation<'_>> =
        serde_json::from_str(patch).map_err(|_| PatchError::NotAPatch)?;
    if operations.len() > OPERATIONS_APPLIED_MAX {
        return Err(PatchError::TooManyOperations {
            max: OPERATIONS_APPLIED_MAX,
        });
    }
    let base = match base.map(trim) {
        None | Some("null") => "{}",
        Some(base) => base,
    };

    let patched = if operations.len() <= SPLICES_MAX && operations.iter().all(Operation::is_edit) {
        edit(base, operations)?
    } else {
        patch_value(base, operations, bytes_max)?
    };
    if patched.len() > bytes_max {
        return Err(PatchError::TooLong { max: bytes_max });
    }
    Ok(patched)
}

/// Why a patch cannot be applied. To who holds a record it is a gap: the value itself has to be asked for.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PatchError {
    /// What it should be applied to is not JSON.
    #[error("the value is not valid JSON")]
    BaseNotJson,
    /// An operation names a place that is not there.
    #[error("operation {operation} does not fit the value")]
    DoesNotFit {
        /// The index of the operation.
        operation: usize,
    },
    /// No RFC 6902 patch.
    #[error("not a JSON patch")]
    NotAPatch,
    /// A `test` found another value.
    #[error("the test of operation {operation} failed")]
    TestFailed {
        /// The index of the operation.
        operation: usize,
    },
    /// The result would nest too deeply.
    #[error("nested deeper than {max} levels")]
    TooDeep {
        /// The limit.
        max: usize,
    },
    /// The result would be too long, or too much was to be copied.
    #[error("longer than {max} bytes")]
    TooLong {
        /// The limit in bytes.
        max: usize,
    },
    /// More operations than are carried out, or too many on long arrays.
    #[error("more than {max} operations, or too many on long arrays")]
    TooManyOperations {
        /// The limit.
        max: usize,
    },
}

/// Applies some `add`, `remove` and `replace` to the text.
fn edit(base: &str, operations: Vec<Operation<'_>>) -> Result<String, PatchError> {
    let mut text = Cow::Borrowed(base);
    for (index, operation) in operations.into_iter().enumerate() {
        let Operation {
            op, path, value, ..
        } = operation;
        Pointer::parse(&*path).map_err(|_| PatchError::NotAPatch)?;
        let value = if op == Name::Remove {
            None
        } else {
            let value = value.ok_or(PatchError::NotAPatch)?;
            admit(levels(&path), measure(&value))?;
            Some(value.to_string())
        };
        let edit = match (&value, op) {
            (Some(value), Name::Add) => Edit::Add(value),
            (Some(value), _) => Edit::Replace(value),
            (None, _) => Edit::Remove,
        };
        let misfit = PatchError::DoesNotFit { operation: index };
        text = Cow::Owned(splice(&text, &path, edit).ok_or(misfit)?);
    }
    Ok(text.into_owned())
}

/// Applies a patch to the smallest value that holds all that it touches.
fn patch_value(
    base: &str,
    operations: Vec<Operation<'_>>,
    bytes_max: usize,
) -> Result<String, PatchError> {
    let focus = focus(&operations);
    // Where there is no such place, the operations tell which of them does not fit.
    let (focus, place) = match place(base, focus) {
        Some(place) => (focus.to_owned(), place),
        None => (String::new(), 0..base.len()),
    };
    let before = base.get(..place.start).unwrap_or_default();
    let after = base.get(place.end..).unwrap_or_default();
    let value = base.get(place).unwrap_or_default();
    let mut target = Target {
        doc: serde_json::from_str(value).map_err(|_| PatchError::BaseNotJson)?,
        level: levels(&focus),
        carried: 0,
        bytes_max,
        shifted: 0,
    };
    for (index, operation) in operations.into_iter().enumerate() {
        target.apply(index, &operation.within(&focus)?)?;
    }
    Ok([before, &target.doc.to_string(), after].concat())
}

/// An operation as it is written. Members that RFC 6902 does not give it are ignored.
#[derive(Debug, Deserialize)]
pub(super) struct Operation<'a> {
    op: Name,
    #[serde(borrow)]
    path: Cow<'a, str>,
    #[serde(borrow)]
    from: Option<Cow<'a, str>>,
    #[serde(default, deserialize_with = "present")]
    value: Option<Value>,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Name {
    Add,
    Copy,
    Move,
    Remove,
    Replace,
    Test,
}

/// `null` is a value like any other.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

impl Operation<'_> {
    const fn is_edit(&self) -> bool {
        matches!(self.op, Name::Add | Name::Remove | Name::Replace)
    }

    /// The paths of the values whose insides are all that the operation needs.
    fn needs(&self) -> (&str, Option<&str>) {
        match self.op {
            Name::Replace | Name::Test => (&self.path, None),
            Name::Add | Name::Remove => (parent(&self.path), None),
            Name::Copy | Name::Move => (parent(&self.path), self.from.as_deref().map(parent)),
        }
    }

    /// The operation on the value at `focus`, which all its paths begin with.
    fn within(self, focus: &str) -> Result<PatchOperation, PatchError> {
        let pointer = |path: &str| {
            // The whole of it is checked, and only the rest is used.
            let rest = Pointer::parse(path)
                .ok()
                .and_then(|_| path.strip_prefix(focus));
            let rest = rest.ok_or(PatchError::NotAPatch)?;
            PointerBuf::parse(rest).map_err(|_| PatchError::NotAPatch)
        };
        let path = pointer(&self.path)?;
        let from = || pointer(self.from.as_deref().ok_or(PatchError::NotAPatch)?);
        let value = self.value.ok_or(PatchError::NotAPatch);
        Ok(match self.op {
            Name::Add => PatchOperation::Add(AddOperation {
                path,
                value: value?,
            }),
            Name::Copy => PatchOperation::Copy(CopyOperation {
                path,
                from: from()?,
            }),
            Name::Move => PatchOperation::Move(MoveOperation {
                path,
                from: from()?,
            }),
            Name::Remove => PatchOperation::Remove(RemoveOperation { path }),
            Name::Replace => PatchOperation::Replace(ReplaceOperation {
                path,
                value: value?,
            }),
            Name::Test => PatchOperation::Test(TestOperation {
                path,
                value: value?,
            }),
        })
    }
}

/// The path of the smallest value that holds everything that the operations need.
pub(super) fn focus<'a>(operations: &'a [Operation<'_>]) -> &'a str {
    let mut needs = operations.iter().flat_map(|operation| {
        let (path, from) = operation.needs();
        [Some(path), from]
    });
    let Some(Some(first)) = needs.next() else {
        return "";
    };
    needs.flatten().fold(first, shared)
}

/// What two paths have in common, in whole steps.
fn shared<'a>(one: &'a str, other: &str) -> &'a str {
    let alike = |(one, other): &(u8, u8)| one == other;
    let len = one.bytes().zip(other.bytes()).take_while(alike).count();
    let ends = |path: &str| matches!(path.as_bytes().get(len), None | Some(b'/'));
    if ends(one) && ends(other) {
        return one.get(..len).unwrap_or_default();
    }
    let common = one.as_bytes().get(..len).unwrap_or_default();
    let slash = common.iter().rposition(|&byte| byte == b'/');
    one.get(..slash.unwrap_or_default()).unwrap_or_default()
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// The steps from the root to what the path names: as many levels are open around it.
fn levels(path: &str) -> usize {
    path.bytes().filter(|&byte| byte == b'/').count()
}

/// The value that is patched.
struct Target {
    doc: Value,
    /// The levels around it.
    level: usize,
    /// What has been copied, and moved to deeper places.
    carried: usize,
    bytes_max: usize,
    /// Elements of arrays in which others were put or removed.
    shifted: usize,
}

impl Target {
    fn apply(&mut self, index: usize, operation: &PatchOperation) -> Result<(), PatchError> {
        let misfit = PatchError::DoesNotFit { operation: index };
        match operation {
            PatchOperation::Add(AddOperation { path, value })
            | PatchOperation::Replace(ReplaceOperation { path, value }) => {
                admit(self.level + levels(path.as_str()), measure(value))?;
            }
            PatchOperation::Copy(CopyOperation { from, path }) => {
                self.carry(from, path).ok_or(misfit.clone())??;
            }
            PatchOperation::Move(MoveOperation { from, path }) => {
                if levels(path.as_str()) > levels(from.as_str()) {
                    self.carry(from, path).ok_or(misfit.clone())??;
                }
                self.shift(from)?;
            }
            PatchOperation::Remove(_) => {}
            PatchOperation::Test(TestOperation { path, value }) => {
                let found = self.doc.pointer(path.as_str()).ok_or(misfit)?;
                if !equal(found, value) {
                    return Err(PatchError::TestFailed { operation: index });
                }
                return Ok(());
            }
        }
        self.shift(operation.path())?;
        // Half an operation does no harm: on an error nothing of the value is used.
        json_patch::patch_unsafe(&mut self.doc, slice::from_ref(operation)).map_err(|_| misfit)
    }

    /// Admits what is at one place to another; `None` if nothing is there. A copy of a copy of a copy doubles the value each time.
    fn carry(&mut self, from: &Pointer, path: &Pointer) -> Option<Result<(), PatchError>> {
        let size = measure(self.doc.pointer(from.as_str())?);
        self.carried = self.carried.saturating_add(size.bytes);
        Some(if self.carried > self.bytes_max {
            let max = self.bytes_max;
            Err(PatchError::TooLong { max })
        } else {
            admit(self.level + levels(path.as_str()), size)
        })
    }

    /// Counts the elements that may have to make room.
    fn shift(&mut self, path: &Pointer) -> Result<(), PatchError> {
        let array = self.doc.pointer(parent(path.as_str()));
        self.shifted += array.and_then(Value::as_array).map_or(0, Vec::len);
        if self.shifted > SHIFTED_MAX {
            let max = OPERATIONS_APPLIED_MAX;
            return Err(PatchError::TooManyOperations { max });
        }
        Ok(())
    }
}

/// Does a value fit below so many levels?
fn admit(level: usize, size: Size) -> Result<(), PatchError> {
    if level + size.levels > NESTING_MAX {
        return Err(PatchError::TooDeep { max: NESTING_MAX });
    }
    Ok(())
}

#[derive(Clone, Copy)]
struct Size {
    levels: usize,
    /// At least one for each value; escapes and digits are not counted.
    bytes: usize,
}

fn measure(value: &Value) -> Size {
    let mut size = Size {
        levels: 0,
        bytes: 1,
    };
    let mut add = |key: &str, inner: &Value| {
        let inner = measure(inner);
        size.levels = size.levels.max(inner.levels);
        size.bytes += key.len() + inner.bytes;
    };
    match value {
        Value::Array(array) => array.iter().for_each(|inner| add("", inner)),
        Value::Object(object) => object.iter().for_each(|(key, inner)| add(key, inner)),
        Value::String(string) => size.bytes += string.len(),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
    size.levels += usize::from(value.is_array() || value.is_object());
    size
}
