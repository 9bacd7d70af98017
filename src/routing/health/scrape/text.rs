//! The text format in which Prometheus is shown metrics: one sample a line, comments behind `#`.
//!
//! A line that is none is passed over, and so is what may stand behind a value: a time, an exemplar of OpenMetrics.
//! Nothing is copied but the part of a line that one piece of the body ends in the middle of.

use std::borrow::Cow;

use memchr::memchr;

/// A longer line is passed over.
const LONGEST_LINE: usize = 64 << 10;

/// One value of one series.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample<'a> {
    /// The metric's name.
    pub name: &'a str,
    /// What stands between the braces: with the name, what tells the series from others of the same exporter.
    pub labels: &'a str,
    /// The value; may be NaN or infinite.
    pub value: f64,
}

impl<'a> Sample<'a> {
    /// Reads a line; `None` for comments and whatever else is no sample.
    pub fn read(line: &'a str) -> Option<Self> {
        let line = line.trim();
        let name = &line[..line.find(|c: char| c == '{' || c.is_whitespace())?];
        if name.is_empty() || name.starts_with('#') {
            return None;
        }
        let rest = line[name.len()..].trim_start();
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(inside) => {
                let end = closing_brace(inside)?;
                (&inside[..end], &inside[end + 1..])
            }
            None => ("", rest),
        };
        Some(Self {
            name,
            labels,
            value: rest.split_whitespace().next()?.parse().ok()?,
        })
    }

    /// The value of a label; empty when it has none of that name, which means the same.
    pub fn label(&self, name: &str) -> Cow<'a, str> {
        let mut rest = self.labels;
        while let Some((label, quoted)) = rest.split_once('=') {
            let Some(inside) = quoted.trim_start().strip_prefix('"') else {
                break;
            };
            let Some(end) = closing_quote(inside) else { break };
            if label.trim_matches([' ', '\t', ',']) == name {
                return unescaped(&inside[..end]);
            }
            rest = &inside[end + 1..];
        }
        Cow::Borrowed("")
    }
}

fn closing_brace(inside: &str) -> Option<usize> {
    let mut at = 0;
    loop {
        match *inside.as_bytes().get(at)? {
            b'}' => return Some(at),
            b'"' => at += closing_quote(&inside[at + 1..])? + 2,
            _ => at += 1,
        }
    }
}

/// Where the quotes end that were opened before `inside`.
fn closing_quote(inside: &str) -> Option<usize> {
    let mut escaped = false;
    inside.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })
}

fn unescaped(value: &str) -> Cow<'_, str> {
    if !value.contains('\\') {
        return Cow::Borrowed(value);
    }
    let mut characters = value.chars();
    let mut plain = String::with_capacity(value.len());
    while let Some(c) = characters.next() {
        match c {
            '\\' => plain.extend(characters.next().map(|c| if c == 'n' { '\n' } else { c })),
            _ => plain.push(c),
        }
    }
    Cow::Owned(plain)
}

/// Makes lines of a body that comes in pieces.
#[derive(Debug, Default)]
pub struct Lines {
    /// The beginning of a line whose end has not come yet.
    begun: Vec<u8>,
    /// That line is too long.
    too_long: bool,
}

impl Lines {
    /// Calls `each` with the lines that end in `piece`. The last one of a body counts only with its line feed: it may
    /// have been cut off.
    pub fn feed(&mut self, mut piece: &[u8], mut each: impl FnMut(&str)) {
        while let Some(end) = memchr(b'\n', piece) {
            self.begin(&piece[..end]);
            if !self.too_long
                && let Ok(line) = std::str::from_utf8(&self.begun)
            {
                each(line);
            }
            self.begun.clear();
            self.too_long = false;
            piece = &piece[end + 1..];
        }
        self.begin(piece);
    }

    fn begin(&mut self, bytes: &[u8]) {
        self.too_long |= self.begun.len() + bytes.len() > LONGEST_LINE;
        if !self.too_long {
            self.begun.extend_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(pieces: &[&[u8]]) -> Vec<String> {
        let (mut lines, mut found) = (Lines::default(), Vec::new());
        for piece in pieces {
            lines.feed(piece, |line| found.push(line.to_owned()));
        }
        found
    }

    #[test]
    fn samples_are_read_as_exporters_write_them() {
        for (line, expected) in [
            ("up 1", Some(("up", "", 1.0))),
            ("up{} 1", Some(("up", "", 1.0))),
            (
                "\tup { a = \"b\" }  1.5e-3 1700000000000",
                Some(("up", " a = \"b\" ", 1.5e-3)),
            ),
            (
                r#"a{x="}",y="\"{"} 2 # {trace="t"} 0.5"#,
                Some(("a", r#"x="}",y="\"{""#, 2.0)),
            ),
            ("a +Inf", Some(("a", "", f64::INFINITY))),
            ("# TYPE up gauge", None),
            ("#up 1", None),
            ("", None),
            ("up", None),
            ("up one", None),
            ("up{a=\"b\" 1", None),
            ("{\"quoted name\"} 1", None),
        ] {
            let read = Sample::read(line).map(|sample| (sample.name, sample.labels, sample.value));
            assert_eq!(read, expected, "{line}");
        }
        assert!(Sample::read("a NaN").unwrap().value.is_nan());
    }

    #[test]
    fn labels_are_found_by_their_whole_name() {
        let sample = Sample::read(r#"m{mode="idle", cpu = "0",path="a,mode=\"x\"\\\n",} 1"#).unwrap();
        for (label, value) in [
            ("mode", "idle"),
            ("cpu", "0"),
            ("path", "a,mode=\"x\"\\\n"),
            ("pat", ""),
            ("x", ""),
        ] {
            assert_eq!(sample.label(label), value, "{label}");
        }
    }

    #[test]
    fn lines_are_put_together_and_the_last_counts_only_with_its_end() {
        assert_eq!(lines(&[b"a 1\nb", b" 2", b"", b"\n\nc 3"]), ["a 1", "b 2", ""]);
        let long = vec![b'x'; LONGEST_LINE];
        assert_eq!(lines(&[&long, b"x", b"x\na\n\xff\nb\n"]), ["a", "b"]);
        assert_eq!(lines(&[&long, b"\n"])[0].len(), LONGEST_LINE);
    }

    proptest! {
        #[test]
        fn any_line_is_survived(
            any in ".{0,60}",
            alike in "[a-c{}\"\\\\=, #0-9.\u{fc}]{0,40}",
            label in "[a-c]?",
        ) {
            for line in [any, format!("m{{a=\"{alike}\"}} 1"), alike] {
                if let Some(sample) = Sample::read(&line) {
                    prop_assert!(!sample.name.is_empty());
                    sample.label(&label);
                }
            }
        }

        #[test]
        fn however_a_body_is_cut_its_lines_are_the_same(
            body in prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..200),
            cut in 0usize..200,
        ) {
            let (before, after) = body.split_at(cut.min(body.len()));
            prop_assert_eq!(lines(&[&body]), lines(&[before, after]));
        }
    }
}
