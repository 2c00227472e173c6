//! `erase`: the bodies of a row's cells go, wherever cellhook keeps them.

use super::{
    Context,
    ask::Ask,
    exit::{Absent, Done, Usage},
    open::{Open, nudge_owners},
    output::{ERASED, plain},
};
use crate::{
    cell::{CellKey, Log, Name, ShardId, ShardRef, chain},
    tail::{self, Erased, Mode},
};
use anyhow::Context as _;
use serde::Serialize;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The datastore.
    datastore: Name,
    /// The row key.
    row: String,
    #[command(flatten)]
    ask: Ask,
}

/// What was met of a row.
struct Met {
    row: Erased,
    /// Parked cells of any group that had error texts.
    parked: u64,
}

impl Met {
    fn is_anything(&self) -> bool {
        self.row.bodies > 0 || self.row.segments > 0 || self.parked > 0 || !self.row.left.is_empty()
    }
}

/// How it is printed.
#[derive(Serialize)]
struct Line<'a> {
    datastore: &'a Name,
    row_key: &'a str,
    shard: u32,
    cells: u64,
    bodies: u64,
    segments: u64,
    parked: u64,
    left: &'a [String],
    /// Null when nothing was done yet.
    status: Option<&'static str>,
}

pub(super) async fn erase(context: &mut Context, args: Args) -> anyhow::Result<Done> {
    let Args { datastore, row, ask } = args;
    let address = CellKey { row_key: row.as_str().into(), column: "any".into(), ref_key: 0 };
    address.check().map_err(|refusal| Usage(refusal.to_string()))?;
    let open = Open::new(context).await?;
    let log = open.datastore(&datastore).await?;
    let log = log.as_ref();
    let shard = ShardRef { source: datastore.clone(), shard: ShardId::of(&row, log.datastore().shards) };
    if ask.dry_run || !ask.yes {
        let met = sweep(&open, log, &shard, &row, Mode::Look).await?;
        if ask.dry_run {
            tell(context, &shard, &row, &met, None)?;
            met.row.left.iter().for_each(|left| context.output.say(plain(left)));
            context.output.say(format_args!("would be erased: {}", what(&row, &met)));
            return Ok(Done::All);
        }
        if met.is_anything() {
            ask.agreed(&mut context.output, &format!("Erase {}, for ever?", what(&row, &met)))?;
        }
    }
    let met = sweep(&open, log, &shard, &row, Mode::Erase).await?;
    let whole = met.row.left.is_empty();
    tell(context, &shard, &row, &met, Some(if whole { ERASED } else { "incomplete" }))?;
    met.row.left.iter().for_each(|left| context.output.say(plain(left)));
    context.output.say(format_args!("erased: {}", what(&row, &met)));
    anyhow::ensure!(whole, "not everything could be erased, see above; the same erase again goes on");
    Ok(Done::All)
}

/// Goes through everything that may hold a body of the row. What stands in the way at one place keeps nothing from the others.
async fn sweep(open: &Open, log: &dyn Log, shard: &ShardRef, row: &str, mode: Mode) -> anyhow::Result<Met> {
    let stopped = match mode {
        Mode::Look => "nothing was erased",
        Mode::Erase => "stopped half-way; the same erase again goes on",
    };
    let mut met = Met { row: tail::erase(log, row, mode).await.context(stopped)?, parked: 0 };
    if met.row.cells == 0 {
        return Err(Absent(format!("{} has no cell of row {}", shard.source, plain(row))).into());
    }
    for group in log.groups().await.context(stopped)? {
        match erase_parked(open, &group, shard, row, mode).await {
            Ok(parked) => met.parked += parked,
            Err(error) => {
                let error = chain(error.as_ref());
                met.row.left.push(format!(
                    "group {group}: the error texts of its parked cells, which may quote the row, cannot be erased: {error}"
                ));
            }
        }
    }
    Ok(met)
}

async fn erase_parked(open: &Open, group: &Name, shard: &ShardRef, row: &str, mode: Mode) -> anyhow::Result<u64> {
    let ledger = open.store.ledger(group).await?;
    let parked = tail::erase_parked(ledger.as_ref(), shard, row, mode).await?;
    if parked > 0 && mode == Mode::Erase {
        nudge_owners(ledger.as_ref(), &[shard.clone()].into()).await;
    }
    Ok(parked)
}

fn what(row: &str, met: &Met) -> String {
    let Met { row: Erased { cells, bodies, segments, .. }, parked } = met;
    format!(
        "the bodies of {bodies} of the {cells} cells of row {}, in {segments} segments of the log too, and the error texts of \
         {parked} parked cells",
        plain(row)
    )
}

fn tell(
    context: &mut Context,
    shard: &ShardRef,
    row: &str,
    met: &Met,
    status: Option<&'static str>,
) -> anyhow::Result<()> {
    if !context.output.is_json() {
        return Ok(());
    }
    let Met { row: Erased { cells, bodies, segments, left }, parked } = met;
    context.output.object(&Line {
        datastore: &shard.source,
        row_key: row,
        shard: shard.shard.0,
        cells: *cells,
        bodies: *bodies,
        segments: *segments,
        parked: *parked,
        left,
        status,
    })
}
