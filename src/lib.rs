//! dify-edge: a caching reverse proxy that stands in front of dify-api.
//!
//! The modules below are in the order in which a request meets them; `stack` puts them together.

pub mod types;

pub mod config;
pub mod telemetry;

pub mod wire;

pub mod classify;

pub mod cache;

pub mod resilience;

pub mod routing;

pub mod upstream;

pub mod admin;
pub mod app;
pub mod cli;
pub mod stack;
