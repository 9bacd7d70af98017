//! What a replica says about its own load: the response field `endpoint-load-metrics` of ORCA.
//!
//! Written as `TEXT cpu_utilization=0.3,rps_fractional=12`, as `JSON {"cpu_utilization": 0.3}`, or, as before these
//! words were agreed on, as bare pairs with `=` or `:`. Of all that can be said only the utilization is of use here.
//! `application_utilization` is what the replica itself wants to be judged by; `cpu_utilization` counts where that is
//! not given or 0, as in gRFC A58. The binary form, `BIN` and the field `endpoint-load-metrics-bin`, is gRPC's and not
//! read.

use http::{HeaderMap, HeaderName};
use serde_json::Value;

const REPORT: HeaderName = HeaderName::from_static("endpoint-load-metrics");
const BINARY: HeaderName = HeaderName::from_static("endpoint-load-metrics-bin");

/// Takes the report out of the head of an answer, where it is meant for whoever balances and for nobody behind: the
/// share of the replica that is in use, 0 to 1, if it says so.
pub fn take(fields: &mut HeaderMap) -> Option<f64> {
    fields.remove(BINARY);
    utilization(fields.remove(REPORT)?.as_bytes())
}

/// The share of the replica that is in use, 0 to 1. `None` when the report cannot be read or does not tell.
pub fn utilization(report: &[u8]) -> Option<f64> {
    let report = std::str::from_utf8(report).ok()?.trim();
    let (form, rest) = report.split_once(' ').unwrap_or(("", report));
    let used = |application: Option<f64>, cpu: Option<f64>| {
        let known = application.filter(|share| *share > 0.0).or(cpu)?;
        known.is_finite().then(|| known.clamp(0.0, 1.0))
    };
    match form {
        "BIN" => None,
        "JSON" => {
            let said: Value = serde_json::from_str(rest).ok()?;
            // Messages of protocol buffers may be written with the names of the fields or in camel case.
            let value = |name, camel| said.get(name).or_else(|| said.get(camel))?.as_f64();
            used(
                value("application_utilization", "applicationUtilization"),
                value("cpu_utilization", "cpuUtilization"),
            )
        }
        _ => {
            let pairs = if form == "TEXT" { rest } else { report };
            used(
                value(pairs, "application_utilization"),
                value(pairs, "cpu_utilization"),
            )
        }
    }
}

/// The first number that stands behind `name`.
fn value(pairs: &str, name: &str) -> Option<f64> {
    pairs.split(',').find_map(|pair| {
        let (key, value) = pair.split_once(['=', ':'])?;
        let number: f64 = value.trim().parse().ok()?;
        (key.trim() == name && number.is_finite()).then_some(number)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_way_of_writing_a_report_is_read() {
        for (report, expected) in [
            ("TEXT cpu_utilization=0.3,mem_utilization=0.8", Some(0.3)),
            (
                "TEXT application_utilization=0.5, cpu_utilization=0.3128, rps_fractional=0.0000",
                Some(0.5),
            ),
            ("TEXT application_utilization=0, cpu_utilization=0.25", Some(0.25)),
            (
                "TEXT named_metrics.queue=7,cpu_utilization=1.7,request_cost.x=1",
                Some(1.0),
            ),
            ("cpu_utilization:0.4,application_utilization:0.6", Some(0.6)),
            (" cpu_utilization = 0.4", Some(0.4)),
            ("TEXT cpu_utilization=-1", Some(0.0)),
            (
                r#"JSON {"cpu_utilization": 0.3, "mem_utilization": 0.8}"#,
                Some(0.3),
            ),
            (
                r#"JSON {"cpuUtilization": 0.3, "applicationUtilization": 1e3}"#,
                Some(1.0),
            ),
            (
                r#"JSON {"cpu_utilization": 1, "named_metrics": {"kv": 0.1}}"#,
                Some(1.0),
            ),
            (r#"JSON {"cpu_utilization": "NaN"}"#, None),
            (r#"JSON {"cpu_utilization": 0.3"#, None),
            ("JSON []", None),
            ("TEXT cpu_utilization=NaN", None),
            ("TEXT cpu_utilization=inf", None),
            ("TEXT cpu_utilization", None),
            ("TEXT mem_utilization=0.9", None),
            ("BIN CQAAAAAAAOA/", None),
            ("", None),
        ] {
            assert_eq!(utilization(report.as_bytes()), expected, "{report}");
        }
    }

    #[test]
    fn a_report_is_taken_off_the_answer_in_all_its_forms() {
        let mut fields = HeaderMap::new();
        fields.insert("etag", "\"1\"".parse().unwrap());
        fields.append(REPORT, "TEXT cpu_utilization=0.5".parse().unwrap());
        fields.append(REPORT, "TEXT cpu_utilization=0.6".parse().unwrap());
        fields.append(BINARY, "CQAAAAAAAOA/".parse().unwrap());
        assert_eq!(take(&mut fields), Some(0.5));
        assert_eq!(fields.keys().collect::<Vec<_>>(), ["etag"]);
        assert_eq!(take(&mut fields), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived_and_what_is_read_is_a_share(
            bytes in any::<Vec<u8>>(),
            form in prop::sample::select(vec!["", "TEXT ", "JSON ", "BIN "]),
            text in "[a-z_{}\":=,. 0-9e+-]{0,60}",
            number in any::<f64>(),
        ) {
            let written = format!("{form}cpu_utilization={number},{text}");
            let json = format!("JSON {{\"cpu_utilization\": {number}, {text}");
            for report in [&bytes, &[form.as_bytes(), &bytes].concat(), written.as_bytes(), json.as_bytes()] {
                let share = utilization(report);
                prop_assert!(share.is_none_or(|share| (0.0..=1.0).contains(&share)), "{:?}", share);
            }
        }
    }
}
