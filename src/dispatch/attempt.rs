//! One call from its items to their verdicts: fetch what is missing, call, append what the answer says.

use super::{Item, Trigger};
use crate::{
    cell::{Call, Cell, CellKey, Epoch, Event, Latest, NewCell, Origin, PutCell, Verdict},
    store::PutError,
};
use futures_util::future::join_all;
use std::{sync::Arc, time::Duration};
use tokio::sync::OwnedSemaphorePermit;

/// A call that ended.
pub struct Attempted {
    /// The trigger's place among those of its shard.
    pub cursor: usize,
    /// Each item with its verdict.
    pub items: Vec<(Item, Verdict)>,
    /// Whether it was the breaker's probe.
    pub probe: bool,
}

/// Wait before an attempt that could not be prepared because the store did not answer. Not the handler's failure.
const STORE_WAIT: Duration = Duration::from_secs(1);

/// Runs one call. Gives exactly one verdict for each item. The permit is held to the end.
pub async fn attempt(
    trigger: Arc<Trigger>,
    cursor: usize,
    epoch: Epoch,
    items: Vec<Item>,
    probe: bool,
    permit: OwnedSemaphorePermit,
) -> Attempted {
    let mut verdicts: Vec<Option<Verdict>> = Vec::with_capacity(items.len());
    let mut events = Vec::with_capacity(items.len());
    let mut called = Vec::with_capacity(items.len());
    for (i, item) in items.iter().enumerate() {
        match prepare(&trigger, epoch, item).await {
            Ok(event) => {
                events.push(event);
                called.push(i);
                verdicts.push(None);
            }
            Err(verdict) => verdicts.push(Some(verdict)),
        }
    }
    if !events.is_empty() {
        let origins: Vec<(String, Cell)> = if events.len() == 1 {
            Vec::new()
        } else {
            events.iter().map(|event| (event.id(), event.cell.clone())).collect()
        };
        let single = (events.len() == 1).then(|| (events[0].clone(), called[0]));
        let answers = trigger.handler.clone().call(Call { events, timeout: trigger.config.timeout }).await;
        if let Some((event, i)) = single {
            let answer = answers.into_iter().next().unwrap_or_else(|| Verdict::failed("the handler gave no verdict"));
            verdicts[i] = Some(append(&trigger, || event.id(), &event.cell, answer).await);
        } else {
            let mut answers = answers.into_iter();
            let appends = called.iter().zip(origins).map(|(i, (id, cell))| {
                let answer = answers.next().unwrap_or_else(|| Verdict::failed("the handler gave no verdict"));
                let trigger = &trigger;
                async move { (*i, append(trigger, || id, &cell, answer).await) }
            });
            for (i, verdict) in join_all(appends).await {
                verdicts[i] = Some(verdict);
            }
        }
    }
    drop(permit);
    let verdicts = verdicts.into_iter().map(|verdict| verdict.expect("prepared or called"));
    Attempted { cursor, items: items.into_iter().zip(verdicts).collect(), probe }
}

/// The event of an item: the cell itself for a parked one, and the latest cells of the included columns.
async fn prepare(trigger: &Trigger, epoch: Epoch, item: &Item) -> Result<Event, Verdict> {
    let log = trigger.cells.log();
    let cell = match (&item.cell, &item.key) {
        (Some(cell), _) => cell.clone(),
        (None, Some(key)) => match log.get(key).await {
            Ok(Some(stored)) => stored.cell,
            Ok(None) => return Err(Verdict::DeadLetter { error: "the cell is no longer in the datastore".into() }),
            Err(error) => return Err(not_now(&error)),
        },
        (None, None) => {
            return Err(Verdict::DeadLetter { error: "a damaged range of the log has no cells to call for".into() });
        }
    };
    let mut latest: Vec<Latest> = Vec::new();
    for column in &trigger.config.include {
        match log.latest(&cell.key.row_key, column).await {
            Ok(found) => {
                let cell = found.map(|stored| (stored.cell.key.ref_key, stored.cell.body));
                latest.push(Latest { column: column.as_str().into(), cell });
            }
            Err(error) => return Err(not_now(&error)),
        }
    }
    Ok(Event {
        cell,
        datastore: trigger.cells.datastore().clone(),
        trigger: trigger.name.clone(),
        attempt: item.attempts + 1,
        epoch,
        latest: latest.into(),
        alone: item.interruptions >= 2,
    })
}

fn not_now(error: &crate::cell::StoreError) -> Verdict {
    tracing::warn!(error = %crate::cell::chain(error), "cannot prepare a call; trying again");
    Verdict::Snooze { after: STORE_WAIT.mul_f64(0.5 + fastrand::f64()) }
}

/// Appends what a `done` brings; it counts only then.
async fn append(trigger: &Trigger, event: impl FnOnce() -> String, cell: &Cell, answer: Verdict) -> Verdict {
    let put = match answer {
        Verdict::Done { put } if !put.is_empty() => put,
        other => return other,
    };
    let origin = Origin { trigger: trigger.record.id.clone(), event: event() };
    let new = |put: PutCell| NewCell {
        key: CellKey {
            row_key: put.row_key.unwrap_or_else(|| cell.key.row_key.clone()),
            column: put.column,
            ref_key: put.ref_key.unwrap_or(cell.added_id.0),
        },
        body: put.body,
        origin: Some(origin.clone()),
    };
    let cells: Vec<NewCell> = put.into_iter().map(new).collect();
    let keys: Vec<CellKey> = cells.iter().map(|cell| cell.key.clone()).collect();
    for (key, answer) in keys.into_iter().zip(trigger.cells.put(cells).await) {
        let error = match answer {
            Ok(_) => continue,
            // The same event wrote it in an earlier attempt whose verdict was lost: that answer stands.
            Err(PutError::Conflict { existing }) if existing.origin.as_ref() == Some(&origin) => continue,
            Err(PutError::Conflict { existing }) => {
                let by = existing.origin.map_or_else(
                    || "a writer outside".to_owned(),
                    |origin| format!("trigger {} for event {}", origin.trigger, origin.event),
                );
                format!(
                    "conflict: the cell {}/{}/{} of this answer (trigger {} {}, event {}) exists with another body, written by {by}",
                    key.row_key, key.column, key.ref_key, trigger.name, origin.trigger, origin.event
                )
            }
            Err(PutError::Refused(refusal)) => {
                format!("the cell {}/{}/{} of the answer is refused: {refusal}", key.row_key, key.column, key.ref_key)
            }
            Err(PutError::Store(error)) => format!("the answer could not be appended: {}", crate::cell::chain(&*error)),
        };
        return Verdict::failed(error);
    }
    Verdict::done()
}
