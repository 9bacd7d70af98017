//! Clients that read and write through all instances, and what each of them saw.
//!
//! A closed loop: each waits for its answer and then a little. Of the reads some are kept by the proxy, others are asked
//! for with a query of their own, so that each meets a replica. Each write has an id of its own, never sent twice by its
//! client. The clients of an instance that was killed go on at another, as behind any load balancer.

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
use tokio::time::{sleep, timeout};

use crate::child::micros;
use crate::network::INSTANCES;
use crate::replica::ID;

/// Clients of each instance: whose reads are kept, whose reads are not, and who write.
const KEPT: usize = 4;
const UNKEPT: usize = 8;
const WRITERS: usize = 6;
/// How long each waits after an answer.
const PAUSE: Duration = Duration::from_millis(100);
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
    clients: JoinSet<(bool, Vec<Seen>)>,
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
            for number in 0..KEPT + UNKEPT + WRITERS {
                let client = Client {
                    shared: shared.clone(),
                    home,
                    connection: None,
                };
                clients.spawn(client.live(number));
            }
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
            let Ok((writes, seen)) = joined else { continue };
            match writes {
                true => told.writes.extend(seen),
                false => told.reads.extend(seen),
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

fn reads(records: &[Record]) -> Vec<Question> {
    let is_read = |record: &&Record| record.request.method == "GET";
    records.iter().filter(is_read).filter_map(question).collect()
}

/// A run of a workflow, a rating, and a chat that streams and begins a conversation.
fn writes(records: &[Record]) -> Result<Vec<Question>, String> {
    let named = |name: &str| {
        let found = records
            .iter()
            .find(|record| record.name == name)
            .and_then(question);
        found.ok_or_else(|| format!("no exchange is called {name}"))
    };
    let chat = "{\"inputs\": {}, \"query\": \"hi\", \"response_mode\": \"streaming\", \"user\": \"drill\"}";
    Ok(vec![
        named("v1_workflow_run_blocking__fast")?,
        named("v1_feedback_like")?,
        Question {
            body: chat.into(),
            ..named("v1_chat_streaming__echo")?
        },
    ])
}

struct Client {
    shared: Arc<Shared>,
    home: usize,
    connection: Option<(usize, SendRequest<Full<Bytes>>)>,
}

impl Client {
    /// What it saw, and whether it wrote.
    async fn live(mut self, number: usize) -> (bool, Vec<Seen>) {
        let (shared, mut seen) = (self.shared.clone(), Vec::new());
        let writes = number >= KEPT + UNKEPT;
        // They do not all begin at once.
        sleep(PAUSE * number as u32 / (KEPT + UNKEPT + WRITERS) as u32).await;
        while !shared.is_over.load(SeqCst) {
            let next = shared.next.fetch_add(1, SeqCst);
            let instance = self.instance();
            let id = format!("{instance}.{next}");
            let question = match writes {
                true => &shared.writes[next as usize % shared.writes.len()],
                false => &shared.reads[next as usize % shared.reads.len()],
            };
            let mut target = question.target.clone();
            if (KEPT..KEPT + UNKEPT).contains(&number) {
                target = format!(
                    "{target}{}drill={next}",
                    if target.contains('?') { '&' } else { '?' }
                );
            }
            let request = Request::builder()
                .method(question.method.clone())
                .uri(target)
                .header(HOST, "dify.example")
                .header(AUTHORIZATION, &question.credential)
                .header(CONTENT_TYPE, "application/json")
                .body(Full::new(question.body.clone()));
            let Ok(mut request) = request else { break };
            if let Some(value) = Some(&id).filter(|_| writes).and_then(|id| id.parse().ok()) {
                request.headers_mut().insert(ID, value);
            }
            let sent = micros();
            let asked = timeout(PATIENCE, self.ask(instance, request, writes)).await;
            let end = asked.unwrap_or_else(|_| Err("no answer in time".to_owned()));
            let is_dead = !shared.is_alive[instance].load(SeqCst);
            if end.is_err() {
                self.connection = None;
            }
            seen.push(Seen {
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
            });
            sleep(PAUSE).await;
        }
        (writes, seen)
    }

    /// Its own, or the next that lives.
    fn instance(&self) -> usize {
        let all = (0..INSTANCES).map(|offset| (self.home + offset) % INSTANCES);
        let mut alive = all.filter(|instance| self.shared.is_alive[*instance].load(SeqCst));
        alive.next().unwrap_or(self.home)
    }

    async fn ask(
        &mut self,
        instance: usize,
        request: Request<Full<Bytes>>,
        writes: bool,
    ) -> Result<End, String> {
        let text = |error: hyper::Error| error.to_string();
        // A write goes on a fresh connection: a kept one may be closing.
        let kept = self
            .connection
            .take()
            .filter(|(to, _)| *to == instance && !writes);
        let mut ready = None;
        if let Some((_, mut kept)) = kept
            && kept.ready().await.is_ok()
        {
            ready = Some(kept);
        }
        let mut sender = match ready {
            Some(kept) => kept,
            None => self.connect(instance).await.map_err(|error| error.to_string())?,
        };
        let response = sender.send_request(request).await.map_err(text)?;
        self.connection = Some((instance, sender));
        let status = response.status();
        let error = response
            .headers()
            .get("proxy-status")
            .and_then(|value| value.to_str().ok());
        let error = error.and_then(|value| value.split("error=").nth(1)?.split(';').next());
        let error = error.unwrap_or("of the replica").to_owned();
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            frame.map_err(|error| format!("an answer of {status} broke off: {error}"))?;
        }
        Ok(match status.is_success() {
            true => End::Acknowledged,
            false => End::Answered(status.as_u16(), error),
        })
    }

    async fn connect(
        &self,
        instance: usize,
    ) -> Result<SendRequest<Full<Bytes>>, Box<dyn std::error::Error + Send + Sync>> {
        let stream = TcpStream::connect(self.shared.instances[instance]).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // Ends with the sender.
        tokio::spawn(connection);
        Ok(sender)
    }
}
