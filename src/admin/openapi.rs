//! `/openapi.json`: the description of this listener for tools. The text is written by hand; tests hold it against
//! the routes and the types.

use http::StatusCode;

use super::answer::{self, Answer};

/// The document, but for the version of the program.
const DOCUMENT: &str = include_str!("openapi.json");

pub(super) fn page() -> Answer {
    answer::answer(StatusCode::OK, "application/json", text())
}

fn text() -> String {
    DOCUMENT.replacen("{version}", env!("CARGO_PKG_VERSION"), 1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde::Serialize;
    use serde_json::{Value, json};

    use super::*;
    use crate::admin::cache::PurgeAnswer;
    use crate::admin::failover::SteerAnswer;
    use crate::admin::routes::ROUTES;
    use crate::cache::control::{CacheStats, EntryStatus, SharedStats};
    use crate::config::upstreams::BalancePolicy;
    use crate::routing::control::{
        BreakerState, Cause, FailoverStatus, FirstByte, LastError, LastShift, Mode, Parts, ReplicaStatus,
        Sight, Steered, UpstreamStatus,
    };
    use crate::types::cluster::{Cluster, Epoch};

    fn document() -> Value {
        serde_json::from_str(&text()).unwrap()
    }

    fn keys(value: &Value) -> BTreeSet<&str> {
        value.as_object().unwrap().keys().map(String::as_str).collect()
    }

    #[test]
    fn what_is_served_and_what_is_described_are_the_same() {
        let document = document();
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
        let described: BTreeSet<_> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, item)| keys(item).into_iter().map(move |method| (path.as_str(), method)))
            .collect();
        let served = ROUTES
            .iter()
            .map(|route| (route.path, if route.writes { "post" } else { "get" }));
        assert_eq!(described, served.collect());
        for route in ROUTES.iter().filter(|route| route.writes) {
            let security = &document["paths"][route.path]["post"]["security"];
            assert_eq!(security, &json!([{ "token": [] }]), "{}", route.path);
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn walk(document: &Value, value: &Value, found: &mut usize) {
            if let Some(target) = value.get("$ref").and_then(Value::as_str) {
                assert!(document.pointer(&target[1..]).is_some(), "{target}");
                *found += 1;
            }
            let children: Vec<_> = match value {
                Value::Array(items) => items.iter().collect(),
                Value::Object(entries) => entries.values().collect(),
                _ => Vec::new(),
            };
            children
                .into_iter()
                .for_each(|child| walk(document, child, found));
        }
        let (document, mut found) = (document(), 0);
        walk(&document, &document, &mut found);
        assert!(found > 10, "{found}");
    }

    /// The schema of this name has the fields of this value, all of them required.
    fn agrees<T: Serialize>(name: &str, value: T) {
        let (document, value) = (document(), serde_json::to_value(value).unwrap());
        let schema = &document["components"]["schemas"][name];
        assert_eq!(keys(&schema["properties"]), keys(&value), "{name}");
        let required: BTreeSet<_> = schema["required"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_str)
            .collect();
        assert_eq!(required, keys(&value), "{name}");
    }

    #[test]
    fn words_that_are_described_are_those_that_are_said() {
        let document = document();
        let schemas = &document["components"]["schemas"];
        assert_eq!(schemas["Cluster"]["enum"], json!(Cluster::ALL));
        let modes = [Mode::Auto, Mode::Primary, Mode::Standby];
        assert_eq!(schemas["Mode"]["enum"], json!(modes));
        assert_eq!(
            schemas["LastShift"]["properties"]["cause"]["enum"],
            json!(Cause::ALL)
        );
    }

    #[test]
    fn schemas_have_the_fields_of_the_types() {
        agrees(
            "PurgeAnswer",
            PurgeAnswer {
                entries: 0,
                soft: false,
                instances: None,
            },
        );
        agrees(
            "UpstreamStatus",
            UpstreamStatus {
                name: String::new(),
                protocol: crate::config::UpstreamProtocol::H2c,
                policy: BalancePolicy::RoundRobin,
                lanes: Vec::new(),
                load_variance: 0.0,
                load_variance_threshold: 0.0,
                failover: None,
                replicas: Vec::new(),
            },
        );
        agrees(
            "FailoverStatus",
            FailoverStatus {
                epoch: None,
                active: Cluster::Primary,
                mode: Mode::Auto,
                writes: true,
                instance: String::new(),
                holder: None,
                holds_lease: false,
                confirmed_ms_ago: None,
                trouble: None,
                healthy: None,
                healthy_here: None,
                owners: 0,
                last_shift: None,
            },
        );
        let sight = Sight {
            primary: 1.0,
            standby: 0.0,
        };
        agrees("Sight", sight);
        agrees(
            "LastShift",
            LastShift {
                cause: Cause::Start,
                by: String::new(),
                at_ms: 0,
                seconds_ago: 0,
            },
        );
        agrees(
            "Steered",
            Steered {
                upstream: String::new(),
                epoch: Epoch::FIRST,
                before: Cluster::Primary,
                active: Cluster::Primary,
                mode: Mode::Auto,
                healthy: None,
            },
        );
        agrees(
            "SteerAnswer",
            SteerAnswer {
                upstreams: Vec::new(),
            },
        );
        agrees(
            "ReplicaStatus",
            ReplicaStatus {
                url: String::new(),
                zone: None,
                labels: Default::default(),
                leaving: false,
                standby: false,
                healthy: true,
                in_flight: 0,
                slots: 0,
                score: 1.0,
                score_parts: Parts::of(&Default::default()),
                consecutive_failures: 0,
                breaker: BreakerState::Closed,
                half_open_in_ms: None,
                first_byte: None,
                last_error: None,
                addresses: Vec::new(),
            },
        );
        agrees(
            "FirstByte",
            FirstByte {
                answers: 0,
                p50_ms: 0.0,
                p99_ms: 0.0,
            },
        );
        agrees(
            "LastError",
            LastError {
                kind: "",
                detail: "".into(),
                seconds_ago: 0,
            },
        );
        agrees(
            "CacheStats",
            CacheStats {
                hits: 0,
                misses: 0,
                l2: None,
                entries: 0,
                bytes: 0,
                max_bytes: 0,
                evicted_for_size: 0,
                evicted_by_age: 0,
                coalesced: 0,
                flights: 0,
                invalidations: 0,
                unsettled_writes: 0,
                stale_while_revalidate: 0,
                stale_if_error: 0,
                refreshed: 0,
                refreshes_failed: 0,
                refreshes_skipped: 0,
                purges: 0,
            },
        );
        agrees(
            "SharedStats",
            SharedStats {
                open: false,
                heard: false,
                hits: 0,
                misses: 0,
                errors: 0,
                deadline_exceeded: 0,
                skipped: 0,
                bytes_read: 0,
                bytes_written: 0,
                writes: 0,
                writes_dropped: 0,
                unreadable: 0,
                invalidations_sent: 0,
                invalidations_heard: 0,
                gaps: 0,
                flights_led: 0,
                flights_followed: 0,
            },
        );
        agrees(
            "EntryStatus",
            EntryStatus {
                key: String::new(),
                route: "*",
                state: "fresh",
                status: 200,
                body_bytes: 0,
                bytes: 0,
                age: 0,
                ttl: 0,
                stale_while_revalidate: 0,
                stale_if_error: 0,
                refresh_failed: false,
            },
        );
    }
}
