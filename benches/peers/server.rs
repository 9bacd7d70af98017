//! Starts a server on its core with its configuration from this folder, and stops it.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use crate::rows::Peer;

/// What all servers of a run have in common.
pub(crate) struct Setting {
    pub(crate) folder: PathBuf,
    pub(crate) edge: PathBuf,
    pub(crate) cpus: String,
    pub(crate) workers: usize,
    pub(crate) origin: u16,
    /// What dify-edge is told of a shared tier, a line of YAML.
    pub(crate) shared: String,
}

/// A running server; stopped when dropped.
pub(crate) struct Server {
    pub(crate) peer: Peer,
    pub(crate) http: u16,
    pub(crate) h2: u16,
    pub(crate) tls: u16,
    child: Child,
    shm: PathBuf,
}

/// A port that is free now.
fn free_port() -> Result<u16, String> {
    let listener = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    listener
        .map(|address| address.port())
        .map_err(|error| error.to_string())
}

impl Server {
    pub(crate) fn start(peer: Peer, setting: &Setting) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("{}: {error}", peer.name());
        let dir = setting.folder.join("work").join(peer.name().replace(' ', "-"));
        fs::create_dir_all(&dir).map_err(failed)?;
        let http = free_port()?;
        // dify-edge and Varnish speak both on one port.
        let h2 = match peer {
            Peer::Bare | Peer::Nginx => free_port()?,
            _ => http,
        };
        let tls = free_port()?;
        let shm = PathBuf::from(format!("/dev/shm/dify-edge-peers-{http}"));
        let values = [
            ("@HTTP@", http.to_string()),
            ("@H2@", h2.to_string()),
            ("@TLS@", tls.to_string()),
            ("@ADMIN@", free_port()?.to_string()),
            ("@ORIGIN@", setting.origin.to_string()),
            ("@WORKERS@", setting.workers.to_string()),
            ("@DIR@", dir.display().to_string()),
            ("@SHM@", shm.display().to_string()),
            (
                "@CERT@",
                setting.folder.join("work/cert.pem").display().to_string(),
            ),
            ("@KEY@", setting.folder.join("work/key.pem").display().to_string()),
            ("@SHARED@", setting.shared.clone()),
            ("@SENDFILE@", "off".into()),
            ("@MEMORY@", "4GiB".into()),
        ];
        let render = |name: &str| -> Result<PathBuf, String> {
            let template = fs::read_to_string(setting.folder.join(name)).map_err(failed)?;
            let text = values
                .iter()
                .fold(template, |text, (key, value)| text.replace(key, value));
            let path = dir.join(name);
            fs::write(&path, text).map_err(failed)?;
            Ok(path)
        };
        let path = |path: &Path| path.display().to_string();
        let words: Vec<String> = match peer {
            Peer::Bare => {
                let this = std::env::current_exe().map_err(failed)?;
                vec![path(&this), "--responder".into(), format!("{http},{h2}")]
            }
            Peer::Edge => vec![
                path(&setting.edge),
                "serve".into(),
                "--config".into(),
                path(&render("dify-edge.yaml")?),
            ],
            Peer::Nginx => {
                fs::create_dir_all(&shm).map_err(failed)?;
                vec![
                    "/usr/sbin/nginx".into(),
                    "-c".into(),
                    path(&render("nginx.conf")?),
                ]
            }
            Peer::Haproxy => vec![
                "/usr/sbin/haproxy".into(),
                "-db".into(),
                "-f".into(),
                path(&render("haproxy.cfg")?),
            ],
            Peer::Varnish => {
                let vcl = path(&render("varnish.vcl")?);
                let start = format!("/usr/sbin/varnishd -F -j none -T none -n {} -f {vcl}", path(&dir));
                // One pool for the core; its threads are there from the start and stay. Answers are kept in memory.
                let tuning = "-s malloc,1G -p feature=+http2 -p thread_pools=1 -p thread_pool_min=1000 \
                              -p thread_pool_max=2000 -p timeout_idle=3600";
                let listen = format!("-a 127.0.0.1:{http},HTTP");
                [start.as_str(), tuning, listen.as_str()]
                    .iter()
                    .flat_map(|part| part.split_whitespace().map(str::to_owned))
                    .collect()
            }
        };
        let log = File::create(dir.join("output.log")).map_err(failed)?;
        let child = Command::new("taskset")
            .args(["-c", &setting.cpus])
            .args(&words)
            .stdin(Stdio::null())
            .stderr(log.try_clone().map_err(failed)?)
            .stdout(log)
            .spawn()
            .map_err(failed)?;
        Ok(Self {
            peer,
            http,
            h2,
            tls,
            child,
            shm,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A master that is killed outright leaves its workers behind.
        let _ = Command::new("kill").arg(self.pid().to_string()).status();
        for _ in 0..100 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                break;
            }
            sleep(Duration::from_millis(50));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.shm);
    }
}
