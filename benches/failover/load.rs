//! Clients that read and write through all instances, and what each of them saw.
//!
//! Some readers wait for their answers, which the proxy keeps, before they ask again. Other reads, with a query of their
//! own so that each meets a replica, and all writes come at a steady rate, whatever becomes of those before: who waits
//! keeps nobody else from asking. Each write has an id of its own, never sent twice by its client. What an instance
//! would have got that was killed goes to another, as behind any load balancer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use dify_edge::cli::demo::replay::Record;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};

use crate::child::micros;
use crate::network::INSTANCES;
use crate::replica::ID;

/// Readers of each instance whose answers are kept, and how long each waits after one.
const READERS: usize = 4;
const PAUSE: Duration = Duration::from_millis(100);
/// From one read that meets a replica to the next, and from one write to the next, for each instance.
const READ_EVERY: Duration = Duration::from_millis(40);
const WRITE_EVERY: Duration = Duration::from_millis(70);
/// Of either no more wait at once, for each instance.
const MOST: usize = 1_000;
/// Longer than this no client waits.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a request ended for its client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// With a whole answer of status 2xx.
    Acknowledged,
    /// With another: its status, and the error that the proxy names in `Proxy-Status`.
    Answered(u16, String),
    /// With a connection that broke, or no answer in time; why.
    Broken(String),
    /// The same, because its instance was killed.
    WithInstance,
}

/// A request and how it ended. Times in microseconds of Unix time.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// Of a write.
    pub(crate) id: String,
    pub(crate) instance: usize,
    pub(crate) sent: u64,
    pub(crate) ended: u64,
    pub(crate) end: End,
}

impl Seen {
    pub(crate) fn seconds(&self) -> f64 {
        (self.ended - self.sent) as f64 / 1e6
    }
}

/// All that was seen.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) reads: Vec<Seen>,
    pub(crate) writes: Vec<Seen>,
}

/// A load that runs.
pub(crate) struct Load {
    shared: Arc<Shared>,
    clients: JoinSet<(Kind, Vec<Seen>)>,
}

/// What a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A read whose answer is kept.
    Kept,
    /// One that meets a replica.
    Read,
    Write,
}

struct Shared {
    instances: [SocketAddr; INSTANCES],
    is_alive: [AtomicBool; INSTANCES],
    is_over: AtomicBool,
    next: AtomicU64,
    reads: Vec<Question>,
    writes: Vec<Question>,
}

/// What is asked, over and over.
struct Question {
    method: Method,
    target: String,
    credential: String,
    body: Bytes,
}

impl Load {
    /// Begins, with questions that `records` answer.
    pub(crate) fn start(instances: [SocketAddr; INSTANCES], records: &[Record]) -> Result<Self, String> {
        let shared = Arc::new(Shared {
            instances,
            is_alive: [(); INSTANCES].map(|()| AtomicBool::new(true)),
            is_over: AtomicBool::new(false),
            next: AtomicU64::new(0),
            reads: reads(records),
            writes: writes(records)?,
        });
        let mut clients = JoinSet::new();
        for home in 0..INSTANCES {
            for _ in 0..READERS {
                clients.spawn(read_on(shared.clone(), home));
            }
            clients.spawn(keep_pace(shared.clone(), home, Kind::Read, READ_EVERY));
            clients.spawn(keep_pace(shared.clone(), home, Kind::Write, WRITE_EVERY));
        }
        Ok(Self { shared, clients })
    }

    /// To be called before an instance is killed.
    pub(crate) fn will_be_killed(&self, instance: usize) {
        self.shared.is_alive[instance].store(false, SeqCst);
    }

    /// Nobody asks anything new; what everybody saw, once all have their answers.
    pub(crate) async fn end(mut self) -> Told {
        self.shared.is_over.store(true, SeqCst);
        let mut told = Told::default();
        while let Some(joined) = self.clients.join_next().await {
            // One that panicked has said so.
            let Ok((kind, seen)) = joined else { continue };
            match kind {
                Kind::Write => told.writes.extend(seen),
                Kind::Kept | Kind::Read => told.reads.extend(seen),
            }
        }
        told
    }
}

fn question(record: &Record) -> Option<Question> {
    let request = &record.request;
    let mut fields = request.headers.iter();
    let (_, credential) = fields.find(|(name, _)| name.eq_ignore_ascii_case("authorization"))?;
    let body = request.body.as_ref().map(|body| body.bytes()).unwrap_or_default();
    Some(Question {
        method: request.method.parse().ok()?,
        target: request.path.clone(),
        credential: credential.clone(),
        body: body.into(),
    })
}

/// All but those about a run of a workflow: that is in one cluster, and gone while it is.
fn reads(records: &[Record]) -> Vec<Question> {
    let is_read = |record: &&Record| {
        record.request.method == "GET" && !record.request.path.starts_with("/v1/workflows/run/")
    };
    records.iter().filter(is_read).filter_map(question).collect()
}

/// Runs of a workflow that are waited for or stream, and ratings.
fn writes(records: &[Record]) -> Result<Vec<Question>, String> {
    let named = |name: &str| {
        let found = records
            .iter()
            .find(|record| record.name == name)
            .and_then(question);
        found.ok_or_else(|| format!("no exchange is called {name}"))
    };
    let names = [
        "v1_workflow_run_blocking__fast",
        "v1_workflow_run_streaming__fast",
        "v1_feedback_like",
    ];
    names.into_iter().map(named).collect()
}

/// Asks, waits for the answer and a little more, again and again.
async fn read_on(shared: Arc<Shared>, home: usize) -> (Kind, Vec<Seen>) {
    let (mut seen, mut connection) = (Vec::new(), None);
    while !shared.is_over.load(SeqCst) {
        seen.push(shared.one(home, Kind::Kept, &mut connection).await);
        sleep(PAUSE).await;
    }
    (Kind::Kept, seen)
}

/// Asks again and again, without waiting for answers.
async fn keep_pace(shared: Arc<Shared>, home: usize, kind: Kind, every: Duration) -> (Kind, Vec<Seen>) {
    let (mut seen, mut asking) = (Vec::new(), JoinSet::new());
    let mut ticks = interval(every);
    while !shared.is_over.load(SeqCst) {
        ticks.tick().await;
        if asking.len() < MOST {
            let shared = shared.clone();
            asking.spawn(async move { shared.one(home, kind, &mut None).await });
        }
        while let Some(Ok(one)) = asking.try_join_next() {
            seen.push(one);
        }
    }
    seen.extend(asking.join_all().await);
    (kind, seen)
}

/// A kept connection, and to which instance.
type Connection = Option<(usize, SendRequest<Full<Bytes>>)>;

impl Shared {
    /// One request.
    async fn one(&self, home: usize, kind: Kind, connection: &mut Connection) -> Seen {
        let next = self.next.fetch_add(1, SeqCst);
        let instance = self.instance(home);
        let id = format!("{instance}.{next}");
        let sent = micros();
        let asked = timeout(PATIENCE, self.ask(instance, kind, next, &id, connection)).await;
        let end = asked.unwrap_or_else(|_| Err("no answer in time".to_owned()));
        if end.is_err() {
            *connection = None;
        }
        let is_dead = !self.is_alive[instance].load(SeqCst);
        Seen {
            id,
            instance,
            sent,
            ended: micros(),
            end: end.unwrap_or_else(|why| {
                if is_dead {
                    End::WithInstance
                } else {
                    End::Broken(why)
                }
            }),
        }
    }

    /// Its own, or the next that lives.
    fn instance(&self, home: usize) -> usize {
        let all = (0..INSTANCES).map(|offset| (home + offset) % INSTANCES);
        let mut alive = all.filter(|instance| self.is_alive[*instance].load(SeqCst));
        alive.next().unwrap_or(home)
    }

    fn request(&self, kind: Kind, next: u64, id: &str) -> Result<Request<Full<Bytes>>, String> {
        let questions = if kind == Kind::Write {
            &self.writes
        } else {
            &self.reads
        };
        let question = &questions[next as usize % questions.len()];
        let mut target = question.target.clone();
        if kind == Kind::Read {
            target = format!(
                "{target}{}drill={next}",
                if target.contains('?') { '&' } else { '?' }
            );
        }
        let mut request = Request::builder()
            .method(question.method.clone())
            .uri(target)
            .header(HOST, "dify.example")
            .header(AUTHORIZATION, &question.credential)
            .header(CONTENT_TYPE, "application/json");
        if kind == Kind::Write {
            request = request.header(ID, id);
        }
        request
            .body(Full::new(question.body.clone()))
            .map_err(|error| error.to_string())
    }

    async fn ask(
        &self,
        instance: usize,
        kind: Kind,
        next: u64,
        id: &str,
        connection: &mut Connection,
    ) -> Result<End, String> {
        let request = self.request(kind, next, id)?;
        let mut ready = None;
        if let Some((_, mut kept)) = connection.take().filter(|(to, _)| *to == instance)
            && kept.ready().await.is_ok()
        {
            ready = Some(kept);
        }
        let mut sender = match ready {
            Some(kept) => kept,
            None => connect(self.instances[instance])
                .await
                .map_err(|error| error.to_string())?,
        };
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| error.to_string())?;
        *connection = Some((instance, sender));
        let status = response.status();
        let error = response
            .headers()
            .get("proxy-status")
            .and_then(|value| value.to_str().ok());
        let error = error.and_then(|value| value.split("error=").nth(1)?.split(';').next());
        let error = error.unwrap_or("of the replica").to_owned();
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            frame.map_err(|_| format!("an answer of {} broke off", status.as_u16()))?;
        }
        Ok(match status.is_success() {
            true => End::Acknowledged,
            false => End::Answered(status.as_u16(), error),
        })
    }
}

async fn connect(
    to: SocketAddr,
) -> Result<SendRequest<Full<Bytes>>, Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    // Ends with the sender.
    tokio::spawn(connection);
    Ok(sender)
}
