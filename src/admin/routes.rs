//! The list of what is served, and the way from a request to it.

use bytes::Bytes;
use http::header::ALLOW;
use http::{Method, Request, StatusCode};
use http_body::Body;

use super::answer::{self, Answer, Refusal};
use super::server::AdminParts;
use super::{cache, failover, openapi, probes};

/// One page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Page {
    Index,
    Live,
    Ready,
    Metrics,
    Config,
    Upstreams,
    Stats,
    Entry,
    Purge,
    Failover,
    OpenApi,
}

/// One page's place and purpose. Each has one method: GET (and HEAD with it), or POST.
pub(super) struct Route {
    pub(super) path: &'static str,
    pub(super) writes: bool,
    says: &'static str,
    page: Page,
}

const fn reads(path: &'static str, page: Page, says: &'static str) -> Route {
    Route {
        path,
        writes: false,
        says,
        page,
    }
}

/// Everything that is served.
pub(super) const ROUTES: &[Route] = &[
    reads("/", Page::Index, "this list"),
    reads("/live", Page::Live, "whether the process answers"),
    reads(
        "/ready",
        Page::Ready,
        "whether new connections are accepted (503 while draining)",
    ),
    reads("/metrics", Page::Metrics, "metrics for Prometheus"),
    reads(
        "/config",
        Page::Config,
        "the effective configuration, without secrets",
    ),
    reads(
        "/upstreams",
        Page::Upstreams,
        "replicas, their health and load, and which cluster has the writes",
    ),
    reads("/cache/stats", Page::Stats, "the cache in numbers"),
    reads(
        "/cache/entry",
        Page::Entry,
        "?key=HEX: what is stored under keys that begin so",
    ),
    Route {
        path: "/cache/purge",
        writes: true,
        says: "ends stored answers by key, tag, route, principal or all; needs the token",
        page: Page::Purge,
    },
    Route {
        path: "/failover",
        writes: true,
        says: "has the writes of upstreams go to standby or primary, or (auto) where health says; needs the token",
        page: Page::Failover,
    },
    reads("/openapi.json", Page::OpenApi, "all of this in detail"),
];

/// Answers a request.
pub(super) async fn respond<B>(request: Request<B>, parts: &AdminParts) -> Answer
where
    B: Body<Data = Bytes> + Unpin,
{
    route(request, parts).await.unwrap_or_else(Answer::from)
}

async fn route<B>(request: Request<B>, parts: &AdminParts) -> Result<Answer, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
{
    let path = request.uri().path();
    let Some(route) = ROUTES.iter().find(|route| route.path == path) else {
        let message = "nothing is here; GET / lists what there is";
        return Err(Refusal::new(StatusCode::NOT_FOUND, message));
    };
    let method = request.method();
    let (served, allow) = if route.writes {
        (method == Method::POST, "POST")
    } else {
        (method == Method::GET || method == Method::HEAD, "GET, HEAD")
    };
    if !served {
        let message = format!("this path has {allow} alone");
        return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, message).with(ALLOW, allow));
    }
    if route.writes {
        parts.auth.may_write(request.headers())?;
    }
    match route.page {
        Page::Index => Ok(answer::text(StatusCode::OK, index())),
        Page::Live => Ok(probes::live()),
        Page::Ready => Ok(probes::ready(parts)),
        Page::Metrics => Ok(probes::metrics(parts)),
        Page::Config => Ok(answer::json(StatusCode::OK, &parts.config)),
        Page::Upstreams => Ok(answer::status(&parts.routing.snapshot())),
        Page::Stats => Ok(cache::stats(parts)),
        Page::Entry => cache::entry(parts, request.uri().query()).await,
        Page::Purge => cache::purge(parts, request).await,
        Page::Failover => failover::steer(parts, request).await,
        Page::OpenApi => Ok(openapi::page()),
    }
}

fn index() -> String {
    ROUTES
        .iter()
        .map(|route| {
            let method = if route.writes { "POST" } else { "GET" };
            format!("{method:4} {:14} {}\n", route.path, route.says)
        })
        .collect()
}
