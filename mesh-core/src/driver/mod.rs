//! The runtime-neutral server: what carries the machines' actions out.

mod runtime;
mod socket;
mod stream;

pub use runtime::{Runtime, Task, Timer};
pub use socket::{ByteStream, Socket, SocketError};
pub use stream::WebSocketStream;

pub use crate::websocket::CloseFrame;
