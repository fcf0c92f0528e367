//! The core of mesh: everything that decides, and nothing that does.
//!
//! Without features this crate has no async runtime, socket, clock, thread or source of randomness. Events and
//! instants go in, actions come out. The feature `driver` adds the runtime-neutral server that carries the
//! actions out, and the traits that an adapter implements; `http1` adds the front door that all adapters share, by hyper, and
//! `tls` what a server shows, by rustls. Neither brings a runtime or a socket.
//!
//! | module | holds |
//! | --- | --- |
//! | [`protocol`] | frames: parsing, encoding, errors, limits |
//! | [`websocket`] | RFC 6455 framing and the handshake |
//! | [`connection`] | the machine of one peer |
//! | [`instance`] | the machine of one process: who is in which room and channel |
//! | [`backend`] | shared state: the operations as data, the trait, the memory backend |
//! | [`record`] | values of records: checking, comparing, differences as patches |
//! | [`relay`] | what instances tell each other |
//! | `driver` | the server itself, with the feature of that name |
//!
//! One command through a connection, without a socket:
//!
//! ```
//! use std::{collections::VecDeque, sync::Arc, time::Instant};
//!
//! use mesh_core::{
//!     connection::{Config, Connection, Received},
//!     protocol::encode,
//!     websocket::Message,
//! };
//!
//! let (config, now) = (Arc::new(Config::default()), Instant::now());
//! let mut connection = Connection::new(Arc::clone(&config), now);
//!
//! let frame = config.read(Message::Text(r#"{"id":7,"command":"echo","payload":"hi"}"#));
//! let Received::Command(command) = connection.handle_frame(frame, now) else {
//!     panic!("it is a command");
//! };
//! let reply = encode::reply_raw(command.id, &command.name, command.payload);
//! connection.handle_reply(command.token, &command.name, reply, now);
//!
//! let mut outgoing = VecDeque::new();
//! connection.take_outgoing(&mut outgoing);
//! assert_eq!(outgoing[0].text(), r#"{"id":7,"command":"echo","payload":"hi"}"#);
//! // When it next wants to hear from us, such as for a ping.
//! assert!(connection.poll_timeout().is_some_and(|at| at > now));
//! ```

pub mod backend;
pub mod connection;
#[cfg(feature = "driver")]
pub mod driver;
#[cfg(feature = "__fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod instance;
pub mod protocol;
pub mod record;
pub mod relay;
mod sync;
#[cfg(test)]
mod testing;
pub mod websocket;
