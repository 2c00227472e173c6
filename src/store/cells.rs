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
    AddedId, Cell, Commit, Committed, Datastore, ErrorKind, Log, Millis, NewCell, Refusal, Refused, ShardId,
    StoreError, StoredCell, Tip, chain, clock, planted, same_json,
};
use futures_util::future::join_all;
use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::{Mutex as AsyncMutex, oneshot, watch};

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
    /// The cell at its address was erased, and an address is never used again.
    #[error("the cell at this address, with added ID {}, was erased; nothing is stored there again", existing.cell.added_id)]
    Erased {
        /// What is left of it.
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
    /// Places that requests asked for whose outcome was not told. Kept wherever the cell goes: should it turn out to lie
    /// at one of them, this put stored it; should it fail, it may be stored yet.
    asked: Vec<AddedId>,
}

/// What the drivers of a shard hand on to each other.
#[derive(Default)]
struct Writer {
    /// The tip as last seen; `None`: not read yet.
    tip: Option<Option<Tip>>,
    /// Races lost in a row: to another tip, or to a rival's transaction under way.
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
                queue.push_back(Waiting { cell, answer, asked: Vec::new() });
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
            clock::sleep(writer.took).await;
        }
        let Some(mut batch) = Batch::take(shard, batch_max(writer.losses)) else { return };
        let give_up = clock::now() + GIVE_UP;
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
                    if !is_passing(error.kind) || clock::now() >= give_up {
                        writer.tip = None;
                        batch.fail_all(error);
                    }
                }
            }
            if !batch.cells.is_empty() && (failures > 0 || writer.losses > 0) {
                batch.truncate(batch_max(writer.losses));
                clock::sleep(self.back_off(writer, writer.losses.max(failures))).await;
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
        let first = if planted::is("places are counted from the tip") { AddedId(first.0 - 1) } else { first };
        let start = clock::now();
        batch.sent = Some(first);
        let committed = self.log.commit(commit).await;
        writer.took = clock::since(start);
        if committed.as_ref().is_err_and(|error| !error.kind.not_applied()) {
            batch.note_asked();
            batch.unsettled = true;
        }
        batch.sent = None;
        let committed = match committed {
            Err(error) if !error.kind.not_applied() && planted::is("no answer is a yes") => Ok(Committed::Accepted),
            other => other,
        };
        match committed {
            Ok(Committed::Accepted) => {
                writer.tip = Some(Some(after));
                writer.yields = std::mem::take(&mut writer.losses) > 0;
                self.heard(id, after.tip);
                for (added_id, waiting) in (first.0..).map(AddedId).zip(batch.cells.drain(..)) {
                    waiting.tell(Ok(Placed { shard: id, added_id, new: true }));
                }
                Ok(())
            }
            Ok(Committed::Refused(refused)) => {
                let failed = |kind, why: &str| StoreError {
                    kind,
                    table: format!("{}.log", self.log.datastore().name),
                    operation: "TransactWriteItems",
                    source: Some(why.into()),
                };
                if let Some(real) = refused.tip.filter(|_| !planted::is("a lost race is never learnt")) {
                    writer.tip = Some(real);
                    self.heard(id, real.map_or(AddedId(0), |tip| tip.tip));
                }
                // Our own unsettled request may be what moved the tip or held an item: no race was lost then.
                let rival = refused.contended || refused.tip.is_some();
                writer.losses = writer.losses.saturating_add(u32::from(rival && !batch.unsettled));
                let moved = refused.tip.is_some_and(|real| real.map(|tip| tip.tip) != tip.map(|tip| tip.tip));
                let settled = batch.settle(&refused, |why| failed(ErrorKind::Undecodable, why));
                if refused.segment && refused.tip.is_none() {
                    let why = "the log has a segment above the tip: were the tables restored to different moments?";
                    writer.tip = None;
                    batch.fail_all(failed(ErrorKind::Broken, why));
                    return Ok(());
                }
                if refused.contended {
                    return Err(failed(ErrorKind::Conflict, "another transaction holds the tip or a cell"));
                }
                // Every copy that is still on its way will be refused as this one was.
                batch.unsettled = false;
                if !moved && settled == 0 {
                    return Err(failed(ErrorKind::Conflict, "refused, and the answer does not tell why"));
                }
                Ok(())
            }
            Err(error) => {
                let rival = error.kind == ErrorKind::Conflict && !batch.unsettled;
                writer.losses = writer.losses.saturating_add(u32::from(rival));
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

/// Most cells of a transaction after so many lost races: halved after every third.
fn batch_max(losses: u32) -> usize {
    (BATCH_MAX >> (losses / 3).min(usize::BITS - 1)).max(1)
}

/// Whether a batch waits for such a failure to pass, as long as it does not take too long.
fn is_passing(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Unanswered | ErrorKind::Throttled | ErrorKind::Conflict | ErrorKind::Broken)
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

    /// Tells of a failure; that it may be stored nevertheless, if an earlier request was not answered.
    fn fail(self, error: &Arc<StoreError>, open: &Arc<StoreError>) {
        let error = if self.asked.is_empty() { error } else { open };
        let error = error.clone();
        self.tell(Err(PutError::Store(error)));
    }
}

/// Cells in hand. What is not answered when it is dropped goes back to the head of the queue.
struct Batch<'a> {
    shard: &'a Shard,
    cells: VecDeque<Waiting>,
    /// A request is under way that asks for places from here on.
    sent: Option<AddedId>,
    /// A request with these cells was not answered, and no refusal has settled it yet.
    unsettled: bool,
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
        (!cells.is_empty()).then_some(Self { shard, cells, sent: None, unsettled: false })
    }

    /// Keeps the first `len` cells and puts the others back to the head of the queue.
    fn truncate(&mut self, len: usize) {
        let mut queue = self.shard.queue();
        for waiting in self.cells.drain(len.min(self.cells.len())..).rev() {
            queue.push_front(waiting);
        }
    }

    /// Notes with each cell the place that the request under way asks for, as its outcome is not known.
    fn note_asked(&mut self) {
        let Some(first) = self.sent else { return };
        for (place, waiting) in (first.0..).map(AddedId).zip(&mut self.cells) {
            if !waiting.asked.contains(&place) {
                waiting.asked.push(place);
            }
        }
    }

    /// Answers the cells that exist, and gives their number. `damaged` makes the error of one that cannot be decoded.
    fn settle(&mut self, refused: &Refused, damaged: impl Fn(&str) -> StoreError) -> usize {
        let stored = refused.cells.iter().map(|(i, stored)| (*i, Ok(stored)));
        let existing = stored.chain(refused.damaged.iter().map(|(i, why)| (*i, Err(why))));
        let existing: BTreeMap<usize, Result<&StoredCell, &String>> = existing.collect();
        let before = self.cells.len();
        for (i, stored) in existing.into_iter().rev() {
            let Some(waiting) = self.cells.remove(i) else { continue };
            let put = match stored {
                Err(why) => Err(PutError::Store(Arc::new(damaged(why)))),
                Ok(stored) if stored.cell.is_erased() => Err(PutError::Erased { existing: Box::new(stored.clone()) }),
                Ok(stored)
                    if same_json(&stored.cell.body, &waiting.cell.body) || planted::is("another body is taken") =>
                {
                    let Cell { shard, added_id, .. } = stored.cell;
                    // At a place that an unanswered request of ours asked for: that request was applied.
                    Ok(Placed { shard, added_id, new: waiting.asked.contains(&added_id) })
                }
                Ok(stored) => Err(PutError::Conflict { existing: Box::new(stored.clone()) }),
            };
            waiting.tell(put);
        }
        before - self.cells.len()
    }

    fn fail_all(&mut self, error: StoreError) {
        let open = Arc::new(StoreError {
            kind: ErrorKind::Unanswered,
            table: error.table.clone(),
            operation: error.operation,
            source: Some(format!("an earlier request was not answered; then: {}", chain(&error)).into()),
        });
        let error = Arc::new(error);
        for waiting in self.cells.drain(..) {
            waiting.fail(&error, &open);
        }
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        // Whoever drove it is gone in mid-request.
        self.note_asked();
        self.truncate(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cell::{CellKey, Consistency, Name, NewDatastore},
        store::{Fault, Faults, memory::MemoryLog},
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
    async fn an_erased_address_takes_no_cell_again() {
        let (log, cells) = datastore(1);
        assert_eq!(placed(&cells.put(vec![cell("a", 1, "1")]).await[0]), (1, true));
        assert!(log.erase_cell(&cell("a", 1, "1").key).await.unwrap());
        for body in ["1", "2"] {
            let puts = cells.put(vec![cell("a", 1, body), cell("b", 1, body)]).await;
            assert!(
                matches!(&puts[0], Err(PutError::Erased { existing }) if existing.cell.added_id == AddedId(1)),
                "{puts:?}"
            );
            assert_eq!(puts[1].is_ok(), body == "1", "the rest of the batch goes on without it");
        }
        assert_eq!(placed(&cells.put(vec![cell("a", 2, "1")]).await[0]), (3, true), "another address of its row does");
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

    /// A datastore of one shard behind faults, with one cell in it.
    async fn behind_faults() -> (Faults, Cells) {
        let (store, faults) = Faults::store();
        let name = Name::new("trips").unwrap();
        store.init_datastore(&NewDatastore { name: name.clone(), shards: 1 }).await.unwrap();
        let cells = Cells::new(store.datastore(&name, None).await.unwrap());
        assert_eq!(placed(&cells.put(vec![cell("first", 1, "1")]).await[0]), (1, true));
        faults.asked();
        (faults, cells)
    }

    const APPEND: &str = "TransactWriteItems";

    fn batch(n: u64) -> Vec<NewCell> {
        (0..n).map(|i| cell("r", i, "1")).collect()
    }

    fn all_placed(puts: &[Put]) -> Vec<(u64, bool)> {
        puts.iter().map(placed).collect()
    }

    /// A rival is about to commit: its segment is there, and the tip is still held by it.
    #[tokio::test(start_paused = true)]
    async fn a_rival_in_the_middle_of_its_commit_is_no_restored_table() {
        let (faults, cells) = behind_faults().await;
        for _ in 0..4 {
            faults.next(APPEND, Fault::canceled(&["TransactionConflict", "ConditionalCheckFailed"]));
        }
        assert_eq!(all_placed(&cells.put(batch(2)).await), [(2, true), (3, true)]);
        let writer = cells.shards[0].writer.lock().await;
        assert!(writer.yields, "a conflict is a lost race: the rival is given a turn");
    }

    /// Each reason to lose a batch, after a request that was applied and whose answer was lost.
    #[tokio::test(start_paused = true)]
    async fn what_may_be_stored_is_not_told_as_refused() {
        for (then, kind) in [
            (Fault::error("AccessDeniedException"), ErrorKind::Denied),
            (Fault::error("ExpiredTokenException"), ErrorKind::Credentials),
            (Fault::error("ProvisionedThroughputExceededException"), ErrorKind::Throttled),
            (Fault::canceled(&["TransactionConflict", "None", "None"]), ErrorKind::Conflict),
        ] {
            let (faults, cells) = behind_faults().await;
            let fails = async |applied_first: bool| {
                faults.stand(Some(then.clone()));
                if applied_first {
                    faults.next(APPEND, Fault::Applied(Box::new(Fault::Silent)));
                }
                let put = cells.put(batch(1)).await.remove(0);
                faults.stand(None);
                let Err(PutError::Store(error)) = put else { panic!("{put:?}") };
                assert_eq!(error.operation, APPEND);
                error
            };
            // The tip is not known any more after a failure; it is read with the next put.
            let error = fails(true).await;
            assert_eq!(error.kind, ErrorKind::Unanswered, "{then:?}: {error}");
            assert!(chain(&*error).contains(&kind.to_string()), "and the last failure is told: {}", chain(&*error));
            assert_eq!(all_placed(&cells.put(batch(1)).await), [(2, false)], "it was stored");
            assert!(faults.asked().len() < 120, "30 s of a fault are no hot loop");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_an_open_request_the_failure_itself_is_told() {
        let (faults, cells) = behind_faults().await;
        for (fault, kind) in [
            (Fault::error("AccessDeniedException"), ErrorKind::Denied),
            (Fault::error("ProvisionedThroughputExceededException"), ErrorKind::Throttled),
        ] {
            faults.next(APPEND, fault.clone());
            faults.stand(Some(fault));
            let put = cells.put(batch(1)).await.remove(0);
            assert!(matches!(&put, Err(PutError::Store(error)) if error.kind == kind), "{put:?}");
            faults.stand(None);
        }
        assert_eq!(all_placed(&cells.put(batch(1)).await), [(2, true)], "and nothing was stored");
    }

    #[tokio::test(start_paused = true)]
    async fn new_and_repeated_survive_a_caller_that_goes_away() {
        let (faults, cells) = behind_faults().await;
        faults.next(APPEND, Fault::Applied(Box::new(Fault::Silent)));
        let mut gone = Box::pin(cells.put(batch(2)));
        // Another caller's cells wait behind it; the first one drives, and is dropped in mid-request.
        let mut other = Box::pin(cells.put(vec![cell("s", 1, "1")]));
        assert!(futures_util::poll!(&mut gone).is_pending());
        assert!(futures_util::poll!(&mut other).is_pending());
        {
            let queue = cells.shards[0].queue();
            assert_eq!(queue.len(), 1, "two are in a request");
        }
        drop(gone);
        {
            let queue = cells.shards[0].queue();
            let asked: Vec<_> = queue.iter().map(|waiting| waiting.asked.clone()).collect();
            assert_eq!(asked, [vec![AddedId(2)], vec![AddedId(3)], vec![]]);
        }
        assert_eq!(all_placed(&other.await), [(4, true)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_that_was_applied_unheard_is_told_as_new() {
        let (faults, cells) = behind_faults().await;
        faults.next(APPEND, Fault::Applied(Box::new(Fault::Silent)));
        faults.next(APPEND, Fault::canceled(&["TransactionConflict", "None", "None", "None"]));
        assert_eq!(all_placed(&cells.put(batch(2)).await), [(2, true), (3, true)]);
        assert_eq!(all_placed(&cells.put(batch(2)).await), [(2, false), (3, false)]);
    }

    /// A refusal that tells nothing, for as long as a batch is tried.
    #[tokio::test(start_paused = true)]
    async fn a_refusal_that_tells_nothing_is_no_hot_loop() {
        let (faults, cells) = behind_faults().await;
        faults.stand(Some(Fault::canceled(&["None", "None", "ConditionalCheckFailed"])));
        let put = cells.put(batch(1)).await.remove(0);
        assert!(matches!(&put, Err(PutError::Store(error)) if error.kind == ErrorKind::Conflict), "{put:?}");
        assert!(faults.asked().len() < 120, "it backs off");
        faults.stand(None);
        assert_eq!(all_placed(&cells.put(batch(1)).await), [(2, true)]);
    }

    #[test]
    fn a_batch_shrinks_with_losses_and_never_to_nothing() {
        assert_eq!([0, 2, 3, 6, 18, 21].map(batch_max), [98, 98, 49, 24, 1, 1]);
        assert_eq!([191, 192, 1000, u32::MAX].map(batch_max), [1; 4]);
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_takes_nothing_with_it() {
        let (_, cells) = datastore(1);
        let gone = clock::timeout(Duration::ZERO, cells.put(vec![cell("a", 1, "1")]));
        let _ = gone.await;
        let puts = clock::timeout(Duration::from_secs(30), cells.put(vec![cell("a", 2, "1")])).await;
        assert!(puts.expect("the queue is not stuck").iter().all(Result::is_ok));
    }
}
