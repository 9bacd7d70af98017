//! What Dify itself answers when it does not have the thing that a request is about.
//!
//! The words were recorded from a real Dify. Where a route's were not, or where Dify looks at something first that is
//! not known here (who is logged in, what the body says), there is no refusal: the request goes on. Fields that differ
//! between installations are taken from answers that Dify gave: [`Stamp`].

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, AUTHORIZATION, CONTENT_ENCODING,
    CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HeaderMap, HeaderName, HeaderValue, ORIGIN, SET_COOKIE, VARY,
    WWW_AUTHENTICATE,
};
use http::request::Parts;
use http::{Method, Response, StatusCode};

use crate::types::Body;
use crate::types::known::IdKind;
use crate::types::request::Asked;

const X_VERSION: HeaderName = HeaderName::from_static("x-version");
const X_ENV: HeaderName = HeaderName::from_static("x-env");
const X_TRACE_ID: HeaderName = HeaderName::from_static("x-trace-id");

/// The version that the words below are from.
const RECORDED: &str = "1.12.1";

/// Whether Dify has a thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It has, or may have.
    Exists,
    /// It has not.
    Missing,
    /// Nobody here knows.
    Unsure,
}

/// What the query has to be for Dify to look for the thing at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Query {
    /// Anything.
    Any,
    /// Nothing, or a harmless `user` alone.
    User,
    /// `timestamp`, `nonce` and `sign`, each once.
    Signature,
}

/// Dify's answer about one sort of missing thing.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    kind: IdKind,
    /// A template; with `*` behind it every template that begins like this.
    template: &'static str,
    status: StatusCode,
    /// With `{path}` where Dify repeats the path.
    body: &'static str,
    query: Query,
    /// See [`Refusal::needs_admission`].
    admission: bool,
    /// Whether the words depend on which routes Dify has, and so on its version.
    by_version: bool,
}

impl Refusal {
    const fn new(kind: IdKind, template: &'static str, status: StatusCode, body: &'static str) -> Self {
        Self {
            kind,
            template,
            status,
            body,
            query: Query::Any,
            admission: false,
            by_version: false,
        }
    }

    const fn of_admitted(mut self) -> Self {
        self.admission = true;
        self
    }

    const fn by_version(mut self) -> Self {
        self.by_version = true;
        self
    }

    const fn with(mut self, query: Query) -> Self {
        self.query = query;
        self
    }
}

const BAD_KEY: &str =
    "{\"code\": \"unauthorized\", \"message\": \"Access token is invalid\", \"status\": 401}\n";
const NO_DATASET: &str = "{\"code\": \"not_found\", \"message\": \"Dataset not found.\", \"status\": 404}\n";
const NO_DOCUMENT: &str =
    "{\"code\": \"not_found\", \"message\": \"Document not found.\", \"status\": 404}\n";
const NO_CONVERSATION: &str = "{\"code\": \"not_found\", \"message\": \"Conversation Not Exists. You have requested \
     this URI [{path}] but did you mean /v1/conversations/<uuid:c_id>/variables ?\", \"status\": 404}\n";
const NO_FILE: &str =
    "{\"code\": \"file_not_found\", \"message\": \"File not found in message context\", \"status\": 404}\n";
const NO_SIGNED_FILE: &str =
    "{\"code\": \"not_found\", \"message\": \"File not found or signature is invalid\", \"status\": 404}\n";
const NO_RUN: &str = "{\"id\": null, \"workflow_id\": null, \"status\": null, \"inputs\": null, \"outputs\": null, \
     \"error\": null, \"total_steps\": null, \"total_tokens\": null, \"created_at\": null, \"finished_at\": null, \
     \"elapsed_time\": null}\n";
const NO_SITE: &str = "{\"code\": \"not_found\", \"message\": \"The requested URL was not found on the server. If you \
     entered the URL manually please check your spelling and try again. You have requested this URI [/api/passport] but \
     did you mean /api/passport or /api/forgot-password or /api/parameters ?\", \"status\": 404}\n";

const NO_ROUTE: &str = "<!doctype html>\n<html lang=en>\n<title>404 Not Found</title>\n<h1>Not Found</h1>\n<p>The \
     requested URL was not found on the server. If you entered the URL manually please check your spelling and try \
     again.</p>\n";

/// The recorded refusals. Keys are looked for in one place for all routes, and so are the data sets of the service API:
/// before the body is looked at. (One thing comes between a data set and the key: a data set may be closed to the API,
/// and is refused with 403 then, whatever the key.)
static REFUSALS: [Refusal; 10] = [
    Refusal::new(IdKind::AppKey, "/v1/*", StatusCode::UNAUTHORIZED, BAD_KEY),
    Refusal::new(IdKind::DatasetKey, "/v1/*", StatusCode::UNAUTHORIZED, BAD_KEY),
    Refusal::new(
        IdKind::Dataset,
        "/v1/datasets/{dataset_id:uuid}*",
        StatusCode::NOT_FOUND,
        NO_DATASET,
    ),
    Refusal::new(
        IdKind::Document,
        "/v1/datasets/{dataset_id:uuid}/documents/{document_id:uuid}",
        StatusCode::NOT_FOUND,
        NO_DOCUMENT,
    )
    .of_admitted(),
    Refusal::new(
        IdKind::Document,
        "/v1/datasets/{dataset_id:uuid}/documents/{document_id:uuid}/segments",
        StatusCode::NOT_FOUND,
        NO_DOCUMENT,
    )
    .of_admitted(),
    Refusal::new(
        IdKind::Conversation,
        "/v1/conversations/{c_id:uuid}/variables",
        StatusCode::NOT_FOUND,
        NO_CONVERSATION,
    )
    .of_admitted()
    .by_version()
    .with(Query::User),
    Refusal::new(
        IdKind::UploadFile,
        "/v1/files/{file_id:uuid}/preview",
        StatusCode::NOT_FOUND,
        NO_FILE,
    )
    .of_admitted()
    .with(Query::User),
    // A run that is not there is no error.
    Refusal::new(
        IdKind::WorkflowRun,
        "/v1/workflows/run/{workflow_run_id}",
        StatusCode::OK,
        NO_RUN,
    )
    .of_admitted(),
    // Whether it is the file or its signature, Dify does not say.
    Refusal::new(
        IdKind::UploadFile,
        "/files/{file_id:uuid}/*",
        StatusCode::NOT_FOUND,
        NO_SIGNED_FILE,
    )
    .with(Query::Signature),
    Refusal::new(IdKind::SiteCode, "/api/passport", StatusCode::NOT_FOUND, NO_SITE).by_version(),
];

/// Routes on which a missing data set is not refused here: Dify goes on with the paths of its routes that are like the
/// asked one, and those of this length are like some, or are as the client's own words in them make them.
static OTHER_WORDS: [&str; 9] = [
    "/v1/datasets/{dataset_id:uuid}/document/create-by-file",
    "/v1/datasets/{dataset_id:uuid}/document/create-by-text",
    "/v1/datasets/{dataset_id:uuid}/document/create_by_file",
    "/v1/datasets/{dataset_id:uuid}/document/create_by_text",
    "/v1/datasets/{dataset_id:uuid}/documents/metadata",
    "/v1/datasets/{dataset_id:uuid}/documents/status/{action}",
    "/v1/datasets/{dataset_id:uuid}/documents/{batch}/indexing-status",
    "/v1/datasets/{dataset_id:uuid}/metadata/built-in",
    "/v1/datasets/{dataset_id:uuid}/metadata/built-in/{action}",
];

/// How Dify refuses a request to the route `template` because there is no thing of `kind`; `None` when that was not
/// recorded.
pub fn of(template: &str, kind: IdKind) -> Option<&'static Refusal> {
    if kind == IdKind::Dataset && OTHER_WORDS.contains(&template) {
        return None;
    }
    REFUSALS.iter().find(|refusal| {
        refusal.kind == kind
            && match refusal.template.strip_suffix('*') {
                Some(start) => template.starts_with(start),
                None => template == refusal.template,
            }
    })
}

/// Whether any refusal of a route wants it to be known that Dify comes to look: see [`Refusal::needs_admission`].
pub fn is_admission(template: &str) -> bool {
    REFUSALS
        .iter()
        .any(|refusal| refusal.admission && refusal.template == template)
}

/// The first of `asks` that is missing, with Dify's refusal; `None` when nothing is missing, when it is not sure that
/// Dify would come to look for it, or when the words are not known.
pub fn find(
    template: &str,
    asks: &[Asked],
    stamp: &Stamp,
    mut presence: impl FnMut(&Asked) -> Presence,
) -> Option<(Asked, &'static Refusal)> {
    for (place, asked) in asks.iter().enumerate() {
        match presence(asked) {
            Presence::Exists => {}
            Presence::Unsure => return None,
            Presence::Missing => {
                let refusal = of(template, asked.kind)?;
                let key = asks.get(place + 1).filter(|next| next.kind == IdKind::DatasetKey);
                // Other versions look for the key before the data set: then both orders must come to the same.
                let sure = asked.kind != IdKind::Dataset
                    || stamp.is_recorded()
                    || key.is_some_and(|key| presence(key) == Presence::Exists);
                return sure.then_some((*asked, refusal));
            }
        }
    }
    None
}

/// What Dify's router answers to a path of the service API that no route has because what stands in it for an id is no
/// UUID. Nothing for browsers is added to that. `None` when Dify could answer in another way.
pub fn no_route(request: &Parts, stamp: &Stamp) -> Option<Response<Body>> {
    if !stamp.is_recorded() || stamp.varies {
        return None;
    }
    let mut fields = HeaderMap::with_capacity(6);
    fields.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    fields.insert(CONTENT_LENGTH, NO_ROUTE.len().into());
    fields.insert(X_VERSION, stamp.version.clone());
    fields.insert(X_ENV, stamp.env.clone());
    stamp.repeat_key(&request.headers, &mut fields)?;
    Some(answer(
        &request.method,
        StatusCode::NOT_FOUND,
        fields,
        NO_ROUTE.into(),
    ))
}

fn answer(method: &Method, status: StatusCode, fields: HeaderMap, body: String) -> Response<Body> {
    let mut answer = Response::new(match *method {
        Method::HEAD => Body::Empty,
        _ => Body::Full(Bytes::from(body)),
    });
    *answer.status_mut() = status;
    *answer.headers_mut() = fields;
    answer
}

impl Refusal {
    /// Whether Dify looks at more before it than at what exists: whether the app is switched on, of which mode it is,
    /// whose the data set is, quotas. Then only such a request may be refused whose principal Dify has lately given
    /// this very refusal, or a success, on the same route.
    pub fn needs_admission(&self) -> bool {
        self.admission
    }

    /// Its status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The answer to `request`, but for what belongs to the connection (`Date`, `Connection`). `None` when Dify could
    /// answer this request in another way.
    pub fn answer(&self, request: &Parts, stamp: &Stamp) -> Option<Response<Body>> {
        let later = self.by_version && !stamp.is_recorded();
        // A Dify that repeats keys fails on previews, whatever the file.
        let fails = stamp.repeats_key && self.body == NO_FILE;
        if later || fails || !self.query.is(request.uri.query()) {
            return None;
        }
        let body = self.body.replace("{path}", request.uri.path());
        let mut fields = HeaderMap::with_capacity(10);
        fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        fields.insert(CONTENT_LENGTH, body.len().into());
        if self.status == StatusCode::UNAUTHORIZED {
            fields.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"api\""));
        }
        let origin = self.allow_origin(request, stamp, &mut fields)?;
        let vary = match (origin, stamp.varies) {
            (true, true) => Some("Origin, Accept-Encoding"),
            (true, false) => Some("Origin"),
            (false, true) => Some("Accept-Encoding"),
            (false, false) => None,
        };
        if let Some(vary) = vary {
            fields.insert(VARY, HeaderValue::from_static(vary));
        }
        fields.insert(X_VERSION, stamp.version.clone());
        fields.insert(X_ENV, stamp.env.clone());
        stamp.repeat_key(&request.headers, &mut fields)?;
        Some(answer(&request.method, self.status, fields, body))
    }

    /// Whether the answer depends on `Origin`. Which origins `/api` allows is a setting of Dify.
    fn allow_origin(&self, request: &Parts, stamp: &Stamp, fields: &mut HeaderMap) -> Option<bool> {
        let mut origins = request.headers.get_all(ORIGIN).iter();
        let origin = origins.next();
        if self.template.starts_with("/api") {
            return origin.is_none().then_some(false);
        }
        let plain = |origin: &HeaderValue| {
            origin
                .to_str()
                .is_ok_and(|text| !text.is_empty() && !text.contains(','))
        };
        if origins.next().is_some() || !origin.is_none_or(plain) {
            return None;
        }
        let allowed = origin.cloned().unwrap_or(HeaderValue::from_static("*"));
        fields.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        fields.insert(ACCESS_CONTROL_EXPOSE_HEADERS, stamp.exposes.clone());
        Some(origin.is_some())
    }
}

impl Query {
    fn is(self, query: Option<&str>) -> bool {
        let query = query.unwrap_or_default();
        match self {
            Self::Any => true,
            Self::User => query.is_empty() || query.strip_prefix("user=").is_some_and(is_plain),
            Self::Signature => {
                let mut names: Vec<_> = query
                    .split('&')
                    .take(4)
                    .filter_map(|pair| pair.split_once('='))
                    .filter(|(_, value)| !value.is_empty())
                    .map(|(name, _)| name)
                    .collect();
                names.sort_unstable();
                names == ["nonce", "sign", "timestamp"] && query.split('&').count() == 3
            }
        }
    }
}

/// Whether a text has no sign in it that needs an escape anywhere.
fn is_plain(text: &str) -> bool {
    (1..=255).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

/// What every answer of one installation of Dify carries, whatever the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    version: HeaderValue,
    env: HeaderValue,
    exposes: HeaderValue,
    /// Whether it compresses long answers, and says so on all.
    varies: bool,
    /// Whether it repeats keys in a cookie.
    repeats_key: bool,
}

impl Stamp {
    /// Of an answer of the service API (`/v1`) and the fields of its request. `None` when they do not tell: the answer
    /// is not plainly Dify's, or the request had no key, or cookies.
    pub fn of(request: &HeaderMap, answer: &HeaderMap) -> Option<Self> {
        let quiet = request.contains_key(AUTHORIZATION) && !request.contains_key(COOKIE);
        // Traces are numbered: no answer of ours could have the next number.
        if !quiet || answer.contains_key(X_TRACE_ID) {
            return None;
        }
        let has = |name: HeaderName, text: &[u8]| {
            let mut values = answer.get_all(name).iter();
            values.any(|value| memchr::memmem::find(value.as_bytes(), text).is_some())
        };
        Some(Self {
            version: answer.get(X_VERSION)?.clone(),
            env: answer.get(X_ENV)?.clone(),
            exposes: answer.get(ACCESS_CONTROL_EXPOSE_HEADERS)?.clone(),
            varies: has(VARY, b"Accept-Encoding") || answer.contains_key(CONTENT_ENCODING),
            repeats_key: has(SET_COOKIE, b"x-token="),
        })
    }

    /// Of the installation that the words are from.
    pub(super) fn recorded() -> Self {
        Self {
            version: HeaderValue::from_static(RECORDED),
            env: HeaderValue::from_static("PRODUCTION"),
            exposes: HeaderValue::from_static("X-Version, X-Env, X-Trace-Id"),
            varies: false,
            repeats_key: false,
        }
    }

    /// Of installations that differ from it, each with the condition that it does not meet.
    pub(super) fn others() -> [(Self, String); 3] {
        let mut later = Self::recorded();
        later.version = HeaderValue::from_static("other");
        let mut repeating = Self::recorded();
        repeating.repeats_key = true;
        let mut varying = Self::recorded();
        varying.varies = true;
        [
            (later, format!("Dify is of version {RECORDED}")),
            (
                repeating,
                "Dify does not repeat keys in the cookie x-token".into(),
            ),
            (varying, "Dify does not compress".into()),
        ]
    }

    fn is_recorded(&self) -> bool {
        self.version == RECORDED
    }

    /// Adds the cookie with the request's key; `None` when it is not sure how it would look.
    fn repeat_key(&self, request: &HeaderMap, fields: &mut HeaderMap) -> Option<()> {
        let mut keys = request.get_all(AUTHORIZATION).iter();
        let (true, Some(key)) = (self.repeats_key, keys.next()) else {
            return Some(());
        };
        // Whatever the first seven signs are, they count as the scheme.
        let key = key.to_str().ok()?.get(7..).filter(|key| is_plain(key))?;
        if keys.next().is_some() || request.contains_key(COOKIE) {
            return None;
        }
        let cookie = HeaderValue::try_from(format!("x-token={key}; HttpOnly; Path=/")).ok()?;
        fields.insert(SET_COOKIE, cookie);
        Some(())
    }
}

#[cfg(test)]
mod tests;
