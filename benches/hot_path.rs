//! What the parts of a hit cost, a miss through the cache stage, and the guard's questions: `cargo bench --bench hot_path`.
//!
//! No sockets, but for the one fill of the whole stack. The benches are not part of the tests; for a watch on the
//! cost of a hit see `instructions`.

mod support;

use std::convert::Infallible;
use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use dify_edge::cache::key::Key;
use dify_edge::cache::{CacheLayer, CacheMetrics};
use dify_edge::classify::Classifier;
use dify_edge::config::CacheConfig;
use dify_edge::guard::bloom::{Filter, Sizing};
use dify_edge::guard::budget::{ClientBudgets, Payer, Rate};
use dify_edge::stack;
use dify_edge::types::known::KnownId;
use dify_edge::types::request::{ClassifiedRequest, Client, FetchRequest};
use dify_edge::types::time::Clock;
use dify_edge::types::units::Span;
use dify_edge::types::{Body, Failure};
use futures_util::FutureExt as _;
use http::request::Parts;
use http::{Request, Response};
use tokio_util::task::TaskTracker;
use tower::{Layer as _, Service, ServiceExt as _};

fn classifier() -> Classifier {
    // Nobody asks the origin.
    Classifier::new(&support::config(([127, 0, 0, 1], 1).into())).expect("a classifier")
}

/// The typical request behind the stage `classify`.
fn classified(classifier: &Classifier, parts: Parts) -> ClassifiedRequest {
    let decision = classifier
        .decide(&parts.method, parts.uri.path(), parts.uri.query(), &parts.headers)
        .expect("a route");
    ClassifiedRequest {
        parts,
        body: Body::Empty,
        client: Client {
            peer: ([127, 0, 0, 1], 1).into(),
            tls: false,
            trusted: false,
        },
        decision,
    }
}

/// The cache stage before a service that has its answer ready.
fn cache() -> impl Service<ClassifiedRequest, Response = Response<Body>, Error = Failure, Future: Send> + Clone
{
    let mut config = CacheConfig::default();
    config.classes.metadata.ttl = Span::secs(3600);
    let metrics = CacheMetrics::register(&prometheus::Registry::new()).expect("a fresh registry");
    let body = Bytes::from(vec![b'x'; support::BODY_BYTES]);
    let origin = tower::service_fn(move |_: FetchRequest| {
        let mut answer = Response::builder();
        for (name, value) in support::FIELDS {
            answer = answer.header(name, value);
        }
        let answer = answer.body(Body::from(body.clone())).expect("an answer");
        std::future::ready(Ok::<_, Infallible>(answer))
    })
    .map_err(|never: Infallible| match never {});
    CacheLayer::new(config, Clock::System, metrics).layer(origin)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

fn decisions(criterion: &mut Criterion) {
    let classifier = classifier();
    let parts = support::parts();
    criterion.bench_function("classify", |bencher| {
        bencher.iter(|| {
            let parts = black_box(&parts);
            classifier.decide(&parts.method, parts.uri.path(), parts.uri.query(), &parts.headers)
        });
    });
    let request = classified(&classifier, parts);
    let principal = request.decision.principal.expect("a principal");
    criterion.bench_function("key", |bencher| {
        bencher.iter(|| Key::of(black_box(&request.parts), &request.client, principal));
    });
}

fn cache_stage(criterion: &mut Criterion) {
    let (runtime, classifier, cache) = (runtime(), classifier(), cache());
    let request = || classified(&classifier, support::parts());
    let filled = runtime.block_on(cache.clone().oneshot(request()));
    assert!(filled.is_ok());
    criterion.bench_function("lookup", |bencher| {
        bencher.iter_batched(
            request,
            |request| cache.clone().call(request).now_or_never().expect("a hit"),
            BatchSize::SmallInput,
        );
    });
    let mut number = 0_u64;
    let mut another = || {
        number += 1;
        let mut parts = support::parts();
        let uri = format!("/v1/parameters?user=u{number}");
        parts.uri = uri.parse().expect("a target");
        classified(&classifier, parts)
    };
    criterion.bench_function("store", |bencher| {
        bencher.iter_batched(
            &mut another,
            |request| runtime.block_on(cache.clone().oneshot(request)),
            BatchSize::SmallInput,
        );
    });
}

fn whole_stack(criterion: &mut Criterion) {
    let runtime = runtime();
    let _entered = runtime.enter();
    let config = support::config(support::origin());
    let registry = prometheus::Registry::new();
    let (stack, _controls) =
        stack::build(&config, &Clock::System, &registry, &TaskTracker::new()).expect("a stack");
    let request = || Request::from_parts(support::parts(), Body::Empty);
    let filled = runtime.block_on(stack.clone().oneshot(request()));
    assert!(filled.is_ok_and(|answer| answer.status() == 200));
    criterion.bench_function("stack", |bencher| {
        bencher.iter_batched(
            request,
            |request| stack.clone().oneshot(request).now_or_never().expect("a hit"),
            BatchSize::SmallInput,
        );
    });
}

/// A million ids, in turns, so that the filter's memory is asked everywhere.
fn guard(criterion: &mut Criterion) {
    const IDS: u64 = 1_000_000;
    let id = |number: u64| KnownId::of_text(&number.to_le_bytes());
    let now = Clock::System.now().monotonic;
    let filter = Filter::new(Sizing {
        expected_items: IDS as usize,
        false_positive_rate: 0.01,
    });
    let rebuild = filter.begin_rebuild(0).expect("the first");
    (0..IDS).for_each(|number| rebuild.insert(id(number)));
    rebuild.finish(now);
    let mut group = criterion.benchmark_group("guard");
    for (name, first) in [("present", 0), ("absent", IDS)] {
        let ids: Vec<_> = (first..first + (1 << 16)).map(id).collect();
        let mut ids = ids.iter().cycle();
        group.bench_function(name, |bencher| {
            bencher.iter(|| ids.next().map(|id| filter.contains(black_box(id))));
        });
    }
    let rate = Rate {
        tokens: 60,
        period: Duration::from_secs(60),
    };
    let budgets = ClientBudgets::new(rate, 1 << 16, now);
    let mut number = 0_u32;
    group.bench_function("budget", |bencher| {
        bencher.iter(|| {
            number = number.wrapping_mul(0x9e37_79b1).wrapping_add(1);
            budgets.take(black_box(Payer::V4((number >> 8).to_be_bytes())), now)
        });
    });
    group.finish();
}

criterion_group!(benches, decisions, cache_stage, whole_stack, guard);
criterion_main!(benches);
