//! What the demo counts, in the text format of Prometheus.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::mesh::prelude::*;
use mesh_redis::RedisBackend;

/// The one label of every command that is not known, so that clients cannot grow the table.
const UNKNOWN: &str = "unknown";

/// Commands by name and outcome.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    commands: RwLock<BTreeMap<String, Outcomes>>,
    /// Where there is one.
    redis: Option<Arc<RedisBackend>>,
}

#[derive(Debug, Default)]
struct Outcomes {
    abandoned: AtomicU64,
    error: AtomicU64,
    reply: AtomicU64,
}

/// The global middleware that counts and traces every command of a server.
#[derive(Debug)]
pub(crate) struct Watch(pub(crate) Arc<Metrics>);

impl Interceptor for Watch {
    fn before(&self, ctx: &Context) -> Verdict {
        tracing::debug!(command = label(ctx), connection = %ctx.connection.id(), "a command");
        Verdict::Continue
    }

    fn after(&self, call: &Call, outcome: &Outcome) {
        self.0.count(label(call), |outcomes| match outcome {
            Outcome::Error(_) => &outcomes.error,
            Outcome::Reply => &outcomes.reply,
            _ => &outcomes.abandoned,
        });
    }
}

fn label(call: &Call) -> &str {
    if call.is_known() {
        call.command()
    } else {
        UNKNOWN
    }
}

impl Metrics {
    fn count(&self, name: &str, which: impl Fn(&Outcomes) -> &AtomicU64) {
        let commands = self.commands.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(outcomes) = commands.get(name) {
            which(outcomes).fetch_add(1, Ordering::Relaxed);
            return;
        }
        drop(commands);
        let mut commands = self
            .commands
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let outcomes = commands.entry(name.to_owned()).or_default();
        which(outcomes).fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn new(redis: Option<Arc<RedisBackend>>) -> Self {
        Self {
            redis,
            ..Self::default()
        }
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
            "mesh_accept_errors_total",
            "counter",
            "Failures to accept a connection.",
            of_server.accept_errors_total,
        );
        single(
            "mesh_handshakes_evicted_total",
            "counter",
            "Connections that were sent away before their upgrade to make room for others.",
            of_server.handshakes_evicted_total,
        );
        single(
            "mesh_slow_consumers_total",
            "counter",
            "Connections closed because they did not read as fast as they were sent to.",
            of_server.slow_consumers_total,
        );
        single(
            "mesh_record_resyncs_total",
            "counter",
            "Records with subscribers that were read again, since versions may have been missed.",
            of_server.record_resyncs_total,
        );
        single(
            "mesh_record_updates_left_out_total",
            "counter",
            "Versions of records that slow clients got a later one in place of.",
            of_server.record_updates_left_out_total,
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
        if let Some(redis) = &self.redis {
            let redis = redis.stats();
            single(
                "mesh_redis_up",
                "gauge",
                "Is the way to Redis open?",
                redis.up.into(),
            );
            single(
                "mesh_redis_commands_total",
                "counter",
                "Commands sent to Redis.",
                redis.commands,
            );
            single(
                "mesh_redis_errors_total",
                "counter",
                "Commands that Redis refused, or that it could not be asked.",
                redis.errors,
            );
            single(
                "mesh_redis_reconnects_total",
                "counter",
                "How often the way to Redis was lost and found again.",
                redis.reconnects,
            );
            single(
                "mesh_redis_messages_total",
                "counter",
                "Messages that came in.",
                redis.messages_in,
            );
            single(
                "mesh_redis_messages_ignored_total",
                "counter",
                "Messages of a format or topic that is not known.",
                redis.messages_ignored,
            );
            single(
                "mesh_redis_notices_dropped_total",
                "counter",
                "Notices that the server did not read in time.",
                redis.notices_dropped,
            );
            single(
                "mesh_redis_instances_reaped_total",
                "counter",
                "Dead instances that this one cleaned up behind.",
                redis.instances_reaped,
            );
            single(
                "mesh_redis_round_trip_microseconds",
                "gauge",
                "The last round trip of a ping.",
                u64::try_from(redis.last_round_trip.as_micros()).unwrap_or(u64::MAX),
            );
        }
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
