//! The command line of the demo.

use std::{
    num::{NonZeroU64, NonZeroUsize},
    time::Duration,
};

use crate::mesh::Limits;
use clap::Parser;

/// A server that shows everything mesh does.
#[derive(Debug, Parser)]
#[command(name = "demo")]
pub(crate) struct Options {
    /// The address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    pub(crate) host: String,
    /// The port to listen on; 0 takes any.
    #[arg(long, default_value_t = 8080)]
    pub(crate) port: u16,
    /// A Redis to share state through, such as redis://127.0.0.1:6379, or nodes of a Redis Cluster with commas between
    /// them. Left out: one process, in memory.
    #[arg(long, value_name = "URL")]
    pub(crate) redis: Option<String>,
    /// Time between two pings.
    #[arg(long, value_name = "MS", default_value = "30000")]
    ping_interval: NonZeroU64,
    /// Time between two measurements of the latency.
    #[arg(long, value_name = "MS", default_value = "5000")]
    latency_interval: NonZeroU64,
    /// Pongs that a client may miss in a row.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) max_missed_pongs: u32,
    /// Does not tell a new connection its id.
    #[arg(long)]
    pub(crate) no_assign_id: bool,
    /// Connections at once; over it: 503.
    #[arg(long, value_name = "N")]
    max_connections: Option<usize>,
    /// The longest message that is read.
    #[arg(long, value_name = "N")]
    max_message_bytes: Option<NonZeroUsize>,
    /// Bytes queued to one client; over it: close 1013.
    #[arg(long, value_name = "N")]
    max_queue_bytes: Option<NonZeroUsize>,
    /// Commands in flight on one connection; over it: EOVERLOAD.
    #[arg(long, value_name = "N")]
    max_in_flight: Option<NonZeroUsize>,
}

impl Options {
    /// Reads the command line.
    ///
    /// # Errors
    /// One line that says what is wrong with it. Asked for help, it prints that and ends the process.
    pub(crate) fn read() -> Result<Self, String> {
        Self::try_parse().map_err(|error| {
            if !error.use_stderr() {
                error.exit();
            }
            // The lines after the first are the usage.
            let text = error.to_string();
            text.lines().next().unwrap_or_default().to_owned()
        })
    }

    pub(crate) fn ping_interval(&self) -> Duration {
        Duration::from_millis(self.ping_interval.get())
    }

    pub(crate) fn latency_interval(&self) -> Duration {
        Duration::from_millis(self.latency_interval.get())
    }

    /// Sets the limits that were given.
    pub(crate) fn apply(&self, limits: &mut Limits) {
        limits.connections_max = self.max_connections;
        if let Some(max) = self.max_message_bytes {
            limits.message_bytes_max = max.get();
        }
        if let Some(max) = self.max_queue_bytes {
            limits.queue_bytes_max = max.get();
        }
        if let Some(max) = self.max_in_flight {
            limits.in_flight_max = max.get();
        }
    }
}
