//! Stage `wire`.
