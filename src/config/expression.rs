//! Expressions over the metrics that a replica shows, as `scrape` has them: a small part of PromQL.
//!
//! Numbers, `+ - * /`, parentheses, `metric{label="value",other!="x"}`, and `sum`, `avg`, `max`, `count` and `rate`
//! of these. An expression is either one number or a set of series, and which of them is known when it is read, so that
//! what can never be computed is refused then, with its place. `routing` computes it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// No expression is longer, in bytes.
const LONGEST: usize = 1000;
/// Parentheses, functions and signs go no deeper.
const DEEPEST: usize = 32;

/// An expression as written, and what it means.
#[derive(Debug, Clone, PartialEq)]
pub struct Expression {
    text: String,
    root: Node,
    selectors: Vec<Selector>,
}

/// A part of an expression.
#[derive(Debug, Clone, PartialEq)]
pub enum Node {
    /// A number.
    Number(f64),
    /// The values of the series of that selector.
    Select(usize),
    /// By how much the series of that selector rise in a second, between the last two scrapes.
    Rate(usize),
    /// One number out of all series.
    Aggregate(Aggregate, Box<Node>),
    /// Two numbers, or a number and each series.
    Binary(Operator, Box<Node>, Box<Node>),
}

/// How many become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aggregate {
    /// Their sum.
    Sum,
    /// Their mean.
    Avg,
    /// The greatest.
    Max,
    /// How many there are.
    Count,
}

/// What is done with two numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// `+`
    Add,
    /// `-`
    Subtract,
    /// `*`
    Multiply,
    /// `/`
    Divide,
}

/// Which series are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector {
    /// The metric's name.
    pub name: String,
    /// What the labels must be.
    pub labels: Vec<Matcher>,
}

/// What one label must be. One that a series does not have is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matcher {
    /// The label's name.
    pub label: String,
    /// Whether it must be `value`, or must not.
    pub equal: bool,
    /// What it is compared with.
    pub value: String,
}

/// Why a text is not an expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at character {position} of `{text}`: {why}")]
pub struct NotAnExpression {
    /// Where, counted in characters from 1.
    pub position: usize,
    text: String,
    why: String,
}

/// A part that was read, and whether it is a set of series.
type Read = (Node, bool);

impl Expression {
    /// The whole of it.
    pub fn root(&self) -> &Node {
        &self.root
    }

    /// Which series it needs; nodes name them by their place here.
    pub fn selectors(&self) -> &[Selector] {
        &self.selectors
    }
}

impl FromStr for Expression {
    type Err = NotAnExpression;

    fn from_str(text: &str) -> Result<Self, NotAnExpression> {
        let mut reader = Reader {
            text,
            at: 0,
            depth: 0,
            selectors: Vec::new(),
        };
        reader
            .whole()
            .map(|root| Self {
                text: text.to_owned(),
                root,
                selectors: reader.selectors,
            })
            .map_err(|(at, why)| NotAnExpression {
                position: text[..at].chars().count() + 1,
                text: text
                    .chars()
                    .take(80)
                    .map(|c| if c.is_control() { '?' } else { c })
                    .collect(),
                why,
            })
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Expression {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Expression {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// A failure: the byte at which it is, and a sentence for the operator.
type Wrong = (usize, String);

struct Reader<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
    selectors: Vec<Selector>,
}

impl Reader<'_> {
    fn whole(&mut self) -> Result<Node, Wrong> {
        if self.text.len() > LONGEST {
            return Err((0, format!("longer than {LONGEST} bytes")));
        }
        let (root, _) = self.sum()?;
        match self.next() {
            None => Ok(root),
            Some(_) => self.wrong("expected `+`, `-`, `*`, `/` or the end"),
        }
    }

    fn wrong<T>(&self, why: impl Into<String>) -> Result<T, Wrong> {
        Err((self.at, why.into()))
    }

    /// The next character, spaces apart.
    fn next(&mut self) -> Option<char> {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
        self.text[self.at..].chars().next()
    }

    /// Takes `wanted` if it comes next.
    fn take(&mut self, wanted: &str) -> bool {
        self.next();
        let there = self.text[self.at..].starts_with(wanted);
        if there {
            self.at += wanted.len();
        }
        there
    }

    fn expect(&mut self, wanted: &str) -> Result<(), Wrong> {
        if self.take(wanted) {
            Ok(())
        } else {
            self.wrong(format!("expected `{wanted}`"))
        }
    }

    /// The longest run of characters that `fits` from here on.
    fn run(&mut self, fits: impl Fn(char) -> bool) -> &str {
        let rest = &self.text[self.at..];
        let run = &rest[..rest.find(|c| !fits(c)).unwrap_or(rest.len())];
        self.at += run.len();
        run
    }

    fn sum(&mut self) -> Result<Read, Wrong> {
        let mut left = self.product()?;
        loop {
            let operator = match self.next() {
                Some('+') => Operator::Add,
                Some('-') => Operator::Subtract,
                _ => return Ok(left),
            };
            left = self.both(operator, left, Self::product)?;
        }
    }

    fn product(&mut self) -> Result<Read, Wrong> {
        let mut left = self.operand()?;
        loop {
            let operator = match self.next() {
                Some('*') => Operator::Multiply,
                Some('/') => Operator::Divide,
                _ => return Ok(left),
            };
            left = self.both(operator, left, Self::operand)?;
        }
    }

    /// Reads the operator that comes next, and what stands to its right.
    fn both(
        &mut self,
        operator: Operator,
        (left, left_many): Read,
        right: fn(&mut Self) -> Result<Read, Wrong>,
    ) -> Result<Read, Wrong> {
        let at = self.at;
        self.at += 1;
        let (right, right_many) = right(self)?;
        if left_many && right_many {
            return Err((
                at,
                "both sides are sets of series: make a number of one with sum(), avg(), max() or count()"
                    .into(),
            ));
        }
        let node = Node::Binary(operator, Box::new(left), Box::new(right));
        Ok((node, left_many || right_many))
    }

    fn operand(&mut self) -> Result<Read, Wrong> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return self.wrong(format!("deeper than {DEEPEST} levels"));
        }
        let read = match self.next() {
            Some('(') => {
                self.expect("(")?;
                let inner = self.sum()?;
                self.expect(")")?;
                inner
            }
            Some('-') => {
                self.expect("-")?;
                let (inner, many) = self.operand()?;
                let minus = Box::new(Node::Number(-1.0));
                (Node::Binary(Operator::Multiply, minus, Box::new(inner)), many)
            }
            Some('0'..='9' | '.') => (self.number()?, false),
            Some('a'..='z' | 'A'..='Z' | '_' | ':') => self.named()?,
            _ => return self.wrong("expected a number, a metric, a function or `(`"),
        };
        self.depth -= 1;
        Ok(read)
    }

    fn number(&mut self) -> Result<Node, Wrong> {
        let start = self.at;
        self.run(|c| c.is_ascii_digit() || c == '.');
        if self.text[self.at..].starts_with(['e', 'E']) {
            self.at += 1;
            if self.text[self.at..].starts_with(['+', '-']) {
                self.at += 1;
            }
            self.run(|c| c.is_ascii_digit());
        }
        match self.text[start..self.at].parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(Node::Number(number)),
            _ => Err((start, "not a number".into())),
        }
    }

    /// A function or a metric.
    fn named(&mut self) -> Result<Read, Wrong> {
        let start = self.at;
        let name = self.name().to_owned();
        if self.next() != Some('(') {
            return Ok((Node::Select(self.selector(name)?), true));
        }
        let aggregate = match name.as_str() {
            "sum" => Some(Aggregate::Sum),
            "avg" => Some(Aggregate::Avg),
            "max" => Some(Aggregate::Max),
            "count" => Some(Aggregate::Count),
            "rate" => None,
            _ => {
                return Err((
                    start,
                    format!("there is no function `{name}`; there are sum, avg, max, count and rate"),
                ));
            }
        };
        self.expect("(")?;
        self.next();
        let inside = self.at;
        let (inner, many) = self.sum()?;
        let read = match (aggregate, inner) {
            (Some(aggregate), inner) if many => (Node::Aggregate(aggregate, Box::new(inner)), false),
            (None, Node::Select(selector)) => (Node::Rate(selector), true),
            (None, _) => return Err((inside, "rate() takes a metric".into())),
            _ => return Err((inside, format!("{name}() takes series, and this is one number"))),
        };
        self.expect(")")?;
        Ok(read)
    }

    fn name(&mut self) -> &str {
        self.run(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
    }

    /// What stands in braces behind a metric's name.
    fn selector(&mut self, name: String) -> Result<usize, Wrong> {
        let mut labels = Vec::new();
        if self.take("{") {
            while self.next() != Some('}') {
                let label = self.name().to_owned();
                if label.is_empty() {
                    return self.wrong("expected a label or `}`");
                }
                self.next();
                let at = self.at;
                if self.take("=~") || self.take("!~") {
                    return Err((at, "patterns are not supported; `=` and `!=` are".into()));
                }
                let equal = !self.take("!=");
                if equal && !self.take("=") {
                    return self.wrong("expected `=` or `!=`");
                }
                let value = self.quoted()?;
                labels.push(Matcher { label, equal, value });
                if !self.take(",") && self.next() != Some('}') {
                    return self.wrong("expected `,` or `}`");
                }
            }
            self.expect("}")?;
        }
        if self.next() == Some('[') {
            return self.wrong("no time stands here: rate() is over the time from one scrape to the next");
        }
        let selector = Selector { name, labels };
        let known = self.selectors.iter().position(|other| *other == selector);
        Ok(known.unwrap_or_else(|| {
            self.selectors.push(selector);
            self.selectors.len() - 1
        }))
    }

    fn quoted(&mut self) -> Result<String, Wrong> {
        let Some(quote @ ('"' | '\'')) = self.next() else {
            return self.wrong("expected a value in quotes");
        };
        let start = self.at;
        self.at += 1;
        let mut value = String::new();
        let mut characters = self.text[self.at..].chars();
        while let Some(c) = characters.next() {
            self.at += c.len_utf8();
            match c {
                _ if c == quote => return Ok(value),
                '\\' => {
                    let escaped = characters.next();
                    self.at += escaped.map_or(0, char::len_utf8);
                    value.extend(escaped.map(|c| if c == 'n' { '\n' } else { c }));
                }
                _ => value.push(c),
            }
        }
        Err((start, "the quotes are not closed".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Expression {
        text.parse().unwrap()
    }

    #[test]
    fn products_bind_before_sums_and_both_from_the_left() {
        let number = |x| Box::new(Node::Number(x));
        let product = Node::Binary(Operator::Multiply, number(2.0), number(3.0));
        let sum = Node::Binary(Operator::Add, number(1.0), Box::new(product));
        assert_eq!(
            read("1 + 2*3 - .5e1").root,
            Node::Binary(Operator::Subtract, Box::new(sum), number(5.0))
        );
    }

    #[test]
    fn selectors_are_read_with_their_labels_and_kept_once() {
        let read = read(r#"sum(rate(a:b{x="1",y!='q\'"',})) / sum(a:b { x = "1", y != "q'\"" }) + c"#);
        let matcher = |label: &str, equal, value: &str| Matcher {
            label: label.into(),
            equal,
            value: value.into(),
        };
        let first = Selector {
            name: "a:b".into(),
            labels: vec![matcher("x", true, "1"), matcher("y", false, "q'\"")],
        };
        let second = Selector {
            name: "c".into(),
            labels: vec![],
        };
        assert_eq!(read.selectors, [first, second]);
    }

    #[test]
    fn what_cannot_be_computed_is_refused_with_its_place() {
        for (text, position, why) in [
            ("", 1, "expected a number"),
            ("1 +", 4, "expected a number"),
            ("1 2", 3, "expected `+`"),
            ("(1", 3, "expected `)`"),
            ("1.2.3", 1, "not a number"),
            ("1e", 1, "not a number"),
            ("sum(1)", 5, "takes series"),
            ("sum(a) + avg(sum(b))", 14, "takes series"),
            ("rate(sum(a))", 6, "takes a metric"),
            ("min(a)", 1, "no function `min`"),
            ("a / b", 3, "both sides"),
            ("a{b}", 4, "expected `=`"),
            ("a{b=~\"x\"}", 4, "patterns"),
            ("a{b=\"x}", 5, "not closed"),
            ("a{b=x}", 5, "in quotes"),
            ("a{b=\"x\" c=\"y\"}", 9, "expected `,`"),
            ("a{=\"x\"}", 3, "expected a label"),
            ("rate(a[5m])", 7, "no time"),
            ("ü", 1, "expected a number"),
            ("1 + 'ü'", 5, "expected a number"),
        ] {
            let wrong = text.parse::<Expression>().unwrap_err();
            assert!(
                wrong.position == position && wrong.why.contains(why),
                "{text}: {wrong}"
            );
        }
        assert!("(".repeat(900).parse::<Expression>().is_err());
        assert!("-".repeat(900).parse::<Expression>().is_err());
        assert!("1+".repeat(600).parse::<Expression>().is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_survived_and_what_is_read_is_written_as_it_was(
            any in ".{0,80}",
            alike in "[-+*/(){}=!~\",. 0-9a-c]{0,40}",
            words in prop::collection::vec(
                prop::sample::select(vec![
                    "sum(", "rate(", "a", "{b=\"c\"}", ")", "(", "1", "/", "-", " ", "{", "}", "\"", "\\", "ü",
                ]),
                0..20,
            ),
        ) {
            for text in [any, alike, words.concat()] {
                match text.parse::<Expression>() {
                    Ok(read) => prop_assert_eq!(read.to_string(), text),
                    Err(wrong) => prop_assert!(wrong.position <= text.chars().count() + 1),
                }
            }
        }
    }
}
