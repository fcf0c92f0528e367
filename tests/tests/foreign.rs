//! A client that shares nothing with this project: `foreign/client.js`, in Node, on the package `ws`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::process::{Command, Stdio};

use mesh_tests::Demo;

/// Runs only where `node` finds `ws`; `tests/run` sees to that.
#[test]
fn a_foreign_client_is_understood() {
    let node = || Command::new("node");
    let probe = node()
        .args(["-e", "require('ws')"])
        .stderr(Stdio::null())
        .status();
    if !probe.is_ok_and(|status| status.success()) {
        eprintln!("left out: there is no node here, or no package `ws` on its NODE_PATH");
        return;
    }
    let demo = Demo::start(&["--ping-interval", "50", "--latency-interval", "20"]);
    let output = node()
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/foreign/client.js"))
        .arg(format!("ws://{}", demo.addr()))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}
