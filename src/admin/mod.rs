//! Stage `admin`.
