//! A store as Redis is one, with a road to it for each instance that the history opens and closes.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::steps::Road;
use crate::cache::codec::unix_millis;
use crate::cache::invalidation::SharedVersions;
use crate::cache::key::Key;
use crate::cache::tier::{Mark, Notice, Reply, Seen, Tier, TierError};
use crate::types::time::Clock;

/// What the store holds.
#[derive(Debug, Clone, Default)]
struct Data {
    values: HashMap<Key, (Bytes, Instant)>,
    leases: HashMap<Key, Instant>,
    versions: Versions,
    unsettled: HashMap<u16, u64>,
}

#[derive(Debug, Clone, Default)]
struct Versions {
    epoch: Option<u64>,
    run: Option<u64>,
    counts: HashMap<u16, u64>,
}

/// One message on its way to one instance; beats of one's own say when they were sent.
#[derive(Debug, Clone)]
pub(super) struct Posted {
    pub(super) bytes: Bytes,
    pub(super) from: usize,
    /// Counts what an instance posts, for the books.
    pub(super) number: u64,
    pub(super) beat_at: Option<Instant>,
}

/// A change of versions that the store carried out.
pub(super) struct Announced {
    pub(super) from: usize,
    /// Slots; `None`: all.
    pub(super) slots: Option<Vec<u16>>,
    /// Whether it marked them.
    pub(super) unsettled: bool,
}

type Late = Box<dyn FnOnce(&mut Server) + Send>;

struct Line {
    road: Road,
    /// Whether there are connections, and a subscription.
    up: bool,
    board: VecDeque<Posted>,
    late: Vec<Late>,
    posted: u64,
    /// Whether the next news to it are lost, and which were.
    loses: bool,
    lost: Vec<Posted>,
}

/// The store and all roads to it.
pub(super) struct Server {
    data: Data,
    replica: Data,
    run: u64,
    next_epoch: u64,
    lines: Vec<Line>,
    announced: Vec<Announced>,
}

/// An instance's way to the store.
#[derive(Clone)]
pub(super) struct Way {
    server: Arc<Mutex<Server>>,
    index: usize,
    clock: Clock,
}

impl std::fmt::Debug for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the way of {}", self.index)
    }
}

impl Server {
    pub(super) fn new(instances: usize) -> Self {
        let line = || Line {
            road: Road::Open,
            up: false,
            board: VecDeque::new(),
            late: Vec::new(),
            posted: 0,
            loses: false,
            lost: Vec::new(),
        };
        Self {
            data: Data::default(),
            replica: Data::default(),
            run: 1,
            next_epoch: 1,
            lines: (0..instances).map(|_| line()).collect(),
            announced: Vec::new(),
        }
    }

    /// Whether an instance has connections.
    pub(super) fn is_up(&self, index: usize) -> bool {
        self.lines[index].up
    }

    /// How much an instance has posted.
    pub(super) fn posted(&self, index: usize) -> u64 {
        self.lines[index].posted
    }

    /// Whether connections that an instance has would carry anything.
    pub(super) fn is_open(&self, index: usize) -> bool {
        self.lines[index].road == Road::Open
    }

    /// Ends an instance's connections.
    pub(super) fn hang_up(&mut self, index: usize) {
        self.lines[index].up = false;
        self.lines[index].board.clear();
    }

    /// Makes connections, as the tier for Redis does: looks whether this is the server that the versions were made
    /// on, subscribes, and tells what is unsettled. `None` when it is not there.
    pub(super) fn connect(&mut self, index: usize) -> Option<Vec<(u16, u64)>> {
        if self.lines[index].road != Road::Open {
            return None;
        }
        if self.data.versions.run != Some(self.run) || self.data.versions.epoch.is_none() {
            self.renew();
            self.data.versions.run = Some(self.run);
        }
        self.lines[index].up = true;
        Some(
            self.data
                .unsettled
                .iter()
                .map(|(slot, until)| (*slot, *until))
                .collect(),
        )
    }

    fn renew(&mut self) {
        self.next_epoch += 1;
        self.data.versions.epoch = Some(self.next_epoch);
    }

    /// Changes a road. What was late arrives now.
    pub(super) fn set_road(&mut self, index: usize, road: Road) {
        for late in std::mem::take(&mut self.lines[index].late) {
            late(self);
        }
        self.lines[index].road = road;
    }

    pub(super) fn empty(&mut self) {
        self.data = Data::default();
        self.run += 1;
    }

    pub(super) fn replicate(&mut self) {
        self.replica = self.data.clone();
    }

    pub(super) fn fail_over(&mut self) {
        self.data = self.replica.clone();
        self.run += 1;
    }

    pub(super) fn forget_versions(&mut self) {
        self.data.versions = Versions::default();
    }

    pub(super) fn forget_values(&mut self) {
        self.data.values.clear();
    }

    /// From now on the next news to an instance are lost.
    pub(super) fn lose(&mut self, index: usize) {
        self.lines[index].loses = true;
    }

    /// What was lost on the way to an instance since the last question.
    pub(super) fn lost(&mut self, index: usize) -> Vec<Posted> {
        std::mem::take(&mut self.lines[index].lost)
    }

    /// What the store carried out since the last question.
    pub(super) fn announced(&mut self) -> Vec<Announced> {
        std::mem::take(&mut self.announced)
    }

    /// Whether all these slots are marked until then, at least.
    pub(super) fn is_marked(&self, slots: &[u16], until: u64) -> bool {
        let marks = &self.data.unsettled;
        slots
            .iter()
            .all(|slot| marks.get(slot).is_some_and(|mark| *mark >= until))
    }

    /// The next message to an instance.
    pub(super) fn next(&mut self, index: usize) -> Option<Posted> {
        self.lines[index].board.pop_front()
    }

    fn post(&mut self, from: usize, bytes: &Bytes, beat_at: Option<Instant>) {
        self.lines[from].posted += 1;
        let number = self.lines[from].posted;
        for (to, line) in self.lines.iter_mut().enumerate().filter(|(_, line)| line.up) {
            let posted = Posted {
                bytes: bytes.clone(),
                from,
                number,
                beat_at,
            };
            // Beats are lost with the road; of one's own news nothing is to be learnt.
            if line.loses && beat_at.is_none() && to != from {
                line.loses = false;
                line.lost.push(posted);
            } else {
                line.board.push_back(posted);
            }
        }
    }

    fn announce(&mut self, from: usize, notice: &Notice) {
        for slot in &notice.slots {
            *self.data.versions.counts.entry(*slot).or_default() += 1;
        }
        if notice.all {
            self.renew();
        }
        if let Mark::Unsettled(until) = notice.mark {
            for slot in &notice.slots {
                self.data.unsettled.insert(*slot, until);
            }
        }
        self.announced.push(Announced {
            from,
            slots: (!notice.all).then(|| notice.slots.clone()),
            unsettled: notice.mark != Mark::None,
        });
        self.post(from, &notice.message, None);
    }

    fn read(&mut self, key: Key, slots: &[u16], now: Instant, wall: u64) -> Seen {
        let versions = self.data.versions.epoch.map(|epoch| SharedVersions {
            epoch,
            slots: slots
                .iter()
                .map(|slot| {
                    (
                        *slot,
                        self.data.versions.counts.get(slot).copied().unwrap_or_default(),
                    )
                })
                .collect(),
        });
        if versions.is_none() {
            self.renew();
            self.data.versions.run = Some(self.run);
        }
        let fresh = |until: &Instant| now < *until;
        Seen {
            value: self
                .data
                .values
                .get(&key)
                .filter(|(_, until)| fresh(until))
                .map(|(value, _)| value.clone()),
            leased: self.data.leases.get(&key).is_some_and(fresh),
            versions,
            unsettled: slots
                .iter()
                .filter_map(|slot| {
                    Some((
                        *slot,
                        *self.data.unsettled.get(slot).filter(|until| **until > wall)?,
                    ))
                })
                .collect(),
        }
    }
}

impl Way {
    pub(super) fn new(server: &Arc<Mutex<Server>>, index: usize, clock: Clock) -> Self {
        Self {
            server: server.clone(),
            index,
            clock,
        }
    }

    /// One command, which is on its way when it is first polled.
    fn command<T: Send + 'static>(
        &self,
        effect: impl FnOnce(&mut Server, Instant) -> T + Send + 'static,
    ) -> Reply<T> {
        let this = self.clone();
        Box::pin(async move {
            let answer = {
                let mut server = this.server.lock();
                let now = this.clock.now().monotonic;
                let line = &mut server.lines[this.index];
                match line.road {
                    _ if !line.up => return Err(TierError::Down),
                    Road::Open => Some(effect(&mut server, now)),
                    Road::Cut => return Err(TierError::Down),
                    Road::Stuck => None,
                    Road::OneWay => {
                        drop(effect(&mut server, now));
                        None
                    }
                    Road::Late => {
                        line.late.push(Box::new(move |server| drop(effect(server, now))));
                        None
                    }
                }
            };
            match answer {
                Some(answer) => Ok(answer),
                None => std::future::pending().await,
            }
        })
    }
}

impl Tier for Way {
    fn read(&self, key: &Key, slots: &[u16], _: bool) -> Reply<Seen> {
        let (key, slots) = (*key, slots.to_vec());
        let wall = unix_millis(self.clock.now().wall);
        self.command(move |server, now| server.read(key, &slots, now, wall))
    }

    fn write(&self, key: &Key, value: Bytes, life: Duration, release: bool) -> Reply<()> {
        let key = *key;
        self.command(move |server, now| {
            server.data.values.insert(key, (value, now + life));
            if release {
                server.data.leases.remove(&key);
            }
        })
    }

    fn lease(&self, key: &Key, life: Duration) -> Reply<bool> {
        let key = *key;
        self.command(move |server, now| {
            let free = server.data.leases.get(&key).is_none_or(|until| *until <= now);
            if free {
                server.data.leases.insert(key, now + life);
            }
            free
        })
    }

    fn release(&self, key: &Key) -> Reply<()> {
        let key = *key;
        self.command(move |server, _| {
            server.data.leases.remove(&key);
        })
    }

    fn announce(&self, notice: &Notice) -> Reply<()> {
        let (notice, from) = (notice.clone(), self.index);
        self.command(move |server, _| server.announce(from, &notice))
    }

    fn beat(&self, message: Bytes) -> Reply<()> {
        let (from, sent) = (self.index, self.clock.now().monotonic);
        self.command(move |server, _| server.post(from, &message, Some(sent)))
    }

    fn unsettled(&self) -> Reply<Vec<(u16, u64)>> {
        self.command(|server, _| {
            server
                .data
                .unsettled
                .iter()
                .map(|(slot, until)| (*slot, *until))
                .collect()
        })
    }

    fn reset(&self, _: &'static str) {
        self.server.lock().hang_up(self.index);
    }
}
