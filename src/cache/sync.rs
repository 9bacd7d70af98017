//! What the cache's shared state is made of, and how large its table of tags is. The tests of interleavings compile
//! the same files over types whose every step the test schedules.

pub(super) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

pub(super) use parking_lot::Mutex;

/// Slots of the table of tags. Few in tests, which make a table for each of thousands of cases.
pub(super) const TAG_SLOTS: usize = if cfg!(test) { 1 << 12 } else { 1 << 16 };
