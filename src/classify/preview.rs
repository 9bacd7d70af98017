//! What this stage makes of a request that did not come over a connection, and why: for `explain`.
//!
//! [`ClassifyLayer::preview`] is the stage itself with nothing behind it. [`ClassifyLayer::reasons`] looks at the
//! same rows and rules again to name what a decision only has as digests: tags, and what the principal was made of.

use std::sync::Arc;

use futures_util::FutureExt as _;
use http::header::UPGRADE;
use http::{Request, Response};
use parking_lot::Mutex;
use tower::{Layer as _, ServiceExt as _};

use super::decide::{UNKNOWN, fill};
use super::row::{Methods, Row, Who};
use super::templates::Lookup;
use super::{ClassifyLayer, asks, dify_routes, principal, user};
use crate::types::ids::{Tag, TagKind, Tags};
use crate::types::known::IdKind;
use crate::types::request::{Asked, CacheClass, ClassifiedRequest};
use crate::types::units::Size;
use crate::types::{Body, Failure, FailureKind};

/// A tag as operators write it: the kind, and the id unless it is everything of the kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedTag {
    /// The kind.
    pub kind: TagKind,
    /// The id; empty for everything of the kind.
    pub id: String,
}

impl NamedTag {
    /// What the request path has of it.
    pub fn tag(&self) -> Tag {
        Tag::of(self.kind, self.id.as_bytes())
    }
}

impl std::fmt::Display for NamedTag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.kind.as_str())?;
        if self.id.is_empty() {
            Ok(())
        } else {
            write!(f, ":{}", self.id)
        }
    }
}

/// Why a decision is as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reasons {
    /// Whether the table has the path.
    pub in_table: bool,
    /// The names of the fields that the principal is a digest of, or why there is no principal.
    pub principal: Result<Vec<&'static str>, &'static str>,
    /// Why the cache has no part in it, when it has none.
    pub never_kept: Option<&'static str>,
    /// What the answer depends on.
    pub fills: Vec<NamedTag>,
    /// What the request changes.
    pub invalidates: Vec<NamedTag>,
    /// Templates of the routes whose stored answers it may end, sorted; `*` for what the table does not know.
    pub ends_routes: Vec<&'static str>,
    /// What it asks for, whether a guard wants to know or not, each with where in the request it stands.
    pub asks: Vec<(Asked, String)>,
    /// The kind of the thing for which the path has no UUID, so that no route has it.
    pub misnamed: Option<IdKind>,
    /// The longest body, and the key that says so.
    pub body_limit: (&'static str, Size),
}

impl ClassifyLayer {
    /// What the next stage would be called with. The body has to be at hand.
    ///
    /// # Errors
    /// As [`Classify`](super::Classify).
    pub fn preview(&self, request: Request<Body>) -> Result<ClassifiedRequest, Failure> {
        let slot = Arc::new(Mutex::new(None));
        let seen = slot.clone();
        let next = tower::service_fn(move |request: ClassifiedRequest| {
            *seen.lock() = Some(request);
            std::future::ready(Ok(Response::new(Body::Empty)))
        });
        let answer = self.layer(next).oneshot(request).now_or_never();
        answer.transpose()?;
        let request = slot.lock().take();
        request.ok_or_else(|| Failure::new(FailureKind::RequestTimeout, "the request body is not whole"))
    }

    /// Why [`preview`](Self::preview) gave `request`.
    pub fn reasons(&self, request: &ClassifiedRequest) -> Reasons {
        let (parts, decision) = (&request.parts, &request.decision);
        let path = parts.uri.path();
        let methods = Methods::of(&parts.method);
        let (row, id, misnamed) = match self.classifier().look_up(methods, path) {
            Some((_, Lookup::Row(row, id))) => (Some(row), id, None),
            Some((target, Lookup::Unknown)) => {
                let misnamed = self.classifier().misnamed(target, methods, path);
                (None, None, misnamed)
            }
            _ => (None, None, None),
        };
        let ids = Ids {
            path,
            first: id.unwrap_or_default(),
            query: parts
                .uri
                .query()
                .and_then(user::in_query)
                .unwrap_or_default()
                .into_owned(),
            body: match &request.body {
                Body::Full(body) => user::in_json(body).unwrap_or_default(),
                _ => String::new(),
            },
        };
        let invalidates = ids.name(&decision.invalidates);
        let who = row.map_or(Who::Unknown, |row| row.who);
        let limit = self.body_limit(decision.class);
        Reasons {
            in_table: decision.template != UNKNOWN,
            principal: match principal::made_of(who, &parts.headers) {
                Some(names) => Ok(names.into_iter().map(|name| name.as_str()).collect()),
                None => Err(nobody(who)),
            },
            never_kept: (decision.cache == CacheClass::Never).then(|| never_kept(request, row)),
            fills: ids.name(&decision.fills),
            ends_routes: self.ended(path, &invalidates),
            invalidates,
            asks: row.map_or_else(Vec::new, |row| {
                let places = asks::places(&row.asks, row.template);
                row.asks
                    .of(path, &parts.headers)
                    .into_iter()
                    .zip(places)
                    .collect()
            }),
            misnamed,
            body_limit: (limit.key, limit.max),
        }
    }

    /// The routes whose stored answers may carry one of `tags`, of which those with a path have this one.
    fn ended(&self, path: &str, tags: &[NamedTag]) -> Vec<&'static str> {
        let mut found = Vec::new();
        for named in tags {
            match named.kind {
                TagKind::Target => found.extend(match self.classifier().look_up(Methods::GET, path) {
                    Some((_, Lookup::Row(row, _))) => {
                        (row.profile.cache == CacheClass::Origin).then_some(row.template)
                    }
                    Some((_, Lookup::Unknown)) => Some(UNKNOWN),
                    Some((_, Lookup::OtherMethod(_))) | None => None,
                }),
                TagKind::Access => {
                    found.push(UNKNOWN);
                    found.extend(kept_rows().map(|row| row.template));
                }
                _ => found.extend(
                    kept_rows()
                        .filter(|row| may_carry(row, named))
                        .map(|row| row.template),
                ),
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }
}

fn kept_rows() -> impl Iterator<Item = &'static Row> {
    dify_routes::all().filter(|row| row.methods.meets(Methods::GET) && row.profile.cache != CacheClass::Never)
}

/// Whether there is an id and a user with which an answer of the row carries the tag.
fn may_carry(row: &Row, named: &NamedTag) -> bool {
    let mut tags = Tags::new();
    for rule in row.fills {
        fill(
            *rule,
            Some(&named.id),
            || Some(named.id.as_str().into()),
            &mut tags,
        );
    }
    tags.contains(&named.tag())
}

fn nobody(who: Who) -> &'static str {
    match who {
        Who::Bearer => "there is not exactly one Authorization field with a value",
        Who::Web => "there is no passport, neither in X-App-Passport nor in a cookie",
        Who::Console | Who::Open | Who::Unknown => "no credential is sent",
    }
}

fn never_kept(request: &ClassifiedRequest, row: Option<&Row>) -> &'static str {
    let (parts, decision) = (&request.parts, &request.decision);
    match row {
        _ if Methods::of(&parts.method) != Methods::GET => "only GET and HEAD are answered from memory",
        Some(row) if row.profile.cache == CacheClass::Never => "answers of this route are never kept",
        None if decision.template != UNKNOWN => "the route does not have this method",
        _ if parts.headers.contains_key(UPGRADE) => "it asks for another protocol",
        _ if decision.principal.is_none() => "it is not known whose answer it is",
        _ if !request.body.is_empty() => "it has a body, which may select the answer",
        _ => "the query does not name exactly one user",
    }
}

/// What a tag of one request may have as its id.
struct Ids<'r> {
    path: &'r str,
    /// The path's first variable.
    first: &'r str,
    /// The user of the query and of the body.
    query: String,
    body: String,
}

impl Ids<'_> {
    fn name(&self, tags: &[Tag]) -> Vec<NamedTag> {
        let ids = ["", "list", self.path, self.first, &self.query, &self.body];
        let all = || {
            let kinds = TagKind::ALL.iter();
            kinds.flat_map(|kind| ids.map(|id| (*kind, id)))
        };
        let name = |tag: &Tag| {
            let (kind, id) = all().find(|(kind, id)| Tag::of(*kind, id.as_bytes()) == *tag)?;
            let id = id.to_owned();
            Some(NamedTag { kind, id })
        };
        tags.iter().filter_map(name).collect()
    }
}
