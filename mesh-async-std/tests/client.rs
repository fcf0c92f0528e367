//! What a client says that was built without TLS and asked for it. The rest is in the conformance suite
//! (`tests/tests/adapter_client.rs`), for all runtimes.
#![cfg(not(feature = "tls"))]
#![allow(clippy::unwrap_used, missing_docs)]

use mesh_async_std::prelude::*;

#[test]
fn without_tls_wss_fails_at_once() {
    let url = "wss://user:secret@localhost:1/?token=secret";
    let connecting = MeshClient::builder(url).connect();
    let error = async_io::block_on(connecting).unwrap_err();
    assert!(matches!(error, ConnectError::Unsupported(_)), "{error:?}");
    assert_eq!(
        error.to_string(),
        "wss:// needs the feature `tls` of mesh-async-std"
    );
}
