//! mesh on tokio: a command-based WebSocket server and client.
//!
//! A command is a name and a JSON payload, and gets exactly one reply. Beside commands there are events, rooms, channels with
//! history, and metadata. This crate is the adapter: sockets, timers, TLS and the HTTP front door. What decides is in
//! `mesh-core` and `mesh-client-core`, whose types are the same on every runtime and are re-exported here.
//!
//! # A server
//!
//! ```no_run
//! use mesh_tokio::prelude::*;
//!
//! #[tokio::main]
//! async fn main() -> mesh_tokio::Result<()> {
//!     let server = MeshServer::builder().build();
//!     server.register_command("echo", async |ctx: Context<String>| {
//!         Ok(format!("echo: {}", ctx.payload))
//!     });
//!     server.expose_channel(Pattern::regex("^chat:.+$")?);
//!     server.listen("127.0.0.1:8080").await
//! }
//! ```
//!
//! [`MeshServerExt`] has the ways in: a listener of its own, with or without TLS, and
//! [`upgrade`](MeshServerExt::upgrade) for a route of an HTTP server that is there already.
//!
//! # A client
//!
//! ```no_run
//! use mesh_tokio::prelude::*;
//!
//! # #[tokio::main]
//! # async fn main() -> mesh_tokio::Result<()> {
//! let client = MeshClient::connect("ws://127.0.0.1:8080").await?;
//! let reply: String = client.command("echo", "Hello").await?;
//! assert_eq!(reply, "echo: Hello");
//! # Ok(())
//! # }
//! ```
//!
//! [`MeshClient::builder`] has the options; for a program without a runtime there is
//! [`connect_blocking`](ClientBuilderExt::connect_blocking).
//!
//! # Features
//!
//! | feature | default | adds |
//! | --- | --- | --- |
//! | `tls` | no | `wss://` for both sides, by rustls with the ring provider |

mod client;
mod ext;
mod runtime;
mod stream;
mod thread;
#[cfg(feature = "tls")]
mod tls;

pub use client::TokioConnector;
pub use ext::{ClientBuilderExt, MeshClientExt, MeshServerBuilderExt, MeshServerExt};
pub use mesh_client_core::{
    ClientConfig, ConnectError, Loss, PatchError, Reconnect, Stats, Status, apply_patch,
    driver::{
        CallbackGuard, ChannelEvent, ClientBuilder, ClientError, CommandCall, CommandFuture, Error,
        EventError, Events, MeshClient, Notices, PublishRecordCall, RecordChange,
        RecordSubscription, RecordUpdate, Result, SubscribeCall, SubscribeRecordCall, Subscription,
        SubscriptionEnd,
    },
};
pub use mesh_core::{
    backend::{Backend, ConnectionId, InstanceId, MemoryCluster},
    driver::{
        Accept, Call, CloseCode, CloseFrame, CommandError, ConnectInfo, Connection, ConnectionRef,
        Connections, Context, Expose, Fault, FromPayload, Handler, Health, Interceptor,
        IntoPayload, Limits, Membership, MeshServer, MeshServerBuilder, Metrics, Outcome, Pattern,
        PatternError, Payload, Record, Refusal, Registration, Rooms, ServerError, Session,
        UpgradeRequest, Verdict,
    },
    protocol::{Dialect, EncodeError},
};
pub use runtime::TokioRuntime;
pub use stream::Io;
pub use thread::ThreadRuntime;
#[cfg(feature = "tls")]
pub use {
    mesh_client_core::driver::tls::ClientTls,
    mesh_core::driver::tls::{ServerTls, TlsError},
};

#[doc = include_str!("../PERFORMANCE.md")]
pub mod performance {}

/// What most programs need: `use mesh_tokio::prelude::*;`.
pub mod prelude {
    pub use mesh_client_core::{
        Status,
        driver::{ChannelEvent, ClientError, ConnectError, MeshClient, RecordChange, RecordUpdate},
    };
    pub use mesh_core::driver::{
        Accept, Call, CloseCode, CommandError, Connection, Context, Interceptor, MeshServer,
        Outcome, Pattern, Payload, Refusal, UpgradeRequest, Verdict,
    };

    pub use crate::{
        ClientBuilderExt as _, MeshClientExt as _, MeshServerBuilderExt as _, MeshServerExt as _,
    };
}
