//! Fields in both directions, by table and by property.
//!
//! What a stranger sends must never change who it seems to be or how the message is framed, and what is not
//! hop-by-hop must never get lost.

use std::net::SocketAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Request, Version};
use proptest::prelude::*;

use super::*;

fn client(peer: &str, tls: bool, trusted: bool) -> Client {
    Client {
        peer: peer.parse().unwrap(),
        tls,
        trusted,
    }
}

fn parts(version: Version, fields: &[(&str, &str)]) -> request::Parts {
    let mut request = Request::builder().version(version).uri("/v1/info");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn sent(fields: &[(&str, &str)], client: &Client) -> HeaderMap {
    to_upstream(&parts(Version::HTTP_11, fields), client, None, "api:5001", false)
}

fn all(headers: &HeaderMap, name: &str) -> Vec<String> {
    headers
        .get_all(name)
        .iter()
        .map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned())
        .collect()
}

const ANYONE: &str = "203.0.113.7:4711";

#[test]
fn hop_by_hop_fields_do_not_reach_the_upstream() {
    let headers = sent(
        &[
            ("host", "dify.example"),
            ("connection", "keep-alive, x-secret"),
            ("connection", "X-Other"),
            ("x-secret", "1"),
            ("x-other", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic Zm9v"),
            ("te", "gzip"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("expect", "100-continue"),
            ("x_user", "1"),
            (
                "traceparent",
                "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            ),
            ("x-kept", "1"),
        ],
        &client(ANYONE, false, false),
    );
    let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "forwarded",
            "host",
            "traceparent",
            "via",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-proto",
            "x-kept"
        ]
    );
    assert_eq!(all(&headers, "host"), ["dify.example"]);
    assert_eq!(all(&headers, "via"), ["1.1 dify-edge"]);
}

#[test]
fn connection_cannot_take_away_what_the_request_means() {
    let fields = [
        ("authorization", "Bearer app-x"),
        ("host", "dify.example"),
        ("cookie", "a=b"),
        ("content-length", "3"),
        ("cache-control", "no-cache"),
        ("x-app-code", "abc"),
        ("x-app-passport", "p"),
    ];
    let mut with_connection = fields.to_vec();
    with_connection.push((
        "connection",
        "Authorization, Host, Cookie, Content-Length, Cache-Control, X-App-Code, X-App-Passport, X-Forwarded-For, Forwarded, Via",
    ));
    let headers = sent(&with_connection, &client(ANYONE, false, false));
    for (name, value) in fields {
        assert_eq!(all(&headers, name), [value], "{name}");
    }
    assert_eq!(all(&headers, "x-forwarded-for"), ["203.0.113.7"]);
}

#[test]
fn a_stranger_cannot_say_where_it_comes_from() {
    let headers = sent(
        &[
            ("host", "dify.example:8080"),
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "evil"),
            ("x-forwarded-port", "1"),
            ("x-forwarded-prefix", "/evil"),
            ("forwarded", "for=1.1.1.1"),
            ("x-real-ip", "1.1.1.1"),
            ("cf-connecting-ip", "1.1.1.1"),
            ("true-client-ip", "1.1.1.1"),
            ("x-client-ip", "1.1.1.1"),
        ],
        &client("[::ffff:203.0.113.7]:1", false, false),
    );
    assert_eq!(all(&headers, "x-forwarded-for"), ["203.0.113.7"]);
    assert_eq!(all(&headers, "x-forwarded-proto"), ["http"]);
    assert_eq!(all(&headers, "x-forwarded-host"), ["dify.example:8080"]);
    assert_eq!(
        all(&headers, "forwarded"),
        ["for=203.0.113.7;host=\"dify.example:8080\";proto=http"]
    );
    for gone in [
        "x-forwarded-port",
        "x-forwarded-prefix",
        "x-real-ip",
        "cf-connecting-ip",
        "true-client-ip",
        "x-client-ip",
    ] {
        assert!(!headers.contains_key(gone), "{gone}");
    }
}

#[test]
fn a_trusted_proxy_is_believed_and_itself_appended() {
    let headers = sent(
        &[
            ("host", "dify.example"),
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-for", "2.2.2.2"),
            ("x-forwarded-proto", "https"),
            ("forwarded", "for=1.1.1.1"),
            ("x-real-ip", "1.1.1.1"),
            ("cf-connecting-ip", "1.1.1.1"),
        ],
        &client("[2001:db8::1]:9", true, true),
    );
    assert_eq!(
        all(&headers, "x-forwarded-for"),
        ["1.1.1.1, 2.2.2.2, 2001:db8::1"]
    );
    assert_eq!(all(&headers, "x-forwarded-proto"), ["https"]);
    assert_eq!(all(&headers, "x-forwarded-host"), ["dify.example"]);
    assert_eq!(
        all(&headers, "forwarded"),
        ["for=1.1.1.1, for=\"[2001:db8::1]\";host=dify.example;proto=https"]
    );
    assert_eq!(all(&headers, "x-real-ip"), ["1.1.1.1"]);
    assert_eq!(all(&headers, "cf-connecting-ip"), ["1.1.1.1"]);
}

#[test]
fn trailers_are_asked_for_again_when_the_client_did() {
    let headers = sent(
        &[("te", "gzip;q=0.5, Trailers"), ("connection", "te")],
        &client(ANYONE, false, false),
    );
    assert_eq!(all(&headers, "te"), ["trailers"]);
    assert_eq!(all(&headers, "connection"), ["TE"]);
}

#[test]
fn http_2_requests_get_one_cookie_field_and_a_host() {
    let mut parts = parts(
        Version::HTTP_2,
        &[("cookie", "a=1"), ("cookie", "b=2"), ("via", "1.1 other")],
    );
    parts.uri = "http://dify.example/v1/info".parse().unwrap();
    let headers = to_upstream(&parts, &client(ANYONE, false, false), None, "api:5001", false);
    assert_eq!(all(&headers, "cookie"), ["a=1; b=2"]);
    assert_eq!(all(&headers, "host"), ["dify.example"]);
    assert_eq!(all(&headers, "via"), ["1.1 other", "2.0 dify-edge"]);
}

#[test]
fn a_request_without_host_gets_that_of_the_replica() {
    let headers = sent(&[], &client(ANYONE, false, false));
    assert_eq!(all(&headers, "host"), ["api:5001"]);
}

#[test]
fn an_upgrade_is_seen_only_when_connection_names_it_and_it_is_not_h2c() {
    let asked = |fields: &[(&str, &str)]| upgrade_asked(&parts(Version::HTTP_11, fields));
    let yes = asked(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
    assert_eq!(yes, Some(HeaderValue::from_static("websocket")));
    assert_eq!(asked(&[("upgrade", "websocket")]), None);
    assert_eq!(asked(&[("connection", "upgrade")]), None);
    assert_eq!(asked(&[("connection", "upgrade"), ("upgrade", "h2c")]), None);
    assert_eq!(
        asked(&[("connection", "upgrade"), ("upgrade", "websocket, H2C")]),
        None
    );
    let old = parts(
        Version::HTTP_10,
        &[("connection", "upgrade"), ("upgrade", "websocket")],
    );
    assert_eq!(upgrade_asked(&old), None);
    let headers = to_upstream(
        &parts(
            Version::HTTP_11,
            &[("connection", "upgrade"), ("upgrade", "websocket")],
        ),
        &client(ANYONE, false, false),
        yes,
        "api:5001",
        false,
    );
    assert_eq!(all(&headers, "upgrade"), ["websocket"]);
    assert_eq!(all(&headers, "connection"), ["upgrade"]);
}

fn answered(fields: &[(&'static str, &'static str)], switching: bool) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(*name, HeaderValue::from_static(value));
    }
    from_upstream(&mut headers, Version::HTTP_11, switching);
    headers
}

#[test]
fn hop_by_hop_fields_of_an_answer_end_here() {
    let headers = answered(
        &[
            ("connection", "keep-alive, x-debug, set-cookie, content-type"),
            ("x-debug", "1"),
            ("keep-alive", "timeout=2"),
            ("proxy-authenticate", "Basic"),
            ("proxy-authentication-info", "x"),
            ("transfer-encoding", "chunked"),
            ("content-length", "5"),
            ("upgrade", "h2c"),
            ("trailer", "x-sum"),
            ("set-cookie", "a=b"),
            ("set-cookie", "c=d"),
            ("content-type", "text/event-stream"),
            ("server", "gunicorn"),
        ],
        false,
    );
    let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["content-type", "server", "set-cookie", "trailer", "via"]);
    assert_eq!(all(&headers, "set-cookie"), ["a=b", "c=d"]);
}

#[test]
fn a_switching_answer_keeps_its_upgrade_fields() {
    let fields = [("connection", "Upgrade"), ("upgrade", "websocket")];
    let headers = answered(&fields, true);
    assert_eq!(all(&headers, "upgrade"), ["websocket"]);
    assert_eq!(all(&headers, "connection"), ["upgrade"]);
    assert!(!answered(&fields, false).contains_key("upgrade"));
}

#[test]
fn a_repeated_content_length_of_an_answer_becomes_one() {
    let headers = answered(&[("content-length", "5"), ("content-length", "5")], false);
    assert_eq!(all(&headers, "content-length"), ["5"]);
}

#[test]
fn close_is_seen_in_any_connection_field() {
    let close = |fields: &[(&str, &str)]| says_close(&parts(Version::HTTP_11, fields).headers);
    assert!(close(&[("connection", "keep-alive"), ("connection", "x, CLOSE")]));
    assert!(!close(&[("connection", "closed")]));
}

fn any_headers() -> impl Strategy<Value = HeaderMap> {
    let name = prop_oneof![
        prop::sample::select(PROTECTED).prop_map(str::to_owned),
        prop::sample::select(vec![
            "connection",
            "te",
            "upgrade",
            "keep-alive",
            "transfer-encoding",
            "x_forwarded_for",
            "x-forwarded-for",
            "x-real-ip"
        ])
        .prop_map(str::to_owned),
        "[a-z][a-z0-9_-]{0,8}",
    ];
    let value = prop_oneof![
        prop::sample::select(vec![
            b"close".to_vec(),
            b"te, upgrade, authorization".to_vec(),
            b"host,x".to_vec()
        ]),
        prop::collection::vec(any::<u8>(), 0..24),
    ];
    prop::collection::vec((name, value), 0..16).prop_map(|fields| {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            if let (Ok(name), Ok(value)) = (
                HeaderName::from_bytes(name.as_bytes()),
                HeaderValue::from_bytes(&value),
            ) {
                headers.append(name, value);
            }
        }
        headers
    })
}

proptest! {
    #[test]
    fn whatever_a_stranger_sends_its_address_and_the_framing_are_ours(
        headers in any_headers(), octets: [u8; 4], port: u16, tls: bool,
    ) {
        let mut parts = parts(Version::HTTP_11, &[]);
        parts.headers = headers.clone();
        let client = Client { peer: SocketAddr::from((octets, port)), tls, trusted: false };
        let out = to_upstream(&parts, &client, None, "api:5001", false);
        prop_assert_eq!(all(&out, "x-forwarded-for"), [client.ip().to_string()]);
        prop_assert_eq!(out.get_all("forwarded").iter().count(), 1);
        for gone in ["transfer-encoding", "upgrade", "keep-alive", "expect", "x-real-ip"] {
            prop_assert!(!out.contains_key(gone));
        }
        prop_assert!(out.keys().all(|name| !name.as_str().contains('_')));
        for kept in ["authorization", "content-length", "cache-control", "x-app-passport"] {
            prop_assert_eq!(all(&out, kept), all(&headers, kept));
        }
        prop_assert!(out.get_all("cookie").iter().count() <= 1);
        prop_assert!(out.contains_key("host"));
    }

    #[test]
    fn an_answer_loses_nothing_but_hop_by_hop_fields(headers in any_headers()) {
        let mut out = headers.clone();
        from_upstream(&mut out, Version::HTTP_11, false);
        for kept in ["set-cookie", "etag", "vary", "content-type", "location"] {
            prop_assert_eq!(all(&out, kept), all(&headers, kept));
        }
        prop_assert!(!out.contains_key("connection") && !out.contains_key("transfer-encoding"));
    }
}

#[test]
fn over_http_2_no_field_speaks_of_the_connection_and_host_is_the_authority() {
    let fields = [
        ("connection", "keep-alive, x-hop"),
        ("keep-alive", "5"),
        ("x-hop", "1"),
        ("te", "trailers"),
        ("host", "dify.example:81"),
        ("my_key", "kept for gRPC"),
    ];
    let endpoint = |url| Endpoint::parse(crate::types::request::UpstreamId(0), 0, url).unwrap();
    let mut headers = to_upstream(
        &parts(Version::HTTP_2, &fields),
        &client(ANYONE, false, false),
        None,
        "api:5001",
        true,
    );
    let target = || PathAndQuery::from_static("/a.B/c?d=%2f");
    let uri = absolute(target(), &mut headers, &endpoint("https://api:5001"));
    assert_eq!(uri, "https://dify.example:81/a.B/c?d=%2f");
    for gone in ["host", "connection", "keep-alive", "x-hop"] {
        assert!(!headers.contains_key(gone), "{gone}");
    }
    assert_eq!(all(&headers, "te"), ["trailers"]);
    assert_eq!(all(&headers, "my_key"), ["kept for gRPC"]);
    assert_eq!(all(&headers, "x-forwarded-host"), ["dify.example:81"]);
    let uri = absolute(target(), &mut headers, &endpoint("http://api:5001"));
    assert_eq!(uri, "http://api:5001/a.B/c?d=%2f");
}
