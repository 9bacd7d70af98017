//! Plays a history: real caches, their background work, an origin that answers when the history says so, and time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{Method, Response};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use tokio::time::Instant;
use tower::Service as _;

use super::instance::{Call, Instance, Origin, UNSETTLED, tags};
use super::promises::{Book, Change, Given, Reading, touched};
use super::steps::{FILLS, INSTANCES, RESOURCES, Road, Step};
use super::store::Server;
use crate::cache::codec::unix_millis;
use crate::cache::control::Selection;
use crate::cache::invalidation::TagTable;
use crate::cache::key::Key;
use crate::cache::tests::{request, write};
use crate::types::outcome::RouteClass;
use crate::types::request::ClassifiedRequest;
use crate::types::time::{Clock, ManualTime};
use crate::types::{Failure, FailureKind};

/// The longest piece in which time passes.
const PIECE: u64 = 50;
/// The longest that a client waits without a fetch for it: a lease, and some commands that are not answered.
const PATIENCE: Duration = Duration::from_millis(2500);
/// After so long without a fault the others are told of a write before its client is.
const WELL: Duration = Duration::from_secs(2);

const TEMPLATES: [&str; RESOURCES] = ["/v1/info", "/v1/meta", "/v1/parameters"];

type Answer = Result<(Given, Response<()>), Failure>;

pub(super) struct World {
    server: Arc<Mutex<Server>>,
    instances: Vec<Instance>,
    origin: Origin,
    time: Arc<ManualTime>,
    clock: Clock,
    versions: [u64; RESOURCES],
    book: Book,
    held: [bool; INSTANCES],
    readings: BTreeMap<usize, Reading>,
    /// Clients that wait, and which change theirs is.
    writing: BTreeMap<usize, usize>,
    clients: usize,
    answered: Arc<Mutex<Vec<(usize, Answer)>>>,
    tasks: BTreeMap<usize, tokio::task::JoinHandle<()>>,
    pub(super) answers: u64,
    /// `Cache-Status` of the last answer to a read.
    pub(super) last_status: String,
    pub(super) log: Option<Vec<String>>,
}

impl World {
    pub(super) fn new(log: bool) -> Self {
        let (clock, time) = Clock::manual(SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_364_120));
        let server = Arc::new(Mutex::new(Server::new(INSTANCES)));
        let origin = Origin {
            calls: Arc::default(),
            clock: clock.clone(),
            instance: 0,
        };
        let instances = (0..INSTANCES)
            .map(|index| Instance::start(&server, index, &clock, &origin))
            .collect();
        Self {
            server,
            instances,
            origin,
            time,
            clock,
            versions: [0; RESOURCES],
            book: Book::default(),
            held: [false; INSTANCES],
            readings: BTreeMap::new(),
            writing: BTreeMap::new(),
            clients: 0,
            answered: Arc::default(),
            tasks: BTreeMap::new(),
            answers: 0,
            last_status: String::new(),
            log: log.then(Vec::new),
        }
    }

    fn now(&self) -> Instant {
        self.clock.now().monotonic
    }

    /// How many fetches and writes are under way.
    pub(super) fn calls(&self) -> usize {
        let calls = self.origin.calls.lock();
        calls.iter().filter(|call| call.reply.is_some()).count()
    }

    fn note(&mut self, what: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            log.push(what());
        }
    }

    pub(super) async fn play(&mut self, steps: &[Step]) -> Result<(), String> {
        self.play_on(steps).await?;
        self.note(|| "the end".to_owned());
        self.come_to_rest().await
    }

    /// Plays without an end.
    pub(super) async fn play_on(&mut self, steps: &[Step]) -> Result<(), String> {
        if self.clients == 0 {
            // Everyone hears everyone.
            self.advance(1500).await?;
        }
        for step in steps {
            let began = self.now();
            self.note(|| format!("{step:?}"));
            self.step(step.clone()).await?;
            let passed = self.now() - began;
            if passed.is_zero() {
                self.pass(Duration::from_millis(1)).await?;
            }
        }
        Ok(())
    }

    async fn step(&mut self, step: Step) -> Result<(), String> {
        match step {
            Step::Read(instance, resource) => self.read(instance, resource, false),
            Step::ReadAnew(instance, resource) => self.read(instance, resource, true),
            Step::Write(instance, tags) => self.write(instance, tags),
            Step::Snapshot(n) => {
                if let Some(call) = self.pick(n, |call| call.of.is_err() && call.snapshot.is_none()) {
                    self.snapshot(call);
                }
            }
            Step::Finish(n) => {
                if let Some(call) = self.pick(n, |call| call.of.is_err()) {
                    self.finish(call);
                }
            }
            Step::Effect(n) => self.effect(n),
            Step::Answer(n) => self.end_write(n, true),
            Step::CutOff(n) => self.end_write(n, false),
            Step::Purge(instance, tag) => self.purge(instance, tag),
            Step::Advance(millis) => return self.advance(millis).await,
            Step::Restart(instance) => self.restart(instance),
            Step::Evict(instance, resource) => {
                let shared = &self.instances[instance].shared;
                let key = key(&self.request(resource));
                shared.l1.remove(&key);
            }
            Step::Lose(instance) => self.server.lock().lose(instance),
            Step::Hold(instance, held) => self.held[instance] = held,
            Step::Road(instance, road) => {
                let mut server = self.server.lock();
                server.set_road(instance, road);
                if road == Road::Cut {
                    server.hang_up(instance);
                }
            }
            Step::Empty => self.store_fails(Server::empty),
            Step::Replicate => self.server.lock().replicate(),
            Step::FailOver => self.store_fails(Server::fail_over),
            Step::ForgetVersions => self.server.lock().forget_versions(),
            Step::ForgetValues => self.server.lock().forget_values(),
        }
        self.settle().await
    }

    fn store_fails(&mut self, how: impl FnOnce(&mut Server)) {
        let now = self.clock.now();
        let mut server = self.server.lock();
        how(&mut server);
        (0..INSTANCES).for_each(|instance| server.hang_up(instance));
        for change in &mut self.book.changes {
            let Some(until) = change.cut_until else {
                continue;
            };
            let left = until.saturating_duration_since(now.monotonic);
            let until = unix_millis(now.wall + left);
            let slots = TagTable::slots(&tags(change.tags));
            if !left.is_zero() && !server.is_marked(&slots, until) {
                // Until its instance tells again.
                (change.confirmed, change.store_lost) = (None, true);
            }
        }
    }

    /// The n-th open call that is so.
    fn pick(&self, n: usize, is: impl Fn(&Call) -> bool) -> Option<usize> {
        let calls = self.origin.calls.lock();
        let open: Vec<_> = (0..calls.len())
            .filter(|c| calls[*c].reply.is_some() && is(&calls[*c]))
            .collect();
        open.get(n.checked_rem(open.len())?).copied()
    }

    fn request(&self, resource: usize) -> ClassifiedRequest {
        let mut request = request(Method::GET, TEMPLATES[resource]);
        request.decision.template = TEMPLATES[resource];
        request.decision.fills = tags(FILLS[resource]);
        request.parts.headers.insert("x-resource", resource.into());
        request
    }

    fn read(&mut self, instance: usize, resource: usize, anew: bool) {
        let mut request = self.request(resource);
        if anew {
            request
                .parts
                .headers
                .insert("cache-control", "no-cache".parse().expect("value"));
        }
        let reading = self.book.begin(instance, resource, self.now());
        let required = reading.required;
        let client = self.send(instance, request);
        self.note(|| format!("      client {client} has to get {required:?}"));
        self.readings.insert(client, reading);
    }

    fn write(&mut self, instance: usize, bits: u8) {
        let mut request = write(RouteClass::Write);
        request.decision.invalidates = tags(bits);
        request
            .parts
            .headers
            .insert("x-change", self.book.changes.len().into());
        self.book.changes.push(Change::new(instance, bits, self.now()));
        let client = self.send(instance, request);
        self.writing.insert(client, self.book.changes.len() - 1);
    }

    fn send(&mut self, instance: usize, request: ClassifiedRequest) -> usize {
        self.clients += 1;
        let (client, answered) = (self.clients, self.answered.clone());
        let future = self.instances[instance].cache.call(request);
        let calls = self.origin.calls.clone();
        let task = tokio::spawn(async move {
            let answer = match future.await {
                Ok(response) => {
                    let (head, body) = response.into_parts();
                    let body = body.collect().await.expect("a whole body").to_bytes();
                    let body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
                    let call = body["call"].as_u64().unwrap_or_default() as usize;
                    let status = head
                        .headers
                        .get("cache-status")
                        .and_then(|value| value.to_str().ok());
                    let given = Given {
                        version: body["version"].as_u64().unwrap_or_default(),
                        fetched_at: calls.lock()[call].began_at,
                        status: status.unwrap_or_default().to_owned(),
                    };
                    Ok((given, Response::from_parts(head, ())))
                }
                Err(failure) => Err(failure),
            };
            answered.lock().push((client, answer));
        });
        self.tasks.insert(client, task);
        client
    }

    fn snapshot(&mut self, call: usize) {
        let mut calls = self.origin.calls.lock();
        if let Err(resource) = calls[call].of {
            calls[call].snapshot.get_or_insert(self.versions[resource]);
        }
    }

    fn finish(&mut self, call: usize) {
        self.snapshot(call);
        let mut calls = self.origin.calls.lock();
        let version = calls[call].snapshot.unwrap_or_default();
        let body = format!("{{\"version\": {version}, \"call\": {call}}}");
        if let Some(reply) = calls[call].reply.take() {
            // Nobody waits when its instance has ended.
            let _ = reply.send(super::super::ok(body));
        }
        drop(calls);
        self.note(|| format!("      fetch {call} gets version {version}"));
    }

    fn effect(&mut self, n: usize) {
        let now = self.now();
        let may = |change: &Change| match change.cut_until {
            Some(until) => now + PIECE_AND_MORE < until,
            None => !change.over && change.effects.is_empty(),
        };
        let possible: Vec<_> = (0..self.book.changes.len())
            .filter(|c| may(&self.book.changes[*c]))
            .collect();
        // The latest ones: they are the interesting ones.
        let latest = possible.len().saturating_sub(1 + n % 3);
        let Some(number) = possible.get(latest).copied() else {
            return;
        };
        let sent = self.origin.calls.lock().iter().any(|call| call.of == Ok(number));
        if sent {
            self.take_effect(number);
        }
    }

    fn take_effect(&mut self, number: usize) {
        for resource in touched(self.book.changes[number].tags) {
            self.versions[resource] += 1;
            self.book.changes[number]
                .effects
                .push((resource, self.versions[resource]));
        }
        self.book.changes[number].effect_at = Some(self.now());
        let versions = self.versions;
        self.note(|| format!("      change {number} takes effect: {versions:?}"));
    }

    fn end_write(&mut self, n: usize, answered: bool) {
        let Some(call) = self.pick(n, |call| call.of.is_ok()) else {
            return;
        };
        let mut calls = self.origin.calls.lock();
        let Ok(number) = calls[call].of else {
            return;
        };
        let reply = calls[call].reply.take();
        drop(calls);
        let answer = if answered {
            if self.book.changes[number].effects.is_empty() {
                self.take_effect(number);
            }
            super::super::ok("{}")
        } else {
            let change = &mut self.book.changes[number];
            change.cut_until = Some(self.clock.now().monotonic + UNSETTLED);
            // What was told of it until now does not say that it may go on.
            change.confirmed = None;
            Err(Failure::new(FailureKind::UpstreamReset, "cut off").sent())
        };
        if let Some(reply) = reply {
            let _ = reply.send(answer);
        }
        self.note(|| {
            format!(
                "      change {number} is {}",
                if answered { "answered" } else { "cut off" }
            )
        });
    }

    fn purge(&mut self, instance: usize, tag: Option<u8>) {
        let bits = tag.unwrap_or(0b11);
        let change = Change::new(instance, bits, self.now());
        self.book.changes.push(Change { over: true, ..change });
        self.take_effect(self.book.changes.len() - 1);
        let selection = match tag {
            Some(bits) => Selection::Tag(tags(bits)[0]),
            None => Selection::All,
        };
        drop(self.instances[instance].control.purge(&selection, false));
    }

    fn restart(&mut self, instance: usize) {
        self.server.lock().hang_up(instance);
        self.book.restarted(instance);
        self.instances[instance] = Instance::start(&self.server, instance, &self.clock, &self.origin);
        // Its clients are gone with it; what it had sent is cut off, and nobody else can know of it.
        let of = |reading: &Reading| reading.instance == instance;
        self.readings.retain(|_, reading| !of(reading));
        self.writing
            .retain(|_, change| self.book.changes[*change].instance != instance);
        for known in &mut self.book.known {
            (known.delivered[instance], known.lost[instance]) = (0, 0);
        }
    }

    async fn advance(&mut self, millis: u64) -> Result<(), String> {
        let mut left = millis;
        while left > 0 {
            let piece = left.min(PIECE);
            self.pass(Duration::from_millis(piece)).await?;
            left -= piece;
        }
        Ok(())
    }

    pub(super) async fn pass(&mut self, time: Duration) -> Result<(), String> {
        self.time.advance(time);
        tokio::time::advance(time).await;
        self.settle().await
    }

    /// Lets everybody do what there is to do, delivers messages and makes connections.
    async fn settle(&mut self) -> Result<(), String> {
        for _ in 0..3 {
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            let now = self.now();
            for index in 0..INSTANCES {
                let coherence = self.instances[index].coherence.clone();
                let up = self.server.lock().is_up(index);
                if self.instances[index].up && !up {
                    self.instances[index].up = false;
                    self.book.known[index].disconnected();
                    coherence.lost();
                }
                if !self.instances[index].up {
                    let connected = self.server.lock().connect(index);
                    if let Some(unsettled) = connected {
                        self.instances[index].up = true;
                        self.book.known[index].connected(now);
                        coherence.connected(&unsettled);
                    }
                }
                for lost in self.server.lock().lost(index) {
                    let known = &mut self.book.known[index];
                    known.lost[lost.from] = known.lost[lost.from].max(lost.number);
                }
                while !self.held[index] && self.server.lock().is_open(index) {
                    let Some(posted) = self.server.lock().next(index) else {
                        break;
                    };
                    let known = &mut self.book.known[index];
                    known.delivered[posted.from] = known.delivered[posted.from].max(posted.number);
                    if let (true, Some(sent)) = (posted.from == index, posted.beat_at) {
                        known.heard(sent, now);
                    }
                    coherence.hear(&posted.bytes);
                }
            }
            self.confirm(now);
            self.look_at_answers()?;
        }
        self.look_at_those_who_wait()
    }

    /// Notes which changes the store has carried out.
    fn confirm(&mut self, now: Instant) {
        let mut server = self.server.lock();
        for what in server.announced() {
            let posted = server.posted(what.from);
            for change in &mut self.book.changes {
                change.announced(&what, now, posted);
            }
        }
        for (index, instance) in self.instances.iter_mut().enumerate() {
            if !server.is_open(index) || !server.is_up(index) {
                instance.ill_at = now;
            }
        }
    }

    /// Nobody waits longer for another instance than a lease.
    fn look_at_those_who_wait(&mut self) -> Result<(), String> {
        let now = self.now();
        let calls = self.origin.calls.lock();
        for (client, reading) in &mut self.readings {
            let (instance, resource) = (reading.instance, reading.resource);
            let for_it =
                |call: &Call| call.instance == instance && call.of == Err(resource) && call.reply.is_some();
            if calls.iter().any(for_it) {
                reading.cared_at = now;
            }
            if now - reading.cared_at > PATIENCE {
                return Err(format!("client {client} waits, and nobody fetches for it"));
            }
        }
        Ok(())
    }

    fn look_at_answers(&mut self) -> Result<(), String> {
        let now = self.now();
        let answered = std::mem::take(&mut *self.answered.lock());
        for (client, answer) in answered {
            self.tasks.remove(&client);
            self.answers += 1;
            if let Some(change) = self.writing.remove(&client) {
                let told = &mut self.book.changes[change];
                told.over = true;
                let well = self.instances[told.instance].ill_at + WELL < told.began_at;
                if well && told.confirmed.is_none() {
                    return Err(format!(
                        "client {client} was answered before the others were told"
                    ));
                }
                self.note(|| format!("      client {client} knows what became of change {change}"));
                continue;
            }
            let Some(reading) = self.readings.remove(&client) else {
                continue;
            };
            let (given, _) = answer.map_err(|failure| format!("client {client} got {failure:?}"))?;
            let (version, status) = (given.version, given.status.clone());
            self.note(|| format!("      client {client} gets version {version}: {status}"));
            self.last_status.clone_from(&status);
            let known = &mut self.book.known[reading.instance];
            if status.ends_with("detail=l2") || status.contains("collapsed") {
                known.looked_at[reading.resource] = Some(now);
            }
            self.book
                .check(&reading, &given, now)
                .map_err(|why| format!("client {client}: {why}"))?;
        }
        Ok(())
    }

    /// When everything works again, all see the same, and nobody waits.
    async fn come_to_rest(&mut self) -> Result<(), String> {
        for instance in 0..INSTANCES {
            self.held[instance] = false;
            self.server.lock().set_road(instance, Road::Open);
        }
        for _ in 0..8 {
            self.finish_all();
            self.advance(1500).await?;
        }
        for instance in 0..INSTANCES {
            if !self.instances[instance].coherence.hears() {
                return Err(format!("instance {instance} hears nothing"));
            }
            for resource in 0..RESOURCES {
                self.read(instance, resource, false);
            }
        }
        for _ in 0..4 {
            self.settle().await?;
            self.finish_all();
            self.advance(1000).await?;
        }
        if let Some(client) = self.readings.keys().next().or(self.writing.keys().next()) {
            return Err(format!("client {client} waits for ever"));
        }
        let untold = |change: &Change| !change.orphaned && !change.store_lost && change.confirmed.is_none();
        if let Some(number) = self.book.changes.iter().position(untold) {
            return Err(format!("nobody was told of change {number}"));
        }
        self.share_again().await
    }

    /// What one has fetched serves all.
    async fn share_again(&mut self) -> Result<(), String> {
        let mut fetches = 0;
        // The first may find that the store has lost its versions, the second what it has lost besides.
        for _ in 0..3 {
            let before = self.origin.calls.lock().len();
            for instance in 0..INSTANCES {
                for resource in 0..RESOURCES {
                    let key = key(&self.request(resource));
                    self.instances[instance].shared.l1.remove(&key);
                    self.read(instance, resource, false);
                }
                self.settle().await?;
                self.finish_all();
                self.advance(PIECE).await?;
            }
            fetches = self.origin.calls.lock().len() - before;
        }
        match fetches {
            0 => Ok(()),
            fetches => Err(format!("{fetches} fetches of what is stored for all")),
        }
    }

    fn finish_all(&mut self) {
        while let Some(call) = self.pick(0, |call| call.of.is_err()) {
            self.finish(call);
        }
        while self.pick(0, |call| call.of.is_ok()).is_some() {
            self.end_write(0, true);
        }
    }
}

/// Room between the last effect of a write and the end of its window.
const PIECE_AND_MORE: Duration = Duration::from_millis(2 * PIECE);

fn key(request: &ClassifiedRequest) -> Key {
    let principal = request.decision.principal.expect("one");
    Key::of(&request.parts, &request.client, principal)
}
