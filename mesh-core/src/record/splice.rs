//! Places in the text of a value, and changes to it there without parsing the rest.

use std::ops::Range;

use json_patch::jsonptr::{Pointer, Token, index::Index};

use crate::protocol::json::{Scanner, closing};

/// What to do at a place (RFC 6902, section 4), with the texts of values.
#[derive(Clone, Copy, Debug)]
pub(super) enum Edit<'a> {
    Add(&'a str),
    Remove,
    Replace(&'a str),
}

/// Where the value at a path stands in its text, if it is there.
pub(super) fn place(text: &str, path: &str) -> Option<Range<usize>> {
    if path.is_empty() {
        return Some(0..text.len());
    }
    let mut scanner = begin(text, Pointer::parse(path).ok()?)?;
    let start = scanner.at();
    scanner.value(0, usize::MAX).ok()?;
    Some(start..scanner.at())
}

/// The text after one edit, everything else in it as it was. `None` where there is no such place.
pub(super) fn splice(text: &str, path: &str, edit: Edit<'_>) -> Option<String> {
    let Some((parent, last)) = Pointer::parse(path).ok()?.split_back() else {
        return match edit {
            Edit::Add(new) | Edit::Replace(new) => Some(new.to_owned()),
            Edit::Remove => None,
        };
    };
    let mut members = Members::new(begin(text, parent)?)?;
    let wanted = Wanted::new(&last, members.object)?;
    let put = |place: Range<usize>, pieces: &[&str]| {
        let (before, after) = (text.get(..place.start)?, text.get(place.end..)?);
        Some([before, &pieces.concat(), after].concat())
    };

    let (inside, mut end, mut len) = (members.scanner.at(), members.scanner.at(), 0);
    while members.next()? {
        let start = members.scanner.at();
        let found = members.is(&wanted)?;
        let value = members.scanner.at();
        members.scanner.value(0, usize::MAX).ok()?;
        if found {
            return match edit {
                Edit::Add(new) if !members.object => put(start..start, &[new, ","]),
                Edit::Add(new) | Edit::Replace(new) => put(value..members.scanner.at(), &[new]),
                Edit::Remove if len > 0 => put(end..members.scanner.at(), &[]),
                Edit::Remove => {
                    // With the comma behind it, if there is one.
                    members.next()?;
                    put(inside..members.scanner.at(), &[])
                }
            };
        }
        end = members.scanner.at();
        len += 1;
    }
    let comma = if len > 0 { "," } else { "" };
    match (edit, wanted) {
        (Edit::Add(new), Wanted::Key(key)) => {
            let key = serde_json::to_string(&key).ok()?;
            put(end..end, &[comma, &key, ":", new])
        }
        (Edit::Add(new), Wanted::End) => put(end..end, &[comma, new]),
        (Edit::Add(new), Wanted::Index(index)) if index == len => put(end..end, &[comma, new]),
        _ => None,
    }
}

/// A scanner at the value that a path names.
fn begin<'a>(text: &'a str, path: &Pointer) -> Option<Scanner<'a>> {
    let mut scanner = Scanner::new(text);
    for token in path.tokens() {
        let mut members = Members::new(scanner)?;
        let wanted = Wanted::new(&token, members.object)?;
        loop {
            if !members.next()? {
                return None;
            }
            if members.is(&wanted)? {
                break;
            }
            members.scanner.value(0, usize::MAX).ok()?;
        }
        scanner = members.scanner;
    }
    Some(scanner)
}

/// The last step of a path.
enum Wanted {
    /// Behind the last element: `-`.
    End,
    Index(usize),
    Key(String),
}

impl Wanted {
    fn new(token: &Token<'_>, object: bool) -> Option<Self> {
        if object {
            return Some(Self::Key(token.decoded().into_owned()));
        }
        match token.to_index().ok()? {
            Index::Next => Some(Self::End),
            Index::Num(index) => Some(Self::Index(index)),
        }
    }
}

/// A walk over the members of an array or object.
struct Members<'a> {
    scanner: Scanner<'a>,
    object: bool,
    begun: usize,
}

impl<'a> Members<'a> {
    /// `None` for a primitive.
    fn new(mut scanner: Scanner<'a>) -> Option<Self> {
        let object = scanner.take(b'{');
        if !object && !scanner.take(b'[') {
            return None;
        }
        Some(Self {
            scanner,
            object,
            begun: 0,
        })
    }

    /// From behind a member, or the opening bracket, to the next one; `false` where there is none.
    fn next(&mut self) -> Option<bool> {
        self.scanner.whitespace();
        let more = if self.begun > 0 {
            self.scanner.take(b',')
        } else {
            self.scanner.peek()? != closing(self.object)
        };
        self.scanner.whitespace();
        self.begun += 1;
        Some(more)
    }

    /// Takes the key of a member, if it has one, and tells whether it is the wanted member.
    fn is(&mut self, wanted: &Wanted) -> Option<bool> {
        if self.object {
            let key = self.scanner.key().ok()?;
            return Some(matches!(wanted, Wanted::Key(wanted) if key.is(wanted)));
        }
        Some(matches!(wanted, Wanted::Index(index) if index + 1 == self.begun))
    }
}
