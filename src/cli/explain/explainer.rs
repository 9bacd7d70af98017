//! From a request to its explanation. Every decision is made by the stages' own code: `wire` and `classify` run as
//! they are with nothing behind them, `guard` and `cache` are asked through their pure functions.

use bytes::Bytes;
use futures_util::stream;
use http::header::{ACCEPT_ENCODING, CONTENT_LENGTH, COOKIE, HOST, ORIGIN, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, Method, Request};
use http_body::Frame;
use http_body_util::StreamBody;

use super::explanation::{Asked, Caller, Explanation, KeyParts, Plan, Refused, Route, Setting, Tags};
use super::{guard, lifetime};
use crate::cache::cache_status::Forward;
use crate::cache::key::{self, Key};
use crate::cache::plan;
use crate::cache::request_control::{RequestControl, Selective, needs_origin};
use crate::classify::{ClassifyLayer, NamedTag, Reasons};
use crate::config::Config;
use crate::types::ids::{Principal, TagKind, hex};
use crate::types::outcome::RouteClass;
use crate::types::request::{CacheClass, ClassifiedRequest, Client};
use crate::types::time::Now;
use crate::types::{Body, Failure, FailureKind};
use crate::wire;

/// A request that did not come over a connection.
#[derive(Debug, Clone, Default)]
pub struct Question {
    /// Method.
    pub method: String,
    /// Request target in any form.
    pub target: String,
    /// Fields, `Host` among them.
    pub fields: Vec<(String, Vec<u8>)>,
    /// The whole content.
    pub body: Bytes,
    /// Whether the client speaks TLS.
    pub tls: bool,
    /// Whether the client is a trusted proxy.
    pub trusted: bool,
}

/// Explains requests to one configuration.
pub struct Explainer<'c> {
    config: &'c Config,
    classify: ClassifyLayer,
    origin_of: Box<dyn Fn(&str) -> String + 'c>,
}

impl<'c> Explainer<'c> {
    /// `origin_of` says where the value of a key was written.
    ///
    /// # Errors
    /// When `routes` cannot be carried out: a sentence that names the route.
    pub fn new(config: &'c Config, origin_of: impl Fn(&str) -> String + 'c) -> Result<Self, String> {
        Ok(Self {
            config,
            classify: ClassifyLayer::new(config)?,
            origin_of: Box::new(origin_of),
        })
    }

    /// What would happen to a request at `now`, and why.
    ///
    /// # Errors
    /// When it is not a request that gets past the wire: what it would be refused with.
    pub fn explain(&self, question: &Question, now: Now) -> Result<Explanation, Failure> {
        let mut parts = wire::preview(
            &question.method,
            &question.target,
            &question.fields,
            &self.config.limits,
        )?;
        parts.extensions.insert(Client {
            peer: ([0, 0, 0, 0], 0).into(),
            tls: question.tls,
            trusted: question.trusted,
        });
        let body = body(&parts.headers, &question.body)?;
        let asked = Asked {
            method: parts.method.to_string(),
            target: parts.uri.to_string(),
            host: values(&parts.headers, &HOST).pop(),
            scheme: if question.tls { "https" } else { "http" },
            trusted: question.trusted,
            body_bytes: question.body.len(),
        };
        let explanation = match self.classify.preview(Request::from_parts(parts, body)) {
            Ok(request) => self.classified(asked, &request, now),
            Err(failure) => Explanation {
                request: asked,
                refused: Some(refused(&failure)),
                route: None,
                principal: None,
                guard: None,
                cache: None,
                lifetime: None,
                tags: None,
                live: None,
            },
        };
        Ok(explanation)
    }

    fn classified(&self, asked: Asked, request: &ClassifiedRequest, now: Now) -> Explanation {
        let reasons = self.classify.reasons(request);
        let decision = &request.decision;
        let plan = plan::Plan::of(
            &request.parts.method,
            &request.parts.headers,
            !request.body.is_empty(),
            decision,
            self.config.cache.keeps(),
        );
        let key = match plan {
            plan::Plan::LookUp(principal, _) => Some(key_parts(request, principal)),
            plan::Plan::Write | plan::Plan::Pass(..) => None,
        };
        let unknown = !reasons.in_table;
        Explanation {
            request: asked,
            refused: None,
            route: Some(self.route(request, &reasons)),
            principal: Some(caller(request, &reasons)),
            guard: Some(guard::guard(
                self.config.guard.as_ref(),
                (self.origin_of)("guard.mode"),
                request,
                &reasons,
            )),
            lifetime: key.is_some().then(|| {
                lifetime::lifetime(decision.cache, unknown, &self.config.cache, &self.origin_of, now)
            }),
            tags: Some(tags(request, &reasons, key.as_ref())),
            cache: Some(self.plan(request, plan, &reasons, key)),
            live: None,
        }
    }

    fn route(&self, request: &ClassifiedRequest, reasons: &Reasons) -> Route {
        let decision = &request.decision;
        let upstream = self.config.upstreams.iter().nth(decision.upstream.0);
        let replicas = upstream.map_or_else(Vec::new, |(_, upstream)| {
            let standby = upstream.standby.iter().map(|replica| replica.url.clone());
            upstream.places().into_iter().chain(standby).collect()
        });
        let (key, most) = reasons.body_limit;
        Route {
            upstream: upstream.map_or_else(String::new, |(name, _)| name.clone()),
            replicas,
            template: decision.template,
            in_table: reasons.in_table,
            class: decision.class.as_str(),
            lane: decision.lane.as_str(),
            total_timeout_ms: decision.timeouts.total.map(|limit| limit.as_millis() as u64),
            idle_timeout_ms: decision.timeouts.idle.map(|limit| limit.as_millis() as u64),
            body_limit: Setting {
                key: key.to_owned(),
                value: most.to_string(),
                from: (self.origin_of)(key),
            },
        }
    }

    fn plan(
        &self,
        request: &ClassifiedRequest,
        plan: plan::Plan,
        reasons: &Reasons,
        key: Option<KeyParts>,
    ) -> Plan {
        let decision = &request.decision;
        let class = decision.class.as_str();
        let mut directives = Vec::new();
        let (name, why, forward, detail) = match plan {
            plan::Plan::Write if decision.class == RouteClass::Passthrough => (
                "write",
                "what it ends, it ends when it is answered, unless the answer shows that no handler ran"
                    .into(),
                Forward::Method,
                class,
            ),
            plan::Plan::Write => (
                "write",
                "what it ends, it ends when it goes out, and again when it is answered, with whatever status"
                    .into(),
                Forward::Method,
                class,
            ),
            plan::Plan::Pass(forward, detail) => {
                let why = match (detail, reasons.never_kept) {
                    ("no-store", _) => "the request says no-store",
                    (_, Some(why)) => why,
                    _ if !self.config.cache.keeps() => "cache.enable_local is false",
                    _ => "only GET and HEAD are answered from memory",
                };
                ("pass", why.into(), forward, detail)
            }
            plan::Plan::LookUp(_, control) => {
                directives = spelled(&control, &request.parts.headers);
                let forward = if control.no_cache {
                    Forward::Request
                } else {
                    Forward::UriMiss
                };
                let (why, detail) = if request.parts.method == Method::HEAD {
                    (
                        "what is stored for GET answers; an answer to HEAD is not kept",
                        "head",
                    )
                } else {
                    (
                        "what is stored answers; an answer that may be kept is kept",
                        class,
                    )
                };
                ("look_up", why.into(), forward, detail)
            }
        };
        Plan {
            plan: name,
            why,
            kept_as: kept_as(decision.cache),
            forward: forward.as_str(),
            detail,
            key,
            directives,
        }
    }
}

/// What stands for a class under `cache.classes`.
fn kept_as(class: CacheClass) -> &'static str {
    match class {
        CacheClass::Never => "never",
        CacheClass::Metadata => "metadata",
        CacheClass::Listing => "listing",
        CacheClass::Run => "run",
        CacheClass::Origin => "origin",
    }
}

/// The body as the wire would give it to the stages: of known length only when the head says it.
fn body(headers: &HeaderMap, content: &Bytes) -> Result<Body, Failure> {
    if headers.contains_key(TRANSFER_ENCODING) {
        let all = stream::iter([Ok::<_, Failure>(Frame::data(content.clone()))]);
        return Ok(Body::stream(StreamBody::new(all)));
    }
    let told = headers
        .get(CONTENT_LENGTH)
        .map_or(&b"0"[..], |value| value.as_bytes());
    if std::str::from_utf8(told).ok().and_then(|text| text.parse().ok()) == Some(content.len()) {
        return Ok(Body::from(content.clone()));
    }
    Err(Failure::new(
        FailureKind::Malformed,
        format!(
            "Content-Length says {}, but the body has {} bytes",
            String::from_utf8_lossy(told),
            content.len()
        ),
    ))
}

fn refused(failure: &Failure) -> Refused {
    Refused {
        status: wire::respond::status(failure.kind).as_u16(),
        why: failure.detail.to_string(),
        template: failure.outcome.map(|outcome| outcome.template),
        class: failure.outcome.map(|outcome| outcome.class.as_str()),
    }
}

fn caller(request: &ClassifiedRequest, reasons: &Reasons) -> Caller {
    let made_of = reasons.principal.clone().unwrap_or_default();
    let cookies = if made_of.contains(&COOKIE.as_str()) {
        cookie_names(&request.parts.headers)
    } else {
        Vec::new()
    };
    let principal = request.decision.principal;
    Caller {
        digest: principal.map(|principal| principal.to_hex()),
        public: principal == Some(Principal::PUBLIC),
        made_of: made_of.into_iter().map(str::to_owned).collect(),
        cookies,
        why_none: reasons.principal.as_ref().err().copied(),
    }
}

/// A cookie without `=` is all value; it has no name to show.
fn cookie_names(headers: &HeaderMap) -> Vec<String> {
    let fields = values(headers, &COOKIE);
    let pairs = fields.iter().flat_map(|field| field.split(';'));
    pairs
        .map(|pair| {
            pair.split_once('=')
                .map_or("(without a name)", |(name, _)| name.trim())
        })
        .map(str::to_owned)
        .collect()
}

fn key_parts(request: &ClassifiedRequest, principal: Principal) -> KeyParts {
    let (parts, client) = (&request.parts, &request.client);
    let key = Key::of(parts, client, principal);
    let forwarding = |name: &&HeaderName| client.trusted && key::selects(name);
    let digest = hex(&key.0);
    KeyParts {
        prefix: digest[..8].to_owned(),
        digest,
        scheme: client.scheme(),
        host: values(&parts.headers, &HOST),
        path: parts.uri.path().to_owned(),
        query: parts
            .uri
            .query()
            .map(|query| key::canonical_query(query).into_owned()),
        principal: principal.to_hex(),
        origin: values(&parts.headers, &ORIGIN),
        accept_encoding: values(&parts.headers, &ACCEPT_ENCODING),
        forwarding: parts
            .headers
            .keys()
            .filter(forwarding)
            .flat_map(|name| {
                let values = values(&parts.headers, name);
                values.into_iter().map(|value| (name.to_string(), value))
            })
            .collect(),
    }
}

fn values(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let all = headers.get_all(name).iter();
    all.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        .collect()
}

/// The directives that count, and what conditions and ranges do.
fn spelled(control: &RequestControl, headers: &HeaderMap) -> Vec<String> {
    let seconds = |name: &str, value: Option<std::time::Duration>| {
        value.map(|value| format!("{name}={} (seconds)", value.as_secs()))
    };
    let flag = |name: &str, set: bool| set.then(|| name.to_owned());
    let mut stored = HeaderMap::new();
    stored.insert(http::header::ETAG, http::HeaderValue::from_static("\"\""));
    stored.insert(
        http::header::ACCEPT_RANGES,
        http::HeaderValue::from_static("bytes"),
    );
    [
        flag("no-cache: nothing stored answers", control.no_cache),
        flag(
            "only-if-cached: 504 when nothing stored answers",
            control.only_if_cached,
        ),
        seconds("max-age", control.max_age),
        seconds("min-fresh", control.min_fresh),
        flag(
            "condition or range: forwarded when the stored answer has validators or ranges",
            needs_origin(headers, Selective::of(&stored)),
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn tags(request: &ClassifiedRequest, reasons: &Reasons, key: Option<&KeyParts>) -> Tags {
    let names = |tags: &[NamedTag]| tags.iter().map(ToString::to_string).collect();
    let purgeable_by = key.map_or_else(Vec::new, |key| {
        [
            (TagKind::Route, request.decision.template),
            (TagKind::Principal, &key.principal),
            (TagKind::Key, &key.prefix),
        ]
        .map(|(kind, id)| format!("{}:{id}", kind.as_str()))
        .into()
    });
    Tags {
        filled: key.map_or_else(Vec::new, |_| names(&reasons.fills)),
        purgeable_by,
        invalidated: names(&reasons.invalidates),
        ends_routes: reasons.ends_routes.clone(),
    }
}
