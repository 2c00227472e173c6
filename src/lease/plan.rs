//! Assignment: which worker should hold which shard. A pure function of stored facts, so that every worker computes the
//! same and acts only on its own part; nobody elects a leader.
//!
//! Rendezvous hashing with bounded load. A worker's load is at most its share, the shards in proportion to its weight, rounded
//! up. Whole tips buckets are placed first, since a worker polls the tips of every bucket in which it holds a shard; a bucket
//! that fits nowhere whole is placed shard by shard. When a worker comes or goes, mostly its own part moves.
//!
//! All of it is done in whole numbers: a floating-point logarithm may differ from one host to the next in its last bit.

use crate::cell::{Datastore, SessionId, ShardId};
use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The newest plan that this release knows. All workers follow the lowest that one of them knows, so that a group of two
/// releases agrees. 1: all workers have equal shares. 2: shares are in proportion to the weights.
pub(super) const PLAN: u32 = 2;

/// A worker to whom a shard may be given.
#[derive(Clone, Copy)]
struct Bidder {
    hash: u64,
    weight: u32,
    /// Most shards.
    most: u64,
    load: u64,
}

/// The wanted owner of each shard of a datastore, by shard number, among workers with their weights; empty without workers.
/// `plan` is the lowest that any worker of the group knows.
#[must_use]
pub fn assign(datastore: &Datastore, workers: &BTreeMap<SessionId, u32>, plan: u32) -> Vec<SessionId> {
    let weight = |weight: u32| if plan < 2 { 1 } else { weight.max(1) };
    let all: u64 = workers.values().map(|of| u64::from(weight(*of))).sum();
    if all == 0 {
        return Vec::new();
    }
    let seed = xxh3_64_with_seed(datastore.incarnation.as_str().as_bytes(), 0);
    let bidder = |(worker, of): (&SessionId, &u32)| {
        let weight = weight(*of);
        let most = (u64::from(datastore.shards) * u64::from(weight)).div_ceil(all);
        Bidder { hash: xxh3_64_with_seed(worker.as_str().as_bytes(), seed), weight, most, load: 0 }
    };
    let mut bidders: Vec<Bidder> = workers.iter().map(bidder).collect();
    let mut owner = vec![usize::MAX; datastore.shards as usize];
    let buckets = datastore.buckets();
    let mut split = Vec::new();
    for bucket in 0..buckets {
        let shards: Vec<u32> = (bucket..datastore.shards).step_by(buckets as usize).collect();
        match place(&bidders, shards.len() as u64, u64::from(bucket) << 32) {
            Some(worker) => {
                bidders[worker].load += shards.len() as u64;
                shards.iter().for_each(|shard| owner[*shard as usize] = worker);
            }
            None => split.extend(shards),
        }
    }
    for shard in split {
        // Everybody's share together is at least all shards, so somebody has room.
        let worker = place(&bidders, 1, u64::from(shard)).expect("the shares cover all shards");
        bidders[worker].load += 1;
        owner[shard as usize] = worker;
    }
    let workers: Vec<&SessionId> = workers.keys().collect();
    owner.into_iter().map(|worker| workers[worker].clone()).collect()
}

/// The worker that likes `what` best among those with room for `size` more.
fn place(bidders: &[Bidder], size: u64, what: u64) -> Option<usize> {
    let with_room = bidders.iter().enumerate().filter(|(_, bidder)| bidder.load + size <= bidder.most);
    let bids = with_room.map(|(at, bidder)| {
        let hash = xxh3_64_with_seed(&what.to_le_bytes(), bidder.hash);
        (at, hash, distance(hash), bidder.weight)
    });
    // The shortest distance by weight wins: a worker of weight 3 does three times as often as one of weight 1. Between equal
    // weights the higher hash does.
    let by_liking = |a: &(usize, u64, u64, u32), b: &(usize, u64, u64, u32)| -> Ordering {
        let (of_a, of_b) = (u128::from(a.2) * u128::from(b.3), u128::from(b.2) * u128::from(a.3));
        of_b.cmp(&of_a).then(a.1.cmp(&b.1))
    };
    bids.max_by(by_liking).map(|(at, ..)| at)
}

/// `-log2((hash + 1) / 2^64)`, in units of 2^-32: evenly spread hashes become exponentially spread distances.
fn distance(hash: u64) -> u64 {
    let number = u128::from(hash) + 1;
    let whole = 127 - number.leading_zeros();
    // Between 1 and 2, in units of 2^-63.
    let mut rest = if whole > 63 { number >> (whole - 63) } else { number << (63 - whole) };
    let mut log = u64::from(whole);
    for _ in 0..32 {
        rest = (rest * rest) >> 63;
        let bit = u64::from(rest >> 64 != 0);
        rest >>= bit;
        log = (log << 1) | bit;
    }
    (64 << 32) - log
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

    fn weighted(seed: u64, weights: &[u32]) -> BTreeMap<SessionId, u32> {
        let id = |i: usize| SessionId::from_stored(&format!("{:x}", xxh3_64_with_seed(&i.to_le_bytes(), seed)));
        weights.iter().enumerate().map(|(i, weight)| (id(i), *weight)).collect()
    }

    fn workers(seed: u64, n: usize) -> BTreeMap<SessionId, u32> {
        weighted(seed, &vec![1; n])
    }

    /// Plan 1, said in another way: the highest hash wins.
    fn plainly(datastore: &Datastore, workers: &BTreeMap<SessionId, u32>) -> Vec<SessionId> {
        let seed = xxh3_64_with_seed(datastore.incarnation.as_str().as_bytes(), 0);
        let most = datastore.shards.div_ceil(u32::try_from(workers.len()).unwrap());
        let mut load: BTreeMap<&SessionId, u32> = workers.keys().map(|worker| (worker, 0)).collect();
        let mut owner: BTreeMap<u32, SessionId> = BTreeMap::new();
        let mut give = |shards: &[u32], what: u64| {
            let size = u32::try_from(shards.len()).unwrap();
            let likes = |worker: &SessionId| {
                let own = xxh3_64_with_seed(worker.as_str().as_bytes(), seed);
                xxh3_64_with_seed(&what.to_le_bytes(), own)
            };
            let with_room = load.iter().filter(|(_, load)| **load + size <= most).map(|(worker, _)| *worker);
            let Some(best) = with_room.max_by_key(|worker| likes(worker)) else { return false };
            *load.get_mut(best).unwrap() += size;
            owner.extend(shards.iter().map(|shard| (*shard, best.clone())));
            true
        };
        let of = |bucket: u32| -> Vec<u32> {
            (0..datastore.shards).filter(|shard| shard % datastore.buckets() == bucket).collect()
        };
        let whole = (0..datastore.buckets()).filter(|bucket| !give(&of(*bucket), u64::from(*bucket) << 32));
        for bucket in whole.collect::<Vec<_>>() {
            of(bucket).iter().for_each(|shard| assert!(give(&[*shard], u64::from(*shard))));
        }
        owner.into_values().collect()
    }

    proptest! {
        #[test]
        fn every_shard_has_one_owner_and_nobody_more_than_a_share(
            shards in 1_u32..600, weights in prop::collection::vec(1_u32..=100, 1..12), seed: u64,
        ) {
            let workers = weighted(seed, &weights);
            let assignment = assign(&datastore(shards), &workers, PLAN);
            prop_assert_eq!(assignment.len(), shards as usize);
            let all: u32 = weights.iter().sum();
            for (worker, weight) in &workers {
                let (most, has) = ((shards * weight).div_ceil(all) as usize, wanted(&assignment, worker).len());
                prop_assert!(has <= most, "{has} of {most}");
                prop_assert!(has + weights.len() > most, "{has} of {most}: what others round up is missing");
            }
        }

        /// A group of this release and the one before, which knows plan 1 alone, agrees; and while all weigh the same, both
        /// plans say the same.
        #[test]
        fn plan_1_is_what_it_always_was(
            shards in 1_u32..600, weights in prop::collection::vec(1_u32..=100, 1..12), seed: u64,
        ) {
            let (store, workers) = (datastore(shards), weighted(seed, &weights));
            let plain = plainly(&store, &workers);
            prop_assert_eq!(&assign(&store, &workers, 1), &plain);
            let even = workers.into_keys().map(|worker| (worker, weights[0])).collect();
            prop_assert_eq!(assign(&store, &even, 2), plain);
        }

        #[test]
        fn a_distance_is_a_logarithm_and_falls_with_the_hash(a: u64, b: u64) {
            #[expect(clippy::cast_precision_loss, reason = "compared roughly")]
            let about = |hash: u64| 64.0 - (hash as f64 + 1.0).log2();
            #[expect(clippy::cast_precision_loss, reason = "compared roughly")]
            let told = distance(a) as f64 / f64::from(u32::MAX);
            prop_assert!((told - about(a)).abs() < 1e-6, "{told} {}", about(a));
            prop_assert!(a >= b || distance(a) >= distance(b));
        }
    }

    #[test]
    fn the_ends_of_a_distance() {
        assert_eq!((distance(u64::MAX), distance(0)), (0, 64 << 32));
        assert_eq!((distance((1 << 63) - 1), distance(1)), (1 << 32, 63 << 32));
    }

    #[test]
    fn shards_follow_the_weights() {
        let workers = weighted(3, &[1, 2, 5]);
        let assignment = assign(&datastore(4096), &workers, 2);
        let mut shares: Vec<(u32, usize)> =
            workers.iter().map(|(worker, weight)| (*weight, wanted(&assignment, worker).len())).collect();
        shares.sort_unstable();
        assert_eq!(shares, [(1, 512), (2, 1024), (5, 2560)]);
    }

    #[test]
    fn a_worker_that_leaves_moves_less_of_the_others_than_a_plain_division_would() {
        for weights in [vec![1; 8], vec![1, 2, 3, 4, 5, 6, 7, 8]] {
            for n in 2..=8_usize {
                let mut moved = 0;
                for seed in 0..40 {
                    let before_workers = weighted(seed, &weights[..n]);
                    let before = assign(&datastore(4096), &before_workers, PLAN);
                    let gone = before_workers.first_key_value().unwrap().0.clone();
                    let after_workers = before_workers.into_iter().filter(|(worker, _)| *worker != gone).collect();
                    let after = assign(&datastore(4096), &after_workers, PLAN);
                    moved += before.iter().zip(&after).filter(|(b, a)| b != a && **b != gone).count();
                }
                // `shard mod n` moves all but one in n.
                let plain = 40 * 4096 * (n - 1) / n * (n - 1) / n;
                assert!(moved < plain / 2, "{n} workers: {moved} moved that had a living owner, plainly {plain}");
            }
        }
    }

    #[test]
    fn buckets_stay_whole_where_they_fit() {
        let store = datastore(4096);
        let workers = workers(7, 4);
        let assignment = assign(&store, &workers, PLAN);
        for worker in workers.keys() {
            let buckets: BTreeSet<u32> = wanted(&assignment, worker).iter().map(|shard| store.bucket(*shard)).collect();
            assert_eq!(buckets.len(), 16, "1024 shards in 16 buckets of 64");
        }
    }
}
