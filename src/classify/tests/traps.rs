//! Requests that a cache could take for something that they are not.

use http::Method;

use super::{UUID, config, decide, decide_with, ends, fields};
use crate::classify::Classifier;
use crate::config::{RouteConfig, UpstreamConfig};
use crate::types::FailureKind;
use crate::types::ids::{Principal, Tag, TagKind};
use crate::types::outcome::RouteClass;
use crate::types::request::{CacheClass, Lane, UpstreamId};

#[test]
fn a_path_that_is_not_exactly_a_template_gets_no_cached_class() {
    assert_eq!(decide("GET /v1/parameters").cache, CacheClass::Metadata);
    for path in [
        "/v1/parameters/x.css",
        "/v1/parameters/",
        "/v1/parameters.css",
        "/v1/parameters;x",
        "/v1/parameters;x.css",
        "/v1/parameters%2fx.css",
        "/v1/parameters%00",
        "/v1/%70arameters",
        "/v1%2fparameters",
        "/v1%2Fparameters",
        "/v1//parameters",
        "//v1/parameters",
        "/v1/./parameters",
        "/v1/../v1/parameters",
        "/v1/parameters/.",
        "/v1/parameters/..",
        "/v1\\parameters",
        "/V1/parameters",
        "/v1/Parameters",
        "/v1/parameters%20",
        "/v1/parameter",
        "/v1",
        "/",
        "",
        "*",
    ] {
        let decision = decide(&format!("GET {path}"));
        assert_eq!(decision.class, RouteClass::Passthrough, "{path}");
        assert_eq!(decision.cache, CacheClass::Origin, "{path}");
        assert_eq!(decision.template, "*", "{path}");
    }
}

#[test]
fn a_variable_takes_only_what_its_converter_takes() {
    let upper = UUID.to_ascii_uppercase();
    assert_eq!(
        decide(&format!("GET /v1/datasets/{upper}")).cache,
        CacheClass::Listing
    );
    for path in [
        "/v1/datasets/nope".to_owned(),
        format!("/v1/datasets/{UUID}0"),
        format!("/v1/datasets/{}", UUID.replace('-', "_")),
        format!("/v1/datasets/{UUID}/documents/{UUID}/x"),
        "/v1/workflows/run/a%2fb".into(),
        "/v1/workflows/run/a;b".into(),
        "/v1/workflows/run/..".into(),
        "/v1/workspaces/current/models/model-types/".into(),
    ] {
        assert_eq!(
            decide(&format!("GET {path}")).class,
            RouteClass::Passthrough,
            "{path}"
        );
    }
}

#[test]
fn ids_in_both_cases_are_the_same_dataset() {
    let upper = UUID.to_ascii_uppercase();
    let write = decide(&format!("PATCH /v1/datasets/{upper}"));
    assert!(ends(
        &write,
        &decide(&format!("GET /v1/datasets/{UUID}/documents"))
    ));
}

#[test]
fn without_its_credential_a_route_has_no_cached_class() {
    for (path, pairs) in [
        ("/v1/info", &[][..]),
        ("/v1/info", &[("cookie", "x-token=app-1")]),
        (
            "/v1/info",
            &[("authorization", "Bearer a"), ("authorization", "Bearer b")],
        ),
        ("/v1/info?api_key=app-1", &[]),
        ("/api/site", &[("x-app-code", "code")]),
        ("/api/site", &[("authorization", "Bearer a")]),
        ("/api/site", &[("x_app_passport", "p"), ("x-app-code", "code")]),
    ] {
        let decision = decide_with(&format!("GET {path}"), &fields(pairs));
        assert_eq!(decision.cache, CacheClass::Never, "{path} {pairs:?}");
        assert_eq!(decision.principal, None, "{path} {pairs:?}");
        assert!(decision.fills.is_empty(), "{path} {pairs:?}");
    }
}

#[test]
fn a_public_route_is_everybodys_only_without_credentials() {
    for path in [
        "/api/system-features",
        "/api/webapp/access-mode?appCode=x",
        "/console/api/version",
    ] {
        let line = format!("GET {path}");
        let public = decide_with(&line, &fields(&[]));
        assert_eq!(public.cache, CacheClass::Metadata, "{path}");
        assert_eq!(public.principal, Some(Principal::PUBLIC), "{path}");
        assert_ne!(decide(&line).principal, Some(Principal::PUBLIC), "{path}");
    }
}

#[test]
fn an_unknown_path_is_kept_apart_by_every_credential() {
    let of = |pairs| decide_with("GET /v1/nope", &fields(pairs)).principal;
    assert_eq!(of(&[]), Some(Principal::PUBLIC));
    assert_ne!(of(&[("authorization", "a")]), of(&[("authorization", "b")]));
    assert_ne!(of(&[("cookie", "a")]), of(&[("cookie", "b")]));
    assert_ne!(of(&[("authorization", "a")]), of(&[("cookie", "a")]));
}

#[test]
fn a_key_and_a_visitor_with_the_same_text_are_two_principals() {
    let one = decide_with("GET /v1/info", &fields(&[("authorization", "Bearer a")]));
    let other = decide_with("GET /nope", &fields(&[("authorization", "Bearer a")]));
    assert_ne!(one.principal, other.principal);
}

#[test]
fn what_is_held_for_as_long_as_a_page_is_open_takes_no_slot_of_pages() {
    let mut headers = super::credentials();
    let line = "GET /socket.io/?transport=websocket";
    assert_eq!(decide_with(line, &headers).lane, Lane::Short);
    headers.insert(http::header::UPGRADE, http::HeaderValue::from_static("websocket"));
    assert_eq!(decide_with(line, &headers).lane, Lane::Generation);
}

#[test]
fn an_upgrade_is_never_cached() {
    let mut headers = super::credentials();
    headers.insert(http::header::UPGRADE, http::HeaderValue::from_static("websocket"));
    for line in ["GET /v1/info", "GET /socket.io/?transport=websocket"] {
        assert_eq!(decide_with(line, &headers).cache, CacheClass::Never, "{line}");
    }
}

#[test]
fn a_conversation_list_without_a_certain_user_is_not_kept() {
    assert_eq!(decide("GET /v1/conversations?user=u").cache, CacheClass::Listing);
    for query in ["", "?user=", "?user=a&user=b", "?User=u", "?user=%ff"] {
        assert_eq!(
            decide(&format!("GET /v1/conversations{query}")).cache,
            CacheClass::Never,
            "{query}"
        );
    }
}

#[test]
fn a_write_in_disguise_ends_everything() {
    let reads = [
        "GET /v1/info",
        "GET /v1/datasets",
        "GET /api/site",
        "GET /v1/conversations?user=u",
    ];
    for write in [
        "DELETE /v1/%64atasets/86fedc0e-02f5-48d7-b816-2eacbb40ae5a",
        "DELETE /%76%31/datasets/86fedc0e-02f5-48d7-b816-2eacbb40ae5a",
        "POST //v1/chat-messages",
        "POST /v1%2fchat-messages",
        "POST /console/api/apps/",
        "PUT /v1/info",
        "DELETE /api/site",
        "POST /inner/api/new-thing",
        "PROPPATCH /files/x",
        "POST /mcp/other",
        "POST /triggers/other",
    ] {
        let write_decision = decide(write);
        assert_eq!(write_decision.class, RouteClass::Passthrough, "{write}");
        assert_eq!(write_decision.cache, CacheClass::Never, "{write}");
        for read in reads {
            assert!(ends(&write_decision, &decide(read)), "{write} leaves {read}");
        }
    }
    assert!(!ends(
        &decide("POST /socket.io/?transport=polling"),
        &decide("GET /v1/info")
    ));
}

#[test]
fn a_method_that_a_template_does_not_have_is_no_read_of_it() {
    let wrong = decide("GET /v1/chat-messages");
    assert_eq!(
        (wrong.template, wrong.class),
        ("/v1/chat-messages", RouteClass::Passthrough)
    );
    assert_eq!(wrong.cache, CacheClass::Never);
}

#[test]
fn a_narrow_template_without_the_method_leaves_it_to_a_wider_one() {
    let delete = decide(&format!("DELETE /console/api/apps/{UUID}/workflows/draft"));
    assert_eq!(
        delete.template,
        "/console/api/apps/{app_id:uuid}/workflows/{workflow_id}"
    );
    let get = decide(&format!("GET /console/api/apps/{UUID}/workflows/draft"));
    assert_eq!(get.template, "/console/api/apps/{app_id:uuid}/workflows/draft");
}

#[test]
fn an_unsafe_request_ends_what_is_kept_for_its_own_path() {
    for path in ["/logo.png", "/files/unknown.png"] {
        let read = decide(&format!("GET {path}"));
        assert_eq!(read.cache, CacheClass::Origin);
        assert!(ends(&decide(&format!("PUT {path}")), &read), "{path}");
    }
    assert!(!ends(&decide("PUT /other.png"), &decide("GET /logo.png")));
}

#[test]
fn only_the_upstream_called_api_speaks_dify() {
    let mut config = config();
    config.upstreams.insert("web".into(), UpstreamConfig::default());
    config.routes = [("/v1", "api"), ("/api", "web")]
        .map(|(prefix, upstream)| RouteConfig {
            prefix: prefix.into(),
            upstream: upstream.into(),
        })
        .into();
    let classifier = Classifier::new(&config).unwrap();
    let decide = |path| classifier.decide(&Method::GET, path, None, &super::credentials());
    assert_eq!(decide("/v1/info").unwrap().cache, CacheClass::Metadata);
    let web = decide("/api/site").unwrap();
    assert_eq!(
        (web.upstream, web.template, web.cache),
        (UpstreamId(1), "*", CacheClass::Origin)
    );
    assert!(!web.fills.contains(&Tag::all(TagKind::Access)));
    let failure = decide("/other").unwrap_err();
    assert_eq!(failure.kind, FailureKind::NoRoute);
    assert_eq!(failure.outcome.unwrap().template, "*");
}

#[test]
fn a_get_that_asks_a_model_is_not_cut_off_like_a_read() {
    let timeouts = |line| decide(line).timeouts;
    assert_eq!(
        timeouts("GET /v1/info").total,
        Some(std::time::Duration::from_secs(5))
    );
    assert_eq!(
        timeouts("POST /console/api/login").total,
        Some(std::time::Duration::from_secs(60))
    );
    for line in [
        "GET /v1/messages/86fedc0e-02f5-48d7-b816-2eacbb40ae5a/suggested",
        "POST /v1/chat-messages",
        "POST /v1/files/upload",
        "GET /unknown",
    ] {
        assert_eq!(timeouts(line).total, None, "{line}");
        assert_eq!(
            timeouts(line).idle,
            Some(std::time::Duration::from_secs(300)),
            "{line}"
        );
    }
}
