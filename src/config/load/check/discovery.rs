//! `upstreams.NAME.discovery`: one name, and one that can be asked for.

use super::{Check, Path};
use crate::config::upstreams::DiscoveryConfig;
use crate::types::endpoint::split_port;

impl Check {
    pub(super) fn discovery(&mut self, at: &Path, discovery: &DiscoveryConfig) {
        match (&discovery.dns, &discovery.srv) {
            (None, None) => self.say(
                at.clone(),
                "a name is needed: `dns: \"api-headless:5001\"`, or `srv` for SRV records",
            ),
            (Some(_), Some(_)) => self.say(at.join("srv"), "only one of `dns` and `srv` can be set"),
            (Some(name), None) => {
                if !split_port(name).is_some_and(|(host, _)| is_name(host)) {
                    self.say(
                        at.join("dns"),
                        format!("`{name}` is not a name with a port, such as `api-headless:5001`"),
                    );
                }
            }
            (None, Some(name)) => {
                if !is_name(name) {
                    self.say(
                        at.join("srv"),
                        format!("`{name}` is not a name, such as `_http._tcp.api.default.svc.cluster.local`"),
                    );
                }
            }
        }
        self.span(&at.join("refresh"), discovery.refresh, false);
    }
}

/// Labels of up to 63 letters, digits, hyphens and underscores (RFC 1035 section 2.3.1, and SRV), 253 in all.
fn is_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    name.len() <= 253 && name.split('.').all(label)
}
