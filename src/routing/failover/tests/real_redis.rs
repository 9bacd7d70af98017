//! The scripts of [`Redis`](super::super::redis) beside the [`Ledger`]: the same steps give the same answers.
