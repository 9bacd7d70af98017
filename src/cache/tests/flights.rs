//! Single flight by itself.

use crate::cache::coalesce::{Flights, Landing, Role, wait};
use crate::cache::invalidation::TagTable;
use crate::cache::key::Key;
use crate::types::ids::{Tag, TagKind};
use crate::types::time::Clock;

#[tokio::test]
async fn a_leader_that_is_lost_lets_everyone_go() {
    let table = TagTable::new(Clock::System.now().monotonic);
    let flights = Flights::new();
    let versions = table.versions([]);
    let Role::Leader(leader) = flights.join(Key([1; 16]), &versions) else {
        panic!("first one leads")
    };
    let Role::Follower(first) = flights.join(Key([1; 16]), &versions) else {
        panic!("second one waits")
    };
    let Role::Follower(second) = flights.join(Key([1; 16]), &versions) else {
        panic!("third one waits")
    };
    drop(leader);
    assert!(matches!(wait(first).await, Landing::Unshared));
    assert!(matches!(wait(second).await, Landing::Unshared));
    assert!(
        matches!(flights.join(Key([1; 16]), &versions), Role::Leader(_)),
        "the place is free again"
    );
}

#[test]
fn who_comes_after_a_write_does_not_join_an_older_flight() {
    let table = TagTable::new(Clock::System.now().monotonic);
    let flights = Flights::new();
    let tags = [Tag::all(TagKind::AppMetadata)];
    let Role::Leader(old) = flights.join(Key([1; 16]), &table.versions(tags)) else {
        panic!()
    };
    table.bump(&tags);
    let Role::Leader(new) = flights.join(Key([1; 16]), &table.versions(tags)) else {
        panic!("joined a flight from before the write")
    };
    drop(old);
    assert!(
        matches!(
            flights.join(Key([1; 16]), &table.versions(tags)),
            Role::Follower(_)
        ),
        "the older flight's end does not remove the newer one"
    );
    drop(new);
}
