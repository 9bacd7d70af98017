//! `upstreams.NAME.affinity`: terms that can be understood. Part of `check`, whose small tools it uses.

use super::{Check, Path};
use crate::config::affinity::{Affinity, MOST_TERMS, Operator, Term};

impl Check {
    pub(super) fn affinity(&mut self, at: &Path, affinity: &Affinity) {
        for (class, rules) in affinity {
            let at = at.join(class.as_str());
            let (require, prefer) = (at.join("require"), at.join("prefer"));
            self.number(&require, rules.require.len(), 0, MOST_TERMS);
            self.number(&prefer, rules.prefer.len(), 0, MOST_TERMS);
            for (index, term) in rules.require.iter().enumerate() {
                self.term(&require.join(index), term);
            }
            for (index, preference) in rules.prefer.iter().enumerate() {
                let at = prefer.join(index);
                self.number(&at.join("weight"), preference.weight as usize, 1, 100);
                self.term(&at, &preference.term());
            }
        }
    }

    fn term(&mut self, at: &Path, term: &Term) {
        if term.key.is_empty() {
            self.say(at.join("key"), "must name a label");
        }
        let wanted = match term.operator {
            Operator::In | Operator::NotIn if term.values.is_empty() => "at least one value",
            Operator::Exists | Operator::DoesNotExist if !term.values.is_empty() => "no values",
            Operator::Gt | Operator::Lt if term.bound().is_none() => "one integer, such as [\"8\"]",
            _ => return,
        };
        self.say(at.join("values"), format!("`{:?}` takes {wanted}", term.operator));
    }
}
