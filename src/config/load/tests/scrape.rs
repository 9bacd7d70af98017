//! Scrapes in the configuration: defaults, what is refused and where.

use super::*;

/// Loads an upstream with this scrape.
fn scrape(text: &str) -> Result<Loaded, String> {
    load_text(&format!(
        "upstreams: {{api: {{replicas: [{{url: 'http://h:1'}}], scrape: {{{text}}}}}}}"
    ))
}

#[test]
fn a_scrape_is_taken_with_its_expressions_and_printed_so_that_it_loads_again() {
    let loaded = scrape(
        "url: 'http://{host}:9100/metrics', cpu: '1 - avg(rate(node_cpu_seconds_total{mode=\"idle\"}))', \
         network: rtt_ms / 1000",
    )
    .unwrap();
    let got = loaded.config.upstreams["api"].scrape.clone().unwrap();
    assert_eq!((got.interval, got.timeout), (Span::secs(5), Span::secs(1)));
    assert_eq!(got.cpu.unwrap().selectors()[0].name, "node_cpu_seconds_total");
    assert_eq!(got.network.unwrap().to_string(), "rtt_ms / 1000");
    assert_eq!(loaded.warnings(), Vec::<String>::new());
    assert_eq!(load_text(&loaded.print()).unwrap().config, loaded.config);
}

#[test]
fn what_cannot_be_scraped_or_computed_is_refused_with_its_place() {
    for (text, expected) in [
        (
            "url: 'http://{host}:1/', cpu: 'sum(rate(a)'",
            "upstreams.api.scrape.cpu: at character 12 of `sum(rate(a)`: expected `)`",
        ),
        (
            "url: 'http://{host}:1/', network: 'rtt{peer=~\"e.*\"}'",
            "upstreams.api.scrape.network: at character 9 of",
        ),
        (
            "url: 'https://{host}:1/', cpu: a",
            "upstreams.api.scrape.url: https://{host}:1/: must begin with http://",
        ),
        ("cpu: a", "upstreams.api.scrape.url: "),
        ("url: 'http://me:secret@{host}/', cpu: a", "user and password"),
        ("url: 'http://{host}:port/', cpu: a", "the port is not a number"),
        (
            "url: 'http://{host}:1/'",
            "upstreams.api.scrape: `cpu`, `network` or both",
        ),
        (
            "url: 'http://{host}:1/', cpu: a, interval: 1ms",
            "upstreams.api.scrape.interval: must be from 100ms to 1h",
        ),
        (
            "url: 'http://{host}:1/', cpu: a, timeout: 0s",
            "scrape.timeout: must be more than 0s",
        ),
        ("url: 'http://{host}:1/', memory: a", "memory"),
    ] {
        let error = scrape(text).map(|_| ()).unwrap_err();
        assert!(error.contains(expected), "{text}: {error}");
        assert!(!error.contains("secret"), "{error}");
    }
}

#[test]
fn host_and_port_of_the_replica_stand_in_the_url() {
    let loaded = scrape("url: 'http://{host}:{port}/metrics', cpu: a").unwrap();
    let scrape = loaded.config.upstreams["api"].scrape.clone().unwrap();
    let uri = |host, port| scrape.uri(host, port).unwrap().to_string();
    assert_eq!(uri("api", 5001), "http://api:5001/metrics");
    assert_eq!(uri("::1", 80), "http://[::1]:80/metrics");
}
