//! mesh on tokio.

mod accept;
mod client;
mod connect;
mod error;
mod ext;
mod http;
mod listen;
mod request;
mod runtime;
mod stream;
mod thread;
#[cfg(feature = "tls")]
mod tls;
mod upgraded;

pub use client::TokioConnector;
pub use error::{Error, Result};
pub use ext::{ClientBuilderExt, MeshServerBuilderExt, MeshServerExt};
pub use mesh_client_core::{
    Stats, Status,
    driver::{
        Call, CallbackGuard, ChannelEvent, ClientBuilder, ClientError, ConnectError, EventError,
        Events, MeshClient, Notices, SubscribeCall, Subscription, SubscriptionEnd,
    },
};
pub use mesh_core::{
    backend::{Backend, ConnectionId, InstanceId, MemoryCluster},
    driver::{
        Accept, CloseCode, CloseFrame, CommandError, Connection, ConnectionRef, Connections,
        Context, Expose, Fault, FromPayload, Handler, Health, IntoPayload, Limits, Membership,
        MeshServer, MeshServerBuilder, Metrics, Outcome, Pattern, PatternError, Payload, Refusal,
        Registration, Rooms, ServerError, UpgradeRequest,
    },
};
pub use runtime::TokioRuntime;
pub use stream::Io;
pub use thread::ThreadRuntime;
#[cfg(feature = "tls")]
pub use tls::{ClientTls, ServerTls, TlsError};
pub use upgraded::ConnectInfo;

/// What most programs need: `use mesh_tokio::prelude::*;`.
pub mod prelude {
    pub use mesh_client_core::{
        Status,
        driver::{ChannelEvent, ClientError, ConnectError, MeshClient},
    };
    pub use mesh_core::driver::{
        Accept, CloseCode, CommandError, Connection, Context, MeshServer, Outcome, Pattern,
        Payload, Refusal, UpgradeRequest,
    };

    pub use crate::{ClientBuilderExt as _, MeshServerBuilderExt as _, MeshServerExt as _};
}
