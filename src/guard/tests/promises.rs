//! What is promised, worked out from what has happened.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use super::database::{Mood, is_whole, now};
use super::dify::{APP_KEY, Named};
use super::instance::{Instance, LOOKUPS, MAX_AGE, NOT_FOUND};
use super::world::World;
use crate::guard::known_ids::postgres::OVERLAP;
use crate::types::known::{IdKind, KnownId};

/// How long others may take to know what one has learnt.
const ELSEWHERE: Duration = Duration::from_secs(1);
/// After so long a database that is well again has answered or failed every question of before, and is asked again.
const CALM: Duration = Duration::from_secs(12);
/// For how long Dify's words and ways are believed, with a margin.
const STAMPED: Duration = Duration::from_secs(500);
const ADMITTED: Duration = Duration::from_secs(55);
/// The longest that a request may take: two look-ups, and Dify itself.
pub(super) const LONGEST: Duration = Duration::from_millis(1010);

/// A thing of a history.
#[derive(Debug, Clone)]
pub(super) struct Thing {
    pub(super) named: Named,
    pub(super) created_at: Instant,
    /// When the database shows it.
    pub(super) visible_at: Instant,
    /// Through which instance it was created, and whether that could tell the others.
    pub(super) via: Option<(usize, bool)>,
    pub(super) gone_at: Option<Instant>,
}

/// What is expected of a request before it is sent.
#[derive(Debug, Clone)]
pub(super) struct Expected {
    at: Instant,
    exists: bool,
    must_know: bool,
    /// The database has it.
    is_visible: bool,
    was_armed: bool,
    /// Dify has just said that there is no such thing.
    is_denied: bool,
    /// There is no such thing, and it is time to say so.
    must_refuse: bool,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Became {
    /// Dify answered it with this status.
    Answered(u16),
    /// The guard did.
    Refused(u16),
    /// The guard would have, but for its mode, and not in Dify's words.
    Misjudged,
    Throttled,
}

fn within(now: Instant, at: Option<Instant>, time: Duration) -> bool {
    at.is_some_and(|at| now < at + time)
}

impl Expected {
    pub(super) fn must_know(&self) -> bool {
        self.must_know
    }
}

impl Instance {
    /// Whether all of a kind has been read, lately enough.
    fn is_armed(&self, kind: IdKind) -> bool {
        let read = self.source.told.lock().read.get(&kind).copied();
        read.is_some_and(|began| now() <= began + MAX_AGE)
    }

    fn was_told(&self, kind: IdKind, id: KnownId) -> bool {
        self.source.told.lock().ids.contains(&(kind, id))
    }

    /// Whether it may have used up its look-ups.
    fn is_exhausted(&self) -> bool {
        let lately = |at: Instant| at + Duration::from_millis(1200) + LONGEST >= now();
        let asked = self.asked.iter().rev().take_while(|(at, _)| lately(*at));
        let ids: HashSet<_> = asked.map(|(_, id)| *id).collect();
        // All ask from one address, and half is for others.
        ids.len() >= LOOKUPS.div_ceil(2) as usize
    }
}

impl World {
    /// What instance `i` owes a client that asks it for this now; `thing` if it was ever there.
    pub(super) fn expect(&self, i: usize, named: &Named, thing: Option<&Thing>) -> Expected {
        let (at, instance) = (now(), &self.instances[i]);
        let id = (named.kind, named.id);
        let must_know = thing.is_some_and(|thing| self.must_know(i, thing));
        let denied = instance.denied.get(&id).copied();
        let gone = thing.is_none_or(|thing| self.must_forget(i, thing));
        let words = within(at, instance.stamped_at, STAMPED);
        let app_key = KnownId::of_text(APP_KEY.as_bytes());
        let comes_to_look = named.kind != IdKind::UploadFile
            || within(at, instance.admitted_at, ADMITTED) && instance.was_told(IdKind::AppKey, app_key);
        let calm = self.mood() == Mood::Well && at >= self.mood_since + CALM;
        let was_armed = instance.is_armed(named.kind);
        Expected {
            at,
            exists: thing.is_some_and(|thing| thing.gone_at.is_none()),
            must_know,
            is_visible: thing.is_some_and(|thing| thing.visible_at <= at),
            was_armed,
            is_denied: within(at, denied, NOT_FOUND),
            must_refuse: instance.enforces
                && gone
                && !must_know
                && words
                && comes_to_look
                && calm
                && !instance.source.told.lock().in_doubt.contains(&named.kind)
                && was_armed
                && self.exact,
        }
    }

    /// Whether a thing that exists must be known to instance `i`.
    fn must_know(&self, i: usize, thing: &Thing) -> bool {
        let (instance, id) = (&self.instances[i], (thing.named.kind, thing.named.id));
        if thing.gone_at.is_some() {
            return false;
        }
        let elsewhere = |sent: bool| {
            let messages = self.messages.lock();
            let since = thing.created_at.max(instance.started_at).max(messages.up_since);
            sent && messages.up && now() >= since + ELSEWHERE
        };
        instance.was_told(id.0, id.1)
            || instance.heard.lock().contains_key(&id)
            || thing.via.is_some_and(|(via, sent)| {
                via == i && thing.created_at >= instance.started_at || elsewhere(sent)
            })
    }

    /// Whether a thing that is gone must not pass any more at instance `i`.
    fn must_forget(&self, i: usize, thing: &Thing) -> bool {
        let (kind, id) = (thing.named.kind, thing.named.id);
        let instance = &self.instances[i];
        let (Some(gone_at), true) = (thing.gone_at, is_whole(kind)) else {
            return false;
        };
        let heard_at = instance.heard.lock().get(&(kind, id)).copied();
        let read = instance.source.told.lock().read.get(&kind).copied();
        // Of what only messages and answers told it may be that the database does not show it yet.
        let since = if instance.was_told(kind, id) && heard_at.is_none() {
            gone_at
        } else {
            let learnt_at = heard_at.unwrap_or(gone_at).max(instance.started_at);
            gone_at.max(learnt_at) + OVERLAP
        };
        read.is_some_and(|began| began > since)
    }

    /// Whether what became of a request is right.
    pub(super) fn judge(
        &self,
        i: usize,
        named: &Named,
        expected: &Expected,
        became: Became,
    ) -> Result<(), String> {
        let instance = &self.instances[i];
        let is_armed = instance.is_armed(named.kind);
        match became {
            Became::Throttled => return Err("a client was throttled".into()),
            Became::Answered(_) if expected.must_refuse && is_armed => {
                return Err(format!("{named:?} does not exist and came to Dify"));
            }
            Became::Answered(_) => return Ok(()),
            Became::Refused(_) if !instance.enforces => {
                return Err("an instance that only observes has refused".into());
            }
            Became::Refused(status) if status != super::dify::refusal_status(named.kind) => {
                return Err("something else was refused than what was asked for".into());
            }
            Became::Refused(_) | Became::Misjudged => {}
        }
        let armed = expected.was_armed || is_armed;
        let denied = expected.is_denied && !(expected.was_armed && is_armed);
        if !armed && !denied {
            return Err(format!("{named:?} was refused though its kind is not armed"));
        }
        if became == Became::Misjudged && !expected.exists {
            return Err("observed another answer of Dify than the one that would have been given".into());
        }
        if !expected.exists {
            return Ok(());
        }
        if expected.must_know {
            return Err(format!("{named:?} exists, must be known, and was refused"));
        }
        if denied || instance.is_exhausted() || !expected.is_visible {
            return Ok(());
        }
        Err(format!(
            "{named:?} exists, could have been looked up, and was refused"
        ))
    }

    /// Whether a kind of which something must have been noticed to be gone was named to those who have answers stored.
    pub(super) fn gone_was_told(&self, i: usize, thing: &Thing) -> Result<(), String> {
        let (kind, instance) = (thing.named.kind, &self.instances[i]);
        let only_read = !instance.heard.lock().contains_key(&(kind, thing.named.id));
        if !only_read || !self.must_forget(i, thing) {
            return Ok(());
        }
        match (instance.gone.lock().get(&kind), thing.gone_at) {
            (Some(told), Some(gone_at)) if *told >= gone_at => Ok(()),
            _ if !instance.was_told(kind, thing.named.id) => Ok(()),
            _ => Err(format!("{:?} is gone, and nobody was told", thing.named)),
        }
    }

    /// Whether an instance looked up no more than it may in any second.
    pub(super) fn looks_within_budget(&self) -> Result<(), String> {
        // A full bucket and what comes back meanwhile; questions wait for up to half a second until they are put.
        let most = LOOKUPS as usize * 5 / 2 + 1;
        for instance in &self.instances {
            let told = instance.source.told.lock();
            for (at, _) in &told.looked {
                let second = told
                    .looked
                    .iter()
                    .filter(|(other, _)| (*at..*at + ELSEWHERE).contains(other));
                let count: usize = second.map(|(_, ids)| ids.len()).sum();
                if count > most {
                    return Err(format!("{count} look-ups in a second"));
                }
            }
        }
        Ok(())
    }

    /// How long a request took, if too long.
    pub(super) fn in_time(expected: &Expected) -> Result<(), String> {
        let took = now() - expected.at;
        if took > LONGEST {
            return Err(format!("a request took {took:?}"));
        }
        Ok(())
    }
}
