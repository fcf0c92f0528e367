//! The client itself: what carries the machine's actions out, on any runtime.
//!
//! An adapter implements [`Connector`] and [`Runtime`](mesh_core::driver::Runtime), and adds a `connect` that names neither to
//! [`ClientBuilder`]. The rest is here:
//!
//! ```
//! use mesh_client_core::driver::{ChannelEvent, ClientError, MeshClient};
//!
//! async fn chat(client: MeshClient) -> Result<(), ClientError> {
//!     let reply: String = client.command("echo", "Hello").await?;
//!     println!("{reply}");
//!     let mut room = client.subscribe("chat:room1").history(3).await?;
//!     println!("before: {:?}", room.history());
//!     while let Some(event) = room.next().await {
//!         match event {
//!             ChannelEvent::Message(text) => println!("{text}"),
//!             ChannelEvent::Resubscribed { history } => println!("reconnected, the last were {history:?}"),
//!             ChannelEvent::Gap => println!("something may be missing here"),
//!             _ => {}
//!         }
//!     }
//!     Ok(())
//! }
//! ```
//!
//! A record is a value that changes; its subscribers are given each version as a whole:
//!
//! ```
//! use mesh_client_core::driver::MeshClient;
//!
//! #[derive(Debug, serde::Deserialize, serde::Serialize)]
//! struct User {
//!     name: String,
//! }
//!
//! async fn follow(client: MeshClient) -> Result<(), Box<dyn std::error::Error>> {
//!     let mut user = client.subscribe_record::<User>("user:123").patch().await?;
//!     println!("v{}: {:?}", user.version(), user.value());
//!     let renamed = User { name: "Ada".to_owned() };
//!     client.publish_record_update("user:123", &renamed).await?;
//!     while let Some(update) = user.next().await {
//!         let update = update?;
//!         println!("v{}: {:?}", update.version, update.value);
//!     }
//!     Ok(())
//! }
//! ```

mod any_error;
mod buffer;
mod builder;
mod call;
mod client;
mod connector;
mod dial;
mod error;
#[cfg(feature = "http1")]
mod http1;
mod hub;
#[cfg(test)]
mod models;
mod publish;
mod record;
mod shared;
mod streams;
mod subscription;
mod sync;
mod target;
mod task;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
#[cfg(feature = "tls")]
pub mod tls;

pub use any_error::{Error, Result};
pub use builder::ClientBuilder;
pub use call::{CommandCall, CommandFuture};
pub use client::MeshClient;
pub use connector::{ConnectRequest, Connector};
pub use error::{ClientError, EventError};
pub use hub::CallbackGuard;
pub use publish::PublishRecordCall;
pub use record::{RecordSubscription, RecordUpdate, SubscribeRecordCall};
pub use streams::{Events, Notices};
pub use subscription::{ChannelEvent, SubscribeCall, Subscription, SubscriptionEnd};
pub use target::{Opening, Target};

pub use crate::{
    action::RecordChange,
    failure::{ConnectError, Loss},
};
