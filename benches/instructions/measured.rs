//! What runs under valgrind: the stack alone, and the whole proxy for a client outside.

use std::io::{Read, Write};
use std::net::SocketAddr;

use dify_edge::app::Edge;
use dify_edge::stack;
use dify_edge::types::Body;
use dify_edge::types::time::Clock;
use http::Request;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use crate::support;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

/// One fill, then `hits` through all stages without a socket; cloning the request and dropping the answer count.
pub(crate) fn stack_hit(origin: SocketAddr, hits: u64) {
    let config = support::config(origin);
    runtime().block_on(async {
        let registry = prometheus::Registry::new();
        let (stack, _controls) =
            stack::build(&config, &Clock::System, &registry, &TaskTracker::new()).expect("a stack");
        let parts = support::parts();
        let request = || Request::from_parts(parts.clone(), Body::Empty);
        let answer = stack.clone().oneshot(request()).await.expect("an answer");
        assert_eq!(answer.status(), 200);
        for _ in 0..hits {
            let answer = stack.clone().oneshot(request()).await.expect("an answer");
            assert!(matches!(answer.body(), Body::Full(_)), "not a hit");
        }
    });
}

/// The proxy, until standard input ends; the first line of output is its address.
pub(crate) fn wire_hit(origin: SocketAddr) {
    let config = support::config(origin);
    runtime().block_on(async {
        let edge = Edge::start(config, Clock::System).await.expect("the proxy");
        println!("{}", edge.addresses[0]);
        std::io::stdout().flush().expect("standard output");
        let (end, ended) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            let _ = end.send(());
        });
        let _ = ended.await;
    });
}
