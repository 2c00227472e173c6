//! `triggers`: the registered ones: listed, shown, paused, resumed, renamed, retired.

mod rename;
mod retire;
mod show;

use super::{
    Context,
    ask::Ask,
    exit::Done,
    open::{Open, trigger},
    operate::{Want, Work},
    output::plain,
    standing::{checkpoint_of, pause},
    tail::shards,
};
use crate::{
    cell::{Answer, Lease, Ledger, Name, TriggerRecord, TriggerState},
    lease::nudge_all,
};
use anyhow::bail;
use clap::Subcommand;
use serde::Serialize;
use std::collections::BTreeSet;

/// How often a change is decided anew because somebody else changed the trigger.
const TRIES: u32 = 8;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List registered triggers; the same as without a verb.
    #[command(after_help = "Example:\n  cellhook triggers list --json | jq 'select(.state == \"paused\").reason'")]
    List,
    /// Show all of one trigger: where it began, and on each shard who works on it, how far it is, and whether it is
    /// paused there.
    #[command(after_help = "Example:\n  cellhook triggers show bill_rider --json | jq '.shards[] | select(.paused)'")]
    Show {
        /// The trigger.
        name: Name,
    },
    /// Stop calling a trigger's handler, on all workers, until it is resumed. Calls that are under way are finished;
    /// with --shard, what they say does not count any more.
    #[command(after_help = "Example:\n  cellhook triggers pause bill_rider --shard 5 --reason 'bad rows, issue 12'")]
    Pause {
        /// The trigger.
        name: Name,
        /// Why; shown to whoever looks.
        #[arg(long, value_parser = reason)]
        reason: String,
        /// On this shard only.
        #[arg(long, value_name = "N")]
        shard: Option<u32>,
    },
    /// Call a trigger's handler again, also on shards that were paused by themselves; or, with --shard, end the pause
    /// of that one.
    #[command(after_help = "Example:\n  cellhook triggers resume bill_rider --shard 5")]
    Resume {
        /// The trigger.
        name: Name,
        /// On this shard only: pauses of others go on, and so does one of the whole trigger.
        #[arg(long, value_name = "N")]
        shard: Option<u32>,
    },
    /// Give a trigger another name. It goes on where it is: only its label changes. A config that still says the old
    /// name means it too, until that is freed with `retire`.
    #[command(after_help = "Example:\n  cellhook triggers rename bill_rider charge_rider")]
    Rename {
        /// Its name.
        old: Name,
        /// Its name from now on.
        new: Name,
    },
    /// Give a trigger up for good: it is never called again, and its name is free. Or free a former name of one that
    /// was renamed.
    #[command(after_help = "Example:\n  cellhook triggers retire bill_rider --dry-run")]
    Retire(retire::Args),
}

fn reason(text: &str) -> Result<String, &'static str> {
    if text.trim().is_empty() { Err("it is empty; whoever looks wants to know why") } else { Ok(text.to_owned()) }
}

impl Args {
    /// Whether it does more than list.
    pub(super) fn changes(&self) -> bool {
        !matches!(self.verb, None | Some(Verb::List | Verb::Show { .. }))
    }
}

#[derive(Serialize)]
struct TriggerLine<'a> {
    name: &'a Name,
    id: &'a str,
    datastore: &'a Name,
    state: &'static str,
    reason: Option<&'a str>,
    generation: u64,
    formerly: &'a BTreeSet<Name>,
}

/// A trigger of the list.
#[derive(Serialize)]
struct ListLine<'a> {
    #[serde(flatten)]
    trigger: TriggerLine<'a>,
    /// Shards on which it alone is paused.
    paused_shards: usize,
}

impl<'a> TriggerLine<'a> {
    fn of(record: &'a TriggerRecord) -> Self {
        let (state, reason) = match &record.state {
            TriggerState::Active => ("active", None),
            TriggerState::Paused { reason } => ("paused", Some(reason.as_str())),
            TriggerState::Retired => ("retired", None),
        };
        let TriggerRecord { name, id, source, generation, formerly, .. } = record;
        Self { name, id: id.as_str(), datastore: source, state, reason, generation: *generation, formerly }
    }
}

/// Names in a row, for people.
fn listed(names: &BTreeSet<Name>) -> String {
    let names: Vec<&str> = names.iter().map(Name::as_str).collect();
    if names.is_empty() { "-".into() } else { names.join(",") }
}

pub(super) async fn triggers(context: &mut Context, args: Args) -> anyhow::Result<Done> {
    match args.verb {
        None | Some(Verb::List) => list(context).await,
        Some(Verb::Show { name }) => show::show(context, &name).await,
        Some(Verb::Pause { name, reason, shard: None }) => {
            Change { name, to: To::Paused { reason } }.run(context).await
        }
        Some(Verb::Resume { name, shard: None }) => Change { name, to: To::Active }.run(context).await,
        Some(Verb::Pause { name, reason, shard: Some(shard) }) => on(context, &name, shard, Want::Pause(reason)).await,
        Some(Verb::Resume { name, shard: Some(shard) }) => on(context, &name, shard, Want::Resume).await,
        Some(Verb::Rename { old, new }) => rename::rename(context, &old, &new).await,
        Some(Verb::Retire(args)) => retire::retire(context, args).await,
    }
}

async fn list(context: &mut Context) -> anyhow::Result<Done> {
    let open = Open::new(context).await?;
    let ledger = open.ledger().await?;
    let mut triggers = ledger.triggers().await?;
    triggers.sort_by(|a, b| a.name.cmp(&b.name));
    let sources: BTreeSet<&Name> = triggers.iter().map(|trigger| &trigger.source).collect();
    let mut leases: Vec<Lease> = Vec::new();
    for source in sources {
        leases.extend(ledger.leases(source).await?);
    }
    let paused = |record: &TriggerRecord| {
        let here = leases.iter().filter(|lease| lease.shard.source == record.source);
        here.filter(|lease| pause(record, checkpoint_of(record, Some(lease))).is_some()).count()
    };
    let lines: Vec<ListLine<'_>> = triggers
        .iter()
        .map(|record| ListLine { trigger: TriggerLine::of(record), paused_shards: paused(record) })
        .collect();
    if context.output.is_json() {
        lines.iter().try_for_each(|line| context.output.object(line))?;
    } else {
        table(context, lines.iter().map(|line| (&line.trigger, line.paused_shards)))?;
    }
    if lines.is_empty() {
        context.output.say("no trigger is registered; a worker registers those of its config: `cellhook run`");
    }
    Ok(Done::All)
}

/// A pause of one shard, or its end: the shard's owner is fenced off, as by a rewind.
async fn on(context: &mut Context, name: &Name, shard: u32, want: Want) -> anyhow::Result<Done> {
    let work = Work::new(context, name, want).await?;
    let shards = shards(&work.log, Some(shard))?;
    let done = work.run(context, shards, Ask::SAID).await?;
    if let (Want::Resume, TriggerState::Paused { reason }) = (&work.want, &work.record.state) {
        let (name, reason) = (&work.record.name, plain(reason));
        context.output.say(format_args!(
            "the whole trigger is still paused: {reason}; `cellhook triggers resume {name}` ends that"
        ));
    }
    Ok(done)
}

/// A trigger that was changed.
fn print(context: &mut Context, record: &TriggerRecord) -> anyhow::Result<()> {
    let line = TriggerLine::of(record);
    if context.output.is_json() { context.output.object(&line) } else { table(context, [(&line, 0)]) }
}

/// For people: triggers, with how many shards each alone is paused on.
fn table<'a>(
    context: &mut Context,
    triggers: impl IntoIterator<Item = (&'a TriggerLine<'a>, usize)>,
) -> anyhow::Result<()> {
    let row = |(line, paused_shards): (&TriggerLine<'_>, usize)| {
        let state = match paused_shards {
            0 => line.state.into(),
            n => format!("{}, paused on {n} shards", line.state),
        };
        let reason = line.reason.map_or_else(|| "-".into(), plain);
        [line.name.to_string(), line.datastore.to_string(), state, reason, listed(line.formerly)]
    };
    let rows: Vec<[String; 5]> = triggers.into_iter().map(row).collect();
    context.output.table(["NAME", "DATASTORE", "STATE", "REASON", "FORMERLY"], &rows)
}

struct Change {
    name: Name,
    to: To,
}

enum To {
    Paused { reason: String },
    Active,
}

impl Change {
    async fn run(&self, context: &mut Context) -> anyhow::Result<Done> {
        let open = Open::new(context).await?;
        let ledger = open.ledger().await?;
        let record = self.apply(ledger.as_ref()).await?;
        // A hint: without it they look by themselves, later.
        let _ = nudge_all(ledger.as_ref()).await;
        print(context, &record)?;
        Ok(Done::All)
    }

    /// A resume begins a new generation even of an active trigger: pauses of single shards end with it.
    fn of(&self, record: TriggerRecord) -> TriggerRecord {
        match &self.to {
            To::Paused { reason } => TriggerRecord { state: TriggerState::Paused { reason: reason.clone() }, ..record },
            To::Active => TriggerRecord { state: TriggerState::Active, generation: record.generation + 1, ..record },
        }
    }

    async fn apply(&self, ledger: &dyn Ledger) -> anyhow::Result<TriggerRecord> {
        for _ in 0..TRIES {
            let record = trigger(ledger, &self.name).await?;
            if let Answer::Accepted(record) = ledger.update_trigger(&self.of(record)).await? {
                return Ok(record);
            }
        }
        bail!("trigger {} is being changed by others all the time; try again", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cell::{Incarnation, TriggerId},
        store::memory::MemoryLedger,
    };

    #[tokio::test]
    async fn pause_keeps_the_generation_and_resume_begins_a_new_one() {
        let ledger = MemoryLedger::new();
        let name = Name::new("t").unwrap();
        let record = TriggerRecord {
            id: TriggerId::random(),
            name: name.clone(),
            formerly: BTreeSet::new(),
            source: Name::new("trips").unwrap(),
            incarnation: Incarnation::random(),
            state: TriggerState::Active,
            generation: 4,
            start: None,
            revision: 0,
        };
        ledger.register(&record).await.unwrap();
        let reason = "because".to_owned();
        let pause = Change { name: name.clone(), to: To::Paused { reason: reason.clone() } };
        let paused = pause.apply(&ledger).await.unwrap();
        assert_eq!((paused.state, paused.generation), (TriggerState::Paused { reason }, 4));
        let resumed = Change { name, to: To::Active }.apply(&ledger).await.unwrap();
        assert_eq!((resumed.state, resumed.generation), (TriggerState::Active, 5));
        let unknown = Change { name: Name::new("u").unwrap(), to: To::Active }.apply(&ledger).await;
        assert!(unknown.unwrap_err().to_string().contains("no trigger u is registered in this group; known: t"));
    }
}
