//! Appending: many callers, one transaction at a time per shard, and an answer for each cell.
//!
//! While one transaction of a shard is under way, later cells of that shard wait in its queue and go together in the
//! next. Nobody is spawned: whoever waits for an answer and finds the shard's writer free drives the next batch, so
//! that no task outlives its callers, and a caller that is dropped in mid-transaction puts its batch back.
//!
//! Why a repeat is harmless, whatever was lost on the way: a batch is accepted only at the tip that it names, and only if
//! none of its cells exists; cells are never deleted. So once a request was refused, every earlier copy of it will be
//! refused too, and once it was accepted, no copy can be accepted again. An answer that never came is therefore settled by
//! sending the same request again.

use super::segment;
use crate::cell::{
    AddedId, Cell, Commit, Committed, Datastore, ErrorKind, Log, Millis, NewCell, Refusal, ShardId, StoreError,
    StoredCell, Tip, clock, same_json,
};
use futures_util::future::join_all;
use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Mutex as AsyncMutex, oneshot, watch},
    time::Instant,
};

/// Most cells of a transaction: 100 actions, less the tip and the segment.
pub const BATCH_MAX: usize = 98;
/// How long a batch is tried before its callers are told that the outcome is unknown, or what the store said.
const GIVE_UP: Duration = Duration::from_secs(30);
/// Longest wait between two tries.
const BACK_OFF_MAX: Duration = Duration::from_secs(2);

/// Where a cell lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The shard of its row.
    pub shard: ShardId,
    /// Its place in that shard's log.
    pub added_id: AddedId,
    /// Whether this put stored it; `false`: an equal cell was there already.
    pub new: bool,
}

/// Why a cell was not stored.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PutError {
    /// It is no cell.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Another body lies at its address, and cells are immutable.
    #[error("a cell with another body exists at this address, with added ID {}", existing.cell.added_id)]
    Conflict {
        /// What lies there.
        existing: Box<StoredCell>,
    },
    /// The store did not take it. For [`ErrorKind::Unanswered`] it may be stored, or be stored later.
    #[error("the cell was not acknowledged")]
    Store(#[source] Arc<StoreError>),
}

type Put = Result<Placed, PutError>;

/// The cells of one datastore: appends, and what a process knows of its tips. Clones share it.
#[derive(Clone)]
pub struct Cells {
    log: Arc<dyn Log>,
    datastore: Arc<Datastore>,
    shards: Arc<[Shard]>,
}

struct Shard {
    queue: Mutex<VecDeque<Waiting>>,
    writer: AsyncMutex<Writer>,
    tip: watch::Sender<AddedId>,
}

/// A cell and who waits for it.
struct Waiting {
    cell: NewCell,
    answer: oneshot::Sender<Put>,
}

/// What the drivers of a shard hand on to each other.
#[derive(Default)]
struct Writer {
    /// The tip as last seen; `None`: not read yet.
    tip: Option<Option<Tip>>,
    /// Races lost in a row.
    losses: u32,
    /// How long the last transaction took.
    took: Duration,
    /// A rival was met, and the last batch won: let the rival have a turn.
    yields: bool,
}

impl Cells {
    /// Over a log.
    #[must_use]
    pub fn new(log: Arc<dyn Log>) -> Self {
        let shard =
            |_| Shard { queue: Mutex::default(), writer: AsyncMutex::default(), tip: watch::Sender::new(AddedId(0)) };
        let shards = log.datastore().all_shards().map(shard).collect();
        let datastore = Arc::new(log.datastore().clone());
        Self { log, datastore, shards }
    }

    /// The log beneath.
    #[must_use]
    pub fn log(&self) -> &Arc<dyn Log> {
        &self.log
    }

    /// What it is.
    #[must_use]
    pub fn datastore(&self) -> &Arc<Datastore> {
        &self.datastore
    }

    /// The highest tip of a shard that this process has heard of: from its own appends, and from [`Cells::heard`].
    /// A hint that there is something to read; 0 says nothing.
    #[must_use]
    pub fn tip(&self, shard: ShardId) -> watch::Receiver<AddedId> {
        self.shards[shard.0 as usize].tip.subscribe()
    }

    /// Tells what was read of a shard's tip elsewhere; `true` if that is news.
    pub fn heard(&self, shard: ShardId, tip: AddedId) -> bool {
        self.shards[shard.0 as usize].tip.send_if_modified(|known| {
            let higher = tip > *known;
            *known = (*known).max(tip);
            higher
        })
    }

    /// Appends cells of any rows. One answer for each, in order. Cells of one shard are appended in the order given, but
    /// cells of different shards at the same time.
    pub async fn put(&self, cells: Vec<NewCell>) -> Vec<Put> {
        let mut answers: Vec<Option<Put>> = Vec::with_capacity(cells.len());
        let mut by_shard: BTreeMap<ShardId, (Vec<usize>, Vec<NewCell>)> = BTreeMap::new();
        for (i, cell) in cells.into_iter().enumerate() {
            answers.push(cell.check().err().map(|refusal| Err(refusal.into())));
            if answers[i].is_none() {
                let shard = ShardId::of(&cell.key.row_key, self.log.datastore().shards);
                let (places, cells) = by_shard.entry(shard).or_default();
                places.push(i);
                cells.push(cell);
            }
        }
        let appends = by_shard
            .into_iter()
            .map(|(shard, (places, cells))| async move { (places, self.append(shard, cells).await) });
        for (places, puts) in join_all(appends).await {
            for (i, put) in places.into_iter().zip(puts) {
                answers[i] = Some(put);
            }
        }
        answers.into_iter().map(|answer| answer.expect("each cell was refused or appended")).collect()
    }

    /// Appends checked cells of one shard.
    async fn append(&self, id: ShardId, cells: Vec<NewCell>) -> Vec<Put> {
        let shard = &self.shards[id.0 as usize];
        let mut answers = Vec::with_capacity(cells.len());
        {
            let mut queue = shard.queue();
            for cell in cells {
                let (answer, receiver) = oneshot::channel();
                queue.push_back(Waiting { cell, answer });
                answers.push(receiver);
            }
        }
        let mut puts = Vec::with_capacity(answers.len());
        for mut answer in answers {
            let put = loop {
                tokio::select! {
                    biased;
                    put = &mut answer => break put.expect("a queued cell is answered or put back"),
                    mut writer = shard.writer.lock() => self.drive(id, shard, &mut writer).await,
                }
            };
            puts.push(put);
        }
        puts
    }

    /// Takes one batch from the queue to its end.
    async fn drive(&self, id: ShardId, shard: &Shard, writer: &mut Writer) {
        if std::mem::take(&mut writer.yields) {
            tokio::time::sleep(writer.took).await;
        }
        let batch_max = (BATCH_MAX >> (writer.losses / 3)).max(1);
        let Some(mut batch) = Batch::take(shard, batch_max) else { return };
        let give_up = Instant::now() + GIVE_UP;
        let mut failures = 0;
        while !batch.cells.is_empty() {
            match self.attempt(id, writer, &mut batch).await {
                Ok(()) => failures = 0,
                Err(error) if error.kind == ErrorKind::Invalid => {
                    if batch.cells.len() == 1 {
                        batch.fail_all(error);
                    } else {
                        // Somewhere in it is a cell that the store will not take: halve until it is alone.
                        batch.truncate(batch.cells.len() / 2);
                    }
                }
                Err(error) => {
                    failures += 1;
                    let passing =
                        matches!(error.kind, ErrorKind::Unanswered | ErrorKind::Throttled | ErrorKind::Conflict);
                    if !passing || Instant::now() >= give_up {
                        writer.tip = None;
                        batch.fail_all(error);
                    } else {
                        tokio::time::sleep(self.back_off(writer, failures)).await;
                    }
                }
            }
            if writer.losses > 0 && !batch.cells.is_empty() {
                if writer.losses.is_multiple_of(3) {
                    batch.truncate((BATCH_MAX >> (writer.losses / 3)).max(1));
                }
                tokio::time::sleep(self.back_off(writer, writer.losses)).await;
            }
        }
    }

    /// One transaction, and what its answer means for each cell. Cells that are answered leave the batch.
    async fn attempt(&self, id: ShardId, writer: &mut Writer, batch: &mut Batch<'_>) -> Result<(), StoreError> {
        let tip = match writer.tip {
            Some(tip) => tip,
            None => *writer.tip.insert(self.log.tip(id).await?),
        };
        let (cells, packed) = loop {
            let cells: Vec<NewCell> = batch.cells.iter().map(|waiting| waiting.cell.clone()).collect();
            let packed = segment::pack(&cells);
            if packed.len() <= segment::PACKED_MAX || cells.len() == 1 {
                break (cells, packed);
            }
            batch.truncate(cells.len() / 2);
        };
        let created_at = Millis(clock::wall().0.max(tip.map_or(i64::MIN, |tip| tip.created_at.0)));
        let commit = Commit { shard: id, tip, cells, packed, created_at };
        let after = commit.tip_after();
        let first = AddedId(after.tip.0 + 1 - batch.cells.len() as u64);
        let start = Instant::now();
        let committed = self.log.commit(commit).await;
        writer.took = start.elapsed();
        match committed {
            Ok(Committed::Accepted) => {
                writer.tip = Some(Some(after));
                writer.yields = std::mem::take(&mut writer.losses) > 0;
                self.heard(id, after.tip);
                for (added_id, waiting) in (first.0..).map(AddedId).zip(batch.cells.drain(..)) {
                    waiting.tell(Ok(Placed { shard: id, added_id, new: true }));
                }
                batch.resent = false;
                Ok(())
            }
            Ok(Committed::Refused { tip, cells, segment }) => {
                if segment && tip.is_none() {
                    return Err(StoreError {
                        kind: ErrorKind::Broken,
                        table: format!("{}.log", self.log.datastore().name),
                        operation: "TransactWriteItems",
                        source: Some(
                            "the log has a segment above the tip: were the tables restored to different moments?"
                                .into(),
                        ),
                    });
                }
                if let Some(real) = tip {
                    writer.losses += u32::from(!batch.resent);
                    writer.tip = Some(real);
                    self.heard(id, real.map_or(AddedId(0), |tip| tip.tip));
                }
                batch.settle(&cells, first);
                Ok(())
            }
            Err(error) => {
                batch.resent |= !error.kind.not_applied();
                Err(error)
            }
        }
    }

    /// Full jitter up to twice the last transaction's time, doubling with each failure.
    fn back_off(&self, writer: &Writer, failures: u32) -> Duration {
        let took = writer.took.clamp(Duration::from_millis(1), Duration::from_millis(200));
        let most = (took * 2).saturating_mul(1 << (failures - 1).min(10)).min(BACK_OFF_MAX);
        most.mul_f64(fastrand::f64())
    }
}

impl Shard {
    fn queue(&self) -> MutexGuard<'_, VecDeque<Waiting>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn tell(self, put: Put) {
        // A caller that is gone needs no answer.
        let _ = self.answer.send(put);
    }
}

/// Cells in hand. What is not answered when it is dropped goes back to the head of the queue.
struct Batch<'a> {
    shard: &'a Shard,
    cells: VecDeque<Waiting>,
    /// A request with these cells is out whose outcome is not known.
    resent: bool,
}

impl<'a> Batch<'a> {
    /// The next cells of the queue: at most `most`, each address once, within the size of a segment.
    fn take(shard: &'a Shard, most: usize) -> Option<Self> {
        let mut queue = shard.queue();
        let mut cells = VecDeque::with_capacity(queue.len().min(most));
        let mut addresses = HashSet::new();
        let mut size = 0;
        while let Some(waiting) = queue.front() {
            let raw = segment::raw_size(&waiting.cell);
            let full = cells.len() == most || (size + raw > segment::RAW_MAX && !cells.is_empty());
            // The second cell of an address waits a turn: it then finds the first, and learns whether they are equal.
            if full || !addresses.insert(waiting.cell.key.clone()) {
                break;
            }
            size += raw;
            cells.extend(queue.pop_front());
        }
        (!cells.is_empty()).then_some(Self { shard, cells, resent: false })
    }

    /// Keeps the first `len` cells and puts the others back to the head of the queue.
    fn truncate(&mut self, len: usize) {
        let mut queue = self.shard.queue();
        for waiting in self.cells.drain(len.min(self.cells.len())..).rev() {
            queue.push_front(waiting);
        }
    }

    /// Answers the cells that exist, by their index.
    fn settle(&mut self, existing: &[(usize, StoredCell)], first: AddedId) {
        for (i, stored) in existing.iter().rev() {
            let Some(waiting) = self.cells.remove(*i) else { continue };
            let Cell { shard, added_id, .. } = stored.cell;
            let put = if same_json(&stored.cell.body, &waiting.cell.body) {
                // At the very place that an unanswered request of ours asked for: that request was applied.
                let new = self.resent && added_id.0 == first.0 + *i as u64;
                Ok(Placed { shard, added_id, new })
            } else {
                Err(PutError::Conflict { existing: Box::new(stored.clone()) })
            };
            waiting.tell(put);
        }
        self.resent = false;
    }

    fn fail_all(&mut self, error: StoreError) {
        let error = Arc::new(error);
        for waiting in self.cells.drain(..) {
            waiting.tell(Err(PutError::Store(error.clone())));
        }
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.truncate(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cell::{CellKey, Consistency, Name, NewDatastore},
        store::memory::MemoryLog,
    };

    fn datastore(shards: u32) -> (Arc<MemoryLog>, Cells) {
        let log = Arc::new(MemoryLog::new(&NewDatastore { name: Name::new("trips").unwrap(), shards }));
        (log.clone(), Cells::new(log))
    }

    fn cell(row: &str, ref_key: u64, body: &str) -> NewCell {
        let key = CellKey { row_key: row.into(), column: "BASE".into(), ref_key };
        NewCell { key, body: body.into(), origin: None }
    }

    fn placed(put: &Put) -> (u64, bool) {
        let placed = put.as_ref().unwrap();
        (placed.added_id.0, placed.new)
    }

    #[tokio::test]
    async fn repeats_conflicts_and_refusals_are_answered_cell_by_cell() {
        let (_, cells) = datastore(1);
        let puts = cells
            .put(vec![
                cell("a", 1, "1"),
                cell("", 1, "1"),
                cell("a", 2, "{\"x\":1}"),
                cell("a", 2, "{ \"x\": 1 }"),
                cell("a", 1, "2"),
            ])
            .await;
        assert_eq!(placed(&puts[0]), (1, true));
        assert!(matches!(puts[1], Err(PutError::Refused(Refusal::RowKey(0)))));
        assert_eq!(placed(&puts[2]), (2, true));
        assert_eq!(placed(&puts[3]), (2, false), "an equal cell of the same call shares the answer");
        assert!(matches!(&puts[4], Err(PutError::Conflict { existing }) if existing.cell.added_id == AddedId(1)));
        assert_eq!(placed(&cells.put(vec![cell("a", 1, " 1 ")]).await[0]), (1, false));
    }

    #[tokio::test]
    async fn many_callers_and_several_writers_share_one_dense_log() {
        let (log, first) = datastore(1);
        let second = Cells::new(log.clone());
        let mut callers = tokio::task::JoinSet::new();
        for caller in 0..20_u64 {
            let cells = if caller % 2 == 0 { first.clone() } else { second.clone() };
            callers.spawn(async move {
                for round in 0..10_u64 {
                    let batch = (0..15).map(|i| cell(&format!("r{i}"), caller * 1000 + round, "1")).collect();
                    assert!(cells.put(batch).await.iter().all(Result::is_ok));
                }
            });
        }
        callers.join_all().await;
        let segments = log.page(ShardId(0), AddedId(0), u32::MAX, Consistency::Strong).await.unwrap();
        let mut next = AddedId(1);
        for segment in &segments {
            assert_eq!(segment.key().first(), next);
            next = segment.last.next();
        }
        assert_eq!(next, AddedId(20 * 10 * 15 + 1));
        assert!(segments.len() <= 20 * 10, "callers that wait go together: {} transactions", segments.len());
        let heard = [first, second].map(|cells| *cells.tip(ShardId(0)).borrow());
        assert_eq!(heard.into_iter().max(), Some(AddedId(3000)));
    }

    #[tokio::test]
    async fn large_cells_are_split_into_segments_that_fit() {
        let (log, cells) = datastore(1);
        // Digits without a pattern, so that packing gains little.
        let body = |seed| {
            let mut rng = fastrand::Rng::with_seed(seed);
            format!("\"{}\"", (0..300_000).map(|_| rng.alphanumeric()).collect::<String>())
        };
        let puts = cells.put((0..8).map(|i| cell("r", i, &body(i))).collect()).await;
        assert!(puts.iter().all(Result::is_ok));
        let segments = log.page(ShardId(0), AddedId(0), u32::MAX, Consistency::Strong).await.unwrap();
        assert!(segments.iter().all(|segment| segment.packed.len() <= segment::PACKED_MAX));
        assert_eq!(segments.last().unwrap().last, AddedId(8));
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_takes_nothing_with_it() {
        let (_, cells) = datastore(1);
        let gone = tokio::time::timeout(Duration::ZERO, cells.put(vec![cell("a", 1, "1")]));
        let _ = gone.await;
        let puts = tokio::time::timeout(Duration::from_secs(30), cells.put(vec![cell("a", 2, "1")])).await;
        assert!(puts.expect("the queue is not stuck").iter().all(Result::is_ok));
    }
}
