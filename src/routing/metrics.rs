//! What routing counts. Labels are names of the configuration and closed words, so their number is bounded.
//!
//! Handles are resolved when the replicas are set up. Connections are counted by the stage that owns them.

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};

use super::balance::spread::THRESHOLD;
use super::breaker::BreakerState;
use super::failover::FailoverMetrics;
use crate::types::FailureKind;
use crate::types::request::Lane;

/// Metrics of replicas and queues.
#[derive(Debug, Clone)]
pub struct RoutingMetrics {
    in_flight: IntGaugeVec,
    slots: IntGaugeVec,
    healthy: IntGaugeVec,
    queue: IntGaugeVec,
    wait: HistogramVec,
    shed: IntCounterVec,
    dispatches: IntCounterVec,
    breaker: IntGaugeVec,
    transitions: IntCounterVec,
    scrapes: IntCounterVec,
    changes: IntCounterVec,
    discovery: IntCounterVec,
    score: GaugeVec,
    load_variance: GaugeVec,
    pub(super) failover: FailoverMetrics,
}

/// Handles for one lane of an upstream.
#[derive(Debug)]
pub(super) struct LaneMetrics {
    pub(super) queue: IntGauge,
    pub(super) wait: Histogram,
    pub(super) shed: IntCounter,
}

/// Handles for one replica.
#[derive(Debug)]
pub(super) struct ReplicaMetrics {
    pub(super) in_flight: IntGauge,
    pub(super) slots: IntGauge,
    pub(super) healthy: IntGauge,
    pub(super) score: Gauge,
    dispatches: [IntCounter; RESULTS.len()],
    changes: [IntCounter; ReplicaChange::ALL.len()],
}

/// What may happen to a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReplicaChange {
    Healthy,
    Unhealthy,
    NewAddresses,
}

impl ReplicaChange {
    /// Every change, in declaration order.
    const ALL: [Self; 3] = [Self::Healthy, Self::Unhealthy, Self::NewAddresses];

    fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::NewAddresses => "new_addresses",
        }
    }
}

/// Bounds of waits, seconds; those who did not wait are in the first.
const WAITS: [f64; 9] = [0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 2.0, 5.0, 15.0];

/// Handles for the breaker of one replica.
#[derive(Debug)]
pub(super) struct BreakerMetrics {
    state: IntGauge,
    transitions: [IntCounter; BreakerState::ALL.len()],
}

/// The closed list of how a dispatch ends.
const RESULTS: [&str; 7] = [
    "ok",
    "connect_failed",
    "connect_timeout",
    "timeout",
    "reset",
    "other",
    "replica_unhealthy",
];

/// How a scrape ends.
const SCRAPE_RESULTS: [&str; 2] = ["ok", "failed"];

/// What may happen in finding replicas by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DiscoveryEvent {
    /// A replica is new.
    Appeared,
    /// A replica is no longer named and gets nothing new.
    Leaves,
    /// A replica that leaves is named again.
    Returned,
    /// A replica has ended what it had begun.
    Left,
    /// Nobody can be found.
    Failed,
    /// Somebody can again.
    Recovered,
}

impl DiscoveryEvent {
    /// Every event, in declaration order.
    const ALL: [Self; 6] = [
        Self::Appeared,
        Self::Leaves,
        Self::Returned,
        Self::Left,
        Self::Failed,
        Self::Recovered,
    ];

    /// The word used in metrics and logs.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Appeared => "appeared",
            Self::Leaves => "leaves",
            Self::Returned => "returned",
            Self::Left => "left",
            Self::Failed => "failed",
            Self::Recovered => "recovered",
        }
    }
}

/// Handles for the replicas of one upstream that are found by name.
#[derive(Debug)]
pub(super) struct DiscoveryMetrics([IntCounter; DiscoveryEvent::ALL.len()]);

impl DiscoveryMetrics {
    /// Counts an event.
    pub(super) fn count(&self, event: DiscoveryEvent) {
        self.0[event as usize].inc();
    }
}

/// Which of [`RESULTS`] a failure is.
fn result(failure: FailureKind) -> usize {
    match failure {
        FailureKind::ConnectFailed => 1,
        FailureKind::ConnectTimeout => 2,
        FailureKind::UpstreamTimeout => 3,
        FailureKind::UpstreamReset => 4,
        _ => 5,
    }
}

/// The word for a dispatch that ended with such a failure.
pub(super) fn word(failure: FailureKind) -> &'static str {
    RESULTS[result(failure)]
}

impl RoutingMetrics {
    /// Creates the metrics and enters them into `registry`.
    ///
    /// # Errors
    /// When `registry` holds metrics of these names already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str, labels: &[&str]| -> Result<IntGaugeVec, prometheus::Error> {
            let gauge = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let replica = ["upstream", "replica"];
        let dispatches = IntCounterVec::new(
            Opts::new(
                "dify_edge_upstream_dispatch_total",
                "Attempts sent to a replica, by how they ended.",
            ),
            &["upstream", "replica", "result"],
        )?;
        registry.register(Box::new(dispatches.clone()))?;
        let lane = ["upstream", "lane"];
        let wait = HistogramOpts::new(
            "dify_edge_upstream_queue_wait_seconds",
            "For how long requests waited for a slot of an upstream.",
        );
        let wait = HistogramVec::new(wait.buckets(WAITS.to_vec()), &lane)?;
        registry.register(Box::new(wait.clone()))?;
        let shed = Opts::new(
            "dify_edge_upstream_shed_total",
            "Requests that got 503 because too many of their lane waited.",
        );
        let shed = IntCounterVec::new(shed, &lane)?;
        registry.register(Box::new(shed.clone()))?;
        let transitions = IntCounterVec::new(
            Opts::new(
                "dify_edge_breaker_transitions_total",
                "Changes of a replica's circuit breaker, by the state that it came to.",
            ),
            &["upstream", "replica", "to"],
        )?;
        registry.register(Box::new(transitions.clone()))?;
        let scrapes = Opts::new(
            "dify_edge_upstream_scrapes_total",
            "Scrapes of a replica's resources, by how they ended.",
        );
        let scrapes = IntCounterVec::new(scrapes, &["upstream", "replica", "result"])?;
        registry.register(Box::new(scrapes.clone()))?;
        let changes = IntCounterVec::new(
            Opts::new(
                "dify_edge_replica_transitions_total",
                "Changes of a replica, by what it came to.",
            ),
            &["upstream", "replica", "to"],
        )?;
        registry.register(Box::new(changes.clone()))?;
        let discovery = IntCounterVec::new(
            Opts::new(
                "dify_edge_upstream_discovery_total",
                "What happened in finding the replicas of an upstream by name.",
            ),
            &["upstream", "event"],
        )?;
        registry.register(Box::new(discovery.clone()))?;
        let score = GaugeVec::new(
            Opts::new(
                "dify_edge_upstream_score",
                "How well a replica serves, from 0 to 1.",
            ),
            &replica,
        )?;
        registry.register(Box::new(score.clone()))?;
        let load_variance = GaugeVec::new(
            Opts::new(
                "dify_edge_upstream_load_variance",
                "Population variance of the shares of slots in use, in percent squared.",
            ),
            &["upstream"],
        )?;
        registry.register(Box::new(load_variance.clone()))?;
        let threshold = Gauge::new(
            "dify_edge_upstream_load_variance_threshold",
            "The variance above which balancing by health leans against the spread.",
        )?;
        threshold.set(THRESHOLD);
        registry.register(Box::new(threshold))?;
        Ok(Self {
            in_flight: gauge(
                "dify_edge_upstream_in_flight",
                "Requests in flight at a replica.",
                &replica,
            )?,
            slots: gauge(
                "dify_edge_upstream_slots",
                "Requests that may be in flight at a replica.",
                &replica,
            )?,
            healthy: gauge(
                "dify_edge_upstream_healthy",
                "1 while a replica is healthy.",
                &replica,
            )?,
            queue: gauge(
                "dify_edge_upstream_queue_length",
                "Requests that wait for a slot of an upstream.",
                &lane,
            )?,
            wait,
            shed,
            dispatches,
            breaker: gauge(
                "dify_edge_breaker_state",
                "A replica's circuit breaker: 0 closed, 1 half open, 2 open.",
                &replica,
            )?,
            transitions,
            scrapes,
            changes,
            discovery,
            score,
            load_variance,
            failover: FailoverMetrics::register(registry)?,
        })
    }

    pub(super) fn replica(&self, upstream: &str, replica: &str) -> ReplicaMetrics {
        let healthy = self.healthy.with_label_values(&[upstream, replica]);
        healthy.set(1);
        ReplicaMetrics {
            in_flight: self.in_flight.with_label_values(&[upstream, replica]),
            slots: self.slots.with_label_values(&[upstream, replica]),
            healthy,
            score: self.score.with_label_values(&[upstream, replica]),
            dispatches: RESULTS.map(|r| self.dispatches.with_label_values(&[upstream, replica, r])),
            changes: ReplicaChange::ALL
                .map(|to| self.changes.with_label_values(&[upstream, replica, to.as_str()])),
        }
    }

    /// Ends the series of a replica that is gone.
    pub(super) fn forget(&self, upstream: &str, replica: &str) {
        let labels = &[upstream, replica];
        // An error says that there is none, which is what is wanted.
        let _ = self.in_flight.remove_label_values(labels);
        let _ = self.slots.remove_label_values(labels);
        let _ = self.healthy.remove_label_values(labels);
        let _ = self.score.remove_label_values(labels);
        let _ = self.breaker.remove_label_values(labels);
        for result in SCRAPE_RESULTS {
            let _ = self.scrapes.remove_label_values(&[upstream, replica, result]);
        }
        for result in RESULTS {
            let _ = self.dispatches.remove_label_values(&[upstream, replica, result]);
        }
        for to in ReplicaChange::ALL {
            let _ = self
                .changes
                .remove_label_values(&[upstream, replica, to.as_str()]);
        }
        for state in BreakerState::ALL {
            let _ = self
                .transitions
                .remove_label_values(&[upstream, replica, state.as_str()]);
        }
    }

    /// Counters of a replica's scrapes: those that worked, and the others.
    pub(super) fn scrapes(&self, upstream: &str, replica: &str) -> [IntCounter; 2] {
        SCRAPE_RESULTS.map(|result| self.scrapes.with_label_values(&[upstream, replica, result]))
    }

    pub(super) fn lanes(&self, upstream: &str) -> [LaneMetrics; Lane::ALL.len()] {
        Lane::ALL.map(|lane| {
            let labels = &[upstream, lane.as_str()];
            LaneMetrics {
                queue: self.queue.with_label_values(labels),
                wait: self.wait.with_label_values(labels),
                shed: self.shed.with_label_values(labels),
            }
        })
    }

    pub(super) fn discovery(&self, upstream: &str) -> DiscoveryMetrics {
        let counter = |event: DiscoveryEvent| self.discovery.with_label_values(&[upstream, event.as_str()]);
        DiscoveryMetrics(DiscoveryEvent::ALL.map(counter))
    }

    pub(super) fn load_variance(&self, upstream: &str) -> Gauge {
        self.load_variance.with_label_values(&[upstream])
    }

    pub(super) fn breaker(&self, upstream: &str, replica: &str) -> BreakerMetrics {
        BreakerMetrics {
            state: self.breaker.with_label_values(&[upstream, replica]),
            transitions: BreakerState::ALL.map(|to| {
                self.transitions
                    .with_label_values(&[upstream, replica, to.as_str()])
            }),
        }
    }
}

impl BreakerMetrics {
    /// Counts a change and shows the new state.
    pub(super) fn came_to(&self, state: BreakerState) {
        self.state.set(state as i64);
        self.transitions[state as usize].inc();
    }
}

impl ReplicaMetrics {
    /// Counts a dispatch; `None` is an answer.
    pub(super) fn dispatched(&self, failure: Option<FailureKind>) {
        self.dispatches[failure.map_or(0, result)].inc();
    }

    /// Counts a change.
    pub(super) fn came_to(&self, change: ReplicaChange) {
        self.changes[change as usize].inc();
    }

    /// Counts a dispatch that was ended because the replica had become unhealthy.
    pub(super) fn ended(&self) {
        self.dispatches[6].inc();
    }
}
