//! `/live`, `/ready` and `/metrics`: what orchestrators and Prometheus ask.

use http::StatusCode;
use prometheus::{Encoder as _, TextEncoder};
use serde_json::json;

use super::answer::{self, Answer};
use super::server::AdminParts;

pub(super) fn live() -> Answer {
    answer::text(StatusCode::OK, "live\n")
}

/// Ready means: new connections are accepted. Whether replicas are healthy and Redis is used is told beside it but
/// does not decide: what is in memory can still be served.
pub(super) fn ready(parts: &AdminParts) -> Answer {
    let ready = !parts.draining.is_cancelled();
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let upstreams = serde_json::to_value(parts.routing.snapshot()).unwrap_or_default();
    let mut answer = json!({ "ready": ready, "draining": !ready, "upstreams": upstreams });
    if let Some(shared) = parts.cache.shared() {
        answer["redis"] = json!({ "used": shared.open, "heard": shared.heard });
    }
    if let Some(guard) = &parts.guard {
        answer["guard"] = json!({ "mode": guard.mode(), "kinds": guard.kinds() });
        if let Some(peers) = guard.peers() {
            answer["guard"]["peers"] = json!(peers);
        }
    }
    answer::json(status, &answer)
}

pub(super) fn metrics(parts: &AdminParts) -> Answer {
    parts.cache.refresh_gauges();
    parts.routing.refresh_gauges();
    if let Some(guard) = &parts.guard {
        guard.refresh_gauges();
    }
    let encoder = TextEncoder::new();
    let mut text = Vec::new();
    match encoder.encode(&parts.registry.gather(), &mut text) {
        Ok(()) => answer::answer(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text),
        Err(error) => answer::text(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("cannot encode metrics: {error}\n"),
        ),
    }
}
