//! `upstreams.NAME.scrape`: where the resources of a replica are measured, and how to read it.

use http::Uri;
use serde::{Deserialize, Serialize};

use super::expression::Expression;
use crate::types::units::Span;

/// What stands for the replica's host.
const HOST: &str = "{host}";

/// Metrics of a replica, or of the machine it runs on, in the text format of Prometheus.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScrapeConfig {
    /// `http://{host}:9100/metrics`: in it `{host}` and `{port}` are those of the replica's URL.
    pub url: String,
    /// Time from one scrape to the next; what was read counts for three times that. Default 5s.
    pub interval: Span,
    /// A scrape that takes longer has failed. Default 1s.
    pub timeout: Span,
    /// The share of the processors in use, 0 to 1.
    pub cpu: Option<Expression>,
    /// The round trip to the replica, in seconds. Default: that of the TCP connections to it.
    pub network: Option<Expression>,
}

impl Default for ScrapeConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            interval: Span::secs(5),
            timeout: Span::secs(1),
            cpu: None,
            network: None,
        }
    }
}

impl ScrapeConfig {
    /// Where a replica at `host`, an IP address or a name without brackets, and `port` is asked.
    ///
    /// # Errors
    /// A sentence for the operator when `url` is not one that can be asked.
    pub fn uri(&self, host: &str, port: u16) -> Result<Uri, &'static str> {
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            host.to_owned()
        };
        let url = self.url.replace(HOST, &host).replace("{port}", &port.to_string());
        let uri: Uri = url
            .parse()
            .map_err(|_| "not a URL like http://{host}:9100/metrics")?;
        if uri.scheme_str() != Some("http") {
            return Err("must begin with http://");
        }
        let authority = uri.authority().ok_or("a host is needed")?;
        if authority.as_str().contains('@') {
            return Err("user and password have no place here");
        }
        if authority.port().is_none() && authority.as_str() != authority.host() {
            return Err("the port is not a number from 1 to 65535");
        }
        Ok(uri)
    }

    /// Whether every replica is asked at its own address.
    pub fn is_at_replica(&self) -> bool {
        self.url.contains(HOST)
    }
}
