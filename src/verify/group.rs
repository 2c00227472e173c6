//! What a group keeps about a shard, against the shard. Pure.

use super::{Finding, Flaw, compare::Fetched};
use crate::{
    cell::{AddedId, Datastore, Lease, Parked, ShardId, Tip, TriggerRecord},
    checkpoint::{Window, decode_attempts},
};

/// A shard and its lease, read in this order: what was trimmed, the lease, the tip. So a worker that goes on and a trim
/// that follows it meanwhile change nothing about what must hold.
pub(super) struct Facts<'a> {
    pub(super) datastore: &'a Datastore,
    pub(super) shard: ShardId,
    /// `None` where a tip cannot be decoded, which is told of the shard.
    pub(super) before: Option<Tip>,
    pub(super) lease: Option<&'a Lease>,
    pub(super) after: Option<Tip>,
}

/// What is wrong with a trigger, apart from its shards.
pub(super) fn trigger(datastore: &Datastore, record: &TriggerRecord) -> Vec<Finding> {
    let mut findings = Vec::new();
    if record.incarnation != datastore.incarnation {
        let detail =
            format!("registered on incarnation {}, the datastore is {}", record.incarnation, datastore.incarnation);
        findings.push(Finding::new(Flaw::TriggerIncarnation, detail));
    }
    if let Some(start) = &record.start
        && start.len() != datastore.shards as usize
    {
        let detail = format!("{} start positions for {} shards", start.len(), datastore.shards);
        findings.push(Finding::new(Flaw::TriggerStart, detail));
    }
    findings.into_iter().map(|finding| finding.of_trigger(&record.name)).collect()
}

/// What is wrong with the lease of a shard and the checkpoints of these triggers.
pub(super) fn lease(facts: &Facts<'_>, triggers: &[TriggerRecord]) -> Vec<Finding> {
    let Facts { datastore, shard, lease, .. } = *facts;
    let mut findings = Vec::new();
    if let Some(lease) = lease
        && lease.incarnation != datastore.incarnation
    {
        let detail = format!("of incarnation {}, the datastore is {}", lease.incarnation, datastore.incarnation);
        findings.push(Finding::at(Flaw::LeaseIncarnation, shard, None, detail));
    }
    for record in triggers {
        findings.extend(position(facts, record).into_iter().map(|finding| finding.of_trigger(&record.name)));
    }
    findings
}

/// How far a trigger is on the shard.
fn position(facts: &Facts<'_>, record: &TriggerRecord) -> Vec<Finding> {
    let Facts { shard, before, lease, after, .. } = *facts;
    let (tip, trimmed_to) = (after.map(|tip| tip.tip), before.map(|tip| tip.trimmed_to));
    let is_above = |place| tip.is_some_and(|tip| place > tip);
    let tip = tip.unwrap_or_default();
    let at = |flaw, place: AddedId, detail| Finding::at(flaw, shard, place, detail);
    let mut findings = Vec::new();
    let low = match lease.and_then(|lease| lease.checkpoints.get(&record.id)) {
        Some(checkpoint) => {
            let low = checkpoint.low;
            let end = Window::resume(low, &checkpoint.done).map(|window| window.end());
            let attempts = decode_attempts(low, &checkpoint.attempts);
            match (end, attempts) {
                (Ok(end), Ok(_)) if is_above(end) => {
                    let detail = format!("cells are finished up to {end}, and the tip is {tip}");
                    findings.push(at(Flaw::CheckpointAboveTip, end, detail));
                }
                (Ok(_), Ok(_)) => {}
                (Err(why), _) | (_, Err(why)) => findings.push(at(Flaw::CheckpointDamaged, low, why.to_string())),
            }
            low
        }
        // Not started there yet.
        None => match record.start.as_ref().and_then(|start| start.get(shard.0 as usize).copied()) {
            Some(start) => {
                if is_above(start) {
                    let detail = format!("it begins after {start}, and the tip is {tip}");
                    findings.push(at(Flaw::TriggerStart, start, detail));
                }
                start
            }
            None => return findings,
        },
    };
    if let Some(trimmed_to) = trimmed_to.filter(|trimmed_to| low < *trimmed_to) {
        let detail = format!("finished up to {low}, and the log is trimmed up to {trimmed_to}");
        findings.push(at(Flaw::CheckpointTrimmed, low.next(), detail));
    }
    findings
}

/// What is wrong with a parked item. `tip` was read after it, and `stored` is what lies at its address.
pub(super) fn parked(parked: &Parked, tip: Option<AddedId>, stored: Option<&Fetched>) -> Option<Finding> {
    let shard = parked.shard.shard;
    let flaw = |flaw, detail| {
        let cell = (!parked.row_key.is_empty()).then(|| address(parked));
        Some(Finding { cell, ..Finding::at(flaw, shard, parked.added_id, detail) })
    };
    if let Some(tip) = tip.filter(|tip| parked.last > *tip) {
        return flaw(
            Flaw::ParkedAboveTip,
            format!("added IDs {} to {}, and the tip is {tip}", parked.added_id, parked.last),
        );
    }
    match stored {
        Some(Fetched::Absent) => flaw(Flaw::ParkedAddress, "there is no such cell".into()),
        Some(Fetched::Cell(cell)) if (cell.shard, cell.added_id) != (shard, parked.added_id) => {
            flaw(Flaw::ParkedAddress, format!("this cell lies at added ID {} of shard {}", cell.added_id, cell.shard))
        }
        // A cell that cannot be decoded is told of by itself; a range has no address.
        Some(Fetched::Cell(_) | Fetched::Damaged(_)) | None => None,
    }
}

/// The address that a parked item names.
pub(super) fn address(parked: &Parked) -> crate::cell::CellKey {
    crate::cell::CellKey {
        row_key: parked.row_key.as_str().into(),
        column: parked.column.as_str().into(),
        ref_key: parked.ref_key,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::{
        Cell, CellKey, Checkpoint, Epoch, Incarnation, Millis, Name, ParkedState, ShardRef, TriggerId, TriggerState,
    };

    const SHARD: ShardId = ShardId(1);

    fn datastore() -> Datastore {
        Datastore { name: name("trips"), shards: 2, incarnation: Incarnation::from_stored("now") }
    }

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn record(start: Option<&[u64]>) -> TriggerRecord {
        TriggerRecord {
            id: TriggerId::from_stored("t"),
            name: name("bill"),
            formerly: std::collections::BTreeSet::new(),
            source: name("trips"),
            incarnation: Incarnation::from_stored("now"),
            state: TriggerState::Active,
            generation: 0,
            start: start.map(|places| places.iter().copied().map(AddedId).collect()),
            revision: 0,
        }
    }

    fn held(checkpoint: Option<Checkpoint>) -> Lease {
        Lease {
            shard: ShardRef { source: name("trips"), shard: SHARD },
            incarnation: Incarnation::from_stored("now"),
            owner: None,
            epoch: Epoch(1),
            seq: 0,
            claimed_at: Millis(7),
            checkpoints: checkpoint.map(|checkpoint| (TriggerId::from_stored("t"), checkpoint)).into_iter().collect(),
            deaths: 0,
            alone: None,
        }
    }

    fn flaws(record: &TriggerRecord, held: Option<&Lease>, trimmed_to: u64, at: u64) -> Vec<Flaw> {
        let tip = |tip, trimmed_to| {
            Some(Tip { shard: SHARD, tip: AddedId(tip), created_at: Millis(0), trimmed_to: AddedId(trimmed_to) })
        };
        let datastore = datastore();
        let facts = Facts {
            datastore: &datastore,
            shard: SHARD,
            before: tip(trimmed_to, trimmed_to),
            lease: held,
            after: tip(at, trimmed_to),
        };
        lease(&facts, std::slice::from_ref(record)).into_iter().map(|finding| finding.flaw).collect()
    }

    #[test]
    fn a_checkpoint_lies_between_what_was_trimmed_and_the_tip() {
        let at = |low| Some(held(Some(Checkpoint { low: AddedId(low), ..Checkpoint::default() })));
        let flaws = |low| flaws(&record(None), at(low).as_ref(), 3, 7);
        for low in [3, 5, 7] {
            assert_eq!(flaws(low), [], "{low}");
        }
        assert_eq!(flaws(2), [Flaw::CheckpointTrimmed]);
        assert_eq!(flaws(8), [Flaw::CheckpointAboveTip]);
    }

    #[test]
    fn what_is_finished_beyond_it_is_read_and_ends_at_the_tip() {
        let mut window = Window::new(AddedId(3));
        window.finish_range(AddedId(5), AddedId(7));
        let whole = Checkpoint { low: AddedId(3), done: window.encode().0, ..Checkpoint::default() };
        let flaws = |checkpoint: &Checkpoint, tip| flaws(&record(None), Some(&held(Some(checkpoint.clone()))), 0, tip);
        assert_eq!(flaws(&whole, 7), []);
        assert_eq!(flaws(&whole, 6), [Flaw::CheckpointAboveTip]);
        for damaged in [
            Checkpoint { done: vec![0x80].into(), ..whole.clone() },
            Checkpoint { done: vec![0, 1].into(), ..whole.clone() },
            Checkpoint { attempts: vec![0xff].into(), ..whole },
        ] {
            assert_eq!(flaws(&damaged, 7), [Flaw::CheckpointDamaged]);
        }
    }

    #[test]
    fn a_trigger_that_has_not_started_has_a_start_that_fits() {
        let start = |places: &[u64]| flaws(&record(Some(places)), None, 3, 7);
        assert_eq!(start(&[0, 5]), []);
        assert_eq!(start(&[0, 8]), [Flaw::TriggerStart]);
        assert_eq!(start(&[9, 2]), [Flaw::CheckpointTrimmed]);
        assert_eq!(flaws(&record(None), None, 3, 7), [], "it resolves its start when it begins");
        let one =
            |record: &TriggerRecord| trigger(&datastore(), record).into_iter().map(|f| f.flaw).collect::<Vec<_>>();
        assert_eq!(one(&record(Some(&[1, 1]))), []);
        assert_eq!(one(&record(Some(&[1]))), [Flaw::TriggerStart]);
        let old = TriggerRecord { incarnation: Incarnation::from_stored("then"), ..record(None) };
        assert_eq!(one(&old), [Flaw::TriggerIncarnation]);
        let old = Lease { incarnation: Incarnation::from_stored("then"), ..held(None) };
        assert_eq!(flaws(&record(None), Some(&old), 3, 7), [Flaw::LeaseIncarnation]);
    }

    #[test]
    fn a_parked_item_is_the_cell_at_its_place() {
        let item = Parked {
            trigger: TriggerId::from_stored("t"),
            shard: ShardRef { source: name("trips"), shard: SHARD },
            added_id: AddedId(4),
            last: AddedId(4),
            row_key: "r".into(),
            column: "c".into(),
            ref_key: 9,
            state: ParkedState::Dead,
            attempts: 1,
            errors: Vec::new(),
            next_attempt_at: Millis(0),
            since: Millis(0),
            revision: 1,
        };
        let cell = |shard, place| {
            let key = CellKey { row_key: "r".into(), column: "c".into(), ref_key: 9 };
            let (shard, added_id) = (ShardId(shard), AddedId(place));
            Fetched::Cell(Box::new(Cell { key, shard, added_id, created_at: Millis(0), body: "1".into() }))
        };
        let flaw = |item: &Parked, tip, stored: Option<Fetched>| {
            parked(item, Some(AddedId(tip)), stored.as_ref()).map(|finding| finding.flaw)
        };
        assert_eq!(flaw(&item, 4, Some(cell(1, 4))), None);
        assert_eq!(flaw(&item, 4, Some(Fetched::Damaged("x".into()))), None);
        assert_eq!(flaw(&item, 3, Some(cell(1, 4))), Some(Flaw::ParkedAboveTip));
        for other in [cell(1, 5), cell(0, 4), Fetched::Absent] {
            assert_eq!(flaw(&item, 9, Some(other)), Some(Flaw::ParkedAddress));
        }
        let range = Parked { last: AddedId(6), row_key: String::new(), ..item };
        assert_eq!(flaw(&range, 6, None), None);
        assert_eq!(flaw(&range, 5, None), Some(Flaw::ParkedAboveTip));
    }
}
