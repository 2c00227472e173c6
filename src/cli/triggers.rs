//! `triggers`: list, pause, resume.

use super::{
    Exit,
    home::{Home, NotThere, nudge_all, print_json, print_line},
};
use crate::cell::{Answer, Ledger, Name, TriggerRecord, TriggerState};
use clap::{Args, Subcommand};

/// Arguments of `triggers`.
#[derive(Debug, Args)]
pub(super) struct Triggers {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// One JSON object a line
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the registered triggers
    List,
    /// Stop calling a trigger, on all shards, until it is resumed
    Pause {
        /// The trigger
        name: Name,
        /// Why; kept and shown
        #[arg(long, default_value = "paused by hand")]
        reason: String,
    },
    /// Call it again, also on shards where it paused by itself
    Resume {
        /// The trigger
        name: Name,
    },
}

/// Lists, pauses, resumes.
pub(super) async fn triggers(home: &Home, triggers: Triggers) -> anyhow::Result<Exit> {
    let store = home.store().await?;
    let ledger = home.ledger(&store).await?;
    match triggers.verb {
        None | Some(Verb::List) => {
            for record in ledger.triggers().await? {
                print(&record, triggers.json)?;
            }
        }
        Some(Verb::Pause { name, reason }) => {
            let record = change(&*ledger, &name, |record| {
                record.state = TriggerState::Paused { reason: reason.clone() };
            });
            print(&record.await?, triggers.json)?;
        }
        Some(Verb::Resume { name }) => {
            let record = change(&*ledger, &name, |record| {
                record.state = TriggerState::Active;
                record.generation += 1;
            });
            print(&record.await?, triggers.json)?;
        }
    }
    Ok(Exit::Done)
}

/// Changes a trigger's record, again when somebody else changed it at the same time, and tells the workers.
async fn change(
    ledger: &dyn Ledger,
    name: &Name,
    change: impl Fn(&mut TriggerRecord),
) -> anyhow::Result<TriggerRecord> {
    for _ in 0..10 {
        let record = ledger.triggers().await?.into_iter().find(|record| record.name == *name);
        let Some(mut record) = record else { return Err(NotThere(format!("no trigger {name} is registered")).into()) };
        change(&mut record);
        if let Answer::Accepted(record) = ledger.update_trigger(&record).await? {
            nudge_all(ledger).await?;
            return Ok(record);
        }
    }
    anyhow::bail!("trigger {name} is being changed by others all the time; try again")
}

fn print(record: &TriggerRecord, json: bool) -> anyhow::Result<()> {
    let (state, reason) = match &record.state {
        TriggerState::Active => ("active", None),
        TriggerState::Paused { reason } => ("paused", Some(reason.as_str())),
        TriggerState::Retired => ("retired", None),
    };
    if json {
        return print_json(&serde_json::json!({
            "name": record.name, "id": record.id.as_str(), "source": record.source, "state": state, "reason": reason,
        }));
    }
    let reason = reason.map_or_else(String::new, |reason| format!(": {reason}"));
    print_line(format_args!("{}\ton {}\t{state}{reason}", record.name, record.source))?;
    Ok(())
}
