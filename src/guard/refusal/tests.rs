//! Every refusal against the exchange in which Dify gave it.

use std::collections::{BTreeMap, BTreeSet};

use http::Request;
use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::types::known::KnownId;

const DATASET: &str = "/v1/datasets/{dataset_id:uuid}";
const DOCUMENT: &str = "/v1/datasets/{dataset_id:uuid}/documents/{document_id:uuid}";

/// Recorded exchanges about missing things: name, template, what is missing.
const RECORDED_REFUSALS: [(&str, &str, IdKind); 15] = [
    ("v1_info_bad_key", "/v1/info", IdKind::AppKey),
    ("v1_info_dataset_key_on_app_api", "/v1/info", IdKind::AppKey),
    ("v1_datasets_app_key", "/v1/datasets", IdKind::DatasetKey),
    ("v1_dataset_unknown", DATASET, IdKind::Dataset),
    ("v1_dataset_unknown_no_auth", DATASET, IdKind::Dataset),
    ("v1_dataset_get_deleted", DATASET, IdKind::Dataset),
    (
        "v1_retrieve_unknown_dataset",
        "/v1/datasets/{dataset_id:uuid}/retrieve",
        IdKind::Dataset,
    ),
    ("v1_document_unknown", DOCUMENT, IdKind::Document),
    (
        "v1_segments_unknown_document",
        "/v1/datasets/{dataset_id:uuid}/documents/{document_id:uuid}/segments",
        IdKind::Document,
    ),
    (
        "v1_conversation_variables_unknown",
        "/v1/conversations/{c_id:uuid}/variables",
        IdKind::Conversation,
    ),
    (
        "v1_file_preview_unknown",
        "/v1/files/{file_id:uuid}/preview",
        IdKind::UploadFile,
    ),
    (
        "v1_workflow_run_detail_unknown",
        "/v1/workflows/run/{workflow_run_id}",
        IdKind::WorkflowRun,
    ),
    (
        "files_signed_preview_badsign",
        "/files/{file_id:uuid}/file-preview",
        IdKind::UploadFile,
    ),
    (
        "files_signed_image_preview",
        "/files/{file_id:uuid}/image-preview",
        IdKind::UploadFile,
    ),
    ("web_passport_unknown_code", "/api/passport", IdKind::SiteCode),
];

struct Exchange {
    variant: String,
    name: String,
    request: Parts,
    status: u16,
    fields: HeaderMap,
    body: String,
}

fn fields(pairs: &Value) -> HeaderMap {
    let mut map = HeaderMap::new();
    for pair in pairs.as_array().into_iter().flatten() {
        let (name, value) = (pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
        map.append(
            HeaderName::try_from(name).unwrap(),
            HeaderValue::from_str(value).unwrap(),
        );
    }
    map
}

/// The recorded exchanges of these names, in all variants of the server.
fn exchanges(names: &[&str]) -> Vec<Exchange> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/captures.jsonl");
    let text = std::fs::read_to_string(path).unwrap();
    let mut found = Vec::new();
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let name = line["name"].as_str().unwrap();
        if !names.contains(&name) {
            continue;
        }
        let (asked, answer) = (&line["request"], &line["response"]);
        let mut request = Request::builder()
            .method(asked["method"].as_str().unwrap())
            .uri(asked["path"].as_str().unwrap())
            .body(())
            .unwrap();
        *request.headers_mut() = fields(&asked["headers"]);
        found.push(Exchange {
            variant: line["variant"].as_str().unwrap().to_owned(),
            name: name.to_owned(),
            request: request.into_parts().0,
            status: u16::try_from(answer["status"].as_u64().unwrap()).unwrap(),
            fields: fields(&answer["headers"]),
            body: answer["body"]["text"].as_str().unwrap_or_default().to_owned(),
        });
    }
    found
}

/// The stamp of each variant of the server.
fn stamps() -> BTreeMap<String, Stamp> {
    exchanges(&["v1_info__echo_chat", "gz_v1_info__gzip"])
        .into_iter()
        .map(|seen| {
            let stamp = Stamp::of(&seen.request.headers, &seen.fields).unwrap();
            (seen.variant, stamp)
        })
        .collect()
}

fn stamp() -> Stamp {
    stamps()["upstream_like"].clone()
}

/// What a client sees of an answer's fields, but for those that belong to the connection.
fn seen(fields: &HeaderMap) -> BTreeSet<(String, String)> {
    let of_connection = ["server", "date", "connection"];
    fields
        .iter()
        .filter(|(name, _)| !of_connection.contains(&name.as_str()))
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect()
}

fn body(answer: &Response<Body>) -> &[u8] {
    match answer.body() {
        Body::Full(bytes) => bytes,
        _ => b"",
    }
}

fn request(method: Method, target: &str, sent: &[(HeaderName, &'static str)]) -> Parts {
    let mut request = Request::builder().method(method).uri(target).body(()).unwrap();
    for (name, value) in sent {
        request
            .headers_mut()
            .append(name, HeaderValue::from_static(value));
    }
    request.into_parts().0
}

fn asked(kind: IdKind) -> Asked {
    Asked {
        kind,
        id: KnownId([kind as u8; 16]),
    }
}

#[test]
fn each_refusal_is_what_dify_was_recorded_to_answer() {
    let names = RECORDED_REFUSALS.map(|(name, ..)| name);
    let stamps = stamps();
    let mut compared = BTreeSet::new();
    for recorded in exchanges(&names) {
        let (_, template, kind) = RECORDED_REFUSALS
            .iter()
            .find(|(name, ..)| *name == recorded.name)
            .unwrap();
        let refusal = of(template, *kind).unwrap();
        let answer = refusal.answer(&recorded.request, &stamps[&recorded.variant]);
        let at = format!("{} {}", recorded.variant, recorded.name);
        if recorded.status == 500 {
            assert!(answer.is_none(), "{at}");
            continue;
        }
        let answer = answer.unwrap();
        assert_eq!(answer.status().as_u16(), recorded.status, "{at}");
        assert_eq!(seen(answer.headers()), seen(&recorded.fields), "{at}");
        assert_eq!(body(&answer), recorded.body.as_bytes(), "{at}");
        compared.insert((refusal.template, kind.as_str(), recorded.variant == "fork"));
    }
    // Every refusal was compared, and all but one with both sorts of servers.
    assert_eq!(compared.len(), REFUSALS.len() * 2 - 1);
}

#[test]
fn a_path_without_a_route_is_answered_as_difys_router_was_recorded_to() {
    let stamps = stamps();
    let recorded = exchanges(&["v1_dataset_nonuuid", "v1_404", "cors_v1_404"]);
    assert_eq!(recorded.len(), 6, "each of two sorts of servers");
    for recorded in recorded {
        let at = format!("{} {}", recorded.variant, recorded.name);
        let answer = no_route(&recorded.request, &stamps[&recorded.variant]).unwrap();
        assert_eq!(answer.status().as_u16(), recorded.status, "{at}");
        assert_eq!(seen(answer.headers()), seen(&recorded.fields), "{at}");
        assert_eq!(body(&answer), recorded.body.as_bytes(), "{at}");
    }
    let request = request(Method::GET, "/v1/datasets/x", &[]);
    assert!(
        no_route(&request, &stamps["compression_on"]).is_none(),
        "not recorded"
    );
    let mut later = stamp();
    later.version = HeaderValue::from_static("1.13.0");
    assert!(no_route(&request, &later).is_none(), "it may have a route there");
}

#[test]
fn what_was_not_recorded_is_not_refused() {
    for (template, kind) in [
        ("/v1/messages/{message_id:uuid}/feedbacks", IdKind::Message),
        ("/v1/conversations/{c_id:uuid}", IdKind::Conversation),
        ("/v1/conversations/{c_id:uuid}/name", IdKind::Conversation),
        ("/v1/apps/annotations/{annotation_id:uuid}", IdKind::Annotation),
        (
            "/v1/datasets/{dataset_id:uuid}/documents/{document_id:uuid}/segments/{segment_id:uuid}",
            IdKind::Segment,
        ),
        (
            "/v1/datasets/{dataset_id:uuid}/documents/{document_id:uuid}/update-by-text",
            IdKind::Document,
        ),
        (
            "/v1/datasets/{dataset_id:uuid}/document/create-by-text",
            IdKind::Dataset,
        ),
        (
            "/v1/datasets/{dataset_id:uuid}/documents/{batch}/indexing-status",
            IdKind::Dataset,
        ),
        ("/console/api/apps/{app_id:uuid}", IdKind::App),
        ("/console/api/datasets/{dataset_id:uuid}", IdKind::Dataset),
        ("/api/messages/{message_id:uuid}/feedbacks", IdKind::Message),
        ("/api/site", IdKind::SiteCode),
        ("/mcp/server/{server_code}/mcp", IdKind::McpServer),
        ("/triggers/webhook/{webhook_id}", IdKind::Webhook),
    ] {
        assert_eq!(of(template, kind), None, "{template}");
        let found = find(template, &[asked(kind)], &stamp(), |_| Presence::Missing);
        assert_eq!(found, None, "{template}");
    }
}

#[test]
fn a_missing_data_set_is_refused_on_every_route_but_those_with_other_words() {
    let rules = include_str!("../../../tests/fixtures/routes.tsv");
    let rules = rules.lines().filter_map(|line| line.split('\t').next());
    let mut templates: Vec<_> = rules
        .filter(|rule| rule.starts_with("/v1/datasets/<uuid:dataset_id>"))
        .map(|rule| {
            let rule = rule
                .replace("<string:", "{")
                .replace("<uuid:", "{uuid:")
                .replace('>', "}");
            rule.split('/')
                .map(|part| match part.strip_prefix("{uuid:") {
                    Some(name) => format!("{{{}:uuid}}", name.trim_end_matches('}')),
                    None => part.to_owned(),
                })
                .collect::<Vec<_>>()
                .join("/")
        })
        .collect();
    templates.dedup();
    let (refused, others): (Vec<_>, Vec<_>) = templates
        .iter()
        .partition(|template| of(template, IdKind::Dataset).is_some());
    let mut others: Vec<_> = others.into_iter().map(String::as_str).collect();
    others.sort_unstable();
    assert_eq!(others, OTHER_WORDS);
    assert_eq!(refused.len(), 16, "{refused:?}");
}

#[test]
fn the_first_that_is_missing_is_refused_when_all_before_it_is_known_to_exist() {
    use IdKind::{Dataset, DatasetKey, Document};
    let asks = [asked(Dataset), asked(DatasetKey), asked(Document)];
    let found = |missing: &[IdKind], unsure: &[IdKind], stamp: &Stamp| {
        find(DOCUMENT, &asks, stamp, |asked| match asked.kind {
            kind if missing.contains(&kind) => Presence::Missing,
            kind if unsure.contains(&kind) => Presence::Unsure,
            _ => Presence::Exists,
        })
        .map(|(asked, refusal)| (asked.kind, refusal.status().as_u16()))
    };
    let known = stamp();
    assert_eq!(found(&[], &[], &known), None);
    assert_eq!(found(&[Document], &[], &known), Some((Document, 404)));
    assert_eq!(found(&[Document], &[DatasetKey], &known), None);
    assert_eq!(
        found(&[Document, DatasetKey], &[], &known),
        Some((DatasetKey, 401))
    );
    assert_eq!(found(&[Dataset, DatasetKey], &[], &known), Some((Dataset, 404)));
    assert_eq!(found(&[Dataset], &[DatasetKey], &known), Some((Dataset, 404)));

    // Another version may look for the key first.
    let other = Stamp {
        version: HeaderValue::from_static("1.14.0"),
        ..known
    };
    assert_eq!(found(&[Dataset, DatasetKey], &[], &other), None);
    assert_eq!(found(&[Dataset], &[DatasetKey], &other), None);
    assert_eq!(found(&[Dataset], &[], &other), Some((Dataset, 404)));
    assert_eq!(found(&[DatasetKey], &[], &other), Some((DatasetKey, 401)));
}

#[test]
fn words_that_depend_on_the_routes_of_one_version_are_not_said_for_another() {
    let other = Stamp {
        version: HeaderValue::from_static("1.12.2"),
        ..stamp()
    };
    let passport = request(Method::GET, "/api/passport", &[]);
    let refusal = of("/api/passport", IdKind::SiteCode).unwrap();
    assert!(refusal.answer(&passport, &stamp()).is_some());
    assert!(refusal.answer(&passport, &other).is_none());
    let info = request(Method::GET, "/v1/info", &[]);
    let answer = of("/v1/info", IdKind::AppKey).unwrap().answer(&info, &other);
    assert_eq!(answer.unwrap().headers()[X_VERSION], "1.12.2");
}

#[test]
fn head_has_the_fields_and_no_body() {
    let refusal = of("/v1/info", IdKind::AppKey).unwrap();
    let [get, head] = [Method::GET, Method::HEAD].map(|method| {
        refusal
            .answer(&request(method, "/v1/info", &[]), &stamp())
            .unwrap()
    });
    assert_eq!(get.headers(), head.headers());
    assert_eq!(get.headers()[CONTENT_LENGTH], body(&get).len().to_string());
    assert!(head.body().is_empty());
}

#[test]
fn an_origin_is_allowed_as_recorded_and_unusual_ones_are_left_to_dify() {
    let refusal = of("/v1/info", IdKind::AppKey).unwrap();
    let stamps = stamps();
    let mut recorded = exchanges(&["cors_v1_401"]);
    assert!(!recorded.is_empty());
    for recorded in &mut recorded {
        let answer = refusal
            .answer(&recorded.request, &stamps[&recorded.variant])
            .unwrap();
        let mut given = answer.headers().clone();
        for fields in [&mut given, &mut recorded.fields] {
            fields.remove(CONTENT_LENGTH);
        }
        assert_eq!(seen(&given), seen(&recorded.fields));
    }
    for origins in [
        &[(ORIGIN, "https://a.example"), (ORIGIN, "https://b.example")][..],
        &[(ORIGIN, "")],
        &[(ORIGIN, "https://a.example, https://b.example")],
    ] {
        let asked = request(Method::GET, "/v1/info", origins);
        assert!(refusal.answer(&asked, &stamp()).is_none(), "{origins:?}");
    }
    let asked = request(Method::GET, "/api/passport", &[(ORIGIN, "https://a.example")]);
    let refusal = of("/api/passport", IdKind::SiteCode).unwrap();
    assert!(refusal.answer(&asked, &stamp()).is_none());
}

#[test]
fn a_server_that_compresses_says_so_on_short_answers_too() {
    let stamp = &stamps()["compression_on"];
    let vary = |sent: &[(HeaderName, &'static str)]| {
        let refusal = of("/v1/info", IdKind::AppKey).unwrap();
        let answer = refusal
            .answer(&request(Method::GET, "/v1/info", sent), stamp)
            .unwrap();
        answer.headers()[VARY].to_str().unwrap().to_owned()
    };
    assert_eq!(vary(&[]), "Accept-Encoding");
    assert_eq!(vary(&[(ORIGIN, "https://a.example")]), "Origin, Accept-Encoding");
    // From this length on it would have to be compressed.
    assert!(REFUSALS.iter().all(|refusal| refusal.body.len() < 450));
}

#[test]
fn a_query_that_dify_looks_at_first_is_left_to_it() {
    for (query, by_user, signed) in [
        ("", true, false),
        ("user=u-1", true, false),
        ("user=", false, false),
        ("user=a%00", false, false),
        ("user=u&limit=x", false, false),
        ("timestamp=1&nonce=2&sign=3", false, true),
        ("sign=a==&nonce=2&timestamp=1", false, true),
        ("timestamp=1&nonce=2", false, false),
        ("timestamp=1&nonce=2&sign=", false, false),
        ("timestamp=1&nonce=2&sign=3&sign=4", false, false),
        ("timestamp=1&nonce=2&sign=3&as_attachment=x", false, false),
        ("timestamp=1&nonce=2&sign=3&x", false, false),
    ] {
        assert_eq!(Query::User.is(Some(query)), by_user, "{query}");
        assert_eq!(Query::Signature.is(Some(query)), signed, "{query}");
        assert!(Query::Any.is(Some(query)));
    }
}

#[test]
fn a_stamp_comes_only_from_answers_that_tell_everything() {
    let [seen] = &exchanges(&["v1_info__echo_chat"])
        .into_iter()
        .filter(|seen| seen.variant == "upstream_like")
        .collect::<Vec<_>>()[..]
    else {
        panic!("one exchange");
    };
    assert!(Stamp::of(&seen.request.headers, &seen.fields).is_some());
    assert_eq!(Stamp::of(&HeaderMap::new(), &seen.fields), None);
    let mut cookies = seen.request.headers.clone();
    cookies.insert(COOKIE, HeaderValue::from_static("a=b"));
    assert_eq!(Stamp::of(&cookies, &seen.fields), None);
    let mut traced = seen.fields.clone();
    traced.insert(X_TRACE_ID, HeaderValue::from_static("1"));
    assert_eq!(Stamp::of(&seen.request.headers, &traced), None);
    for name in [X_VERSION, X_ENV, ACCESS_CONTROL_EXPOSE_HEADERS] {
        let mut other = seen.fields.clone();
        other.remove(&name);
        assert_eq!(Stamp::of(&seen.request.headers, &other), None, "{name}");
    }
}

#[test]
fn a_key_is_repeated_only_when_it_is_sure_how() {
    let stamp = &stamps()["fork"];
    let refusal = of("/v1/info", IdKind::AppKey).unwrap();
    let cookie = |sent: &[(HeaderName, &'static str)]| {
        let answer = refusal.answer(&request(Method::GET, "/v1/info", sent), stamp);
        answer.map(|answer| answer.headers().get(SET_COOKIE).cloned())
    };
    let key = (AUTHORIZATION, "Bearer app-1");
    assert_eq!(
        cookie(std::slice::from_ref(&key)),
        Some(Some(HeaderValue::from_static("x-token=app-1; HttpOnly; Path=/")))
    );
    assert_eq!(cookie(&[]), Some(None));
    assert_eq!(cookie(&[key.clone(), (COOKIE, "x-token=Bearer app-1")]), None);
    assert_eq!(cookie(&[key.clone(), key]), None);
    assert_eq!(cookie(&[(AUTHORIZATION, "Bearer app,1")]), None);
    assert_eq!(cookie(&[(AUTHORIZATION, "Bear")]), None);
}

proptest! {
    #[test]
    fn no_request_makes_an_answer_panic(
        path in "/[!-~&&[^?#]]{0,40}", query in prop::option::of("[!-~&&[^#]]{0,40}"),
        key in prop::collection::vec(0x20_u8..0xff, 0..20), origin in "[ -~]{0,20}", which in any::<prop::sample::Index>(),
    ) {
        let target = query.map_or(path.clone(), |query| format!("{path}?{query}"));
        if let Ok(request) = Request::builder().uri(target).body(()) {
            let mut parts = request.into_parts().0;
            parts.headers.extend(HeaderValue::from_bytes(&key).map(|key| (AUTHORIZATION, key)));
            parts.headers.extend(HeaderValue::from_str(&origin).map(|origin| (ORIGIN, origin)));
            for stamp in [stamp_with(false), stamp_with(true)] {
                let refusal = &REFUSALS[which.index(REFUSALS.len())];
                if let Some(answer) = refusal.answer(&parts, &stamp) {
                    let length = answer.headers()[CONTENT_LENGTH].to_str().unwrap().parse();
                    prop_assert_eq!(Ok(body(&answer).len()), length);
                }
            }
        }
    }
}

fn stamp_with(repeats_key: bool) -> Stamp {
    Stamp {
        version: HeaderValue::from_static(RECORDED),
        env: HeaderValue::from_static("PRODUCTION"),
        exposes: HeaderValue::from_static("X-Env"),
        varies: false,
        repeats_key,
    }
}
