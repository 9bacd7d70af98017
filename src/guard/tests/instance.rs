//! One instance as a history has it, and the messages between them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::Registry;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tower::Layer as _;

use super::database::{Source, now};
use super::dify::{Dify, KINDS};
use crate::config::GuardMode;
use crate::guard::bloom::Sizing;
use crate::guard::known::Known;
use crate::guard::lookups::Lookups;
use crate::guard::metrics::GuardMetrics;
use crate::guard::verdict::{Limits, Shared};
use crate::guard::{Guard, GuardLayer};
use crate::types::known::{IdKind, KnownId};
use crate::types::time::Clock;

/// Shorter than by default, so that histories get beyond it.
pub(super) const MAX_AGE: Duration = Duration::from_secs(60);
/// Few, so that histories use them up.
pub(super) const LOOKUPS: u32 = 5;
/// For how long an answer "not found" is remembered.
pub(super) const NOT_FOUND: Duration = Duration::from_secs(5);
/// How often an instance looks for messages, and how long they take at most: together less than a second.
const LOOKS: Duration = Duration::from_millis(250);
const SLOWEST: u64 = 700;

/// Which things are known to whom since when.
pub(super) type Since = Arc<Mutex<HashMap<(IdKind, KnownId), Instant>>>;

/// The messages, kept in their order.
pub(super) struct Messages {
    pub(super) up: bool,
    pub(super) up_since: Instant,
    log: Vec<(IdKind, KnownId, Instant)>,
}

impl Messages {
    pub(super) fn new() -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self {
            up: true,
            up_since: now(),
            log: Vec::new(),
        }))
    }

    fn send(&mut self, kind: IdKind, id: KnownId) {
        if self.up {
            let delay = Duration::from_millis(self.log.len() as u64 * 137 % SLOWEST);
            self.log.push((kind, id, now() + delay));
        }
    }

    /// What has come since the `place`-th.
    fn next(&self, place: usize) -> Option<(IdKind, KnownId)> {
        let (kind, id, at) = self.log.get(place)?;
        (self.up && *at <= now()).then_some((*kind, *id))
    }
}

pub(super) struct Instance {
    pub(super) guard: Guard<Dify>,
    pub(super) source: Arc<Source>,
    pub(super) metrics: GuardMetrics,
    pub(super) enforces: bool,
    pub(super) started_at: Instant,
    /// What it was told by others.
    pub(super) heard: Since,
    /// When it was told last that a thing of a kind is gone.
    pub(super) gone: Arc<Mutex<HashMap<IdKind, Instant>>>,
    /// When it was asked for things that it need not know.
    pub(super) asked: Vec<(Instant, KnownId)>,
    /// When Dify last answered that something is missing.
    pub(super) denied: HashMap<(IdKind, KnownId), Instant>,
    /// When an answer of the service API last came by, and one that shows that Dify looks for files.
    pub(super) stamped_at: Option<Instant>,
    pub(super) admitted_at: Option<Instant>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Instance {
    pub(super) fn start(
        dify: &Dify,
        messages: &Arc<Mutex<Messages>>,
        sizing: Sizing,
        observes: bool,
    ) -> Self {
        let metrics = GuardMetrics::register(&Registry::new()).expect("fresh registry");
        let gone: Arc<Mutex<HashMap<_, _>>> = Arc::default();
        let told = gone.clone();
        let on_gone = Box::new(move |kind| {
            told.lock().insert(kind, now());
        });
        let known = Known::new(sizing, MAX_AGE, Clock::System, on_gone);
        let kinds = [&KINDS[..], &[IdKind::DatasetKey]].concat();
        let source = Source::new(&dify.database, &known, &kinds);
        let lookups = Lookups::new(source.clone(), LOOKUPS, Clock::System);
        let limits = Limits {
            unknown_per_minute: 1_000_000,
            not_found: NOT_FOUND,
        };
        let mode = if observes {
            GuardMode::Observe
        } else {
            GuardMode::Enforce
        };
        let out = messages.clone();
        let shared = Shared::new(
            mode,
            known.clone(),
            Some(lookups),
            limits,
            true,
            Clock::System,
            metrics.clone(),
        )
        .telling(Box::new(move |kind, id| out.lock().send(kind, id)));
        let heard: Since = Arc::default();
        let mut tasks = vec![tokio::spawn(hear(messages.clone(), known, heard.clone()))];
        for kind in kinds {
            let source = source.clone();
            tasks.push(tokio::spawn(async move { source.keep(kind).await }));
        }
        Self {
            guard: GuardLayer::over(shared).layer(dify.clone()),
            source,
            metrics,
            enforces: !observes,
            started_at: now(),
            heard,
            gone,
            asked: Vec::new(),
            denied: HashMap::new(),
            stamped_at: None,
            admitted_at: None,
            tasks,
        }
    }
}

/// Reads the messages from the first on.
async fn hear(messages: Arc<Mutex<Messages>>, known: Arc<Known>, heard: Since) {
    let mut place = 0;
    loop {
        while let Some((kind, id)) = { messages.lock().next(place) } {
            known.learn(kind, id);
            heard.lock().insert((kind, id), now());
            place += 1;
        }
        tokio::time::sleep(LOOKS).await;
    }
}
