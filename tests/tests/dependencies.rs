//! What may be in a program, and what not.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::collections::BTreeSet;
use std::process::Command;

/// The features of tokio in the demo of `mesh-async-std`, its Redis backend included, on this platform; empty where there is no tokio.
///
/// Other platforms are not asked: on wasm, where no part of the adapter runs, async-std itself brings more of tokio.
fn features_of_tokio(options: &[&str]) -> BTreeSet<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let tree = Command::new(cargo)
        .args(["tree", "-p", "mesh-async-std", "-e", "normal,dev"])
        .args(["--prefix", "none", "-f", "{p}|{f}"])
        .args(options)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .expect("cargo runs");
    assert!(
        tree.status.success(),
        "{}",
        String::from_utf8_lossy(&tree.stderr)
    );
    let tree = String::from_utf8(tree.stdout).unwrap();
    assert!(tree.contains("\nredis v"), "the demo has its backend");
    tree.lines()
        .filter_map(|line| line.strip_prefix("tokio v")?.split_once('|'))
        .flat_map(|(_version, features)| features.trim_end_matches(" (*)").split(','))
        .map(str::to_owned)
        .collect()
}

/// hyper takes tokio's channels, and redis its traits: neither needs a runtime, a socket or a timer of tokio's.
#[test]
fn no_runtime_of_tokio_is_in_a_program_on_async_std_or_smol() {
    let harmless = ["bytes", "default", "io-util", "sync"];
    for options in [
        &["--features", "tls"][..],
        &["--no-default-features", "--features", "smol,tls"],
    ] {
        let features = features_of_tokio(options);
        assert!(features.contains("sync"), "{features:?}");
        let others: Vec<_> = features
            .iter()
            .filter(|feature| !harmless.contains(&feature.as_str()))
            .collect();
        assert!(others.is_empty(), "{options:?}: {others:?}");
    }
}
