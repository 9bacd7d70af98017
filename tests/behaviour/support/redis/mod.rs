//! Real Redis servers on ports of their own, in directories of their own; killed when dropped.
//!
//! `redis-server` has to be installed (`tests/run` does it on Debian).

pub mod cluster;
pub mod sentinel;
pub mod slow;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::{eventually, within};

/// One server, or one node of many.
pub struct Redis {
    /// Where it listens.
    pub address: SocketAddr,
    options: Vec<String>,
    directory: PathBuf,
    child: Option<Child>,
    /// What to say to be let in.
    login: Option<Vec<String>>,
}

/// What a server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// A status, a number or a value, as text.
    Text(String),
    /// An error.
    Error(String),
    /// Nothing there.
    Nil,
    /// Several.
    List(Vec<Reply>),
}

impl Reply {
    /// The text; empty for everything else.
    pub fn text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            _ => "",
        }
    }

    /// The replies in it.
    pub fn list(&self) -> &[Self] {
        match self {
            Self::List(list) => list,
            _ => &[],
        }
    }
}

fn port() -> u16 {
    // The bus of a cluster is 10,000 higher, and ports from 32768 on are given to anybody.
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = std::process::id().wrapping_mul(37) + NEXT.fetch_add(1, Ordering::Relaxed) * 101;
    10_000 + (number % 12_000) as u16
}

impl Redis {
    /// A server without options.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// A server with these words on its command line, and nothing persisted.
    pub async fn start_with(options: &[&str]) -> Self {
        for _ in 0..20 {
            let address = SocketAddr::from(([127, 0, 0, 1], port()));
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let name = format!(
                "dify-edge-redis-{}-{}",
                std::process::id(),
                NEXT.fetch_add(1, Ordering::Relaxed)
            );
            let directory = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&directory).expect("a directory");
            let mut redis = Self {
                address,
                options: options.iter().map(ToString::to_string).collect(),
                directory,
                child: None,
                login: None,
            };
            if redis.run().await {
                return redis;
            }
        }
        panic!("no redis-server came up");
    }

    /// A server to which clients have to say this password.
    pub async fn start_with_password(password: &str) -> Self {
        let mut redis = Self::start_with(&["--requirepass", password]).await;
        redis.login = Some(vec!["AUTH".to_owned(), password.to_owned()]);
        redis
    }

    /// A sentinel with this configuration.
    pub async fn sentinel(file: &Path) -> Self {
        // The file comes first on the command line.
        let file = file.to_str().expect("a name").to_owned();
        Self::start_with(&["--sentinel-file", &file]).await
    }

    /// Starts the process; tells whether it serves.
    async fn run(&mut self) -> bool {
        let mut command = Command::new("redis-server");
        match &self.options[..] {
            [word, file] if word == "--sentinel-file" => {
                command.arg(file).arg("--sentinel");
            }
            options => {
                command.args(["--save", "", "--appendonly", "no"]).args(options);
            }
        }
        let child = command
            .args(["--bind", "127.0.0.1", "--daemonize", "no"])
            .args(["--port", &self.address.port().to_string()])
            .arg("--dir")
            .arg(&self.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server, which these tests need: tests/run installs it on Debian");
        let mut child = child;
        let up = eventually("redis-server to come up or end", || {
            let ended = child.try_wait().expect("its status").is_some();
            let address = self.address;
            async move {
                if ended {
                    return Some(false);
                }
                TcpStream::connect(address).await.is_ok().then_some(true)
            }
        })
        .await;
        // Another process may have the port: then ours ends at once.
        let up = up && child.try_wait().expect("its status").is_none();
        self.child = Some(child);
        up
    }

    /// Where clients find it, database 0.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Ends it as `kill -9` does.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again at its address, empty.
    pub async fn start_again(&mut self) {
        self.kill();
        assert!(self.run().await, "redis-server did not come up again");
    }

    /// Stops the process as it stands (SIGSTOP): connections are made, nothing is answered.
    pub fn stop(&self) {
        self.signal("STOP");
    }

    /// Lets it go on.
    pub fn go_on(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let child = self.child.as_ref().expect("it runs");
        let sent = Command::new("kill")
            .args([format!("-{name}"), child.id().to_string()])
            .status();
        assert!(sent.expect("kill(1)").success());
    }

    /// What it answers to one command, on a connection of its own.
    pub async fn ask(&self, words: &[&str]) -> Reply {
        within("redis-server to answer", async {
            let mut stream = BufReader::new(TcpStream::connect(self.address).await.expect("it listens"));
            if let Some(login) = &self.login {
                let login: Vec<&[u8]> = login.iter().map(|word| word.as_bytes()).collect();
                command(&mut stream, &login).await.expect("a reply");
            }
            let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
            command(&mut stream, &words).await.expect("a reply")
        })
        .await
    }

    /// The names of its keys that fit this pattern, sorted.
    pub async fn keys(&self, pattern: &str) -> Vec<String> {
        let reply = self.ask(&["KEYS", pattern]).await;
        let mut keys: Vec<_> = reply.list().iter().map(|key| key.text().to_owned()).collect();
        keys.sort();
        keys
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Sends one command and reads its reply.
pub async fn command(stream: &mut BufReader<TcpStream>, words: &[&[u8]]) -> io::Result<Reply> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    stream.get_mut().write_all(&bytes).await?;
    reply(stream).await
}

async fn reply(stream: &mut BufReader<TcpStream>) -> io::Result<Reply> {
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let line = line.trim_end();
    let (kind, rest) = line.split_at_checked(1).ok_or(io::ErrorKind::UnexpectedEof)?;
    let number = || rest.parse::<i64>().map_err(io::Error::other);
    Ok(match kind {
        "-" => Reply::Error(rest.to_owned()),
        "$" if number()? < 0 => Reply::Nil,
        "*" if number()? < 0 => Reply::Nil,
        "$" => {
            let mut data = vec![0; number()? as usize + 2];
            stream.read_exact(&mut data).await?;
            data.truncate(data.len() - 2);
            Reply::Text(String::from_utf8_lossy(&data).into_owned())
        }
        "*" => {
            let mut list = Vec::new();
            for _ in 0..number()? {
                list.push(Box::pin(reply(stream)).await?);
            }
            Reply::List(list)
        }
        _ => Reply::Text(rest.to_owned()),
    })
}
