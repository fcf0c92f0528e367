//! What turns one value into another, as a patch (RFC 6902).
//!
//! The `json-patch` crate has a diff too. It has no bound: it copies the whole path for each operation, which is
//! quadratic where keys are long. And it compares arrays by index only, so that one new element at the front replaces all others.

use std::{borrow::Cow, collections::BTreeMap};

use serde_json::Value;

use super::{
    OPERATIONS_MAX,
    region::{self, Member, Region, Step},
    trim,
    value::equal,
};

/// What an update is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    /// None: the values are equal.
    Equal,
    /// The text of an RFC 6902 patch, whose operations are `add`, `remove` and `replace`.
    Patch(String),
    /// Only the new value can tell: a patch would not be smaller, or have more than [`OPERATIONS_MAX`] operations.
    Full,
}

/// Compares two values, and tells what turns `old` into `new`; `None` where nothing is stored.
///
/// Both must have passed [`normalize`](super::normalize). Neither is changed by it a second time, so the text that is stored will do.
/// With other texts the answer is unspecified.
///
/// - Equal are values as parsed JSON: numbers as numbers (`1`, `1.0` and `1e0` are one; integers of 64 bits compare exactly,
///   all others as their f64), and without regard to the order of keys, white space and escapes.
/// - Where nothing is stored the patch starts from `{}`, and the update is never equal: a first `{}` is [`Change::Full`], as no
///   patch is smaller.
/// - A change of the root, to another type or of a primitive, is always `[{"op":"replace","path":"","value":…}]`, a first value
///   that is no object too. It is the one patch that is longer than the new value.
///
/// ```
/// use mesh_core::record::{Change, diff};
///
/// let old = r#"{"name":"Ada","tags":["first","second","third"]}"#;
/// let new = r#"{"name":"Ada","tags":["second","third"]}"#;
/// let patch = r#"[{"op":"remove","path":"/tags/0"}]"#;
/// assert_eq!(diff(Some(old), new), Change::Patch(patch.to_owned()));
///
/// assert_eq!(diff(Some("[1,2]"), "[1]"), Change::Full);
/// assert_eq!(diff(None, "{}"), Change::Full);
/// assert_eq!(diff(Some("{ }"), "{}"), Change::Equal);
///
/// let patch = r#"[{"op":"replace","path":"","value":null}]"#;
/// assert_eq!(diff(Some("1"), "null"), Change::Patch(patch.to_owned()));
/// assert_eq!(diff(None, "null"), Change::Patch(patch.to_owned()));
/// ```
#[must_use]
pub fn diff(old: Option<&str>, new: &str) -> Change {
    let new = trim(new);
    let Some(old) = old.map(trim) else {
        return match compare("{}", new, new.len()) {
            Change::Equal => Change::Full,
            change => change,
        };
    };
    compare(old, new, new.len())
}

/// `bytes_max` is what a patch must stay below that does not replace the root.
pub(super) fn compare(old: &str, new: &str, bytes_max: usize) -> Change {
    if old == new {
        return Change::Equal;
    }
    match (kind(old), kind(new)) {
        (Kind::Scalar, Kind::Scalar) if equal_scalars(old, new) => Change::Equal,
        (Kind::Array, Kind::Array) | (Kind::Object, Kind::Object) => {
            let Some(region) = region::differing(old, new) else {
                return Change::Full;
            };
            let mut writer = Writer::new(bytes_max);
            match writer.region(&region) {
                Ok(()) => writer.finish(),
                Err(Exceeded) => Change::Full,
            }
        }
        _ => Change::Patch(format!(r#"[{{"op":"replace","path":"","value":{new}}}]"#)),
    }
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Kind {
    Array,
    Object,
    Scalar,
}

fn kind(text: &str) -> Kind {
    match text.as_bytes().first() {
        Some(b'[') => Kind::Array,
        Some(b'{') => Kind::Object,
        _ => Kind::Scalar,
    }
}

fn equal_scalars(one: &str, other: &str) -> bool {
    let parse = serde_json::from_str::<Value>;
    matches!((parse(one), parse(other)), (Ok(one), Ok(other)) if equal(&one, &other))
}

/// The patch would be too long, or have too many operations.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Exceeded;

/// Writes a patch, and gives up as soon as it exceeds its bounds, so that its work is bounded too.
#[derive(Debug)]
pub(super) struct Writer {
    patch: Vec<u8>,
    operations: usize,
    /// The length that the patch must stay below.
    bytes_max: usize,
    /// Where the walk is: a JSON pointer (RFC 6901), not yet written as JSON.
    path: String,
}

impl Writer {
    pub(super) const fn new(bytes_max: usize) -> Self {
        Self {
            patch: Vec::new(),
            operations: 0,
            bytes_max,
            path: String::new(),
        }
    }

    pub(super) fn finish(mut self) -> Change {
        if self.operations == 0 {
            return Change::Equal;
        }
        self.patch.push(b']');
        String::from_utf8(self.patch).map_or(Change::Full, Change::Patch)
    }

    fn region(&mut self, region: &Region<'_>) -> Result<(), Exceeded> {
        for step in &region.path {
            match step {
                Step::Index(index) => self.push_index(*index),
                Step::Key(key) => self.push_key(&key.text_lossy()),
            };
        }
        if region.object {
            return self.members(&by_key(&region.old), &by_key(&region.new));
        }
        let (old, new) = (texts(&region.old), texts(&region.new));
        self.elements(region.first, &old, &new)
    }

    pub(super) fn values(&mut self, old: &Value, new: &Value) -> Result<(), Exceeded> {
        match (old, new) {
            (Value::Object(old), Value::Object(new)) => {
                for (key, new) in new {
                    self.member(key, old.get(key), Some(new))?;
                }
                let gone = old.keys().filter(|key| !new.contains_key(*key));
                for key in gone {
                    self.member(key, None::<&Value>, None)?;
                }
                Ok(())
            }
            (Value::Array(old), Value::Array(new)) => self.elements(0, old, new),
            _ if equal(old, new) => Ok(()),
            _ => self.operation("replace", Some(new)),
        }
    }

    fn members(&mut self, old: &Keyed<'_>, new: &Keyed<'_>) -> Result<(), Exceeded> {
        for (key, new) in new {
            self.member(key, old.get(key), Some(new))?;
        }
        let gone = old.keys().filter(|key| !new.contains_key(*key));
        for key in gone {
            self.member(key, None::<&Text<'_>>, None)?;
        }
        Ok(())
    }

    /// One key of two objects; `new` is `None` for one that is gone.
    fn member<T: Item>(
        &mut self,
        key: &str,
        old: Option<&T>,
        new: Option<&T>,
    ) -> Result<(), Exceeded> {
        let len = self.push_key(key);
        match (old, new) {
            (Some(old), Some(new)) => T::compare(self, old, new),
            (None, Some(new)) => self.operation("add", Some(new)),
            (_, None) => self.operation("remove", None::<&T>),
        }?;
        self.path.truncate(len);
        Ok(())
    }

    /// Two arrays, or the elements of both from the index `first` on. What is equal at the end is left alone where
    /// their number changes.
    fn elements<T: Item>(&mut self, first: usize, old: &[T], new: &[T]) -> Result<(), Exceeded> {
        let mut tail = 0;
        if old.len() != new.len() {
            let both = old.iter().rev().zip(new.iter().rev());
            tail = both.take_while(|(old, new)| old.equals(new)).count();
        }
        let old = old.get(..old.len() - tail).unwrap_or_default();
        let new = new.get(..new.len() - tail).unwrap_or_default();
        let shared = old.len().min(new.len());
        for (index, (old, new)) in old.iter().zip(new).enumerate() {
            let len = self.push_index(first + index);
            T::compare(self, old, new)?;
            self.path.truncate(len);
        }
        for (index, new) in new.iter().enumerate().skip(shared) {
            let len = self.push_index(first + index);
            self.operation("add", Some(new))?;
            self.path.truncate(len);
        }
        for _ in shared..old.len() {
            let len = self.push_index(first + shared);
            self.operation("remove", None::<&T>)?;
            self.path.truncate(len);
        }
        Ok(())
    }

    fn operation<T: Item>(&mut self, name: &str, value: Option<&T>) -> Result<(), Exceeded> {
        // Before the path is written, which may be long and is written for each operation.
        if self.operations == OPERATIONS_MAX || self.patch.len() + self.path.len() >= self.bytes_max
        {
            return Err(Exceeded);
        }
        self.operations += 1;
        self.patch
            .push(if self.operations == 1 { b'[' } else { b',' });
        self.patch.extend(br#"{"op":""#);
        self.patch.extend(name.as_bytes());
        self.patch.extend(br#"","path":"#);
        serde_json::to_writer(&mut self.patch, &self.path).map_err(|_| Exceeded)?;
        if let Some(value) = value {
            self.patch.extend(br#","value":"#);
            value.write(self)?;
        }
        self.patch.push(b'}');
        // The bracket at the end counts.
        if self.patch.len() + 1 >= self.bytes_max {
            return Err(Exceeded);
        }
        Ok(())
    }

    /// Goes one step down, and tells the length of the path to come back to.
    fn push_index(&mut self, index: usize) -> usize {
        self.push_key(&index.to_string())
    }

    fn push_key(&mut self, key: &str) -> usize {
        let len = self.path.len();
        self.path.push('/');
        for char in key.chars() {
            match char {
                '~' => self.path.push_str("~0"),
                '/' => self.path.push_str("~1"),
                _ => self.path.push(char),
            }
        }
        len
    }
}

/// What is compared: a text, or what it has been parsed to.
trait Item {
    /// Is it certain, and cheap to tell, that both are equal?
    fn equals(&self, other: &Self) -> bool;
    /// Writes what turns `old` into `new`.
    fn compare(writer: &mut Writer, old: &Self, new: &Self) -> Result<(), Exceeded>;
    fn write(&self, writer: &mut Writer) -> Result<(), Exceeded>;
}

struct Text<'a>(&'a str);

impl Item for Text<'_> {
    fn equals(&self, other: &Self) -> bool {
        self.0 == other.0
    }

    fn compare(writer: &mut Writer, old: &Self, new: &Self) -> Result<(), Exceeded> {
        if old.equals(new) {
            return Ok(());
        }
        let parse = |text: &Text<'_>| serde_json::from_str(text.0).map_err(|_| Exceeded);
        writer.values(&parse(old)?, &parse(new)?)
    }

    fn write(&self, writer: &mut Writer) -> Result<(), Exceeded> {
        writer.patch.extend(self.0.as_bytes());
        Ok(())
    }
}

impl Item for Value {
    fn equals(&self, other: &Self) -> bool {
        equal(self, other)
    }

    fn compare(writer: &mut Writer, old: &Self, new: &Self) -> Result<(), Exceeded> {
        writer.values(old, new)
    }

    fn write(&self, writer: &mut Writer) -> Result<(), Exceeded> {
        serde_json::to_writer(&mut writer.patch, self).map_err(|_| Exceeded)
    }
}

fn texts<'a>(members: &[Member<'a>]) -> Vec<Text<'a>> {
    members.iter().map(|member| Text(member.value)).collect()
}

type Keyed<'a> = BTreeMap<Cow<'a, str>, Text<'a>>;

fn by_key<'a>(members: &[Member<'a>]) -> Keyed<'a> {
    let keyed = members.iter().filter_map(|member| {
        let key = member.key?.text_lossy();
        Some((key, Text(member.value)))
    });
    keyed.collect()
}
