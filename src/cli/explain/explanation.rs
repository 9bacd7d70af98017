//! What an explanation says: plain data, serialized as it stands for `--json` and laid out by `text`.
//!
//! Keys are stable: one that is here keeps its name and meaning. Times are in milliseconds.

use serde::Serialize;
use serde_json::Value;

/// Everything about one request. A section is null where the request does not get so far.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    /// The request.
    pub request: Asked,
    /// With what it would be refused before the cache is asked.
    pub refused: Option<Refused>,
    /// Where it goes.
    pub route: Option<Route>,
    /// Whose answer it gets.
    pub principal: Option<Caller>,
    /// What it asks for, and what the guard makes of that.
    pub guard: Option<Guard>,
    /// What the cache does.
    pub cache: Option<Plan>,
    /// For how long an answer would be kept; null when none would.
    pub lifetime: Option<Lifetime>,
    /// What its answer depends on, and what it changes.
    pub tags: Option<Tags>,
    /// What a running instance has stored for it; null unless one was asked.
    pub live: Option<Live>,
}

/// The request as the upstream would get it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Asked {
    /// Method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// `Host`.
    pub host: Option<String>,
    /// `http` or `https`, of the client's connection.
    pub scheme: &'static str,
    /// Whether the client's forwarding fields are believed.
    pub trusted: bool,
    /// Bytes of the body.
    pub body_bytes: usize,
}

/// An answer of the proxy's own.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Refused {
    /// Its status.
    pub status: u16,
    /// Its reason.
    pub why: String,
    /// Template of the route.
    pub template: Option<&'static str>,
    /// Route class.
    pub class: Option<&'static str>,
}

/// Where a request goes, and its limits.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Route {
    /// Name of the upstream.
    pub upstream: String,
    /// URLs of its replicas, those on standby last.
    pub replicas: Vec<String>,
    /// Template; `*` when the route table does not have the path.
    pub template: &'static str,
    /// Whether it has.
    pub in_table: bool,
    /// Route class.
    pub class: &'static str,
    /// Share of the slots.
    pub lane: &'static str,
    /// For the whole exchange; null is no limit.
    pub total_timeout_ms: Option<u64>,
    /// Between two reads; null is no limit.
    pub idle_timeout_ms: Option<u64>,
    /// The longest body.
    pub body_limit: Setting,
}

/// A configured value and where it was written.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Setting {
    /// Path of the key.
    pub key: String,
    /// The value as it is written in a file.
    pub value: String,
    /// `default`, `FILE:LINE`, `environment NAME` or `flag NAME`.
    pub from: String,
}

/// Whose answer it is. Credentials stand here by their names, never with their values.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Caller {
    /// The digest, 32 hexadecimal digits.
    pub digest: Option<String>,
    /// Whether everybody gets the same.
    pub public: bool,
    /// Names of the fields that the digest is made of.
    pub made_of: Vec<String>,
    /// Names of the cookies among them.
    pub cookies: Vec<String>,
    /// Why there is no digest.
    pub why_none: Option<&'static str>,
}

/// What the guard does.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Guard {
    /// `off`, `observe` or `enforce`.
    pub mode: &'static str,
    /// Where that was written.
    pub from: String,
    /// What the request asks for, in the order in which Dify looks.
    pub asks: Vec<Thing>,
    /// `passes`; `passes_budgeted`: counts as unknown; `observed`: passes, counted as one that would be refused;
    /// `refused`.
    pub verdict: &'static str,
    /// Why.
    pub why: String,
    /// With what it is, or would be, refused.
    pub answer: Option<Words>,
    /// What the running proxy has to know besides for the verdict to hold.
    pub conditions: Vec<String>,
}

/// Something that a request is about.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Thing {
    /// What it is: `app_key`, `dataset`, …
    pub kind: &'static str,
    /// The UUID; of keys and codes the first eight digits of their digest.
    pub id: String,
    /// Where in the request it stands: `field NAME` or `segment NAME`.
    pub at: String,
    /// `exists`, `missing` or `unknown`.
    pub found: &'static str,
    /// Why that is unknown.
    pub why: Option<String>,
    /// What Dify answers when it alone is missing; null when the guard does not know.
    pub if_missing: Option<Words>,
}

/// An answer in Dify's words.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Words {
    /// Its status.
    pub status: u16,
    /// Its body.
    pub body: String,
}

/// What the cache does.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// `look_up`, `pass` or `write`.
    pub plan: &'static str,
    /// Why.
    pub why: String,
    /// How answers are kept: `metadata`, `listing`, `run`, `origin` or `never`.
    pub kept_as: &'static str,
    /// `fwd` of `Cache-Status` when nothing stored answers.
    pub forward: &'static str,
    /// `detail` of `Cache-Status`, unless the answer is not kept for a reason of its own.
    pub detail: &'static str,
    /// The key, when one is looked up.
    pub key: Option<KeyParts>,
    /// What the request itself asks of the cache, when that counts.
    pub directives: Vec<String>,
}

/// A key and everything that it is a digest of. Null or empty: absent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KeyParts {
    /// 32 hexadecimal digits.
    pub digest: String,
    /// The first eight, as `Cache-Status` has them.
    pub prefix: String,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// `Host`.
    pub host: Vec<String>,
    /// Path.
    pub path: String,
    /// Query with its names sorted.
    pub query: Option<String>,
    /// Digest of the principal.
    pub principal: String,
    /// `Origin`.
    pub origin: Vec<String>,
    /// `Accept-Encoding`.
    pub accept_encoding: Vec<String>,
    /// Forwarding fields that a trusted peer sent, as (name, value).
    pub forwarding: Vec<(String, String)>,
}

/// For how long an answer is kept.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Lifetime {
    /// An answer that says nothing of caching (or, for `origin`, `max-age` beyond every limit), by status.
    pub kept: Vec<Kept>,
    /// Where these numbers come from.
    pub settings: Vec<Setting>,
    /// What something in a 200 answer makes of them.
    pub answers: Vec<Effect>,
}

/// How long an answer of one status is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// Status.
    pub status: u16,
    /// Its times.
    #[serde(flatten)]
    pub times: Times,
}

/// How long an answer is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Times {
    /// As fresh.
    pub fresh_ms: u64,
    /// After that, while a new one is fetched.
    pub stale_while_revalidate_ms: u64,
    /// After that, when no new one can be had.
    pub stale_if_error_ms: u64,
}

/// What something in an answer does to its lifetime.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Effect {
    /// What is in the answer.
    pub has: &'static str,
    /// Why it is not kept, the `detail` of `Cache-Status`; null when it is.
    pub not_kept: Option<&'static str>,
    /// For how long it is kept.
    pub times: Option<Times>,
}

/// Tags by name: `datasets`, `datasets:ID`; `POST /cache/purge` takes them as they stand here.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tags {
    /// What ends the stored answer.
    pub filled: Vec<String>,
    /// What only purges end it by.
    pub purgeable_by: Vec<String>,
    /// What the request ends.
    pub invalidated: Vec<String>,
    /// Templates of the routes whose stored answers may carry one of those; `*` for unknown routes.
    pub ends_routes: Vec<&'static str>,
}

/// What a running instance has stored.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Live {
    /// The administrative listener that was asked.
    pub admin: String,
    /// Whether there is an entry under the key.
    pub stored: bool,
    /// The entry, as the administrative listener shows it.
    pub entry: Option<Value>,
}
