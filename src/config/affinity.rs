//! `upstreams.NAME.affinity`: which replicas serve which requests, by their labels.
//!
//! Terms mean what those of node affinity in Kubernetes mean. `load` checks them and warns of those that nothing
//! matches; `routing` keeps to them.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::types::outcome::RouteClass;

/// Terms of one list, at most.
pub const MOST_TERMS: usize = 32;

/// Rules by route class.
pub type Affinity = BTreeMap<RouteClass, AffinityConfig>;

/// Labels of a replica.
pub type Labels = BTreeMap<String, String>;

/// Where requests of one class go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AffinityConfig {
    /// A replica serves the class only if all of these match. Default: none.
    pub require: Vec<Term>,
    /// Replicas that match these get more of the class. Default: none.
    pub prefer: Vec<Preference>,
}

/// Something that labels match or do not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Term {
    /// Name of the label.
    pub key: String,
    /// How its value and `values` are compared.
    pub operator: Operator,
    /// At least one for `In` and `NotIn`, one integer for `Gt` and `Lt`, none for `Exists` and `DoesNotExist`.
    #[serde(default)]
    pub values: Vec<String>,
}

/// A term that should match.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preference {
    /// Of 100 requests, those that insist on the term while a replica that matches has a free slot. 1 to 100.
    pub weight: u32,
    /// As in a term of `require`.
    pub key: String,
    /// As in a term of `require`.
    pub operator: Operator,
    /// As in a term of `require`.
    #[serde(default)]
    pub values: Vec<String>,
}

/// How a label is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operator {
    /// The value is one of `values`.
    In,
    /// The value is none of `values`, or the label is missing.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is missing.
    DoesNotExist,
    /// The value is an integer above the one in `values`.
    Gt,
    /// The value is an integer below the one in `values`.
    Lt,
}

impl AffinityConfig {
    /// Whether a replica with these labels may serve the class.
    pub fn allows(&self, labels: &Labels) -> bool {
        self.require.iter().all(|term| term.matches(labels))
    }

    /// The hard rule in one line.
    pub fn requirement(&self) -> String {
        let terms: Vec<_> = self.require.iter().map(Term::to_string).collect();
        terms.join(" and ")
    }
}

impl Preference {
    /// What should match.
    pub fn term(&self) -> Term {
        Term {
            key: self.key.clone(),
            operator: self.operator,
            values: self.values.clone(),
        }
    }
}

impl Term {
    /// Whether `labels` match.
    pub fn matches(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        let listed = || value.is_some_and(|value| self.values.contains(value));
        let compared = |holds: fn(&i64, &i64) -> bool| {
            let here = value.and_then(|value| value.parse().ok());
            here.zip(self.bound())
                .is_some_and(|(here, bound)| holds(&here, &bound))
        };
        match self.operator {
            Operator::In => listed(),
            Operator::NotIn => !listed(),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Gt => compared(i64::gt),
            Operator::Lt => compared(i64::lt),
        }
    }

    /// What `Gt` and `Lt` compare with, if it can be.
    pub fn bound(&self) -> Option<i64> {
        match self.values.as_slice() {
            [value] => value.parse().ok(),
            _ => None,
        }
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.key, self.operator)?;
        match self.operator {
            Operator::Exists | Operator::DoesNotExist => Ok(()),
            _ => write!(f, " [{}]", self.values.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_match_as_those_of_node_affinity_do() {
        use Operator::*;
        // The label, an operator with its values, and whether it matches.
        let table: &[(Option<&str>, Operator, &[&str], bool)] = &[
            (Some("ssd"), In, &["nvme", "ssd"], true),
            (Some("hdd"), In, &["ssd"], false),
            (None, In, &["ssd"], false),
            (Some("ssd"), NotIn, &["ssd"], false),
            (Some("hdd"), NotIn, &["ssd"], true),
            (None, NotIn, &["ssd"], true),
            (Some(""), Exists, &[], true),
            (None, Exists, &[], false),
            (Some(""), DoesNotExist, &[], false),
            (None, DoesNotExist, &[], true),
            (Some("9"), Gt, &["8"], true),
            // As numbers, not as texts.
            (Some("10"), Gt, &["8"], true),
            (Some("8"), Gt, &["8"], false),
            (Some("many"), Gt, &["8"], false),
            (Some("8.5"), Gt, &["8"], false),
            (None, Gt, &["8"], false),
            (Some("-1"), Lt, &["0"], true),
            (Some("0"), Lt, &["0"], false),
            (None, Lt, &["0"], false),
        ];
        for (label, operator, values, expected) in table {
            let term = Term {
                key: "k".into(),
                operator: *operator,
                values: values.iter().map(|value| (*value).to_owned()).collect(),
            };
            let labels = label
                .map(|value| ("k".to_owned(), value.to_owned()))
                .into_iter()
                .collect();
            assert_eq!(term.matches(&labels), *expected, "{label:?} {term}");
        }
    }
}
