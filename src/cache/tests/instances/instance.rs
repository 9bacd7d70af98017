//! One instance as a history has it, and the origin behind all of them.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Response;
use parking_lot::Mutex;
use prometheus::Registry;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::{Layer as _, Service};

use super::store::{Server, Way};
use crate::cache::codec::Seal;
use crate::cache::coherence::Coherence;
use crate::cache::control::CacheControl;
use crate::cache::fetching::Shared;
use crate::cache::instances::{Parts, over};
use crate::cache::{Cache, CacheLayer, CacheMetrics, SharedMetrics};
use crate::config::CacheConfig;
use crate::config::cache::CacheType;
use crate::types::ids::{Tag, TagKind, Tags};
use crate::types::request::FetchRequest;
use crate::types::time::Clock;
use crate::types::{Body, Failure};

/// How long a write that was cut off may still take effect.
pub(super) const UNSETTLED: Duration = Duration::from_secs(6);

/// A request that has come to the origin.
pub(super) struct Call {
    /// The change that it is, or the resource that it asks for.
    pub(super) of: Result<usize, usize>,
    pub(super) began_at: Instant,
    pub(super) instance: usize,
    pub(super) snapshot: Option<u64>,
    pub(super) reply: Option<oneshot::Sender<Result<Response<Body>, Failure>>>,
}

/// The way to it from one instance.
#[derive(Clone)]
pub(super) struct Origin {
    pub(super) calls: Arc<Mutex<Vec<Call>>>,
    pub(super) clock: Clock,
    pub(super) instance: usize,
}

impl Service<FetchRequest> for Origin {
    type Response = Response<Body>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Failure>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: FetchRequest) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let number =
                |name| -> Option<usize> { request.head.parts.headers.get(name)?.to_str().ok()?.parse().ok() };
            let of = number("x-change").map_or_else(|| Err(number("x-resource").expect("one")), Ok);
            let (reply, answer) = oneshot::channel();
            let began_at = this.clock.now().monotonic;
            this.calls.lock().push(Call {
                of,
                began_at,
                instance: this.instance,
                snapshot: None,
                reply: Some(reply),
            });
            answer.await.expect("an answer")
        })
    }
}

pub(super) struct Instance {
    pub(super) cache: Cache<Origin>,
    pub(super) control: CacheControl,
    pub(super) shared: Arc<Shared>,
    pub(super) coherence: Arc<Coherence>,
    pub(super) stop: CancellationToken,
    pub(super) up: bool,
    /// When its way to the store was last not open.
    pub(super) ill_at: Instant,
}

pub(super) fn tags(bits: u8) -> Tags {
    let kinds = [TagKind::AppMetadata, TagKind::Datasets];
    (0..2)
        .filter(|bit| bits >> bit & 1 == 1)
        .map(|bit| Tag::all(kinds[bit]))
        .collect()
}

impl Instance {
    pub(super) fn start(server: &Arc<Mutex<Server>>, index: usize, clock: &Clock, origin: &Origin) -> Self {
        let mut config = CacheConfig {
            r#type: CacheType::Redis,
            ..CacheConfig::default()
        };
        config.unsettled_window = crate::types::units::Span(UNSETTLED);
        let registry = Registry::new();
        let metrics = CacheMetrics::register(&registry).expect("fresh registry");
        let counters = SharedMetrics::register(&registry).expect("fresh registry");
        let way = Arc::new(Way::new(server, index, clock.clone()));
        let (shared, parts) = over(config, clock.clone(), metrics, counters, way, Seal::new(None));
        let layer = CacheLayer::of(shared);
        let cache = layer.layer(Origin {
            instance: index,
            ..origin.clone()
        });
        let Parts {
            coherence,
            outbox,
            writer,
            timeout,
        } = parts;
        let stop = CancellationToken::new();
        tokio::spawn(outbox.run(timeout, stop.clone()));
        tokio::spawn(writer.run(stop.clone()));
        let (control, shared) = (layer.control(), cache.shared_for_test());
        Self {
            cache,
            control,
            shared,
            coherence,
            stop,
            up: false,
            ill_at: clock.now().monotonic,
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
