//! `shards`: who works on what, and how far each trigger is behind. From the tables alone, so that it tells the truth of
//! them and not a worker's.

use super::{Context, exit::Done, open::Open};
use crate::{
    cell::{AddedId, Checkpoint, Consistency, Lease, Log, Millis, Name, ShardId, Tip, TriggerRecord, clock},
    checkpoint::Window,
};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use std::collections::BTreeMap;

/// Reads at a time.
const PARALLEL: usize = 16;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// One datastore; without it, all of the config.
    datastore: Option<Name>,
}

/// One shard. What was never written, claimed or started is null.
#[derive(Serialize)]
struct ShardLine<'a> {
    datastore: &'a Name,
    shard: u32,
    owner: Option<String>,
    epoch: u64,
    tip: u64,
    triggers: BTreeMap<&'a str, Standing>,
}

/// How far a trigger is on a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
struct Standing {
    low_water: Option<u64>,
    lag_cells: Option<u64>,
    lag_seconds: Option<f64>,
}

pub(super) async fn shards(context: &mut Context, args: Args) -> anyhow::Result<Done> {
    let open = Open::new(context).await?;
    let names = match args.datastore {
        Some(name) => vec![name],
        None => open.config.datastores.keys().cloned().collect(),
    };
    let ledger = open.ledger().await?;
    let triggers = ledger.triggers().await?;
    let mut rows = Vec::new();
    for name in names {
        let log = open.datastore(&name).await?;
        let triggers: Vec<&TriggerRecord> = triggers.iter().filter(|trigger| trigger.source == name).collect();
        let tips = tips(log.as_ref()).await?;
        let leases = ledger.leases(&name).await?;
        let leases: BTreeMap<ShardId, &Lease> = leases.iter().map(|lease| (lease.shard.shard, lease)).collect();
        let lines = stream::iter(log.datastore().all_shards()).map(async |shard| {
            let (tip, lease) = (tips.get(&shard), leases.get(&shard).copied());
            line(log.as_ref(), shard, tip, lease, &triggers).await
        });
        let lines: Vec<ShardLine<'_>> = lines.buffered(PARALLEL).try_collect().await?;
        for line in lines {
            if context.output.is_json() {
                context.output.object(&line)?;
            } else {
                rows.extend(table_rows(&line));
            }
        }
    }
    let headings = ["DATASTORE", "SHARD", "OWNER", "EPOCH", "TIP", "TRIGGER", "LOW_WATER", "LAG_CELLS", "LAG_SECONDS"];
    context.output.table(headings, &rows)?;
    Ok(Done::All)
}

/// The tips of all shards that have one.
pub(super) async fn tips(log: &dyn Log) -> anyhow::Result<BTreeMap<ShardId, Tip>> {
    let reads = stream::iter(0..log.datastore().buckets()).map(|bucket| log.tips(bucket, Consistency::Strong));
    let buckets: Vec<Vec<Tip>> = reads.buffer_unordered(PARALLEL).try_collect().await?;
    Ok(buckets.into_iter().flatten().map(|tip| (tip.shard, tip)).collect())
}

async fn line<'a>(
    log: &'a dyn Log,
    shard: ShardId,
    tip: Option<&Tip>,
    lease: Option<&Lease>,
    triggers: &[&'a TriggerRecord],
) -> anyhow::Result<ShardLine<'a>> {
    let tip = tip.map_or(AddedId(0), |tip| tip.tip);
    let mut standings = BTreeMap::new();
    for trigger in triggers {
        let checkpoint = lease.and_then(|lease| lease.checkpoints.get(&trigger.id));
        let mut standing = standing(checkpoint, tip);
        if let (Some(low), Some(1..)) = (standing.low_water, standing.lag_cells) {
            let next = log.page(shard, AddedId(low), 1, Consistency::Eventual).await?;
            let since = next.first().map(|segment| segment.created_at);
            standing.lag_seconds = Some(since.map_or(0.0, |since| seconds(since, clock::wall())));
        }
        standings.insert(trigger.name.as_str(), standing);
    }
    Ok(ShardLine {
        datastore: &log.datastore().name,
        shard: shard.0,
        owner: lease.and_then(|lease| lease.owner.as_ref()).map(ToString::to_string),
        epoch: lease.map_or(0, |lease| lease.epoch.0),
        tip: tip.0,
        triggers: standings,
    })
}

/// What can be told without reading the log.
fn standing(checkpoint: Option<&Checkpoint>, tip: AddedId) -> Standing {
    let Some(Checkpoint { low, done, .. }) = checkpoint else {
        // A trigger that was not started on a shard without cells has nothing to do there.
        let nothing = tip == AddedId(0);
        return Standing { low_water: None, lag_cells: nothing.then_some(0), lag_seconds: nothing.then_some(0.0) };
    };
    let done_beyond = Window::resume(*low, done).map_or(0, |window| window.done_beyond());
    let lag = tip.0.saturating_sub(low.0).saturating_sub(done_beyond);
    Standing { low_water: Some(low.0), lag_cells: Some(lag), lag_seconds: (lag == 0).then_some(0.0) }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn seconds(since: Millis, now: Millis) -> f64 {
    now.0.saturating_sub(since.0).max(0) as f64 / 1000.0
}

fn table_rows(line: &ShardLine<'_>) -> Vec<[String; 9]> {
    let number = |number: Option<u64>| number.map_or_else(|| "-".into(), |number| number.to_string());
    let row = |trigger: &str, standing: Standing| {
        [
            line.datastore.to_string(),
            line.shard.to_string(),
            line.owner.clone().unwrap_or_else(|| "-".into()),
            line.epoch.to_string(),
            line.tip.to_string(),
            trigger.into(),
            number(standing.low_water),
            number(standing.lag_cells),
            standing.lag_seconds.map_or_else(|| "-".into(), |seconds| format!("{seconds:.1}")),
        ]
    };
    if line.triggers.is_empty() {
        return vec![row("-", Standing::default())];
    }
    line.triggers.iter().map(|(trigger, standing)| row(trigger, *standing)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_counts_what_is_not_done() {
        let mut window = Window::new(AddedId(10));
        window.finish(AddedId(12));
        let checkpoint = Checkpoint { low: window.low(), done: window.encode().0, ..Checkpoint::default() };
        let at = |tip| standing(Some(&checkpoint), AddedId(tip));
        assert_eq!(at(15), Standing { low_water: Some(10), lag_cells: Some(4), lag_seconds: None });
        let done = Checkpoint { low: AddedId(15), ..Checkpoint::default() };
        let done = standing(Some(&done), AddedId(15));
        assert_eq!(done, Standing { low_water: Some(15), lag_cells: Some(0), lag_seconds: Some(0.0) });
        assert_eq!(standing(None, AddedId(0)).lag_cells, Some(0));
        assert_eq!(standing(None, AddedId(3)).lag_cells, None);
    }
}
