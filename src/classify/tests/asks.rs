//! Which things a request is about, and where answers tell of new ones; against what was recorded.

use std::collections::{BTreeMap, BTreeSet};

use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;
use serde_json::Value;

use super::coverage::sample;
use super::{UUID, decide, decide_with, fields};
use crate::classify::dify_routes;
use crate::types::known::{IdKind, KnownId};
use crate::types::request::Learn;

fn kinds(line: &str, headers: &HeaderMap) -> Vec<&'static str> {
    let asks = decide_with(line, headers).asks;
    asks.iter().map(|asked| asked.kind.as_str()).collect()
}

/// The recorded exchanges: name, `METHOD target`, fields of the request, status, JSON values of the answer.
fn recorded() -> Vec<(String, String, HeaderMap, u64, Vec<Value>)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/captures.jsonl");
    let text = std::fs::read_to_string(path).unwrap();
    let mut all = Vec::new();
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let (asked, answer) = (&line["request"], &line["response"]);
        let (Some(pairs), Some(path)) = (asked["headers"].as_array(), asked["path"].as_str()) else {
            continue;
        };
        if !path.starts_with('/') {
            continue;
        }
        let mut headers = HeaderMap::new();
        for pair in pairs {
            headers.append(
                HeaderName::try_from(pair[0].as_str().unwrap()).unwrap(),
                HeaderValue::from_str(pair[1].as_str().unwrap()).unwrap(),
            );
        }
        let mut values = Vec::new();
        values.extend(serde_json::from_str(answer["body"]["text"].as_str().unwrap_or_default()).ok());
        for chunk in answer["chunks"].as_array().into_iter().flatten() {
            let data = chunk["data"]
                .as_str()
                .unwrap_or_default()
                .trim_start_matches("data: ");
            values.extend(serde_json::from_str(data).ok());
        }
        let name = line["name"].as_str().unwrap().to_owned();
        let target = format!("{} {path}", asked["method"].as_str().unwrap());
        all.push((
            name,
            target,
            headers,
            answer["status"].as_u64().unwrap_or(0),
            values,
        ));
    }
    assert!(all.len() > 600, "{}", all.len());
    all
}

#[test]
fn recorded_requests_ask_for_what_their_routes_need() {
    let mut asked = BTreeMap::new();
    for (name, target, headers, ..) in recorded() {
        asked.insert(name, kinds(&target, &headers));
    }
    for (name, expected) in [
        ("health", &[][..]),
        ("v1_index", &[]),
        ("v1_404", &[]),
        ("docs_v1_swagger_json", &[]),
        ("v1_info__echo_chat", &["app_key"]),
        ("v1_info_lowercase_bearer", &["app_key"]),
        ("v1_info_double_space", &["app_key"]),
        ("v1_info_trailing_space", &["app_key"]),
        ("v1_info_dataset_key_on_app_api", &["app_key"]),
        ("v1_info_no_auth", &[]),
        ("v1_info_empty_bearer", &[]),
        ("v1_info_basic_scheme", &[]),
        ("v1_info_no_space", &[]),
        ("v1_info_two_authorization", &[]),
        ("v1_info_405_post", &[]),
        ("v1_chat_blocking__echo", &["app_key"]),
        ("v1_conversation_variables", &["app_key", "conversation"]),
        ("v1_feedback_like", &["app_key", "message"]),
        ("v1_file_preview", &["app_key", "upload_file"]),
        ("v1_workflow_run_detail_fast", &["app_key", "workflow_run"]),
        ("v1_workflow_run_detail_nonuuid", &["app_key"]),
        ("v1_datasets_list", &["dataset_key"]),
        ("v1_datasets_app_key", &["dataset_key"]),
        ("v1_tags", &["dataset_key"]),
        ("v1_models_llm", &["dataset_key"]),
        ("v1_dataset_get", &["dataset", "dataset_key"]),
        ("v1_dataset_known_no_auth", &["dataset"]),
        ("v1_dataset_nonuuid", &[]),
        ("v1_document_status", &["dataset", "dataset_key"]),
        ("v1_document_get", &["dataset", "dataset_key", "document"]),
        (
            "v1_segment_get",
            &["dataset", "dataset_key", "document", "segment"],
        ),
        (
            "v1_child_chunks",
            &["dataset", "dataset_key", "document", "segment"],
        ),
        ("web_passport", &["site_code"]),
        ("web_passport_missing_code", &[]),
        ("web_site", &[]),
        ("web_pin", &["conversation"]),
        ("web_feedback", &["message"]),
        ("files_signed_preview", &["upload_file"]),
        ("console_apps", &[]),
        ("console_app_detail", &["app"]),
        ("console_dataset_documents", &["dataset"]),
    ] {
        assert_eq!(asked.get(name).map(Vec::as_slice), Some(expected), "{name}");
    }
}

#[test]
fn routes_that_were_not_recorded_ask_by_the_names_of_their_variables() {
    let document = format!("/v1/datasets/{UUID}/documents/{UUID}");
    for (line, expected) in [
        (
            format!("PATCH {document}/segments/{UUID}/child_chunks/{UUID}"),
            &["dataset", "dataset_key", "document", "segment", "child_chunk"][..],
        ),
        (
            format!("PUT /v1/apps/annotations/{UUID}"),
            &["app_key", "annotation"],
        ),
        ("POST /mcp/server/abc/mcp".into(), &["mcp_server"]),
        ("POST /triggers/webhook/abc".into(), &["webhook"]),
        (format!("GET /files/tools/{UUID}.png"), &[]),
        (
            format!("GET /console/api/apps/{UUID}/workflow-runs/{UUID}"),
            &["app", "workflow_run"],
        ),
        (format!("GET /console/api/explore/apps/{UUID}"), &[]),
        (format!("GET /console/api/trial-apps/{UUID}"), &[]),
        (format!("OPTIONS {document}"), &[]),
    ] {
        assert_eq!(kinds(&line, &super::credentials()), expected, "{line}");
    }
}

#[test]
fn one_thing_has_one_id_however_it_is_asked_for() {
    let id = |line: &str, headers: &[(&'static str, &str)]| decide_with(line, &fields(headers)).asks[0].id;
    let path = format!("GET /v1/datasets/{UUID}");
    assert_eq!(id(&path, &[]), KnownId::of_uuid(UUID.as_bytes()).unwrap());
    assert_eq!(
        id(&format!("GET /v1/datasets/{}", UUID.to_uppercase()), &[]),
        id(&path, &[])
    );
    for written in ["Bearer app-1", "bearer app-1", "BEARER   app-1  "] {
        let key = id("GET /v1/info", &[("authorization", written)]);
        assert_eq!(key, KnownId::of_text(b"app-1"), "{written}");
    }
    assert_eq!(
        id("GET /api/passport", &[("x-app-code", "Code")]),
        KnownId::of_text(b"Code")
    );
}

#[test]
fn keys_and_codes_with_unusual_signs_are_not_asked_for() {
    let long = format!("Bearer {}", "a".repeat(256));
    for key in [
        "Bearer a,b",
        "Bearer a b",
        "Bearer é",
        "Bearer\ta",
        "Beare a",
        "",
        &long,
    ] {
        let headers = fields(&[("authorization", key)]);
        assert_eq!(kinds("GET /v1/info", &headers), [""; 0], "{key}");
    }
    let twice = fields(&[("x-app-code", "a"), ("x-app-code", "a")]);
    assert_eq!(kinds("GET /api/passport", &twice), [""; 0]);
}

#[test]
fn only_child_chunks_of_the_service_api_ask_for_more_than_fits_without_an_allocation() {
    for row in dify_routes::all() {
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
            let asks = decide(&format!("{method} {}", sample(row.template))).asks;
            let many = row.template.starts_with("/v1/datasets/") && row.template.contains("{child_chunk_id");
            assert!(!asks.spilled() || many, "{method} {}", row.template);
        }
    }
}

/// The texts at `pointer` in `value`.
fn at<'v>(value: &'v Value, pointer: &str) -> Vec<&'v str> {
    let mut found = vec![value];
    for step in pointer.split('/').skip(1) {
        found = found
            .into_iter()
            .flat_map(|value| match step {
                "*" => value.as_array().map(|items| items.iter().collect()),
                _ => value.get(step).map(|value| vec![value]),
            })
            .flatten()
            .collect();
    }
    found.into_iter().filter_map(Value::as_str).collect()
}

#[test]
fn recorded_answers_have_ids_where_the_table_says() {
    let mut told = BTreeSet::new();
    for (name, target, headers, status, values) in recorded() {
        let decision = decide_with(&target, &headers);
        if !(200..300).contains(&status) {
            continue;
        }
        for Learn { pointer, kind } in decision.learns {
            for text in values.iter().flat_map(|value| at(value, pointer)) {
                let is_text = matches!(kind, IdKind::AppKey | IdKind::DatasetKey | IdKind::SiteCode);
                assert!(
                    is_text || KnownId::of_uuid(text.as_bytes()).is_some(),
                    "{name} {pointer}: {text}"
                );
                told.insert((decision.template, *pointer, kind.as_str()));
            }
        }
    }
    let document = "/v1/datasets/{dataset_id:uuid}/documents/{document_id:uuid}";
    let segments = format!("{document}/segments");
    let segment = format!("{segments}/{{segment_id:uuid}}");
    for expected in [
        ("/v1/chat-messages", "/conversation_id", "conversation"),
        ("/v1/chat-messages", "/message_id", "message"),
        ("/v1/chat-messages", "/workflow_run_id", "workflow_run"),
        ("/v1/completion-messages", "/message_id", "message"),
        ("/v1/workflows/run", "/workflow_run_id", "workflow_run"),
        (
            "/v1/workflows/{workflow_id}/run",
            "/workflow_run_id",
            "workflow_run",
        ),
        ("/v1/workflows/run/{workflow_run_id}", "/id", "workflow_run"),
        ("/v1/workflows/logs", "/data/*/workflow_run/id", "workflow_run"),
        ("/v1/conversations", "/data/*/id", "conversation"),
        ("/v1/messages", "/data/*/id", "message"),
        (
            "/v1/messages",
            "/data/*/message_files/*/upload_file_id",
            "upload_file",
        ),
        ("/v1/app/feedbacks", "/data/*/message_id", "message"),
        ("/v1/apps/annotations", "/id", "annotation"),
        ("/v1/files/upload", "/id", "upload_file"),
        ("/v1/datasets", "/data/*/id", "dataset"),
        ("/v1/datasets", "/id", "dataset"),
        ("/v1/datasets/{dataset_id:uuid}", "/id", "dataset"),
        (
            "/v1/datasets/{dataset_id:uuid}/documents",
            "/data/*/id",
            "document",
        ),
        (
            "/v1/datasets/{dataset_id:uuid}/document/create-by-text",
            "/document/id",
            "document",
        ),
        (document, "/id", "document"),
        (&segments, "/data/*/id", "segment"),
        (&segment, "/data/id", "segment"),
        (
            "/v1/datasets/{dataset_id:uuid}/retrieve",
            "/records/*/segment/id",
            "segment",
        ),
        ("/api/chat-messages", "/conversation_id", "conversation"),
        ("/api/conversations", "/data/*/id", "conversation"),
        ("/api/messages", "/data/*/id", "message"),
        ("/console/api/apps", "/data/*/id", "app"),
        ("/console/api/apps/{app_id:uuid}", "/site/code", "site_code"),
        ("/console/api/apps/{app_id:uuid}/site", "/code", "site_code"),
        (
            "/console/api/apps/{resource_id:uuid}/api-keys",
            "/data/*/token",
            "app_key",
        ),
        ("/console/api/datasets", "/data/*/id", "dataset"),
        ("/console/api/files/upload", "/id", "upload_file"),
    ] {
        assert!(told.contains(&expected), "{expected:?}");
    }
}

proptest! {
    #[test]
    fn no_path_and_no_field_makes_the_search_panic(
        path in "(/[ -~]{0,6}|/é|/[0-9a-f-]{36}){0,8}", key in prop::collection::vec(0x20_u8..0xff, 0..20),
        which in any::<prop::sample::Index>()
    ) {
        let rows: Vec<_> = dify_routes::all().collect();
        let mut headers = HeaderMap::new();
        for name in ["authorization", "x-app-code"] {
            headers.extend(HeaderValue::from_bytes(&key).map(|key| (HeaderName::from_static(name), key)));
        }
        let asks = rows[which.index(rows.len())].asks.of(&path, &headers);
        prop_assert!(asks.len() <= 5);
    }
}

#[test]
fn a_path_is_misnamed_when_it_lacks_nothing_but_a_uuid() {
    let misnamed = |line: &str| decide(line).misnamed;
    let inner = format!("GET /v1/datasets/{UUID}/documents/x/segments");
    for (line, kind) in [
        ("GET /v1/datasets/not-a-uuid", IdKind::Dataset),
        ("HEAD /v1/datasets/not-a-uuid?page=1", IdKind::Dataset),
        (
            "GET /v1/datasets/86fedc0e02f548d7b8162eacbb40ae5a",
            IdKind::Dataset,
        ),
        ("GET /v1/datasets/x/documents/y/segments", IdKind::Dataset),
        (&inner, IdKind::Document),
        ("GET /v1/files/x/preview", IdKind::UploadFile),
        // No route has it, whatever methods it would have.
        ("GET /v1/messages/x/feedbacks", IdKind::Message),
    ] {
        let decision = decide(line);
        assert_eq!(decision.misnamed, Some(kind), "{line}");
        assert_eq!((decision.template, decision.asks.len()), ("*", 0), "{line}");
    }
    for line in [
        "GET /v1/nope",
        "GET /v1/datasets/x/nope",
        "GET /v1/datasets/x/",
        "GET /v1/datasets//documents",
        "GET /v1/datasets/%78",
        "GET /v1/datasets/tags",
        "POST /v1/datasets/x/retrieve",
        "OPTIONS /v1/datasets/x",
        "GET /V1/datasets/x",
        "GET /v1/workflows/run/x",
        "GET /console/api/datasets/x",
        "GET /api/messages/x/more-like-this",
        &format!("GET /v1/datasets/{UUID}"),
        &format!("GET /v1/datasets/{UUID}/metadata/x"),
        &format!("GET /v1/datasets/{UUID}/nope"),
    ] {
        assert_eq!(misnamed(line), None, "{line}");
    }
}
