//! Assignment: which worker should hold which shard. A pure function of stored facts, so that every worker computes the
//! same and acts only on its own part; nobody elects a leader.
//!
//! Rendezvous hashing with bounded load. A worker's load is at most its share, the shards divided by the workers, rounded
//! up. Whole tips buckets are placed first, since a worker polls the tips of every bucket in which it holds a shard; a bucket
//! that fits nowhere whole is placed shard by shard. When a worker comes or goes, mostly its own part moves.

use crate::cell::{Datastore, SessionId, ShardId};
use std::collections::BTreeSet;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The wanted owner of each shard of a datastore, by shard number; empty without workers.
#[must_use]
pub fn assign(datastore: &Datastore, workers: &BTreeSet<SessionId>) -> Vec<SessionId> {
    let workers: Vec<&SessionId> = workers.iter().collect();
    let Ok(number) = u32::try_from(workers.len()) else { return Vec::new() };
    if number == 0 {
        return Vec::new();
    }
    let most = datastore.shards.div_ceil(number);
    let seed = xxh3_64_with_seed(datastore.incarnation.as_str().as_bytes(), 0);
    let hashes: Vec<u64> = workers.iter().map(|worker| xxh3_64_with_seed(worker.as_str().as_bytes(), seed)).collect();
    let mut load = vec![0_u32; workers.len()];
    let mut owner = vec![usize::MAX; datastore.shards as usize];
    let buckets = datastore.buckets();
    let mut split = Vec::new();
    for bucket in 0..buckets {
        let shards: Vec<u32> = (bucket..datastore.shards).step_by(buckets as usize).collect();
        let size = u32::try_from(shards.len()).unwrap_or(u32::MAX);
        match place(&hashes, &load, most, size, u64::from(bucket) << 32) {
            Some(worker) => {
                load[worker] += size;
                shards.iter().for_each(|shard| owner[*shard as usize] = worker);
            }
            None => split.extend(shards),
        }
    }
    for shard in split {
        // Everybody's share together is at least all shards, so somebody has room.
        let worker = place(&hashes, &load, most, 1, u64::from(shard)).expect("the shares cover all shards");
        load[worker] += 1;
        owner[shard as usize] = worker;
    }
    owner.into_iter().map(|worker| workers[worker].clone()).collect()
}

/// The worker that likes `what` best among those with room for `size` more.
fn place(hashes: &[u64], load: &[u32], most: u32, size: u32, what: u64) -> Option<usize> {
    let room = (0..hashes.len()).filter(|worker| load[*worker] + size <= most);
    room.max_by_key(|worker| xxh3_64_with_seed(&what.to_le_bytes(), hashes[*worker]))
}

/// The shards that `me` should hold.
#[must_use]
pub fn wanted(assignment: &[SessionId], me: &SessionId) -> BTreeSet<ShardId> {
    let mine = assignment.iter().zip(0..).filter(|(owner, _)| *owner == me);
    mine.map(|(_, shard)| ShardId(shard)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::{Incarnation, Name};
    use proptest::prelude::*;

    fn datastore(shards: u32) -> Datastore {
        Datastore { name: Name::new("trips").unwrap(), shards, incarnation: Incarnation::from_stored("x") }
    }

    fn workers(seed: u64, n: usize) -> BTreeSet<SessionId> {
        (0..n).map(|i| SessionId::from_stored(&format!("{:x}", xxh3_64_with_seed(&i.to_le_bytes(), seed)))).collect()
    }

    proptest! {
        #[test]
        fn every_shard_has_one_owner_and_nobody_more_than_a_share(shards in 1_u32..600, n in 1_usize..12, seed: u64) {
            let workers = workers(seed, n);
            let assignment = assign(&datastore(shards), &workers);
            prop_assert_eq!(assignment.len(), shards as usize);
            let share = (shards as usize).div_ceil(n);
            for worker in &workers {
                prop_assert!(wanted(&assignment, worker).len() <= share);
            }
        }
    }

    #[test]
    fn a_worker_that_leaves_moves_less_of_the_others_than_a_plain_division_would() {
        for n in 2..=8_usize {
            let mut moved = 0;
            for seed in 0..40 {
                let before_workers = workers(seed, n);
                let before = assign(&datastore(4096), &before_workers);
                let gone = before_workers.first().unwrap().clone();
                let after = assign(&datastore(4096), &before_workers.into_iter().filter(|w| *w != gone).collect());
                moved += before.iter().zip(&after).filter(|(b, a)| b != a && **b != gone).count();
            }
            // `shard mod n` moves all but one in n.
            let plain = 40 * 4096 * (n - 1) / n * (n - 1) / n;
            assert!(moved < plain / 2, "{n} workers: {moved} moved that had a living owner, plainly {plain}");
        }
    }

    #[test]
    fn buckets_stay_whole_where_they_fit() {
        let store = datastore(4096);
        let workers = workers(7, 4);
        let assignment = assign(&store, &workers);
        for worker in &workers {
            let buckets: BTreeSet<u32> = wanted(&assignment, worker).iter().map(|shard| store.bucket(*shard)).collect();
            assert_eq!(buckets.len(), 16, "1024 shards in 16 buckets of 64");
        }
    }
}
