//! Values apart from their texts: what they mean, and many ways to write the same.

use std::collections::BTreeMap;

use proptest::{collection::vec, prelude::*, sample::select};
use serde_json::Value;

const KEYS: [&str; 18] = [
    "", "a", "b", "c", "/", "~", "~1", "~0", "a/b~c", "é", "😀", "\n", "\"", "\\", "0", "1", "-",
    "\u{7f}",
];

/// At the edges of i64, u64 and f64, and some that are one number in several spellings.
const NUMBERS: [&str; 30] = [
    "0",
    "-0",
    "0.0",
    "1",
    "1.0",
    "1e0",
    "10E-1",
    "2",
    "-1.50",
    "0.1",
    "0.30000000000000004",
    "1e-400",
    "5e-324",
    "2.2250738585072011e-308",
    "1.7976931348623157e308",
    "-1.7976931348623157E+308",
    "9007199254740992",
    "9007199254740993",
    "9007199254740992.0",
    "9223372036854775807",
    "9223372036854775808",
    "9.223372036854775808e18",
    "-9223372036854775808",
    "-9223372036854775809",
    "18446744073709551615",
    "18446744073709551616",
    "1.8446744073709552e19",
    "123456789012345678901234567890",
    "1.2345678901234568e29",
    "0e999999999999",
];

#[derive(Clone, Debug)]
pub(super) enum Model {
    Array(Vec<Self>),
    Literal(&'static str),
    Number(String),
    Object(BTreeMap<String, Self>),
    String(String),
}

pub(super) fn key() -> impl Strategy<Value = String> {
    prop_oneof![8 => select(&KEYS[..]).prop_map(str::to_owned), 1 => ".{0,3}"]
}

pub(super) fn scalar() -> impl Strategy<Value = Model> {
    prop_oneof![
        2 => select(vec!["null", "true", "false"]).prop_map(Model::Literal),
        4 => select(&NUMBERS[..]).prop_map(|number| Model::Number(number.to_owned())),
        1 => any::<i64>().prop_map(|number| Model::Number(number.to_string())),
        1 => any::<u64>().prop_map(|number| Model::Number(number.to_string())),
        1 => any::<f64>().prop_map(|number| Model::Number(format!("{number:e}"))),
        2 => key().prop_map(Model::String),
        1 => "[a-z \"\\\\é😀]{0,40}".prop_map(Model::String),
    ]
}

pub(super) fn model() -> impl Strategy<Value = Model> {
    scalar().prop_recursive(5, 40, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Model::Array),
            vec((key(), inner), 0..6)
                .prop_map(|members| Model::Object(members.into_iter().collect())),
        ]
    })
}

impl Model {
    /// The same, so many levels down.
    pub(super) fn buried(self, levels: usize) -> Self {
        (0..levels).fold(self, |inner, level| {
            if level % 3 == 0 {
                Self::Array(vec![Self::Literal("null"), inner])
            } else {
                Self::Object(BTreeMap::from([("a/~".to_owned(), inner)]))
            }
        })
    }

    /// Equal for equal values, and for no others.
    pub(super) fn meaning(&self) -> String {
        match self {
            Self::Array(elements) => list(elements.iter().map(Self::meaning)),
            Self::Literal(literal) => (*literal).to_owned(),
            Self::Number(number) => number_meaning(number),
            Self::Object(members) => {
                let member =
                    |(key, value): (&String, &Self)| format!("{key:?}:{}", value.meaning());
                format!("object{}", list(members.iter().map(member)))
            }
            Self::String(string) => format!("{string:?}"),
        }
    }

    pub(super) fn text(&self, style: &mut Style) -> String {
        let mut text = String::new();
        self.write(style, &mut text);
        text
    }

    fn write(&self, style: &mut Style, text: &mut String) {
        match self {
            Self::Array(elements) => {
                text.push('[');
                for (index, element) in elements.iter().enumerate() {
                    style.separate(index > 0, text);
                    element.write(style, text);
                }
                style.space(text);
                text.push(']');
            }
            Self::Literal(literal) => text.push_str(literal),
            Self::Number(number) => text.push_str(number),
            Self::Object(members) => {
                let mut members: Vec<_> = members.iter().collect();
                style.shuffle(&mut members);
                text.push('{');
                for (index, (key, value)) in members.iter().enumerate() {
                    style.separate(index > 0, text);
                    if style.duplicates && style.one_in(4) {
                        style.duplicated = true;
                        style.string(key, text);
                        text.push_str(r#":{"a":0},"#);
                    }
                    style.string(key, text);
                    style.space(text);
                    text.push(':');
                    style.space(text);
                    value.write(style, text);
                }
                style.space(text);
                text.push('}');
            }
            Self::String(string) => style.string(string, text),
        }
    }

    /// Changes one small place, which the numbers lead to.
    pub(super) fn edit(&mut self, way: &[u16], with: &Self) {
        let (Some((&how, way)), true) = (way.split_first(), self.is_inner()) else {
            *self = with.clone();
            return;
        };
        let (choice, how) = (how % 8, usize::from(how / 8));
        match self {
            Self::Array(elements) => {
                let at = match choice {
                    0 => 0,
                    1 => elements.len(),
                    _ => how % (elements.len() + 1),
                };
                match choice {
                    0..=2 => elements.insert(at, with.clone()),
                    3 if at < elements.len() => drop(elements.remove(at)),
                    4 if at < elements.len() => elements[at] = with.clone(),
                    5 => elements.truncate(at),
                    _ if at < elements.len() => elements[at].edit(way, with),
                    _ => elements.extend([with.clone(), with.clone()]),
                }
            }
            Self::Object(members) => {
                let key = match choice {
                    0 => KEYS[how % KEYS.len()].to_owned(),
                    1 => format!("z{how}"),
                    _ => members
                        .keys()
                        .nth(how % members.len().max(1))
                        .cloned()
                        .unwrap_or_default(),
                };
                match choice {
                    0 | 1 | 4 => drop(members.insert(key, with.clone())),
                    3 => drop(members.remove(&key)),
                    _ => members
                        .entry(key)
                        .or_insert_with(|| with.clone())
                        .edit(way, with),
                }
            }
            _ => {}
        }
    }

    fn is_inner(&self) -> bool {
        matches!(self, Self::Array(_) | Self::Object(_))
    }
}

pub(super) fn meaning(text: &str) -> String {
    of_value(&serde_json::from_str(text).unwrap())
}

pub(super) fn of_value(value: &Value) -> String {
    match value {
        Value::Array(elements) => list(elements.iter().map(of_value)),
        Value::Object(members) => {
            let member = |(key, value): (&String, &Value)| format!("{key:?}:{}", of_value(value));
            format!("object{}", list(members.iter().map(member)))
        }
        Value::String(string) => format!("{string:?}"),
        Value::Number(number) => number_meaning(&number.to_string()),
        Value::Null | Value::Bool(_) => value.to_string(),
    }
}

fn list(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(","))
}

/// All digits of the number that is held: exactly what fits 64 bits, and what the nearest f64 is otherwise.
fn number_meaning(number: &str) -> String {
    let fits = |integer: &i128| *integer >= i64::MIN.into() && *integer <= u64::MAX.into();
    if let Some(integer) = number.parse().ok().filter(fits) {
        return integer.to_string();
    }
    let float: f64 = number.parse().unwrap();
    match format!("{float:.0}") {
        zero if float == 0.0 => zero.trim_start_matches('-').to_owned(),
        whole if float.fract() == 0.0 => whole,
        _ => format!("{float:e}"),
    }
}

/// How a value is written: 0 is without white space, escapes that need not be, and any disorder.
pub(super) struct Style {
    state: u64,
    duplicates: bool,
    /// Has a key been given twice?
    pub(super) duplicated: bool,
}

impl Style {
    pub(super) const fn new(state: u64) -> Self {
        Self {
            state,
            duplicates: false,
            duplicated: false,
        }
    }

    /// Keys are given twice now and then, the last time with what is meant.
    pub(super) const fn with_duplicates(state: u64) -> Self {
        Self {
            duplicates: true,
            ..Self::new(state)
        }
    }

    fn one_in(&mut self, many: u64) -> bool {
        // An xorshift stays at 0.
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state >> 32 & 0xffff_ffff != 0 && (self.state >> 32).is_multiple_of(many)
    }

    fn space(&mut self, text: &mut String) {
        for space in [" ", "\n", "\t", "\r"] {
            if self.one_in(12) {
                text.push_str(space);
            }
        }
    }

    fn separate(&mut self, comma: bool, text: &mut String) {
        self.space(text);
        if comma {
            text.push(',');
        }
        self.space(text);
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for index in 1..items.len() {
            if self.one_in(3) {
                items.swap(index, index - 1);
            }
        }
    }

    fn string(&mut self, string: &str, text: &mut String) {
        text.push('"');
        for char in string.chars() {
            match char {
                '"' | '\\' => text.extend(['\\', char]),
                '\n' if self.one_in(2) => text.push_str("\\n"),
                '/' if self.one_in(2) => text.push_str("\\/"),
                _ if char.is_control() || self.one_in(6) => {
                    for unit in char.encode_utf16(&mut [0; 2]) {
                        text.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                _ => text.push(char),
            }
        }
        text.push('"');
    }
}
