//! Which replicas an upstream has at this moment.
//!
//! A replica keeps its place, a small number, for as long as it is a member. One that leaves gets no more requests and
//! keeps its place until those in flight have ended; then the place is free for another. Who holds a replica from a
//! place may go on using it: it is counted by itself, not by its place.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::replica::Replica;

/// Replicas by place.
#[derive(Default)]
pub(super) struct Members(ArcSwap<Vec<Option<Arc<Replica>>>>);

impl Members {
    /// Those there are, with their places, in ascending order of place.
    pub(super) fn all(&self) -> impl Iterator<Item = (usize, Arc<Replica>)> + Clone + use<> {
        let places = self.0.load_full();
        (0..places.len()).filter_map(move |place| Some((place, places[place].clone()?)))
    }

    /// The same for a look that is soon over.
    pub(super) fn with<T>(&self, look: impl FnOnce(&[Option<Arc<Replica>>]) -> T) -> T {
        look(&self.0.load())
    }

    /// The place that the next one to come gets.
    pub(super) fn next_place(&self) -> usize {
        self.with(|places| places.iter().position(Option::is_none).unwrap_or(places.len()))
    }

    /// Gives `replica` the place that its endpoint names. Callers take turns.
    pub(super) fn join(&self, replica: Arc<Replica>) {
        self.change(|places| {
            let place = replica.endpoint.replica;
            if places.len() <= place {
                places.resize_with(place + 1, || None);
            }
            places[place] = Some(replica);
        });
    }

    /// Frees a place. Callers take turns.
    pub(super) fn free(&self, place: usize) {
        self.change(|places| places[place] = None);
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Option<Arc<Replica>>>)) {
        let mut places = Vec::clone(&self.0.load());
        change(&mut places);
        self.0.store(Arc::new(places));
    }
}
