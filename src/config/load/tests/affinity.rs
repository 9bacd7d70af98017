//! Zones and labels in the configuration: what is taken, refused and warned of.

use super::*;
use crate::types::outcome::RouteClass;

const REPLICAS: &str = "replicas: [{url: 'http://a:1', labels: {disktype: ssd}}, {url: 'http://b:1'}]";

fn affinity(text: &str) -> Result<Loaded, String> {
    load_text(&format!(
        "upstreams: {{api: {{{REPLICAS}, affinity: {{{text}}}}}}}"
    ))
}

#[test]
fn rules_are_taken_and_printed_so_that_they_load_again() {
    let loaded = affinity(
        "upload: {require: [{key: disktype, operator: In, values: [ssd]}]}, \
         generation: {prefer: [{weight: 50, key: gpu, operator: Exists}, {weight: 1, key: cores, operator: Gt, values: ['8']}]}",
    )
    .unwrap();
    assert_eq!(loaded.warnings(), Vec::<String>::new());
    let rules = &loaded.config.upstreams["api"].affinity;
    assert_eq!(rules[&RouteClass::Upload].requirement(), "disktype In [ssd]");
    let preferred: Vec<_> = rules[&RouteClass::Generation]
        .prefer
        .iter()
        .map(|it| it.term().to_string())
        .collect();
    assert_eq!(preferred, ["gpu Exists", "cores Gt [8]"]);
    assert_eq!(load_text(&loaded.print()).unwrap().config, loaded.config);
}

#[test]
fn what_cannot_be_understood_is_refused_with_its_place() {
    let require = |term: &str| format!("upload: {{require: [{{{term}}}]}}");
    for (text, place, why) in [
        (
            require("key: k, operator: notin, values: [x]"),
            "upload.require[0].operator",
            "did you mean `NotIn`?",
        ),
        (
            require("key: k, operator: in, values: [x]"),
            "upload.require[0].operator",
            "did you mean `In`?",
        ),
        (
            require("key: k, operator: In"),
            "upload.require[0].values",
            "`In` takes at least one value",
        ),
        (
            require("key: k, operator: NotIn, values: []"),
            "upload.require[0].values",
            "`NotIn` takes at least one",
        ),
        (
            require("key: k, operator: Exists, values: [x]"),
            "upload.require[0].values",
            "`Exists` takes no values",
        ),
        (
            require("key: k, operator: DoesNotExist, values: [x]"),
            "upload.require[0].values",
            "takes no values",
        ),
        (
            require("key: k, operator: Gt"),
            "upload.require[0].values",
            "`Gt` takes one integer",
        ),
        (
            require("key: k, operator: Gt, values: ['1', '2']"),
            "upload.require[0].values",
            "`Gt` takes one integer",
        ),
        (
            require("key: k, operator: Lt, values: [many]"),
            "upload.require[0].values",
            "`Lt` takes one integer",
        ),
        (
            require("key: k, operator: Lt, values: [8]"),
            "upload.require[0].values[0]",
            "expected a string",
        ),
        (
            require("key: '', operator: Exists"),
            "upload.require[0].key",
            "must name a label",
        ),
        (
            require("operator: Exists"),
            "upload.require[0]",
            "the key `key` is missing",
        ),
        (
            require("key: k, operator: Exists, weight: 1"),
            "upload.require[0].weight",
            "unknown key",
        ),
        (
            "upload: {prefer: [{weight: 0, key: k, operator: Exists}]}".into(),
            "upload.prefer[0].weight",
            "must be from 1 to 100",
        ),
        (
            "upload: {prefer: [{weight: 101, key: k, operator: Exists}]}".into(),
            "upload.prefer[0].weight",
            "must be from 1 to 100",
        ),
        (
            "upload: {prefer: [{weight: 5, key: k, operator: Gt}]}".into(),
            "upload.prefer[0].values",
            "one integer",
        ),
        (
            "upload: {prefer: [{key: k, operator: Exists}]}".into(),
            "upload.prefer[0]",
            "the key `weight` is missing",
        ),
        ("uploads: {}".into(), "affinity.uploads", "did you mean `upload`?"),
        (
            format!(
                "upload: {{require: [{}]}}",
                "{key: k, operator: Exists}, ".repeat(33)
            ),
            "upload.require",
            "from 0 to 32",
        ),
    ] {
        let error = affinity(&text).map(|_| ()).unwrap_err();
        assert!(
            error.contains(&format!("{place}: ")) && error.contains(why),
            "{text}: {error}"
        );
        assert!(error.contains("upstreams.api.affinity"), "{text}: {error}");
    }
}

#[test]
fn a_rule_that_no_replica_keeps_is_a_warning() {
    let warnings = affinity(
        "upload: {require: [{key: disktype, operator: In, values: [ssd]}, {key: gpu, operator: Exists}]}",
    )
    .unwrap()
    .warnings();
    let expected = ": upstreams.api.affinity.upload.require: no replica matches disktype In [ssd] and gpu Exists: \
                    `upload` requests are answered with 503";
    assert!(
        warnings.len() == 1 && warnings[0].ends_with(expected),
        "{warnings:?}"
    );
    for elsewhere in [
        "standby: [{url: 'http://c:1', labels: {gpu: a}}]",
        "discovery: {dns: 'api:1', labels: {gpu: a}}",
    ] {
        let text = format!(
            "upstreams: {{api: {{{REPLICAS}, {elsewhere}, affinity: {{upload: {{require: [{{key: gpu, operator: Exists}}]}}}}}}}}"
        );
        let warnings = load_text(&text).unwrap().warnings().join("\n");
        assert!(!warnings.contains("affinity"), "{warnings}");
    }
}

#[test]
fn the_own_zone_comes_from_the_environment_too_and_zones_without_it_are_a_warning() {
    let text = "upstreams: {api: {replicas: [{url: 'http://a:1', zone: a}, {url: 'http://b:1', zone: b}]}}";
    let zone = |zone: &str| {
        let loaded = load_with(text, &[("DIFY_EDGE__ZONE", zone)], &Flags::default()).unwrap();
        (loaded.config.zone.clone(), loaded.warnings().join("\n"))
    };
    assert_eq!(zone("a"), (Some("a".to_owned()), String::new()));
    let (_, warning) = zone("c");
    assert!(
        warning.contains("zone: without effect: no replica is in this zone"),
        "{warning}"
    );
    let (_, warning) = zone("");
    assert!(
        warning.contains("upstreams.api: the zones of its replicas are without effect"),
        "{warning}"
    );
}
