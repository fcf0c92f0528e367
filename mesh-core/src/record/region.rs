//! Where two texts differ, found without parsing them.
//!
//! What both texts begin with has the same structure in both, and so has what both end with. So if in both texts the members of
//! one array or object from the one at the first difference on are over where the common end has begun, then nothing else differs
//! than these members. That array or object is looked for from the inside to the outside, in one pass over each text that ends soon
//! after the last difference.

use crate::protocol::json::{Fault, JsonStr, Scanner, closing};

/// How much is compared at once.
const CHUNK: usize = 64;

/// Members of one array or object that differ; all others are the same in both texts.
#[derive(Debug)]
pub(super) struct Region<'a> {
    /// From the root to the array or object.
    pub(super) path: Vec<Step<'a>>,
    pub(super) object: bool,
    /// The index of the first member that may differ.
    pub(super) first: usize,
    pub(super) old: Vec<Member<'a>>,
    pub(super) new: Vec<Member<'a>>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Step<'a> {
    Index(usize),
    Key(JsonStr<'a>),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Member<'a> {
    /// `None` in an array.
    pub(super) key: Option<JsonStr<'a>>,
    pub(super) value: &'a str,
}

/// Finds what differs of two arrays or two objects without whitespace around them. `None` if one of them is not JSON.
pub(super) fn differing<'a>(old: &'a str, new: &'a str) -> Option<Region<'a>> {
    let prefix = common_prefix(old.as_bytes(), new.as_bytes());
    let rest = |text: &'a str| text.as_bytes().get(prefix..).unwrap_or_default();
    let suffix = common_suffix(rest(old), rest(new));

    let mut open = levels(old, prefix).ok()?;
    let innermost = open.last()?;
    let mut old = Side::new(old, innermost).ok()?;
    let mut new = Side::new(new, innermost).ok()?;
    while let Some(level) = open.pop() {
        let ends = (
            old.settle(level.object, suffix),
            new.settle(level.object, suffix),
        );
        let (old_left, new_left) = (ends.0.ok()?, ends.1.ok()?);
        if old_left.is_some() && old_left == new_left {
            return Some(Region {
                path: open.iter().map(Level::step).collect(),
                object: level.object,
                first: level.index,
                old: old.members,
                new: new.members,
            });
        }
        let outer = open.last()?;
        old.leave(&level, outer).ok()?;
        new.leave(&level, outer).ok()?;
    }
    None
}

/// An array or object that is open at some place of a text.
#[derive(Debug)]
struct Level<'a> {
    object: bool,
    start: usize,
    /// Where the current member begins, maybe with whitespace.
    member: usize,
    index: usize,
    /// The key of the current member, if it has been reached.
    key: Option<JsonStr<'a>>,
}

impl<'a> Level<'a> {
    fn step(&self) -> Step<'a> {
        self.key.map_or(Step::Index(self.index), Step::Key)
    }
}

/// The levels that are open at the byte `until`, each at the member that holds it or ends there.
fn levels(text: &str, until: usize) -> Result<Vec<Level<'_>>, Fault> {
    let mut scanner = Scanner::new(text);
    let mut open: Vec<Level<'_>> = Vec::new();
    loop {
        // A value begins here.
        let start = scanner.at();
        if start >= until {
            return Ok(open);
        }
        if let Some(bracket @ (b'{' | b'[')) = scanner.peek() {
            scanner.expect(bracket)?;
            let object = bracket == b'{';
            let (member, index, key) = (scanner.at(), 0, None);
            open.push(Level {
                object,
                start,
                member,
                index,
                key,
            });
            scanner.whitespace();
            if scanner.at() >= until {
                return Ok(open);
            }
            if !scanner.take(closing(object)) {
                if object && let Some(level) = open.last_mut() {
                    level.key = Some(scanner.key()?);
                }
                continue;
            }
            open.pop();
        } else {
            scanner.value(0, 0)?;
        }
        // A value has ended: go on to the next one, out of as many levels as end here.
        loop {
            scanner.whitespace();
            // At the very end of a value too: a number might go on in the other text.
            if scanner.at() >= until {
                return Ok(open);
            }
            let Some(level) = open.last_mut() else {
                return Ok(open);
            };
            if scanner.take(b',') {
                level.index += 1;
                level.member = scanner.at();
                scanner.whitespace();
                if level.object && scanner.at() < until {
                    level.key = Some(scanner.key()?);
                }
                break;
            }
            scanner.expect(closing(level.object))?;
            open.pop();
        }
    }
}

/// One of the two texts, read from the first difference on.
struct Side<'a> {
    text: &'a str,
    scanner: Scanner<'a>,
    /// Of the level that is read.
    members: Vec<Member<'a>>,
}

impl<'a> Side<'a> {
    /// Reads the current member of a level, if there is one.
    fn new(text: &'a str, level: &Level<'_>) -> Result<Self, Fault> {
        let scanner = Scanner::new_at(text, level.member);
        let mut side = Self {
            text,
            scanner,
            members: Vec::new(),
        };
        side.scanner.whitespace();
        if side.scanner.peek() != Some(closing(level.object)) {
            side.member(level.object)?;
        }
        Ok(side)
    }

    fn member(&mut self, object: bool) -> Result<(), Fault> {
        self.scanner.whitespace();
        let key = if object {
            Some(self.scanner.key()?)
        } else {
            None
        };
        let value = self.scanner.value(0, usize::MAX)?;
        self.members.push(Member { key, value });
        Ok(())
    }

    /// Reads members until at most `suffix` bytes are left behind one, and tells how many; `None` where the level ends before.
    fn settle(&mut self, object: bool, suffix: usize) -> Result<Option<usize>, Fault> {
        loop {
            self.scanner.whitespace();
            let left = self.text.len().saturating_sub(self.scanner.at());
            if left <= suffix {
                return Ok(Some(left));
            }
            if !self.scanner.take(b',') {
                return Ok(None);
            }
            self.member(object)?;
        }
    }

    /// Goes on to the end of a level, which is then the first member of the one around it.
    fn leave(&mut self, level: &Level<'a>, outer: &Level<'a>) -> Result<(), Fault> {
        self.settle(level.object, 0)?;
        self.scanner.expect(closing(level.object))?;
        let value = self.text.get(level.start..self.scanner.at());
        let value = value.ok_or(self.scanner.unexpected())?;
        self.members.clear();
        self.members.push(Member {
            key: outer.key,
            value,
        });
        Ok(())
    }
}

fn common_prefix(one: &[u8], other: &[u8]) -> usize {
    let chunks = one.chunks_exact(CHUNK).zip(other.chunks_exact(CHUNK));
    let whole = chunks.take_while(|(one, other)| one == other).count() * CHUNK;
    let one = one.iter().skip(whole);
    let other = other.iter().skip(whole);
    whole
        + one
            .zip(other)
            .take_while(|(one, other)| one == other)
            .count()
}

fn common_suffix(one: &[u8], other: &[u8]) -> usize {
    let chunks = one.rchunks_exact(CHUNK).zip(other.rchunks_exact(CHUNK));
    let whole = chunks.take_while(|(one, other)| one == other).count() * CHUNK;
    let one = one.iter().rev().skip(whole);
    let other = other.iter().rev().skip(whole);
    whole
        + one
            .zip(other)
            .take_while(|(one, other)| one == other)
            .count()
}
