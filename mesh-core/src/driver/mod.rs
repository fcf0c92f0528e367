//! The runtime-neutral server: what carries the machines' actions out.
//!
//! An adapter implements [`Runtime`] and [`ByteStream`] (or a whole [`Socket`]), lends its listeners to
//! [`MeshServer::accept_all`], and passes requests to [`Place::handle_request`] and upgraded streams to [`MeshServer::serve`].
//!
//! # Write your own adapter
//!
//! [`own_adapter`] tells what each of these has to promise, what the drivers promise in return, and what to test.

mod accept;
mod authenticate;
mod builder;
mod builtins;
mod confirm;
mod connection;
mod context;
mod dispatch;
mod episode;
mod error;
mod handler;
mod hooks;
#[cfg(feature = "http1")]
pub mod http1;
pub mod inside;
mod lobby;
mod mesh;
mod metadata;
#[cfg(test)]
mod models;
mod notices;
mod outage;
mod pattern;
mod payload;
mod records;
mod registry;
mod runtime;
mod serve;
mod server;
mod shutdown;
mod socket;
mod stream;
#[cfg(test)]
mod testkit;
#[cfg(test)]
mod tests;
mod timers;
#[cfg(feature = "tls")]
pub mod tls;

#[doc = include_str!("own_adapter.md")]
pub mod own_adapter {}

pub use accept::{Leave, Leaving, Place};
pub use authenticate::{Accept, Admission, ConnectInfo, FrontDoor, Refusal, UpgradeRequest};
pub use builder::MeshServerBuilder;
pub use connection::{Connection, ConnectionRef};
pub use context::{Call, Context, Outcome, Session};
pub use error::ServerError;
pub use handler::{ErasedHandler, Handler, Interceptor, Verdict};
pub use hooks::{Fault, RoomLeave};
pub use mesh::{Health, MeshServer, Metrics};
pub use metadata::{Connections, Rooms};
pub use pattern::{Pattern, PatternError};
pub use payload::{FromPayload, IntoPayload, Payload};
pub use records::Record;
pub use registry::{Expose, Registration};
pub use runtime::{Runtime, Task, Timer};
pub use socket::{ByteStream, Socket, SocketError};
pub use stream::WebSocketStream;

pub use crate::{
    instance::LeaveReason,
    protocol::{CommandError, Limits},
    relay::Membership,
    websocket::{CloseCode, CloseFrame},
};
