//! The administrative listener: `/live`, `/ready`, `/metrics`, `/config`.
//!
//! It has its own address, loopback by default, and only reads. It sees the stages through their control
//! handles.

mod server;

pub use server::{Admin, AdminParts};
