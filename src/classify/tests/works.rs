//! Which work a request is about, and which its answer begins; only before an upstream with a second cluster.

use bytes::Bytes;
use http::{Method, Request};
use tower::{Layer as _, ServiceExt as _, service_fn};

use super::{UUID, credentials};
use crate::classify::dify_routes;
use crate::classify::{Classifier, ClassifyLayer};
use crate::config::{Config, ReplicaConfig, UpstreamConfig};
use crate::types::cluster::{Bond, Work, WorkKind, Works};
use crate::types::request::ClassifiedRequest;
use crate::types::{Body, Failure};

fn config(standby: usize) -> Config {
    let replica = ReplicaConfig {
        url: "http://standby:5001".into(),
        ..ReplicaConfig::default()
    };
    let upstream = UpstreamConfig {
        standby: vec![replica; standby],
        ..UpstreamConfig::default()
    };
    Config {
        upstreams: [("api".into(), upstream)].into(),
        ..Config::default()
    }
}

fn works_before(standby: usize, line: &str) -> Works {
    let classifier = Classifier::new(&config(standby)).unwrap();
    let (method, target) = line.split_once(' ').unwrap();
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let method: Method = method.parse().unwrap();
    classifier
        .decide(&method, path, query, &credentials())
        .unwrap()
        .works
}

fn works(line: &str) -> Works {
    works_before(1, line)
}

#[test]
fn what_stops_work_or_asks_how_far_it_is_belongs_to_the_cluster_that_has_it() {
    let task = Some((Work::named(WorkKind::Task, b"t-1"), Bond::Must));
    for line in [
        "POST /v1/chat-messages/t-1/stop",
        "POST /v1/completion-messages/t-1/stop",
        "POST /v1/workflows/tasks/t-1/stop",
        "POST /api/chat-messages/t-1/stop",
        "POST /api/workflows/tasks/t-1/stop",
        &format!("POST /console/api/apps/{UUID}/chat-messages/t-1/stop"),
        &format!("POST /console/api/apps/{UUID}/workflow-runs/tasks/t-1/stop"),
        &format!("POST /console/api/installed-apps/{UUID}/chat-messages/t-1/stop"),
        &format!("POST /console/api/rag/pipelines/{UUID}/workflow-runs/tasks/t-1/stop"),
    ] {
        assert_eq!(works(line).about, task, "{line}");
    }
    let run = Work::named(WorkKind::WorkflowRun, UUID.as_bytes());
    let must = format!("GET /v1/workflows/run/{UUID}");
    assert_eq!(works(&must).about, Some((run, Bond::Must)));
    let prefers = format!("GET /console/api/apps/{UUID}/workflow-runs/{UUID}");
    assert_eq!(works(&prefers).about, Some((run, Bond::Prefers)));
    let batch = Some((Work::named(WorkKind::Batch, b"20251102-1"), Bond::Must));
    for line in [
        format!("GET /v1/datasets/{UUID}/documents/20251102-1/indexing-status"),
        format!("GET /console/api/datasets/{UUID}/batch/20251102-1/indexing-status"),
    ] {
        assert_eq!(works(&line).about, batch, "{line}");
    }
}

#[test]
fn no_way_to_stop_a_task_is_forgotten() {
    let stops = dify_routes::all().filter(|row| row.template.ends_with("/stop"));
    let mut count = 0;
    for row in stops {
        let path = row.template.replace("{task_id}", "t-1").replace(":uuid}", "}");
        let path: Vec<_> = path
            .split('/')
            .map(|segment| if segment.starts_with('{') { UUID } else { segment })
            .collect();
        let works = works(&format!("POST {}", path.join("/")));
        let task = (Work::named(WorkKind::Task, b"t-1"), Bond::Must);
        assert_eq!(works.about, Some(task), "{}", row.template);
        count += 1;
    }
    assert!(count >= 12, "{count} routes");
}

#[test]
fn a_conversation_is_changed_where_it_is_and_read_there_first() {
    let conversation = Work::named(WorkKind::Conversation, UUID.as_bytes());
    for (line, bond) in [
        (format!("POST /v1/conversations/{UUID}/name"), Bond::Must),
        (
            format!("DELETE /v1/conversations/{}", UUID.to_uppercase()),
            Bond::Must,
        ),
        (format!("PATCH /api/conversations/{UUID}/pin"), Bond::Must),
        (format!("GET /v1/conversations/{UUID}/variables"), Bond::Prefers),
        (
            format!("GET /v1/messages?user=u&conversation_id={UUID}"),
            Bond::Prefers,
        ),
        (
            format!("GET /api/messages?conversation_id={UUID}&limit=20"),
            Bond::Prefers,
        ),
    ] {
        assert_eq!(works(&line).about, Some((conversation, bond)), "{line}");
    }
    assert_eq!(works("GET /v1/conversations?user=u").about, None);
}

#[test]
fn answers_that_tell_of_new_work_are_known() {
    let names = |line: &str| works(line).begins.iter().map(|it| it.name).collect::<Vec<_>>();
    let generation = ["task_id", "workflow_run_id", "conversation_id"];
    for line in [
        "POST /v1/chat-messages",
        "POST /v1/workflows/run",
        "POST /api/completion-messages",
    ] {
        assert_eq!(names(line), generation, "{line}");
    }
    for line in [
        format!("POST /v1/datasets/{UUID}/document/create-by-text"),
        format!("POST /v1/datasets/{UUID}/document/create_by_file"),
        format!("POST /console/api/datasets/{UUID}/documents"),
        "POST /console/api/datasets/init".to_owned(),
    ] {
        assert_eq!(names(&line), ["batch"], "{line}");
    }
    assert!(names("GET /v1/parameters").is_empty());
    assert!(names(&format!("POST /v1/conversations/{UUID}/name")).is_empty());
}

#[test]
fn nothing_of_it_is_looked_for_before_one_cluster() {
    for line in ["POST /v1/chat-messages", "POST /v1/chat-messages/t-1/stop"] {
        assert_eq!(works_before(0, line), Works::default(), "{line}");
    }
}

/// What the stage hands on of a chat with this body.
async fn chat(path: &str, body: &str) -> (Works, Bytes) {
    let layer = ClassifyLayer::new(&config(1)).unwrap();
    let seen = std::sync::Arc::new(parking_lot::Mutex::new(None));
    let sink = seen.clone();
    let stage = layer.layer(service_fn(move |request: ClassifiedRequest| {
        let sink = sink.clone();
        async move {
            let body = http_body_util::BodyExt::collect(request.body).await?.to_bytes();
            *sink.lock() = Some((request.decision.works, body));
            Ok::<_, Failure>(http::Response::new(Body::Empty))
        }
    }));
    let request = Request::post(path)
        .header("authorization", "Bearer app-1")
        .header("content-type", "application/json")
        .body(Body::from(Bytes::from(body.to_owned())))
        .unwrap();
    stage.oneshot(request).await.unwrap();
    let seen = seen.lock().take();
    seen.unwrap()
}

#[tokio::test]
async fn a_chat_goes_on_with_the_conversation_that_its_body_names() {
    let about = Some((Work::named(WorkKind::Conversation, UUID.as_bytes()), Bond::Must));
    let body = format!("{{\"query\": \"hi\", \"conversation_id\": \"{UUID}\", \"user\": \"u\"}}");
    for path in ["/v1/chat-messages", "/api/chat-messages"] {
        let (works, passed) = chat(path, &body).await;
        assert_eq!(
            (works.about, passed),
            (about, Bytes::from(body.clone())),
            "{path}"
        );
    }
    for body in [
        "{\"query\": \"hi\", \"conversation_id\": \"\", \"user\": \"u\"}",
        "{\"query\": \"hi\", \"conversation_id\": null}",
        "{\"query\": \"hi\"}",
        "[\"conversation_id\"]",
    ] {
        assert_eq!(chat("/v1/chat-messages", body).await.0.about, None, "{body}");
    }
}
