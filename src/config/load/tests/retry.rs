//! Retries and hedges in the configuration: defaults, what is refused.

use super::*;
use crate::config::retry::{HedgeConfig, RetryConfig};

/// Loads an upstream with these keys.
fn upstream(text: &str) -> Result<Loaded, String> {
    load_text(&format!(
        "upstreams: {{api: {{replicas: [{{url: 'http://h:1'}}], {text}}}}}"
    ))
}

#[test]
fn three_attempts_within_a_fifth_and_no_hedges_are_the_default() {
    let config = load_text(ONE_UPSTREAM).unwrap().config;
    let upstream = config.upstreams.values().next().unwrap();
    let expected = RetryConfig {
        attempts: 3,
        budget: Ratio(0.2),
        backoff: Span::millis(25),
    };
    assert_eq!((&upstream.retry, upstream.hedge.enabled), (&expected, false));
}

#[test]
fn every_key_is_taken_and_printed_so_that_it_loads_again() {
    let loaded = upstream(
        "retry: {attempts: 1, budget: 5%, backoff: 0s}, hedge: {enabled: true, budget: 1%, percentile: 99}",
    )
    .unwrap();
    let api = &loaded.config.upstreams["api"];
    let retry = RetryConfig {
        attempts: 1,
        budget: Ratio(0.05),
        backoff: Span::millis(0),
    };
    let hedge = HedgeConfig {
        enabled: true,
        budget: Ratio(0.01),
        percentile: 99,
    };
    assert_eq!((&api.retry, &api.hedge), (&retry, &hedge));
    assert_eq!(loaded.warnings(), Vec::<String>::new());
    assert_eq!(load_text(&loaded.print()).unwrap().config, loaded.config);
}

#[test]
fn what_makes_no_sense_is_refused_with_its_place_and_bounds() {
    for (text, expected) in [
        ("retry: {attempts: 0}", "retry.attempts: must be from 1 to 10"),
        ("retry: {attempts: 11}", "retry.attempts: must be from 1 to 10"),
        ("retry: {budget: 120%}", "retry.budget"),
        ("retry: {backoff: 11s}", "retry.backoff: must be from 0s to 10s"),
        ("retry: {tries: 1}", "tries"),
        ("hedge: {budget: 0%}", "hedge.budget: must be from 0.1% to 50%"),
        ("hedge: {budget: 60%}", "hedge.budget: must be from 0.1% to 50%"),
        (
            "hedge: {percentile: 100}",
            "hedge.percentile: must be from 50 to 99",
        ),
        ("hedge: {delay: 1s}", "delay"),
    ] {
        let error = upstream(text).map(|_| ()).unwrap_err();
        assert!(error.contains(expected), "{text}: {error}");
    }
}
