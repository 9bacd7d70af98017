//! What a purge means: from its JSON body to a [`Selection`], with a sentence for whatever is wrong.

use serde::Deserialize;

use super::body;
use crate::cache::control::Selection;
use crate::types::ids::{Principal, Tag, TagKind, from_hex};

/// Characters of a tag or route that go into the log.
const LOGGED: usize = 200;

/// The body of `POST /cache/purge`: one of the first five, and perhaps `soft`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PurgeRequest {
    key: Option<String>,
    tag: Option<String>,
    route: Option<String>,
    principal: Option<String>,
    all: Option<bool>,
    soft: bool,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Purge {
    pub(super) selection: Selection,
    pub(super) soft: bool,
    /// What is meant, for the log: never enough of a principal to find its answers.
    pub(super) what: String,
}

/// Reads a body. `templates` are the routes that there are.
///
/// # Errors
/// A sentence that begins with the key that it is about.
pub(super) fn parse(body: &[u8], templates: &[&'static str]) -> Result<Purge, String> {
    let request: PurgeRequest = body::object(body)?;
    let given = [
        ("key", request.key.is_some()),
        ("tag", request.tag.is_some()),
        ("route", request.route.is_some()),
        ("principal", request.principal.is_some()),
        ("all", request.all.is_some()),
    ];
    let given: Vec<_> = given
        .iter()
        .filter(|(_, is)| *is)
        .map(|(name, _)| *name)
        .collect();
    if given.len() != 1 {
        let found = if given.is_empty() {
            "none".into()
        } else {
            given.join(", ")
        };
        return Err(format!(
            "exactly one of key, tag, route, principal and all is needed, and there is {found}"
        ));
    }
    let cut = |text: &str| text.chars().take(LOGGED).collect::<String>();
    let (selection, what) = if let Some(text) = request.key {
        let (prefix, digits) = key_prefix(&text)?;
        (Selection::Key(prefix), format!("key {digits}"))
    } else if let Some(text) = request.tag {
        (Selection::Tag(tag(&text)?), format!("tag {}", cut(&text)))
    } else if let Some(text) = request.route {
        if !templates.contains(&text.as_str()) {
            return Err(unknown_route(&text, templates));
        }
        let what = format!("route {text}");
        (Selection::Route(text), what)
    } else if let Some(text) = request.principal {
        let digest = from_hex(&text).map(Principal);
        let principal = digest.ok_or("principal: must be 32 hexadecimal digits")?;
        (
            Selection::Principal(principal),
            format!("principal {}", principal.prefix()),
        )
    } else if request.all == Some(true) {
        (Selection::All, "all".into())
    } else {
        return Err("all: must be true".into());
    };
    Ok(Purge {
        selection,
        soft: request.soft,
        what,
    })
}

/// Whether this is a key or the beginning of one: 8 to 32 hexadecimal digits.
///
/// # Errors
/// A sentence that says so.
pub(super) fn check_key(text: &str) -> Result<(), String> {
    let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if digits && (8..=32).contains(&text.len()) {
        Ok(())
    } else {
        Err("key: must be 8 to 32 hexadecimal digits, as Cache-Status shows them".into())
    }
}

/// The first eight digits of a key: purges go by them alone.
fn key_prefix(text: &str) -> Result<([u8; 4], &str), String> {
    check_key(text)?;
    let digits = &text[..8];
    let number = u32::from_str_radix(digits, 16).map_err(|error| format!("key: {error}"))?;
    Ok((number.to_be_bytes(), digits))
}

fn tag(text: &str) -> Result<Tag, String> {
    let tag = Tag::parse(text).map_err(|error| format!("tag: {error}"))?;
    let (name, id) = text.split_once(':').unwrap_or((text, ""));
    for kind in [TagKind::Route, TagKind::Principal, TagKind::Key] {
        if name == kind.as_str() {
            return Err(format!("tag: `{name}` is asked for by the key {name}"));
        }
    }
    if name == TagKind::Target.as_str() && id.is_empty() {
        return Err("tag: `target` needs a path, such as target:/files/x".into());
    }
    Ok(tag)
}

fn unknown_route(text: &str, templates: &[&'static str]) -> String {
    // The work grows with the length of both; no template is as long.
    let text: String = text.chars().take(LOGGED).collect();
    let mut near: Vec<_> = templates
        .iter()
        .map(|template| (strsim::normalized_damerau_levenshtein(&text, template), *template))
        .filter(|(alike, _)| *alike > 0.5)
        .collect();
    near.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    let near: Vec<_> = near.iter().take(3).map(|(_, template)| *template).collect();
    let hint = if near.is_empty() {
        "templates are like /v1/info, and * is whatever has none".into()
    } else {
        format!("near: {}", near.join(", "))
    };
    format!("route: no route has the template `{text}`; {hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEMPLATES: [&str; 4] = ["*", "/v1/info", "/v1/datasets/{dataset_id:uuid}", "/api/site"];

    fn refused(body: &str) -> String {
        parse(body.as_bytes(), &TEMPLATES).unwrap_err()
    }

    #[test]
    fn each_way_to_say_what_is_meant_is_understood() {
        let digest = "00112233445566778899aabbccddeeff";
        let principal = Principal(from_hex(digest).unwrap());
        for (body, selection, what) in [
            (
                r#"{"key": "8ab7cbba"}"#,
                Selection::Key([0x8a, 0xb7, 0xcb, 0xba]),
                "key 8ab7cbba",
            ),
            (
                r#"{"key": "8AB7CBBA00112233445566778899aabb"}"#,
                Selection::Key([0x8a, 0xb7, 0xcb, 0xba]),
                "key 8AB7CBBA",
            ),
            (
                r#"{"tag": "datasets:a1"}"#,
                Selection::Tag(Tag::of(TagKind::Datasets, b"A1")),
                "tag datasets:a1",
            ),
            (
                r#"{"route": "/v1/info"}"#,
                Selection::Route("/v1/info".into()),
                "route /v1/info",
            ),
            (r#"{"route": "*"}"#, Selection::Route("*".into()), "route *"),
            (
                r#"{"principal": "00112233445566778899AABBCCDDEEFF"}"#,
                Selection::Principal(principal),
                "principal 00112233",
            ),
            (r#" {"all": true, "soft": false} "#, Selection::All, "all"),
        ] {
            let purge = parse(body.as_bytes(), &TEMPLATES).unwrap();
            assert_eq!((purge.selection, purge.soft), (selection, false), "{body}");
            assert_eq!(purge.what, what);
        }
        assert!(parse(br#"{"all": true, "soft": true}"#, &TEMPLATES).unwrap().soft);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_key() {
        for (body, expected) in [
            ("", "EOF"),
            ("null", "invalid type: null"),
            (" [null, null, null, null, true]", "an object is expected"),
            (r#"{"all": true} x"#, "trailing characters"),
            (r#"{"all": true, "kye": 1}"#, "kye: unknown field `kye`"),
            (r#"{"all": true, "all": true}"#, "duplicate field `all`"),
            (
                "{}",
                "exactly one of key, tag, route, principal and all is needed, and there is none",
            ),
            (r#"{"soft": true}"#, "and there is none"),
            (r#"{"all": true, "key": "8ab7cbba"}"#, "and there is key, all"),
            (r#"{"all": false}"#, "all: must be true"),
            (r#"{"all": "yes"}"#, "all: invalid type: string"),
            (r#"{"all": true, "soft": 1}"#, "soft: invalid type: integer `1`"),
            (r#"{"key": 8}"#, "key: invalid type"),
            (r#"{"key": "8ab7cbb"}"#, "key: must be 8 to 32"),
            (r#"{"key": "+ab7cbba"}"#, "key: must be 8 to 32"),
            (r#"{"key": "éééé"}"#, "key: must be 8 to 32"),
            (
                r#"{"key": "00112233445566778899aabbccddeeff0"}"#,
                "key: must be 8 to 32",
            ),
            (
                r#"{"tag": "dataset:1"}"#,
                "tag: no tag is called `dataset`; there are access",
            ),
            (
                r#"{"tag": "principal:00"}"#,
                "tag: `principal` is asked for by the key principal",
            ),
            (r#"{"tag": "target"}"#, "tag: `target` needs a path"),
            (r#"{"principal": "00112233"}"#, "principal: must be 32"),
            (
                r#"{"route": "/v1/inof"}"#,
                "route: no route has the template `/v1/inof`; near: /v1/info",
            ),
            (r#"{"route": "x"}"#, "`x`; templates are like /v1/info"),
        ] {
            let message = refused(body);
            assert!(message.contains(expected), "{body}: {message}");
        }
        let long = refused(&format!(r#"{{"route": "/{}"}}"#, "x".repeat(60_000)));
        assert!(long.len() < 400, "{}", long.len());
    }

    proptest::proptest! {
        #[test]
        fn no_body_makes_the_parser_panic(
            bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..64),
            name in "key|tag|route|principal|all",
            text in "\\PC{0,40}",
        ) {
            let _ = parse(&bytes, &TEMPLATES);
            let _ = parse(serde_json::json!({ name: text }).to_string().as_bytes(), &TEMPLATES);
        }
    }
}
