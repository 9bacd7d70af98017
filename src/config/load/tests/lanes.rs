//! Lanes in the configuration: defaults, what is refused.

use super::*;
use crate::config::upstreams::{LaneConfig, LanesConfig};
use crate::types::request::Lane;

/// Loads an upstream with these lanes.
fn lanes(text: &str) -> Result<Loaded, String> {
    load_text(&format!(
        "upstreams: {{api: {{replicas: [{{url: 'http://h:1'}}], lanes: {{{text}}}}}}}"
    ))
}

#[test]
fn what_is_not_written_of_a_lane_is_as_by_default() {
    let loaded = lanes("generation: {limit: 50%}, upload: {share: 5%}").unwrap();
    let (got, default) = (&loaded.config.upstreams["api"].lanes, LanesConfig::default());
    let generation = LaneConfig {
        limit: Ratio(0.5),
        ..default.generation
    };
    assert_eq!(got.of(Lane::Generation), generation);
    assert_eq!(got.upload.share, Ratio(0.05));
    assert_eq!(got.upload.limit, default.upload.limit);
    assert_eq!((got.short, got.background), (default.short, default.background));
    assert_eq!(loaded.warnings(), Vec::<String>::new());
    assert_eq!(load_text(&loaded.print()).unwrap().config, loaded.config);
}

#[test]
fn a_lane_without_a_share_and_an_unknown_one_are_refused_with_their_place() {
    for (text, expected) in [
        (
            "short: {share: 0%}",
            "upstreams.api.lanes.short.share: must be from 1% to 100%",
        ),
        (
            "upload: {limit: 0%}",
            "upstreams.api.lanes.upload.limit: must be from 1% to 100%",
        ),
        ("fast: {share: 10%}", "fast"),
        ("short: {most: 10%}", "most"),
    ] {
        let error = lanes(text).map(|_| ()).unwrap_err();
        assert!(error.contains(expected), "{text}: {error}");
    }
}
