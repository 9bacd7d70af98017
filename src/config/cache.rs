//! `cache`: what is kept, for how long and how much of it.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::types::request::CacheClass;
use crate::types::units::{Ratio, Size, Span};

/// The response cache.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheConfig {
    /// `memory`, or `redis`: in Redis too, which all instances share.
    pub r#type: CacheType,
    /// Ceiling for every stored answer, in seconds. Default 3600.
    pub ttl_seconds: u64,
    /// Whether anything is kept in this process. Default true; `false` with `type: redis` means Redis alone.
    pub enable_local: bool,
    /// The in-process tier.
    pub local: LocalConfig,
    /// The Redis tier, used with `type: redis`.
    pub redis: RedisConfig,
    /// Lifetimes by class.
    pub classes: CacheClasses,
    /// How long a write may still take effect that was never answered, or whose work goes on in the background:
    /// what it may change is not kept meanwhile. Default 30s.
    pub unsettled_window: Span,
    /// How long a signed file URL of Dify lives (its `FILES_ACCESS_TIMEOUT`). An answer that carries one is
    /// kept for at most a fifth of what is left of it. Default 300s.
    pub signed_url_life: Span,
    /// Fetching hot answers anew before they become stale. Default: not done.
    pub refresh_ahead: Option<RefreshAheadConfig>,
    /// Accepted, not active in this version: LLM answers.
    pub answers: Option<serde_json::Value>,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            r#type: CacheType::Memory,
            ttl_seconds: 3600,
            enable_local: true,
            local: LocalConfig::default(),
            redis: RedisConfig::default(),
            classes: CacheClasses::default(),
            unsettled_window: Span::secs(30),
            signed_url_life: Span::secs(300),
            refresh_ahead: None,
            answers: None,
        }
    }
}

impl CacheConfig {
    /// Whether anything is kept anywhere.
    pub fn keeps(&self) -> bool {
        self.enable_local || self.r#type == CacheType::Redis
    }

    /// Whether one instance fetches an answer of `class` while the others wait for it: as its `shared_flight`
    /// says, else where waiting is worth it.
    pub fn shares_flight(&self, class: CacheClass) -> bool {
        let classes = &self.classes;
        let ceiling = Span::secs(self.ttl_seconds);
        let (class, default) = match class {
            CacheClass::Never => return false,
            CacheClass::Metadata => (
                &classes.metadata,
                classes.metadata.ttl.min(ceiling) >= Span::secs(30),
            ),
            CacheClass::Listing => (&classes.listing, false),
            CacheClass::Run => (&classes.run, false),
            CacheClass::Origin => (&classes.origin, true),
        };
        class.shared_flight.unwrap_or(default)
    }
}

/// Where answers are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheType {
    /// In this process.
    Memory,
    /// In this process and in Redis.
    Redis,
}

/// The in-process tier.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LocalConfig {
    /// Bytes of bodies, fields and overhead. Default: a quarter of the memory of the cgroup or the machine,
    /// at most 512MiB.
    pub max_bytes: Option<Size>,
    /// The longest body that is kept. Default 4MiB.
    pub max_entry_bytes: Option<Size>,
}

impl LocalConfig {
    /// The longest body that is kept, in bytes.
    pub fn entry_limit(&self) -> u64 {
        self.max_entry_bytes.unwrap_or(Size::mib(4)).0
    }
}

/// The Redis tier: what one instance fetched serves the others, and what one ends ends everywhere. `Debug` shows
/// neither the URL nor the secret; serialized they are whole (`Config::redacted` hides them).
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RedisConfig {
    /// `redis://[user:password@]host:port[/db]`, `rediss://` for TLS, `redis-cluster://` and `redis-sentinel://`
    /// with more nodes as `?node=host:port`. Needed with `type: redis`.
    pub url: Option<String>,
    /// The longest that any command is waited for. Default 50ms.
    pub timeout: Span,
    /// What every key begins with. Default `dify-edge:`.
    pub prefix: String,
    /// With it every value carries a keyed digest, and a value that somebody else wrote is not served. The same
    /// for all instances; at least 16 characters.
    pub secret: Option<String>,
    /// A file that holds the secret, in place of `secret`; read at start, white space around it is dropped.
    pub secret_file: Option<PathBuf>,
    /// A PEM file with the authorities to trust for TLS, in place of the system's.
    pub ca: Option<PathBuf>,
    /// The longest body that is put there. Default 1MiB.
    pub max_entry_bytes: Size,
    /// How old an answer may be that is served from memory while other instances cannot be heard. Default 5s.
    pub coherence_window: Span,
    /// How long one instance may fetch for all; then the others go on their own. Default 2s.
    pub lease: Span,
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self {
            url: None,
            timeout: Span::millis(50),
            prefix: "dify-edge:".to_owned(),
            secret: None,
            secret_file: None,
            ca: None,
            max_entry_bytes: Size::mib(1),
            coherence_window: Span::secs(5),
            lease: Span::secs(2),
        }
    }
}

impl RedisConfig {
    /// Shorter secrets can be guessed.
    const SECRET_LEAST: usize = 16;
    /// Longer ones are the wrong file.
    const SECRET_MOST: usize = 1024;

    /// `secret`, or what is in `secret_file` without the white space around it; to be asked once, at start.
    ///
    /// # Errors
    /// When the file cannot be read or holds no usable secret: a sentence that names key and file.
    pub fn secret(&self) -> Result<Option<String>, String> {
        let (None, Some(file)) = (&self.secret, &self.secret_file) else {
            return Ok(self.secret.clone());
        };
        let wrong = |why: String| format!("cache.redis.secret_file: {}: {why}", file.display());
        let secret = read_secret(file).map_err(|error| wrong(format!("cannot be read: {error}")))?;
        match Self::secret_problem(&secret) {
            Some(problem) => Err(wrong(problem)),
            None => Ok(Some(secret)),
        }
    }

    /// Why `secret` cannot be used, if so. Refusing short ones also keeps the `***` that `check --print` shows in
    /// its place from becoming a secret.
    pub(super) fn secret_problem(secret: &str) -> Option<String> {
        let (least, most) = (Self::SECRET_LEAST, Self::SECRET_MOST);
        let length = secret.chars().count();
        (!(least..=most).contains(&length))
            .then(|| format!("a secret has from {least} to {most} characters, and this one has {length}"))
    }
}

fn read_secret(file: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    // A character has up to four bytes; white space around the secret has room, too.
    let most = RedisConfig::SECRET_MOST as u64 * 5;
    std::fs::File::open(file)?.take(most).read_to_string(&mut text)?;
    Ok(text.trim().to_owned())
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Taken apart, so that a new key cannot be forgotten here.
        let Self {
            url,
            timeout,
            prefix,
            secret,
            secret_file,
            ca,
            max_entry_bytes,
            coherence_window,
            lease,
        } = self;
        f.debug_struct("RedisConfig")
            .field("url", &url.as_ref().map(|_| "***"))
            .field("timeout", timeout)
            .field("prefix", prefix)
            .field("secret", &secret.as_ref().map(|_| "***"))
            .field("secret_file", secret_file)
            .field("ca", ca)
            .field("max_entry_bytes", max_entry_bytes)
            .field("coherence_window", coherence_window)
            .field("lease", lease)
            .finish()
    }
}

/// Fetching hot answers anew before they become stale, in the background.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RefreshAheadConfig {
    /// In which last part of an answer's lifetime a request for it begins the fetch. Default 20%.
    pub last: Ratio,
    /// How often it must have answered by then. Default 10.
    pub min_hits: u32,
}

impl Default for RefreshAheadConfig {
    fn default() -> Self {
        Self {
            last: Ratio(0.2),
            min_hits: 10,
        }
    }
}

/// Lifetimes by class; each is cut to `ttl_seconds`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheClasses {
    /// `info`, `parameters`, `meta`, `site`, system features. Default 60s.
    pub metadata: ClassConfig,
    /// Lists of conversations, messages, data sets, documents. Default 5s.
    pub listing: ClassConfig,
    /// Workflow runs that have ended. Default 1h.
    pub run: ClassConfig,
    /// Answers that the origin itself gave a lifetime (files, icons, static assets): the most that is
    /// believed. Default 1h.
    pub origin: ClassConfig,
    /// 404 on a cached route. Default 5s.
    pub not_found: ClassConfig,
}

impl Default for CacheClasses {
    fn default() -> Self {
        let class = |seconds| ClassConfig {
            ttl: Span::secs(seconds),
            ..ClassConfig::default()
        };
        Self {
            metadata: ClassConfig {
                stale_while_revalidate: Span::secs(60),
                stale_if_error: Span::secs(3600),
                ..class(60)
            },
            listing: class(5),
            run: class(3600),
            origin: class(3600),
            not_found: class(5),
        }
    }
}

impl CacheClasses {
    /// Every class under the name that it has in the file.
    pub fn named(&self) -> [(&'static str, &ClassConfig); 5] {
        // Taken apart, so that a new class cannot be forgotten here.
        let Self {
            metadata,
            listing,
            run,
            origin,
            not_found,
        } = self;
        [
            ("metadata", metadata),
            ("listing", listing),
            ("run", run),
            ("origin", origin),
            ("not_found", not_found),
        ]
    }
}

/// One class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClassConfig {
    /// How long an answer is fresh. 0s: this class is not kept.
    pub ttl: Span,
    /// How long after that it may still be given while one new one is fetched in the background (RFC 5861).
    /// A number in the answer's own Cache-Control counts before this one; none is given after `ttl_seconds`.
    /// Default 0s; of `metadata` 60s.
    pub stale_while_revalidate: Span,
    /// How long after that it may be given when no new one can be had: 500, 502, 503, 504, no connection, no
    /// answer in time. Default 0s; of `metadata` 1h.
    pub stale_if_error: Span,
    /// `refuse`: an answer with Set-Cookie is not kept. `strip`: it is kept without its cookies, for a Dify
    /// that repeats the API key in a cookie on every answer. Default `refuse`.
    pub set_cookie: SetCookie,
    /// Whether one instance fetches while the others wait for it, at most for `redis.lease`. Default: of
    /// `metadata` with a `ttl` of at least 30s, and of `origin`.
    pub shared_flight: Option<bool>,
}

impl Default for ClassConfig {
    fn default() -> Self {
        Self {
            ttl: Span::secs(0),
            stale_while_revalidate: Span::secs(0),
            stale_if_error: Span::secs(0),
            set_cookie: SetCookie::Refuse,
            shared_flight: None,
        }
    }
}

/// What to do with an answer that sets a cookie.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SetCookie {
    /// It is not kept.
    #[default]
    Refuse,
    /// It is kept without the cookie.
    Strip,
}
