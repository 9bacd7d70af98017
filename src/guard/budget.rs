//! How many unknown ids pass: token buckets, one per client and one for all look-ups.
//!
//! A bucket is one number, the time at which it will be full again (the generic cell rate algorithm). Clients are
//! kept in a table of fixed size, in groups of eight places; a client's group follows from a digest with this
//! process's seed. A client that finds no place takes that of the one in its group whose bucket is the nearest to
//! full: if it is full, nothing is lost, else that one gets the rest of its burst anew. So a new client is never
//! refused for what others did; and one that asks from many addresses forgets those that asked little, while who
//! has asked much is remembered the longest.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::types::ids::Principal;

/// Places in a group.
const PLACES: usize = 8;

/// So many at once, and as many anew in each period, evenly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// What a full bucket holds. With 0 nothing passes.
    pub tokens: u32,
    /// In which an empty bucket fills.
    pub period: Duration,
}

/// Nothing passes now; what passes next does so after this time at the earliest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryAfter(pub Duration);

/// Whose bucket it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Payer {
    /// A caller that has shown credentials.
    Principal(Principal),
    /// Anyone at an IPv4 address.
    V4([u8; 4]),
    /// Anyone in an IPv6 network of 64 bits: who has one address of it has all.
    V6([u8; 8]),
}

/// A bucket for each client.
#[derive(Debug)]
pub struct ClientBudgets {
    pace: Pace,
    digest: ahash::RandomState,
    groups: Box<[Mutex<[Place; PLACES]>]>,
}

/// One bucket that all share.
#[derive(Debug)]
pub struct Budget {
    pace: Pace,
    full_at: AtomicU64,
}

/// A client's bucket; the default is a full one of nobody.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    payer: u64,
    full_at: u64,
}

/// A rate in nanoseconds since `began`.
#[derive(Debug, Clone, Copy)]
struct Pace {
    began: Instant,
    per_token: u64,
    per_bucket: u64,
}

impl RetryAfter {
    /// For the field `Retry-After` (RFC 9110 section 10.2.3): whole seconds, at least 1.
    pub fn seconds(self) -> u16 {
        self.0.as_millis().div_ceil(1000).clamp(1, u128::from(u16::MAX)) as u16
    }
}

impl Payer {
    /// The principal if there is one that names anybody, else the address.
    ///
    /// Hand in a principal only if its credentials are known to be good: one can be made up for each request.
    pub fn of(principal: Option<Principal>, address: IpAddr) -> Self {
        match (
            principal.filter(|principal| *principal != Principal::PUBLIC),
            address.to_canonical(),
        ) {
            (Some(principal), _) => Self::Principal(principal),
            (None, IpAddr::V4(address)) => Self::V4(address.octets()),
            (None, IpAddr::V6(address)) => {
                let octets = address.octets();
                Self::V6(std::array::from_fn(|at| octets[at]))
            }
        }
    }
}

impl ClientBudgets {
    /// Full buckets for at most so many clients (rounded up to a multiple of eight).
    pub fn new(rate: Rate, clients: usize, began: Instant) -> Self {
        Self {
            pace: Pace::new(rate, began),
            digest: ahash::RandomState::new(),
            groups: (0..clients.div_ceil(PLACES).max(1))
                .map(|_| Mutex::default())
                .collect(),
        }
    }

    /// Takes a token from the client's bucket.
    ///
    /// # Errors
    /// When the bucket is empty, and nothing is taken.
    pub fn take(&self, payer: Payer, now: Instant) -> Result<(), RetryAfter> {
        let (digest, group) = self.group(payer);
        let mut places = group.lock();
        let own = places.iter_mut().position(|place| place.payer == digest);
        let at = own
            .or_else(|| (0..PLACES).min_by_key(|at| places[*at].full_at))
            .unwrap_or(0);
        let full_at = if own.is_some() { places[at].full_at } else { 0 };
        let full_at = self.pace.take(full_at, 0, now)?;
        places[at] = Place {
            payer: digest,
            full_at,
        };
        Ok(())
    }

    /// Gives back a token that the client took, unless the client is forgotten.
    pub fn give_back(&self, payer: Payer) {
        let (digest, group) = self.group(payer);
        let mut places = group.lock();
        if let Some(own) = places.iter_mut().find(|place| place.payer == digest) {
            own.full_at = own.full_at.saturating_sub(self.pace.per_token);
        }
    }

    /// The client's digest, and the places where its bucket may be.
    fn group(&self, payer: Payer) -> (u64, &Mutex<[Place; PLACES]>) {
        let digest = self.digest.hash_one(payer);
        let group = ((u128::from(digest) * self.groups.len() as u128) >> 64) as usize;
        (digest, &self.groups[group])
    }
}

impl Budget {
    /// A full bucket.
    pub fn new(rate: Rate, began: Instant) -> Self {
        Self {
            pace: Pace::new(rate, began),
            full_at: AtomicU64::new(0),
        }
    }

    /// Takes a token, if `kept` others stay.
    ///
    /// # Errors
    /// When there are not so many, and nothing is taken.
    pub fn take(&self, kept: u32, now: Instant) -> Result<(), RetryAfter> {
        let mut before = self.full_at.load(Ordering::Relaxed);
        loop {
            let after = self.pace.take(before, kept, now)?;
            match self
                .full_at
                .compare_exchange_weak(before, after, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return Ok(()),
                Err(other) => before = other,
            }
        }
    }
}

impl Pace {
    fn new(rate: Rate, began: Instant) -> Self {
        // A year is as good as for ever, and leaves room for sums.
        let period = rate.period.min(Duration::from_secs(365 * 86_400)).as_nanos() as u64;
        // Rounded up: never more than the rate.
        let per_token = period.div_ceil(u64::from(rate.tokens.max(1))).max(1);
        Self {
            began,
            per_token,
            per_bucket: per_token * u64::from(rate.tokens),
        }
    }

    /// When the bucket that was to be full at `full_at` will be full without one more token, if `kept` stay in it.
    fn take(&self, full_at: u64, kept: u32, now: Instant) -> Result<u64, RetryAfter> {
        let now = now.saturating_duration_since(self.began).as_nanos() as u64;
        let after = full_at.max(now) + self.per_token;
        match (after - now).checked_sub(self.per_bucket.saturating_sub(self.per_token * u64::from(kept))) {
            None | Some(0) => Ok(after),
            Some(early) => Err(RetryAfter(Duration::from_nanos(early))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::types::time::Clock;

    const MINUTE: Duration = Duration::from_secs(60);

    fn began() -> Instant {
        Clock::System.now().monotonic
    }

    fn rate(tokens: u32) -> Rate {
        Rate {
            tokens,
            period: MINUTE,
        }
    }

    fn client(number: u32) -> Payer {
        Payer::of(None, Ipv4Addr::from_bits(number).into())
    }

    #[test]
    fn a_client_passes_its_burst_and_then_one_per_interval() {
        let began = began();
        let budgets = ClientBudgets::new(rate(6), 64, began);
        for _ in 0..6 {
            assert_eq!(budgets.take(client(1), began), Ok(()));
        }
        let refusal = budgets.take(client(1), began).expect_err("an empty bucket");
        assert_eq!(refusal, RetryAfter(Duration::from_secs(10)));
        assert_eq!(refusal.seconds(), 10);
        assert_eq!(budgets.take(client(2), began), Ok(()));
        let later = began + refusal.0;
        assert_eq!(budgets.take(client(1), later), Ok(()));
        assert!(budgets.take(client(1), later).is_err());
    }

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        let began = began();
        let budgets = ClientBudgets::new(rate(2), 64, began);
        for _ in 0..10 {
            assert_eq!(budgets.take(client(1), began), Ok(()));
            budgets.give_back(client(1));
        }
        budgets.give_back(client(2));
        let taken = (0..5).filter(|_| budgets.take(client(1), began).is_ok());
        assert_eq!(taken.count(), 2);
    }

    #[test]
    fn a_refusal_takes_nothing() {
        let began = began();
        let budget = Budget::new(rate(1), began);
        assert_eq!(budget.take(0, began), Ok(()));
        for _ in 0..100 {
            assert!(budget.take(0, began + MINUTE / 2).is_err());
        }
        assert_eq!(budget.take(0, began + MINUTE), Ok(()));
    }

    #[test]
    fn what_is_kept_is_there_for_those_who_may_have_it() {
        let began = began();
        let budget = Budget::new(rate(10), began);
        let taken = (0..20).filter(|_| budget.take(4, began).is_ok()).count();
        assert_eq!(taken, 6);
        assert_eq!((0..20).filter(|_| budget.take(0, began).is_ok()).count(), 4);
        assert_eq!(budget.take(0, began), Err(RetryAfter(MINUTE / 10)));
        assert_eq!(budget.take(4, began), Err(RetryAfter(MINUTE / 10 * 5)));
    }

    #[test]
    fn without_tokens_nothing_passes() {
        let began = began();
        assert_eq!(
            Budget::new(rate(0), began).take(0, began + MINUTE),
            Err(RetryAfter(MINUTE))
        );
        assert!(
            ClientBudgets::new(rate(0), 8, began)
                .take(client(1), began)
                .is_err()
        );
    }

    #[test]
    fn who_scans_stays_throttled_while_many_others_come_and_go() {
        let began = began();
        let budgets = ClientBudgets::new(rate(10), 64, began);
        while budgets.take(client(0), began).is_ok() {}
        for other in 1..100_000 {
            assert_eq!(budgets.take(client(other), began), Ok(()), "the first of {other}");
            assert!(budgets.take(client(0), began).is_err(), "after {other}");
        }
    }

    #[test]
    fn addresses_of_one_network_are_one_client() {
        let of = |text: &str| Payer::of(None, text.parse().expect("an address"));
        assert_eq!(of("2001:db8:0:1::1"), of("2001:db8:0:1:ffff::2"));
        assert_ne!(of("2001:db8:0:1::1"), of("2001:db8:0:2::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }

    #[test]
    fn a_principal_pays_for_itself_and_the_public_one_for_its_address() {
        let address = IpAddr::from([192, 0, 2, 1]);
        let someone = Payer::of(Some(Principal([1; 16])), address);
        assert_eq!(
            someone,
            Payer::of(Some(Principal([1; 16])), [192, 0, 2, 2].into())
        );
        assert_ne!(someone, Payer::of(None, address));
        assert_eq!(
            Payer::of(Some(Principal::PUBLIC), address),
            Payer::of(None, address)
        );
    }

    #[test]
    fn seconds_to_wait_are_rounded_up() {
        assert_eq!(RetryAfter(Duration::from_millis(1)).seconds(), 1);
        assert_eq!(RetryAfter(Duration::from_millis(1001)).seconds(), 2);
    }

    /// The bound over every window whose ends are passes; others pass fewer.
    fn keeps_to_the_rate(passed: &[Duration], rate: Rate) -> bool {
        let fits = |count: usize, window: Duration| {
            count as f64
                <= f64::from(rate.tokens) * (1.0 + window.as_secs_f64() / rate.period.as_secs_f64()) + 1e-6
        };
        (0..passed.len()).all(|from| {
            (from..passed.len()).all(|to| fits(to - from + 1, passed[to].saturating_sub(passed[from])))
        })
    }

    proptest! {
        #[test]
        fn over_any_window_no_more_pass_than_burst_and_rate_allow(
            tokens in 0_u32..20,
            period in 1_u64..5_000,
            steps in proptest::collection::vec((0_u64..800, 0_u32..4), 1..200),
        ) {
            let rate = Rate { tokens, period: Duration::from_millis(period) };
            let began = began();
            // One group, and no more clients than it has places.
            let budgets = ClientBudgets::new(rate, PLACES, began);
            let shared = Budget::new(rate, began);
            let mut passed = vec![Vec::new(); 5];
            let mut time = Duration::ZERO;
            for (wait, number) in steps {
                time += Duration::from_millis(wait);
                let now = began + time;
                let own = budgets.take(client(number), now);
                let all = shared.take(0, now);
                for (result, place) in [(own, number as usize), (all, 4)] {
                    match result {
                        Ok(()) => passed[place].push(time),
                        Err(RetryAfter(wait)) => prop_assert!(wait > Duration::ZERO && wait <= rate.period.max(MINUTE)),
                    }
                }
            }
            for passed in passed {
                prop_assert!(keeps_to_the_rate(&passed, rate), "{passed:?}");
            }
        }

        #[test]
        fn who_was_not_seen_is_never_refused_on_its_first(
            tokens in 1_u32..5,
            clients in 0_usize..40,
            asked in proptest::collection::vec(0_u32..60, 0..400),
        ) {
            let began = began();
            let budgets = ClientBudgets::new(rate(tokens), clients, began);
            let mut seen = std::collections::HashSet::new();
            for number in asked {
                let result = budgets.take(client(number), began);
                prop_assert!(result.is_ok() || !seen.insert(number));
                seen.insert(number);
            }
        }

        #[test]
        fn after_the_time_that_a_refusal_names_one_passes(tokens in 1_u32..50, period in 1_u64..100_000) {
            let began = began();
            let budget = Budget::new(Rate { tokens, period: Duration::from_micros(period) }, began);
            let refused = (0..=tokens).find_map(|_| budget.take(0, began).err());
            let wait = refused.expect("more than the burst").0;
            prop_assert_eq!(budget.take(0, began + wait), Ok(()));
            prop_assert!(wait <= Duration::from_micros(period) + Duration::from_nanos(1));
        }
    }
}
