//! The guard, between `classify` and `cache`: requests for things that Dify does not have never reach it.
//!
//! `classify` names what a request asks for ([`Asked`](crate::types::request::Asked)); [`known`] has what exists, by
//! what the sources tell (`known_ids`), what Dify's answers show (`scan`) and single look-ups (`lookups`); `verdict`
//! decides, and `service` carries it out with Dify's own words (`refusal`). Nothing is refused of a kind of which not
//! all is known.

pub mod bloom;
pub mod budget;
mod build;
pub mod control;
pub mod known;
pub mod known_ids;
mod lookups;
mod metrics;
mod not_found;
pub mod preview;
pub mod refusal;
mod scan;
mod service;
#[cfg(test)]
mod tests;
mod verdict;

pub use build::Background;
pub use metrics::GuardMetrics;
pub use service::{Guard, GuardLayer};

/// What the fuzz targets reach.
#[cfg(fuzzing)]
pub mod fuzzing {
    /// Scans an answer, in one piece and in several.
    pub fn answer(bytes: &[u8]) {
        super::scan::read_anything(bytes);
    }
    /// Reads the URL of a database.
    pub fn database_url(bytes: &[u8]) {
        super::known_ids::postgres::read_anything(bytes);
    }
}
