//! Trim: deletes the old part of a shard's log. The cells themselves stay, and can be got by their address.
//!
//! `trimmed_to` is raised first, then the segments go in ascending order: whoever reads meanwhile finds every hole explained.
//! A trim that was interrupted is finished by the next one.

use super::TailError;
use crate::cell::{AddedId, Ledger, Log, Name, ShardId, ShardRef, StoreError};
use std::time::Duration;

/// Keys of segments that are read at a time.
const PAGE: u32 = 500;
/// How often a request that may pass is made before a trim gives up.
const TRIES: u32 = 8;

/// A trigger that has not finished the cells after a place, and so keeps them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Keeper {
    /// Every cell up to here is finished.
    pub low: AddedId,
    /// Its group.
    pub group: Name,
    /// Its name.
    pub trigger: Name,
}

/// The trigger of a group that is furthest behind on a shard; `None` when no trigger of the group tails it. Read strongly.
///
/// # Errors
/// When the group's tables cannot be read.
pub async fn keeper(
    ledger: &dyn Ledger,
    group: &Name,
    datastore: &Name,
    shard: ShardId,
) -> Result<Option<Keeper>, StoreError> {
    let triggers = ledger.triggers().await?;
    let lease = ledger.lease(&ShardRef { source: datastore.clone(), shard }).await?;
    let keepers = triggers.into_iter().filter(|trigger| trigger.source == *datastore).map(|trigger| {
        let checkpoint = lease.as_ref().and_then(|lease| lease.checkpoints.get(&trigger.id));
        let start = || trigger.start.as_ref().and_then(|start| start.get(shard.0 as usize).copied());
        // One that was not started yet, and not at `newest`, may begin at the oldest cell.
        let low = checkpoint.map(|checkpoint| checkpoint.low).or_else(start).unwrap_or_default();
        Keeper { low, group: group.clone(), trigger: trigger.name }
    });
    Ok(keepers.min())
}

/// Deletes the segments of a shard up to a place, and says how many. A segment that reaches beyond the place stays.
///
/// # Errors
/// When the store does not answer. What was deleted stays deleted; the same trim again goes on.
pub async fn trim(log: &dyn Log, shard: ShardId, to: AddedId) -> Result<u64, TailError> {
    if to == AddedId(0) {
        return Ok(0);
    }
    // Refused: it is as high already, or higher.
    patiently(|| log.raise_trim(shard, to)).await?;
    let mut deleted = 0;
    let mut after = AddedId(0);
    loop {
        let keys = patiently(|| log.keys(shard, after, PAGE)).await?;
        let Some(end) = keys.last().map(|key| key.last) else { return Ok(deleted) };
        for key in keys {
            if key.last > to {
                return Ok(deleted);
            }
            patiently(|| log.delete_segment(shard, key.last)).await?;
            deleted += 1;
        }
        after = end;
    }
}

/// Makes a request that may be repeated at will until it is answered.
async fn patiently<T, F: Future<Output = Result<T, StoreError>>>(request: impl Fn() -> F) -> Result<T, StoreError> {
    let mut failures = 0;
    loop {
        match request().await {
            Err(error) if error.kind.may_pass() && failures < TRIES => {
                failures += 1;
                let bound = Duration::from_millis(20) * (1 << failures);
                tokio::time::sleep(bound.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            }
            answer => return answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cell::{
            CellKey, Checkpoint, Incarnation, LeaseWrite, NewCell, NewDatastore, SessionId, TriggerId, TriggerRecord,
            TriggerState,
        },
        store::{
            Cells,
            memory::{MemoryLedger, MemoryLog},
        },
        tail::{Entry, run},
    };
    use std::{collections::BTreeMap, sync::Arc};

    const SHARD: ShardId = ShardId(0);

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    #[tokio::test]
    async fn whole_segments_go_and_readers_see_why() {
        let log = Arc::new(MemoryLog::new(&NewDatastore { name: name("trips"), shards: 1 }));
        let cells = Cells::new(log.clone());
        for batch in 0..4 {
            let cell = |i: u64| {
                let key = CellKey { row_key: "r".into(), column: "C".into(), ref_key: batch * 3 + i };
                NewCell { key, body: "1".into(), origin: None }
            };
            assert!(cells.put((0..3).map(cell).collect()).await.iter().all(Result::is_ok));
        }
        // 1-3, 4-6, 7-9, 10-12: the segment that holds 8 reaches to 9 and stays.
        assert_eq!(trim(&*log, SHARD, AddedId(8)).await.unwrap(), 2);
        assert_eq!(trim(&*log, SHARD, AddedId(5)).await.unwrap(), 0, "never backwards");
        assert_eq!(log.tip(SHARD).await.unwrap().unwrap().trimmed_to, AddedId(8));
        let read = run(&*log, SHARD, AddedId(0), 10, AddedId(12)).await.unwrap();
        assert_eq!(read.entries[0], Entry::Trimmed { first: AddedId(1), last: AddedId(6) });
        let read = run(&*log, SHARD, AddedId(6), 10, AddedId(12)).await.unwrap();
        assert_eq!(read.end(AddedId(6)), AddedId(12));
        let key = CellKey { row_key: "r".into(), column: "C".into(), ref_key: 0 };
        assert!(log.get(&key).await.unwrap().is_some(), "the cell itself stays");
    }

    #[tokio::test]
    async fn the_trigger_that_is_furthest_behind_keeps_the_log() {
        let ledger = MemoryLedger::new();
        let (group, trips) = (name("g"), name("trips"));
        let keeper = async || keeper(&ledger, &group, &trips, SHARD).await.unwrap();
        assert_eq!(keeper().await, None);
        let register = async |text: &str, source: &str, start: Option<u64>| {
            let record = TriggerRecord {
                id: TriggerId::random(),
                name: name(text),
                formerly: Default::default(),
                source: name(source),
                incarnation: Incarnation::random(),
                state: TriggerState::Active,
                generation: 0,
                start: start.map(|place| [AddedId(place)].into()),
                revision: 0,
            };
            ledger.register(&record).await.unwrap();
            record.id
        };
        let told =
            |low, trigger: &str| Some(Keeper { low: AddedId(low), group: group.clone(), trigger: name(trigger) });
        register("elsewhere", "rides", None).await;
        assert_eq!(keeper().await, None);
        register("late", "trips", Some(7)).await;
        assert_eq!(keeper().await, told(7, "late"), "it begins there");
        let fresh = register("fresh", "trips", None).await;
        assert_eq!(keeper().await, told(0, "fresh"), "it may begin at the oldest cell");
        let shard = ShardRef { source: trips.clone(), shard: SHARD };
        let owner = SessionId::random();
        ledger.claim(&shard, &Incarnation::random(), &owner, None).await.unwrap();
        let checkpoint = Checkpoint { low: AddedId(9), ..Checkpoint::default() };
        let write = LeaseWrite {
            shard,
            owner,
            epoch: crate::cell::Epoch(1),
            seq: 1,
            checkpoints: BTreeMap::from([(fresh, checkpoint)]),
            lanes: Vec::new(),
            release: false,
        };
        ledger.write(&write).await.unwrap();
        assert_eq!(keeper().await, told(7, "late"));
    }
}
