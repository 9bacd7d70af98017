//! Where a cache in front of Dify goes wrong when it believes what Dify says, one test for each trap.

use std::collections::HashMap;
use std::sync::Arc;

use dify_edge::config::Config;
use dify_edge::config::cache::SetCookie;
use dify_edge::types::time::Clock;
use parking_lot::Mutex;

use crate::support::captures;
use crate::support::client::{Answer, get, post, request};
use crate::support::edge::{self, Running};
use crate::support::origin::{Action, Origin, Script, answer, chunk, chunked, json};

const KEY: (&str, &str) = ("Authorization", "Bearer app-1");
const OTHER: (&str, &str) = ("Authorization", "Bearer app-2");
const ID: &str = "5f0e7a3c-0000-4000-8000-00000000000f";

/// A proxy before an origin that gives every request this answer.
async fn before(script: impl Fn() -> Script + Send + Sync + 'static) -> (Origin, Running) {
    with(|_| {}, script).await
}

async fn with(
    change: impl FnOnce(&mut Config),
    script: impl Fn() -> Script + Send + Sync + 'static,
) -> (Origin, Running) {
    let origin = Origin::start(move |_| {
        let script = script();
        async move { script }
    })
    .await;
    let edge = edge::start(&[origin.address], change).await;
    (origin, edge)
}

/// Before an origin that says in each answer what it was asked.
async fn telling() -> (Origin, Running) {
    let origin = Origin::start(|seen| async move {
        let origin = seen.field("origin").unwrap_or("none");
        let coding = seen.field("accept-encoding").unwrap_or("none");
        let text = format!(
            "{} of {origin} in {coding} for {:?}",
            seen.target,
            crate::support::wire::values(&seen.fields, "authorization")
        );
        json(200, text)
    })
    .await;
    let edge = edge::start(&[origin.address], |_| {}).await;
    (origin, edge)
}

/// Asks the same twice and says whether the second answer was a hit.
async fn is_kept(edge: &Running, request: impl AsRef<[u8]>) -> bool {
    let first = edge.ask(&request).await;
    assert!(!first.is_hit(), "{}", first.cache_status());
    edge.ask(&request).await.is_hit()
}

fn numbered(target: &str) -> Vec<u8> {
    get(target, &[KEY])
}

#[tokio::test]
async fn the_origin_field_selects_the_answer_although_no_vary_says_so() {
    let (origin, edge) = telling().await;
    let plain = numbered("/v1/info");
    let from = |site: &'static str| get("/v1/info", &[KEY, ("Origin", site)]);
    for _ in 0..2 {
        assert!(edge.ask(&plain).await.text().contains("of none"));
        assert!(
            edge.ask(from("https://a.example"))
                .await
                .text()
                .contains("of https://a.example")
        );
        assert!(
            edge.ask(from("https://b.example"))
                .await
                .text()
                .contains("of https://b.example")
        );
        assert!(edge.ask(from("null")).await.text().contains("of null"));
    }
    assert_eq!(origin.counts().requests, 4);
}

#[tokio::test]
async fn an_answer_that_sets_a_cookie_is_not_kept() {
    let (_origin, edge) = before(|| answer(200, &[("Set-Cookie", "x-token=app-1; HttpOnly")], "{}")).await;
    assert!(!is_kept(&edge, numbered("/v1/info")).await);
}

#[tokio::test]
async fn where_cookies_are_stripped_only_the_client_that_fetched_gets_them() {
    let strip = |config: &mut Config| config.cache.classes.metadata.set_cookie = SetCookie::Strip;
    let (_origin, edge) = with(strip, || {
        answer(200, &[("Set-Cookie", "x-token=app-1; HttpOnly")], "{}")
    })
    .await;
    let first = edge.ask(numbered("/v1/info")).await;
    assert_eq!(first.fields("set-cookie"), ["x-token=app-1; HttpOnly"]);
    let second = edge.ask(numbered("/v1/info")).await;
    assert!(second.is_hit() && second.fields("set-cookie").is_empty());
}

#[tokio::test]
async fn an_answer_with_a_signed_url_is_kept_for_a_fraction_of_what_is_left_of_it() {
    let record = captures::named("v1_site_image_icon_1");
    let body = record.response.body.clone();
    let text = String::from_utf8_lossy(&body).into_owned();
    let at = text.find("timestamp=").expect("a signed URL") + "timestamp=".len();
    let digits: String = text[at..].chars().take_while(char::is_ascii_digit).collect();
    let signed_at = std::time::UNIX_EPOCH + std::time::Duration::from_secs(digits.parse().expect("a time"));
    // A fifth of what is left of the 300 s that such a URL lives.
    for (age, kept, gone_after) in [
        (0, true, 61),
        (200, true, 21),
        (297, true, 1),
        (300, false, 0),
        (400, false, 0),
    ] {
        let body = body.clone();
        let origin = Origin::start(move |_| {
            let script = json(200, &body);
            async move { script }
        })
        .await;
        let (clock, time) = Clock::manual(signed_at + std::time::Duration::from_secs(age));
        let edge = edge::start_at(&[origin.address], clock, |config| {
            config.cache.classes.metadata.ttl = dify_edge::types::units::Span::secs(3600);
        })
        .await;
        assert_eq!(is_kept(&edge, numbered("/v1/site")).await, kept, "{age} s");
        time.advance(std::time::Duration::from_secs(gone_after));
        assert!(!edge.ask(numbered("/v1/site")).await.is_hit(), "{age} s");
    }
}

#[tokio::test]
async fn a_signed_file_is_never_kept() {
    let (_origin, edge) = before(|| answer(200, &[("Content-Type", "image/png")], "png")).await;
    let target = format!("/files/{ID}/file-preview?timestamp=1&nonce=2&sign=3");
    assert!(!is_kept(&edge, get(&target, &[])).await);
}

#[tokio::test]
async fn a_workflow_run_is_kept_once_it_has_ended_and_not_before() {
    for (body, kept) in [
        (
            "{\"id\": \"1\", \"status\": \"succeeded\", \"outputs\": {}}",
            true,
        ),
        ("{\"id\": \"1\", \"status\": \"failed\"}", true),
        ("{\"id\": \"1\", \"status\": \"stopped\"}", true),
        ("{\"id\": \"1\", \"status\": \"running\"}", false),
        ("{\"id\": \"1\", \"status\": \"paused\"}", false),
        ("{\"id\": null, \"status\": null, \"outputs\": null}", false),
        ("{\"id\": \"1\", \"outputs\": {\"status\": \"succeeded\"}}", false),
        ("not JSON", false),
    ] {
        let (_origin, edge) = before(move || json(200, body)).await;
        let run = numbered(&format!("/v1/workflows/run/{ID}"));
        assert_eq!(is_kept(&edge, run).await, kept, "{body}");
    }
}

#[tokio::test]
async fn the_recorded_all_null_run_of_another_app_is_not_kept() {
    let body = &captures::named("v1_workflow_run_detail_wrong_app").response.body;
    let (_origin, edge) = before(move || json(200, body)).await;
    assert!(!is_kept(&edge, numbered(&format!("/v1/workflows/run/{ID}"))).await);
}

#[tokio::test]
async fn what_mints_tokens_or_is_polled_for_change_is_never_kept() {
    let (_origin, edge) = before(|| answer(200, &[("Cache-Control", "public, max-age=60")], "{}")).await;
    for target in [
        "/api/passport",
        "/api/login/status",
        "/health",
        "/threads",
        "/db-pool-stat",
        &format!("/v1/datasets/{ID}/documents/20260101/indexing-status"),
        &format!("/v1/messages/{ID}/suggested?user=u"),
        &format!("/v1/apps/annotation-reply/enable/status/{ID}"),
        "/console/api/login_config_bootstrap",
    ] {
        let asked = get(
            target,
            &[
                KEY,
                ("X-App-Code", "code"),
                ("X-App-Passport", "p"),
                ("Cookie", "a=b"),
            ],
        );
        assert!(!is_kept(&edge, asked).await, "{target}");
    }
}

#[tokio::test]
async fn a_file_that_dify_calls_public_stays_with_the_key_that_it_needs() {
    let (origin, edge) = before(|| answer(200, &[("Cache-Control", "public, max-age=3600")], "png")).await;
    let target = format!("/v1/files/{ID}/preview?user=u");
    assert!(is_kept(&edge, get(&target, &[KEY])).await);
    assert!(!edge.ask(get(&target, &[OTHER])).await.is_hit());
    assert!(!edge.ask(get(&target, &[])).await.is_hit());
    assert_eq!(origin.counts().requests, 3);
}

#[tokio::test]
async fn a_target_that_only_looks_like_a_cached_route_is_never_kept() {
    let (_origin, edge) = before(|| json(200, "{}")).await;
    for target in [
        "/v1/parameters/x.css",
        "/v1/parameters/",
        "/v1/parameters;x",
        "/v1/parameters;x=.css",
        "/v1/parameters%2fx",
        "/v1%2fparameters",
        "/v1/parameters%00",
        "/v1/./parameters",
        "/v1/x/../parameters",
        "/v1/%2e%2e/v1/parameters",
        "/v1//parameters",
        "//v1/parameters",
        "/V1/parameters",
        "/v1/parameters%3fx",
    ] {
        let first = edge.ask(numbered(target)).await;
        // Refusing it is as good.
        if first.status == 200 {
            assert!(
                !first.is_stored() && !edge.ask(numbered(target)).await.is_hit(),
                "{target}"
            );
        }
    }
}

#[tokio::test]
async fn a_request_with_two_keys_is_never_answered_from_memory() {
    let (_origin, edge) = telling().await;
    assert!(is_kept(&edge, numbered("/v1/info")).await);
    for fields in [[KEY, KEY], [KEY, OTHER], [OTHER, KEY]] {
        let answer = edge.ask(get("/v1/info", &fields)).await;
        assert!(
            !answer.is_hit() && !answer.is_stored(),
            "{}",
            answer.cache_status()
        );
    }
}

#[tokio::test]
async fn parameters_in_another_order_are_the_same_and_repeated_ones_keep_theirs() {
    let (origin, edge) = telling().await;
    let ask = async |query: &str| edge.ask(numbered(&format!("/v1/datasets?{query}"))).await;
    ask("page=1&limit=20").await;
    assert!(ask("limit=20&page=1").await.is_hit());
    ask("tag_ids=a&tag_ids=b&page=1").await;
    assert!(ask("page=1&tag_ids=a&tag_ids=b").await.is_hit());
    assert!(!ask("tag_ids=b&tag_ids=a&page=1").await.is_hit());
    assert!(!ask("page=1").await.is_hit());
    assert!(!ask("page=2").await.is_hit());
    assert_eq!(origin.counts().requests, 5);
}

#[tokio::test]
async fn head_is_answered_from_a_kept_get_and_is_never_kept_itself() {
    let (origin, edge) = before(|| json(200, "{\"name\": \"app\"}")).await;
    let head = request("HEAD", "/v1/info", &[KEY], b"");
    let origin_of_head = Origin::start(|_| async {
        vec![Action::Send(
            b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n".to_vec(),
        )]
    })
    .await;
    let other = edge::start(&[origin_of_head.address], |_| {}).await;
    for _ in 0..2 {
        assert!(!other.ask(&head).await.is_hit());
    }
    assert_eq!(origin_of_head.counts().requests, 2);
    edge.ask(numbered("/v1/info")).await;
    let answer = edge.ask(&head).await;
    assert!(answer.is_hit() && answer.body.is_empty());
    assert_eq!(answer.field("content-length"), Some("15"));
    assert_eq!(origin.counts().requests, 1);
}

#[tokio::test]
async fn what_either_side_forbids_to_keep_is_not_kept() {
    for fields in [
        ("Cache-Control", "no-store"),
        ("Cache-Control", "private"),
        ("Cache-Control", "no-cache"),
        ("Cache-Control", "max-age=0"),
        ("Vary", "*"),
        ("Vary", "User-Agent"),
    ] {
        let (_origin, edge) = before(move || answer(200, &[fields], "{}")).await;
        assert!(!is_kept(&edge, numbered("/v1/info")).await, "{fields:?}");
    }
    let (_origin, edge) = before(|| json(200, "{}")).await;
    assert!(!is_kept(&edge, get("/v1/info", &[KEY, ("Cache-Control", "no-store")])).await);
    assert!(!edge.ask(numbered("/v1/info")).await.is_hit());
}

#[tokio::test]
async fn an_error_is_not_kept_but_an_unknown_thing_is_for_a_moment() {
    for status in [301, 400, 401, 403, 405, 429, 500, 502, 503] {
        let (_origin, edge) = before(move || json(status, "{}")).await;
        assert!(!is_kept(&edge, numbered("/v1/info")).await, "{status}");
    }
    let origin = Origin::start(|_| async { json(404, "{}") }).await;
    let (clock, time) = Clock::manual(std::time::SystemTime::UNIX_EPOCH);
    let edge = edge::start_at(&[origin.address], clock, |_| {}).await;
    let dataset = numbered(&format!("/v1/datasets/{ID}"));
    assert!(is_kept(&edge, &dataset).await);
    time.advance(std::time::Duration::from_secs(6));
    assert!(!edge.ask(&dataset).await.is_hit());
}

#[tokio::test]
async fn a_compressed_answer_goes_only_to_those_who_asked_for_it_so() {
    let (origin, edge) = telling().await;
    for _ in 0..2 {
        for coding in ["gzip", "br", "gzip;q=0, br;q=0.5", "identity"] {
            let answer = edge
                .ask(get("/v1/parameters", &[KEY, ("Accept-Encoding", coding)]))
                .await;
            assert!(
                answer.text().contains(&format!("in {coding} for")),
                "{}",
                answer.text()
            );
        }
        assert!(
            edge.ask(numbered("/v1/parameters"))
                .await
                .text()
                .contains("in none")
        );
    }
    assert_eq!(origin.counts().requests, 5);
}

#[tokio::test]
async fn recorded_variants_of_one_answer_by_accept_encoding_never_mix() {
    let variants = [
        "none",
        "gzip",
        "br",
        "zstd",
        "gzip_deflate_br_zstd",
        "identity",
        "star",
    ];
    let records: Vec<_> = variants
        .iter()
        .map(|coding| captures::of_variant(&format!("gz_v1_parameters__{coding}"), "compression_on"))
        .collect();
    let by_coding: HashMap<Option<String>, Script> = records
        .iter()
        .map(|record| {
            let coding = record.values("accept-encoding").first().map(ToString::to_string);
            let fields: Vec<(&str, &str)> = record
                .response
                .fields
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str()))
                .filter(|(name, _)| matches!(*name, "Vary" | "Content-Encoding" | "Content-Type"))
                .collect();
            (coding, answer(200, &fields, &record.response.body))
        })
        .collect();
    let origin = Origin::start(move |seen| {
        let script = by_coding[&seen.field("accept-encoding").map(str::to_owned)].clone();
        async move { script }
    })
    .await;
    let edge = edge::start(&[origin.address], |_| {}).await;
    for round in 0..2 {
        for record in &records {
            let answer = edge.ask(&record.request).await;
            assert_eq!(answer.is_hit(), round == 1, "{}", record.title());
            assert!(answer.body == record.response.body, "{}", record.title());
        }
    }
}

#[tokio::test]
async fn an_unknown_thing_of_one_caller_says_nothing_to_another() {
    let origin = Origin::start(|seen| async move {
        let mine = seen.field("authorization") == Some(OTHER.1);
        json(if mine { 200 } else { 404 }, "{}")
    })
    .await;
    let edge = edge::start(&[origin.address], |_| {}).await;
    let target = format!("/v1/datasets/{ID}");
    assert_eq!(edge.ask(get(&target, &[KEY])).await.status, 404);
    assert_eq!(edge.ask(get(&target, &[OTHER])).await.status, 200);
    assert_eq!(edge.ask(get(&target, &[KEY])).await.status, 404);
}

#[tokio::test]
async fn an_answer_that_breaks_off_reaches_the_client_as_a_break_and_is_not_kept() {
    let short = || {
        vec![
            Action::Send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this".to_vec()),
            Action::Close,
        ]
    };
    let cut = || {
        vec![
            chunked(&[("Content-Type", "application/json")]),
            chunk("only this"),
            Action::Close,
        ]
    };
    let reset = || vec![chunked(&[]), chunk("only this"), Action::Abort];
    let scripts: [fn() -> Script; 3] = [short, cut, reset];
    for (number, script) in scripts.into_iter().enumerate() {
        for target in ["/v1/info", "/console/api/apps"] {
            let (origin, edge) = before(script).await;
            for round in 1..=2 {
                let answer: Answer = edge.ask(get(target, &[KEY, ("Cookie", "access_token=a")])).await;
                let whole = answer.status == 200 && answer.cut.is_none();
                assert!(!whole, "{number} {target}: {} {:?}", answer.status, answer.text());
                assert!(origin.counts().requests >= round, "{number} {target}: kept");
            }
        }
    }
}

#[tokio::test]
async fn a_hit_for_a_get_with_content_leaves_nothing_of_it_to_be_read_as_a_request() {
    let (origin, edge) = before(|| json(200, "{}")).await;
    edge.ask(numbered("/v1/info")).await;
    edge.ask(numbered("/v1/info")).await;
    let inner = "GET /v1/smuggled HTTP/1.1\r\nHost: dify.test\r\n\r\n";
    let mut both = request("GET", "/v1/info", &[KEY], inner.as_bytes());
    both.extend(numbered("/v1/meta"));
    let mut client = edge.client().await;
    client.send(&both).await;
    assert_eq!(client.response("GET").await.status, 200);
    assert_eq!(client.response("GET").await.status, 200);
    assert!(
        origin.lines().iter().all(|line| !line.contains("smuggled")),
        "{:?}",
        origin.lines()
    );
    assert_eq!(origin.lines().last().map(String::as_str), Some("GET /v1/meta"));
}

#[tokio::test]
async fn the_passport_cookie_wins_over_the_header_and_parts_visitors() {
    let origin = Origin::start(|seen| async move {
        json(
            200,
            format!("{:?} {:?}", seen.field("cookie"), seen.field("x-app-passport")),
        )
    })
    .await;
    let edge = edge::start(&[origin.address], |_| {}).await;
    let ask = |cookie: &'static str, header: &'static str| {
        get(
            "/api/site",
            &[
                ("X-App-Code", "c"),
                ("Cookie", cookie),
                ("X-App-Passport", header),
            ],
        )
    };
    for _ in 0..2 {
        for (cookie, header) in [
            ("passport-c=one", "same"),
            ("passport-c=two", "same"),
            ("passport-c=one", "other"),
        ] {
            let answer = edge.ask(ask(cookie, header)).await;
            assert_eq!(answer.text(), format!("{:?} {:?}", Some(cookie), Some(header)));
        }
    }
    assert_eq!(origin.counts().requests, 3);
}

#[tokio::test]
async fn host_selects_the_answer() {
    let (origin, edge) = telling().await;
    let ask =
        |host: &str| format!("GET /v1/info HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer app-1\r\n\r\n");
    for _ in 0..2 {
        edge.ask(ask("one.example")).await;
        edge.ask(ask("two.example")).await;
    }
    assert_eq!(origin.counts().requests, 2);
}

#[tokio::test]
async fn a_repeated_generation_is_a_new_message_each_time() {
    let count = Arc::new(Mutex::new(0));
    let counted = count.clone();
    let origin = Origin::start(move |_| {
        *counted.lock() += 1;
        let script = answer(
            200,
            &[("Cache-Control", "max-age=60")],
            counted.lock().to_string(),
        );
        async move { script }
    })
    .await;
    let edge = edge::start(&[origin.address], |_| {}).await;
    let chat = post(
        "/v1/chat-messages",
        &[KEY],
        "{\"query\": \"hi\", \"user\": \"u\"}",
    );
    assert_eq!(edge.ask(&chat).await.text(), "1");
    assert_eq!(edge.ask(&chat).await.text(), "2");
}
