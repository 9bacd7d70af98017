//! From what an operator wrote to a checked [`Config`]: defaults < file < environment < flags.
//!
//! Every layer becomes a tree that knows where each value was written; the merged tree is deserialized and then
//! checked, and whatever is wrong is reported with its place, its key and what was expected.
//! `cli` calls [`load`]; the process's arguments, environment and files reach it through [`Sources`].

mod check;
mod error;
mod inactive;
mod print;
mod secrets;
mod tree;
mod unplaced;
mod yaml;

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;

use self::tree::{Entry, Kind, Node};
use self::yaml::Text;
use super::Config;
use super::upstreams::Capacity;

pub use self::error::{ConfigError, Finding};
pub use self::tree::{Origin, Path, Step};

/// What the names of environment overrides begin with; the rest is the key path with `__` between its parts.
pub const ENVIRONMENT_PREFIX: &str = "DIFY_EDGE__";

/// Where dify-api listens when it is in the same pod or on the same machine.
const DEFAULT_UPSTREAM: &str = "http://127.0.0.1:5001";

/// More parts than any key path has; bounds the work that a variable's name can make.
const MAX_PARTS: usize = 16;

/// What a configuration is made of.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// A YAML (or JSON) file.
    pub file: Option<PathBuf>,
    /// Environment variables; those that do not begin with [`ENVIRONMENT_PREFIX`] are ignored, and so are
    /// empty ones.
    pub environment: Vec<(String, String)>,
    /// What stood on the command line.
    pub flags: Flags,
}

/// Settings from the command line; they win over everything else.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// Become the replicas of the upstream `api`.
    pub upstream: Vec<String>,
    /// Replace `listen`.
    pub listen: Vec<String>,
    /// Replaces `admin.address`.
    pub admin: Option<String>,
    /// Sets `cache.type: redis` and `cache.redis.url`.
    pub redis: Option<String>,
}

/// A configuration that is ready for use, and where its values came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What was meant.
    pub config: Config,
    tree: Node,
}

impl Loaded {
    /// What an operator should know before relying on this configuration: keys without effect, rules that no replica keeps, files that
    /// this process cannot read, an administrative listener that others can reach, clusters about which instances cannot
    /// agree. One line each, with place and key.
    pub fn warnings(&self) -> Vec<String> {
        let mut findings = self.config.inactive();
        findings.extend(self.config.unplaced());
        findings.extend(check::unreadable_files(&self.config));
        findings.extend(check::open_admin(&self.config));
        findings.extend(check::failover::decides_alone(&self.config));
        findings
            .iter()
            .map(|finding| finding.located(&self.tree))
            .collect()
    }

    /// The effective configuration as YAML, each value with its origin behind it; it loads again to the same
    /// configuration, but for passwords, which are not shown.
    pub fn print(&self) -> String {
        print::print(&self.config, &self.tree)
    }

    /// Where the value of a key like `cache.ttl_seconds` was written, as [`print`](Self::print) has it.
    pub fn origin_of(&self, key: &str) -> String {
        print::origin(&self.tree, &Path(key.split('.').map(Step::from).collect()))
    }
}

/// Reads, merges and checks.
///
/// # Errors
/// When the file cannot be read, or when something in it, in the environment or in a flag is not valid.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
    let default = serde_json::to_value(Config::default()).map_err(|e| ConfigError::plain(e.to_string()))?;
    let mut tree = Node::from_value(default, &Origin::Default);
    if let Some(path) = &sources.file {
        tree.merge(read_file(path)?);
    }
    let mut variables: Vec<_> = sources
        .environment
        .iter()
        .filter(|(name, value)| name.starts_with(ENVIRONMENT_PREFIX) && !value.is_empty())
        .collect();
    variables.sort();
    for (name, value) in variables {
        let layer = read_variable(name, value, &tree)?;
        tree.merge(layer);
    }
    merge_flags(&mut tree, &sources.flags);
    default_upstream(&mut tree);

    let mut config: Config = serde_path_to_error::deserialize(tree.to_value())
        .map_err(|error| ConfigError::from_serde(&error, &tree))?;
    default_capacity(&mut config);
    let problems = config.check();
    if problems.is_empty() {
        Ok(Loaded { config, tree })
    } else {
        Err(ConfigError::from_findings(&problems, &tree))
    }
}

fn read_file(path: &std::path::Path) -> Result<Node, ConfigError> {
    let name: Arc<str> = path.display().to_string().into();
    let cannot = |why: &dyn std::fmt::Display| ConfigError::plain(format!("{name}: cannot be read: {why}"));
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(yaml::MAX_BYTES as u64 + 1).read_to_end(&mut bytes))
        .map_err(|error| cannot(&error))?;
    let text = String::from_utf8(bytes).map_err(|error| cannot(&error))?;
    let node = yaml::parse(&text, &Text::File(name))?;
    match node.kind {
        Kind::Map(_) | Kind::Scalar(serde_json::Value::Null) => Ok(node),
        _ => Err(ConfigError::plain(format!(
            "{}: a configuration is a map of keys",
            node.origin
        ))),
    }
}

/// Turns `DIFY_EDGE__A__B=text` into the tree `{a: {b: text}}`. A text that is no YAML is taken as it stands where a
/// string is wanted (`[::1]:9901`).
fn read_variable(name: &str, text: &str, tree: &Node) -> Result<Node, ConfigError> {
    let origin = Origin::Environment(name.into());
    let keys: Vec<String> = name[ENVIRONMENT_PREFIX.len()..]
        .split("__")
        .map(str::to_ascii_lowercase)
        .collect();
    if keys.len() > MAX_PARTS || keys.iter().any(String::is_empty) {
        return Err(ConfigError::plain(format!(
            "{origin}: the name is not {ENVIRONMENT_PREFIX}SECTION__KEY"
        )));
    }
    let path = Path(keys.iter().map(|key| Step::from(key.as_str())).collect());
    let wants_text = || matches!(tree.at(&path).map(|n| &n.kind), Some(Kind::Scalar(v)) if v.is_string());
    // A token may look like a number, or like no YAML.
    let is_secret = keys.last().is_some_and(|key| secrets::is_secret(key));
    let value = match yaml::parse(text, &Text::Value(origin.clone())) {
        Ok(node) if matches!(&node.kind, Kind::Scalar(value) if value.is_string()) => node,
        _ if is_secret => Node::from_value(text.into(), &origin),
        // No YAML, or `dify-edge:`, which is a map in YAML.
        Err(_)
        | Ok(Node {
            kind: Kind::Map(_), ..
        }) if wants_text() => Node::from_value(text.into(), &origin),
        Ok(node) => node,
        Err(refused) => return Err(refused.into()),
    };
    Ok(keys.into_iter().rev().fold(value, |value, key| {
        let entry = Entry {
            key,
            origin: origin.clone(),
            value,
        };
        Node::new(origin.clone(), Kind::Map(vec![entry]))
    }))
}

fn merge_flags(tree: &mut Node, flags: &Flags) {
    let mut lay = |name, value| tree.merge(Node::from_value(value, &Origin::Flag(name)));
    if !flags.upstream.is_empty() {
        let replicas: Vec<_> = flags.upstream.iter().map(|url| json!({ "url": url })).collect();
        lay(
            "--upstream",
            json!({ "upstreams": { "api": { "replicas": replicas } } }),
        );
    }
    if !flags.listen.is_empty() {
        let listen: Vec<_> = flags.listen.iter().map(|a| json!({ "address": a })).collect();
        lay("--listen", json!({ "listen": listen }));
    }
    if let Some(address) = &flags.admin {
        lay("--admin", json!({ "admin": { "address": address } }));
    }
    if let Some(url) = &flags.redis {
        lay(
            "--redis",
            json!({ "cache": { "type": "redis", "redis": { "url": url } } }),
        );
    }
}

/// Nobody wrote of upstreams: then dify-api is the neighbour in the pod. An empty map that somebody wrote stays.
fn default_upstream(tree: &mut Node) {
    let at = Path::default().join("upstreams");
    if tree.at(&at).is_some_and(|node| node.origin == Origin::Default) {
        let api = json!({ "upstreams": { "api": { "replicas": [{ "url": DEFAULT_UPSTREAM }] } } });
        tree.merge(Node::from_value(api, &Origin::Default));
    }
}

/// Nobody wrote how much a replica of dify-api can take: then as much as a stock one.
fn default_capacity(config: &mut Config) {
    let names: Vec<_> = config
        .upstreams
        .keys()
        .filter(|name| config.serves_dify(name))
        .cloned()
        .collect();
    for name in names {
        if let Some(upstream) = config.upstreams.get_mut(&name)
            && !upstream.protocol.is_multiplexed()
        {
            upstream.capacity.get_or_insert(Capacity::OF_DIFY);
        }
    }
}

#[cfg(test)]
mod tests;
