//! What the guard would do with one request, without a running one: for `explain`.
//!
//! [`look`] asks the database about things right now, through the source's own statements; [`judge`] is the decision
//! of a guard for which all of them are as told, made of `refusal`'s own functions. What it depends on in a running
//! guard comes out as conditions.

use std::time::Duration;

use futures_util::future::join_all;
use http::request::Parts;

use super::build::options;
use super::known_ids::postgres::Postgres;
use super::known_ids::{Sink, SourceError, tables};
use super::refusal::{self, Presence, Refusal, Stamp};
use crate::config::GuardConfig;
use crate::types::Body;
use crate::types::known::{IdKind, KnownId};
use crate::types::request::{Asked, Decision};
use crate::types::time::{Clock, Now};

/// For how long the database is waited for, all things together.
const PATIENCE: Duration = Duration::from_secs(2);

/// An answer in Dify's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words {
    /// Its status.
    pub status: u16,
    /// Its body; empty for HEAD.
    pub body: String,
}

/// What a guard would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// With what it would refuse; `None` when the request goes on.
    pub refused: Option<Words>,
    /// What a running guard needs besides before it refuses.
    pub conditions: Vec<String>,
}

/// For each of `asks`, whether the database has it, or why it does not tell.
///
/// # Errors
/// When there is no database, or its URL cannot be used.
pub async fn look(config: &GuardConfig, asks: &[Asked]) -> Result<Vec<Result<bool, String>>, String> {
    let (settings, url) = config.postgres().ok_or("no database is configured")?;
    let mut options = options(settings, url);
    options.timeout = PATIENCE;
    let source = Postgres::new(options, std::sync::Arc::new(Nobody), Clock::System)?;
    let looks = asks.iter().map(|asked| async {
        let found = tokio::time::timeout(PATIENCE, source.look_once(asked.kind, asked.id)).await;
        match found {
            Ok(found) => found.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer from the database within {PATIENCE:?}")),
        }
    });
    Ok(join_all(looks).await)
}

/// What would be answered if of all that the request asks for only `missing` did not exist; `None` when it goes on.
pub fn if_missing(parts: &Parts, decision: &Decision, missing: &Asked) -> Option<Words> {
    let presence = |asked: &Asked| match asked == missing {
        true => Presence::Missing,
        false => Presence::Exists,
    };
    let (words, _) = refuse(parts, decision, &Stamp::recorded(), presence)?;
    Some(words)
}

/// What a guard would do that has found things to be as `presence` says.
pub fn judge(
    config: &GuardConfig,
    parts: &Parts,
    decision: &Decision,
    presence: impl Fn(&Asked) -> Presence,
) -> Judged {
    let Some((refused, (asked, refusal))) = refuse(parts, decision, &Stamp::recorded(), &presence) else {
        return Judged {
            refused: None,
            conditions: Vec::new(),
        };
    };
    let kind = asked.kind;
    let mut conditions = vec![format!(
        "all of the kind {} has been read from the database (armed in /ready)",
        kind.as_str()
    )];
    if !tables::is_exact(kind) {
        conditions.push(format!(
            "the filter does not take it for one that exists, as it does with {} of the missing",
            config.false_positive_rate
        ));
    }
    conditions.push("Dify has answered a request with a key to /v1 within ten minutes".into());
    for (stamp, condition) in Stamp::others() {
        if refuse(parts, decision, &stamp, &presence).is_none() {
            conditions.push(condition);
        }
    }
    if refusal.needs_admission() {
        conditions.push("Dify has given this caller a success or 404 on this route within a minute".into());
    }
    Judged {
        refused: Some(refused),
        conditions,
    }
}

fn refuse(
    parts: &Parts,
    decision: &Decision,
    stamp: &Stamp,
    presence: impl FnMut(&Asked) -> Presence,
) -> Option<(Words, (Asked, &'static Refusal))> {
    let found = refusal::find(decision.template, &decision.asks, stamp, presence)?;
    let answer = found.1.answer(parts, stamp)?;
    let status = answer.status().as_u16();
    let body = match answer.into_body() {
        Body::Full(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Body::Empty | Body::Stream(_) => String::new(),
    };
    Some((Words { status, body }, found))
}

/// Keeps nothing: the source itself has what it read of keys.
struct Nobody;

impl Sink for Nobody {
    fn begin(&self, _: IdKind, _: u64) {}
    fn page(&self, _: IdKind, _: &[KnownId]) {}
    fn complete(&self, _: IdKind, _: Now) {}
    fn add(&self, _: IdKind, _: &[KnownId]) {}
    fn gone(&self, _: IdKind, _: &[KnownId]) {}
    fn up_to_date(&self, _: IdKind, _: Now) {}
    fn failed(&self, _: IdKind, _: &SourceError) {}
}
