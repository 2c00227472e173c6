//! Retention: a worker trims the shards that it holds, each about once an hour ([`Retention::every`]), a few at a time.
//!
//! A trim goes as far as cells are old enough, and never past the lowest checkpoint of any group that has a trigger on the
//! datastore, all of it read strongly just before. So it harms nothing when two workers trim one shard, or when the shard was
//! lost meanwhile: who trims is a matter of sharing the work and not of safety.
//!
//! It is a future of the worker's own loop beside the shards' tasks, and what it does are requests: it keeps nobody waiting.

use crate::{
    cell::{Ledger, Name, ShardRef, chain, clock, planted},
    metrics,
    store::{Cells, OpenError},
    tail::{self, TailError},
};
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// Shards that are trimmed at a time.
const PARALLEL: usize = 2;
/// Segments that are deleted of a shard before others have a turn.
const A_TURN: u64 = 1000;
/// When a shard has its next turn whose old part was not deleted in one.
const GO_ON: Duration = Duration::from_secs(5);
/// When it is tried again after a failure.
const AGAIN: Duration = Duration::from_mins(10);

/// Opens the coordination of a group.
pub type OpenLedger = Arc<dyn Fn(Name) -> BoxFuture<'static, Result<Arc<dyn Ledger>, OpenError>> + Send + Sync>;

/// How long logs are kept.
#[derive(Clone)]
pub struct Retention {
    /// By datastore. The logs of one that is left out are kept for ever.
    pub keep: BTreeMap<Name, Duration>,
    /// How often a shard is trimmed: an hour, but for tests.
    pub every: Duration,
    /// For the checkpoints of the other groups that have triggers on a datastore.
    pub open: OpenLedger,
}

/// Why a shard was not trimmed.
#[derive(Debug, thiserror::Error)]
enum TrimError {
    #[error(transparent)]
    Tail(#[from] TailError),
    #[error("group {group} has triggers on it, and how far they are cannot be read")]
    Group {
        group: Name,
        #[source]
        error: OpenError,
    },
    #[error("its tables were made anew since this worker opened them")]
    Foreign,
}

impl From<crate::cell::StoreError> for TrimError {
    fn from(error: crate::cell::StoreError) -> Self {
        Self::Tail(error.into())
    }
}

/// What the trims of a worker share.
struct Trims {
    retention: Retention,
    sources: BTreeMap<Name, Cells>,
    /// Groups whose coordination is open.
    groups: Mutex<BTreeMap<Name, Arc<dyn Ledger>>>,
}

/// Trims for ever what is held.
pub(super) async fn run(
    retention: Retention,
    sources: BTreeMap<Name, Cells>,
    group: Name,
    ledger: Arc<dyn Ledger>,
    mut held: watch::Receiver<BTreeSet<ShardRef>>,
) {
    if retention.keep.is_empty() {
        return std::future::pending().await;
    }
    let groups = Mutex::new(BTreeMap::from([(group, ledger)]));
    let mut turns = Turns::new(retention.every);
    let trims = Arc::new(Trims { retention, sources, groups });
    let mut at_work: FuturesUnordered<BoxFuture<'static, (ShardRef, Result<bool, TrimError>)>> =
        FuturesUnordered::new();
    held.mark_changed();
    loop {
        if held.has_changed().unwrap_or(false) {
            let keep = &trims.retention.keep;
            turns.follow(held.borrow_and_update().iter().filter(|shard| keep.contains_key(&shard.source)));
        }
        let mut next = None;
        while at_work.len() < PARALLEL {
            match turns.take(clock::now()) {
                Ok(shard) => {
                    let trims = trims.clone();
                    at_work.push(async move { (shard.clone(), trims.trim(&shard).await) }.boxed());
                }
                Err(at) => {
                    next = at;
                    break;
                }
            }
        }
        tokio::select! {
            biased;
            changed = held.changed() => match changed {
                Ok(()) => held.mark_changed(),
                Err(_) => return std::future::pending().await,
            },
            Some((shard, trimmed)) = at_work.next(), if !at_work.is_empty() => turns.ended(shard, trimmed),
            () = clock::sleep_until(next.unwrap_or_else(clock::now)), if next.is_some() => {}
        }
    }
}

/// Whose turn is when.
struct Turns {
    every: Duration,
    held: BTreeSet<ShardRef>,
    due: BTreeMap<ShardRef, Instant>,
    /// Why shards could not be trimmed at their last turn.
    failed: BTreeMap<ShardRef, String>,
}

impl Turns {
    fn new(every: Duration) -> Self {
        Self { every, held: BTreeSet::new(), due: BTreeMap::new(), failed: BTreeMap::new() }
    }

    /// Takes what is held now. A shard's first turn is at any time of the first round, so that thousands do not come at once.
    fn follow<'a>(&mut self, held: impl Iterator<Item = &'a ShardRef>) {
        let held: BTreeSet<ShardRef> = held.cloned().collect();
        self.due.retain(|shard, _| held.contains(shard));
        self.failed.retain(|shard, _| held.contains(shard));
        for shard in held.difference(&self.held) {
            self.due.insert(shard.clone(), clock::now() + self.every.mul_f64(fastrand::f64()));
        }
        self.held = held;
    }

    /// The shard whose turn it is, or when the next one's is.
    fn take(&mut self, now: Instant) -> Result<ShardRef, Option<Instant>> {
        let first = self.due.iter().min_by_key(|(_, at)| **at).map(|(shard, at)| (shard.clone(), *at));
        match first {
            Some((shard, at)) if at <= now => {
                self.due.remove(&shard);
                Ok(shard)
            }
            first => Err(first.map(|(_, at)| at)),
        }
    }

    /// A shard's turn is over: with everything deleted that is old enough, or not yet.
    fn ended(&mut self, shard: ShardRef, trimmed: Result<bool, TrimError>) {
        if !self.held.contains(&shard) {
            return;
        }
        let rest = match trimmed {
            Ok(all) => {
                self.succeeded(&shard);
                if all { self.every } else { GO_ON }
            }
            Err(error) => {
                self.failed(&shard, &error);
                AGAIN
            }
        };
        self.due.insert(shard, clock::now() + rest.mul_f64(0.9 + 0.2 * fastrand::f64()));
    }

    /// Tells of a failure, unless a shard of the datastore met the same at its last turn. Says whether it told.
    fn failed(&mut self, shard: &ShardRef, error: &TrimError) -> bool {
        let error = chain(error);
        let known = self.failed.iter().any(|(other, told)| other.source == shard.source && *told == error);
        if !known {
            tracing::warn!(datastore = %shard.source, error, "the log cannot be trimmed by its retention; trying again");
        }
        self.failed.insert(shard.clone(), error);
        !known
    }

    fn succeeded(&mut self, shard: &ShardRef) {
        let failed = self.failed.remove(shard).is_some();
        if failed && !self.failed.keys().any(|other| other.source == shard.source) {
            tracing::info!(datastore = %shard.source, "the log can be trimmed by its retention again");
        }
    }
}

impl Trims {
    /// Trims a shard. Says whether nothing that is old enough, and finished, is left.
    async fn trim(&self, shard: &ShardRef) -> Result<bool, TrimError> {
        let (Some(keep), Some(cells)) = (self.retention.keep.get(&shard.source), self.sources.get(&shard.source))
        else {
            return Ok(true);
        };
        let log = &**cells.log();
        let mut groups = Vec::new();
        for group in log.groups().await? {
            groups.push((group.clone(), self.ledger(group).await?));
        }
        let keep = if planted::is("retention does not ask how old cells are") { Duration::ZERO } else { *keep };
        let due = tail::due(log, &groups, shard.shard, tail::before(clock::wall(), keep)).await?;
        if !due.is_any() {
            return Ok(true);
        }
        // The checkpoints are those of the datastore that was opened.
        if log.incarnation().await?.as_ref() != Some(&log.datastore().incarnation) {
            return Err(TrimError::Foreign);
        }
        let trimmed = tail::trim(log, &groups, shard.shard, due.to, A_TURN).await?;
        metrics::retention_trimmed(shard.source.as_str(), trimmed.cells);
        tracing::debug!(%shard, to = %due.to, segments = trimmed.segments, "trimmed by its retention");
        Ok(trimmed.all)
    }

    async fn ledger(&self, group: Name) -> Result<Arc<dyn Ledger>, TrimError> {
        if let Some(ledger) = self.groups().get(&group) {
            return Ok(ledger.clone());
        }
        match (self.retention.open)(group.clone()).await {
            Ok(ledger) => {
                self.groups().insert(group, ledger.clone());
                Ok(ledger)
            }
            Err(error) => Err(TrimError::Group { group, error }),
        }
    }

    fn groups(&self) -> MutexGuard<'_, BTreeMap<Name, Arc<dyn Ledger>>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::ShardId;

    const EVERY: Duration = Duration::from_hours(1);

    fn shard(source: &str, shard: u32) -> ShardRef {
        ShardRef { source: Name::new(source).unwrap(), shard: ShardId(shard) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_told_once_a_datastore_and_again_when_it_is_another() {
        let mut turns = Turns::new(EVERY);
        let foreign = TrimError::Foreign;
        let group = |name: &str| TrimError::Group { group: Name::new(name).unwrap(), error: OpenError::Region };
        let (a, b, c) = (shard("trips", 1), shard("trips", 2), shard("rides", 1));
        assert!(turns.failed(&a, &foreign));
        assert!(!turns.failed(&b, &foreign) && !turns.failed(&a, &foreign), "known by now");
        assert!(turns.failed(&c, &foreign), "another datastore");
        assert!(turns.failed(&a, &group("g")), "another failure");
        turns.succeeded(&a);
        assert!(!turns.failed(&a, &foreign), "the other shard still meets it");
        turns.succeeded(&a);
        turns.succeeded(&b);
        assert!(turns.failed(&a, &foreign), "it was over");
    }

    #[tokio::test(start_paused = true)]
    async fn each_shard_has_a_turn_an_hour_while_it_is_held() {
        let mut turns = Turns::new(EVERY);
        let all: Vec<ShardRef> = (0..100).map(|n| shard("trips", n)).collect();
        turns.follow(all.iter());
        let mut seen: BTreeMap<ShardRef, u32> = BTreeMap::new();
        let end = clock::now() + 10 * EVERY;
        loop {
            match turns.take(clock::now()) {
                Ok(shard) => {
                    *seen.entry(shard.clone()).or_default() += 1;
                    turns.follow(all.iter());
                    assert!(turns.due.len() == 99, "one that is at work has no turn meanwhile");
                    turns.ended(shard, Ok(true));
                }
                Err(at) => {
                    let at = at.expect("somebody is next");
                    if at > end {
                        break;
                    }
                    clock::sleep_until(at).await;
                }
            }
        }
        assert!(seen.len() == 100 && seen.values().all(|turns| (9..=11).contains(turns)), "{seen:?}");
        let first = turns.take(clock::now() + EVERY * 2).unwrap();
        turns.follow(all.iter().filter(|shard| **shard != first));
        turns.ended(first.clone(), Ok(true));
        assert!(!turns.due.contains_key(&first), "it was lost while it was at work");
    }
}
