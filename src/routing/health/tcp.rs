//! What the kernel knows of TCP connections: the question and the answer of inet_diag, as bytes.
//!
//! Linux tells, over a netlink socket, the state of every connection to a port (sock_diag(7)); so no connection of
//! ours need be watched while it is used. Structures are those of `linux/inet_diag.h` and `linux/tcp.h`, in the order of
//! bytes of the machine but for ports and addresses. Pure; `tcp_state` asks.
//!
//! The round trip is the least that was measured lately, not the mean (`tcpi_rtt`): a request is a single segment, which
//! the other side acknowledges with its answer or after some 40 ms. With a replica on the same machine that thinks for
//! 30 ms the mean soon is 30 ms. The least is that of the network: it begins with the handshake, and is of the last five
//! minutes.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// `SOCK_DIAG_BY_FAMILY`, the type of the question and of the answers.
const BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const FLAGS: u16 = 0x301;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
/// The attribute that holds a `tcp_info`.
const INET_DIAG_INFO: u16 = 2;
/// `TCP_ESTABLISHED` as a bit.
const ESTABLISHED: u32 = 1 << 1;
/// Length of a message's header, of an `inet_diag_req_v2` or an `inet_diag_msg` behind it, of an attribute's header.
const HEADER: usize = 16;
const REQUEST: usize = 56;
const DIAG: usize = 72;
const ATTRIBUTE: usize = 4;

/// One established connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// What tells it from all others that ever were.
    pub cookie: u64,
    /// The other side.
    pub peer: SocketAddr,
    /// The least round trip of late, if there was any.
    pub round_trip: Option<Duration>,
    /// Segments with data that were sent, again or not.
    pub sent: u32,
    /// Segments that were sent again.
    pub again: u32,
}

/// What a piece of the answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// There is more to come.
    More,
    /// It was the last one.
    Last,
    /// The kernel refuses, with this number of an error.
    Refused(i32),
}

/// Asks for the established connections to `port`, over IPv6 or IPv4.
pub fn question(ipv6: bool, port: u16) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + REQUEST);
    bytes.extend(((HEADER + REQUEST) as u32).to_ne_bytes());
    bytes.extend(BY_FAMILY.to_ne_bytes());
    bytes.extend(FLAGS.to_ne_bytes());
    // Sequence number and sender: one question at a time, and the kernel knows who asks.
    bytes.extend([0; 8]);
    let family = if ipv6 { AF_INET6 } else { AF_INET };
    bytes.extend([family, IPPROTO_TCP, 1 << (INET_DIAG_INFO - 1), 0]);
    bytes.extend(ESTABLISHED.to_ne_bytes());
    // Any port and address here, any address there, any interface.
    bytes.extend([0, 0]);
    bytes.extend(port.to_be_bytes());
    bytes.extend([0; 36]);
    // No cookie.
    bytes.extend([0xff; 8]);
    bytes
}

/// Reads one piece of the answer and calls `each` with the connections in it.
pub fn read(mut piece: &[u8], mut each: impl FnMut(Connection)) -> Piece {
    while let (Some(length), Some(kind)) = (u32_at(piece, 0), u16_at(piece, 4)) {
        let length = length as usize;
        let Some(message) = piece.get(HEADER..length) else {
            break;
        };
        match kind {
            NLMSG_DONE => return Piece::Last,
            NLMSG_ERROR => {
                return Piece::Refused(u32_at(message, 0).map_or(0, |n| n.cast_signed().wrapping_neg()));
            }
            BY_FAMILY => {
                if let Some(connection) = connection(message) {
                    each(connection);
                }
            }
            _ => {}
        }
        piece = piece.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Piece::More
}

/// Reads an `inet_diag_msg` with its attributes.
fn connection(message: &[u8]) -> Option<Connection> {
    let family = *message.first()?;
    let port = u16::from_be_bytes(message.get(6..8)?.try_into().ok()?);
    let address = message.get(24..40)?;
    let ip = match family {
        AF_INET => IpAddr::from(<[u8; 4]>::try_from(&address[..4]).ok()?),
        AF_INET6 => IpAddr::from(<[u8; 16]>::try_from(address).ok()?),
        _ => return None,
    };
    let cookie = u64::from_ne_bytes(message.get(44..52)?.try_into().ok()?);
    let mut attributes = message.get(DIAG..)?;
    loop {
        let (length, kind) = (usize::from(u16_at(attributes, 0)?), u16_at(attributes, 2)?);
        let value = attributes.get(ATTRIBUTE..length)?;
        if kind == INET_DIAG_INFO {
            // A `tcp_info`; kernels before 4.6 end before what is wanted.
            return Some(Connection {
                cookie,
                peer: SocketAddr::new(ip, port),
                again: u32_at(value, 100)?,
                round_trip: Some(u32_at(value, 148)?)
                    .filter(|micros| *micros != u32::MAX)
                    .map(|micros| Duration::from_micros(micros.into())),
                sent: u32_at(value, 156)?,
            });
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// What the connections to one address did lately.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Traffic {
    /// Round trips in seconds, each times its weight; and the weights.
    round_trips: (f64, f64),
    /// Segments that were sent since the last look.
    pub sent: f64,
    /// Those of them that were sent again.
    pub again: f64,
}

impl Traffic {
    /// The mean round trip; connections count by what they sent.
    pub fn round_trip(&self) -> Option<f64> {
        let (sum, weights) = self.round_trips;
        (weights > 0.0).then(|| sum / weights)
    }

    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            round_trips: (
                self.round_trips.0 + other.round_trips.0,
                self.round_trips.1 + other.round_trips.1,
            ),
            sent: self.sent + other.sent,
            again: self.again + other.again,
        }
    }
}

/// Makes of what was counted since a connection began what was counted since the last look.
#[derive(Debug, Default)]
pub struct Counts(Option<HashMap<u64, (u32, u32)>>);

impl Counts {
    /// What happened since the last look, by address. In the first, nothing is known to have happened since.
    pub fn look(&mut self, connections: &[Connection]) -> HashMap<SocketAddr, Traffic> {
        let before = self.0.take();
        let mut by_peer: HashMap<SocketAddr, Traffic> = HashMap::new();
        for it in connections {
            let since = before.as_ref().map_or((0, 0), |before| {
                let (sent, again) = before.get(&it.cookie).copied().unwrap_or_default();
                (it.sent.wrapping_sub(sent), it.again.wrapping_sub(again))
            });
            let (sent, again) = (f64::from(since.0), f64::from(since.1));
            let weight = 1.0 + sent;
            let round_trips = it
                .round_trip
                .map_or((0.0, 0.0), |time| (time.as_secs_f64() * weight, weight));
            let traffic = by_peer.entry(it.peer).or_default();
            *traffic = traffic.and(Traffic {
                round_trips,
                sent,
                again,
            });
        }
        self.0 = Some(
            connections
                .iter()
                .map(|it| (it.cookie, (it.sent, it.again)))
                .collect(),
        );
        by_peer
    }
}

/// Reads anything as an answer of the kernel's.
#[cfg(any(test, fuzzing))]
pub fn read_anything(bytes: &[u8]) {
    let mut connections = Vec::new();
    read(bytes, |connection| connections.push(connection));
    let mut counts = Counts::default();
    for _ in 0..2 {
        counts.look(&connections);
    }
}

#[cfg(test)]
mod tests;
