//! mesh on tokio.

mod accept;
mod error;
mod ext;
mod http;
mod listen;
mod runtime;
mod stream;
mod thread;
#[cfg(feature = "tls")]
mod tls;
mod upgraded;

pub use error::{Error, Result};
pub use ext::{MeshServerBuilderExt, MeshServerExt};
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
pub use tls::{ServerTls, TlsError};
pub use upgraded::ConnectInfo;

/// What most programs need: `use mesh_tokio::prelude::*;`.
pub mod prelude {
    pub use mesh_core::driver::{
        Accept, CloseCode, CommandError, Connection, Context, MeshServer, Outcome, Pattern,
        Payload, Refusal, UpgradeRequest,
    };

    pub use crate::{MeshServerBuilderExt as _, MeshServerExt as _};
}
