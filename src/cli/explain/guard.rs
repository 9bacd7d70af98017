//! The guard's part of an explanation: what a request asks for, whether the database has it, and what becomes of the
//! request. Decided by the guard's own code; what is here only names it.

use super::explanation::{Guard, Thing, Words};
use crate::classify::Reasons;
use crate::config::{GuardConfig, GuardMode};
use crate::guard::preview::{self, Judged};
use crate::guard::refusal::Presence;
use crate::types::ids::hex;
use crate::types::known::{IdKind, KnownId};
use crate::types::request::{Asked, ClassifiedRequest, Decision};

/// What a guard with this configuration does with a request. Asks the database, if there is one.
pub(super) fn guard(
    config: Option<&GuardConfig>,
    from: String,
    request: &ClassifiedRequest,
    reasons: &Reasons,
) -> Guard {
    let mut decision = request.decision.clone();
    decision.asks = reasons.asks.iter().map(|(asked, _)| *asked).collect();
    decision.misnamed = reasons.misnamed;
    let config = config.filter(|config| config.mode != GuardMode::Off);
    let found = look(config, &decision.asks);
    let things = reasons.asks.iter().zip(&found).map(|((asked, at), found)| {
        let (found, why) = match found {
            Ok(true) => ("exists", None),
            Ok(false) => ("missing", None),
            Err(why) => ("unknown", Some(why.clone())),
        };
        Thing {
            kind: asked.kind.as_str(),
            id: shown(asked),
            at: at.clone(),
            found,
            why,
            if_missing: preview::if_missing(&request.parts, &decision, asked).map(words),
        }
    });
    let mut guard = Guard {
        mode: match config.map(|config| config.mode) {
            None | Some(GuardMode::Off) => "off",
            Some(GuardMode::Observe) => "observe",
            Some(GuardMode::Enforce) => "enforce",
        },
        from,
        asks: things.collect(),
        verdict: "passes",
        why: "guard.mode is off: nothing is checked".into(),
        answer: None,
        conditions: Vec::new(),
    };
    if let Some(config) = config {
        judge(&mut guard, config, request, &decision, &found);
    }
    guard
}

/// For each thing whether it exists, or why that is not known.
fn look(config: Option<&GuardConfig>, asks: &[Asked]) -> Vec<Result<bool, String>> {
    let unknown = |why: &str| vec![Err(why.to_owned()); asks.len()];
    let Some(config) = config else {
        return unknown("guard.mode is off");
    };
    if config.postgres().is_none() {
        return unknown("guard.sources has no database that tells");
    }
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime
            .block_on(preview::look(config, asks))
            .unwrap_or_else(|why| unknown(&why)),
        Err(error) => unknown(&error.to_string()),
    }
}

fn judge(
    guard: &mut Guard,
    config: &GuardConfig,
    request: &ClassifiedRequest,
    decision: &Decision,
    found: &[Result<bool, String>],
) {
    let presence = |asked: &Asked| {
        let place = decision.asks.iter().position(|other| other == asked);
        match place.and_then(|place| found.get(place)) {
            Some(Ok(true)) => Presence::Exists,
            Some(Ok(false)) => Presence::Missing,
            Some(Err(_)) | None => Presence::Unsure,
        }
    };
    let Judged { refused, conditions } = preview::judge(config, &request.parts, decision, presence);
    let enforces = config.mode == GuardMode::Enforce;
    let unsure = found.iter().any(Result::is_err);
    (guard.answer, guard.conditions) = (refused.map(words), conditions);
    let missing = match decision.misnamed {
        Some(kind) => format!(
            "what its path has as the id of the {} is no UUID, and so no route has the path",
            kind.as_str()
        ),
        None => "what it asks for does not exist".into(),
    };
    (guard.verdict, guard.why) = match (&guard.answer, enforces) {
        (Some(_), true) => ("refused", missing),
        (Some(_), false) => (
            "observed",
            format!("{missing}; that is counted, and compared with what Dify answers"),
        ),
        (None, true) if unsure => ("passes_budgeted", budgeted(config)),
        (None, false) if unsure => (
            "passes",
            "nothing is refused of which it is not known whether it exists".into(),
        ),
        (None, _) if found.is_empty() => ("passes", "it asks for nothing that is guarded".into()),
        (None, _) if found.contains(&Ok(false)) => (
            "passes",
            "Dify's words were not recorded for this, or could be others for this request".into(),
        ),
        (None, _) => ("passes", "everything that it asks for exists".into()),
    };
    let remembers = !config.not_found.ttl.0.is_zero();
    if unsure && remembers && guard.asks.iter().any(|thing| thing.if_missing.is_some()) {
        let ttl = config.not_found.ttl;
        let condition =
            format!("Dify has not refused this to this caller within guard.not_found.ttl ({ttl})");
        guard.conditions.push(condition);
    }
}

fn budgeted(config: &GuardConfig) -> String {
    let most = config.unknown_per_minute;
    let counted = format!("counts against guard.unknown_per_minute ({most}), then 429");
    match config.postgres() {
        None => format!(
            "nothing is refused without the source postgres; what no answer of Dify's has shown {counted}"
        ),
        Some(_) => format!("it is not known whether what it asks for exists; that {counted}"),
    }
}

fn words(words: preview::Words) -> Words {
    Words {
        status: words.status,
        body: words.body,
    }
}

/// A UUID as it is written; of a key or code the beginning of its digest.
fn shown(asked: &Asked) -> String {
    let KnownId(bytes) = &asked.id;
    let digits = hex(bytes);
    match asked.kind {
        IdKind::AppKey | IdKind::DatasetKey | IdKind::SiteCode | IdKind::McpServer | IdKind::Webhook => {
            digits[..8].to_owned()
        }
        _ => [0..8, 8..12, 12..16, 16..20, 20..32]
            .map(|part| &digits[part])
            .join("-"),
    }
}
