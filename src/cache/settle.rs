//! The end of what Dify does in the background, as far as its answers tell.
//!
//! A write that begins to index documents names their batch in its answer; whoever wants to know how far it is
//! asks for the batch's indexing status. When that answer says that all of it is over, what waits for this batch
//! alone (see `invalidation`) may be stored again. The answers go to the client as they are; of long ones, and of
//! what is not JSON, nothing is concluded.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Response, StatusCode};
use serde::Deserialize;
use smallvec::SmallVec;

use super::fetching::Shared;
use super::fill::{Collected, collect};
use super::invalidation::{TagVersions, Validity};
use crate::types::Body;
use crate::types::ids::{Batch, Tag, Tags};
use crate::types::request::{Background, Decision};

/// The longest answer that is looked at, in bytes.
const LIMIT: u64 = 256 << 10;

/// A question about the progress of a batch, on its way.
pub(super) struct Watch {
    shared: Arc<Shared>,
    batch: Batch,
    /// What may be waiting for the batch, with its version from before the question.
    tags: SmallVec<[(Tag, TagVersions); 3]>,
}

impl Watch {
    /// Before the request goes out; `None` when it asks for nothing of that kind.
    pub(super) fn of(shared: &Arc<Shared>, decision: &Decision) -> Option<Self> {
        let Background::Tells(batch, tags) = &decision.background else {
            return None;
        };
        let with_version = |tag: &Tag| (*tag, shared.tags.versions([*tag]));
        Some(Self {
            shared: shared.clone(),
            batch: *batch,
            tags: tags.iter().map(with_version).collect(),
        })
    }

    /// Gives the answer on, having drawn the conclusion.
    pub(super) async fn look_at(self, response: Response<Body>) -> Response<Body> {
        if response.status() != StatusCode::OK {
            return response;
        }
        let (bytes, response) = seen(response).await;
        if bytes.is_some_and(|bytes| is_over(&bytes)) {
            let shared = &self.shared;
            // A write that came in between may have begun work of which this answer does not know yet.
            let untouched = |(tag, version): &(Tag, TagVersions)| {
                (shared.tags.validity(version) != Validity::Ended).then_some(*tag)
            };
            let tags: Tags = self.tags.iter().filter_map(untouched).collect();
            if let Some(told) = shared.coherence.settle(&tags, self.batch) {
                shared.metrics.settled.inc();
                told.within(shared.patience()).await;
            }
        }
        response
    }
}

/// The batch that the answer to a write names, and the answer.
pub(super) async fn batch_begun_by(response: Response<Body>) -> (Option<Batch>, Response<Body>) {
    let (bytes, response) = seen(response).await;
    (bytes.and_then(|bytes| batch_named_in(&bytes)), response)
}

/// The whole body of an answer that is JSON and not too long, and the answer as it was.
async fn seen(response: Response<Body>) -> (Option<Bytes>, Response<Body>) {
    let kind = response.headers().get(CONTENT_TYPE);
    if !kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/json")) {
        return (None, response);
    }
    let (head, body) = response.into_parts();
    let (bytes, body) = match collect(body, LIMIT).await {
        Collected::Whole(bytes) => (Some(bytes.clone()), Body::from(bytes)),
        Collected::Unfinished(body, _) => (None, body),
    };
    (bytes, Response::from_parts(head, body))
}

fn batch_named_in(json: &[u8]) -> Option<Batch> {
    #[derive(Deserialize)]
    struct Begun<'a> {
        #[serde(borrow)]
        batch: Cow<'a, str>,
    }
    let begun: Begun<'_> = serde_json::from_slice(json).ok()?;
    (!begun.batch.is_empty()).then(|| Batch::named(begun.batch.as_bytes()))
}

/// Whether there are documents and none of them will change by itself. A paused one will once it is resumed:
/// that is a write, but one that names no batch.
fn is_over(json: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Progress<'a> {
        #[serde(borrow)]
        data: Vec<Document<'a>>,
    }
    #[derive(Deserialize)]
    struct Document<'a> {
        #[serde(borrow)]
        indexing_status: Cow<'a, str>,
    }
    serde_json::from_slice(json).is_ok_and(|progress: Progress<'_>| {
        let over = |document: &Document<'_>| matches!(&*document.indexing_status, "completed" | "error");
        !progress.data.is_empty() && progress.data.iter().all(over)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn progress(states: &[&str]) -> Vec<u8> {
        let documents = states.iter().map(|state| {
            serde_json::json!({"id": "x", "indexing_status": state, "error": null, "total_segments": 8})
        });
        serde_json::json!({"data": documents.collect::<Vec<_>>()})
            .to_string()
            .into_bytes()
    }

    #[test]
    fn work_is_over_when_every_document_has_ended_well_or_badly() {
        assert!(is_over(&progress(&["completed"])));
        assert!(is_over(&progress(&["completed", "error", "completed"])));
        assert!(!is_over(&progress(&[])));
        for state in [
            "waiting",
            "parsing",
            "cleaning",
            "splitting",
            "indexing",
            "paused",
            "",
        ] {
            assert!(!is_over(&progress(&["completed", state])), "{state}");
        }
        for other in [
            r#"{"data": [{"id": "x"}]}"#,
            r#"{"data": {"indexing_status": "completed"}}"#,
            r#"{"data": [{"indexing_status": "completed"}"#,
            r#"{"data": [{"indexing_status": null}]}"#,
            r#"[]"#,
            "",
        ] {
            assert!(!is_over(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn the_answer_to_a_write_names_its_batch_or_none() {
        let named = batch_named_in(br#"{"document": {"id": "x", "batch": "1"}, "batch": "20261122"}"#);
        assert_eq!(named, Some(Batch::named(b"20261122")));
        for none in [
            r#"{"document": {"batch": "1"}}"#,
            r#"{"batch": ""}"#,
            r#"{"batch": 7}"#,
            r#""batch""#,
            "",
        ] {
            assert_eq!(batch_named_in(none.as_bytes()), None, "{none}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_conclude_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(!is_over(&bytes));
            prop_assert_eq!(batch_named_in(&bytes), None);
        }

        #[test]
        fn a_damaged_status_is_believed_only_if_it_still_says_so(
            states in proptest::collection::vec(
                prop_oneof![Just("completed"), Just("error"), Just("indexing"), Just("com\"pleted")], 0..6),
            cut in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let mut json = progress(&states);
            let ended = states.iter().all(|state| ["completed", "error"].contains(state));
            prop_assert_eq!(is_over(&json), ended && !states.is_empty());
            let cut = cut.index(json.len());
            prop_assert!(!is_over(&json[..cut]));
            json[cut] = byte;
            prop_assert!(ended || !is_over(&json));
        }
    }
}
