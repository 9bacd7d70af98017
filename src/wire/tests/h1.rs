//! HTTP/1.1 as clients speak it, and as they should not.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_connection_answers_one_request_after_another() {
    let rig = Rig::new();
    let mut peer = rig.connect();
    for _ in 0..3 {
        let reply = peer.get("/hello").await;
        assert_eq!((reply.status, reply.body.as_str()), (200, "hello"));
        assert!(!reply.head.contains("Connection"), "{}", reply.head);
    }
    assert_eq!(rig.metric("dify_edge_connections", &["h1"]), 1.0);
    drop(peer);
    tokio::task::yield_now().await;
    assert_eq!(
        rig.metric("dify_edge_requests_total", &["metadata", "hit", "2xx"]),
        3.0
    );
    assert_eq!(rig.metric("dify_edge_bytes_sent_total", &[]), 15.0);
    assert_eq!(
        rig.metric("dify_edge_request_seconds", &["metadata", "total"]),
        3.0
    );
    assert_eq!(rig.metric("dify_edge_connections", &["h1"]), 0.0);
}

#[tokio::test(start_paused = true)]
async fn pipelined_requests_are_answered_in_order_up_to_a_bad_one() {
    let mut peer = Rig::new().connect();
    let good = |path| format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n");
    let bad = "GET /hello HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n";
    peer.send(format!(
        "{}{}{}{bad}{}",
        good("/slow"),
        good("/hello"),
        good("/stream?1"),
        good("/hello")
    ))
    .await;
    assert_eq!(peer.reply().await.body, "slow");
    assert_eq!(peer.reply().await.body, "hello");
    assert!(peer.reply().await.body.contains("data: x"));
    assert_eq!(peer.refusal().await, (400, "`Host` is repeated".into()));
}

#[tokio::test(start_paused = true)]
async fn each_limit_and_each_malformed_head_gets_its_status_and_a_dify_shaped_body() {
    let rig = Rig::new();
    let head = |fields: &str| format!("GET /hello HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
    let cases = [
        (
            format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "a".repeat(256)),
            414,
            "256 bytes",
        ),
        (head(&"A: b\r\n".repeat(20)), 431, "20 header fields"),
        (head(&format!("A: {}\r\n", "b".repeat(1024))), 431, "1024 bytes"),
        ("CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\r\n".into(), 501, "CONNECT"),
        ("TRACE /hello HTTP/1.1\r\nHost: h\r\n\r\n".into(), 501, "TRACE"),
        (
            head("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n"),
            400,
            "exclude",
        ),
        (
            head("Content-Length: 1\r\nContent-Length: 1\r\n"),
            400,
            "repeated",
        ),
        (head("A : b\r\n"), 400, "colon"),
        (head("A: b\r\n c\r\n"), 400, "folded"),
        (head("A: b\0\r\n"), 400, "control"),
        ("GET /hello HTTP/3.0\r\nHost: h\r\n\r\n".into(), 400, "version"),
        ("\x16\x03\x01 this is TLS".into(), 400, "method"),
    ];
    for (text, status, part) in &cases {
        let mut peer = rig.connect();
        peer.send(text).await;
        let (found, message) = peer.refusal().await;
        assert_eq!(found, *status, "{text:?}");
        assert!(message.contains(part), "{text:?}: {message}");
    }
    assert_eq!(
        rig.metric("dify_edge_rejected_requests_total", &[]),
        cases.len() as f64
    );
    assert_eq!(
        rig.metric("dify_edge_rejected_requests_total", &["headers_too_large"]),
        2.0
    );
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_head_has_the_length_and_no_content() {
    let rig = Rig::new();
    let mut peer = rig.connect();
    for _ in 0..2 {
        peer.send("HEAD /hello HTTP/1.1\r\nHost: h\r\n\r\n").await;
        let head = peer.head().await;
        assert!(head.contains("Content-Length: 5\r\n"), "{head}");
    }
    peer.send("HEAD /hello HTTP/1.1\r\nHost: a b\r\n\r\n").await;
    let head = peer.head().await;
    assert!(
        head.starts_with("HTTP/1.1 400 ") && head.contains("Content-Length: "),
        "{head}"
    );
    assert_eq!(peer.rest().await, "");
    assert_eq!(rig.metric("dify_edge_bytes_sent_total", &[]), 0.0);
}

#[tokio::test(start_paused = true)]
async fn stages_see_an_absolute_target_in_origin_form() {
    let mut peer = Rig::new().connect();
    peer.send("GET http://Name:80/head?a=%2f HTTP/1.1\r\nHost: name:80\r\n\r\n")
        .await;
    let body = peer.reply().await.body;
    assert_eq!(body, "GET /head?a=%2f 192.0.2.1\nhost: name:80\n");
}

#[tokio::test(start_paused = true)]
async fn continue_is_sent_when_the_body_is_wanted_and_never_before() {
    let rig = Rig::new();
    let head = |path| {
        format!("POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
    };
    let mut peer = rig.connect();
    peer.send(head("/echo")).await;
    assert_eq!(peer.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    peer.send("body").await;
    assert_eq!(peer.reply().await.body, "body");

    let mut peer = rig.connect();
    peer.send(head("/refuse")).await;
    assert_eq!(peer.refusal().await, (413, "too long".into()));

    let mut peer = rig.connect();
    peer.send(head("/ignore")).await;
    let reply = peer.reply().await;
    assert_eq!((reply.status, reply.body.as_str()), (200, "ignored"));
    assert!(reply.head.contains("Connection: close"), "{}", reply.head);
    assert_eq!(peer.rest().await, "");
}

#[tokio::test(start_paused = true)]
async fn trailers_pass_both_ways() {
    let mut peer = Rig::new().connect();
    peer.send("POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTrailer: x-a\r\n\r\n")
        .await;
    peer.send("3\r\nabc\r\n2;ext=1\r\nde\r\n0\r\nX-A: b\r\n\r\n")
        .await;
    assert_eq!(peer.reply().await.body, "abcde|x-a=b");
    peer.send("GET /stream?1 HTTP/1.1\r\nHost: h\r\nTE: trailers\r\n\r\n")
        .await;
    let body = peer.reply().await.body;
    assert!(
        body.to_ascii_lowercase().ends_with("0\r\nx-checksum: 42\r\n\r\n"),
        "{body:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_the_chunk_syntax_is_answered_by_name() {
    for (chunks, part) in [
        ("5\r\nabc\r\n0\r\n\r\n", "longer than its size"),
        ("zz\r\n", "hexadecimal"),
        (
            "1\r\na\r\n0\r\nHost: evil\r\n\r\n",
            "`host` may not stand in a trailer",
        ),
    ] {
        for path in ["/echo", "/hide"] {
            let mut peer = Rig::new().connect();
            peer.send(format!(
                "POST {path} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"
            ))
            .await;
            let (status, message) = peer.refusal().await;
            assert_eq!(status, 400);
            assert!(message.contains(part), "{message}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_nobody_reads_is_never_taken_for_the_next_request() {
    let hidden = "GET /hello HTTP/1.1\r\nHost: h\r\n\r\n";
    let length = hidden.len() + 100_000;
    let head = format!("POST /ignore HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n");
    // The body comes late, at once, or in part.
    for now in [0, 1, hidden.len()] {
        let mut peer = Rig::new().connect();
        peer.send(format!("{head}{}", &hidden[..now])).await;
        let reply = peer.reply().await;
        assert_eq!(reply.body, "ignored");
        assert!(reply.head.contains("Connection: close\r\n"), "{}", reply.head);
        let _ = peer.io.write_all(&hidden.as_bytes()[now..]).await;
        let _ = peer.io.write_all(&[b' '; 100_000]).await;
        let _ = peer.io.write_all(hidden.as_bytes()).await;
        assert_eq!(peer.rest().await, "", "{now}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_still_sending_gets_to_read_the_refusal() {
    let mut peer = Rig::new().connect_through(1024);
    let head = "POST /refuse HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n";
    peer.send(head).await;
    peer.send(vec![b'x'; 1_000_000]).await;
    assert_eq!(peer.refusal().await.0, 413);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_ends_too_early_is_a_client_that_is_gone() {
    let rig = Rig::new();
    let mut peer = rig.connect();
    peer.send("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nabc")
        .await;
    peer.io.shutdown().await.unwrap();
    peer.rest().await;
    assert_eq!(
        rig.metric("dify_edge_rejected_requests_total", &["client_gone"]),
        1.0
    );
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_ends_its_request() {
    let rig = Rig::new();
    let mut peer = rig.connect();
    peer.send("GET /slow?1000 HTTP/1.1\r\nHost: h\r\n\r\n").await;
    sleep(Duration::from_secs(1)).await;
    drop(peer);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(rig.metric("dify_edge_requests_total", &["none", "4xx"]), 1.0);
}

#[tokio::test(start_paused = true)]
async fn content_that_breaks_off_never_looks_complete() {
    let mut peer = Rig::new().connect();
    peer.send("GET /fail HTTP/1.1\r\nHost: h\r\n\r\n").await;
    let text = peer.rest().await;
    assert!(
        text.contains("Transfer-Encoding: chunked") && text.ends_with("5\r\n12345\r\n"),
        "{text}"
    );

    let mut peer = Rig::new().connect();
    peer.send("GET /fail HTTP/1.1\r\nHost: h\r\nX-Length: 10\r\n\r\n")
        .await;
    let text = peer.rest().await;
    assert!(
        text.contains("Content-Length: 10") && text.ends_with("\r\n\r\n12345"),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_status_that_ends_nothing_is_not_passed_on_unasked() {
    let mut peer = Rig::new().connect();
    let reply = peer.get("/odd").await;
    assert_eq!(reply.status, 502);
    assert!(reply.body.contains("bad_gateway"));
    assert_eq!(peer.get("/hello").await.body, "hello");
}

#[tokio::test(start_paused = true)]
async fn http_1_0_is_served_with_and_without_host() {
    for head in [
        "GET /hello HTTP/1.0\r\n\r\n",
        "GET /hello HTTP/1.0\r\nHost: h\r\n\r\n",
    ] {
        let mut peer = Rig::new().connect();
        peer.send(head).await;
        let text = peer.rest().await;
        assert!(
            text.starts_with("HTTP/1.0 200 OK\r\n") && text.ends_with("\r\n\r\nhello"),
            "{text}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_before_the_end_of_the_body_says_that_the_connection_closes() {
    for (length, closes) in [(3, false), (10, true)] {
        let mut peer = Rig::new().connect();
        peer.send(format!(
            "POST /early?3 HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\nabc"
        ))
        .await;
        let reply = peer.reply().await;
        assert_eq!(reply.body, "early");
        assert_eq!(
            reply.head.contains("Connection: close\r\n"),
            closes,
            "{}",
            reply.head
        );
        if !closes {
            assert_eq!(peer.get("/hello").await.body, "hello");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_nobody_waited_for_is_counted_as_what_it_was() {
    let rig = Rig::new();
    let mut peer = rig.connect();
    peer.send("GET /known HTTP/1.1\r\nHost: h\r\n\r\n").await;
    sleep(Duration::from_secs(1)).await;
    drop(peer);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(
        rig.metric("dify_edge_requests_total", &["metadata", "none", "4xx"]),
        1.0
    );
}

#[tokio::test(start_paused = true)]
async fn a_method_in_small_letters_is_another_method() {
    let mut peer = Rig::new().connect();
    for method in ["get", "Get", "head", "options", "connect"] {
        peer.send(format!("{method} /head HTTP/1.1\r\nHost: h\r\n\r\n"))
            .await;
        let reply = peer.reply().await;
        assert!(
            reply.body.starts_with(&format!("{method} /head ")),
            "{}",
            reply.body
        );
    }
    peer.send("options * HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert_eq!(peer.refusal().await.0, 400);
    // The refusal of what is not HEAD has content.
    let mut peer = Rig::new().connect();
    peer.send("head /hello HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n")
        .await;
    assert_eq!(peer.refusal().await.1, "`Host` is repeated");
}
