//! Sequences of requests: made up, and of the shape of the captured traffic.

use std::collections::HashMap;
use std::path::Path;

use dify_edge::classify::Classifier;
use dify_edge::config::{Config, ReplicaConfig, UpstreamConfig};
use dify_edge::types::ids::Principal;
use dify_edge::types::request::CacheClass;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use serde_json::Value;

use crate::policies::Weighing;

/// Different answers of a made-up trace.
pub(crate) const ANSWERS: usize = 50_000;
/// Requests of a trace.
const REQUESTS: usize = 500_000;
/// What an entry takes beside its body, about.
const ENTRY: u64 = 2_000;
/// Apps of the trace of captured shape, and the users of each.
const APPS: usize = 2_000;
const USERS: usize = 200;

/// Requests for answers by number.
pub(crate) struct Trace {
    pub(crate) name: String,
    pub(crate) requests: Vec<u32>,
    /// Bytes of each answer.
    pub(crate) sizes: Vec<u64>,
    pub(crate) weighing: Weighing,
}

impl Trace {
    fn of_one_size(name: &str, requests: Vec<u32>) -> Self {
        let answers = requests.iter().max().map_or(0, |most| *most as usize + 1);
        Self {
            name: name.into(),
            requests,
            sizes: vec![1; answers],
            weighing: Weighing::One,
        }
    }

    /// What an answer takes of the capacity.
    pub(crate) fn weight(&self, answer: u32) -> u64 {
        self.sizes[answer as usize]
    }

    /// What all answers that are asked for take together.
    pub(crate) fn footprint(&self) -> u64 {
        let mut asked = vec![false; self.sizes.len()];
        self.requests
            .iter()
            .for_each(|answer| asked[*answer as usize] = true);
        let sizes = asked.iter().zip(&self.sizes);
        sizes.filter_map(|(asked, size)| asked.then_some(size)).sum()
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }

    /// From 0 to 1.
    fn part(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.part() * bound as f64) as usize
    }
}

/// Ranks of which the nth is asked for in proportion to `1 / n^exponent`.
struct Zipf(Vec<f64>);

impl Zipf {
    fn new(ranks: usize, exponent: f64) -> Self {
        let mut sum = 0.0;
        let sums = (1..=ranks).map(|rank| {
            sum += (rank as f64).powf(-exponent);
            sum
        });
        Self(sums.collect())
    }

    fn draw(&self, random: &mut Random) -> usize {
        let all = self.0.last().copied().unwrap_or_default();
        let drawn = random.part() * all;
        self.0.partition_point(|sum| *sum < drawn)
    }
}

fn zipf(exponent: f64, seed: u64) -> Vec<u32> {
    let (mut random, zipf) = (Random(seed), Zipf::new(ANSWERS, exponent));
    (0..REQUESTS).map(|_| zipf.draw(&mut random) as u32).collect()
}

/// Zipf, and after every 50,000 requests a scan over 10,000 answers that nobody asked for before.
fn zipf_with_scans() -> Vec<u32> {
    let mut fresh = ANSWERS as u32;
    let mut mixed = Vec::new();
    for part in zipf(0.8, 3).chunks(50_000) {
        mixed.extend_from_slice(part);
        mixed.extend(fresh..fresh + 10_000);
        fresh += 10_000;
    }
    mixed
}

/// The traces whose answers all take the same.
pub(crate) fn of_one_size() -> [Trace; 4] {
    [
        Trace::of_one_size("Zipf 0.8", zipf(0.8, 1)),
        Trace::of_one_size("Zipf 1.0", zipf(1.0, 2)),
        Trace::of_one_size(
            "scan, twice",
            (0..ANSWERS as u32).chain(0..ANSWERS as u32).collect(),
        ),
        Trace::of_one_size("Zipf 0.8 with scans", zipf_with_scans()),
    ]
}

/// Round and round over a tenth more than fits into `capacity`.
pub(crate) fn looping(capacity: u64) -> Trace {
    let round = (capacity + capacity / 10) as u32;
    Trace::of_one_size("loop", (0..round).cycle().take(REQUESTS).collect())
}

/// The traces whose answers differ in size.
pub(crate) fn of_many_sizes() -> [Trace; 2] {
    let mut random = Random(4);
    // From 256 bytes to 256 KiB, each power of two as often as the next.
    let sizes = (0..ANSWERS).map(|_| ENTRY + (256.0 * 2_f64.powf(random.part() * 10.0)) as u64);
    let sized = Trace {
        name: "Zipf 0.8, sizes".into(),
        requests: zipf(0.8, 5),
        sizes: sizes.collect(),
        weighing: Weighing::Bytes,
    };
    [sized, captured()]
}

/// A captured read that is kept.
struct Read {
    bytes: u64,
    whose: Whose,
}

/// Who gets an answer of his own.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    Everyones,
    Apps,
    Users,
}

/// The captured reads, each as often as it was captured, for apps and users by Zipf.
fn captured() -> Trace {
    let reads = captured_reads();
    let (apps, users) = (Zipf::new(APPS, 1.0), Zipf::new(USERS, 0.8));
    let mut random = Random(6);
    let (mut numbers, mut sizes) = (HashMap::new(), Vec::new());
    let requests = (0..REQUESTS).map(|_| {
        let number = random.below(reads.len());
        let (read, app, user) = (&reads[number], apps.draw(&mut random), users.draw(&mut random));
        let (app, user) = match read.whose {
            Whose::Everyones => (0, 0),
            Whose::Apps => (app, 0),
            Whose::Users => (app, user),
        };
        *numbers.entry((number, app, user)).or_insert_with(|| {
            sizes.push(ENTRY + read.bytes);
            sizes.len() as u32 - 1
        })
    });
    Trace {
        name: "captured shape".into(),
        requests: requests.collect(),
        sizes,
        weighing: Weighing::Bytes,
    }
}

fn captured_reads() -> Vec<Read> {
    let replica = ReplicaConfig {
        url: "http://127.0.0.1:5001".into(),
        ..ReplicaConfig::default()
    };
    let upstream = UpstreamConfig {
        replicas: vec![replica],
        ..UpstreamConfig::default()
    };
    let mut config = Config::default();
    config.upstreams.insert("api".into(), upstream);
    let classifier = Classifier::new(&config).expect("a classifier");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/captures.jsonl");
    let text = std::fs::read_to_string(file).expect("the captured exchanges");
    let lines = text.lines().map(|line| serde_json::from_str(line).expect("JSON"));
    let reads: Vec<Read> = lines.filter_map(|line| read(&classifier, &line)).collect();
    assert!(reads.len() > 50, "{} reads", reads.len());
    reads
}

/// The exchange of this line, when its answer is kept.
fn read(classifier: &Classifier, line: &Value) -> Option<Read> {
    let (request, response) = (&line["request"], &line["response"]);
    if request["method"] != "GET" || response["status"] != 200 {
        return None;
    }
    let mut fields = HeaderMap::new();
    for field in request["headers"].as_array()? {
        let name: HeaderName = field[0].as_str()?.parse().ok()?;
        fields.append(name, HeaderValue::from_str(field[1].as_str()?).ok()?);
    }
    let uri: Uri = request["path"].as_str()?.parse().ok()?;
    let decision = classifier
        .decide(&Method::GET, uri.path(), uri.query(), &fields)
        .ok()?;
    let principal = decision.principal?;
    if decision.cache == CacheClass::Never {
        return None;
    }
    let body = &response["body"];
    let text = body["text"].as_str().map(str::len);
    let bytes = text.or_else(|| Some(body["base64"].as_str()?.len() / 4 * 3))?;
    // An API key is an app's; the console and the web app know who asks.
    let credential = line["auth"].as_str()?.to_lowercase();
    let names_user = uri.query().is_some_and(|query| query.contains("user="));
    let whose = if principal == Principal::PUBLIC {
        Whose::Everyones
    } else if names_user || credential.contains("cookie") || credential.contains("passport") {
        Whose::Users
    } else {
        Whose::Apps
    };
    let bytes = bytes as u64;
    Some(Read { bytes, whose })
}
