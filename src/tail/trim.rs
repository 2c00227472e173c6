//! Trim: deletes the old part of a shard's log. The cells themselves stay, and can be got by their address.
//!
//! `trimmed_to` is raised first, then the segments go: whoever reads meanwhile finds every hole explained.
//! A trim that was interrupted is finished by the next one.

use super::{TailError, at_time};
use crate::{
    cell::{AddedId, Consistency, Ledger, Log, Millis, Name, SegmentKey, ShardId, ShardRef, StoreError, planted},
    store::patiently,
};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::{future::ready, sync::Arc, time::Duration};

/// Keys of segments that are read at a time: few at first, since a read of keys costs as much as one of the segments.
const PAGES: (u32, u32) = (8, 500);
/// Segments that are deleted at a time, in no order: `trimmed_to` explains every hole.
const PARALLEL: usize = 8;

/// Groups with their coordination.
pub type Groups = [(Name, Arc<dyn Ledger>)];

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

/// The time that lies so long before another.
#[must_use]
pub fn before(now: Millis, ago: Duration) -> Millis {
    Millis(now.0.saturating_sub(i64::try_from(ago.as_millis()).unwrap_or(i64::MAX)))
}

/// What a trim would delete of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// Where the shard ends.
    pub tip: AddedId,
    /// Where the last trim ended.
    pub trimmed_to: AddedId,
    /// `created_at` of the oldest cell in the log.
    pub oldest: Option<Millis>,
    /// The last place that is old enough; not below `trimmed_to`.
    pub old_to: AddedId,
    /// Who keeps the trim from going as far as that.
    pub kept_by: Option<Keeper>,
    /// Where the trim would end.
    pub to: AddedId,
    /// The last trim was interrupted: there are segments that it would have deleted.
    pub unfinished: bool,
}

impl Due {
    /// Whether there is something to delete.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.unfinished || self.to > self.trimmed_to
    }
}

/// What a trim of the cells appended before a time would delete of a shard, without what a trigger of these groups has not
/// finished. By strong reads; a shard without anything that old takes two of them.
///
/// # Errors
/// When the datastore or a group cannot be read.
pub async fn due(log: &dyn Log, groups: &Groups, shard: ShardId, before: Millis) -> Result<Due, TailError> {
    let tip = patiently(|| log.tip(shard)).await?;
    let (tip, trimmed_to) = tip.map_or_else(Default::default, |tip| (tip.tip, tip.trimmed_to));
    let first = async |after| {
        let page = patiently(|| log.page(shard, after, 1, Consistency::Strong)).await?;
        Ok::<_, StoreError>(page.into_iter().next())
    };
    let mut oldest = first(AddedId(0)).await?;
    let unfinished = oldest.as_ref().is_some_and(|segment| segment.last <= trimmed_to);
    if unfinished {
        oldest = first(trimmed_to).await?;
    }
    let oldest = oldest.map(|segment| segment.created_at);
    let old_to = match oldest {
        Some(oldest) if oldest < before => at_time(log, shard, before).await?.max(trimmed_to),
        _ => trimmed_to,
    };
    let kept_by = if old_to > trimmed_to { first_keeper(log, groups, shard).await? } else { None };
    let kept_by = kept_by.filter(|keeper| keeper.low < old_to);
    let to = kept_by.as_ref().map_or(old_to, |keeper| keeper.low.max(trimmed_to));
    Ok(Due { tip, trimmed_to, oldest, old_to, kept_by, to, unfinished })
}

/// The keeper of a shard that is furthest behind.
async fn first_keeper(log: &dyn Log, groups: &Groups, shard: ShardId) -> Result<Option<Keeper>, StoreError> {
    let mut keepers = Vec::new();
    for (group, ledger) in groups {
        keepers.extend(keeper(ledger.as_ref(), group, &log.datastore().name, shard).await?);
    }
    Ok(keepers.into_iter().min())
}

/// What a trim deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trimmed {
    /// Segments.
    pub segments: u64,
    /// Cells in them.
    pub cells: u64,
    /// Whether nothing is left up to the place.
    pub all: bool,
}

/// Deletes the segments of a shard up to a place, at most so many of them, and nothing that a trigger of these groups has not
/// finished. A segment that reaches beyond the place stays.
///
/// # Errors
/// When the store or a group does not answer. What was deleted stays deleted; the same trim again goes on.
pub async fn trim(
    log: &dyn Log,
    groups: &Groups,
    shard: ShardId,
    to: AddedId,
    most: u64,
) -> Result<Trimmed, TailError> {
    let mut deleted = Trimmed { all: true, ..Trimmed::default() };
    if to == AddedId(0) {
        return Ok(deleted);
    }
    let to = if planted::is("a trim passes the checkpoints") { AddedId(to.0 + 5) } else { to };
    // Refused: it is as high already, or higher. If it is not, the tables are not those that were looked at.
    let to = match patiently(|| log.raise_trim(shard, to)).await? {
        true => to,
        false => patiently(|| log.tip(shard)).await?.map_or(AddedId(0), |tip| to.min(tip.trimmed_to)),
    };
    // A trigger may have been registered, or rewound, since the place was chosen: from now on none begins below it.
    let keeper = first_keeper(log, groups, shard).await?.filter(|_| !planted::is("a trim passes the checkpoints"));
    let to = keeper.map_or(to, |keeper| to.min(keeper.low));
    let (mut after, mut page) = (AddedId(0), PAGES.0);
    loop {
        let keys = patiently(|| log.keys(shard, after, page)).await?;
        let Some(end) = keys.last().map(|key| key.last) else { return Ok(deleted) };
        let old: Vec<SegmentKey> = keys.into_iter().filter(|key| key.last <= to).collect();
        let now = &old[..old.len().min(usize::try_from(most - deleted.segments).unwrap_or(usize::MAX))];
        let places: Vec<AddedId> = now.iter().map(|key| key.last).collect();
        let deletes = stream::iter(places).map(|last| patiently(move || log.delete_segment(shard, last)));
        deletes.buffer_unordered(PARALLEL).try_for_each(|()| ready(Ok(()))).await?;
        deleted.segments += now.len() as u64;
        deleted.cells += now.iter().map(|key| u64::from(key.n)).sum::<u64>();
        if now.len() < old.len() {
            return Ok(Trimmed { all: false, ..deleted });
        }
        if end > to {
            return Ok(deleted);
        }
        (after, page) = (end, (page * 2).min(PAGES.1));
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
    use std::collections::BTreeMap;

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
        let trimmed = async |to, most| {
            let Trimmed { segments, cells, all } = trim(&*log, &[], SHARD, AddedId(to), most).await.unwrap();
            (segments, cells, all)
        };
        assert_eq!(trimmed(8, 1).await, (1, 3, false), "no more than it may");
        assert_eq!(trimmed(8, 9).await, (1, 3, true), "the next one goes on");
        assert_eq!(trimmed(5, 9).await, (0, 0, true), "never backwards");
        assert_eq!(log.tip(SHARD).await.unwrap().unwrap().trimmed_to, AddedId(8));
        let read = run(&*log, SHARD, AddedId(0), 10, AddedId(12)).await.unwrap();
        assert_eq!(read.entries[0], Entry::Trimmed { first: AddedId(1), last: AddedId(6) });
        let read = run(&*log, SHARD, AddedId(6), 10, AddedId(12)).await.unwrap();
        assert_eq!(read.end(AddedId(6)), AddedId(12));
        let key = CellKey { row_key: "r".into(), column: "C".into(), ref_key: 0 };
        assert!(log.get(&key).await.unwrap().is_some(), "the cell itself stays");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_old_and_finished_is_due() {
        crate::cell::clock::simulate(Millis(1000));
        let log = Arc::new(MemoryLog::new(&NewDatastore { name: name("trips"), shards: 1 }));
        let ledger = Arc::new(MemoryLedger::new());
        let groups: [(Name, Arc<dyn Ledger>); 1] = [(name("g"), ledger.clone())];
        let due = async |before| due(&*log, &groups, SHARD, Millis(before)).await.unwrap();
        let nothing = Due {
            tip: AddedId(0),
            trimmed_to: AddedId(0),
            oldest: None,
            old_to: AddedId(0),
            kept_by: None,
            to: AddedId(0),
            unfinished: false,
        };
        assert_eq!(due(9999).await, nothing);
        let cells = Cells::new(log.clone());
        // One cell every 10 ms: at 1000, 1010, … 1090.
        for ref_key in 0..10 {
            let key = CellKey { row_key: "r".into(), column: "C".into(), ref_key };
            assert!(cells.put(vec![NewCell { key, body: "1".into(), origin: None }]).await[0].is_ok());
            tokio::time::advance(std::time::Duration::from_millis(10)).await;
        }
        let all = Due { tip: AddedId(10), oldest: Some(Millis(1000)), ..nothing };
        assert_eq!(due(1000).await, all);
        assert_eq!(due(1035).await, Due { old_to: AddedId(4), to: AddedId(4), ..all.clone() });
        assert_eq!(due(9999).await, Due { old_to: AddedId(10), to: AddedId(10), ..all.clone() });

        let record = TriggerRecord {
            id: TriggerId::random(),
            name: name("late"),
            formerly: std::collections::BTreeSet::new(),
            source: name("trips"),
            incarnation: Incarnation::random(),
            state: TriggerState::Active,
            generation: 0,
            start: Some([AddedId(3)].into()),
            revision: 0,
        };
        ledger.register(&record).await.unwrap();
        let keeper = Keeper { low: AddedId(3), group: name("g"), trigger: name("late") };
        let kept = Due { old_to: AddedId(10), to: AddedId(3), kept_by: Some(keeper.clone()), ..all.clone() };
        assert_eq!(due(9999).await, kept);
        assert_eq!(due(1025).await, Due { old_to: AddedId(3), to: AddedId(3), ..all.clone() }, "it has finished these");

        // A trim that was interrupted after its first deletion, and beyond what is finished.
        assert!(log.raise_trim(SHARD, AddedId(4)).await.unwrap());
        log.delete_segment(SHARD, AddedId(1)).await.unwrap();
        let rest = Due { trimmed_to: AddedId(4), oldest: Some(Millis(1040)), unfinished: true, ..all };
        assert_eq!(due(1000).await, Due { old_to: AddedId(4), to: AddedId(4), ..rest.clone() });
        let kept = Due { old_to: AddedId(10), to: AddedId(4), kept_by: Some(keeper), ..rest };
        assert_eq!(due(9999).await, kept, "never below what was trimmed");
        assert!(kept.is_any());
        assert_eq!(trim(&*log, &[], SHARD, kept.to, 99).await.unwrap(), Trimmed { segments: 3, cells: 3, all: true });
        assert!(!due(1000).await.is_any());
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
        ledger.claim(&shard, &Incarnation::random(), &owner, None, Millis(1)).await.unwrap();
        let checkpoint = Checkpoint { low: AddedId(9), ..Checkpoint::default() };
        let write = LeaseWrite {
            shard,
            owner,
            epoch: crate::cell::Epoch(1),
            seq: 1,
            checkpoints: BTreeMap::from([(fresh, checkpoint)]),
            lanes: Vec::new(),
            alone: None,
            release: false,
        };
        ledger.write(&write).await.unwrap();
        assert_eq!(keeper().await, told(7, "late"));

        // A place that was chosen before: what they have not finished stays.
        let cells = Cells::new(Arc::new(MemoryLog::new(&NewDatastore { name: trips.clone(), shards: 1 })));
        for n in 0..9 {
            let key = CellKey { row_key: "row".into(), column: "C".into(), ref_key: n };
            cells.put(vec![NewCell { key, body: "1".into(), origin: None }]).await[0].as_ref().unwrap();
        }
        let groups = [(group.clone(), Arc::new(ledger) as Arc<dyn Ledger>)];
        let deleted = trim(cells.log().as_ref(), &groups, SHARD, AddedId(9), u64::MAX).await.unwrap();
        assert_eq!((deleted.segments, deleted.all), (7, true));
        let deleted = trim(cells.log().as_ref(), &[], SHARD, AddedId(9), u64::MAX).await.unwrap();
        assert_eq!(deleted.segments, 2, "forced");
    }
}
