//! How instances agree on what is no longer true.
//!
//! A change ends answers in this process at once; then, through the shared tier, it bumps the versions that stored
//! values are compared with, and puts a message on the board that every other instance hears. Until the store has
//! confirmed, this instance does not believe what the store says of the same tags, and it tries until it has.
//! Whoever is deaf (`hearing`) serves from memory only what it looked at a short while ago, and trusts nothing of
//! that when it hears again. Without a shared tier all of this is the local table alone.

mod hearing;
mod message;
mod outbox;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use self::hearing::{Effect, Hearing, SILENCE};
#[cfg(fuzzing)]
pub(super) use self::message::read_anything;
use self::message::{MOST_SLOTS, Message, News};
pub(super) use self::outbox::Outbox;
use super::codec::{Seal, unix_millis};
use super::invalidation::TagTable;
use super::metrics::{SharedMetrics, Unread};
use super::tier::Tier;
use super::tier::gate::Gate;
use crate::types::ids::{Batch, Tag, Tags};
use crate::types::time::Clock;

/// Changes that wait to be told. When there are more, everything ends instead.
const ORDERS: usize = 1024;

/// No window is longer.
const LONGEST: Duration = Duration::from_secs(3600);

/// The table of tags, and what the other instances are told and have told of it.
#[derive(Debug)]
pub(super) struct Coherence {
    tags: Arc<TagTable>,
    clock: Clock,
    others: Option<Others>,
}

/// What it takes to be one of many.
#[derive(Debug)]
struct Others {
    tier: Arc<dyn Tier>,
    seal: Seal,
    metrics: SharedMetrics,
    /// For how long an answer is served that was looked at before or during deafness.
    window: Duration,
    /// For how long a write without an answer may take effect.
    unsettled: Duration,
    /// This instance, and the origin of its times.
    id: u64,
    epoch: Instant,
    hearing: Mutex<Hearing>,
    /// Milliseconds since `epoch` until which everything is heard, and up to which everything was.
    heard_until: AtomicU64,
    heard_at: AtomicU64,
    /// Changes of each slot, and of everything, that the store has not confirmed.
    pending: Box<[AtomicU32]>,
    all_pending: AtomicU32,
    /// When the connections were made, milliseconds since `epoch`.
    connected_at: AtomicU64,
    /// When the last connection ended.
    lost_at: AtomicU64,
    /// Whether marks may have been missed.
    reload: AtomicBool,
    /// Whether there was no room for an order: then everything ends, and `all_pending` counts that.
    overflow: AtomicBool,
    gate: Arc<Gate>,
    orders: mpsc::Sender<Order>,
}

/// Something to tell, and who wants to know when it is told.
#[derive(Debug)]
struct Order {
    news: News,
    told: Option<oneshot::Sender<()>>,
}

/// Whether the others were told.
#[derive(Debug)]
#[must_use = "the client is answered after the others were told, if that is possible in time"]
pub(super) enum Told {
    /// There are no others.
    Alone,
    /// They will be when the store is back.
    Later,
    /// They are being told.
    Soon(oneshot::Receiver<()>),
}

impl Told {
    /// Waits until they are, but not longer than `limit`; tells whether they are.
    pub(super) async fn within(self, limit: Duration) -> bool {
        match self {
            Self::Alone => true,
            Self::Later => false,
            Self::Soon(told) => matches!(tokio::time::timeout(limit, told).await, Ok(Ok(()))),
        }
    }
}

impl Coherence {
    /// One process alone.
    pub(super) fn alone(tags: Arc<TagTable>, clock: Clock) -> Self {
        Self {
            tags,
            clock,
            others: None,
        }
    }

    /// One of many, which share `tier`; deaf at first. The outbox has to be run for anybody to be told anything.
    pub(super) fn shared(
        tags: Arc<TagTable>,
        clock: Clock,
        tier: Arc<dyn Tier>,
        gate: Arc<Gate>,
        seal: Seal,
        (window, unsettled): (Duration, Duration),
        metrics: SharedMetrics,
    ) -> (Arc<Self>, Outbox) {
        let (orders, taken) = mpsc::channel(ORDERS);
        let id = ahash::RandomState::new().hash_one(0);
        let epoch = clock.now().monotonic;
        let pending = (0..tags.slot_count()).map(|_| AtomicU32::new(0)).collect();
        let others = Others {
            tier,
            seal,
            metrics,
            window,
            unsettled,
            id,
            epoch,
            hearing: Mutex::new(Hearing::new(id)),
            heard_until: AtomicU64::new(0),
            heard_at: AtomicU64::new(0),
            pending,
            all_pending: AtomicU32::new(0),
            connected_at: AtomicU64::new(0),
            lost_at: AtomicU64::new(0),
            reload: AtomicBool::new(false),
            overflow: AtomicBool::new(false),
            gate: gate.clone(),
            orders,
        };
        let coherence = Arc::new(Self {
            tags,
            clock,
            others: Some(others),
        });
        (coherence.clone(), Outbox::new(coherence, gate, taken))
    }

    /// Whether an answer that was looked at then may be served from memory, as far as other instances go.
    pub(super) fn trusts(&self, checked_at: Instant, now: Instant) -> bool {
        self.trusts_after(now).is_none_or(|then| then < checked_at)
    }

    /// A request of `now` may only be served what was looked at after this time; `None`: whenever.
    pub(super) fn trusts_after(&self, now: Instant) -> Option<Instant> {
        let others = self.others.as_ref()?;
        if others.millis(now) < others.heard_until.load(Ordering::Relaxed) {
            return None;
        }
        let heard_at = others.epoch + Duration::from_millis(others.heard_at.load(Ordering::Relaxed));
        let then = now.checked_sub(others.window)?;
        (heard_at <= then).then_some(then)
    }

    /// Whether everything that the others say is heard; `true` without others.
    pub(super) fn hears(&self) -> bool {
        let now = self.clock.now().monotonic;
        let hears = |others: &Others| others.hearing.lock().hears(others.millis(now));
        self.others.as_ref().is_none_or(hears)
    }

    /// Whether the store's versions of these slots may lack a change of this instance's.
    pub(super) fn is_pending(&self, slots: &[u16]) -> bool {
        let pending = |others: &Others| {
            others.all_pending.load(Ordering::SeqCst) != 0
                || slots
                    .iter()
                    .any(|slot| others.pending[usize::from(*slot)].load(Ordering::SeqCst) != 0)
        };
        self.others.as_ref().is_some_and(pending)
    }

    /// Ends what depends on `tags` in this process only: a write goes out.
    pub(super) fn bump_here(&self, tags: &[Tag]) {
        self.tags.bump(tags);
    }

    /// Ends everything that depends on `tags`.
    pub(super) fn bump(&self, tags: &[Tag]) -> Told {
        self.tell(|| News::Ended(TagTable::slots(tags)), || self.tags.bump(tags))
    }

    /// Ends everything.
    pub(super) fn bump_all(&self) -> Told {
        self.tell(|| News::AllEnded, || self.tags.bump_all())
    }

    /// Makes everything stale that depends on `tag`.
    pub(super) fn mark_stale(&self, tag: Tag) -> Told {
        self.tell(
            || News::Stale(TagTable::slots(&[tag])),
            || self.tags.mark_stale(tag),
        )
    }

    /// Makes everything stale.
    pub(super) fn mark_all_stale(&self) -> Told {
        self.tell(|| News::AllStale, || self.tags.mark_all_stale())
    }

    /// Ends what depends on `tags`, and keeps nothing of the kind until `wait` has passed or `batch` is done.
    pub(super) fn bump_unsettled(&self, tags: &[Tag], wait: Duration, batch: Option<Batch>) -> Told {
        let now = self.clock.now().monotonic;
        self.tell(
            || News::Unsettled(wait.min(LONGEST).as_millis() as u64, batch, TagTable::slots(tags)),
            || self.tags.bump_unsettled(tags, now, wait, batch),
        )
    }

    /// `batch` is done: those of `tags` end that wait for it alone, and may be kept again. `None` if none does.
    pub(super) fn settle(&self, tags: &[Tag], batch: Batch) -> Option<Told> {
        let waiting = |tag: &&Tag| self.tags.waits_for(**tag, batch);
        let tags: Tags = tags.iter().filter(waiting).copied().collect();
        (!tags.is_empty()).then(|| {
            self.tell(
                || News::Settled(batch, TagTable::slots(&tags)),
                || {
                    self.tags.settle(&tags, batch);
                },
            )
        })
    }

    /// Tells the others what `change` does here. What is not confirmed counts as pending before it happens here, so
    /// that nobody who sees the change can see the store without it.
    fn tell(&self, news: impl FnOnce() -> News, change: impl FnOnce()) -> Told {
        let Some(others) = &self.others else {
            change();
            return Told::Alone;
        };
        let news = match news() {
            News::Ended(slots) if slots.len() > MOST_SLOTS => News::AllEnded,
            news => news,
        };
        others.expect(&news);
        change();
        let (told, hears) = oneshot::channel();
        if let Err(order) = others.orders.try_send(Order {
            news,
            told: Some(told),
        }) {
            // Too many to tell one by one: the outbox will tell that everything has ended.
            others.metrics.orders_dropped.inc();
            if !others.overflow.swap(true, Ordering::SeqCst) {
                others.expect(&News::AllEnded);
            }
            others.confirm(&order.into_inner().news);
            return Told::Later;
        }
        match others.gate.is_open() {
            true => Told::Soon(hears),
            false => Told::Later,
        }
    }

    /// A new subscription began; `unsettled` is what the store had marked after it had begun.
    pub(super) fn connected(&self, unsettled: &[(u16, u64)]) {
        let Some(others) = &self.others else {
            return;
        };
        self.remember(unsettled);
        let now = others.millis(self.clock.now().monotonic);
        others.connected_at.store(now, Ordering::Relaxed);
        others.hearing.lock().subscribed(now);
        others.gate.open();
        self.remind(unsettled);
    }

    /// Tells again what is unsettled here if the store does not know: it has lost it with its last changes, and what
    /// was fetched since may be there.
    fn remind(&self, marked: &[(u16, u64)]) {
        let Some(others) = &self.others else {
            return;
        };
        let now = self.clock.now();
        let wall = unix_millis(now.wall);
        let lost_at = others.epoch + Duration::from_millis(others.lost_at.load(Ordering::Relaxed));
        let marked: HashMap<u16, u64> = marked.iter().copied().collect();
        let unmarked = |(slot, until): (u16, Instant)| {
            let left = until.saturating_duration_since(now.monotonic).as_millis() as u64;
            let since = now.monotonic.saturating_duration_since(until).as_millis() as u64;
            // Clocks of other machines are a little off.
            let due = (wall + left).saturating_sub(since + SILENCE);
            let known = marked.get(&slot).is_some_and(|until| *until >= due);
            (!known).then_some(slot)
        };
        // Also what settled while there was no connection: nobody else could know of it.
        let slots: Vec<_> = self.tags.unsettled_after(lost_at).filter_map(unmarked).collect();
        for slots in slots.chunks(MOST_SLOTS) {
            let news = News::Unsettled(others.unsettled.as_millis() as u64, None, slots.to_vec());
            drop(self.tell(|| news, || {}));
        }
    }

    /// Slots that are unsettled, and until when (milliseconds since the Unix epoch).
    pub(super) fn remember(&self, unsettled: &[(u16, u64)]) {
        let now = self.clock.now();
        let wall = unix_millis(now.wall);
        for (slot, until) in unsettled {
            // No clock of another machine makes it longer than any window.
            let wait = Duration::from_millis(until.saturating_sub(wall)).min(LONGEST);
            if !wait.is_zero() {
                self.tags.unsettle_slot(*slot, now.monotonic, wait, None);
            }
        }
    }

    /// The subscription ended.
    pub(super) fn lost(&self) {
        if let Some(others) = &self.others {
            others.hearing.lock().lost();
            // What was heard until now was heard.
            others.heard_until.store(0, Ordering::Relaxed);
            let now = others.millis(self.clock.now().monotonic);
            others.lost_at.store(now, Ordering::Relaxed);
        }
    }

    /// Messages may have been lost on the way here.
    pub(super) fn missed(&self) {
        if let Some(others) = &self.others {
            self.distrust(others);
        }
    }

    fn distrust(&self, others: &Others) {
        others.metrics.gaps.inc();
        self.tags.bump_all();
        others.reload.store(true, Ordering::SeqCst);
    }

    /// A message from the board.
    pub(super) fn hear(&self, bytes: &[u8]) {
        let Some(others) = &self.others else {
            return;
        };
        let now = self.clock.now();
        let message = match Message::decode(&others.seal, bytes) {
            Ok(message) => message,
            Err(why) => return others.metrics.unreadable(Unread::Message, why, now.monotonic),
        };
        let mut hearing = others.hearing.lock();
        let effect = hearing.hear(&message, others.millis(now.monotonic));
        if message.from != others.id {
            if !matches!(message.news, News::Beat(_)) {
                let lag = unix_millis(now.wall).saturating_sub(message.sent_at);
                others.metrics.heard.inc();
                others.metrics.lag.observe(lag as f64 / 1000.0);
            }
            self.apply(&message.news, now.monotonic);
        }
        match effect {
            Effect::News | Effect::None => {}
            Effect::Gap => self.distrust(others),
            Effect::Heard(sent) => others.heard_to(sent),
            Effect::Regained(sent) => {
                self.tags.bump_all();
                others.heard_to(sent);
            }
        }
    }

    fn apply(&self, news: &News, now: Instant) {
        match news {
            News::Beat(_) => {}
            News::Ended(slots) => slots.iter().for_each(|slot| self.tags.bump_slot(*slot)),
            News::Stale(slots) => slots.iter().for_each(|slot| self.tags.mark_slot_stale(*slot)),
            News::AllEnded => self.tags.bump_all(),
            News::AllStale => self.tags.mark_all_stale(),
            News::Unsettled(millis, batch, slots) => {
                let wait = Duration::from_millis(*millis).min(LONGEST);
                for slot in slots {
                    self.tags.unsettle_slot(*slot, now, wait, *batch);
                    self.tags.bump_slot(*slot);
                }
            }
            News::Settled(batch, slots) => {
                for slot in slots {
                    self.tags.bump_slot(*slot);
                    self.tags.settle_slot(*slot, *batch);
                }
            }
        }
    }
}

impl Others {
    fn millis(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.epoch).as_millis() as u64
    }

    /// Everything that was sent before then has been heard.
    fn heard_to(&self, sent: u64) {
        self.heard_at.fetch_max(sent, Ordering::Relaxed);
        self.heard_until.fetch_max(sent + SILENCE, Ordering::Relaxed);
    }

    /// The store is about to be told.
    fn expect(&self, news: &News) {
        match news {
            News::AllEnded | News::AllStale => drop(self.all_pending.fetch_add(1, Ordering::SeqCst)),
            news => {
                for slot in news.slots() {
                    self.pending[usize::from(*slot)].fetch_add(1, Ordering::SeqCst);
                }
            }
        }
    }

    /// The store has confirmed.
    fn confirm(&self, news: &News) {
        match news {
            News::AllEnded | News::AllStale => drop(self.all_pending.fetch_sub(1, Ordering::SeqCst)),
            news => {
                for slot in news.slots() {
                    self.pending[usize::from(*slot)].fetch_sub(1, Ordering::SeqCst);
                }
            }
        }
    }
}
