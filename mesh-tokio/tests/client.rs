//! What a client says that was built without TLS and asked for it. The rest is in the conformance suite
//! (`tests/tests/adapter_client.rs`), for all runtimes.
#![cfg(not(feature = "tls"))]
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use mesh_tokio::prelude::*;

use crate::common::patiently;

#[tokio::test]
async fn without_tls_wss_fails_at_once() {
    let url = "wss://user:secret@localhost:1/?token=secret";
    let connecting = MeshClient::builder(url).connect();
    let error = patiently("an outcome", connecting).await.unwrap_err();
    assert!(matches!(error, ConnectError::Unsupported(_)), "{error:?}");
    assert_eq!(
        error.to_string(),
        "wss:// needs the feature `tls` of mesh-tokio"
    );
}
