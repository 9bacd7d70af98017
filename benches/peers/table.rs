//! Turns samples into the table: medians, spread and ratios.

use std::fmt::Write as _;

use crate::rows::{PEERS, Peer, ROWS};

/// One measurement of one server in one row.
pub(crate) struct Sample {
    pub(crate) row: usize,
    pub(crate) peer: Peer,
    pub(crate) micros: f64,
    pub(crate) rate: f64,
}

/// Least, middle and largest of some numbers.
fn spread(mut values: Vec<f64>) -> Option<(f64, f64, f64)> {
    values.sort_by(f64::total_cmp);
    let (first, last) = (*values.first()?, *values.last()?);
    let half = values.len() / 2;
    let middle = if values.len() % 2 == 1 {
        values[half]
    } else {
        f64::midpoint(values[half - 1], values[half])
    };
    Some((first, middle, last))
}

/// The whole table in Markdown.
pub(crate) fn render(samples: &[Sample]) -> String {
    let of = |row: usize, peer: Peer, number: fn(&Sample) -> f64| {
        let matching = samples.iter().filter(|s| s.row == row && s.peer == peer);
        spread(matching.map(number).collect())
    };
    let mut text = String::from("| CPU µs per request, median (min–max), requests/s |");
    for peer in PEERS {
        let _ = write!(text, " {} |", peer.name());
    }
    text.push_str(" edge/nginx | edge/hyper | edge/HAProxy |\n|---|");
    text.push_str(&"--:|".repeat(PEERS.len() + 3));
    text.push('\n');
    for (index, row) in ROWS.iter().enumerate() {
        if !samples.iter().any(|sample| sample.row == index) {
            continue;
        }
        let _ = write!(text, "| {} |", row.name);
        for peer in PEERS {
            let cell = of(index, peer, |s| s.micros).zip(of(index, peer, |s| s.rate));
            let _ = match cell {
                Some(((low, middle, high), (_, rate, _))) => {
                    write!(text, " {middle:.1} ({low:.1}–{high:.1}), {rate:.0} |")
                }
                None => write!(text, " |"),
            };
        }
        for peer in [Peer::Nginx, Peer::Bare, Peer::Haproxy] {
            let ratio = of(index, Peer::Edge, |s| s.micros).zip(of(index, peer, |s| s.micros));
            let _ = match ratio {
                Some((edge, other)) => write!(text, " {:.2} |", edge.1 / other.1),
                None => write!(text, " |"),
            };
        }
        text.push('\n');
    }
    text
}
