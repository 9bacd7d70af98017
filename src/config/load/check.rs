//! What a configuration must keep to beyond the types of its values: bounds, references, uniqueness.
//!
//! Every problem is found, not only the first. Nothing here looks outside the configuration, but for
//! [`unreadable_files`], which only warns: a file may be there later, on another machine.

mod affinity;
mod breaker;
mod cache;
mod discovery;
pub(super) mod failover;
mod guard;
mod protocol;
mod redis_url;
mod retry;
mod scrape;

use std::collections::BTreeSet;
use std::time::Duration;

use http::Uri;
use http::uri::PathAndQuery;

use super::error::Finding;
use super::secrets;
use super::tree::Path;
use crate::config::cache::CacheType;
use crate::config::guard::{PostgresConfig, SourceConfig};
use crate::config::upstreams::Capacity;
use crate::config::{Config, Token, UpstreamConfig};
use crate::types::request::Lane;
use crate::types::units::Span;

/// Durations beyond this are slips, and could not be added to a clock reading.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);
/// More permits, fields or connections than any machine has; semaphores and header maps take no more.
const MOST: usize = 10_000_000;

impl Config {
    /// Everything that is wrong; nothing when the proxy can be started with it.
    pub fn check(&self) -> Vec<Finding> {
        let mut check = Check::default();
        check.listeners(self);
        check.admin(self);
        check.upstreams(self);
        check.routes(self);
        check.limits(self);
        check.cache(self);
        check.guard(self);
        check.breaker(self);
        check.failover(self);
        check.log(self);
        check.span(&key("drain_timeout"), self.drain_timeout, true);
        check.found
    }
}

/// What an administrative listener that others can reach means.
pub(super) fn open_admin(config: &Config) -> Option<Finding> {
    let admin = &config.admin;
    if admin.address.ip().to_canonical().is_loopback() {
        return None;
    }
    let writes = if admin.token.is_some() || admin.token_file.is_some() {
        "writes need the token, which goes over the wire in the clear"
    } else {
        "writes are refused, as there is no token"
    };
    Some(Finding::new(
        key("admin").join("address"),
        format!(
            "{} is not a loopback address: whoever can connect may read /config, /metrics, /upstreams and what is \
             stored; {writes}; keep it inside a network of your own",
            admin.address
        ),
    ))
}

/// Certificates, keys, tokens and secrets that this process cannot read now.
pub(super) fn unreadable_files(config: &Config) -> Vec<Finding> {
    let mut check = Check::default();
    let mut files = Vec::new();
    for (index, listen) in config.listen.iter().enumerate() {
        let Some(tls) = &listen.tls else { continue };
        let at = key("listen").join(index).join("tls");
        files.push((at.join("cert"), &tls.cert));
        files.push((at.join("key"), &tls.key));
    }
    if let Some(file) = &config.admin.token_file {
        files.push((key("admin").join("token_file"), file));
    }
    if config.cache.r#type == CacheType::Redis {
        let (at, redis) = (key("cache").join("redis"), &config.cache.redis);
        files.extend(
            redis
                .secret_file
                .iter()
                .map(|file| (at.join("secret_file"), file)),
        );
        files.extend(redis.ca.iter().map(|file| (at.join("ca"), file)));
    }
    for (index, source) in config
        .guard
        .iter()
        .flat_map(|guard| guard.sources.iter().enumerate())
    {
        if let SourceConfig::Postgres(PostgresConfig { ca: Some(ca), .. }) = source {
            files.push((key("guard").join("sources").join(index).join("ca"), ca));
        }
    }
    for (path, file) in files {
        if let Err(error) = std::fs::File::open(file) {
            check.say(path, format!("cannot read {}: {error}", file.display()));
        }
    }
    check.found
}

fn key(name: &str) -> Path {
    Path::default().join(name)
}

#[derive(Default)]
struct Check {
    found: Vec<Finding>,
}

impl Check {
    fn say(&mut self, path: Path, message: impl Into<String>) {
        self.found.push(Finding::new(path, message));
    }

    fn span(&mut self, path: &Path, span: Span, may_be_zero: bool) {
        if span.0.is_zero() && !may_be_zero {
            self.say(path.clone(), "must be more than 0s");
        }
        if span.0 > LONGEST {
            self.say(path.clone(), format!("{span} is more than a year"));
        }
    }

    fn span_from(&mut self, path: &Path, span: Span, least: Span, most: Span) {
        if !(least..=most).contains(&span) {
            self.say(
                path.clone(),
                format!("must be from {least} to {most}, and is {span}"),
            );
        }
    }

    fn number(&mut self, path: &Path, number: usize, least: usize, most: usize) {
        if !(least..=most).contains(&number) {
            self.say(
                path.clone(),
                format!("must be from {least} to {most}, and is {number}"),
            );
        }
    }

    fn listeners(&mut self, config: &Config) {
        if config.listen.is_empty() {
            self.say(key("listen"), "at least one address is needed");
        }
        let mut taken = BTreeSet::new();
        let addresses = config.listen.iter().enumerate().map(|(index, listen)| {
            let path = key("listen").join(index).join("address");
            (path, listen.address)
        });
        let admin = (key("admin").join("address"), config.admin.address);
        for (path, address) in addresses.chain([admin]) {
            if address.port() != 0 && !taken.insert(address) {
                self.say(path, format!("{address} is already listened on"));
            }
        }
    }

    fn admin(&mut self, config: &Config) {
        let (at, admin) = (key("admin"), &config.admin);
        if let Some(problem) = admin.token.as_ref().and_then(Token::problem) {
            self.say(at.join("token"), problem);
        }
        if admin.token.is_some() && admin.token_file.is_some() {
            self.say(
                at.join("token_file"),
                "only one of `token` and `token_file` can be set",
            );
        }
    }

    fn upstreams(&mut self, config: &Config) {
        if config.upstreams.is_empty() {
            self.say(
                key("upstreams"),
                "at least one upstream is needed, such as `api: {replicas: [{url: \"http://127.0.0.1:5001\"}]}`",
            );
        }
        for (name, upstream) in &config.upstreams {
            let at = key("upstreams").join(name.as_str());
            let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            if !(1..=64).contains(&name.len()) || !name.chars().all(word) {
                self.say(
                    at.clone(),
                    "a name is 1 to 64 letters, digits, `_` and `-`: it becomes a label of metrics",
                );
            }
            self.upstream(&at, upstream);
        }
        if config.upstreams.len() > 64 {
            self.say(key("upstreams"), "at most 64 upstreams can be used");
        }
    }

    fn upstream(&mut self, at: &Path, upstream: &UpstreamConfig) {
        if upstream.replicas.is_empty() && upstream.discovery.is_none() {
            self.say(
                at.join("replicas"),
                "at least one replica is needed, or a name under `discovery`",
            );
        }
        if let Some(discovery) = &upstream.discovery {
            self.discovery(&at.join("discovery"), discovery);
        }
        self.protocol(at, upstream);
        self.affinity(&at.join("affinity"), &upstream.affinity);
        if let Some(scrape) = &upstream.scrape {
            self.scrape(&at.join("scrape"), scrape);
        }
        self.number(
            &at.join("replicas"),
            upstream.replicas.len() + upstream.standby.len(),
            0,
            1024,
        );
        let mut seen = BTreeSet::new();
        for (list, replicas) in [("replicas", &upstream.replicas), ("standby", &upstream.standby)] {
            for (index, replica) in replicas.iter().enumerate() {
                let path = at.join(list).join(index).join("url");
                match server(&replica.url) {
                    Ok(server) => {
                        if !seen.insert(server) {
                            self.say(path, format!("{} stands here twice", replica.url));
                        }
                    }
                    Err(why) => self.say(path, format!("{}: {why}", secrets::hidden(&replica.url))),
                }
            }
        }

        let capacities = [("replicas", &upstream.replicas), ("standby", &upstream.standby)];
        let capacities = capacities.into_iter().flat_map(|(list, replicas)| {
            replicas
                .iter()
                .enumerate()
                .map(move |(index, replica)| (Some((list, index)), replica.capacity))
        });
        for (of, capacity) in capacities.chain([(None, upstream.capacity)]) {
            let at = of
                .map_or(at.clone(), |(list, index)| at.join(list).join(index))
                .join("capacity");
            if let Some(Capacity::Fixed(number)) = capacity {
                self.number(&at, number, 1, 1_000_000);
            }
        }
        let connections = at.join("connections");
        self.number(
            &connections.join("limit"),
            upstream.connections.limit,
            1,
            1_000_000,
        );
        self.number(&connections.join("queue"), upstream.connections.queue, 0, MOST);
        if upstream.connections.pool_share.0 <= 0.0 {
            self.say(connections.join("pool_share"), "must be more than 0%");
        }
        for lane in Lane::ALL {
            let (at, lane) = (at.join("lanes").join(lane.as_str()), upstream.lanes.of(lane));
            for (name, ratio) in [("share", lane.share), ("limit", lane.limit)] {
                if !(0.01..=1.0).contains(&ratio.0) {
                    self.say(at.join(name), format!("must be from 1% to 100%, and is {ratio}"));
                }
            }
        }
        self.retry(&at.join("retry"), &upstream.retry);
        self.hedge(&at.join("hedge"), &upstream.hedge);
        let health = at.join("health_check");
        let check = &upstream.health_check;
        for (name, count) in [
            ("unhealthy_after", check.unhealthy_after),
            ("healthy_after", check.healthy_after),
        ] {
            self.number(&health.join(name), count as usize, 1, 1000);
        }
        if !check.path.starts_with('/') || check.path.parse::<PathAndQuery>().is_err() {
            self.say(health.join("path"), "must be a path beginning with `/`");
        }
        let timeouts = at.join("timeouts");
        for (path, span) in [
            (
                connections.join("idle_timeout"),
                upstream.connections.idle_timeout,
            ),
            (timeouts.join("connect"), upstream.timeouts.connect),
            (timeouts.join("total"), upstream.timeouts.total),
            (timeouts.join("idle"), upstream.timeouts.idle),
            (timeouts.join("write"), upstream.timeouts.write),
            (health.join("interval"), check.interval),
            (health.join("timeout"), check.timeout),
        ] {
            self.span(&path, span, false);
        }
    }

    fn routes(&mut self, config: &Config) {
        let names: Vec<_> = config.upstreams.keys().map(String::as_str).collect();
        if config.routes.is_empty() && names.len() > 1 && !names.contains(&"api") {
            self.say(
                key("routes"),
                "needed: there are several upstreams, and none is called `api`",
            );
        }
        self.number(&key("routes"), config.routes.len(), 0, 1000);
        let mut seen = BTreeSet::new();
        for (index, route) in config.routes.iter().enumerate() {
            let at = key("routes").join(index);
            let is_path = route.prefix.starts_with('/')
                && !route.prefix.contains(['?', '#'])
                && route.prefix.parse::<PathAndQuery>().is_ok();
            if !is_path {
                self.say(
                    at.join("prefix"),
                    format!("`{}` is not a path beginning with `/`", route.prefix),
                );
            }
            if !seen.insert(&route.prefix) {
                self.say(at.join("prefix"), format!("`{}` stands here twice", route.prefix));
            }
            if !config.upstreams.contains_key(&route.upstream) {
                self.say(
                    at.join("upstream"),
                    format!(
                        "there is no upstream `{}`; there are: {}",
                        route.upstream,
                        names.join(", ")
                    ),
                );
            }
        }
    }

    fn limits(&mut self, config: &Config) {
        let (at, limits) = (key("limits"), &config.limits);
        for (name, number, least, most) in [
            ("connections", limits.connections, 1, MOST),
            ("connections_per_peer", limits.connections_per_peer, 1, MOST),
            ("header_count", limits.header_count, 1, 10_000),
            ("h2_streams", limits.h2_streams as usize, 1, 1 << 20),
            ("h2_resets", limits.h2_resets, 1, 1 << 20),
        ] {
            self.number(&at.join(name), number, least, most);
        }
        for (name, size, least, most) in [
            ("header_bytes", limits.header_bytes, 1 << 10, 1 << 20),
            ("uri_bytes", limits.uri_bytes, 1 << 8, 1 << 16),
            ("body_rate", limits.body_rate, 0, 1 << 30),
        ] {
            if !(least..=most).contains(&size.0) {
                self.say(
                    at.join(name),
                    format!("must be from {least} to {most} bytes, and is {}", size.0),
                );
            }
        }
        let body = at.join("body");
        for (name, size) in [
            ("upload", limits.body.upload),
            ("generation", limits.body.generation),
            ("passthrough", limits.body.passthrough),
            ("other", limits.body.other),
        ] {
            if size.0 == 0 {
                self.say(body.join(name), "must be more than 0");
            }
        }
        for (name, span) in [
            ("header_read", limits.header_read),
            ("idle", limits.idle),
            ("body_grace", limits.body_grace),
        ] {
            self.span(&at.join(name), span, false);
        }
    }

    fn log(&mut self, config: &Config) {
        let (at, log) = (key("log"), &config.log);
        if let Err(error) = tracing_subscriber::EnvFilter::builder().parse(&log.level) {
            self.say(
                at.join("level"),
                format!("`{}` is not a level or filter: {error}", log.level),
            );
        }
        if !(0.0..=1.0).contains(&log.access_sample.0) {
            self.say(at.join("access_sample"), "must be from 0% to 100%");
        }
    }
}

/// The server that a replica's URL names, in one spelling: host and port.
fn server(url: &str) -> Result<(String, u16), &'static str> {
    let uri: Uri = url
        .parse()
        .map_err(|_| "not a URL like http://host:5001 or https://host")?;
    let port = match uri.scheme_str() {
        Some("http") => 80,
        Some("https") => 443,
        _ => return Err("must begin with http:// or https://"),
    };
    let authority = uri.authority().ok_or("a host is needed")?;
    if authority.as_str().contains('@') {
        return Err("user and password have no place here");
    }
    if authority.host().is_empty() {
        return Err("a host is needed");
    }
    if uri.path() != "/" || uri.query().is_some() || url.contains('#') {
        return Err("must end after host and port: paths are passed on as they come");
    }
    let port = match authority.port_u16() {
        Some(0) => return Err("port 0 cannot be connected to"),
        Some(port) => port,
        None if authority.host().len() == authority.as_str().len() => port,
        None => return Err("the port is not a number from 1 to 65535"),
    };
    Ok((authority.host().to_ascii_lowercase(), port))
}
