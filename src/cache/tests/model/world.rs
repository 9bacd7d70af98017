//! One history: carries its steps out on a real cache and notes what every answer has to satisfy.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use http::Method;
use tokio::time::Instant;
use tower::{Layer as _, Service as _};

use super::origin::{Origin, RESOURCES};
use super::steps::{Aim, Answer, How, Step, WriteKind};
use crate::cache::control::{CacheControl, Selection};
use crate::cache::key::Key;
use crate::cache::service::CacheFuture;
use crate::cache::tests::request;
use crate::cache::{Cache, CacheLayer, CacheMetrics};
use crate::config::CacheConfig;
use crate::types::Body;
use crate::types::ids::{Principal, Tag, TagKind, Tags};
use crate::types::outcome::RouteClass;
use crate::types::request::CacheClass;
use crate::types::time::{Clock, ManualTime};

pub(super) const PRINCIPALS: usize = 2;
/// What the cache promises about a write that was cut off.
pub(super) const UNSETTLED: Duration = Duration::from_secs(30);
const TEMPLATES: [&str; RESOURCES] = ["/v1/zero", "/v1/one", "/v1/two"];
/// Which of the two tags each resource depends on, as bits.
const FILLS: [u8; RESOURCES] = [0b01, 0b11, 0b10];

fn tag(number: usize) -> Tag {
    Tag::all([TagKind::AppMetadata, TagKind::Datasets][number])
}

fn tags(bits: u8) -> Tags {
    (0..2).filter(|bit| bits >> bit & 1 == 1).map(tag).collect()
}

/// By resource and principal.
pub(super) type PerKey<T> = [[T; PRINCIPALS]; RESOURCES];

/// What is known of each key, and handed to a read when it begins.
#[derive(Default)]
pub(super) struct Book {
    /// The version that a read which begins now must at least see.
    pub required: [u64; RESOURCES],
    /// Step of the last purge.
    pub hard: PerKey<u64>,
    pub soft: PerKey<u64>,
    /// Bumps and marks so far.
    pub epoch: PerKey<u64>,
    /// Until when answers are known not to be shared.
    pub unshared_until: PerKey<Option<Instant>>,
    /// When a fetch last failed.
    pub error_at: PerKey<Option<Instant>>,
    /// The step at which the newest answer that was given as stored had been asked for.
    pub newest: PerKey<u64>,
    /// Until when a cut-off write may take effect, by tag.
    pub unsettled_until: [Option<Instant>; 2],
    /// By call: whether it was given to anyone, and the step at which the origin took it back.
    pub given: Vec<bool>,
    pub revoked: Vec<u64>,
}

pub(super) struct Writing {
    pub tags: u8,
    pub kind: WriteKind,
    pub effects: Vec<(usize, u64)>,
    pub times: usize,
    pub call: Option<usize>,
    pub cut_at: Option<Instant>,
    pub given: bool,
}

/// What a read was promised when it began.
pub(super) struct Reading {
    pub resource: usize,
    pub who: usize,
    pub how: How,
    pub began: u64,
    pub began_at: Instant,
    pub required: u64,
    pub hard: u64,
    pub soft: u64,
    pub epoch: u64,
    pub newest: u64,
    /// Whether it may fetch beside others.
    pub loose: bool,
    pub fetch: Option<usize>,
    pub text: Vec<u8>,
}

pub(super) enum Ask {
    Read(Reading),
    Write(Writing),
}

pub(super) struct Client {
    pub ask: Ask,
    pub future: Option<CacheFuture>,
    pub body: Option<Body>,
    /// Nothing more is done with it.
    pub over: bool,
}

pub(super) struct World {
    pub origin: Origin,
    pub cache: Cache<Origin>,
    pub control: CacheControl,
    pub clock: Clock,
    pub time: Arc<ManualTime>,
    pub config: CacheConfig,
    pub clients: Vec<Client>,
    pub book: Book,
    /// Calls that were looked at when they came, and when the cache saw that they cannot be shared.
    pub calls_seen: usize,
    pub unshareable_seen: Vec<bool>,
    pub refusal_seen: Vec<bool>,
    pub log: Option<Vec<String>>,
    pub answers: u64,
}

impl World {
    pub(super) fn new(config: CacheConfig, log: bool) -> Self {
        let (clock, time) = Clock::manual(SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_364_120));
        let metrics = CacheMetrics::register(&prometheus::Registry::new()).expect("fresh registry");
        let origin = Origin::new(clock.clone());
        let layer = CacheLayer::new(config.clone(), clock.clone(), metrics);
        Self {
            cache: layer.layer(origin.clone()),
            control: layer.control(),
            origin,
            clock,
            time,
            config,
            clients: Vec::new(),
            book: Book::default(),
            calls_seen: 0,
            unshareable_seen: Vec::new(),
            refusal_seen: Vec::new(),
            log: log.then(Vec::new),
            answers: 0,
        }
    }

    pub(super) fn note(&mut self, text: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            let seq = self.origin.state.lock().seq;
            log.push(format!("{seq:>4}  {}", text()));
        }
    }

    pub(super) fn now(&self) -> Instant {
        self.clock.now().monotonic
    }

    fn seq(&self) -> u64 {
        self.origin.state.lock().seq
    }

    /// Plays a whole history and lets everything come to its end.
    ///
    /// # Errors
    /// What was violated.
    pub(super) async fn play(&mut self, history: &[Step]) -> Result<(), String> {
        for step in history {
            self.step(*step).await?;
        }
        for _ in 0..12 {
            let open = |world: &Self| world.clients.iter().any(|client| !client.over);
            let calls = self.origin.state.lock().calls.len();
            for number in 0..calls {
                self.send_rest(number);
            }
            self.tick().await?;
            self.tick().await?;
            self.poll_all()?;
            if !open(self) && self.calls(|call| call.is_in_flight()).is_empty() {
                break;
            }
        }
        self.check_rest()
    }

    async fn step(&mut self, step: Step) -> Result<(), String> {
        self.origin.state.lock().seq += 1;
        self.time.advance(Duration::from_millis(1));
        self.note(|| format!("{step:?}"));
        let unanswered = |call: &super::origin::Call| call.is_in_flight() && call.answer.is_none();
        let open = |call: &super::origin::Call| call.is_in_flight() && !call.through;
        match step {
            Step::Read {
                resource,
                who,
                how,
                early,
            } => self.read(resource, who, how, early),
            Step::Write { tags, kind } => self.write(tags, kind),
            Step::Abandon { tags } => {
                let client = self.clients.len();
                self.write(tags, WriteKind::Known);
                self.poll(client)?;
                self.cancel(client);
            }
            Step::Tick => self.tick().await?,
            Step::Poll(n) => {
                let open: Vec<_> = (0..self.clients.len())
                    .filter(|c| !self.clients[*c].over)
                    .collect();
                if let Some(client) = pick(&open, n) {
                    self.poll(client)?;
                }
            }
            Step::PollAll => self.poll_all()?,
            Step::Cancel(n) => {
                let open: Vec<_> = (0..self.clients.len())
                    .filter(|c| !self.clients[*c].over)
                    .collect();
                if let Some(client) = pick(&open, n) {
                    self.cancel(client);
                }
            }
            Step::Snapshot(n) => {
                if let Some(call) = pick(&self.calls(unanswered), n) {
                    self.origin.state.lock().snapshot(call);
                }
            }
            Step::Answer(n, answer) => {
                if let Some(call) = pick(&self.calls(unanswered), n) {
                    self.answer(call, answer);
                }
            }
            Step::Frame(n) => {
                let sending = self.calls(|call| open(call) && call.answer.is_some());
                if let Some(call) = pick(&sending, n) {
                    self.origin.state.lock().frame(call);
                }
            }
            Step::Break(n) => {
                let sending = self.calls(|call| open(call) && call.answer.is_some());
                if let Some(call) = pick(&sending, n) {
                    self.origin.state.lock().break_off(call);
                }
            }
            Step::Finish(n) => {
                if let Some(call) = pick(&self.calls(open), n) {
                    self.send_rest(call);
                    self.tick().await?;
                    self.tick().await?;
                    self.poll_all()?;
                }
            }
            Step::Effect(n) => self.effect(n),
            Step::Change(resource) => self.origin.state.lock().versions[resource] += 1,
            Step::Purge(aim, soft) => self.purge(aim, soft),
            Step::Advance(millis) => self.time.advance(Duration::from_millis(millis)),
            Step::Evict { resource, who } => {
                let key = self.key(resource, who);
                self.cache.shared_for_test().l1.remove(&key);
                self.book.newest[resource][who] = 0;
            }
        }
        self.look_at_calls()
    }

    /// Numbers of the calls that are so.
    pub(super) fn calls(&self, is: impl Fn(&super::origin::Call) -> bool) -> Vec<usize> {
        let state = self.origin.state.lock();
        (0..state.calls.len()).filter(|n| is(&state.calls[*n])).collect()
    }

    fn request(&self, resource: usize, who: usize) -> crate::types::request::ClassifiedRequest {
        let mut request = request(Method::GET, TEMPLATES[resource]);
        request.decision.template = TEMPLATES[resource];
        request.decision.principal = Some(Principal([who as u8 + 1; 16]));
        request.decision.fills = tags(FILLS[resource]);
        let fields = &mut request.parts.headers;
        fields.insert("x-client", self.clients.len().into());
        fields.insert("x-resource", resource.into());
        fields.insert("x-who", who.into());
        request
    }

    fn key(&self, resource: usize, who: usize) -> Key {
        let request = self.request(resource, who);
        Key::of(
            &request.parts,
            &request.client,
            request.decision.principal.expect("one"),
        )
    }

    fn read(&mut self, resource: usize, who: usize, how: How, early: bool) {
        let mut request = self.request(resource, who);
        let directive = match how {
            How::NoCache => Some("no-cache"),
            How::OnlyIfCached => Some("only-if-cached"),
            How::Plain | How::Head => None,
        };
        if let Some(directive) = directive {
            request
                .parts
                .headers
                .insert("cache-control", directive.parse().expect("value"));
        }
        if early {
            request.parts.headers.insert("x-early", 1.into());
        }
        if how == How::Head {
            request.parts.method = Method::HEAD;
        }
        let now = self.now();
        let before = |until: Option<Instant>| until.is_some_and(|until| now < until);
        let unsettled = (0..2).any(|t| FILLS[resource] >> t & 1 == 1 && before(self.book.unsettled_until[t]));
        let book = &self.book;
        let reading = Reading {
            resource,
            who,
            how,
            began: self.seq(),
            began_at: now,
            required: book.required[resource],
            hard: book.hard[resource][who],
            soft: book.soft[resource][who],
            epoch: book.epoch[resource][who],
            newest: book.newest[resource][who],
            loose: matches!(how, How::NoCache | How::Head)
                || unsettled
                || before(book.unshared_until[resource][who]),
            fetch: None,
            text: Vec::new(),
        };
        self.begin(request, Ask::Read(reading));
    }

    fn write(&mut self, bits: u8, kind: WriteKind) {
        let mut request = request(Method::POST, "/v1/write");
        request
            .parts
            .headers
            .insert("x-client", self.clients.len().into());
        request.decision.class = match kind {
            WriteKind::Known => RouteClass::Write,
            WriteKind::Generation => RouteClass::Generation,
            WriteKind::Unknown => RouteClass::Passthrough,
        };
        request.decision.cache = CacheClass::Never;
        request.decision.invalidates = tags(bits);
        self.touched(bits);
        let writing = Writing {
            tags: bits,
            kind,
            effects: Vec::new(),
            times: 0,
            call: None,
            cut_at: None,
            given: false,
        };
        self.begin(request, Ask::Write(writing));
    }

    fn begin(&mut self, request: crate::types::request::ClassifiedRequest, ask: Ask) {
        let number = self.clients.len();
        self.note(|| format!("      client {number} begins"));
        let future = self.cache.call(request);
        self.clients.push(Client {
            ask,
            future: Some(future),
            body: None,
            over: false,
        });
    }

    /// The cache may have bumped these tags.
    fn touched(&mut self, bits: u8) {
        for resource in (0..RESOURCES).filter(|r| FILLS[*r] & bits != 0) {
            self.book.epoch[resource].iter_mut().for_each(|epoch| *epoch += 1);
        }
    }

    async fn tick(&mut self) -> Result<(), String> {
        tokio::task::yield_now().await;
        self.look_at_calls()
    }

    fn poll_all(&mut self) -> Result<(), String> {
        for client in 0..self.clients.len() {
            if !self.clients[client].over {
                self.poll(client)?;
            }
        }
        Ok(())
    }

    fn poll(&mut self, number: usize) -> Result<(), String> {
        let mut cx = Context::from_waker(Waker::noop());
        if let Some(future) = &mut self.clients[number].future {
            let Poll::Ready(answer) = Pin::new(future).poll(&mut cx) else {
                return self.polled(number);
            };
            self.clients[number].future = None;
            match answer {
                Ok(response) => {
                    let (head, body) = response.into_parts();
                    self.clients[number].body = Some(body);
                    self.answers += 1;
                    self.head(number, &head)?;
                }
                Err(failure) => self.failed(number, &failure)?,
            }
        } else if let Some(body) = &mut self.clients[number].body {
            match http_body::Body::poll_frame(Pin::new(body), &mut cx) {
                Poll::Pending => {}
                Poll::Ready(Some(Ok(frame))) => {
                    if let Ask::Read(reading) = &mut self.clients[number].ask {
                        reading
                            .text
                            .extend_from_slice(frame.data_ref().map_or(&[], |data| data));
                    }
                }
                Poll::Ready(Some(Err(_))) => self.broken(number)?,
                Poll::Ready(None) => self.ended(number)?,
            }
        }
        self.polled(number)
    }

    fn polled(&mut self, number: usize) -> Result<(), String> {
        if let Ask::Write(writing) = &self.clients[number].ask {
            let bits = writing.tags;
            self.touched(bits);
        }
        self.look_at_calls()
    }

    fn cancel(&mut self, number: usize) {
        self.note(|| format!("      client {number} leaves"));
        let client = &mut self.clients[number];
        client.future = None;
        client.body = None;
        client.over = true;
        if let Ask::Write(writing) = &client.ask {
            let bits = writing.tags;
            self.cut_off(number);
            self.touched(bits);
        }
    }

    fn answer(&mut self, number: usize, mut answer: Answer) {
        let client = self.origin.state.lock().calls[number].client;
        if let Ask::Write(writing) = &self.clients[client].ask {
            // A write that took effect was not refused; nor did one without a credential.
            if writing.times > 0 && answer == Answer::Refused {
                answer = Answer::TimedOut;
            }
            if answer == Answer::Unauthorized {
                answer = Answer::Ok;
            }
        }
        self.origin.state.lock().answer(number, answer);
    }

    fn send_rest(&mut self, number: usize) {
        let mut state = self.origin.state.lock();
        state.answer(number, Answer::Ok);
        for _ in 0..8 {
            state.frame(number);
        }
    }

    fn effect(&mut self, n: usize) {
        let now = self.now();
        let possible: Vec<_> = (0..self.clients.len())
            .filter(|client| match &self.clients[*client].ask {
                Ask::Write(writing) => self.may_take_effect(writing, now),
                Ask::Read(_) => false,
            })
            .collect();
        // The latest ones first: they are the interesting ones.
        let Some(client) = pick(&possible, possible.len().saturating_sub(1 + n % 3)) else {
            return;
        };
        let Ask::Write(writing) = &mut self.clients[client].ask else {
            return;
        };
        writing.times += 1;
        let mut state = self.origin.state.lock();
        for resource in (0..RESOURCES).filter(|r| FILLS[*r] & writing.tags != 0) {
            state.versions[resource] += 1;
            writing.effects.push((resource, state.versions[resource]));
            if writing.cut_at.is_some() {
                self.book.required[resource] = state.versions[resource];
            }
        }
        drop(state);
        self.note(|| format!("      the write of client {client} takes effect"));
    }

    fn may_take_effect(&self, writing: &Writing, now: Instant) -> bool {
        let Some(call) = writing.call else {
            return false;
        };
        let state = self.origin.state.lock();
        let call = &state.calls[call];
        let working = match (writing.kind, call.answer) {
            (_, None | Some(Answer::TimedOut)) => true,
            (WriteKind::Generation, Some(Answer::Refused)) => false,
            (WriteKind::Generation, Some(_)) => !call.through || call.broken,
            _ => false,
        };
        let most = if writing.kind == WriteKind::Generation {
            2
        } else {
            1
        };
        working
            && writing.times < most
            && !writing.given
            && writing.cut_at.is_none_or(|cut| now < cut + UNSETTLED)
    }

    /// The client has lost a write: from now on everyone has to see what it did, and what it does yet.
    pub(super) fn cut_off(&mut self, number: usize) {
        let now = self.now();
        let Ask::Write(writing) = &mut self.clients[number].ask else {
            return;
        };
        if writing.given || writing.cut_at.is_some() {
            return;
        }
        writing.cut_at = Some(now);
        for tag in (0..2).filter(|tag| writing.tags >> tag & 1 == 1) {
            self.book.unsettled_until[tag] = Some(now + UNSETTLED);
        }
        self.must_be_seen(number);
    }

    /// What a write has done so far is seen by every read that begins from now on.
    pub(super) fn must_be_seen(&mut self, number: usize) {
        if let Ask::Write(writing) = &self.clients[number].ask {
            for (resource, version) in &writing.effects {
                let required = &mut self.book.required[*resource];
                *required = (*required).max(*version);
            }
        }
    }

    fn purge(&mut self, aim: Aim, soft: bool) {
        let selection = match aim {
            Aim::Key(resource, who) => {
                let key = self.key(resource, who);
                Selection::Key([key.0[0], key.0[1], key.0[2], key.0[3]])
            }
            Aim::Tag(number) => Selection::Tag(tag(number)),
            Aim::Route(resource) => Selection::Route(TEMPLATES[resource].to_owned()),
            Aim::Principal(who) => Selection::Principal(Principal([who as u8 + 1; 16])),
            Aim::All => Selection::All,
        };
        drop(self.control.purge(&selection, soft));
        let seq = self.seq();
        for resource in 0..RESOURCES {
            for who in 0..PRINCIPALS {
                let meant = match aim {
                    Aim::Key(r, w) => (r, w) == (resource, who),
                    Aim::Tag(number) => FILLS[resource] >> number & 1 == 1,
                    Aim::Route(r) => r == resource,
                    Aim::Principal(w) => w == who,
                    Aim::All => true,
                };
                if meant {
                    self.book.epoch[resource][who] += 1;
                    let last = if soft {
                        &mut self.book.soft
                    } else {
                        &mut self.book.hard
                    };
                    last[resource][who] = seq;
                }
            }
        }
    }
}

fn pick(among: &[usize], n: usize) -> Option<usize> {
    among.get(n.checked_rem(among.len())?).copied()
}
