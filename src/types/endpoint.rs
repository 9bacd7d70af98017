//! A replica as routing and upstream both know it: where it is, and the right to use it.
//!
//! Routing resolves names and counts slots; upstream connects. Neither sees the other, so what they share
//! lives here.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::request::UpstreamId;

/// Where one replica is reached.
#[derive(Debug)]
pub struct Endpoint {
    /// Its upstream.
    pub upstream: UpstreamId,
    /// Its place among the replicas of the upstream; standby replicas come after the others.
    pub replica: usize,
    /// Whether it speaks TLS.
    pub tls: bool,
    /// Host name or IP address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    addresses: ArcSwap<Vec<SocketAddr>>,
}

impl Endpoint {
    /// Reads `http://host:port` or `https://host:port`. An IP address is resolved with that.
    ///
    /// # Errors
    /// A sentence for the operator when `url` is anything else.
    pub fn parse(upstream: UpstreamId, replica: usize, url: &str) -> Result<Self, String> {
        let wrong = |why: &str| Err(format!("`{url}` {why}; write it like http://host:5001"));
        let Ok(uri) = url.parse::<http::Uri>() else {
            return wrong("is not a URL");
        };
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return wrong("has neither http:// nor https://"),
        };
        let Some(authority) = uri.authority() else {
            return wrong("names no host");
        };
        if authority.as_str().contains('@') {
            // Not repeated in the message: it may hold a password.
            return Err("a replica's URL must not have a user or password".into());
        }
        if uri.path() != "/" || uri.query().is_some() {
            return wrong("has a path");
        }
        let host = authority.host();
        let port = match (authority.port_u16(), authority.as_str().len() == host.len()) {
            (Some(port), _) if port != 0 => port,
            (None, true) => {
                if tls {
                    443
                } else {
                    80
                }
            }
            _ => return wrong("has no valid port"),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return wrong("names no host");
        }
        let addresses = host.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, port));
        Ok(Self {
            upstream,
            replica,
            tls,
            host,
            port,
            addresses: ArcSwap::from_pointee(addresses.into_iter().collect()),
        })
    }

    /// Whether the host is an IP address, which needs no look-up.
    pub fn is_literal(&self) -> bool {
        self.host.parse::<IpAddr>().is_ok()
    }

    /// `host:port`, IPv6 in brackets: the replica's name in metrics and its `Host` in probes.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// The addresses of the last look-up that succeeded; empty before the first.
    pub fn addresses(&self) -> Arc<Vec<SocketAddr>> {
        self.addresses.load_full()
    }

    /// Replaces the addresses. True when the set became another (its order does not count).
    pub fn set_addresses(&self, new: Vec<SocketAddr>) -> bool {
        let old = self.addresses.load();
        let same = old.len() == new.len() && new.iter().all(|address| old.contains(address));
        if !same {
            self.addresses.store(Arc::new(new));
        }
        !same
    }
}

/// The two parts of `host:port`; `None` when there is no port from 1 to 65535, or no host.
pub fn split_port(name: &str) -> Option<(&str, u16)> {
    let (host, port) = name.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port != 0)?;
    (!host.is_empty()).then_some((host, port))
}

/// The right to have one request in flight at a replica. Dropping it gives the right to the next in line.
pub struct Slot(Box<dyn Send + Sync>);

impl Slot {
    /// A slot that is given back when `guard` is dropped.
    pub fn new(guard: impl Send + Sync + 'static) -> Self {
        Self(Box::new(guard))
    }
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let _ = &self.0;
        f.write_str("Slot")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn replica_urls_are_read_and_wrong_ones_are_refused() {
        let read = |url: &str| Endpoint::parse(UpstreamId(0), 0, url);
        let plain = read("http://api:5001").unwrap();
        assert_eq!((plain.tls, plain.authority().as_str()), (false, "api:5001"));
        assert!(plain.addresses().is_empty());
        assert_eq!(read("https://api/").unwrap().port, 443);
        let six = read("http://[::1]:80").unwrap();
        assert_eq!((six.authority().as_str(), six.is_literal()), ("[::1]:80", true));
        assert_eq!(six.addresses().as_slice(), ["[::1]:80".parse().unwrap()]);
        for wrong in [
            "api:5001",
            "ftp://api",
            "http://",
            "http://api/v1",
            "http://api?x",
            "http://a:0",
            "http://a:99999",
            "http://:80",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        let refused = read("http://me:secret@api").unwrap_err();
        assert!(!refused.contains("secret"));
    }

    #[test]
    fn another_order_of_the_same_addresses_is_no_change() {
        let endpoint = Endpoint::parse(UpstreamId(0), 0, "http://api").unwrap();
        let [a, b] = ["10.0.0.1:80", "10.0.0.2:80"].map(|a| a.parse::<SocketAddr>().unwrap());
        assert!(endpoint.set_addresses(vec![a, b]));
        assert!(!endpoint.set_addresses(vec![b, a]));
        assert!(endpoint.set_addresses(vec![b]));
    }

    proptest! {
        #[test]
        fn no_url_makes_the_parser_panic(url in ".*", host in "[a-z0-9.:\\[\\]@-]*") {
            let _ = Endpoint::parse(UpstreamId(0), 0, &url);
            let _ = Endpoint::parse(UpstreamId(0), 0, &format!("http://{host}"));
        }
    }
}
