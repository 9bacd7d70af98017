//! A few connections to the database, never more than allowed, closed when idle.
//!
//! Every wait has an end: for a free connection, for connecting, for an answer. After a failure nobody tries again
//! for a while, longer each time, so that a database that is gone costs nothing and one that comes back is not run
//! over. A connection that did not answer, or whose answer nobody waited for, is cut.

use std::error::Error as _;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};
use tokio_postgres::error::{DbError, Severity};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Config, Row};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::super::SourceError;
use crate::types::time::Clock;

/// The first pause after a failure; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// What is idle for so long is closed.
const IDLE: Duration = Duration::from_secs(300);

/// Why there are no rows.
#[derive(Debug)]
pub(super) enum QueryError {
    /// The connection is gone or was never there.
    Unreachable(String),
    /// The database says so, and the connection lives on.
    Database(Box<DbError>),
    /// The rows are of another form.
    Form(String),
}

impl From<QueryError> for SourceError {
    fn from(error: QueryError) -> Self {
        match error {
            QueryError::Unreachable(why) => Self::Unreachable(why),
            QueryError::Database(error) => Self::Refused(error.message().to_owned()),
            QueryError::Form(why) => Self::Refused(why),
        }
    }
}

/// A value for `$1`, `$2`, …
pub(super) type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// The connections.
pub(super) struct Pool {
    config: Config,
    tls: MakeRustlsConnect,
    timeout: Duration,
    clock: Clock,
    permits: Semaphore,
    /// One less, if there is more than one: that one is left to look-ups.
    readers: Semaphore,
    /// Used last in first out, so that those that are not needed grow old.
    idle: Mutex<Vec<(Link, Instant)>>,
    outage: Mutex<Outage>,
}

#[derive(Default)]
struct Outage {
    connected: bool,
    failures: u32,
    /// Nobody connects before.
    until: Option<Instant>,
    why: String,
}

struct Link {
    client: Client,
    task: AbortHandle,
}

/// A connection in use, cut when it is dropped.
struct Busy(Option<Link>);

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some(link) = self.0.take() {
            link.task.abort();
        }
    }
}

impl Pool {
    /// At most `size` connections at once. No statement may run longer than `timeout`.
    pub(super) fn new(
        mut config: Config,
        tls: MakeRustlsConnect,
        size: usize,
        timeout: Duration,
        clock: Clock,
    ) -> Self {
        let theirs = config.get_options().unwrap_or_default().to_owned();
        config.application_name("dify-edge").options(format!(
            "{theirs} -c default_transaction_read_only=on -c timezone=UTC -c statement_timeout={}",
            timeout.as_millis().max(1)
        ));
        Self {
            config,
            tls,
            timeout,
            clock,
            permits: Semaphore::new(size),
            readers: Semaphore::new(size.saturating_sub(1).max(1)),
            idle: Mutex::default(),
            outage: Mutex::default(),
        }
    }

    /// The same as [`Pool::query`] for those who are not in a hurry.
    pub(super) async fn read(
        &self,
        sql: &str,
        params: &[Param<'_>],
    ) -> Result<(Vec<Row>, Duration), QueryError> {
        // Who is before us has an end to its own wait.
        let _permit = self.readers.acquire().await;
        self.query(sql, params).await
    }

    /// The rows of one statement, and how long the database took.
    pub(super) async fn query(
        &self,
        sql: &str,
        params: &[Param<'_>],
    ) -> Result<(Vec<Row>, Duration), QueryError> {
        let permit = timeout(self.timeout, self.permits.acquire()).await;
        let Ok(Ok(_permit)) = permit else {
            return Err(QueryError::Unreachable("all connections are in use".to_owned()));
        };
        let mut busy = Busy(Some(self.link().await?));
        let Some(link) = &busy.0 else {
            return Err(QueryError::Unreachable("no connection".to_owned()));
        };
        let begun = self.clock.now().monotonic;
        // The database should be the first to give up: then the connection can be kept.
        let patience = self.timeout + self.timeout / 4;
        let result = match timeout(patience, link.client.query_typed(sql, params)).await {
            Err(_) => return Err(self.lost(format!("silent for {patience:?}"))),
            Ok(Ok(rows)) => Ok((rows, self.clock.now().monotonic - begun)),
            Ok(Err(error)) => match error.as_db_error() {
                Some(said) if !ends_connection(said) => Err(QueryError::Database(Box::new(said.clone()))),
                _ => return Err(self.lost(explain(&error))),
            },
        };
        self.found();
        if let Some(link) = busy.0.take() {
            let now = self.clock.now().monotonic;
            self.idle.lock().push((link, now));
        }
        result
    }

    /// Whether the last that was heard of the database was good.
    pub(super) fn is_connected(&self) -> bool {
        self.outage.lock().connected
    }

    /// Closes what has been idle for long.
    pub(super) fn close_idle(&self) {
        let now = self.clock.now().monotonic;
        // Without its client, a connection takes its leave and ends.
        self.idle
            .lock()
            .retain(|(link, since)| !link.client.is_closed() && now.saturating_duration_since(*since) < IDLE);
    }

    /// How many connections are open and not in use.
    pub(super) fn idle(&self) -> usize {
        self.idle.lock().len()
    }

    async fn link(&self) -> Result<Link, QueryError> {
        while let Some((link, _)) = { self.idle.lock().pop() } {
            if !link.client.is_closed() {
                return Ok(link);
            }
        }
        {
            let outage = self.outage.lock();
            if outage
                .until
                .is_some_and(|until| self.clock.now().monotonic < until)
            {
                return Err(QueryError::Unreachable(outage.why.clone()));
            }
        }
        match timeout(self.timeout, self.config.connect(self.tls.clone())).await {
            Ok(Ok((client, connection))) => {
                // Its end is noticed by the client.
                let task = tokio::spawn(async move { drop(connection.await) }).abort_handle();
                Ok(Link { client, task })
            }
            Ok(Err(error)) => Err(self.lost(explain(&error))),
            Err(_) => Err(self.lost(format!("no connection within {:?}", self.timeout))),
        }
    }

    /// Notes that the database answers.
    fn found(&self) {
        let mut outage = self.outage.lock();
        if !outage.connected {
            tracing::info!("the database answers");
        }
        *outage = Outage {
            connected: true,
            ..Outage::default()
        };
    }

    /// Notes that the database is not there, and cuts all connections that nobody uses.
    fn lost(&self, why: String) -> QueryError {
        for (link, _) in self.idle.lock().drain(..) {
            link.task.abort();
        }
        let now = self.clock.now().monotonic;
        let mut outage = self.outage.lock();
        // Several that were under way when it went fail at once: one failure.
        if outage.until.is_none_or(|until| now >= until) {
            if outage.failures == 0 {
                tracing::warn!(why, "the database does not answer");
            }
            outage.until = Some(now + pause(outage.failures));
            outage.failures = outage.failures.saturating_add(1);
        }
        outage.connected = false;
        outage.why.clone_from(&why);
        QueryError::Unreachable(why)
    }
}

/// How long to wait after this many failures in a row: twice as long each time, half of it by chance.
pub(super) fn pause(failures: u32) -> Duration {
    let longest = FIRST_PAUSE
        .saturating_mul(1 << failures.min(16))
        .min(LONGEST_PAUSE);
    let chance = ahash::RandomState::new().hash_one(failures) as u32;
    longest / 2 + longest.mul_f64(f64::from(chance) / f64::from(u32::MAX) / 2.0)
}

fn ends_connection(said: &DbError) -> bool {
    matches!(said.parsed_severity(), Some(Severity::Fatal | Severity::Panic))
}

/// The error with its causes; there are neither passwords nor values in them.
fn explain(error: &tokio_postgres::Error) -> String {
    if let Some(said) = error.as_db_error() {
        return said.message().to_owned();
    }
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_stay_bounded() {
        for failures in [0, 1, 5, 40, u32::MAX] {
            let longest = FIRST_PAUSE
                .saturating_mul(1 << failures.min(16))
                .min(LONGEST_PAUSE);
            for _ in 0..100 {
                let pause = pause(failures);
                assert!(pause >= longest / 2 && pause <= longest, "{failures}: {pause:?}");
            }
        }
    }
}
