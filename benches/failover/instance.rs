//! An instance of dify-edge as a process, and what its administrative listener says of failover.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::child::{Child, free_address, logged};

/// The longest that an answer of the administrative listener may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// A running instance.
pub(crate) struct Instance {
    pub(crate) child: Child,
    pub(crate) http: SocketAddr,
    admin: SocketAddr,
}

/// How an instance stands.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Standing {
    /// The cluster that has the writes.
    pub(crate) active: String,
    pub(crate) epoch: u64,
    /// The instance that decides, by its name.
    pub(crate) holder: String,
    /// Whether Redis has confirmed the epoch within the last second.
    pub(crate) is_confirmed: bool,
    /// Of all instances together, the share of the primary's capacity that is healthy, and of the standby's.
    pub(crate) healthy: [f64; 2],
}

impl Instance {
    /// Starts one; `values` stand for the `@…@` of the configuration.
    pub(crate) fn start(
        program: &Path,
        directory: &Path,
        number: usize,
        values: &[(String, String)],
    ) -> Result<Self, String> {
        let (http, admin) = (free_address()?, free_address()?);
        let mut text = include_str!("dify-edge.yaml").to_owned();
        text = text
            .replace("@HTTP@", &http.to_string())
            .replace("@ADMIN@", &admin.to_string());
        for (name, value) in values {
            text = text.replace(name, value);
        }
        let config = directory.join(format!("instance-{number}.yaml"));
        std::fs::write(&config, text).map_err(|error| error.to_string())?;
        let mut command = Command::new(program);
        command.args(["serve", "--config"]).arg(config);
        logged(&mut command, &directory.join(format!("instance-{number}.log")))?;
        Ok(Self {
            child: Child::start(&mut command)?,
            http,
            admin,
        })
    }

    /// How it stands, if it says so.
    pub(crate) async fn standing(&self) -> Result<Standing, String> {
        let upstreams = self.ask("GET", "/upstreams", "").await?;
        let failover = &upstreams[0]["failover"];
        let text = |name: &str| failover[name].as_str().unwrap_or_default().to_owned();
        let healthy = |cluster: &str| failover["healthy"][cluster].as_f64().unwrap_or_default();
        Ok(Standing {
            active: text("active"),
            epoch: failover["epoch"].as_u64().unwrap_or_default(),
            holder: text("holder"),
            is_confirmed: failover["confirmed_ms_ago"]
                .as_u64()
                .is_some_and(|ago| ago < 1_000),
            healthy: [healthy("primary"), healthy("standby")],
        })
    }

    /// Says where the writes are to go: `standby`, `primary` or `auto`.
    pub(crate) async fn steer(&self, to: &str) -> Result<(), String> {
        let body = format!("{{\"to\": \"{to}\"}}");
        self.ask("POST", "/failover", &body).await.map(drop)
    }

    /// Whether this is the instance of that name: it has the process in it.
    pub(crate) fn is(&self, name: &str) -> bool {
        name.split(':').any(|part| part == self.child.pid().to_string())
    }

    async fn ask(&self, method: &str, path: &str, body: &str) -> Result<Value, String> {
        let exchange = async {
            let mut stream = TcpStream::connect(self.admin).await?;
            let length = body.len();
            let request = format!(
                "{method} {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\nContent-Type: application/json\r\n\
                 Authorization: Bearer a-token-for-the-drill\r\nContent-Length: {length}\r\n\r\n{body}"
            );
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        let answer = timeout(PATIENCE, exchange)
            .await
            .map_err(|_| format!("no answer to {method} {path}"))?;
        let answer = answer.map_err(|error| format!("{method} {path}: {error}"))?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        if !head.starts_with("HTTP/1.1 200") {
            return Err(format!(
                "{method} {path}: {}",
                head.lines().next().unwrap_or_default()
            ));
        }
        serde_json::from_str(body).map_err(|error| format!("{method} {path}: {error}"))
    }
}
