//! What metadata documents become, key by key.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::super::{Json, Name};

/// Puts the keys of `new` over those of `old`; where either is no object, the answer is `new`.
pub(super) fn merge(old: Option<&Json>, new: Json) -> Json {
    let (Some(mut keys), Some(over)) = (old.and_then(|old| object(old)), object(&new)) else {
        return new;
    };
    keys.extend(over);
    // Cannot fail, as keys and values were read from JSON text; if it did, `new` is still valid.
    serde_json::to_string(&keys).map_or_else(|_| new.clone(), Json::from)
}

/// Puts `new` in place of `old`, but leaves what `old` says under `except`, or does not say.
pub(super) fn replace_except(old: Option<&Json>, new: &Json, except: &[Name]) -> Json {
    let excepted = |key: &String| except.iter().any(|name| **name == **key);
    let mut keys = object(new).unwrap_or_default();
    keys.retain(|key, _| !excepted(key));
    let old = old.and_then(|old| object(old)).unwrap_or_default();
    keys.extend(old.into_iter().filter(|(key, _)| excepted(key)));
    // Cannot fail, as above.
    serde_json::to_string(&keys).map_or_else(|_| "{}".into(), Json::from)
}

/// Is the document `null`, that is: no metadata?
pub(super) fn is_null(json: &str) -> bool {
    json.trim() == "null"
}

/// The keys with their values as they were written. Of a key that is there twice, the last counts.
fn object(json: &str) -> Option<BTreeMap<String, &RawValue>> {
    serde_json::from_str(json).ok()
}

#[cfg(test)]
mod tests {
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
}
