//! Which things a request is about that Dify has or has not: keys, codes, and the ids in its path.
//!
//! A template alone says what is asked: its variables by their names, its key by where it stands. That is worked out
//! when the table is compiled. The guard, behind this stage, knows what exists.

use http::HeaderMap;
use http::header::{AUTHORIZATION, HeaderName};

use crate::types::known::{IdKind, KnownId};
use crate::types::request::{Asked, Asks};

const X_APP_CODE: HeaderName = HeaderName::from_static("x-app-code");

/// What the variables of templates are of. Other names (jobs, tasks, batches, tools' files) are nothing that is
/// guarded.
const VARIABLES: [(&str, IdKind); 14] = [
    ("{dataset_id:uuid}", IdKind::Dataset),
    ("{document_id:uuid}", IdKind::Document),
    ("{segment_id:uuid}", IdKind::Segment),
    ("{child_chunk_id:uuid}", IdKind::ChildChunk),
    ("{c_id:uuid}", IdKind::Conversation),
    ("{conversation_id:uuid}", IdKind::Conversation),
    ("{message_id:uuid}", IdKind::Message),
    ("{annotation_id:uuid}", IdKind::Annotation),
    ("{file_id:uuid}", IdKind::UploadFile),
    ("{run_id:uuid}", IdKind::WorkflowRun),
    ("{workflow_run_id}", IdKind::WorkflowRun),
    ("{app_id:uuid}", IdKind::App),
    ("{server_code}", IdKind::McpServer),
    ("{webhook_id}", IdKind::Webhook),
];

/// Which keys the service API wants, by the beginning of the template; the first that fits counts. The type of a key
/// is that of the route: Dify looks for the whole text among those, whatever it begins with.
const KEYS: [(&str, Option<IdKind>); 4] = [
    ("/v1/swagger", None),
    ("/v1/datasets", Some(IdKind::DatasetKey)),
    ("/v1/workspaces/", Some(IdKind::DatasetKey)),
    ("/v1/", Some(IdKind::AppKey)),
];

/// Templates in which a variable of a known name is something else: apps of the market place.
const OTHERS: [&str; 3] = [
    "/console/api/admin/",
    "/console/api/explore/",
    "/console/api/trial-apps/",
];

/// How to find one thing in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    Nothing,
    /// The key of the field `Authorization`.
    Bearer(IdKind),
    /// The field `X-App-Code`.
    AppCode,
    /// This segment of the path, counted from 0.
    Segment(u8, IdKind),
}

/// How to find everything that a route asks for, in the order in which Dify looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wants([Want; 5]);

impl Wants {
    /// What a path of this template, as the table writes it, asks for.
    pub(crate) const fn of_template(template: &str) -> Self {
        let mut wants = [Want::Nothing; 5];
        let mut count = 0;
        let text = template.as_bytes();
        let key = key_of(text);
        if is(text, b"/api/passport") {
            wants[0] = Want::AppCode;
            count = 1;
        }
        // The data set comes even before the key: without one its absence is told all the same.
        let data_set_first = starts_with(text, b"/v1/datasets/{dataset_id:uuid}");
        if let (Some(kind), false) = (key, data_set_first) {
            wants[count] = Want::Bearer(kind);
            count += 1;
        }
        let (mut at, mut segment) = (1, 0);
        while at <= text.len() {
            let mut end = at;
            while end < text.len() && text[end] != b'/' {
                end += 1;
            }
            if let Some(kind) = variable_of(text, at, end) {
                wants[count] = Want::Segment(segment, kind);
                count += 1;
                if let (Some(kind), true, 1) = (key, data_set_first, count) {
                    wants[count] = Want::Bearer(kind);
                    count += 1;
                }
            }
            segment += 1;
            at = end + 1;
        }
        Self(wants)
    }

    /// What this request asks for. Ends before the first thing that it does not name plainly, for what Dify makes of
    /// that is not known, nor whether it looks any further.
    pub(super) fn of(&self, path: &str, headers: &HeaderMap) -> Asks {
        let mut asks = Asks::new();
        let mut segments = path.split('/').skip(1);
        let mut next = 0;
        for want in self.0 {
            let found = match want {
                Want::Nothing => break,
                Want::Bearer(kind) => bearer(headers).map(|key| (kind, KnownId::of_text(key))),
                Want::AppCode => app_code(headers).map(|code| (IdKind::SiteCode, KnownId::of_text(code))),
                Want::Segment(place, kind) => {
                    let segment = segments.nth(usize::from(place) - next);
                    next = usize::from(place) + 1;
                    segment.and_then(|text| Some((kind, named(kind, text)?)))
                }
            };
            let Some((kind, id)) = found else { break };
            asks.push(Asked { kind, id });
        }
        asks
    }
}

/// Where in a request stands each thing that a route asks for, in the order of [`Wants::of`].
pub(super) fn places(wants: &Wants, template: &'static str) -> Vec<String> {
    let place = |want: &Want| match want {
        Want::Nothing => None,
        Want::Bearer(_) => Some("field Authorization".to_owned()),
        Want::AppCode => Some("field X-App-Code".to_owned()),
        Want::Segment(place, _) => {
            let name = template.split('/').nth(usize::from(*place) + 1)?;
            let name = name.trim_matches(['{', '}']).trim_end_matches(":uuid");
            Some(format!("segment {name}"))
        }
    };
    wants.0.iter().filter_map(place).collect()
}

/// The kind of the first variable of `template` for which `path`, which fits it but for UUIDs, has none; `None` too
/// when that is nothing that is guarded.
pub(super) fn misnamed(template: &str, path: &str) -> Option<IdKind> {
    let mut at = 0;
    for (variable, segment) in template.split('/').zip(path.split('/')) {
        let end = at + variable.len();
        if variable.ends_with(":uuid}") && KnownId::of_uuid(segment.as_bytes()).is_none() {
            return variable_of(template.as_bytes(), at, end);
        }
        at = end + 1;
    }
    None
}

/// The id that a segment of the path is.
fn named(kind: IdKind, segment: &str) -> Option<KnownId> {
    match kind {
        IdKind::McpServer | IdKind::Webhook => Some(KnownId::of_text(segment.as_bytes())),
        _ => KnownId::of_uuid(segment.as_bytes()),
    }
}

/// The key as Dify compares it with those that it has: what stands behind the scheme, without the blanks around it. One
/// that has anything unusual in it is none.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let (scheme, key) = only(headers, &AUTHORIZATION)?.split_at_checked(7)?;
    let key = key.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"bearer ") && is_plain(key)).then_some(key)
}

fn app_code(headers: &HeaderMap) -> Option<&[u8]> {
    only(headers, &X_APP_CODE).filter(|code| is_plain(code))
}

fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h [u8]> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then_some(value.as_bytes())
}

/// Whether a key or code has nothing in it that gunicorn, Dify or its database could take for something else.
fn is_plain(text: &[u8]) -> bool {
    (1..=255).contains(&text.len())
        && text
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

const fn key_of(template: &[u8]) -> Option<IdKind> {
    let mut at = 0;
    while at < KEYS.len() {
        let (start, kind) = KEYS[at];
        if starts_with(template, start.as_bytes()) {
            // The index of the API has no key.
            return if template.len() == "/v1/".len() {
                None
            } else {
                kind
            };
        }
        at += 1;
    }
    None
}

const fn variable_of(template: &[u8], start: usize, end: usize) -> Option<IdKind> {
    let mut at = 0;
    while at < OTHERS.len() {
        if starts_with(template, OTHERS[at].as_bytes()) {
            return None;
        }
        at += 1;
    }
    at = 0;
    while at < VARIABLES.len() {
        let (name, kind) = VARIABLES[at];
        if end - start == name.len() && starts_with(template.split_at(start).1, name.as_bytes()) {
            return Some(kind);
        }
        at += 1;
    }
    None
}

const fn is(text: &[u8], other: &[u8]) -> bool {
    text.len() == other.len() && starts_with(text, other)
}

const fn starts_with(text: &[u8], start: &[u8]) -> bool {
    if text.len() < start.len() {
        return false;
    }
    let mut at = 0;
    while at < start.len() {
        if text[at] != start[at] {
            return false;
        }
        at += 1;
    }
    true
}
