//! A source of what exists with a sink that keeps everything, and rows for it to find.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use dify_edge::guard::known_ids::postgres::{PostgresOptions, State};
use dify_edge::guard::known_ids::{Lookup as _, Sink, SourceError, postgres};
use dify_edge::types::known::{IdKind, KnownId};
use dify_edge::types::time::{Clock, Now};
use parking_lot::Mutex;

use super::eventually;
use super::postgres::Postgres;

/// A sink that keeps everything exactly.
#[derive(Default)]
pub struct Known(Mutex<HashMap<IdKind, Seen>>);

#[derive(Default, Clone)]
pub struct Seen {
    pub set: HashSet<KnownId>,
    pub building: Option<HashSet<KnownId>>,
    pub expected: u64,
    pub largest_page: usize,
    pub complete: u32,
    pub added_while_building: u32,
    pub gone: Vec<KnownId>,
    pub failures: Vec<SourceError>,
}

impl Known {
    pub fn of(&self, kind: IdKind) -> Seen {
        self.0.lock().get(&kind).cloned().unwrap_or_default()
    }

    pub fn has(&self, kind: IdKind, id: KnownId) -> bool {
        self.of(kind).set.contains(&id)
    }

    fn change(&self, kind: IdKind, change: impl FnOnce(&mut Seen)) {
        change(self.0.lock().entry(kind).or_default());
    }
}

impl Sink for Known {
    fn begin(&self, kind: IdKind, expected: u64) {
        self.change(kind, |seen| {
            seen.expected = expected;
            seen.building = Some(HashSet::new());
        });
    }

    fn page(&self, kind: IdKind, ids: &[KnownId]) {
        self.change(kind, |seen| {
            seen.largest_page = seen.largest_page.max(ids.len());
            seen.building.as_mut().expect("a reading has begun").extend(ids);
        });
    }

    fn complete(&self, kind: IdKind, _: Now) {
        self.change(kind, |seen| {
            seen.set = seen.building.take().expect("a reading has begun");
            seen.complete += 1;
        });
    }

    fn add(&self, kind: IdKind, ids: &[KnownId]) {
        self.change(kind, |seen| {
            seen.set.extend(ids);
            if let Some(building) = &mut seen.building {
                building.extend(ids);
                seen.added_while_building += 1;
            }
        });
    }

    fn gone(&self, kind: IdKind, ids: &[KnownId]) {
        self.change(kind, |seen| {
            seen.gone.extend(ids);
            seen.set.retain(|id| !ids.contains(id));
        });
    }

    fn up_to_date(&self, _: IdKind, _: Now) {}

    fn failed(&self, kind: IdKind, error: &SourceError) {
        self.change(kind, |seen| {
            seen.building = None;
            seen.failures.push(error.clone());
        });
    }
}

pub type Source = postgres::Postgres<Known>;

pub fn options(url: String) -> PostgresOptions {
    PostgresOptions {
        url,
        page: 100,
        timeout: Duration::from_secs(5),
        ..PostgresOptions::default()
    }
}

pub fn source(url: String) -> Source {
    Source::new(options(url), Arc::default(), Clock::System).expect("a source")
}

/// A source that has read everything.
pub async fn loaded(server: &Postgres) -> Source {
    let source = source(server.owner_url());
    source.refresh_once().await;
    assert_eq!(errors(&source.state()), []);
    source
}

pub fn errors(state: &State) -> Vec<(IdKind, SourceError)> {
    let with_error = |(kind, state): &(IdKind, postgres::KindState)| Some((*kind, state.error.clone()?));
    state.kinds.iter().filter_map(with_error).collect()
}

pub async fn recovered(source: &Source) {
    eventually("the source to recover", || async {
        source.refresh_once().await;
        errors(&source.state()).is_empty().then_some(())
    })
    .await;
    assert!(source.state().connected);
}

/// A UUID that ends in this number, as text and as an id.
pub fn uuid(number: u32) -> (String, KnownId) {
    let text = format!("5f0e7a3c-0000-4000-8000-{number:012x}");
    let id = KnownId::of_uuid(text.as_bytes()).expect("a UUID");
    (text, id)
}

pub fn key(text: &str) -> KnownId {
    KnownId::of_text(text.as_bytes())
}

pub async fn insert(server: &Postgres, table: &str, number: u32, age: &str) -> KnownId {
    let (text, id) = uuid(number);
    let sql = format!("INSERT INTO {table} (id, created_at) VALUES ('{text}', now() - interval '{age}')");
    server.execute(&sql).await;
    id
}

pub async fn insert_key(server: &Postgres, text: &str) {
    let kind = text.split('-').next().expect("a prefix");
    let sql = format!("INSERT INTO api_tokens (type, token) VALUES ('{kind}', '{text}')");
    server.execute(&sql).await;
}

pub async fn exists(source: &Source, kind: IdKind, id: KnownId) -> bool {
    let found = source.which_exist(kind, &[id]).await.expect("an answer");
    assert_eq!(found.len(), 1);
    found[0]
}
