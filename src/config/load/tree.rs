//! The configuration as written: a tree of values in which every key and value knows where it came from.
//!
//! Defaults, the file, the environment and the flags are all turned into such trees and merged in that order.
//! Errors and `check --print` look up the origin of a value by its path.

use std::fmt;
use std::sync::Arc;

use serde_json::Value;

/// Where a key or a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody wrote it.
    Default,
    /// In the configuration file; line and column count from 1.
    File {
        /// The file's name as it was given.
        name: Arc<str>,
        /// Line.
        line: usize,
        /// Column.
        column: usize,
    },
    /// In the environment variable of this name.
    Environment(Arc<str>),
    /// By the flag of this name.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { name, line, column } => write!(f, "{name}:{line}:{column}"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// One step from a value to a value inside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The value of a key.
    Key(String),
    /// The element of a list; from 0.
    Index(usize),
}

impl From<&str> for Step {
    fn from(key: &str) -> Self {
        Self::Key(key.to_owned())
    }
}

impl From<usize> for Step {
    fn from(index: usize) -> Self {
        Self::Index(index)
    }
}

/// From the root to a value; shown as `upstreams.api.replicas[0].url`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Path(pub Vec<Step>);

impl Path {
    /// The path of something inside this.
    pub fn join(&self, step: impl Into<Step>) -> Self {
        let mut steps = self.0.clone();
        steps.push(step.into());
        Self(steps)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if number == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// A value with its origin.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) origin: Origin,
    pub(super) kind: Kind,
}

/// What a [`Node`] holds.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    /// Null, a boolean, a number or a string.
    Scalar(Value),
    List(Vec<Node>),
    /// In the order of writing, without duplicates.
    Map(Vec<Entry>),
}

/// A key and its value.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) key: String,
    /// Where the key is written.
    pub(super) origin: Origin,
    pub(super) value: Node,
}

impl Node {
    pub(super) fn new(origin: Origin, kind: Kind) -> Self {
        Self { origin, kind }
    }

    /// The same values, all written at `origin`.
    pub(super) fn from_value(value: Value, origin: &Origin) -> Self {
        let kind = match value {
            Value::Array(items) => Kind::List(
                items
                    .into_iter()
                    .map(|item| Self::from_value(item, origin))
                    .collect(),
            ),
            Value::Object(entries) => Kind::Map(
                entries
                    .into_iter()
                    .map(|(key, value)| Entry {
                        key,
                        origin: origin.clone(),
                        value: Self::from_value(value, origin),
                    })
                    .collect(),
            ),
            scalar => Kind::Scalar(scalar),
        };
        Self::new(origin.clone(), kind)
    }

    /// The values without their origins.
    pub(super) fn to_value(&self) -> Value {
        match &self.kind {
            Kind::Scalar(value) => value.clone(),
            Kind::List(items) => items.iter().map(Self::to_value).collect(),
            Kind::Map(entries) => Value::Object(
                entries
                    .iter()
                    .map(|entry| (entry.key.clone(), entry.value.to_value()))
                    .collect(),
            ),
        }
    }

    /// Levels below and including this one; 1 for a scalar.
    pub(super) fn height(&self) -> usize {
        let below = match &self.kind {
            Kind::Scalar(_) => 0,
            Kind::List(items) => items.iter().map(Self::height).max().unwrap_or(0),
            Kind::Map(entries) => entries.iter().map(|e| e.value.height()).max().unwrap_or(0),
        };
        below + 1
    }

    /// Values in all, this one included.
    pub(super) fn size(&self) -> usize {
        let below: usize = match &self.kind {
            Kind::Scalar(_) => 0,
            Kind::List(items) => items.iter().map(Self::size).sum(),
            Kind::Map(entries) => entries.iter().map(|e| e.value.size()).sum(),
        };
        below + 1
    }

    fn child(&self, step: &Step) -> Option<&Self> {
        match (&self.kind, step) {
            (Kind::Map(entries), Step::Key(key)) => {
                entries.iter().find(|entry| entry.key == *key).map(|e| &e.value)
            }
            (Kind::List(items), Step::Index(index)) => items.get(*index),
            _ => None,
        }
    }

    /// The value at `path`, if it is there.
    pub(super) fn at(&self, path: &Path) -> Option<&Self> {
        path.0.iter().try_fold(self, Self::child)
    }

    /// Where the key (or list element) at `path` is written; of the nearest value around it that is there.
    pub(super) fn origin_of_key(&self, path: &Path) -> Origin {
        let mut node = self;
        let mut origin = &self.origin;
        for step in &path.0 {
            let Some(child) = node.child(step) else { break };
            origin = match (&node.kind, step) {
                (Kind::Map(entries), Step::Key(key)) => entries
                    .iter()
                    .find(|entry| entry.key == *key)
                    .map_or(&child.origin, |entry| &entry.origin),
                _ => &child.origin,
            };
            node = child;
        }
        origin.clone()
    }

    /// Lays `over` upon this: maps are merged key by key, anything else is replaced. A null laid upon a map or
    /// list changes nothing: that is what a section looks like whose keys are all commented out.
    pub(super) fn merge(&mut self, over: Self) {
        match (&mut self.kind, over.kind) {
            (Kind::Map(_) | Kind::List(_), Kind::Scalar(Value::Null)) => {}
            (Kind::Map(mine), Kind::Map(theirs)) => {
                for entry in theirs {
                    match mine.iter_mut().find(|old| old.key == entry.key) {
                        Some(old) => {
                            old.origin = entry.origin;
                            old.value.merge(entry.value);
                        }
                        None => mine.push(entry),
                    }
                }
                if self.origin == Origin::Default {
                    self.origin = over.origin;
                }
            }
            (mine, kind) => {
                *mine = kind;
                self.origin = over.origin;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(value: Value, origin: &Origin) -> Node {
        Node::from_value(value, origin)
    }

    #[test]
    fn maps_merge_key_by_key_and_lists_are_replaced() {
        let mut tree = node(
            json!({"a": {"b": 1, "c": 2}, "l": [1, 2], "s": 1}),
            &Origin::Default,
        );
        tree.merge(node(
            json!({"a": {"c": 3, "d": 4}, "l": [9]}),
            &Origin::Flag("--x"),
        ));
        assert_eq!(
            tree.to_value(),
            json!({"a": {"b": 1, "c": 3, "d": 4}, "l": [9], "s": 1})
        );
        let at = |path: &[&str]| {
            tree.at(&Path(path.iter().map(|k| Step::from(*k)).collect()))
                .map(|n| n.origin.clone())
        };
        assert_eq!(at(&["a", "b"]), Some(Origin::Default));
        assert_eq!(at(&["a", "c"]), Some(Origin::Flag("--x")));
        assert_eq!(at(&["nowhere"]), None);
    }

    #[test]
    fn an_empty_section_keeps_its_defaults() {
        let mut tree = node(json!({"a": {"b": 1}, "n": 5}), &Origin::Default);
        tree.merge(node(json!({"a": null, "n": null}), &Origin::Flag("--x")));
        assert_eq!(tree.to_value(), json!({"a": {"b": 1}, "n": null}));
    }

    #[test]
    fn a_path_reads_like_the_keys_that_lead_there() {
        let path = Path::default()
            .join("upstreams")
            .join("api")
            .join("replicas")
            .join(0)
            .join("url");
        assert_eq!(path.to_string(), "upstreams.api.replicas[0].url");
    }
}
