//! The end of a trigger: an operator's verb of several requests, that can be cut off anywhere and asked for again.
//!
//! The parked cells go first: until then the trigger is still there. Then its record says so, which is final: every worker that
//! reads it begins no call more and writes nothing more for the trigger. When all have had the time to hear of it, what they
//! parked meanwhile goes, and its checkpoints after that, since whoever looks for what is left finds it by these ([`remains`]).
//! A worker may beat and still not hear for a while, or a write of its may arrive late: what that leaves is found in the same way.

use super::nudge_all;
use crate::{
    cell::{
        AddedId, Answer, Lane, LaneChange, LaneKind, Ledger, Name, Out, Role, Session, SessionId, SessionState,
        ShardRef, StoreError, TriggerId, TriggerRecord, TriggerState, clock, planted,
    },
    store::patiently,
};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// How often a change is decided anew because somebody else changed the same.
const TRIES: u32 = 8;
/// How often it is looked whether the workers have heard of it.
const LOOKS: Duration = Duration::from_millis(500);
/// Leases and lanes that are read, or emptied, at a time.
const PARALLEL: usize = 8;
/// Parked cells that one transaction gives up.
const DROPS: usize = 90;

/// Why a trigger's end was cut off. Asked for again, it goes on.
#[derive(Debug, thiserror::Error)]
pub enum RetireError {
    /// A request was not answered.
    #[error("the group's tables cannot be read or written")]
    Store(#[from] StoreError),
    /// Its record is written by others again and again.
    #[error("trigger {0} is being changed by others all the time; try again")]
    Changing(Name),
    /// Its parked cells are.
    #[error("the parked cells of {0} change all the time; try again")]
    Parking(ShardRef),
}

/// Ends a trigger: nobody calls it any more, its names are free, and nothing of it is left on `shards`, which are all those of
/// its datastore. Also for one that was retired before, of which something is left. Takes at least two heartbeats of the
/// slowest worker. `told` hears how many parked cells were given up, each time some were.
///
/// # Errors
/// See [`RetireError`].
pub async fn retire(
    ledger: &dyn Ledger,
    record: &TriggerRecord,
    shards: &[ShardRef],
    told: impl Fn(u64),
) -> Result<(), RetireError> {
    let id = &record.id;
    if record.state != TriggerState::Retired {
        drop_all(ledger, id, shards, &told).await?;
        change(ledger, record.clone(), |record| {
            let retired = TriggerRecord { state: TriggerState::Retired, ..record };
            Some(Box::pin(async move { ledger.update_trigger(&retired).await }))
        })
        .await?;
    }
    is_heard(ledger).await?;
    if !planted::is("what is parked until the workers hear of a retirement is left") {
        drop_all(ledger, id, shards, &told).await?;
    }
    let forgets: Vec<_> = shards.iter().map(|shard| forget(ledger, id, shard, &told)).collect();
    stream::iter(forgets).buffer_unordered(PARALLEL).try_collect().await
}

/// Triggers that went by a name, are retired, and of which something is left in a datastore's leases: their end was cut off, or
/// a worker wrote for them when it was over.
///
/// # Errors
/// When the store does not answer.
pub async fn remains(ledger: &dyn Ledger, source: &Name, name: &Name) -> Result<Vec<TriggerRecord>, StoreError> {
    let registered = patiently(|| ledger.triggers()).await?;
    let registered: BTreeSet<&TriggerId> = registered.iter().map(|record| &record.id).collect();
    let leases = patiently(|| ledger.leases(source)).await?;
    let known: BTreeSet<&TriggerId> = leases.iter().flat_map(|lease| lease.checkpoints.keys()).collect();
    let mut found = Vec::new();
    for id in known.difference(&registered) {
        let record = patiently(|| ledger.retired(id)).await?;
        found.extend(record.filter(|record| record.goes_by(name)));
    }
    Ok(found)
}

/// Waits until every worker has had the time to stop: it has beaten twice since it was nudged, the second time after it looked;
/// or it has not beaten for as long as its session lasts.
async fn is_heard(ledger: &dyn Ledger) -> Result<(), StoreError> {
    patiently(|| nudge_all(ledger)).await?;
    let begun = clock::now();
    let mut before: Option<BTreeMap<SessionId, u64>> = None;
    loop {
        let sessions = patiently(|| ledger.sessions()).await?;
        let beats: BTreeMap<SessionId, u64> = sessions.iter().map(|one| (one.id.clone(), one.beat)).collect();
        let before = before.get_or_insert(beats);
        let works = |one: &&Session| one.role == Role::Worker && one.state != SessionState::Dead;
        let waits = |one: &Session| {
            before.get(&one.id).is_some_and(|beat| one.beat < beat + 2) && clock::since(begun) < one.length
        };
        if !sessions.iter().filter(works).any(waits) {
            return Ok(());
        }
        clock::sleep(LOOKS).await;
    }
}

/// Removes its checkpoint from a lease, then what was parked with it since its lanes were emptied: a cell is parked together
/// with a checkpoint, so that what comes later is found by that.
async fn forget(ledger: &dyn Ledger, id: &TriggerId, shard: &ShardRef, told: &impl Fn(u64)) -> Result<(), RetireError> {
    let lease = patiently(|| ledger.lease(shard)).await?;
    if lease.is_none_or(|lease| !lease.checkpoints.contains_key(id)) {
        return Ok(());
    }
    patiently(|| ledger.forget_checkpoint(shard, id)).await?;
    if planted::is("what is parked until the workers hear of a retirement is left") {
        return Ok(());
    }
    drop_all(ledger, id, std::slice::from_ref(shard), told).await
}

/// Changes a trigger, decided anew as long as others change it too or the store does not answer; done when there is nothing to
/// change any more, or no such trigger: an earlier copy of the request may have been applied.
pub(crate) async fn change<'a>(
    ledger: &'a dyn Ledger,
    mut record: TriggerRecord,
    send: impl Fn(TriggerRecord) -> Option<Out<'a, Answer<TriggerRecord>>>,
) -> Result<(), RetireError> {
    for tries in 1..=TRIES {
        let Some(sent) = send(record.clone()) else { return Ok(()) };
        match sent.await {
            Ok(Answer::Accepted(_)) => return Ok(()),
            Ok(Answer::Refused(_)) => {}
            Err(error) if error.kind.may_pass() && tries < TRIES => {
                let bound = Duration::from_millis(20) * (1 << tries);
                clock::sleep(bound.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            }
            Err(error) => return Err(error.into()),
        }
        match patiently(|| ledger.triggers()).await?.into_iter().find(|found| found.id == record.id) {
            Some(found) => record = found,
            None => return Ok(()),
        }
    }
    Err(RetireError::Changing(record.name))
}

/// Gives up all parked cells of a trigger on these shards.
async fn drop_all(
    ledger: &dyn Ledger,
    trigger: &TriggerId,
    shards: &[ShardRef],
    told: &impl Fn(u64),
) -> Result<(), RetireError> {
    let lanes = shards.iter().flat_map(|shard| {
        [LaneKind::Active, LaneKind::Dead].map(|kind| Lane { trigger: trigger.clone(), shard: shard.clone(), kind })
    });
    let drops: Vec<_> = lanes.map(|lane| drop_lane(ledger, lane, told)).collect();
    stream::iter(drops).buffer_unordered(PARALLEL).try_collect().await
}

async fn drop_lane(ledger: &dyn Ledger, lane: Lane, told: &impl Fn(u64)) -> Result<(), RetireError> {
    let mut refused = 0;
    while refused < TRIES {
        let page = patiently(|| ledger.parked(&lane, AddedId(0), DROPS)).await?;
        if page.is_empty() {
            return Ok(());
        }
        let cells = page.len() as u64;
        let changes: Vec<LaneChange> = page.into_iter().map(LaneChange::Delete).collect();
        if patiently(|| ledger.operate_parked(&changes)).await? {
            refused = 0;
            told(cells);
        } else {
            refused += 1;
        }
    }
    Err(RetireError::Parking(lane.shard))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cell::{Checkpoint, Epoch, Incarnation, LeaseWrite, Millis, Parked, ParkedState, ShardId, Written},
        store::memory::MemoryLedger,
    };
    use std::cell::Cell;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn shard(n: u32) -> ShardRef {
        ShardRef { source: name("trips"), shard: ShardId(n) }
    }

    async fn registered(ledger: &MemoryLedger, text: &str) -> TriggerRecord {
        let record = TriggerRecord {
            id: TriggerId::random(),
            name: name(text),
            formerly: BTreeSet::new(),
            source: name("trips"),
            incarnation: Incarnation::random(),
            state: TriggerState::Active,
            generation: 0,
            start: None,
            revision: 0,
        };
        ledger.register(&record).await.unwrap();
        record
    }

    fn parked(trigger: &TriggerId, shard: ShardRef, n: u64, state: ParkedState) -> LaneChange {
        LaneChange::Put(Parked {
            trigger: trigger.clone(),
            shard,
            added_id: AddedId(n),
            last: AddedId(n),
            row_key: "row".into(),
            column: "C".into(),
            ref_key: n,
            state,
            attempts: 1,
            errors: vec![],
            next_attempt_at: Millis(0),
            since: Millis(0),
            revision: 1,
        })
    }

    /// A shard's owner writes for these triggers, and parks a cell for each.
    async fn owner_writes(ledger: &MemoryLedger, shard: ShardRef, seq: u64, triggers: &[&TriggerRecord]) {
        let owner = SessionId::from_stored("owner");
        if seq == 1 {
            ledger.claim(&shard, &Incarnation::random(), &owner, None, Millis(1)).await.unwrap();
        }
        let checkpoints = triggers.iter().map(|record| (record.id.clone(), Checkpoint::default())).collect();
        let lanes = triggers.iter().map(|one| parked(&one.id, shard.clone(), 1000 + seq, ParkedState::Dead)).collect();
        let (epoch, alone) = (Epoch(1), None);
        let write = LeaseWrite { shard, owner, epoch, seq, checkpoints, lanes, alone, release: false };
        assert_eq!(ledger.write(&write).await.unwrap(), Written::Accepted);
    }

    async fn left(ledger: &MemoryLedger, id: &TriggerId) -> (usize, usize) {
        let parked = ledger.all_parked(None, 10_000).await.unwrap();
        let leases = ledger.leases(&name("trips")).await.unwrap();
        (
            parked.iter().filter(|parked| parked.trigger == *id).count(),
            leases.iter().filter(|lease| lease.checkpoints.contains_key(id)).count(),
        )
    }

    #[tokio::test]
    async fn all_of_one_trigger_goes_and_nothing_of_another() {
        let ledger = MemoryLedger::new();
        let (mine, other) = (registered(&ledger, "mine").await, registered(&ledger, "other").await);
        let shards = [shard(0), shard(1), shard(2)];
        for of in &shards {
            owner_writes(&ledger, of.clone(), 1, &[&mine, &other]).await;
        }
        let states = [ParkedState::Retrying, ParkedState::Waiting, ParkedState::Dead];
        for n in 1..=700 {
            let put =
                parked(&mine.id, shard(u32::try_from(n % 3).unwrap()), n, states[usize::try_from(n % 3).unwrap()]);
            assert!(ledger.operate_parked(&[put]).await.unwrap());
        }
        let told = Cell::new(0);
        retire(&ledger, &mine, &shards, |cells| told.set(told.get() + cells)).await.unwrap();
        assert_eq!(told.get(), 703);
        assert_eq!((left(&ledger, &mine.id).await, left(&ledger, &other.id).await), ((0, 0), (3, 3)));
        assert_eq!(ledger.retired(&mine.id).await.unwrap().unwrap().state, TriggerState::Retired);
        assert_eq!(remains(&ledger, &name("trips"), &name("mine")).await.unwrap(), []);
    }

    /// Its record is retired; its lanes and checkpoints are not gone yet. Or they came again, since a worker had not heard.
    #[tokio::test]
    async fn what_is_left_of_a_retired_trigger_is_found_and_goes() {
        let ledger = MemoryLedger::new();
        let shards = [shard(0), shard(1)];
        let (mine, other) = (registered(&ledger, "mine").await, registered(&ledger, "other").await);
        for seq in 1..=2 {
            owner_writes(&ledger, shard(0), seq, &[&mine, &other]).await;
            owner_writes(&ledger, shard(1), seq, &[&other]).await;
            if seq == 1 {
                let retired = TriggerRecord { state: TriggerState::Retired, ..mine.clone() };
                ledger.update_trigger(&retired).await.unwrap();
            }
            assert_eq!(remains(&ledger, &name("trips"), &name("other")).await.unwrap(), [], "it is registered");
            let found = remains(&ledger, &name("trips"), &name("mine")).await.unwrap();
            assert_eq!(found.iter().map(|record| &record.id).collect::<Vec<_>>(), [&mine.id]);
            retire(&ledger, &found[0], &shards, |_| ()).await.unwrap();
            assert_eq!(left(&ledger, &mine.id).await, (0, 0));
            assert_eq!(remains(&ledger, &name("trips"), &name("mine")).await.unwrap(), []);
        }
        assert_eq!(left(&ledger, &other.id).await, (4, 2));
    }
}
