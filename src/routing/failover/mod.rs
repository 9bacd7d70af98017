//! Failover of an upstream that has standby replicas: which of its two clusters has the writes.
//!
//! Time is cut into epochs, of each of which one cluster has the writes (`types/cluster`). Instances agree about the epoch
//! through a `registry`: in `redis`, or for an instance that is alone in a `ledger` of its own. With every beat each
//! says what share of either cluster it sees healthy; the one that holds the lease goes by the mean of that (`watch`)
//! and begins the next epoch, the others follow with their next beat. Who cannot confirm the epoch keeps it for
//! the time of a lease; afterwards its reads go where it sees health itself, and its writes to the cluster that had them last or
//! nowhere (`instance`). `standing` says what follows for a request; `driver` does all this while the proxy runs.

mod driver;
mod instance;
mod ledger;
mod metrics;
mod record;
mod redis;
mod registry;
mod standing;
#[cfg(test)]
mod tests;
mod watch;

pub(super) use driver::{Failover, instance_name};
pub use driver::{FailoverStatus, LastShift, SteerError, Steered};
pub(super) use metrics::FailoverMetrics;
pub use record::{Cause, Mode};
pub(super) use standing::{Course, Standing, Wish, gone};
pub(super) use watch::Settings;
pub use watch::Sight;
