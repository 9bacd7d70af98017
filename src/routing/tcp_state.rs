//! Background work: asks the kernel from time to time how the TCP connections to the replicas fare, for their scores.
//!
//! Any process may ask that for its own network namespace. Where it is refused, or on another system than Linux, these
//! inputs of the score are missing. What is asked and answered is in `health::tcp`.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::health::tcp::{Connection, Counts, Piece, Traffic, question, read};
use super::pool::Pool;
use crate::types::time::Clock;

/// Time from one look to the next.
const INTERVAL: Duration = Duration::from_secs(5);
/// What was seen counts for so long.
const COUNTS: Duration = Duration::from_secs(15);
/// The kernel answers at once; this only keeps a fault from lasting.
const PATIENCE: Duration = Duration::from_secs(1);
/// No more connections are looked at.
const MOST: usize = 100_000;

const AF_NETLINK: i32 = 16;
const NETLINK_SOCK_DIAG: i32 = 4;

/// Looks at the connections to all replicas for ever.
pub(super) async fn keep(pools: Arc<[Arc<Pool>]>, clock: Clock) {
    if !cfg!(target_os = "linux") {
        return;
    }
    let (mut counts, mut worked) = (Counts::default(), None);
    loop {
        let replicas: Vec<_> = pools.iter().flat_map(|pool| pool.members.all()).collect();
        let addresses = replicas
            .iter()
            .flat_map(|(_, replica)| replica.endpoint.addresses().to_vec());
        let ports: BTreeSet<_> = addresses
            .map(|address| (address.is_ipv6(), address.port()))
            .collect();
        let asked = spawn_blocking(move || ask(&ports))
            .await
            .unwrap_or_else(|error| Err(error.into()));
        let works = asked.is_ok();
        match asked {
            Ok(connections) => {
                let seen = counts.look(&connections);
                let now = clock.now().monotonic;
                for (_, replica) in &replicas {
                    let addresses = replica.endpoint.addresses();
                    let traffic = addresses.iter().filter_map(|address| seen.get(address).copied());
                    if let Some(traffic) = traffic.reduce(Traffic::and) {
                        replica.signals.lock().resources.seen(&traffic, now, now + COUNTS);
                    }
                }
            }
            Err(error) if worked != Some(false) => {
                tracing::warn!(%error, "the kernel does not tell how the connections to the replicas fare");
            }
            Err(_) => {}
        }
        worked = Some(works);
        sleep(INTERVAL).await;
    }
}

/// Asks for the connections to these ports, over IPv6 or IPv4.
fn ask(ports: &BTreeSet<(bool, u16)>) -> io::Result<Vec<Connection>> {
    let mut found = Vec::new();
    if ports.is_empty() {
        return Ok(found);
    }
    let mut socket = Socket::new(
        Domain::from(AF_NETLINK),
        Type::DGRAM,
        Some(Protocol::from(NETLINK_SOCK_DIAG)),
    )?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = vec![0; 64 << 10];
    for (ipv6, port) in ports {
        socket.send(&question(*ipv6, *port))?;
        loop {
            let length = socket.read(&mut buffer)?;
            let piece = read(&buffer[..length], |connection| {
                if found.len() < MOST {
                    found.push(connection);
                }
            });
            match piece {
                Piece::More => {}
                Piece::Last => break,
                Piece::Refused(error) => return Err(io::Error::from_raw_os_error(error)),
            }
        }
    }
    Ok(found)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn the_kernel_tells_of_real_connections_over_both_protocols() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(any).unwrap();
            let address = listener.local_addr().unwrap();
            let ports = BTreeSet::from([(address.is_ipv6(), address.port())]);
            assert_eq!(ask(&ports).unwrap(), []);
            let mut near = TcpStream::connect(address).unwrap();
            let (mut far, _) = listener.accept().unwrap();
            for _ in 0..3 {
                near.write_all(b"question").unwrap();
                far.read_exact(&mut [0; 8]).unwrap();
            }
            // The other end of it leads to another port.
            let [connection] = ask(&ports).unwrap().try_into().unwrap();
            assert_eq!(connection.peer, address);
            assert!((1..=3).contains(&connection.sent), "{connection:?}");
            let round_trip = connection.round_trip.unwrap();
            assert!(round_trip < Duration::from_secs(1), "{connection:?}");
        }
    }
}
