//! Finds ids in Dify's answers while they pass: the text behind certain names, wherever these are.
//!
//! That nesting does not matter does no harm: an id that is learnt in vain costs no more than one that is not.

use crate::types::known::{IdKind, KnownId};
use crate::types::request::Learn;
use crate::types::scan::Scanner;

/// Goes on with `bytes` of an answer; tells `found` of every id that ends in them.
pub(super) fn scan(
    scanner: &mut Scanner,
    bytes: &[u8],
    learns: &[Learn],
    mut found: impl FnMut(IdKind, KnownId),
) {
    let place = |name: &[u8]| learns.iter().position(|learn| name_of(learn).as_bytes() == name);
    scanner.scan(bytes, place, |place, text| {
        // One name may stand for things of several kinds, at several places.
        let name = name_of(&learns[place]);
        for learn in learns[place..].iter().filter(|learn| name_of(learn) == name) {
            if let Some(id) = KnownId::of_kind(learn.kind, text) {
                found(learn.kind, id);
            }
        }
    });
}

/// What stands before the text: the end of the pointer.
fn name_of(learn: &Learn) -> &'static str {
    learn.pointer.rsplit('/').next().unwrap_or_default()
}

/// Scans bytes that say themselves how they are cut: their first is the number of the lengths that follow. Where the
/// cuts are makes no difference to what is found.
#[cfg(any(test, fuzzing))]
pub(super) fn read_anything(bytes: &[u8]) {
    use crate::types::scan::LONGEST;

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
    scan(&mut Scanner::default(), text, LEARNS, |kind, id| {
        whole.push((kind, id))
    });
    let (mut scanner, mut found) = (Scanner::default(), Vec::new());
    let mut go_on = |piece: &[u8]| {
        scan(&mut scanner, piece, LEARNS, |kind, id| found.push((kind, id)));
        assert!(scanner.remembers() <= LONGEST);
    };
    for length in lengths {
        let (piece, rest) = text.split_at(usize::from(*length).min(text.len()));
        go_on(piece);
        text = rest;
    }
    go_on(text);
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
        let (mut scanner, mut found) = (Scanner::default(), Vec::new());
        for piece in pieces {
            super::scan(&mut scanner, piece, LEARNS, |kind, id| found.push((kind, id)));
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
