//! The shared tier in Redis, by fred: one server, a cluster, or what sentinels say is the master.
//!
//! | key | what |
//! |---|---|
//! | `PREFIX{KEY}v` | an answer (`codec`) |
//! | `PREFIX{KEY}l` | who fetches it for all, for a while; in the answer's cluster slot, so that one command sees both |
//! | `PREFIXtags` | a hash: how often each slot of the table of tags was bumped, `epoch`, the `run_id` of the server that it was made on, and until when any slot is unsettled |
//! | `PREFIXunsettled` | a hash: until when each slot is unsettled |
//! | `PREFIXboard` | the channel on which instances tell each other |
//!
//! All versions are in one hash, so they are lost together or not at all; the epoch tells it. A server that
//! started again, or took over from another, may lack the last writes that the old one confirmed: its `run_id` is
//! another, so a new epoch begins. For that to be seen, fred never reconnects by itself here: a connection
//! that is lost takes both with it, and new ones are looked at before they are used.

mod reads;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use fred::clients::{Client, Pipeline};
use fred::interfaces::{
    ClientLike, ClusterInterface, EventInterface, HashesInterface, KeysInterface, PubsubInterface,
};
use fred::types::cluster::ClusterRouting;
use fred::types::{ConnectHandle, Expiration, InfoKind, Key as RedisKey, Message, SetOptions, Value};
use futures_util::future::try_join_all;
use parking_lot::Mutex;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use self::reads::{Ask, Reads};
use super::{Mark, Notice, Reply, Seen, Tier, TierError};
use crate::cache::codec::unix_millis;
use crate::cache::coherence::Coherence;
use crate::cache::key::Key;
use crate::config::cache::RedisConfig;
use crate::config::redis::RedisServers;
use crate::types::ids::hex;
use crate::types::time::Clock;

/// How long new connections may take, all steps together.
const CONNECT: Duration = Duration::from_secs(3);
/// Pauses between tries to connect: the first, doubled up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// How long marks of unsettled slots outlive the last of them; as long as any window.
const MARKS: Duration = Duration::from_secs(3600);

/// How long the versions are kept after an instance has last connected.
const IDLE: Duration = Duration::from_secs(30 * 86_400);

const EPOCH: &str = "epoch";
const RUN: &str = "run_id";
const UNSETTLED: &str = "unsettled_until";

/// See the module.
#[derive(Debug)]
pub(in crate::cache) struct Redis {
    servers: RedisServers,
    prefix: String,
    board: String,
    reads: Arc<Reads>,
}

/// The fields of the slots, five digits each: written down once, for each command names several.
#[derive(Debug, Clone)]
struct SlotNames(Bytes);

impl SlotNames {
    fn new() -> Self {
        Self(
            (0..=u16::MAX)
                .map(|slot| format!("{slot:05}"))
                .collect::<String>()
                .into(),
        )
    }

    fn of(&self, slot: u16) -> RedisKey {
        let at = usize::from(slot) * 5;
        RedisKey::from(self.0.slice(at..at + 5))
    }
}

/// Connections in use.
#[derive(Debug)]
struct Link {
    client: Client,
    /// Which server the versions were made on.
    run: String,
    /// Cancelled when they are to be replaced, with the reason logged.
    dead: CancellationToken,
}

/// Connections that have just been made.
struct Connected {
    link: Arc<Link>,
    commands: Task,
    /// Kept for its connection.
    _listener: Client,
    listening: Task,
    messages: broadcast::Receiver<Message>,
    changes: broadcast::Receiver<Vec<fred::types::ClusterStateChange>>,
    unsettled: Vec<(u16, u64)>,
}

/// A connection's task, which ends with this.
struct Task(ConnectHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl From<fred::error::Error> for TierError {
    fn from(error: fred::error::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

impl Redis {
    /// A store that is not connected yet.
    ///
    /// # Errors
    /// When the URL or the authorities' file cannot be used.
    pub(in crate::cache) fn new(settings: &RedisConfig, clock: Clock) -> Result<Self, String> {
        let servers = settings.servers()?;
        let prefix = &settings.prefix;
        Ok(Self {
            reads: Arc::new(Reads {
                tags: RedisKey::from(format!("{prefix}tags")),
                marks: RedisKey::from(format!("{prefix}unsettled")),
                names: SlotNames::new(),
                clock,
                link: ArcSwapOption::empty(),
                together: !servers.is_clustered(),
                waiting: Mutex::default(),
            }),
            servers,
            board: format!("{prefix}board"),
            prefix: prefix.clone(),
        })
    }

    /// Keeps connections and passes on what is heard, until `stop`.
    pub(in crate::cache) async fn run(self: Arc<Self>, coherence: Arc<Coherence>, stop: CancellationToken) {
        let mut pause = FIRST_PAUSE;
        let mut said = false;
        for attempt in 0.. {
            let connected = tokio::select! {
                () = stop.cancelled() => return,
                connected = timeout(CONNECT, self.connect(attempt)) => connected,
            };
            match connected.unwrap_or_else(|_| Err(TierError::Failed("no answer in time".to_owned()))) {
                Ok(connected) => {
                    tracing::info!(servers = self.servers.names(), "connected to Redis");
                    (pause, said) = (FIRST_PAUSE, false);
                    let why = tokio::select! {
                        () = stop.cancelled() => return,
                        why = self.serve(connected, &coherence) => why,
                    };
                    self.reads.link.store(None);
                    coherence.lost();
                    tracing::warn!("the connection to Redis is lost: {why}; it is made anew");
                }
                Err(error) if !said => {
                    said = true;
                    tracing::warn!("Redis cannot be used: {error}; it is tried again until it can");
                }
                Err(error) => tracing::debug!("Redis cannot be used: {error}"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(pause) => pause = (pause * 2).min(LAST_PAUSE),
            }
        }
    }

    async fn connect(&self, attempt: usize) -> Result<Connected, TierError> {
        let listener = self.servers.client(attempt)?;
        let messages = listener.message_rx();
        let listening = Task(listener.connect());
        listener.wait_for_connect().await?;
        listener.subscribe(self.board.as_str()).await?;

        let client = self.servers.client(attempt)?;
        let commands = Task(client.connect());
        client.wait_for_connect().await?;
        let changes = client.cluster_change_rx();
        let unsettled = unsettled(&client, &self.reads.marks).await?;
        let run = self.verify(&client, &unsettled).await?;
        let link = Arc::new(Link {
            client,
            run,
            dead: CancellationToken::new(),
        });
        Ok(Connected {
            link,
            commands,
            _listener: listener,
            listening,
            messages,
            changes,
            unsettled,
        })
    }

    /// Makes sure that nothing is believed which this server has forgotten to end; tells which server it is.
    async fn verify(&self, client: &Client, unsettled: &[(u16, u64)]) -> Result<String, TierError> {
        let info = match self.owner(client) {
            Some(server) => {
                client
                    .with_cluster_node(server)
                    .info::<String>(Some(InfoKind::Server))
                    .await
            }
            None => client.info::<String>(Some(InfoKind::Server)).await,
        };
        let run = info.ok().and_then(|info| {
            let line = info.lines().find_map(|line| line.strip_prefix("run_id:"))?;
            Some(line.trim().to_owned())
        });
        // Who may not ask cannot know, and begins anew with each connection.
        let run = run.unwrap_or_else(|| {
            tracing::warn!(
                "Redis does not say which server it is (INFO): what it stores is not used across connections"
            );
            format!("unknown-{}", random())
        });
        let there: Vec<Option<String>> = client.hmget(&self.reads.tags, vec![EPOCH, RUN]).await?;
        let same = matches!(&there[..], [Some(_), Some(then)] if *then == run);
        if !same {
            let fields = vec![(EPOCH, random().to_string()), (RUN, run.clone())];
            client.hset::<(), _, _>(&self.reads.tags, fields).await?;
        }
        // Forgotten with the versions, unless another instance was here first.
        let last = unsettled.iter().map(|(_, until)| *until).max().unwrap_or(0);
        client
            .hsetnx::<(), _, _, _>(&self.reads.tags, UNSETTLED, last.to_string())
            .await?;
        // What nobody uses any more goes away; to lose it in use costs misses.
        client
            .pexpire::<(), _>(&self.reads.tags, millis(IDLE), None)
            .await?;
        Ok(run)
    }

    /// The server of a cluster that has the versions.
    fn owner(&self, client: &Client) -> Option<fred::types::config::Server> {
        let state = client.cached_cluster_state()?;
        let slot = ClusterRouting::hash_key(self.reads.tags.as_bytes());
        state.get_server(slot).cloned()
    }

    /// Uses connections until they are to be replaced; tells why.
    async fn serve(&self, mut connected: Connected, coherence: &Coherence) -> String {
        let Connected {
            link,
            commands,
            listening,
            messages,
            changes,
            unsettled,
            ..
        } = &mut connected;
        self.reads.link.store(Some(link.clone()));
        coherence.connected(unsettled);
        let ended = |result: Result<Result<(), fred::error::Error>, tokio::task::JoinError>| match result {
            Ok(Err(error)) => error.to_string(),
            _ => "closed".to_owned(),
        };
        loop {
            tokio::select! {
                biased;
                () = link.dead.cancelled() => return "no sign of life".to_owned(),
                result = &mut commands.0 => return ended(result),
                result = &mut listening.0 => return ended(result),
                message = messages.recv() => match message {
                    Ok(message) => if let Some(bytes) = bytes(message.value) {
                        coherence.hear(&bytes);
                    },
                    Err(RecvError::Lagged(_)) => coherence.missed(),
                    Err(RecvError::Closed) => return "nothing more to hear".to_owned(),
                },
                Ok(_) = changes.recv() => return "the cluster has changed".to_owned(),
            }
        }
    }

    fn value_key(&self, key: &Key) -> RedisKey {
        RedisKey::from(format!("{}{{{}}}v", self.prefix, hex(&key.0)))
    }

    fn lease_key(&self, key: &Key) -> RedisKey {
        RedisKey::from(format!("{}{{{}}}l", self.prefix, hex(&key.0)))
    }
}

impl Tier for Redis {
    fn read(&self, key: &Key, slots: &[u16], lease: bool) -> Reply<Seen> {
        self.reads.read(Ask {
            value: self.value_key(key),
            lease: lease.then(|| self.lease_key(key)),
            slots: slots.into(),
        })
    }

    fn write(&self, key: &Key, value: Bytes, life: Duration, release: bool) -> Reply<()> {
        let (value_key, lease) = (self.value_key(key), release.then(|| self.lease_key(key)));
        let link = self.reads.link();
        Box::pin(async move {
            let expiry = Some(Expiration::PX(millis(life)));
            let link = link?;
            match lease {
                None => Ok(link.client.set(value_key, value, expiry, None, false).await?),
                Some(lease) => {
                    let pipeline = link.client.pipeline();
                    pipeline
                        .set::<(), _, _>(value_key, value, expiry, None, false)
                        .await?;
                    pipeline.del::<(), _>(lease).await?;
                    all(pipeline).await
                }
            }
        })
    }

    fn lease(&self, key: &Key, life: Duration) -> Reply<bool> {
        let lease = self.lease_key(key);
        let link = self.reads.link();
        Box::pin(async move {
            let expiry = Some(Expiration::PX(millis(life)));
            let taken: Value = link?
                .client
                .set(lease, "1", expiry, Some(SetOptions::NX), false)
                .await?;
            Ok(!taken.is_null())
        })
    }

    fn release(&self, key: &Key) -> Reply<()> {
        let lease = self.lease_key(key);
        let link = self.reads.link();
        Box::pin(async move { Ok(link?.client.del(lease).await?) })
    }

    fn announce(&self, notice: &Notice) -> Reply<()> {
        let (tags, marks, board) = (
            self.reads.tags.clone(),
            self.reads.marks.clone(),
            self.board.clone(),
        );
        let names = self.reads.names.clone();
        let notice = notice.clone();
        let link = self.reads.link();
        Box::pin(async move {
            let link = link?;
            let pipeline = link.client.pipeline();
            if let Mark::Unsettled(until) = notice.mark {
                // First, and on whichever server of a cluster they are: who sees the new versions sees the marks.
                let fields: Vec<_> = notice
                    .slots
                    .iter()
                    .map(|slot| (names.of(*slot), until.to_string()))
                    .collect();
                let marked = link.client.pipeline();
                marked.hset::<(), _, _>(&marks, fields).await?;
                marked.pexpire::<(), _>(&marks, millis(MARKS), None).await?;
                all(marked).await?;
                // Every window is the same, so this is the last of them.
                pipeline
                    .hset::<(), _, _>(&tags, (UNSETTLED, until.to_string()))
                    .await?;
            }
            for slot in &notice.slots {
                pipeline.hincrby::<(), _, _>(&tags, names.of(*slot), 1).await?;
            }
            if notice.all {
                pipeline
                    .hset::<(), _, _>(&tags, (EPOCH, random().to_string()))
                    .await?;
            }
            pipeline.publish::<(), _, _>(board, notice.message).await?;
            all(pipeline).await
        })
    }

    fn beat(&self, message: Bytes) -> Reply<()> {
        let board = self.board.clone();
        let link = self.reads.link();
        Box::pin(async move {
            let link = link?;
            let published = async { link.client.publish::<(), _, _>(board, message).await };
            let servers = link
                .client
                .cached_cluster_state()
                .map(|state| state.unique_primary_nodes());
            let pings = servers.unwrap_or_default().into_iter().map(|server| {
                let node = link.client.with_cluster_node(server);
                async move { node.ping::<Value>(None).await }
            });
            tokio::try_join!(published, try_join_all(pings))?;
            Ok(())
        })
    }

    fn unsettled(&self) -> Reply<Vec<(u16, u64)>> {
        let marks = self.reads.marks.clone();
        let link = self.reads.link();
        Box::pin(async move { unsettled(&link?.client, &marks).await })
    }

    fn reset(&self, why: &'static str) {
        if let Some(link) = self.reads.link.swap(None) {
            tracing::debug!("Redis connections are replaced: {why}");
            link.dead.cancel();
        }
    }
}

async fn unsettled(client: &Client, marks: &RedisKey) -> Result<Vec<(u16, u64)>, TierError> {
    let marks: std::collections::HashMap<String, String> = client.hgetall(marks).await?;
    let parsed = |(slot, until): (String, String)| Some((slot.parse().ok()?, until.parse().ok()?));
    Ok(marks.into_iter().filter_map(parsed).collect())
}

/// Sends the commands together; the first error is the result.
async fn all(pipeline: Pipeline<Client>) -> Result<(), TierError> {
    pipeline.all::<Value>().await?;
    Ok(())
}

fn bytes(value: Value) -> Option<Bytes> {
    match value {
        Value::Bytes(bytes) => Some(bytes),
        Value::String(text) => Some(text.into_inner()),
        _ => None,
    }
}

fn malformed() -> TierError {
    TierError::Failed("a reply of another form than expected".to_owned())
}

fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX).max(1)
}

/// Until when marks have to be looked for after it was forgotten whether there are any.
fn longest_mark(clock: &Clock) -> u64 {
    unix_millis(clock.now().wall) + MARKS.as_millis() as u64
}

fn random() -> u64 {
    ahash::RandomState::new().hash_one(0)
}
