//! The administrative listener, read as an operator's tools do.

use std::net::SocketAddr;

use super::client::{Answer, Client, get};
use super::eventually;

/// `GET path` on the administrative listener.
pub async fn ask(admin: SocketAddr, path: &str) -> Answer {
    Client::connect(admin).await.exchange(get(path, &[])).await
}

/// The sum of the samples of `name` whose labels contain every one of `labels` (`class="metadata"`).
pub async fn sum(admin: SocketAddr, name: &str, labels: &[&str]) -> f64 {
    let answer = ask(admin, "/metrics").await;
    assert_eq!(answer.status, 200);
    sum_in(&answer.text(), name, labels)
}

/// The same over text that was read already.
pub fn sum_in(text: &str, name: &str, labels: &[&str]) -> f64 {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.rsplit_once(' '))
        .filter(|(sample, _)| {
            let (known, rest) = sample.split_once('{').unwrap_or((sample, ""));
            known == name && labels.iter().all(|label| rest.contains(label))
        })
        .filter_map(|(_, value)| value.parse::<f64>().ok())
        .sum()
}

#[test]
fn samples_are_summed_by_name_and_label() {
    let text = "# HELP a b\na{x=\"1\",y=\"2\"} 3\na{x=\"1\",y=\"3\"} 4\na{x=\"2\",y=\"2\"} 5\nab 9\nb 7\n";
    assert_eq!(sum_in(text, "a", &["x=\"1\""]), 7.0);
    assert_eq!(sum_in(text, "a", &[]), 12.0);
    assert_eq!(sum_in(text, "b", &[]), 7.0);
}

/// Waits until so many replicas are healthy.
pub async fn until_healthy(admin: SocketAddr, number: f64) {
    eventually("the replicas to be judged", || async {
        let healthy = sum(admin, "dify_edge_upstream_healthy", &[]).await;
        (healthy == number).then_some(())
    })
    .await;
}
