//! Dify's database as the guard's source: what is read from it, and what is looked up.
//!
//! Against real servers. The tests say when the source looks; none waits for its timer.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dify_edge::guard::known_ids::postgres::PostgresOptions;
use dify_edge::guard::known_ids::tables::TABLES;
use dify_edge::guard::known_ids::{Lookup as _, SourceError};
use dify_edge::types::known::{IdKind, KnownId};
use dify_edge::types::time::Clock;

use crate::support::eventually;
use crate::support::known::{Known, Source, errors, exists, insert, insert_key, key, loaded, options, uuid};
use crate::support::postgres::Postgres;

#[tokio::test]
async fn a_table_is_read_in_pages_until_all_of_it_is_known() {
    let server = Postgres::start().await;
    server
        .execute("INSERT INTO messages (created_at) SELECT now() - interval '2 hours' FROM generate_series(1, 2500)")
        .await;
    server.execute("ANALYZE messages").await;
    // The first of all UUIDs is one as well.
    server
        .execute("INSERT INTO messages VALUES ('00000000-0000-0000-0000-000000000000', now())")
        .await;
    let source = loaded(&server).await;
    let seen = source.sink().of(IdKind::Message);
    let rows = server
        .client()
        .await
        .query("SELECT id::text FROM messages", &[])
        .await;
    let there: HashSet<_> = rows
        .expect("rows")
        .iter()
        .map(|row| KnownId::of_uuid(row.get::<_, &str>(0).as_bytes()).expect("a UUID"))
        .collect();
    assert_eq!(there.len(), 2501);
    assert!(seen.set == there, "{} of {}", seen.set.len(), there.len());
    assert_eq!((seen.largest_page, seen.complete, seen.expected), (100, 1, 2500));
    let state = source.state();
    let (_, messages) = state
        .kinds
        .iter()
        .find(|(kind, _)| *kind == IdKind::Message)
        .expect("the kind");
    assert_eq!((messages.items, messages.loading), (2501, None));
    assert!(messages.loaded_at.is_some() && messages.fresh_at.is_some() && state.last_success.is_some());
    // Every kind with a table has been read, those without rows as well.
    for table in TABLES {
        assert_eq!(source.sink().of(table.kind).complete, 1, "{:?}", table.kind);
    }
}

#[tokio::test]
async fn a_refresh_sees_new_rows_and_rows_that_were_committed_late() {
    let server = Postgres::start().await;
    let source = loaded(&server).await;
    let new = insert(&server, "documents", 1, "0 s").await;
    let late = insert(&server, "documents", 2, "30 s").await;
    let very_late = insert(&server, "documents", 3, "1 hour").await;
    source.refresh_once().await;
    let known = source.sink().of(IdKind::Document);
    assert!(known.set.contains(&new) && known.set.contains(&late));
    // It is not read again whole, and asking for the row itself finds it.
    assert!(!known.set.contains(&very_late) && known.complete == 1);
    assert!(exists(&source, IdKind::Document, very_late).await);
    source.rebuild_once().await;
    assert!(source.sink().has(IdKind::Document, very_late));
}

#[tokio::test]
async fn more_new_rows_than_fit_into_a_page_are_all_seen() {
    let server = Postgres::start().await;
    let source = loaded(&server).await;
    let add = |count: u32| {
        format!("INSERT INTO document_segments SELECT gen_random_uuid() FROM generate_series(1, {count})")
    };
    server.execute(&add(950)).await;
    source.refresh_once().await;
    let seen = source.sink().of(IdKind::Segment);
    assert_eq!((seen.set.len(), seen.complete), (950, 1));
    // So many that reading the whole is less work.
    server.execute(&add(2000)).await;
    source.refresh_once().await;
    let seen = source.sink().of(IdKind::Segment);
    assert_eq!((seen.set.len(), seen.complete), (2950, 2));
}

#[tokio::test]
async fn what_is_new_does_not_wait_for_the_end_of_a_long_reading() {
    let server = Postgres::start().await;
    let options = PostgresOptions {
        refresh: Duration::from_millis(1),
        page: 1,
        // No more connections than the reading itself needs.
        connections: 1,
        ..options(server.owner_url())
    };
    let source = Source::new(options, Arc::default(), Clock::System).expect("a source");
    server
        .execute("INSERT INTO messages SELECT gen_random_uuid(), now() - interval '1 day' FROM generate_series(1, 1000)")
        .await;
    source.refresh_once().await;
    assert_eq!(
        source.sink().of(IdKind::Message).added_while_building,
        1,
        "at the end of the reading"
    );
    source.rebuild_once().await;
    assert_eq!(errors(&source.state()), []);
    let seen = source.sink().of(IdKind::Message);
    assert!(seen.set.len() == 1000 && seen.complete == 2);
    assert!(seen.added_while_building > 2, "{}", seen.added_while_building);
}

#[tokio::test]
async fn deleted_rows_fall_out_with_a_rebuild_and_deleted_keys_at_the_next_refresh() {
    let server = Postgres::start().await;
    let dataset = insert(&server, "datasets", 1, "1 hour").await;
    insert_key(&server, "app-kept").await;
    insert_key(&server, "app-deleted").await;
    insert_key(&server, "dataset-kept").await;
    let source = loaded(&server).await;
    let known = source.sink();
    assert!(known.has(IdKind::AppKey, key("app-deleted")));
    assert!(known.has(IdKind::DatasetKey, key("dataset-kept")));
    assert!(!known.has(IdKind::AppKey, key("dataset-kept")));

    server
        .execute("DELETE FROM datasets; DELETE FROM api_tokens WHERE token = 'app-deleted'")
        .await;
    insert_key(&server, "app-new").await;
    source.refresh_once().await;
    let keys = known.of(IdKind::AppKey);
    assert_eq!(keys.gone, [key("app-deleted")]);
    assert_eq!(keys.set, HashSet::from([key("app-kept"), key("app-new")]));
    assert_eq!(keys.complete, 1, "only the difference is told");
    assert!(known.has(IdKind::Dataset, dataset));
    assert!(!exists(&source, IdKind::Dataset, dataset).await);

    source.rebuild_once().await;
    assert!(!known.has(IdKind::Dataset, dataset));
    assert_eq!(known.of(IdKind::AppKey).set, keys.set);
}

#[tokio::test]
async fn a_code_that_is_given_anew_takes_the_place_of_the_old_one() {
    let server = Postgres::start().await;
    server
        .execute(
            "INSERT INTO sites (code, created_at, updated_at) VALUES \
             ('old', now() - interval '1 day', now() - interval '1 day'), (NULL, now(), now())",
        )
        .await;
    let source = loaded(&server).await;
    assert_eq!(
        source.sink().of(IdKind::SiteCode).set,
        HashSet::from([key("old")])
    );
    server
        .execute("UPDATE sites SET code = 'new', updated_at = now() WHERE code = 'old'")
        .await;
    assert!(exists(&source, IdKind::SiteCode, key("new")).await);
    source.refresh_once().await;
    let codes = source.sink().of(IdKind::SiteCode);
    assert_eq!(
        (codes.set, codes.gone),
        (HashSet::from([key("new")]), vec![key("old")])
    );
}

#[tokio::test]
async fn single_ids_are_looked_up_many_at_once() {
    let server = Postgres::start().await;
    let source = loaded(&server).await;
    let mut asked = Vec::new();
    for number in 0..10 {
        asked.push(insert(&server, "conversations", number, "1 hour").await);
    }
    // More than a page.
    asked.extend((1000..1300).map(|number| uuid(number).1));
    server.execute("UPDATE conversations SET is_deleted = true").await;
    let found = source
        .which_exist(IdKind::Conversation, &asked)
        .await
        .expect("an answer");
    // What is only marked as deleted is Dify's to answer for.
    assert!(found[..10].iter().all(|found| *found));
    assert!(found.len() == asked.len() && found[10..].iter().all(|found| !found));

    insert_key(&server, "app-new").await;
    assert!(exists(&source, IdKind::AppKey, key("app-new")).await);
    assert!(!exists(&source, IdKind::DatasetKey, key("app-new")).await);
    // What a look-up has found is no news that it vanished.
    source.refresh_once().await;
    let keys = source.sink().of(IdKind::AppKey);
    assert_eq!((keys.set, keys.gone), (HashSet::from([key("app-new")]), vec![]));
    let unknown = source.which_exist(IdKind::Webhook, &asked).await;
    assert_eq!(unknown, Err(SourceError::Unknown(IdKind::Webhook)));
}

#[tokio::test]
async fn no_more_connections_are_open_than_the_share_and_none_when_idle() {
    const OURS: &str = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dify-edge'";
    let server = Postgres::start().await;
    let (clock, time) = Clock::manual(SystemTime::now());
    let options = PostgresOptions {
        connections: 4,
        pool_share: 0.8,
        ..options(server.owner_url())
    };
    let source = Source::new(options, Arc::default(), clock).expect("a source");
    assert!(!source.state().connected);
    source.refresh_once().await;
    let ids: Vec<_> = (0..50).map(|number| uuid(number).1).collect();
    let lookups = ids
        .iter()
        .map(|id| source.which_exist(IdKind::App, std::slice::from_ref(id)));
    for found in futures_util::future::join_all(lookups).await {
        assert_eq!(found, Ok(vec![false]));
    }
    assert_eq!(server.number(OURS).await, 3);
    assert_eq!(source.state().idle_connections, 3);

    time.advance(Duration::from_secs(200));
    // One after the other needs no more than one.
    assert!(!exists(&source, IdKind::App, ids[0]).await);
    time.advance(Duration::from_secs(101));
    source.close_idle();
    assert_eq!(source.state().idle_connections, 1);
    assert!(!exists(&source, IdKind::App, ids[0]).await);
    time.advance(Duration::from_secs(300));
    source.close_idle();
    eventually("the connections to be closed", || async {
        (server.number(OURS).await == 0).then_some(())
    })
    .await;
    assert_eq!(source.state().idle_connections, 0);
    assert!(!exists(&source, IdKind::App, ids[0]).await);
}

#[tokio::test]
async fn the_source_goes_on_by_itself() {
    let server = Postgres::start().await;
    insert_key(&server, "app-first").await;
    let options = PostgresOptions {
        refresh: Duration::from_millis(20),
        rebuild: Duration::from_millis(200),
        ..options(server.owner_url())
    };
    let source = Arc::new(Source::new(options, Arc::default(), Clock::System).expect("a source"));
    let running = tokio::spawn({
        let source = source.clone();
        async move { source.run().await }
    });
    let until = |what: &'static str, condition: fn(&Known) -> bool| {
        let source = source.clone();
        async move { eventually(what, || async { condition(source.sink()).then_some(()) }).await }
    };
    until("the first reading", |known| {
        known.has(IdKind::AppKey, key("app-first"))
    })
    .await;
    insert_key(&server, "app-second").await;
    insert(&server, "messages", 1, "0 s").await;
    until("the new rows", |known| {
        known.has(IdKind::AppKey, key("app-second")) && known.has(IdKind::Message, uuid(1).1)
    })
    .await;
    server.execute("DELETE FROM messages").await;
    until("a rebuild", |known| !known.has(IdKind::Message, uuid(1).1)).await;
    running.abort();
}
