//! The kernels of shared state under every order of their steps that some thousand random schedules find: the
//! cache's own files, compiled once more over shuttle's types. Orders are sequentially consistent, as the table's
//! own operations are; tokio's `watch` counts as one step.

#![allow(dead_code, unreachable_pub, reason = "parts of the files are not used here")]
#![allow(clippy::duplicate_mod, reason = "the same code over other types is the point")]

#[path = "../../coalesce.rs"]
mod coalesce;
#[path = "../../entry.rs"]
mod entry;
#[path = "../../invalidation.rs"]
mod invalidation;
mod sync;

use std::sync::Arc;
use std::time::Duration;

use shuttle::thread;
use tokio::time::Instant;

use self::coalesce::{Flights, Landing, Role, wait};
use self::entry::{Entry, Fate};
use self::invalidation::{TagTable, TagVersions, Validity};
use self::sync::{AtomicU64, Mutex, Ordering};
use crate::cache::{freshness, key, packed, request_control};
use crate::types::Failure;
use crate::types::ids::{Batch, Tag, TagKind};
use crate::types::time::Clock;

const SCHEDULES: usize = 2000;
const KEY: key::Key = key::Key([1; 16]);

fn check(test: impl Fn() + Send + Sync + 'static) {
    shuttle::check_random_with_seed(test, 7, SCHEDULES);
}

fn now() -> Instant {
    Clock::System.now().monotonic
}

fn tags() -> [Tag; 2] {
    [Tag::all(TagKind::AppMetadata), Tag::all(TagKind::Datasets)]
}

/// A table, one place in a store, and an origin with a number.
struct Scene {
    table: TagTable,
    began: Instant,
    store: Mutex<Option<(u64, TagVersions)>>,
    origin: AtomicU64,
    /// Whether the write is over.
    written: AtomicU64,
}

impl Scene {
    fn new() -> Arc<Self> {
        let began = now();
        Arc::new(Self {
            table: TagTable::new(began),
            began,
            store: Mutex::default(),
            origin: AtomicU64::new(0),
            written: AtomicU64::new(0),
        })
    }

    fn fill(&self) {
        let versions = self.table.versions(tags());
        let value = self.origin.load(Ordering::SeqCst);
        if self.table.validity(&versions) != Validity::Ended && self.table.is_settled(&versions, self.began) {
            *self.store.lock() = Some((value, versions));
        }
    }

    fn read(&self) {
        let written = self.written.load(Ordering::SeqCst);
        let stored = self.store.lock().clone();
        if let Some((value, versions)) = stored
            && self.table.validity(&versions) != Validity::Ended
        {
            assert!(
                value >= written,
                "an answer from before the write was given after it"
            );
        }
    }
}

/// Runs all of these at once.
fn together(parts: Vec<Box<dyn FnOnce() + Send>>) {
    let threads: Vec<_> = parts.into_iter().map(thread::spawn).collect();
    for thread in threads {
        thread.join().expect("no panic");
    }
}

fn with_readers_and_fills(scene: &Arc<Scene>, write: impl FnOnce(&Scene) + Send + 'static) {
    let part = |act: fn(&Scene)| -> Box<dyn FnOnce() + Send> {
        let scene = scene.clone();
        Box::new(move || act(&scene))
    };
    let writer = scene.clone();
    together(vec![
        Box::new(move || write(&writer)),
        part(Scene::fill),
        part(|scene| {
            scene.fill();
            scene.read();
        }),
        part(|scene| {
            scene.read();
            scene.read();
        }),
    ]);
    scene.read();
}

#[test]
fn no_fill_brings_back_what_was_there_before_a_write() {
    check(|| {
        with_readers_and_fills(&Scene::new(), |scene| {
            scene.table.bump(&tags()[..1]);
            scene.origin.store(1, Ordering::SeqCst);
            scene.table.bump(&tags()[..1]);
            scene.written.store(1, Ordering::SeqCst);
        });
    });
}

#[test]
fn no_fill_brings_back_what_was_there_before_a_purge_of_everything() {
    check(|| {
        with_readers_and_fills(&Scene::new(), |scene| {
            scene.origin.store(1, Ordering::SeqCst);
            scene.table.bump_all();
            scene.written.store(1, Ordering::SeqCst);
        });
    });
}

#[test]
fn nothing_is_stored_between_the_break_of_a_write_and_its_effect() {
    check(|| {
        with_readers_and_fills(&Scene::new(), |scene| {
            let tags = &tags()[1..];
            scene.table.bump(tags);
            scene
                .table
                .bump_unsettled(tags, scene.began, Duration::from_secs(30), None);
            scene.origin.store(1, Ordering::SeqCst);
            scene.written.store(1, Ordering::SeqCst);
        });
    });
}

#[test]
fn nothing_is_stored_between_a_write_and_its_effect_while_another_write_s_batch_ends() {
    check(|| {
        let scene = Scene::new();
        let (tags, window) = (&tags()[1..], Duration::from_secs(30));
        let (one, other) = (Batch::named(b"1"), Batch::named(b"2"));
        scene.table.bump_unsettled(tags, scene.began, window, Some(one));
        let (writer, reader, asker) = (scene.clone(), scene.clone(), scene.clone());
        together(vec![
            Box::new(move || {
                let tags = &self::tags()[1..];
                writer
                    .table
                    .bump_unsettled(tags, writer.began, window, Some(other));
                writer.origin.store(1, Ordering::SeqCst);
                writer.written.store(1, Ordering::SeqCst);
            }),
            Box::new(move || {
                asker.table.settle(&self::tags()[1..], one);
                asker.fill();
            }),
            Box::new(move || {
                reader.fill();
                reader.read();
            }),
        ]);
        scene.read();
    });
}

#[test]
fn what_is_fetched_before_a_batch_is_done_is_not_served_after_it() {
    check(|| {
        let scene = Scene::new();
        let (tags, window) = (&tags()[1..], Duration::from_secs(30));
        let batch = Batch::named(b"1");
        scene.table.bump_unsettled(tags, scene.began, window, Some(batch));
        with_readers_and_fills(&scene, move |scene| {
            scene.origin.store(1, Ordering::SeqCst);
            assert!(scene.table.settle(&self::tags()[1..], batch));
            scene.written.store(1, Ordering::SeqCst);
        });
        assert!(
            scene
                .table
                .is_settled(&scene.table.versions(self::tags()), scene.began)
        );
    });
}

#[test]
fn marks_never_end_and_never_undo_an_end() {
    check(|| {
        let table = Arc::new(TagTable::new(now()));
        let before = table.versions(tags());
        table.bump(&tags()[..1]);
        let after = table.versions(tags());
        let part = |act: fn(&TagTable)| -> Box<dyn FnOnce() + Send> {
            let table = table.clone();
            Box::new(move || act(&table))
        };
        let (seen, then) = (table.clone(), after.clone());
        together(vec![
            part(|table| table.mark_stale(tags()[0])),
            part(|table| table.mark_all_stale()),
            part(|table| table.mark_stale(tags()[1])),
            Box::new(move || assert_ne!(seen.validity(&then), Validity::Ended)),
        ]);
        assert_eq!(table.validity(&before), Validity::Ended);
        assert_eq!(table.validity(&after), Validity::Stale);
        together(vec![
            part(|table| table.mark_stale(tags()[0])),
            part(|table| table.bump(&tags()[..1])),
            part(|table| table.mark_all_stale()),
        ]);
        assert_eq!(table.validity(&after), Validity::Ended);
    });
}

/// Joins, and lands or is lost; `leading` counts who leads at this moment.
fn fly(flights: &Flights, versions: &TagVersions, leading: &AtomicU64, lands: bool) {
    match flights.join(KEY, versions) {
        Role::Leader(leader) => {
            assert_eq!(leading.fetch_add(1, Ordering::SeqCst), 0, "two lead at once");
            thread::yield_now();
            leading.fetch_sub(1, Ordering::SeqCst);
            if lands {
                leader.land(Landing::Failed(Failure::new(
                    crate::types::FailureKind::Overloaded,
                    "landed",
                )));
            }
        }
        // A lost wake-up would be a deadlock, which the scheduler reports.
        Role::Follower(flight) => {
            let landing = shuttle::future::block_on(wait(flight));
            assert!(matches!(landing, Landing::Failed(_) | Landing::Unshared));
        }
    }
}

#[test]
fn one_leads_and_all_who_follow_are_told_of_the_end() {
    check(|| {
        let (flights, versions) = (Flights::new(), TagTable::new(now()).versions(tags()));
        let leading = Arc::new(AtomicU64::new(0));
        let part = |lands| -> Box<dyn FnOnce() + Send> {
            let (flights, versions, leading) = (flights.clone(), versions.clone(), leading.clone());
            Box::new(move || fly(&flights, &versions, &leading, lands))
        };
        together(vec![part(true), part(false), part(true), part(true)]);
        assert_eq!(flights.len(), 0);
    });
}

#[test]
fn the_end_of_an_older_flight_leaves_the_newer_one_alone() {
    check(|| {
        let (flights, table) = (Flights::new(), TagTable::new(now()));
        let Role::Leader(old) = flights.join(KEY, &table.versions(tags())) else {
            panic!("the first one leads")
        };
        table.bump(&tags());
        let versions = table.versions(tags());
        let leading = Arc::new(AtomicU64::new(0));
        let part = |lands| -> Box<dyn FnOnce() + Send> {
            let (flights, versions, leading) = (flights.clone(), versions.clone(), leading.clone());
            Box::new(move || fly(&flights, &versions, &leading, lands))
        };
        together(vec![
            Box::new(move || drop(old)),
            part(true),
            part(true),
            part(false),
        ]);
        assert_eq!(flights.len(), 0);
    });
}

#[test]
fn one_alone_is_told_to_refresh() {
    let test = || {
        let asked_at = now();
        let entry = Arc::new(Entry {
            status: http::StatusCode::OK,
            reason: None,
            packed: packed::Packed::new(&http::HeaderMap::new(), b""),
            selective: request_control::Selective::of(&http::HeaderMap::new()),
            template: "/",
            asked_at,
            checked_at: asked_at,
            life: freshness::Storable {
                ttl: Duration::ZERO,
                age: Duration::ZERO,
                stale_while_revalidate: Duration::ZERO,
                stale_if_error: Duration::ZERO,
            },
            versions: TagTable::new(asked_at).versions([]),
            fate: Fate::default(),
        });
        let told = Arc::new(AtomicU64::new(0));
        let part = |millis| -> Box<dyn FnOnce() + Send> {
            let (entry, told) = (entry.clone(), told.clone());
            Box::new(move || {
                let told_now = entry.take_refresh(asked_at + Duration::from_millis(millis));
                told.fetch_add(u64::from(told_now), Ordering::SeqCst);
            })
        };
        together(vec![part(0), part(1), part(999)]);
        assert_eq!(told.load(Ordering::SeqCst), 1);
    };
    check(test);
}
