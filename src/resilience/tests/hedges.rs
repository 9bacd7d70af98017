//! Reads that are slow are asked a second time, elsewhere, and rarely.

use super::*;

/// How long the replicas take; the time of a request is that of the replica at which it is.
#[derive(Clone, Default)]
struct Replicas {
    /// By place.
    takes: Arc<Mutex<Vec<Duration>>>,
    /// What the next one to be asked is answered with, if not with 200.
    says: Arc<Mutex<Vec<u16>>>,
    made: Arc<Mutex<Vec<(usize, Placing)>>>,
    /// In flight now.
    in_flight: Arc<Mutex<i32>>,
}

/// Counts itself as in flight.
struct InFlight(Arc<Mutex<i32>>);

impl Drop for InFlight {
    fn drop(&mut self) {
        *self.0.lock() -= 1;
    }
}

impl Replicas {
    /// The first that is not avoided serves; a hedge finds none when there is none.
    async fn serve(self, attempt: Attempt) -> Result<Response<Body>, FailedAttempt> {
        let takes = self.takes.lock().clone();
        let fresh = (0..takes.len()).find(|place| !attempt.avoid.contains(place));
        let place = match (attempt.placing, fresh) {
            (Placing::Queue, fresh) => fresh.unwrap_or(0),
            (_, Some(place)) => place,
            (_, None) => return Err(failed(failure(FailureKind::Overloaded))),
        };
        attempt.placed.set(place);
        self.made.lock().push((place, attempt.placing));
        *self.in_flight.lock() += 1;
        let _in_flight = InFlight(self.in_flight.clone());
        let status = self.says.lock().pop().unwrap_or(200);
        tokio::time::sleep(takes[place]).await;
        let answer = Response::builder().status(status).header("place", place);
        Ok(answer.body(Body::Empty).unwrap())
    }
}

struct HedgeRig {
    rig: Rig,
    replicas: Replicas,
}

const QUICK: Duration = Duration::from_millis(10);
const SLOW: Duration = Duration::from_secs(4);

impl HedgeRig {
    /// So many replicas of which all are quick, and that is known.
    async fn new(replicas: usize, enabled: bool) -> Self {
        let rig = Self::untaught(replicas, enabled);
        for _ in 0..20 {
            assert_eq!(rig.ask(Method::GET).await.unwrap().status(), 200);
        }
        rig.replicas.made.lock().clear();
        rig
    }

    fn untaught(replicas: usize, enabled: bool) -> Self {
        let rig = Self {
            rig: Rig::new(|config| config.hedge.enabled = enabled),
            replicas: Replicas::default(),
        };
        *rig.replicas.takes.lock() = vec![QUICK; replicas];
        rig
    }

    async fn ask(&self, method: Method) -> Result<Response<Body>, Failure> {
        self.fetch(fetch(method, Body::Empty, Some(Duration::from_secs(5))))
            .await
    }

    async fn fetch(&self, request: FetchRequest) -> Result<Response<Body>, Failure> {
        let replicas = self.replicas.clone();
        let inner = service_fn(move |attempt| replicas.clone().serve(attempt));
        self.rig.layer.layer(inner).call(request).await
    }

    fn slow(&self, place: usize) {
        self.replicas.takes.lock()[place] = SLOW;
    }

    fn made(&self) -> Vec<(usize, Placing)> {
        self.replicas.made.lock().clone()
    }

    /// Hedges that were sent, and won.
    fn hedges(&self) -> (f64, f64) {
        let count = |name| self.rig.count(name);
        (
            count("dify_edge_hedges_total"),
            count("dify_edge_hedges_won_total"),
        )
    }
}

const FIRST: (usize, Placing) = (0, Placing::Queue);
const HEDGE: (usize, Placing) = (1, Placing::Hedge);

#[tokio::test(start_paused = true)]
async fn a_slow_read_is_asked_at_another_replica_whose_answer_wins_and_the_loser_is_dropped() {
    let rig = HedgeRig::new(2, true).await;
    rig.slow(0);
    let start = Clock::System.now().monotonic;
    let answer = rig.ask(Method::GET).await.unwrap();
    let took = Clock::System.now().monotonic - start;
    assert_eq!(answer.headers()["place"], "1");
    assert!(took >= QUICK * 2 && took < QUICK * 3, "{took:?}");
    assert_eq!(rig.made(), [FIRST, HEDGE]);
    assert_eq!(*rig.replicas.in_flight.lock(), 0, "the loser goes on");
    assert_eq!(rig.hedges(), (1.0, 1.0));
    assert_eq!(rig.rig.count("dify_edge_upstream_retries_total"), 0.0);
}

#[tokio::test(start_paused = true)]
async fn the_first_may_still_win() {
    let rig = HedgeRig::new(2, true).await;
    *rig.replicas.takes.lock() = vec![QUICK * 2, SLOW];
    let answer = rig.ask(Method::HEAD).await.unwrap();
    assert_eq!(answer.headers()["place"], "0");
    assert_eq!(*rig.replicas.in_flight.lock(), 0);
    assert_eq!(rig.hedges(), (1.0, 0.0));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_hedged_unless_it_is_asked_for_known_and_there_is_another_replica() {
    for rig in [
        HedgeRig::new(2, false).await,
        HedgeRig::untaught(2, true),
        HedgeRig::new(1, true).await,
    ] {
        rig.slow(0);
        assert_eq!(rig.ask(Method::GET).await.unwrap().headers()["place"], "0");
        assert_eq!((rig.made(), rig.hedges()), (vec![FIRST], (0.0, 0.0)));
    }
}

#[tokio::test(start_paused = true)]
async fn only_reads_that_somebody_waits_for_and_that_cost_little_are_hedged() {
    let rig = HedgeRig::new(2, true).await;
    rig.slow(0);
    let read = || fetch(Method::GET, Body::Empty, Some(Duration::from_secs(5)));
    let [mut generation, mut background, mut upgrade, mut other] = [read(), read(), read(), read()];
    generation.head.class = RouteClass::Generation;
    background.head.lane = Lane::Background;
    let fields = &mut upgrade.head.parts.headers;
    fields.insert("upgrade", "websocket".parse().unwrap());
    // Its times are not those of listings, and not known.
    other.head.class = RouteClass::Metadata;
    let full = Body::from(Bytes::from_static(b"{}"));
    let with_body = fetch(Method::GET, full, Some(Duration::from_secs(5)));
    let writes = [
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
        Method::OPTIONS,
    ]
    .map(|method| fetch(method, Body::Empty, Some(Duration::from_secs(5))));
    let all = [generation, background, upgrade, other, with_body]
        .into_iter()
        .chain(writes);
    for request in all {
        assert_eq!(rig.fetch(request).await.unwrap().headers()["place"], "0");
    }
    assert_eq!(rig.made(), [FIRST; 10]);
}

#[tokio::test(start_paused = true)]
async fn hedges_keep_within_their_share_of_reads() {
    let rig = HedgeRig::new(2, true).await;
    // What is asked together with a slow replica would all be hedged.
    rig.slow(0);
    let together = (0..200).map(|_| rig.ask(Method::GET));
    let all = futures_util::future::join_all(together).await;
    assert!(all.iter().all(Result::is_ok));
    // 5% of the 220 reads of the last seconds, and one.
    let (sent, won) = rig.hedges();
    assert_eq!((sent, won), (12.0, 12.0));
    assert_eq!(rig.made().len(), 212);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_none_does_not_win_and_counts_as_no_attempt_more() {
    let rig = HedgeRig::new(2, true).await;
    *rig.replicas.takes.lock() = vec![QUICK * 10, QUICK];
    // The last one is the first that is taken.
    *rig.replicas.says.lock() = vec![503, 200];
    assert_eq!(rig.ask(Method::GET).await.unwrap().headers()["place"], "0");
    assert_eq!((rig.made(), rig.hedges()), (vec![FIRST, HEDGE], (1.0, 0.0)));
    // Both: then retries follow, which avoid both and find nobody.
    *rig.replicas.says.lock() = vec![502, 503];
    let answer = rig.ask(Method::GET).await.unwrap();
    assert_eq!((answer.status().as_u16(), rig.made().len()), (503, 4));
    assert_eq!(rig.rig.count("dify_edge_upstream_retries_total"), 0.0);
}
