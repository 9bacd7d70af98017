//! The circuit breaker in the configuration: defaults, what is refused.

use super::*;
use crate::config::BreakerConfig;

/// Loads a file with these keys under `circuit_breaker`, and the default upstream.
fn breaker(keys: &str) -> Result<Loaded, String> {
    load_text(&format!("circuit_breaker: {{{keys}}}"))
}

#[test]
fn there_is_one_unless_it_is_switched_off() {
    let config = load_text(ONE_UPSTREAM).unwrap().config.circuit_breaker;
    assert_eq!(config, BreakerConfig::default());
    assert!(config.enabled && !config.count_500);
    let off = breaker("enabled: false").unwrap();
    assert!(!off.config.circuit_breaker.enabled);
    assert_eq!(off.warnings(), Vec::<String>::new());
    assert_eq!(load_text(&off.print()).unwrap().config, off.config);
}

#[test]
fn every_key_is_taken_and_printed_so_that_it_loads_again() {
    let loaded = breaker(
        "enabled: true, failure_threshold: 25%, request_volume: 7, window: 10s, sleep_window: 5s, \
         half_open_requests: 2, close_after: 4, count_500: true",
    )
    .unwrap();
    let expected = BreakerConfig {
        enabled: true,
        failure_threshold: Ratio(0.25),
        request_volume: 7,
        window: Span::secs(10),
        sleep_window: Span::secs(5),
        half_open_requests: 2,
        close_after: 4,
        count_500: true,
    };
    assert_eq!(loaded.config.circuit_breaker, expected);
    assert_eq!(load_text(&loaded.print()).unwrap().config, loaded.config);
    // Without `window`, `half_open_requests` and `close_after`: they have defaults.
    let short =
        breaker("enabled: true, failure_threshold: 50%, request_volume: 20, sleep_window: 30s").unwrap();
    assert_eq!(short.config.circuit_breaker, BreakerConfig::default());
    assert_eq!(short.warnings(), Vec::<String>::new());
}

#[test]
fn what_makes_no_sense_is_refused_with_its_bounds() {
    for (keys, message) in [
        (
            "failure_threshold: 0%",
            "failure_threshold: must be from 1% to 100%, and is 0%",
        ),
        (
            "failure_threshold: 0.001",
            "failure_threshold: must be from 1% to 100%, and is 0.1%",
        ),
        ("failure_threshold: 120%", "failure_threshold: "),
        ("request_volume: 0", "request_volume: "),
        ("request_volume: 1000001", "request_volume: "),
        ("window: 999ms", "window: must be from 1s to 1h, and is 999ms"),
        ("window: 2h", "window: must be from 1s to 1h, and is 2h"),
        (
            "sleep_window: 0s",
            "sleep_window: must be from 1s to 5m, and is 0s",
        ),
        (
            "sleep_window: 6m",
            "sleep_window: must be from 1s to 5m, and is 6m",
        ),
        ("half_open_requests: 0", "half_open_requests: "),
        ("close_after: 0", "close_after: "),
        ("close_after: 1001", "close_after: "),
        ("count_500: maybe", "count_500: "),
        ("failure_treshold: 50%", "failure_threshold"),
    ] {
        let refused = breaker(keys).unwrap_err();
        assert!(refused.contains(message), "{keys}: {refused}");
        assert!(refused.contains("circuit_breaker"), "{keys}: {refused}");
    }
}
