//! `/failover`: an operator's word about where the writes of an upstream go; from its JSON body to what has begun, with a
//! sentence for whatever is wrong.
//!
//! Routing carries it out, fenced as its own decisions are (`routing::failover`).

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body::Body;
use serde::{Deserialize, Serialize};

use super::answer::{self, Answer, Refusal};
use super::body;
use super::server::AdminParts;
use crate::routing::control::{Mode, NotSteered, SteerError, Steered};

/// Characters of an upstream's name that are said again.
const SAID: usize = 100;

/// The body of `POST /failover`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SteerRequest {
    to: Option<Mode>,
    upstream: Option<String>,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
struct Wish {
    mode: Mode,
    /// All that have a standby, unless it is one.
    upstream: Option<String>,
}

/// The answer.
#[derive(Debug, Serialize)]
pub(super) struct SteerAnswer {
    pub(super) upstreams: Vec<Steered>,
}

/// Has the writes go where the body says. The caller has shown the token.
pub(super) async fn steer<B>(parts: &AdminParts, request: Request<B>) -> Result<Answer, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
{
    body::must_be_json(request.headers())?;
    let bytes = body::read(request.into_body()).await?;
    let wish = parse(&bytes, &parts.routing.with_standby())
        .map_err(|message| Refusal::new(StatusCode::BAD_REQUEST, message))?;
    let routing = parts.routing.clone();
    // A task of its own, so that all of them follow also when the caller has left.
    let steering = tokio::spawn(async move { routing.steer(wish.upstream.as_deref(), wish.mode).await });
    match steering.await {
        Ok(Ok(upstreams)) => Ok(answer::status(&SteerAnswer { upstreams })),
        Ok(Err(not_steered)) => Err(refusal(&not_steered)),
        Err(_) => {
            let message = "the work was broken off";
            Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, message))
        }
    }
}

/// Reads a body. `with_standby` are the upstreams that there is something to say about.
///
/// # Errors
/// A sentence that begins with the key that it is about.
fn parse(body: &[u8], with_standby: &[String]) -> Result<Wish, String> {
    let request: SteerRequest = body::object(body)?;
    let mode = request.to.ok_or("to: must be standby, primary or auto")?;
    if with_standby.is_empty() {
        return Err("upstream: none has a standby, so there is nothing to choose from".into());
    }
    let is_unknown = |name: &&String| !with_standby.contains(name);
    if let Some(name) = request.upstream.as_ref().filter(is_unknown) {
        let name: String = name.chars().take(SAID).collect();
        let named = with_standby.join(", ");
        return Err(format!(
            "upstream: none that is called `{name}` has a standby; with one there are: {named}"
        ));
    }
    Ok(Wish {
        mode,
        upstream: request.upstream,
    })
}

fn refusal(not_steered: &NotSteered) -> Refusal {
    let NotSteered {
        upstream,
        error,
        begun,
    } = not_steered;
    let status = match error {
        SteerError::Unconfirmed(_) => StatusCode::SERVICE_UNAVAILABLE,
        SteerError::Overtaken => StatusCode::CONFLICT,
    };
    let mut message = format!("{upstream}: {error}");
    if !begun.is_empty() {
        let begun: Vec<_> = begun.iter().map(|steered| &*steered.upstream).collect();
        message.push_str(&format!(" (it was carried out for {})", begun.join(", ")));
    }
    Refusal::new(status, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::cluster::{Cluster, Epoch};

    fn read(body: &str, with_standby: &[&str]) -> Result<Wish, String> {
        let names: Vec<_> = with_standby.iter().map(|name| (*name).to_owned()).collect();
        parse(body.as_bytes(), &names)
    }

    #[test]
    fn one_upstream_or_all_that_have_a_standby_are_meant() {
        for (body, mode, upstream) in [
            (r#"{"to": "standby"}"#, Mode::Standby, None),
            (
                r#"{"to": "primary", "upstream": "web"}"#,
                Mode::Primary,
                Some("web"),
            ),
            (r#" {"upstream": "api", "to": "auto"} "#, Mode::Auto, Some("api")),
        ] {
            let wish = read(body, &["api", "web"]).unwrap();
            assert_eq!((wish.mode, wish.upstream.as_deref()), (mode, upstream), "{body}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_key() {
        for (body, expected) in [
            ("", "EOF"),
            ("null", "invalid type: null"),
            (r#" ["standby", "api"]"#, "an object is expected"),
            (r#"{"to": "auto"} x"#, "trailing characters"),
            ("{}", "to: must be standby, primary or auto"),
            (r#"{"upstream": "api"}"#, "to: must be standby, primary or auto"),
            (r#"{"to": "Standby"}"#, "to: unknown variant `Standby`"),
            (r#"{"to": true}"#, "to: "),
            (r#"{"to": "auto", "mode": 1}"#, "mode: unknown field `mode`"),
            (r#"{"to": "auto", "to": "auto"}"#, "duplicate field `to`"),
            (
                r#"{"to": "auto", "upstream": 1}"#,
                "upstream: invalid type: integer `1`",
            ),
            (
                r#"{"to": "auto", "upstream": "wbe"}"#,
                "upstream: none that is called `wbe` has a standby; with one there are: api, web",
            ),
        ] {
            let message = read(body, &["api", "web"]).unwrap_err();
            assert!(message.contains(expected), "{body}: {message}");
        }
        let none = read(r#"{"to": "auto", "upstream": "api"}"#, &[]).unwrap_err();
        assert!(none.starts_with("upstream: none has a standby"), "{none}");
        let long = read(
            &format!(r#"{{"to": "auto", "upstream": "{}"}}"#, "x".repeat(60_000)),
            &["api"],
        );
        assert!(long.unwrap_err().len() < 400);
    }

    #[test]
    fn a_wish_that_was_not_carried_out_says_for_whom_it_was() {
        let steered = |upstream: &str| Steered {
            upstream: upstream.to_owned(),
            epoch: Epoch(2),
            before: Cluster::Primary,
            active: Cluster::Standby,
            mode: Mode::Standby,
            healthy: None,
        };
        let not = |error, begun: &[&str]| {
            let begun = begun.iter().map(|name| steered(name)).collect();
            let refusal = refusal(&NotSteered {
                upstream: "web".to_owned(),
                error,
                begun,
            });
            (refusal.status.as_u16(), refusal.message)
        };
        let (status, message) = not(SteerError::Unconfirmed("there is no connection".into()), &["api"]);
        assert_eq!(status, 503);
        assert!(message.starts_with("web: it cannot be confirmed"), "{message}");
        assert!(
            message.ends_with("there is no connection (it was carried out for api)"),
            "{message}"
        );
        let (status, message) = not(SteerError::Overtaken, &[]);
        assert_eq!(status, 409);
        assert!(message.ends_with("try again"), "{message}");
    }

    proptest::proptest! {
        #[test]
        fn no_body_makes_the_parser_panic_and_none_means_what_has_no_standby(
            bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..64),
            to in "standby|primary|auto|\\PC{0,9}",
            upstream in proptest::option::of("api|web|\\PC{0,40}"),
        ) {
            let _ = parse(&bytes, &["api".to_owned()]);
            let body = serde_json::json!({ "to": to, "upstream": upstream }).to_string();
            let is_known = upstream.as_ref().is_none_or(|name| name == "api" || name == "web");
            match parse(body.as_bytes(), &["api".to_owned(), "web".to_owned()]) {
                Ok(wish) => {
                    proptest::prop_assert_eq!((wish.mode.as_str(), wish.upstream), (&*to, upstream));
                    proptest::prop_assert!(is_known);
                }
                Err(why) => proptest::prop_assert!(why.starts_with("to: ") || !is_known, "{}", why),
            }
        }
    }
}
