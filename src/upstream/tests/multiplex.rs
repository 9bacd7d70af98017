//! HTTP/2: which connection a request goes on, and that those who share one do not disturb each other.
//!
//! The origins are written with the h2 crate, frame by frame where it matters.

use std::future::Future;

use h2::RecvStream;
use h2::server::{Builder, Connection, SendResponse};
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::*;
use crate::config::UpstreamProtocol;
use crate::types::FailureKind;

/// What an origin gets.
pub(super) type Call = (Request<RecvStream>, SendResponse<Bytes>);

/// A stage that speaks h2c to `address`.
pub(super) fn h2c(address: SocketAddr, change: impl FnOnce(&mut UpstreamConfig)) -> Arc<Rig> {
    let mut config = config(format!("http://{address}"));
    config.protocol = UpstreamProtocol::H2c;
    change(&mut config);
    Arc::new(Rig::with(config, None))
}

pub(super) async fn shake_hands(conn: Conn, streams: u32) -> Connection<TcpStream, Bytes> {
    Builder::new()
        .max_concurrent_streams(streams)
        .handshake(conn.stream)
        .await
        .unwrap()
}

/// An origin that allows so many streams on a connection and answers with `serve`.
pub(super) async fn origin<F, R>(streams: u32, serve: F) -> Origin
where
    F: Fn(Call) -> R + Clone + Send + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    Origin::start(move |conn, _| {
        let serve = serve.clone();
        async move {
            let mut connection = shake_hands(conn, streams).await;
            while let Some(Ok(call)) = connection.accept().await {
                tokio::spawn(serve(call));
            }
        }
    })
    .await
}

pub(super) async fn read(mut body: RecvStream) -> Option<Vec<u8>> {
    let mut read = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.ok()?;
        let _ = body.flow_control().release_capacity(data.len());
        read.extend_from_slice(&data);
    }
    Some(read)
}

pub(super) fn answer(mut respond: SendResponse<Bytes>, text: &[u8]) {
    let mut stream = respond.send_response(Response::new(()), false).unwrap();
    stream.send_data(Bytes::copy_from_slice(text), true).unwrap();
}

async fn echo((request, respond): Call) {
    let target = request.uri().path().to_owned();
    let content = read(request.into_body()).await.unwrap();
    answer(respond, &[target.as_bytes(), &content].concat());
}

#[tokio::test]
async fn reads_and_writes_share_a_connection() {
    let origin = origin(100, echo).await;
    let rig = h2c(origin.address, |_| {});
    assert_eq!(rig.fetch(get("/a")).await.unwrap(), (200, "/a".into()));
    assert_eq!(rig.fetch(post("/b", "{}")).await.unwrap(), (200, "/b{}".into()));
    let all = futures_util::future::join_all((0..50).map(|_| rig.fetch(post("/c", "x")))).await;
    assert!(
        all.iter()
            .all(|one| one.as_ref().unwrap() == &(200, "/cx".into()))
    );
    assert_eq!(origin.accepted(), 1);
    assert_eq!((rig.connections("idle"), rig.connections("active")), (1, 0));
}

/// Origin that answers when there are permits.
async fn waiting(streams: u32) -> (Origin, Arc<Semaphore>, mpsc::UnboundedReceiver<()>) {
    let gate = Arc::new(Semaphore::new(0));
    let (come, came) = mpsc::unbounded_channel();
    let held = gate.clone();
    let origin = origin(streams, move |(_, respond)| {
        let (held, come) = (held.clone(), come.clone());
        async move {
            come.send(()).unwrap();
            held.acquire().await.unwrap().forget();
            answer(respond, b"ok");
        }
    })
    .await;
    (origin, gate, came)
}

type Asking = JoinSet<Result<(u16, Bytes), Failure>>;

fn ask(rig: &Arc<Rig>, number: usize) -> Asking {
    let mut asking = JoinSet::new();
    ask_more(&mut asking, rig, number);
    asking
}

fn ask_more(asking: &mut Asking, rig: &Arc<Rig>, number: usize) {
    for _ in 0..number {
        let rig = rig.clone();
        asking.spawn(async move { rig.fetch(post("/", "x")).await });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_opened_as_streams_are_needed_and_no_more() {
    for (streams, number, connections) in [(10, 10, 1), (10, 25, 3), (1000, 1000, 10)] {
        let (origin, gate, mut came) = waiting(streams).await;
        let rig = h2c(origin.address, |_| {});
        // The first tells how many streams the peer allows.
        let mut asking = ask(&rig, 1);
        came.recv().await.unwrap();
        ask_more(&mut asking, &rig, number - 1);
        for _ in 1..number {
            came.recv().await.unwrap();
        }
        assert_eq!(origin.accepted(), connections, "{number} of {streams}");
        assert_eq!(rig.connections("active"), connections as i64);
        gate.add_permits(number);
        for answer in asking.join_all().await {
            assert_eq!(answer.unwrap(), (200, "ok".into()));
        }
    }
}

#[tokio::test]
async fn many_who_come_at_once_open_no_connection_that_nobody_needs() {
    let (origin, gate, mut came) = waiting(100).await;
    let rig = h2c(origin.address, |_| {});
    let asking = ask(&rig, 90);
    for _ in 0..90 {
        came.recv().await.unwrap();
    }
    gate.add_permits(90);
    assert!(asking.join_all().await.iter().all(Result::is_ok));
    assert_eq!(origin.accepted(), 1);
}

#[tokio::test]
async fn who_finds_all_connections_full_waits_for_a_stream_and_not_for_ever() {
    let (origin, gate, mut came) = waiting(2).await;
    let rig = h2c(origin.address, |config| config.connections.limit = 1);
    let asking = ask(&rig, 4);
    for _ in 0..2 {
        came.recv().await.unwrap();
    }
    // One who leaves the line is passed over.
    let leaving = ask(&rig, 1);
    settle().await;
    drop(leaving);
    gate.add_permits(4);
    assert!(asking.join_all().await.iter().all(Result::is_ok));
    assert_eq!(origin.accepted(), 1);

    for _ in 0..2 {
        came.recv().await.unwrap();
    }
    let mut asking = ask(&rig, 2);
    for _ in 0..2 {
        came.recv().await.unwrap();
    }
    tokio::time::pause();
    let mut late = rig.dispatch(get("/"));
    Arc::get_mut(&mut late.fetch).unwrap().deadline =
        Some(Clock::System.now().monotonic + Duration::from_secs(1));
    let failure = rig.upstream.clone().call(late).await.unwrap_err();
    assert_eq!((failure.kind, failure.sent), (FailureKind::Overloaded, false));
    asking.shutdown().await;
}

#[tokio::test]
async fn what_is_asked_and_answered_passes_whole() {
    let origin = origin(100, |(mut request, mut respond)| async move {
        assert_eq!(request.uri(), "http://dify.example/a.B/c?x=%2f");
        assert_eq!(request.headers()["te"], "trailers");
        assert!(!request.headers().contains_key("host") && !request.headers().contains_key("connection"));
        assert_eq!(request.headers()["my_key"], "1");
        let body = request.body_mut();
        let data = body.data().await.unwrap().unwrap();
        assert!(body.data().await.is_none());
        let mut trailers = body.trailers().await.unwrap().unwrap();
        trailers.insert("b", "2".parse().unwrap());
        let mut stream = respond.send_response(Response::new(()), false).unwrap();
        stream.send_data(data, false).unwrap();
        stream.send_trailers(trailers).unwrap();
    })
    .await;
    let rig = h2c(origin.address, |_| {});
    let trailers = http::HeaderMap::from_iter([("a".parse().unwrap(), "1".parse().unwrap())]);
    let frames = [Frame::data(Bytes::from("data")), Frame::trailers(trailers)].map(Ok);
    let request = Request::post("/a.B/c?x=%2f")
        .header("host", "dify.example")
        .header("te", "trailers")
        .header("my_key", "1")
        .body(Body::stream(StreamBody::new(futures_util::stream::iter(frames))))
        .unwrap();
    let answer = rig
        .send(request)
        .await
        .unwrap()
        .into_body()
        .collect()
        .await
        .unwrap();
    assert_eq!(answer.trailers().unwrap()["a"], "1");
    assert_eq!(answer.trailers().unwrap()["b"], "2");
    assert_eq!(answer.to_bytes(), "data");
}

#[tokio::test]
async fn the_head_of_an_answer_comes_while_the_request_goes_on() {
    let origin = origin(100, |(mut request, mut respond)| async move {
        let mut stream = respond.send_response(Response::new(()), false).unwrap();
        while let Some(data) = request.body_mut().data().await {
            stream.send_data(data.unwrap(), false).unwrap();
        }
        stream.send_data(Bytes::from("end"), true).unwrap();
    })
    .await;
    let rig = h2c(origin.address, |_| {});
    let (feed, body) = fed_body();
    let mut answer = rig
        .send(Request::post("/").body(body).unwrap())
        .await
        .unwrap()
        .into_body();
    for word in ["one", "two", "three"] {
        feed.send(Ok(word.into())).await.unwrap();
        assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), word);
    }
    drop(feed);
    assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "end");
    assert!(answer.frame().await.is_none());
    assert_eq!(rig.connections("idle"), 1);
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_nobody_else() {
    let long = Bytes::from(vec![b'x'; 8 << 20]);
    let sent = long.clone();
    let origin = origin(100, move |(_, mut respond)| {
        let sent = sent.clone();
        async move {
            let mut stream = respond.send_response(Response::new(()), false).unwrap();
            stream.send_data(sent, true).unwrap();
        }
    })
    .await;
    let rig = h2c(origin.address, |_| {});
    let mut idle = Vec::new();
    for _ in 0..50 {
        idle.push(rig.send(get("/")).await.unwrap());
    }
    assert_eq!(rig.fetch(get("/")).await.unwrap(), (200, long));
    assert_eq!(origin.accepted(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_streams_is_closed_after_a_while_and_one_to_an_old_address_at_once() {
    let origin = origin(100, echo).await;
    let rig = h2c(origin.address, |_| {});
    let sweep = |rig: &Rig| {
        let (token, tracker) = (tokio_util::sync::CancellationToken::new(), TaskTracker::new());
        rig.upstream.spawn_background(token.clone(), &tracker);
        token.drop_guard()
    };
    let _sweeping = sweep(&rig);
    rig.fetch(get("/")).await.unwrap();
    assert_eq!(rig.connections("idle"), 1);
    tokio::time::advance(Duration::from_secs(299)).await;
    settle().await;
    assert_eq!(rig.connections("idle"), 1);
    tokio::time::advance(Duration::from_secs(2)).await;
    settle().await;
    assert_eq!(rig.connections("idle"), 0);

    rig.fetch(get("/")).await.unwrap();
    rig.endpoint
        .set_addresses(vec![SocketAddr::from(([127, 0, 0, 1], 1))]);
    tokio::time::advance(Duration::from_secs(1)).await;
    settle().await;
    assert_eq!((rig.connections("idle"), origin.accepted()), (0, 2));
}

#[tokio::test]
async fn a_probe_has_a_connection_of_its_own() {
    let origin = origin(100, echo).await;
    let rig = h2c(origin.address, |_| {});
    rig.fetch(get("/")).await.unwrap();
    let mut probe = rig.dispatch(get("/health"));
    probe.slot = None;
    let answer = rig.upstream.clone().call(probe).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "/health");
    assert_eq!((origin.accepted(), rig.connections("idle")), (2, 1));
}
