//! The twin of the cache's `sync`: every step of these is the scheduler's to order.

pub(super) use shuttle::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Few, because a table is made for every schedule.
pub(super) const TAG_SLOTS: usize = 8;

/// A lock with the interface of parking_lot's.
#[derive(Debug, Default)]
pub(super) struct Mutex<T>(shuttle::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(super) fn lock(&self) -> shuttle::sync::MutexGuard<'_, T> {
        self.0.lock().expect("nobody panicked")
    }
}
