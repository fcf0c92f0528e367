//! The wire format: bytes to frames and back, and the one place that knows their JSON shapes.

mod dialect;
mod limits;

pub use dialect::Dialect;
pub use limits::Limits;
