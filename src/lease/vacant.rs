//! Shards that the assignment gives to this worker and that nobody holds: somebody has to speak for them.
//!
//! As a rule they are claimed at once. One that cannot be, because the store does not answer or its lease belongs to
//! another incarnation, would be in nobody's metrics, just when a person has to know of it.

use crate::cell::{Lease, ShardRef};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tokio::time::Instant;

/// A shard that nobody holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vacant {
    /// Since when this worker has seen it so.
    pub since: Instant,
    /// As last read, with its checkpoints; `None` where it was not read, or there is none yet.
    pub lease: Option<Arc<Lease>>,
}

/// All of them.
pub type AllVacant = BTreeMap<ShardRef, Vacant>;

/// What a coordinator knows of them.
#[derive(Default)]
pub(super) struct Vacancies {
    /// With checkpoints, of shards that are wanted and not held.
    leases: BTreeMap<ShardRef, Arc<Lease>>,
    all: Arc<AllVacant>,
}

impl Vacancies {
    /// A lease of a wanted shard that is not held, as it was read.
    pub(super) fn know(&mut self, lease: &Lease) {
        self.leases.insert(lease.shard.clone(), Arc::new(lease.clone()));
    }

    /// These are vacant, and no others.
    pub(super) fn are(&mut self, vacant: &BTreeSet<ShardRef>, now: Instant) {
        self.leases.retain(|shard, _| vacant.contains(shard));
        let lease = |shard: &ShardRef| self.leases.get(shard).cloned();
        let same = self.all.len() == vacant.len()
            && self.all.iter().all(|(shard, known)| vacant.contains(shard) && known.lease == lease(shard));
        if !same {
            let since = |shard: &ShardRef| self.all.get(shard).map_or(now, |known| known.since);
            let all = vacant.iter().map(|shard| (shard.clone(), Vacant { since: since(shard), lease: lease(shard) }));
            self.all = Arc::new(all.collect());
        }
    }

    /// As of now.
    pub(super) fn all(&self) -> &Arc<AllVacant> {
        &self.all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::{Epoch, Incarnation, Millis, Name, ShardId};
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn a_vacancy_lasts_until_it_is_filled() {
        let shard = |n| ShardRef { source: Name::new("trips").unwrap(), shard: ShardId(n) };
        let lease = |epoch| Lease {
            shard: shard(1),
            incarnation: Incarnation::from_stored("x"),
            owner: None,
            epoch: Epoch(epoch),
            seq: 0,
            claimed_at: Millis(7),
            checkpoints: BTreeMap::new(),
            deaths: 0,
            alone: None,
        };
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut vacancies = Vacancies::default();
        vacancies.know(&lease(3));
        vacancies.are(&[shard(1), shard(2)].into(), start);
        let before = vacancies.all().clone();
        assert_eq!(before[&shard(1)], Vacant { since: start, lease: Some(Arc::new(lease(3))) });
        assert_eq!(before[&shard(2)], Vacant { since: start, lease: None });
        vacancies.are(&[shard(1), shard(2)].into(), start + second);
        assert!(Arc::ptr_eq(&before, vacancies.all()), "nothing to publish");
        vacancies.know(&lease(4));
        vacancies.are(&[shard(1), shard(3)].into(), start + second);
        let since: Vec<Instant> = vacancies.all().values().map(|vacant| vacant.since).collect();
        assert_eq!(since, [start, start + second]);
        assert_eq!(vacancies.all()[&shard(1)].lease, Some(Arc::new(lease(4))));
        vacancies.are(&BTreeSet::new(), start + second);
        assert!(vacancies.all().is_empty() && vacancies.leases.is_empty());
    }
}
