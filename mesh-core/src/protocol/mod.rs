//! The wire format: bytes to frames and back, and the one place that knows their JSON shapes.

pub mod builtin;
mod dialect;
pub mod encode;
mod error;
mod frame;
#[cfg(feature = "__fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub(crate) mod json;
mod limits;
#[cfg(any(test, feature = "__fuzzing"))]
mod model;
pub mod names;
pub mod payload;

pub use dialect::Dialect;
pub use encode::EncodeError;
pub(crate) use encode::strings_fit;
pub use error::{CommandError, codes};
#[cfg(feature = "driver")]
pub(crate) use frame::check_json;
pub use frame::{Frame, FrameError, parse};
pub use limits::Limits;
