//! What is said about a configuration that is not valid: place, full key, what is wrong, what would be right.
//!
//! The messages of serde name Rust types; this turns them into the words of the configuration, and finds the
//! key that was probably meant.

use std::fmt;

use serde_json::Value;

use super::secrets;
use super::tree::{Node, Origin, Path, Step};
use super::yaml::Refused;
use crate::config::{Config, UpstreamConfig};

/// Something to say about the key at `path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The key that it is about.
    pub path: Path,
    /// What there is to say, without a full stop.
    pub message: String,
}

impl Finding {
    pub(super) fn new(path: Path, message: impl Into<String>) -> Self {
        Self {
            path,
            message: message.into(),
        }
    }

    /// One line: place, key, message.
    pub(super) fn located(&self, tree: &Node) -> String {
        let mut line = String::new();
        match (tree.origin_of_key(&self.path), &tree.origin) {
            // Nobody wrote it: then the file is where it would have to be written.
            (Origin::Default, Origin::File { name, .. }) => line.push_str(&format!("{name}: ")),
            (Origin::Default, _) => {}
            (origin, _) => line.push_str(&format!("{origin}: ")),
        }
        if !self.path.0.is_empty() {
            line.push_str(&format!("{}: ", self.path));
        }
        line + &self.message
    }
}

/// Why a configuration cannot be used: one line for each problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    lines: Vec<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines.join("\n"))
    }
}

impl std::error::Error for ConfigError {}

impl From<Refused> for ConfigError {
    fn from(refused: Refused) -> Self {
        Self::plain(format!("{}: {}", refused.origin, refused.message))
    }
}

impl ConfigError {
    pub(super) fn plain(line: String) -> Self {
        Self { lines: vec![line] }
    }

    pub(super) fn from_findings(findings: &[Finding], tree: &Node) -> Self {
        Self {
            lines: findings.iter().map(|finding| finding.located(tree)).collect(),
        }
    }

    pub(super) fn from_serde(error: &serde_path_to_error::Error<serde_json::Error>, tree: &Node) -> Self {
        let path = Path(
            error
                .path()
                .iter()
                .filter_map(|segment| match segment {
                    serde_path_to_error::Segment::Seq { index } => Some(Step::Index(*index)),
                    serde_path_to_error::Segment::Map { key } => Some(Step::Key(key.clone())),
                    _ => None,
                })
                .collect(),
        );
        let is_secret = matches!(path.0.last(), Some(Step::Key(key)) if secrets::is_secret(key));
        let message = in_words(&error.inner().to_string(), &path);
        let message = match message.split_once(", found ") {
            Some((expected, _)) if is_secret => format!("{expected}; write it in quotes"),
            _ => secrets::hidden(&message),
        };
        Self::from_findings(&[Finding::new(path, message)], tree)
    }
}

/// Says in an operator's words what serde says in a programmer's.
fn in_words(message: &str, path: &Path) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    if message.starts_with("unknown field") {
        let wrong = quoted.next().unwrap_or_default();
        return format!(
            "unknown key; {}",
            key_meant(wrong, &quoted.collect::<Vec<_>>(), path)
        );
    }
    if message.starts_with("unknown variant") {
        let wrong = quoted.next().unwrap_or_default();
        let valid: Vec<_> = quoted.collect();
        let meant =
            nearest(wrong, &valid).map_or_else(String::new, |near| format!("did you mean `{near}`? "));
        return format!("`{wrong}` is not known here; {meant}valid: {}", valid.join(", "));
    }
    if let Some(field) = message.strip_prefix("missing field ") {
        return format!("the key {field} is missing");
    }
    if let Some((found, expected)) = message
        .strip_prefix("invalid type: ")
        .or_else(|| message.strip_prefix("invalid value: "))
        .and_then(|rest| rest.rsplit_once(", expected "))
    {
        let found = if found == "null" { "nothing" } else { found };
        return format!("expected {}, found {found}", type_in_words(expected));
    }
    if message.contains("socket address syntax") {
        return "expected an IP address and a port like 127.0.0.1:8080 or [::]:8080".into();
    }
    if message.contains("IP address syntax") || message.contains("IP prefix") {
        return "expected a network like 10.0.0.0/8 or 192.0.2.7/32".into();
    }
    message.to_owned()
}

fn type_in_words(expected: &str) -> &str {
    match expected {
        "u16" | "u32" | "u64" | "usize" => "a whole number",
        "a sequence" => "a list",
        "socket address" => "an IP address and a port like 127.0.0.1:8080",
        "IP network address" => "a network like 10.0.0.0/8",
        "path string" => "a path",
        "string or map" => "a word",
        _ if expected.starts_with("struct ") => "a map of keys",
        _ => expected,
    }
}

fn nearest<'a>(wrong: &str, valid: &[&'a str]) -> Option<&'a str> {
    let alike =
        |key: &str| strsim::jaro_winkler(&wrong.to_lowercase().replace('-', "_"), &key.to_lowercase());
    valid
        .iter()
        .map(|key| (alike(key), *key))
        .filter(|(alike, _)| *alike > 0.75)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, key)| key)
}

/// The nearest valid key: among those of the same map, or the same key in another place.
fn key_meant(wrong: &str, valid: &[&str], path: &Path) -> String {
    let elsewhere = known_keys();
    let same_name = elsewhere
        .iter()
        .find(|known| matches!(known.0.last(), Some(Step::Key(key)) if key == wrong));
    match (nearest(wrong, valid), same_name) {
        (_, Some(known)) if known.0.len() != path.0.len() => {
            format!("did you mean `{known}`? valid here: {}", valid.join(", "))
        }
        (Some(near), _) => format!("did you mean `{near}`?"),
        (None, _) if valid.is_empty() => "no other stands here".into(),
        (None, _) => format!("valid here: {}", valid.join(", ")),
    }
}

/// Every key path that has a default; upstreams as `NAME`.
fn known_keys() -> Vec<Path> {
    fn walk(value: &Value, at: &Path, found: &mut Vec<Path>) {
        if let Value::Object(entries) = value {
            for (key, value) in entries {
                let path = at.join(key.as_str());
                walk(value, &path, found);
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    for (value, at) in [
        (serde_json::to_value(Config::default()), Path::default()),
        (
            serde_json::to_value(UpstreamConfig::default()),
            Path::default().join("upstreams").join("NAME"),
        ),
    ] {
        walk(&value.unwrap_or_default(), &at, &mut found);
    }
    found
}
