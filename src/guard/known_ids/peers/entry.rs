//! What stands in the stream: one thing that exists in each entry, and how a reply of Redis is taken apart.
//!
//! Instances of different versions read each other's entries, and anybody may have put something there: what is not
//! understood is passed over, and nothing that comes from there can stop the reading.

use std::fmt;

use fred::types::Value;

use crate::types::known::{IdKind, KnownId};

/// One thing of a kind.
pub(super) type Item = (IdKind, KnownId);

/// The name of an entry's only field.
pub(super) const FIELD: &str = "i";

/// The bytes of a thing: what says of which kind it is, then its id.
const LENGTH: usize = 17;

/// What a kind is on the wire. For ever: other versions read it, so a code is never given to another kind.
fn code(kind: IdKind) -> u8 {
    match kind {
        IdKind::AppKey => 1,
        IdKind::DatasetKey => 2,
        IdKind::App => 3,
        IdKind::SiteCode => 4,
        IdKind::Dataset => 5,
        IdKind::Document => 6,
        IdKind::Segment => 7,
        IdKind::ChildChunk => 8,
        IdKind::Conversation => 9,
        IdKind::Message => 10,
        IdKind::UploadFile => 11,
        IdKind::WorkflowRun => 12,
        IdKind::Annotation => 13,
        IdKind::McpServer => 14,
        IdKind::Webhook => 15,
    }
}

/// What is written for a thing.
pub(super) fn encode((kind, id): Item) -> [u8; LENGTH] {
    let mut bytes = [code(kind); LENGTH];
    bytes[1..].copy_from_slice(&id.0);
    bytes
}

/// The thing that these bytes are, if this version knows its kind.
pub(super) fn decode(bytes: &[u8]) -> Option<Item> {
    let bytes: &[u8; LENGTH] = bytes.try_into().ok()?;
    let kind = IdKind::ALL.iter().find(|kind| code(**kind) == bytes[0])?;
    let mut id = [0; LENGTH - 1];
    id.copy_from_slice(&bytes[1..]);
    Some((*kind, KnownId(id)))
}

/// Where an entry is in the stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// When it was put there, by the clock of Redis: milliseconds since the Unix epoch.
    pub(super) millis: u64,
    number: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.millis, self.number)
    }
}

impl Place {
    /// `1526919030474-55`
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let (millis, number) = std::str::from_utf8(bytes).ok()?.split_once('-')?;
        Some(Self {
            millis: millis.parse().ok()?,
            number: number.parse().ok()?,
        })
    }

    /// The first place behind this one; none behind the last that there can be.
    pub(super) fn next(self) -> Option<Self> {
        let (number, is_over) = self.number.overflowing_add(1);
        let millis = self.millis.checked_add(is_over.into())?;
        Some(Self { millis, number })
    }
}

/// The entries that `XRANGE` and `XREVRANGE` answer with; of each where it is, and the thing if there is one in it.
/// `None` when that is no such answer.
pub(super) fn entries(reply: Value) -> Option<Vec<(Place, Option<Item>)>> {
    match reply {
        Value::Array(entries) => entries.iter().map(entry).collect(),
        Value::Null => Some(Vec::new()),
        _ => None,
    }
}

fn entry(entry: &Value) -> Option<(Place, Option<Item>)> {
    let Value::Array(parts) = entry else { return None };
    let place = Place::parse(bytes(parts.first()?)?)?;
    let item = match parts.get(1) {
        Some(Value::Array(fields)) => fields.chunks_exact(2).find_map(|field| {
            let is_ours = bytes(&field[0]) == Some(FIELD.as_bytes());
            decode(bytes(&field[1]).filter(|_| is_ours)?)
        }),
        _ => None,
    };
    Some((place, item))
}

fn bytes(value: &Value) -> Option<&[u8]> {
    match value {
        Value::Bytes(bytes) => Some(bytes),
        Value::String(text) => Some(text.as_bytes()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(text: &str) -> Value {
        Value::String(text.into())
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::Integer),
            proptest::collection::vec(any::<u8>(), 0..20).prop_map(|bytes| Value::Bytes(bytes.into())),
            "[0-9]{0,21}-?[0-9]{0,21}".prop_map(|place| Value::String(place.into())),
            Just(text(FIELD)),
        ];
        leaf.prop_recursive(3, 40, 4, |inner| {
            proptest::collection::vec(inner, 0..4).prop_map(Value::Array)
        })
    }

    #[test]
    fn every_kind_has_a_code_of_its_own_which_stays() {
        // As they were when the first version wrote them.
        let codes: Vec<_> = IdKind::ALL
            .iter()
            .map(|kind| (kind.as_str(), code(*kind)))
            .collect();
        let first = [
            ("app_key", 1),
            ("dataset_key", 2),
            ("app", 3),
            ("site_code", 4),
            ("dataset", 5),
            ("document", 6),
            ("segment", 7),
            ("child_chunk", 8),
            ("conversation", 9),
            ("message", 10),
            ("upload_file", 11),
            ("workflow_run", 12),
            ("annotation", 13),
            ("mcp_server", 14),
            ("webhook", 15),
        ];
        assert!(first.iter().all(|kind| codes.contains(kind)), "{codes:?}");
        let mut distinct: Vec<_> = codes.iter().map(|(_, code)| code).collect();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), IdKind::ALL.len());
    }

    #[test]
    fn a_kind_that_is_not_known_and_bytes_too_few_or_too_many_are_nothing() {
        let good = encode((IdKind::Dataset, KnownId([7; 16])));
        assert_eq!(decode(&good), Some((IdKind::Dataset, KnownId([7; 16]))));
        assert_eq!(decode(&good[..16]), None);
        assert_eq!(decode(&[&good[..], b"x"].concat()), None);
        for unknown in [0, 16, 255] {
            assert_eq!(decode(&[unknown; 17]), None);
        }
    }

    #[test]
    fn entries_of_others_are_counted_but_hold_nothing() {
        let good = Value::Bytes(encode((IdKind::App, KnownId([200; 16]))).to_vec().into());
        let entry = |place: &str, fields: Vec<Value>| Value::Array(vec![text(place), Value::Array(fields)]);
        let reply = Value::Array(vec![
            entry("5-0", vec![text("x"), text("y")]),
            entry("5-1", vec![text("x"), text("y"), text(FIELD), good]),
            entry("6-0", vec![text(FIELD)]),
            entry("7-0", vec![text(FIELD), Value::Integer(5)]),
        ]);
        let read = entries(reply).expect("entries");
        let things: Vec<_> = read.iter().map(|(_, item)| item.is_some()).collect();
        assert_eq!(things, [false, true, false, false]);
        assert_eq!(read[3].0.to_string(), "7-0");
        assert_eq!(entries(Value::Null), Some(Vec::new()));
    }

    #[test]
    fn behind_a_place_is_the_next_one_and_behind_the_last_none() {
        let place = |text: &str| Place::parse(text.as_bytes()).expect("a place");
        assert_eq!(place("5-0").next(), Some(place("5-1")));
        assert_eq!(place("5-18446744073709551615").next(), Some(place("6-0")));
        assert_eq!(place("18446744073709551615-18446744073709551615").next(), None);
        assert!(place("5-9") < place("5-10") && place("5-10") < place("10-0"));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(kind in 0..IdKind::ALL.len(), id in any::<[u8; 16]>()) {
            let item = (IdKind::ALL[kind], KnownId(id));
            prop_assert_eq!(decode(&encode(item)), Some(item));
        }

        #[test]
        fn any_bytes_are_one_thing_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Some(item) = decode(&bytes) {
                prop_assert_eq!(&encode(item)[..], &bytes[..]);
            }
            let _ = Place::parse(&bytes);
        }

        #[test]
        fn any_reply_can_be_taken_apart(reply in any_value()) {
            let _ = entries(reply);
        }

        #[test]
        fn a_place_is_read_as_it_is_written(millis in any::<u64>(), number in any::<u64>()) {
            let place = Place { millis, number };
            prop_assert_eq!(Place::parse(place.to_string().as_bytes()), Some(place));
        }
    }
}
