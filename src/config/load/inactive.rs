//! Keys that are accepted, because they are promised, but have no effect in this version, or beside others.
//!
//! `check` prints them and `serve` logs them, so that nobody relies on what is not there.

use super::error::Finding;
use super::tree::Path;
use crate::config::Config;
use crate::config::cache::CacheType;
use crate::config::guard::GuardConfig;

impl Config {
    /// What is written but does nothing in this version.
    pub fn inactive(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        let mut say = |path: Path, instead: &str| {
            found.push(Finding::new(
                path,
                format!("accepted, but without effect in this version: {instead}"),
            ));
        };
        let root = Path::default();

        for (name, upstream) in &self.upstreams {
            let at = root.join("upstreams").join(name.as_str());
            for (list, replicas) in [("replicas", &upstream.replicas), ("standby", &upstream.standby)] {
                if replicas.iter().any(|r| r.zone.is_some() || !r.labels.is_empty()) {
                    say(at.join(list), "`zone` and `labels` do not change the balancing");
                }
            }
        }

        let cache = root.join("cache");
        if self.cache.classes.not_found.shared_flight.is_some() {
            say(
                cache.join("classes").join("not_found").join("shared_flight"),
                "whether an answer is a 404 is known only when it is fetched",
            );
        }
        if self.cache.answers.is_some() {
            say(cache.join("answers"), "generated answers are not cached");
        }
        if self.cache.r#type == CacheType::Memory && self.cache.redis.url.is_some() {
            found.push(Finding::new(
                cache.join("redis").join("url"),
                "without effect: `cache.type` is `memory`, and only `redis` uses it",
            ));
        }
        let unused = |guard: &&GuardConfig| guard.database_url.is_some() && guard.postgres().is_none();
        if self.guard.as_ref().filter(unused).is_some() {
            found.push(Finding::new(
                root.join("guard").join("database_url"),
                "without effect: there is no source of `type: postgres`",
            ));
        }
        found
    }
}
