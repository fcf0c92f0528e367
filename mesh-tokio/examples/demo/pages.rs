//! What a browser, a load balancer and Prometheus find on the same port.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Response,
    header::{CACHE_CONTROL, CONTENT_TYPE},
};
use mesh_tokio::prelude::*;
use serde_json::json;

use crate::metrics::Metrics;

/// The pages of a server that is yet to be built.
#[derive(Debug, Default)]
pub(crate) struct Pages {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) server: OnceLock<MeshServer>,
}

impl Pages {
    /// `None` is 404.
    pub(crate) fn answer(&self, request: &UpgradeRequest) -> Option<Response<Bytes>> {
        if ![Method::GET, Method::HEAD].contains(&request.head.method) {
            return None;
        }
        let server = self.server.get()?;
        match request.head.uri.path() {
            "/" => Some(page("text/html; charset=utf-8", include_str!("page.html"))),
            "/health" => Some(page("application/json", health(server))),
            "/metrics" => {
                let text = self.metrics.text(server);
                Some(page("text/plain; version=0.0.4; charset=utf-8", text))
            }
            _ => None,
        }
    }
}

fn health(server: &MeshServer) -> String {
    let health = server.health();
    // The embedded backend is never out of reach.
    let text = json!({
        "status": "ok",
        "instanceId": health.instance_id.as_str(),
        "connections": health.connections,
        "backend": health.backend,
    });
    text.to_string()
}

fn page(content_type: &'static str, body: impl Into<Bytes>) -> Response<Bytes> {
    let mut response = Response::new(body.into());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
