//! Which ids stand where in successful answers: what exists, told by Dify itself.
//!
//! Named sets for the route table. Places that an answer does not have are nothing wrong: several routes share a set,
//! and a stream tells its ids once.

use crate::types::known::IdKind;
use crate::types::request::Learn;

/// Writes a set: `"pointer" of kind`.
macro_rules! sets {
    ($($(#[$meta:meta])* $name:ident: $($pointer:literal of $kind:ident),*;)*) => {
        $($(#[$meta])* pub(crate) const $name: &[Learn] =
            &[$(Learn { pointer: $pointer, kind: IdKind::$kind }),*];)*
    };
}

sets! {
    NONE: ;
    /// A message, its conversation (a completion has none) and the run of a chat flow.
    CHAT: "/conversation_id" of Conversation, "/message_id" of Message, "/workflow_run_id" of WorkflowRun;
    CONVERSATIONS: "/data/*/id" of Conversation;
    MESSAGES:
        "/data/*/id" of Message,
        "/data/*/conversation_id" of Conversation,
        "/data/*/message_files/*/upload_file_id" of UploadFile;
    FEEDBACKS: "/data/*/message_id" of Message, "/data/*/conversation_id" of Conversation;
    ANNOTATIONS: "/data/*/id" of Annotation;
    ID_ANNOTATION: "/id" of Annotation;
    RUN: "/workflow_run_id" of WorkflowRun;
    ID_RUN: "/id" of WorkflowRun;
    RUNS: "/data/*/id" of WorkflowRun;
    LOGS: "/data/*/workflow_run/id" of WorkflowRun;
    DATASETS: "/data/*/id" of Dataset;
    ID_DATASET: "/id" of Dataset;
    DOCUMENTS: "/data/*/id" of Document, "/data/*/data_source_info/upload_file_id" of UploadFile;
    DOCUMENT: "/document/id" of Document, "/document/data_source_info/upload_file_id" of UploadFile;
    ID_DOCUMENT: "/id" of Document, "/data_source_info/upload_file/id" of UploadFile;
    /// What the console makes in one go.
    NEW_DOCUMENTS: "/documents/*/id" of Document, "/dataset/id" of Dataset;
    SEGMENTS: "/data/*/id" of Segment;
    SEGMENT: "/data/id" of Segment;
    CHILD_CHUNKS: "/data/*/id" of ChildChunk;
    CHILD_CHUNK: "/data/id" of ChildChunk;
    RETRIEVED: "/records/*/segment/id" of Segment, "/records/*/segment/document_id" of Document;
    ID_FILE: "/id" of UploadFile;
    APPS: "/data/*/id" of App;
    APP: "/id" of App, "/site/code" of SiteCode;
    IMPORTED: "/app_id" of App;
    SITE: "/code" of SiteCode;
    APP_KEYS: "/data/*/token" of AppKey;
    APP_KEY: "/token" of AppKey;
    DATASET_KEYS: "/data/*/token" of DatasetKey;
    DATASET_KEY: "/token" of DatasetKey;
    MCP_SERVER: "/server_code" of McpServer;
}
