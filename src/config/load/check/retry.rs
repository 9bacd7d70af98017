//! Bounds of `upstreams.NAME.retry` and `upstreams.NAME.hedge`. Part of `check`, whose small tools it uses.

use super::{Check, Path};
use crate::config::retry::{HedgeConfig, RetryConfig};
use crate::types::units::Span;

impl Check {
    pub(super) fn retry(&mut self, at: &Path, retry: &RetryConfig) {
        self.number(&at.join("attempts"), retry.attempts as usize, 1, 10);
        self.span_from(
            &at.join("backoff"),
            retry.backoff,
            Span::millis(0),
            Span::secs(10),
        );
    }

    pub(super) fn hedge(&mut self, at: &Path, hedge: &HedgeConfig) {
        if !(0.001..=0.5).contains(&hedge.budget.0) {
            self.say(
                at.join("budget"),
                format!("must be from 0.1% to 50%, and is {}", hedge.budget),
            );
        }
        self.number(&at.join("percentile"), hedge.percentile as usize, 50, 99);
    }
}
