//! `trim`: the old part of a datastore's logs is deleted.

use super::{
    Context,
    ask::Ask,
    exit::Done,
    moment::{EXAMPLES, past},
    open::Open,
    output::plain,
};
use crate::{
    cell::{AddedId, Log, Millis, Name, ShardId},
    tail::{self, Due, Groups, Keeper},
};
use anyhow::Context as _;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;

/// Shards that are looked at, or trimmed, at a time.
const PARALLEL: usize = 8;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The datastore.
    datastore: Name,
    /// Delete the log of the cells appended before then: a time ("2026-11-21T10:00:00Z"), or so long ago ("30d").
    #[arg(long, value_name = "TIME", value_parser = before)]
    before: Millis,
    /// Also delete what a trigger has not finished: it will never be called for these cells.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    ask: Ask,
}

fn before(text: &str) -> Result<Millis, String> {
    past(text)?.ok_or_else(|| format!("it must be {EXAMPLES}"))
}

/// What is deleted of a shard.
#[derive(Serialize)]
struct Part {
    shard: u32,
    /// Where the last trim ended.
    trimmed_to: u64,
    /// Where this one ends.
    to: u64,
    /// Who keeps it from going further, unless forced.
    kept_by: Option<String>,
    /// Segments that were deleted; null before.
    segments: Option<u64>,
    /// Whether there is something to delete.
    #[serde(skip)]
    is_any: bool,
}

pub(super) async fn trim(context: &mut Context, args: Args) -> anyhow::Result<Done> {
    let open = Open::new(context).await?;
    let log = open.datastore(&args.datastore).await?;
    let groups = match args.force {
        true => Vec::new(),
        false => open.groups(log.as_ref()).await?,
    };
    let shards = stream::iter(log.datastore().all_shards());
    let looks = shards.map(|shard| part(log.as_ref(), &groups, shard, args.before));
    let parts: Vec<Part> = looks.buffered(PARALLEL).try_collect().await?;
    let mut parts: Vec<Part> = parts.into_iter().filter(|part| part.is_any || part.kept_by.is_some()).collect();
    let cells: u64 = parts.iter().map(|part| part.to - part.trimmed_to).sum();
    let what = format!("the log of {cells} cells of {} (the cells themselves stay)", args.datastore);
    if !args.ask.dry_run && parts.iter().any(|part| part.is_any) {
        args.ask.agreed(&mut context.output, &format!("Delete {what}?"))?;
        let trims = stream::iter(parts).map(async |mut part| {
            let shard = ShardId(part.shard);
            // A person may have thought about the question for long.
            let due = tail::due(log.as_ref(), &groups, shard, args.before).await?;
            part.to = part.to.min(due.to.0);
            let trimmed = tail::trim(log.as_ref(), &groups, shard, AddedId(part.to), u64::MAX).await?;
            part.segments = Some(trimmed.segments);
            anyhow::Ok(part)
        });
        parts =
            trims.buffered(PARALLEL).try_collect().await.context("stopped half-way; the same trim again goes on")?;
    }
    tell(context, &parts)?;
    context.output.say(format_args!("{}: {what}", if args.ask.dry_run { "would be deleted" } else { "deleted" }));
    Ok(Done::All)
}

fn tell(context: &mut Context, parts: &[Part]) -> anyhow::Result<()> {
    if context.output.is_json() {
        return parts.iter().try_for_each(|part| context.output.object(part));
    }
    let rows: Vec<[String; 5]> = parts
        .iter()
        .map(|part| {
            let kept_by = part.kept_by.as_deref().map_or_else(|| "-".into(), plain);
            let segments = part.segments.map_or_else(|| "-".into(), |segments| segments.to_string());
            [part.shard.to_string(), part.trimmed_to.to_string(), part.to.to_string(), segments, kept_by]
        })
        .collect();
    context.output.table(["SHARD", "TRIMMED_TO", "TO", "SEGMENTS", "KEPT_BY"], &rows)
}

/// What a trim deletes of a shard.
async fn part(log: &dyn Log, groups: &Groups, shard: ShardId, before: Millis) -> anyhow::Result<Part> {
    let due = tail::due(log, groups, shard, before).await?;
    let is_any = due.is_any();
    let Due { trimmed_to, to, kept_by, .. } = due;
    let kept_by = kept_by.map(|keeper| keeper_text(&keeper));
    Ok(Part { shard: shard.0, trimmed_to: trimmed_to.0, to: to.0, kept_by, segments: None, is_any })
}

/// A trigger that keeps a log, as it is told.
pub(super) fn keeper_text(Keeper { group, trigger, .. }: &Keeper) -> String {
    format!("{trigger} of group {group}")
}
