//! One dense run.

use crate::{
    cell::{AddedId, Cell, Consistency, ErrorKind, Log, Segment, SegmentKey, ShardId, StoreError, planted},
    store::segment::{SegmentError, unpack},
};

/// How often a read is repeated in one go because of what it saw.
const TRIES: u32 = 3;

/// What lies next in a shard's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The cells of a segment, or those of it after the place that was asked for.
    Cells(Vec<Cell>),
    /// A hole that a trim made.
    Trimmed {
        /// First place of it.
        first: AddedId,
        /// Last place of it.
        last: AddedId,
    },
    /// A segment that two strong reads could not decode.
    Damaged {
        /// First place of it.
        first: AddedId,
        /// Last place of it.
        last: AddedId,
        /// What is wrong with it.
        reason: String,
    },
}

impl Entry {
    /// First and last place that it covers; `None` for no cells.
    #[must_use]
    pub fn range(&self) -> Option<(AddedId, AddedId)> {
        match self {
            Self::Cells(cells) => Some((cells.first()?.added_id, cells.last()?.added_id)),
            Self::Trimmed { first, last } | Self::Damaged { first, last, .. } => Some((*first, *last)),
        }
    }
}

/// Entries without a gap, in order, the first of them right after the place that was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// The entries; none when there is nothing to hand on yet.
    pub entries: Vec<Entry>,
}

impl Run {
    /// Last place of the run; `after` for an empty one.
    #[must_use]
    pub fn end(&self, after: AddedId) -> AddedId {
        self.entries.last().and_then(Entry::range).map_or(after, |(_, last)| last)
    }
}

/// Cells of a shard, and where to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cells {
    /// In log order.
    pub cells: Vec<Cell>,
    /// The place to read after next time.
    pub next: AddedId,
}

/// Why a shard cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum TailError {
    /// The store did not answer as it should; again later.
    #[error("the log cannot be read")]
    Store(#[from] StoreError),
    /// Cells are missing that no trim removed.
    #[error(
        "shard {shard}: added IDs {first} to {last} are missing from the log, and no trim removed them \
         (trimmed_to is {trimmed_to}): restore the tables of this datastore to one moment"
    )]
    Hole {
        /// The shard.
        shard: ShardId,
        /// First missing place.
        first: AddedId,
        /// Last missing place.
        last: AddedId,
        /// Where the last trim ended.
        trimmed_to: AddedId,
    },
    /// Two segments claim the same places.
    #[error(
        "shard {shard}: the segment that ends at {last} begins at {first}, below the next place {expected}: two segments \
         overlap; restore the tables to one moment"
    )]
    Overlap {
        /// The shard.
        shard: ShardId,
        /// Where the segment begins.
        first: AddedId,
        /// Where it ends.
        last: AddedId,
        /// Where it should begin.
        expected: AddedId,
    },
    /// The place that was asked for lies above the tip.
    #[error(
        "shard {shard}: the checkpoint {after} is above the tip {tip}: the tables were restored to different moments; \
         restore the group's control table to a moment that is not after the datastore's"
    )]
    AboveTip {
        /// The shard.
        shard: ShardId,
        /// The place.
        after: AddedId,
        /// The tip.
        tip: AddedId,
    },
    /// A newer release wrote a segment.
    #[error("shard {shard}: {error}")]
    Newer {
        /// The shard.
        shard: ShardId,
        /// Which format.
        error: SegmentError,
    },
    /// Reads that see part of a transaction, several times in a row; again later.
    #[error("shard {shard}: reads after {after} keep seeing part of a transaction")]
    Torn {
        /// The shard.
        shard: ShardId,
        /// The place.
        after: AddedId,
    },
}

impl TailError {
    /// Whether it may pass without a person.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Store(_) | Self::Torn { .. } | Self::Newer { .. })
    }
}

/// Reads a dense run after `after`: at most `limit` segments. `tip` is what the reader has heard of the tip, 0 for
/// nothing: an empty answer below it is looked into.
///
/// # Errors
/// See [`TailError`]. What stands behind some entries, a hole or an error, is met at the next call: the entries before it
/// are handed on.
pub async fn run(log: &dyn Log, shard: ShardId, after: AddedId, limit: u32, tip: AddedId) -> Result<Run, TailError> {
    let mut consistency = Consistency::Eventual;
    for _ in 0..TRIES {
        let found: Vec<Found> = match log.page(shard, after, limit, consistency).await {
            Ok(segments) => segments.into_iter().map(Found::Whole).collect(),
            // Something in it does not decode: by their keys, one at a time. Such reads are strong.
            Err(error) if error.kind == ErrorKind::Undecodable && planted::is("what cannot be decoded is passed") => {
                return Ok(Run { entries: vec![Entry::Trimmed { first: after.next(), last: tip.max(after.next()) }] });
            }
            Err(error) if error.kind == ErrorKind::Undecodable => {
                consistency = Consistency::Strong;
                log.keys(shard, after, limit).await?.into_iter().map(Found::Key).collect()
            }
            Err(error) => return Err(error.into()),
        };
        let next = found.first().map(Found::key);
        let entries = dense(log, shard, after, found).await?;
        if !entries.is_empty() || (next.is_none() && tip <= after) {
            return Ok(Run { entries });
        }
        if consistency == Consistency::Eventual {
            consistency = Consistency::Strong;
            continue;
        }
        // The hole stands in a strong read. Its last segment ends just before the next begins, or at the tip.
        let last = next.map_or(tip, |next| before(next.first()));
        if let Some(entry) = settle(log, shard, after, last).await? {
            return Ok(Run { entries: vec![entry] });
        }
    }
    Err(TailError::Torn { shard, after })
}

/// What a read found of a segment.
enum Found {
    Whole(Segment),
    Key(SegmentKey),
}

impl Found {
    fn key(&self) -> SegmentKey {
        match self {
            Self::Whole(segment) => segment.key(),
            Self::Key(key) => *key,
        }
    }
}

/// The entries of what was found, as far as they are dense and can be read; an error only if there is none before it.
async fn dense(log: &dyn Log, shard: ShardId, after: AddedId, found: Vec<Found>) -> Result<Vec<Entry>, TailError> {
    let mut entries = Vec::new();
    let mut end = after;
    for found in found {
        let last = found.key().last;
        match next(log, shard, after, end, found).await {
            Ok(Some(entry)) => entries.push(entry),
            Ok(None) => break,
            Err(error) if entries.is_empty() => return Err(error),
            Err(_) => break,
        }
        end = last;
    }
    Ok(entries)
}

/// The entry of a segment that goes on where `end` is; `None` for one that lies beyond a hole, or is gone meanwhile.
async fn next(
    log: &dyn Log,
    shard: ShardId,
    after: AddedId,
    end: AddedId,
    found: Found,
) -> Result<Option<Entry>, TailError> {
    let (key, expected) = (found.key(), end.next());
    let first = key.first();
    if first > expected {
        return Ok(None);
    }
    // The first segment of a run may hold the place itself: its key is above it, its beginning below. Then no other
    // segment ends between.
    let overlaps = first == AddedId(0)
        || first < expected
            && (end > after || log.keys(shard, before(first), 1).await?.first().is_some_and(|k| k.last < key.last));
    if overlaps {
        return Err(TailError::Overlap { shard, first, last: key.last, expected });
    }
    let error = match found {
        Found::Whole(segment) => return open(log, shard, segment, after).await.map(Some),
        Found::Key(key) => match log.segment(shard, key.last).await {
            Ok(Some(segment)) => return open(log, shard, segment, after).await.map(Some),
            Ok(None) => return Ok(None),
            Err(error) => error,
        },
    };
    if error.kind != ErrorKind::Undecodable {
        return Err(error.into());
    }
    let reason = error.source.map_or_else(String::new, |source| source.to_string());
    again(log, shard, key, after, reason).await.map(Some)
}

fn before(place: AddedId) -> AddedId {
    AddedId(place.0.saturating_sub(1))
}

/// Looks at a hole in one moment, together with the tip. `None`: there is none, the reads were torn.
async fn settle(log: &dyn Log, shard: ShardId, after: AddedId, last: AddedId) -> Result<Option<Entry>, TailError> {
    let settled = log.settle(shard, last).await?;
    let (tip, trimmed_to) = settled.tip.map_or_else(Default::default, |tip| (tip.tip, tip.trimmed_to));
    let first = after.next();
    if tip < after {
        return Err(TailError::AboveTip { shard, after, tip });
    }
    if planted::is("hole taken for a trim") {
        return Ok(Some(Entry::Trimmed { first, last }));
    }
    if settled.segment.is_some() || last < first {
        return Ok(None);
    }
    if trimmed_to >= first {
        return Ok(Some(Entry::Trimmed { first, last: last.min(trimmed_to) }));
    }
    Err(TailError::Hole { shard, first, last, trimmed_to })
}

/// Unpacks a segment and leaves out what lies at or before `after`.
async fn open(log: &dyn Log, shard: ShardId, segment: Segment, after: AddedId) -> Result<Entry, TailError> {
    let first = segment.key().first().max(after.next());
    if first > segment.key().first() && planted::is("the segment that holds the checkpoint is passed") {
        return Ok(Entry::Trimmed { first, last: segment.last });
    }
    let reason = match unpack(shard, &segment) {
        Ok(cells) => return Ok(Entry::Cells(since(cells, first))),
        Err(error @ SegmentError::UnknownFormat(_)) => return Err(TailError::Newer { shard, error }),
        Err(error) => error.to_string(),
    };
    if planted::is("damage is believed at the first read") {
        return Ok(Entry::Damaged { first, last: segment.last, reason });
    }
    again(log, shard, segment.key(), after, reason).await
}

/// The second, strong read of a segment that could not be decoded.
async fn again(
    log: &dyn Log,
    shard: ShardId,
    key: SegmentKey,
    after: AddedId,
    reason: String,
) -> Result<Entry, TailError> {
    let first = key.first().max(after.next());
    let damaged = |reason| Ok(Entry::Damaged { first, last: key.last, reason });
    match log.segment(shard, key.last).await {
        Ok(Some(segment)) => match unpack(shard, &segment) {
            Ok(cells) => Ok(Entry::Cells(since(cells, first))),
            Err(error @ SegmentError::UnknownFormat(_)) => Err(TailError::Newer { shard, error }),
            Err(error) => damaged(error.to_string()),
        },
        // Trimmed meanwhile: the next read sees the hole.
        Ok(None) => Err(TailError::Torn { shard, after }),
        Err(error) if error.kind == ErrorKind::Undecodable => damaged(reason),
        Err(error) => Err(error.into()),
    }
}

fn since(cells: Vec<Cell>, first: AddedId) -> Vec<Cell> {
    match cells.first() {
        Some(cell) if cell.added_id < first => cells.into_iter().filter(|cell| cell.added_id >= first).collect(),
        _ => cells,
    }
}

/// Cells of a shard after a place, at most `limit`, and where to go on: for readers without a checkpoint. Trimmed places
/// are passed; a damaged segment ends the answer with an error.
///
/// # Errors
/// See [`TailError`].
pub async fn cells(log: &dyn Log, shard: ShardId, after: AddedId, limit: usize) -> Result<Cells, TailError> {
    let mut answer = Cells { cells: Vec::new(), next: after };
    let tip = log.tip(shard).await?.map_or(AddedId(0), |tip| tip.tip);
    while answer.cells.len() < limit && answer.next < tip {
        let segments = u32::try_from(limit - answer.cells.len()).unwrap_or(u32::MAX).clamp(1, 50);
        for entry in run(log, shard, answer.next, segments, tip).await?.entries {
            match entry {
                Entry::Cells(cells) => {
                    let room = limit - answer.cells.len();
                    answer.cells.extend(cells.into_iter().take(room));
                    answer.next = answer.cells.last().map_or(answer.next, |cell| cell.added_id);
                    if answer.cells.len() == limit {
                        return Ok(answer);
                    }
                }
                Entry::Trimmed { last, .. } => answer.next = last,
                Entry::Damaged { first, last, reason } => {
                    let table = format!("{}.log", log.datastore().name);
                    let source = format!("shard {shard}, added IDs {first} to {last}: {reason}");
                    let kind = ErrorKind::Undecodable;
                    return Err(StoreError { kind, table, operation: "Query", source: Some(source.into()) }.into());
                }
            }
        }
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cell::{CellKey, Name, NewCell, NewDatastore},
        store::{Cells as Appender, Fault, Faults, Store, memory::MemoryLog},
        tail::at_time,
    };
    use std::sync::Arc;

    const SHARD: ShardId = ShardId(0);

    /// A log of segments of 1, 2, 3 … cells.
    async fn log(segments: u64) -> Arc<MemoryLog> {
        let log = Arc::new(MemoryLog::new(&NewDatastore { name: trips(), shards: 1 }));
        fill(log.clone(), segments).await;
        log
    }

    async fn fill(log: Arc<dyn Log>, segments: u64) {
        let store = Appender::new(log);
        let mut ref_key = 0;
        for n in 1..=segments {
            let mut cell = || {
                ref_key += 1;
                let key = CellKey { row_key: "r".into(), column: "BASE".into(), ref_key };
                NewCell { key, body: "1".into(), origin: None }
            };
            let batch = (0..n).map(|_| cell()).collect();
            assert!(store.put(batch).await.iter().all(Result::is_ok));
        }
    }

    #[tokio::test]
    async fn a_run_begins_in_the_middle_of_a_segment() {
        let log = log(4).await;
        let run = run(&*log, SHARD, AddedId(4), 10, AddedId(10)).await.unwrap();
        assert_eq!(run.entries[0].range(), Some((AddedId(5), AddedId(6))));
        assert_eq!(run.end(AddedId(4)), AddedId(10));
    }

    #[tokio::test]
    async fn a_trimmed_hole_is_passed_and_an_unexplained_one_stops_the_shard() {
        let log = log(4).await;
        log.delete_segment(SHARD, AddedId(1)).await.unwrap();
        log.delete_segment(SHARD, AddedId(3)).await.unwrap();
        let error = run(&*log, SHARD, AddedId(0), 10, AddedId(10)).await.unwrap_err();
        assert!(matches!(error, TailError::Hole { first: AddedId(1), last: AddedId(3), .. }), "{error}");
        assert!(log.raise_trim(SHARD, AddedId(1)).await.unwrap());
        let part = run(&*log, SHARD, AddedId(0), 10, AddedId(10)).await.unwrap();
        assert_eq!(part.entries, [Entry::Trimmed { first: AddedId(1), last: AddedId(1) }], "as far as the trim goes");
        assert!(log.raise_trim(SHARD, AddedId(3)).await.unwrap());
        let whole = run(&*log, SHARD, AddedId(0), 10, AddedId(10)).await.unwrap();
        assert_eq!(whole.entries, [Entry::Trimmed { first: AddedId(1), last: AddedId(3) }]);
        log.delete_segment(SHARD, AddedId(10)).await.unwrap();
        let error = run(&*log, SHARD, AddedId(6), 10, AddedId(10)).await.unwrap_err();
        assert!(
            matches!(error, TailError::Hole { first: AddedId(7), last: AddedId(10), .. }),
            "up to the tip: {error}"
        );
    }

    fn trips() -> Name {
        Name::new("trips").unwrap()
    }

    /// Segments of 1, 2, 3 and 4 cells on the embedded engine, behind faults.
    async fn behind_faults() -> (Store, Faults, Arc<dyn Log>) {
        let (store, faults) = Faults::store();
        store.init_datastore(&NewDatastore { name: trips(), shards: 1 }).await.unwrap();
        let log = store.datastore(&trips(), None).await.unwrap();
        fill(log.clone(), 4).await;
        faults.asked();
        (store, faults, log)
    }

    fn ranges(run: &Run) -> Vec<(u64, u64)> {
        run.entries.iter().map(|entry| entry.range().unwrap()).map(|(first, last)| (first.0, last.0)).collect()
    }

    #[tokio::test]
    async fn what_lies_before_a_bad_segment_is_handed_on() {
        let (store, _, log) = behind_faults().await;
        let newer = SegmentKey { last: AddedId(6), n: 3 };
        store.put_segment(&trips(), newer, Some(&[99])).await;
        let good = run(&*log, SHARD, AddedId(0), 10, AddedId(10)).await.unwrap();
        assert_eq!(ranges(&good), [(1, 1), (2, 3)]);
        let error = run(&*log, SHARD, AddedId(3), 10, AddedId(10)).await.unwrap_err();
        assert!(matches!(error, TailError::Newer { .. }), "then the error: {error}");
    }

    #[tokio::test]
    async fn an_overlap_is_met_even_where_a_read_begins_in_it() {
        let (store, _, log) = behind_faults().await;
        let over = SegmentKey { last: AddedId(5), n: 3 };
        store.put_segment(&trips(), over, Some(&[1])).await;
        let good = run(&*log, SHARD, AddedId(0), 10, AddedId(10)).await.unwrap();
        assert_eq!(ranges(&good), [(1, 1), (2, 3)]);
        for after in [3, 4] {
            let error = run(&*log, SHARD, AddedId(after), 10, AddedId(10)).await.unwrap_err();
            assert!(matches!(error, TailError::Overlap { first: AddedId(3), .. }), "after {after}: {error}");
        }
    }

    #[tokio::test]
    async fn an_undecodable_page_behind_a_trimmed_start_is_settled() {
        let (store, _, log) = behind_faults().await;
        store.put_segment(&trips(), SegmentKey { last: AddedId(6), n: 3 }, None).await;
        assert!(log.raise_trim(SHARD, AddedId(1)).await.unwrap());
        log.delete_segment(SHARD, AddedId(1)).await.unwrap();
        let hole = run(&*log, SHARD, AddedId(0), 10, AddedId(10)).await.unwrap();
        assert_eq!(hole.entries, [Entry::Trimmed { first: AddedId(1), last: AddedId(1) }]);
        let rest = run(&*log, SHARD, AddedId(1), 10, AddedId(10)).await.unwrap();
        assert_eq!(ranges(&rest), [(2, 3), (4, 6), (7, 10)]);
        assert!(matches!(rest.entries[1], Entry::Damaged { .. }), "{:?}", rest.entries[1]);

        log.delete_segment(SHARD, AddedId(3)).await.unwrap();
        let error = run(&*log, SHARD, AddedId(1), 10, AddedId(10)).await.unwrap_err();
        assert!(matches!(error, TailError::Hole { first: AddedId(2), last: AddedId(3), .. }), "{error}");
    }

    #[tokio::test]
    async fn a_walk_that_fails_late_keeps_what_it_read() {
        let (store, faults, log) = behind_faults().await;
        store.put_segment(&trips(), SegmentKey { last: AddedId(10), n: 4 }, None).await;
        for fault in [None, None, Some(Fault::Broken)] {
            faults.next("GetItem", fault);
        }
        let part = run(&*log, SHARD, AddedId(0), 10, AddedId(10)).await.unwrap();
        assert_eq!(ranges(&part), [(1, 1), (2, 3)]);
        faults.next("GetItem", Fault::Broken);
        let error = run(&*log, SHARD, AddedId(3), 10, AddedId(10)).await.unwrap_err();
        assert!(matches!(&error, TailError::Store(error) if error.kind == ErrorKind::Unanswered), "{error}");
        let rest = run(&*log, SHARD, AddedId(3), 10, AddedId(10)).await.unwrap();
        assert_eq!(ranges(&rest), [(4, 6), (7, 10)]);
    }

    /// The table of faults, in virtual time, over an append and a read: each ends by itself when the fault does, is told
    /// with table and operation where it does not pass soon, and is no hot loop.
    #[tokio::test(start_paused = true)]
    async fn a_store_that_fails_for_a_while_is_told_of_and_recovers() {
        use ErrorKind::{Credentials, Denied, MissingTable, Throttled, Unanswered};
        for (fault, kind, waits) in [
            (Fault::Broken, Unanswered, true),
            (Fault::Silent, Unanswered, true),
            (Fault::Answer(503, "<html>".into()), Unanswered, true),
            (Fault::error("ProvisionedThroughputExceededException"), Throttled, true),
            (Fault::error("ResourceNotFoundException"), MissingTable, false),
            (Fault::error("AccessDeniedException"), Denied, false),
            (Fault::error("ExpiredTokenException"), Credentials, false),
        ] {
            let (_store, faults, log) = behind_faults().await;
            let cells = Appender::new(log.clone());
            let key = CellKey { row_key: "r".into(), column: "BASE".into(), ref_key: 99 };
            let cell = NewCell { key, body: "1".into(), origin: None };
            log.tip(SHARD).await.unwrap();
            faults.asked();

            faults.stand(Some(fault.clone()));
            let error = run(&*log, SHARD, AddedId(0), 10, AddedId(10)).await.unwrap_err();
            let TailError::Store(error) = &error else { panic!("{error}") };
            assert_eq!((error.kind, &*error.table, error.operation), (kind, "trips.log", "Query"), "{fault:?}");
            assert_eq!(faults.asked().len(), 1, "{fault:?}: whoever reads decides when to try again");

            let passes = async {
                tokio::time::sleep(std::time::Duration::from_secs(20)).await;
                faults.stand(None);
            };
            let (puts, ()) = tokio::join!(cells.put(vec![cell.clone()]), passes);
            let asked = faults.asked().len();
            if waits {
                assert_eq!(puts[0].as_ref().unwrap().added_id, AddedId(11), "{fault:?}: stored as soon as it can be");
                assert!((3..90).contains(&asked), "{fault:?}: {asked} requests in 20 s");
            } else {
                let Err(crate::store::PutError::Store(error)) = &puts[0] else { panic!("{puts:?}") };
                assert_eq!((error.kind, &*error.table, error.operation), (kind, "trips.tips", "GetItem"), "{fault:?}");
                assert_eq!(asked, 1, "{fault:?}: told at once");
                assert_eq!(cells.put(vec![cell]).await[0].as_ref().unwrap().added_id, AddedId(11), "and then it works");
            }
            let read = run(&*log, SHARD, AddedId(0), 10, AddedId(11)).await.unwrap();
            assert_eq!(read.end(AddedId(0)), AddedId(11), "{fault:?}");
        }
    }

    #[tokio::test]
    async fn a_place_above_the_tip_and_an_empty_log_are_told_apart() {
        let log = log(2).await;
        assert_eq!(run(&*log, SHARD, AddedId(3), 10, AddedId(3)).await.unwrap(), Run::default());
        let error = run(&*log, SHARD, AddedId(9), 10, AddedId(12)).await.unwrap_err();
        assert!(matches!(error, TailError::AboveTip { tip: AddedId(3), .. }), "{error}");
    }

    #[tokio::test]
    async fn readers_go_on_where_they_ended() {
        let log = log(5).await;
        let mut all = Vec::new();
        let mut next = AddedId(0);
        loop {
            let page = cells(&*log, SHARD, next, 4).await.unwrap();
            if page.cells.is_empty() {
                break;
            }
            assert!(page.cells.len() <= 4);
            all.extend(page.cells.iter().map(|cell| cell.added_id.0));
            next = page.next;
        }
        assert_eq!(all, (1..=15).collect::<Vec<_>>());
    }

    #[tokio::test(start_paused = true)]
    async fn a_time_is_found_by_bisection() {
        crate::cell::clock::simulate(crate::cell::Millis(1000));
        let log = Arc::new(MemoryLog::new(&NewDatastore { name: Name::new("trips").unwrap(), shards: 1 }));
        let store = Appender::new(log.clone());
        for ref_key in 0..50 {
            let key = CellKey { row_key: "r".into(), column: "BASE".into(), ref_key };
            store.put(vec![NewCell { key, body: "1".into(), origin: None }; 1]).await[0].as_ref().unwrap();
            tokio::time::advance(std::time::Duration::from_millis(10)).await;
        }
        for (time, expected) in
            [(0, 0), (1000, 0), (1001, 1), (1010, 1), (1245, 25), (1490, 49), (1491, 50), (9999, 50)]
        {
            let place = at_time(&*log, SHARD, crate::cell::Millis(time)).await.unwrap();
            assert_eq!(place, AddedId(expected), "at {time}");
        }
    }
}
