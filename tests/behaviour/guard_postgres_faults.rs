//! Dify's database as the guard's source, when it is not as it should be: gone, hung, locked, changed, closed to us.
//!
//! Against real servers. The tests say when the source looks; none waits for its timer.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use dify_edge::guard::known_ids::postgres::PostgresOptions;
use dify_edge::guard::known_ids::tables::TABLES;
use dify_edge::guard::known_ids::{Lookup as _, SourceError};
use dify_edge::types::known::IdKind;
use dify_edge::types::time::Clock;

use crate::support::eventually;
use crate::support::known::{
    Source, errors, exists, insert, insert_key, key, loaded, options, recovered, source, uuid,
};
use crate::support::postgres::{Postgres, connect};

#[tokio::test]
async fn a_database_that_is_killed_and_started_again_is_read_on() {
    let mut server = Postgres::start().await;
    insert_key(&server, "app-deleted").await;
    let source = loaded(&server).await;
    let last_success = source.state().last_success;
    server.execute("DELETE FROM api_tokens").await;
    let new = insert(&server, "apps", 1, "0 s").await;
    server.kill();
    source.refresh_once().await;
    let state = source.state();
    assert!(!state.connected);
    assert_eq!(errors(&state).len(), TABLES.len());
    assert_eq!(state.last_success, last_success);
    let lookup = source.which_exist(IdKind::App, &[new]).await;
    assert!(matches!(lookup, Err(SourceError::Unreachable(_))), "{lookup:?}");
    // Nothing is forgotten meanwhile.
    assert!(source.sink().has(IdKind::AppKey, key("app-deleted")));

    server.start_again().await;
    recovered(&source).await;
    let known = source.sink();
    assert!(known.has(IdKind::App, new));
    assert_eq!(known.of(IdKind::AppKey).gone, [key("app-deleted")]);
    assert!(
        known.of(IdKind::App).complete == 1,
        "what was known is still known"
    );
}

#[tokio::test]
async fn a_database_that_hangs_is_not_waited_for_longer_than_allowed() {
    let server = Postgres::start().await;
    let options = PostgresOptions {
        timeout: Duration::from_millis(400),
        ..options(server.owner_url())
    };
    let source = Source::new(options, Arc::default(), Clock::System).expect("a source");
    recovered(&source).await;
    server.stop();
    let begun = std::time::Instant::now();
    let lookup = source.which_exist(IdKind::App, &[uuid(1).1]).await;
    assert!(matches!(lookup, Err(SourceError::Unreachable(_))), "{lookup:?}");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    source.refresh_once().await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(errors(&source.state()).len(), TABLES.len());
    // While it is known to be gone nobody waits at all.
    server.go_on();
    recovered(&source).await;
}

#[tokio::test]
async fn a_changed_password_is_an_error_until_it_is_right_again() {
    let server = Postgres::start().await;
    server.execute(include_str!("../../config/guard-role.sql")).await;
    server
        .execute("ALTER ROLE dify_edge_guard PASSWORD 'right'")
        .await;
    let source = source(server.url("dify_edge_guard", "right"));
    recovered(&source).await;
    server
        .execute(
            "ALTER ROLE dify_edge_guard PASSWORD 'another'; \
             SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'dify-edge'",
        )
        .await;
    let error = eventually("the password to be refused", || async {
        source.refresh_once().await;
        let errors = errors(&source.state());
        let text = errors.first().map(|(_, error)| error.to_string())?;
        text.contains("password authentication failed").then_some(text)
    })
    .await;
    assert!(!error.contains("right"), "{error}");
    server
        .execute("ALTER ROLE dify_edge_guard PASSWORD 'right'")
        .await;
    recovered(&source).await;
}

#[tokio::test]
async fn a_missing_column_or_table_is_named_and_the_other_kinds_go_on() {
    let server = Postgres::start().await;
    let document = insert(&server, "documents", 2, "1 hour").await;
    let source = loaded(&server).await;
    server
        .execute(
            "ALTER TABLE documents RENAME created_at TO made_at; ALTER TABLE child_chunks RENAME TO chunks",
        )
        .await;
    let app = insert(&server, "apps", 1, "0 s").await;
    source.refresh_once().await;
    let schema = |text: &str| SourceError::Schema(text.to_owned());
    let found = [
        (IdKind::Document, schema("documents.created_at: no such column")),
        (
            IdKind::ChildChunk,
            schema("child_chunks: no such table that the role postgres may see"),
        ),
    ];
    assert_eq!(errors(&source.state()), found);
    source.rebuild_once().await;
    assert_eq!(errors(&source.state()), found);
    let documents = source.sink().of(IdKind::Document);
    assert_eq!(documents.failures, [found[0].1.clone(), found[0].1.clone()]);
    assert_eq!(
        documents.set,
        HashSet::from([document]),
        "what was known is still known"
    );
    assert!(source.state().connected && source.sink().has(IdKind::App, app));
    let lookup = source.which_exist(IdKind::ChildChunk, &[app]).await;
    assert_eq!(lookup, Err(found[1].1.clone()));

    server
        .execute(
            "ALTER TABLE documents RENAME made_at TO created_at; ALTER TABLE chunks RENAME TO child_chunks",
        )
        .await;
    recovered(&source).await;
}

#[tokio::test]
async fn locked_tables_hold_up_neither_the_other_kinds_nor_look_ups() {
    let server = Postgres::start().await;
    let options = PostgresOptions {
        connections: 2,
        pool_share: 1.0,
        timeout: Duration::from_secs(1),
        ..options(server.owner_url())
    };
    let source = Source::new(options, Arc::default(), Clock::System).expect("a source");
    recovered(&source).await;
    let app = insert(&server, "apps", 1, "0 s").await;
    let migration = server.client().await;
    migration
        .batch_execute("BEGIN; LOCK TABLE datasets, documents IN ACCESS EXCLUSIVE MODE")
        .await
        .expect("locks");
    let lookup = async {
        // The readings come first, and all wait.
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        eventually("a reading to wait for a lock", || async {
            (server.number(waiting).await > 0).then_some(())
        })
        .await;
        let begun = std::time::Instant::now();
        assert!(exists(&source, IdKind::App, app).await);
        assert!(
            begun.elapsed() < Duration::from_millis(700),
            "{:?}",
            begun.elapsed()
        );
    };
    tokio::join!(source.refresh_once(), lookup);
    let state = source.state();
    let errors: Vec<_> = errors(&state)
        .into_iter()
        .map(|(kind, error)| (kind, error.to_string()))
        .collect();
    let kinds: Vec<_> = errors.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [IdKind::Dataset, IdKind::Document], "{errors:?}");
    assert!(
        errors[0]
            .1
            .starts_with("datasets: canceling statement due to statement timeout")
    );
    assert!(state.connected && source.sink().has(IdKind::App, app));
    migration.batch_execute("COMMIT").await.expect("an end");
    recovered(&source).await;
}

#[tokio::test]
async fn the_role_that_is_shipped_can_read_what_is_needed_and_nothing_else() {
    let server = Postgres::start().await;
    server.execute(include_str!("../../config/guard-role.sql")).await;
    server
        .execute(
            "ALTER ROLE dify_edge_guard PASSWORD 'right'; INSERT INTO accounts (password) VALUES ('hash')",
        )
        .await;
    let url = server.url("dify_edge_guard", "right");
    let source = source(url.clone());
    source.refresh_once().await;
    source.rebuild_once().await;
    assert_eq!(errors(&source.state()), []);

    let client = connect(&url).await.expect("a connection");
    for (sql, why) in [
        ("SELECT password FROM accounts", "permission denied"),
        ("SELECT tenant_id FROM api_tokens", "permission denied"),
        ("DELETE FROM apps", "read-only transaction"),
        ("BEGIN READ WRITE; DELETE FROM apps", "permission denied"),
    ] {
        let refused = client.batch_execute(sql).await.expect_err(sql);
        let message = refused.as_db_error().map(|error| error.message().to_owned());
        assert!(
            message.is_some_and(|message| message.contains(why)),
            "{sql}: {refused:?}"
        );
    }

    server
        .execute("REVOKE SELECT (token) ON api_tokens FROM dify_edge_guard")
        .await;
    source.refresh_once().await;
    let advice = "api_tokens.token: not granted; \
                  GRANT SELECT (id, type, token, created_at) ON api_tokens TO \"dify_edge_guard\"";
    let advice = SourceError::Schema(advice.to_owned());
    let found = [(IdKind::AppKey, advice.clone()), (IdKind::DatasetKey, advice)];
    assert_eq!(errors(&source.state()), found);
}

#[test]
fn the_role_that_is_shipped_has_the_columns_that_are_read() {
    let mut granted = HashMap::new();
    for line in include_str!("../../config/guard-role.sql").lines() {
        if let Some(rest) = line.strip_prefix("GRANT SELECT (") {
            let (columns, rest) = rest.split_once(") ON ").expect("GRANT SELECT (…) ON …");
            let (table, _) = rest.split_once(" TO ").expect("ON … TO …");
            granted.insert(table, columns.split(", ").collect::<HashSet<_>>());
        }
    }
    let mut read: HashMap<_, HashSet<_>> = HashMap::new();
    for table in TABLES {
        read.entry(table.name).or_default().extend(table.columns());
    }
    assert_eq!(granted, read);
}

#[tokio::test]
async fn certificates_are_checked_when_the_url_says_so() {
    let server = Postgres::start().await;
    let authority = server.speak_tls().await;
    let authority = authority.display();
    for (query, fits) in [
        ("sslmode=require".to_owned(), true),
        (format!("sslmode=verify-full&sslrootcert={authority}"), true),
        ("sslmode=verify-full".to_owned(), false),
    ] {
        // Passwords are bound to the channel where it is encrypted.
        let source = source(format!("{}?{query}", server.owner_url()));
        source.refresh_once().await;
        let state = source.state();
        assert_eq!(state.connected, fits, "{query}: {:?}", errors(&state).first());
        if fits {
            let sql = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                       WHERE application_name = 'dify-edge' AND NOT ssl";
            assert_eq!(server.number(sql).await, 0, "{query}");
        }
    }
    let elsewhere = server.owner_url().replace("127.0.0.1", "localhost");
    let source = source(format!("{elsewhere}?sslmode=verify-full&sslrootcert={authority}"));
    source.refresh_once().await;
    assert!(!source.state().connected, "the certificate is for another name");
}

#[test]
fn urls_that_cannot_be_used_are_refused_without_showing_them() {
    for url in [
        "",
        "mysql://u:hunter2@db/dify",
        "postgres://u:hunter2@db:port/dify",
        "postgres://u:hunter2@/dify",
        "postgres://u:hunter2@db/dify?sslmode=allow",
        "postgres://u:hunter2@db/dify?sslrootcert=/ca.pem",
        "postgres://u:hunter2@db/dify?sslmode=verify-full&sslrootcert=/nowhere/ca.pem",
        "postgres://u:hunter2@db/dify?nonsense=1",
    ] {
        let refused = Source::new(options(url.to_owned()), Arc::default(), Clock::System);
        let error = refused.err().expect(url);
        assert!(!error.contains("hunter2") && !error.is_empty(), "{error}");
    }
}
