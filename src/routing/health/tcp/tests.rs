//! Answers as the kernel gives them, and anything else.

use proptest::prelude::*;

use super::*;

/// A message of this type.
fn message(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend([0; 10]);
    bytes.extend(body);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// An attribute of this type.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = ((ATTRIBUTE + value.len()) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// A connection's state in an answer, with some other attribute before.
fn diag(it: &Connection) -> Vec<u8> {
    let mut body = vec![0; DIAG];
    body[6..8].copy_from_slice(&it.peer.port().to_be_bytes());
    match it.peer.ip() {
        IpAddr::V4(ip) => {
            body[0] = AF_INET;
            body[24..28].copy_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            body[0] = AF_INET6;
            body[24..40].copy_from_slice(&ip.octets());
        }
    }
    body[44..52].copy_from_slice(&it.cookie.to_ne_bytes());
    body.extend(attribute(8, &[1]));
    let mut info = vec![0; 280];
    let micros = it.round_trip.map_or(u32::MAX, |time| time.as_micros() as u32);
    for (at, number) in [(100, it.again), (148, micros), (156, it.sent)] {
        info[at..at + 4].copy_from_slice(&number.to_ne_bytes());
    }
    body.extend(attribute(INET_DIAG_INFO, &info));
    body
}

fn to(peer: &str, cookie: u64, micros: u64, sent: u32, again: u32) -> Connection {
    Connection {
        cookie,
        peer: peer.parse().unwrap(),
        round_trip: Some(Duration::from_micros(micros)),
        sent,
        again,
    }
}

fn all(bytes: &[u8]) -> (Vec<Connection>, Piece) {
    let mut found = Vec::new();
    let piece = read(bytes, |connection| found.push(connection));
    (found, piece)
}

#[test]
fn connections_are_read_from_an_answer_in_pieces() {
    let known = [
        to("10.0.0.1:5001", 7, 2100, 90, 3),
        to("[fd00::1]:5001", u64::MAX, 140_000, 1, 0),
        Connection {
            round_trip: None,
            ..to("10.0.0.1:5001", 8, 0, 0, 0)
        },
    ];
    let piece: Vec<u8> = known
        .iter()
        .flat_map(|it| message(BY_FAMILY, &diag(it)))
        .collect();
    assert_eq!(all(&piece), (known.to_vec(), Piece::More));
    assert_eq!(all(&message(NLMSG_DONE, &[0; 4])), (vec![], Piece::Last));
    let refused = message(NLMSG_ERROR, &(-2i32).to_ne_bytes());
    assert_eq!(
        all(&[piece, refused].concat()),
        (known.to_vec(), Piece::Refused(2))
    );
}

#[test]
fn a_state_of_an_old_kernel_that_lacks_what_is_wanted_is_passed_over() {
    let it = diag(&to("10.0.0.1:5001", 7, 2100, 90, 3));
    let old = message(BY_FAMILY, &it[..it.len() - 180]);
    let new = message(BY_FAMILY, &it);
    assert_eq!(all(&[old, new].concat()).0.len(), 1);
}

#[test]
fn what_counts_is_what_happened_since_the_last_look() {
    let mut counts = Counts::default();
    let [near, far] = ["10.0.0.1:1", "10.0.0.2:1"];
    let first = counts.look(&[to(near, 1, 2000, 1000, 500), to(far, 2, 100_000, 0, 0)]);
    assert_eq!((first[&near.parse().unwrap()].sent, first.len()), (0.0, 2));
    let second = counts.look(&[
        to(near, 1, 2000, 1004, 500),
        to(near, 3, 4000, 14, 1),
        to(far, 2, 100_000, 9, 3),
    ]);
    let (near, far) = (second[&near.parse().unwrap()], second[&far.parse().unwrap()]);
    assert_eq!(
        (near.sent, near.again, far.sent, far.again),
        (18.0, 1.0, 9.0, 3.0)
    );
    // Of twenty parts of weight, five and fifteen.
    assert!((near.round_trip().unwrap() - 0.0035).abs() < 1e-9);
    assert!((far.round_trip().unwrap() - 0.1).abs() < 1e-9);
    let both = near.and(far);
    assert_eq!((both.sent, both.again), (27.0, 4.0));
    assert_eq!(Traffic::default().round_trip(), None);
    assert_eq!(counts.look(&[]).len(), 0);
}

proptest! {
    #[test]
    fn any_bytes_are_survived(
        any in any::<Vec<u8>>(),
        kind in prop::sample::select(vec![BY_FAMILY, NLMSG_ERROR, NLMSG_DONE, 7]),
        at in 0usize..400,
        byte in any::<u8>(),
    ) {
        read_anything(&any);
        read_anything(&message(kind, &any));
        let mut real = message(BY_FAMILY, &diag(&to("10.0.0.1:5001", 7, 2100, 90, 3)));
        let at = at % real.len();
        real[at] = byte;
        read_anything(&real);
        read_anything(&real[..at]);
    }
}
