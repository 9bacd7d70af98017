//! The balancing policies over replicas that differ, simulated: `cargo bench --bench balance_sim`.
//!
//! Prints the tables of ARCHITECTURE.md. Nothing is random but by a fixed seed, so that two runs print the same.
//! `tests/balance_sim.rs` runs a part of it with every change.

#![allow(clippy::print_stdout, reason = "it is the program's result")]

mod simulated;

use dify_edge::routing::balance::spread::THRESHOLD;
use simulated::Result;
use simulated::scenarios::{POLICIES, Row, SLACK, all, level};

/// Simulated seconds of each cell.
const SECONDS: f64 = 3600.0;
/// Where all chance comes from.
const SEED: u64 = 6;
/// Intervals that are watched after uneven loads.
const INTERVALS: usize = 60;

fn met(met: bool) -> &'static str {
    if met { "met" } else { "not met" }
}

/// Not far from the oracle, and far below turns, or no worse where replicas are equal.
fn goals(row: &Row) -> bool {
    let most = if row.scenario.equal { 1.0 + SLACK } else { 0.65 };
    row.to_oracle() <= 1.2 && row.to_round_robin() <= most
}

fn main() {
    println!("p99 of short requests in ms (share that failed), {SECONDS} s each:\n");
    println!(
        "| scenario | round_robin | least_loaded | weighted_health | oracle | to oracle | to round_robin | goal |"
    );
    println!("|---|--:|--:|--:|--:|--:|--:|---|");
    let cell = |result: Result| {
        let errors = if result.errors > 0.0 {
            format!(" ({:.2} %)", result.errors * 100.0)
        } else {
            String::new()
        };
        format!("{:.0}{errors}", result.p99 * 1000.0)
    };
    for scenario in all() {
        let row = Row::of(scenario, SECONDS, SEED);
        let [round_robin, least_loaded, weighted_health] = row.policies.map(cell);
        println!(
            "| {} | {round_robin} | {least_loaded} | {weighted_health} | {} | {:.2} | {:.3} | {} |",
            row.scenario.name,
            cell(row.oracle),
            row.to_oracle(),
            row.to_round_robin(),
            met(goals(&row)),
        );
    }
    println!("\nLoads of (85, 60, 90, 45, 70) %, intervals of 10 s, {INTERVALS} of them:\n");
    println!(
        "| policy | variance after 0, 3, 6, 9, 12 | below {THRESHOLD} for good after | most changes of sign | goal |"
    );
    println!("|---|---|--:|--:|---|");
    for policy in POLICIES {
        let levelling = level(policy, INTERVALS, SEED);
        let variance: Vec<_> = levelling.variance[..=12]
            .iter()
            .step_by(3)
            .map(|v| format!("{v:.0}"))
            .collect();
        println!(
            "| {policy:?} | {} | {} | {} | {} |",
            variance.join(", "),
            levelling.settled(),
            levelling.swings,
            met(levelling.settled() <= 12 && levelling.swings <= 2),
        );
    }
}
