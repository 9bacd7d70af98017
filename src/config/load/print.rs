//! The effective configuration as YAML that loads again, with the origin of each value behind it.

use std::fmt::Write as _;

use serde_json::Value;

use super::secrets;
use super::tree::{Node, Origin, Path};
use crate::config::Config;

/// What the absence of a value comes down to, for keys whose default depends on something else.
const WHEN_NULL: [(&str, &str); 7] = [
    (
        "cache.local.max_bytes",
        ": a quarter of the memory, at most 512MiB",
    ),
    ("cache.local.max_entry_bytes", ": 4MiB"),
    ("cache.redis.ca", ": those of the system"),
    (
        "cache.classes.metadata.shared_flight",
        ": true with a ttl of at least 30s",
    ),
    ("cache.classes.listing.shared_flight", ": false"),
    ("cache.classes.run.shared_flight", ": false"),
    ("cache.classes.origin.shared_flight", ": true"),
];

/// Writes `config`, whose merged sources are `tree`.
pub(super) fn print(config: &Config, tree: &Node) -> String {
    let printer = Printer {
        plain: serde_json::to_value(config).unwrap_or_default(),
        tree,
    };
    let mut text = String::new();
    printer.map(&mut text, &config.redacted(), &Path::default(), 0);
    text
}

/// Where the value at `path` was written.
pub(super) fn origin(tree: &Node, path: &Path) -> String {
    let origin = match tree.at(path).map(|node| &node.origin) {
        None => Origin::Default.to_string(),
        Some(Origin::File { name, line, .. }) => format!("{name}:{line}"),
        Some(origin) => origin.to_string(),
    };
    origin.replace(char::is_control, "?")
}

struct Printer<'a> {
    /// The values with their passwords: what is different in the shown ones is marked.
    plain: Value,
    tree: &'a Node,
}

impl Printer<'_> {
    fn map(&self, out: &mut String, value: &Value, path: &Path, depth: usize) {
        let Value::Object(entries) = value else { return };
        for (number, (key, value)) in entries.iter().enumerate() {
            // The first key of a list's element stands behind the dash.
            let follows_dash = number == 0 && out.ends_with("- ");
            let indent = if follows_dash { 0 } else { depth * 2 };
            let _ = write!(out, "{:indent$}{}:", "", scalar(&Value::from(key.as_str())));
            self.value(out, value, &path.join(key.as_str()), depth + 1);
        }
    }

    /// Writes what stands behind `key:` or `-`, up to the end of the line or lines.
    fn value(&self, out: &mut String, value: &Value, path: &Path, depth: usize) {
        match value {
            Value::Object(entries) if !entries.is_empty() => {
                out.push('\n');
                self.map(out, value, path, depth);
            }
            Value::Array(items) if !items.is_empty() => {
                out.push('\n');
                for (index, item) in items.iter().enumerate() {
                    let at = path.join(index);
                    let _ = write!(out, "{:indent$}-", "", indent = depth * 2);
                    match item {
                        Value::Object(entries) if !entries.is_empty() => {
                            out.push(' ');
                            self.map(out, item, &at, depth + 1);
                        }
                        _ => self.value(out, item, &at, depth + 1),
                    }
                }
            }
            _ => {
                let _ = writeln!(out, " {}  # {}", scalar(value), self.remark(value, path));
            }
        }
    }

    fn remark(&self, shown: &Value, path: &Path) -> String {
        let mut remark = origin(self.tree, path);
        if shown.is_null()
            && let Some((_, meaning)) = WHEN_NULL.iter().find(|(key, _)| path.to_string() == *key)
        {
            remark.push_str(meaning);
        }
        if at(&self.plain, path) != Some(shown) && shown.as_str().is_some_and(|s| s.contains(secrets::HIDDEN))
        {
            remark.push_str(", password not shown");
        }
        remark
    }
}

fn at<'a>(value: &'a Value, path: &Path) -> Option<&'a Value> {
    path.0.iter().try_fold(value, |value, step| match step {
        super::Step::Key(key) => value.get(key),
        super::Step::Index(index) => value.get(index),
    })
}

/// A scalar or an empty list or map. JSON is YAML, so whatever is not a harmless word is written as JSON.
fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) if is_plain(text) => text.clone(),
        Value::String(text) => quoted(text),
        other => other.to_string(),
    }
}

fn is_plain(text: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || "_/.%-".contains(c);
    text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/')
        && text.chars().all(word)
        && super::yaml::is_string(text)
}

fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() || "\u{feff}\u{2028}\u{2029}".contains(c) => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out + "\""
}
