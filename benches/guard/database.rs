//! A PostgreSQL server of its own with Dify's tables, filled.
//!
//! All columns that must have a value get one by their type; those that matter here by their name.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio_postgres::{Client, NoTls};

/// Rows of each table, per mille.
const SHARES: [(&str, u64); 12] = [
    ("api_tokens", 2),
    ("apps", 2),
    ("sites", 2),
    ("datasets", 4),
    ("message_annotations", 10),
    ("workflow_runs", 80),
    ("upload_files", 100),
    ("child_chunks", 100),
    ("documents", 150),
    ("conversations", 150),
    ("document_segments", 200),
    ("messages", 200),
];
/// Rows of one statement.
const TOGETHER: u64 = 20_000;

/// Some time in the last year.
const PAST: &str = "now() - random() * interval '365 days'";

/// The server; stopped when dropped, with all that it has.
pub(crate) struct Database {
    port: u16,
    directory: PathBuf,
    child: Child,
}

/// Names of things that exist.
pub(crate) struct Sample {
    pub(crate) app_keys: Vec<String>,
    pub(crate) dataset_keys: Vec<String>,
    pub(crate) datasets: Vec<String>,
    pub(crate) documents: Vec<String>,
    pub(crate) conversations: Vec<String>,
    pub(crate) files: Vec<String>,
}

impl Database {
    pub(crate) fn start() -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("PostgreSQL: {error}");
        let listener = TcpListener::bind("127.0.0.1:0").map_err(failed)?;
        let port = listener.local_addr().map_err(failed)?.port();
        drop(listener);
        let directory = std::env::temp_dir().join(format!("dify-edge-drill-{port}"));
        fs::create_dir_all(&directory).map_err(failed)?;
        if is_root() {
            let given = Command::new("chown").arg("postgres:").arg(&directory).status();
            given.map_err(failed)?;
        }
        let data = directory.join("data");
        let made = command("initdb", &directory)?
            .args([
                "--no-sync",
                "--username=postgres",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C",
            ])
            .arg(&data)
            .output()
            .map_err(failed)?;
        if !made.status.success() {
            return Err(String::from_utf8_lossy(&made.stderr).into_owned());
        }
        let child = command("postgres", &directory)?
            .arg("-D")
            .arg(&data)
            .args(["-p", &port.to_string(), "-h", "127.0.0.1"])
            .args([
                "-c",
                "unix_socket_directories=",
                "-c",
                "timezone=UTC",
                "-c",
                "shared_buffers=512MB",
            ])
            // Nothing of it is to be kept; filling is quicker so.
            .args([
                "-c",
                "fsync=off",
                "-c",
                "full_page_writes=off",
                "-c",
                "max_wal_size=8GB",
                "-c",
                "autovacuum=off",
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        Ok(Self {
            port,
            directory,
            child,
        })
    }

    /// Where a role finds it.
    pub(crate) fn url(&self, role: &str) -> String {
        format!("postgres://{role}@127.0.0.1:{}/postgres", self.port)
    }

    /// A connection of its owner, made on `runtime`.
    pub(crate) fn connect(&self, runtime: &Runtime) -> Result<Client, String> {
        let url = self.url("postgres");
        let mut last = String::new();
        for _ in 0..100 {
            match runtime.block_on(tokio_postgres::connect(&url, NoTls)) {
                Ok((client, connection)) => {
                    runtime.spawn(connection);
                    return Ok(client);
                }
                Err(error) => last = error.to_string(),
            }
            sleep(Duration::from_millis(100));
        }
        Err(format!("PostgreSQL does not come up: {last}"))
    }

    /// Fills Dify's tables with so many rows together, and makes the guard's role.
    pub(crate) async fn fill(client: &Client, rows: u64, role: &Path) -> Result<(), String> {
        let began = Instant::now();
        let run = async |sql: &str| {
            let done = client.batch_execute(sql).await;
            done.map_err(|error| format!("{sql}: {error:?}"))
        };
        run(include_str!("tables.sql")).await?;
        for (table, share) in SHARES {
            let rows = (rows * share / 1000).max(20);
            let (columns, values) = values(client, table).await?;
            for first in (1..=rows).step_by(TOGETHER as usize) {
                let last = rows.min(first + TOGETHER - 1);
                let from = format!("FROM generate_series({first}, {last}) n");
                run(&format!("INSERT INTO {table} ({columns}) SELECT {values} {from}")).await?;
            }
            eprintln!("{table}: {rows} rows, {:.0} s", began.elapsed().as_secs_f64());
        }
        run(include_str!("indexes.sql")).await?;
        let role = fs::read_to_string(role).map_err(|error| error.to_string())?;
        run(&role).await?;
        run("VACUUM ANALYZE").await?;
        // What was filled is not to be written while it is measured.
        run("CHECKPOINT").await?;
        eprintln!("filled in {:.0} s", began.elapsed().as_secs_f64());
        Ok(())
    }
}

/// A new row, as another of Dify's processes makes it; returns its key or id.
pub(crate) async fn create(client: &Client, table: &str) -> Result<String, String> {
    let (columns, values) = values(client, table).await?;
    let values = values.replace(PAST, "now()");
    let name = if table == "api_tokens" { "token" } else { "id" };
    let from = format!("FROM (SELECT 1 AS n) one RETURNING {name}::text");
    let sql = format!("INSERT INTO {table} ({columns}) SELECT {values} {from}");
    let row = client.query_one(&sql, &[]).await;
    Ok(row.map_err(|error| format!("{sql}: {error:?}"))?.get(0))
}

/// Columns that are filled, and expressions of what they get in row `n`.
async fn values(client: &Client, table: &str) -> Result<(String, String), String> {
    let rows = client
        .query(
            "SELECT column_name::text, data_type::text, is_nullable = 'NO' AND column_default IS NULL
             FROM information_schema.columns WHERE table_schema = 'public' AND table_name = $1",
            &[&table],
        )
        .await
        .map_err(|error| error.to_string())?;
    let (mut columns, mut values) = (Vec::new(), Vec::new());
    for row in rows {
        let (name, kind, wanted): (String, String, bool) = (row.get(0), row.get(1), row.get(2));
        let value = match (name.as_str(), kind.as_str()) {
            ("created_at", _) => PAST,
            ("type", _) if table == "api_tokens" => "CASE n % 4 WHEN 0 THEN 'dataset' ELSE 'app' END",
            ("token", _) => {
                "CASE n % 4 WHEN 0 THEN 'dataset-' ELSE 'app-' END || left(md5(random()::text || n), 24)"
            }
            ("code", _) => "left(md5(random()::text || n), 16)",
            ("content" | "query" | "answer", _) if wanted => "repeat(md5(n::text), 12)",
            _ if !wanted => continue,
            (_, "uuid") => "gen_random_uuid()",
            (_, "boolean") => "true",
            (_, "json" | "jsonb") => "'{}'",
            (_, "integer" | "bigint" | "numeric" | "double precision") => "n % 1000",
            _ => "'text ' || n % 1000",
        };
        columns.push(name);
        values.push(value);
    }
    Ok((columns.join(", "), values.join(", ")))
}

impl Sample {
    /// Reads some names back.
    pub(crate) async fn read(client: &Client) -> Result<Self, String> {
        let read = async |what: &str| -> Result<Vec<String>, String> {
            let sql = format!("SELECT {what} ORDER BY random() LIMIT 40");
            let rows = client.query(&sql, &[]).await;
            let rows = rows.map_err(|error| format!("{sql}: {error:?}"))?;
            Ok(rows.iter().map(|row| row.get(0)).collect())
        };
        Ok(Self {
            app_keys: read("token::text FROM api_tokens WHERE type = 'app'").await?,
            dataset_keys: read("token::text FROM api_tokens WHERE type = 'dataset'").await?,
            datasets: read("id::text FROM datasets").await?,
            documents: read("id::text FROM documents").await?,
            conversations: read("id::text FROM conversations").await?,
            files: read("id::text FROM upload_files").await?,
        })
    }

    /// All of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = String> {
        let all = [
            &self.app_keys,
            &self.dataset_keys,
            &self.datasets,
            &self.documents,
            &self.conversations,
            &self.files,
        ];
        all.into_iter().flatten().cloned()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // SIGINT: it ends its own processes and does not wait for clients.
        let _ = Command::new("kill")
            .arg("-INT")
            .arg(self.child.id().to_string())
            .status();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// A program of PostgreSQL, which does not run as root: as the user `postgres` then.
fn command(program: &str, directory: &Path) -> Result<Command, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<_> = std::env::split_paths(&path).collect();
    let versions = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    places.extend(versions.map(|version| version.path().join("bin")));
    let place = places.iter().find(|place| place.join("initdb").exists());
    let first = place.ok_or("PostgreSQL is not installed")?.join("initdb");
    // A link in the path does not have its neighbours beside it.
    let program = fs::canonicalize(first)
        .map_err(|error| error.to_string())?
        .with_file_name(program);
    let mut command = Command::new("setpriv");
    if is_root() {
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
    }
    command
        .arg("--")
        .arg(program)
        .current_dir(directory)
        .stdin(Stdio::null());
    Ok(command)
}
