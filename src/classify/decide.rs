//! The decision: everything that is known about a request from its head alone. Pure, and on the hit path.

use std::borrow::Cow;

use http::header::UPGRADE;
use http::{HeaderMap, Method};

use crate::config::{Config, GuardMode};
use crate::types::cluster::Works;
use crate::types::failure::{Failure, FailureKind};
use crate::types::grpc;
use crate::types::ids::{Batch, Tag, TagKind, Tags};
use crate::types::known::IdKind;
use crate::types::outcome::{CacheOutcome, Outcome, Phases, RouteClass};
use crate::types::request::{Asks, Background, CacheClass, Decision, Lane};

use super::body_limit::declared_length;
use super::row::{Limit, Methods, Row, TagRule, Who};
use super::templates::{Lookup, Templates};
use super::upstreams::{Target, Upstreams};
use super::{asks, dify_routes, principal, user, works};

/// The template of what the table does not know.
pub(super) const UNKNOWN: &str = "*";

/// What lives in dify-api, by the first segment of a path.
const DIFY_ROOTS: [&[u8]; 7] = [b"v1", b"api", b"console", b"inner", b"mcp", b"triggers", b"files"];

/// The route table and the upstreams, made ready once.
#[derive(Debug)]
pub struct Classifier {
    upstreams: Upstreams,
    templates: Templates,
    /// Whether anybody wants to know what a request asks for.
    guarded: bool,
}

impl Classifier {
    /// # Errors
    /// When `routes` cannot be carried out: a sentence that names the route.
    pub fn new(config: &Config) -> Result<Self, String> {
        Ok(Self {
            upstreams: Upstreams::new(config)?,
            templates: Templates::new(dify_routes::all()),
            guarded: config
                .guard
                .as_ref()
                .is_some_and(|guard| guard.mode != GuardMode::Off),
        })
    }

    /// Decides from the method, the path and query exactly as sent, and the fields.
    ///
    /// # Errors
    /// [`FailureKind::NoRoute`] when no upstream serves the path.
    pub fn decide(
        &self,
        method: &Method,
        path: &str,
        query: Option<&str>,
        headers: &HeaderMap,
    ) -> Result<Decision, Failure> {
        let methods = Methods::of(method);
        let (target, lookup) = self.look_up(methods, path).ok_or_else(no_route)?;
        let mut decision = match lookup {
            Lookup::Row(row, id) => {
                let mut decision = known(target, row, id, path, query, method, headers);
                if self.guarded {
                    decision.asks = row.asks.of(path, headers);
                }
                if target.has_standby {
                    decision.works = works::of(row, method, path, query);
                }
                decision
            }
            Lookup::OtherMethod(template) => unknown(target, template, method, path, headers),
            Lookup::Unknown => {
                let mut decision = unknown(target, UNKNOWN, method, path, headers);
                if self.guarded {
                    decision.misnamed = self.misnamed(target, methods, path);
                }
                decision
            }
        };
        let is_grpc = *method == Method::POST && grpc::is_grpc(headers);
        if is_grpc && let Some(limit) = grpc::timeout(headers) {
            let total = decision.timeouts.total;
            decision.timeouts.total = Some(total.map_or(limit, |total| total.min(limit)));
        }
        // A method of gRPC has no answer to GET that could be kept.
        let keeps_all = method.is_safe() || is_grpc && decision.template == UNKNOWN;
        if !keeps_all {
            decision
                .invalidates
                .push(Tag::of(TagKind::Target, path.as_bytes()));
        }
        let readable = methods == Methods::GET && !headers.contains_key(UPGRADE);
        if decision.cache == CacheClass::Never || !readable || decision.principal.is_none() {
            decision.never_cached();
            return Ok(decision);
        }
        if decision.cache == CacheClass::Origin {
            decision.fills.push(Tag::of(TagKind::Target, path.as_bytes()));
        }
        if target.is_dify {
            decision.fills.push(Tag::all(TagKind::Access));
        }
        Ok(decision)
    }

    /// Of a path of the service API that no row has: the kind of the thing whose id in it is none, if it would have a
    /// template but for that.
    pub(super) fn misnamed(&self, target: &Target, methods: Methods, path: &str) -> Option<IdKind> {
        if !target.is_dify || methods != Methods::GET || !path.starts_with("/v1/") {
            return None;
        }
        let template = self.templates.near(path)?;
        asks::misnamed(template, path)
    }

    /// Which upstream serves a path, and what the table has for it.
    pub(super) fn look_up<'p>(&self, methods: Methods, path: &'p str) -> Option<(&Target, Lookup<'p>)> {
        let target = self.upstreams.find(path)?;
        let lookup = if target.is_dify {
            self.templates.find(methods, path)
        } else {
            Lookup::Unknown
        };
        Some((target, lookup))
    }
}

fn no_route() -> Failure {
    let mut failure = Failure::new(FailureKind::NoRoute, "no upstream is configured for this path");
    failure.outcome = Some(Outcome {
        class: RouteClass::Passthrough,
        template: UNKNOWN,
        cache: CacheOutcome::None,
        principal: None,
        phases: Phases::default(),
    });
    failure
}

/// A request that a row of the table stands for.
fn known(
    target: &Target,
    row: &'static Row,
    id: Option<&str>,
    path: &str,
    query: Option<&str>,
    method: &Method,
    headers: &HeaderMap,
) -> Decision {
    let mut cache = row.profile.cache;
    let mut fills = Tags::new();
    if cache != CacheClass::Never {
        for rule in row.fills {
            if !fill(*rule, id, || query.and_then(user::in_query), &mut fills) {
                cache = CacheClass::Never;
            }
        }
    }
    let of_user = row.ends.iter().any(|rule| matches!(rule, TagRule::OfUser(_)));
    Decision {
        invalidates: row.ends.iter().map(|rule| end(*rule, id)).collect(),
        upstream: target.id,
        class: row.profile.class,
        template: row.template,
        cache,
        principal: principal::principal(row.who, headers),
        fills,
        lane: row.profile.lane,
        timeouts: target.timeouts(row.profile.limit, declared_length(headers)),
        wants_user: of_user && !method.is_safe(),
        background: background(row, id, path),
        asks: Asks::new(),
        misnamed: None,
        learns: row.learns,
        works: Works::default(),
    }
}

/// The tag that a request ends by `rule`; of a user's the one for all users.
fn end(rule: TagRule, id: Option<&str>) -> Tag {
    match rule {
        TagRule::All(kind) | TagRule::OfUser(kind) => Tag::all(kind),
        TagRule::Named(kind, name) => Tag::of(kind, name.as_bytes()),
        TagRule::OfId(kind) => of_id(kind, id),
    }
}

fn background(row: &'static Row, id: Option<&str>, path: &str) -> Background {
    let tags = |rules: &[TagRule]| {
        let rules = rules.iter().filter(|rule| rule.kind() == TagKind::Datasets);
        rules.map(|rule| end(*rule, id)).collect()
    };
    if !row.begins.is_empty() {
        return Background::Begins(tags(row.begins));
    }
    // The batch stands before the last segment in all of these templates.
    match path.rsplit('/').nth(1) {
        Some(batch) if !row.tells.is_empty() => {
            Background::Tells(Batch::named(batch.as_bytes()), tags(row.tells))
        }
        _ => Background::None,
    }
}

/// Adds the tags that an answer carries by `rule`. False when it is not known which.
pub(super) fn fill<'q>(
    rule: TagRule,
    id: Option<&str>,
    user: impl FnOnce() -> Option<Cow<'q, str>>,
    tags: &mut Tags,
) -> bool {
    match rule {
        TagRule::All(kind) => tags.push(Tag::all(kind)),
        TagRule::Named(kind, name) => tags.push(Tag::of(kind, name.as_bytes())),
        TagRule::OfUser(kind) => match user() {
            Some(user) => tags.extend([Tag::all(kind), Tag::of(kind, user.as_bytes())]),
            None => return false,
        },
        TagRule::OfId(kind) => tags.extend([Tag::all(kind), of_id(kind, id)]),
    }
    true
}

fn of_id(kind: TagKind, id: Option<&str>) -> Tag {
    Tag::of(kind, id.unwrap_or_default().as_bytes())
}

/// A request that the table has no row for. If it may be a write to dify-api all the same, it ends
/// everything: every answer of that upstream carries [`TagKind::Access`].
fn unknown(
    target: &Target,
    template: &'static str,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
) -> Decision {
    let mut invalidates = Tags::new();
    if target.is_dify && !method.is_safe() && may_reach_dify(path) {
        invalidates.push(Tag::all(TagKind::Access));
    }
    Decision {
        upstream: target.id,
        class: RouteClass::Passthrough,
        template,
        cache: if template == UNKNOWN {
            CacheClass::Origin
        } else {
            CacheClass::Never
        },
        principal: principal::principal(Who::Unknown, headers),
        fills: Tags::new(),
        invalidates,
        // What is switched to another protocol is held for as long as somebody has a page open.
        lane: match target.is_dify && headers.contains_key(UPGRADE) {
            true => Lane::Generation,
            false => Lane::Short,
        },
        timeouts: target.timeouts(Limit::Idle, None),
        wants_user: false,
        background: Background::None,
        asks: Asks::new(),
        misnamed: None,
        learns: &[],
        works: Works::default(),
    }
}

/// Whether gunicorn and werkzeug, which undo escapes and merge slashes, could take the path for one of Dify's.
fn may_reach_dify(path: &str) -> bool {
    user::unescape(path.as_bytes())
        .split(|byte| *byte == b'/')
        .find(|segment| !segment.is_empty())
        .is_some_and(|root| DIFY_ROOTS.contains(&root))
}
