//! What the demo counts, in the text format of Prometheus.

use std::{
    collections::BTreeMap,
    fmt::Write,
    future::ready,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use mesh_tokio::prelude::*;

/// The one label of every command that is not known, so that clients cannot grow the table.
const UNKNOWN: &str = "unknown";

/// Commands by name and outcome.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    commands: RwLock<BTreeMap<String, Arc<Outcomes>>>,
}

#[derive(Debug, Default)]
struct Outcomes {
    abandoned: AtomicU64,
    error: AtomicU64,
    reply: AtomicU64,
}

impl Metrics {
    /// Counts and traces every command of the server.
    pub(crate) fn watch(self: Arc<Self>, server: &MeshServer) {
        server.add_middleware(move |ctx: Context| {
            let name = if ctx.is_known() {
                ctx.command()
            } else {
                UNKNOWN
            };
            tracing::debug!(command = name, connection = %ctx.connection.id(), "a command");
            let outcomes = self.outcomes(name);
            ctx.on_outcome(move |outcome| {
                let count = match outcome {
                    Outcome::Error(_) => &outcomes.error,
                    Outcome::Reply => &outcomes.reply,
                    _ => &outcomes.abandoned,
                };
                count.fetch_add(1, Ordering::Relaxed);
            });
            ready(Ok(()))
        });
    }

    fn outcomes(&self, name: &str) -> Arc<Outcomes> {
        let commands = self.commands.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(outcomes) = commands.get(name) {
            return Arc::clone(outcomes);
        }
        drop(commands);
        let mut commands = self
            .commands
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        Arc::clone(commands.entry(name.to_owned()).or_default())
    }

    /// All there is to tell about a server.
    pub(crate) fn text(&self, server: &MeshServer) -> String {
        let of_server = server.metrics();
        let mut text = String::new();
        let mut single = |name: &str, kind: &str, help: &str, value: u64| {
            // Writing to a string does not fail.
            let _ = writeln!(
                text,
                "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}"
            );
        };
        single(
            "mesh_connections",
            "gauge",
            "Connections now.",
            u64::try_from(of_server.connections).unwrap_or(u64::MAX),
        );
        single(
            "mesh_connections_total",
            "counter",
            "Connections that were let in.",
            of_server.connections_total,
        );
        single(
            "mesh_slow_consumers_total",
            "counter",
            "Connections closed because they did not read as fast as they were sent to.",
            of_server.slow_consumers_total,
        );
        single(
            "mesh_handler_panics_total",
            "counter",
            "Handlers, middleware and hooks that panicked.",
            of_server.handler_panics_total,
        );
        single(
            "mesh_backend_errors_total",
            "counter",
            "Backend operations that failed.",
            of_server.backend_errors_total,
        );
        single(
            "mesh_backend_messages_dropped_total",
            "counter",
            "Messages of the backend that were too long, or of an unknown kind.",
            of_server.backend_messages_dropped_total,
        );
        self.write_commands(&mut text);
        text
    }

    fn write_commands(&self, text: &mut String) {
        text.push_str("# HELP mesh_commands_total Commands that are over.\n");
        text.push_str("# TYPE mesh_commands_total counter\n");
        let commands = self.commands.read().unwrap_or_else(PoisonError::into_inner);
        for (command, outcomes) in commands.iter() {
            for (outcome, count) in [
                ("abandoned", &outcomes.abandoned),
                ("error", &outcomes.error),
                ("reply", &outcomes.reply),
            ] {
                let count = count.load(Ordering::Relaxed);
                // The names are this program's own: nothing in them needs to be escaped.
                let labels = format!("command=\"{command}\",outcome=\"{outcome}\"");
                let _ = writeln!(text, "mesh_commands_total{{{labels}}} {count}");
            }
        }
    }
}
