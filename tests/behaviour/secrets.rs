//! No credential of any recorded exchange shows up in the log, the metrics or the configuration that is shown.

use std::collections::BTreeSet;
use std::sync::Arc;

use dify_edge::config::AccessLog;
use parking_lot::Mutex;

use crate::support::captures::{self, Record};
use crate::support::client::Client;
use crate::support::origin::{Action, Origin, Script};
use crate::support::wire::{Fields, values};
use crate::support::{child, edge, eventually, metrics};

/// A password in the configuration, which is shown without it.
const REDIS_PASSWORD: &str = "hunter2-in-the-configuration";

/// Shorter ones would be found by chance.
const SHORTEST: usize = 6;

/// Fields whose whole value is a secret.
const SECRET_FIELDS: [&str; 4] = [
    "x-app-passport",
    "x-csrf-token",
    "x-login-config-token",
    "proxy-authorization",
];

/// Keys in JSON whose text is a secret.
const SECRET_KEYS: [&str; 7] = [
    "\"password\":",
    "\"new_password\":",
    "\"password_confirm\":",
    "\"access_token\":",
    "\"refresh_token\":",
    "\"csrf_token\":",
    "\"token\":",
];

fn from_fields(fields: &Fields, found: &mut BTreeSet<String>) {
    for value in values(fields, "authorization") {
        found.extend(value.split(' ').map(str::to_owned));
    }
    for cookies in values(fields, "cookie") {
        found.extend(
            cookies
                .split(';')
                .filter_map(|cookie| Some(cookie.split_once('=')?.1.trim().to_owned())),
        );
    }
    for cookie in values(fields, "set-cookie") {
        let pair = cookie.split(';').next().unwrap_or_default();
        found.extend(pair.split_once('=').map(|(_, value)| value.to_owned()));
    }
    for name in SECRET_FIELDS {
        found.extend(values(fields, name).into_iter().map(str::to_owned));
    }
}

fn from_text(text: &str, found: &mut BTreeSet<String>) {
    let ends = |c: char| !(c.is_ascii_alphanumeric() || "-_.%+/=".contains(c));
    for (at, mark) in text.match_indices("sign=").chain(text.match_indices("nonce=")) {
        let rest = &text[at + mark.len()..];
        found.insert(rest[..rest.find(ends).unwrap_or(rest.len())].to_owned());
    }
    for key in SECRET_KEYS {
        for (at, _) in text.match_indices(key) {
            let rest = text[at + key.len()..].trim_start();
            if let Some(value) = rest.strip_prefix('"') {
                found.insert(value[..value.find('"').unwrap_or(0)].to_owned());
            }
        }
    }
}

fn secrets() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for record in captures::all() {
        from_fields(&record.fields, &mut found);
        from_fields(&record.response.fields, &mut found);
        from_text(&String::from_utf8_lossy(&record.request), &mut found);
        from_text(&String::from_utf8_lossy(&record.response.body), &mut found);
    }
    found.retain(|secret| secret.len() >= SHORTEST && secret != "Bearer" && secret != "bearer");
    found.insert(REDIS_PASSWORD.into());
    found
}

/// The answer of a record with a length, whatever its framing was.
fn script(record: &Record) -> Script {
    let fields: Vec<(&str, &str)> = record
        .response
        .fields
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .filter(|(name, _)| {
            !matches!(
                *name,
                "Content-Length" | "Transfer-Encoding" | "Connection" | "Server"
            )
        })
        .collect();
    if record.method == "HEAD" || matches!(record.response.status, 204 | 304) {
        let head = format!(
            "HTTP/1.1 {} Empty\r\nX-Version: 1\r\n\r\n",
            record.response.status
        );
        return vec![Action::Send(head.into_bytes())];
    }
    crate::support::origin::answer(record.response.status, &fields, &record.response.body)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_recorded_credential_is_in_the_log_the_metrics_or_the_configuration() {
    let current: Arc<Mutex<Option<&'static Record>>> = Arc::default();
    let playing = current.clone();
    let origin = Origin::start(move |_| {
        let record = playing.lock().expect("a record is set");
        async move { script(record) }
    })
    .await;
    let mut config = edge::config(&[origin.address]);
    config.log.level = "info,dify_edge=trace".into();
    config.cache.redis.url = Some(format!("redis://:{REDIS_PASSWORD}@127.0.0.1:6379/2"));
    let served = child::serve(config, AccessLog::All).await;
    let mut asked = 0;
    for record in captures::all() {
        *current.lock() = Some(record);
        for _ in 0..2 {
            Client::connect(served.address)
                .await
                .exchange(&record.request)
                .await;
            asked += 1;
        }
    }
    // A request that fails is logged, too.
    drop(origin);
    for record in captures::all()
        .iter()
        .filter(|record| record.variant == "upstream_like")
        .take(100)
    {
        Client::connect(served.address)
            .await
            .exchange(&record.request)
            .await;
        asked += 1;
    }
    let shown = metrics::ask(served.admin, "/config").await;
    assert_eq!(shown.status, 200);
    assert!(shown.text().contains("127.0.0.1"), "{}", shown.text());
    let counted = metrics::ask(served.admin, "/metrics").await.text();
    let total = metrics::sum_in(&counted, "dify_edge_requests_total", &[]);
    // conn_te_and_cl and conn_no_host are refused before they are requests.
    assert!(
        total >= f64::from(asked - 8),
        "{total} of {asked} requests are counted"
    );
    let lines = || {
        served
            .log()
            .lines()
            .filter(|line| line.contains("\"target\":\"access\""))
            .count()
    };
    eventually("the lines of the log", || async {
        (lines() as f64 >= f64::from(asked - 8)).then_some(())
    })
    .await;
    served.signal("TERM");
    let log = served.end().await.1;
    let secrets = secrets();
    assert!(secrets.len() > 60, "{} secrets", secrets.len());
    for (place, text) in [("log", &log), ("metrics", &counted), ("config", &shown.text())] {
        for secret in &secrets {
            assert!(!text.contains(secret.as_str()), "{secret} is in the {place}");
        }
    }
}
