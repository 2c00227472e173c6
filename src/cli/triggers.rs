//! `triggers`: the registered ones: listed, paused, resumed.

use super::{
    Context,
    exit::Done,
    open::{Open, trigger},
    output::plain,
};
use crate::{
    cell::{Answer, Ledger, Name, TriggerRecord, TriggerState},
    lease::nudge_all,
};
use anyhow::bail;
use clap::Subcommand;
use serde::Serialize;

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
    List,
    /// Stop calling a trigger's handler, on all workers, until it is resumed. Calls that are under way are finished.
    Pause {
        /// The trigger.
        name: Name,
        /// Why; shown to whoever looks.
        #[arg(long)]
        reason: String,
    },
    /// Call a trigger's handler again, also on shards that were paused by themselves.
    Resume {
        /// The trigger.
        name: Name,
    },
}

impl Args {
    /// Whether it does more than list.
    pub(super) fn changes(&self) -> bool {
        matches!(self.verb, Some(Verb::Pause { .. } | Verb::Resume { .. }))
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
}

impl<'a> TriggerLine<'a> {
    fn of(record: &'a TriggerRecord) -> Self {
        let (state, reason) = match &record.state {
            TriggerState::Active => ("active", None),
            TriggerState::Paused { reason } => ("paused", Some(reason.as_str())),
            TriggerState::Retired => ("retired", None),
        };
        let TriggerRecord { name, id, source, generation, .. } = record;
        Self { name, id: id.as_str(), datastore: source, state, reason, generation: *generation }
    }
}

pub(super) async fn triggers(context: &mut Context, args: Args) -> anyhow::Result<Done> {
    let open = Open::new(context).await?;
    let ledger = open.ledger().await?;
    let change = match args.verb {
        None | Some(Verb::List) => {
            let mut triggers = ledger.triggers().await?;
            triggers.sort_by(|a, b| a.name.cmp(&b.name));
            print(context, &triggers)?;
            return Ok(Done::All);
        }
        Some(Verb::Pause { name, reason }) => Change { name, to: To::Paused { reason } },
        Some(Verb::Resume { name }) => Change { name, to: To::Active },
    };
    let record = change.apply(ledger.as_ref()).await?;
    // A hint: without it they look by themselves, later.
    let _ = nudge_all(ledger.as_ref()).await;
    print(context, &[record])?;
    Ok(Done::All)
}

fn print(context: &mut Context, triggers: &[TriggerRecord]) -> anyhow::Result<()> {
    let lines: Vec<TriggerLine<'_>> = triggers.iter().map(TriggerLine::of).collect();
    if context.output.is_json() {
        return lines.iter().try_for_each(|line| context.output.object(line));
    }
    let rows: Vec<[String; 4]> = lines
        .iter()
        .map(|line| {
            let reason = line.reason.map_or_else(|| "-".into(), plain);
            [line.name.to_string(), line.datastore.to_string(), line.state.into(), reason]
        })
        .collect();
    context.output.table(["NAME", "DATASTORE", "STATE", "REASON"], &rows)
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
