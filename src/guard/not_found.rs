//! Things that Dify has lately said not to have, exactly: whoever asks for one again gets the same answer.

use std::time::Duration;

use moka::sync::Cache;
use tokio::time::Instant;

use crate::types::ids::Principal;
use crate::types::request::Asked;

/// The most that are remembered.
const MOST: u64 = 100_000;

type Key = (Asked, Option<Principal>, &'static str);

/// What was asked for, by whom, and on which route.
#[derive(Debug)]
pub(super) struct NotFound {
    ttl: Duration,
    asked: Cache<Key, Instant, ahash::RandomState>,
}

impl NotFound {
    pub(super) fn new(ttl: Duration) -> Self {
        let asked = Cache::builder().max_capacity(MOST);
        Self {
            ttl,
            asked: asked.build_with_hasher(ahash::RandomState::new()),
        }
    }

    pub(super) fn remember(
        &self,
        asked: Asked,
        whose: Option<Principal>,
        template: &'static str,
        now: Instant,
    ) {
        if !self.ttl.is_zero() {
            self.asked.insert((asked, whose, template), now + self.ttl);
        }
    }

    pub(super) fn has(
        &self,
        asked: Asked,
        whose: Option<Principal>,
        template: &'static str,
        now: Instant,
    ) -> bool {
        let until = self.asked.get(&(asked, whose, template));
        until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::types::known::{IdKind, KnownId};
    use crate::types::time::Clock;

    #[test]
    fn it_is_remembered_for_who_asked_where_and_for_a_while() {
        let (clock, _) = Clock::manual(SystemTime::UNIX_EPOCH);
        let now = clock.now().monotonic;
        let memory = NotFound::new(Duration::from_secs(5));
        let asked = Asked {
            kind: IdKind::Dataset,
            id: KnownId([1; 16]),
        };
        let me = Some(Principal([1; 16]));
        memory.remember(asked, me, "/v1/x", now);
        assert!(memory.has(asked, me, "/v1/x", now + Duration::from_secs(4)));
        assert!(!memory.has(asked, me, "/v1/x", now + Duration::from_secs(5)));
        assert!(!memory.has(asked, None, "/v1/x", now));
        assert!(!memory.has(asked, me, "/v1/y", now));
    }
}
