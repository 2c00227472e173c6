//! `triggers show`: all of one trigger.

use super::{TriggerLine, listed};
use crate::{
    cell::{AddedId, Lease, Name, ShardId, Tip, TriggerRecord},
    cli::{
        Context,
        exit::Done,
        open::{Open, source, trigger},
        output::plain,
        shards::tips,
        standing::{Standing, checkpoint_of, dead, decimal, number, pause, standing},
    },
};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use std::{collections::BTreeMap, sync::Arc};

/// Shards that are looked at at a time.
const PARALLEL: usize = 16;

#[derive(Serialize)]
struct ShowLine<'a> {
    #[serde(flatten)]
    trigger: TriggerLine<'a>,
    incarnation: &'a str,
    /// `newest` when its places were fixed as it was registered; else the config of whoever first held a shard decided.
    started: Option<&'static str>,
    shards: Vec<OnShard<'a>>,
}

/// The trigger on a shard. What was never claimed or started is null.
#[derive(Serialize)]
struct OnShard<'a> {
    shard: u32,
    owner: Option<&'a str>,
    epoch: u64,
    tip: u64,
    /// The low-water that it began with, if that was fixed as it was registered.
    start: Option<u64>,
    #[serde(flatten)]
    standing: Standing,
    /// Why this shard alone is paused.
    paused: Option<&'a str>,
    /// Cells parked as dead since the last resume.
    dead: u64,
}

/// Over all shards, for people.
#[derive(Debug, Default, PartialEq)]
struct Sums {
    unowned: usize,
    paused: usize,
    not_started: usize,
    lag_cells: u64,
    lag_seconds: f64,
    dead: u64,
}

pub(super) async fn show(context: &mut Context, name: &Name) -> anyhow::Result<Done> {
    let open = Open::new(context).await?;
    let ledger = open.ledger().await?;
    let record = trigger(ledger.as_ref(), name).await?;
    let log = source(&open, &record).await?;
    let tips = tips(log.as_ref()).await?;
    let leases = ledger.leases(&record.source).await?;
    let leases: BTreeMap<ShardId, Lease> = leases.into_iter().map(|lease| (lease.shard.shard, lease)).collect();
    let looks = stream::iter(log.datastore().all_shards()).map(|shard| {
        let (tip, lease) = (tips.get(&shard), leases.get(&shard));
        on_shard(&record, &log, shard, tip, lease)
    });
    let shards: Vec<OnShard<'_>> = looks.buffered(PARALLEL).try_collect().await?;
    let line = ShowLine {
        trigger: TriggerLine::of(&record),
        incarnation: record.incarnation.as_str(),
        started: record.start.is_some().then_some("newest"),
        shards,
    };
    if context.output.is_json() {
        context.output.object(&line)?;
    } else {
        tell(context, &line)?;
    }
    Ok(Done::All)
}

async fn on_shard<'a>(
    record: &'a TriggerRecord,
    log: &Arc<dyn crate::cell::Log>,
    shard: ShardId,
    tip: Option<&Tip>,
    lease: Option<&'a Lease>,
) -> anyhow::Result<OnShard<'a>> {
    let tip = tip.map_or(AddedId(0), |tip| tip.tip);
    let checkpoint = checkpoint_of(record, lease);
    Ok(OnShard {
        shard: shard.0,
        owner: lease.and_then(|lease| lease.owner.as_ref()).map(|owner| owner.as_str()),
        epoch: lease.map_or(0, |lease| lease.epoch.0),
        tip: tip.0,
        start: record.start.as_ref().and_then(|start| start.get(shard.0 as usize)).map(|low| low.0),
        standing: standing(log.as_ref(), shard, checkpoint, tip).await?,
        paused: pause(record, checkpoint),
        dead: dead(record, checkpoint),
    })
}

impl Sums {
    fn of(shards: &[OnShard<'_>]) -> Self {
        let count = |so: fn(&OnShard<'_>) -> bool| shards.iter().filter(|shard| so(shard)).count();
        Self {
            unowned: count(|shard| shard.owner.is_none()),
            paused: count(|shard| shard.paused.is_some()),
            not_started: count(|shard| shard.standing.low_water.is_none()),
            lag_cells: shards.iter().filter_map(|shard| shard.standing.lag_cells).sum(),
            lag_seconds: shards.iter().filter_map(|shard| shard.standing.lag_seconds).fold(0.0, f64::max),
            dead: shards.iter().map(|shard| shard.dead).sum(),
        }
    }
}

fn tell(context: &mut Context, line: &ShowLine<'_>) -> anyhow::Result<()> {
    let output = &mut context.output;
    let ShowLine { trigger, incarnation, started, shards } = line;
    output
        .text(&format!("{}, id {}, on {} of incarnation {incarnation}", trigger.name, trigger.id, trigger.datastore))?;
    let reason = trigger.reason.map(|reason| format!(": {}", plain(reason))).unwrap_or_default();
    output.text(&format!("{}{reason}, generation {}", trigger.state, trigger.generation))?;
    output.text(match started {
        Some(_) => "began at the newest cells of when it was registered",
        None => "began where the config said when a shard was first held",
    })?;
    if !trigger.formerly.is_empty() {
        output.text(&format!("formerly {}", listed(trigger.formerly)))?;
    }
    let row = |shard: &OnShard<'_>| {
        [
            shard.shard.to_string(),
            shard.owner.unwrap_or("-").into(),
            shard.epoch.to_string(),
            shard.tip.to_string(),
            number(shard.standing.low_water),
            number(shard.standing.lag_cells),
            decimal(shard.standing.lag_seconds),
            shard.dead.to_string(),
            shard.paused.map_or_else(|| "-".into(), plain),
        ]
    };
    let rows: Vec<[String; 9]> = shards.iter().map(row).collect();
    let headings = ["SHARD", "OWNER", "EPOCH", "TIP", "LOW_WATER", "LAG_CELLS", "LAG_SECONDS", "DEAD", "PAUSED"];
    output.table(headings, &rows)?;
    let Sums { unowned, paused, not_started, lag_cells, lag_seconds, dead } = Sums::of(shards);
    output.text(&format!(
        "{} shards, {unowned} held by nobody, {paused} paused, {not_started} not started; lag {lag_cells} cells, \
         {lag_seconds:.1} s; {dead} dead since the last resume",
        shards.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_leave_out_what_is_not_known() {
        let shard = |owner, low_water, lag_cells, lag_seconds, paused, dead| OnShard {
            shard: 0,
            owner,
            epoch: 1,
            tip: 9,
            start: None,
            standing: Standing { low_water, lag_cells, lag_seconds },
            paused,
            dead,
        };
        let shards = [
            shard(Some("s"), Some(4), Some(5), Some(2.5), None, 1),
            shard(None, None, None, None, None, 0),
            shard(Some("s"), Some(8), Some(1), Some(0.5), Some("why"), 7),
        ];
        let sums = Sums { unowned: 1, paused: 1, not_started: 1, lag_cells: 6, lag_seconds: 2.5, dead: 8 };
        assert_eq!(Sums::of(&shards), sums);
    }
}
