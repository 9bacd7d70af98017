//! Expressions over what real exporters show.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::types::time::Clock;

/// node_exporter on two cores; `{N}` are idle seconds.
const NODE: &str = r#"# HELP node_cpu_guest_seconds_total Seconds the CPUs spent in guests (VMs) for each mode.
# TYPE node_cpu_guest_seconds_total counter
node_cpu_guest_seconds_total{cpu="0",mode="nice"} 0
node_cpu_guest_seconds_total{cpu="0",mode="user"} 0
# HELP node_cpu_seconds_total Seconds the CPUs spent in each mode.
# TYPE node_cpu_seconds_total counter
node_cpu_seconds_total{cpu="0",mode="idle"} {0}
node_cpu_seconds_total{cpu="0",mode="iowait"} 35.29
node_cpu_seconds_total{cpu="0",mode="system"} 1122.48
node_cpu_seconds_total{cpu="0",mode="user"} 4039.3
node_cpu_seconds_total{cpu="1",mode="idle"} {1}
node_cpu_seconds_total{cpu="1",mode="iowait"} 40.05
node_cpu_seconds_total{cpu="1",mode="system"} 1.08417e+03
node_cpu_seconds_total{cpu="1",mode="user"} 4122.22
# HELP node_load1 1m load average.
# TYPE node_load1 gauge
node_load1 0.97
# HELP node_memory_MemTotal_bytes Memory information field MemTotal_bytes.
# TYPE node_memory_MemTotal_bytes gauge
node_memory_MemTotal_bytes 8.200183808e+09
"#;

/// cAdvisor with two containers and the totals above them.
const CADVISOR: &str = r#"# HELP container_cpu_usage_seconds_total Cumulative cpu time consumed in seconds.
# TYPE container_cpu_usage_seconds_total counter
container_cpu_usage_seconds_total{container="",cpu="total",id="/kubepods",image="",name="",namespace="",pod=""} 99000.5 1700000000123
container_cpu_usage_seconds_total{container="api",cpu="cpu00",id="/kubepods/a",image="langgenius/dify-api:1.9.0",name="k8s_api",namespace="dify",pod="api-0"} {0} 1700000000123
container_cpu_usage_seconds_total{container="api",cpu="cpu01",id="/kubepods/a",image="langgenius/dify-api:1.9.0",name="k8s_api",namespace="dify",pod="api-0"} {1} 1700000000123
container_cpu_usage_seconds_total{container="worker",cpu="cpu00",id="/kubepods/b",image="langgenius/dify-api:1.9.0",name="k8s_worker",namespace="dify",pod="worker-0"} 55 1700000000123
"#;

/// An exporter over eBPF programs.
const EBPF: &str = r#"# TYPE ebpf_exporter_build_info gauge
ebpf_exporter_build_info{branch="HEAD",goversion="go1.22.1",version="2.4.2"} 1
# TYPE ebpf_exporter_tcp_rtt_ms gauge
ebpf_exporter_tcp_rtt_ms{direction="in",peer="edge"} {0}
ebpf_exporter_tcp_rtt_ms{direction="in",peer="redis"} 0.2
"#;

struct Scrapes {
    watched: Watched,
    at: Instant,
}

impl Scrapes {
    fn of(expression: &str) -> Self {
        Self {
            watched: Watched::new(expression.parse().unwrap()),
            at: Clock::System.now().monotonic,
        }
    }

    /// Sees `text` with these values, `seconds` after the one before.
    fn next(&mut self, text: &str, values: &[f64], seconds: u64) -> Result<f64, Absent> {
        self.at += Duration::from_secs(seconds);
        let mut text = text.to_owned();
        for (place, value) in values.iter().enumerate() {
            text = text.replace(&format!("{{{place}}}"), &value.to_string());
        }
        let mut lines = text::Lines::default();
        lines.feed(text.as_bytes(), |line| {
            Sample::read(line)
                .iter()
                .for_each(|sample| self.watched.see(sample));
        });
        self.watched.value(self.at)
    }
}

fn near(got: &Result<f64, Absent>, expected: f64) {
    assert!(
        got.as_ref().is_ok_and(|got| (got - expected).abs() < 1e-9),
        "{got:?} is not {expected}"
    );
}

#[test]
fn the_share_of_the_processors_is_found_with_node_exporter() {
    let mut scrapes = Scrapes::of(r#"1 - avg(rate(node_cpu_seconds_total{mode="idle"}))"#);
    assert_eq!(scrapes.next(NODE, &[1000.0, 2000.0], 5), Err(Absent::NotYet));
    // Of five seconds the one was idle for one and the other for half of one.
    near(&scrapes.next(NODE, &[1001.0, 2000.5], 5), 1.0 - 0.15);
    near(&scrapes.next(NODE, &[1011.0, 2010.5], 10), 0.0);
    // The machine started again: the counters begin at 0.
    near(&scrapes.next(NODE, &[2.0, 3.0], 5), 0.5);
}

#[test]
fn the_share_of_a_container_is_found_with_cadvisor() {
    let mut scrapes = Scrapes::of(r#"sum(rate(container_cpu_usage_seconds_total{container="api"})) / 2"#);
    assert_eq!(scrapes.next(CADVISOR, &[10.0, 20.0], 1), Err(Absent::NotYet));
    near(&scrapes.next(CADVISOR, &[14.75, 24.75], 5), 0.95);
}

#[test]
fn a_round_trip_in_milliseconds_is_found_with_an_ebpf_exporter() {
    let mut scrapes = Scrapes::of(r#"ebpf_exporter_tcp_rtt_ms{peer="edge"} / 1000"#);
    near(&scrapes.next(EBPF, &[87.5], 1), 0.0875);
    let mut several = Scrapes::of("ebpf_exporter_tcp_rtt_ms / 1000");
    assert_eq!(several.next(EBPF, &[87.5], 1), Err(Absent::Several(2)));
}

#[test]
fn every_function_and_sign_does_what_it_says() {
    let text = "m{a=\"1\"} 1\nm{a=\"2\"} 5\nm{a=\"2\",b=\"x\"} 9\nn 0\n";
    for (expression, expected) in [
        ("sum(m)", Ok(15.0)),
        ("avg(m)", Ok(5.0)),
        ("max(m)", Ok(9.0)),
        ("count(m)", Ok(3.0)),
        ("sum(m{a=\"2\"})", Ok(14.0)),
        ("sum(m{a=\"2\",b!=\"x\"})", Ok(5.0)),
        ("sum(m{a!=\"2\"})", Ok(1.0)),
        ("m{b=\"x\"}", Ok(9.0)),
        ("sum(2 * m + 1)", Ok(33.0)),
        ("max(10 - m)", Ok(9.0)),
        ("-(1 + 2) * 2 - -sum(m) / 5", Ok(-3.0)),
        ("1 - 2 - 3", Ok(-4.0)),
        ("n", Ok(0.0)),
        ("1 / n", Err(Absent::NotFinite)),
        ("sum(n) / sum(n)", Err(Absent::NotFinite)),
        ("sum(o)", Err(Absent::NoSeries("o".into()))),
        ("count(m{a=\"3\"})", Err(Absent::NoSeries("m".into()))),
        ("m", Err(Absent::Several(3))),
        ("rate(n)", Err(Absent::NotYet)),
        ("7", Ok(7.0)),
    ] {
        assert_eq!(
            Scrapes::of(expression).next(text, &[], 1),
            expected,
            "{expression}"
        );
    }
}

#[test]
fn a_series_that_appears_counts_from_its_second_scrape_and_a_broken_scrape_for_nothing() {
    let mut scrapes = Scrapes::of("sum(rate(c))");
    scrapes.next("c{x=\"1\"} 10\n", &[], 1).unwrap_err();
    near(&scrapes.next("c{x=\"1\"} 12\nc{x=\"2\"} 1000\n", &[], 1), 2.0);
    near(&scrapes.next("c{x=\"1\"} 12\nc{x=\"2\"} 1001\n", &[], 1), 1.0);
    scrapes.watched.see(&Sample::read("c{x=\"3\"} 5").unwrap());
    scrapes.watched.forget();
    near(&scrapes.next("c{x=\"2\"} 1004\n", &[], 1), 3.0);
    assert_eq!(scrapes.next("", &[], 1), Err(Absent::NoSeries("c".into())));
    assert_eq!(scrapes.next("c 1\n", &[], 1), Err(Absent::NotYet));
}

#[test]
fn more_series_than_are_kept_are_no_value() {
    let mut scrapes = Scrapes::of("count(c)");
    let text = |number: usize| {
        (0..number)
            .map(|n| format!("c{{x=\"{n}\"}} 1\n"))
            .collect::<String>()
    };
    assert_eq!(scrapes.next(&text(MOST_SERIES + 1), &[], 1), Err(Absent::TooMany));
    near(&scrapes.next(&text(MOST_SERIES), &[], 1), MOST_SERIES as f64);
}

proptest! {
    #[test]
    fn whatever_is_asked_and_shown_the_value_is_finite_or_absent(
        expression in prop::sample::select(vec![
            "a", "rate(a)", "sum(rate(a{b=\"c\"})) / max(a)", "1 - avg(rate(a))", "count(a{b!=\"c\"}) * -1e308", "",
        ]),
        lines in prop::collection::vec("a(\\{b=\"[c-d\\\\]?\",?\\})? [-+0-9.eINn]{1,4}", 0..8),
        any in any::<Vec<u8>>(),
    ) {
        let text = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
        read_anything(format!("{expression}\n{text}").as_bytes());
        read_anything(&[expression.as_bytes(), b"\n", &any].concat());
        read_anything(&any);
    }
}
