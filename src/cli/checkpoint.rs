//! `checkpoint`: how far a trigger is on each shard, set back or forward, and a single cell skipped.

use super::{
    Context,
    ask::Ask,
    exit::Done,
    open::{Open, source, trigger},
    operate::{Next, Plan, Want, Work},
    output::plain,
    shards::tips,
    standing::{checkpoint_of, number, why_paused, without_log},
    tail::{From, shards},
};
use crate::{
    cell::{AddedId, Lease, Name, ShardId, ShardRef, Tip, TriggerRecord},
    checkpoint::Window,
};
use anyhow::Context as _;
use clap::Subcommand;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use std::collections::BTreeMap;

/// Shards that are looked at, or changed, at a time.
const PARALLEL: usize = 8;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// How far a trigger is on each shard.
    #[command(after_help = "Example:\n  cellhook checkpoint show bill_rider --json | jq 'select(.lag_cells > 0)'")]
    Show {
        /// The trigger.
        trigger: Name,
        /// One shard; without it, all of them.
        #[arg(long, value_name = "N")]
        shard: Option<u32>,
    },
    /// Set a trigger to another place: finished cells after it are called again, unfinished ones before it never.
    #[command(after_help = "Example:\n  cellhook checkpoint rewind bill_rider --to 2h --dry-run")]
    Rewind(RewindArgs),
    /// Give up one cell that is not finished and not parked: it is not called again, and low-water passes it.
    #[command(after_help = "Example:\n  cellhook checkpoint skip bill_rider --shard 5 --added-id 123")]
    Skip(SkipArgs),
}

#[derive(Debug, clap::Args)]
struct RewindArgs {
    /// The trigger.
    trigger: Name,
    /// Where to: oldest, newest, a time ("2026-11-21T10:00:00Z"), so long ago ("1h"), or, with --shard, the added ID of the
    /// cell that is called next.
    #[arg(long, value_name = "X")]
    to: From,
    /// One shard; without it, all of them.
    #[arg(long, value_name = "N")]
    shard: Option<u32>,
    #[command(flatten)]
    ask: Ask,
}

#[derive(Debug, clap::Args)]
struct SkipArgs {
    /// The trigger.
    trigger: Name,
    /// The shard of the cell.
    #[arg(long, value_name = "N")]
    shard: u32,
    /// The place of the cell in its shard.
    #[arg(long, value_name = "N")]
    added_id: u64,
    #[command(flatten)]
    ask: Ask,
}

impl Args {
    /// Whether it does more than show.
    pub(super) fn changes(&self) -> bool {
        matches!(self.verb, Verb::Rewind(_) | Verb::Skip(_))
    }
}

pub(super) async fn checkpoint(context: &mut Context, args: Args) -> anyhow::Result<Done> {
    match args.verb {
        Verb::Show { trigger, shard } => show(context, &trigger, shard).await,
        Verb::Rewind(args) => rewind(context, args).await,
        Verb::Skip(args) => skip(context, args).await,
    }
}

/// A trigger on a shard. What was never claimed or started is null.
#[derive(Debug, PartialEq, Serialize)]
struct ShowLine<'a> {
    trigger: &'a Name,
    datastore: &'a Name,
    shard: u32,
    owner: Option<String>,
    epoch: u64,
    tip: u64,
    low_water: Option<u64>,
    done_beyond: Option<u64>,
    lag_cells: Option<u64>,
    /// Why it is not called there.
    paused: Option<&'a str>,
}

impl<'a> ShowLine<'a> {
    fn of(record: &'a TriggerRecord, shard: ShardId, tip: AddedId, lease: Option<&'a Lease>) -> anyhow::Result<Self> {
        let checkpoint = checkpoint_of(record, lease);
        let window = checkpoint.map(|checkpoint| Window::resume(checkpoint.low, &checkpoint.done)).transpose();
        let window = window.with_context(|| format!("trigger {} on shard {shard}", record.name))?;
        Ok(Self {
            trigger: &record.name,
            datastore: &record.source,
            shard: shard.0,
            owner: lease.and_then(|lease| lease.owner.as_ref()).map(ToString::to_string),
            epoch: lease.map_or(0, |lease| lease.epoch.0),
            tip: tip.0,
            low_water: window.as_ref().map(|window| window.low().0),
            done_beyond: window.as_ref().map(Window::done_beyond),
            lag_cells: without_log(checkpoint, tip).lag_cells,
            paused: why_paused(record, checkpoint),
        })
    }

    fn row(&self) -> [String; 8] {
        [
            self.shard.to_string(),
            self.owner.clone().unwrap_or_else(|| "-".into()),
            self.epoch.to_string(),
            self.tip.to_string(),
            number(self.low_water),
            number(self.done_beyond),
            number(self.lag_cells),
            self.paused.map_or_else(|| "-".into(), plain),
        ]
    }
}

async fn show(context: &mut Context, name: &Name, only: Option<u32>) -> anyhow::Result<Done> {
    let open = Open::new(context).await?;
    let ledger = open.ledger().await?;
    let record = trigger(ledger.as_ref(), name).await?;
    let log = source(&open, &record).await?;
    let shards = shards(&log, only)?;
    let (tips, leases): (Vec<Tip>, Vec<Lease>) = match (only, shards.as_slice()) {
        (Some(_), [shard]) => {
            let shard = ShardRef { source: record.source.clone(), shard: *shard };
            (log.tip(shard.shard).await?.into_iter().collect(), ledger.lease(&shard).await?.into_iter().collect())
        }
        _ => (tips(log.as_ref()).await?.into_values().collect(), ledger.leases(&record.source).await?),
    };
    let tips: BTreeMap<ShardId, AddedId> = tips.into_iter().map(|tip| (tip.shard, tip.tip)).collect();
    let leases: BTreeMap<ShardId, Lease> = leases.into_iter().map(|lease| (lease.shard.shard, lease)).collect();
    let mut rows = Vec::new();
    for shard in shards {
        let line = ShowLine::of(&record, shard, tips.get(&shard).copied().unwrap_or_default(), leases.get(&shard))?;
        if context.output.is_json() {
            context.output.object(&line)?;
        } else {
            rows.push(line.row());
        }
    }
    let headings = ["SHARD", "OWNER", "EPOCH", "TIP", "LOW_WATER", "DONE_BEYOND", "LAG_CELLS", "PAUSED"];
    context.output.table(headings, &rows)?;
    Ok(Done::All)
}

/// What became of one shard.
#[derive(Serialize)]
struct ChangeLine<'a> {
    trigger: &'a Name,
    datastore: &'a Name,
    shard: u32,
    /// The cell that is skipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    added_id: Option<u64>,
    /// Before.
    low_water: Option<u64>,
    /// Low-water after it.
    to: Option<u64>,
    epoch: u64,
    /// Null when nothing was done yet.
    status: Option<&'static str>,
}

async fn rewind(context: &mut Context, args: RewindArgs) -> anyhow::Result<Done> {
    args.to.fits(args.shard)?;
    let work = Work::new(context, &args.trigger, Want::Rewind(args.to)).await?;
    let shards = shards(&work.log, args.shard)?;
    work.run(context, shards, args.ask).await
}

async fn skip(context: &mut Context, args: SkipArgs) -> anyhow::Result<Done> {
    let work = Work::new(context, &args.trigger, Want::Skip(AddedId(args.added_id))).await?;
    let shards = shards(&work.log, Some(args.shard))?;
    work.run(context, shards, args.ask).await
}

impl Work {
    /// Looks, asks, changes, tells.
    pub(super) async fn run(&self, context: &mut Context, shards: Vec<ShardId>, ask: Ask) -> anyhow::Result<Done> {
        let looks = stream::iter(shards).map(|shard| self.plan(shard));
        let mut plans: Vec<Plan> = looks.buffered(PARALLEL).try_collect().await?;
        let changes = plans.iter().any(|plan| matches!(plan.next, Next::Set(_)));
        let goes_on = !ask.dry_run && changes;
        if goes_on {
            ask.agreed(&mut context.output, &format!("{}. Go on?", self.what(&plans)))?;
            let changes = stream::iter(plans).map(|plan| self.settle(plan));
            let settled = changes.buffered(PARALLEL).try_collect().await;
            plans = settled.context("stopped half-way; the same command again goes on")?;
        }
        self.tell(context, &plans, goes_on)?;
        let mut done = Done::All;
        for plan in &plans {
            if let Next::Refused(why) = &plan.next {
                context.output.say(format_args!("shard {}: {why}", plan.shard));
                done = Done::Partly;
            }
        }
        match (changes, goes_on) {
            (true, true) => context.output.say(self.what(&plans)),
            (true, false) => context.output.say(format_args!("would be done: {}", self.what(&plans))),
            (false, _) => context.output.say("nothing to change"),
        }
        Ok(done)
    }

    /// The change in words.
    fn what(&self, plans: &[Plan]) -> String {
        let sets = || plans.iter().filter_map(|plan| if let Next::Set(set) = &plan.next { Some(set) } else { None });
        let (again, never) = sets().fold((0, 0), |(again, never), set| (again + set.again, never + set.never));
        let (name, shards) = (&self.record.name, sets().count());
        match &self.want {
            Want::Rewind(_) => format!(
                "{name} moves on {shards} shards: {again} finished cells are called again, {never} unfinished cells are \
                 never called"
            ),
            Want::Skip(id) => format!("{name} skips {shards} cells, at added ID {id}"),
            Want::Pause(_) => format!("{name} is paused on {shards} shards"),
            Want::Resume => format!("{name} is resumed on {shards} shards"),
        }
    }

    fn tell(&self, context: &mut Context, plans: &[Plan], done: bool) -> anyhow::Result<()> {
        let mut rows = Vec::new();
        for plan in plans {
            let line = self.line(plan, done);
            if context.output.is_json() {
                context.output.object(&line)?;
                continue;
            }
            let status = line.status.unwrap_or("-");
            rows.push([
                line.shard.to_string(),
                number(line.low_water),
                number(line.to),
                line.epoch.to_string(),
                status.into(),
            ]);
        }
        context.output.table(["SHARD", "LOW_WATER", "TO", "EPOCH", "STATUS"], &rows)
    }

    fn line(&self, plan: &Plan, done: bool) -> ChangeLine<'_> {
        let (added_id, changed) = match &self.want {
            Want::Rewind(_) => (None, "rewound"),
            Want::Skip(id) => (Some(id.0), "skipped"),
            Want::Pause(_) => (None, "paused"),
            Want::Resume => (None, "resumed"),
        };
        let (to, status) = match &plan.next {
            Next::Set(set) => (Some(set.checkpoint.low), done.then_some(changed)),
            Next::AsIs => (plan.low, Some("unchanged")),
            Next::Refused(_) => (None, Some("refused")),
        };
        ChangeLine {
            trigger: &self.record.name,
            datastore: &self.record.source,
            shard: plan.shard.0,
            added_id,
            low_water: plan.low.map(|low| low.0),
            to: to.map(|to| to.0),
            epoch: plan.lease.as_ref().map_or(0, |lease| lease.epoch.0),
            status,
        }
    }
}
