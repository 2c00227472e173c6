//! One call from its items to their verdicts: fetch what is missing, call, append what the answer says.

use super::{Item, Trigger, trigger::Outage};
use crate::{
    cell::{
        Call, Cell, CellKey, Epoch, Event, Go, Latest, NewCell, Origin, PutCell, StoreError, Verdict, chain, clock,
        planted,
    },
    metrics,
    store::PutError,
};
use futures_util::{StreamExt, future::join_all, stream};
use std::{iter::repeat_with, pin::pin, sync::Arc, time::Duration};
use tokio::sync::OwnedSemaphorePermit;

/// A call that ended.
pub struct Attempted {
    /// The trigger's number among those of its shard.
    pub cursor: u64,
    /// Each item with its verdict.
    pub items: Vec<Ended>,
    /// Whether it was the breaker's probe.
    pub probe: bool,
}

/// What became of one cell in a call.
pub struct Ended {
    /// The cell.
    pub item: Item,
    /// What to do with it.
    pub verdict: Verdict,
    /// Whether the handler was called for it.
    pub called: bool,
}

/// What this process may do under its session. Clones ask the same.
#[derive(Clone, Default)]
pub struct May {
    /// Start a call.
    pub call: Go,
    /// Write what an answer brings.
    pub write: Go,
}

/// Cells of a batch that are prepared at a time.
const PARALLEL: usize = 16;
/// Bytes of included cells that one call brings; the cells of a batch that would bring more go into the next one.
const LATEST_MAX: usize = 4 << 20;
/// How often it is looked whether this process may write again.
const UNSAFE_LOOK: Duration = Duration::from_millis(100);

/// Runs one call. Gives exactly one verdict for each item. The permit is held to the end.
///
/// `may` is asked again and again: reading what is missing takes time, and so does the handler, and the process may have been
/// frozen meanwhile. No call starts and no answer is appended while it may not be; whoever finds that the session is over drops
/// this future.
pub async fn attempt(
    trigger: Arc<Trigger>,
    cursor: u64,
    epoch: Epoch,
    items: Vec<Item>,
    probe: bool,
    permit: OwnedSemaphorePermit,
    may: May,
) -> Attempted {
    let mut events = Vec::with_capacity(items.len());
    let mut called = Vec::with_capacity(items.len());
    let mut verdicts: Vec<Option<Verdict>> = Vec::with_capacity(items.len());
    {
        let prepared: Vec<_> = items.iter().map(|item| prepare(&trigger, epoch, item)).collect();
        let mut prepared = pin!(stream::iter(prepared).buffered(PARALLEL));
        let mut latest = 0;
        while latest <= LATEST_MAX
            && let Some(result) = prepared.next().await
        {
            match result {
                Ok(event) => {
                    latest += event.latest.iter().map(Latest::size).sum::<usize>();
                    called.push(verdicts.len());
                    events.push(event);
                    verdicts.push(None);
                }
                Err(verdict) => verdicts.push(Some(verdict)),
            }
        }
    }
    if !may.call.now() {
        events.clear();
        called.clear();
    }
    if !events.is_empty() {
        let cells: Vec<Cell> = events.iter().map(|event| event.cell.clone()).collect();
        let (started, began) = (trigger.calls.started(), clock::now());
        let answers =
            trigger.handler.clone().call(Call { events, timeout: trigger.config.timeout, go: may.call.clone() }).await;
        trigger.calls.took(clock::since(began));
        drop(started);
        while !may.call.now() {
            clock::sleep(UNSAFE_LOOK).await;
        }
        let answers = answers.into_iter().chain(repeat_with(|| Verdict::failed("the handler gave no verdict")));
        let appends = cells.into_iter().zip(answers).map(|(cell, answer)| append(&trigger, cell, answer, &may.write));
        for (i, verdict) in called.iter().zip(join_all(appends).await) {
            verdicts[*i] = Some(verdict);
        }
    }
    drop(permit);
    let mut called = called.into_iter().peekable();
    let verdicts = verdicts.into_iter().chain(repeat_with(|| None));
    let ended = items.into_iter().zip(verdicts).enumerate().map(|(i, (item, verdict))| Ended {
        item,
        verdict: verdict.unwrap_or(Verdict::Snooze { after: Duration::ZERO }),
        called: called.next_if_eq(&i).is_some(),
    });
    Attempted { cursor, items: ended.collect(), probe }
}

/// The event of an item: the cell itself for a parked one, and the latest cells of the included columns.
async fn prepare(trigger: &Trigger, epoch: Epoch, item: &Item) -> Result<Event, Verdict> {
    let log = trigger.cells.log();
    let cell = match (&item.cell, &item.key) {
        (Some(cell), _) => cell.clone(),
        (None, Some(key)) => match log.get(key).await {
            Ok(Some(stored)) if stored.cell.is_erased() => {
                metrics::erased_passed(trigger.name.as_str());
                return Err(Verdict::Drop);
            }
            Ok(Some(stored)) => stored.cell,
            Ok(None) => return Err(Verdict::DeadLetter { error: "the cell is no longer in the datastore".into() }),
            Err(error) => return Err(not_now(&trigger.reads, &error, "prepare a call")),
        },
        (None, None) => {
            return Err(Verdict::DeadLetter { error: "a damaged range of the log has no cells to call for".into() });
        }
    };
    let mut latest: Vec<Latest> = Vec::new();
    for column in &trigger.config.include {
        match log.latest(&cell.key.row_key, column).await {
            Ok(found) => {
                // One that was erased is as good as none.
                let found = found.filter(|stored| !stored.cell.is_erased());
                let cell = found.map(|stored| (stored.cell.key.ref_key, stored.cell.body));
                latest.push(Latest { column: column.as_str().into(), cell });
            }
            Err(error) => return Err(not_now(&trigger.reads, &error, "prepare a call")),
        }
    }
    if item.cell.is_none() || !trigger.config.include.is_empty() {
        trigger.reads.over();
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

/// The store's failure and not the handler's: no attempt.
fn not_now(outage: &Outage, error: &StoreError, what: &str) -> Verdict {
    tracing::warn!(error = %chain(error), "cannot {what}; trying again");
    Verdict::Snooze { after: outage.wait() }
}

/// Appends what a `done` brings; it counts only then.
async fn append(trigger: &Trigger, cell: Cell, answer: Verdict, may: &Go) -> Verdict {
    let put = match answer {
        Verdict::Done { put } if !put.is_empty() => put,
        other => return other,
    };
    while !may.now() {
        clock::sleep(UNSAFE_LOOK).await;
    }
    let origin = Origin { trigger: trigger.record.id.clone(), event: trigger.cells.datastore().event_id(&cell) };
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
            Err(PutError::Store(_)) if planted::is("an answer counts though it was not appended") => continue,
            // The same event wrote it in an earlier attempt whose verdict was lost: that answer stands.
            Err(PutError::Conflict { existing } | PutError::Erased { existing })
                if existing.origin.as_ref() == Some(&origin) =>
            {
                continue;
            }
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
            Err(PutError::Erased { .. }) => format!(
                "conflict: the cell {}/{}/{} of this answer (trigger {} {}, event {}) was there, written by somebody else, and \
                 was erased",
                key.row_key, key.column, key.ref_key, trigger.name, origin.trigger, origin.event
            ),
            Err(PutError::Refused(refusal)) => {
                format!("the cell {}/{}/{} of the answer is refused: {refusal}", key.row_key, key.column, key.ref_key)
            }
            // Not the handler's failure. The same call again brings the same cells, and those that are stored count.
            Err(PutError::Store(error)) if error.kind.may_pass() => {
                return not_now(&trigger.appends, &error, "append the answer");
            }
            Err(PutError::Store(error)) => format!("the answer could not be appended: {}", chain(&*error)),
        };
        return Verdict::failed(error);
    }
    trigger.appends.over();
    Verdict::done()
}
