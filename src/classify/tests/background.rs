//! Which requests begin work that Celery does, and which answers tell of it.

use super::{UUID, decide};
use crate::classify::dify_routes;
use crate::types::ids::{Batch, Tag, TagKind, Tags};
use crate::types::request::Background;

const SERVICE: &str = "/v1/datasets/{dataset_id:uuid}";
const CONSOLE: &str = "/console/api/datasets/{dataset_id:uuid}";

/// Method and what follows the data set's path; under both APIs.
const SERVICE_BEGINS: [(&str, &str); 14] = [
    ("PATCH", ""),
    ("DELETE", ""),
    ("POST", "/document/create-by-file"),
    ("POST", "/document/create-by-text"),
    ("POST", "/document/create_by_file"),
    ("POST", "/document/create_by_text"),
    ("DELETE", "/documents/{document_id:uuid}"),
    ("POST", "/documents/{document_id:uuid}/segments/{segment_id:uuid}"),
    (
        "DELETE",
        "/documents/{document_id:uuid}/segments/{segment_id:uuid}",
    ),
    ("POST", "/documents/{document_id:uuid}/update-by-file"),
    ("POST", "/documents/{document_id:uuid}/update-by-text"),
    ("POST", "/documents/{document_id:uuid}/update_by_file"),
    ("POST", "/documents/{document_id:uuid}/update_by_text"),
    ("PATCH", "/documents/status/{action}"),
];
const CONSOLE_BEGINS: [(&str, &str); 19] = [
    ("PATCH", ""),
    ("DELETE", ""),
    ("POST", "/documents"),
    ("DELETE", "/documents"),
    ("DELETE", "/documents/{document_id:uuid}"),
    ("GET", "/documents/{document_id:uuid}/notion/sync"),
    ("PATCH", "/documents/{document_id:uuid}/processing/{action}"),
    ("PATCH", "/documents/{document_id:uuid}/processing/pause"),
    ("PATCH", "/documents/{document_id:uuid}/processing/resume"),
    ("PATCH", "/documents/{document_id:uuid}/segment/{action}"),
    ("DELETE", "/documents/{document_id:uuid}/segments"),
    (
        "PATCH",
        "/documents/{document_id:uuid}/segments/{segment_id:uuid}",
    ),
    (
        "DELETE",
        "/documents/{document_id:uuid}/segments/{segment_id:uuid}",
    ),
    ("POST", "/documents/{document_id:uuid}/segments/batch_import"),
    ("GET", "/documents/{document_id:uuid}/website-sync"),
    ("POST", "/documents/generate-summary"),
    ("PATCH", "/documents/status/{action}/batch"),
    ("GET", "/notion/sync"),
    ("POST", "/retry"),
];
/// Where the data set is not named in the path.
const ELSEWHERE_BEGINS: [(&str, &str); 4] = [
    ("POST", "/console/api/datasets/batch_import_status/{job_id:uuid}"),
    ("POST", "/console/api/datasets/init"),
    (
        "POST",
        "/console/api/rag/pipelines/{pipeline_id:uuid}/workflows/publish",
    ),
    (
        "POST",
        "/console/api/rag/pipelines/{pipeline_id:uuid}/workflows/published/run",
    ),
];

fn all_that_begin() -> Vec<(&'static str, String)> {
    let under = |root: &'static str, rows: &[(&'static str, &str)]| -> Vec<_> {
        rows.iter()
            .map(|(method, rest)| (*method, format!("{root}{rest}")))
            .collect()
    };
    [
        under(SERVICE, &SERVICE_BEGINS),
        under(CONSOLE, &CONSOLE_BEGINS),
        under("", &ELSEWHERE_BEGINS),
    ]
    .concat()
}

fn filled(template: &str) -> String {
    let path = ["dataset_id", "document_id", "segment_id", "job_id", "pipeline_id"]
        .iter()
        .fold(template.to_owned(), |path, name| {
            path.replace(&format!("{{{name}:uuid}}"), UUID)
        });
    path.replace("{action}", "enable").replace("{batch}", "20261122")
}

fn one() -> Tags {
    let list = Tag::of(TagKind::Datasets, b"list");
    Tags::from_slice(&[Tag::of(TagKind::Datasets, UUID.as_bytes()), list])
}

#[test]
fn every_request_that_begins_work_is_known_with_the_data_sets_that_it_touches() {
    let every = Tags::from_slice(&[Tag::all(TagKind::Datasets)]);
    for (method, template) in all_that_begin() {
        let decision = decide(&format!("{method} {}", filled(&template)));
        assert_eq!(decision.template, template);
        let named = template.contains("dataset_id") && (method, template.as_str()) != ("DELETE", CONSOLE);
        let expected = if named { one() } else { every.clone() };
        assert_eq!(
            decision.background,
            Background::Begins(expected),
            "{method} {template}"
        );
    }
}

#[test]
fn no_other_row_begins_work_or_tells_of_it() {
    let begin = all_that_begin();
    let (mut begins, mut tells) = (0, Vec::new());
    for row in dify_routes::all() {
        if !row.begins.is_empty() {
            assert!(
                begin.iter().any(|(_, template)| template == row.template),
                "{}",
                row.template
            );
            assert_eq!(row.begins, row.ends, "{}", row.template);
            begins += 1;
        }
        if !row.tells.is_empty() {
            assert!(row.ends.is_empty(), "{}", row.template);
            tells.push(row.template);
        }
    }
    // Three rows stand for two methods each.
    assert_eq!(begins, begin.len() - 3);
    tells.sort_unstable();
    assert_eq!(
        tells,
        [
            format!("{CONSOLE}/batch/{{batch}}/indexing-status"),
            format!("{SERVICE}/documents/{{batch}}/indexing-status"),
        ]
    );
}

#[test]
fn the_status_of_a_batch_tells_of_everything_that_may_wait_for_it() {
    let batch = Batch::named(b"20261122");
    for template in [
        format!("{CONSOLE}/batch/{{batch}}/indexing-status"),
        format!("{SERVICE}/documents/{{batch}}/indexing-status"),
    ] {
        let Background::Tells(told, tags) = decide(&format!("GET {}", filled(&template))).background else {
            panic!("{template} tells nothing")
        };
        assert_eq!(told, batch);
        for tag in one().into_iter().chain([Tag::all(TagKind::Datasets)]) {
            assert!(tags.contains(&tag), "{template}");
        }
    }
}

#[test]
fn what_is_done_when_it_is_answered_begins_nothing() {
    for done in ["/metadata", "/documents/metadata", "/metadata/built-in/enable"] {
        let decision = decide(&format!("POST /v1/datasets/{UUID}{done}"));
        assert!(!decision.invalidates.is_empty());
        assert_eq!(decision.background, Background::None, "{done}");
    }
}
