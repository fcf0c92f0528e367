//! JSON text, checked in one pass and never copied (RFC 8259).
//!
//! The scanner knows where values begin and end; it does not turn them into anything. It is iterative, so depth costs a
//! bit and not a stack frame.

use std::{borrow::Cow, str::Chars};

/// Why a text is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Fault {
    /// The byte at this offset does not fit the grammar; the text's length where it ends too early.
    Syntax { at: usize },
    /// Arrays and objects nest deeper than this.
    TooDeep { max: usize },
}

/// A cursor over JSON text.
#[derive(Debug)]
pub(crate) struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

/// A string as it stands between its quotes, its escapes checked and not yet resolved.
#[derive(Clone, Copy, Debug)]
pub(crate) struct JsonStr<'a> {
    raw: &'a str,
    escaped: bool,
}

/// A `\u` escape of one half of a surrogate pair: valid JSON, and yet no text.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct LoneSurrogate;

impl<'a> Scanner<'a> {
    pub(crate) const fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// A cursor that begins at the byte `at`, next to an ASCII character of the text's structure.
    pub(crate) const fn new_at(text: &'a str, at: usize) -> Self {
        Self { text, at }
    }

    /// The offset of the next byte.
    pub(crate) const fn at(&self) -> usize {
        self.at
    }

    pub(crate) fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    pub(crate) const fn unexpected(&self) -> Fault {
        Fault::Syntax { at: self.at }
    }

    pub(crate) fn whitespace(&mut self) {
        while let Some(b' ' | b'\n' | b'\t' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    /// Takes `byte` if it comes next.
    pub(crate) fn take(&mut self, byte: u8) -> bool {
        let taken = self.peek() == Some(byte);
        self.at += usize::from(taken);
        taken
    }

    pub(crate) fn expect(&mut self, byte: u8) -> Result<(), Fault> {
        if self.take(byte) {
            Ok(())
        } else {
            Err(self.unexpected())
        }
    }

    /// Checks that nothing but whitespace is left.
    pub(crate) fn end(&mut self) -> Result<(), Fault> {
        self.whitespace();
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.unexpected()),
        }
    }

    /// Takes a key with its colon and the whitespace around that.
    pub(crate) fn key(&mut self) -> Result<JsonStr<'a>, Fault> {
        let key = self.string()?;
        self.whitespace();
        self.expect(b':')?;
        self.whitespace();
        Ok(key)
    }

    /// Takes a string, from its opening quote on.
    #[inline]
    pub(crate) fn string(&mut self) -> Result<JsonStr<'a>, Fault> {
        self.expect(b'"')?;
        let start = self.at;
        let mut escaped = false;
        loop {
            self.at += plain_len(self.text.as_bytes().get(self.at..).unwrap_or_default());
            match self.peek() {
                Some(b'"') => break,
                Some(b'\\') => {
                    escaped = true;
                    self.at += 1;
                    self.escape()?;
                }
                _ => return Err(self.unexpected()),
            }
        }
        let raw = self.since(start)?;
        self.at += 1;
        Ok(JsonStr { raw, escaped })
    }

    /// Takes one value of any kind, first byte to last, and tells its text. `level` arrays and objects are open around it;
    /// with its own they may be `max`.
    #[inline]
    pub(crate) fn value(&mut self, level: usize, max: usize) -> Result<&'a str, Fault> {
        let start = self.at;
        match self.peek() {
            Some(b'{' | b'[') => self.container(level, max)?,
            _ => self.scalar()?,
        }
        self.since(start)
    }

    fn container(&mut self, level: usize, max: usize) -> Result<(), Fault> {
        let mut open = Levels::default();
        loop {
            match self.peek() {
                Some(bracket @ (b'{' | b'[')) => {
                    if open.len().saturating_add(level) >= max {
                        return Err(Fault::TooDeep { max });
                    }
                    self.at += 1;
                    self.whitespace();
                    let object = bracket == b'{';
                    if !self.take(closing(object)) {
                        open.push(object);
                        if object {
                            self.key()?;
                        }
                        continue;
                    }
                }
                _ => self.scalar()?,
            }
            // A value has ended: go on to the next one, out of as many levels as end here.
            loop {
                let Some(object) = open.top() else {
                    return Ok(());
                };
                self.whitespace();
                if self.take(b',') {
                    self.whitespace();
                    if object {
                        self.key()?;
                    }
                    break;
                }
                self.expect(closing(object))?;
                open.pop();
            }
        }
    }

    fn scalar(&mut self) -> Result<(), Fault> {
        match self.peek() {
            Some(b'"') => self.string().map(drop),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.literal(b"true"),
            Some(b'f') => self.literal(b"false"),
            Some(b'n') => self.literal(b"null"),
            _ => Err(self.unexpected()),
        }
    }

    fn literal(&mut self, literal: &[u8]) -> Result<(), Fault> {
        let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
        if rest.starts_with(literal) {
            self.at += literal.len();
            return Ok(());
        }
        // Up to the byte that differs.
        literal.iter().try_for_each(|&byte| self.expect(byte))
    }

    fn number(&mut self) -> Result<(), Fault> {
        self.take(b'-');
        if !self.take(b'0') {
            self.digits()?;
        }
        if self.take(b'.') {
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Fault> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        if self.at == start {
            return Err(self.unexpected());
        }
        Ok(())
    }

    /// Takes what follows a backslash.
    fn escape(&mut self) -> Result<(), Fault> {
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
            Some(b'u') => {
                self.at += 1;
                for _ in 0..4 {
                    if !self.peek().is_some_and(|byte| byte.is_ascii_hexdigit()) {
                        return Err(self.unexpected());
                    }
                    self.at += 1;
                }
            }
            _ => return Err(self.unexpected()),
        }
        Ok(())
    }

    /// The text from `start` to here. Both lie next to an ASCII byte, hence on the boundary of a character.
    fn since(&self, start: usize) -> Result<&'a str, Fault> {
        self.text.get(start..self.at).ok_or(self.unexpected())
    }
}

impl<'a> JsonStr<'a> {
    /// The text that the string stands for.
    pub(crate) fn text(self) -> Result<Cow<'a, str>, LoneSurrogate> {
        if self.escaped {
            self.chars().collect::<Result<_, _>>().map(Cow::Owned)
        } else {
            Ok(Cow::Borrowed(self.raw))
        }
    }

    /// The text that the string stands for, with U+FFFD for what is none.
    pub(crate) fn text_lossy(self) -> Cow<'a, str> {
        if self.escaped {
            let chars = self.chars();
            Cow::Owned(
                chars
                    .map(|char| char.unwrap_or(char::REPLACEMENT_CHARACTER))
                    .collect(),
            )
        } else {
            Cow::Borrowed(self.raw)
        }
    }

    /// Does the string stand for text at all?
    pub(crate) fn is_text(self) -> bool {
        !self.escaped || self.chars().all(|char| char.is_ok())
    }

    /// Do both strings stand for the same?
    pub(crate) fn equals(self, other: JsonStr<'_>) -> bool {
        if self.escaped || other.escaped {
            self.chars().eq(other.chars())
        } else {
            self.raw == other.raw
        }
    }

    /// Does the string stand for `text`?
    pub(crate) fn is(self, text: &str) -> bool {
        if self.escaped {
            self.chars().eq(text.chars().map(Ok))
        } else {
            self.raw == text
        }
    }

    fn chars(self) -> Unescaped<'a> {
        Unescaped(self.raw.chars())
    }
}

/// The characters that a checked string stands for.
struct Unescaped<'a>(Chars<'a>);

impl Iterator for Unescaped<'_> {
    type Item = Result<char, LoneSurrogate>;

    fn next(&mut self) -> Option<Self::Item> {
        let char = self.0.next()?;
        if char != '\\' {
            return Some(Ok(char));
        }
        Some(Ok(match self.0.next()? {
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => return Some(self.unicode().ok_or(LoneSurrogate)),
            itself => itself,
        }))
    }
}

impl Unescaped<'_> {
    /// The character of a `\u` escape, its partner taken along if it is half of a pair.
    fn unicode(&mut self) -> Option<char> {
        let unit = self.hex()?;
        if let Some(char) = char::from_u32(unit.into()) {
            return Some(char);
        }
        // What follows is looked at and taken only where it is the other half.
        let mut ahead = Unescaped(self.0.clone());
        if ahead.0.next() != Some('\\') || ahead.0.next() != Some('u') {
            return None;
        }
        let pair = [unit, ahead.hex()?];
        let char = char::decode_utf16(pair).next()?.ok()?;
        self.0 = ahead.0;
        Some(char)
    }

    fn hex(&mut self) -> Option<u16> {
        let rest = self.0.as_str();
        let unit = u16::from_str_radix(rest.get(..4)?, 16).ok()?;
        self.0 = rest.get(4..)?.chars();
        Some(unit)
    }
}

/// Which of the open levels are objects, one bit each; the heap is touched beyond 128 levels only.
#[derive(Default)]
struct Levels {
    outer: Vec<u128>,
    bits: u128,
    len: usize,
}

impl Levels {
    const fn len(&self) -> usize {
        self.len
    }

    fn push(&mut self, object: bool) {
        if self.len != 0 && self.len.is_multiple_of(128) {
            self.outer.push(self.bits);
        }
        self.bits = self.bits << 1 | u128::from(object);
        self.len += 1;
    }

    /// Is the innermost level an object? `None` where none is open.
    const fn top(&self) -> Option<bool> {
        if self.len == 0 {
            return None;
        }
        Some(self.bits & 1 == 1)
    }

    fn pop(&mut self) {
        self.len = self.len.saturating_sub(1);
        self.bits >>= 1;
        if self.len.is_multiple_of(128) {
            self.bits = self.outer.pop().unwrap_or_default();
        }
    }
}

/// The bracket that ends an object, or an array.
pub(crate) const fn closing(object: bool) -> u8 {
    if object { b'}' } else { b']' }
}

/// How many bytes stand before the first quote, backslash or control character: what goes into JSON, and comes out, as it is.
#[inline]
pub(crate) fn plain_len(bytes: &[u8]) -> usize {
    // Most strings are short, so that the first word decides.
    match bytes.first_chunk().copied().and_then(first_special) {
        Some(offset) => offset,
        None => plain_len_long(bytes),
    }
}

fn plain_len_long(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(chunk) = bytes.get(at..).and_then(<[u8]>::first_chunk) {
        if any_special(chunk) {
            break;
        }
        at += chunk.len();
    }
    while let Some(word) = bytes.get(at..).and_then(<[u8]>::first_chunk) {
        match first_special(*word) {
            Some(offset) => return at + offset,
            None => at += word.len(),
        }
    }
    at + plain_tail(bytes, at)
}

fn plain_tail(bytes: &[u8], at: usize) -> usize {
    let tail = bytes.get(at..).unwrap_or_default();
    tail.iter()
        .position(|&byte| is_special(byte))
        .unwrap_or(tail.len())
}

const fn is_special(byte: u8) -> bool {
    matches!(byte, b'"' | b'\\' | 0..0x20)
}

/// Without a branch inside, so that the compiler makes vector code of it.
fn any_special(chunk: &[u8; 64]) -> bool {
    chunk.iter().fold(0, |found, &byte| {
        found | u8::from(byte == b'"') | u8::from(byte == b'\\') | u8::from(byte < 0x20)
    }) != 0
}

/// The offset of the first special byte of a word. Each of the three tests may mark a byte wrongly, but only above one that it
/// marks rightly, so that the lowest mark is true.
const fn first_special(word: [u8; 8]) -> Option<usize> {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    const HIGH: u64 = ONES << 7;
    let word = u64::from_le_bytes(word);
    let quote = word ^ (ONES * b'"' as u64);
    let backslash = word ^ (ONES * b'\\' as u64);
    let marks = (quote.wrapping_sub(ONES) & !quote
        | backslash.wrapping_sub(ONES) & !backslash
        | word.wrapping_sub(ONES * 0x20) & !word)
        & HIGH;
    if marks == 0 {
        return None;
    }
    Some(marks.trailing_zeros() as usize / 8)
}

#[cfg(test)]
mod tests {
    use super::{Fault, Scanner, any_special, is_special, plain_len};

    fn value(text: &str, max: usize) -> Result<&str, Fault> {
        let mut scanner = Scanner::new(text);
        let value = scanner.value(0, max)?;
        scanner.end()?;
        Ok(value)
    }

    #[test]
    fn the_first_special_byte_is_found_wherever_it_stands() {
        for len in 0..200 {
            assert_eq!(plain_len(&vec![b'x'; len]), len);
            assert_eq!(plain_len(&vec![0xff; len]), len);
            for at in 0..len {
                for special in (0..=0xff).filter(|&byte| is_special(byte)) {
                    let mut bytes = vec![0x80; len];
                    bytes[at] = special;
                    assert_eq!(plain_len(&bytes), at, "{special} at {at} of {len}");
                    if let Some(next) = bytes.get_mut(at + 1) {
                        *next = special;
                        assert_eq!(plain_len(&bytes), at, "{special} twice at {at} of {len}");
                    }
                }
            }
        }
        for plain in (0..=0xff).filter(|&byte| !is_special(byte)) {
            assert_eq!(plain_len(&[plain; 100]), 100, "{plain}");
        }
        for byte in 0..=0xff {
            assert_eq!(any_special(&[byte; 64]), is_special(byte), "{byte}");
        }
    }

    #[test]
    fn only_the_escapes_of_the_grammar_are_taken() {
        for byte in 0..0x80 {
            let char = char::from(byte);
            let taken = |rest| value(&format!("\"\\{char}{rest}\""), 0).is_ok();
            assert_eq!(taken(""), r#""\/bfnrt"#.contains(char), "{char:?}");
            assert_eq!(taken("1aF0"), r#""\/bfnrtu"#.contains(char), "{char:?}");
        }
    }

    #[test]
    fn depth_is_counted_beyond_any_number_of_levels() {
        for depth in [1, 2, 127, 128, 129, 255, 256, 257, 1_000] {
            // Alternating kinds, so that a lost bit shows as a wrong bracket.
            let mut text = String::new();
            for level in 0..depth {
                text.push_str(if level % 3 == 0 { "[0," } else { r#"{"k":"# });
            }
            text.push('1');
            for level in (0..depth).rev() {
                text.push(if level % 3 == 0 { ']' } else { '}' });
            }
            assert_eq!(value(&text, depth), Ok(text.as_str()));
            assert_eq!(
                value(&text, depth - 1),
                Err(Fault::TooDeep { max: depth - 1 })
            );
        }
    }

    #[test]
    fn strings_stand_for_their_text() {
        let text = |json| Scanner::new(json).string().unwrap().text();
        assert_eq!(text(r#""plain ü""#).as_deref(), Ok("plain ü"));
        assert_eq!(
            text(r#""\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00!""#).as_deref(),
            Ok("\"\\/\u{8}\u{c}\n\r\té😀!")
        );
        for lone in [
            r#""\ud800""#,
            r#""\udc00\ud800""#,
            r#""\ud800x""#,
            r#""\ud800\n""#,
        ] {
            assert!(text(lone).is_err(), "{lone}");
        }
        let lossy = Scanner::new(r#""a\ud800\ud83d\ude00\udc00""#)
            .string()
            .unwrap();
        assert_eq!(lossy.text_lossy(), "a\u{fffd}😀\u{fffd}");
        assert!(!lossy.is("a"));
    }
}
