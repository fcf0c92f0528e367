//! What metadata documents become, key by key.

use std::{collections::BTreeMap, fmt};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::super::{Json, Name};

/// Puts the keys of `new` over those of `old`; where either is no object, the answer is `new`.
pub(super) fn merge(old: Option<&Json>, new: Json) -> Json {
    let (Some(mut keys), Some(over)) = (old.and_then(|old| object(old)), object(&new)) else {
        return new;
    };
    keys.0.extend(over.0);
    keys.to_json()
}

/// Puts `new` in place of `old`, but leaves what `old` says under `except`, or does not say.
pub(super) fn replace_except(old: Option<&Json>, new: &Json, except: &[Name]) -> Json {
    let excepted = |key: &Key| except.iter().any(|name| name.as_bytes() == key.0);
    let mut keys = object(new).unwrap_or_default();
    keys.0.retain(|key, _| !excepted(key));
    let old = old.and_then(|old| object(old)).unwrap_or_default();
    keys.0
        .extend(old.0.into_iter().filter(|(key, _)| excepted(key)));
    keys.to_json()
}

/// Is the document `null`, that is: no metadata?
pub(super) fn is_null(json: &str) -> bool {
    json.trim() == "null"
}

fn object(json: &str) -> Option<Object<'_>> {
    serde_json::from_str(json).ok()
}

/// An object's keys, and each with its value as they were written. Of a key that is there twice, the last counts.
#[derive(Default)]
struct Object<'a>(BTreeMap<Key, (&'a RawValue, &'a RawValue)>);

/// A key without its escapes. Half of a surrogate pair is no text, so this is no `String`: the half stands as the three bytes
/// that UTF-8 would have for its code unit (WTF-8), which equal those of nothing else.
#[derive(Eq, Ord, PartialEq, PartialOrd)]
struct Key(Vec<u8>);

impl Object<'_> {
    fn to_json(&self) -> Json {
        let mut json = String::from("{");
        for (key, value) in self.0.values() {
            if json.len() > 1 {
                json.push(',');
            }
            json.extend([key.get(), ":", value.get()]);
        }
        json.push('}');
        json.into()
    }
}

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut keys = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<&RawValue, &RawValue>()? {
                    let plain = serde_json::from_str(key.get());
                    keys.insert(plain.map_err(serde::de::Error::custom)?, (key, value));
                }
                Ok(Object(keys))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Plain;
        impl Visitor<'_> for Plain {
            type Value = Key;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Key, E> {
                Ok(Key(bytes.to_vec()))
            }
        }
        // As bytes, since serde_json refuses halves of pairs only where text is asked for.
        deserializer.deserialize_bytes(Plain)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{
        collection::vec,
        prelude::*,
        sample::{select, subsequence},
    };

    use super::*;

    fn merged(old: &str, new: &str) -> String {
        merge(Some(&old.into()), new.into()).to_string()
    }

    #[test]
    fn keys_are_replaced_one_level_deep() {
        assert_eq!(
            merged(r#"{"b":{"x":1},"a":1}"#, r#"{"b":{"y":2},"c":null}"#),
            r#"{"a":1,"b":{"y":2},"c":null}"#
        );
    }

    #[test]
    fn values_keep_their_bytes() {
        let old = r#"{"big":123456789012345678901234567890,"float":1.50,"list":[ ]}"#;
        assert_eq!(merged(old, "{}"), old);
        assert_eq!(merged("{}", old), old);
    }

    #[test]
    fn what_is_excepted_stays_as_it_is() {
        let replaced = |old: Option<&str>, new: &str| {
            let (old, except) = (old.map(Json::from), ["a".into(), "b".into()]);
            replace_except(old.as_ref(), &new.into(), &except).to_string()
        };
        let old = Some(r#"{"a":1.50,"c":1}"#);
        let new = r#"{"a":2,"b":2,"d":123456789012345678901234567890}"#;
        let d = r#""d":123456789012345678901234567890"#;
        assert_eq!(replaced(old, new), format!(r#"{{"a":1.50,{d}}}"#));
        for none in [None, Some("null"), Some("[1]"), Some("{}")] {
            assert_eq!(replaced(none, new), format!("{{{d}}}"));
        }
        for none in ["null", "[1]", "{}"] {
            assert_eq!(replaced(old, none), r#"{"a":1.50}"#);
        }
    }

    #[test]
    fn what_is_no_object_is_replaced() {
        for (old, new) in [
            ("[1]", r#"{"a":1}"#),
            (r#"{"a":1}"#, "[1]"),
            (r#"{"a":1}"#, "null"),
            ("1", "2"),
        ] {
            assert_eq!(merged(old, new), new);
        }
        assert_eq!(&*merge(None, "{ }".into()), "{ }");
    }

    #[test]
    fn the_last_of_equal_keys_counts_and_escapes_survive() {
        assert_eq!(
            merged("{}", r#"{"a":1,"a":2,"\"\n":3}"#),
            r#"{"\"\n":3,"a":2}"#
        );
    }

    #[test]
    fn half_of_a_pair_is_a_key_of_its_own() {
        assert_eq!(
            merged(r#"{"\ud800":1,"a":1}"#, r#"{"\uD800":2,"\udc00":"\udfff"}"#),
            r#"{"a":1,"\uD800":2,"\udc00":"\udfff"}"#
        );
        // Two halves that follow each other are one character, however it is written.
        assert_eq!(
            merged("{\"😀\":1}", r#"{"\ud83d\ude00":2}"#),
            r#"{"\ud83d\ude00":2}"#
        );
        // What stands in for a half where text is asked for is another key.
        let (old, new) = (r#"{"\ud800":1}"#, r#"{"\ufffd":2}"#);
        assert_eq!(merged(old, new), r#"{"\ud800":1,"\ufffd":2}"#);
        let kept = replace_except(
            Some(&r#"{"\ud800":1,"a":1}"#.into()),
            &r#"{"\udc00":2}"#.into(),
            &["a".into()],
        );
        assert_eq!(&*kept, r#"{"a":1,"\udc00":2}"#);
    }

    /// A key of the model: its code points, where half of a pair counts as one.
    type Points = Vec<u32>;

    /// A key, as it is meant and as it is written, and its value.
    type Entry = (Points, String, &'static str);

    /// Code units of which some are halves of pairs, each written as itself or as an escape.
    fn entry() -> impl Strategy<Value = Entry> {
        let units = [
            0x0a, 0x22, 0x5c, 0x61, 0xe9, 0xd7ff, 0xd800, 0xd83d, 0xdc00, 0xde00, 0xe000, 0xfffd,
        ];
        let values = [
            "1",
            "1.50",
            "null",
            "[ ]",
            r#""\ud800""#,
            r#"{"\udc00": 1}"#,
        ];
        let key = vec((select(units.to_vec()), 0..3u8), 0..4);
        (key, select(values.to_vec())).prop_map(|(key, value)| {
            let units: Vec<u16> = key.iter().map(|(unit, _)| *unit).collect();
            let mut hows = key.iter().map(|(_, how)| *how);
            let (mut points, mut text) = (Vec::new(), String::from("\""));
            for decoded in char::decode_utf16(units) {
                let how = hows.next().unwrap();
                let mut halves = [0; 2];
                let written = match &decoded {
                    Ok(char) => {
                        points.push(u32::from(*char));
                        char.encode_utf16(&mut halves)
                    }
                    Err(half) => {
                        halves[0] = half.unpaired_surrogate();
                        points.push(halves[0].into());
                        &mut halves[..1]
                    }
                };
                if written.len() == 2 {
                    hows.next();
                }
                match (how, decoded) {
                    (0, Ok(char)) if !matches!(char, '\n' | '"' | '\\') => text.push(char),
                    (1, _) => text.extend(written.iter().map(|unit| format!("\\u{unit:04X}"))),
                    _ => text.extend(written.iter().map(|unit| format!("\\u{unit:04x}"))),
                }
            }
            (points, text + "\"", value)
        })
    }

    fn written(entries: &[Entry]) -> Json {
        let entry = |(_, key, value): &Entry| format!("{key}:{value}");
        let entries: Vec<_> = entries.iter().map(entry).collect();
        format!("{{{}}}", entries.join(",")).into()
    }

    /// The entries that are left if of equal keys the last counts, in the order of their code points.
    fn last_of_each<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Vec<Entry> {
        let mut kept: Vec<Entry> = Vec::new();
        for entry in entries {
            kept.retain(|(key, ..)| *key != entry.0);
            kept.push(entry.clone());
        }
        kept.sort();
        kept
    }

    proptest! {
        #[test]
        fn documents_change_as_the_model_does(
            old in vec(entry(), 0..5),
            new in vec(entry(), 0..5),
            names in subsequence(vec!["", "a", "\n", "é", "\u{fffd}", "\u{1f600}"], 0..=6),
        ) {
            let (before, after) = (written(&old), written(&new));
            let all = last_of_each(old.iter().chain(&new));
            prop_assert_eq!(merge(Some(&before), after.clone()), written(&all));

            let is_excepted = |(key, ..): &&Entry| {
                names.iter().any(|name| name.chars().map(u32::from).eq(key.iter().copied()))
            };
            let kept = old.iter().filter(is_excepted);
            let all = last_of_each(kept.chain(new.iter().filter(|entry| !is_excepted(entry))));
            let except: Vec<Name> = names.iter().map(|name| (*name).into()).collect();
            prop_assert_eq!(replace_except(Some(&before), &after, &except), written(&all));
        }
    }
}
