//! Where in Dify's database the things of each kind are: data only.
//!
//! A row counts as long as it is there. Dify deletes by removing rows; what it merely marks (`status`, `enabled`,
//! `archived`, `is_deleted`) some of its endpoints still show, so that such an id passes and Dify itself answers.
//! `config/guard-role.sql` grants these columns and no others.

use crate::types::known::IdKind;

/// How changes of a table are noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// Each refresh reads the rows that are new.
    Increments,
    /// Each refresh reads the whole table, so that also what was deleted or renamed is noticed. For small tables.
    Whole,
}

/// The table of one kind. Its primary key is `id`, a UUID.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    /// What the rows are.
    pub kind: IdKind,
    /// The table's name.
    pub name: &'static str,
    /// The column whose digest is the id; without it the primary key is the id.
    pub text: Option<&'static str>,
    /// A column and the value that the rows of this kind have there.
    pub only: Option<(&'static str, &'static str)>,
    /// When a row appeared, or its text changed: a timestamp in UTC.
    pub since: &'static str,
    /// How changes are noticed.
    pub reading: Reading,
}

/// The column of every primary key.
pub const ID: &str = "id";

/// Every kind that has a table. Codes of MCP servers and webhooks have none here: they cannot be told to be missing.
pub const TABLES: &[Table] = &[
    Table {
        kind: IdKind::AppKey,
        name: "api_tokens",
        text: Some("token"),
        only: Some(("type", "app")),
        since: "created_at",
        reading: Reading::Whole,
    },
    Table {
        kind: IdKind::DatasetKey,
        name: "api_tokens",
        text: Some("token"),
        only: Some(("type", "dataset")),
        since: "created_at",
        reading: Reading::Whole,
    },
    // A code can be given anew: the row stays, and only `updated_at` moves.
    Table {
        kind: IdKind::SiteCode,
        name: "sites",
        text: Some("code"),
        only: None,
        since: "updated_at",
        reading: Reading::Whole,
    },
    rows(IdKind::App, "apps"),
    rows(IdKind::Dataset, "datasets"),
    rows(IdKind::Document, "documents"),
    rows(IdKind::Segment, "document_segments"),
    rows(IdKind::ChildChunk, "child_chunks"),
    rows(IdKind::Conversation, "conversations"),
    rows(IdKind::Message, "messages"),
    rows(IdKind::UploadFile, "upload_files"),
    rows(IdKind::WorkflowRun, "workflow_runs"),
    rows(IdKind::Annotation, "message_annotations"),
];

const fn rows(kind: IdKind, name: &'static str) -> Table {
    Table {
        kind,
        name,
        text: None,
        only: None,
        since: "created_at",
        reading: Reading::Increments,
    }
}

/// Whether a kind is read whole each time, so that what is known of it is exact.
pub fn is_exact(kind: IdKind) -> bool {
    let whole = |table: &Table| table.kind == kind && table.reading == Reading::Whole;
    TABLES.iter().any(whole)
}

impl Table {
    /// All columns that are read.
    pub fn columns(&self) -> Vec<&'static str> {
        let only = self.only.map(|(column, _)| column);
        [Some(ID), only, self.text, Some(self.since)]
            .into_iter()
            .flatten()
            .collect()
    }
}
