//! Reads of the shared tier. Those that are asked for while the runtime polls what is ready go to Redis together: two
//! commands for all, so that under load neither side pays for each of them. Alone, a read waits for nobody.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use fred::interfaces::{HashesInterface, KeysInterface};
use fred::types::{Key as RedisKey, Value};
use futures_util::future::join_all;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::oneshot;

use super::{EPOCH, Link, RUN, SlotNames, UNSETTLED, all, bytes, longest_mark, malformed, random};
use crate::cache::codec::unix_millis;
use crate::cache::invalidation::SharedVersions;
use crate::cache::tier::{Reply, Seen, TierError};
use crate::types::time::Clock;

/// The most that go together: an answer waits for all of them.
const TOGETHER: usize = 64;

/// What is to be read.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) value: RedisKey,
    pub(super) lease: Option<RedisKey>,
    pub(super) slots: SmallVec<[u16; 6]>,
}

type Waiting = (Ask, oneshot::Sender<Result<Seen, TierError>>);

/// See the module.
#[derive(Debug)]
pub(super) struct Reads {
    pub(super) tags: RedisKey,
    pub(super) marks: RedisKey,
    pub(super) names: SlotNames,
    pub(super) clock: Clock,
    pub(super) link: ArcSwapOption<Link>,
    /// Whether one command can be about any keys: not in a cluster.
    pub(super) together: bool,
    pub(super) waiting: Mutex<Vec<Waiting>>,
}

impl Reads {
    /// The connection, for a command.
    pub(super) fn link(&self) -> Result<Arc<Link>, TierError> {
        self.link.load_full().ok_or(TierError::Down)
    }

    pub(super) fn read(self: &Arc<Self>, ask: Ask) -> Reply<Seen> {
        let reads = self.clone();
        if !self.together {
            return Box::pin(async move {
                let seen = reads.look(&[&ask]).await?;
                seen.into_iter().next().ok_or_else(malformed)
            });
        }
        Box::pin(async move {
            let (to, answer) = oneshot::channel();
            if reads.is_first((ask, to)) {
                tokio::spawn(async move {
                    // Everybody else who can go on asks before this task goes on.
                    tokio::task::yield_now().await;
                    let asks = std::mem::take(&mut *reads.waiting.lock());
                    let mut asks = asks.into_iter().peekable();
                    let mut looks = Vec::new();
                    while asks.peek().is_some() {
                        looks.push(reads.look_for(asks.by_ref().take(TOGETHER).collect()));
                    }
                    join_all(looks).await;
                });
            }
            answer.await.unwrap_or(Err(TierError::Down))
        })
    }

    /// Adds one that waits; whether no other does.
    fn is_first(&self, ask: Waiting) -> bool {
        let mut waiting = self.waiting.lock();
        waiting.push(ask);
        waiting.len() == 1
    }

    async fn look_for(&self, waiting: Vec<Waiting>) {
        let (asks, to): (Vec<_>, Vec<_>) = waiting.into_iter().unzip();
        let asks: Vec<_> = asks.iter().collect();
        let mut seen = self.look(&asks).await.map(Vec::into_iter);
        for to in to {
            let answer = match &mut seen {
                Ok(seen) => seen.next().ok_or_else(malformed),
                Err(error) => Err(error.clone()),
            };
            // Whoever does not wait any more has left.
            let _ = to.send(answer);
        }
    }

    /// What there is for each of `asks`.
    async fn look(&self, asks: &[&Ask]) -> Result<Vec<Seen>, TierError> {
        let link = self.link()?;
        let mut slots: Vec<u16> = asks.iter().flat_map(|ask| ask.slots.iter().copied()).collect();
        slots.sort_unstable();
        slots.dedup();
        let names: Vec<_> = slots.iter().map(|slot| self.names.of(*slot)).collect();
        let mut fields = Vec::with_capacity(2 + names.len());
        fields.push(RedisKey::from_static_str(EPOCH));
        fields.push(RedisKey::from_static_str(UNSETTLED));
        fields.extend(names.iter().cloned());
        let keys = asks.iter().flat_map(|ask| [Some(&ask.value), ask.lease.as_ref()]);
        let keys: Vec<_> = keys.flatten().cloned().collect();
        // The values first: what they depend on is as of the same moment or later.
        let pipeline = link.client.pipeline();
        pipeline.mget::<(), _>(keys).await?;
        pipeline.hmget::<(), _, _>(&self.tags, fields).await?;
        let Value::Array(replies) = pipeline.all::<Value>().await? else {
            return Err(malformed());
        };
        let Ok([Value::Array(stored), Value::Array(versions)]) = <[Value; 2]>::try_from(replies) else {
            return Err(malformed());
        };
        let mut versions = versions.iter();
        let epoch = versions.next().and_then(Value::as_u64);
        let marked = versions.next().and_then(Value::as_u64).unwrap_or(0);
        // A slot that was never bumped is not there.
        let versions: Vec<u64> = versions.map(|version| version.as_u64().unwrap_or(0)).collect();
        if epoch.is_none() {
            self.begin_epoch(&link).await?;
        }
        let now = unix_millis(self.clock.now().wall);
        let marks: Vec<Option<u64>> = if marked > now {
            // Something is unsettled; perhaps one of these.
            link.client.hmget(&self.marks, names).await?
        } else {
            Vec::new()
        };
        let mut stored = stored.into_iter();
        let seen = asks.iter().map(|ask| {
            let value = stored.next().and_then(bytes);
            let lease = ask.lease.as_ref().and_then(|_| stored.next());
            let of = |slot: u16| slots.binary_search(&slot).unwrap_or_default();
            let version = |slot: u16| (slot, versions.get(of(slot)).copied().unwrap_or(0));
            let mark = |slot: u16| Some((slot, marks.get(of(slot)).copied()?.filter(|until| *until > now)?));
            Seen {
                value,
                leased: lease.is_some_and(|lease| !lease.is_null()),
                unsettled: ask.slots.iter().copied().filter_map(mark).collect(),
                versions: epoch.map(|epoch| SharedVersions {
                    epoch,
                    slots: ask.slots.iter().copied().map(version).collect(),
                }),
            }
        });
        Ok(seen.collect())
    }

    /// The versions were evicted or flushed. What was read before has another epoch than this one, whoever makes it.
    async fn begin_epoch(&self, link: &Link) -> Result<(), TierError> {
        let pipeline = link.client.pipeline();
        pipeline
            .hsetnx::<(), _, _, _>(&self.tags, EPOCH, random().to_string())
            .await?;
        let fields = vec![
            (RUN, link.run.clone()),
            (UNSETTLED, longest_mark(&self.clock).to_string()),
        ];
        pipeline.hset::<(), _, _>(&self.tags, fields).await?;
        all(pipeline).await
    }
}
