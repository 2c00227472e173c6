//! `triggers rename`: another label for the same trigger.

use super::{TRIES, print};
use crate::{
    cell::{Answer, Ledger, Name, TriggerRecord},
    cli::{
        Context,
        exit::{Done, Usage},
        open::{Open, trigger},
    },
    lease::nudge_all,
};
use anyhow::bail;
use std::time::Duration;

/// Former names that a trigger may have: they are freed together, in one transaction.
const FORMERLY_MAX: usize = 16;

/// How a rename ended.
enum Renamed {
    /// It has the name.
    Done(TriggerRecord),
    /// Another trigger has, or had, the name.
    Taken(TriggerRecord),
}

pub(super) async fn rename(context: &mut Context, old: &Name, new: &Name) -> anyhow::Result<Done> {
    if old == new {
        return Err(Usage(format!("{old} is its name already")).into());
    }
    let open = Open::new(context).await?;
    let ledger = open.ledger().await?;
    let record = trigger(ledger.as_ref(), old).await?;
    if record.name != *old && record.name != *new {
        return Err(Usage(format!("it is {} by now: rename that", record.name)).into());
    }
    let record = match apply(ledger.as_ref(), record, new).await? {
        Renamed::Done(record) => record,
        Renamed::Taken(other) if other.name == *new => {
            context.output.say(format_args!("there is a trigger {new} already"));
            return Ok(Done::Partly);
        }
        Renamed::Taken(other) => {
            let current = &other.name;
            context
                .output
                .say(format_args!("{new} is a former name of {current}; `cellhook triggers retire {new}` frees it"));
            return Ok(Done::Partly);
        }
    };
    // A hint: the workers say so to whoever reads their logs.
    let _ = nudge_all(ledger.as_ref()).await;
    print(context, &record)?;
    if open.config.triggers.contains_key(old) {
        let file = open.config.file.display();
        context.output.say(format_args!("{file} says {old}, which still means this trigger: rename it there too"));
    }
    Ok(Done::All)
}

/// Decided anew as long as others change the trigger or the store does not answer. It is known by its id: an earlier
/// copy of this very rename may have been applied.
async fn apply(ledger: &dyn Ledger, mut record: TriggerRecord, new: &Name) -> anyhow::Result<Renamed> {
    let old = record.name.clone();
    for tries in 1..=TRIES {
        if record.name == *new {
            return Ok(Renamed::Done(record));
        }
        if record.name != old {
            bail!("somebody else renamed it to {} at the same time", record.name);
        }
        if record.formerly.len() >= FORMERLY_MAX && !record.formerly.contains(new) {
            let name = record.formerly.first().unwrap_or(&record.name);
            return Err(Usage(format!(
                "{} has {FORMERLY_MAX} former names, the most that are kept: free one of them first, as with \
                 `cellhook triggers retire {name}`",
                record.name
            ))
            .into());
        }
        match ledger.rename_trigger(&record, new).await {
            Ok(Answer::Accepted(record)) => return Ok(Renamed::Done(record)),
            Ok(Answer::Refused(_)) => {}
            Err(error) if error.kind.may_pass() && tries < TRIES => {
                let bound = Duration::from_millis(20) * (1 << tries);
                tokio::time::sleep(bound.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            }
            Err(error) => return Err(error.into()),
        }
        let triggers = ledger.triggers().await?;
        if let Some(other) = triggers.iter().find(|other| other.id != record.id && other.goes_by(new)) {
            return Ok(Renamed::Taken(other.clone()));
        }
        match triggers.into_iter().find(|found| found.id == record.id) {
            Some(found) => record = found,
            None => bail!("{old} was retired at the same time"),
        }
    }
    bail!("trigger {old} is being changed by others all the time; try again")
}
