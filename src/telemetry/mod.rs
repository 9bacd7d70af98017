//! How the process speaks of itself: metrics and logs. A leaf that every stage may import.

pub mod logging;
