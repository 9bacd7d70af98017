//! Stage `upstream`: carries one exchange to the replica that routing chose.
//!
//! The leaf of the request path. It owns the connections (`pool`, `connector`, `connection`), decides what
//! crosses the proxy (`headers`), streams both bodies with back-pressure and watches their time limits
//! (`request_body`, `response_body`), and joins both sides after an `Upgrade` (`tunnel`). `group` has what is kept for
//! each replica: `pool` for HTTP/1.1, `multiplex` for HTTP/2.

mod connection;
mod connector;
mod group;
mod headers;
mod metrics;
mod multiplex;
mod pool;
mod request_body;
mod response_body;
mod service;
#[cfg(test)]
mod tests;
mod tunnel;

pub use metrics::UpstreamMetrics;
pub use service::Upstream;
