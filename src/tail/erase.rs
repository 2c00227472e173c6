//! Erase: the bodies of a row's cells go, and their places stay.
//!
//! | where | what | how |
//! | --- | --- | --- |
//! | `cells` | the bodies of the row's cells | one write a cell, on the condition that it has a body |
//! | `log` | the same bodies | the segment that holds a place is found by one query, and replaced on the condition that it still is as it was read |
//! | `parked` | error texts of the row's cells, which may quote a body | one write a cell, on the condition that it is as it was read |
//!
//! The bodies in `cells` go first: from then on a put of the address is told that it was erased, and what is tried again from a
//! lane is passed. All places are gathered, those of cells that were erased before too, so that an erase that was interrupted is
//! finished by the next one: it leaves nothing out because a part of it is done. A segment that a trim deletes meanwhile does not
//! come back, and of two erases that meet in one segment the later one reads it again.
//!
//! Only places that `cells` has are erased in the log, never "all cells of the row in this segment": a cell that the log calls
//! erased while `cells` has its body would be passed by triggers although nobody asked for it.

use crate::{
    cell::{
        AddedId, CellPlace, Consistency, ErrorKind, Lane, LaneChange, LaneKind, Ledger, Log, Parked, Segment, ShardId,
        ShardRef, StoreError, Tip, TriggerId, clock,
    },
    store::{
        lane_where, patiently,
        segment::{self, unpack},
    },
};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::{
    collections::BTreeSet,
    ops::Bound::{Excluded, Unbounded},
    time::Duration,
};

/// Places that are read at a time.
const PAGE: usize = 500;
/// Cells that are erased at a time.
const PARALLEL: usize = 8;
/// How often a segment is looked for that ought to be there: an append under way may show its cell first.
const LOOKS: u32 = 5;
/// How often a segment or a lane is read again because somebody else changed it. A segment has at most 98 cells, and each change
/// of it that another erase makes erases one of them.
const ROUNDS: u32 = 100;
/// Where the places of a hole end that nothing follows.
const LOG_END: AddedId = AddedId(u64::MAX);
/// What stands where the error texts of a parked cell were.
const NO_TEXT: &str = "the error texts went when the cell was erased";

/// Whether to do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Count what would be erased.
    Look,
    /// Erase it.
    Erase,
}

/// What an erase met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Erased {
    /// Cells of the row, erased before or not.
    pub cells: u64,
    /// Of them, those whose body was still in `cells`.
    pub bodies: u64,
    /// Segments of the log that still had such a body.
    pub segments: u64,
    /// What could not be erased, and why. Empty when nothing is left.
    pub left: Vec<String>,
}

/// Erases the bodies of all cells of a row that are there when it begins, in `cells` and in the log.
///
/// # Errors
/// When the store does not answer. What was erased stays erased; the same erase again goes on.
pub async fn erase(log: &dyn Log, row_key: &str, mode: Mode) -> Result<Erased, StoreError> {
    let shard = ShardId::of(row_key, log.datastore().shards);
    let mut erased = Erased::default();
    let mut places: BTreeSet<AddedId> = BTreeSet::new();
    let mut after = None;
    loop {
        let page = patiently(|| log.places(row_key, after.as_ref(), PAGE)).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.key.clone());
        erased.cells += page.len() as u64;
        let (here, elsewhere): (Vec<CellPlace>, Vec<CellPlace>) =
            page.into_iter().partition(|place| place.shard == shard);
        places.extend(here.iter().map(|place| place.added_id));
        erased.left.extend(elsewhere.iter().map(|place| misplaced(place, shard)));
        let bodies: Vec<CellPlace> = here.into_iter().chain(elsewhere).filter(|place| !place.erased).collect();
        erased.bodies += bodies.len() as u64;
        if mode == Mode::Erase {
            // Refused: another erase was faster.
            let erases: Vec<_> = bodies.iter().map(|place| patiently(move || log.erase_cell(&place.key))).collect();
            let mut erases = stream::iter(erases).buffer_unordered(PARALLEL);
            while erases.try_next().await?.is_some() {}
        }
    }
    let row = Row { log, row_key, shard, places, mode };
    row.erase_segments(&mut erased).await?;
    Ok(erased)
}

fn misplaced(place: &CellPlace, shard: ShardId) -> String {
    let CellPlace { key, shard: found, added_id, .. } = place;
    let (column, ref_key) = (&key.column, key.ref_key);
    format!(
        "the cell {column} {ref_key} says that it lies in shard {found} at {added_id}, and its row belongs in shard {shard}: the \
         log was not looked at for it"
    )
}

/// The log's part of a row.
struct Row<'a> {
    log: &'a dyn Log,
    row_key: &'a str,
    shard: ShardId,
    places: BTreeSet<AddedId>,
    mode: Mode,
}

/// What lies at a place of the log.
enum At {
    /// A segment.
    Segment(Segment),
    /// Nothing, up to here: a trim was there.
    Trimmed(AddedId),
    /// Something that cannot be read, up to here.
    Unreadable(AddedId, String),
    /// Nothing, up to here, and no trim was there.
    Missing(AddedId),
}

impl Row<'_> {
    async fn erase_segments(&self, erased: &mut Erased) -> Result<(), StoreError> {
        let mut next = self.places.first().copied();
        while let Some(place) = next {
            let end = match self.at(place).await? {
                At::Segment(segment) => {
                    let last = segment.last;
                    match self.erase_in(segment).await? {
                        Ok(had_a_body) => erased.segments += u64::from(had_a_body),
                        Err(why) => erased.left.push(why),
                    }
                    last
                }
                At::Trimmed(last) => last,
                At::Unreadable(last, why) => {
                    erased.left.push(self.unreadable(last, &why));
                    last
                }
                At::Missing(last) => {
                    let places = match last {
                        LOG_END => format!("from {place} on"),
                        last if last == place => format!("at {place}"),
                        last => format!("at {place} to {last}"),
                    };
                    erased.left.push(format!(
                        "shard {}: the log has nothing {places}, and no trim deleted it: were the tables restored to \
                         different moments?",
                        self.shard
                    ));
                    last
                }
            };
            next = self.places.range((Excluded(end.max(place)), Unbounded)).next().copied();
        }
        Ok(())
    }

    fn unreadable(&self, last: AddedId, why: &str) -> String {
        format!(
            "shard {}: the segment that ends at {last} cannot be read, and may still hold a body of the row: {why}",
            self.shard
        )
    }

    /// Finds what lies at a place.
    async fn at(&self, place: AddedId) -> Result<At, StoreError> {
        let before = AddedId(place.0.saturating_sub(1));
        // What a look misses of an append that is under way, another may see.
        let mut gap = LOG_END;
        for look in 0..LOOKS {
            let found = match patiently(|| self.log.page(self.shard, before, 1, Consistency::Strong)).await {
                Ok(page) => page.into_iter().next(),
                Err(error) if error.kind == ErrorKind::Undecodable => {
                    let keys = patiently(|| self.log.keys(self.shard, before, 1)).await?;
                    let last = keys.first().map_or(place, |key| key.last);
                    let why = error.source.map_or_else(String::new, |source| source.to_string());
                    return Ok(At::Unreadable(last, why));
                }
                Err(error) => return Err(error),
            };
            match found {
                Some(segment) if segment.key().first() <= place => return Ok(At::Segment(segment)),
                Some(segment) => gap = gap.min(AddedId(segment.key().first().0 - 1)),
                None => {}
            }
            let tip: Option<Tip> = patiently(|| self.log.tip(self.shard)).await?;
            let trimmed_to = tip.map_or(AddedId(0), |tip| tip.trimmed_to);
            if trimmed_to >= place {
                return Ok(At::Trimmed(trimmed_to.min(gap)));
            }
            clock::sleep(Duration::from_millis(50) * (1 << look)).await;
        }
        Ok(At::Missing(gap))
    }

    /// Erases the row's bodies in a segment. Says whether it had any, or why it could not be done.
    async fn erase_in(&self, mut segment: Segment) -> Result<Result<bool, String>, StoreError> {
        let mut had_a_body = false;
        let mut garbled = false;
        for _ in 0..ROUNDS {
            let cells = match unpack(self.shard, &segment) {
                Ok(cells) => cells,
                Err(error) if garbled => return Ok(Err(self.unreadable(segment.last, &error.to_string()))),
                Err(_) => {
                    // The answer may have been garbled, and not the segment.
                    garbled = true;
                    match patiently(|| self.log.segment(self.shard, segment.last)).await? {
                        Some(again) => segment = again,
                        None => return Ok(Ok(had_a_body)),
                    }
                    continue;
                }
            };
            let here = || cells.iter().filter(|cell| self.places.contains(&cell.added_id));
            if let Some(other) = here().find(|cell| *cell.key.row_key != *self.row_key) {
                return Ok(Err(format!(
                    "shard {}: the log has a cell of another row at {}: were the tables restored to different moments?",
                    self.shard, other.added_id
                )));
            }
            let bodies: BTreeSet<AddedId> = here().filter(|cell| !cell.is_erased()).map(|cell| cell.added_id).collect();
            if bodies.is_empty() {
                return Ok(Ok(had_a_body));
            }
            had_a_body = true;
            if self.mode == Mode::Look {
                return Ok(Ok(true));
            }
            let packed = segment::erased(&cells, &bodies);
            if patiently(|| self.log.replace_segment(self.shard, &segment, packed.clone())).await? {
                return Ok(Ok(true));
            }
            // Another erase was faster, or a trim.
            match patiently(|| self.log.segment(self.shard, segment.last)).await? {
                Some(now) => segment = now,
                None => return Ok(Ok(true)),
            }
        }
        let why = "it changes whenever it is to be replaced";
        Ok(Err(self.unreadable(segment.last, why)))
    }
}

/// Erases the error texts of a row's parked cells in a group, and says how many had one.
///
/// Of all triggers that ever had a checkpoint on the row's shard, retired ones too.
///
/// # Errors
/// When the store does not answer, or the cells keep changing. The same again goes on.
pub async fn erase_parked(ledger: &dyn Ledger, shard: &ShardRef, row_key: &str, mode: Mode) -> Result<u64, StoreError> {
    let lease = patiently(|| ledger.lease(shard)).await?;
    let has_text = |parked: &Parked| parked.row_key == row_key && parked.errors.iter().any(|error| error != NO_TEXT);
    let triggers: Vec<TriggerId> = lease.map_or_else(Vec::new, |lease| lease.checkpoints.into_keys().collect());
    let mut met: BTreeSet<(TriggerId, AddedId)> = BTreeSet::new();
    for _ in 0..ROUNDS {
        let mut clean = true;
        for trigger in &triggers {
            for kind in [LaneKind::Active, LaneKind::Dead] {
                let lane = Lane { trigger: trigger.clone(), shard: shard.clone(), kind };
                for parked in lane_where(ledger, &lane, has_text).await? {
                    met.insert((trigger.clone(), parked.added_id));
                    if mode == Mode::Erase {
                        clean = false;
                        let erased = LaneChange::Update(Parked { errors: vec![NO_TEXT.into()], ..parked });
                        // Refused: its worker or an operator changed it, or an earlier try of this was applied. The next round
                        // sees which.
                        patiently(|| ledger.operate_parked(std::slice::from_ref(&erased))).await?;
                    }
                }
            }
        }
        if clean {
            return Ok(met.len() as u64);
        }
    }
    let source = Some("the parked cells of the row keep changing".into());
    Err(StoreError { kind: ErrorKind::Conflict, table: "parked".into(), operation: "TransactWriteItems", source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cell::{CellKey, Epoch, Incarnation, Name, NewCell, NewDatastore, ParkedState, SegmentKey, SessionId},
        cell::{Checkpoint, LeaseWrite, Millis},
        store::{
            Cells, Fault, Faults, Store,
            memory::{MemoryLedger, MemoryLog},
        },
    };
    use std::{collections::BTreeMap, sync::Arc};

    const SHARD: ShardId = ShardId(0);

    fn trips() -> Name {
        Name::new("trips").unwrap()
    }

    fn cell(row: &str, ref_key: u64) -> NewCell {
        let key = CellKey { row_key: row.into(), column: "C".into(), ref_key };
        NewCell { key, body: format!("\"secret of {row}\"").into(), origin: None }
    }

    /// Four segments of two cells of `a` and one of `b` each: places 1-3, 4-6, 7-9, 10-12.
    async fn fill(log: Arc<dyn Log>) {
        let cells = Cells::new(log);
        for batch in 0..4 {
            let batch = vec![cell("a", batch * 2), cell("b", batch), cell("a", batch * 2 + 1)];
            assert!(cells.put(batch).await.iter().all(Result::is_ok));
        }
    }

    async fn behind_faults() -> (Store, Faults, Arc<dyn Log>) {
        let (store, faults) = Faults::store();
        store.init_datastore(&NewDatastore { name: trips(), shards: 1 }).await.unwrap();
        let log = store.datastore(&trips(), None).await.unwrap();
        fill(log.clone()).await;
        faults.asked();
        (store, faults, log)
    }

    /// Bodies that are left of a row: in `cells`, and in the log.
    async fn left(log: &dyn Log, row: &str) -> (usize, usize) {
        let stored = log.row(row, None, 100).await.unwrap();
        let mut in_log = 0;
        for segment in log.page(SHARD, AddedId(0), 100, Consistency::Strong).await.unwrap() {
            let cells = unpack(SHARD, &segment).unwrap();
            in_log += cells.iter().filter(|cell| *cell.key.row_key == *row && !cell.is_erased()).count();
        }
        (stored.iter().filter(|stored| !stored.cell.is_erased()).count(), in_log)
    }

    /// The process ends after each of the requests of an erase; the next erase finishes it.
    #[tokio::test(start_paused = true)]
    async fn wherever_it_ends_the_next_one_finishes() {
        let (_store, faults, log) = behind_faults().await;
        erase(&*log, "a", Mode::Erase).await.unwrap();
        let requests = faults.asked().len();
        assert!(requests >= 8 + 4 * 2, "{requests}");
        for ends_after in 0..requests {
            let (_store, faults, log) = behind_faults().await;
            for operation in ["Query", "UpdateItem"] {
                // How many of each kind come through differs; together they are `ends_after` at most.
                (0..ends_after).for_each(|_| faults.next(operation, None));
            }
            faults.stand(Some(Fault::error("AccessDeniedException")));
            let _ = erase(&*log, "a", Mode::Erase).await;
            faults.stand(None);
            let met = erase(&*log, "a", Mode::Erase).await.unwrap();
            assert_eq!((met.cells, met.left.len()), (8, 0), "{met:?}");
            assert_eq!(left(&*log, "a").await, (0, 0), "after {ends_after} requests");
            assert_eq!(left(&*log, "b").await, (4, 4), "after {ends_after} requests");
        }
    }

    /// Every write is applied and its answer lost: it is made again, and finds its own work done.
    #[tokio::test(start_paused = true)]
    async fn answers_that_are_lost_harm_nothing() {
        let (_store, faults, log) = behind_faults().await;
        for _ in 0..12 {
            faults.next("UpdateItem", Fault::Applied(Box::new(Fault::Broken)));
        }
        let met = erase(&*log, "a", Mode::Erase).await.unwrap();
        assert_eq!(met, Erased { cells: 8, bodies: 8, segments: 4, left: Vec::new() });
        assert_eq!((left(&*log, "a").await, left(&*log, "b").await), ((0, 0), (4, 4)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_read_is_told_and_the_rest_is_erased() {
        let (store, _, log) = behind_faults().await;
        store.put_segment(&trips(), SegmentKey { last: AddedId(3), n: 3 }, Some(&[1, 2, 3])).await;
        store.put_segment(&trips(), SegmentKey { last: AddedId(6), n: 3 }, None).await;
        store.put_segment(&trips(), SegmentKey { last: AddedId(9), n: 3 }, Some(&[9, 0])).await;
        let met = erase(&*log, "a", Mode::Erase).await.unwrap();
        assert_eq!((met.cells, met.bodies, met.segments, met.left.len()), (8, 8, 1, 3), "{met:?}");
        for (told, last) in met.left.iter().zip([3, 6, 9]) {
            assert!(told.contains(&format!("the segment that ends at {last} cannot be read")), "{told}");
        }
        assert!(met.left[2].contains("upgrade"), "of a newer release: {}", met.left[2]);
        assert!(log.row("a", None, 9).await.unwrap().iter().all(|stored| stored.cell.is_erased()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_hole_is_told_unless_a_trim_made_it() {
        let log = Arc::new(MemoryLog::new(&NewDatastore { name: trips(), shards: 1 }));
        fill(log.clone()).await;
        for last in [3, 9] {
            log.delete_segment(SHARD, AddedId(last)).await.unwrap();
        }
        assert!(log.raise_trim(SHARD, AddedId(3)).await.unwrap());
        let met = erase(&*log, "a", Mode::Erase).await.unwrap();
        assert_eq!((met.bodies, met.segments, met.left.len()), (8, 2, 1), "{met:?}");
        assert!(met.left[0].contains("the log has nothing at 7 to 9, and no trim"), "{met:?}");
        assert_eq!(left(&*log, "a").await, (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_hole_takes_as_long_and_as_many_words_as_one_place() {
        let log = Arc::new(MemoryLog::new(&NewDatastore { name: trips(), shards: 1 }));
        let cells = Cells::new(log.clone());
        for ref_key in 1..=300 {
            assert!(cells.put(vec![cell("a", ref_key)]).await[0].is_ok());
        }
        for last in (2..100).chain([150]).chain(200..=300) {
            log.delete_segment(SHARD, AddedId(last)).await.unwrap();
        }
        let begun = tokio::time::Instant::now();
        let met = erase(&*log, "a", Mode::Erase).await.unwrap();
        assert_eq!((met.bodies, met.segments), (300, 1 + 50 + 49), "{met:?}");
        for (told, places) in met.left.iter().zip(["at 2 to 99,", "at 150,", "from 200 on,"]) {
            assert!(told.contains(&format!("the log has nothing {places} and no trim")), "{told}");
        }
        assert_eq!(met.left.len(), 3, "{met:?}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }

    /// A query beside an append may miss it, and show what follows.
    #[tokio::test(start_paused = true)]
    async fn a_hole_ends_where_any_look_saw_a_segment() {
        let (_store, faults, log) = behind_faults().await;
        log.delete_segment(SHARD, AddedId(3)).await.unwrap();
        // Two queries for the row, and all looks but the last.
        (0..2 + LOOKS - 1).for_each(|_| faults.next("Query", None));
        faults.next("Query", Fault::Answer(200, r#"{"Items":[],"Count":0,"ScannedCount":0}"#.into()));
        let met = erase(&*log, "a", Mode::Erase).await.unwrap();
        assert_eq!((met.segments, met.left.len()), (3, 1), "{met:?}");
        assert!(met.left[0].contains("the log has nothing at 1 to 3, and no trim"), "{met:?}");
        assert_eq!(left(&*log, "a").await, (0, 0));
    }

    /// The log and `cells` contradict each other: nobody else's cell is erased.
    #[tokio::test]
    async fn a_place_that_holds_another_row_is_left_alone() {
        let log = Arc::new(MemoryLog::new(&NewDatastore { name: trips(), shards: 1 }));
        fill(log.clone()).await;
        let segment = log.segment(SHARD, AddedId(6)).await.unwrap().unwrap();
        let of_others = segment::pack(&[cell("b", 50), cell("b", 51), cell("b", 52)]);
        assert!(log.replace_segment(SHARD, &segment, of_others).await.unwrap());
        let met = erase(&*log, "a", Mode::Erase).await.unwrap();
        assert_eq!((met.bodies, met.segments, met.left.len()), (8, 3, 1), "{met:?}");
        assert!(met.left[0].contains("a cell of another row at 4"), "{met:?}");
        assert_eq!(left(&*log, "b").await.1, 3 + 3, "three that were put there, and three in the other segments");
    }

    #[tokio::test(start_paused = true)]
    async fn error_texts_go_and_everything_else_of_a_parked_cell_stays() {
        let ledger = MemoryLedger::new();
        let shard = ShardRef { source: trips(), shard: SHARD };
        let trigger = TriggerId::random();
        let owner = SessionId::random();
        ledger.claim(&shard, &Incarnation::random(), &owner, None, Millis(1)).await.unwrap();
        let write = LeaseWrite {
            shard: shard.clone(),
            owner,
            epoch: Epoch(1),
            seq: 1,
            checkpoints: BTreeMap::from([(trigger.clone(), Checkpoint::default())]),
            lanes: Vec::new(),
            alone: None,
            release: false,
        };
        ledger.write(&write).await.unwrap();
        let parked = |at: u64, row: &str, state, errors: &[&str]| Parked {
            trigger: trigger.clone(),
            shard: shard.clone(),
            added_id: AddedId(at),
            last: AddedId(at),
            row_key: row.into(),
            column: "C".into(),
            ref_key: at,
            state,
            attempts: 3,
            errors: errors.iter().map(|error| (*error).to_owned()).collect(),
            next_attempt_at: Millis(7),
            since: Millis(5),
            revision: Parked::fresh_revision(),
        };
        use ParkedState::{Dead, Retrying, Waiting};
        let all = [
            parked(1, "a", Retrying, &["secret of a", "no"]),
            parked(2, "a", Waiting, &[]),
            parked(3, "b", Retrying, &["secret of b"]),
            parked(4, "a", Dead, &["secret of a"]),
            parked(5, "b", Dead, &["secret of b"]),
        ];
        let puts: Vec<LaneChange> = all.iter().cloned().map(LaneChange::Put).collect();
        assert!(ledger.operate_parked(&puts).await.unwrap());
        assert_eq!(erase_parked(&ledger, &shard, "a", Mode::Look).await.unwrap(), 2);
        assert_eq!(erase_parked(&ledger, &shard, "a", Mode::Erase).await.unwrap(), 2);
        assert_eq!(erase_parked(&ledger, &shard, "a", Mode::Erase).await.unwrap(), 0);
        let mut stored = Vec::new();
        for kind in [LaneKind::Active, LaneKind::Dead] {
            let lane = Lane { trigger: trigger.clone(), shard: shard.clone(), kind };
            stored.extend(ledger.parked(&lane, AddedId(0), 9).await.unwrap());
        }
        for (before, after) in all.into_iter().zip(stored) {
            let (errors, revision) = match (before.row_key.as_str(), before.errors.is_empty()) {
                ("a", false) => (vec![NO_TEXT.to_owned()], before.revision + 1),
                _ => (before.errors.clone(), before.revision),
            };
            assert_eq!(after, Parked { errors, revision, ..before });
        }
    }
}
