//! How much replicas take, and how they are found.

use super::*;
use crate::config::upstreams::Capacity;

fn refused(text: &str) -> String {
    load_text(text).map(|_| ()).unwrap_err()
}

#[test]
fn what_serves_dify_takes_as_much_as_a_stock_one_unless_it_is_said() {
    let one = "{replicas: [{url: 'http://h:1'}]}";
    let capacity = |text: &str, name: &str| load_text(text).unwrap().config.upstreams[name].capacity;
    assert_eq!(
        capacity(&format!("upstreams: {{any: {one}}}"), "any"),
        Some(Capacity::OF_DIFY)
    );
    let several = format!("upstreams: {{api: {one}, web: {one}, old: {one}}}");
    assert_eq!(capacity(&several, "api"), Some(Capacity::OF_DIFY));
    assert_eq!(capacity(&several, "web"), None);
    let routed = format!(
        "{several}\nroutes: [{{prefix: /v1/, upstream: old}}, {{prefix: /v10, upstream: api}}, {{prefix: /, upstream: web}}]"
    );
    assert_eq!(capacity(&routed, "old"), Some(Capacity::OF_DIFY));
    // The console's API goes to the one that has all the rest.
    assert_eq!(capacity(&routed, "web"), Some(Capacity::OF_DIFY));
    assert_eq!(capacity(&routed, "api"), None);
    for (text, expected) in [("40", Capacity::Fixed(40)), ("auto", Capacity::AUTO)] {
        let text = format!(
            "upstreams: {{api: {{replicas: [{{url: 'http://h:1', capacity: 3}}], capacity: {text}}}}}"
        );
        let loaded = load_text(&text).unwrap();
        assert_eq!(loaded.config.upstreams["api"].capacity, Some(expected));
        assert_eq!(
            loaded.config.upstreams["api"].replicas[0].capacity,
            Some(Capacity::Fixed(3))
        );
        assert_eq!(load_text(&loaded.print()).unwrap().config, loaded.config);
    }
}

#[test]
fn a_capacity_that_is_none_is_refused_with_its_place() {
    for (text, expected) in [
        (
            "capacity: 0, replicas: [{url: 'http://h:1'}]",
            "upstreams.api.capacity: must be from 1",
        ),
        (
            "capacity: many, replicas: [{url: 'http://h:1'}]",
            "upstreams.api.capacity: expected a number, or `auto`",
        ),
        (
            "replicas: [{url: 'http://h:1', capacity: 0}]",
            "upstreams.api.replicas[0].capacity: must be from 1",
        ),
    ] {
        let error = refused(&format!("upstreams: {{api: {{{text}}}}}"));
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn a_name_is_enough_where_there_are_no_replicas() {
    for name in [
        "dns: 'api-headless:5001'",
        "srv: _http._tcp.api.default.svc.cluster.local., tls: true",
    ] {
        let text = format!("upstreams: {{api: {{discovery: {{{name}, refresh: 5s}}}}}}");
        let loaded = load_text(&text).unwrap();
        assert_eq!(loaded.warnings(), Vec::<String>::new());
        assert_eq!(load_text(&loaded.print()).unwrap().config, loaded.config);
    }
}

#[test]
fn a_discovery_that_names_nothing_that_can_be_asked_for_is_refused_with_its_place() {
    for (text, expected) in [
        ("", "upstreams.api.discovery: a name is needed"),
        ("dns: 'a:1', srv: b", "upstreams.api.discovery.srv: only one of"),
        ("dns: api", "discovery.dns: `api` is not a name with a port"),
        ("dns: 'api:0'", "discovery.dns: `api:0` is not"),
        ("dns: 'a b:80'", "is not a name with a port"),
        ("srv: 'a..b'", "discovery.srv: `a..b` is not a name"),
        (
            "dns: 'api:1', refresh: 0s",
            "discovery.refresh: must be more than 0s",
        ),
        ("dns: 'api:1', server: nowhere", "discovery.server"),
        ("dsn: 'api:1'", "dns"),
    ] {
        let error = refused(&format!("upstreams: {{api: {{discovery: {{{text}}}}}}}"));
        assert!(error.contains(expected), "{text}: {error}");
    }
    assert!(refused("upstreams: {api: {replicas: []}}").contains("or a name under `discovery`"));
}

#[test]
fn what_is_spoken_has_to_fit_the_urls() {
    let one = |keys: &str| format!("upstreams: {{api: {{{keys}}}}}");
    let loaded = load_text(&one(
        "replicas: [{url: 'http://h:1'}], protocol: h2c, health_check: {grpc: ''}",
    ))
    .unwrap();
    let api = &loaded.config.upstreams["api"];
    assert_eq!(api.protocol, crate::config::UpstreamProtocol::H2c);
    assert_eq!((api.capacity, api.health_check.grpc.as_deref()), (None, Some("")));
    assert!(loaded.print().contains("protocol: h2c"), "{}", loaded.print());
    assert_eq!(load_text(&loaded.print()).unwrap().config, loaded.config);
    for (keys, key, why) in [
        (
            "replicas: [{url: 'http://h:1'}], protocol: h2",
            "replicas[0].url",
            "must begin with https://",
        ),
        (
            "replicas: [{url: 'https://h'}], protocol: h2c",
            "replicas[0].url",
            "must begin with http://",
        ),
        (
            "discovery: {dns: 'h:1'}, protocol: h2",
            "discovery.tls",
            "must be true",
        ),
        (
            "discovery: {dns: 'h:1', tls: true}, protocol: h2c",
            "discovery.tls",
            "must be false",
        ),
        (
            "replicas: [{url: 'http://h:1'}], health_check: {grpc: a}",
            "health_check.grpc",
            "needs `protocol",
        ),
        ("replicas: [{url: 'http://h:1'}], protocol: h3", "protocol", "h2c"),
    ] {
        let message = refused(&one(keys));
        assert!(
            message.contains(&format!("upstreams.api.{key}")) && message.contains(why),
            "{message}"
        );
    }
}
