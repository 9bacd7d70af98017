//! `protocol` of an upstream has to fit its URLs, and a probe over gRPC its protocol.

use super::{Check, Path};
use crate::config::{UpstreamConfig, UpstreamProtocol};

impl Check {
    pub(super) fn protocol(&mut self, at: &Path, upstream: &UpstreamConfig) {
        let protocol = upstream.protocol;
        let scheme = match protocol {
            UpstreamProtocol::Http1 => None,
            UpstreamProtocol::H2c => Some("http://"),
            UpstreamProtocol::H2 => Some("https://"),
        };
        if let Some(scheme) = scheme {
            let lists = [("replicas", &upstream.replicas), ("standby", &upstream.standby)];
            for (list, replicas) in lists {
                for (index, replica) in replicas.iter().enumerate() {
                    // What is no URL at all is said elsewhere.
                    if replica.url.contains("://") && !replica.url.starts_with(scheme) {
                        self.say(
                            at.join(list).join(index).join("url"),
                            format!(
                                "must begin with {scheme}, as `protocol` is `{}`",
                                protocol.as_str()
                            ),
                        );
                    }
                }
            }
            let tls = protocol == UpstreamProtocol::H2;
            if upstream.discovery.as_ref().is_some_and(|found| found.tls != tls) {
                self.say(
                    at.join("discovery").join("tls"),
                    format!("must be {tls}, as `protocol` is `{}`", protocol.as_str()),
                );
            }
        }
        if let Some(service) = &upstream.health_check.grpc {
            let at = at.join("health_check").join("grpc");
            if !protocol.is_multiplexed() {
                self.say(at.clone(), "needs `protocol: h2c` or `h2`");
            }
            if service.len() > 100 {
                self.say(at, "must be at most 100 bytes long");
            }
        }
    }
}
