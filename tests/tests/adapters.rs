//! That the adapters offer the same: who moves from one to another changes the line that names it.

use std::collections::BTreeSet;

const TOKIO: &str = include_str!("../../mesh-tokio/src/lib.rs");
const ASYNC_IO: &str = include_str!("../../mesh-async-std/src/lib.rs");

/// The names in the `pub use` of a crate's root and of its prelude, without the crates and modules that they come from.
fn names(source: &str) -> BTreeSet<String> {
    let exports = source.split("pub use ").skip(1);
    let exports = exports.filter_map(|rest| rest.split_once(';').map(|(export, _)| export));
    exports
        .flat_map(|export| export.split(|c: char| !(c.is_alphanumeric() || c == '_')))
        .filter(|name| name.starts_with(char::is_uppercase) || *name == "apply_patch")
        .map(|name| name.replace("Tokio", "Its").replace("AsyncIo", "Its"))
        .collect()
}

#[test]
fn the_adapters_offer_the_same_names() {
    let (tokio, mut async_io) = (names(TOKIO), names(ASYNC_IO));
    for name in [
        "ItsRuntime",
        "ItsConnector",
        "MeshServerExt",
        "ServerTls",
        "apply_patch",
    ] {
        assert!(tokio.contains(name), "{name} is not in {tokio:?}");
    }
    // tokio's listeners and hyper-util's streams are known to those who use them; here what stands for them comes along.
    assert!(async_io.remove("Async") && async_io.remove("ToHyper"));
    assert_eq!(tokio, async_io);
}
