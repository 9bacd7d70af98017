//! Tells the others: one task that puts changes and beats on the board, in order, and tries until it is confirmed.
//!
//! A beat is also the probe of the connections: its answer opens the gate, and when none comes for 1.5 s, or one's
//! own beats do not come back, the connections are replaced.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::hearing::BEAT;
use super::message::{MOST_SLOTS, Message, News};
use super::{Coherence, Order, Others};
use crate::cache::codec::unix_millis;
use crate::cache::tier::gate::Gate;
use crate::cache::tier::{Mark, Notice};

/// How long a command to tell something is waited for.
const DEADLINE: Duration = Duration::from_secs(1);
/// How long beats may go unanswered, and how long unheard, until the connections are replaced.
const DEAD: Duration = Duration::from_millis(1500);
const DEAF: Duration = Duration::from_millis(3000);
/// Messages under way at once, and orders in one.
const UNDER_WAY: usize = 64;
const BATCH: usize = 64;
/// Orders that wait for the store to come back; more of them are "everything".
const UNSENT: usize = 4096;

/// See the module.
pub(in crate::cache) struct Outbox {
    coherence: Arc<Coherence>,
    gate: Arc<Gate>,
    orders: mpsc::Receiver<Order>,
    sequence: u64,
    /// What failed, oldest first.
    unsent: VecDeque<Order>,
    /// When a beat was last confirmed.
    alive_at: Option<Instant>,
    /// When one's own beats were last heard.
    heard_at: Option<Instant>,
}

/// What came of something that was sent.
enum Answer {
    Beat { good: bool, fast: bool },
    Told { orders: Vec<Order>, good: bool },
}

type Answers = FuturesUnordered<Pin<Box<dyn Future<Output = Answer> + Send>>>;

impl Outbox {
    pub(super) fn new(coherence: Arc<Coherence>, gate: Arc<Gate>, orders: mpsc::Receiver<Order>) -> Self {
        Self {
            coherence,
            gate,
            orders,
            sequence: 0,
            unsent: VecDeque::new(),
            alive_at: None,
            heard_at: None,
        }
    }

    /// Works until `stop`. `fast`: how quickly a beat has to be confirmed for the gate to open.
    pub(in crate::cache) async fn run(mut self, fast: Duration, stop: CancellationToken) {
        let coherence = self.coherence.clone();
        let Some(others) = &coherence.others else {
            return;
        };
        let mut beats = interval(Duration::from_millis(BEAT));
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut answers = Answers::new();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(answer) = answers.next(), if !answers.is_empty() => self.answered(others, answer),
                _ = beats.tick() => {
                    self.watch(others);
                    answers.push(self.beat(others, fast));
                    if others.reload.swap(false, Ordering::SeqCst) {
                        self.reload(others).await;
                    }
                    let again = self.unsent.drain(..).collect::<Vec<_>>();
                    self.send(others, again, &answers);
                }
                Some(order) = self.orders.recv(), if answers.len() < UNDER_WAY => {
                    let mut orders = vec![order];
                    while orders.len() < BATCH && let Ok(order) = self.orders.try_recv() {
                        orders.push(order);
                    }
                    self.send(others, orders, &answers);
                }
            }
        }
    }

    /// Puts a beat on the board.
    fn beat(&self, others: &Others, fast: Duration) -> Pin<Box<dyn Future<Output = Answer> + Send>> {
        let clock = self.coherence.clock.clone();
        let sent = clock.now();
        let message = self.message(others, News::Beat(others.millis(sent.monotonic)));
        let reply = others.tier.beat(message.encode(&others.seal));
        Box::pin(async move {
            let good = matches!(timeout(DEADLINE, reply).await, Ok(Ok(())));
            let took = clock.now().monotonic.saturating_duration_since(sent.monotonic);
            Answer::Beat {
                good,
                fast: good && took <= fast,
            }
        })
    }

    fn message(&self, others: &Others, news: News) -> Message {
        let sent_at = unix_millis(self.coherence.clock.now().wall);
        Message {
            from: others.id,
            sequence: self.sequence,
            sent_at,
            news,
        }
    }

    /// Puts news on the board, those of ended answers together.
    fn send(&mut self, others: &Others, orders: Vec<Order>, answers: &Answers) {
        let mut batch: Vec<Order> = Vec::new();
        let mut slots: Vec<u16> = Vec::new();
        for order in orders {
            match &order.news {
                News::Ended(more) if slots.len() + more.len() <= MOST_SLOTS => {
                    slots.extend(more);
                    batch.push(order);
                }
                news => {
                    let news = news.clone();
                    self.put(others, &mut batch, &mut slots, answers);
                    answers.push(self.announce(others, news, vec![order]));
                }
            }
        }
        self.put(others, &mut batch, &mut slots, answers);
    }

    fn put(&mut self, others: &Others, batch: &mut Vec<Order>, slots: &mut Vec<u16>, answers: &Answers) {
        if !batch.is_empty() {
            slots.sort_unstable();
            slots.dedup();
            let news = News::Ended(std::mem::take(slots));
            answers.push(self.announce(others, news, std::mem::take(batch)));
        }
    }

    fn announce(
        &mut self,
        others: &Others,
        news: News,
        orders: Vec<Order>,
    ) -> Pin<Box<dyn Future<Output = Answer> + Send>> {
        self.sequence += 1;
        let mark = match &news {
            News::Unsettled(millis, ..) => {
                let until = unix_millis(self.coherence.clock.now().wall).saturating_add(*millis);
                Mark::Unsettled(until)
            }
            // Another write may have marked the same slots: what is settled stays marked for who starts now.
            _ => Mark::None,
        };
        let notice = Notice {
            slots: news.slots().to_vec(),
            all: matches!(news, News::AllEnded | News::AllStale),
            mark,
            message: self.message(others, news).encode(&others.seal),
        };
        let reply = others.tier.announce(&notice);
        Box::pin(async move {
            let good = matches!(timeout(DEADLINE, reply).await, Ok(Ok(())));
            Answer::Told { orders, good }
        })
    }

    fn answered(&mut self, others: &Others, answer: Answer) {
        match answer {
            Answer::Beat { good, fast } => {
                if good {
                    self.alive_at = Some(self.coherence.clock.now().monotonic);
                }
                if self.gate.probed(fast) {
                    tracing::info!("the shared cache tier answers; it is used");
                }
            }
            Answer::Told { orders, good: true } => {
                others.metrics.sent.inc();
                for order in orders {
                    others.confirm(&order.news);
                    if let Some(told) = order.told {
                        // Nobody listens when the client did not want to wait any longer.
                        let _ = told.send(());
                    }
                }
            }
            Answer::Told { orders, good: false } => {
                others.metrics.send_failures.inc();
                self.unsent.extend(orders);
                if self.unsent.len() > UNSENT {
                    let everything = Order {
                        news: News::AllEnded,
                        told: None,
                    };
                    others.expect(&everything.news);
                    for order in self.unsent.drain(..) {
                        others.confirm(&order.news);
                    }
                    self.unsent.push_back(everything);
                }
            }
        }
    }

    /// Replaces connections that do not answer.
    fn watch(&mut self, others: &Others) {
        if others.overflow.swap(false, Ordering::SeqCst) {
            // Its count was taken when the flag was set.
            self.unsent.push_back(Order {
                news: News::AllEnded,
                told: None,
            });
        }
        let now = self.coherence.clock.now().monotonic;
        if others.hearing.lock().hears(others.millis(now)) {
            self.heard_at = Some(now);
        }
        let connected_at = others.epoch + Duration::from_millis(others.connected_at.load(Ordering::Relaxed));
        let since = |sign: Option<Instant>| {
            now.saturating_duration_since(sign.map_or(connected_at, |at| at.max(connected_at)))
        };
        let (alive, heard) = (since(self.alive_at) < DEAD, since(self.heard_at) < DEAF);
        if !alive || !heard {
            let why = if alive {
                "nothing is heard on its board"
            } else {
                "it does not answer"
            };
            if self.gate.close() {
                tracing::warn!("the shared cache tier is left out: {why}");
            }
            // Without a connection this does nothing.
            others.tier.reset(why);
        }
    }

    /// Learns again what is unsettled, after messages were lost.
    async fn reload(&self, others: &Others) {
        match timeout(DEADLINE, others.tier.unsettled()).await {
            Ok(Ok(unsettled)) => self.coherence.remember(&unsettled),
            _ => others.reload.store(true, Ordering::SeqCst),
        }
    }
}
