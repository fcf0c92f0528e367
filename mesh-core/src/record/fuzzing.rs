//! Body of the fuzz target of the values of records and their patches; no part of the API that versions promise.

use std::{borrow::Cow, fmt::Write};

use serde_json::Value;

use super::{
    Change, NESTING_MAX, OPERATIONS_MAX, PatchError, apply, diff, merge, normalize, value::equal,
};
use crate::fuzzing::Cursor;

/// The longest value that patches of any kind may make here.
const BYTES_MAX: usize = 2_000;

const KEYS: [&str; 8] = ["a", "b", "0", "1", "", "a/b~", "\\u0061", "é"];

/// Of paths: the same keys as they are written there, places in arrays, and some that are none.
const SEGMENTS: [&str; 12] = [
    "a",
    "b",
    "0",
    "1",
    "2",
    "-",
    "",
    "a~1b~0",
    "é",
    "01",
    "~",
    "99999999999999999999",
];

const SCALARS: [&str; 16] = [
    "null",
    "true",
    "false",
    "0",
    "-0",
    "1",
    "1.0",
    "10e-1",
    "1e400",
    "18446744073709551616",
    "0.1",
    r#""""#,
    r#""a""#,
    r#""\u0061\n""#,
    r#""\ud83d\ude00""#,
    r#""\ud800""#,
];

/// Two values and a patch, whatever they are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Texts<'a> {
    /// A value.
    pub old: Cow<'a, str>,
    /// Another.
    pub new: Cow<'a, str>,
    /// A patch.
    pub patch: Cow<'a, str>,
}

impl<'a> Texts<'a> {
    /// The texts that stand in the bytes, with 0xFF between them, or what is made of the bytes as choices; `None` for no UTF-8.
    pub fn read(data: &'a [u8]) -> Option<Self> {
        let (choice, data) = data.split_first()?;
        if choice % 2 == 0 {
            let mut texts = data.splitn(3, |byte| *byte == 0xFF).map(str::from_utf8);
            let mut next = || texts.next().unwrap_or(Ok("")).ok().map(Cow::Borrowed);
            return Some(Self {
                old: next()?,
                new: next()?,
                patch: next()?,
            });
        }
        let mut cursor = Cursor::new(data);
        let old = document(&mut cursor, 5);
        let patch = operations(&mut cursor);
        // The same choices but for one.
        let mut others = data.to_vec();
        let nth = usize::from(choice / 2) % others.len().max(1);
        if let Some(byte) = others.get_mut(nth) {
            *byte = byte.wrapping_add(1);
        }
        let new = document(&mut Cursor::new(&others), 5);
        Some(Self {
            old: old.into(),
            new: new.into(),
            patch: patch.into(),
        })
    }
}

/// Any texts as values and as a patch: a difference makes the one of the other, what a patch makes is within the limits and a value, and
/// what a simpler reading of RFC 6902 makes too.
///
/// # Panics
/// It does not.
pub fn patch(data: &[u8]) {
    let Some(texts) = Texts::read(data) else {
        return;
    };
    let Some(old) = value(&texts.old) else {
        return;
    };
    patched(&old, &texts.patch);
    let Some(new) = value(&texts.new) else {
        return;
    };
    differs(Some(&old), &new);
    differs(Some(&new), &old);
    differs(None, &new);
    for deep in [false, true] {
        let merged = merge(Some(&old), &new, deep);
        assert_eq!(value(&merged).as_deref(), Some(&*merged), "a merge");
    }
}

/// The text as a value, if it is one.
fn value(text: &str) -> Option<Cow<'_, str>> {
    let value = normalize(text, NESTING_MAX).ok()?;
    assert_eq!(normalize(&value, NESTING_MAX).as_deref(), Ok(&*value));
    Some(value)
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text:?}"))
}

fn differs(old: Option<&str>, new: &str) {
    let (before, after) = (parse(old.unwrap_or("{}")), parse(new));
    match diff(old, new) {
        Change::Equal => assert!(equal(&before, &after), "{old:?} equals {new:?}"),
        Change::Full => {}
        Change::Patch(patch) => {
            let operations = parse(&patch);
            let operations = operations.as_array().map_or(0, Vec::len);
            assert!((1..=OPERATIONS_MAX).contains(&operations), "{patch}");
            let made = apply(old, &patch, usize::MAX >> 1);
            let made = made.unwrap_or_else(|error| panic!("{error}: {patch} on {old:?}"));
            assert!(
                equal(&parse(&made), &after),
                "{patch} makes {made:?} of {old:?}"
            );
            assert_eq!(value(&made).as_deref(), Some(&*made), "no value");
        }
    }
}

fn patched(old: &str, patch: &str) {
    let made = apply(Some(old), patch, BYTES_MAX);
    if let Ok(made) = &made {
        assert!(made.len() <= BYTES_MAX);
        assert_eq!(value(made).as_deref(), Some(&**made), "no value");
    }
    // Only these say what becomes of a patch whatever the limits are.
    if matches!(made, Ok(_) | Err(PatchError::DoesNotFit { .. }))
        && let Ok(patch) = serde_json::from_str::<json_patch::Patch>(patch)
    {
        let mut value = match parse(old) {
            Value::Null => Value::Object(serde_json::Map::new()),
            value => value,
        };
        let reference = json_patch::patch_unsafe(&mut value, &patch);
        match (made, reference) {
            (Ok(made), Ok(())) => assert!(equal(&parse(&made), &value), "{made:?}, {value}"),
            // Numbers are compared in another way.
            (
                _,
                Err(json_patch::PatchError {
                    kind: json_patch::PatchErrorKind::TestFailed,
                    ..
                }),
            ) => {}
            (Err(_), Err(_)) => {}
            (made, reference) => panic!("{made:?}, but {reference:?}"),
        }
    }
}

fn document(cursor: &mut Cursor<'_>, levels: usize) -> String {
    let choice = cursor.byte();
    let len = if levels == 0 {
        0
    } else {
        usize::from(choice / 4) % 5
    };
    let space = if choice >= 0xE0 { " " } else { "" };
    let mut text = String::new();
    match choice % 4 {
        0 => {
            text.push('[');
            for nth in 0..len {
                text.push_str(if nth == 0 { space } else { "," });
                text.push_str(&document(cursor, levels - 1));
            }
            text.push(']');
        }
        1 | 2 => {
            text.push('{');
            for nth in 0..len {
                text.push_str(if nth == 0 { space } else { "," });
                let key = cursor.pick(&KEYS);
                let value = document(cursor, levels - 1);
                // Nothing fails that writes to a string.
                let _ = write!(text, r#""{key}"{space}:{value}"#);
            }
            text.push('}');
        }
        _ => text.push_str(cursor.pick(&SCALARS)),
    }
    text
}

fn operations(cursor: &mut Cursor<'_>) -> String {
    let mut operations = Vec::new();
    for _ in 0..cursor.below(12) {
        let op = cursor.pick(&["add", "copy", "move", "remove", "replace", "test"]);
        let (path, from) = (pointer(cursor), pointer(cursor));
        let value = document(cursor, 2);
        operations.push(format!(
            r#"{{"op":"{op}","path":"{path}","from":"{from}","value":{value}}}"#
        ));
    }
    format!("[{}]", operations.join(","))
}

fn pointer(cursor: &mut Cursor<'_>) -> String {
    let segments = (0..cursor.below(4)).map(|_| format!("/{}", cursor.pick(&SEGMENTS)));
    segments.collect()
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::{Texts, patch};

    #[test]
    fn inputs_replay() {
        for input in [
            &b""[..],
            b"\0{\"a\": 1}\xff{\"a\":[1]}\xff[{\"op\":\"add\",\"path\":\"/b\",\"value\":1}]",
            b"\0[1,2,3]\xff[1,3]\xff[{\"op\":\"copy\",\"from\":\"\",\"path\":\"/-\"}]",
            b"\0null\xff{}\xff[{\"op\":\"test\",\"path\":\"\",\"value\":{}}]",
            b"\0{\"a\":1,\"\\u0061\":2}\xff1e0\xff[]",
            b"\x0d\x09\0\x03\x05\x01\x03\x0b\x02\0\x01\0\0\x03\x01\x01\x01\0\x01\x01\x03\x05",
        ] {
            patch(input);
        }
    }

    #[test]
    fn the_texts_stand_in_the_bytes() {
        let texts = Texts::read(b"\0[1]\xff2\xff[]").unwrap();
        assert_eq!([&*texts.old, &texts.new, &texts.patch], ["[1]", "2", "[]"]);
    }

    proptest! {
        #[test]
        fn any_choices_keep_every_promise(data in vec(any::<u8>(), 0..300)) {
            patch(&[&[1], &*data].concat());
            patch(&data);
        }
    }
}
