//! `shards`: who owns what, and how far behind.

use super::{
    Exit,
    home::{Home, chosen, print_json, print_line, tips},
};
use crate::{
    cell::{AddedId, Lease, Name, ShardId, Tip, TriggerId, clock},
    checkpoint::Window,
    store::Cells,
    tail,
};
use clap::Args;
use serde::Serialize;
use std::collections::BTreeMap;

/// Arguments of `shards`.
#[derive(Debug, Args)]
pub(super) struct Shards {
    /// One datastore; default: all of the config
    datastore: Option<Name>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Line {
    datastore: Name,
    shard: u32,
    owner: Option<String>,
    epoch: u64,
    tip: u64,
    triggers: BTreeMap<String, Progress>,
}

#[derive(Serialize)]
struct Progress {
    low_water: u64,
    lag_cells: u64,
    lag_seconds: f64,
}

/// Lists the shards.
pub(super) async fn list(home: &Home, shards: Shards) -> anyhow::Result<Exit> {
    let store = home.store().await?;
    let ledger = home.ledger(&store).await?;
    let names: BTreeMap<TriggerId, Name> =
        ledger.triggers().await?.into_iter().map(|record| (record.id, record.name)).collect();
    for name in chosen(home, shards.datastore.as_ref()) {
        let cells = home.cells(&store, name).await?;
        let tips: BTreeMap<ShardId, Tip> = tips(&cells).await?.into_iter().map(|tip| (tip.shard, tip)).collect();
        let leases = ledger.leases(name).await?;
        let leases: BTreeMap<ShardId, Lease> = leases.into_iter().map(|lease| (lease.shard.shard, lease)).collect();
        if !shards.json {
            print_line(format_args!("{:<8} {:<18} {:>6} {:>10}  LAG", "SHARD", "OWNER", "EPOCH", "TIP"))?;
        }
        for shard in cells.datastore().all_shards() {
            let line = line(&cells, shard, tips.get(&shard), leases.get(&shard), &names).await?;
            if shards.json {
                print_json(&line)?;
            } else {
                let lag = line
                    .triggers
                    .iter()
                    .map(|(name, p)| format!("{name} {} cells, {:.0} s", p.lag_cells, p.lag_seconds));
                let lag = lag.collect::<Vec<_>>().join("; ");
                let owner = line.owner.as_deref().unwrap_or("-");
                print_line(format_args!("{:<8} {owner:<18} {:>6} {:>10}  {lag}", line.shard, line.epoch, line.tip))?;
            }
        }
    }
    Ok(Exit::Done)
}

async fn line(
    cells: &Cells,
    shard: ShardId,
    tip: Option<&Tip>,
    lease: Option<&Lease>,
    names: &BTreeMap<TriggerId, Name>,
) -> anyhow::Result<Line> {
    let tip = tip.map_or(AddedId(0), |tip| tip.tip);
    let mut triggers = BTreeMap::new();
    for (id, checkpoint) in lease.into_iter().flat_map(|lease| &lease.checkpoints) {
        // A retired trigger's checkpoint stays in the lease.
        let Some(name) = names.get(id) else { continue };
        let low = checkpoint.low;
        let beyond = Window::resume(low, &checkpoint.done)?.done_beyond();
        let lag_cells = tip.0.saturating_sub(low.0).saturating_sub(beyond);
        let lag_seconds = if lag_cells == 0 { 0.0 } else { age(cells, shard, low).await? };
        triggers.insert(name.to_string(), Progress { low_water: low.0, lag_cells, lag_seconds });
    }
    Ok(Line {
        datastore: cells.datastore().name.clone(),
        shard: shard.0,
        owner: lease.and_then(|lease| lease.owner.as_ref()).map(ToString::to_string),
        epoch: lease.map_or(0, |lease| lease.epoch.0),
        tip: tip.0,
        triggers,
    })
}

/// Age of the first cell above a place, in seconds.
async fn age(cells: &Cells, shard: ShardId, low: AddedId) -> anyhow::Result<f64> {
    let page = tail::cells(&**cells.log(), shard, low, 1).await?;
    let age = page.cells.first().map_or(0, |cell| clock::wall().0 - cell.created_at.0);
    #[expect(clippy::cast_precision_loss, reason = "seconds for people")]
    Ok(age.max(0) as f64 / 1000.0)
}
