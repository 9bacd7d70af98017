//! Hit ratios of the cache's eviction beside plain LRU and the clairvoyant optimum: `cargo bench --bench eviction`.
//!
//! Replays made-up traces, and one of the shape of the captured traffic, at several capacities, and prints one table
//! in Markdown. The traces are the same in every run; moka's own timer makes its figures differ by a tenth of a
//! percent at most.

#![allow(clippy::print_stdout, reason = "a program for the terminal")]

mod policies;
mod traces;

use self::policies::{Ratio, Weighing};
use self::traces::Trace;

/// Capacities as parts of the footprint, which is what all different answers of a trace take together.
const CAPACITIES: [f64; 4] = [0.01, 0.05, 0.10, 0.25];

fn main() {
    println!("| trace | capacity | moka, as configured | moka, LRU | LRU | optimum |");
    println!("|---|---:|---:|---:|---:|---:|");
    for trace in traces::of_one_size() {
        for part in CAPACITIES {
            let capacity = (trace.footprint() as f64 * part) as u64;
            row(&trace, part, capacity, |ratio| ratio.of_requests);
        }
    }
    for part in CAPACITIES {
        // A loop is always a little larger than what it has to fit into.
        let capacity = (traces::ANSWERS as f64 * part) as u64;
        row(&traces::looping(capacity), part, capacity, |ratio| {
            ratio.of_requests
        });
    }
    for trace in traces::of_many_sizes() {
        for part in CAPACITIES {
            let capacity = (trace.footprint() as f64 * part) as u64;
            row(&trace, part, capacity, |ratio| ratio.of_requests);
        }
        let by_bytes = Trace {
            name: format!("{}, by bytes", trace.name),
            ..trace
        };
        for part in CAPACITIES {
            let capacity = (by_bytes.footprint() as f64 * part) as u64;
            row(&by_bytes, part, capacity, |ratio| ratio.of_bytes);
        }
    }
}

fn row(trace: &Trace, part: f64, capacity: u64, which: impl Fn(Ratio) -> f64) {
    let percent = |ratio| format!("{:.1}", which(ratio) * 100.0);
    let optimum = match trace.weighing {
        Weighing::One => percent(policies::optimum(trace, capacity)),
        Weighing::Bytes => format!("≤ {}", percent(policies::bound(trace, capacity))),
    };
    println!(
        "| {} | {:.0} % | {} | {} | {} | {optimum} |",
        trace.name,
        part * 100.0,
        percent(policies::moka(
            trace,
            capacity,
            moka::policy::EvictionPolicy::tiny_lfu()
        )),
        percent(policies::moka(
            trace,
            capacity,
            moka::policy::EvictionPolicy::lru()
        )),
        percent(policies::lru(trace, capacity)),
    );
}
