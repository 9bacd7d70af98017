//! What lies between the instances and the primary cluster, and between each instance and Redis: something that can be
//! cut.
//!
//! Where the machine allows it these are network namespaces, joined to this one by pairs of virtual links: one for the
//! primary cluster, one for Redis with a link for each instance. A link is cut on the far side, so that packets vanish
//! as they do in a partition, rather than being refused. Elsewhere they are relays inside the drill that stop passing
//! bytes.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use crate::child::free_address;
use crate::relay::Relay;

/// Instances of the drill.
pub(crate) const INSTANCES: usize = 3;
/// Replicas of each cluster.
pub(crate) const REPLICAS: usize = 2;
const PRIMARY_PORT: u16 = 5001;
const REDIS_PORT: u16 = 6379;
/// What the names of the drill's namespaces begin with; the process follows.
const PREFIX: &str = "dify-drill-";

/// What can be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    /// From all instances to the primary cluster.
    Primary,
    /// From one instance to Redis.
    Redis(usize),
}

impl Link {
    fn all() -> impl Iterator<Item = Self> {
        std::iter::once(Self::Primary).chain((0..INSTANCES).map(Self::Redis))
    }

    fn number(self) -> usize {
        match self {
            Self::Primary => 0,
            Self::Redis(instance) => 1 + instance,
        }
    }

    /// The namespace at its far end: of the primary cluster or of Redis.
    fn far_end(self) -> &'static str {
        match self {
            Self::Primary => "p",
            Self::Redis(_) => "r",
        }
    }
}

/// See the module.
pub(crate) enum Network {
    Namespaces(Namespaces),
    Relays(Relays),
}

/// How partitions are made, for people.
pub(crate) fn way(is_relayed: bool) -> &'static str {
    match is_relayed {
        false => "network namespaces whose links are set down (`ip netns`)",
        true => "relays that stop passing bytes",
    }
}

impl Network {
    /// Namespaces, unless they are not wanted.
    pub(crate) fn new(is_relayed: bool) -> Result<Self, String> {
        match is_relayed {
            false => Namespaces::new().map(Self::Namespaces),
            true => Ok(Self::Relays(Relays::new()?)),
        }
    }

    /// A command that runs `program` at the far end of `link`.
    pub(crate) fn command(&self, link: Link, program: &Path) -> Command {
        match self {
            Self::Namespaces(namespaces) => {
                let mut command = Command::new("ip");
                command
                    .args(["netns", "exec", &namespaces.name(link.far_end())])
                    .arg(program);
                command
            }
            Self::Relays(_) => Command::new(program),
        }
    }

    /// Where replica `number` of the primary cluster is to listen.
    pub(crate) fn primary(&self, number: usize) -> SocketAddr {
        match self {
            Self::Namespaces(namespaces) => namespaces.address(Link::Primary, PRIMARY_PORT + number as u16),
            Self::Relays(relays) => relays.primary[number].to,
        }
    }

    /// Where instances find it.
    pub(crate) fn primary_seen(&self, number: usize) -> SocketAddr {
        match self {
            Self::Namespaces(_) => self.primary(number),
            Self::Relays(relays) => relays.primary[number].address,
        }
    }

    /// Where Redis is to listen: the address to bind, and the port.
    pub(crate) fn redis(&self) -> (&'static str, u16) {
        match self {
            Self::Namespaces(_) => ("0.0.0.0", REDIS_PORT),
            Self::Relays(relays) => ("127.0.0.1", relays.redis[0].to.port()),
        }
    }

    /// Where an instance finds it.
    pub(crate) fn redis_seen(&self, instance: usize) -> SocketAddr {
        match self {
            Self::Namespaces(namespaces) => namespaces.address(Link::Redis(instance), REDIS_PORT),
            Self::Relays(relays) => relays.redis[instance].address,
        }
    }

    /// Cuts a link, or joins it again.
    pub(crate) fn cut(&self, link: Link, is_cut: bool) -> Result<(), String> {
        match (self, link) {
            (Self::Namespaces(namespaces), _) => namespaces.cut(link, is_cut),
            (Self::Relays(relays), Link::Primary) => {
                relays.primary.iter().for_each(|relay| relay.cut(is_cut));
                Ok(())
            }
            (Self::Relays(relays), Link::Redis(instance)) => {
                relays.redis[instance].cut(is_cut);
                Ok(())
            }
        }
    }
}

/// Relays in place of links.
pub(crate) struct Relays {
    primary: Vec<Relay>,
    redis: Vec<Relay>,
}

impl Relays {
    fn new() -> Result<Self, String> {
        let primary = (0..REPLICAS).map(|_| Relay::start(free_address()?));
        let redis = free_address()?;
        Ok(Self {
            primary: primary.collect::<Result<_, _>>()?,
            redis: (0..INSTANCES)
                .map(|_| Relay::start(redis))
                .collect::<Result<_, _>>()?,
        })
    }
}

/// Namespaces of the drill's own; they are deleted when dropped, and their links with them.
pub(crate) struct Namespaces {
    process: u32,
    /// The second number of all addresses.
    block: u8,
}

impl Namespaces {
    fn new() -> Result<Self, String> {
        remove_old();
        let namespaces = Self {
            process: std::process::id(),
            block: free_block()?,
        };
        for end in ["p", "r"] {
            let name = namespaces.name(end);
            ip(&["netns", "add", &name])?;
            ip(&["-n", &name, "link", "set", "lo", "up"])?;
        }
        for link in Link::all() {
            namespaces.join(link)?;
        }
        Ok(namespaces)
    }

    fn name(&self, end: &str) -> String {
        format!("{PREFIX}{}-{end}", self.process)
    }

    /// The two ends of `link`: here and there.
    fn devices(&self, link: Link) -> [String; 2] {
        ["h", "n"].map(|end| format!("dd{}{end}{}", self.process, link.number()))
    }

    /// The address at its far end.
    fn address(&self, link: Link, port: u16) -> SocketAddr {
        (Ipv4Addr::new(10, self.block, link.number() as u8, 2), port).into()
    }

    fn join(&self, link: Link) -> Result<(), String> {
        let ([here, there], name) = (self.devices(link), self.name(link.far_end()));
        let number = link.number();
        let [mac_here, mac_there] = [1, 2].map(|end| format!("02:dd:00:00:0{number}:0{end}"));
        let [own, other] = [1, 2].map(|end| format!("10.{}.{number}.{end}", self.block));
        let (own_net, other_net) = (format!("{own}/24"), format!("{other}/24"));
        ip(&[
            "link", "add", &here, "address", &mac_here, "type", "veth", "peer", "name", &there, "address",
            &mac_there, "netns", &name,
        ])?;
        ip(&["addr", "add", &own_net, "dev", &here])?;
        ip(&["link", "set", &here, "up"])?;
        ip(&["-n", &name, "addr", "add", &other_net, "dev", &there])?;
        ip(&["-n", &name, "link", "set", &there, "up"])?;
        // Known for good: otherwise the kernel says within seconds that nobody answers for the address.
        ip(&[
            "neigh",
            "replace",
            &other,
            "lladdr",
            &mac_there,
            "dev",
            &here,
            "nud",
            "permanent",
        ])
    }

    fn cut(&self, link: Link, is_cut: bool) -> Result<(), String> {
        let [_, there] = self.devices(link);
        let name = self.name(link.far_end());
        ip(&[
            "-n",
            &name,
            "link",
            "set",
            &there,
            if is_cut { "down" } else { "up" },
        ])
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for end in ["p", "r"] {
            let _ = ip(&["netns", "del", &self.name(end)]);
        }
        for link in Link::all() {
            // Of one that was not joined to its end.
            let [here, _] = self.devices(link);
            if Path::new("/sys/class/net").join(&here).exists() {
                let _ = ip(&["link", "del", &here]);
            }
        }
    }
}

/// Whether this process may make namespaces.
///
/// # Errors
/// Why not.
pub(crate) fn may_have_namespaces() -> Result<(), String> {
    Namespaces::new().map(drop)
}

/// Removes namespaces of drills that are gone: one that was killed cannot.
fn remove_old() {
    let Ok(names) = std::fs::read_dir("/run/netns") else {
        return;
    };
    for name in names
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
    {
        let rest = name.strip_prefix(PREFIX);
        let process = rest.and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if process.is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists()) {
            let _ = ip(&["netns", "del", &name]);
        }
    }
}

/// A block of private addresses to which this machine has no route of its own.
fn free_block() -> Result<u8, String> {
    let output = Command::new("ip")
        .args(["-4", "route", "show", "table", "all"])
        .output();
    let routes = output.map_err(|error| format!("ip: {error}"))?;
    let routes = String::from_utf8_lossy(&routes.stdout).into_owned();
    let is_free = |block: &u8| {
        let begin = format!("10.{block}.");
        !routes
            .split_whitespace()
            .any(|word| word.starts_with(&begin) || word == "10.0.0.0/8")
    };
    (200..=250)
        .find(is_free)
        .ok_or_else(|| "no block of addresses is free".to_owned())
}

fn ip(words: &[&str]) -> Result<(), String> {
    let output = Command::new("ip")
        .args(words)
        .output()
        .map_err(|error| format!("ip: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let why = String::from_utf8_lossy(&output.stderr);
            Err(format!("ip {}: {}", words.join(" "), why.trim()))
        }
    }
}
