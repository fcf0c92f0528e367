//! One error type for a program that uses mesh.

use std::io;

use mesh_core::driver::{PatternError, ServerError};

use super::{ClientError, ConnectError};

/// What can go wrong while a program sets up a server, or uses a client: the error of a `main`. Each adapter re-exports it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A call of a client.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A client's connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The network, or the system below it.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A pattern that is no regular expression.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// The server, or its backend.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// A certificate or a key.
    #[cfg(feature = "tls")]
    #[error(transparent)]
    Tls(#[from] mesh_core::driver::tls::TlsError),
}

/// The result of an adapter's functions, and a convenient one for a `main` that uses them.
pub type Result<T, E = Error> = std::result::Result<T, E>;
