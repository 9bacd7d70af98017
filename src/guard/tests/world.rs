//! Everything that a history is about, and how its steps are done.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use http::Method;
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use tokio::time::Instant;
use tower::ServiceExt as _;

use super::database::{Database, Mood, Row, now};
use super::dify::{APP_KEY, DATASET_KEY, Dify, FromDify, KINDS, Named, ask, create};
use super::instance::{Instance, Messages};
use super::promises::{Became, Thing};
use super::steps::{INSTANCES, Step};
use crate::guard::bloom::Sizing;
use crate::types::known::{IdKind, KnownId};

pub(super) struct World {
    dify: Dify,
    pub(super) messages: Arc<Mutex<Messages>>,
    pub(super) instances: Vec<Instance>,
    things: Vec<Thing>,
    /// How many names were given.
    names: usize,
    /// Those that were asked for before there was such a thing.
    early: Vec<Named>,
    pub(super) mood_since: Instant,
    sizing: Sizing,
    /// Whether filters take nothing for something else.
    pub(super) exact: bool,
    pub(super) answers: u64,
    pub(super) log: Option<Vec<String>>,
}

impl World {
    /// `others`: things besides that fill the filters.
    pub(super) fn new(sizing: Sizing, others: usize, log: bool) -> Self {
        let database = Arc::new(Mutex::new(Database {
            rows: Vec::new(),
            mood: Mood::Well,
        }));
        let exist = Arc::new(Mutex::new(HashSet::new()));
        let dify = Dify { exist, database };
        let mut always = vec![
            (IdKind::AppKey, KnownId::of_text(APP_KEY.as_bytes())),
            (IdKind::DatasetKey, KnownId::of_text(DATASET_KEY.as_bytes())),
        ];
        for number in 0..others {
            for kind in [IdKind::Dataset, IdKind::UploadFile] {
                always.push((kind, Named::new(kind, usize::MAX - number).id));
            }
        }
        for (kind, id) in always {
            dify.exist.lock().insert((kind, id));
            dify.database.lock().rows.push(Row {
                kind,
                id,
                created_at: now(),
                visible_at: now(),
                gone_at: None,
            });
        }
        let messages = Messages::new();
        let instances = (0..INSTANCES)
            .map(|i| Instance::start(&dify, &messages, sizing, i + 1 == INSTANCES))
            .collect();
        Self {
            dify,
            messages,
            instances,
            things: Vec::new(),
            names: 0,
            early: Vec::new(),
            mood_since: now(),
            sizing,
            exact: others == 0,
            answers: 0,
            log: log.then(Vec::new),
        }
    }

    pub(super) fn mood(&self) -> Mood {
        self.dify.database.lock().mood
    }

    /// Does the steps until one breaks a promise.
    pub(super) async fn play(&mut self, steps: &[Step]) -> Result<(), String> {
        let began = now();
        for step in steps {
            let before = now() - began;
            let done = self.step(step).await;
            let done = done.and_then(|()| {
                let gone = |i| {
                    self.things
                        .iter()
                        .try_for_each(|thing| self.gone_was_told(i, thing))
                };
                (0..INSTANCES).try_for_each(gone)
            });
            if let Some(log) = &mut self.log {
                log.push(format!("{:>9.3} s  {step:?}", before.as_secs_f64()));
            }
            done?;
        }
        self.looks_within_budget()
    }

    fn name(&mut self, kind: IdKind) -> Named {
        self.names += 1;
        Named::new(kind, self.names)
    }

    /// The name of what is created now: one that was asked for before, if any.
    fn new_name(&mut self, kind: IdKind) -> Named {
        let asked = self.early.iter().rposition(|named| named.kind == kind);
        match asked {
            Some(place) => self.early.swap_remove(place),
            None => self.name(kind),
        }
    }

    /// One of the last things.
    fn thing(&self, n: usize) -> Option<usize> {
        let count = self.things.len();
        count.checked_sub(1 + n % count.max(1))
    }

    async fn step(&mut self, step: &Step) -> Result<(), String> {
        match *step {
            Step::Create(i, kind, late) => self.create(i, KINDS[kind], Duration::from_millis(late)).await?,
            Step::Behind(kind) => {
                let named = self.new_name(KINDS[kind]);
                self.dify.create(&named, Duration::ZERO);
                self.add(named, Duration::ZERO, None);
            }
            Step::Delete(i, n) => {
                if let Some(n) = self.thing(n) {
                    self.ask(i, Method::DELETE, &[self.things[n].named.clone()])
                        .await?;
                    self.note_deleted(n);
                }
            }
            Step::DeleteBehind(n) => {
                if let Some(n) = self.thing(n) {
                    let named = self.things[n].named.clone();
                    self.dify.delete(named.kind, named.id);
                    self.note_deleted(n);
                }
            }
            Step::Ask(i, n) => {
                if let Some(n) = self.thing(n) {
                    self.ask(i, Method::GET, &[self.things[n].named.clone()]).await?;
                }
            }
            Step::AskRandom(i, kind) => {
                let named = self.name(KINDS[kind]);
                self.early.push(named.clone());
                self.ask(i, Method::GET, &[named]).await?;
            }
            Step::Crowd(i, n, count) => {
                if let Some(n) = self.thing(n) {
                    self.crowd(i, n, count).await?;
                }
            }
            Step::Burst(i, n, count) => {
                let mut names: Vec<_> = (0..count).map(|_| self.name(IdKind::Dataset)).collect();
                names.extend(self.thing(n).map(|n| self.things[n].named.clone()));
                self.ask(i, Method::GET, &names).await?;
            }
            Step::Pass(millis) => tokio::time::sleep(Duration::from_millis(millis)).await,
            Step::Refresh(i) => self.read(i, false),
            Step::Rebuild(i) => self.read(i, true),
            Step::Restart(i, observes) => {
                self.instances[i] = Instance::start(&self.dify, &self.messages, self.sizing, observes);
            }
            Step::Mood(mood) => {
                self.dify.database.lock().mood = mood;
                self.mood_since = now();
            }
            Step::Redis(up) => {
                let mut messages = self.messages.lock();
                if up != messages.up {
                    (messages.up, messages.up_since) = (up, now());
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, named: Named, late: Duration, via: Option<(usize, bool)>) {
        self.things.push(Thing {
            named,
            created_at: now(),
            visible_at: now() + late,
            via,
            gone_at: None,
        });
    }

    fn note_deleted(&mut self, n: usize) {
        let thing = &mut self.things[n];
        let exists = self
            .dify
            .exist
            .lock()
            .contains(&(thing.named.kind, thing.named.id));
        if !exists {
            thing.gone_at.get_or_insert(now());
        }
    }

    fn read(&self, i: usize, whole: bool) {
        for kind in KINDS {
            let source = self.instances[i].source.clone();
            tokio::spawn(async move { source.read(kind, whole).await });
        }
    }

    /// Creates a thing, and asks for it as soon as the answer is there.
    async fn create(&mut self, i: usize, kind: IdKind, late: Duration) -> Result<(), String> {
        let named = self.new_name(kind);
        let guard = self.instances[i].guard.clone();
        let answer = guard.oneshot(create(&named, late)).await;
        let answer = answer.map_err(|failure| format!("a creation failed: {failure:?}"))?;
        let sent = self.messages.lock().up;
        answer.into_body().collect().await.expect("a whole body");
        self.add(named.clone(), late, Some((i, sent)));
        self.ask(i, Method::GET, &[named]).await
    }

    /// Many ask for the same at once: it is looked up once.
    async fn crowd(&mut self, i: usize, n: usize, count: usize) -> Result<(), String> {
        let named = self.things[n].named.clone();
        let source = self.instances[i].source.clone();
        let before = source.told.lock().looked.len();
        self.ask(i, Method::GET, &vec![named.clone(); count]).await?;
        let told = source.told.lock();
        let looked = told.looked[before..]
            .iter()
            .filter(|(_, ids)| ids.contains(&named.id));
        match looked.count() {
            0 | 1 => Ok(()),
            times => Err(format!("{named:?} was looked up {times} times for one crowd")),
        }
    }

    /// Asks an instance for some things at once, and judges what becomes of each.
    async fn ask(&mut self, i: usize, method: Method, names: &[Named]) -> Result<(), String> {
        let thing_of = |named: &Named| self.things.iter().find(|thing| thing.named.id == named.id);
        let expected: Vec<_> = names
            .iter()
            .map(|named| self.expect(i, named, thing_of(named)))
            .collect();
        let asked_at = now();
        for (named, expected) in names.iter().zip(&expected) {
            if !expected.must_know() {
                self.instances[i].asked.push((asked_at, named.id));
            }
        }
        let misjudged = self.instances[i].metrics.false_refusals.get();
        let answers = names.iter().map(|named| {
            let guard = self.instances[i].guard.clone();
            let request = ask(method.clone(), named);
            async move {
                match guard.oneshot(request).await {
                    Err(_) => Became::Throttled,
                    Ok(answer) if answer.extensions().get::<FromDify>().is_some() => {
                        Became::Answered(answer.status().as_u16())
                    }
                    Ok(answer) => Became::Refused(answer.status().as_u16()),
                }
            }
        });
        let became = join_all(answers).await;
        self.answers += became.len() as u64;
        let misjudged = self.instances[i].metrics.false_refusals.get() - misjudged;
        if let Some(log) = &mut self.log {
            log.push(format!("             {i}: {names:?} {became:?} {misjudged}"));
        }
        for (place, named) in names.iter().enumerate() {
            World::in_time(&expected[place])?;
            self.judge(i, named, &expected[place], became[place])?;
        }
        // One of the things that were asked for must have an excuse.
        if misjudged > 0 {
            let all = names.iter().zip(&expected);
            let judged = all.map(|(named, expected)| self.judge(i, named, expected, Became::Misjudged));
            let mut judged: Vec<_> = judged.collect();
            if judged.iter().all(Result::is_err) {
                judged.swap_remove(0)?;
            }
        }
        for (named, became) in names.iter().zip(&became) {
            self.note(i, named, *became);
        }
        Ok(())
    }

    /// What an answer shows to those who saw it pass.
    fn note(&mut self, i: usize, named: &Named, became: Became) {
        let instance = &mut self.instances[i];
        let Became::Answered(status) = became else { return };
        if status == super::dify::refusal_status(named.kind) {
            instance.denied.insert((named.kind, named.id), now());
        }
        if named.kind != IdKind::SiteCode {
            instance.stamped_at = Some(now());
        }
        if named.kind == IdKind::UploadFile {
            instance.admitted_at = Some(now());
        }
    }
}
