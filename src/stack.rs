//! The request path: the one place where stages meet.
