//! What becomes of a request by what it asks for, and what its answer then tells.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use moka::sync::Cache;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::budget::{ClientBudgets, Payer, Rate, RetryAfter};
use super::known::Known;
use super::known_ids::Sink as _;
use super::lookups::{Looked, Lookups};
use super::metrics::GuardMetrics;
use super::not_found::NotFound;
use super::refusal::{self, Presence, Refusal, Stamp};
use crate::config::GuardMode;
use crate::types::Body;
use crate::types::ids::Principal;
use crate::types::known::{IdKind, KnownId};
use crate::types::outcome::{CacheOutcome, Outcome};
use crate::types::request::{Asked, Asks, ClassifiedRequest, Client, Decision};
use crate::types::time::Clock;

/// For how long a success or a refusal shows that Dify lets a principal come to look for things on a route.
const ADMITTED: Duration = Duration::from_secs(60);
/// The most principals and routes of which that is remembered.
const MOST_ADMITTED: u64 = 100_000;
/// Clients whose unknown things are counted apart.
const MOST_CLIENTS: usize = 1 << 16;
/// For how long the fields that all of Dify's answers carry are believed.
const STAMPED: Duration = Duration::from_secs(60);

/// Told of what Dify's answers show and was not known here.
pub(super) type OnLearnt = Box<dyn Fn(IdKind, KnownId) + Send + Sync>;

/// What all clones of the guard have in common.
pub(super) struct Shared {
    pub(super) mode: GuardMode,
    pub(super) known: Arc<Known>,
    pub(super) lookups: Option<Arc<Lookups>>,
    budgets: ClientBudgets,
    pub(super) not_found: NotFound,
    admitted: Cache<(Option<Principal>, &'static str), Instant, ahash::RandomState>,
    stamp: ArcSwapOption<(Stamp, Instant)>,
    /// Whether answers tell of ids.
    pub(super) learns: bool,
    on_learnt: Option<OnLearnt>,
    pub(super) clock: Clock,
    pub(super) metrics: GuardMetrics,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

/// What is configured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Unknown things that one client may ask for in a minute.
    pub(super) unknown_per_minute: u32,
    /// For how long it is remembered that something is missing.
    pub(super) not_found: Duration,
}

/// What was found out about a request.
#[derive(Debug)]
pub(super) struct Verdict {
    /// What Dify would answer, if that is sure.
    pub(super) refused: Option<Refused>,
    /// What it asks for and nobody knows, or what is missing without Dify's words for it.
    pub(super) unsure: Asks,
}

/// A request that asks for what does not exist.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) kind: IdKind,
    pub(super) answer: Response<Body>,
    /// The length of what Dify would say.
    length: u64,
}

impl Shared {
    pub(super) fn new(
        mode: GuardMode,
        known: Arc<Known>,
        lookups: Option<Arc<Lookups>>,
        limits: Limits,
        learns: bool,
        clock: Clock,
        metrics: GuardMetrics,
    ) -> Self {
        let rate = Rate {
            tokens: limits.unknown_per_minute,
            period: Duration::from_secs(60),
        };
        Self {
            mode,
            known,
            lookups,
            budgets: ClientBudgets::new(rate, MOST_CLIENTS, clock.now().monotonic),
            not_found: NotFound::new(limits.not_found),
            admitted: Cache::builder()
                .max_capacity(MOST_ADMITTED)
                .build_with_hasher(ahash::RandomState::new()),
            stamp: ArcSwapOption::empty(),
            learns,
            on_learnt: None,
            clock,
            metrics,
        }
    }

    /// Tells `on_learnt` of what is new.
    pub(super) fn telling(mut self, on_learnt: OnLearnt) -> Self {
        self.on_learnt = Some(on_learnt);
        self
    }

    /// Whether everything that a request asks for is known: then there is nothing to decide.
    pub(super) fn knows(&self, decision: &Decision) -> bool {
        let has = |asked: &Asked| self.known.has(asked.kind, &asked.id);
        decision.misnamed.is_none() && decision.asks.iter().all(has)
    }

    /// Decides about a request that asks for something that is not known.
    pub(super) async fn judge(&self, parts: &Parts, decision: &Decision, client: Client) -> Verdict {
        let payer = self.payer(decision, client);
        let mut presences: SmallVec<[Presence; 4]> = SmallVec::new();
        let mut unsure = Asks::new();
        for asked in &decision.asks {
            // Behind the first that is missing nothing more need be found out.
            let presence = match presences.contains(&Presence::Missing) {
                false => self.presence(*asked, decision, payer).await,
                true if self.known.has(asked.kind, &asked.id) => Presence::Exists,
                true => Presence::Unsure,
            };
            if presence == Presence::Unsure {
                unsure.push(*asked);
            }
            presences.push(presence);
        }
        let now = self.clock.now().monotonic;
        let refused = self.stamp(now).and_then(|stamp| {
            let (kind, answer) = if let Some(kind) = decision.misnamed {
                let armed = self.known.is_armed(kind, now);
                (kind, refusal::no_route(parts, &stamp.0).filter(|_| armed)?)
            } else {
                let place = |asked: &Asked| decision.asks.iter().position(|other| other == asked);
                let presence =
                    |asked: &Asked| place(asked).map_or(Presence::Unsure, |place| presences[place]);
                let (asked, refusal) = refusal::find(decision.template, &decision.asks, &stamp.0, presence)?;
                if refusal.needs_admission() && !self.is_admitted(decision.principal, decision.template, now)
                {
                    return None;
                }
                (asked.kind, refusal.answer(parts, &stamp.0)?)
            };
            let length = length_of(answer.headers())?;
            Some(Refused { kind, answer, length })
        });
        if refused.is_none() {
            // What Dify has to say is not known, and then it costs Dify as much as what nobody knows.
            let missing = decision.asks.iter().zip(&presences);
            let missing = missing.filter(|(_, presence)| **presence == Presence::Missing);
            unsure.extend(missing.map(|(asked, _)| *asked));
        }
        match &refused {
            Some(_) => self.metrics.missing.inc(),
            None if unsure.is_empty() => self.metrics.known.inc(),
            None => self.metrics.unsure.inc(),
        }
        Verdict { refused, unsure }
    }

    /// Whether Dify has a thing.
    async fn presence(&self, asked: Asked, decision: &Decision, payer: Payer) -> Presence {
        let (whose, template) = (decision.principal, decision.template);
        if self.known.has(asked.kind, &asked.id) {
            return Presence::Exists;
        }
        let now = self.clock.now().monotonic;
        if !self.known.is_armed(asked.kind, now) {
            return match self.not_found.has(asked, whose, template, now) {
                true => Presence::Missing,
                false => Presence::Unsure,
            };
        }
        let Some(lookups) = &self.lookups else {
            return Presence::Missing;
        };
        match lookups.look(asked.kind, asked.id, payer).await {
            Looked::Exists => {
                self.metrics.found.inc();
                self.known.add(asked.kind, &[asked.id]);
                self.tell(asked.kind, asked.id);
                Presence::Exists
            }
            Looked::Missing => {
                self.metrics.not_found.inc();
                Presence::Missing
            }
            Looked::NoBudget => {
                self.metrics.no_budget.inc();
                Presence::Missing
            }
            Looked::Unsure => {
                self.metrics.lookup_failed.inc();
                Presence::Unsure
            }
        }
    }

    /// Takes one of the things that nobody knows from what the client may ask for.
    pub(super) fn may_ask(&self, decision: &Decision, client: Client) -> Result<(), RetryAfter> {
        let payer = self.payer(decision, client);
        self.budgets.take(payer, self.clock.now().monotonic)
    }

    /// Whose budgets a request uses.
    fn payer(&self, decision: &Decision, client: Client) -> Payer {
        // Whoever makes up credentials is another principal each time.
        let has_key = decision.asks.iter().any(|asked| {
            matches!(asked.kind, IdKind::AppKey | IdKind::DatasetKey) && self.known.has(asked.kind, &asked.id)
        });
        let principal = decision.principal.filter(|_| has_key);
        Payer::of(principal, client.ip())
    }

    /// What the answer to a request that went on tells.
    pub(super) fn hear(&self, sent: &Sent, answer: &Response<Body>) {
        let now = self.clock.now().monotonic;
        let status = answer.status();
        let whose = sent.principal;
        if let Some((status_then, length)) = sent.would_be {
            let same =
                status == status_then && length_of(answer.headers()).is_none_or(|there| there == length);
            if !same {
                self.metrics.false_refusals.inc();
                tracing::warn!(
                    route = sent.template,
                    status = status.as_u16(),
                    expected = status_then.as_u16(),
                    "the guard would have refused what Dify answers in another way"
                );
            }
        }
        let told = |asked: &Asked| refusal::of(sent.template, asked.kind).map(Refusal::status);
        // A stored one may be of a time when there was such a thing.
        if status.is_success() && is_fresh(answer) {
            // Of a few things Dify says with a success that they are missing.
            let exist = sent
                .unsure
                .iter()
                .filter(|asked| !told(asked).is_some_and(|status| status.is_success()));
            exist.for_each(|asked| self.learn(asked.kind, asked.id, false));
        }
        let refused = sent.unsure.iter().find(|asked| told(asked) == Some(status));
        if let Some(asked) = refused.filter(|_| sent.unsure.len() == 1 && !status.is_success()) {
            self.not_found.remember(*asked, whose, sent.template, now);
        }
        if status.is_success() || status == StatusCode::NOT_FOUND {
            self.admit(whose, sent.template, now);
        }
        self.take_stamp(sent, answer, now);
    }

    /// There is such a thing. One that may be new (`is_new`) is told even if a filter seems to have it: the filters of
    /// others need not.
    pub(super) fn learn(&self, kind: IdKind, id: KnownId, is_new: bool) {
        let has = self.known.has(kind, &id);
        if has && !is_new {
            return;
        }
        let is_news = self.known.learn(kind, id);
        if !has {
            self.metrics.learned.inc();
        }
        if is_news {
            self.tell(kind, id);
        }
    }

    fn tell(&self, kind: IdKind, id: KnownId) {
        if let Some(on_learnt) = &self.on_learnt {
            on_learnt(kind, id);
        }
    }

    fn is_admitted(&self, whose: Option<Principal>, template: &'static str, now: Instant) -> bool {
        let until = self.admitted.get(&(whose, template));
        until.is_some_and(|until| now < until)
    }

    fn admit(&self, whose: Option<Principal>, template: &'static str, now: Instant) {
        if refusal::is_admission(template) {
            self.admitted.insert((whose, template), now + ADMITTED);
        }
    }

    fn stamp(&self, now: Instant) -> Option<Arc<(Stamp, Instant)>> {
        self.stamp
            .load_full()
            .filter(|stamp| now < stamp.1 + STAMPED * 10)
    }

    /// Looks at fresh answers of the service API now and then.
    fn take_stamp(&self, sent: &Sent, answer: &Response<Body>, now: Instant) {
        let Some(fields) = &sent.fields else { return };
        if let (true, Some(stamp)) = (is_fresh(answer), Stamp::of(fields, answer.headers())) {
            self.stamp.store(Some(Arc::new((stamp, now))));
        }
    }

    fn wants_stamp(&self, template: &str) -> bool {
        let now = self.clock.now().monotonic;
        template.starts_with("/v1/")
            && self
                .stamp
                .load()
                .as_ref()
                .is_none_or(|stamp| now >= stamp.1 + STAMPED)
    }
}

/// What has to be remembered of a request until its answer.
#[derive(Debug)]
pub(super) struct Sent {
    template: &'static str,
    principal: Option<Principal>,
    unsure: Asks,
    /// The status and the length of the refusal that it did not get.
    would_be: Option<(StatusCode, u64)>,
    /// Its fields, when the answer's are to be believed.
    fields: Option<HeaderMap>,
}

impl Sent {
    /// `None` when the answer can tell nothing.
    pub(super) fn of(shared: &Shared, request: &ClassifiedRequest, verdict: Verdict) -> Option<Self> {
        let decision = &request.decision;
        let fields = shared
            .wants_stamp(decision.template)
            .then(|| request.parts.headers.clone());
        let would_be = verdict
            .refused
            .map(|refused| (refused.answer.status(), refused.length));
        let admission = refusal::is_admission(decision.template);
        let tells = !verdict.unsure.is_empty() || would_be.is_some() || fields.is_some() || admission;
        tells.then_some(Self {
            template: decision.template,
            principal: decision.principal,
            unsure: verdict.unsure,
            would_be,
            fields,
        })
    }
}

impl Refused {
    /// The answer, with what the log and the metrics say of it.
    pub(super) fn answered(self, decision: &Decision) -> Response<Body> {
        let mut answer = self.answer;
        let fields = answer.headers_mut();
        fields.insert(
            "cache-status",
            HeaderValue::from_static("dify-edge; fwd=bypass; detail=guard"),
        );
        answer.extensions_mut().insert(decision.outcome());
        answer
    }
}

impl Verdict {
    /// Of a request of which everything is known.
    pub(super) fn none() -> Self {
        Self {
            refused: None,
            unsure: Asks::new(),
        }
    }
}

/// Whether Dify itself has just given this answer.
pub(super) fn is_fresh(answer: &Response<Body>) -> bool {
    let outcome = answer.extensions().get::<Outcome>();
    outcome.is_some_and(|outcome| {
        matches!(
            outcome.cache,
            CacheOutcome::Stored | CacheOutcome::Miss | CacheOutcome::Bypass
        )
    })
}

fn length_of(fields: &HeaderMap) -> Option<u64> {
    fields
        .get(http::header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}
