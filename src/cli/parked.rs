//! `parked`: list, retry, drop.

use super::{
    Exit,
    home::{Home, NotThere, print_json, print_line},
};
use crate::{
    cell::{
        AddedId, Lane, LaneChange, LaneKind, Ledger, Name, Parked as Item, ParkedState, SessionId, ShardId, ShardRef,
        TriggerRecord, clock,
    },
    config::Config,
};
use clap::{Args, Subcommand, ValueEnum};
use std::collections::BTreeSet;

/// Parked cells that are read at a time.
const PAGE: usize = 500;

/// Arguments of `parked`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Parked {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    list: List,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List parked cells
    List(List),
    /// Try cells again now
    Retry(Change),
    /// Give cells up for good; they stay in the datastore
    Drop(Change),
}

#[derive(Clone, Debug, Args)]
struct List {
    /// Of one trigger; default: of all
    #[arg(long, value_name = "NAME")]
    trigger: Option<Name>,
    #[command(flatten)]
    which: Which,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: usize,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Change {
    /// The trigger
    trigger: Name,
    #[command(flatten)]
    which: Which,
    /// All that match; without it one of --row, --state, --shard or --added-id is asked for
    #[arg(long)]
    all: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, Args)]
struct Which {
    /// In this state
    #[arg(long, value_name = "STATE")]
    state: Option<State>,
    /// Of this row
    #[arg(long, value_name = "KEY")]
    row: Option<String>,
    /// Of this shard
    #[arg(long, value_name = "N")]
    shard: Option<u32>,
    /// At this place of the shard's log
    #[arg(long, value_name = "N", requires = "shard")]
    added_id: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum State {
    /// Tried again by itself
    Retrying,
    /// Behind a retrying cell of its row
    Waiting,
    /// Given up
    Dead,
}

impl Which {
    fn is_empty(&self) -> bool {
        self.state.is_none() && self.row.is_none() && self.shard.is_none()
    }

    fn lanes(&self) -> &'static [LaneKind] {
        match self.state {
            None => &[LaneKind::Active, LaneKind::Dead],
            Some(State::Dead) => &[LaneKind::Dead],
            Some(State::Retrying | State::Waiting) => &[LaneKind::Active],
        }
    }

    fn matches(&self, item: &Item) -> bool {
        self.state.is_none_or(|state| state_of(item) == state)
            && self.row.as_ref().is_none_or(|row| item.row_key == *row)
            && self.added_id.is_none_or(|id| item.added_id == AddedId(id))
    }
}

fn state_of(item: &Item) -> State {
    match item.state {
        ParkedState::Retrying => State::Retrying,
        ParkedState::Waiting => State::Waiting,
        ParkedState::Dead => State::Dead,
    }
}

/// Lists, retries, drops.
pub(super) async fn parked(home: &Home, parked: Parked) -> anyhow::Result<Exit> {
    let store = home.store().await?;
    let ledger = home.ledger(&store).await?;
    match parked.verb {
        None => list(home, &*ledger, parked.list).await,
        Some(Verb::List(of)) => list(home, &*ledger, of).await,
        Some(Verb::Retry(of)) => change(home, &*ledger, of, "retried", retry).await,
        Some(Verb::Drop(of)) => {
            change(home, &*ledger, of, "dropped", |item| Some(vec![LaneChange::Delete(item)])).await
        }
    }
}

/// A dead cell moves to the active lane, a retrying one is due now; a waiting one waits on.
fn retry(item: Item) -> Option<Vec<LaneChange>> {
    let now = clock::wall();
    match item.state {
        ParkedState::Waiting => None,
        ParkedState::Retrying => Some(vec![LaneChange::Update(Item { next_attempt_at: now, ..item })]),
        ParkedState::Dead => {
            let again =
                Item { state: ParkedState::Retrying, attempts: 0, next_attempt_at: now, since: now, ..item.clone() };
            Some(vec![LaneChange::Delete(item), LaneChange::Put(again)])
        }
    }
}

async fn named(ledger: &dyn Ledger, name: &Name) -> anyhow::Result<TriggerRecord> {
    let record = ledger.triggers().await?.into_iter().find(|record| record.name == *name);
    record.ok_or_else(|| NotThere(format!("no trigger {name} is registered")).into())
}

/// The lanes of a trigger that may hold what was asked for.
fn lanes(config: &Config, record: &TriggerRecord, which: &Which) -> Vec<Lane> {
    let shards = config.datastores.get(&record.source).map_or(0, |datastore| datastore.shards);
    let shards = (0..shards).filter(|shard| which.shard.is_none_or(|wanted| wanted == *shard));
    let lane = |shard, kind| Lane {
        trigger: record.id.clone(),
        shard: ShardRef { source: record.source.clone(), shard: ShardId(shard) },
        kind,
    };
    shards.flat_map(|shard| which.lanes().iter().map(move |kind| lane(shard, *kind))).collect()
}

async fn list(home: &Home, ledger: &dyn Ledger, list: List) -> anyhow::Result<Exit> {
    let records = match &list.trigger {
        Some(name) => vec![named(ledger, name).await?],
        None => ledger.triggers().await?,
    };
    let mut left = list.limit;
    for record in records {
        for lane in lanes(&home.config, &record, &list.which) {
            let mut after = AddedId(0);
            loop {
                let page = ledger.parked(&lane, after, PAGE).await?;
                let Some(last) = page.last() else { break };
                after = last.added_id;
                for item in page.iter().filter(|item| list.which.matches(item)) {
                    if left == 0 {
                        eprintln!("there is more: --limit {}", list.limit);
                        return Ok(Exit::Done);
                    }
                    left -= 1;
                    print(&record.name, item, list.json)?;
                }
            }
        }
    }
    Ok(Exit::Done)
}

fn print(trigger: &Name, item: &Item, json: bool) -> anyhow::Result<()> {
    let state = state_of(item).to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
    if json {
        return print_json(&serde_json::json!({
            "trigger": trigger, "datastore": item.shard.source, "shard": item.shard.shard.0, "added_id": item.added_id.0,
            "row_key": item.row_key, "column": item.column, "ref_key": item.ref_key, "state": state,
            "attempts": item.attempts, "errors": item.errors,
            "next_attempt_at": (item.state == ParkedState::Retrying).then_some(item.next_attempt_at.0), "since": item.since.0,
        }));
    }
    let error = item.errors.last().map_or("", String::as_str);
    print_line(format_args!(
        "{trigger}\t{}/{}\t{}/{}/{}\t{state}\t{} attempts\t{error}",
        item.shard, item.added_id, item.row_key, item.column, item.ref_key, item.attempts
    ))?;
    Ok(())
}

async fn change(
    home: &Home,
    ledger: &dyn Ledger,
    of: Change,
    done: &str,
    changes: impl Fn(Item) -> Option<Vec<LaneChange>>,
) -> anyhow::Result<Exit> {
    if of.which.is_empty() && !of.all {
        anyhow::bail!("which cells? --row, --state, --shard with --added-id, or --all");
    }
    let record = named(ledger, &of.trigger).await?;
    let (mut changed, mut moved_on, mut owners) = (0_u64, 0_u64, BTreeSet::<SessionId>::new());
    for lane in lanes(&home.config, &record, &of.which) {
        let mut after = AddedId(0);
        let mut touched = false;
        loop {
            let page = ledger.parked(&lane, after, PAGE).await?;
            let Some(last) = page.last() else { break };
            after = last.added_id;
            for item in page.into_iter().filter(|item| of.which.matches(item)) {
                let Some(changes) = changes(item.clone()) else { continue };
                if ledger.operate_parked(&changes).await? {
                    changed += 1;
                    touched = true;
                    if of.json {
                        print(&record.name, &item, true)?;
                    }
                } else {
                    moved_on += 1;
                }
            }
        }
        if touched {
            owners.extend(ledger.lease(&lane.shard).await?.and_then(|lease| lease.owner));
        }
    }
    // The owners look again; one that misses this hint does so when it takes the shard anew.
    for owner in &owners {
        ledger.nudge(owner).await?;
    }
    eprintln!(
        "{changed} {done}{}",
        if moved_on > 0 { format!(", {moved_on} changed meanwhile") } else { String::new() }
    );
    if changed == 0 {
        return Err(NotThere("no parked cell matches".into()).into());
    }
    Ok(Exit::Done)
}
