//! What an expression comes to over the metrics that a replica shows: pure, the fetching is not done here.
//!
//! Of every scrape only the series are kept that the expression names, and of the one before them as well, for what
//! rises between two. `config::expression` reads expressions, `text` the metrics.

pub mod text;

use std::collections::BTreeMap;

use tokio::time::Instant;

use crate::config::expression::{Aggregate, Expression, Node, Operator, Selector};
use text::Sample;

/// The most series of one metric that are kept.
const MOST_SERIES: usize = 10_000;

/// The values by labels, for each selector of an expression.
type Readings = Vec<BTreeMap<Box<str>, f64>>;

/// An expression, and what was seen for it.
#[derive(Debug)]
pub struct Watched {
    expression: Expression,
    now: Readings,
    before: Option<(Readings, Instant)>,
    too_many: bool,
}

/// Why there is no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Absent {
    /// It takes two scrapes to know how fast something rises.
    #[error("a second scrape is needed")]
    NotYet,
    /// Nothing was seen of a metric.
    #[error("there is no series that `{0}` selects")]
    NoSeries(String),
    /// There is one value too many.
    #[error("there are {0} values: make one of them with sum(), avg() or max()")]
    Several(usize),
    /// Too much was seen of a metric.
    #[error("more than {MOST_SERIES} series are selected")]
    TooMany,
    /// Something was divided by 0, or the metrics say so.
    #[error("the value is not a finite number")]
    NotFinite,
}

/// The value of a part.
enum Value {
    One(f64),
    Many(Vec<f64>),
}

impl Watched {
    /// Nothing was seen yet.
    pub fn new(expression: Expression) -> Self {
        Self {
            now: vec![BTreeMap::new(); expression.selectors().len()],
            expression,
            before: None,
            too_many: false,
        }
    }

    /// Takes a sample of the scrape under way, if it is of use.
    pub fn see(&mut self, sample: &Sample<'_>) {
        for (selector, series) in self.expression.selectors().iter().zip(&mut self.now) {
            if selects(selector, sample) {
                if series.len() < MOST_SERIES {
                    series.insert(sample.labels.into(), sample.value);
                } else {
                    self.too_many = true;
                }
            }
        }
    }

    /// The scrape broke off: what it showed does not count.
    pub fn forget(&mut self) {
        self.now.iter_mut().for_each(BTreeMap::clear);
        self.too_many = false;
    }

    /// The value, now that the scrape of `at` is complete. The next one can begin.
    ///
    /// # Errors
    /// Why there is none.
    pub fn value(&mut self, at: Instant) -> Result<f64, Absent> {
        let value = if self.too_many {
            Err(Absent::TooMany)
        } else {
            self.of(self.expression.root(), at)
        };
        let empty = vec![BTreeMap::new(); self.now.len()];
        self.before = Some((std::mem::replace(&mut self.now, empty), at));
        self.too_many = false;
        match value? {
            Value::One(value) => Some(value),
            Value::Many(values) if values.len() > 1 => return Err(Absent::Several(values.len())),
            Value::Many(values) => values.first().copied(),
        }
        .filter(|value| value.is_finite())
        .ok_or(Absent::NotFinite)
    }

    /// Computes a part. Sets of series are never empty.
    fn of(&self, node: &Node, at: Instant) -> Result<Value, Absent> {
        match node {
            Node::Number(number) => Ok(Value::One(*number)),
            Node::Select(selector) => {
                let series = self.seen(*selector)?;
                Ok(Value::Many(series.values().copied().collect()))
            }
            Node::Rate(selector) => self.rates(*selector, at).map(Value::Many),
            Node::Aggregate(aggregate, of) => {
                let of = self.of(of, at)?.many();
                let sum: f64 = of.iter().sum();
                Ok(Value::One(match aggregate {
                    Aggregate::Sum => sum,
                    Aggregate::Avg => sum / of.len() as f64,
                    Aggregate::Max => of.into_iter().fold(f64::NEG_INFINITY, f64::max),
                    Aggregate::Count => of.len() as f64,
                }))
            }
            Node::Binary(operator, left, right) => {
                let compute = |left: f64, right: f64| match operator {
                    Operator::Add => left + right,
                    Operator::Subtract => left - right,
                    Operator::Multiply => left * right,
                    Operator::Divide => left / right,
                };
                Ok(match (self.of(left, at)?, self.of(right, at)?) {
                    (Value::One(left), Value::One(right)) => Value::One(compute(left, right)),
                    (Value::One(left), Value::Many(right)) => {
                        Value::Many(right.into_iter().map(|right| compute(left, right)).collect())
                    }
                    (left, Value::One(right)) => {
                        Value::Many(left.many().into_iter().map(|left| compute(left, right)).collect())
                    }
                    // Refused when it was read.
                    (Value::Many(left), Value::Many(_)) => return Err(Absent::Several(left.len())),
                })
            }
        }
    }

    fn seen(&self, selector: usize) -> Result<&BTreeMap<Box<str>, f64>, Absent> {
        let series = &self.now[selector];
        if series.is_empty() {
            return Err(Absent::NoSeries(
                self.expression.selectors()[selector].name.clone(),
            ));
        }
        Ok(series)
    }

    /// By how much the series of a selector rose in a second since the scrape before. One that fell began again at 0.
    fn rates(&self, selector: usize, at: Instant) -> Result<Vec<f64>, Absent> {
        let series = self.seen(selector)?;
        let (before, then) = self.before.as_ref().ok_or(Absent::NotYet)?;
        let seconds = at.saturating_duration_since(*then).as_secs_f64();
        let rates: Vec<f64> = series
            .iter()
            .filter_map(|(labels, now)| {
                let before = before[selector].get(labels)?;
                let risen = if now < before { *now } else { now - before };
                Some(risen / seconds)
            })
            .collect();
        if rates.is_empty() || seconds == 0.0 {
            return Err(Absent::NotYet);
        }
        Ok(rates)
    }
}

impl Value {
    fn many(self) -> Vec<f64> {
        match self {
            Self::One(value) => vec![value],
            Self::Many(values) => values,
        }
    }
}

fn selects(selector: &Selector, sample: &Sample<'_>) -> bool {
    selector.name == sample.name
        && selector
            .labels
            .iter()
            .all(|matcher| (sample.label(&matcher.label) == matcher.value) == matcher.equal)
}

/// Reads anything as an expression and as metrics, which are cut where the expression ends.
#[cfg(any(test, fuzzing))]
pub fn read_anything(bytes: &[u8]) {
    let cut = memchr::memchr(b'\n', bytes).unwrap_or(bytes.len());
    let (expression, metrics) = bytes.split_at(cut);
    let expression = std::str::from_utf8(expression).unwrap_or("sum(rate(a)) / max(b{c!=\"d\"})");
    let Ok(expression) = expression.parse() else {
        return;
    };
    let mut watched = Watched::new(expression);
    let mut at = crate::types::time::Clock::System.now().monotonic;
    for _ in 0..2 {
        let mut lines = text::Lines::default();
        for piece in metrics.chunks(7) {
            lines.feed(piece, |line| {
                if let Some(sample) = Sample::read(line) {
                    watched.see(&sample);
                }
            });
        }
        if let Ok(value) = watched.value(at) {
            assert!(value.is_finite());
        }
        at += std::time::Duration::from_secs(1);
    }
}

#[cfg(test)]
mod tests;
