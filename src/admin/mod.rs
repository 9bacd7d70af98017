//! The administrative listener: probes, metrics, the configuration, a look into the cache and a hand on it, and one on
//! where writes go.
//!
//! It has its own address, loopback by default. Whoever can connect may read; writes need a token. It sees the
//! stages through their control handles. `openapi.json` describes it and is served by it; `routes` has the list.

mod answer;
mod auth;
mod body;
mod cache;
mod failover;
mod openapi;
mod probes;
mod purge;
mod routes;
mod server;

pub use auth::{Auth, token_in};
pub use server::{Admin, AdminParts};
