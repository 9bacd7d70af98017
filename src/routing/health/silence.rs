//! Since when a replica has given no sign of life. Pure.
//!
//! That it is gone is known only once it has failed several times, and a frozen one lets everybody wait for that. How long
//! it has been gone is then counted from the first request or probe that it left without an answer, also if that
//! request still waits for one.

use tokio::time::Instant;

/// See the module.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::routing) struct Silence {
    /// Its last sign of life.
    last: Option<Instant>,
    /// When what has waited for long was begun, the first of it.
    waits: Option<Instant>,
    since: Option<Instant>,
}

impl Silence {
    /// It has answered.
    pub(in crate::routing) fn answered(&mut self, now: Instant) {
        (self.last, self.waits, self.since) = (self.last.max(Some(now)), None, None);
    }

    /// What was begun at `began` has waited for long. That alone says nothing: some answers take long.
    pub(in crate::routing) fn waits(&mut self, began: Instant) {
        if self.last.is_none_or(|last| last < began) {
            self.waits = Some(self.waits.map_or(began, |first| first.min(began)));
        }
    }

    /// What was begun at `began` has failed.
    pub(in crate::routing) fn failed(&mut self, began: Instant) {
        let began = self.waits.map_or(began, |first| first.min(began));
        let since = self.last.map_or(began, |last| last.max(began));
        self.since.get_or_insert(since);
    }

    /// When what has failed since its last sign of life was begun; nothing if nothing has.
    pub(in crate::routing) fn since(&self) -> Option<Instant> {
        self.since
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::types::time::Clock;

    #[test]
    fn silence_begins_with_the_first_failure_that_was_begun_after_the_last_answer() {
        let start = Clock::System.now().monotonic;
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut silence = Silence::default();
        assert_eq!(silence.since(), None);
        silence.failed(at(1));
        silence.failed(at(3));
        assert_eq!(silence.since(), Some(at(1)));
        silence.answered(at(5));
        assert_eq!(silence.since(), None);
        // It was alive meanwhile.
        silence.failed(at(2));
        assert_eq!(silence.since(), Some(at(5)));
        silence.answered(at(4));
        silence.failed(at(7));
        assert_eq!(silence.since(), Some(at(7)));
    }

    #[test]
    fn what_still_waits_counts_once_something_has_failed() {
        let start = Clock::System.now().monotonic;
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut silence = Silence::default();
        silence.answered(at(1));
        silence.waits(at(3));
        silence.waits(at(2));
        // It was answered after this had begun, so this may be a long answer.
        silence.waits(at(0));
        assert_eq!(silence.since(), None);
        silence.failed(at(4));
        assert_eq!(silence.since(), Some(at(2)));
        silence.waits(at(5));
        silence.answered(at(6));
        silence.failed(at(7));
        assert_eq!(silence.since(), Some(at(7)));
    }
}
