//! Where stored answers live.

pub mod l1_memory;
