//! `dify-edge demo`: the main job shown without a Dify at hand.

pub mod load;
pub mod replay;
