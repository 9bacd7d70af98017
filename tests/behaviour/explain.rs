//! What `explain` says of a request is what the request path then does with it, for every recorded exchange.

use std::sync::Arc;
use std::time::Duration;

use dify_edge::cli::explain::{Explainer, Explanation, Question};
use dify_edge::config::guard::{PostgresConfig, SourceConfig};
use dify_edge::config::load::{Sources, load};
use dify_edge::config::{AccessLog, Config, GuardConfig, GuardMode};
use dify_edge::types::time::Clock;
use dify_edge::wire::respond;
use parking_lot::Mutex;

use crate::captures::{clock_of, play, script};
use crate::support::captures::{self, Record};
use crate::support::client::{Answer, Client, post};
use crate::support::known::{insert, insert_key, uuid};
use crate::support::origin::{self, Action, Origin, Script};
use crate::support::postgres::Postgres;
use crate::support::{child, edge, eventually, metrics, within};

/// The request of a record as arguments would have it.
fn question(record: &Record) -> Question {
    let end = memchr::memmem::find(&record.request, b"\r\n\r\n").expect("a head");
    let head = String::from_utf8_lossy(&record.request[..end]).into_owned();
    let fields = head.lines().skip(1).map(|line| {
        let (name, value) = line.split_once(':').expect("a field");
        (name.to_owned(), value.trim().as_bytes().to_vec())
    });
    Question {
        method: record.method.clone(),
        target: record.target.clone(),
        fields: fields.collect(),
        body: record.request[end + 4..].to_vec().into(),
        ..Question::default()
    }
}

/// The member of `Cache-Status` taken apart.
#[derive(Debug, Default, PartialEq)]
struct Said<'a> {
    hit: bool,
    stored: bool,
    forward: Option<&'a str>,
    ttl: Option<u64>,
    key: Option<&'a str>,
    detail: Option<&'a str>,
}

fn said(answer: &Answer) -> Said<'_> {
    let mut said = Said::default();
    for part in answer.cache_status().split("; ").skip(1) {
        match part.split_once('=') {
            None if part == "hit" => said.hit = true,
            None if part == "stored" => said.stored = true,
            Some(("fwd", word)) => said.forward = Some(word),
            Some(("ttl", seconds)) => said.ttl = seconds.parse().ok(),
            Some(("key", key)) => said.key = Some(key.trim_matches('"')),
            Some(("detail", word)) => said.detail = Some(word),
            _ => {}
        }
    }
    said
}

/// What differs between what was told and the two answers to the same request.
fn disagreements(told: &Explanation, first: &Answer, second: &Answer) -> Vec<String> {
    let mut found = Vec::new();
    let mut expect = |what: &str, is: String, was_told: String| {
        if is != was_told {
            found.push(format!("{what}: told {was_told}, was {is}"));
        }
    };
    if let Some(refused) = &told.refused {
        expect("status", first.status.to_string(), refused.status.to_string());
        return found;
    }
    let plan = told.cache.as_ref().expect("a plan");
    let (one, two) = (said(first), said(second));
    let text = |word: Option<&str>| word.unwrap_or("nothing").to_owned();
    expect("hit at once", one.hit.to_string(), "false".into());
    expect("fwd", text(one.forward), plan.forward.into());
    let Some((key, lifetime)) = plan.key.as_ref().zip(told.lifetime.as_ref()) else {
        expect("plan", one.stored.to_string(), "false".into());
        for answer in [&one, &two] {
            expect("key", text(answer.key), "nothing".into());
            expect("detail", text(answer.detail), plan.detail.into());
            expect("second hit", answer.hit.to_string(), "false".into());
        }
        return found;
    };
    if plan.detail == "head" {
        expect("detail", text(one.detail), "head".into());
        expect("stored", one.stored.to_string(), "false".into());
        return found;
    }
    expect("key", text(one.key), key.prefix.clone());
    let kept = lifetime.kept.iter().find(|kept| kept.status == first.status);
    if one.stored {
        expect("detail", text(one.detail), plan.detail.into());
        let most = kept.map_or(0, |kept| kept.times.fresh_ms / 1000);
        let within = one.ttl.is_some_and(|ttl| ttl <= most);
        expect(
            "ttl",
            format!("{:?}, within {within}", one.ttl),
            format!("{:?}, within true", one.ttl),
        );
        let has = |name: &str| first.field(name).is_some();
        let conditional = plan.directives.iter().any(|said| said.starts_with("condition"))
            && (has("etag") || has("last-modified") || has("accept-ranges"));
        let hits = plan.forward != "request" && !conditional;
        expect("second hit", two.hit.to_string(), hits.to_string());
        if hits {
            expect("second key", text(two.key), key.prefix.clone());
            expect("second detail", text(two.detail), plan.detail.into());
        }
    } else {
        let reason = one.detail.unwrap_or_default();
        let cookie = first.field("set-cookie").is_some();
        let told_so = match kept {
            None => reason == "status",
            Some(_) if cookie => reason == "set-cookie",
            Some(_) => lifetime
                .answers
                .iter()
                .any(|effect| effect.not_kept == Some(reason)),
        };
        expect(
            "reason",
            format!("{reason}, told {told_so}"),
            format!("{reason}, told true"),
        );
        expect("second hit", two.hit.to_string(), "false".into());
    }
    found
}

/// Compares for every record of a variant; returns how many were looked up, passed, written and refused.
async fn compare(variant: &str) -> [usize; 4] {
    let current: Arc<Mutex<Option<&'static Record>>> = Arc::default();
    let playing = current.clone();
    let origin = Origin::start(move |_| {
        let record = playing.lock().expect("a record is set");
        async move { script(record) }
    })
    .await;
    let config = edge::config(&[origin.address]);
    let explainer = Explainer::new(&config, |_| "test".into()).expect("an explainer");
    let (mut found, mut counts) = (Vec::new(), [0; 4]);
    for record in captures::all().iter().filter(|record| record.variant == variant) {
        *current.lock() = Some(record);
        let clock = clock_of(record);
        let told = explainer.explain(&question(record), clock.now());
        let edge = edge::start_at(&[origin.address], clock, |_| {}).await;
        let mut answers = Vec::new();
        for _ in 0..2 {
            let left = origin.counts().left;
            answers.push(play(&mut edge.client().await, record).await);
            if record.response.framing == "aborted-by-client" {
                origin
                    .until("the client to leave", |counts| counts.left > left)
                    .await;
            }
        }
        let differences = match &told {
            Ok(told) => {
                let plan = told.cache.as_ref().map(|plan| plan.plan);
                counts[["look_up", "pass", "write"]
                    .iter()
                    .position(|name| plan == Some(name))
                    .unwrap_or(3)] += 1;
                let mut differences = disagreements(told, &answers[0], &answers[1]);
                let class = told
                    .route
                    .as_ref()
                    .map(|route| format!("class=\"{}\"", route.class));
                let counted = eventually_counted(edge.admin, &class.unwrap_or_default()).await;
                if counted < 2.0 {
                    differences.push(format!("{counted} requests of the class that was told"));
                }
                differences
            }
            Err(refused) => {
                counts[3] += 1;
                let status = respond::status(refused.kind).as_u16();
                let agrees = answers.iter().all(|answer| answer.status == status);
                (!agrees)
                    .then(|| format!("told {status} ({}), was {}", refused.detail, answers[0].status))
                    .into_iter()
                    .collect()
            }
        };
        let line = format!("{} {} ({})", record.method, record.target, record.title());
        found.extend(differences.into_iter().map(|text| format!("{line}: {text}")));
        within("the proxy to end", edge.drain(Duration::ZERO)).await;
    }
    assert!(
        found.is_empty(),
        "{} disagreements:\n{}",
        found.len(),
        found.join("\n")
    );
    counts
}

/// Requests counted under these labels, once both are.
async fn eventually_counted(admin: std::net::SocketAddr, labels: &str) -> f64 {
    eventually("two requests to be counted", || async move {
        let all = metrics::sum(admin, "dify_edge_requests_total", &[]).await;
        if all < 2.0 {
            return None;
        }
        Some(metrics::sum(admin, "dify_edge_requests_total", &[labels]).await)
    })
    .await
}

#[tokio::test]
async fn explain_agrees_with_the_request_path_for_every_exchange_of_an_upstream_like_dify() {
    let [look_up, pass, write, refused] = compare("upstream_like").await;
    assert!(
        look_up > 100 && pass > 50 && write > 50 && refused == 2,
        "{look_up} {pass} {write} {refused}"
    );
}

#[tokio::test]
async fn explain_agrees_with_the_request_path_for_every_exchange_of_the_fork() {
    let [look_up, pass, write, refused] = compare("fork").await;
    assert!(
        look_up > 100 && pass > 50 && write > 50 && refused == 2,
        "{look_up} {pass} {write} {refused}"
    );
}

#[tokio::test]
async fn explain_agrees_with_the_request_path_for_every_exchange_with_compression() {
    let [look_up, ..] = compare("compression_on").await;
    assert!(look_up > 10, "{look_up}");
}

#[tokio::test]
async fn the_access_log_has_the_route_the_class_and_the_caller_that_explain_tells() {
    let origin = Origin::start(|_| async { origin::json(200, "{}") }).await;
    let config = edge::config(&[origin.address]);
    let explainer = Explainer::new(&config, |_| String::new()).expect("an explainer");
    let served = child::serve(config.clone(), AccessLog::All).await;
    let mut told = Vec::new();
    for record in captures::all()
        .iter()
        .filter(|record| record.variant == "upstream_like")
    {
        let Ok(explanation) = explainer.explain(&question(record), Clock::System.now()) else {
            continue;
        };
        if record.values("upgrade").is_empty() && record.values("expect").is_empty() {
            let mut client = Client::connect(served.address).await;
            client.exchange(&record.request).await;
            told.push((record, explanation));
        }
    }
    served.signal("TERM");
    let (_, log) = served.end().await;
    let lines = log
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let lines: Vec<_> = lines.filter(|line| line["target"] == "access").collect();
    assert_eq!(lines.len(), told.len());
    assert!(lines.len() > 300);
    for (line, (record, told)) in lines.iter().zip(&told) {
        let (route, caller) = (told.route.as_ref().unwrap(), told.principal.as_ref().unwrap());
        let prefix = caller.digest.as_ref().map(|digest| &digest[..8]);
        assert_eq!(
            (
                line["route"].as_str(),
                line["class"].as_str(),
                line["principal"].as_str()
            ),
            (Some(route.template), Some(route.class), prefix),
            "{} {}: {line}",
            record.method,
            record.target
        );
    }
}

/// Every value in a record's request that may be a credential.
fn secrets(record: &Record) -> Vec<String> {
    let mut all = Vec::new();
    for name in ["authorization", "x-app-passport", "x-csrf-token", "x-api-key"] {
        let values = record.values(name);
        all.extend(
            values
                .iter()
                .flat_map(|value| value.split(' '))
                .map(str::to_owned),
        );
    }
    for cookie in record.values("cookie").iter().flat_map(|field| field.split(';')) {
        all.push(
            cookie
                .split_once('=')
                .map_or(cookie, |(_, value)| value)
                .trim()
                .to_owned(),
        );
    }
    // What stands in the target is told because it was asked for.
    all.retain(|value| value.len() > 6 && !record.target.contains(value.as_str()));
    all
}

#[test]
fn no_credential_of_any_recorded_request_is_repeated() {
    let config = edge::config(&["127.0.0.1:1".parse().unwrap()]);
    let explainer = Explainer::new(&config, |_| String::new()).expect("an explainer");
    let mut looked = 0;
    for record in captures::all() {
        let secrets = secrets(record);
        let said = match explainer.explain(&question(record), Clock::System.now()) {
            Ok(told) => serde_json::to_string(&told).unwrap(),
            Err(refused) => refused.detail.into_owned(),
        };
        for secret in &secrets {
            assert!(!said.contains(secret.as_str()), "{}: {said}", record.title());
        }
        looked += secrets.len();
    }
    assert!(looked > 500, "{looked}");
}

/// A configuration as a file.
struct File(std::path::PathBuf);

impl File {
    fn of(config: &Config, name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("dify-edge-{name}-{}.yaml", std::process::id()));
        // YAML reads JSON.
        std::fs::write(&path, serde_json::to_string(config).expect("a configuration")).expect("a file");
        Self(path)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// `explain`, called with these arguments.
fn call(arguments: &[&str]) -> (i32, String, String) {
    child::call(&[&["explain"], arguments].concat(), &[])
}

#[test]
fn the_program_prints_what_the_library_says() {
    let file = File::of(&edge::config(&["127.0.0.1:1".parse().unwrap()]), "explain");
    let path = file.0.to_str().expect("UTF-8");
    let sources = Sources {
        file: Some(file.0.clone()),
        ..Sources::default()
    };
    let loaded = load(&sources).expect("a valid file");
    let explainer = Explainer::new(&loaded.config, |key| loaded.origin_of(key)).expect("an explainer");
    for name in ["v1_info__echo_chat", "abort_llm_stream", "web_site"] {
        let Some(record) = captures::all()
            .iter()
            .find(|record| record.name.starts_with(name))
        else {
            panic!("no record begins with {name}");
        };
        let question = question(record);
        let told = explainer
            .explain(&question, Clock::System.now())
            .expect("a request");
        let fields: Vec<_> = question
            .fields
            .iter()
            .map(|(name, value)| format!("-H{name}: {}", String::from_utf8_lossy(value)))
            .collect();
        let body = String::from_utf8_lossy(&question.body).into_owned();
        let mut arguments = vec![record.method.as_str(), &record.target, "--json", "--config", path];
        arguments.extend(fields.iter().map(String::as_str));
        if !body.is_empty() {
            arguments.extend(["--body", &body]);
        }
        let (code, printed, complained) = call(&arguments);
        assert_eq!((code, complained.as_str()), (0, ""), "{name}");
        let mut printed: serde_json::Value = serde_json::from_str(&printed).expect("JSON");
        let mut expected = serde_json::to_value(&told).expect("JSON");
        // Another moment: a second may lie between them.
        for value in [&mut printed, &mut expected] {
            value["lifetime"]["answers"].take();
        }
        assert_eq!(printed, expected, "{name}");
    }
    let (code, printed, complained) = call(&["GET", "/v1/info", "--config", path]);
    assert!(code == 0 && printed.contains("plan            pass"), "{printed}");
    assert!(complained.contains("note: no host is named"), "{complained}");
    let (code, printed, complained) = call(&["TRACE", "http://a/", "--config", path]);
    assert_eq!((code, printed.as_str()), (2, ""));
    assert!(complained.contains("TRACE"), "{complained}");
}

/// An answer like the administrative listener's to `Connection: close`.
fn closing(status: u16, body: &str) -> Script {
    let mut script = origin::json(status, body);
    script.push(Action::Close);
    script
}

#[tokio::test]
async fn live_shows_what_the_running_proxy_has_stored() {
    const ENTRY: &str = r#"[{"key":"00","state":"fresh","age":3,"ttl":57,"body_bytes":9}]"#;
    let admin = Origin::start(|seen| async move {
        match seen.target.split_once("?key=") {
            Some(("/cache/entry", key)) if key.len() == 32 => closing(200, ENTRY),
            _ => closing(500, "{}"),
        }
    })
    .await;
    let empty = Origin::start(|_| async { closing(404, "{}") }).await;
    let ask = |admin: String, target: &'static str| {
        tokio::task::spawn_blocking(move || {
            let fields = [
                "-HAuthorization: Bearer app-1",
                "--upstream",
                "http://127.0.0.1:1",
                "--admin",
            ];
            let mut arguments = vec!["GET", target, "--live"];
            arguments.extend(fields);
            arguments.push(&admin);
            call(&arguments)
        })
    };
    let (code, printed, _) = ask(admin.address.to_string(), "http://a/v1/info").await.unwrap();
    assert_eq!(code, 0);
    for words in [
        "stored          yes",
        "state           fresh",
        "ttl             57",
    ] {
        assert!(printed.contains(words), "{words}:\n{printed}");
    }
    let (code, printed, _) = ask(empty.address.to_string(), "http://a/v1/info").await.unwrap();
    assert!(code == 0 && printed.contains("stored          no"), "{printed}");
    let (code, _, complained) = ask(empty.address.to_string(), "http://a/api/login/status")
        .await
        .unwrap();
    assert!(
        code == 0 && complained.contains("nobody was asked"),
        "{complained}"
    );
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let (code, _, complained) = ask(closed.to_string(), "http://a/v1/info").await.unwrap();
    assert_eq!(code, 1);
    assert!(
        complained.contains("no running proxy answers there"),
        "{complained}"
    );
}

#[tokio::test]
async fn a_long_body_is_refused_as_explained() {
    let origin = Origin::start(|_| async { origin::json(200, "{}") }).await;
    let small = |config: &mut Config| config.limits.body.generation.0 = 4;
    let mut config = edge::config(&[origin.address]);
    small(&mut config);
    let explainer = Explainer::new(&config, |_| String::new()).expect("an explainer");
    let request = post("/v1/chat-messages", &[], "{\"user\":1}");
    let edge = edge::start(&[origin.address], small).await;
    let answer = edge.ask(&request).await;
    let question = Question {
        method: "POST".into(),
        target: "/v1/chat-messages".into(),
        fields: vec![
            ("Host".into(), b"dify.test".to_vec()),
            ("Content-Length".into(), b"10".to_vec()),
        ],
        body: "{\"user\":1}".into(),
        ..Question::default()
    };
    let told = explainer
        .explain(&question, Clock::System.now())
        .expect("a request")
        .refused
        .expect("413");
    assert_eq!((told.status, told.class), (answer.status, Some("generation")));
    assert!(answer.text().contains(&told.why), "{}", answer.text());
}

#[tokio::test]
async fn the_guards_verdict_is_told_by_what_the_database_has_now() {
    let mut server = Postgres::start().await;
    insert_key(&server, "dataset-one").await;
    insert(&server, "datasets", 1, "1 hour").await;
    let mut config = edge::config(&["127.0.0.1:1".parse().unwrap()]);
    config.guard = Some(GuardConfig {
        mode: GuardMode::Enforce,
        sources: vec![SourceConfig::Postgres(PostgresConfig::default())],
        database_url: Some(server.owner_url()),
        ..GuardConfig::default()
    });
    let file = Arc::new(File::of(&config, "explain-guard"));
    let ask = |arguments: &'static [&'static str], number: u32, key: &'static str| {
        let file = file.clone();
        let told = tokio::task::spawn_blocking(move || {
            let (id, _) = uuid(number);
            let target = format!("http://a/v1/datasets/{id}");
            let field = format!("-HAuthorization: Bearer {key}");
            let path = file.0.to_str().expect("UTF-8");
            let first = ["GET", &target, &field, "--config", path];
            call(&[&first, arguments].concat())
        });
        async {
            let (code, printed, _) = told.await.expect("an end");
            assert_eq!(code, 0, "{printed}");
            printed
        }
    };
    let guard = async |number, key| {
        let printed = ask(&["--json"], number, key).await;
        let mut told: serde_json::Value = serde_json::from_str(&printed).expect("JSON");
        told["guard"].take()
    };
    for (number, key, found, verdict, status) in [
        (1, "dataset-one", ["exists", "exists"], "passes", None),
        (2, "dataset-one", ["missing", "exists"], "refused", Some(404)),
        (1, "dataset-two", ["exists", "missing"], "refused", Some(401)),
    ] {
        let told = guard(number, key).await;
        let is: Vec<_> = (0..2).map(|place| told["asks"][place]["found"].clone()).collect();
        assert_eq!(is, found, "{told}");
        assert_eq!(told["verdict"], verdict, "{told}");
        assert_eq!(told["answer"]["status"].as_u64(), status, "{told}");
    }
    let printed = ask(&[], 2, "dataset-one").await;
    for words in [
        "missing",
        "verdict         would be answered 404 {\"code\": \"not_found\", \"message\": \"Dataset not found.\"",
        "provided that   all of the kind dataset has been read",
    ] {
        assert!(printed.contains(words), "{words}:\n{printed}");
    }
    assert!(!printed.contains("dataset-one"), "{printed}");
    server.execute("ALTER TABLE api_tokens DROP COLUMN token").await;
    let told = guard(2, "dataset-one").await;
    let why = told["asks"][1]["why"].as_str().unwrap_or_default();
    assert!(why.contains("api_tokens.token: no such column"), "{told}");
    assert_eq!(told["verdict"], "refused", "the data set is looked for first");
    server.stop();
    let silent = guard(2, "dataset-one").await;
    server.go_on();
    server.kill();
    let dead = guard(2, "dataset-one").await;
    for told in [silent, dead] {
        let why = told["asks"][0]["why"].as_str().unwrap_or_default();
        assert!(why.contains("no answer from the database"), "{told}");
        assert_eq!(told["verdict"], "passes_budgeted", "{told}");
    }
}
