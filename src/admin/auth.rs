//! Who may write: the token, compared by digest in constant time, and no page in a browser.

use http::header::{AUTHORIZATION, ORIGIN, WWW_AUTHENTICATE};
use http::{HeaderMap, StatusCode};
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use super::answer::Refusal;
use crate::config::{AdminConfig, Token};

/// Decides whether a request may change something.
#[derive(Debug)]
pub struct Auth {
    /// Of the token; without one nobody may write.
    digest: Option<blake3::Hash>,
}

impl Auth {
    /// With the token of `config`, or what is in its file.
    ///
    /// # Errors
    /// When the file cannot be read or holds no usable token: a sentence that names the file.
    pub fn new(config: &AdminConfig) -> Result<Self, String> {
        let token = match (&config.token, &config.token_file) {
            (Some(token), _) => Some(token.clone()),
            (None, Some(file)) => Some(token_in(file).map_err(|why| format!("admin.token_file: {why}"))?),
            (None, None) => None,
        };
        Ok(Self {
            digest: token.map(|token| blake3::hash(token.0.as_bytes())),
        })
    }

    /// Whether a write with these fields may go on (RFC 6750).
    ///
    /// # Errors
    /// 403 when nobody may write, or when a page in a browser asks; 401 without the token.
    pub(super) fn may_write(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        // Operators' tools send no Origin; a page that a browser shows somewhere does, on every POST.
        if headers.contains_key(ORIGIN) {
            let message = "requests of web pages (with an Origin field) may not write";
            return Err(Refusal::new(StatusCode::FORBIDDEN, message));
        }
        let Some(digest) = self.digest else {
            let message = "writes are off: set admin.token or admin.token_file (DIFY_EDGE__ADMIN__TOKEN)";
            return Err(Refusal::new(StatusCode::FORBIDDEN, message));
        };
        let mut fields = headers.get_all(AUTHORIZATION).iter();
        let (message, challenge) = match (fields.next(), fields.next()) {
            // blake3's hashes are compared in constant time.
            (Some(field), None) if bearer(field.as_bytes()).is_some_and(|t| blake3::hash(t) == digest) => {
                return Ok(());
            }
            (None, _) => (
                "writes need `Authorization: Bearer TOKEN`",
                "Bearer realm=\"dify-edge\"",
            ),
            _ => (
                "this is not the token that was configured",
                "Bearer realm=\"dify-edge\", error=\"invalid_token\"",
            ),
        };
        Err(Refusal::new(StatusCode::UNAUTHORIZED, message).with(WWW_AUTHENTICATE, challenge))
    }
}

/// The token of an `Authorization` field; the scheme's case does not matter (RFC 9110 section 11.1).
fn bearer(field: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = field.split_at_checked(6)?;
    let token = rest.strip_prefix(b" ")?.trim_ascii_start();
    scheme.eq_ignore_ascii_case(b"bearer").then_some(token)
}

/// The token that is in a file, without white space around it.
///
/// # Errors
/// When the file cannot be read or holds no usable token: a sentence that begins with the file.
pub fn token_in(file: &Path) -> Result<Token, String> {
    let wrong = |why: String| format!("{}: {why}", file.display());
    let mut text = String::new();
    // White space around the token has room, too.
    let most = Token::MOST as u64 * 2;
    File::open(file)
        .and_then(|file| file.take(most).read_to_string(&mut text))
        .map_err(|error| wrong(format!("cannot be read: {error}")))?;
    let token = Token(text.trim().to_owned());
    token.problem().map_or(Ok(token), |problem| Err(wrong(problem)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    const TOKEN: &str = "0123456789abcdef";

    fn auth(token: Option<&str>) -> Auth {
        let config = AdminConfig {
            token: token.map(|token| Token(token.into())),
            ..AdminConfig::default()
        };
        Auth::new(&config).unwrap()
    }

    fn status(auth: &Auth, fields: &[(http::HeaderName, &str)]) -> u16 {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        auth.may_write(&headers)
            .map_or_else(|r| r.status.as_u16(), |()| 200)
    }

    #[test]
    fn only_the_whole_token_in_a_bearer_field_may_write() {
        let auth = auth(Some(TOKEN));
        for (field, expected) in [
            ("Bearer 0123456789abcdef", 200),
            ("bEARER  0123456789abcdef", 200),
            ("Bearer 0123456789abcdee", 401),
            ("Bearer 0123456789abcde", 401),
            ("Bearer 0123456789abcdef0", 401),
            ("Bearer0123456789abcdef", 401),
            ("Basic 0123456789abcdef", 401),
            ("0123456789abcdef", 401),
            ("Bearer", 401),
            ("Bearer ", 401),
            ("Bear\u{e9}r 0123456789abcdef", 401),
            ("", 401),
        ] {
            assert_eq!(status(&auth, &[(AUTHORIZATION, field)]), expected, "{field:?}");
        }
        let right = (AUTHORIZATION, "Bearer 0123456789abcdef");
        assert_eq!(status(&auth, &[]), 401);
        assert_eq!(status(&auth, &[right.clone(), right.clone()]), 401);
        assert_eq!(status(&auth, &[right, (ORIGIN, "null")]), 403);
    }

    #[test]
    fn without_a_token_nobody_may_write() {
        let auth = auth(None);
        assert_eq!(status(&auth, &[]), 403);
        assert_eq!(status(&auth, &[(AUTHORIZATION, "Bearer ")]), 403);
        let refusal = auth.may_write(&HeaderMap::new()).unwrap_err();
        assert!(refusal.message.contains("admin.token"), "{}", refusal.message);
    }

    #[test]
    fn a_token_file_is_trimmed_and_a_bad_one_is_named() {
        let path = std::env::temp_dir().join(format!("dify-edge-token-{}", std::process::id()));
        let config = AdminConfig {
            token_file: Some(path.clone()),
            ..AdminConfig::default()
        };
        let missing = Auth::new(&config).unwrap_err();
        let named = format!("admin.token_file: {}: ", path.display());
        assert!(missing.starts_with(&named), "{missing}");
        std::fs::write(&path, format!(" {TOKEN}\r\n\n")).unwrap();
        let auth = Auth::new(&config).unwrap();
        assert_eq!(status(&auth, &[(AUTHORIZATION, "Bearer 0123456789abcdef")]), 200);
        for wrong in ["", "hunter2", "hunter2 hunter2 hunter2", &"hunter2".repeat(1000)] {
            std::fs::write(&path, wrong).unwrap();
            let error = Auth::new(&config).unwrap_err();
            assert!(error.starts_with(&named) && !error.contains("hunter2"), "{error}");
        }
        std::fs::remove_file(&path).unwrap();
    }
}
