//! A second opinion on frames, by serde_json and by hand: slow, allocating, and simple enough to be right.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{FrameError, parse};

/// What a frame says, all of it owned.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct ModelFrame {
    pub(super) id: Option<u32>,
    pub(super) command: String,
    pub(super) payload: String,
}

/// Reads a frame as section 1 of `protocol.md` has it; `None` for a malformed one.
pub(super) fn parse_model(text: &str, nesting_max: usize) -> Option<ModelFrame> {
    // Raw values are checked against the whole grammar and otherwise left alone, unlike `Value`, which loses what
    // is given twice and refuses lone surrogates and large numbers.
    let raw: Box<RawValue> = serde_json::from_str(text).ok()?;
    if !raw.get().starts_with('{') || nesting(raw.get()) > nesting_max {
        return None;
    }
    let Entries(entries) = serde_json::from_str(raw.get()).ok()?;
    let value = |wanted: &str| {
        // A key with a lone surrogate is no string, hence none of ours.
        let is_wanted =
            |key: &str| serde_json::from_str::<String>(key).is_ok_and(|key| key == wanted);
        let mut values = entries.iter().filter(|(key, _)| is_wanted(key.get()));
        let first = values.next().map(|(_, value)| value.get());
        values.next().is_none().then_some(first)
    };
    Some(ModelFrame {
        id: match value("id")? {
            Some(id) => Some(serde_json::from_str::<u32>(id).ok()?),
            None => None,
        },
        command: serde_json::from_str(value("command")??).ok()?,
        payload: value("payload")?.unwrap_or("null").to_owned(),
    })
}

/// Checks the parser against the model, and all that it hands out against what went in.
///
/// # Panics
/// They differ.
pub(super) fn check_parser(text: &str, nesting_max: usize) {
    let parsed = parse(text, nesting_max);
    if let Err(FrameError::NotJson { at }) = parsed {
        assert!(at <= text.len(), "{at} is outside of {text:?}");
    }
    let parsed = parsed.map(|frame| ModelFrame {
        id: frame.id,
        command: frame.command.into_owned(),
        payload: frame.payload.to_owned(),
    });
    let model = parse_model(text, nesting_max);
    assert_eq!(parsed.as_ref().ok(), model.as_ref(), "{parsed:?}, {text:?}");
}

/// How deep valid JSON nests.
fn nesting(text: &str) -> usize {
    let (mut level, mut deepest) = (0_usize, 0);
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => {
                while let Some(byte) = bytes.next() {
                    match byte {
                        b'\\' => _ = bytes.next(),
                        b'"' => break,
                        _ => {}
                    }
                }
            }
            b'[' | b'{' => {
                level += 1;
                deepest = deepest.max(level);
            }
            b']' | b'}' => level -= 1,
            _ => {}
        }
    }
    deepest
}

/// The entries of an object in their order, given twice or not.
struct Entries(Vec<(Box<RawValue>, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;

        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }

        deserializer.deserialize_map(EntriesVisitor)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use proptest::{prelude::*, sample::Index};

    use super::{check_parser, parse_model};
    use crate::protocol::{Frame, parse};

    /// JSON whitespace, mostly none.
    fn space() -> impl Strategy<Value = String> {
        prop_oneof![3 => Just(String::new()), 1 => "[ \t\r\n]{1,3}"]
    }

    /// A string with its quotes, each character written in one of the ways that JSON has for it.
    fn written(text: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
        (text, any::<u64>()).prop_map(|(text, ways)| {
            let escape = |char: char| {
                let mut units = [0; 2];
                let units = char.encode_utf16(&mut units);
                units
                    .iter()
                    .map(|unit| format!("\\u{unit:04x}"))
                    .collect::<String>()
            };
            let chars = text.chars().enumerate().map(|(index, char)| {
                match (char, ways >> (index % 32 * 2) & 3) {
                    ('"' | '\\', 0..3) | ('/', 1) => format!("\\{char}"),
                    ('\n', 1..3) => "\\n".to_owned(),
                    (_, 3) | ('\0'..' ', _) => escape(char).replace('a', "A"),
                    _ => char.to_string(),
                }
            });
            format!("\"{}\"", chars.collect::<String>())
        })
    }

    fn any_text() -> impl Strategy<Value = String> {
        let char = prop_oneof![any::<char>(), proptest::char::range('\0', '~')];
        prop_oneof![
            4 => proptest::collection::vec(char, 0..8).prop_map(String::from_iter),
            // Long enough for the chunks, what is special anywhere in it.
            1 => (0..200_usize, 0..200_usize, any::<char>()).prop_map(|(before, after, char)| {
                format!("{}{char}{}", "x".repeat(before), "y".repeat(after))
            }),
        ]
    }

    fn value() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            any::<bool>().prop_map(|value| value.to_string()),
            "-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,5})?([eE][+-]?[0-9]{1,4})?",
            written(any_text()),
            Just("\"\\ud800\"".to_owned()),
        ];
        leaf.prop_recursive(5, 20, 4, |inner| {
            let item = (space(), inner.clone(), space())
                .prop_map(|(before, value, after)| format!("{before}{value}{after}"))
                .boxed();
            let entry = (space(), written(any_text()), space(), item.clone())
                .prop_map(|(before, key, after, value)| format!("{before}{key}{after}:{value}"));
            prop_oneof![
                (space(), proptest::collection::vec(item, 0..4))
                    .prop_map(|(space, items)| format!("[{}{space}]", items.join(","))),
                (space(), proptest::collection::vec(entry, 0..4))
                    .prop_map(|(space, entries)| format!("{{{}{space}}}", entries.join(","))),
            ]
        })
    }

    /// One entry of a frame, with a key of its own or an unknown one, and a value that fits it as a rule.
    fn entry() -> impl Strategy<Value = String> {
        let known = |key: &'static str| written(Just(key.to_owned()));
        let id = prop_oneof![6 => any::<u32>().prop_map(|id| id.to_string()), 1 => value()];
        let command = prop_oneof![6 => written(any_text()), 1 => value()];
        let unknown = prop_oneof![written(any_text()), Just("\"\\udfff\"".to_owned())];
        prop_oneof![
            (known("id"), id),
            (known("command"), command),
            (known("payload"), value()),
            (unknown, value()),
        ]
        .prop_flat_map(|(key, value)| (space(), Just(key), space(), space(), Just(value), space()))
        .prop_map(|(a, key, b, c, value, d)| format!("{a}{key}{b}:{c}{value}{d}"))
    }

    /// Objects that are frames more often than not.
    fn almost_frame() -> impl Strategy<Value = String> {
        (space(), proptest::collection::vec(entry(), 0..5), space()).prop_map(
            |(before, entries, after)| format!("{before}{{{}}}{after}", entries.join(",")),
        )
    }

    /// Valid frames with their meaning: every key at most once, in any order, unknown ones between them.
    fn valid_frame() -> impl Strategy<Value = (String, Option<u32>, String, String)> {
        (
            any::<Option<u32>>(),
            any_text(),
            proptest::option::of(value()),
            any::<[bool; 3]>(),
        )
            .prop_flat_map(|(id, command, payload, unknown)| {
                let known = |key: &str| written(Just(key.to_owned()));
                let mut entries = vec![(known("command"), written(Just(command.clone()))).boxed()];
                if let Some(id) = id {
                    entries.push((known("id"), Just(id.to_string())).boxed());
                }
                if let Some(payload) = &payload {
                    entries.push((known("payload"), Just(payload.clone())).boxed());
                }
                for _ in unknown.iter().filter(|&&unknown| unknown) {
                    entries.push(
                        (
                            written(any_text().prop_map(|key| format!("{key}?"))),
                            value(),
                        )
                            .boxed(),
                    );
                }
                let meaning = (id, command, payload.unwrap_or_else(|| "null".to_owned()));
                (entries, Just(meaning), space())
            })
            .prop_flat_map(|(entries, meaning, space)| {
                (Just(entries).prop_shuffle(), Just(meaning), Just(space))
            })
            .prop_map(|(entries, (id, command, payload), space)| {
                let entries = entries
                    .into_iter()
                    .map(|(key, value)| format!("{space}{key}{space}:{space}{value}{space}"));
                let text = format!(
                    "{space}{{{}}}{space}",
                    entries.collect::<Vec<_>>().join(",")
                );
                (text, id, command, payload)
            })
    }

    /// Takes bytes out, puts some in and swaps some for others, where that leaves characters whole.
    fn mutate(text: &str, edits: &[(Index, u8, char)]) -> String {
        let mut chars: Vec<char> = text.chars().collect();
        for (index, kind, char) in edits {
            let at = index.index(chars.len() + 1);
            match kind % 4 {
                0 => chars.insert(at, *char),
                1 if at < chars.len() => drop(chars.remove(at)),
                2 => chars.truncate(at),
                3 if at < chars.len() => chars[at] = *char,
                _ => {}
            }
        }
        chars.into_iter().collect()
    }

    fn edits() -> impl Strategy<Value = Vec<(Index, u8, char)>> {
        let signs: Vec<char> = "{}[]:,\"\\ \t\n0123456789+-.eEutrfalsn\0\u{1f}\u{7f}é"
            .chars()
            .collect();
        let char = proptest::sample::select(signs);
        proptest::collection::vec((any::<Index>(), any::<u8>(), char), 1..4)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn a_valid_frame_is_read_as_it_is_meant((text, id, command, payload) in valid_frame()) {
            let frame = Frame { id, command: command.into(), payload: &payload };
            prop_assert_eq!(parse(&text, 128), Ok(frame), "{}", text);
            check_parser(&text, 128);
        }

        #[test]
        fn parser_and_model_agree_on_what_is_almost_a_frame(text in almost_frame(), max in 0..6_usize) {
            check_parser(&text, max);
            check_parser(&text, 128);
        }

        #[test]
        fn parser_and_model_agree_on_broken_frames((text, ..) in valid_frame(), edits in edits(), max in 1..6_usize) {
            let text = mutate(&text, &edits);
            check_parser(&text, max);
            check_parser(&text, 128);
        }

        #[test]
        fn any_text_is_read_or_refused(text in any::<String>(), signs in "[{}\\[\\]:,\"\\\\ 01eut.-]{0,30}") {
            check_parser(&text, 128);
            check_parser(&signs, 128);
            check_parser(&format!("{{\"command\":\"c\",\"payload\":{signs}}}"), 128);
        }
    }

    #[test]
    fn the_model_itself_knows_the_rules() {
        assert!(parse_model(r#"{"command":"c","x":1,"x":2,"\ud800":[1e999]}"#, 2).is_some());
        for malformed in [
            "[]",
            r#"{"id":null,"command":"c"}"#,
            r#"{"id":-0,"command":"c"}"#,
            r#"{"id":1.0,"command":"c"}"#,
            r#"{"command":"c","comman\u0064":"c"}"#,
            r#"{"command":"c","payload":[[]]}"#,
            r#"{"command":"\ud800"}"#,
            r#"{"command":"c"}x"#,
        ] {
            assert_eq!(parse_model(malformed, 2), None, "{malformed}");
        }
    }

    #[test]
    fn the_fuzzing_corpus_holds_no_difference() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/frame_parser");
        let seeds = fs::read_dir(&corpus)
            .unwrap()
            .map(|seed| fs::read(seed.unwrap().path()).unwrap());
        let (mut all, mut frames) = (0, 0);
        for seed in seeds {
            if let Ok(text) = str::from_utf8(&seed) {
                check_parser(text, 128);
                check_parser(text, 3);
                frames += usize::from(parse(text, 128).is_ok());
            }
            all += 1;
        }
        assert!(
            all > frames && frames > 0,
            "{frames} of {all} seeds are frames"
        );
    }
}
