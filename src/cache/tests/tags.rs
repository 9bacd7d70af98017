//! The table of tags by itself.

use std::time::Duration;

use tokio::time::Instant;

use crate::cache::invalidation::{TagTable, Validity};
use crate::types::ids::TagKind;
use crate::types::ids::{Batch, Tag};
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

#[test]
fn what_waits_for_one_batch_is_settled_by_its_end_and_by_no_other() {
    let (table, now) = table();
    let (window, soon) = (Duration::from_secs(30), now + Duration::from_secs(1));
    let (one, other) = (Batch::named(b"1"), Batch::named(b"2"));
    let tags = [Tag::of(TagKind::Datasets, b"a"), Tag::of(TagKind::Datasets, b"b")];
    table.bump_unsettled(&tags, now, window, Some(one));
    let before = table.versions(tags);
    assert!(!table.settle(&tags, other));
    assert!(!table.is_settled(&before, soon));
    let before = table.versions(tags);
    assert!(table.settle(&tags, one));
    assert!(table.is_settled(&before, soon));
    assert_eq!(
        table.validity(&before),
        Validity::Ended,
        "what was fetched meanwhile is not kept"
    );
    assert!(!table.settle(&tags, one), "only once");
}

#[test]
fn of_two_writes_the_end_of_one_settles_nothing_until_time_is_over() {
    let (one, other) = (Some(Batch::named(b"1")), Some(Batch::named(b"2")));
    for (first, second) in [(one, other), (one, one), (one, None), (None, one)] {
        let (table, now) = table();
        let window = Duration::from_secs(30);
        let tags = [Tag::of(TagKind::Datasets, b"a")];
        table.bump_unsettled(&tags, now, window, first);
        let later = now + Duration::from_secs(10);
        table.bump_unsettled(&tags, later, window, second);
        for batch in [first, second].into_iter().flatten() {
            assert!(!table.settle(&tags, batch));
        }
        let versions = table.versions(tags);
        assert!(!table.is_settled(&versions, now + Duration::from_secs(39)));
        let over = now + Duration::from_secs(40);
        assert!(table.is_settled(&versions, over));
        table.bump_unsettled(&tags, over, window, other);
        assert!(
            table.settle(&tags, Batch::named(b"2")),
            "after that, one is one again"
        );
    }
}
