//! The sans-IO client of mesh.
//!
//! [`Client`] is a machine: events and instants go in, actions come out. It reconnects with backoff and jitter, gives each
//! command exactly one outcome, queues what is asked while offline, and puts subscriptions, rooms and metadata back
//! after a reconnect. Of a record it hands out whole values, whatever the server sends. Without features this crate has no async
//! runtime, socket, clock, thread or source of randomness. The feature `driver` adds the client that carries the actions out on
//! any runtime, `http1` the opening handshake, by hyper, and `tls` whom a client trusts, by rustls.

mod action;
mod backoff;
mod client;
mod config;
mod correlation;
mod desired;
#[cfg(feature = "driver")]
pub mod driver;
mod failure;
#[cfg(feature = "__fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod liveness;
mod patch;
mod queue;
mod shapes;
mod time;

pub use action::{
    Action, CommandOptions, OfflinePolicy, Outcome, RecordChange, RecordEvent, Refusal, Stats,
    Status, SubscriptionId,
};
pub use client::Client;
pub use config::{ClientConfig, Reconnect};
pub use failure::{ConnectError, Loss};
pub use patch::{PatchError, apply_patch};
