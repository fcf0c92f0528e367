//! The client itself: what carries the machine's actions out, on any runtime.

mod buffer;
mod builder;
mod call;
mod client;
mod connector;
mod error;
mod hub;
mod shared;
mod streams;
mod subscription;
mod task;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use builder::ClientBuilder;
pub use call::{Call, CallFuture};
pub use client::MeshClient;
pub use connector::{ConnectError, ConnectRequest, Connector};
pub use error::{ClientError, EventError};
pub use hub::CallbackGuard;
pub use streams::{Events, Notices};
pub use subscription::{ChannelEvent, SubscribeCall, Subscription, SubscriptionEnd};
