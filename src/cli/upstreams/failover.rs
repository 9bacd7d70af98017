//! The lines of an upstream's failover: which cluster has the writes and since when, who decides, what is healthy; and
//! above all what is wrong. Pure.

use serde::Deserialize;

use super::table::{NOTHING, age, duration};

/// Width of the words before each line.
const TITLE: usize = 10;

/// What is read of a failover.
#[derive(Debug, Deserialize)]
pub(super) struct Failover {
    epoch: Option<u64>,
    active: String,
    mode: String,
    writes: bool,
    holder: Option<String>,
    holds_lease: bool,
    confirmed_ms_ago: Option<u64>,
    trouble: Option<String>,
    healthy: Option<Sight>,
    healthy_here: Option<Sight>,
    owners: u64,
    last_shift: Option<LastShift>,
}

#[derive(Debug, Deserialize)]
struct Sight {
    primary: f64,
    standby: f64,
}

#[derive(Debug, Deserialize)]
struct LastShift {
    cause: String,
    by: String,
    seconds_ago: u64,
}

/// The lines, without indentation.
pub(super) fn lines(failover: &Failover) -> Vec<String> {
    let mut lines = alarms(failover);
    let mut say = |title: &str, text: String| lines.push(format!("{title:TITLE$} {text}"));
    say("failover", standing(failover));
    if let Some(shift) = &failover.last_shift {
        let (ago, cause) = (age(shift.seconds_ago), shift.cause.replace('_', " "));
        say("begun", format!("{ago} ago: {cause}, by {}", shift.by));
    }
    say("lease", lease(failover));
    say("healthy", health(failover));
    let pieces = if failover.owners == 1 { "piece" } else { "pieces" };
    say(
        "remembers",
        format!("the cluster of {} {pieces} of work", failover.owners),
    );
    lines
}

/// What an operator has to know at once.
fn alarms(failover: &Failover) -> Vec<String> {
    let why = failover.trouble.as_ref().map(|why| format!("!! {why}"));
    let what = match (failover.writes, &why) {
        (true, None) => return Vec::new(),
        (true, Some(_)) => format!(
            "!! NOT CONFIRMED: writes still go to {}, where they went last",
            failover.active
        ),
        (false, _) => "!! WRITES ARE REFUSED: nobody knows which cluster has them".to_owned(),
    };
    std::iter::once(what).chain(why).collect()
}

fn standing(failover: &Failover) -> String {
    let Some(epoch) = failover.epoch else {
        return "no epoch has been heard of yet".to_owned();
    };
    let who = match failover.mode.as_str() {
        "auto" => "auto",
        _ => "held by an operator until `failover --to auto`",
    };
    let at = if failover.writes {
        "writes at"
    } else {
        "writes were at"
    };
    format!("{at} {}, epoch {epoch} ({who})", failover.active)
}

fn lease(failover: &Failover) -> String {
    let holder = match &failover.holder {
        Some(holder) if failover.holds_lease => format!("held by this instance, {holder}"),
        Some(holder) => format!("held by {holder} (not this one)"),
        None => "nobody is known to hold it".to_owned(),
    };
    match failover.confirmed_ms_ago {
        Some(millis) => format!("{holder}; confirmed {} ago", duration(millis as f64)),
        None => format!("{holder}; never confirmed"),
    }
}

/// What all see; what this instance sees only where that is another.
fn health(failover: &Failover) -> String {
    let shares = |sight: &Sight| [sight.primary, sight.standby].map(percent);
    let (all, here) = (
        failover.healthy.as_ref().map(shares),
        failover.healthy_here.as_ref().map(shares),
    );
    let text = |[primary, standby]: &[String; 2]| format!("primary {primary}, standby {standby}");
    match (&all, &here) {
        (Some(all), Some(here)) if all != here => format!("{} (seen from here: {})", text(all), text(here)),
        (Some(all), _) => text(all),
        (None, Some(here)) => format!("seen from here: {}", text(here)),
        (None, None) => NOTHING.to_owned(),
    }
}

/// Never more than there is.
fn percent(share: f64) -> String {
    format!("{:.0} %", (100.0 * share + 1e-9).floor())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn failover(changes: &Value) -> Vec<String> {
        let mut failover = json!({
            "epoch": 3, "active": "primary", "mode": "auto", "writes": true, "instance": "edge-1:42:9f3c",
            "holder": "edge-2:43:01ab", "holds_lease": false, "confirmed_ms_ago": 120, "trouble": null,
            "healthy": {"primary": 1.0, "standby": 1.0}, "healthy_here": {"primary": 0.5, "standby": 1.0},
            "owners": 12, "last_shift": {"cause": "recovered", "by": "edge-1:42:9f3c", "at_ms": 0, "seconds_ago": 14},
        });
        for (name, value) in changes.as_object().unwrap() {
            failover[name] = value.clone();
        }
        lines(&serde_json::from_value(failover).unwrap())
    }

    #[test]
    fn the_lines_say_where_writes_are_since_when_who_decides_and_what_is_healthy() {
        assert_eq!(
            failover(&json!({})),
            [
                "failover   writes at primary, epoch 3 (auto)",
                "begun      14 s ago: recovered, by edge-1:42:9f3c",
                "lease      held by edge-2:43:01ab (not this one); confirmed 120 ms ago",
                "healthy    primary 100 %, standby 100 % (seen from here: primary 50 %, standby 100 %)",
                "remembers  the cluster of 12 pieces of work",
            ]
        );
        let held = failover(&json!({
            "mode": "standby", "active": "standby", "epoch": 4, "holds_lease": true, "holder": "edge-1:42:9f3c",
            "healthy": {"primary": 0.999, "standby": 0.29}, "healthy_here": null,
        }));
        assert_eq!(
            (&*held[0], &*held[2], &*held[3]),
            (
                "failover   writes at standby, epoch 4 (held by an operator until `failover --to auto`)",
                "lease      held by this instance, edge-1:42:9f3c; confirmed 120 ms ago",
                "healthy    primary 99 %, standby 29 %",
            )
        );
    }

    #[test]
    fn what_is_wrong_comes_first() {
        let refused = failover(&json!({
            "writes": false, "epoch": null, "holder": null, "confirmed_ms_ago": null, "last_shift": null,
            "trouble": "there is no connection", "healthy": null, "healthy_here": null,
        }));
        assert_eq!(
            refused,
            [
                "!! WRITES ARE REFUSED: nobody knows which cluster has them",
                "!! there is no connection",
                "failover   no epoch has been heard of yet",
                "lease      nobody is known to hold it; never confirmed",
                "healthy    -",
                "remembers  the cluster of 12 pieces of work",
            ]
        );
        let deaf =
            failover(&json!({"trouble": "no answer in time", "healthy": null, "confirmed_ms_ago": 65_000}));
        assert_eq!(
            deaf[..2],
            [
                "!! NOT CONFIRMED: writes still go to primary, where they went last",
                "!! no answer in time"
            ]
        );
        assert!(deaf[4].ends_with("confirmed 65 s ago"), "{deaf:?}");
        assert_eq!(deaf[5], "healthy    seen from here: primary 50 %, standby 100 %");
        let fenced = failover(&json!({"writes": false}));
        assert!(fenced[0].starts_with("!! WRITES ARE REFUSED: "), "{fenced:?}");
        assert_eq!(fenced[1], "failover   writes were at primary, epoch 3 (auto)");
    }
}
