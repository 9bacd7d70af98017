//! How often a request is delivered when a replica fails: a write once, whatever happens; a read as often as it may be.

use std::net::SocketAddr;

use dify_edge::config::Config;
use dify_edge::config::upstreams::Capacity;
use dify_edge::types::units::{Ratio, Span};
use futures_util::future::join_all;

use crate::support::client::{Answer, get, request};
use crate::support::edge::{self, Running};
use crate::support::faulty::{Fault, Faulty, never_connects};
use crate::support::{eventually, metrics};

const COOKIE: (&str, &str) = ("Cookie", "access_token=a");
const WRITES: [&str; 4] = ["POST", "PUT", "PATCH", "DELETE"];
const READS: [&str; 2] = ["GET", "HEAD"];
/// Of each method, so that each replica is the first to be asked for some.
const TIMES: usize = 6;

/// Keeps on asking replicas that fail, and not for long.
fn stubborn(config: &mut Config) {
    config.circuit_breaker.enabled = false;
    let api = edge::api(config);
    api.health_check.unhealthy_after = 1000;
    api.timeouts.connect = Span::millis(300);
    let limit = Span::millis(1_500);
    (api.timeouts.total, api.timeouts.write, api.timeouts.idle) = (limit, limit, limit);
    // Nobody waits for a slot.
    api.capacity = Some(Capacity::Fixed(100));
    // As many as may be: what is counted here is not bounded by this.
    api.retry.budget = Ratio(1.0);
}

async fn ask(edge: &Running, method: &str, mark: &str) -> Answer {
    let body: &[u8] = if READS.contains(&method) {
        b""
    } else {
        b"{\"a\": 1}"
    };
    edge.ask(request(method, &target(mark), &[COOKIE], body)).await
}

/// A path that is asked for once.
fn target(mark: &str) -> String {
    format!("/console/api/apps?name={mark}")
}

/// What became of one request.
struct Told {
    method: &'static str,
    mark: String,
    status: u16,
    cut: bool,
    /// Deliveries at each server.
    delivered: Vec<usize>,
}

impl Told {
    fn all(&self) -> usize {
        self.delivered.iter().sum()
    }

    fn text(&self) -> String {
        let (method, mark, status, delivered) = (self.method, &self.mark, self.status, &self.delivered);
        format!("{method} {mark}: {status}, delivered {delivered:?}")
    }
}

/// Asks everything of `methods`, all together, and says how often each was delivered.
async fn deliveries(edge: &Running, servers: &[&Faulty], methods: &[&'static str]) -> Vec<Told> {
    let asked = methods
        .iter()
        .flat_map(|method| (0..TIMES).map(move |time| (*method, format!("{method}{time}."))));
    let answers = asked.map(|(method, mark)| async move {
        let answer = ask(edge, method, &mark).await;
        (method, mark, answer)
    });
    let answers = join_all(answers).await;
    let told = answers.into_iter().map(|(method, mark, answer)| {
        let of = |server: &&Faulty| {
            server
                .delivered()
                .iter()
                .filter(|text| text.contains(&mark))
                .count()
        };
        Told {
            method,
            status: answer.status,
            cut: answer.cut.is_some(),
            delivered: servers.iter().map(of).collect(),
            mark,
        }
    });
    told.collect()
}

async fn before(addresses: &[SocketAddr]) -> Running {
    edge::start(addresses, stubborn).await
}

const FAULTS: [Fault; 10] = [
    Fault::ResetsInHead,
    Fault::ResetsAfterRequest,
    Fault::HalfHead,
    Fault::CutBody,
    Fault::BlackHole,
    Fault::Frozen,
    Fault::Says(502),
    Fault::Says(503),
    Fault::Says(504),
    Fault::ClosesKept,
];

#[tokio::test]
async fn a_write_that_a_server_has_seen_is_delivered_once_whatever_the_fault() {
    for fault in FAULTS {
        let (faulty, good) = (Faulty::start(fault).await, Faulty::start(Fault::None).await);
        let edge = before(&[faulty.address, good.address]).await;
        let told = deliveries(&edge, &[&faulty, &good], &WRITES).await;
        for told in &told {
            assert_eq!(told.all(), 1, "{fault:?}: {}", told.text());
            let expected = match (fault, told.delivered[0]) {
                (_, 0) | (Fault::ClosesKept | Fault::CutBody, _) => 200,
                (Fault::Says(status), _) => status,
                (Fault::BlackHole | Fault::Frozen, _) => 504,
                _ => 502,
            };
            assert_eq!(told.status, expected, "{fault:?}: {}", told.text());
            assert_eq!(
                told.cut,
                fault == Fault::CutBody && told.delivered[0] == 1,
                "{}",
                told.text()
            );
        }
        let at_fault = told.iter().filter(|told| told.delivered[0] > 0).count();
        assert!(
            at_fault >= WRITES.len(),
            "{fault:?}: only {at_fault} met the fault"
        );
    }
}

#[tokio::test]
async fn a_write_whose_connection_is_reset_unread_is_delivered_at_most_once() {
    let (faulty, good) = (
        Faulty::start(Fault::ResetsUnread).await,
        Faulty::start(Fault::None).await,
    );
    let edge = before(&[faulty.address, good.address]).await;
    for told in deliveries(&edge, &[&faulty, &good], &WRITES).await {
        assert_eq!(told.all(), usize::from(told.status == 200), "{}", told.text());
    }
}

#[tokio::test]
async fn a_write_to_a_replica_that_cannot_be_connected_to_is_delivered_once_at_another() {
    let refuses = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
    let nobody = refuses.local_addr().expect("its address");
    drop(refuses);
    let (silent, _held) = never_connects().await;
    for address in [nobody, silent] {
        let good = Faulty::start(Fault::None).await;
        let edge = before(&[address, good.address]).await;
        for told in deliveries(&edge, &[&good], &[WRITES.as_slice(), &READS].concat()).await {
            assert_eq!((told.status, told.all()), (200, 1), "{}", told.text());
        }
        let retries = metrics::sum(edge.admin, "dify_edge_upstream_retries_total", &[]).await;
        assert!(retries >= TIMES as f64, "only {retries} met the fault");
    }
}

#[tokio::test]
async fn a_read_is_delivered_as_often_as_there_are_attempts_and_not_once_more() {
    for fault in FAULTS {
        let faulty = [Faulty::start(fault).await, Faulty::start(fault).await];
        let more = [Faulty::start(fault).await, Faulty::start(fault).await];
        let servers: Vec<_> = faulty.iter().chain(&more).collect();
        let addresses: Vec<_> = servers.iter().map(|server| server.address).collect();
        let edge = before(&addresses).await;
        for told in deliveries(&edge, &servers, &READS).await {
            let expected = match fault {
                // The head of an answer ends it, and a time-out has used up the time.
                Fault::CutBody | Fault::BlackHole | Fault::Frozen => 1..=1,
                // The attempt that met a connection which was going makes another.
                Fault::ClosesKept => 1..=2,
                _ => 3..=3,
            };
            assert!(expected.contains(&told.all()), "{fault:?}: {}", told.text());
            let at_once = told.delivered.iter().all(|times| *times <= 1);
            assert!(
                at_once || fault == Fault::ClosesKept,
                "{fault:?}: {}",
                told.text()
            );
            if let Fault::Says(status) = fault {
                assert_eq!(told.status, status, "the last answer is passed on");
            }
        }
    }
}

#[tokio::test]
async fn a_read_that_fails_at_one_replica_of_four_is_answered_by_another() {
    for fault in FAULTS {
        if matches!(fault, Fault::CutBody | Fault::BlackHole | Fault::Frozen) {
            continue;
        }
        let faulty = Faulty::start(fault).await;
        let good = [
            Faulty::start(Fault::None).await,
            Faulty::start(Fault::None).await,
            Faulty::start(Fault::None).await,
        ];
        let mut addresses: Vec<_> = good.iter().map(|server| server.address).collect();
        addresses.push(faulty.address);
        let edge = before(&addresses).await;
        for _ in 0..2 {
            for told in deliveries(&edge, &[&faulty], &READS).await {
                assert_eq!(told.status, 200, "{fault:?}: {}", told.text());
            }
        }
        assert!(!faulty.delivered().is_empty(), "{fault:?} was not met");
    }
}

#[tokio::test]
async fn what_waits_for_a_replica_that_becomes_unhealthy_is_asked_elsewhere_if_it_is_a_read_and_else_is_not()
{
    let (frozen, good) = (Faulty::start(Fault::None).await, Faulty::start(Fault::None).await);
    let edge = edge::start(&[frozen.address, good.address], |config| {
        stubborn(config);
        let api = edge::api(config);
        (api.timeouts.total, api.timeouts.write) = (Span::secs(8), Span::millis(2_500));
        api.health_check.unhealthy_after = 1;
        api.health_check.timeout = Span::millis(100);
        api.health_check.interval = Span::millis(50);
    })
    .await;
    frozen.turn(Fault::Frozen);
    let methods = [WRITES.as_slice(), &READS].concat();
    let told = deliveries(&edge, &[&frozen, &good], &methods).await;
    let mut ended = 0;
    for told in &told {
        let is_read = READS.contains(&told.method);
        let most = 1 + usize::from(is_read);
        assert!((1..=most).contains(&told.all()), "{}", told.text());
        assert!(
            told.delivered[0] == 0 || is_read || told.status == 504,
            "{}",
            told.text()
        );
        assert!(!is_read || told.status == 200, "{}", told.text());
        ended += usize::from(told.all() == 2);
    }
    assert!(ended > 0, "no read met the fault");
}

#[tokio::test]
async fn while_a_breaker_opens_every_write_is_delivered_once_and_afterwards_at_the_other_replica() {
    let (faulty, good) = (
        Faulty::start(Fault::Says(503)).await,
        Faulty::start(Fault::None).await,
    );
    let edge = edge::start(&[faulty.address, good.address], |config| {
        stubborn(config);
        config.circuit_breaker.enabled = true;
        config.circuit_breaker.request_volume = 5;
    })
    .await;
    for told in deliveries(&edge, &[&faulty, &good], &WRITES).await {
        assert_eq!(told.all(), 1, "{}", told.text());
    }
    let open = metrics::sum(edge.admin, "dify_edge_breaker_state", &[]).await;
    assert!(open > 0.0);
    let before = faulty.delivered().len();
    for turn in 0..TIMES {
        assert_eq!(ask(&edge, "POST", &format!("after{turn}")).await.status, 200);
    }
    assert_eq!(faulty.delivered().len(), before);
}

#[tokio::test]
async fn when_the_budget_is_used_up_the_first_answer_is_what_the_client_gets() {
    let servers = [
        Faulty::start(Fault::ResetsAfterRequest).await,
        Faulty::start(Fault::Says(503)).await,
    ];
    let edge = edge::start(&[servers[0].address, servers[1].address], |config| {
        stubborn(config);
        edge::api(config).retry.budget = Ratio(0.0);
    })
    .await;
    let mut statuses = Vec::new();
    for turn in 0..60 {
        statuses.push(ask(&edge, "GET", &format!("turn{turn}.")).await.status);
    }
    let delivered: usize = servers.iter().map(|server| server.delivered().len()).sum();
    let sum = async |name| metrics::sum(edge.admin, name, &["upstream=\"api\""]).await;
    let refused = sum("dify_edge_retries_refused_total").await;
    let retried = metrics::sum(edge.admin, "dify_edge_upstream_retries_total", &[]).await;
    assert!(
        statuses.iter().all(|status| matches!(status, 502 | 503)),
        "{statuses:?}"
    );
    // Three a second, of ten seconds.
    assert!(delivered <= 60 + 30 + 6, "{delivered}");
    assert!(retried <= 36.0 && refused >= 20.0, "{retried} {refused}");
}

#[tokio::test]
async fn a_hedged_read_is_delivered_once_more_and_its_slow_replica_is_not_blamed() {
    let (slow, good) = (Faulty::start(Fault::None).await, Faulty::start(Fault::None).await);
    let edge = edge::start(&[slow.address, good.address], |config| {
        edge::api(config).hedge.enabled = true;
        edge::api(config).hedge.budget = Ratio(0.2);
    })
    .await;
    let key = ("Authorization", "Bearer app-1");
    let listing = |number: usize| get(&format!("/v1/conversations?user=u{number}"), &[key]);
    for number in 0..40 {
        assert_eq!(edge.ask(listing(number)).await.status, 200);
    }
    slow.turn(Fault::BlackHole);
    for number in 100..110 {
        assert_eq!(edge.ask(listing(number)).await.status, 200);
        let mark = format!("user=u{number}");
        let times = |server: &Faulty| {
            server
                .delivered()
                .iter()
                .filter(|text| text.contains(&mark))
                .count()
        };
        let (at_slow, at_good) = (times(&slow), times(&good));
        assert!(at_slow <= 1 && at_good == 1, "{number}: {at_slow} {at_good}");
    }
    let hedges = metrics::sum(edge.admin, "dify_edge_hedges_total", &[]).await;
    let won = metrics::sum(edge.admin, "dify_edge_hedges_won_total", &[]).await;
    assert!(won >= 1.0 && hedges >= won, "{hedges} {won}");
    // Each loser has left, and none is held against its replica.
    eventually("the losers to leave", || async {
        (slow.left() as f64 >= won).then_some(())
    })
    .await;
    assert_eq!(
        metrics::sum(edge.admin, "dify_edge_upstream_healthy", &[]).await,
        2.0
    );
    assert_eq!(
        metrics::sum(edge.admin, "dify_edge_breaker_state", &[]).await,
        0.0
    );
    eventually("their slots to be free", || async {
        let in_flight = metrics::sum(edge.admin, "dify_edge_upstream_in_flight", &[]).await;
        (in_flight == 0.0).then_some(())
    })
    .await;
}
