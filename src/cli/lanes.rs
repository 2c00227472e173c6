//! The parked cells of a trigger as a whole, counted.

use crate::{
    cell::{Lane, LaneKind, Ledger, Parked, ParkedState, ShardRef, StoreError, TriggerId},
    store::lane_where,
};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use std::{iter::Sum, ops::Add};

/// Lanes that are read at a time.
const PARALLEL: usize = 8;

/// Parked cells by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Counts {
    pub(super) retrying: u64,
    pub(super) waiting: u64,
    pub(super) dead: u64,
}

impl Counts {
    pub(super) fn all(self) -> u64 {
        self.retrying + self.waiting + self.dead
    }
}

impl Add for Counts {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            retrying: self.retrying + other.retrying,
            waiting: self.waiting + other.waiting,
            dead: self.dead + other.dead,
        }
    }
}

impl Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Add::add)
    }
}

/// Both lanes of these shards.
fn lanes(trigger: &TriggerId, shards: &[ShardRef]) -> impl Iterator<Item = Lane> {
    shards.iter().flat_map(move |shard| {
        [LaneKind::Active, LaneKind::Dead].map(|kind| Lane { trigger: trigger.clone(), shard: shard.clone(), kind })
    })
}

/// Counts the parked cells of a trigger on these shards.
pub(super) async fn count(ledger: &dyn Ledger, trigger: &TriggerId, shards: &[ShardRef]) -> Result<Counts, StoreError> {
    let counts = stream::iter(lanes(trigger, shards)).map(|lane| count_lane(ledger, lane));
    Ok(counts.buffer_unordered(PARALLEL).try_collect::<Vec<Counts>>().await?.into_iter().sum())
}

async fn count_lane(ledger: &dyn Ledger, lane: Lane) -> Result<Counts, StoreError> {
    let mut counts = Counts::default();
    let count = |parked: &Parked| {
        match parked.state {
            ParkedState::Retrying => counts.retrying += 1,
            ParkedState::Waiting => counts.waiting += 1,
            ParkedState::Dead => counts.dead += 1,
        }
        false
    };
    lane_where(ledger, &lane, count).await?;
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cell::{AddedId, LaneChange, Millis, Name, Parked, ShardId},
        store::memory::MemoryLedger,
    };

    #[tokio::test]
    async fn all_lanes_of_one_trigger_are_counted() {
        let ledger = MemoryLedger::new();
        let shard = |n| ShardRef { source: Name::new("trips").unwrap(), shard: ShardId(n) };
        let states = [ParkedState::Retrying, ParkedState::Waiting, ParkedState::Dead, ParkedState::Dead];
        for (trigger, cells) in [("mine", 700_u64), ("other", 4)] {
            for n in 1..=cells {
                let parked = Parked {
                    trigger: TriggerId::from_stored(trigger),
                    shard: shard(u32::try_from(n % 3).unwrap()),
                    added_id: AddedId(n),
                    last: AddedId(n),
                    row_key: "row".into(),
                    column: "C".into(),
                    ref_key: n,
                    state: states[usize::try_from(n % 4).unwrap()],
                    attempts: 1,
                    errors: vec![],
                    next_attempt_at: Millis(0),
                    since: Millis(0),
                    revision: 1,
                };
                assert!(ledger.operate_parked(&[LaneChange::Put(parked)]).await.unwrap());
            }
        }
        let (mine, other) = (TriggerId::from_stored("mine"), TriggerId::from_stored("other"));
        let shards = [shard(0), shard(1), shard(2)];
        let counts = Counts { retrying: 175, waiting: 175, dead: 350 };
        assert_eq!(count(&ledger, &mine, &shards).await.unwrap(), counts);
        assert_eq!(count(&ledger, &other, &shards).await.unwrap().all(), 4);
    }
}
