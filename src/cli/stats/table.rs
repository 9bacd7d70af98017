//! Lays out the cache's statistics: a row for each tier, and below it a line for each other number.
//!
//! Pure. It knows the fields that tiers have in common and shows the rest by name, so that a new counter, or a new
//! tier, needs nothing here. Memory's fields are those at the top, another tier's are an object of its own.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::cli::grid::grid;

/// What makes the columns of a tier's row; everything else gets a line.
const COLUMNS: [&str; 5] = ["entries", "bytes", "max_bytes", "hits", "misses"];
/// Numbers that go up and down, and so have no rate.
const GAUGES: [&str; 1] = ["flights"];
/// What is not known.
const NOTHING: &str = "-";

type Fields = Map<String, Value>;

/// The table. With an earlier look and the time since, also rates per second.
pub(super) fn table(stats: &Fields, before: Option<(&Fields, Duration)>) -> String {
    let mut tiers = vec![titles(before.is_some())];
    let mut lines = Vec::new();
    let parts = std::iter::once(("L1".to_owned(), "", Some(stats))).chain(
        stats
            .iter()
            .map(|(name, value)| (name.to_uppercase(), name.as_str(), value.as_object())),
    );
    for (title, name, fields) in parts {
        let Some(fields) = fields else {
            continue;
        };
        let since = before.map(|(before, time)| Since {
            before: if name.is_empty() {
                Some(before)
            } else {
                before.get(name).and_then(Value::as_object)
            },
            time,
        });
        if COLUMNS.iter().any(|column| fields.contains_key(*column)) {
            tiers.push(tier(title, fields, since));
        }
        let rest = fields
            .iter()
            .filter(|(field, _)| !COLUMNS.contains(&field.as_str()));
        lines.extend(rest.filter_map(|(field, value)| line(name, field, value, fields, since)));
    }
    format!("{}\n{}", grid(&tiers, 1), grid(&lines, 1))
}

/// An earlier look.
#[derive(Clone, Copy)]
struct Since<'a> {
    /// The same part as it was then, if it was there.
    before: Option<&'a Fields>,
    time: Duration,
}

impl Since<'_> {
    /// How often per second; not known after a restart.
    fn rate(&self, field: &str, fields: &Fields) -> String {
        let number = |fields: &Fields| fields.get(field).and_then(Value::as_u64);
        let more = number(fields)
            .zip(self.before.and_then(number))
            .and_then(|(now, then)| now.checked_sub(then));
        match more {
            Some(more) if !self.time.is_zero() => format!("{:.1}", more as f64 / self.time.as_secs_f64()),
            _ => NOTHING.into(),
        }
    }
}

fn titles(rates: bool) -> Vec<String> {
    let mut titles = vec!["tier", "entries", "bytes", "hits", "misses", "ratio"];
    if rates {
        titles.extend(["hits/s", "misses/s"]);
    }
    titles.into_iter().map(str::to_owned).collect()
}

fn tier(title: String, fields: &Fields, since: Option<Since<'_>>) -> Vec<String> {
    let number = |field: &str| fields.get(field).and_then(Value::as_u64);
    let shown = |field: &str| number(field).map_or_else(|| NOTHING.into(), |number| number.to_string());
    let bytes = match (number("bytes"), number("max_bytes")) {
        (Some(bytes), Some(most)) => format!("{} of {}", size(bytes), size(most)),
        (Some(bytes), None) => size(bytes),
        _ => NOTHING.into(),
    };
    let ratio = match number("hits").zip(number("misses")) {
        Some((hits, misses)) if hits > 0 || misses > 0 => {
            format!("{:.1} %", 100.0 * hits as f64 / (hits as f64 + misses as f64))
        }
        _ => NOTHING.into(),
    };
    let mut row = vec![
        title,
        shown("entries"),
        bytes,
        shown("hits"),
        shown("misses"),
        ratio,
    ];
    if let Some(since) = since {
        row.extend(["hits", "misses"].map(|field| since.rate(field, fields)));
    }
    row
}

/// The line of one field; `None` for what is no single value.
fn line(
    part: &str,
    field: &str,
    value: &Value,
    fields: &Fields,
    since: Option<Since<'_>>,
) -> Option<Vec<String>> {
    let shown = match value {
        Value::Number(number) => number.to_string(),
        Value::Bool(is) => if *is { "yes" } else { "no" }.into(),
        Value::String(text) => text.clone(),
        _ => return None,
    };
    let name = format!("{part} {field}")
        .replace('_', " ")
        .trim_start()
        .to_owned();
    let mut row = vec![name, shown];
    if let Some(since) = since
        && value.is_u64()
        && !GAUGES.contains(&field)
    {
        row.push(format!("{}/s", since.rate(field, fields)));
    }
    Some(row)
}

/// Bytes with a binary unit, rounded.
fn size(bytes: u64) -> String {
    let mut number = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if number < 1024.0 {
            let places = usize::from(unit != "B");
            return format!("{number:.places$} {unit}");
        }
        number /= 1024.0;
    }
    format!("{number:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn fields(value: &Value) -> Fields {
        value.as_object().unwrap().clone()
    }

    fn stats(hits: u64) -> Fields {
        fields(&json!({
            "entries": 12, "bytes": 1_258_291, "max_bytes": 512 << 20, "hits": hits, "misses": 100,
            "l2": null, "coalesced": 7, "flights": 1,
        }))
    }

    #[test]
    fn memory_is_a_row_and_what_else_is_counted_a_line_each() {
        assert_eq!(
            table(&stats(3900), None),
            "tier  entries                 bytes  hits  misses   ratio\n\
             L1         12  1.2 MiB of 512.0 MiB  3900     100  97.5 %\n\
             \n\
             coalesced  7\n\
             flights    1\n"
        );
    }

    #[test]
    fn every_tier_that_is_there_has_a_row_and_its_other_fields_are_named_after_it() {
        let mut stats = stats(0);
        stats["misses"] = 0.into();
        stats.insert(
            "l2".into(),
            json!({"hits": 1, "misses": 2, "deadline_exceeded": 4, "open": true}),
        );
        stats.insert("board".into(), json!({"heard": 9, "state": "told"}));
        assert_eq!(
            table(&stats, None),
            "tier  entries                 bytes  hits  misses   ratio\n\
             L1         12  1.2 MiB of 512.0 MiB     0       0       -\n\
             L2          -                     -     1       2  33.3 %\n\
             \n\
             coalesced                7\n\
             flights                  1\n\
             l2 deadline exceeded     4\n\
             l2 open                yes\n\
             board heard              9\n\
             board state           told\n"
        );
    }

    #[test]
    fn rates_are_of_counters_and_since_the_last_look() {
        let (mut before, now) = (stats(3880), stats(3900));
        before["coalesced"] = 2.into();
        before["flights"] = 0.into();
        assert_eq!(
            table(&now, Some((&before, Duration::from_secs(2)))),
            "tier  entries                 bytes  hits  misses   ratio  hits/s  misses/s\n\
             L1         12  1.2 MiB of 512.0 MiB  3900     100  97.5 %    10.0       0.0\n\
             \n\
             coalesced  7  2.5/s\n\
             flights    1\n"
        );
        // It was started anew in between, and now has a second tier.
        let mut now = stats(5);
        now.insert("l2".into(), json!({"hits": 1, "errors": 1}));
        let text = table(&now, Some((&before, Duration::from_secs(2))));
        assert!(
            text.contains("    5     100  4.8 %       -       0.0\n"),
            "{text}"
        );
        assert!(text.contains("l2 errors  1    -/s\n"), "{text}");
    }

    #[test]
    fn sizes_have_the_largest_unit_below_them() {
        for (bytes, shown) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (3 << 29, "1.5 GiB"),
            (u64::MAX, "16777216.0 TiB"),
        ] {
            assert_eq!(size(bytes), shown);
        }
    }

    proptest! {
        #[test]
        fn any_numbers_are_laid_out_in_straight_columns(
            now in prop::array::uniform5(any::<u64>()),
            then in prop::array::uniform5(any::<u64>()),
            millis in 0_u64..5000,
        ) {
            let object = |numbers: [u64; 5]| -> Fields {
                COLUMNS.iter().zip(numbers).map(|(name, number)| ((*name).to_owned(), number.into())).collect()
            };
            let mut now = object(now);
            now.insert("l2".into(), Value::Object(now.clone()));
            let before = object(then);
            let text = table(&now, Some((&before, Duration::from_millis(millis))));
            let lines: Vec<_> = text.lines().filter(|line| !line.is_empty()).collect();
            prop_assert_eq!(lines.len(), 3);
            prop_assert!(lines.iter().all(|line| line.len() == lines[0].len()), "{}", text);
        }
    }
}
