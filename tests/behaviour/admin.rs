//! The administrative listener as its own description has it: every path, method and status, and who may write.

use dify_edge::app::Edge;
use dify_edge::types::time::Clock;
use serde_json::Value;

use crate::support::client::{Answer, Client, get, post, request};
use crate::support::edge::{self, Running};
use crate::support::fleet::{self, Fleet};
use crate::support::origin::{Origin, json};
use crate::support::redis::Redis;

/// The token that [`start`] configures.
const TOKEN: &str = "a-token-for-behaviour-tests";

/// Before an origin that says yes to everything, with itself as the standby.
async fn start() -> (Origin, Running) {
    let origin = Origin::start(|_| async { json(200, "{}") }).await;
    let edge = edge::start(&[origin.address], |config| {
        edge::api(config).standby = vec![edge::replica(&origin.address)];
        config.admin.token = Some(dify_edge::config::Token(TOKEN.into()));
    })
    .await;
    (origin, edge)
}

async fn ask(edge: &Running, bytes: impl AsRef<[u8]>) -> Answer {
    Client::connect(edge.admin).await.exchange(bytes).await
}

fn authorized(body: &str) -> Vec<u8> {
    authorized_at("/cache/purge", body)
}

fn authorized_at(path: &str, body: &str) -> Vec<u8> {
    let bearer = format!("Bearer {TOKEN}");
    post(path, &[("Authorization", &bearer)], body)
}

/// What the description has for a body at `path`.
fn examples<'a>(document: &'a Value, path: &str) -> impl Iterator<Item = &'a Value> {
    let content = &document["paths"][path]["post"]["requestBody"]["content"]["application/json"];
    let examples = content["examples"].as_object().expect("examples");
    examples.values().map(|example| &example["value"])
}

/// Holds `value` against `schema`, as far as the description uses JSON Schema.
fn conforms(document: &Value, schema: &Value, value: &Value, at: &str) {
    if let Some(target) = schema["$ref"].as_str() {
        let schema = document
            .pointer(&target[1..])
            .expect("a reference that leads somewhere");
        return conforms(document, schema, value, at);
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    if let Some(choices) = schema["oneOf"].as_array() {
        let choice = choices
            .iter()
            .find(|choice| (choice["type"] == "null") == value.is_null());
        return conforms(document, choice.expect("a choice"), value, at);
    }
    match &schema["type"] {
        Value::Array(kinds) => assert!(kinds.contains(&kind.into()), "{at}: {kind}"),
        one => assert_eq!(one, kind, "{at}"),
    }
    if let Some(words) = schema["enum"].as_array() {
        assert!(words.contains(value), "{at}: {value}");
    }
    for name in schema["required"].as_array().into_iter().flatten() {
        assert!(
            value.get(name.as_str().expect("a name")).is_some(),
            "{at}: {name}"
        );
    }
    for (name, value) in value.as_object().into_iter().flatten() {
        match schema["properties"].get(name) {
            Some(schema) => conforms(document, schema, value, &format!("{at}.{name}")),
            None => assert_ne!(schema["additionalProperties"], false, "{at}.{name}"),
        }
    }
    for (index, value) in value.as_array().into_iter().flatten().enumerate() {
        conforms(document, &schema["items"], value, &format!("{at}[{index}]"));
    }
}

/// Holds an answer against what the description says of this status.
fn described(document: &Value, path: &str, method: &str, answer: &Answer) {
    let what = format!("{method} {path}: {} {}", answer.status, answer.text());
    let mut response = &document["paths"][path][method]["responses"][answer.status.to_string()];
    if let Some(target) = response["$ref"].as_str() {
        response = document
            .pointer(&target[1..])
            .expect("a reference that leads somewhere");
    }
    let content = response["content"]
        .as_object()
        .unwrap_or_else(|| panic!("{what}"));
    let kind = answer.field("content-type").unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default();
    let schema = &content.get(kind).unwrap_or_else(|| panic!("{what}: {kind}"))["schema"];
    let value = match kind {
        "application/json" => answer.json(),
        _ => Value::from(answer.text()),
    };
    conforms(document, schema, &value, &what);
    for (name, _) in response["headers"].as_object().into_iter().flatten() {
        assert!(answer.field(name).is_some(), "{what}: {name}");
    }
    assert_eq!(answer.field("cache-control"), Some("no-store"), "{what}");
}

#[tokio::test]
async fn every_path_and_method_is_answered_as_the_description_says() {
    let (_origin, edge) = start().await;
    edge.ask(get("/v1/info", &[("Authorization", "Bearer app-1")]))
        .await;
    let key = {
        let hit = edge
            .ask(get("/v1/info", &[("Authorization", "Bearer app-1")]))
            .await;
        let (_, rest) = hit.cache_status().split_once("key=\"").expect("a key");
        rest[..8].to_owned()
    };
    let document = ask(&edge, get("/openapi.json", &[])).await.json();
    assert_eq!(document["openapi"], "3.1.0");
    let index = ask(&edge, get("/", &[])).await.text();
    let paths = document["paths"].as_object().expect("paths");
    assert_eq!(index.lines().count(), paths.len(), "{index}");
    for (path, item) in paths {
        assert!(index.contains(&format!(" {path} ")), "{path} is not in {index}");
        for method in item.as_object().expect("methods").keys() {
            let target = match path.as_str() {
                "/cache/entry" => format!("{path}?key={key}"),
                _ => path.clone(),
            };
            let bytes = match method.as_str() {
                "get" => get(&target, &[]),
                _ => {
                    let example = examples(&document, path).next().expect("an example");
                    authorized_at(path, &example.to_string())
                }
            };
            let answer = ask(&edge, bytes).await;
            assert_eq!(answer.status, 200, "{target}: {}", answer.text());
            described(&document, path, method, &answer);
            if method == "get" {
                let head = ask(&edge, request("HEAD", &target, &[], b"")).await;
                assert_eq!((head.status, head.body.len()), (200, 0), "{target}");
                assert_eq!(
                    head.field("content-type"),
                    answer.field("content-type"),
                    "{target}"
                );
            }
        }
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
            if item.get(method.to_lowercase()).is_some() {
                continue;
            }
            let answer = ask(&edge, request(method, path, &[], b"")).await;
            let allowed = if item.get("get").is_some() {
                "GET, HEAD"
            } else {
                "POST"
            };
            assert_eq!(answer.status, 405, "{method} {path}");
            assert_eq!(answer.field("allow"), Some(allowed), "{method} {path}");
            assert_eq!(answer.json()["code"], "method_not_allowed");
        }
    }
    for unknown in [
        "/v1/info",
        "/cache",
        "/cache/purge/",
        "/Live",
        "//live",
        "/live%20",
    ] {
        for method in ["GET", "POST"] {
            let answer = ask(&edge, request(method, unknown, &[], b"")).await;
            assert_eq!(
                (answer.status, &answer.json()["status"]),
                (404, &404.into()),
                "{unknown}"
            );
        }
    }
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_as_the_description_says() {
    let (_origin, edge) = start().await;
    let document = ask(&edge, get("/openapi.json", &[])).await.json();
    for (target, status) in [
        ("/cache/entry?key=01234567", 404),
        ("/cache/entry?key=00112233445566778899aabbccddeeff", 404),
        ("/cache/entry", 400),
        ("/cache/entry?", 400),
        ("/cache/entry?key=", 400),
        ("/cache/entry?key=0123456", 400),
        ("/cache/entry?key=0123456g", 400),
        ("/cache/entry?key=00112233445566778899aabbccddeeff0", 400),
        ("/cache/entry?key=01234567&x=1", 400),
        ("/cache/entry?id=01234567", 400),
    ] {
        let answer = ask(&edge, get(target, &[])).await;
        assert_eq!(answer.status, status, "{target}");
        described(&document, "/cache/entry", "get", &answer);
    }
    let bearer = format!("Bearer {TOKEN}");
    let right = ("Authorization", bearer.as_str());
    let json = ("Content-Type", "application/json");
    let long = format!("{{\"all\": true{}}}", " ".repeat(64 * 1024));
    for (fields, body, status) in [
        (vec![right, json], "{\"all\": true}", 200),
        (vec![right, json], "{}", 400),
        (vec![right, json], "", 400),
        (vec![right, json], "{\"route\": \"/v1/inof\"}", 400),
        (vec![right, json], long.as_str(), 413),
        (vec![right], "{\"all\": true}", 415),
        (
            vec![right, ("Content-Type", "text/plain")],
            "{\"all\": true}",
            415,
        ),
        (vec![json], "{\"all\": true}", 401),
        (
            vec![("Authorization", "Bearer a-token-for-behaviour-test"), json],
            "{\"all\": true}",
            401,
        ),
        (
            vec![right, json, ("Origin", "http://127.0.0.1:9901")],
            "{\"all\": true}",
            403,
        ),
    ] {
        let answer = ask(&edge, request("POST", "/cache/purge", &fields, body.as_bytes())).await;
        assert_eq!(answer.status, status, "{fields:?}: {}", answer.text());
        described(&document, "/cache/purge", "post", &answer);
    }
    let near = ask(&edge, authorized("{\"route\": \"/v1/inof\"}")).await.json();
    let near = near["message"].as_str().expect("a message").to_owned();
    assert!(near.starts_with("route: ") && near.contains("/v1/info"), "{near}");
    let unknown = ask(&edge, authorized("{\"kye\": 1}")).await.text();
    let schema = &document["components"]["schemas"]["PurgeRequest"];
    for name in schema["properties"].as_object().expect("properties").keys() {
        assert!(
            unknown.contains(&format!("`{name}`")),
            "{name} is not in {unknown}"
        );
    }
    for path in ["/cache/purge", "/failover"] {
        for example in examples(&document, path) {
            let answer = ask(&edge, authorized_at(path, &example.to_string())).await;
            assert_eq!(answer.status, 200, "{path} {example}: {}", answer.text());
            described(&document, path, "post", &answer);
        }
    }
    for (fields, body, status) in [
        (vec![right, json], "{\"to\": \"both\"}", 400),
        (vec![right], "{\"to\": \"auto\"}", 415),
        (vec![right, json], long.as_str(), 413),
        (vec![json], "{\"to\": \"auto\"}", 401),
        (vec![right, json, ("Origin", "null")], "{\"to\": \"auto\"}", 403),
    ] {
        let answer = ask(&edge, request("POST", "/failover", &fields, body.as_bytes())).await;
        assert_eq!(answer.status, status, "{fields:?}: {}", answer.text());
        described(&document, "/failover", "post", &answer);
    }
}

#[tokio::test]
async fn without_a_configured_token_writes_are_refused_and_reads_are_not() {
    let origin = Origin::start(|_| async { json(200, "{}") }).await;
    let edge = edge::start(&[origin.address], |_| {}).await;
    for bytes in [
        authorized("{\"all\": true}"),
        post("/cache/purge", &[], "{\"all\": true}"),
    ] {
        let answer = ask(&edge, bytes).await;
        assert_eq!(answer.status, 403);
        let message = answer.json()["message"].as_str().expect("a message").to_owned();
        assert!(message.contains("admin.token"), "{message}");
    }
    assert_eq!(ask(&edge, get("/cache/stats", &[])).await.json()["purges"], 0);
}

#[tokio::test]
async fn the_token_can_stand_in_a_file_and_is_not_in_what_is_shown() {
    let file = std::env::temp_dir().join(format!("dify-edge-admin-{}", std::process::id()));
    std::fs::write(&file, format!("{TOKEN}\n")).expect("a file");
    let origin = Origin::start(|_| async { json(200, "{}") }).await;
    let edge = edge::start(&[origin.address], |config| {
        config.admin.token_file = Some(file.clone())
    })
    .await;
    std::fs::remove_file(&file).expect("it was there");
    assert_eq!(ask(&edge, authorized("{\"all\": true}")).await.status, 200);
    let mut config = edge::config(&[origin.address]);
    config.admin.token_file = Some(file.clone());
    let error = Edge::start(config, Clock::System)
        .await
        .expect_err("the file is gone");
    assert!(error.to_string().contains(&file.display().to_string()), "{error}");
    let (_origin, with_token) = start().await;
    for edge in [&edge, &with_token] {
        for target in ["/config", "/metrics", "/", "/ready"] {
            let shown = ask(edge, get(target, &[])).await;
            assert_eq!(shown.status, 200);
            assert!(!shown.text().contains(TOKEN), "{target}");
        }
    }
    let config = ask(&with_token, get("/config", &[])).await.json();
    assert_eq!(config["admin"]["token"], "***");
    let config = ask(&edge, get("/config", &[])).await.json();
    assert_eq!(config["admin"]["token_file"], file.display().to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_said_of_redis_is_as_the_description_says() {
    let redis = Redis::start().await;
    let fleet = Fleet::start(1, &redis.url()).await;
    fleet.read(0, "app-1").await;
    let edge = &fleet.edges[0];
    let document = ask(edge, get("/openapi.json", &[])).await.json();
    for path in ["/ready", "/cache/stats"] {
        let answer = ask(edge, get(path, &[])).await;
        assert!(
            answer.text().contains("\"redis\"") || answer.text().contains("\"l2\""),
            "{}",
            answer.text()
        );
        described(&document, path, "get", &answer);
    }
    let answer = fleet::purge(edge).await;
    assert_eq!(answer.json()["instances"], "told");
    described(&document, "/cache/purge", "post", &answer);
}
