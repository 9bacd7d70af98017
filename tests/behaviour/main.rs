//! What the proxy does, seen from outside: over real sockets, with the recorded exchanges of a real dify-api.
//!
//! One module for each behaviour; `support` has the client, the origin and the way to start the proxy between them.

#![allow(
    unreachable_pub,
    missing_docs,
    clippy::disallowed_methods,
    reason = "nothing reaches into a test, and over real sockets time is real"
)]

mod admin;
mod admin_purge;
mod background;
mod breaker;
mod captures;
mod coalescing;
mod commands;
mod deliveries;
mod discovery;
mod drain;
mod endurance;
mod explain;
mod failover;
mod failover_control;
mod failover_drill;
mod fields;
mod grpc;
mod guard;
mod guard_peers;
mod guard_postgres;
mod guard_postgres_faults;
mod invalidation;
mod limits;
mod memory;
mod owners;
mod place;
mod protocols;
mod resources;
mod secrets;
mod shared_cache;
mod shared_faults;
mod slots;
mod streaming;
mod support;
mod traps;
mod uploads;
mod upstreams;
