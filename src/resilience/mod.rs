//! Stage `resilience`.
