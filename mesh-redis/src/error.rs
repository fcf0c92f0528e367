//! Why a backend could not be made.

/// The backend could not be made. Each message says what to do.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The server refuses the credentials.
    #[error(
        "Redis refuses the credentials: {0}; check the user's name and password, in the URL or the builder"
    )]
    Authentication(String),
    /// A setting cannot be.
    #[error("{0}")]
    Config(String),
    /// The key space was written by an incompatible version of mesh.
    #[error(
        "the key space has the format {found:?}, this version reads {expected:?}; \
         use another prefix, or stop all instances and delete the keys under it"
    )]
    Format {
        /// The format that was found.
        found: String,
        /// The format of this version.
        expected: String,
    },
    /// Instances that run have the other setting of [`Builder::sharded`](crate::Builder::sharded).
    #[error(
        "the instances that run here have sharded pub/sub {}, this one has it {}; \
         give them all the same setting, stopping them all to change it, or use another prefix",
        on_or_off(*.found), on_or_off(!.found)
    )]
    Sharding {
        /// Their setting.
        found: bool,
    },
    /// Redis could not be reached, or did not answer in time.
    #[error(
        "Redis cannot be reached at {address}: {reason}; \
         is it running there? `wait(true)` keeps trying instead of failing"
    )]
    Unreachable {
        /// Where it was looked for, without credentials.
        address: String,
        /// What went wrong.
        reason: String,
    },
    /// The server is too old.
    #[error("Redis {found} is too old: mesh needs 7.0 or later, or Valkey")]
    Version {
        /// The version that was found.
        found: String,
    },
}

fn on_or_off(setting: bool) -> &'static str {
    if setting { "on" } else { "off" }
}

impl ConnectError {
    /// Would another attempt help?
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}
