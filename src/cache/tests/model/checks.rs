//! What must hold: at every answer, at every fetch, and when everything has come to its end.

use std::time::Duration;

use http::response::Parts;

use super::origin::Call;
use super::steps::{Answer, How, WriteKind};
use super::world::{Ask, World};
use crate::types::outcome::{CacheOutcome, Outcome};
use crate::types::{Failure, FailureKind};

/// How long after a failure stale answers may be given for it.
const FAILED_FOR: Duration = Duration::from_secs(30);
/// How long a key whose answer could not be shared is fetched by everyone alone.
const UNSHARED_FOR: Duration = Duration::from_secs(5);

macro_rules! ensure {
    ($holds:expr, $($what:tt)+) => {
        if !$holds {
            return Err(format!($($what)+));
        }
    };
}

impl World {
    /// A client got a head.
    pub(super) fn head(&mut self, number: usize, head: &Parts) -> Result<(), String> {
        let text = |name: &str| {
            let value = head.headers.get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        let (status, fetch) = (text("cache-status"), text("x-fetch"));
        self.note(|| format!("      client {number} gets fetch {fetch}: {status}"));
        let fetch: usize = fetch
            .parse()
            .map_err(|_| "an answer that no fetch brought".to_owned())?;
        match &mut self.clients[number].ask {
            Ask::Write(writing) => {
                if writing.kind != WriteKind::Generation {
                    writing.given = true;
                    let client = &mut self.clients[number];
                    client.over = true;
                    client.body = None;
                }
                self.must_be_seen(number);
                Ok(())
            }
            Ask::Read(reading) => {
                reading.fetch = Some(fetch);
                let outcome = head
                    .extensions
                    .get::<Outcome>()
                    .ok_or("an answer without outcome")?;
                self.check_read(number, fetch, head, outcome.cache, &status, &text("age"))
            }
        }
    }

    fn check_read(
        &mut self,
        number: usize,
        fetch: usize,
        head: &Parts,
        outcome: CacheOutcome,
        status: &str,
        age: &str,
    ) -> Result<(), String> {
        let now = self.now();
        let Ask::Read(reading) = &self.clients[number].ask else {
            return Ok(());
        };
        let state = self.origin.state.lock();
        let call = &state.calls[fetch];
        let key = (reading.resource, reading.who);
        let (resource, who) = key;
        ensure!(
            call.read == Some(key),
            "client {number} got fetch {fetch}, which is of {:?}",
            call.read
        );
        let sent = match call.answer {
            Some(Answer::Ok | Answer::NoStore) => 200,
            Some(Answer::NotFound) => 404,
            Some(Answer::Unauthorized) => 401,
            Some(Answer::Broken500) => 500,
            _ => 0,
        };
        ensure!(
            head.status == sent,
            "client {number} got {} for {sent}",
            head.status
        );
        let (taken, version) = call.snapshot.ok_or("an answer that was never read")?;
        ensure!(
            version >= reading.required,
            "client {number} got version {version} after a write that made version {}",
            reading.required
        );
        let hit = status.contains("; hit");
        let stale = status.contains("detail=stale-");
        ensure!(
            taken > reading.hard,
            "client {number} got what was purged in step {}",
            reading.hard
        );
        ensure!(
            taken > reading.soft || stale,
            "client {number} got as fresh what was made stale in step {}",
            reading.soft
        );
        ensure!(
            stale == (outcome == CacheOutcome::Stale),
            "{status} with {outcome:?}"
        );
        let revoked = self.book.revoked[fetch];
        ensure!(
            revoked == 0 || reading.began <= revoked,
            "client {number} got fetch {fetch} after the origin had refused the same in step {revoked}"
        );
        let settings = match call.answer {
            Some(Answer::NotFound) => &self.config.classes.not_found,
            _ => &self.config.classes.metadata,
        };
        // What is stored was looked at when the read began.
        let now = if hit { reading.began_at } else { now };
        let old = now.saturating_duration_since(call.entered_at);
        if stale {
            let windows = [
                ("stale-while-revalidate", settings.stale_while_revalidate.0),
                ("stale-if-error", settings.stale_if_error.0),
            ];
            let window = windows.iter().find(|(name, _)| status.ends_with(name));
            let (name, window) = window.ok_or("an unknown kind of stale answer")?;
            ensure!(
                old < settings.ttl.0 + *window,
                "client {number} got an answer of {old:?}: {name}"
            );
            if *name == "stale-if-error" {
                let failed = self.book.error_at[resource][who];
                ensure!(
                    failed.is_some_and(|at| now - at <= FAILED_FOR),
                    "client {number} got a stale answer for a failure of long ago"
                );
            }
        } else if hit {
            ensure!(
                old < settings.ttl.0,
                "client {number} got an answer of {old:?} as fresh"
            );
        } else if outcome != CacheOutcome::Collapsed {
            ensure!(
                call.client == number,
                "client {number} got fetch {fetch} as its own"
            );
        }
        if hit || stale {
            ensure!(
                age == old.as_secs().to_string(),
                "client {number}: age {age} after {old:?}"
            );
            ensure!(
                call.ended && !call.broken,
                "client {number} got an answer that is not whole"
            );
        }
        if hit {
            ensure!(
                call.entered >= reading.newest,
                "client {number} got an answer older than one that was stored before (step {})",
                reading.newest
            );
        }
        match reading.how {
            How::NoCache | How::Head if reading.how == How::NoCache || !(hit || stale) => {
                ensure!(
                    call.client == number,
                    "client {number} wanted an answer of its own"
                );
            }
            How::OnlyIfCached => ensure!(hit, "client {number} got what was not stored"),
            _ => {}
        }
        if status.contains("; stored") {
            let newest = &mut self.book.newest[resource][who];
            *newest = (*newest).max(call.entered);
        }
        drop(state);
        if hit || stale || status.contains("; stored") {
            self.book.given[fetch] = true;
        }
        Ok(())
    }

    /// A client got a failure instead of a head.
    pub(super) fn failed(&mut self, number: usize, failure: &Failure) -> Result<(), String> {
        self.note(|| format!("      client {number} fails: {}", failure.detail));
        self.clients[number].over = true;
        match &mut self.clients[number].ask {
            Ask::Write(writing) => {
                if failure.sent {
                    self.cut_off(number);
                } else {
                    writing.given = true;
                }
                Ok(())
            }
            Ask::Read(reading) => {
                let own = failure.detail == "injected";
                let refused = failure.kind == FailureKind::OnlyIfCached && reading.how == How::OnlyIfCached;
                ensure!(
                    own || refused,
                    "client {number} got a failure from nowhere: {}",
                    failure.detail
                );
                Ok(())
            }
        }
    }

    /// A client saw a body break off.
    pub(super) fn broken(&mut self, number: usize) -> Result<(), String> {
        self.note(|| format!("      client {number} sees its body break off"));
        self.clients[number].over = true;
        match &self.clients[number].ask {
            Ask::Write(_) => self.cut_off(number),
            Ask::Read(reading) => {
                let broken = self.fetch_of(reading.fetch, |call| call.broken);
                ensure!(broken, "client {number}: a whole body broke off");
            }
        }
        Ok(())
    }

    /// A client saw a body end.
    pub(super) fn ended(&mut self, number: usize) -> Result<(), String> {
        self.clients[number].over = true;
        match &mut self.clients[number].ask {
            Ask::Write(writing) => {
                writing.given = true;
                self.must_be_seen(number);
            }
            Ask::Read(reading) => {
                let fetch = reading.fetch.unwrap_or_default();
                let whole = self.origin.state.lock().calls[fetch].text(fetch);
                let text = String::from_utf8_lossy(&reading.text);
                let expected = if reading.how == How::Head { "" } else { &whole };
                ensure!(text == expected, "client {number} got {text:?} for {expected:?}");
            }
        }
        Ok(())
    }

    fn fetch_of(&self, fetch: Option<usize>, is: impl Fn(&Call) -> bool) -> bool {
        fetch.is_some_and(|fetch| is(&self.origin.state.lock().calls[fetch]))
    }

    /// Looks at what has come to the origin, and at what has become of it.
    pub(super) fn look_at_calls(&mut self) -> Result<(), String> {
        let now = self.now();
        let shared = self.origin.state.clone();
        let state = shared.lock();
        for number in self.calls_seen..state.calls.len() {
            self.book.given.push(false);
            self.book.revoked.push(0);
            self.unshareable_seen.push(false);
            self.refusal_seen.push(false);
            let call = &state.calls[number];
            match &mut self.clients[call.client].ask {
                Ask::Write(writing) => writing.call = Some(number),
                Ask::Read(_) => self.check_alone(&state.calls, number)?,
            }
        }
        let new = self.calls_seen..state.calls.len();
        self.calls_seen = state.calls.len();
        for number in 0..state.calls.len() {
            let call = &state.calls[number];
            let (Some((resource, who)), false) = (call.read, self.unshareable_seen[number]) else {
                continue;
            };
            let Some(answer) = call.answer else {
                continue;
            };
            let shared = call.broken && !answer.is_unshareable();
            let seen = if shared { call.ended } else { call.taken };
            if answer.is_unshareable() || call.broken {
                for client in &mut self.clients {
                    if let Ask::Read(reading) = &mut client.ask
                        && (reading.resource, reading.who) == (resource, who)
                    {
                        reading.loose = true;
                    }
                }
                if seen {
                    self.book.unshared_until[resource][who] = Some(now + UNSHARED_FOR);
                    self.book.newest[resource][who] = 0;
                }
            }
            if seen && (answer.is_failure() || answer == Answer::Broken500) {
                self.book.error_at[resource][who] = Some(now);
            }
            let refused = seen && answer == Answer::Unauthorized && !call.head_only;
            if refused && !std::mem::replace(&mut self.refusal_seen[number], true) {
                for earlier in 0..number {
                    let same = state.calls[earlier].read == call.read;
                    if same && self.book.given[earlier] && self.book.revoked[earlier] == 0 {
                        self.book.revoked[earlier] = state.seq;
                    }
                }
            }
            self.unshareable_seen[number] =
                seen && (call.ended || call.dropped || !call.broken && call.through);
        }
        drop(state);
        for number in new {
            self.note(|| format!("      fetch {number} reaches the origin"));
        }
        Ok(())
    }

    /// A fetch that others could have joined must be the only one for its key and state.
    fn check_alone(&self, calls: &[Call], number: usize) -> Result<(), String> {
        let epoch = |call: &Call| match &self.clients[call.client].ask {
            Ask::Read(reading) if !reading.loose => Some(reading.epoch),
            _ => None,
        };
        let call = &calls[number];
        let Some(mine) = epoch(call) else {
            return Ok(());
        };
        let beside = (0..number).find(|other| {
            let other = &calls[*other];
            other.read == call.read && other.is_in_flight() && epoch(other) == Some(mine)
        });
        match beside {
            Some(other) => Err(format!("fetch {number} runs beside fetch {other} for the same")),
            None => Ok(()),
        }
    }

    /// When every gate is open, nobody waits and nothing is held.
    pub(super) fn check_rest(&self) -> Result<(), String> {
        for (number, client) in self.clients.iter().enumerate() {
            ensure!(client.over, "client {number} waits for ever");
        }
        let open = self.calls(|call| call.is_in_flight());
        ensure!(open.is_empty(), "fetches {open:?} were never ended");
        let shared = self.cache.shared_for_test();
        ensure!(
            shared.flights.len() == 0,
            "{} flights are left",
            shared.flights.len()
        );
        let free = shared.refreshes.available_permits();
        ensure!(free == 64, "{} permits to refresh are lost", 64 - free);
        Ok(())
    }
}
