//! What a browser, a load balancer and Prometheus find on the same port.

use crate::mesh::prelude::*;
use bytes::Bytes;
use http::{
    HeaderValue, Method, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE},
};
use serde_json::json;

use crate::metrics::Metrics;

/// `None` is 404.
pub(crate) fn answer(request: &UpgradeRequest, metrics: &Metrics) -> Option<Response<Bytes>> {
    if ![Method::GET, Method::HEAD].contains(&request.head.method) {
        return None;
    }
    match request.head.uri.path() {
        "/" => Some(page("text/html; charset=utf-8", include_str!("page.html"))),
        "/health" => Some(health(&request.server)),
        "/metrics" => {
            let text = metrics.text(&request.server);
            Some(page("text/plain; version=0.0.4; charset=utf-8", text))
        }
        _ => None,
    }
}

fn health(server: &MeshServer) -> Response<Bytes> {
    let health = server.health();
    let (status, word) = if health.is_degraded {
        (StatusCode::SERVICE_UNAVAILABLE, "degraded")
    } else {
        (StatusCode::OK, "ok")
    };
    let text = json!({
        "status": word,
        "instanceId": health.instance_id.as_str(),
        "connections": health.connections,
        "backend": health.backend,
    });
    let mut response = page("application/json", text.to_string());
    *response.status_mut() = status;
    response
}

fn page(content_type: &'static str, body: impl Into<Bytes>) -> Response<Bytes> {
    let mut response = Response::new(body.into());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
