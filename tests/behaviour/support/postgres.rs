//! Real PostgreSQL servers on ports of their own, in directories of their own, with the tables of Dify that the guard
//! reads; killed when dropped.
//!
//! The server has to be installed (`tests/run` does it on Debian). It refuses to run as root: then it runs as the user
//! `postgres`.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use tokio_postgres::{Client, NoTls};

use super::eventually;

/// Dify's tables, with the columns that the guard reads and one that it must not.
const TABLES: &str = "
    CREATE TABLE accounts (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), password varchar(255));
    CREATE TABLE api_tokens (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), app_id uuid, type varchar(16) NOT NULL,
        token varchar(255) NOT NULL, last_used_at timestamp,
        created_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP(0), tenant_id uuid);
    CREATE TABLE sites (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), status varchar(255) NOT NULL DEFAULT 'normal',
        code varchar(255), created_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP(0),
        updated_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP(0));
    CREATE TABLE conversations (id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        created_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP(0), is_deleted boolean NOT NULL DEFAULT false);
";
/// Those of which the guard reads the key and the time alone.
const PLAIN: [&str; 9] = [
    "apps",
    "datasets",
    "documents",
    "document_segments",
    "child_chunks",
    "messages",
    "upload_files",
    "workflow_runs",
    "message_annotations",
];

const PASSWORD: &str = "pass-word";

/// One server.
pub struct Postgres {
    /// Where it listens.
    pub address: SocketAddr,
    directory: PathBuf,
    child: Option<Child>,
}

impl Postgres {
    /// A server with Dify's tables, empty.
    pub async fn start() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("dify-edge-postgres-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir_all(&directory).expect("a directory");
        fs::write(directory.join("password"), PASSWORD).expect("a file");
        let mut server = Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            directory,
            child: None,
        };
        server.give_away();
        let data = server.data();
        let output = server
            .command("initdb")
            .args([
                "--no-sync",
                "--username=postgres",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
            ])
            .args(["--locale=C", "--pwfile"])
            .arg(server.directory.join("password"))
            .arg(data)
            .output()
            .expect("initdb, which these tests need: tests/run installs it on Debian");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let mut tries = 0;
        while !server.run(None).await {
            tries += 1;
            assert!(tries < 20, "no server came up");
        }
        let client = server.client().await;
        client.batch_execute(TABLES).await.expect("tables");
        for table in PLAIN {
            let columns = "id uuid PRIMARY KEY DEFAULT gen_random_uuid(), \
                           created_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP(0)";
            let sql = format!("CREATE TABLE {table} ({columns})");
            client.batch_execute(&sql).await.expect("a table");
        }
        server
    }

    /// Starts the process on a free port, or on the one it had; tells whether it serves.
    async fn run(&mut self, port: Option<u16>) -> bool {
        let port = port.unwrap_or_else(|| {
            let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
            free.local_addr().expect("a port").port()
        });
        self.address.set_port(port);
        let data = self.data();
        let mut child = self
            .command("postgres")
            .arg("-D")
            .arg(data)
            .args(["-p", &port.to_string(), "-h", "127.0.0.1"])
            .args([
                "-c",
                "unix_socket_directories=",
                "-c",
                "fsync=off",
                "-c",
                "max_connections=40",
            ])
            .args(["-c", "shared_buffers=16MB", "-c", "autovacuum=off"])
            // The tests' own times are in UTC, as are Dify's.
            .args(["-c", "timezone=UTC"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("postgres");
        let url = self.url("postgres", PASSWORD);
        let up = eventually("the server to come up or end", || {
            let ended = child.try_wait().expect("its status").is_some();
            let url = &url;
            async move {
                if ended {
                    return Some(false);
                }
                tokio_postgres::connect(url, NoTls).await.is_ok().then_some(true)
            }
        })
        .await;
        let up = up && child.try_wait().expect("its status").is_none();
        self.child = Some(child);
        up
    }

    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// A program of the server's, as the user that it runs as.
    fn command(&self, program: &str) -> Command {
        let mut command;
        let program = programs().join(program);
        if is_root() {
            command = Command::new("setpriv");
            command
                .args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"])
                .arg(program);
        } else {
            command = Command::new(program);
        }
        command.current_dir(&self.directory).stdin(Stdio::null());
        command
    }

    /// Gives the directory to the user that the server runs as.
    fn give_away(&self) {
        if is_root() {
            let given = Command::new("chown")
                .args(["-R", "postgres:"])
                .arg(&self.directory)
                .status();
            assert!(given.expect("chown(1)").success());
        }
    }

    /// Where this role finds it.
    pub fn url(&self, role: &str, password: &str) -> String {
        format!("postgres://{role}:{password}@{}/postgres", self.address)
    }

    /// Where its owner finds it.
    pub fn owner_url(&self) -> String {
        self.url("postgres", PASSWORD)
    }

    /// A connection that may do anything.
    pub async fn client(&self) -> Client {
        connect(&self.owner_url()).await.expect("a connection")
    }

    /// Runs statements as the owner.
    pub async fn execute(&self, sql: &str) {
        self.client().await.batch_execute(sql).await.expect(sql);
    }

    /// A number that the owner asks for.
    pub async fn number(&self, sql: &str) -> i64 {
        self.client().await.query_one(sql, &[]).await.expect(sql).get(0)
    }

    /// Lets it speak TLS from now on; returns the file with the authority to trust.
    pub async fn speak_tls(&self) -> PathBuf {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).expect("a certificate");
        let (certificate, key) = (self.directory.join("tls.crt"), self.directory.join("tls.key"));
        fs::write(&certificate, made.cert.pem()).expect("a file");
        fs::write(&key, made.signing_key.serialize_pem()).expect("a file");
        let private = Command::new("chmod").arg("600").arg(&key).status();
        assert!(private.expect("chmod(1)").success());
        self.give_away();
        let client = self.client().await;
        for (name, value) in [("ssl_cert_file", &certificate), ("ssl_key_file", &key)] {
            let sql = format!("ALTER SYSTEM SET {name} = '{}'", value.display());
            client.batch_execute(&sql).await.expect("a setting");
        }
        client
            .batch_execute("ALTER SYSTEM SET ssl = on")
            .await
            .expect("a setting");
        client
            .batch_execute("SELECT pg_reload_conf()")
            .await
            .expect("settings");
        eventually("the server to speak TLS", || async {
            let client = self.client().await;
            let row = client.query_one("SHOW ssl", &[]).await.expect("a setting");
            (row.get::<_, &str>(0) == "on").then_some(())
        })
        .await;
        certificate
    }

    /// Ends all its processes as `kill -9` does.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Those it started could otherwise hold on to its memory for a moment.
            let started = processes(child.id());
            let _ = child.kill();
            let _ = child.wait();
            signal("KILL", &started);
        }
    }

    /// Starts it again at its address, with its data.
    pub async fn start_again(&mut self) {
        self.kill();
        let port = self.address.port();
        let mut tries = 0;
        // What was killed may take a moment to be gone.
        while !self.run(Some(port)).await {
            tries += 1;
            assert!(tries < 100, "the server did not come up again");
        }
    }

    /// Stops all its processes as they stand (SIGSTOP): connections are made, nothing is answered.
    pub fn stop(&self) {
        signal("STOP", &self.all());
    }

    /// Lets them go on.
    pub fn go_on(&self) {
        signal("CONT", &self.all());
    }

    fn all(&self) -> Vec<u32> {
        let id = self.child.as_ref().expect("it runs").id();
        let mut all = processes(id);
        all.push(id);
        all
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A connection to any server.
pub async fn connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// The directory with the server's programs: in the path, or where Debian puts them.
fn programs() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut candidates: Vec<_> = std::env::split_paths(&path).collect();
    if let Ok(versions) = fs::read_dir("/usr/lib/postgresql") {
        candidates.extend(versions.flatten().map(|version| version.path().join("bin")));
    }
    candidates.retain(|directory| directory.join("initdb").exists());
    // A link in the path does not have its neighbours beside it.
    let first = candidates
        .first()
        .expect("initdb, which these tests need: tests/run installs it on Debian");
    let program = fs::canonicalize(first.join("initdb")).expect("a program");
    program.parent().map(Path::to_path_buf).expect("a directory")
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// What a process has started.
fn processes(parent: u32) -> Vec<u32> {
    let of = |entry: fs::DirEntry| -> Option<u32> {
        let id = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // Behind the name, which may have anything in it: state, parent.
        let (_, rest) = stat.rsplit_once(')')?;
        (rest.split_whitespace().nth(1)?.parse() == Ok(parent)).then_some(id)
    };
    let entries = fs::read_dir("/proc").expect("processes");
    entries.flatten().filter_map(of).collect()
}

fn signal(name: &str, processes: &[u32]) {
    // One that has ended meanwhile is no failure.
    let _ = Command::new("kill")
        .arg(format!("-{name}"))
        .args(processes.iter().map(ToString::to_string))
        .stderr(Stdio::null())
        .status();
}
