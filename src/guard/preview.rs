//! What the guard would do with one request, without a running one: for `explain`.
//!
//! [`look`] asks the database about things right now, through the source's own statements; [`judge`] is the decision
//! of a guard for which all of them are as told, made of `refusal`'s own functions. What it depends on in a running
//! guard comes out as conditions.

use std::time::Duration;

use futures_util::future::join_all;
use http::Response;
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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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
    let armed = |kind: IdKind| {
        let kind = kind.as_str();
        format!("all of the kind {kind} has been read from the database (armed in /ready)")
    };
    let mut judged = Judged::default();
    let refuse_with = |stamp: &Stamp| match decision.misnamed {
        Some(_) => refusal::no_route(parts, stamp).map(words),
        None => refuse(parts, decision, stamp, &presence).map(|(words, _)| words),
    };
    judged.refused = refuse_with(&Stamp::recorded());
    if let Some(kind) = decision.misnamed {
        if config.postgres().is_none() {
            return Judged::default();
        }
        judged.conditions.push(armed(kind));
    } else if let Some((_, (asked, refusal))) = refuse(parts, decision, &Stamp::recorded(), &presence) {
        judged.conditions.push(armed(asked.kind));
        if !tables::is_exact(asked.kind) {
            let share = config.false_positive_rate;
            judged.conditions.push(format!(
                "the filter does not take it for one that exists, as it does with {share} of the missing"
            ));
        }
        if refusal.needs_admission() {
            let admitted = "Dify has given this caller a success or 404 on this route within a minute";
            judged.conditions.push(admitted.into());
        }
    } else {
        return judged;
    }
    let stamped = "Dify has answered a request with a key to /v1 within ten minutes";
    judged.conditions.push(stamped.into());
    for (stamp, condition) in Stamp::others() {
        if refuse_with(&stamp).is_none() {
            judged.conditions.push(condition);
        }
    }
    judged
}

fn refuse(
    parts: &Parts,
    decision: &Decision,
    stamp: &Stamp,
    presence: impl FnMut(&Asked) -> Presence,
) -> Option<(Words, (Asked, &'static Refusal))> {
    let found = refusal::find(decision.template, &decision.asks, stamp, presence)?;
    let answer = found.1.answer(parts, stamp)?;
    Some((words(answer), found))
}

fn words(answer: Response<Body>) -> Words {
    let status = answer.status().as_u16();
    let body = match answer.into_body() {
        Body::Full(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Body::Empty | Body::Stream(_) => String::new(),
    };
    Words { status, body }
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
