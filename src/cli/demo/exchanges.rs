//! The exchanges that the demo replays: captured ones, and the same ones once more for each further user.
//!
//! One person was captured. Hundreds of clients that all are this person would end each other's lists with every
//! write, so the person is multiplied: ids of the user, the conversations and the message get other last digits.

use super::replay::{Record, records};

/// Exchanges with a real dify-api: pages, chats that stream or block, ratings, a rename.
const CAPTURED: &str = include_str!("exchanges.jsonl");
/// The person who was captured.
const USER: &str = "0b7d9a52-6f0e-4c0e-9a3b-0d9f5b0c1a11";
/// What belongs to that person: three conversations and a message.
const POSSESSIONS: [&str; 4] = [
    "cb1327a8-9724-49ca-b477-deb2c73d5973",
    "14e376de-ede9-4064-a55a-65e5e0e629d5",
    "2c42de63-472d-4bff-915f-be87956b8313",
    "62dccd72-59fe-4eb0-837f-e8e87aab1f9f",
];

/// The exchanges of `users` people (at least one, at most 65 536); pages that are the same for all are there once.
pub(super) fn exchanges(users: u16) -> Vec<Record> {
    let mut all = records(CAPTURED, "");
    for number in 1..users {
        let mine = records(&another(CAPTURED, number), "");
        let theirs = records(CAPTURED, "");
        let other = mine
            .into_iter()
            .zip(theirs)
            .filter(|(mine, theirs)| mine.request != theirs.request);
        all.extend(other.map(|(mine, _)| mine));
    }
    all
}

/// The exchanges of `lines` as if another person had had them. Every id keeps its length, and so does a body.
fn another(lines: &str, number: u16) -> String {
    [USER]
        .iter()
        .chain(&POSSESSIONS)
        .fold(lines.to_owned(), |lines, id| {
            let kept = &id[..id.len() - 4];
            lines.replace(id, &format!("{kept}{number:04x}"))
        })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::cli::demo::replay::Content;

    fn identity(record: &Record) -> (String, Vec<(String, String)>) {
        (record.request.path.clone(), record.request.headers.clone())
    }

    #[test]
    fn every_user_has_requests_and_bodies_of_their_own() {
        let (one, five) = (exchanges(1), exchanges(5));
        let targets: HashSet<_> = five
            .iter()
            .filter(|r| r.request.method == "GET")
            .map(identity)
            .collect();
        let pages = five
            .iter()
            .filter(|record| record.request.method == "GET")
            .count();
        assert_eq!(targets.len(), pages, "no page is there twice");
        let asked = |records: &[Record], path: &str| {
            let targets = records.iter().map(|record| record.request.path.clone());
            targets
                .filter(|target| target.starts_with(path))
                .collect::<HashSet<_>>()
                .len()
        };
        for path in [
            "/v1/conversations?user",
            "/v1/messages?user",
            "/v1/conversations/",
        ] {
            assert_eq!(asked(&five, path), 5 * asked(&one, path), "{path}");
        }
        assert_eq!(asked(&five, "/v1/info"), asked(&one, "/v1/info"));
    }

    #[test]
    fn bodies_keep_the_length_that_their_heads_tell() {
        for record in exchanges(3) {
            let told = record
                .response
                .headers
                .iter()
                .find(|(name, _)| name == "Content-Length");
            let body = record.response.body.as_ref().map(Content::bytes);
            if let (Some((_, told)), Some(body)) = (told, body) {
                assert_eq!(told, &body.len().to_string(), "{}", record.name);
            }
        }
    }
}
