//! Bounds of the section `cache`, and what its Redis needs.
//!
//! Part of `check`, whose small tools it uses; what a URL of Redis may be is decided in [`redis_url`].

use super::{Check, LONGEST, key, redis_url};
use crate::config::cache::{CacheType, RedisConfig};
use crate::config::load::{ENVIRONMENT_PREFIX, Path};
use crate::config::{CacheConfig, Config};
use crate::types::units::{Size, Span};

impl Check {
    pub(super) fn cache(&mut self, config: &Config) {
        let (at, cache) = (key("cache"), &config.cache);
        let year = LONGEST.as_secs() as usize;
        self.number(
            &at.join("ttl_seconds"),
            usize::try_from(cache.ttl_seconds).unwrap_or(usize::MAX),
            1,
            year,
        );
        self.span(&at.join("signed_url_life"), cache.signed_url_life, false);
        self.span_from(
            &at.join("unsettled_window"),
            cache.unsettled_window,
            Span::secs(0),
            Span::secs(3600),
        );
        for (name, class) in cache.classes.named() {
            let at = at.join("classes").join(name);
            self.span(&at.join("ttl"), class.ttl, true);
            self.span(
                &at.join("stale_while_revalidate"),
                class.stale_while_revalidate,
                true,
            );
            self.span(&at.join("stale_if_error"), class.stale_if_error, true);
        }
        if let Some(ahead) = &cache.refresh_ahead {
            let at = at.join("refresh_ahead");
            if !(ahead.last.0 > 0.0 && ahead.last.0 < 1.0) {
                self.say(at.join("last"), "must be more than 0% and less than 100%");
            }
        }
        if let Some(most) = cache.local.max_bytes
            && most.0 < cache.local.entry_limit()
        {
            self.say(
                at.join("local").join("max_bytes"),
                format!(
                    "{most} is less than one entry may have (max_entry_bytes: {} bytes)",
                    cache.local.entry_limit()
                ),
            );
        }
        if cache.local.max_entry_bytes.is_some_and(|most| most.0 > 1 << 30) {
            self.say(at.join("local").join("max_entry_bytes"), "must be at most 1GiB");
        }
        self.redis(&at.join("redis"), cache);
    }

    fn redis(&mut self, at: &Path, cache: &CacheConfig) {
        let redis = &cache.redis;
        let mut tls = None;
        match &redis.url {
            Some(url) => match redis_url::check(url) {
                Ok(uses_tls) => tls = Some(uses_tls),
                Err(why) => self.say(at.join("url"), why),
            },
            None if cache.r#type == CacheType::Redis => self.say(
                at.join("url"),
                format!(
                    "needed with `cache.type: redis`, such as redis://127.0.0.1:6379/0; in the environment it is \
                     {ENVIRONMENT_PREFIX}CACHE__REDIS__URL"
                ),
            ),
            None => {}
        }
        if redis.ca.is_some() && tls == Some(false) {
            self.say(
                at.join("ca"),
                "needs TLS: a `redis.url` that begins with rediss://, rediss-cluster:// or rediss-sentinel://",
            );
        }
        let visible = |c: char| c.is_ascii_graphic() && !"{}*".contains(c);
        if !(1..=64).contains(&redis.prefix.len()) || !redis.prefix.chars().all(visible) {
            self.say(
                at.join("prefix"),
                "must be 1 to 64 ASCII letters, digits and signs other than `{`, `}` and `*`, without blanks",
            );
        }
        if let Some(problem) = redis.secret.as_deref().and_then(RedisConfig::secret_problem) {
            self.say(at.join("secret"), problem);
        }
        if redis.secret.is_some() && redis.secret_file.is_some() {
            self.say(
                at.join("secret_file"),
                "only one of `secret` and `secret_file` can be set",
            );
        }
        let (least, most) = (Size::kib(1), Size::mib(64));
        if !(least..=most).contains(&redis.max_entry_bytes) {
            self.say(
                at.join("max_entry_bytes"),
                format!("must be from {least} to {most}, and is {}", redis.max_entry_bytes),
            );
        }
        for (name, span, least, most) in [
            ("timeout", redis.timeout, Span::millis(1), Span::secs(10)),
            (
                "coherence_window",
                redis.coherence_window,
                Span::secs(1),
                Span::secs(3600),
            ),
            ("lease", redis.lease, Span::millis(100), Span::secs(60)),
        ] {
            self.span_from(&at.join(name), span, least, most);
        }
    }
}
