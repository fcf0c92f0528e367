//! What two values are together.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::trim;

/// Puts the keys of `new` over those of `old`, one level deep; with `deep` also inside of each key whose values are objects on both sides.
/// Where either is no object, and where nothing is stored, it is `new`. A key whose new value is `null` becomes `null`.
///
/// Both must have passed [`normalize`](super::normalize), and so has what comes out. Keys that were there keep their places, and values that
/// are not merged their texts, so that [`diff`](super::diff) finds little to compare.
///
/// ```
/// use mesh_core::record::merge;
///
/// let old = r#"{"a": {"b": 1.50, "c": 2}, "d": 3}"#;
/// assert_eq!(merge(Some(old), r#"{"a":{"c":4}}"#, false), r#"{"a":{"c":4},"d":3}"#);
/// assert_eq!(merge(Some(old), r#"{"a":{"c":4}}"#, true), r#"{"a":{"b":1.50,"c":4},"d":3}"#);
/// assert_eq!(merge(None, "[1]", true), "[1]");
/// ```
#[must_use]
pub fn merge<'a>(old: Option<&str>, new: &'a str, deep: bool) -> Cow<'a, str> {
    let mut merged = String::new();
    match old {
        Some(old) if write(old, new, deep, &mut merged) => Cow::Owned(merged),
        _ => Cow::Borrowed(new),
    }
}

/// Writes the object that both are together; false, and nothing written, where either is none.
fn write(old: &str, new: &str, deep: bool, out: &mut String) -> bool {
    let (Some(old), Some(new)) = (object(old), object(new)) else {
        return false;
    };
    let mut over: BTreeMap<&str, &str> = new
        .0
        .iter()
        .map(|(key, value)| (&**key, value.get()))
        .collect();
    out.push('{');
    let mut separator = "";
    for (key, value) in &old.0 {
        let value = value.get();
        out.push_str(separator);
        separator = ",";
        write_key(key, out);
        match over.remove(&**key) {
            None => out.push_str(value),
            Some(new) if deep && write(value, new, deep, out) => {}
            Some(new) => out.push_str(new),
        }
    }
    for (key, value) in &new.0 {
        if over.contains_key(&**key) {
            out.push_str(separator);
            separator = ",";
            write_key(key, out);
            out.push_str(value.get());
        }
    }
    out.push('}');
    true
}

fn write_key(key: &str, out: &mut String) {
    // A string always has a JSON form.
    out.push_str(&serde_json::to_string(key).unwrap_or_default());
    out.push(':');
}

fn object(json: &str) -> Option<Object<'_>> {
    trim(json)
        .starts_with('{')
        .then(|| serde_json::from_str(json).ok())?
}

/// An object's keys in their order, and each value as it was written.
struct Object<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some((Key(key), value)) = map.next_entry()? {
                    entries.push((key, value));
                }
                Ok(Object(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// Borrowed where it has no escapes, which `Cow` alone never is.
#[derive(serde::Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use proptest::{collection::btree_map, prelude::*, sample::select};
    use serde_json::{Map, Value};

    use super::merge;

    /// Few keys, so that they meet.
    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::from),
            Just(Value::from(vec![1])),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            let key = select(&["", "a", "b", "é\n"][..]).prop_map(str::to_owned);
            let object = btree_map(key, inner, 0..4);
            object.prop_map(|entries| Value::Object(entries.into_iter().collect()))
        })
    }

    /// The rule, on parsed values.
    fn model(old: &Value, new: &Value, deep: bool) -> Value {
        let (Value::Object(old), Value::Object(new)) = (old, new) else {
            return new.clone();
        };
        let mut merged: Map<String, Value> = old.clone();
        for (key, value) in new {
            let value = match old.get(key) {
                Some(old) if deep => model(old, value, true),
                _ => value.clone(),
            };
            merged.insert(key.clone(), value);
        }
        Value::Object(merged)
    }

    proptest! {
        #[test]
        fn it_is_what_the_rule_says_on_parsed_values(old in values(), new in values(), deep: bool) {
            let (old_text, new_text) = (old.to_string(), new.to_string());
            let merged = merge(Some(&old_text), &new_text, deep);
            prop_assert_eq!(serde_json::from_str::<Value>(&merged).unwrap(), model(&old, &new, deep));
            prop_assert_eq!(merge(None, &new_text, deep), &*new_text);
        }
    }

    #[test]
    fn what_is_not_merged_keeps_its_text_and_place() {
        let old = r#" {"b" : [1.50, 2] , "a\u0062": {"x": 1e0}, "": null} "#;
        let new = r#"{"new":{"y": 1}, "ab": {"x": 2}, "": {"z":0}}"#;
        let shallow = r#"{"b":[1.50, 2],"ab":{"x": 2},"":{"z":0},"new":{"y": 1}}"#;
        assert_eq!(merge(Some(old), new, false), shallow);
        assert_eq!(
            merge(Some(r#"{"a":{"b":1}}"#), r#"{"a":{"b":{}}}"#, true),
            r#"{"a":{"b":{}}}"#
        );
    }
}
