//! mesh beside the routes of axum, on one port.
//!
//! ```text
//! cargo run -p mesh-tokio --example axum
//! curl http://127.0.0.1:3000/hello        # axum answers
//! websocat ws://127.0.0.1:3000/mesh       # mesh answers: {"id":1,"command":"echo","payload":"Hello"}
//! ```

use std::net::SocketAddr;

use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, Request, State},
    response::Response,
    routing::get,
};
use mesh_tokio::prelude::*;
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> mesh_tokio::Result<()> {
    let server = MeshServer::builder().build();
    server.register_command("echo", async |ctx: Context<String>| {
        Ok(format!("echo: {}", ctx.payload))
    });

    let app = Router::new()
        .route("/hello", get(async || "Hello from axum"))
        .route("/mesh", get(upgrade))
        .with_state(server.clone());
    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    axum::serve(
        listener,
        app.into_make_service_with_connect_info::<SocketAddr>(),
    )
    .with_graceful_shutdown(async move {
        // Until Ctrl-C. axum does not know of the connections that it gave away; mesh ends those.
        let _ = tokio::signal::ctrl_c().await;
        let _ = server.shutdown().await;
    })
    .await?;
    Ok(())
}

async fn upgrade(
    State(server): State<MeshServer>,
    ConnectInfo(remote): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    server.upgrade(request, remote).await.map(Body::from)
}
