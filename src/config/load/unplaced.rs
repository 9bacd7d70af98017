//! Zones and labels that lead nowhere: hard rules that no replica keeps, and a zone in which there is none.
//!
//! `check` prints them and `serve` logs them; the proxy starts all the same, since replicas may get their labels later.

use super::error::Finding;
use super::tree::Path;
use crate::config::affinity::Labels;
use crate::config::{Config, UpstreamConfig};

/// Zone and labels of all replicas that `upstream` may have.
fn places(upstream: &UpstreamConfig) -> impl Iterator<Item = (Option<&str>, &Labels)> + Clone {
    let written = upstream.replicas.iter().chain(&upstream.standby);
    let found = upstream.discovery.iter();
    written
        .map(|replica| (replica.zone.as_deref(), &replica.labels))
        .chain(found.map(|discovery| (discovery.zone.as_deref(), &discovery.labels)))
}

impl Config {
    /// Rules of place that nothing keeps.
    pub fn unplaced(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        for (name, upstream) in &self.upstreams {
            let at = Path::default().join("upstreams").join(name.as_str());
            let mut places = places(upstream);
            for (class, rules) in &upstream.affinity {
                if !places.clone().any(|(_, labels)| rules.allows(labels)) {
                    found.push(Finding::new(
                        at.join("affinity").join(class.as_str()).join("require"),
                        format!(
                            "no replica matches {}: `{class}` requests are answered with 503",
                            rules.requirement()
                        ),
                    ));
                }
            }
            if self.zone.is_none() && places.any(|(zone, _)| zone.is_some()) {
                found.push(Finding::new(
                    at,
                    "the zones of its replicas are without effect: `zone`, the proxy's own, is not set",
                ));
            }
        }
        let mut all = self.upstreams.values().flat_map(places);
        if self.zone.is_some() && !all.any(|(zone, _)| zone == self.zone.as_deref()) {
            found.push(Finding::new(
                Path::default().join("zone"),
                "without effect: no replica is in this zone",
            ));
        }
        found
    }
}
