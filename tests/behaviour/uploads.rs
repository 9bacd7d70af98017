//! Uploads pass as streams: what the proxy holds of one is bounded, and a slow origin slows the client down.

use std::sync::Arc;
use std::time::Duration;

use dify_edge::config::AccessLog;
use tokio::sync::{Notify, watch};

use crate::support::client::{Client, request};
use crate::support::origin::{Options, Origin, json};
use crate::support::{child, edge, within};

const KEY: (&str, &str) = ("Authorization", "Bearer app-1");
const MIB: usize = 1 << 20;

fn upload_head(length: usize) -> Vec<u8> {
    let length = length.to_string();
    let head = request(
        "POST",
        "/v1/files/upload",
        &[KEY, ("Content-Type", "application/octet-stream")],
        b"",
    );
    let head = String::from_utf8(head).expect("text");
    head.replace("Content-Length: 0", &format!("Content-Length: {length}"))
        .into_bytes()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_of_one_gib_needs_less_than_32_mib_of_memory() {
    const LENGTH: usize = 1024 * MIB;
    let origin = Origin::start(|seen| async move { json(201, seen.body_length.to_string()) }).await;
    let served = child::serve(edge::config(&[origin.address]), AccessLog::Off).await;
    // What a first request needs is there before.
    let mut client = Client::connect(served.address).await;
    let small = request("POST", "/v1/files/upload", &[KEY], &vec![b'x'; MIB]);
    assert_eq!(client.exchange(small).await.status, 201);
    let before = served.peak_memory();
    client.send(upload_head(LENGTH)).await;
    let block = vec![b'x'; 4 * MIB];
    for _ in 0..LENGTH / block.len() {
        client.send(&block).await;
    }
    let answer = client.response("POST").await;
    assert_eq!((answer.status, answer.text()), (201, LENGTH.to_string()));
    let grown = served.peak_memory() - before;
    assert!(grown < 32 * 1024, "{grown} KiB more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_of_256_mib_that_is_read_slowly_needs_less_than_32_mib_of_memory() {
    const LENGTH: usize = 256 * MIB;
    let origin = Origin::start(|seen| async move {
        let length = if seen.target.contains("small") {
            MIB
        } else {
            LENGTH
        };
        crate::support::origin::answer(
            200,
            &[("Content-Type", "application/octet-stream")],
            vec![b'y'; length],
        )
    })
    .await;
    let served = child::serve(edge::config(&[origin.address]), AccessLog::Off).await;
    let mut client = Client::connect(served.address).await;
    let file = |name: &str| request("GET", &format!("/files/{name}"), &[], b"");
    assert_eq!(client.exchange(file("small")).await.body.len(), MIB);
    let before = served.peak_memory();
    client.send(file("large")).await;
    client.final_head().await;
    let mut left = LENGTH;
    while left > 0 {
        left -= client.some().await.expect("more").len();
    }
    let grown = served.peak_memory() - before;
    assert!(grown < 32 * 1024, "{grown} KiB more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_that_does_not_read_holds_the_client_back() {
    const LENGTH: usize = 256 * MIB;
    let go_on = Arc::new(Notify::new());
    let options = Options {
        hold_body: Some(go_on.clone()),
        ..Options::default()
    };
    let origin = Origin::start_with(
        options,
        |seen| async move { json(201, seen.body_length.to_string()) },
    )
    .await;
    let edge = edge::start(&[origin.address], |_| {}).await;
    let mut client = edge.client().await;
    let (sent, mut progress) = watch::channel(0_usize);
    let uploading = tokio::spawn(async move {
        client.send(upload_head(LENGTH)).await;
        let block = vec![b'x'; 64 * 1024];
        for _ in 0..LENGTH / block.len() {
            client.send(&block).await;
            sent.send_modify(|sent| *sent += block.len());
        }
        client.response("POST").await
    });
    origin.until("the head", |counts| counts.heads == 1).await;
    // Quiet for this long, nothing moves any more.
    while tokio::time::timeout(Duration::from_millis(500), progress.changed())
        .await
        .is_ok_and(|changed| changed.is_ok())
    {}
    let stuck_at = *progress.borrow();
    assert!(
        stuck_at < 32 * MIB,
        "{stuck_at} bytes were taken that nobody read"
    );
    assert_eq!(origin.counts().body_bytes, 0);
    go_on.notify_one();
    let answer = within("the upload to go on", uploading)
        .await
        .expect("the client");
    assert_eq!((answer.status, answer.text()), (201, LENGTH.to_string()));
}
