//! WebSocket framing (RFC 6455), sans-IO and shared by every adapter.
//!
//! ```text
//!  0               1               2               3
//!  F R R R opcode  M length(7)     length(16 | 64)…  masking key(32, client frames only)  payload…
//! ```

mod close;
mod decode;
#[cfg(test)]
mod differential;
mod encode;
mod frame;
#[cfg(any(test, feature = "__fuzzing"))]
#[cfg_attr(feature = "__fuzzing", doc(hidden))]
pub mod fuzzing;
pub mod handshake;
#[cfg(test)]
mod tests;

pub use close::{CloseCode, CloseFrame};
#[cfg(feature = "driver")]
pub(crate) use decode::append;
pub use decode::{DecodeError, Decoded, Decoder, Event, Role};
pub use encode::{ControlTooLong, encode_close, encode_message, encode_ping, encode_pong};
#[cfg(feature = "driver")]
pub(crate) use encode::{REASON_BYTES_MAX, encode_frame};
pub use frame::{Message, TextFrame};
