//! Bounds of the section `circuit_breaker`. Part of `check`, whose small tools it uses.

use super::{Check, key};
use crate::config::Config;
use crate::types::units::Span;

impl Check {
    pub(super) fn breaker(&mut self, config: &Config) {
        let (at, breaker) = (key("circuit_breaker"), &config.circuit_breaker);
        if !(0.01..=1.0).contains(&breaker.failure_threshold.0) {
            self.say(
                at.join("failure_threshold"),
                format!("must be from 1% to 100%, and is {}", breaker.failure_threshold),
            );
        }
        for (name, number, most) in [
            ("request_volume", breaker.request_volume, 1_000_000),
            ("half_open_requests", breaker.half_open_requests, 1_000),
            ("close_after", breaker.close_after, 1_000),
        ] {
            self.number(&at.join(name), number as usize, 1, most);
        }
        let second = Span::secs(1);
        self.span_from(&at.join("window"), breaker.window, second, Span::secs(3600));
        self.span_from(
            &at.join("sleep_window"),
            breaker.sleep_window,
            second,
            Span::secs(300),
        );
    }
}
