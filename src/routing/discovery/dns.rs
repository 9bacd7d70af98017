//! Replicas from DNS: the addresses of a name (A, else AAAA), or the targets of its SRV records (RFC 2782).
//!
//! Asks the servers of `/etc/resolv.conf` with its search list, or the one of the configuration. Nothing is kept from
//! one reading to the next: when to read again is decided by who calls.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ProtocolConfig, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{RData, Record};

use super::Found;
use crate::config::upstreams::DiscoveryConfig;
use crate::types::endpoint::split_port;

/// One question is given up after this.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Reads what `config` names.
///
/// # Errors
/// What went wrong, for the log.
pub(in crate::routing) async fn read(config: DiscoveryConfig) -> Result<Found, String> {
    // Anew each time, so that a changed `/etc/resolv.conf` counts.
    let resolver = resolver(config.server)?;
    if let Some(name) = &config.srv {
        let found = resolver
            .srv_lookup(name.as_str())
            .await
            .map_err(|error| error.to_string())?;
        return Ok(from_services(found.answers(), config.tls));
    }
    let name = config.dns.as_deref().unwrap_or_default();
    let (host, port) = split_port(name).ok_or("it has no port")?;
    let found = resolver
        .lookup_ip(host)
        .await
        .map_err(|error| error.to_string())?;
    Ok(from_addresses(found.as_lookup().answers(), port, config.tls))
}

fn resolver(server: Option<SocketAddr>) -> Result<TokioResolver, String> {
    let mut builder = match server {
        Some(server) => {
            let connections = [ProtocolConfig::Udp, ProtocolConfig::Tcp].map(|protocol| {
                let mut connection = ConnectionConfig::new(protocol);
                connection.port = server.port();
                connection
            });
            let server = NameServerConfig::new(server.ip(), true, connections.into());
            let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
            let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
            *builder.options_mut() = ResolverOpts::default();
            builder
        }
        None => TokioResolver::builder_tokio().map_err(|error| error.to_string())?,
    };
    let options = builder.options_mut();
    options.cache_size = 0;
    options.timeout = TIMEOUT;
    // Not both: a pod that has an address of each kind is one replica.
    options.ip_strategy = LookupIpStrategy::Ipv4thenIpv6;
    builder.build().map_err(|error| error.to_string())
}

fn from_addresses(records: &[Record], port: u16, tls: bool) -> Found {
    found(records.iter().filter_map(|record| {
        let ip = record.data.ip_addr()?;
        Some((url(tls, &SocketAddr::new(ip, port)), false, record.ttl))
    }))
}

/// Targets of the lowest priority serve, the others stand by: they are to be used when none of the first can be reached.
/// Weights play no part, because health decides.
fn from_services(records: &[Record], tls: bool) -> Found {
    let services = records.iter().filter_map(|record| match &record.data {
        // A lone dot says that there is no such service.
        RData::SRV(service) if !service.target.is_root() => Some((service, record.ttl)),
        _ => None,
    });
    let first = services.clone().map(|(service, _)| service.priority).min();
    found(services.map(|(service, ttl)| {
        let target = service.target.to_ascii();
        let target = format!("{}:{}", target.trim_end_matches('.'), service.port);
        (url(tls, &target), Some(service.priority) != first, ttl)
    }))
}

fn found(records: impl Iterator<Item = (String, bool, u32)>) -> Found {
    let mut replicas = BTreeMap::new();
    let mut ttl = u32::MAX;
    for (url, standby, its_ttl) in records {
        ttl = ttl.min(its_ttl);
        // Named twice, it serves.
        replicas
            .entry(url)
            .and_modify(|it| *it &= standby)
            .or_insert(standby);
    }
    Found {
        replicas,
        ttl: Duration::from_secs(ttl.into()),
    }
}

fn url(tls: bool, server: &impl std::fmt::Display) -> String {
    format!("{}://{server}", if tls { "https" } else { "http" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_resolver::proto::rr::Name;
    use hickory_resolver::proto::rr::rdata::{A, AAAA, SRV};

    fn record(ttl: u32, data: RData) -> Record {
        Record::from_rdata(Name::root(), ttl, data)
    }

    fn listed(found: &Found) -> Vec<(&str, bool)> {
        found
            .replicas
            .iter()
            .map(|(url, standby)| (url.as_str(), *standby))
            .collect()
    }

    #[test]
    fn every_address_is_a_replica_for_as_long_as_the_shortest_ttl_says() {
        let records = [
            record(30, RData::A(A::new(10, 0, 0, 2))),
            record(7, RData::A(A::new(10, 0, 0, 1))),
            record(9, RData::AAAA(AAAA::new(0xfd00, 0, 0, 0, 0, 0, 0, 1))),
        ];
        let found = from_addresses(&records, 5001, false);
        let expected = [
            ("http://10.0.0.1:5001", false),
            ("http://10.0.0.2:5001", false),
            ("http://[fd00::1]:5001", false),
        ];
        assert_eq!(listed(&found), expected);
        assert_eq!(found.ttl, Duration::from_secs(7));
    }

    #[test]
    fn targets_of_a_later_priority_stand_by() {
        let service = |priority, port, target: &str| {
            record(
                60,
                RData::SRV(SRV::new(priority, 1, port, Name::from_ascii(target).unwrap())),
            )
        };
        let records = [
            service(20, 5001, "far.example."),
            service(10, 5001, "near.example."),
            service(10, 5002, "near.example."),
            service(20, 5002, "near.example."),
            service(0, 1, "."),
        ];
        let found = from_services(&records, true);
        let expected = [
            ("https://far.example:5001", true),
            ("https://near.example:5001", false),
            ("https://near.example:5002", false),
        ];
        assert_eq!(listed(&found), expected);
        assert!(from_services(&records[4..], true).replicas.is_empty());
    }
}
