//! A stored answer as bytes that other instances read.
//!
//! A value begins with the version of this form and a digest of the rest, keyed when the instances share a secret:
//! what is of another version, damaged or somebody else's is [`Unreadable`]. Numbers are big-endian, times
//! milliseconds:
//!
//! | bytes | what |
//! |---|---|
//! | 1 | version |
//! | 32 | blake3 of key and rest, keyed |
//! | 8 | epoch |
//! | 8 | when it was asked for, Unix time |
//! | 4 × 8 | age, ttl, stale-while-revalidate, stale-if-error |
//! | 2 | status |
//! | 1 + n | reason phrase, empty for the usual one |
//! | 1 + n × 10 | slots and versions |
//! | 4 | length of the fields |
//! | … | fields, then content, as in `packed` |

use std::time::{Duration, SystemTime};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::StatusCode;
use hyper::ext::ReasonPhrase;

use super::entry::{Entry, Fate};
use super::freshness::Storable;
use super::invalidation::{SharedVersions, TagVersions};
use super::key::Key;
use super::packed::Packed;
use super::request_control::Selective;
use crate::types::time::Now;

/// Changes with every change of the form, and of what tags mean.
const VERSION: u8 = 1;
const DIGEST: usize = blake3::OUT_LEN;

/// Tells what an instance with the same secret wrote from everything else.
#[derive(Clone)]
pub(super) struct Seal([u8; blake3::KEY_LEN]);

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seal")
    }
}

/// Why a value is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unreadable {
    /// It was written by another version of this program.
    #[error("a version of the form that this program does not know")]
    Version,
    /// Its digest is not the one that it should have: damaged, or written with another secret.
    #[error("damaged, or written with another secret")]
    Digest,
    /// Its digest is right and its form is not.
    #[error("malformed")]
    Malformed,
}

impl Seal {
    /// Without a secret only damage is noticed.
    pub(super) fn new(secret: Option<&str>) -> Self {
        let material = secret.unwrap_or_default().as_bytes();
        Self(blake3::derive_key(
            "dify-edge shared tier, values and messages",
            material,
        ))
    }

    /// The digest of `parts` in this context.
    pub(super) fn digest(&self, context: &[u8], data: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&(context.len() as u64).to_be_bytes());
        hasher.update(context).update(data);
        hasher.finalize()
    }

    /// Whether `digest` is that of `parts`; takes the same time whatever differs.
    pub(super) fn fits(&self, context: &[u8], data: &[u8], digest: &[u8]) -> bool {
        let expected = self.digest(context, data);
        blake3::Hash::from_slice(digest).is_ok_and(|digest| digest == expected)
    }
}

fn millis(span: Duration) -> u64 {
    span.as_millis().try_into().unwrap_or(u64::MAX)
}

/// Milliseconds since the Unix epoch; 0 before it.
pub(super) fn unix_millis(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, millis)
}

/// The value of `entry` under `key`, with the versions that its tags had in the store before it was asked for.
pub(super) fn encode(seal: &Seal, key: &Key, entry: &Entry, versions: &SharedVersions, now: Now) -> Bytes {
    let reason = entry.reason.as_deref().map_or(&b""[..], ReasonPhrase::as_bytes);
    let reason = if reason.len() <= usize::from(u8::MAX) {
        reason
    } else {
        b""
    };
    let (fields, packed) = entry.packed.parts();
    let mut value = BytesMut::with_capacity(128 + reason.len() + versions.slots.len() * 10 + packed.len());
    value.put_u8(VERSION);
    value.put_bytes(0, DIGEST);
    value.put_u64(versions.epoch);
    let since = now.monotonic.saturating_duration_since(entry.asked_at);
    value.put_u64(unix_millis(now.wall).saturating_sub(millis(since)));
    let life = &entry.life;
    for span in [
        life.age,
        life.ttl,
        life.stale_while_revalidate,
        life.stale_if_error,
    ] {
        value.put_u64(millis(span));
    }
    value.put_u16(entry.status.as_u16());
    value.put_u8(reason.len() as u8);
    value.put_slice(reason);
    // A request has far fewer tags than 256; what were more would be no value at all for its readers.
    value.put_u8(versions.slots.len() as u8);
    for (slot, version) in &versions.slots {
        value.put_u16(*slot);
        value.put_u64(*version);
    }
    value.put_u32(fields);
    value.put_slice(packed);
    let digest = seal.digest(&key.0, &value[1 + DIGEST..]);
    value[1..=DIGEST].copy_from_slice(digest.as_bytes());
    value.freeze()
}

/// The entry that `value` stands for, an answer of the route `template` that depends on `local`, and the versions
/// that it was stored with.
///
/// # Errors
/// When it is not what [`encode`] made of an entry under this key.
pub(super) fn decode(
    seal: &Seal,
    key: &Key,
    value: &[u8],
    template: &'static str,
    local: TagVersions,
    now: Now,
) -> Result<(Entry, SharedVersions), Unreadable> {
    let Some((&VERSION, rest)) = value.split_first() else {
        return Err(Unreadable::Version);
    };
    let (digest, mut rest) = rest.split_at_checked(DIGEST).ok_or(Unreadable::Digest)?;
    if !seal.fits(&key.0, rest, digest) {
        return Err(Unreadable::Digest);
    }
    parse(&mut rest, template, local, now).ok_or(Unreadable::Malformed)
}

fn parse(
    rest: &mut &[u8],
    template: &'static str,
    local: TagVersions,
    now: Now,
) -> Option<(Entry, SharedVersions)> {
    let epoch = rest.try_get_u64().ok()?;
    let asked_at = rest.try_get_u64().ok()?;
    let mut span = || rest.try_get_u64().ok().map(Duration::from_millis);
    let life = Storable {
        age: span()?,
        ttl: span()?,
        stale_while_revalidate: span()?,
        stale_if_error: span()?,
    };
    let status = StatusCode::from_u16(rest.try_get_u16().ok()?).ok()?;
    let length = rest.try_get_u8().ok()?;
    let reason = take(rest, length.into())?;
    let reason = match reason {
        [] => None,
        reason => Some(Box::new(ReasonPhrase::try_from(reason).ok()?)),
    };
    let count = rest.try_get_u8().ok()?;
    let mut slots = smallvec::SmallVec::new();
    for _ in 0..count {
        slots.push((rest.try_get_u16().ok()?, rest.try_get_u64().ok()?));
    }
    let fields = rest.try_get_u32().ok()?;
    // A copy: the value lies in a buffer of the connection.
    let packed = Packed::from_parts(fields, Bytes::copy_from_slice(rest))?;
    let headers = packed.headers();
    // Clocks of different machines: what was asked for in the future was asked for now.
    let since = Duration::from_millis(unix_millis(now.wall).saturating_sub(asked_at));
    // Nothing of what is added up later may overflow.
    let bounded = [
        life.age,
        life.ttl,
        life.stale_while_revalidate,
        life.stale_if_error,
        since,
    ];
    if bounded.iter().any(|span| *span > LONGEST) {
        return None;
    }
    let entry = Entry {
        status,
        reason,
        selective: Selective::of(&headers),
        packed,
        template,
        asked_at: now.monotonic.checked_sub(since)?,
        checked_at: now.monotonic,
        life,
        versions: local,
        fate: Fate::default(),
    };
    Some((entry, SharedVersions { epoch, slots }))
}

/// Longer than anything is kept.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86400);

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(taken)
}

/// Whatever these bytes are, reading them does no harm; with the digest that they should have put in, so that the
/// form behind it is reached. For the fuzz target.
#[cfg(any(test, fuzzing))]
pub(super) fn read_anything(bytes: &[u8]) {
    let (seal, key) = (Seal::new(None), Key([7; 16]));
    let (clock, _) = crate::types::time::Clock::manual(SystemTime::UNIX_EPOCH + LONGEST);
    let now = clock.now();
    let local = TagVersions::default;
    let mut value = bytes.to_vec();
    let _ = decode(&seal, &key, &value, "/", local(), now);
    if value.len() > DIGEST {
        value[0] = VERSION;
        let digest = seal.digest(&key.0, &value[1 + DIGEST..]);
        value[1..=DIGEST].copy_from_slice(digest.as_bytes());
        if let Ok((entry, versions)) = decode(&seal, &key, &value, "/", local(), now) {
            let response = entry.response(&http::Method::GET, now.monotonic);
            assert!(response.headers().len() <= value.len());
            let (life, age) = (entry.life.life(), entry.age(now.monotonic));
            assert!(life <= 2 * LONGEST && age <= 2 * LONGEST);
            // What was read once is written and read as the same.
            let again = encode(&seal, &key, &entry, &versions, now);
            assert!(decode(&seal, &key, &again, "/", local(), now).is_ok());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::invalidation::TagTable;
    use crate::types::time::Clock;
    use http::{HeaderMap, HeaderName, HeaderValue};
    use proptest::prelude::*;

    fn entry(
        status: u16,
        reason: &str,
        fields: &[(String, Vec<u8>)],
        body: &[u8],
        spans: [u32; 5],
        now: Now,
    ) -> Entry {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            headers.append(name, HeaderValue::from_bytes(value).expect("a value"));
        }
        let [age, ttl, revalidate, on_error, since] = spans.map(|span| Duration::from_millis(span.into()));
        Entry {
            status: StatusCode::from_u16(status).expect("a status"),
            reason: (!reason.is_empty())
                .then(|| Box::new(ReasonPhrase::try_from(reason.as_bytes()).expect("a phrase"))),
            selective: Selective::of(&headers),
            packed: Packed::new(&headers, body),
            template: "/v1/info",
            asked_at: now.monotonic - since,
            checked_at: now.monotonic,
            life: Storable {
                age,
                ttl,
                stale_while_revalidate: revalidate,
                stale_if_error: on_error,
            },
            versions: TagTable::new(now.monotonic).versions([]),
            fate: Fate::default(),
        }
    }

    proptest! {
        #[test]
        fn an_answer_is_read_as_it_was_written_and_as_much_older_as_it_is(
            status in 200u16..600,
            reason in "[A-Z ]{0,20}",
            fields in proptest::collection::vec(("[a-z-]{1,20}", proptest::collection::vec(32u8..=126, 0..40)), 0..20),
            body: Vec<u8>,
            spans in [0..100_000_000u32, 0..100_000_000, 0..100_000_000, 0..100_000_000, 0..1000],
            slots in proptest::collection::vec(any::<(u16, u64)>(), 0..10),
            epoch: u64,
            later in 0..1_000_000u64,
        ) {
            let (clock, time) = Clock::manual(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000));
            let (seal, key) = (Seal::new(Some("the one secret")), Key([1; 16]));
            let now = clock.now();
            let entry = entry(status, &reason, &fields, &body, spans, now);
            let versions = SharedVersions { epoch, slots: slots.into_iter().collect() };
            let value = encode(&seal, &key, &entry, &versions, now);
            time.advance(Duration::from_millis(later));
            let now = clock.now();
            let local = TagTable::new(now.monotonic).versions([]);
            let (read, stored) = decode(&seal, &key, &value, "/v1/info", local.clone(), now).expect("an answer");
            prop_assert_eq!(stored, versions);
            prop_assert_eq!(read.status, entry.status);
            prop_assert_eq!(&read.reason, &entry.reason);
            prop_assert_eq!(read.packed.headers(), entry.packed.headers());
            prop_assert_eq!(read.packed.body(), entry.packed.body());
            prop_assert_eq!(read.life, entry.life);
            prop_assert_eq!(read.age(now.monotonic), entry.age(now.monotonic));
            prop_assert_eq!(read.ttl(now.monotonic), entry.ttl(now.monotonic));

            for (seal, key) in [(Seal::new(Some("another secret")), key), (seal, Key([2; 16]))] {
                let read = decode(&seal, &key, &value, "/v1/info", local.clone(), now);
                prop_assert_eq!(read.err(), Some(Unreadable::Digest), "another secret, or another key's value");
            }
        }

        #[test]
        fn a_value_that_was_cut_or_changed_is_unreadable(body: Vec<u8>, at: prop::sample::Index, bit in 0..8u32) {
            let (clock, _) = Clock::manual(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000));
            let (seal, key, now) = (Seal::new(None), Key([1; 16]), clock.now());
            let versions = SharedVersions { epoch: 1, slots: smallvec::smallvec![(1, 2)] };
            let entry = entry(200, "", &[], &body, [0, 1000, 0, 0, 0], now);
            let value = encode(&seal, &key, &entry, &versions, now);
            let at = at.index(value.len());
            let mut changed = value.to_vec();
            changed[at] ^= 1 << bit;
            for value in [&value[..at], &changed[..]] {
                let local = TagTable::new(now.monotonic).versions([]);
                prop_assert!(decode(&seal, &key, value, "/", local, now).is_err());
            }
        }

        #[test]
        fn arbitrary_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            read_anything(&bytes);
        }
    }

    #[test]
    fn a_value_from_the_future_was_asked_for_now() {
        let (clock, _) = Clock::manual(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000));
        let (seal, key, now) = (Seal::new(None), Key([1; 16]), clock.now());
        let versions = SharedVersions {
            epoch: 1,
            slots: smallvec::SmallVec::new(),
        };
        let value = encode(
            &seal,
            &key,
            &entry(200, "", &[], b"x", [0, 1000, 0, 0, 0], now),
            &versions,
            now,
        );
        let behind = Now {
            wall: now.wall - Duration::from_secs(60),
            ..now
        };
        let local = TagTable::new(now.monotonic).versions([]);
        let (read, _) = decode(&seal, &key, &value, "/", local, behind).expect("an answer");
        assert_eq!(read.age(now.monotonic), Duration::ZERO);
    }
}
