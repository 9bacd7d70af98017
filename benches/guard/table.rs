//! Puts together what was measured: a table in Markdown, and which goals are met.

use std::fmt::Write as _;

use crate::attack::{Plan, Tally};
use crate::patrons::Seen;

/// The share of missing things that may pass, and the things that may be looked up in a second: as configured.
const RATE: f64 = 0.01;
const LOOKUPS: f64 = 200.0;

/// What all phases of one kind came to.
#[derive(Debug, Default, Clone)]
pub(crate) struct Phase {
    pub(crate) attack: Tally,
    pub(crate) seen: Seen,
    /// Requests that reached Dify.
    pub(crate) attacks_upstream: u64,
    pub(crate) patrons_upstream: u64,
    pub(crate) seconds: f64,
}

impl Phase {
    pub(crate) fn add(&mut self, other: Self) {
        self.attack.add(other.attack);
        self.seen.add(other.seen);
        self.attacks_upstream += other.attacks_upstream;
        self.patrons_upstream += other.patrons_upstream;
        self.seconds += other.seconds;
    }
}

/// One mode of the guard.
#[derive(Debug, Default)]
pub(crate) struct Mode {
    pub(crate) name: &'static str,
    pub(crate) calm: Phase,
    pub(crate) attacked: Phase,
    /// `dify_edge_guard_false_refusals_total`.
    pub(crate) false_refusals: f64,
    /// Look-ups: found, missing, over the budget, failed.
    pub(crate) lookups: [f64; 4],
}

/// Processor time of one request, microseconds, in each round.
#[derive(Debug)]
pub(crate) struct Cost {
    pub(crate) plan: Plan,
    pub(crate) micros: Vec<f64>,
    pub(crate) per_second: f64,
}

impl Cost {
    fn median(&self) -> f64 {
        let mut all = self.micros.clone();
        all.sort_unstable_by(f64::total_cmp);
        all.get(all.len() / 2).copied().unwrap_or_default()
    }
}

/// A percentile in milliseconds.
fn percentile(times: &[u64], part: f64) -> f64 {
    let mut times = times.to_vec();
    times.sort_unstable();
    let place = (times.len() as f64 * part) as usize;
    times
        .get(place.min(times.len().saturating_sub(1)))
        .map_or(0.0, |time| *time as f64 / 1e3)
}

fn all(seen: &Seen) -> Vec<u64> {
    [seen.hits.as_slice(), &seen.others].concat()
}

/// All of it.
pub(crate) fn render(rows: u64, modes: &[Mode], costs: &[Cost], elsewhere: &Phase) -> String {
    let mut text = String::new();
    let names: Vec<_> = modes.iter().map(|mode| mode.name).collect();
    let _ = writeln!(
        text,
        "| {rows} rows | {} |\n|---|{}",
        names.join(" | "),
        "--:|".repeat(modes.len())
    );
    let mut row = |name: &str, value: &dyn Fn(&Mode) -> String| {
        let values: Vec<_> = modes.iter().map(value).collect();
        let _ = writeln!(text, "| {name} | {} |", values.join(" | "));
    };
    let per_second = |count: u64, phase: &Phase| format!("{:.0}", count as f64 / phase.seconds);
    let both = |mode: &Mode, value: &dyn Fn(&Seen) -> f64| {
        format!(
            "{:.2} → {:.2}",
            value(&mode.calm.seen),
            value(&mode.attacked.seen)
        )
    };
    row("attackers' requests/s", &|mode| {
        per_second(mode.attacked.attack.requests, &mode.attacked)
    });
    row("refused by the proxy/s", &|mode| {
        per_second(mode.attacked.attack.refused, &mode.attacked)
    });
    row("answered with 429/s", &|mode| {
        per_second(mode.attacked.attack.throttled, &mode.attacked)
    });
    row("attackers' requests that reached Dify", &|mode| {
        let share = share(&mode.attacked) * 100.0;
        format!("{} ({share:.3} %)", mode.attacked.attacks_upstream)
    });
    row("requests upstream/s, calm → attacked", &|mode| {
        let of = |phase: &Phase| per_second(phase.attacks_upstream + phase.patrons_upstream, phase);
        format!("{} → {}", of(&mode.calm), of(&mode.attacked))
    });
    row("legitimate p50, ms, calm → attacked", &|mode| {
        both(mode, &|seen| percentile(&all(seen), 0.5))
    });
    row("legitimate p99, ms", &|mode| {
        both(mode, &|seen| percentile(&all(seen), 0.99))
    });
    row("of these from memory, p50, ms", &|mode| {
        both(mode, &|seen| percentile(&seen.hits, 0.5))
    });
    row("of these from memory, p99, ms", &|mode| {
        both(mode, &|seen| percentile(&seen.hits, 0.99))
    });
    row("legitimate requests", &|mode| {
        let of = |phase: &Phase| phase.seen.hits.len() + phase.seen.others.len();
        (of(&mode.calm) + of(&mode.attacked)).to_string()
    });
    row("false refusals of these", &|mode| {
        format!("{}, {}", mode.calm.seen.refused, mode.attacked.seen.refused)
    });
    row(
        "created past the proxy and asked for at once, calm, attacked",
        &|mode| format!("{}, {}", mode.calm.seen.newcomers, mode.attacked.seen.newcomers),
    );
    row("of these refused at first", &|mode| {
        let of = |seen: &Seen| seen.newcomers_refused;
        let waited = mode
            .attacked
            .seen
            .newcomers_waited
            .max(mode.calm.seen.newcomers_waited);
        let (calm, attacked) = (of(&mode.calm.seen), of(&mode.attacked.seen));
        format!("{calm}, {attacked} (for at most {waited:.1} s)")
    });
    row("legitimate requests that failed otherwise", &|mode| {
        format!("{}, {}", mode.calm.seen.failed, mode.attacked.seen.failed)
    });
    row("`dify_edge_guard_false_refusals_total`", &|mode| {
        format!("{:.0}", mode.false_refusals.abs())
    });
    row("look-ups: found, missing, over budget, failed", &|mode| {
        mode.lookups.map(|count| format!("{:.0}", count.abs())).join(", ")
    });
    text.push('\n');
    text.push_str(&costs_of(costs));
    text.push_str(&goals(modes, costs));
    if elsewhere.attack.requests > 0 {
        let _ = writeln!(
            text,
            "\nWith a good key, on a route on which Dify's refusal was not recorded: {:.0} guesses/s, {:.1} % of them \
             reached Dify, {:.1} % were answered with 429.",
            elsewhere.attack.requests as f64 / elsewhere.seconds,
            share(elsewhere) * 100.0,
            elsewhere.attack.throttled as f64 / elsewhere.attack.requests as f64 * 100.0
        );
    }
    text
}

fn share(phase: &Phase) -> f64 {
    phase.attacks_upstream as f64 / phase.attack.requests.max(1) as f64
}

fn costs_of(costs: &[Cost]) -> String {
    let mut text = String::from(
        "| guard enforced, 64 connections | CPU µs, median (min–max) | requests/s |\n|---|--:|--:|\n",
    );
    for cost in costs {
        let name = match cost.plan {
            Plan::GuessElsewhere => "no refusal",
            Plan::Guess => "refusal, the attackers' mix",
            Plan::GuessKeys => "refusal of a random app key",
            Plan::Hits => "hit, each request with an id of its own",
            Plan::SameHit => "hit, the very same request again",
        };
        let least = cost.micros.iter().copied().fold(f64::INFINITY, f64::min);
        let most = cost.micros.iter().copied().fold(0.0, f64::max);
        let _ = writeln!(
            text,
            "| {name} | {:.1} ({least:.1}–{most:.1}) | {:.0} |",
            cost.median(),
            cost.per_second
        );
    }
    text.push('\n');
    text
}

fn goals(modes: &[Mode], costs: &[Cost]) -> String {
    let mut text = String::from("| goal | measured | |\n|---|---|---|\n");
    let mut goal = |what: &str, measured: String, met: bool| {
        let _ = writeln!(
            text,
            "| {what} | {measured} | {} |",
            if met { "met" } else { "not met" }
        );
    };
    if let Some(mode) = modes.iter().find(|mode| mode.name == "enforce") {
        let attacked = &mode.attacked;
        let bound = RATE + LOOKUPS * attacked.seconds / attacked.attack.requests.max(1) as f64;
        goal(
            "attackers' share that reaches Dify ≤ false-positive rate + look-up budget",
            format!(
                "{:.3} % of at most {:.3} %",
                share(attacked) * 100.0,
                bound * 100.0
            ),
            share(attacked) <= bound,
        );
        let p99 = |phase: &Phase| percentile(&all(&phase.seen), 0.99);
        let change = p99(attacked) / p99(&mode.calm);
        goal(
            "legitimate p99 within 10 % of no attack",
            format!("× {change:.2}"),
            change <= 1.1,
        );
        let refused = mode.calm.seen.refused + attacked.seen.refused;
        goal(
            "no false refusal of what was there",
            refused.to_string(),
            refused == 0,
        );
        let late = mode.calm.seen.newcomers_refused + attacked.seen.newcomers_refused;
        goal(
            "no false refusal of what was created past the proxy",
            late.to_string(),
            late == 0,
        );
    }
    if let Some(mode) = modes.iter().find(|mode| mode.name == "observe") {
        let counted = mode.false_refusals;
        goal(
            "observed: no false refusal counted",
            format!("{:.0}", counted.abs()),
            counted == 0.0,
        );
    }
    let of = |plan: Plan| costs.iter().find(|cost| cost.plan == plan).map(Cost::median);
    if let (Some(key), Some(hit)) = (of(Plan::GuessKeys), of(Plan::Hits)) {
        let ratio = key / hit;
        goal(
            "CPU of a refusal ≤ 1.0 × a hit's, on the same route",
            format!("{ratio:.2}"),
            ratio <= 1.0,
        );
    }
    if let (Some(refusal), Some(hit)) = (of(Plan::Guess), of(Plan::Hits)) {
        let ratio = refusal / hit;
        goal(
            "CPU of a refusal ≤ 1.0 × a hit's, the attackers' mix of routes",
            format!("{ratio:.2}"),
            ratio <= 1.0,
        );
    }
    text
}
