//! Work that outlives the request which began it: which a request is about, and how its answer tells of new work.
//!
//! Wanted only where an upstream has a second cluster: routing sends the request to the cluster that has the work. Told
//! by the template's variables, by `conversation_id` in the query of a read, or by that in the small body of a chat.

use http::Method;

use super::row::Row;
use super::user;
use crate::types::cluster::{Begins, Bond, Work, WorkKind, Works};
use crate::types::ids::TagKind;
use crate::types::outcome::RouteClass;
use crate::types::request::CacheClass;

/// What the variables of templates are of.
const VARIABLES: [(&str, WorkKind); 6] = [
    ("{task_id}", WorkKind::Task),
    ("{workflow_run_id}", WorkKind::WorkflowRun),
    ("{run_id:uuid}", WorkKind::WorkflowRun),
    ("{batch}", WorkKind::Batch),
    ("{c_id:uuid}", WorkKind::Conversation),
    ("{conversation_id:uuid}", WorkKind::Conversation),
];

/// What the answer of a generation tells, all at its beginning.
const GENERATION: &[Begins] = &[
    begins("task_id", WorkKind::Task),
    begins("workflow_run_id", WorkKind::WorkflowRun),
    begins("conversation_id", WorkKind::Conversation),
];
/// What an answer tells that leaves work on documents to Celery.
const DOCUMENTS: &[Begins] = &[begins("batch", WorkKind::Batch)];

/// Templates of requests whose body may name the conversation that they go on with.
const CHATS: [&str; 2] = ["/chat-messages", "/advanced-chat/workflows/draft/run"];

const fn begins(name: &'static str, kind: WorkKind) -> Begins {
    Begins { name, kind }
}

/// What a request that `row` stands for has to do with such work.
pub(super) fn of(row: &Row, method: &Method, path: &str, query: Option<&str>) -> Works {
    let is_status = row.profile.class == RouteClass::TaskStatus || row.profile.cache == CacheClass::Run;
    let bond = match method.is_safe() && !is_status {
        true => Bond::Prefers,
        false => Bond::Must,
    };
    let about = in_path(row.template, path).or_else(|| {
        let id = user::named_in_query(query?, "conversation_id")?;
        Some(Work::named(WorkKind::Conversation, id.as_bytes()))
    });
    let is_generation = row.profile.class == RouteClass::Generation;
    Works {
        about: about.map(|work| (work, bond)),
        in_body: is_generation
            && !method.is_safe()
            && CHATS.iter().any(|ending| row.template.ends_with(ending)),
        begins: match is_generation {
            true => GENERATION,
            false if row.begins.iter().any(|rule| rule.kind() == TagKind::Datasets) => DOCUMENTS,
            false => &[],
        },
    }
}

fn in_path(template: &str, path: &str) -> Option<Work> {
    let mut segments = template.split('/').zip(path.split('/'));
    segments.find_map(|(variable, id)| {
        let (_, kind) = VARIABLES.iter().find(|(name, _)| *name == variable)?;
        Some(Work::named(*kind, id.as_bytes()))
    })
}
