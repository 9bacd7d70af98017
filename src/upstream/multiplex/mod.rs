//! HTTP/2 to replicas: many exchanges share a connection.
//!
//! `connection` is one connection, `pool` has those of a replica and gives their streams out, `exchange` is the way of
//! one request over a stream. What an answer's body holds is the same as with HTTP/1.1 (`response_body`).

mod connection;
mod exchange;
mod pool;

pub(super) use connection::Multiplexed;
pub(super) use exchange::exchange;
pub(super) use pool::{SharedPool, Stream};
