//! The built program as a process of its own, for what only a process can show: signals, memory, the log.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;

use dify_edge::config::{AccessLog, Config, LogFormat};

use super::within;

/// A running `serve`; killed when dropped.
pub struct Served {
    /// Where clients connect.
    pub address: SocketAddr,
    /// The administrative listener.
    pub admin: SocketAddr,
    child: Child,
    log: Arc<Mutex<String>>,
    ended: watch::Receiver<bool>,
    file: PathBuf,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.file);
    }
}

/// Starts `serve` with this configuration; its log is JSON.
pub async fn serve(config: Config, access: AccessLog) -> Served {
    serve_with(config, access, &[]).await
}

/// The same with this environment.
pub async fn serve_with(mut config: Config, access: AccessLog, environment: &[(&str, &str)]) -> Served {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    config.log.format = LogFormat::Json;
    config.log.access = access;
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let file = std::env::temp_dir().join(format!(
        "dify-edge-behaviour-{}-{number}.yaml",
        std::process::id()
    ));
    // YAML reads JSON.
    std::fs::write(&file, serde_json::to_string(&config).expect("a configuration")).expect("a file");
    let mut child = Command::new(env!("CARGO_BIN_EXE_dify-edge"))
        .arg("serve")
        .arg("--config")
        .arg(&file)
        .env_clear()
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let stdout = child.stdout.take().expect("its output");
    let log = Arc::new(Mutex::new(String::new()));
    let (lines, mut listening) = watch::channel((None, None));
    let (end, ended) = watch::channel(false);
    let kept = log.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Some((is_admin, address)) = listening_line(&line) {
                lines.send_modify(|(clients, admin)| *if is_admin { admin } else { clients } = Some(address));
            }
            let mut kept = kept.lock();
            kept.push_str(&line);
            kept.push('\n');
        }
        let _ = end.send(true);
    });
    let found = *within(
        "the program to listen",
        listening.wait_for(|(clients, admin)| clients.is_some() && admin.is_some()),
    )
    .await
    .unwrap_or_else(|_| panic!("the program did not start: {}", log.lock()));
    Served {
        address: found.0.expect("clients"),
        admin: found.1.expect("admin"),
        child,
        log,
        ended,
        file,
    }
}

/// The program, called with these arguments and this environment alone: its exit code, output and errors.
pub fn call(arguments: &[&str], environment: &[(&str, &str)]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_dify-edge"))
        .args(arguments)
        .env_clear()
        .envs(environment.iter().copied())
        .output()
        .expect("the program can be started");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (
        output.status.code().expect("it ends by itself"),
        text(output.stdout),
        text(output.stderr),
    )
}

/// Whether a line says that a listener is there, and which.
fn listening_line(line: &str) -> Option<(bool, SocketAddr)> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    let is_admin = match line["message"].as_str()? {
        "listening" => false,
        "administrative listener" => true,
        _ => return None,
    };
    Some((is_admin, line["address"].as_str()?.parse().ok()?))
}

impl Served {
    /// What it has written so far.
    pub fn log(&self) -> String {
        self.log.lock().clone()
    }

    /// Sends a signal, by its name (`TERM`).
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args([format!("-{name}"), self.child.id().to_string()])
            .status()
            .expect("kill(1)");
        assert!(sent.success());
    }

    /// Waits for its end; what it has written and how it ended.
    pub async fn end(mut self) -> (ExitStatus, String) {
        let mut ended = self.ended.clone();
        within("the program to end", ended.wait_for(|ended| *ended))
            .await
            .expect("the reader of the log");
        let status = self.child.wait().expect("its status");
        (status, self.log())
    }

    /// The most memory that was ever resident, in KiB (`VmHWM`).
    pub fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("/proc");
        status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .and_then(|rest| rest.split_whitespace().next())
            .and_then(|number| number.parse().ok())
            .expect("VmHWM")
    }
}
