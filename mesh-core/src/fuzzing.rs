//! What the fuzz targets of all crates read their input with; no part of the API that versions promise.

use std::{
    borrow::Cow,
    time::{Duration, Instant},
};

/// Reads choices out of any bytes. Behind their end all is 0, so that every input is a whole schedule and a shorter one a part of it.
#[derive(Clone, Debug)]
pub struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    /// Begins at the first byte.
    pub fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    /// Is all read?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let Some((byte, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *byte
    }

    /// Yes or no.
    pub fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// A number of two bytes.
    pub fn number(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    /// A number below `end`, which is 1 to 256.
    pub fn below(&mut self, end: usize) -> usize {
        usize::from(self.byte()) % end
    }

    /// One of these.
    ///
    /// # Panics
    /// There is none.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::from(self.byte()) % from.len()]
    }

    /// So many milliseconds, of any order of magnitude.
    pub fn time(&mut self) -> Duration {
        let choice = self.byte();
        Duration::from_millis(u64::from(choice >> 4) << (choice & 0xF))
    }

    /// As many bytes as the next one says, and are there.
    pub fn bytes(&mut self) -> &'a [u8] {
        let len = usize::from(self.byte()).min(self.0.len());
        let (bytes, rest) = self.0.split_at(len);
        self.0 = rest;
        bytes
    }

    /// The same as text.
    pub fn text(&mut self) -> Cow<'a, str> {
        String::from_utf8_lossy(self.bytes())
    }
}

/// Where simulated time begins; every later instant is reckoned from it.
#[expect(clippy::disallowed_methods, reason = "an arbitrary origin")]
pub fn origin() -> Instant {
    Instant::now()
}
