//! Processes that the drill starts, kills and stops. None of them outlives it: each is killed when dropped.

use std::fs::OpenOptions;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child as Process, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

/// A running process.
pub(crate) struct Child(Process);

impl Child {
    pub(crate) fn start(command: &mut Command) -> Result<Self, String> {
        let name = command.get_program().to_string_lossy().into_owned();
        let started = command.spawn();
        started.map(Self).map_err(|error| format!("{name}: {error}"))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn process(&mut self) -> &mut Process {
        &mut self.0
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Whether it has ended by itself, and how.
    pub(crate) fn ended(&mut self) -> Option<String> {
        let status = self.0.try_wait().ok()??;
        Some(status.to_string())
    }

    /// SIGSTOP or SIGCONT.
    pub(crate) fn signal(&self, name: &str) -> Result<(), String> {
        let pid = self.pid().to_string();
        let sent = Command::new("kill").args([format!("-{name}"), pid]).status();
        match sent {
            Ok(status) if status.success() => Ok(()),
            other => Err(format!("kill -{name}: {other:?}")),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Has `command` write to a file of its own, and read nothing.
pub(crate) fn logged(command: &mut Command, log: &Path) -> Result<(), String> {
    let failed = |error: io::Error| format!("{}: {error}", log.display());
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .map_err(failed)?;
    command
        .stdin(Stdio::null())
        .stderr(file.try_clone().map_err(failed)?)
        .stdout(file);
    Ok(())
}

/// A directory for the time of one scenario.
pub(crate) struct Scratch {
    pub(crate) path: PathBuf,
    is_kept: bool,
}

impl Scratch {
    pub(crate) fn new(name: &str, is_kept: bool) -> Result<Self, String> {
        let path = std::env::temp_dir().join(format!("dify-edge-failover-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).map_err(|error| error.to_string())?;
        Ok(Self { path, is_kept })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.is_kept {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// An address of this machine that nobody has at the moment.
pub(crate) fn free_address() -> Result<SocketAddr, String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let address = listener.and_then(|listener| listener.local_addr());
    address.map_err(|error| error.to_string())
}

/// Microseconds of Unix time, by which the processes of one machine agree.
pub(crate) fn micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_micros() as u64)
}
