//! The core of mesh: everything that decides, and nothing that does.
//!
//! Without features this crate has no async runtime, socket, clock, thread or source of randomness. Events and
//! instants go in, actions come out. The feature `driver` adds the runtime-neutral server that carries the
//! actions out, and the traits that an adapter implements.

pub mod backend;
pub mod connection;
#[cfg(feature = "driver")]
pub mod driver;
pub mod instance;
pub mod protocol;
pub mod relay;
pub mod websocket;
