//! `triggers retire`: the end of a trigger, or of a former name of one.

use crate::{
    cell::{Checkpoint, Lease, Ledger, Log, Name, ShardId, ShardRef, Tip, TriggerRecord, TriggerState},
    checkpoint::lag,
    cli::{
        Context,
        ask::Ask,
        bar::bar,
        exit::{Absent, Done, Usage},
        lanes::{self, Counts},
        open::{Open, source, trigger},
        shards::tips,
        standing::checkpoint_of,
    },
    lease::{self, change, remains},
};
use anyhow::Context as _;
use serde::Serialize;
use std::{collections::BTreeMap, sync::Arc};

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
    /// Cells that it has not finished; null for a former name, and for what is left of a trigger that was retired before.
    lag_cells: Option<u64>,
    parked: Option<Counts>,
    /// Null when nothing was done.
    status: Option<&'static str>,
}

pub(super) async fn retire(context: &mut Context, args: Args) -> anyhow::Result<Done> {
    let open = Open::new(context).await?;
    let ledger = open.ledger().await?;
    let record = match trigger(ledger.as_ref(), &args.name).await {
        Err(error) if error.is::<Absent>() => match left(&open, ledger.as_ref(), &args.name).await? {
            Some(record) => record,
            None => return Err(error),
        },
        found => found?,
    };
    let former = record.state != TriggerState::Retired && record.name != args.name;
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

/// A trigger of that name that was retired, and whose end was cut off.
async fn left(open: &Open, ledger: &dyn Ledger, name: &Name) -> anyhow::Result<Option<TriggerRecord>> {
    for datastore in open.config.datastores.keys() {
        if let Some(record) = remains(ledger, datastore, name).await?.into_iter().next() {
            return Ok(Some(record));
        }
    }
    Ok(None)
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
        change(ledger, record.clone(), |record| match record.formerly.contains(name) {
            true => Some(Box::pin(async move { ledger.free_name(&record, name).await })),
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
        let was_retired = self.record.state == TriggerState::Retired;
        let lag = if was_retired { None } else { Some(self.lag().await?) };
        let parked = lanes::count(self.ledger.as_ref(), &self.record.id, &self.shards()).await?;
        let Counts { retrying, waiting, dead } = parked;
        let lie_parked = format!("parked {retrying} retrying, {waiting} waiting, {dead} dead");
        let what = match lag {
            Some(lag) => format!(
                "{name} is never called again; given up: {lag} cells that it has not finished, and {lie_parked}"
            ),
            None => format!("{name} was retired before; what is left of it goes: its checkpoints, and {lie_parked}"),
        };
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
            lag_cells: lag,
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

    async fn end(&self, parked: Counts) -> anyhow::Result<()> {
        let bar = bar(Some(parked.all()), "{wide_bar} {human_pos}/{human_len} parked cells");
        let ended = lease::retire(self.ledger.as_ref(), &self.record, &self.shards(), |cells| bar.inc(cells)).await;
        bar.finish_and_clear();
        ended.context("stopped half-way; the same command again goes on")
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
