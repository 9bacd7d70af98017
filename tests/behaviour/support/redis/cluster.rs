//! Three masters, each with a third of the slots; with a replica each when asked for.

use super::{Redis, Reply};
use crate::support::eventually;

/// See the module.
pub struct Cluster {
    /// The masters; then their replicas in the same order.
    pub nodes: Vec<Redis>,
}

const MASTERS: usize = 3;
const SLOTS: usize = 16_384;

impl Cluster {
    /// Starts it and waits until it serves all slots.
    pub async fn start(replicas: bool) -> Self {
        let count = if replicas { 2 * MASTERS } else { MASTERS };
        let mut nodes = Vec::new();
        for _ in 0..count {
            let options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000"];
            nodes.push(Redis::start_with(&options).await);
        }
        for (index, node) in nodes.iter().take(MASTERS).enumerate() {
            let (first, next) = (SLOTS * index / MASTERS, SLOTS * (index + 1) / MASTERS);
            let (first, last) = (first.to_string(), (next - 1).to_string());
            let reply = node.ask(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]).await;
            assert_eq!(reply.text(), "OK", "{reply:?}");
        }
        let (ip, port) = ("127.0.0.1", nodes[0].address.port().to_string());
        for node in &nodes[1..] {
            node.ask(&["CLUSTER", "MEET", ip, &port]).await;
        }
        let cluster = Self { nodes };
        cluster.is_whole(count).await;
        for index in MASTERS..count {
            let id = cluster.nodes[index - MASTERS].ask(&["CLUSTER", "MYID"]).await;
            let reply = cluster.nodes[index]
                .ask(&["CLUSTER", "REPLICATE", id.text()])
                .await;
            assert_eq!(reply.text(), "OK", "{reply:?}");
            eventually("the replica to follow", || async {
                let info = cluster.nodes[index].ask(&["INFO", "replication"]).await;
                info.text().contains("master_link_status:up").then_some(())
            })
            .await;
        }
        cluster
    }

    /// Waits until every node knows `count` nodes and says that all is well.
    async fn is_whole(&self, count: usize) {
        for node in &self.nodes {
            eventually("the cluster to be whole", || async {
                let info = node.ask(&["CLUSTER", "INFO"]).await;
                let known = format!("cluster_known_nodes:{count}");
                (info.text().contains("cluster_state:ok") && info.text().contains(&known)).then_some(())
            })
            .await;
        }
    }

    /// Where clients find it.
    pub fn url(&self) -> String {
        let mut addresses = self.nodes.iter().map(|node| node.address);
        let first = addresses.next().expect("a node");
        let others: Vec<_> = addresses.map(|address| format!("node={address}")).collect();
        format!("redis-cluster://{first}?{}", others.join("&"))
    }

    /// The master of this key, by index.
    pub async fn owner(&self, key: &str) -> usize {
        let slot = self.nodes[0].ask(&["CLUSTER", "KEYSLOT", key]).await;
        let slot: usize = slot.text().parse().expect("a slot");
        (0..MASTERS)
            .rev()
            .find(|index| SLOTS * index / MASTERS <= slot)
            .expect("an owner")
    }

    /// Waits until the replica of the master `index` has taken over.
    pub async fn taken_over(&self, index: usize) {
        eventually("the replica to take over", || async {
            let reply = self.nodes[index + MASTERS].ask(&["ROLE"]).await;
            (reply.list().first().map(Reply::text) == Some("master")).then_some(())
        })
        .await;
    }
}
