//! A DNS server on a UDP port (RFC 1035), which says what a test wants.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

/// The record types that are asked for.
const A: u16 = 1;
const SRV: u16 = 33;
/// Response codes.
const REFUSED: u8 = 5;

/// What a name has.
#[derive(Debug, Clone)]
pub enum Records {
    Addresses(Vec<Ipv4Addr>),
    /// Priority, port and target.
    Services(Vec<(u16, u16, &'static str)>),
}

/// A server that runs until it is dropped.
pub struct Dns {
    pub address: SocketAddr,
    names: Arc<Mutex<BTreeMap<String, Records>>>,
    broken: Arc<AtomicBool>,
    questions: Arc<AtomicUsize>,
    serving: JoinHandle<()>,
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Dns {
    /// A server whose records live for a second.
    pub async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let names: Arc<Mutex<BTreeMap<String, Records>>> = Arc::default();
        let (broken, questions) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        Self {
            address: socket.local_addr().expect("its address"),
            serving: tokio::spawn({
                let (names, broken, questions) = (names.clone(), broken.clone(), questions.clone());
                async move {
                    let mut packet = [0; 512];
                    loop {
                        let (read, peer) = socket.recv_from(&mut packet).await.expect("a question");
                        let is_broken = broken.load(Ordering::SeqCst);
                        let reply = reply(&packet[..read], &names.lock(), is_broken);
                        questions.fetch_add(1, Ordering::SeqCst);
                        socket.send_to(&reply, peer).await.expect("the answer is sent");
                    }
                }
            }),
            names,
            broken,
            questions,
        }
    }

    /// From now on `name` (without a last dot) has these.
    pub fn say(&self, name: &str, records: Records) {
        self.names.lock().insert(name.to_owned(), records);
    }

    /// Refuses every question, or no longer.
    pub fn refuse(&self, refuse: bool) {
        self.broken.store(refuse, Ordering::SeqCst);
    }

    /// How often it was asked.
    pub fn questions(&self) -> usize {
        self.questions.load(Ordering::SeqCst)
    }
}

fn reply(question: &[u8], names: &BTreeMap<String, Records>, is_broken: bool) -> Vec<u8> {
    let (name, end) = name_at(question, 12);
    let wanted = u16::from_be_bytes([question[end], question[end + 1]]);
    let mut answers = Vec::new();
    match names.get(&name.to_ascii_lowercase()) {
        _ if is_broken => {}
        Some(Records::Addresses(all)) if wanted == A => {
            answers.extend(all.iter().map(|address| address.octets().to_vec()));
        }
        Some(Records::Services(all)) if wanted == SRV => {
            answers.extend(all.iter().map(|(priority, port, target)| {
                let mut data = [*priority, 1, *port].map(u16::to_be_bytes).concat();
                for label in target.split('.') {
                    data.push(label.len() as u8);
                    data.extend(label.bytes());
                }
                data.push(0);
                data
            }));
        }
        _ => {}
    }
    let mut reply = question[..2].to_vec();
    let code = if is_broken { REFUSED } else { 0 };
    // An answer, of authority, to one question; recursion asked for and available.
    reply.extend([0x85, 0x80 | code, 0, 1]);
    reply.extend((answers.len() as u16).to_be_bytes());
    reply.extend([0, 0, 0, 0]);
    reply.extend(&question[12..end + 4]);
    for data in answers {
        // The name of the question, its type, class IN, a second to live.
        reply.extend([0xC0, 12]);
        reply.extend(wanted.to_be_bytes());
        reply.extend([0, 1, 0, 0, 0, 1]);
        reply.extend((data.len() as u16).to_be_bytes());
        reply.extend(data);
    }
    reply
}

/// The name that begins at `at`, and where it ends.
fn name_at(packet: &[u8], mut at: usize) -> (String, usize) {
    let mut labels = Vec::new();
    while packet[at] != 0 {
        let next = at + 1 + packet[at] as usize;
        labels.push(String::from_utf8_lossy(&packet[at + 1..next]).into_owned());
        at = next;
    }
    (labels.join("."), at + 1)
}
