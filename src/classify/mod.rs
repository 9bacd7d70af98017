//! Stage `classify`.
