//! Sources of what exists, and what they have in common.
//!
//! A source reads ids and hands them to a [`Sink`], which keeps them in a form that requests can be checked against;
//! [`Lookup`] asks again about ids that the sink does not have. [`postgres`] is the complete source: only what it has
//! read whole can be missing. [`peers`] tells what other instances have learnt. [`tables`] says where in Dify's database each kind is.

use futures_util::future::BoxFuture;

use crate::types::known::{IdKind, KnownId};
use crate::types::time::Now;

pub mod peers;
pub mod postgres;
pub mod tables;

/// Takes what a source finds. All calls for one kind come one after the other, and none may block or take long.
///
/// A reading of the whole of a kind is `begin`, any number of `page`s, then `complete` or `failed`; the set that was
/// known before stays in use until `complete` puts the new one in its place.
pub trait Sink: Send + Sync {
    /// The whole of `kind` is about to be read. `expected` is about how many will come; 0 if nobody knows.
    fn begin(&self, kind: IdKind, expected: u64);

    /// Some ids of the reading that has begun.
    fn page(&self, kind: IdKind, ids: &[KnownId]);

    /// The reading is complete: what was not in its pages, nor came by [`Sink::add`] since it began, does not exist.
    /// Holds for everything that was committed before `as_of`.
    fn complete(&self, kind: IdKind, as_of: Now);

    /// These exist now; most have been told before. Belongs to the set in use and to the reading that has begun.
    fn add(&self, kind: IdKind, ids: &[KnownId]);

    /// These have been told and exist no more. Comes only for kinds that are read whole each time
    /// ([`tables::Reading::Whole`]).
    fn gone(&self, kind: IdKind, ids: &[KnownId]);

    /// What was committed before `as_of` has been told, apart from rows that appeared very late.
    fn up_to_date(&self, kind: IdKind, as_of: Now);

    /// The kind could not be read this time; a reading that has begun is broken off. After [`SourceError::Schema`] all
    /// of it is told anew.
    fn failed(&self, kind: IdKind, error: &SourceError);
}

/// Tells of single ids whether they exist.
pub trait Lookup: Send + Sync {
    /// For each of `ids`, in their order, whether it exists now. Ends within twice the source's time-out.
    /// Better not dropped before: that costs a connection. The sink is told by who asks.
    ///
    /// # Errors
    /// When the source cannot tell.
    fn which_exist<'a>(
        &'a self,
        kind: IdKind,
        ids: &'a [KnownId],
    ) -> BoxFuture<'a, Result<Vec<bool>, SourceError>>;
}

/// Why a source could not tell what exists.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// No connection, or no answer in time. Concerns all kinds; passes by itself.
    #[error("no answer from the database: {0}")]
    Unreachable(String),
    /// A table or column is missing or not granted; names it, and what to do.
    #[error("{0}")]
    Schema(String),
    /// The database answers with an error; names the table.
    #[error("{0}")]
    Refused(String),
    /// The source knows nothing of this kind, or has not read it yet.
    #[error("nothing is known of any {}", .0.as_str())]
    Unknown(IdKind),
}
