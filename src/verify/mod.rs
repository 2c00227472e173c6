//! Whether what is stored agrees with itself: the log, cells and tips of a datastore, and what its groups keep about
//! it. Only reads, one request at a time, at a bounded rate, while writers and workers go on.
//!
//! The whole reads the log and the table `cells` once each. Cells are counted and their digests added up by shard and
//! range of places, on both sides:
//!
//! | a range | then |
//! | --- | --- |
//! | the same number and sum | the same cells lie in both, at the same places: nothing of it is read again |
//! | another | each cell of the range in the log is got from `cells` and compared |
//! | and `cells` has more than these at their places | each of the range in `cells` is looked up in the log |
//!
//! A cell is never deleted, and never moves. So what lies at or below the tip that was read first is all there when the
//! scan comes, and every cell of the log whose item in `cells` lies at its place has that item for itself alone: when
//! the numbers agree as well, no item is left over.
//!
//! A sample reads the keys of the whole log and compares some segments cell by cell, then scans some slices of `cells` and
//! looks each of their cells up in the log.
//!
//! What looks wrong is read again, strongly and after a while, before it is told: an append, a trim or a worker may be
//! half-way. An erase is that for longer, and told by a name of its own. What holds is decided by pure functions over what
//! was read: `chain.rs`, `compare.rs`, `group.rs`.

mod cells;
mod chain;
mod compare;
mod cost;
mod doubts;
mod finding;
mod group;
mod ledger;
mod log;
mod pace;
mod read;
mod sample;
#[cfg(test)]
mod tests;

pub use cost::{Estimate, Sizes, estimate};
pub use finding::{Finding, Flaw};
pub use sample::Sample;

use crate::cell::{AddedId, Ledger, Log, Name, ShardId, StoreError};
use compare::Account;
use doubts::{Differing, Doubts};
use finding::Told;
use read::Reader;
use std::{
    collections::{BTreeSet, VecDeque},
    ops::ControlFlow,
    sync::Arc,
    time::Duration,
};

/// How often something that looks wrong is looked at before it is told.
const LOOKS: u32 = 4;
/// Ranges of places of a datastore, over all its shards: each takes 64 bytes.
const RANGES: u32 = 1 << 16;
/// Ranges of a shard at most.
const SHARD_RANGES: u32 = 256;

/// What is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Some of it; `None` for the whole.
    pub sample: Option<Sample>,
    /// Read units a second at most; `None` for as fast as one request after the other goes.
    pub rate: Option<u32>,
}

/// A group that may have triggers on the datastore.
pub struct Group {
    /// Its name.
    pub name: Name,
    /// Its tables; `None` where they are missing.
    pub ledger: Option<Arc<dyn Ledger>>,
}

/// What is told on the way.
#[derive(Debug)]
pub enum Event {
    /// Something does not hold.
    Found(Box<Finding>),
    /// So many more cells of the log or of `cells` were passed.
    Passed(u64),
}

/// Why it ended before the end.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    /// The store did not answer as it should.
    #[error("the verification stopped half-way")]
    Store(#[from] StoreError),
    /// Whoever was told has heard enough.
    #[error("nobody listens to the findings any more")]
    Unheard,
}

/// What was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Shards of the datastore.
    pub shards: u64,
    /// Segments whose keys were checked.
    pub segments: u64,
    /// Cells of the log that were read.
    pub logged: u64,
    /// Cells of the table `cells` that were read.
    pub cells: u64,
    /// Those of them whose log was trimmed.
    pub trimmed: u64,
    /// Those of them that were appended meanwhile.
    pub newer: u64,
    /// Leases held by a session that is not dead.
    pub owned: u64,
    /// Leases whose owner is dead or has no session.
    pub orphaned: u64,
    /// Parked cells that are retried or wait.
    pub parked: u64,
    /// Parked cells that were given up.
    pub dead: u64,
    /// What does not hold.
    pub findings: u64,
    /// Read units, by the sizes of what was read.
    pub units: u64,
}

/// Verifies a datastore and what these groups keep about it. Findings and progress are told as they come.
///
/// # Errors
/// When the store does not answer, or whoever is told breaks off. What does not hold is no error.
pub async fn verify(
    log: &dyn Log,
    groups: &[Group],
    plan: Plan,
    hear: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<Summary, Stopped> {
    let mut verifier = Verifier::new(log, plan, hear);
    verifier.tips().await?;
    let accounts = verifier.logs().await?;
    match plan.sample {
        None => verifier.all_cells(accounts).await?,
        Some(sample) => verifier.some_cells(sample, &accounts).await?,
    }
    for group in groups {
        verifier.group(group).await?;
    }
    verifier.end().await
}

/// How much there is to read, as far as the tips tell.
///
/// # Errors
/// When the store does not answer.
pub async fn measure(log: &dyn Log, groups: &[Group]) -> Result<Sizes, StoreError> {
    let mut reader = Reader::new(log, None);
    let mut sizes = Sizes { shards: log.datastore().shards.into(), ..Sizes::default() };
    let enlisted = reader.groups().await?.unwrap_or_default();
    for Group { name, ledger } in groups {
        let Some(ledger) = ledger else { continue };
        // What cannot be decoded is told of by the verification itself.
        let triggers = read::triggers(ledger.as_ref(), &log.datastore().name).await?.unwrap_or_default();
        sizes.groups += u64::from(enlisted.contains(name) || !triggers.is_empty());
        sizes.triggers += triggers.len() as u64;
    }
    for bucket in 0..log.datastore().buckets() {
        // A bucket that cannot be decoded is told of by the verification itself.
        for tip in reader.tips(bucket).await?.unwrap_or_default() {
            sizes.cells += tip.tip.0;
            sizes.logged += tip.tip.0.saturating_sub(tip.trimmed_to.0);
        }
    }
    Ok(sizes)
}

/// A verification under way.
struct Verifier<'a> {
    reader: Reader<'a>,
    sample: Option<Sample>,
    told: Told<'a>,
    /// Cells of the log that differ in `cells`.
    differing: Doubts<Differing>,
    /// What a group keeps and ought not to.
    unfit: Doubts<ledger::Unfit>,
    summary: Summary,
    /// Segments that overlap others, which rule.
    overlapping: BTreeSet<(ShardId, AddedId)>,
    /// Tips as last read where a cell lay above the first reading.
    tips: Vec<AddedId>,
    /// Segments that were read last to look cells up.
    segments: VecDeque<cells::Opened>,
}

impl<'a> Verifier<'a> {
    fn new(log: &'a dyn Log, plan: Plan, hear: &'a mut dyn FnMut(Event) -> ControlFlow<()>) -> Self {
        let shards = log.datastore().shards;
        Self {
            reader: Reader::new(log, plan.rate),
            sample: plan.sample,
            told: Told::new(hear),
            differing: Doubts::default(),
            unfit: Doubts::default(),
            summary: Summary { shards: u64::from(shards), ..Summary::default() },
            overlapping: BTreeSet::new(),
            tips: vec![AddedId(0); shards as usize],
            segments: VecDeque::new(),
        }
    }

    /// Every bucket of tips: what lies there belongs there.
    async fn tips(&mut self) -> Result<(), Stopped> {
        for bucket in 0..self.reader.datastore().buckets() {
            let Err(why) = self.reader.tips(bucket).await? else { continue };
            // A tip that cannot be decoded is told of its shard, when its log is read.
            let shards: Vec<ShardId> = self.reader.datastore().all_shards().collect();
            let mut whose = false;
            for shard in shards {
                if self.reader.datastore().bucket(shard) == bucket {
                    whose |= self.reader.tip(shard).await?.is_err();
                }
            }
            if !whose {
                let detail = format!("bucket {bucket} of the tips has an item that does not belong there: {why}");
                self.told.finding(Finding::new(Flaw::TipMisplaced, detail))?;
            }
        }
        Ok(())
    }

    /// The log of every shard, with the sums of its cells. `None` for one that could not be read.
    async fn logs(&mut self) -> Result<Vec<Option<Account>>, Stopped> {
        let shards = self.reader.datastore().shards;
        let ranges = (RANGES / shards).clamp(1, SHARD_RANGES);
        let mut accounts = Vec::with_capacity(shards as usize);
        for shard in (0..shards).map(ShardId) {
            accounts.push(self.shard_log(shard, ranges).await?);
        }
        self.settle_differing().await?;
        Ok(accounts)
    }

    /// Whether the tables are still those that were opened.
    async fn end(mut self) -> Result<Summary, Stopped> {
        let opened = self.reader.datastore().incarnation.clone();
        let now = self.reader.incarnation().await?;
        if now.as_ref() != Ok(&Some(opened.clone())) {
            let now = match now {
                Ok(Some(other)) => format!("its incarnation is {other} now"),
                Ok(None) => "its own item is gone".into(),
                Err(why) => why,
            };
            let detail = format!("opened as incarnation {opened}, and {now}: what was read may be of two datastores");
            self.told.finding(Finding::new(Flaw::DatastoreChanged, detail))?;
        }
        self.summary.findings = self.told.count();
        self.summary.units = self.reader.units();
        Ok(self.summary)
    }
}

/// Before something is looked at again.
async fn pause(look: u32) {
    tokio::time::sleep(Duration::from_millis(50) * (1 << look)).await;
}
