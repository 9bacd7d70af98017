//! Whether a text is the URL of a Redis that the cache can use.
//!
//! The client library has the last word. Before that comes what it would pass over in silence: a mistyped
//! parameter, the database of a cluster, a blank or `#` in a password. No message has a part of the URL in it that
//! could be the password.

use fred::types::config::Config as Client;

/// Parameters that name something, by the kind of server.
const CLUSTER: [&str; 1] = ["node"];
const SENTINEL: [&str; 4] = [
    "node",
    "sentinelServiceName",
    "sentinelUsername",
    "sentinelPassword",
];

/// What one or more servers do together.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Single,
    Cluster,
    Sentinel,
}

/// Takes a URL apart to see whether it can be used; whether it asks for TLS.
///
/// # Errors
/// What is wrong with it, and what would be right, without a full stop.
pub(super) fn check(url: &str) -> Result<bool, String> {
    if url.contains(|c: char| c.is_whitespace() || c.is_control() || c == '#') {
        return Err("has a blank or `#` in it; in a password they are written %20 and %23".into());
    }
    let (tls, kind, rest) = scheme(url).ok_or(
        "must begin with redis:// or rediss:// (TLS), redis-cluster://, rediss-cluster://, redis-sentinel:// or \
         rediss-sentinel://; valkey in place of redis is the same",
    )?;
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = place.split_once('/').unwrap_or((place, ""));
    if query.contains('@') || database.contains('@') {
        return Err(
            "has an `@` where none can be; `@`, `/` and `?` of a password are written %40, %2F and %3F"
                .into(),
        );
    }
    let server = match authority.rsplit_once('@') {
        Some((user, server)) => {
            // Without the colon a password would be taken, and shown, as a name.
            if !matches!(user.split_once(':'), Some((_, password)) if !password.is_empty()) {
                return Err(
                    "a password is needed before `@`, as in redis://:PASSWORD@host or \
                            redis://USER:PASSWORD@host"
                        .into(),
                );
            }
            server
        }
        None => authority,
    };
    host_and_port(server, kind == Kind::Single || kind == Kind::Sentinel)?;
    match kind {
        Kind::Cluster if !matches!(database, "" | "0") => {
            return Err("a cluster has no database but 0: leave the number out".into());
        }
        _ if !database.is_empty() && database.parse::<u8>().is_err() => {
            return Err("what follows host and port is the number of the database, from 0 to 255".into());
        }
        _ => {}
    }
    parameters(query, kind)?;

    // As a URL without TLS, because for the other the client library reads the system's certificates.
    let plain = format!("redis{}://{rest}", &["", "-cluster", "-sentinel"][kind as usize]);
    match Client::from_url(&plain) {
        Ok(_) => Ok(tls),
        Err(_) => Err(
            "is not like redis://[USER:PASSWORD@]host:6379/0, in which signs that are no letters or \
                       digits are written %XX"
                .into(),
        ),
    }
}

/// Whether TLS is wanted, what is there, and what follows `://`.
fn scheme(url: &str) -> Option<(bool, Kind, &str)> {
    let (scheme, rest) = url.split_once("://")?;
    let (kind, name) = [("-cluster", Kind::Cluster), ("-sentinel", Kind::Sentinel)]
        .iter()
        .find_map(|(suffix, kind)| Some((*kind, scheme.strip_suffix(suffix)?)))
        .unwrap_or((Kind::Single, scheme));
    let tls = match name {
        "redis" | "valkey" => false,
        "rediss" | "valkeys" => true,
        _ => return None,
    };
    Some((tls, kind, rest))
}

/// Of a server; a port may be left out where there is a usual one.
fn host_and_port(server: &str, usual: bool) -> Result<(), String> {
    let port_at = if server.ends_with(']') {
        None
    } else {
        server.rfind(':')
    };
    let (host, port) = match port_at {
        Some(at) => (&server[..at], Some(&server[at + 1..])),
        None => (server, None),
    };
    if host.is_empty() || (host.contains(':') && !(host.starts_with('[') && host.ends_with(']'))) {
        return Err("a host is needed; an IPv6 address stands in [ ]".into());
    }
    match port {
        Some(port) if port.parse::<u16>().is_ok_and(|port| port > 0) => Ok(()),
        None if usual => Ok(()),
        _ => Err("a port from 1 to 65535 is needed after each host".into()),
    }
}

fn parameters(query: &str, kind: Kind) -> Result<(), String> {
    let known: &[&str] = match kind {
        Kind::Single => &[],
        Kind::Cluster => &CLUSTER,
        Kind::Sentinel => &SENTINEL,
    };
    let mut named = false;
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        if !known.contains(&name) {
            return Err(match known {
                [] => "takes no parameters after `?`".into(),
                known => format!("has a parameter that is not known; known: {}", known.join(", ")),
            });
        }
        if name == "node" {
            host_and_port(value, false).map_err(|why| format!("node: {why}"))?;
        }
        named |= name == "sentinelServiceName" && !value.is_empty();
    }
    if kind == Kind::Sentinel && !named {
        return Err(
            "needs the name that the sentinels have for the master: ?sentinelServiceName=NAME".into(),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn urls_of_every_kind_are_taken_and_tell_of_tls() {
        for (url, tls) in [
            ("redis://127.0.0.1:6379/2", false),
            ("redis://cache", false),
            ("redis://cache/", false),
            ("redis://[::1]:6379/15", false),
            ("redis://:p%40ss@cache:6379", false),
            ("redis://edge:p@ss@cache:6379/255", false),
            ("rediss://edge:hunter2@cache:6380", true),
            ("valkey://cache", false),
            ("valkeys://cache", true),
            ("redis-cluster://a:7000?node=b:7001&node=c:7002", false),
            ("rediss-cluster://:hunter2@a:7000/0?node=b:7001", true),
            ("valkeys-cluster://a:7000", true),
            ("redis-sentinel://a:26379?sentinelServiceName=dify", false),
            (
                "rediss-sentinel://u:p@a/1?node=b:1&sentinelServiceName=dify&sentinelUsername=s&sentinelPassword=t",
                true,
            ),
        ] {
            assert_eq!(check(url), Ok(tls), "{url}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_refused_without_showing_a_password() {
        for (url, why) in [
            ("", "must begin with redis://"),
            ("cache:6379", "must begin with redis://"),
            ("http://cache:6379", "must begin with redis://"),
            ("redis+unix:///run/redis.sock", "must begin with redis://"),
            ("redissss://cache", "must begin with redis://"),
            ("redis-clusters://a:1", "must begin with redis://"),
            ("redis://", "a host is needed"),
            ("redis://:hunter2@", "a host is needed"),
            ("redis://::1:6379", "a host is needed"),
            ("redis://cache:", "a port from 1 to 65535"),
            ("redis://cache:0", "a port from 1 to 65535"),
            ("redis://cache:65536", "a port from 1 to 65535"),
            ("redis://cache:hunter2", "a port from 1 to 65535"),
            ("redis://hunter2@cache", "a password is needed before `@`"),
            ("redis://hunter2:@cache", "a password is needed before `@`"),
            ("redis://:hunt er2@cache", "%20 and %23"),
            ("redis://:hunter2#@cache", "%20 and %23"),
            ("redis://:hunter2/x@cache", "%40, %2F and %3F"),
            ("redis://:hunter2?x@cache", "%40, %2F and %3F"),
            ("redis://cache/256", "the number of the database"),
            ("redis://cache/-1", "the number of the database"),
            ("redis://cache/hunter2", "the number of the database"),
            ("redis://cache/0/", "the number of the database"),
            ("redis://cache?password=hunter2", "no parameters"),
            ("redis-cluster://a:7000/1", "a cluster has no database"),
            ("redis-cluster://a", "a port from 1 to 65535"),
            ("redis-cluster://a:1?nodes=b:1", "known: node"),
            ("redis-cluster://a:1?node=b", "node: a port"),
            ("redis-cluster://a:1?node=:1", "node: a host"),
            ("redis-sentinel://a:26379", "?sentinelServiceName=NAME"),
            (
                "redis-sentinel://a?sentinelServiceName=",
                "?sentinelServiceName=NAME",
            ),
            (
                "redis-sentinel://a?sentinelservicename=x",
                "known: node, sentinel",
            ),
            ("redis://[hunter2]:1", "is not like"),
        ] {
            let message = check(url).expect_err(url);
            assert!(message.contains(why), "{url}: {message}");
            assert!(!message.contains("hunter2"), "{url}: {message}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_taken_by_the_client_library_too_or_refused(
            text in "((redis|valkeys?)(-cluster|-sentinel)?://)?[-a-z0-9:@/?=&%\\[\\].\\PC]{0,40}",
        ) {
            if check(&text) == Ok(false) {
                prop_assert!(Client::from_url(&text).is_ok());
            }
        }
    }
}
