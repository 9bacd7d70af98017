//! Tests of the decision as a whole: the table against dify-api's rules, the traps, the measured writes.

mod asks;
mod background;
mod coverage;
mod preview;
mod properties;
mod stage;
mod traps;
mod works;
mod writes;

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::Classifier;
use crate::config::{Config, GuardConfig, UpstreamConfig};
use crate::types::ids::Tag;
use crate::types::request::Decision;

const UUID: &str = "86fedc0e-02f5-48d7-b816-2eacbb40ae5a";

fn config() -> Config {
    Config {
        upstreams: [("api".into(), UpstreamConfig::default())].into(),
        guard: Some(GuardConfig::default()),
        ..Config::default()
    }
}

/// Credentials for every API at once.
fn credentials() -> HeaderMap {
    fields(&[
        ("authorization", "Bearer app-1"),
        ("x-app-code", "code"),
        ("cookie", "passport-code=p; access_token=a; csrf_token=c"),
        ("x-csrf-token", "c"),
    ])
}

fn fields(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        map.append(
            HeaderName::from_static(name),
            HeaderValue::from_str(value).unwrap(),
        );
    }
    map
}

/// The decision about `METHOD /path?query` with `headers`.
fn decide_with(line: &str, headers: &HeaderMap) -> Decision {
    thread_local! {
        static CLASSIFIER: Classifier = Classifier::new(&config()).unwrap();
    }
    let (method, target) = line.split_once(' ').unwrap();
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let method: Method = method.parse().unwrap();
    CLASSIFIER
        .with(|classifier| classifier.decide(&method, path, query, headers))
        .unwrap()
}

fn decide(line: &str) -> Decision {
    decide_with(line, &credentials())
}

/// Whether a write, once done, makes a stored read miss.
fn ends(write: &Decision, read: &Decision) -> bool {
    write.invalidates.iter().any(|tag: &Tag| read.fills.contains(tag))
}
