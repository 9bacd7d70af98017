//! What is known about a request once it is over: the closed labels of metrics and the access log.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::ids::Principal;

macro_rules! closed_labels {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        pub enum $name { $($(#[$vmeta])* #[serde(rename = $text)] $variant),+ }
        impl $name {
            /// Every value, in declaration order: `ALL[x as usize] == x`.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            /// The word used in metrics, logs and `Cache-Status`.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }
        // By hand, since what reads a text as a key can tell its place.
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = String::deserialize(from)?;
                let named = Self::ALL.iter().find(|value| value.as_str() == text);
                named.copied().ok_or_else(|| D::Error::unknown_variant(&text, &[$($text),+]))
            }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str(self.as_str()) }
        }
    };
}

closed_labels! {
    /// What a route is for; decides limits, time-outs and lanes.
    RouteClass {
        /// Small facts about an app that every page load asks for.
        Metadata = "metadata",
        /// Lists and details that change with use.
        Listing = "listing",
        /// An answer that a model or workflow makes.
        Generation = "generation",
        /// A file on its way in.
        Upload = "upload",
        /// A file on its way out.
        File = "file",
        /// Log-in, passports, tokens.
        Auth = "auth",
        /// Anything else that changes state.
        Write = "write",
        /// Polling for the progress of work.
        TaskStatus = "task_status",
        /// Probes and diagnostics.
        Health = "health",
        /// Everything that the table does not know, and other upstreams.
        Passthrough = "passthrough",
    }
}

closed_labels! {
    /// What the cache did (RFC 9211).
    CacheOutcome {
        /// Answered from memory.
        Hit = "hit",
        /// Answered from memory although stale (RFC 5861).
        Stale = "stale",
        /// Nothing stored; fetched and stored.
        Stored = "stored",
        /// Nothing stored; fetched, and the answer was not one to keep.
        Miss = "miss",
        /// Waited for another request's fetch of the same key.
        Collapsed = "collapsed",
        /// The route or the request asked for no cache.
        Bypass = "bypass",
        /// Ended before the cache was asked.
        None = "none",
    }
}

/// What is known about one request when its response head is ready.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// Route class.
    pub class: RouteClass,
    /// The route's template; `"*"` for what the table does not know. Safe for logs: no ids, no query.
    pub template: &'static str,
    /// What the cache did.
    pub cache: CacheOutcome,
    /// Who asked, as a digest.
    pub principal: Option<Principal>,
    /// Time the request waited for a slot, spent connecting and waited for the first byte.
    pub phases: Phases,
}

/// Where `classify` leaves what it knows for the record of a request that no answer will come to. An extension
/// of the request.
#[derive(Debug, Clone, Default)]
pub struct Known(Arc<OnceLock<Outcome>>);

impl Known {
    /// Leaves `outcome`; the first one counts.
    pub fn set(&self, outcome: Outcome) {
        // Nothing is lost: the answer has its own.
        let _ = self.0.set(outcome);
    }

    /// What was left.
    pub fn get(&self) -> Option<Outcome> {
        self.0.get().copied()
    }
}

/// How long each phase of an upstream exchange took; zero for a hit.
#[derive(Debug, Clone, Copy, Default)]
pub struct Phases {
    /// Waiting for a slot of a replica.
    pub queue: Duration,
    /// Making the connection; zero on a reused one.
    pub connect: Duration,
    /// From the request's last header byte to the response's head.
    pub first_byte: Duration,
}
