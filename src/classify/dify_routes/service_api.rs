//! The rules under `/v1`: what programs call with an app's key or a data set key. Data only.
//!
//! Every read that is kept is kept per key. Suggested questions ask a model, indexing status and the status
//! of the annotation reply are polled for a change that no request announces: none of them is kept.
//!
//! `begins` stands where dify-api hands work to Celery: indexing of new and changed documents, switching documents
//! and segments on and off (changing a segment may switch it off), and the clean-up of what is deleted. New
//! segments, child chunks and metadata are done when they are answered.

use crate::classify::row::{Row, rows};

pub(super) const ROWS: &[Row] = rows! { Bearer;
    GET               DETAIL                            "/v1/";
    GET               LIST        fills FEEDBACKS       "/v1/app/feedbacks" learns FEEDBACKS;
    POST              WRITE       ends ANNOTATION_REPLY "/v1/apps/annotation-reply/{action}";
    GET               TASK                              "/v1/apps/annotation-reply/{action}/status/{job_id:uuid}";
    GET               LIST        fills ANNOTATIONS     "/v1/apps/annotations" learns ANNOTATIONS;
    POST              WRITE       ends ANNOTATE         "/v1/apps/annotations" learns ID_ANNOTATION;
    PUT+DELETE        WRITE       ends ANNOTATE         "/v1/apps/annotations/{annotation_id:uuid}" learns ID_ANNOTATION;
    POST              UPLOAD                            "/v1/audio-to-text";
    POST              GENERATE    ends CHAT             "/v1/chat-messages" learns CHAT;
    POST              WRITE       ends CHAT             "/v1/chat-messages/{task_id}/stop";
    POST              GENERATE    ends CHAT             "/v1/completion-messages" learns CHAT;
    POST              WRITE       ends CHAT             "/v1/completion-messages/{task_id}/stop";
    GET               LIST        fills TALK            "/v1/conversations" learns CONVERSATIONS;
    DELETE            WRITE       ends FORGET           "/v1/conversations/{c_id:uuid}";
    POST              WRITE       ends CONVERSE         "/v1/conversations/{c_id:uuid}/name";
    GET               LIST        fills TALK            "/v1/conversations/{c_id:uuid}/variables";
    PUT               WRITE       ends CONVERSE         "/v1/conversations/{c_id:uuid}/variables/{variable_id:uuid}";
    GET               LIST        fills DATASETS        "/v1/datasets" learns DATASETS;
    POST              WRITE       ends DATASETS         "/v1/datasets" learns ID_DATASET;
    GET               LIST        fills DATASET         "/v1/datasets/{dataset_id:uuid}" learns ID_DATASET;
    PATCH+DELETE      WRITE       begins DATASET        "/v1/datasets/{dataset_id:uuid}" learns ID_DATASET;
    POST              UPLOAD      begins DATASET        "/v1/datasets/{dataset_id:uuid}/document/create-by-file" learns DOCUMENT;
    POST              UPLOAD      begins DATASET        "/v1/datasets/{dataset_id:uuid}/document/create-by-text" learns DOCUMENT;
    POST              UPLOAD      begins DATASET        "/v1/datasets/{dataset_id:uuid}/document/create_by_file" learns DOCUMENT;
    POST              UPLOAD      begins DATASET        "/v1/datasets/{dataset_id:uuid}/document/create_by_text" learns DOCUMENT;
    GET               LIST        fills DOCUMENTS       "/v1/datasets/{dataset_id:uuid}/documents" learns DOCUMENTS;
    GET               TASK        tells BATCH           "/v1/datasets/{dataset_id:uuid}/documents/{batch}/indexing-status";
    GET               LIST        fills DOCUMENTS       "/v1/datasets/{dataset_id:uuid}/documents/{document_id:uuid}" learns ID_DOCUMENT;
    DELETE            WRITE       begins DATASET        "/v1/datasets/{dataset_id:uuid}/documents/{document_id:uuid}";
    GET               LIST        fills DOCUMENTS       "/v1/datasets/{dataset_id:uuid}/documents/{document_id:uuid}/segments" learns SEGMENTS;
    POST              WRITE       ends DATASET          "/v1/datasets/{dataset_id:uuid}/documents/{document_id:uuid}/segments" learns SEGMENTS;
    GET               LIST        fills DOCUMENTS       "/v1/datasets/{dataset_id:uuid}/documents/{document_id:uuid}/segments/{segment_id:uuid}" learns SEGMENT;
    POST+DELETE       WRITE       begins DATASET        "/v1/datasets/{dataset_id:uuid}/documents/{document_id:uuid}/segments/{segment_id:uuid}" learns SEGMENT;
    GET               LIST        fills DOCUMENTS       "/v1/datasets/{dataset_id:uuid}/documents/{document_id:uuid}/segments/{segment_id:uuid}/child_chunks" learns CHILD_CHUNKS;
    POST              WRITE       ends DATASET          "/v1/datasets/{dataset_id:uuid}/documents/{document_id:uuid}/segments/{segment_id:uuid}/child_chunks" learns CHILD_CHUNK;
    PATCH+DELETE      WRITE       ends DATASET          "/v1/datasets/{dataset_id:uuid}/documents/{document_id:uuid}/segments/{segment_id:uuid}/child_chunks/{child_chunk_id:uuid}";
    POST              UPLOAD      begins DATASET        "/v1/datasets/{dataset_id:uuid}/documents/{document_id:uuid}/update-by-file" learns DOCUMENT;
    POST              UPLOAD      begins DATASET        "/v1/datasets/{dataset_id:uuid}/documents/{document_id:uuid}/update-by-text" learns DOCUMENT;
    POST              UPLOAD      begins DATASET        "/v1/datasets/{dataset_id:uuid}/documents/{document_id:uuid}/update_by_file" learns DOCUMENT;
    POST              UPLOAD      begins DATASET        "/v1/datasets/{dataset_id:uuid}/documents/{document_id:uuid}/update_by_text" learns DOCUMENT;
    POST              WRITE       ends DATASET          "/v1/datasets/{dataset_id:uuid}/documents/metadata";
    PATCH             WRITE       begins DATASET        "/v1/datasets/{dataset_id:uuid}/documents/status/{action}";
    POST              GENERATE                          "/v1/datasets/{dataset_id:uuid}/hit-testing" learns RETRIEVED;
    GET               LIST        fills DATASET         "/v1/datasets/{dataset_id:uuid}/metadata";
    POST              WRITE       ends DATASET          "/v1/datasets/{dataset_id:uuid}/metadata";
    PATCH+DELETE      WRITE       ends DATASET          "/v1/datasets/{dataset_id:uuid}/metadata/{metadata_id:uuid}";
    GET               LIST        fills DATASET         "/v1/datasets/{dataset_id:uuid}/metadata/built-in";
    POST              WRITE       ends DATASET          "/v1/datasets/{dataset_id:uuid}/metadata/built-in/{action}";
    POST              GENERATE                          "/v1/datasets/{dataset_id:uuid}/retrieve" learns RETRIEVED;
    GET               LIST        fills DATASET         "/v1/datasets/{dataset_id:uuid}/tags";
    GET               LIST        fills DATASETS        "/v1/datasets/tags";
    POST+PATCH+DELETE WRITE       ends DATASETS         "/v1/datasets/tags";
    POST              WRITE       ends DATASETS         "/v1/datasets/tags/binding";
    POST              WRITE       ends DATASETS         "/v1/datasets/tags/unbinding";
    GET               STORED_FILE fills FILE            "/v1/files/{file_id:uuid}/preview";
    POST              UPLOAD                            "/v1/files/upload" learns ID_FILE;
    GET               META        fills INFO            "/v1/info";
    GET               LIST        fills TALK            "/v1/messages" learns MESSAGES;
    POST              WRITE       ends RATE             "/v1/messages/{message_id:uuid}/feedbacks";
    GET               GENERATE                          "/v1/messages/{message_id:uuid}/suggested";
    GET               META        fills APP             "/v1/meta";
    GET               META        fills APP             "/v1/parameters";
    GET               META        fills APP             "/v1/site";
    GET               DETAIL                            "/v1/swagger-ui.html";
    GET               DETAIL                            "/v1/swagger.json";
    POST              GENERATE                          "/v1/text-to-audio";
    POST              GENERATE    ends WORKFLOW         "/v1/workflows/{workflow_id}/run" learns RUN;
    GET               LIST        fills LOGS            "/v1/workflows/logs" learns LOGS;
    POST              GENERATE    ends WORKFLOW         "/v1/workflows/run" learns RUN;
    GET               RUN                               "/v1/workflows/run/{workflow_run_id}" learns ID_RUN;
    POST              WRITE       ends WORKFLOW         "/v1/workflows/tasks/{task_id}/stop";
    GET               META        fills MODELS          "/v1/workspaces/current/models/model-types/{model_type}";
};
