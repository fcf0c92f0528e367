//! The runtime-neutral server: what carries the machines' actions out.

mod runtime;
mod socket;

pub use runtime::{Runtime, Task, Timer};
pub use socket::{ByteStream, Socket, SocketError};

pub use crate::websocket::CloseFrame;
