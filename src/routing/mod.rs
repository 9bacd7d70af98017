//! Stage `routing`.
