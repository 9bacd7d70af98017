//! What stands for the next stage and for the name service.
//!
//! [`Fake`] is replicas that behave as told, [`Names`] a name service that the test rewrites.

use super::*;

/// What a replica does with requests and probes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Mood {
    /// Answers after that time, what begins with `/heavy` after ten times as much.
    Answers(Duration),
    Refuses,
    Resets,
    TimesOut(Duration),
    /// Answers with this status and no content.
    Says(u16),
    /// Answers with this report of its load.
    Reports(&'static str),
    /// Answers with these pieces of JSON.
    Tells(&'static [&'static str]),
    /// Answers with some content, and after that time with its end or this failure.
    Streams(Duration, Option<FailureKind>),
}

pub(super) const HANGS: Mood = Mood::TimesOut(Duration::from_secs(5));

/// How long a generation lasts, on any replica.
pub(super) const STREAM: Duration = Duration::from_secs(60);

pub(super) const QUICK: Mood = Mood::Answers(Duration::from_millis(1));

/// Replicas that behave as told, and what they saw.
#[derive(Clone, Default)]
pub(super) struct Fake {
    pub(super) moods: Arc<Mutex<Vec<Mood>>>,
    /// Replicas in the order in which requests (not probes) reached them, with the targets.
    pub(super) served: Arc<Mutex<Vec<(usize, String)>>>,
    pub(super) probes: Arc<AtomicUsize>,
    pub(super) busy: Arc<AtomicUsize>,
    pub(super) busiest: Arc<AtomicUsize>,
}

impl Fake {
    pub(super) fn mood(&self, replica: usize, mood: Mood) {
        self.moods.lock()[replica] = mood;
    }

    pub(super) fn replicas(&self) -> Vec<usize> {
        std::mem::take(&mut *self.served.lock())
            .into_iter()
            .map(|(replica, _)| replica)
            .collect()
    }

    async fn serve(self, dispatch: Dispatch) -> Result<Response<Body>, Failure> {
        let Dispatch {
            fetch,
            endpoint,
            slot,
            body,
        } = dispatch;
        let mood = self.moods.lock()[endpoint.replica];
        let _sent = body.take();
        if slot.is_some() {
            let target = fetch.parts.uri.to_string();
            self.served.lock().push((endpoint.replica, target));
            let busy = self.busy.fetch_add(1, Ordering::SeqCst) + 1;
            self.busiest.fetch_max(busy, Ordering::SeqCst);
        } else {
            self.probes.fetch_add(1, Ordering::SeqCst);
        }
        let result = match mood {
            Mood::Answers(after) => {
                let stream = fetch.lane == Lane::Generation;
                let heavy = if fetch.template == "/heavy" { 10 } else { 1 };
                sleep(if stream { STREAM } else { heavy * after }).await;
                Ok(Response::new(Body::Empty))
            }
            Mood::Refuses => Err(Failure::new(FailureKind::ConnectFailed, "")),
            Mood::Resets => Err(Failure::new(FailureKind::UpstreamReset, "").sent()),
            Mood::TimesOut(after) => {
                sleep(after).await;
                Err(Failure::new(FailureKind::UpstreamTimeout, "").sent())
            }
            Mood::Says(status) => {
                let mut response = Response::new(Body::Empty);
                *response.status_mut() = status.try_into().unwrap();
                Ok(response)
            }
            Mood::Reports(report) => {
                let fields = Response::builder().header("endpoint-load-metrics", report);
                Ok(fields.body(Body::Empty).unwrap())
            }
            Mood::Tells(pieces) => {
                let frame = |piece: &'static str| Ok(Frame::data(Bytes::from_static(piece.as_bytes())));
                let body = Body::stream(StreamBody::new(stream::iter(pieces.iter().copied().map(frame))));
                let fields = Response::builder().header("content-type", "application/json");
                Ok(fields.body(body).unwrap())
            }
            Mood::Streams(after, failure) => Ok(Response::new(streaming(after, failure))),
        };
        if slot.is_some() {
            self.busy.fetch_sub(1, Ordering::SeqCst);
        }
        drop(slot);
        result
    }
}

fn streaming(after: Duration, failure: Option<FailureKind>) -> Body {
    Body::stream(StreamBody::new(stream::unfold(0, move |at| async move {
        match at {
            0 => Some((Ok(Frame::data(Bytes::from_static(b"data"))), 1)),
            1 => {
                sleep(after).await;
                failure.map(|kind| (Err(Failure::new(kind, "").sent()), 2))
            }
            _ => None,
        }
    })))
}

impl Service<Dispatch> for Fake {
    type Response = Response<Body>;
    type Error = Failure;
    type Future = BoxFuture<'static, Result<Response<Body>, Failure>>;
    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Failure>> {
        std::task::Poll::Ready(Ok(()))
    }
    fn call(&mut self, dispatch: Dispatch) -> Self::Future {
        Box::pin(self.clone().serve(dispatch))
    }
}

/// A name service that the test rewrites.
#[derive(Clone, Default)]
pub(super) struct Names {
    pub(super) answer: Arc<Mutex<Option<Vec<SocketAddr>>>>,
    pub(super) lookups: Arc<AtomicUsize>,
}

impl Resolve for Names {
    fn lookup(&self, _host: &str, _port: u16) -> Lookup {
        self.lookups.fetch_add(1, Ordering::SeqCst);
        let answer = self.answer.lock().clone();
        Box::pin(async move { answer.ok_or_else(|| io::Error::other("no such name")) })
    }
}
