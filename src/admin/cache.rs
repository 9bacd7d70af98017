//! `/cache/…`: what is stored, and the end of it.

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body::Body;
use serde::Serialize;
use tokio::sync::Semaphore;

use super::answer::{self, Answer, Refusal};
use super::server::AdminParts;
use super::{body, purge};
use crate::types::ids::from_hex;

/// The answer to a purge.
#[derive(Debug, Serialize)]
pub(super) struct PurgeAnswer {
    pub(super) entries: u64,
    pub(super) soft: bool,
    /// Whether the other instances know; `null` when there are none.
    pub(super) instances: Option<&'static str>,
}

pub(super) fn stats(parts: &AdminParts) -> Answer {
    answer::status(&parts.cache.stats())
}

/// The stored answers whose key begins with the `key` of the query.
pub(super) async fn entry(parts: &AdminParts, query: Option<&str>) -> Result<Answer, Refusal> {
    let bad = |message: String| Refusal::new(StatusCode::BAD_REQUEST, message);
    let key = query
        .and_then(|query| query.strip_prefix("key="))
        .ok_or_else(|| bad("key: the query is ?key=HEX and nothing else".into()))?
        .to_owned();
    purge::check_key(&key).map_err(bad)?;
    let found = if from_hex(&key).is_some() {
        parts.cache.entries(&key)
    } else {
        let (cache, key) = (parts.cache.clone(), key.clone());
        blocking(move || cache.entries(&key)).await?
    };
    if found.is_empty() {
        let message = format!("nothing is stored under a key that begins with {key}");
        return Err(Refusal::new(StatusCode::NOT_FOUND, message));
    }
    Ok(answer::status(&found))
}

/// Ends stored answers. The caller has shown the token.
pub(super) async fn purge<B>(parts: &AdminParts, request: Request<B>) -> Result<Answer, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
{
    body::must_be_json(request.headers())?;
    let bytes = body::read(request.into_body()).await?;
    let purge = purge::parse(&bytes, &parts.templates)
        .map_err(|message| Refusal::new(StatusCode::BAD_REQUEST, message))?;
    let cache = parts.cache.clone();
    let soft = purge.soft;
    let (entries, telling) = blocking(move || {
        let (purged, telling) = cache.purge(&purge.selection, purge.soft);
        let entries = purged.entries;
        // Here, so that it is said also when the caller has left.
        tracing::info!(what = purge.what.as_str(), soft = purge.soft, entries, "purged");
        (entries, telling)
    })
    .await?;
    let instances = telling
        .told()
        .await
        .map(|told| if told { "told" } else { "not told yet" });
    Ok(answer::status(&PurgeAnswer {
        entries,
        soft,
        instances,
    }))
}

/// Runs what looks at every entry where it holds up nobody, one at a time: whoever asks often takes one core at
/// most from those who are served.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
    static TURN: Semaphore = Semaphore::const_new(1);
    let failed = || Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "the work was broken off");
    let turn = TURN.acquire().await.map_err(|_| failed())?;
    let work = move || {
        // Held to the end, also when nobody waits for the answer any more.
        let _turn = turn;
        work()
    };
    tokio::task::spawn_blocking(work).await.map_err(|_| failed())
}
