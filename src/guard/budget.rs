//! How much may be asked for that nobody knows: a bucket of tokens for each client, and one for look-ups.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::types::ids::Principal;

/// Clients that are kept apart; one that is forgotten begins with a full bucket.
const CLIENTS: u64 = 100_000;

/// Tokens that come back at a steady rate.
#[derive(Debug)]
pub(super) struct Bucket {
    /// Time between two tokens.
    pause: Duration,
    /// How far back the next token may lie.
    burst: Duration,
    /// When the next token is there.
    next: Instant,
}

impl Bucket {
    /// A full bucket of `size` tokens, filled anew within `time`.
    pub(super) fn new(size: u32, time: Duration, now: Instant) -> Self {
        let pause = time / size.max(1);
        let burst = pause * size.max(1).saturating_sub(1);
        Self {
            pause,
            burst,
            next: now.checked_sub(burst).unwrap_or(now),
        }
    }

    /// Takes a token, if there is one.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let earliest = now.checked_sub(self.burst).unwrap_or(now);
        let next = self.next.max(earliest);
        if next > now {
            return false;
        }
        self.next = next + self.pause;
        true
    }
}

/// Who asks: what the credential says, else the address; of IPv6 the network that one subscriber has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Asker {
    Principal(Principal),
    Address(IpAddr),
}

impl Asker {
    pub(super) fn at(address: IpAddr) -> Self {
        Self::Address(match address {
            IpAddr::V4(_) => address,
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
        })
    }
}

/// One bucket for each client.
#[derive(Debug)]
pub(super) struct Budgets {
    per_minute: u32,
    buckets: Cache<Asker, Arc<Mutex<Bucket>>, ahash::RandomState>,
}

impl Budgets {
    pub(super) fn new(per_minute: u32) -> Self {
        Self {
            per_minute,
            buckets: Cache::builder()
                .max_capacity(CLIENTS)
                .build_with_hasher(ahash::RandomState::new()),
        }
    }

    /// Takes one of the client's tokens, if there is one.
    pub(super) fn take(&self, asker: Asker, now: Instant) -> bool {
        let full = || {
            Arc::new(Mutex::new(Bucket::new(
                self.per_minute,
                Duration::from_secs(60),
                now,
            )))
        };
        let bucket = self.buckets.get_with(asker, full);
        self.per_minute > 0 && bucket.lock().take(now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::time::Clock;

    fn now() -> Instant {
        Clock::System.now().monotonic
    }

    proptest! {
        #[test]
        fn no_more_pass_than_the_bucket_holds_and_comes_back(size in 1..50_u32, waits in proptest::collection::vec(0..3_000_u64, 1..200)) {
            let began = now();
            let (mut bucket, mut now, mut passed) = (Bucket::new(size, Duration::from_secs(60), began), began, 0_u32);
            for wait in waits {
                now += Duration::from_millis(wait);
                passed += u32::from(bucket.take(now));
                let back = (now - began).as_secs_f64() / 60.0 * f64::from(size);
                prop_assert!(f64::from(passed) <= f64::from(size) + back + 1e-6);
            }
        }
    }

    #[test]
    fn a_full_bucket_gives_all_its_tokens_and_one_more_after_a_pause() {
        let now = now();
        let mut bucket = Bucket::new(6, Duration::from_secs(60), now);
        assert_eq!((0..10).filter(|_| bucket.take(now)).count(), 6);
        assert!(!bucket.take(now + Duration::from_millis(9_999)));
        assert!(bucket.take(now + Duration::from_secs(10)));
    }

    #[test]
    fn one_client_does_not_use_up_what_another_has() {
        let (budgets, now) = (Budgets::new(2), now());
        let of = |text: &str| Asker::at(text.parse().expect("an address"));
        assert_eq!((0..5).filter(|_| budgets.take(of("10.0.0.1"), now)).count(), 2);
        assert!(budgets.take(of("10.0.0.2"), now));
        // A subscriber has as many addresses of IPv6 as he likes.
        let found = (0..5).filter(|n| budgets.take(of(&format!("2001:db8::{n}")), now));
        assert_eq!(found.count(), 2);
        assert!(budgets.take(of("2001:db8:0:1::1"), now));
    }
}
