//! mesh on async-std and on smol: a command-based WebSocket server and client.
//!
//! A command is a name and a JSON payload, and gets exactly one reply. Beside commands there are events, rooms, channels with
//! history, and metadata. This crate is the adapter: sockets, timers, TLS and the HTTP front door. What decides is in
//! `mesh-core` and `mesh-client-core`, whose types are the same on every runtime and are re-exported here.
//!
//! # A server
//!
//! ```no_run
//! use mesh_async_std::prelude::*;
//!
//! fn main() -> mesh_async_std::Result<()> {
//!     let server = MeshServer::builder().build();
//!     server.register_command("echo", async |ctx: Context<String>| {
//!         Ok(format!("echo: {}", ctx.payload))
//!     });
//!     server.expose_channel(Pattern::regex("^chat:.+$")?);
//!     async_io::block_on(server.listen("127.0.0.1:8080"))
//! }
//! ```
//!
//! [`MeshServerExt`] has the ways in: a listener of its own, with or without TLS, and
//! [`upgrade`](MeshServerExt::upgrade) for a route of an HTTP server that is there already.
//!
//! # A client
//!
//! ```no_run
//! use mesh_async_std::prelude::*;
//!
//! # fn main() -> mesh_async_std::Result<()> { async_io::block_on(async {
//! let client = MeshClient::connect("ws://127.0.0.1:8080").await?;
//! let reply: String = client.command("echo", "Hello").await?;
//! assert_eq!(reply, "echo: Hello");
//! # Ok(()) }) }
//! ```
//!
//! `async_std::task::block_on` and `smol::block_on` do as well as `async_io::block_on`; tasks go to async-std or to smol, as
//! [`AsyncIoRuntime::current`] says, or to an executor of one's own, by [`AsyncIoRuntime::on`].
//!
//! [`MeshClient::builder`] has the options; for a program without a runtime there is
//! [`connect_blocking`](ClientBuilderExt::connect_blocking).
//!
//! # Features
//!
//! | feature | default | adds |
//! | --- | --- | --- |
//! | `async-std` | yes | tasks on async-std, which its authors have given up in favour of smol |
//! | `smol` | no | tasks on smol |
//! | `tls` | no | `wss://` for both sides, by rustls with the ring provider |

#[cfg(not(any(feature = "async-std", feature = "smol")))]
compile_error!("mesh-async-std needs a runtime: its feature `async-std` or its feature `smol`");

mod client;
mod ext;
mod runtime;
mod stream;
mod thread;
#[cfg(feature = "tls")]
mod tls;

pub use async_io::Async;
pub use client::AsyncIoConnector;
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
        UpgradeRequest, Verdict, http1::ToHyper,
    },
    protocol::{Dialect, EncodeError},
};
pub use runtime::AsyncIoRuntime;
pub use stream::Io;
pub use thread::ThreadRuntime;
#[cfg(feature = "tls")]
pub use {
    mesh_client_core::driver::tls::ClientTls,
    mesh_core::driver::tls::{ServerTls, TlsError},
};

/// What most programs need: `use mesh_async_std::prelude::*;`.
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
