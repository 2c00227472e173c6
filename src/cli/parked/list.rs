//! `parked list`: one line a cell, or numbers.

use super::{
    ParkedLine,
    filter::{Filter, State},
    places,
    read::{Hit, Reader},
};
use crate::{
    cell::{Millis, Name, Parked, ParkedState, StoreError, TriggerRecord, clock},
    cli::{
        Context,
        exit::{Absent, Done},
        open::{Open, trigger},
        output::time,
    },
};
use futures_util::{StreamExt, TryStreamExt, stream::BoxStream};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroUsize,
};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ListArgs {
    /// Of one trigger; without it, of all.
    #[arg(long)]
    trigger: Option<Name>,
    /// Only of the triggers of this datastore.
    #[arg(long)]
    datastore: Option<Name>,
    #[command(flatten)]
    filter: Filter,
    /// No more cells than this.
    #[arg(long, value_name = "N", conflicts_with = "count")]
    limit: Option<NonZeroUsize>,
    /// Say how many there are, by trigger and state, and print none of them.
    #[arg(long)]
    count: bool,
}

pub(super) async fn list(context: &mut Context, args: ListArgs) -> anyhow::Result<Done> {
    let open = Open::new(context).await?;
    let ledger = open.ledger().await?;
    let mut triggers = match &args.trigger {
        Some(name) => vec![trigger(ledger.as_ref(), name).await?],
        None => ledger.triggers().await?,
    };
    if let Some(datastore) = &args.datastore {
        triggers = on_datastore(triggers, datastore)?;
    }
    triggers.sort_by(|a, b| a.name.cmp(&b.name));
    let reader = Reader::new(&open, ledger.as_ref(), &triggers, &args.filter, clock::wall()).await?;
    let hits = reader.read().await?;
    match args.count {
        true => count(context, &triggers, hits).await,
        false => each(context, &triggers, hits, args.limit.map_or(usize::MAX, NonZeroUsize::get)).await,
    }
}

/// Those of the triggers that tail a datastore.
fn on_datastore(triggers: Vec<TriggerRecord>, datastore: &Name) -> Result<Vec<TriggerRecord>, Absent> {
    let (there, others): (Vec<_>, Vec<_>) = triggers.into_iter().partition(|trigger| trigger.source == *datastore);
    if !there.is_empty() {
        return Ok(there);
    }
    let sources: BTreeSet<&str> = others.iter().map(|trigger| trigger.source.as_str()).collect();
    let theirs = match sources.is_empty() {
        true => "none is registered".into(),
        false => format!("they are on: {}", Vec::from_iter(sources).join(", ")),
    };
    Err(Absent(format!("no trigger that is asked for is on the datastore {datastore}; {theirs}")))
}

type Hits<'a> = BoxStream<'a, Result<Hit, StoreError>>;

async fn each(context: &mut Context, triggers: &[TriggerRecord], hits: Hits<'_>, limit: usize) -> anyhow::Result<Done> {
    let mut hits = hits.take(limit);
    let mut rows = Vec::new();
    let mut listed = 0;
    while let Some((number, parked)) = hits.try_next().await? {
        let name = &triggers[number].name;
        listed += 1;
        if context.output.is_json() {
            context.output.object(&ParkedLine::of(name, &parked))?;
        } else {
            rows.push(row(name, &parked));
        }
    }
    let headings = ["TRIGGER", "SHARD", "ADDED_ID", "ROW", "COLUMN", "STATE", "ATTEMPTS", "NEXT_ATTEMPT", "LAST_ERROR"];
    context.output.table(headings, &rows)?;
    if listed == 0 {
        context.output.say("no cell lies parked, of those that are asked for");
    }
    if listed == limit {
        context.output.say(format_args!("{limit} cells, as many as --limit says; there may be more"));
    }
    Ok(Done::All)
}

fn row(trigger: &Name, parked: &Parked) -> [String; 9] {
    let next = if parked.state == ParkedState::Retrying { time(parked.next_attempt_at) } else { "-".into() };
    let mut error: String = parked.errors.last().map_or("-", String::as_str).chars().take(100).collect();
    if error.is_empty() {
        error.push('-');
    }
    [
        trigger.to_string(),
        parked.shard.shard.to_string(),
        places(parked),
        parked.row_key.clone(),
        parked.column.clone(),
        State::of(parked.state).text().into(),
        parked.attempts.to_string(),
        next,
        error,
    ]
}

/// How many cells of a trigger are in a state.
#[derive(Serialize)]
struct CountLine<'a> {
    trigger: &'a Name,
    datastore: &'a Name,
    state: &'static str,
    cells: u64,
    /// The earliest `since` of them.
    oldest: i64,
}

async fn count(context: &mut Context, triggers: &[TriggerRecord], mut hits: Hits<'_>) -> anyhow::Result<Done> {
    let mut counts: BTreeMap<(usize, State), (u64, Millis)> = BTreeMap::new();
    while let Some((number, parked)) = hits.try_next().await? {
        let (cells, oldest) = counts.entry((number, State::of(parked.state))).or_insert((0, parked.since));
        *cells += 1;
        *oldest = parked.since.min(*oldest);
    }
    if counts.is_empty() {
        context.output.say("no cell lies parked, of those that are asked for");
    }
    let mut rows = Vec::new();
    for ((number, state), (cells, oldest)) in counts {
        let TriggerRecord { name, source, .. } = &triggers[number];
        if context.output.is_json() {
            let (state, oldest) = (state.text(), oldest.0);
            context.output.object(&CountLine { trigger: name, datastore: source, state, cells, oldest })?;
        } else {
            rows.push([name.to_string(), source.to_string(), state.text().into(), cells.to_string(), time(oldest)]);
        }
    }
    context.output.table(["TRIGGER", "DATASTORE", "STATE", "CELLS", "OLDEST"], &rows)?;
    Ok(Done::All)
}
