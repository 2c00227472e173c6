//! `checkpoint`: how far a trigger is on each shard, set back or forward, and a single cell skipped.
//!
//! A change is one write on the epoch that was read: the new checkpoint, no owner, the next epoch. The worker that held the
//! shard is refused from then on, drops its window and claims anew; so no call of the old window moves the new checkpoint. What it
//! finished between the read and the write, and had no time to store beyond it, is called again.

use super::{
    Context,
    exit::{Done, Usage},
    open::{Open, source, trigger},
    output::{confirm, plain, say},
    parked,
    shards::tips,
    tail::{From, shards},
};
use crate::{
    cell::{
        AddedId, Answer, Checkpoint, Lease, Ledger, Log, Name, Nudge, SessionId, ShardId, ShardRef, Tip, TriggerRecord,
        TriggerState,
    },
    checkpoint::{Window, decode_attempts, encode_attempts},
};
use anyhow::{Context as _, bail};
use clap::Subcommand;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// Shards that are looked at, or changed, at a time.
const PARALLEL: usize = 8;
/// How often a change is decided anew because the epoch moved or the store did not answer.
const TRIES: u32 = 8;

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

#[derive(Clone, Copy, Debug, clap::Args)]
struct Ask {
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Do it without asking.
    #[arg(long)]
    yes: bool,
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
        let checkpoint = lease.and_then(|lease| lease.checkpoints.get(&record.id));
        let window = checkpoint.map(|checkpoint| Window::resume(checkpoint.low, &checkpoint.done)).transpose();
        let window = window.with_context(|| format!("trigger {} on shard {shard}", record.name))?;
        let lag = |window: &Window| tip.0.saturating_sub(window.low().0).saturating_sub(window.done_beyond());
        let here = checkpoint.and_then(|checkpoint| checkpoint.paused.as_ref());
        let here = here.filter(|pause| pause.generation == record.generation).map(|pause| pause.reason.as_str());
        Ok(Self {
            trigger: &record.name,
            datastore: &record.source,
            shard: shard.0,
            owner: lease.and_then(|lease| lease.owner.as_ref()).map(ToString::to_string),
            epoch: lease.map_or(0, |lease| lease.epoch.0),
            tip: tip.0,
            low_water: window.as_ref().map(|window| window.low().0),
            done_beyond: window.as_ref().map(Window::done_beyond),
            // A trigger that was not started on a shard without cells has nothing to do there.
            lag_cells: window.as_ref().map(lag).or_else(|| (tip == AddedId(0)).then_some(0)),
            paused: match &record.state {
                TriggerState::Paused { reason } => Some(reason.as_str()),
                TriggerState::Active | TriggerState::Retired => here,
            },
        })
    }

    fn row(&self) -> [String; 8] {
        let number = |number: Option<u64>| number.map_or_else(|| "-".into(), |number| number.to_string());
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

/// What is wanted of a trigger.
#[derive(Clone, Copy)]
enum Want {
    Rewind(From),
    Skip(AddedId),
}

/// What is to be done with the checkpoint of one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Next {
    /// It becomes this one.
    Set(Set),
    /// It is as wanted.
    AsIs,
    /// It cannot be.
    Refused(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Set {
    checkpoint: Checkpoint,
    /// Finished cells that are called again.
    again: u64,
    /// Unfinished cells that never will be called.
    never: u64,
}

/// A decision about one shard, and what it was made upon.
struct Plan {
    shard: ShardId,
    lease: Option<Lease>,
    /// Low-water as it was read.
    low: Option<AddedId>,
    next: Next,
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

/// A trigger whose checkpoints are changed.
struct Work {
    ledger: Arc<dyn Ledger>,
    log: Arc<dyn Log>,
    record: TriggerRecord,
    want: Want,
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
    async fn new(context: &Context, name: &Name, want: Want) -> anyhow::Result<Self> {
        let open = Open::new(context).await?;
        let ledger = open.ledger().await?;
        let record = trigger(ledger.as_ref(), name).await?;
        let log = source(&open, &record).await?;
        Ok(Self { ledger, log, record, want })
    }

    async fn run(&self, context: &mut Context, shards: Vec<ShardId>, ask: Ask) -> anyhow::Result<Done> {
        let looks = stream::iter(shards).map(|shard| self.plan(shard));
        let mut plans: Vec<Plan> = looks.buffered(PARALLEL).try_collect().await?;
        let changes = plans.iter().any(|plan| matches!(plan.next, Next::Set(_)));
        let goes_on = !ask.dry_run && changes;
        if goes_on {
            if !ask.yes && !confirm(&format!("{}. Go on?", self.what(&plans)))? {
                return Err(Usage("nothing was changed".into()).into());
            }
            let changes = stream::iter(plans).map(|plan| self.settle(plan));
            let settled = changes.buffered(PARALLEL).try_collect().await;
            plans = settled.context("stopped half-way; the same command again goes on")?;
        }
        self.tell(context, &plans, goes_on)?;
        let mut done = Done::All;
        for plan in &plans {
            if let Next::Refused(why) = &plan.next {
                say(format_args!("shard {}: {why}", plan.shard));
                done = Done::Partly;
            }
        }
        match (changes, goes_on) {
            (true, true) => say(self.what(&plans)),
            (true, false) => say(format_args!("would be done: {}", self.what(&plans))),
            (false, _) => say("nothing to change"),
        }
        Ok(done)
    }

    /// The change in words.
    fn what(&self, plans: &[Plan]) -> String {
        let sets = || plans.iter().filter_map(|plan| if let Next::Set(set) = &plan.next { Some(set) } else { None });
        let (again, never) = sets().fold((0, 0), |(again, never), set| (again + set.again, never + set.never));
        let (name, shards) = (&self.record.name, sets().count());
        match self.want {
            Want::Rewind(_) => format!(
                "{name} moves on {shards} shards: {again} finished cells are called again, {never} unfinished cells are \
                 never called"
            ),
            Want::Skip(id) => format!("{name} skips {shards} cells, at added ID {id}"),
        }
    }

    fn tell(&self, context: &mut Context, plans: &[Plan], done: bool) -> anyhow::Result<()> {
        let mut rows = Vec::new();
        let number = |number: Option<u64>| number.map_or_else(|| "-".into(), |number: u64| number.to_string());
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
        let (added_id, changed) = match self.want {
            Want::Rewind(_) => (None, "rewound"),
            Want::Skip(id) => (Some(id.0), "skipped"),
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

    /// Looks at a shard, strongly, and decides.
    async fn plan(&self, shard: ShardId) -> anyhow::Result<Plan> {
        let at = ShardRef { source: self.record.source.clone(), shard };
        let tip = self.log.tip(shard).await?;
        let (trimmed_to, tip) = tip.map_or_else(Default::default, |tip| (tip.trimmed_to, tip.tip));
        let to = match self.want {
            Want::Rewind(to) => to.before(self.log.as_ref(), shard).await?,
            Want::Skip(id) => id,
        };
        let lies_parked = match self.want {
            Want::Rewind(_) => false,
            Want::Skip(id) => self.lies_parked(shard, id).await?,
        };
        // Last, so that as little as can be is finished between this read and the write.
        let lease = self.ledger.lease(&at).await?;
        let stored = lease.as_ref().and_then(|lease| lease.checkpoints.get(&self.record.id));
        let low = stored.map(|checkpoint| checkpoint.low);
        let incarnation = &self.log.datastore().incarnation;
        let next = match (&lease, self.want) {
            (Some(lease), _) if lease.incarnation != *incarnation => Next::Refused(format!(
                "its lease is of incarnation {} of {}, which is {incarnation} now",
                lease.incarnation, self.record.source
            )),
            (None, _) => Next::Refused("no worker ever held it: the trigger begins there as the config says".into()),
            (Some(_), Want::Skip(_)) if lies_parked => Next::Refused(self.parked_text(shard, to)),
            (Some(lease), Want::Rewind(_)) => {
                // `oldest` and `newest` are read after the tip, which only grows.
                let newest = if self.wants_place() { tip } else { tip.max(to) };
                rewound(stored, self.record.generation, lease.owner.is_some(), to, trimmed_to..=newest)
            }
            (Some(_), Want::Skip(_)) => match stored {
                None => Next::Refused("the trigger was not started there yet".into()),
                Some(stored) => skipped(stored, to, trimmed_to..=tip)?,
            },
        };
        Ok(Plan { shard, lease, low, next })
    }

    fn wants_place(&self) -> bool {
        matches!(self.want, Want::Rewind(From::Place(_)))
    }

    async fn lies_parked(&self, shard: ShardId, id: AddedId) -> anyhow::Result<bool> {
        Ok(parked::at(self.ledger.as_ref(), &self.record, shard, id).await?.is_some())
    }

    fn parked_text(&self, shard: ShardId, id: AddedId) -> String {
        let name = &self.record.name;
        format!(
            "the cell lies parked; `cellhook parked drop --trigger {name} --shard {shard} --added-id {id}` gives it up"
        )
    }

    /// Makes the change. Refused, because somebody claimed the shard meanwhile, or not answered: looks again and decides anew.
    async fn settle(&self, mut plan: Plan) -> anyhow::Result<Plan> {
        let shard = plan.shard;
        let at = ShardRef { source: self.record.source.clone(), shard };
        // The last plan that was sent and may have been applied.
        let mut sent: Option<Plan> = None;
        for failures in 0..TRIES {
            if failures > 0 {
                let bound = Duration::from_millis(20) * (1 << failures);
                tokio::time::sleep(bound.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            }
            // A person may have thought about the question for long.
            plan = self.plan(shard).await?;
            let (Next::Set(set), Some(lease)) = (&plan.next, &plan.lease) else {
                return Ok(match sent {
                    Some(sent) if plan.next == Next::AsIs => sent,
                    _ => plan,
                });
            };
            let owner = lease.owner.clone();
            match self.ledger.operate(&at, lease.epoch, &self.record.id, &set.checkpoint).await {
                Ok(Answer::Accepted(after)) => {
                    plan.lease = Some(after);
                    self.hint(owner.as_ref()).await;
                    if let Want::Skip(id) = self.want
                        && self.lies_parked(shard, id).await?
                    {
                        plan.next = Next::Refused(self.parked_text(shard, id));
                    }
                    return Ok(plan);
                }
                Ok(Answer::Refused(_)) => {}
                Err(error) if error.kind.may_pass() && failures + 1 < TRIES => {
                    self.hint(owner.as_ref()).await;
                    sent = Some(plan);
                }
                Err(error) => return Err(error.into()),
            }
        }
        bail!("shard {shard} changes its owner all the time; try again")
    }

    /// Asks the last owner to look at its leases. When that is lost, its next write is refused and tells it.
    async fn hint(&self, owner: Option<&SessionId>) {
        if let Some(owner) = owner {
            let _ = self.ledger.nudge(owner, Nudge::Leases).await;
        }
    }
}

/// The checkpoint with low-water at `to`, within what the log has. Under an owner, who may have finished more than it stored, it
/// is written even if it is as it was.
fn rewound(
    stored: Option<&Checkpoint>,
    generation: u64,
    owned: bool,
    to: AddedId,
    log: std::ops::RangeInclusive<AddedId>,
) -> Next {
    if to < *log.start() {
        return Next::Refused(format!("its log was trimmed: the oldest cell left is {}", log.start().next()));
    }
    if to > *log.end() {
        return Next::Refused(format!("the next cell to come is {}", log.end().next()));
    }
    let Some(stored) = stored else {
        let checkpoint = Checkpoint { low: to, generation, ..Checkpoint::default() };
        return Next::Set(Set { checkpoint, again: 0, never: to.0 - log.start().0 });
    };
    // One that is damaged is mended by this.
    let mut window = Window::resume(stored.low, &stored.done).unwrap_or_else(|_| Window::new(stored.low));
    let finished = |window: &Window| window.low().0 + window.done_beyond();
    let before = finished(&window);
    window.finish_range(AddedId(0), to);
    let after = finished(&window);
    let checkpoint = Checkpoint { low: to, done: Default::default(), attempts: Default::default(), ..stored.clone() };
    if checkpoint == *stored && !owned {
        return Next::AsIs;
    }
    Next::Set(Set { checkpoint, again: after.saturating_sub(to.0), never: after - before })
}

/// The checkpoint with one more cell finished.
fn skipped(stored: &Checkpoint, id: AddedId, log: std::ops::RangeInclusive<AddedId>) -> anyhow::Result<Next> {
    if id > *log.end() {
        return Ok(Next::Refused(format!("there is no cell {id} yet: the newest is {}", log.end())));
    }
    let mut window = Window::resume(stored.low, &stored.done)?;
    if window.is_done(id) {
        return Ok(Next::AsIs);
    }
    if id <= *log.start() {
        return Ok(Next::Refused(format!(
            "the log up to {} was trimmed; the trigger passes it by itself",
            log.start()
        )));
    }
    let mut attempts = decode_attempts(stored.low, &stored.attempts)?;
    attempts.remove(&id);
    window.finish(id);
    let (low, (done, whole)) = (window.low(), window.encode());
    if !whole && !Window::resume(low, &done)?.is_done(id) {
        return Ok(Next::Refused("too many cells before it are unfinished: skip, or wait for, those first".into()));
    }
    // Counts are stored by their distance from low-water.
    let attempts = encode_attempts(low, attempts);
    Ok(Next::Set(Set { checkpoint: Checkpoint { low, done, attempts, ..stored.clone() }, again: 0, never: 1 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(low: u64, done: &[u64], attempts: &[(u64, u32)]) -> Checkpoint {
        let mut window = Window::new(AddedId(low));
        done.iter().for_each(|id| window.finish(AddedId(*id)));
        let attempts = encode_attempts(AddedId(low), attempts.iter().map(|(id, count)| (AddedId(*id), *count)));
        Checkpoint {
            low: window.low(),
            done: window.encode().0,
            attempts,
            dead: 3,
            generation: 2,
            ..Default::default()
        }
    }

    fn set(next: Next) -> Set {
        let Next::Set(set) = next else { panic!("{next:?}") };
        set
    }

    #[test]
    fn a_rewind_counts_what_it_does_and_stays_within_the_log() {
        let stored = checkpoint(10, &[12, 15], &[(11, 4)]);
        let log = AddedId(4)..=AddedId(20);
        let to = |to| rewound(Some(&stored), 2, false, AddedId(to), log.clone());
        let counts = |set: Set| (set.checkpoint.low.0, set.again, set.never);
        assert_eq!(counts(set(to(4))), (4, 8, 0));
        assert_eq!(counts(set(to(10))), (10, 2, 0));
        assert_eq!(counts(set(to(14))), (14, 1, 3));
        assert_eq!(counts(set(to(20))), (20, 0, 8));
        assert_eq!(set(to(4)).checkpoint, checkpoint(4, &[], &[]), "what is not of this kind is kept");
        assert_eq!(to(3), Next::Refused("its log was trimmed: the oldest cell left is 5".into()));
        assert_eq!(to(21), Next::Refused("the next cell to come is 21".into()));
        let clean = checkpoint(10, &[], &[]);
        let stay = |owned| rewound(Some(&clean), 2, owned, AddedId(10), log.clone());
        assert_eq!(stay(false), Next::AsIs);
        assert_eq!(set(stay(true)).checkpoint, clean, "the owner may be further than it stored");
        let fresh = set(rewound(None, 2, true, AddedId(7), log));
        assert_eq!((fresh.checkpoint.low, fresh.checkpoint.generation, fresh.never), (AddedId(7), 2, 3));
    }

    #[test]
    fn a_skip_finishes_one_cell_and_keeps_the_rest() {
        let stored = checkpoint(10, &[12, 15], &[(11, 4), (13, 2), (16, 9)]);
        let skip = |id| skipped(&stored, AddedId(id), AddedId(4)..=AddedId(20)).unwrap();
        assert_eq!(set(skip(11)).checkpoint, checkpoint(12, &[15], &[(13, 2), (16, 9)]));
        assert_eq!(set(skip(13)).checkpoint, checkpoint(10, &[12, 13, 15], &[(11, 4), (16, 9)]));
        assert_eq!((skip(9), skip(12), skip(15)), (Next::AsIs, Next::AsIs, Next::AsIs));
        assert_eq!(skip(21), Next::Refused("there is no cell 21 yet: the newest is 20".into()));
        let behind = checkpoint(0, &[], &[]);
        let trimmed = skipped(&behind, AddedId(4), AddedId(4)..=AddedId(20)).unwrap();
        assert!(matches!(trimmed, Next::Refused(_)), "{trimmed:?}");
        let every_other: Vec<u64> = (0..400).map(|n| 2 * n + 2).collect();
        let ragged = checkpoint(0, &every_other, &[]);
        let far = skipped(&ragged, AddedId(5001), AddedId(0)..=AddedId(9000)).unwrap();
        assert!(matches!(&far, Next::Refused(why) if why.contains("too many")), "{far:?}");
    }
}
