//! What holds for all values and all patches.

mod model;

use std::borrow::Cow;

use proptest::{collection::vec, prelude::*, sample::select};
use serde_json::Value;

use self::model::{Model, Style, key, meaning, model, of_value, scalar};
use super::{
    Change, NESTING_MAX, OPERATIONS_APPLIED_MAX, OPERATIONS_MAX, PatchError, ValueError, apply,
    apply::Operation,
    diff,
    diff::{Writer, compare},
    normalize,
    value::equal,
};

/// Levels over a value that has a few of its own.
const DEEP: usize = NESTING_MAX - 40;

const ANY_LENGTH: usize = usize::MAX >> 1;

/// Applies a patch as the crate does it, to the whole value.
fn reference(base: &str, patch: &str) -> Option<Value> {
    let mut value = serde_json::from_str(base).unwrap();
    let patch: json_patch::Patch = serde_json::from_str(patch).ok()?;
    json_patch::patch_unsafe(&mut value, &patch).ok()?;
    Some(value)
}

/// The difference of the whole values, without a look at the texts.
fn full_diff(old: &str, new: &str) -> Change {
    let parse = |text| serde_json::from_str::<Value>(text).unwrap();
    let mut writer = Writer::new(ANY_LENGTH);
    match writer.values(&parse(old), &parse(new)) {
        Ok(()) => writer.finish(),
        Err(_) => Change::Full,
    }
}

/// Checks whatever there is to check about an update.
fn check(old: &str, new: &str) -> Result<(), TestCaseError> {
    let (before, after) = (meaning(old), meaning(new));
    let [old, new] = [old, new].map(super::trim);
    let exact = compare(old, new, ANY_LENGTH);
    match &exact {
        Change::Equal => prop_assert_eq!(&before, &after),
        Change::Full => {
            prop_assert!(full_diff(old, new) == Change::Full || new.len() > OPERATIONS_MAX);
        }
        Change::Patch(patch) => {
            prop_assert_ne!(&before, &after);
            let value = reference(old, patch).unwrap();
            prop_assert_eq!(of_value(&value), &*after, "{}", patch);
            let text = apply(Some(old), patch, ANY_LENGTH).unwrap();
            prop_assert_eq!(meaning(&text), &*after, "{} to {}", patch, text);
        }
    }
    match full_diff(old, new) {
        Change::Equal => prop_assert_eq!(&exact, &Change::Equal),
        Change::Full => {}
        Change::Patch(patch) => {
            prop_assert_ne!(&exact, &Change::Equal);
            let value = reference(old, &patch).unwrap();
            prop_assert_eq!(of_value(&value), &*after, "{}", patch);
        }
    }
    // Bounded it is the same, or nothing.
    match (diff(Some(old), new), exact) {
        (bounded, Change::Patch(patch)) => {
            let replaces = patch.starts_with(r#"[{"op":"replace","path":"","#);
            let fits = replaces || patch.len() < new.len();
            let expected = if fits {
                Change::Patch(patch)
            } else {
                Change::Full
            };
            prop_assert_eq!(bounded, expected);
        }
        (bounded, exact) => prop_assert_eq!(bounded, exact),
    }
    Ok(())
}

/// Values that follow each other: others altogether, or edits of the one before.
fn history() -> impl Strategy<Value = Vec<(Model, u64)>> {
    let step = (any::<bool>(), vec(any::<u16>(), 0..5), model(), style());
    vec(step, 1..6).prop_map(|steps| {
        let mut last = Model::Object(std::collections::BTreeMap::default());
        let step = |(edits, way, with, style): (bool, Vec<u16>, Model, u64)| {
            if edits {
                last.edit(&way, &with);
            } else {
                last = with;
            }
            (last.clone(), style)
        };
        steps.into_iter().map(step).collect()
    })
}

fn style() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), any::<u64>()]
}

/// A value with many members.
fn large() -> impl Strategy<Value = Model> {
    let row = vec((key(), scalar()), 0..5);
    let rows = vec(
        row.prop_map(|row| Model::Object(row.into_iter().collect())),
        50..120,
    );
    (rows, any::<bool>()).prop_map(|(rows, object)| {
        if object {
            let rows = rows.into_iter().enumerate();
            Model::Object(
                rows.map(|(index, row)| (format!("row {index}"), row))
                    .collect(),
            )
        } else {
            Model::Array(rows)
        }
    })
}

/// An operation, whose paths are ways that are yet to be walked.
type Op = (&'static str, Vec<u16>, Vec<u16>, &'static str);

fn operations() -> impl Strategy<Value = Vec<Op>> {
    let name = select(vec![
        "add", "add", "copy", "move", "remove", "replace", "test",
    ]);
    let way = || vec(any::<u16>(), 0..4);
    let value = select(vec![
        "1",
        "null",
        "[]",
        "{}",
        r#"{"a":[1,2],"b":{"a":null}}"#,
    ]);
    // One alone fits or does not; of many one hardly ever fits them all.
    let operation = (name, way(), way(), value);
    (vec(operation, 1..7), prop_oneof![Just(1), 1..7_usize]).prop_map(|(mut operations, len)| {
        operations.truncate(len);
        operations
    })
}

/// A path through a value, for the most part to what is there, and now and then beyond.
fn walk(value: &Value, way: &[u16]) -> String {
    const BEYOND: [&str; 14] = [
        "", "a", "ab", "0", "1", "2", "-", "~1", "~0", "01", "é", "~", "\"", "+1",
    ];
    let (mut path, mut value) = (String::new(), Some(value));
    for step in way {
        let choice = usize::from(step / 8);
        let there = match value {
            Some(Value::Array(elements)) => Some((choice % (elements.len() + 2)).to_string()),
            Some(Value::Object(members)) => {
                members.keys().nth(choice % members.len().max(1)).cloned()
            }
            _ => None,
        };
        let token = match there {
            Some(token) if step % 8 > 0 => token.replace('~', "~0").replace('/', "~1"),
            _ => BEYOND[choice % BEYOND.len()].to_owned(),
        };
        path = format!("{path}/{token}");
        value = value.and_then(|value| value.pointer(&path[path.len() - token.len() - 1..]));
    }
    path
}

fn patch_for(base: &Value, operations: &[Op]) -> String {
    let operation = |(op, path, from, value): &Op| {
        let value: Value = serde_json::from_str(value).unwrap();
        let mut operation =
            serde_json::json!({ "op": op, "path": walk(base, path), "value": value });
        if matches!(*op, "copy" | "move") {
            operation["from"] = walk(base, from).into();
        }
        operation
    };
    Value::from_iter(operations.iter().map(operation)).to_string()
}

/// Values with short keys and small numbers, where patches often fit.
fn plain() -> impl Strategy<Value = Value> {
    let leaf = select(vec![Value::Null, Value::from(1), Value::from("s")]);
    leaf.prop_recursive(4, 30, 4, |inner| {
        let key =
            select(vec!["", "a", "ab", "ac", "0", "1", "/", "~", "é"]).prop_map(str::to_owned);
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec((key, inner), 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn patches_fold_to_the_values(
        history in history(),
        levels in prop_oneof![8 => Just(0), 1 => 0..=DEEP],
    ) {
        let mut held: Option<String> = None;
        for (model, style) in history {
            let model = model.buried(levels);
            let text = model.text(&mut Style::new(style));
            let new = normalize(&text, NESTING_MAX).unwrap();
            let base = held.as_deref().unwrap_or("{}");
            let first = held.is_none();
            let change = diff(held.as_deref(), &new);
            prop_assert!(!(first && change == Change::Equal), "a first value is an update");
            // Whatever its length.
            held = Some(match compare(super::trim(base), super::trim(&new), ANY_LENGTH) {
                Change::Patch(patch) => apply(held.as_deref(), &patch, ANY_LENGTH).unwrap(),
                Change::Equal if !first => held.unwrap(),
                Change::Equal | Change::Full => new.into_owned(),
            });
            let held = held.as_deref().unwrap_or_default();
            prop_assert_eq!(meaning(held), model.meaning());
            prop_assert_eq!(normalize(held, NESTING_MAX), Ok(Cow::Borrowed(held)));
        }
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn equality_is_that_of_the_model(one in model(), other in model(), way in vec(any::<u16>(), 0..4), styles: [u64; 3]) {
        let mut edited = one.clone();
        edited.edit(&way, &other);
        let models = [&one, &other, &edited];
        let texts: Vec<_> = models.iter().zip(styles).map(|(model, style)| model.text(&mut Style::new(style))).collect();
        let values: Vec<Value> = texts.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
        for (a, left) in models.iter().enumerate() {
            for (b, right) in models.iter().enumerate() {
                let expected = left.meaning() == right.meaning();
                prop_assert_eq!(equal(&values[a], &values[b]), expected, "{} and {}", texts[a], texts[b]);
                prop_assert_eq!(diff(Some(&texts[a]), &texts[b]) == Change::Equal, expected);
            }
        }
        // The same value in another style.
        let again = one.text(&mut Style::new(styles[1] ^ styles[2]));
        prop_assert_eq!(diff(Some(&texts[0]), &again), Change::Equal);
    }

    #[test]
    fn texts_differ_as_their_values_do(old in model(), new in model(), ways in vec(vec(any::<u16>(), 0..5), 0..3), styles: [u64; 2], same: bool) {
        let mut edited = old.clone();
        for way in &ways {
            edited.edit(way, &new);
        }
        // In one style the texts have much in common, in two little.
        let [one, other] = if same { [styles[0]; 2] } else { styles };
        check(&old.text(&mut Style::new(one)), &edited.text(&mut Style::new(other)))?;
        check(&old.text(&mut Style::new(0)), &edited.text(&mut Style::new(0)))?;
    }

    #[test]
    fn normalized_is_what_serde_json_reads(model in model(), style: u64, cut in 0..200_usize, byte in "[\\[\\]{}\":,0e.\\-+ \\\\u]") {
        let mut style = Style::with_duplicates(style);
        let text = model.text(&mut style);
        let normalized = normalize(&text, NESTING_MAX).unwrap();
        prop_assert_eq!(meaning(&normalized), model.meaning());
        prop_assert_eq!(matches!(normalized, Cow::Owned(_)), style.duplicated, "{}", text);
        prop_assert_eq!(normalize(&normalized, NESTING_MAX), Ok(Cow::Borrowed(&*normalized)));

        let at = text.floor_char_boundary(cut.min(text.len()));
        let broken = format!("{}{byte}{}", &text[..at], &text[at..]);
        let expected = serde_json::from_str::<Value>(&broken);
        prop_assert_eq!(normalize(&broken, NESTING_MAX).is_ok(), expected.is_ok(), "{}", broken);
    }

    #[test]
    fn any_patch_applies_as_the_crate_has_it(base in plain(), operations in operations()) {
        let (patch, base) = (patch_for(&base, &operations), base.to_string());
        let start = if base == "null" { "{}" } else { &base };
        let expected = reference(start, &patch).map(|value| of_value(&value));
        let applied = apply(Some(&base), &patch, 100_000);
        let limited = matches!(applied, Err(PatchError::TooLong { .. } | PatchError::BaseNotJson));
        prop_assert!(!limited);
        prop_assert_eq!(applied.ok().map(|text| meaning(&text)), expected, "{} to {}", patch, base);
    }

    #[test]
    fn apply_is_total(any in ".{0,40}", model in model(), style: u64, cut in 0..200_usize, operations in operations()) {
        let json = model.text(&mut Style::new(style));
        let patch = patch_for(&serde_json::from_str(&json).unwrap(), &operations);
        // Cut off somewhere.
        let broken = json[..json.floor_char_boundary(cut.min(json.len()))].to_owned();
        for base in [&any, &json, &broken] {
            for patch in [&any, &json, &broken, &patch] {
                let _ = apply(Some(base), patch, 1_000);
                let _ = diff(Some(base), patch);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_small_change_of_a_large_value_is_a_small_patch(old in large(), way in vec(any::<u16>(), 1..5), with in scalar(), style in style()) {
        let mut new = old.clone();
        new.edit(&way, &with);
        let [old, new] = [&old, &new].map(|model| model.text(&mut Style::new(style)));
        check(&old, &new)?;
        let removals = matches!(way[0] % 8, 5);
        if style == 0 && !removals && let Change::Patch(patch) = diff(Some(&old), &new) {
            prop_assert!(patch.len() < 600, "{}", patch);
        }
    }
}

#[test]
fn what_is_no_value_is_told() {
    let deep = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
    assert!(normalize(&deep(NESTING_MAX), usize::MAX).is_ok());
    let too_deep = Err(ValueError::TooDeep { max: NESTING_MAX });
    assert_eq!(normalize(&deep(NESTING_MAX + 1), usize::MAX), too_deep);
    assert_eq!(normalize("[[]]", 1), Err(ValueError::TooDeep { max: 1 }));
    for text in ["1e400", "-1e309", &"9".repeat(400)] {
        let out_of_range = ValueError::NumberOutOfRange { at: 1 };
        assert_eq!(normalize(&format!(" {text}"), 124), Err(out_of_range));
    }
    for text in [r#"["\ud800"]"#, r#"{"\udc00":1}"#] {
        assert_eq!(
            normalize(text, 124),
            Err(ValueError::LoneSurrogate { at: 1 })
        );
    }
    for (text, at) in [("", 0), ("[1,]", 3), ("{} x", 3), ("nul", 3)] {
        assert_eq!(
            normalize(text, 124),
            Err(ValueError::NotJson { at }),
            "{text}"
        );
    }
}

#[test]
fn of_keys_given_twice_the_last_counts() {
    for keys in [2, 15, 16, 17, 100] {
        let members: Vec<_> = (1..keys).map(|key| format!(r#""{key}":{key}"#)).collect();
        let once = format!("{{{}}}", members.join(","));
        assert_eq!(normalize(&once, 124), Ok(Cow::Borrowed(&*once)));
        let twice = format!(r#"{{"\u0031":[],{}}}"#, members.join(","));
        let normalized = normalize(&twice, 124).unwrap();
        assert_eq!(meaning(&normalized), meaning(&once));
        assert!(!normalized.contains("[]"));
    }
}

#[test]
fn first_values_and_roots() {
    let root = |value| Change::Patch(format!(r#"[{{"op":"replace","path":"","value":{value}}}]"#));
    for (old, new, change) in [
        (None, "{}", Change::Full),
        (None, r#"{"a":1}"#, Change::Full),
        (None, "null", root("null")),
        (None, "[]", root("[]")),
        (None, " 7 ", root("7")),
        (Some("null"), "{}", root("{}")),
        (Some("{}"), "null", root("null")),
        (Some("{}"), "[]", root("[]")),
        (Some("1"), "1.0", Change::Equal),
        (
            Some("9007199254740993"),
            "9007199254740992.0",
            root("9007199254740992.0"),
        ),
        (Some("\"a\""), r#""\u0061""#, Change::Equal),
        (Some("true"), "false", root("false")),
    ] {
        assert_eq!(diff(old, new), change, "{old:?} to {new}");
    }
    let set = r#"[{"op":"add","path":"/a","value":1}]"#;
    for base in [None, Some("null"), Some("{}"), Some(" {} ")] {
        assert_eq!(apply(base, set, 100).unwrap(), r#"{"a":1}"#);
        assert_eq!(apply(base, "[]", 100).unwrap(), "{}");
        let replace = r#"[{"op":"replace","path":"","value":null}]"#;
        assert_eq!(apply(base, replace, 100).unwrap(), "null");
    }
}

#[test]
fn paths_have_whole_steps_in_common() {
    let base = r#"{"a":{"b":1},"ab":1,"ac":1}"#;
    let patch = r#"[{"op":"test","path":"/ab","value":1},{"op":"test","path":"/ac","value":1}]"#;
    assert_eq!(apply(Some(base), patch, 100).unwrap(), base);
    let patch = r#"[{"op":"test","path":"/a/b","value":1},{"op":"replace","path":"/a","value":2}]"#;
    assert_eq!(
        apply(Some(base), patch, 100).unwrap(),
        r#"{"a":2,"ab":1,"ac":1}"#
    );
}

#[test]
fn a_patch_parses_the_smallest_value_that_holds_all_it_touches() {
    for (patch, focus) in [
        (r#"[{"op":"test","path":"/a/b/c","value":1}]"#, "/a/b/c"),
        (r#"[{"op":"replace","path":"/a/b/c","value":1}]"#, "/a/b/c"),
        (r#"[{"op":"add","path":"/a/b/c","value":1}]"#, "/a/b"),
        (r#"[{"op":"remove","path":"/a/b/c"}]"#, "/a/b"),
        (r#"[{"op":"move","from":"/a/b/c","path":"/a/b/d"}]"#, "/a/b"),
        (r#"[{"op":"copy","from":"/a/c/d","path":"/a/b/c"}]"#, "/a"),
        (r#"[{"op":"copy","from":"/b/c/d","path":"/a/b/c"}]"#, ""),
        (
            r#"[{"op":"test","path":"/a/b","value":1},{"op":"test","path":"/a/bc","value":1}]"#,
            "/a",
        ),
        (
            r#"[{"op":"test","path":"/a/b","value":1},{"op":"test","path":"/a/b/c","value":1}]"#,
            "/a/b",
        ),
        ("[]", ""),
    ] {
        let operations: Vec<Operation<'_>> = serde_json::from_str(patch).unwrap();
        assert_eq!(super::apply::focus(&operations), focus, "{patch}");
    }
}

#[test]
fn what_changes_in_several_places_is_told_place_by_place() {
    // What stays is long, so that a patch is shorter.
    let long = |text: &str| text.replace('#', &"x".repeat(300));
    let old = long(r##"{"a":{"rows":[{"n":1},{"n":2},[3]],"o":{"p":1,"q":2}},"b":1,"c":"#"}"##);
    for (new, patch) in [
        (
            r##"{"a":{"rows":[{"n":1},{"n":7},[3]],"o":{"p":1}},"b":2,"c":"#"}"##,
            r#"[{"op":"remove","path":"/a/o/q"},{"op":"replace","path":"/a/rows/1/n","value":7},{"op":"replace","path":"/b","value":2}]"#,
        ),
        // What is at the end stays where it is, if only its numbers are written in another way.
        (
            r##"{"a":{"rows":[{"n":2.0},[3.0]],"o":{"p":1,"q":2}},"b":2,"c":"#"}"##,
            r#"[{"op":"remove","path":"/a/rows/0"},{"op":"replace","path":"/b","value":2}]"#,
        ),
        (
            r##"{"a":{"rows":[0,{"n":1},{"n":2},[3]],"o":{"p":1,"q":2}},"b":2,"c":"#"}"##,
            r#"[{"op":"add","path":"/a/rows/0","value":0},{"op":"replace","path":"/b","value":2}]"#,
        ),
    ] {
        let new = &long(new);
        assert_eq!(diff(Some(&old), new), Change::Patch(patch.to_owned()));
        let patched = apply(Some(&old), patch, ANY_LENGTH).unwrap();
        assert_eq!(meaning(&patched), meaning(new));
    }
}

#[test]
fn elements_come_and_go_alone() {
    let rows: Vec<_> = (0..200)
        .map(|row| format!(r#"{{"id":{row},"name":"{row}"}}"#))
        .collect();
    let text = |rows: &[String]| format!(r#"{{"rows":[{}],"n":0}}"#, rows.join(","));
    for at in [0, 1, 100, 198, 199] {
        let mut shorter = rows.clone();
        let gone = shorter.remove(at);
        let remove = format!(r#"[{{"op":"remove","path":"/rows/{at}"}}]"#);
        assert_eq!(
            diff(Some(&text(&rows)), &text(&shorter)),
            Change::Patch(remove)
        );
        let add = format!(r#"[{{"op":"add","path":"/rows/{at}","value":{gone}}}]"#);
        assert_eq!(
            diff(Some(&text(&shorter)), &text(&rows)),
            Change::Patch(add)
        );
    }
}

#[test]
fn patches_are_bounded() {
    let counters = |by: usize| {
        let counters: Vec<_> = (0..OPERATIONS_MAX + by)
            .map(|at| format!(r#""{at}":"{}""#, "x".repeat(60 + by)))
            .collect();
        format!("{{{}}}", counters.join(","))
    };
    let all_differ = |by| compare(&counters(by), &counters(by).replace('x', "y"), ANY_LENGTH);
    assert!(matches!(all_differ(0), Change::Patch(_)));
    assert_eq!(all_differ(1), Change::Full);

    let refused = |patch: &str| apply(Some(r#"{"a":[0],"b":{}}"#), patch, 1_000).unwrap_err();
    let copy = r#"{"op":"copy","from":"/a","path":"/a/-"},"#.repeat(20);
    let copies = format!(r#"[{copy}{{"op":"remove","path":"/a"}}]"#);
    assert_eq!(refused(&copies), PatchError::TooLong { max: 1_000 });
    // Each copy goes to the innermost `b` of a value that is twice as deep as the one before.
    let copy = |depth| {
        format!(
            r#"{{"op":"copy","from":"","path":"{}"}}"#,
            "/b".repeat(2_usize << depth)
        )
    };
    let nested = format!("[{}]", (0..8).map(copy).collect::<Vec<_>>().join(","));
    assert_eq!(refused(&nested), PatchError::TooDeep { max: NESTING_MAX });
    let long = format!(
        r#"[{{"op":"add","path":"/c","value":"{}"}}]"#,
        "x".repeat(1_000)
    );
    assert_eq!(refused(&long), PatchError::TooLong { max: 1_000 });
    let many =
        format!("[{}1]", r#"{"op":"remove","path":"/c"},"#.repeat(10_001)).replace(",1]", "]");
    assert_eq!(
        refused(&many),
        PatchError::TooManyOperations { max: 10_000 }
    );
    let long_array = format!("[{}0]", "0,".repeat(99_999));
    let removals = format!(
        "[{}]",
        vec![r#"{"op":"remove","path":"/0"}"#; 1_000].join(",")
    );
    let refusal = apply(Some(&long_array), &removals, 1 << 20).unwrap_err();
    assert_eq!(refusal, PatchError::TooManyOperations { max: 10_000 });
    assert_eq!(
        refused(r#"[{"op":"test","path":"/a/0","value":1}]"#),
        PatchError::TestFailed { operation: 0 }
    );
    assert_eq!(
        refused(r#"[{"op":"add","path":"/c"}]"#),
        PatchError::NotAPatch
    );
    assert!(apply(Some("[1]"), r#"[{"op":"test","path":"/0","value":1.0}]"#, 9).is_ok());
    let within = r#"[{"op":"test","path":"/0","value":[{"a":1.0}]}]"#;
    assert!(apply(Some(r#"[[{"a":1}]]"#), within, 99).is_ok());
}

#[test]
fn a_patch_may_be_as_large_as_the_limits() {
    let add = r#"[{"op":"add","path":"/-","value":2}]"#;
    assert_eq!(apply(Some("[1]"), add, 5).unwrap(), "[1,2]");
    assert_eq!(
        apply(Some("[1]"), add, 4),
        Err(PatchError::TooLong { max: 4 })
    );

    let repeated = |operations: &[&str], times: usize| {
        let operations = operations.iter().cycle().take(times).copied();
        format!("[{}]", operations.collect::<Vec<_>>().join(","))
    };
    let tests = |times| repeated(&[r#"{"op":"test","path":"/a","value":1}"#], times);
    let base = Some(r#"{"a":1}"#);
    let too_many = Err(PatchError::TooManyOperations {
        max: OPERATIONS_APPLIED_MAX,
    });
    assert!(apply(base, &tests(OPERATIONS_APPLIED_MAX), 99).is_ok());
    assert_eq!(
        apply(base, &tests(OPERATIONS_APPLIED_MAX + 1), 99),
        too_many
    );

    // Each of them may move all elements: 2^25 in all.
    let array = format!("[{}0]", "0,".repeat((1 << 12) - 1));
    let replace = [0, 1].map(|at| format!(r#"{{"op":"replace","path":"/{at}","value":0}}"#));
    let replace = [&*replace[0], &*replace[1]];
    let replaced = |times| apply(Some(&array), &repeated(&replace, times), ANY_LENGTH);
    assert_eq!(replaced(1 << 13).as_ref(), Ok(&array));
    assert_eq!(replaced((1 << 13) + 1), too_many);
}

#[test]
fn what_moves_deeper_counts_as_what_is_copied_does() {
    let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    let moved = |levels: usize, patch: &str| {
        let base = format!(r#"{{"a":{},"b":{{"c":{{}}}}}}"#, nested(levels));
        apply(Some(&base), patch, ANY_LENGTH).map(|_| ())
    };
    let deeper = r#"[{"op":"move","from":"/a","path":"/b/c/d"}]"#;
    assert_eq!(moved(NESTING_MAX - 3, deeper), Ok(()));
    let too_deep = Err(PatchError::TooDeep { max: NESTING_MAX });
    assert_eq!(moved(NESTING_MAX - 2, deeper), too_deep);
    let beside = r#"[{"op":"move","from":"/a","path":"/z"}]"#;
    assert_eq!(moved(NESTING_MAX - 1, beside), Ok(()));
    let copied = r#"[{"op":"copy","from":"/a","path":"/b/c/d"}]"#;
    assert_eq!(moved(NESTING_MAX - 3, copied), Ok(()));
    assert_eq!(moved(NESTING_MAX - 2, copied), too_deep);
}

#[test]
fn as_much_as_is_allowed_may_be_copied_and_no_more() {
    let text = "x".repeat(99);
    let base = format!(r#"{{"a":"{text}"}}"#);
    // Then taken away again: the limit is on what is carried, beside the one on the result.
    let patch = r#"[{"op":"copy","from":"/a","path":"/b"},{"op":"remove","path":"/b"},
        {"op":"copy","from":"/a","path":"/b"},{"op":"remove","path":"/b"}]"#;
    assert_eq!(apply(Some(&base), patch, 200).as_ref(), Ok(&base));
    assert_eq!(
        apply(Some(&base), patch, 199),
        Err(PatchError::TooLong { max: 199 })
    );
}

#[test]
fn what_moves_to_where_it_is_as_deep_is_not_counted() {
    let text = "x".repeat(99);
    let base = format!(r#"{{"a":"{text}"}}"#);
    let there = r#"{"op":"move","from":"/a","path":"/b"}"#;
    let back = r#"{"op":"move","from":"/b","path":"/a"}"#;
    let patch = format!("[{there},{back},{there},{back}]");
    assert_eq!(apply(Some(&base), &patch, 150), Ok(base));
}

#[test]
fn what_is_added_deep_inside_counts_with_the_levels_around_it() {
    let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    // So many operations that they are applied to the value.
    let added = |levels: usize| {
        let one = format!(
            r#"{{"op":"add","path":"/a/b/c","value":{}}}"#,
            nested(levels)
        );
        let patch = format!("[{}]", vec![one; 9].join(","));
        apply(Some(r#"{"a":{"b":{}}}"#), &patch, ANY_LENGTH).map(|_| ())
    };
    assert_eq!(added(NESTING_MAX - 3), Ok(()));
    assert_eq!(
        added(NESTING_MAX - 2),
        Err(PatchError::TooDeep { max: NESTING_MAX })
    );
}
