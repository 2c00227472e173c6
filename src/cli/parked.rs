//! `parked`: cells out of the window with failed attempts: listed, tried again, given up.

use super::{
    Context,
    exit::{Done, Usage},
    open::{Open, nudge_owners, trigger},
    output::{Output, plain, say, time},
};
use crate::cell::{
    AddedId, Lane, LaneChange, LaneKind, Ledger, Millis, Name, Parked, ParkedState, ShardId, ShardRef, TriggerRecord,
    clock,
};
use clap::{Subcommand, ValueEnum};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use std::{collections::BTreeSet, sync::Arc};

/// Lanes that are read at a time.
const PARALLEL: usize = 16;
/// Parked cells of a page.
const PAGE: usize = 500;

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List parked cells; the same as without a verb.
    List(ListArgs),
    /// Try cells again now, with their attempts counted anew: dead ones, and retrying ones before their time.
    Retry(ChangeArgs),
    /// Give cells up for good: they are not called again.
    Drop(ChangeArgs),
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    /// Of one trigger; without it, of all.
    #[arg(long)]
    trigger: Option<Name>,
    #[command(flatten)]
    filter: Filter,
}

#[derive(Debug, clap::Args)]
struct ChangeArgs {
    /// The trigger.
    #[arg(long)]
    trigger: Name,
    #[command(flatten)]
    filter: Filter,
    /// All parked cells of the trigger that the other options leave.
    #[arg(long)]
    all: bool,
}

/// Which parked cells.
#[derive(Clone, Debug, Default, clap::Args)]
struct Filter {
    /// Only cells in this state.
    #[arg(long)]
    state: Option<State>,
    /// Only cells of this row.
    #[arg(long, value_name = "ROW_KEY")]
    row: Option<String>,
    /// Only cells of this shard.
    #[arg(long, value_name = "N")]
    shard: Option<u32>,
    /// Only the cell at this place of its shard.
    #[arg(long, value_name = "N")]
    added_id: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum State {
    /// Tried again at a known time.
    Retrying,
    /// Behind a retrying cell of its row.
    Waiting,
    /// Given up; blocks nobody.
    Dead,
}

impl Args {
    /// Whether it does more than list.
    pub(super) fn changes(&self) -> bool {
        matches!(self.verb, Some(Verb::Retry(_) | Verb::Drop(_)))
    }
}

impl State {
    fn of(state: ParkedState) -> Self {
        match state {
            ParkedState::Retrying => Self::Retrying,
            ParkedState::Waiting => Self::Waiting,
            ParkedState::Dead => Self::Dead,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Retrying => "retrying",
            Self::Waiting => "waiting",
            Self::Dead => "dead",
        }
    }
}

impl Filter {
    fn is_empty(&self) -> bool {
        let Self { state, row, shard, added_id } = self;
        state.is_none() && row.is_none() && shard.is_none() && added_id.is_none()
    }

    fn lets(&self, parked: &Parked) -> bool {
        let Self { state, row, shard, added_id } = self;
        state.is_none_or(|state| State::of(parked.state) == state)
            && row.as_ref().is_none_or(|row| parked.row_key == *row)
            && shard.is_none_or(|shard| parked.shard.shard.0 == shard)
            && added_id.is_none_or(|id| (parked.added_id.0..=parked.last.0).contains(&id))
    }

    fn lanes(&self) -> &'static [LaneKind] {
        match self.state {
            None => &[LaneKind::Active, LaneKind::Dead],
            Some(State::Dead) => &[LaneKind::Dead],
            Some(State::Retrying | State::Waiting) => &[LaneKind::Active],
        }
    }
}

/// A parked cell, as it is printed.
#[derive(Serialize)]
struct ParkedLine<'a> {
    trigger: &'a Name,
    datastore: &'a Name,
    shard: u32,
    added_id: u64,
    /// Differs from `added_id` for a range of the log that cannot be decoded.
    last: u64,
    row_key: &'a str,
    column: &'a str,
    ref_key: u64,
    state: &'static str,
    attempts: u32,
    since: i64,
    next_attempt_at: Option<i64>,
    errors: &'a [String],
    /// What was done to it, if anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    done: Option<&'static str>,
}

impl<'a> ParkedLine<'a> {
    fn of(trigger: &'a Name, parked: &'a Parked, done: Option<&'static str>) -> Self {
        let retrying = parked.state == ParkedState::Retrying;
        Self {
            trigger,
            datastore: &parked.shard.source,
            shard: parked.shard.shard.0,
            added_id: parked.added_id.0,
            last: parked.last.0,
            row_key: &parked.row_key,
            column: &parked.column,
            ref_key: parked.ref_key,
            state: State::of(parked.state).text(),
            attempts: parked.attempts,
            since: parked.since.0,
            next_attempt_at: retrying.then_some(parked.next_attempt_at.0),
            errors: &parked.errors,
            done,
        }
    }
}

pub(super) async fn parked(context: &mut Context, args: Args) -> anyhow::Result<Done> {
    match args.verb {
        None => list(context, args.list).await,
        Some(Verb::List(args)) => list(context, args).await,
        Some(Verb::Retry(args)) => change(context, args, Change::Retry).await,
        Some(Verb::Drop(args)) => change(context, args, Change::Drop).await,
    }
}

async fn list(context: &mut Context, args: ListArgs) -> anyhow::Result<Done> {
    let open = Open::new(context).await?;
    let ledger = open.ledger().await?;
    let triggers = match &args.trigger {
        Some(name) => vec![trigger(ledger.as_ref(), name).await?],
        None => ledger.triggers().await?,
    };
    let headings = ["TRIGGER", "SHARD", "ADDED_ID", "ROW", "COLUMN", "STATE", "ATTEMPTS", "NEXT_ATTEMPT", "LAST_ERROR"];
    let mut rows = Vec::new();
    let mut looked = triggers.is_empty();
    for trigger in &triggers {
        let Some(found) = read(&open, &ledger, trigger, &args.filter).await? else { continue };
        looked = true;
        for parked in found {
            if context.output.is_json() {
                context.output.object(&ParkedLine::of(&trigger.name, &parked, None))?;
            } else {
                rows.push(row(&trigger.name, &parked));
            }
        }
    }
    if !looked {
        return Err(no_shard(&args.filter, &triggers));
    }
    context.output.table(headings, &rows)?;
    Ok(Done::All)
}

/// No datastore of these triggers has the shard of the filter.
fn no_shard(filter: &Filter, triggers: &[TriggerRecord]) -> anyhow::Error {
    let sources: BTreeSet<&str> = triggers.iter().map(|trigger| trigger.source.as_str()).collect();
    let sources = sources.into_iter().collect::<Vec<_>>().join(", ");
    Usage(format!("--shard: there is no shard {} of {sources}", filter.shard.unwrap_or_default())).into()
}

fn row(trigger: &Name, parked: &Parked) -> [String; 9] {
    let place = if parked.last == parked.added_id {
        parked.added_id.to_string()
    } else {
        format!("{}-{}", parked.added_id, parked.last)
    };
    let next = if parked.state == ParkedState::Retrying { time(parked.next_attempt_at) } else { "-".into() };
    let mut error: String = parked.errors.last().map_or("-", String::as_str).chars().take(100).collect();
    if error.is_empty() {
        error.push('-');
    }
    [
        trigger.to_string(),
        parked.shard.shard.to_string(),
        place,
        parked.row_key.clone(),
        parked.column.clone(),
        State::of(parked.state).text().into(),
        parked.attempts.to_string(),
        next,
        error,
    ]
}

/// The parked cells of a trigger that a filter lets through, by shard and place. `None`: its datastore has not the shard
/// of the filter.
async fn read(
    open: &Open,
    ledger: &Arc<dyn Ledger>,
    trigger: &TriggerRecord,
    filter: &Filter,
) -> anyhow::Result<Option<Vec<Parked>>> {
    // The number of shards is the datastore's, and a trigger of another file's datastore is listed too.
    let log = open.store.datastore(&trigger.source, None).await?;
    let shards: Vec<ShardId> =
        log.datastore().all_shards().filter(|shard| filter.shard.is_none_or(|only| shard.0 == only)).collect();
    if shards.is_empty() {
        return Ok(None);
    }
    let lanes = shards.into_iter().flat_map(|shard| {
        filter.lanes().iter().map(move |kind| Lane {
            trigger: trigger.id.clone(),
            shard: ShardRef { source: trigger.source.clone(), shard },
            kind: *kind,
        })
    });
    let reads = stream::iter(lanes).map(|lane| read_lane(ledger, lane, filter));
    let lanes: Vec<Vec<Parked>> = reads.buffered(PARALLEL).try_collect().await?;
    Ok(Some(lanes.into_iter().flatten().collect()))
}

/// The parked cell, or range, at a place of a shard.
pub(super) async fn at(
    open: &Open,
    ledger: &Arc<dyn Ledger>,
    trigger: &TriggerRecord,
    shard: ShardId,
    id: AddedId,
) -> anyhow::Result<Option<Parked>> {
    let filter = Filter { shard: Some(shard.0), added_id: Some(id.0), ..Filter::default() };
    Ok(read(open, ledger, trigger, &filter).await?.and_then(|found| found.into_iter().next()))
}

async fn read_lane(ledger: &Arc<dyn Ledger>, lane: Lane, filter: &Filter) -> anyhow::Result<Vec<Parked>> {
    let mut found = Vec::new();
    let mut after = AddedId(0);
    loop {
        let page = ledger.parked(&lane, after, PAGE).await?;
        let last = page.last().map(|parked| parked.added_id);
        let full = page.len() == PAGE;
        found.extend(page.into_iter().filter(|parked| filter.lets(parked)));
        match last {
            Some(last) if full => after = last,
            _ => return Ok(found),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Retry,
    Drop,
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

async fn change(context: &mut Context, args: ChangeArgs, change: Change) -> anyhow::Result<Done> {
    let ChangeArgs { trigger: name, filter, all } = args;
    if filter.is_empty() && !all {
        return Err(Usage("say which parked cells: --row, --state, --shard, --added-id, or --all".into()).into());
    }
    let open = Open::new(context).await?;
    let ledger = open.ledger().await?;
    let record = trigger(ledger.as_ref(), &name).await?;
    let found = read(&open, &ledger, &record, &filter).await?;
    let found = found.ok_or_else(|| no_shard(&filter, std::slice::from_ref(&record)))?;
    if found.is_empty() {
        say(format_args!("no parked cell of {name} is meant by that"));
        return Ok(Done::NotFound);
    }
    let (verb, now) = (if change == Change::Retry { "retried" } else { "dropped" }, clock::wall());
    let (mut waiting, mut changed_meanwhile) = (0_u64, 0_u64);
    let work = found.iter().map(|parked| {
        let changes = match change {
            Change::Retry => retried(parked, now),
            Change::Drop => Some(vec![LaneChange::Delete(parked.clone())]),
        };
        (parked, changes)
    });
    let mut writes = stream::iter(work)
        .map(async |(parked, changes)| match changes {
            None => Ok((parked, None)),
            Some(changes) => ledger.operate_parked(&changes).await.map(|done| (parked, Some(done))),
        })
        .buffered(PARALLEL);
    let mut shards = BTreeSet::new();
    let mut done = 0_u64;
    let mut failed = None;
    while let Some(written) = writes.next().await {
        match written {
            Ok((parked, Some(true))) => {
                done += 1;
                shards.insert(parked.shard.clone());
                told(&mut context.output, &name, parked, verb)?;
            }
            Ok((_, Some(false))) => changed_meanwhile += 1,
            Ok((_, None)) => waiting += 1,
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    drop(writes);
    nudge_owners(ledger.as_ref(), &shards).await;
    let mut told = format!("{done} {verb}");
    if waiting > 0 {
        told.push_str(&format!("; {waiting} wait behind a retrying cell of their row and go on after it"));
    }
    if changed_meanwhile > 0 {
        told.push_str(&format!("; {changed_meanwhile} changed meanwhile, look at them again"));
    }
    say(told);
    match failed {
        Some(error) => Err(error.into()),
        None if changed_meanwhile > 0 => Ok(Done::Partly),
        None => Ok(Done::All),
    }
}

fn told(output: &mut Output, trigger: &Name, parked: &Parked, verb: &'static str) -> anyhow::Result<()> {
    if output.is_json() {
        return output.object(&ParkedLine::of(trigger, parked, Some(verb)));
    }
    let (row, column) = (plain(&parked.row_key), plain(&parked.column));
    output.text(&format!("{verb} {}/{} {row} {column} {}", parked.shard.shard, parked.added_id, parked.ref_key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cell::TriggerId, store::memory::MemoryLedger};

    fn parked(state: ParkedState) -> Parked {
        Parked {
            trigger: TriggerId::from_stored("t"),
            shard: ShardRef { source: Name::new("trips").unwrap(), shard: ShardId(3) },
            added_id: AddedId(7),
            last: AddedId(7),
            row_key: "row".into(),
            column: "BASE".into(),
            ref_key: 1,
            state,
            attempts: 9,
            errors: vec!["no".into()],
            next_attempt_at: Millis(0),
            since: Millis(1),
            revision: 1,
        }
    }

    #[test]
    fn a_filter_leaves_what_it_says() {
        let dead = parked(ParkedState::Dead);
        let all = Filter::default();
        assert!(all.lets(&dead));
        assert!(!Filter { state: Some(State::Waiting), ..all.clone() }.lets(&dead));
        assert!(!Filter { row: Some("other".into()), ..all.clone() }.lets(&dead));
        assert!(!Filter { shard: Some(2), ..all.clone() }.lets(&dead));
        let range = Parked { last: AddedId(9), ..dead };
        assert!(Filter { added_id: Some(8), ..all.clone() }.lets(&range));
        assert!(!Filter { added_id: Some(10), ..all }.lets(&range));
    }

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
}
