//! `parked retry` and `parked drop`: thousands of cells, each in a write of its own on the condition that it is as it was read.
//!
//! What is changed is what was found, counted and asked about; not what is parked later. A cell that somebody
//! else changed meanwhile is looked at again: while it is still one that is meant, it is changed as it is now.

use super::{
    ParkedLine,
    filter::Filter,
    places,
    read::{Reader, place},
};
use crate::{
    cell::{LaneChange, Ledger, Millis, Name, Parked, ParkedState, StoreError, TriggerRecord, clock},
    cli::{
        Context,
        ask::Ask,
        bar::bar,
        exit::{Done, Usage},
        open::{Open, nudge_owners, trigger},
        output::{Output, plain},
    },
    store::patiently,
};
use anyhow::Context as _;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    num::NonZeroUsize,
};

/// Cells that are changed at a time.
const PARALLEL: usize = 16;
/// Cells that one command changes, so that its memory has a bound.
const AT_ONCE: usize = 100_000;
/// How often a cell is changed anew because somebody else changed it.
const TRIES: u32 = 5;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ChangeArgs {
    /// The trigger.
    #[arg(long)]
    trigger: Name,
    #[command(flatten)]
    filter: Filter,
    /// All parked cells of the trigger that the other options leave.
    #[arg(long)]
    all: bool,
    /// No more cells than this; at most 100000 in any case.
    #[arg(long, value_name = "N")]
    limit: Option<NonZeroUsize>,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct RetryArgs {
    #[command(flatten)]
    pub(super) change: ChangeArgs,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    pub(super) dry_run: bool,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct DropArgs {
    #[command(flatten)]
    pub(super) change: ChangeArgs,
    #[command(flatten)]
    pub(super) ask: Ask,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Retry,
    Drop,
}

/// What became of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    /// Tried again as soon as a worker sees it.
    Retried,
    /// Given up.
    Dropped,
    /// It waits behind a retrying cell of its row, and goes on after it.
    Waits,
    /// Finished, or given up by somebody else, meanwhile.
    Gone,
    /// Changed meanwhile: it is not one of those that are meant any more, or does not stand still.
    Changed,
}

/// A parked cell with what became of it; null before.
#[derive(Serialize)]
struct DoneLine<'a> {
    #[serde(flatten)]
    parked: ParkedLine<'a>,
    done: Option<Outcome>,
}

impl Outcome {
    fn text(self) -> &'static str {
        match self {
            Self::Retried => "retried",
            Self::Dropped => "dropped",
            Self::Waits => "waits",
            Self::Gone => "gone",
            Self::Changed => "changed",
        }
    }

    /// A number of them, for people.
    fn told(self, cells: u64) -> String {
        let text = match self {
            Self::Retried | Self::Dropped => self.text(),
            Self::Waits => "wait behind a retrying cell of their row and go on after it",
            Self::Gone => "were finished or given up by somebody else meanwhile",
            Self::Changed => "changed meanwhile and were left as they are: look at them again",
        };
        format!("{cells} {text}")
    }
}

/// The changes of one command.
struct Work<'a> {
    ledger: &'a dyn Ledger,
    record: &'a TriggerRecord,
    filter: &'a Filter,
    change: Change,
    now: Millis,
}

/// The writes that try a cell again now; `None` for one that waits behind another of its row.
///
/// Attempts and age begin anew: who asks for it has done something about the cause, and a cell whose age is used up would be
/// given up again at the first failure.
fn retried(parked: &Parked, now: Millis) -> Option<Vec<LaneChange>> {
    let again =
        Parked { state: ParkedState::Retrying, attempts: 0, since: now, next_attempt_at: now, ..parked.clone() };
    match parked.state {
        ParkedState::Dead => Some(vec![
            LaneChange::Delete(parked.clone()),
            LaneChange::Put(Parked { revision: Parked::fresh_revision(), ..again }),
        ]),
        ParkedState::Retrying => Some(vec![LaneChange::Update(again)]),
        ParkedState::Waiting => None,
    }
}

/// Whether a cell is as these writes left it: they were applied, and nobody heard of it.
fn is_left_by(writes: &[LaneChange], found: &Parked) -> bool {
    writes.iter().any(|write| match write {
        LaneChange::Put(parked) => parked == found,
        LaneChange::Update(parked) => Parked { revision: parked.revision + 1, ..parked.clone() } == *found,
        LaneChange::Delete(_) => false,
    })
}

impl Work<'_> {
    fn writes(&self, parked: &Parked) -> Option<Vec<LaneChange>> {
        match self.change {
            Change::Retry => retried(parked, self.now),
            Change::Drop => Some(vec![LaneChange::Delete(parked.clone())]),
        }
    }

    fn done(&self) -> Outcome {
        match self.change {
            Change::Retry => Outcome::Retried,
            Change::Drop => Outcome::Dropped,
        }
    }

    /// Changes a cell, or finds out why not. Gives it as it was seen last.
    async fn settle(&self, mut parked: Parked) -> Result<(Parked, Outcome), StoreError> {
        let mut sent = 0;
        for _ in 0..TRIES {
            let Some(writes) = self.writes(&parked) else { return Ok((parked, Outcome::Waits)) };
            let applied = patiently(|| {
                sent += 1;
                self.ledger.operate_parked(&writes)
            });
            if applied.await? {
                return Ok((parked, self.done()));
            }
            let found = place(self.ledger, &parked.trigger, &parked.shard, parked.added_id).await?;
            let Some(found) = found else {
                // After several sendings it may well have been ours that removed it.
                let ours = sent > 1 && self.change != Change::Retry;
                return Ok((parked, if ours { Outcome::Dropped } else { Outcome::Gone }));
            };
            if is_left_by(&writes, &found) {
                return Ok((found, self.done()));
            }
            parked = found;
            if !self.filter.lets(&parked, self.now) {
                break;
            }
        }
        Ok((parked, Outcome::Changed))
    }

    /// What is done, for people.
    fn question(&self, cells: usize) -> String {
        let name = &self.record.name;
        match self.change {
            Change::Retry => format!("try {cells} parked cells of {name} again"),
            Change::Drop => format!("give up {cells} parked cells of {name}, which are not called again"),
        }
    }
}

pub(super) async fn change(context: &mut Context, args: ChangeArgs, change: Change, ask: Ask) -> anyhow::Result<Done> {
    let ChangeArgs { trigger: name, filter, all, limit } = args;
    if filter.is_empty() && !all {
        let options = "--state, --row, --error, --older, --newer, --shard, --added-id";
        return Err(Usage(format!("say which parked cells: {options}, or --all")).into());
    }
    let open = Open::new(context).await?;
    let ledger = open.ledger().await?;
    let record = trigger(ledger.as_ref(), &name).await?;
    let now = clock::wall();
    let reader = Reader::new(&open, ledger.as_ref(), std::slice::from_ref(&record), &filter, now).await?;
    let limit = limit.map_or(AT_ONCE, |limit| limit.get().min(AT_ONCE));
    let hits = reader.read().await?.take(limit).map_ok(|(_, parked)| parked);
    let found: Vec<Parked> = hits.try_collect().await?;
    if found.is_empty() {
        context.output.say(format_args!("no parked cell of {name} is meant by that"));
        return Ok(Done::NotFound);
    }
    let full = found.len() == limit;
    let work = Work { ledger: ledger.as_ref(), record: &record, filter: &filter, change, now };
    let done = if ask.dry_run {
        work.rehearse(&mut context.output, &found)
    } else {
        ask.agreed(&mut context.output, &format!("This would {}. Go on?", work.question(found.len())))?;
        work.run(&mut context.output, found).await
    };
    if full {
        context.output.say(format_args!("no more than {limit} cells were looked at; there may be more"));
    }
    done
}

impl Work<'_> {
    /// Says what would be done.
    fn rehearse(&self, output: &mut Output, found: &[Parked]) -> anyhow::Result<Done> {
        let mut cells = 0;
        for parked in found {
            let waits = self.writes(parked).is_none().then_some(Outcome::Waits);
            cells += usize::from(waits.is_none());
            self.tell(output, parked, waits)?;
        }
        output.say(format_args!("would {}", self.question(cells)));
        Ok(Done::All)
    }

    /// Changes what was found, so many at a time. The first write that fails for good ends it, after those that are under way.
    async fn run(&self, output: &mut Output, found: Vec<Parked>) -> anyhow::Result<Done> {
        let all = found.len();
        let bar = bar(Some(all as u64), "{wide_bar} {human_pos}/{human_len} cells  {per_sec}  {eta}");
        let stopped = Cell::new(false);
        let mut settled = stream::iter(found)
            .map(async |parked| match stopped.get() {
                true => None,
                false => Some(self.settle(parked).await),
            })
            .buffer_unordered(PARALLEL);
        let mut counts: BTreeMap<Outcome, u64> = BTreeMap::new();
        let mut shards = BTreeSet::new();
        let mut failed = None;
        while let Some(settled) = settled.next().await {
            match settled {
                Some(Ok((parked, outcome))) => {
                    bar.inc(1);
                    *counts.entry(outcome).or_default() += 1;
                    bar.suspend(|| self.tell(output, &parked, Some(outcome)))?;
                    shards.insert(parked.shard);
                }
                Some(Err(error)) => {
                    stopped.set(true);
                    failed.get_or_insert(error);
                }
                None => {}
            }
        }
        bar.finish_and_clear();
        nudge_owners(self.ledger, &shards).await;
        counts.entry(self.done()).or_default();
        let told: Vec<String> = counts.iter().map(|(outcome, cells)| outcome.told(*cells)).collect();
        output.say(told.join("; "));
        let settled: u64 = counts.values().sum();
        match failed {
            Some(error) => Err(error).with_context(|| {
                format!("{settled} of {all} cells were settled; the same command again goes on with the others")
            }),
            None if counts.contains_key(&Outcome::Changed) => Ok(Done::Partly),
            None => Ok(Done::All),
        }
    }

    fn tell(&self, output: &mut Output, parked: &Parked, done: Option<Outcome>) -> anyhow::Result<()> {
        let name = &self.record.name;
        if output.is_json() {
            return output.object(&DoneLine { parked: ParkedLine::of(name, parked), done });
        }
        let verb = match done {
            Some(outcome) => outcome.text().to_owned(),
            None => format!("would be {}", self.done().text()),
        };
        let (row, column, places) = (plain(&parked.row_key), plain(&parked.column), places(parked));
        output.text(&format!("{verb} {}/{places} {row} {column} {}", parked.shard.shard, parked.ref_key))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::parked;
    use super::*;
    use crate::{
        cell::{AddedId, Incarnation, Lane, LaneKind, TriggerId, TriggerState},
        store::memory::MemoryLedger,
    };

    #[tokio::test]
    async fn a_dead_cell_tried_again_moves_to_the_active_lane() {
        let ledger = MemoryLedger::new();
        let dead = parked(ParkedState::Dead);
        assert!(ledger.operate_parked(&[LaneChange::Put(dead.clone())]).await.unwrap());
        assert!(ledger.operate_parked(&retried(&dead, Millis(5000)).unwrap()).await.unwrap());
        assert_eq!(ledger.parked(&dead.lane(), AddedId(0), 9).await.unwrap(), []);
        let lane = Lane { kind: LaneKind::Active, ..dead.lane() };
        let active = ledger.parked(&lane, AddedId(0), 9).await.unwrap();
        assert_eq!((active[0].state, active[0].attempts), (ParkedState::Retrying, 0));
        assert_eq!((active[0].next_attempt_at, active[0].since), (Millis(5000), Millis(5000)));
        let again = retried(&active[0], Millis(6000)).unwrap();
        assert!(ledger.operate_parked(&again).await.unwrap());
        assert!(!ledger.operate_parked(&again).await.unwrap(), "it is not any more what it was read as");
        assert_eq!(retried(&parked(ParkedState::Waiting), Millis(1)), None);
    }

    fn record() -> TriggerRecord {
        TriggerRecord {
            id: TriggerId::from_stored("t"),
            name: Name::new("t").unwrap(),
            formerly: std::collections::BTreeSet::new(),
            source: Name::new("trips").unwrap(),
            incarnation: Incarnation::random(),
            state: TriggerState::Active,
            generation: 0,
            start: None,
            revision: 0,
        }
    }

    /// A worker, or another operator, changes the cell between our reading and our write.
    #[tokio::test]
    async fn a_cell_that_changed_meanwhile_is_looked_at_again() {
        let ledger = MemoryLedger::new();
        let (record, dead_only) = (record(), Filter { state: Some(super::super::State::Dead), ..Filter::default() });
        let all = Filter::default();
        let settle = async |change, filter, seen: &Parked| {
            let work = Work { ledger: &ledger, record: &record, filter, change, now: Millis(9000) };
            work.settle(seen.clone()).await.unwrap()
        };
        let put = async |parked: &Parked| {
            assert!(ledger.operate_parked(&[LaneChange::Put(parked.clone())]).await.unwrap());
        };
        let drop = Change::Drop;

        let retrying = parked(ParkedState::Retrying);
        let failed_again = Parked { attempts: 10, revision: 2, ..retrying.clone() };
        put(&failed_again).await;
        assert_eq!(settle(drop, &all, &retrying).await, (failed_again.clone(), Outcome::Dropped), "still meant");
        assert_eq!(settle(drop, &all, &retrying).await, (retrying.clone(), Outcome::Gone));

        put(&failed_again).await;
        let dead = parked(ParkedState::Dead);
        let outcome = settle(drop, &dead_only, &dead).await;
        assert_eq!(outcome, (failed_again.clone(), Outcome::Changed), "it was tried again: not meant any more");
        let left = ledger.parked(&retrying.lane(), AddedId(0), 9).await.unwrap();
        assert_eq!(left, std::slice::from_ref(&failed_again), "and left");

        let waiting = Parked { state: ParkedState::Waiting, revision: 3, ..retrying.clone() };
        put(&waiting).await;
        assert_eq!(settle(Change::Retry, &all, &failed_again).await, (waiting.clone(), Outcome::Waits));
        assert!(ledger.operate_parked(&[LaneChange::Delete(waiting)]).await.unwrap());

        put(&dead).await;
        assert_eq!(settle(Change::Retry, &dead_only, &dead).await, (dead.clone(), Outcome::Retried));
        let (_, outcome) = settle(Change::Retry, &all, &dead).await;
        assert_eq!(outcome, Outcome::Retried, "another operator was faster, and it is tried again once more");
    }

    #[test]
    fn what_our_own_write_left_is_known() {
        let dead = parked(ParkedState::Dead);
        let writes = retried(&dead, Millis(5000)).unwrap();
        let LaneChange::Put(left) = &writes[1] else { unreachable!() };
        assert!(is_left_by(&writes, left));
        assert!(!is_left_by(&writes, &Parked { revision: left.revision + 1, ..left.clone() }), "a worker went on");
        let writes = retried(left, Millis(6000)).unwrap();
        let after =
            Parked { revision: left.revision + 1, since: Millis(6000), next_attempt_at: Millis(6000), ..left.clone() };
        assert!(is_left_by(&writes, &after) && !is_left_by(&writes, left));
    }
}
