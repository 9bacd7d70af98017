//! YAML text to a [`Node`] tree in which everything knows its line and column.
//!
//! YAML 1.2 core schema (so `off` and `yes` are words, not booleans), one document, duplicate keys refused.
//! Bounded: text, nesting, and the number of values, so that aliases of aliases cannot blow up.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Tag};
use serde_json::Value;

use super::tree::{Entry, Kind, Node, Origin};

/// Longest text, in bytes.
pub(super) const MAX_BYTES: usize = 1 << 20;
/// Deepest nesting of lists and maps.
const MAX_DEPTH: usize = 64;
/// Values in all, with those that aliases repeat.
const MAX_VALUES: usize = 20_000;

/// Why a text is not taken, and where.
#[derive(Debug, PartialEq)]
pub(super) struct Refused {
    pub(super) origin: Origin,
    pub(super) message: String,
}

/// Where a text comes from: its places become origins.
#[derive(Debug)]
pub(super) enum Text {
    /// A file of this name.
    File(Arc<str>),
    /// One value that is all written in the same place.
    Value(Origin),
}

impl Text {
    fn origin(&self, mark: &Marker) -> Origin {
        match self {
            Self::File(name) => Origin::File {
                name: name.clone(),
                line: mark.line(),
                column: mark.col() + 1,
            },
            Self::Value(origin) => origin.clone(),
        }
    }
}

/// A list or map that is still open.
enum Open {
    List(Vec<Node>),
    Map(Vec<Entry>, Option<(String, Origin)>),
}

struct Frame {
    open: Open,
    origin: Origin,
    anchor: usize,
}

/// Parses one document; an empty text is null.
pub(super) fn parse(text: &str, from: &Text) -> Result<Node, Refused> {
    let start = Marker::new(0, 1, 0);
    let refuse = |mark: &Marker, message: String| Refused {
        origin: from.origin(mark),
        message,
    };
    if text.len() > MAX_BYTES {
        return Err(refuse(&start, format!("longer than {MAX_BYTES} bytes")));
    }
    let mut builder = Builder::default();
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| refuse(error.marker(), error.info().to_owned()))?;
        builder
            .take(event, from.origin(&span.start))
            .map_err(|message| refuse(&span.start, message))?;
    }
    Ok(builder
        .root
        .unwrap_or_else(|| Node::new(from.origin(&start), Kind::Scalar(Value::Null))))
}

#[derive(Default)]
struct Builder {
    stack: Vec<Frame>,
    anchors: HashMap<usize, Node>,
    values: usize,
    root: Option<Node>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, origin: Origin) -> Result<(), String> {
        match event {
            Event::DocumentStart(_) if self.root.is_some() => Err("a second document; one is allowed".into()),
            Event::Scalar(text, style, anchor, tag) => {
                let value = scalar(&text, style, tag.as_deref())?;
                if let Some(Frame {
                    open: Open::Map(entries, key @ None),
                    ..
                }) = self.stack.last_mut()
                {
                    if let Some(first) = entries.iter().find(|entry| entry.key == *text) {
                        return Err(format!(
                            "the key `{text}` stands here twice, first at {}",
                            first.origin
                        ));
                    }
                    *key = Some((text.into_owned(), origin));
                    return Ok(());
                }
                self.add(Node::new(origin, Kind::Scalar(value)), anchor)
            }
            Event::SequenceStart(anchor, tag) => self.open(Open::List(Vec::new()), origin, anchor, tag),
            Event::MappingStart(anchor, tag) => self.open(Open::Map(Vec::new(), None), origin, anchor, tag),
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(frame) = self.stack.pop() else {
                    return Ok(());
                };
                let kind = match frame.open {
                    Open::List(items) => Kind::List(items),
                    Open::Map(entries, _) => Kind::Map(entries),
                };
                self.add(Node::new(frame.origin, kind), frame.anchor)
            }
            Event::Alias(anchor) => {
                let node = self
                    .anchors
                    .get(&anchor)
                    .ok_or("an alias of something that is not complete yet")?;
                self.values += node.size();
                if self.values > MAX_VALUES || self.stack.len() + node.height() > MAX_DEPTH {
                    return Err("the aliases make too many values".into());
                }
                self.add(node.clone(), 0)
            }
            _ => Ok(()),
        }
    }

    fn open(
        &mut self,
        open: Open,
        origin: Origin,
        anchor: usize,
        tag: Option<Cow<'_, Tag>>,
    ) -> Result<(), String> {
        if let Some(tag) = tag {
            return Err(format!("the tag {tag} has no meaning here"));
        }
        if let Some(Frame {
            open: Open::Map(_, None),
            ..
        }) = self.stack.last()
        {
            return Err("a list or map cannot be a key".into());
        }
        if self.stack.len() == MAX_DEPTH {
            return Err(format!("nested more than {MAX_DEPTH} levels deep"));
        }
        self.stack.push(Frame { open, origin, anchor });
        Ok(())
    }

    /// Puts a finished value where it belongs.
    fn add(&mut self, node: Node, anchor: usize) -> Result<(), String> {
        self.values += 1;
        if self.values > MAX_VALUES {
            return Err(format!("more than {MAX_VALUES} values"));
        }
        if anchor != 0 {
            self.values += node.size();
            self.anchors.insert(anchor, node.clone());
        }
        match self.stack.last_mut().map(|frame| &mut frame.open) {
            None => self.root = Some(node),
            Some(Open::List(items)) => items.push(node),
            Some(Open::Map(entries, key)) => {
                let (key, origin) = key.take().ok_or("a list or map cannot be a key")?;
                entries.push(Entry {
                    key,
                    origin,
                    value: node,
                });
            }
        }
        Ok(())
    }
}

/// Whether an unquoted `text` is a string.
pub(super) fn is_string(text: &str) -> bool {
    matches!(scalar(text, ScalarStyle::Plain, None), Ok(Value::String(_)))
}

/// The core schema of YAML 1.2 (section 10.3.2), without infinities, which no key here takes.
fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<Value, String> {
    if let Some(tag) = tag {
        if tag.is_yaml_core_schema() && tag.suffix == "str" {
            return Ok(Value::from(text));
        }
        return Err(format!("the tag {tag} has no meaning here"));
    }
    if style != ScalarStyle::Plain {
        return Ok(Value::from(text));
    }
    let radix = |prefix, radix| {
        text.strip_prefix(prefix)
            .and_then(|digits| u64::from_str_radix(digits, radix).ok())
    };
    Ok(match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ if !text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) => Value::from(text),
        _ => {
            if let Some(number) = text.parse::<u64>().ok().or(radix("0x", 16)).or(radix("0o", 8)) {
                Value::from(number)
            } else if let Ok(number) = text.parse::<i64>() {
                Value::from(number)
            } else if text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b)) {
                let number = text.parse::<f64>().ok().filter(|number| number.is_finite());
                number.map_or_else(|| Value::from(text), Value::from)
            } else {
                Value::from(text)
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn read(text: &str) -> Result<Node, Refused> {
        parse(text, &Text::File("f.yaml".into()))
    }

    fn value(text: &str) -> Value {
        read(text).unwrap().to_value()
    }

    fn refusal(text: &str) -> String {
        let refused = read(text).unwrap_err();
        format!("{}: {}", refused.origin, refused.message)
    }

    #[test]
    fn the_core_schema_is_read() {
        assert_eq!(
            value(
                "a: 1\nb: -2\nc: 1.5\nd: off\ne: '1'\nf: ~\ng: true\nh: 0x10\ni: 80%\nj: 0.0.0.0:8080\nk: 1e3"
            ),
            json!({"a": 1, "b": -2, "c": 1.5, "d": "off", "e": "1", "f": null, "g": true, "h": 16, "i": "80%",
                "j": "0.0.0.0:8080", "k": 1000.0})
        );
        assert_eq!(
            value(r#"{"json": [1, {"too": null}]}"#),
            json!({"json": [1, {"too": null}]})
        );
        assert_eq!(value("# nothing\n"), Value::Null);
    }

    #[test]
    fn every_value_knows_its_line_and_column() {
        let tree = read("a:\n  b: 1\n  c: [x,\n    y]\n").unwrap();
        let path = super::super::tree::Path::default().join("a").join("c").join(1);
        assert_eq!(tree.at(&path).unwrap().origin.to_string(), "f.yaml:4:5");
        let key = super::super::tree::Path::default().join("a").join("c");
        assert_eq!(tree.origin_of_key(&key).to_string(), "f.yaml:3:3");
    }

    #[test]
    fn what_is_ambiguous_or_unknown_is_refused_with_its_place() {
        assert_eq!(
            refusal("a: 1\nb: 2\na: 3\n"),
            "f.yaml:3:1: the key `a` stands here twice, first at f.yaml:1:1"
        );
        assert!(refusal("a: 1\n---\nb: 2\n").contains("second document"));
        assert!(refusal("a: !secret x").contains("tag"));
        assert!(refusal("[a]: 1").contains("cannot be a key"));
        assert!(refusal("a: [1, 2\nb: 3").starts_with("f.yaml:"));
        assert!(refusal("a: *nowhere").starts_with("f.yaml:1:"));
    }

    #[test]
    fn aliases_work_and_a_bomb_of_them_does_not() {
        assert_eq!(
            value("a: &x {t: 1}\nb: *x"),
            json!({"a": {"t": 1}, "b": {"t": 1}})
        );
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..30 {
            let below = format!("*a{}, ", level - 1).repeat(10);
            bomb.push_str(&format!("a{level}: &a{level} [{below}]\n"));
        }
        assert!(refusal(&bomb).contains("aliases make too many values"));
        assert!(refusal("a: &a [*a]").contains("not complete"));
    }

    #[test]
    fn nesting_and_length_are_bounded() {
        assert!(refusal(&"- ".repeat(100)).contains("nested more than 64"));
        assert!(refusal(&"[".repeat(MAX_BYTES)).contains("recursion limit"));
        assert!(refusal(&"- a: \n".repeat(MAX_BYTES)).contains("longer"));
        let mut tower = format!("a0: &a0 {}x{}\n", "[".repeat(40), "]".repeat(40));
        tower.push_str(&format!("a1: {}*a0{}\n", "[".repeat(40), "]".repeat(40)));
        assert!(refusal(&tower).contains("too many"));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "[-a-c:&*!?|>'\"{}\\[\\], \n#0-9.~\\PC]{0,200}") {
            let _ = read(&text);
        }
    }
}
