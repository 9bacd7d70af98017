//! The rules outside the three big APIs: probes, files, static assets, and what calls in from outside. Data only.
//!
//! A signed file URL is its own permission and dies soon: never kept. `/inner/api`, `/mcp` and `/triggers` run
//! workflows whatever the method is.

use crate::classify::row::{Row, rows};

pub(super) const ROWS: &[Row] = rows! { Open;
    GET               HEALTH                            "/db-pool-stat";
    GET               DETAIL                            "/fastopenapi/docs";
    GET               DETAIL                            "/fastopenapi/openapi.json";
    GET               DETAIL                            "/fastopenapi/redoc";
    GET               DETAIL                            "/files/";
    GET               FILE                              "/files/{file_id:uuid}/file-preview";
    GET               FILE                              "/files/{file_id:uuid}/image-preview";
    GET               DETAIL                            "/files/swagger-ui.html";
    GET               DETAIL                            "/files/swagger.json";
    GET               FILE                              "/files/tools/{file_id:uuid}.{extension}";
    POST              UPLOAD                            "/files/upload/for-plugin";
    GET               ASSET                             "/files/workspaces/{workspace_id:uuid}/webapp-logo";
    GET               HEALTH                            "/health";
    GET               DETAIL                            "/inner/api/";
    POST              WRITE                             "/inner/api/billing/mail";
    POST              WRITE                             "/inner/api/enterprise/mail";
    POST              WRITE       ends ACCESS           "/inner/api/enterprise/workspace";
    POST              WRITE       ends ACCESS           "/inner/api/enterprise/workspace/ownerless";
    POST              DETAIL                            "/inner/api/fetch/app/info";
    POST              GENERATE    ends INVOKE           "/inner/api/invoke/app";
    POST              WRITE                             "/inner/api/invoke/encrypt";
    POST              GENERATE    ends INVOKE           "/inner/api/invoke/llm";
    POST              GENERATE    ends INVOKE           "/inner/api/invoke/llm/structured-output";
    POST              GENERATE    ends INVOKE           "/inner/api/invoke/moderation";
    POST              GENERATE    ends INVOKE           "/inner/api/invoke/parameter-extractor";
    POST              GENERATE    ends INVOKE           "/inner/api/invoke/question-classifier";
    POST              GENERATE    ends INVOKE           "/inner/api/invoke/rerank";
    POST              GENERATE    ends INVOKE           "/inner/api/invoke/speech2text";
    POST              GENERATE    ends INVOKE           "/inner/api/invoke/summary";
    POST              GENERATE    ends INVOKE           "/inner/api/invoke/text-embedding";
    POST              GENERATE    ends INVOKE           "/inner/api/invoke/tool";
    POST              GENERATE    ends INVOKE           "/inner/api/invoke/tts";
    GET               DETAIL                            "/inner/api/swagger-ui.html";
    GET               DETAIL                            "/inner/api/swagger.json";
    POST              WRITE                             "/inner/api/upload/file/request";
    GET               DETAIL                            "/mcp/";
    POST              GENERATE    ends INVOKE           "/mcp/server/{server_code}/mcp";
    GET               DETAIL                            "/mcp/swagger-ui.html";
    GET               DETAIL                            "/mcp/swagger.json";
    GET               ASSET                             "/static/{filename:path}";
    GET               ASSET                             "/swaggerui/{filename:path}";
    GET               HEALTH                            "/threads";
    ANY               GENERATE    ends INVOKE           "/triggers/plugin/{endpoint_id}";
    ANY               GENERATE    ends INVOKE           "/triggers/webhook-debug/{webhook_id}";
    ANY               GENERATE    ends INVOKE           "/triggers/webhook/{webhook_id}";
};
