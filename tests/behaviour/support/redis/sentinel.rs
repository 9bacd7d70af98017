//! A master, a replica, and three sentinels that let the replica take over.

use super::Redis;
use crate::support::eventually;

/// See the module.
pub struct Sentinels {
    /// The master at first, and its replica.
    pub servers: Vec<Redis>,
    /// The sentinels.
    pub sentinels: Vec<Redis>,
}

impl Sentinels {
    /// Starts them all and waits until the sentinels know each other and the replica.
    pub async fn start() -> Self {
        let master = Redis::start().await;
        let port = master.address.port().to_string();
        let replica = Redis::start_with(&["--replicaof", "127.0.0.1", &port]).await;
        eventually("the replica to follow", || async {
            let info = replica.ask(&["INFO", "replication"]).await;
            info.text().contains("master_link_status:up").then_some(())
        })
        .await;
        let mut sentinels = Vec::new();
        for number in 0..3 {
            // A sentinel writes into its configuration.
            let file = master.directory().join(format!("sentinel-{number}.conf"));
            let text = format!(
                "sentinel monitor main 127.0.0.1 {port} 2\n\
                 sentinel down-after-milliseconds main 500\n\
                 sentinel failover-timeout main 2000\n"
            );
            std::fs::write(&file, text).expect("a file");
            sentinels.push(Redis::sentinel(&file).await);
        }
        for sentinel in &sentinels {
            eventually("the sentinels to know each other", || async {
                let reply = sentinel.ask(&["SENTINEL", "MASTER", "main"]).await;
                let words: Vec<_> = reply.list().iter().map(|word| word.text().to_owned()).collect();
                let value = |name: &str| {
                    let at = words.iter().position(|word| word == name)?;
                    words.get(at + 1).cloned()
                };
                let known = (value("num-other-sentinels"), value("num-slaves"));
                (known == (Some("2".to_owned()), Some("1".to_owned()))).then_some(())
            })
            .await;
        }
        Self {
            servers: vec![master, replica],
            sentinels,
        }
    }

    /// Where clients find them.
    pub fn url(&self) -> String {
        let [first, second, third] = &self.sentinels[..] else {
            panic!("three sentinels");
        };
        format!(
            "redis-sentinel://{}?node={}&node={}&sentinelServiceName=main",
            first.address, second.address, third.address
        )
    }

    /// Waits until the sentinels say that the replica is the master.
    pub async fn taken_over(&self) {
        let port = self.servers[1].address.port().to_string();
        eventually("the replica to take over", || async {
            let reply = self.sentinels[0]
                .ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main"])
                .await;
            (reply.list().get(1).map(|word| word.text().to_owned()) == Some(port.clone())).then_some(())
        })
        .await;
    }
}
