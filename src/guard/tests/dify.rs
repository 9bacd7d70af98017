//! Dify as the model has it: what exists, requests for it, and the answers.

use std::collections::HashSet;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use parking_lot::Mutex;
use tower::Service;

use super::database::{Database, Row, now};
use crate::guard::refusal::{self, Stamp};
use crate::types::cluster::Works;
use crate::types::ids::{Principal, Tags};
use crate::types::known::{IdKind, KnownId};
use crate::types::outcome::{CacheOutcome, RouteClass};
use crate::types::request::{
    Asked, Asks, Background, CacheClass, ClassifiedRequest, Client, Decision, Lane, Learn, Timeouts,
    UpstreamId,
};
use crate::types::{Body, Failure};

/// The kinds of things that come and go.
pub(super) const KINDS: [IdKind; super::steps::KINDS] = [
    IdKind::AppKey,
    IdKind::SiteCode,
    IdKind::Dataset,
    IdKind::UploadFile,
];
/// Keys that always exist.
pub(super) const APP_KEY: &str = "app-always";
pub(super) const DATASET_KEY: &str = "dataset-always";

const KEY_ASKED: &str = "/v1/parameters";
const CODE_ASKED: &str = "/api/passport";
const DATASET_ASKED: &str = "/v1/datasets/{dataset_id:uuid}";
const FILE_ASKED: &str = "/v1/files/{file_id:uuid}/preview";

static LEARNS: [[Learn; 1]; super::steps::KINDS] = [
    [learn("/token", IdKind::AppKey)],
    [learn("/site/code", IdKind::SiteCode)],
    [learn("/id", IdKind::Dataset)],
    [learn("/id", IdKind::UploadFile)],
];

const fn learn(pointer: &'static str, kind: IdKind) -> Learn {
    Learn { pointer, kind }
}

/// One of the things.
#[derive(Debug, Clone)]
pub(super) struct Named {
    pub(super) kind: IdKind,
    pub(super) text: String,
    pub(super) id: KnownId,
}

impl Named {
    /// The `number`-th thing of a kind.
    pub(super) fn new(kind: IdKind, number: usize) -> Self {
        let digest = blake3::hash(&number.to_le_bytes()).to_hex();
        let text = match kind {
            IdKind::AppKey | IdKind::SiteCode => format!("app-{}", &digest[..20]),
            _ => format!(
                "{}-{}-4{}-8{}-{}",
                &digest[..8],
                &digest[8..12],
                &digest[12..15],
                &digest[15..18],
                &digest[18..30]
            ),
        };
        let id = KnownId::of_kind(kind, text.as_bytes()).expect("an id");
        Self { kind, text, id }
    }
}

fn asked(kind: IdKind, text: &str) -> Asked {
    let id = KnownId::of_kind(kind, text.as_bytes()).expect("an id");
    Asked { kind, id }
}

fn classified(method: Method, template: &'static str, path: &str, key: Option<&str>) -> ClassifiedRequest {
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().expect("a path");
    if let Some(key) = key {
        let value = HeaderValue::try_from(format!("Bearer {key}")).expect("a field");
        request.headers_mut().insert("authorization", value);
    }
    let whose = key.map_or(Principal::PUBLIC, |key| {
        Principal(KnownId::of_text(key.as_bytes()).0)
    });
    ClassifiedRequest {
        parts: request.into_parts().0,
        body: Body::Empty,
        client: Client {
            peer: "192.0.2.1:1000".parse().expect("an address"),
            tls: false,
            trusted: false,
        },
        decision: Decision {
            upstream: UpstreamId(0),
            class: RouteClass::Listing,
            template,
            cache: CacheClass::Listing,
            principal: Some(whose),
            fills: Tags::new(),
            invalidates: Tags::new(),
            lane: Lane::Short,
            timeouts: Timeouts {
                total: None,
                idle: None,
            },
            wants_user: false,
            background: Background::None,
            asks: Asks::new(),
            misnamed: None,
            learns: &[],
            works: Works::default(),
        },
    }
}

/// A request for a thing.
pub(super) fn ask(method: Method, thing: &Named) -> ClassifiedRequest {
    let (kind, text) = (thing.kind, thing.text.as_str());
    let this = asked(kind, text);
    let (mut request, asks) = match kind {
        IdKind::AppKey => (classified(method, KEY_ASKED, KEY_ASKED, Some(text)), vec![this]),
        IdKind::SiteCode => (classified(method, CODE_ASKED, CODE_ASKED, None), vec![this]),
        IdKind::Dataset => {
            let path = format!("/v1/datasets/{text}");
            let request = classified(method, DATASET_ASKED, &path, Some(DATASET_KEY));
            (request, vec![this, asked(IdKind::DatasetKey, DATASET_KEY)])
        }
        _ => {
            let path = format!("/v1/files/{text}/preview");
            let request = classified(method, FILE_ASKED, &path, Some(APP_KEY));
            (request, vec![asked(IdKind::AppKey, APP_KEY), this])
        }
    };
    request.decision.asks = asks.into();
    request
}

/// What of an answer's fields says which of Dify's answers it is.
pub(super) fn refusal_status(kind: IdKind) -> u16 {
    if kind == IdKind::AppKey { 401 } else { 404 }
}

/// A request that creates a thing, which the database shows so late.
pub(super) fn create(thing: &Named, late: Duration) -> ClassifiedRequest {
    let place = KINDS.iter().position(|kind| *kind == thing.kind).expect("a kind");
    let mut request = classified(Method::POST, "/console/api/things", "/console/api/things", None);
    request.decision.learns = &LEARNS[place];
    request.parts.extensions.insert(New(thing.clone(), late));
    request
}

#[derive(Clone)]
struct New(Named, Duration);

/// Dify behind one instance.
#[derive(Clone)]
pub(super) struct Dify {
    pub(super) exist: Arc<Mutex<HashSet<(IdKind, KnownId)>>>,
    pub(super) database: Arc<Mutex<Database>>,
}

impl Dify {
    pub(super) fn create(&self, thing: &Named, late: Duration) {
        self.exist.lock().insert((thing.kind, thing.id));
        self.database.lock().rows.push(Row {
            kind: thing.kind,
            id: thing.id,
            created_at: now(),
            visible_at: now() + late,
            gone_at: None,
        });
    }

    pub(super) fn delete(&self, kind: IdKind, id: KnownId) {
        self.exist.lock().remove(&(kind, id));
        let mut database = self.database.lock();
        let rows = database.rows.iter_mut();
        for row in rows.filter(|row| row.kind == kind && row.id == id) {
            row.gone_at.get_or_insert(now());
        }
    }

    fn has(&self, asked: &Asked) -> bool {
        self.exist.lock().contains(&(asked.kind, asked.id))
    }

    fn answer(&self, request: &ClassifiedRequest) -> Response<Body> {
        let decision = &request.decision;
        let mut fields = HeaderMap::new();
        for (name, value) in [
            ("content-type", "application/json"),
            ("access-control-allow-origin", "*"),
            ("access-control-expose-headers", "X-Version, X-Env"),
            ("x-version", "1.12.1"),
            ("x-env", "PRODUCTION"),
        ] {
            fields.insert(name, HeaderValue::from_static(value));
        }
        let mut quiet = HeaderMap::new();
        quiet.insert("authorization", HeaderValue::from_static("Bearer any"));
        let stamp = Stamp::of(&quiet, &fields).expect("a stamp");
        let missing = decision.asks.iter().find(|asked| !self.has(asked));
        let mut answer = if let Some(asked) = missing {
            let refusal = refusal::of(decision.template, asked.kind).expect("Dify's words");
            refusal.answer(&request.parts, &stamp).expect("Dify's words")
        } else {
            let mut answer = Response::new(Body::Full(Bytes::from_static(b"{\"result\": \"success\"}")));
            *answer.headers_mut() = fields;
            if let Some(New(thing, late)) = request.parts.extensions.get() {
                self.create(thing, *late);
                *answer.status_mut() = http::StatusCode::CREATED;
                let name = match thing.kind {
                    IdKind::AppKey => "token",
                    IdKind::SiteCode => "code",
                    _ => "id",
                };
                let body = format!("{{\"{name}\": \"{}\", \"name\": \"new\"}}", thing.text);
                *answer.body_mut() = Body::stream(Body::Full(Bytes::from(body)));
            }
            if let (&Method::DELETE, Some(asked)) = (&request.parts.method, decision.asks.first()) {
                let this = decision
                    .asks
                    .iter()
                    .rfind(|asked| asked.kind == IdKind::UploadFile);
                let asked = this.unwrap_or(asked);
                self.delete(asked.kind, asked.id);
            }
            answer
        };
        let mut outcome = decision.outcome();
        outcome.cache = CacheOutcome::Miss;
        answer.extensions_mut().insert(outcome);
        answer.extensions_mut().insert(FromDify);
        answer
    }
}

/// Marks answers that come from Dify.
#[derive(Clone)]
pub(super) struct FromDify;

impl Service<ClassifiedRequest> for Dify {
    type Response = Response<Body>;
    type Error = Failure;
    type Future = BoxFuture<'static, Result<Response<Body>, Failure>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: ClassifiedRequest) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(2)).await;
            Ok(this.answer(&request))
        })
    }
}
