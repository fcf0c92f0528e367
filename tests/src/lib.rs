//! What the conformance suite of mesh is made of: a demo server as a process of its own, and a peer that may break
//! every rule. For clients there is the other side: a server that plays a script.
//!
//! The suite knows the server only by its sockets, its output and its exit code, so it runs over any adapter and
//! any backend: `MESH_RUNTIME` names the runtime, whose demo is built first; `MESH_DEMO` another program in its place,
//! `MESH_DEMO_ARGS` holds arguments that every start gets, and `MESH_DEMO_REDIS=1` gives every server a Redis of its own.
//! Where several servers share a Redis, the test starts it: a `redis-server`, three of them as a cluster, a proxy in
//! between. Everything here blocks, with a deadline, but for [`runtime`], where servers and clients of the test's own
//! process run, and [`sim`], where time is simulated; what is not met panics, since only tests call it. [`scale`] counts what clusters of
//! many connections cost, and has no servers at all.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a helper of a test that cannot go on fails the test"
)]

mod client;
mod demo;
pub mod fleet;
mod http;
mod process;
mod proxy;
mod redis;
mod redis_cluster;
mod resp;
pub mod runtime;
pub mod scale;
mod scripted;
pub mod sim;
mod wait;
pub mod wire;

pub use client::{Incoming, RawClient, Upgrade};
pub use demo::{Demo, Outcome};
pub use http::Response;
pub use proxy::Proxy;
pub use redis::Redis;
pub use redis_cluster::RedisCluster;
pub use resp::{Cost, Key, RedisClient, Resp};
pub use scripted::{Attempt, Peer, Request, Scripted};
pub use wait::{PATIENCE, until, until_some};

use serde_json::{Value, json};

/// The types of servers and clients, which are the same on every runtime: an adapter's own prelude without what it adds.
pub mod prelude {
    pub use mesh_client_core::{
        Status,
        driver::{
            ChannelEvent, ClientBuilder, ClientError, ConnectError, MeshClient, Notices,
            RecordChange, SubscriptionEnd,
        },
    };
    pub use mesh_core::driver::{
        Accept, CloseCode, CommandError, Context, Membership, MeshServer, Pattern, Refusal,
        UpgradeRequest,
    };
}

/// The payload of an error reply (`protocol.md`, section 2), exactly.
pub fn error(message: &str, code: &str, name: &str) -> Value {
    json!({ "error": message, "code": code, "name": name })
}

/// Asserts that `payload` is an error object with this code and name, its message being free, and returns the message.
#[track_caller]
pub fn assert_error(payload: &Value, code: &str, name: &str) -> String {
    let message = payload["error"]
        .as_str()
        .unwrap_or_else(|| panic!("not an error: {payload}"));
    assert_eq!(
        payload,
        &error(message, code, name),
        "another error, or keys that do not belong there"
    );
    message.to_owned()
}

/// Asserts that `payload` is the error of a payload with the wrong shape, and returns its message.
#[track_caller]
pub fn assert_invalid(payload: &Value) -> String {
    assert_error(payload, "EINVALID", "ValidationError")
}

/// The examples of the README, so that its code is compiled with the doc tests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
