//! Requests that come again byte for byte: answered beside hyper, in order, and only while the answer is good.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::time::Instant;

use super::*;
use crate::types::repeat::{Again, Repeat, Repeatable};

const REQUEST: &str =
    "GET /stored HTTP/1.1\r\nHost: h\r\nConnection: keep-alive\r\nAuthorization: Bearer app-1\r\n\r\n";

/// A stack whose answer to `/stored` comes from memory; everything else is [`app`]'s.
#[derive(Debug, Default)]
struct Stored {
    through: AtomicUsize,
    again: AtomicUsize,
    ended: AtomicBool,
    length: usize,
}

impl Repeat for Stored {
    fn again(&self, _: Instant, cache_status: &mut String) -> Option<Again> {
        if self.ended.load(Ordering::SeqCst) {
            return None;
        }
        let number = self.again.fetch_add(1, Ordering::SeqCst);
        cache_status.push_str("dify-edge; hit; again");
        Some(Again {
            body: vec![b'x'; self.length].into(),
            age: 100 + number as u64,
        })
    }
}

impl Stored {
    fn counts(&self) -> (usize, usize) {
        (
            self.through.load(Ordering::SeqCst),
            self.again.load(Ordering::SeqCst),
        )
    }

    fn response(self: Arc<Self>) -> Response<Body> {
        self.through.fetch_add(1, Ordering::SeqCst);
        let mut response = Response::builder()
            .header("date", "Sun, 22 Nov 2026 20:00:00 GMT")
            .header("x-version", "1.12.0")
            .header("age", "7")
            .header("vary", "a")
            .header("vary", "b")
            .header("cache-status", "cdn; fwd=miss")
            .header("cache-status", "dify-edge; hit")
            .extension(outcome(CacheOutcome::Hit))
            .body(Body::Full(vec![b'x'; self.length].into()))
            .unwrap();
        response.extensions_mut().insert(Repeatable(self));
        response
    }
}

struct Bench {
    rig: Rig,
    stored: Arc<Stored>,
}

impl Bench {
    fn new(length: usize) -> Self {
        let mut rig = Rig::new();
        let log = crate::config::LogConfig::default();
        let shared = Arc::get_mut(&mut rig.shared).unwrap();
        shared.ledger = Arc::new(Ledger::new(shared.ledger.metrics.clone(), Clock::System, &log));
        let stored = Arc::new(Stored {
            length,
            ..Stored::default()
        });
        Self { rig, stored }
    }

    fn connect_through(&self, capacity: usize) -> Peer<DuplexStream> {
        let (ours, theirs) = tokio::io::duplex(capacity);
        let (shared, stored) = (self.rig.shared.clone(), self.stored.clone());
        tokio::spawn(async move {
            let stack = tower::service_fn(move |request: Request<Body>| {
                let stored = stored.clone();
                async move {
                    if request.uri().path() == "/stored" {
                        Ok(stored.response())
                    } else {
                        app(request).await
                    }
                }
            });
            let client = Client {
                peer: ([192, 0, 2, 1], 1234).into(),
                tls: false,
                trusted: false,
            };
            connection::drive(theirs, Spoken::Unknown, client, None, stack, &shared).await;
        });
        Peer::new(ours)
    }

    fn connect(&self) -> Peer<DuplexStream> {
        self.connect_through(1 << 20)
    }

    /// A connection on which [`REQUEST`] is known already.
    async fn warm(&self, capacity: usize) -> Peer<DuplexStream> {
        let mut peer = self.connect_through(capacity);
        for _ in 0..3 {
            peer.send(REQUEST).await;
            peer.reply().await;
        }
        peer
    }
}

#[tokio::test(start_paused = true)]
async fn a_repeated_request_gets_the_same_answer_without_the_stack() {
    let bench = Bench::new(5);
    let mut peer = bench.connect();
    peer.send(REQUEST).await;
    let through = peer.reply().await;
    peer.send(REQUEST).await;
    peer.reply().await;
    assert_eq!(bench.stored.counts(), (2, 0), "remembered when it came twice");
    peer.send(REQUEST).await;
    let again = peer.reply().await;
    assert_eq!(bench.stored.counts(), (2, 1));
    let mut other = bench.connect();
    other.send(REQUEST).await;
    other.reply().await;
    assert_eq!(bench.stored.counts(), (2, 2), "known on every connection");
    let fields = |reply: &Reply| {
        let mut lines: Vec<_> = reply.head.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let expected: Vec<_> = fields(&through)
        .into_iter()
        .map(|line| match line.as_str() {
            "Age: 7" => "Age: 100".to_owned(),
            "Cache-Status: dify-edge; hit" => "Cache-Status: dify-edge; hit; again".to_owned(),
            _ => line,
        })
        .collect();
    assert_eq!(fields(&again), expected);
    assert_eq!(again.body, through.body);
    for number in 102..150 {
        peer.send(REQUEST).await;
        assert!(peer.reply().await.head.contains(&format!("Age: {number}\r\n")));
    }
    assert_eq!(bench.stored.counts(), (2, 50));
    let hits = bench
        .rig
        .metric("dify_edge_requests_total", &["hit", "2xx", "metadata"]);
    assert_eq!(hits, 52.0);
    assert_eq!(bench.rig.metric("dify_edge_request_seconds", &["total"]), 52.0);
    assert_eq!(bench.rig.metric("dify_edge_bytes_sent_total", &[]), 52.0 * 5.0);
}

#[tokio::test(start_paused = true)]
async fn what_differs_in_one_byte_or_is_no_longer_good_goes_through_the_stack() {
    let bench = Bench::new(5);
    let mut peer = bench.warm(1 << 20).await;
    for other in [
        REQUEST.replace("app-1", "app-2"),
        REQUEST.replace("Host: h", "host: h"),
        REQUEST.replace("\r\n\r\n", "\r\nX: y\r\n\r\n"),
        REQUEST.replace("/stored", "/stored?a"),
    ] {
        peer.send(other).await;
        peer.reply().await;
    }
    assert_eq!(bench.stored.counts(), (6, 1));
    bench.stored.ended.store(true, Ordering::SeqCst);
    peer.send(REQUEST).await;
    assert!(peer.reply().await.head.contains("Age: 7\r\n"));
    assert_eq!(bench.stored.counts(), (7, 1));
}

#[tokio::test(start_paused = true)]
async fn answers_stay_in_order_whatever_is_under_way() {
    let bench = Bench::new(5);
    let mut peer = bench.warm(1 << 20).await;
    let slow = "GET /slow?9 HTTP/1.1\r\nHost: h\r\n\r\n";
    // Together, one after the other while the first is being answered, and behind a body.
    peer.send(format!("{slow}{REQUEST}{REQUEST}")).await;
    assert_eq!(peer.reply().await.body, "slow");
    assert_eq!(peer.reply().await.body, "xxxxx");
    assert_eq!(peer.reply().await.body, "xxxxx");
    peer.send(slow).await;
    sleep(Duration::from_secs(1)).await;
    peer.send(REQUEST).await;
    assert_eq!(peer.reply().await.body, "slow");
    assert_eq!(peer.reply().await.body, "xxxxx");
    peer.send("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n")
        .await;
    sleep(Duration::from_secs(1)).await;
    // Looks like a request, but is a body.
    let body = format!("{REQUEST}{}", "x".repeat(100 - REQUEST.len() - 4));
    peer.send(&body).await;
    sleep(Duration::from_secs(1)).await;
    peer.send("yyyy").await;
    assert_eq!(peer.reply().await.body, format!("{body}yyyy"));
    peer.send(REQUEST).await;
    assert_eq!(peer.reply().await.body, "xxxxx");
    // The request after those that hyper never saw is refused under its own number.
    peer.send("GET / HTTP/1.1\r\nHost: h\r\nBad Name: x\r\n\r\n")
        .await;
    assert_eq!(peer.refusal().await.0, 400);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_its_answers_slowly_gets_them_whole() {
    let bench = Bench::new(4000);
    let mut peer = bench.warm(48).await;
    let before = bench.stored.again.load(Ordering::SeqCst);
    for _ in 0..3 {
        peer.send(REQUEST).await;
        assert_eq!(peer.reply().await.body.len(), 4000);
    }
    // 48 bytes at a time, a request is not whole in one read.
    assert_eq!(bench.stored.again.load(Ordering::SeqCst), before);
    let mut peer = bench.warm_further(REQUEST.len()).await;
    let before = bench.stored.again.load(Ordering::SeqCst);
    for number in 1..4 {
        peer.send(REQUEST).await;
        sleep(Duration::from_secs(30)).await;
        assert_eq!(peer.reply().await.body.len(), 4000);
        assert_eq!(bench.stored.again.load(Ordering::SeqCst), before + number);
    }
    // The end of what the client sends does not cut what it gets.
    peer.send(REQUEST).await;
    let (mut read, mut write) = tokio::io::split(peer.io);
    write.shutdown().await.unwrap();
    let mut rest = String::new();
    read.read_to_string(&mut rest).await.unwrap();
    assert!(rest.ends_with(&"x".repeat(4000)), "{}", rest.len());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_of_its_answer_is_given_up_and_a_drain_lets_it_finish() {
    let bench = Bench::new(4000);
    let mut stuck = bench.warm_further(REQUEST.len()).await;
    stuck.send(REQUEST).await;
    let started = now();
    while bench.rig.metric("dify_edge_connections", &["h1"]) > 0.0
        && started.elapsed() < Duration::from_secs(500)
    {
        sleep(Duration::from_secs(1)).await;
    }
    assert!(
        (74..=160).contains(&started.elapsed().as_secs()),
        "{:?}",
        started.elapsed()
    );

    let bench = Bench::new(4000);
    let mut slow = bench.warm_further(REQUEST.len()).await;
    slow.send(REQUEST).await;
    sleep(Duration::from_secs(1)).await;
    bench.rig.shared.drain.cancel();
    sleep(Duration::from_secs(1)).await;
    let rest = slow.rest().await;
    assert!(rest.ends_with(&"x".repeat(4000)), "{}", rest.len());
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_was_put_away_recalls_as_well() {
    let bench = Bench::new(5);
    let mut peer = bench.warm(1 << 20).await;
    for number in 1..5 {
        sleep(Duration::from_secs(20)).await;
        peer.send(REQUEST).await;
        assert_eq!(peer.reply().await.body, "xxxxx");
        assert_eq!(bench.stored.counts(), (2, 1 + number));
    }
    sleep(Duration::from_secs(20)).await;
    assert_eq!(peer.get("/hello").await.body, "hello");
    peer.send(REQUEST).await;
    assert_eq!(peer.reply().await.body, "xxxxx");
    assert_eq!(bench.stored.counts(), (2, 6));
}

#[tokio::test(start_paused = true)]
async fn several_requests_that_come_together_again_and_again_are_answered_each() {
    let bench = Bench::new(5);
    let mut peer = bench.warm(1 << 20).await;
    for together in [2, 3, 1, 2, 7, 3, 3, 3, 3] {
        peer.send(REQUEST.repeat(together)).await;
        for _ in 0..together {
            assert_eq!(peer.reply().await.body, "xxxxx");
        }
        let mut other = bench.connect();
        other.send(REQUEST.repeat(together)).await;
        for _ in 0..together {
            assert_eq!(other.reply().await.body, "xxxxx");
        }
        sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_ends_its_connection_is_never_recalled() {
    let bench = Bench::new(5);
    for connection in ["close", "keep-alive, x", "upgrade"] {
        let request = REQUEST.replace("keep-alive", connection);
        for _ in 0..4 {
            let mut peer = bench.connect();
            peer.send(&request).await;
            peer.reply().await;
        }
    }
    assert_eq!(bench.stored.counts(), (12, 0));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_recalled_where_every_request_has_its_line_in_the_log() {
    let mut bench = Bench::new(5);
    bench.rig = Rig::new();
    let mut peer = bench.connect();
    for _ in 0..5 {
        peer.send(REQUEST).await;
        peer.reply().await;
    }
    assert_eq!(bench.stored.counts(), (5, 0));
}

impl Bench {
    /// Like [`Bench::warm`], known from another connection, and past its first read.
    async fn warm_further(&self, capacity: usize) -> Peer<DuplexStream> {
        let mut first = self.connect();
        for _ in 0..3 {
            first.send(REQUEST).await;
            first.reply().await;
        }
        let mut peer = self.connect_through(capacity);
        peer.get("/hello").await;
        peer
    }
}

#[test]
fn a_request_is_seen_as_another_over_tls_or_from_a_trusted_proxy() {
    let recall = Recall::new();
    let client = |tls, trusted| Client {
        peer: ([192, 0, 2, 1], 1234).into(),
        tls,
        trusted,
    };
    let see = |tls, trusted| recall.see(REQUEST.as_bytes(), &client(tls, trusted)).unwrap();
    let all = [
        see(false, false),
        see(false, true),
        see(true, false),
        see(true, true),
    ];
    for (i, one) in all.iter().enumerate() {
        assert!(all[..i].iter().all(|other| other != one));
    }
    assert_eq!(all[0], see(false, false));
    let another = Recall::new().see(REQUEST.as_bytes(), &client(false, false));
    assert_ne!(another, Some(all[0]), "keyed");
    for no in [
        "POST / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\n",
        "",
        &format!("GET /{}\r\n\r\n", "a".repeat(4096)),
    ] {
        assert_eq!(recall.see(no.as_bytes(), &client(false, false)), None);
    }
    assert!(!recall.is_repeated(&all[0]) && recall.is_repeated(&all[0]));
    assert!(recall.is_repeated(&all[0]));
}
