//! What instances tell each other on the board.
//!
//! A message is one version byte, a kind, the sender, its sequence number, when it was sent, a number that belongs
//! to the kind, and slots; then a digest like that of stored values. Big-endian.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::cache::codec::{Seal, Unreadable};
use crate::types::ids::Batch;

const VERSION: u8 = 1;
/// The context of the digests, so that a message is no value and a value no message.
const CONTEXT: &[u8] = b"board";
/// The lower bits of an unsettled mark's number, for the batch.
const BATCH_BITS: u32 = 24;
/// Slots that one message can carry; more is "everything".
pub(super) const MOST_SLOTS: usize = 4096;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    /// The instance that sent it: a random number of its own.
    pub from: u64,
    /// Counts its news, from 1; a beat repeats the last one's.
    pub sequence: u64,
    /// Its wall clock, milliseconds since the Unix epoch: for measuring only.
    pub sent_at: u64,
    pub news: News,
}

/// What there is to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum News {
    /// The sender lives; a number that means something to it alone.
    Beat(u64),
    /// Answers with tags in these slots have ended.
    Ended(Vec<u16>),
    /// They are stale.
    Stale(Vec<u16>),
    /// All answers have ended.
    AllEnded,
    /// All answers are stale.
    AllStale,
    /// They have ended, and what is fetched in the next so many milliseconds, or until the batch is done, may
    /// have to end again.
    Unsettled(u64, Option<Batch>, Vec<u16>),
    /// They have ended, and the batch changes them no more.
    Settled(Batch, Vec<u16>),
}

impl News {
    fn parts(&self) -> (u8, u64, &[u16]) {
        match self {
            Self::Beat(number) => (0, *number, &[]),
            Self::Ended(slots) => (1, 0, slots),
            Self::Stale(slots) => (2, 0, slots),
            Self::AllEnded => (3, 0, &[]),
            Self::AllStale => (4, 0, &[]),
            Self::Unsettled(millis, batch, slots) => {
                let batch = batch.map_or(0, |batch| u64::from(batch.digest()));
                (5, millis << BATCH_BITS | batch, slots)
            }
            Self::Settled(batch, slots) => (6, u64::from(batch.digest()), slots),
        }
    }

    fn from_parts(kind: u8, number: u64, slots: Vec<u16>) -> Option<Self> {
        Some(match kind {
            0 => Self::Beat(number),
            1 => Self::Ended(slots),
            2 => Self::Stale(slots),
            3 => Self::AllEnded,
            4 => Self::AllStale,
            5 => {
                let batch = Batch::from_digest((number & ((1 << BATCH_BITS) - 1)) as u32);
                Self::Unsettled(number >> BATCH_BITS, batch, slots)
            }
            6 => Self::Settled(Batch::from_digest(u32::try_from(number).ok()?)?, slots),
            _ => return None,
        })
    }

    /// The slots that it is about.
    pub(super) fn slots(&self) -> &[u16] {
        self.parts().2
    }
}

impl Message {
    /// As it goes on the board.
    pub(super) fn encode(&self, seal: &Seal) -> Bytes {
        let (kind, number, slots) = self.news.parts();
        let mut bytes = BytesMut::with_capacity(68 + slots.len() * 2);
        bytes.put_u8(VERSION);
        bytes.put_u8(kind);
        for number in [self.from, self.sequence, self.sent_at, number] {
            bytes.put_u64(number);
        }
        bytes.put_u16(slots.len() as u16);
        for slot in slots {
            bytes.put_u16(*slot);
        }
        let digest = seal.digest(CONTEXT, &bytes);
        bytes.put_slice(digest.as_bytes());
        bytes.freeze()
    }

    /// What [`encode`](Self::encode) made.
    ///
    /// # Errors
    /// When it is of another version, damaged, or of somebody without the secret.
    pub(super) fn decode(seal: &Seal, bytes: &[u8]) -> Result<Self, Unreadable> {
        if bytes.first() != Some(&VERSION) {
            return Err(Unreadable::Version);
        }
        let (data, digest) = bytes
            .len()
            .checked_sub(blake3::OUT_LEN)
            .and_then(|at| bytes.split_at_checked(at))
            .ok_or(Unreadable::Digest)?;
        if !seal.fits(CONTEXT, data, digest) {
            return Err(Unreadable::Digest);
        }
        Self::parse(&data[1..]).ok_or(Unreadable::Malformed)
    }

    fn parse(mut rest: &[u8]) -> Option<Self> {
        let kind = rest.try_get_u8().ok()?;
        let mut number = || rest.try_get_u64().ok();
        let (from, sequence, sent_at, number) = (number()?, number()?, number()?, number()?);
        let count = rest.try_get_u16().ok()?;
        if usize::from(count) > MOST_SLOTS || rest.len() != usize::from(count) * 2 {
            return None;
        }
        let slots = rest
            .chunks_exact(2)
            .map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
            .collect();
        let news = News::from_parts(kind, number, slots)?;
        Some(Self {
            from,
            sequence,
            sent_at,
            news,
        })
    }
}

/// Whatever these bytes are, reading them does no harm, also behind a right digest. For the fuzz target.
#[cfg(any(test, fuzzing))]
pub(in crate::cache) fn read_anything(bytes: &[u8]) {
    let seal = Seal::new(None);
    let _ = Message::decode(&seal, bytes);
    if let Some(message) = Message::parse(bytes) {
        let again = Message::decode(&seal, &message.encode(&seal));
        assert_eq!(
            again,
            Ok(message),
            "what was read once is written and read as the same"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn news() -> impl Strategy<Value = News> {
        let number = prop_oneof![any::<u64>(), 1u64..1 << BATCH_BITS];
        (0u8..7, number, prop::collection::vec(any::<u16>(), 0..20))
            .prop_filter_map("a number that the kind can have", |(kind, number, slots)| {
                News::from_parts(kind, number, slots)
            })
    }

    proptest! {
        #[test]
        fn a_message_is_read_as_it_was_written(from: u64, sequence: u64, sent_at: u64, news in news(), flip: usize) {
            let (seal, other) = (Seal::new(Some("one secret of many")), Seal::new(None));
            // A kind carries its number or slots only if it has a use for them.
            let message = Message { from, sequence, sent_at, news };
            let bytes = message.encode(&seal);
            prop_assert_eq!(Message::decode(&seal, &bytes), Ok(message));
            prop_assert_eq!(Message::decode(&other, &bytes), Err(Unreadable::Digest));
            let mut damaged = bytes.to_vec();
            let at = flip % damaged.len();
            damaged[at] ^= 1;
            prop_assert!(Message::decode(&seal, &damaged).is_err());
        }

        #[test]
        fn arbitrary_bytes_are_no_message(bytes: Vec<u8>) {
            read_anything(&bytes);
            prop_assert!(Message::decode(&Seal::new(None), &bytes).is_err());
        }
    }
}
