//! WebSocket framing (RFC 6455), sans-IO and shared by every adapter.
//!
//! ```text
//!  0               1               2               3
//!  F R R R opcode  M length(7)     length(16 | 64)…  masking key(32, client frames only)  payload…
//! ```

mod close;
mod frame;

pub use close::CloseCode;
pub use frame::{Message, TextFrame};

/// The peer broke the framing rules.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// A message, alone or put together from its fragments, is longer than the limit. Close code 1009.
    #[error("a message of {len} bytes is over the limit of {max}")]
    TooLong {
        /// Bytes so far, or as announced.
        len: u64,
        /// The limit.
        max: usize,
    },
}
