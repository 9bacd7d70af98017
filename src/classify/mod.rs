//! Stage `classify`: says what a request is, before anything is done with it.
//!
//! wire → **classify** → cache. From method, raw path, query and fields it finds the route of dify-api (the
//! table in `dify_routes`), whose answer it is (`principal`), what the answer depends on and what the request
//! changes (tags), and which limits hold. [`Classifier::decide`] is pure; [`Classify`] puts it before the next
//! stage, refuses bodies that are too long and looks for the `user`, or the conversation, in the small bodies of writes.

mod asks;
mod body_limit;
mod body_peek;
mod decide;
mod dify_routes;
mod learns;
mod preview;
mod principal;
mod row;
mod service;
mod templates;
#[cfg(test)]
mod tests;
mod upstreams;
mod user;
mod works;

pub use decide::Classifier;
pub use preview::{NamedTag, Reasons};
pub use service::{Classify, ClassifyFuture, ClassifyLayer};

/// The template of every known route, and `*`, which stands for all others; sorted.
pub fn route_templates() -> Vec<&'static str> {
    let mut templates: Vec<_> = dify_routes::all().map(|row| row.template).collect();
    templates.push(decide::UNKNOWN);
    templates.sort_unstable();
    templates.dedup();
    templates
}
