//! Finds ids in Dify's answers while they pass: the text behind certain names, wherever these are.
//!
//! Not a parser: nesting does not matter, for an id that is learnt in vain costs no more than one that is not. Works on
//! JSON and on events that carry JSON, in pieces of any size, and remembers a few dozen bytes between them.

use memchr::memchr;

use crate::types::known::{IdKind, KnownId};
use crate::types::request::Learn;

/// The longest name or value that is looked at.
const LONGEST: usize = 64;

/// See the module.
#[derive(Debug)]
pub(super) struct Scanner {
    state: State,
    /// The text that has begun, as far as it may matter.
    text: Vec<u8>,
    /// Whether the text has something in it that is not to be taken as it stands.
    spoilt: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Outside,
    /// In a text; with the place of its name.
    Text(Option<usize>),
    /// Behind a backslash in it.
    Escape(Option<usize>),
    /// Behind a text that is a name if a colon follows; with its place.
    Name(usize),
    /// Behind that colon.
    Colon(usize),
}

impl Scanner {
    pub(super) fn new() -> Self {
        Self {
            state: State::Outside,
            text: Vec::with_capacity(LONGEST),
            spoilt: false,
        }
    }

    /// Goes on with `bytes`; tells `found` of every id that ends in them.
    pub(super) fn scan(
        &mut self,
        mut bytes: &[u8],
        learns: &[Learn],
        mut found: impl FnMut(IdKind, KnownId),
    ) {
        loop {
            if self.state == State::Outside {
                let Some(at) = memchr(b'"', bytes) else { return };
                bytes = &bytes[at..];
            }
            let Some((byte, rest)) = bytes.split_first() else {
                return;
            };
            bytes = rest;
            self.state = match (self.state, *byte) {
                (State::Outside, _) => self.begin(None),
                (State::Text(of), b'\\') => State::Escape(of),
                (State::Text(None), b'"') => match self.name(learns) {
                    Some(place) => State::Name(place),
                    None => State::Outside,
                },
                (State::Text(Some(place)), b'"') => {
                    // One name may stand for things of several kinds, at several places.
                    let name = name_of(&learns[place]);
                    for learn in learns[place..].iter().filter(|learn| name_of(learn) == name) {
                        if let Some(id) = self.id(learn.kind) {
                            found(learn.kind, id);
                        }
                    }
                    State::Outside
                }
                (State::Text(of), byte) => {
                    self.keep(byte);
                    State::Text(of)
                }
                (State::Escape(of), _) => {
                    self.spoilt = true;
                    State::Text(of)
                }
                (state @ (State::Name(_) | State::Colon(_)), b' ' | b'\t' | b'\r' | b'\n') => state,
                (State::Name(place), b':') => State::Colon(place),
                (State::Colon(place), b'"') => self.begin(Some(place)),
                // What seemed to be a name was a value: this begins the next text.
                (State::Name(_), b'"') => self.begin(None),
                (State::Name(_) | State::Colon(_), _) => State::Outside,
            };
        }
    }

    fn begin(&mut self, of: Option<usize>) -> State {
        self.text.clear();
        self.spoilt = false;
        State::Text(of)
    }

    fn keep(&mut self, byte: u8) {
        if self.text.len() < LONGEST {
            self.text.push(byte);
        } else {
            self.spoilt = true;
        }
    }

    fn name(&self, learns: &[Learn]) -> Option<usize> {
        let named = |learn: &Learn| name_of(learn).as_bytes() == self.text;
        learns.iter().position(named).filter(|_| !self.spoilt)
    }

    fn id(&self, kind: IdKind) -> Option<KnownId> {
        if self.spoilt || self.text.is_empty() {
            return None;
        }
        KnownId::of_kind(kind, &self.text)
    }
}

/// What stands before the text: the end of the pointer.
fn name_of(learn: &Learn) -> &'static str {
    learn.pointer.rsplit('/').next().unwrap_or_default()
}

/// Scans bytes that say themselves how they are cut: their first is the number of the lengths that follow. Where the
/// cuts are makes no difference to what is found.
#[cfg(any(test, fuzzing))]
pub(super) fn read_anything(bytes: &[u8]) {
    const LEARNS: &[Learn] = &[
        Learn {
            pointer: "/data/*/id",
            kind: IdKind::Dataset,
        },
        Learn {
            pointer: "/token",
            kind: IdKind::AppKey,
        },
        Learn {
            pointer: "/document/id",
            kind: IdKind::Document,
        },
    ];
    let Some((cuts, rest)) = bytes.split_first() else {
        return;
    };
    let (lengths, mut text) = rest.split_at(usize::from(*cuts % 16).min(rest.len()));
    let mut whole = Vec::new();
    Scanner::new().scan(text, LEARNS, |kind, id| whole.push((kind, id)));
    let (mut scanner, mut found) = (Scanner::new(), Vec::new());
    let mut scan = |piece: &[u8]| {
        scanner.scan(piece, LEARNS, |kind, id| found.push((kind, id)));
        assert!(scanner.text.len() <= LONGEST);
    };
    for length in lengths {
        let (piece, rest) = text.split_at(usize::from(*length).min(text.len()));
        scan(piece);
        text = rest;
    }
    scan(text);
    assert_eq!(found, whole);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Scanner, read_anything};
    use crate::types::known::{IdKind, KnownId};
    use crate::types::request::Learn;

    const LEARNS: &[Learn] = &[
        Learn {
            pointer: "/data/*/id",
            kind: IdKind::Dataset,
        },
        Learn {
            pointer: "/token",
            kind: IdKind::AppKey,
        },
    ];
    const ID: &str = "5f0e7a3c-0000-4000-8000-00000000000a";

    fn scan(pieces: &[&[u8]]) -> Vec<(IdKind, KnownId)> {
        let (mut scanner, mut found) = (Scanner::new(), Vec::new());
        for piece in pieces {
            scanner.scan(piece, LEARNS, |kind, id| found.push((kind, id)));
        }
        found
    }

    fn dataset() -> (IdKind, KnownId) {
        (IdKind::Dataset, KnownId::of_uuid(ID.as_bytes()).expect("a UUID"))
    }

    #[test]
    fn ids_are_found_at_any_depth_and_in_events() {
        let text = format!("data: {{\"a\": [1, {{\"id\" : \"{ID}\"}}], \"token\": \"app-x\"}}\n\n");
        let key = (IdKind::AppKey, KnownId::of_text(b"app-x"));
        assert_eq!(scan(&[text.as_bytes()]), [dataset(), key]);
    }

    #[test]
    fn a_text_that_only_speaks_of_an_id_has_none() {
        for text in [
            format!("{{\"query\": \"\\\"id\\\": \\\"{ID}\\\"\"}}"),
            format!("[\"id\", \"{ID}\"]"),
            format!("{{\"other\": \"{ID}\"}}"),
            format!("{{\"id\": [\"{ID}\"]}}"),
            "{\"id\": \"5f0e\"}".to_owned(),
        ] {
            assert_eq!(scan(&[text.as_bytes()]), [], "{text}");
        }
    }

    #[test]
    fn a_value_that_reads_like_a_name_hides_nothing() {
        let text = format!("{{\"name\": \"id\", \"id\": \"{ID}\"}}");
        assert_eq!(scan(&[text.as_bytes()]), [dataset()]);
    }

    /// What answers are made of, and what may be between.
    fn word() -> impl Strategy<Value = Vec<u8>> {
        let parts = ["\"id\"", ":", " ", "\"", "\\", ",", "token", "id", "app-x", ID];
        prop_oneof![
            4 => prop::sample::select(parts.to_vec()).prop_map(|part| part.as_bytes().to_vec()),
            1 => Just(format!("\"id\": \"{ID}\"").into_bytes()),
            1 => proptest::collection::vec(any::<u8>(), 0..80),
        ]
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(at in proptest::collection::vec(0..80usize, 0..6)) {
            let text = format!("{{\"x\": \"\\\\\", \"id\": \"{ID}\", \"y\": {{\"token\": \"app-x\"}}}}");
            let mut at = at;
            at.sort_unstable();
            let (mut pieces, mut from) = (Vec::new(), 0);
            for at in at.into_iter().map(|at| at.min(text.len())) {
                pieces.push(&text.as_bytes()[from..at]);
                from = at;
            }
            pieces.push(&text.as_bytes()[from..]);
            prop_assert_eq!(scan(&pieces).len(), 2);
        }

        #[test]
        fn cuts_do_not_matter_whatever_is_cut(
            lengths in proptest::collection::vec(0..40u8, 0..16),
            words in proptest::collection::vec(word(), 0..40),
        ) {
            let mut bytes = vec![lengths.len() as u8];
            bytes.extend(lengths);
            bytes.extend(words.concat());
            read_anything(&bytes);
        }

        #[test]
        fn anything_can_be_scanned(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            read_anything(&bytes);
        }
    }
}
