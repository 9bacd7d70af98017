//! The route table: every URL rule of dify-api with its class, caching, tags, lane and time limit.
//!
//! One file per API, data only, one row per rule (two where methods differ). The words are explained in
//! `row`; a rule that is not here passes through and is stored only on explicit origin freshness.

mod console;
mod console_apps;
mod console_datasets;
mod console_workspaces;
mod other;
mod service_api;
mod web;

use super::row::Row;

/// Every row, in no order that matters.
pub(super) fn all() -> impl Iterator<Item = &'static Row> {
    [
        service_api::ROWS,
        web::ROWS,
        console::ROWS,
        console_apps::ROWS,
        console_datasets::ROWS,
        console_workspaces::ROWS,
        other::ROWS,
    ]
    .into_iter()
    .flatten()
}
