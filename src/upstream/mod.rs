//! Stage `upstream`.
