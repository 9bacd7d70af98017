//! Bounds of the sections `failover` and `failback`. Part of `check`, whose small tools it uses.

use super::super::error::Finding;
use super::{Check, key};
use crate::config::Config;
use crate::config::cache::CacheType;
use crate::types::units::Span;

/// Upstreams of two clusters about which this instance can agree with no other.
pub(in crate::config::load) fn decides_alone(config: &Config) -> Vec<Finding> {
    if config.cache.r#type == CacheType::Redis {
        return Vec::new();
    }
    let upstreams = config.upstreams.iter();
    let with_standby = upstreams.filter(|(_, upstream)| !upstream.standby.is_empty());
    let found = with_standby.map(|(name, _)| {
        Finding::new(
            key("upstreams").join(name.as_str()).join("standby"),
            "this instance decides alone which cluster has the writes; where there are several, they agree about that \
             through Redis only (cache.type: redis)",
        )
    });
    found.collect()
}

impl Check {
    pub(super) fn failover(&mut self, config: &Config) {
        let (at, failover) = (key("failover"), &config.failover);
        if !(0.01..=1.0).contains(&failover.min_healthy.0) {
            self.say(
                at.join("min_healthy"),
                format!("must be from 1% to 100%, and is {}", failover.min_healthy),
            );
        }
        let (none, hour) = (Span::secs(0), Span::secs(3600));
        self.span_from(&at.join("after"), failover.after, none, hour);
        self.span_from(
            &at.join("lease_ttl"),
            failover.lease_ttl,
            Span::secs(1),
            Span::secs(60),
        );
        let back = key("failback").join("after");
        self.span_from(&back, config.failback.after, none, Span::secs(86_400));
    }
}
