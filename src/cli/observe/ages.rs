//! How old the first unfinished cell is where nobody reads: a look into the log for each such place, once, as long as the
//! place does not move.

use crate::{
    cell::{AddedId, Consistency, Millis, Name, ShardRef},
    store::Cells,
};
use futures_util::future::join_all;
use std::collections::BTreeMap;

/// Places that are looked at in one go.
const AT_ONCE: usize = 16;

/// Where the cells of a shard begin that are not finished.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) shard: ShardRef,
    pub(super) low: AddedId,
}

/// What is known of places.
#[derive(Debug, Default)]
pub(super) struct Ages(BTreeMap<Place, Option<Millis>>);

impl Ages {
    /// `created_at` of the first cell after a place, if it is known.
    pub(super) fn get(&self, place: &Place) -> Option<Millis> {
        if self.0.is_empty() { None } else { self.0.get(place).copied().flatten() }
    }

    /// These are of interest, and no others.
    pub(super) fn want(&mut self, places: Vec<Place>) {
        if !(places.is_empty() && self.0.is_empty()) {
            let known = std::mem::take(&mut self.0);
            self.0 = places.into_iter().map(|place| (place.clone(), known.get(&place).copied().flatten())).collect();
        }
    }

    /// Some whose age is not known.
    pub(super) fn unknown(&self) -> Vec<Place> {
        self.0.iter().filter(|(_, age)| age.is_none()).take(AT_ONCE).map(|(place, _)| place.clone()).collect()
    }

    pub(super) fn learn(&mut self, found: Vec<(Place, Millis)>) {
        for (place, created_at) in found {
            self.0.entry(place).and_modify(|known| *known = Some(created_at));
        }
    }
}

/// Asks the logs. What cannot be read is left out, and asked for again.
pub(super) async fn read(sources: &BTreeMap<Name, Cells>, places: Vec<Place>) -> Vec<(Place, Millis)> {
    let reads = places.into_iter().filter_map(|place| {
        let cells = sources.get(&place.shard.source)?.clone();
        Some(async move {
            let page = cells.log().page(place.shard.shard, place.low, 1, Consistency::Eventual).await.ok()?;
            Some((place, page.first()?.created_at))
        })
    });
    join_all(reads).await.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::ShardId;

    #[test]
    fn an_age_is_kept_as_long_as_its_place_is_wanted() {
        let place = |low| Place {
            shard: ShardRef { source: Name::new("trips").unwrap(), shard: ShardId(0) },
            low: AddedId(low),
        };
        let mut ages = Ages::default();
        ages.want(vec![place(1), place(2)]);
        assert_eq!(ages.unknown(), [place(1), place(2)]);
        ages.learn(vec![(place(2), Millis(5)), (place(3), Millis(6))]);
        assert_eq!((ages.get(&place(2)), ages.get(&place(3))), (Some(Millis(5)), None));
        ages.want(vec![place(2)]);
        assert_eq!((ages.get(&place(2)), ages.unknown()), (Some(Millis(5)), vec![]));
        ages.want(Vec::new());
        assert_eq!(ages.get(&place(2)), None);
    }
}
