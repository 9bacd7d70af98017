//! The table of a drill and its goals, in Markdown.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::judge::Row;

/// The longest that the last instance may take to follow to the standby, in seconds.
const SHIFT: f64 = 6.0;
/// `failback.after` of the instances, in seconds.
const BACK: f64 = 10.0;

/// All of it, and whether every goal is met.
pub(crate) fn render(rows: &[Row]) -> (String, bool) {
    let mut text = String::from(
        "| what happens | writes sent | acknowledged | failed visibly | of these carried out | lost | doubled | \
         misplaced | reads | failed | shift, s: first, p50, last | back, s: first, last | longest read, s | \
         longest write, s |\n|---|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for row in rows {
        let cut = match row.reads_cut {
            0 => String::new(),
            cut => format!(" ({cut} cut with their instance)"),
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {}{cut} | {} | {} | {:.1} | {:.1} |",
            row.fault.text(),
            row.writes,
            row.acknowledged,
            list(&row.failed),
            row.failed_and_carried_out,
            row.lost,
            row.doubled,
            row.misplaced,
            row.reads,
            list(&row.reads_failed),
            shift(&row.shift),
            back(&row.back),
            row.longest_read,
            row.longest_write,
        );
    }
    let (goals, all_met) = goals(rows);
    let _ = write!(text, "\n{goals}");
    (text, all_met)
}

fn shift(shift: &[f64]) -> String {
    match (shift.first(), shift.get(shift.len() / 2), shift.last()) {
        (Some(first), Some(middle), Some(last)) => format!("{first:.2}, {middle:.2}, {last:.2}"),
        _ => "–".to_owned(),
    }
}

fn back(back: &[f64]) -> String {
    match (back.first(), back.last()) {
        (Some(first), Some(last)) => format!("{first:.1}, {last:.1}"),
        _ => "–".to_owned(),
    }
}

fn list(counts: &BTreeMap<String, usize>) -> String {
    let all: Vec<_> = counts
        .iter()
        .map(|(what, count)| format!("{count} × {what}"))
        .collect();
    if all.is_empty() {
        "0".to_owned()
    } else {
        all.join(", ")
    }
}

fn goals(rows: &[Row]) -> (String, bool) {
    let mut text = String::from("| goal | measured | |\n|---|---|---|\n");
    let mut all_met = true;
    let mut goal = |what: &str, measured: String, is_met: bool| {
        all_met &= is_met;
        let _ = writeln!(
            text,
            "| {what} | {measured} | {} |",
            if is_met { "met" } else { "not met" }
        );
    };
    let sum = |count: &dyn Fn(&Row) -> usize| rows.iter().map(count).sum::<usize>();
    let mut none = |what: &str, count: usize| goal(what, count.to_string(), count == 0);
    none("acknowledged writes that are lost: 0", sum(&|row| row.lost));
    none("writes that are carried out twice: 0", sum(&|row| row.doubled));
    none(
        "writes in a cluster that does not have them: 0",
        sum(&|row| row.misplaced),
    );
    none(
        "safe reads that fail: 0",
        sum(&|row| row.reads_failed.values().sum()),
    );
    let shifting = || rows.iter().filter(|row| row.fault.shifts());
    let last = shifting()
        .filter_map(|row| row.shift.last())
        .copied()
        .fold(0.0, f64::max);
    let all_follow = shifting().all(|row| !row.shift.is_empty());
    if shifting().next().is_some() {
        goal(
            &format!("from the fault to the last instance that follows: at most {SHIFT:.0} s"),
            format!("{last:.2} s"),
            all_follow && last <= SHIFT,
        );
    }
    let returning = || rows.iter().filter(|row| row.fault.returns());
    let first = returning().filter_map(|row| row.back.first());
    let first = first.copied().fold(f64::INFINITY, f64::min);
    if returning().next().is_some() {
        goal(
            &format!("from the end of the fault to the first that returns: at least {BACK:.0} s"),
            format!("{first:.2} s"),
            first >= BACK,
        );
    }
    (text, all_met)
}
