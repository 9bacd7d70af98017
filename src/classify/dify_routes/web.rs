//! The rules under `/api`: what the web app of one app calls with a visitor's passport. Data only.
//!
//! `passport` inserts a row and mints a token, `login/status` asks for the moment: neither is kept.
//! `more-like-this` is a GET that makes a new message.

use crate::classify::row::{Row, rows};

pub(super) const ROWS: &[Row] = rows! { Web;
    GET               DETAIL                            "/api/";
    POST              UPLOAD                            "/api/audio-to-text";
    POST              GENERATE    ends WEB_CHAT         "/api/chat-messages" learns CHAT;
    POST              WRITE       ends WEB_CHAT         "/api/chat-messages/{task_id}/stop";
    POST              GENERATE    ends WEB_CHAT         "/api/completion-messages" learns CHAT;
    POST              WRITE       ends WEB_CHAT         "/api/completion-messages/{task_id}/stop";
    GET               LIST        fills WEB_TALK        "/api/conversations" learns CONVERSATIONS;
    DELETE            WRITE       ends WEB_FORGET       "/api/conversations/{c_id:uuid}";
    POST              WRITE       ends WEB_CONVERSE     "/api/conversations/{c_id:uuid}/name";
    PATCH             WRITE       ends WEB_CONVERSE     "/api/conversations/{c_id:uuid}/pin";
    PATCH             WRITE       ends WEB_CONVERSE     "/api/conversations/{c_id:uuid}/unpin";
    POST              AUTH                              "/api/email-code-login";
    POST              AUTH                              "/api/email-code-login/validity";
    POST              UPLOAD                            "/api/files/upload" learns ID_FILE;
    POST              AUTH                              "/api/forgot-password";
    POST              AUTH                              "/api/forgot-password/resets";
    POST              AUTH                              "/api/forgot-password/validity";
    POST              AUTH                              "/api/login";
    GET               AUTH_READ                         "/api/login/status";
    POST              AUTH                              "/api/logout";
    GET               LIST        fills WEB_TALK        "/api/messages" learns MESSAGES;
    POST              WRITE       ends WEB_RATE         "/api/messages/{message_id:uuid}/feedbacks";
    GET               GENERATE    ends WEB_CHAT         "/api/messages/{message_id:uuid}/more-like-this" learns CHAT;
    GET               GENERATE                          "/api/messages/{message_id:uuid}/suggested-questions";
    GET               META        fills APP             "/api/meta";
    GET               META        fills APP             "/api/parameters";
    GET               AUTH_READ                         "/api/passport";
    GET               DETAIL                            "/api/remote-files/{url:path}";
    POST              UPLOAD                            "/api/remote-files/upload" learns ID_FILE;
    GET               LIST        fills WEB_TALK        "/api/saved-messages" learns MESSAGES;
    POST              WRITE       ends WEB_CONVERSE     "/api/saved-messages";
    DELETE            WRITE       ends WEB_CONVERSE     "/api/saved-messages/{message_id:uuid}";
    GET               META        fills APP             "/api/site";
    GET               DETAIL                            "/api/swagger-ui.html";
    GET               DETAIL                            "/api/swagger.json";
    GET               META        fills SYSTEM by Open  "/api/system-features";
    POST              GENERATE                          "/api/text-to-audio";
    GET               META        fills APP by Open     "/api/webapp/access-mode";
    GET               DETAIL                            "/api/webapp/permission";
    POST              GENERATE    ends WORKFLOW         "/api/workflows/run" learns RUN;
    POST              WRITE       ends WORKFLOW         "/api/workflows/tasks/{task_id}/stop";
};
