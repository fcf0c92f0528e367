//! The front door over HTTP/1.1, by hyper, on any runtime: what every adapter's listener needs behind `accept`.
//!
//! An adapter says how it accepts and how TLS is laid over a connection; [`MeshServer::serve_http1`](super::MeshServer::serve_http1) does
//! the rest. A stream is taken back from hyper once it is upgraded, with what was read behind the handshake, so that nothing of hyper stays
//! in a connection.

mod exchange;
mod io;
mod listener;
mod upgrade;

pub use io::{FromHyper, ToHyper};
