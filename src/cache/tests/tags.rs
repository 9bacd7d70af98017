//! The table of tags by itself.

use std::time::Duration;

use tokio::time::Instant;

use crate::cache::invalidation::{TagTable, Validity};
use crate::types::ids::Tag;
use crate::types::ids::TagKind;
use crate::types::time::Clock;

fn table() -> (TagTable, Instant) {
    let now = Clock::System.now().monotonic;
    (TagTable::new(now), now)
}

#[test]
fn a_bump_ends_what_depends_on_the_tag_and_nothing_else() {
    let (table, _) = table();
    let user = Tag::of(TagKind::Conversations, b"a");
    let other = Tag::of(TagKind::Conversations, b"b");
    let (mine, theirs) = (table.versions([user]), table.versions([other]));
    table.bump(&[user]);
    assert!(!table.is_current(&mine));
    assert!(table.is_current(&theirs));
    assert!(
        table.is_current(&table.versions([user])),
        "what begins after the write is good"
    );
}

#[test]
fn an_unsettled_tag_keeps_answers_out_until_its_time_is_over() {
    let (table, now) = table();
    let tags = [Tag::all(TagKind::Datasets)];
    table.bump_unsettled(&tags, now, Duration::from_secs(30), None);
    let after = table.versions(tags);
    assert!(table.is_current(&after));
    assert!(!table.is_settled(&after, now + Duration::from_secs(29)));
    assert!(table.is_settled(&after, now + Duration::from_secs(30)));
}

#[test]
fn a_mark_makes_stale_and_a_bump_ends_whatever_was_marked_before() {
    let (table, _) = table();
    let tags = [
        Tag::all(TagKind::AppMetadata),
        Tag::of(TagKind::Route, b"/v1/info"),
    ];
    let versions = table.versions(tags);
    for _ in 0..=u16::MAX {
        table.mark_stale(tags[1]);
    }
    assert_eq!(
        table.validity(&versions),
        Validity::Current,
        "65,536 marks come round, and end nothing"
    );
    table.mark_stale(tags[1]);
    assert_eq!(table.validity(&versions), Validity::Stale);
    table.bump(&tags[..1]);
    assert_eq!(table.validity(&versions), Validity::Ended);
    let after = table.versions(tags);
    table.mark_all_stale();
    assert_eq!(table.validity(&after), Validity::Stale);
    table.bump_all();
    assert_eq!(table.validity(&after), Validity::Ended);
}
