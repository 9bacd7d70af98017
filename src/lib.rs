//! dify-edge: a caching reverse proxy that stands in front of dify-api.
//!
//! The modules below are in the order in which a request meets them; each stage's own page says what it does.
//! [`app::Edge`] is the whole, for those who want the proxy inside their own process:
//!
//! ```
//! use dify_edge::app::Edge;
//! use dify_edge::config::{Config, ListenConfig, ReplicaConfig, UpstreamConfig};
//! use dify_edge::types::time::Clock;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let replica = ReplicaConfig { url: "http://127.0.0.1:5001".into(), ..ReplicaConfig::default() };
//! let mut config = Config::default();
//! config.listen = vec![ListenConfig { address: "127.0.0.1:0".parse()?, tls: None }];
//! config.admin.address = "127.0.0.1:0".parse()?;
//! config.upstreams.insert("api".into(), UpstreamConfig { replicas: vec![replica], ..Default::default() });
//!
//! let edge = Edge::start(config, Clock::System).await?;
//! assert_ne!(edge.addresses[0].port(), 0);
//! assert_eq!(edge.drain(std::time::Duration::from_secs(1)).await, 0, "nothing had to be cut");
//! # Ok(())
//! # }
//! ```

// The leaves: every stage may use them.
pub mod config;
pub mod telemetry;
pub mod types;

// The stages, from the client to dify-api.
pub mod wire;

pub mod classify;

pub mod guard;

pub mod cache;

pub mod resilience;

pub mod routing;

pub mod upstream;

// Around them.
pub mod admin;
pub mod app;
pub mod cli;
pub mod stack;
