//! Stage `cache`.
