//! Whether the shared tier is asked at all: one load per request, whatever state it is in.
//!
//! Consecutive failures close the gate; only new connections and probes in the background open it again, so a store that hangs costs
//! a few requests its deadline and the others nothing.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Failures in a row that close the gate.
const FAILURES: u32 = 5;
/// Good probes in a row that open it.
const PROBES: u32 = 2;

/// Closed at first.
#[derive(Debug, Default)]
pub(in crate::cache) struct Gate {
    open: AtomicBool,
    failures: AtomicU32,
    probes: AtomicU32,
}

impl Gate {
    /// Whether the tier may be asked.
    pub(in crate::cache) fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    /// A command was answered in time.
    pub(in crate::cache) fn succeeded(&self) {
        // Read first: the line is shared by all who ask.
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// A command failed or took too long. Tells whether this one closed the gate.
    pub(in crate::cache) fn failed(&self) -> bool {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        failures >= FAILURES && self.close()
    }

    /// Closes the gate; tells whether it was open.
    pub(in crate::cache) fn close(&self) -> bool {
        self.probes.store(0, Ordering::Relaxed);
        self.open.swap(false, Ordering::Relaxed)
    }

    /// New connections were made and looked at.
    pub(in crate::cache) fn open(&self) {
        self.failures.store(0, Ordering::Relaxed);
        self.open.store(true, Ordering::Relaxed);
    }

    /// What a probe found; tells whether it opened the gate.
    pub(in crate::cache) fn probed(&self, good: bool) -> bool {
        if self.is_open() {
            return false;
        }
        if !good {
            self.probes.store(0, Ordering::Relaxed);
            return false;
        }
        if self.probes.fetch_add(1, Ordering::Relaxed) + 1 < PROBES {
            return false;
        }
        self.failures.store(0, Ordering::Relaxed);
        !self.open.swap(true, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_good_probes_and_closes_after_failures_in_a_row() {
        let gate = Gate::default();
        assert!(!gate.is_open(), "nothing is known yet");
        assert!(!gate.probed(true));
        assert!(!gate.probed(false), "a bad probe begins anew");
        assert!(!gate.probed(true));
        assert!(gate.probed(true) && gate.is_open());

        for _ in 0..FAILURES - 1 {
            assert!(!gate.failed());
        }
        gate.succeeded();
        for _ in 0..FAILURES - 1 {
            assert!(!gate.failed(), "the failures were not in a row");
        }
        assert!(gate.failed() && !gate.is_open());
        assert!(!gate.failed(), "it is closed once");
        gate.succeeded();
        assert!(!gate.is_open(), "a late answer does not open it");
        gate.open();
        assert!(gate.is_open() && !gate.failed(), "new connections begin anew");
    }
}
