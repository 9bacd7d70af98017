//! Failover and failback in the configuration: defaults, what is refused.

use super::*;
use crate::config::failover::{FailbackConfig, FailoverConfig};

#[test]
fn a_standby_takes_over_after_5_s_below_half_and_gives_back_after_60_s() {
    let config = load_text(ONE_UPSTREAM).unwrap().config;
    let expected = FailoverConfig {
        min_healthy: Ratio(0.5),
        after: Span::secs(5),
        lease_ttl: Span::secs(3),
        shared_database: false,
    };
    let back = FailbackConfig {
        after: Span::secs(60),
    };
    assert_eq!((config.failover, config.failback), (expected, back));
}

#[test]
fn every_key_is_taken_and_printed_so_that_it_loads_again() {
    let loaded = load_text(&format!(
        "{ONE_UPSTREAM}failover: {{min_healthy: 100%, after: 0s, lease_ttl: 60s, shared_database: true}}\nfailback: {{after: 1d}}"
    ))
    .unwrap();
    let failover = FailoverConfig {
        min_healthy: Ratio(1.0),
        after: Span::secs(0),
        lease_ttl: Span::secs(60),
        shared_database: true,
    };
    assert_eq!(loaded.config.failover, failover);
    assert_eq!(loaded.config.failback.after, Span::secs(86_400));
    assert_eq!(loaded.warnings(), Vec::<String>::new());
    assert_eq!(load_text(&loaded.print()).unwrap().config, loaded.config);
}

#[test]
fn what_makes_no_sense_is_refused_with_its_place_and_bounds() {
    for (text, expected) in [
        (
            "failover: {min_healthy: 0%}",
            "failover.min_healthy: must be from 1% to 100%",
        ),
        ("failover: {min_healthy: 101%}", "failover.min_healthy"),
        ("failover: {after: 61m}", "failover.after: must be from 0s to 1h"),
        (
            "failover: {lease_ttl: 999ms}",
            "failover.lease_ttl: must be from 1s to 1m",
        ),
        (
            "failover: {lease_ttl: 61s}",
            "failover.lease_ttl: must be from 1s to 1m",
        ),
        ("failover: {enabled: true}", "enabled"),
        ("failback: {after: 25h}", "failback.after: must be from 0s to 1d"),
        ("failback: {min_healthy: 50%}", "min_healthy"),
    ] {
        let error = refusal(text);
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn two_clusters_about_which_instances_cannot_agree_are_a_warning() {
    let text = "upstreams: {api: {replicas: [{url: 'http://a:1'}], standby: [{url: 'http://b:1'}]}}\n";
    let warnings = load_text(text).unwrap().warnings().join("\n");
    assert!(
        warnings.contains("upstreams.api.standby: this instance decides alone"),
        "{warnings}"
    );
    let redis = format!("{text}cache: {{type: redis, redis: {{url: \"redis://r\"}}}}\n");
    assert_eq!(load_text(&redis).unwrap().warnings(), Vec::<String>::new());
}
