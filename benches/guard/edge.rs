//! Starts dify-edge on its core, waits until it knows what exists, and asks it for its metrics.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long the first reading of the database may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// A running proxy; stopped when dropped.
pub(crate) struct Edge {
    pub(crate) http: SocketAddr,
    admin: SocketAddr,
    child: Child,
    directory: PathBuf,
}

impl Edge {
    /// `values`: what stands for the `@…@` of the configuration.
    pub(crate) fn start(program: &Path, cpus: &str, values: &[(&str, &str)]) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("dify-edge: {error}");
        let (http, admin) = (free_address().map_err(failed)?, free_address().map_err(failed)?);
        let directory = std::env::temp_dir().join(format!("dify-edge-drill-{}", http.port()));
        fs::create_dir_all(&directory).map_err(failed)?;
        let ports = [("@HTTP@", http.port()), ("@ADMIN@", admin.port())];
        let mut text = include_str!("dify-edge.yaml").to_owned();
        for (name, port) in ports {
            text = text.replace(name, &port.to_string());
        }
        for (name, value) in values {
            text = text.replace(name, value);
        }
        let config = directory.join("dify-edge.yaml");
        fs::write(&config, text).map_err(failed)?;
        let log = File::create(directory.join("log")).map_err(failed)?;
        let child = Command::new("taskset")
            .args(["-c", cpus])
            .arg(program)
            .args(["serve", "--config"])
            .arg(config)
            .stdin(Stdio::null())
            .stderr(log.try_clone().map_err(failed)?)
            .stdout(log)
            .spawn()
            .map_err(failed)?;
        Ok(Self {
            http,
            admin,
            child,
            directory,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it serves and, when it `guards`, knows all that exists of the kinds in the database.
    pub(crate) fn wait(&mut self, guards: bool) -> Result<(), String> {
        let (began, mut last) = (Instant::now(), String::new());
        while began.elapsed() < PATIENCE {
            if let Ok(Some(status)) = self.child.try_wait() {
                let log = fs::read_to_string(self.directory.join("log")).unwrap_or_default();
                return Err(format!("dify-edge ended ({status}): {log}"));
            }
            match self.ask("/ready") {
                Ok(_) if !guards => return Ok(()),
                Ok(body) => {
                    let ready: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
                    let kinds = ready["guard"]["kinds"].as_array().cloned().unwrap_or_default();
                    let armed = kinds.iter().filter(|kind| kind["armed"] == true).count();
                    // All but the codes of MCP servers and webhooks.
                    if armed >= 13 {
                        eprintln!("all is known after {:.1} s", began.elapsed().as_secs_f64());
                        return Ok(());
                    }
                    last = format!("{armed} kinds armed of {body}");
                }
                Err(error) => last = error.to_string(),
            }
            sleep(Duration::from_millis(100));
        }
        Err(format!("dify-edge does not get ready: {last}"))
    }

    /// The sum of all series of a metric that have `label` in them.
    pub(crate) fn metric(&self, name: &str, label: &str) -> Result<f64, String> {
        let text = self.ask("/metrics").map_err(|error| error.to_string())?;
        let series = text.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let is = series.strip_prefix(name)?;
            let is = (is.is_empty() || is.starts_with('{')) && is.contains(label);
            is.then(|| value.parse::<f64>().ok())?
        });
        Ok(series.sum())
    }

    fn ask(&self, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(self.admin)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
        body.ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn free_address() -> std::io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}
