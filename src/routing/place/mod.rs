//! Where a request may go, and where it should: hard rules, preferences and zones, in this order. Pure, but for a seed.
//!
//! *Hard rules* leave replicas out; `fit` keeps to them as well, so that the others are judged by themselves. *Preferences*
//! come next: each is insisted on with the chance of its weight, as long as somebody who matches has a free slot. They
//! come before *zones* (see `zones`), because somebody has written them for this class of requests.
//!
//! What the rules make of a replica is worked out once, when it is made ([`Rules::mark`]): its labels never change.

#[cfg(test)]
mod tests;
mod zones;

use smallvec::SmallVec;

use crate::config::affinity::{Affinity, AffinityConfig, Labels, MOST_TERMS, Term};
use crate::types::chance::Chance;
use crate::types::outcome::RouteClass;
use crate::types::{Failure, FailureKind};

const CLASSES: usize = RouteClass::ALL.len();

/// The rules of place of one upstream.
#[derive(Debug)]
pub(super) struct Rules {
    home: Option<String>,
    affinity: [AffinityConfig; CLASSES],
    /// Chance and term of each preference, by class.
    prefer: [Vec<(f64, Term)>; CLASSES],
}

/// What the rules make of one replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Marks {
    /// A bit for each class that it may serve.
    allowed: u16,
    /// By class, a bit for each preference that it matches.
    preferred: [u32; CLASSES],
    at_home: bool,
}

impl Default for Marks {
    /// Those of a replica where there are no rules.
    fn default() -> Self {
        Self {
            allowed: u16::MAX,
            preferred: [0; CLASSES],
            at_home: false,
        }
    }
}

impl Marks {
    /// Whether the hard rules let it serve `class`.
    pub(super) fn allows(&self, class: RouteClass) -> bool {
        self.allowed & (1 << class as u16) != 0
    }
}

/// What is looked at of a replica that is in question for a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a> {
    /// Its place in the upstream.
    pub(super) replica: usize,
    pub(super) zone: Option<&'a str>,
    pub(super) marks: Marks,
    pub(super) standby: bool,
    /// Requests that it may have in flight.
    pub(super) slots: usize,
    /// How well it serves; nothing when it may not be asked now.
    pub(super) score: Option<f64>,
    /// Whether it may be asked and has a free slot.
    pub(super) free: bool,
}

/// Views of those who are left.
type Left<'a> = SmallVec<[View<'a>; 16]>;

impl Rules {
    /// The rules of `affinity` for a proxy in the zone `home`; `None` when there are none.
    pub(super) fn new(home: Option<&str>, affinity: &Affinity) -> Option<Self> {
        if home.is_none() && affinity.is_empty() {
            return None;
        }
        let of = |class: &RouteClass| affinity.get(class).cloned().unwrap_or_default();
        let affinity: [AffinityConfig; CLASSES] = std::array::from_fn(|class| of(&RouteClass::ALL[class]));
        let chances = |class: usize| {
            let preferences = affinity[class].prefer.iter().take(MOST_TERMS);
            preferences
                .map(|it| (f64::from(it.weight) / 100.0, it.term()))
                .collect()
        };
        Some(Self {
            home: home.map(str::to_owned),
            prefer: std::array::from_fn(chances),
            affinity,
        })
    }

    /// What the rules make of a replica in `zone` with `labels`.
    pub(super) fn mark(&self, zone: Option<&str>, labels: &Labels) -> Marks {
        let classes = self.affinity.iter().enumerate();
        let bit = |(class, rules): (usize, &AffinityConfig)| u16::from(rules.allows(labels)) << class;
        let preferred = |class: usize| {
            let terms = self.prefer[class].iter().enumerate();
            terms.fold(0, |bits, (at, (_, term))| {
                bits | u32::from(term.matches(labels)) << at
            })
        };
        Marks {
            allowed: classes.map(bit).fold(0, |bits, bit| bits | bit),
            preferred: std::array::from_fn(preferred),
            at_home: zone.is_some() && zone == self.home.as_deref(),
        }
    }

    /// Whether it makes a difference for `class` which of the replicas that may serve it is taken.
    pub(super) fn chooses(&self, class: RouteClass) -> bool {
        self.home.is_some() || !self.prefer[class as usize].is_empty()
    }

    /// What is said when no replica may serve `class`; `None` when the hard rules of that class are not to blame.
    pub(super) fn refusal(&self, class: RouteClass) -> Option<Failure> {
        let rules = &self.affinity[class as usize];
        (!rules.require.is_empty()).then(|| {
            let rule = rules.requirement();
            let detail =
                format!("no replica of the upstream matches what `{class}` requests require: {rule}");
            Failure::new(FailureKind::NoReplica, detail)
        })
    }

    /// The places of those among `views` that a request of `class` goes to; none only when none that the hard rules
    /// allow is free.
    pub(super) fn narrow(
        &self,
        class: RouteClass,
        views: &[View<'_>],
        chance: &mut Chance,
    ) -> SmallVec<[usize; 16]> {
        let allowed = views.iter().filter(|view| view.marks.allows(class));
        let mut left: Left<'_> = allowed.copied().collect();
        for (at, (weight, _)) in self.prefer[class as usize].iter().enumerate() {
            let matches = |view: &View<'_>| view.marks.preferred[class as usize] & (1 << at) != 0;
            if chance.draw() < *weight && left.iter().any(|view| view.free && matches(view)) {
                left.retain(|view| matches(view));
            }
        }
        if self.home.is_some() {
            zones::narrow(&mut left, chance);
        }
        left.iter()
            .filter(|view| view.free)
            .map(|view| view.replica)
            .collect()
    }
}
