//! `triggers retire`: the end of a trigger, or of a former name of one.

use super::TRIES;
use crate::{
    cell::{
        Answer, Checkpoint, Lease, Ledger, Log, Name, Role, Session, SessionId, SessionState, ShardId, ShardRef,
        StoreError, Tip, TriggerRecord, TriggerState,
    },
    checkpoint::lag,
    cli::{
        Context,
        ask::Ask,
        bar::bar,
        exit::{Done, Usage},
        lanes::{self, Counts},
        open::{Open, source, trigger},
        shards::tips,
        standing::checkpoint_of,
    },
    lease::nudge_all,
    store::patiently,
};
use anyhow::{Context as _, bail};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

/// How often it is looked whether the workers have heard of it.
const LOOKS: Duration = Duration::from_millis(500);
/// Leases that are changed at a time.
const PARALLEL: usize = 8;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The trigger, or a former name of one.
    name: Name,
    /// Also give up the cells of it that lie parked; without this it is refused while there are any.
    #[arg(long)]
    drop_parked: bool,
    /// Also while the config names it: the next start or reload registers it anew, and calls everything again.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    ask: Ask,
}

/// What is given up.
#[derive(Serialize)]
struct RetireLine<'a> {
    name: &'a Name,
    id: &'a str,
    datastore: &'a Name,
    /// Cells that it has not finished; null for a former name.
    lag_cells: Option<u64>,
    parked: Option<Counts>,
    /// Null when nothing was done.
    status: Option<&'static str>,
}

pub(super) async fn retire(context: &mut Context, args: Args) -> anyhow::Result<Done> {
    let open = Open::new(context).await?;
    let ledger = open.ledger().await?;
    let record = trigger(ledger.as_ref(), &args.name).await?;
    let former = record.name != args.name;
    let named = |name: &&Name| if former { **name == args.name } else { record.goes_by(name) };
    if let Some(name) = open.config.triggers.keys().find(named).filter(|_| !args.force) {
        let file = open.config.file.display();
        return Err(Usage(format!(
            "{file} still names {name}: the next start or reload would register it anew and call everything again. \
             Take it out there, and reload the workers, first; or say --force"
        ))
        .into());
    }
    if former {
        return free(context, ledger.as_ref(), record, &args).await;
    }
    let end = End { log: source(&open, &record).await?, ledger, record };
    end.run(context, &args).await
}

/// Frees a former name.
async fn free(
    context: &mut Context,
    ledger: &dyn Ledger,
    record: TriggerRecord,
    Args { name, ask, .. }: &Args,
) -> anyhow::Result<Done> {
    let current = record.name.clone();
    let what = format!("{name} is free then, and means {current} no more; {current} goes on");
    let goes_on = !ask.dry_run;
    if goes_on {
        ask.agreed(&mut context.output, &format!("{what}. Go on?"))?;
        change(ledger, record.clone(), async |record| match record.formerly.contains(name) {
            true => Some(ledger.free_name(record, name).await),
            false => None,
        })
        .await?;
    }
    let line = RetireLine {
        name,
        id: record.id.as_str(),
        datastore: &record.source,
        lag_cells: None,
        parked: None,
        status: goes_on.then_some("freed"),
    };
    print(context, &line)?;
    context.output.say(if goes_on {
        format!("{name} is free; {current} goes on")
    } else {
        format!("would be done: {what}")
    });
    Ok(Done::All)
}

/// A trigger that is retired.
struct End {
    ledger: Arc<dyn Ledger>,
    log: Arc<dyn Log>,
    record: TriggerRecord,
}

impl End {
    async fn run(&self, context: &mut Context, Args { drop_parked, ask, .. }: &Args) -> anyhow::Result<Done> {
        let name = &self.record.name;
        let lag = self.lag().await?;
        let parked = lanes::count(self.ledger.as_ref(), &self.record.id, &self.shards()).await?;
        let Counts { retrying, waiting, dead } = parked;
        let what = format!(
            "{name} is never called again; given up: {lag} cells that it has not finished, and parked {retrying} \
             retrying, {waiting} waiting, {dead} dead"
        );
        let refused = parked.all() > 0 && !drop_parked;
        let goes_on = !ask.dry_run && !refused;
        if goes_on {
            ask.agreed(&mut context.output, &format!("{what}. Go on?"))?;
            self.end(parked).await?;
        }
        let line = RetireLine {
            name,
            id: self.record.id.as_str(),
            datastore: &self.record.source,
            lag_cells: Some(lag),
            parked: Some(parked),
            status: if refused { Some("refused") } else { goes_on.then_some("retired") },
        };
        print(context, &line)?;
        context.output.say(if goes_on { what } else { format!("would be done: {what}") });
        if refused {
            context.output.say(format_args!(
                "refused: {} cells of it lie parked; `cellhook parked --trigger {name}` lists them, --drop-parked gives \
                 them up",
                parked.all()
            ));
            return Ok(Done::Partly);
        }
        Ok(Done::All)
    }

    /// The parked cells first: when this is stopped half-way, the trigger is still there and the same command goes on.
    async fn end(&self, parked: Counts) -> anyhow::Result<()> {
        let bar = bar(Some(parked.all()), "{wide_bar} {human_pos}/{human_len} parked cells");
        let drops = async |told: &dyn Fn(u64)| {
            let (ledger, id) = (self.ledger.as_ref(), &self.record.id);
            lanes::drop_all(ledger, id, &self.shards(), told).await
        };
        if parked.all() > 0 {
            drops(&|cells| bar.inc(cells)).await.context("stopped half-way; the same command again goes on")?;
        }
        bar.finish_and_clear();
        let ledger = self.ledger.as_ref();
        change(ledger, self.record.clone(), async |record| {
            let retired = TriggerRecord { state: TriggerState::Retired, ..record.clone() };
            Some(ledger.update_trigger(&retired).await)
        })
        .await?;
        // A hint: without it the workers look by themselves, later.
        let _ = nudge_all(ledger).await;
        // What its workers parked until they heard of it. Nobody would ever find it.
        self.is_heard().await?;
        drops(&|_| ()).await.context("it is retired, but cells that were parked meanwhile are left behind")?;
        self.forget()
            .await
            .context("it is retired, but its checkpoints are left in the leases, where they only take room")
    }

    /// Waits until every worker has had the time to stop: it has beaten twice since, the second time after it was nudged and
    /// looked; or it has not beaten for as long as its session lasts.
    async fn is_heard(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        let mut before: Option<BTreeMap<SessionId, u64>> = None;
        loop {
            let sessions = patiently(|| self.ledger.sessions()).await?;
            let beats: BTreeMap<SessionId, u64> = sessions.iter().map(|one| (one.id.clone(), one.beat)).collect();
            let before = before.get_or_insert(beats);
            let works = |one: &&Session| one.role == Role::Worker && one.state != SessionState::Dead;
            let waits = |one: &Session| {
                before.get(&one.id).is_some_and(|beat| one.beat < beat + 2) && begun.elapsed() < one.length
            };
            if !sessions.iter().filter(works).any(waits) {
                return Ok(());
            }
            sleep(LOOKS).await;
        }
    }

    /// Removes its checkpoints, now that its lanes are empty: whoever looks for lanes finds them by these.
    async fn forget(&self) -> Result<(), StoreError> {
        let (ledger, id) = (&self.ledger, &self.record.id);
        let leases = patiently(|| ledger.leases(&self.record.source)).await?;
        let its = stream::iter(leases.iter().filter(|lease| lease.checkpoints.contains_key(id)));
        let forgets = its.map(|lease| patiently(|| ledger.forget_checkpoint(&lease.shard, id)));
        forgets.buffer_unordered(PARALLEL).try_collect().await
    }

    fn shards(&self) -> Vec<ShardRef> {
        let source = &self.record.source;
        self.log.datastore().all_shards().map(|shard| ShardRef { source: source.clone(), shard }).collect()
    }

    /// Cells that it has not finished, those of shards where it was not started included.
    async fn lag(&self) -> anyhow::Result<u64> {
        let tips = tips(self.log.as_ref()).await?;
        let leases = self.ledger.leases(&self.record.source).await?;
        let leases: BTreeMap<ShardId, &Lease> = leases.iter().map(|lease| (lease.shard.shard, lease)).collect();
        let checkpoint = |tip: &Tip| checkpoint_of(&self.record, leases.get(&tip.shard).copied());
        Ok(tips.values().map(|tip| given_up(tip, checkpoint(tip), &self.record)).sum())
    }
}

/// Cells of a shard that it would have been called for: what was trimmed it would pass.
fn given_up(tip: &Tip, checkpoint: Option<&Checkpoint>, record: &TriggerRecord) -> u64 {
    let start = || record.start.as_ref().and_then(|start| start.get(tip.shard.0 as usize).copied());
    let lag = match checkpoint {
        Some(checkpoint) => lag(checkpoint, tip.tip),
        None => tip.tip.0.saturating_sub(start().unwrap_or_default().0),
    };
    lag.min(tip.tip.0.saturating_sub(tip.trimmed_to.0))
}

/// Changes a trigger, decided anew as long as others change it too or the store does not answer; done when there is
/// nothing to change any more, or no such trigger: an earlier copy of the request may have been applied.
async fn change(
    ledger: &dyn Ledger,
    mut record: TriggerRecord,
    send: impl AsyncFn(&TriggerRecord) -> Option<Result<Answer<TriggerRecord>, StoreError>>,
) -> anyhow::Result<()> {
    for tries in 1..=TRIES {
        match send(&record).await {
            None | Some(Ok(Answer::Accepted(_))) => return Ok(()),
            Some(Ok(Answer::Refused(_))) => {}
            Some(Err(error)) if error.kind.may_pass() && tries < TRIES => {
                let bound = Duration::from_millis(20) * (1 << tries);
                tokio::time::sleep(bound.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            }
            Some(Err(error)) => return Err(error.into()),
        }
        match ledger.triggers().await?.into_iter().find(|found| found.id == record.id) {
            Some(found) => record = found,
            None => return Ok(()),
        }
    }
    bail!("trigger {} is being changed by others all the time; try again", record.name)
}

fn print(context: &mut Context, line: &RetireLine<'_>) -> anyhow::Result<()> {
    if context.output.is_json() {
        return context.output.object(line);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cell::{AddedId, Incarnation, Millis, TriggerId},
        checkpoint::Window,
    };

    #[test]
    fn what_is_given_up_is_what_it_would_have_been_called_for() {
        let record = TriggerRecord {
            id: TriggerId::random(),
            name: Name::new("bill").unwrap(),
            formerly: Default::default(),
            source: Name::new("trips").unwrap(),
            incarnation: Incarnation::random(),
            state: TriggerState::Active,
            generation: 0,
            start: Some([AddedId(7)].into()),
            revision: 0,
        };
        let tip = |trimmed: u64| Tip {
            shard: ShardId(0),
            tip: AddedId(20),
            created_at: Millis(0),
            trimmed_to: AddedId(trimmed),
        };
        let mut window = Window::new(AddedId(10));
        window.finish(AddedId(15));
        let checkpoint = Checkpoint { low: window.low(), done: window.encode().0, ..Checkpoint::default() };
        assert_eq!(given_up(&tip(0), Some(&checkpoint), &record), 9);
        assert_eq!(given_up(&tip(18), Some(&checkpoint), &record), 2);
        assert_eq!(given_up(&tip(0), None, &record), 13, "it was not started there, but would begin at 8");
        assert_eq!(given_up(&tip(18), None, &record), 2);
        assert_eq!(given_up(&tip(4), None, &TriggerRecord { start: None, ..record }), 16);
    }
}
