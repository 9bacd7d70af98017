//! The commands that ask a running proxy, run as programs: `purge`, `stats`, and how all of them end.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use dify_edge::config::Config;
use serde_json::Value;

use crate::admin_purge::{READS, TOKEN, key_of, prime, read, selections, start};
use crate::support::client::get;
use crate::support::edge::{self, Running};
use crate::support::fleet::Fleet;
use crate::support::origin::{self, Action, Origin};
use crate::support::redis::Redis;
use crate::support::{child, within};

const VARIABLE: &str = "DIFY_EDGE_ADMIN_TOKEN";

/// The program with these arguments and `--admin ADDR`; its exit code and what it said.
pub async fn run(
    admin: impl ToString,
    arguments: &[&str],
    environment: &[(&str, &str)],
) -> (i32, String, String) {
    let owned = |text: &&str| (*text).to_owned();
    let mut arguments: Vec<String> = arguments.iter().map(owned).collect();
    arguments.extend(["--admin".to_owned(), admin.to_string()]);
    let environment: Vec<_> = environment
        .iter()
        .map(|(name, value)| (owned(name), owned(value)))
        .collect();
    // The proxy runs on this thread.
    let run = tokio::task::spawn_blocking(move || {
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let environment: Vec<_> = environment
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_str()))
            .collect();
        child::call(&arguments, &environment)
    });
    run.await.expect("a call")
}

async fn purge(edge: &Running, arguments: &[&str]) -> (i32, String, String) {
    run(
        edge.admin,
        &[&["purge"], arguments].concat(),
        &[(VARIABLE, TOKEN)],
    )
    .await
}

#[tokio::test]
async fn purge_ends_what_its_options_select() {
    let (_origin, edge) = start().await;
    let key = prime(&edge).await;
    for (body, meant) in selections(&key) {
        let (name, value) = body
            .as_object()
            .and_then(|body| body.iter().next())
            .expect("a member");
        let option = format!("--{name}");
        for soft in [false, true] {
            prime(&edge).await;
            let mut arguments = vec![option.as_str()];
            arguments.extend(value.as_str());
            arguments.extend(soft.then_some("--soft"));
            let what = value
                .as_str()
                .map_or_else(|| name.clone(), |value| format!("{name} {value}"));
            let answers = if meant.len() == 1 { "answer" } else { "answers" };
            let done = if soft { "marked stale" } else { "removed" };
            let said = format!(
                "{} stored {answers} {done} by this instance ({what}).\n",
                meant.len()
            );
            assert_eq!(
                purge(&edge, &arguments).await,
                (0, said, String::new()),
                "{arguments:?}"
            );
            for (place, what) in READS.iter().enumerate() {
                let answer = read(&edge, *what).await;
                let status = answer.cache_status();
                let touched = !answer.is_hit() || status.contains("; detail=stale-while-revalidate");
                assert_eq!(touched, meant.contains(&place), "{arguments:?} {what:?} {status}");
                assert!(!soft || answer.is_hit(), "{arguments:?} {what:?} {status}");
            }
        }
    }
    let (code, printed, _) = purge(&edge, &["--key-prefix", &key, "--json"]).await;
    let printed: Value = serde_json::from_str(&printed).expect("JSON");
    assert_eq!(
        (code, &printed["entries"], &printed["soft"]),
        (0, &1.into(), &false.into())
    );
}

#[tokio::test]
async fn purge_takes_its_token_from_a_flag_a_file_or_the_environment() {
    let (_origin, edge) = start().await;
    let file = std::env::temp_dir().join(format!("dify-edge-purge-token-{}", std::process::id()));
    std::fs::write(&file, format!("{TOKEN}\n")).expect("a file");
    let path = file.to_str().expect("UTF-8");
    let other = "another-token-of-somebody";
    for (options, variable, expected) in [
        (&["--token", TOKEN][..], "", 0),
        (&["--token-file", path], "", 0),
        (&[], TOKEN, 0),
        // What is nearer counts.
        (&["--token", TOKEN], other, 0),
        (&["--token-file", path], other, 0),
        (&["--token", other], TOKEN, 1),
        (&[], "", 1),
        (&["--token-file", "/nowhere/token"], TOKEN, 2),
        (&["--token", "a-token\r\nX-Injected: 1"], "", 2),
        (&["--token", TOKEN, "--token-file", path], "", 2),
    ] {
        let arguments = [&["purge", "--all"], options].concat();
        let (code, printed, complained) = run(edge.admin, &arguments, &[(VARIABLE, variable)]).await;
        assert_eq!(code, expected, "{options:?} {variable}: {complained}");
        assert_eq!(printed.is_empty(), code != 0, "{printed}");
        if code == 1 {
            let hint = "error: give the token with --token, --token-file or DIFY_EDGE_ADMIN_TOKEN\n";
            assert!(complained.ends_with(hint), "{complained}");
        }
        for secret in [TOKEN, other, "Injected"] {
            assert!(
                !complained.contains(secret) && !printed.contains(secret),
                "{complained}"
            );
        }
    }
    std::fs::remove_file(&file).expect("the file");
}

#[tokio::test]
async fn purge_says_what_was_wrong_and_whose_fault_it_was() {
    let (_origin, edge) = start().await;
    let refused = |code: i32, words: &'static str| (code, words);
    for (arguments, (code, words)) in [
        (
            &["--route", "/v1/inof"][..],
            refused(2, "route: no route has the template `/v1/inof`; near: /v1/info"),
        ),
        (&["--key", "00"], refused(2, "key: must be 8 to 32")),
        (
            &["--tag", "dataset:1"],
            refused(2, "tag: no tag is called `dataset`"),
        ),
        (&["--tag", "datasets", "--all"], refused(2, "cannot be used with")),
        (&["--soft"], refused(2, "required arguments were not provided")),
    ] {
        let (is, printed, complained) = purge(&edge, arguments).await;
        assert_eq!((is, printed.as_str()), (code, ""), "{arguments:?}");
        assert!(complained.contains(words), "{arguments:?}: {complained}");
    }
    let origin = Origin::start(|_| async { origin::json(200, "{}") }).await;
    let locked = edge::start(&[origin.address], |_: &mut Config| {}).await;
    let (code, _, complained) = purge(&locked, &["--all"]).await;
    assert!(
        code == 1 && complained.contains("writes are off: set admin.token"),
        "{complained}"
    );
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .expect("a port")
        .local_addr()
        .expect("its address");
    for command in [
        &["purge", "--all"][..],
        &["stats"],
        &["stats", "--watch"],
        &["upstreams"],
        &["upstreams", "--watch"],
    ] {
        let (code, printed, complained) = run(closed, command, &[]).await;
        assert_eq!((code, printed.as_str()), (1, ""), "{command:?}");
        let words = format!("error: {closed}: no running proxy answers there: ");
        assert!(complained.starts_with(&words), "{complained}");
    }
}

#[tokio::test]
async fn purge_says_whether_the_other_instances_were_told() {
    let admin = Origin::start(|seen| async move {
        let mut script = match seen.target.as_str() {
            "/cache/purge" => origin::json(
                200,
                r#"{"entries": 0, "soft": false, "instances": "not told yet"}"#,
            ),
            _ => origin::json(200, "[]"),
        };
        script.push(Action::Close);
        script
    })
    .await;
    // An address may be a URL.
    let url = format!("http://{}/", admin.address);
    let (code, printed, _) = run(&url, &["purge", "--all"], &[]).await;
    assert_eq!(
        (code, printed.as_str()),
        (
            0,
            "0 stored answers removed by this instance (all).\nOther instances: not told yet.\n"
        )
    );
    let (code, _, complained) = run(&url, &["stats"], &[]).await;
    assert!(
        code == 1 && complained.contains("is not understood"),
        "{complained}"
    );
    let said = run(&url, &["upstreams"], &[]).await;
    assert_eq!(said, (0, "no upstreams\n".to_owned(), String::new()));
}

/// The cells of the line that begins with this word.
fn cells<'a>(text: &'a str, word: &str) -> Vec<&'a str> {
    let line = text
        .lines()
        .find(|line| line.split_whitespace().next() == Some(word));
    line.unwrap_or_else(|| panic!("no line begins with {word}: {text}"))
        .split_whitespace()
        .collect()
}

#[tokio::test]
async fn stats_counts_what_was_served() {
    let (_origin, edge) = start().await;
    let mut client = edge.client().await;
    let request = get("/v1/info", &[("Authorization", "Bearer app-1")]);
    // On one connection, so that the last ones are answered before they are parsed.
    let mut key = String::new();
    for _ in 0..4 {
        key = key_of(&client.exchange(&request).await);
    }
    purge(&edge, &["--key", &key]).await;
    client.exchange(&request).await;
    let (code, text, complained) = run(edge.admin, &["stats"], &[]).await;
    assert_eq!((code, complained.as_str()), (0, ""));
    let tier = cells(&text, "L1");
    assert_eq!(tier[1], "1", "{text}");
    assert_eq!(tier[tier.len() - 4..], ["3", "2", "60.0", "%"], "{text}");
    assert_eq!(cells(&text, "purges"), ["purges", "1"]);
    let (code, text, _) = run(edge.admin, &["stats", "--json"], &[]).await;
    let json: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((code, &json["hits"], &json["misses"]), (0, &3.into(), &2.into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_redis_there_is_a_second_row_and_the_others_are_told() {
    let redis = Redis::start().await;
    let fleet = Fleet::start(1, &redis.url()).await;
    fleet.read(0, "app-1").await;
    let edge = &fleet.edges[0];
    let (code, printed, _) = purge(edge, &["--all"]).await;
    assert_eq!(
        (code, printed.as_str()),
        (
            0,
            "1 stored answer removed by this instance (all).\nOther instances: told.\n"
        )
    );
    let (code, text, _) = run(edge.admin, &["stats"], &[]).await;
    assert_eq!(code, 0);
    let (_, json, _) = run(edge.admin, &["stats", "--json"], &[]).await;
    let json: Value = serde_json::from_str(&json).expect("JSON");
    let misses = &json["l2"]["misses"];
    assert!(misses.as_u64() > Some(0), "{json}");
    let row = ["L2", "-", "-", "0", &misses.to_string(), "0.0", "%"];
    assert_eq!(cells(&text, "L2"), row, "{text}");
    let open = text
        .lines()
        .any(|line| line.starts_with("l2 open ") && line.ends_with(" yes"));
    assert!(open, "{text}");
}

#[tokio::test]
async fn watching_goes_on_until_ctrl_c_or_until_nobody_reads() {
    let (_origin, edge) = start().await;
    for (command, title, interrupted) in [
        ("stats", "tier ", true),
        ("stats", "tier ", false),
        ("upstreams", "  replica ", true),
        ("upstreams", "  replica ", false),
    ] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_dify-edge"))
            .args([command, "--watch", "1", "--admin", &edge.admin.to_string()])
            .env_clear()
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let shown = tokio::task::spawn_blocking(move || {
            let mut titles = 0;
            let mut text = String::new();
            while titles < 2 {
                let line = lines.next().expect("a line").expect("UTF-8");
                titles += usize::from(line.starts_with(title));
                text.push_str(&line);
                text.push('\n');
            }
            (text, lines)
        });
        let (text, lines) = within("two tables", shown).await.expect("a reader");
        assert!(!text.contains('\x1b'), "{text}");
        assert!(
            command != "stats" || text.lines().filter(|line| line.contains("hits/s")).count() == 1,
            "{text}"
        );
        let mut lines = Some(lines);
        if interrupted {
            let sent = Command::new("kill")
                .args(["-INT", &child.id().to_string()])
                .status();
            assert!(sent.expect("kill(1)").success());
        } else {
            lines = None;
        }
        let ended = tokio::task::spawn_blocking(move || child.wait_with_output().expect("its end"));
        let ended = within("the program to end", ended).await.expect("a wait");
        assert_eq!(
            ended.status.code(),
            Some(0),
            "{command}, interrupted: {interrupted}"
        );
        assert_eq!(
            String::from_utf8_lossy(&ended.stderr),
            "",
            "{command}, interrupted: {interrupted}"
        );
        drop(lines);
    }
}
