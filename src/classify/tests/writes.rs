//! What was measured on a real dify-api: which reads change after which write.

use super::{UUID, decide, decide_with, ends, fields};
use crate::types::ids::{Tag, TagKind};
use crate::types::request::CacheClass;

const APP: &str = "/console/api/apps/86fedc0e-02f5-48d7-b816-2eacbb40ae5a";
const DATASET: &str = "/v1/datasets/86fedc0e-02f5-48d7-b816-2eacbb40ae5a";
const DOCUMENT: &str =
    "/v1/datasets/86fedc0e-02f5-48d7-b816-2eacbb40ae5a/documents/11111111-2222-4333-8444-555555555555";

const SERVICE_READS: [&str; 8] = [
    "/v1/info",
    "/v1/parameters",
    "/v1/meta",
    "/v1/site",
    "/v1/conversations?user=u",
    "/v1/messages?user=u&conversation_id=c",
    "/v1/apps/annotations",
    "/v1/app/feedbacks",
];

/// Asserts that the write, also with its user known, makes each read miss.
fn changes(write: &str, reads: &[&str]) {
    let mut decision = decide(write);
    for _ in 0..2 {
        for read in reads {
            let read = decide(&format!("GET {read}"));
            assert_ne!(
                read.cache,
                CacheClass::Never,
                "{} is not kept at all",
                read.template
            );
            assert!(ends(&decision, &read), "{write} leaves {}", read.template);
        }
        decision.narrow_to("u");
    }
}

fn spares(write: &str, reads: &[&str]) {
    for read in reads {
        let read = decide(&format!("GET {read}"));
        assert_ne!(
            read.cache,
            CacheClass::Never,
            "{} is not kept at all",
            read.template
        );
        assert!(!ends(&decide(write), &read), "{write} ends {}", read.template);
    }
}

#[test]
fn console_writes_of_an_app_end_what_both_apis_say_of_it() {
    changes(&format!("PUT {APP}"), &["/v1/info"]);
    changes(&format!("POST {APP}/site"), &["/v1/site", "/api/site"]);
    changes(
        &format!("POST {APP}/workflows/publish"),
        &["/v1/parameters", "/api/parameters", "/v1/meta"],
    );
    changes(
        &format!("POST {APP}/model-config"),
        &["/v1/parameters", "/api/parameters"],
    );
    changes(&format!("POST {APP}/name"), &["/v1/info"]);
    changes(&format!("POST {APP}/icon"), &["/v1/site", "/api/site"]);
    changes(
        "POST /console/api/tag-bindings/create",
        &["/v1/info", "/v1/datasets"],
    );
}

#[test]
fn saving_a_draft_ends_nothing() {
    let write = format!("POST {APP}/workflows/draft");
    spares(&write, &SERVICE_READS);
    spares(
        &write,
        &[
            "/api/site",
            "/api/parameters",
            "/v1/datasets",
            "/v1/workflows/logs",
        ],
    );
}

#[test]
fn switching_an_api_ends_every_answer_of_it() {
    changes(&format!("POST {APP}/api-enable"), &SERVICE_READS);
    changes(
        &format!("POST {APP}/site-enable"),
        &["/api/site", "/api/parameters", "/api/conversations"],
    );
}

#[test]
fn deleting_a_key_ends_every_answer_that_was_kept_for_any_key() {
    let key = "11111111-2222-4333-8444-555555555555";
    for write in [
        format!("DELETE {APP}/api-keys/{key}"),
        format!("DELETE /console/api/datasets/api-keys/{key}"),
        format!("DELETE {APP}"),
    ] {
        changes(&write, &SERVICE_READS);
        changes(
            &write,
            &[
                "/v1/workflows/logs",
                "/v1/workflows/run/x",
                "/v1/datasets",
                DATASET,
                "/v1/nope",
            ],
        );
        changes(
            &write,
            &[
                DOCUMENT,
                &format!("{DOCUMENT}/segments"),
                &format!("{DATASET}/metadata"),
            ],
        );
        changes(
            &write,
            &[
                &format!("/v1/files/{key}/preview"),
                "/v1/workspaces/current/models/model-types/llm",
            ],
        );
    }
}

#[test]
fn messages_end_the_conversations_of_their_user() {
    changes(
        "POST /v1/chat-messages",
        &[
            "/v1/conversations?user=u",
            "/v1/messages?user=u&conversation_id=c",
        ],
    );
    changes("POST /v1/completion-messages", &["/v1/messages?user=u"]);
    changes("POST /v1/chat-messages/t/stop", &["/v1/messages?user=u"]);
    spares(
        "POST /v1/chat-messages",
        &["/v1/info", "/v1/parameters", "/v1/datasets", DATASET],
    );
    changes(
        &format!("POST /v1/messages/{UUID}/feedbacks"),
        &["/v1/messages?user=u", "/v1/app/feedbacks"],
    );
    changes(
        &format!("POST /v1/conversations/{UUID}/name"),
        &["/v1/conversations?user=u"],
    );
    changes(
        &format!("DELETE /v1/conversations/{UUID}"),
        &["/v1/conversations?user=u"],
    );
    let variables = format!("/v1/conversations/{UUID}/variables");
    changes(
        &format!("PUT {variables}/{UUID}"),
        &[&format!("{variables}?user=u")],
    );
}

#[test]
fn a_known_user_leaves_the_conversations_of_the_others() {
    let mut write = decide("POST /v1/chat-messages");
    assert!(write.wants_user);
    let theirs = decide("GET /v1/conversations?user=other");
    assert!(ends(&write, &theirs));
    write.narrow_to("u");
    assert!(!ends(&write, &theirs));
    assert!(ends(&write, &decide("GET /v1/conversations?user=u")));
    assert!(!write.invalidates.contains(&Tag::all(TagKind::Conversations)));
}

#[test]
fn a_workflow_run_ends_the_logs_but_no_finished_run() {
    changes("POST /v1/workflows/run", &["/v1/workflows/logs"]);
    changes("POST /api/workflows/run", &["/v1/workflows/logs"]);
    spares("POST /v1/workflows/run", &["/v1/workflows/run/x", "/v1/info"]);
}

#[test]
fn data_set_writes_end_the_data_set_and_the_lists() {
    let documents = format!("{DATASET}/documents");
    let segments = format!("{DOCUMENT}/segments");
    changes(&format!("PATCH {DATASET}"), &["/v1/datasets", DATASET]);
    let three = ["/v1/datasets", DATASET, &documents];
    changes(&format!("POST {DATASET}/document/create-by-text"), &three);
    changes(&format!("DELETE {DOCUMENT}"), &three);
    changes(
        &format!("POST {segments}"),
        &["/v1/datasets", DATASET, &documents, DOCUMENT, &segments],
    );
    changes(
        &format!("POST {DATASET}/metadata"),
        &[&format!("{DATASET}/metadata")],
    );
    changes(
        "POST /v1/datasets/tags",
        &["/v1/datasets/tags", "/v1/datasets", &format!("{DATASET}/tags")],
    );
    changes("POST /console/api/datasets/init", &three);
    changes(&format!("GET /console/api/datasets/{UUID}/notion/sync"), &three);
    spares(
        &format!("POST {DATASET}/retrieve"),
        &[DATASET, &segments, "/v1/datasets"],
    );
    spares(
        "PATCH /v1/datasets/99999999-2222-4333-8444-555555555555",
        &[DATASET, &documents],
    );
}

#[test]
fn the_web_app_ends_what_visitors_and_keys_see() {
    changes(
        "POST /api/chat-messages",
        &["/api/conversations", "/api/messages", "/v1/conversations?user=u"],
    );
    changes(
        &format!("PATCH /api/conversations/{UUID}/pin"),
        &["/api/conversations"],
    );
    changes("POST /api/saved-messages", &["/api/saved-messages"]);
    changes(
        &format!("GET /api/messages/{UUID}/more-like-this"),
        &["/api/messages"],
    );
    for run in [
        "POST /inner/api/invoke/app",
        "POST /mcp/server/x/mcp",
        "GET /triggers/webhook/x",
    ] {
        changes(
            run,
            &[
                "/api/conversations",
                "/v1/conversations?user=u",
                "/v1/workflows/logs",
            ],
        );
    }
}

#[test]
fn an_account_rename_ends_every_answer_with_a_name_in_it() {
    let reads = ["/v1/info", "/v1/workflows/logs", "/v1/datasets", DATASET];
    changes("POST /console/api/account/name", &reads);
    spares(
        "POST /console/api/account/name",
        &["/v1/parameters", "/v1/conversations?user=u"],
    );
}

#[test]
fn providers_and_plugins_end_the_models() {
    let models = "/v1/workspaces/current/models/model-types/llm";
    let current = "/console/api/workspaces/current";
    changes(
        &format!("POST {current}/model-providers/langgenius/openai/credentials"),
        &[models, DATASET],
    );
    changes(&format!("POST {current}/plugin/uninstall"), &[models, "/v1/meta"]);
    changes(&format!("POST {current}/default-model"), &[models]);
    changes(&format!("POST {current}/tool-provider/api/update"), &["/v1/meta"]);
    changes(
        "POST /console/api/setup",
        &["/console/api/system-features", "/api/system-features"],
    );
}

#[test]
fn a_call_of_grpc_ends_nothing_that_is_stored() {
    let line = "POST /pkg.Service/Method";
    let of = |kind| decide_with(line, &fields(&[("content-type", kind)])).invalidates;
    assert!(of("application/grpc").is_empty());
    assert!(!of("application/json").is_empty());
}
