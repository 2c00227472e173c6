//! Where the cursors of a shard begin. Resolved by strong reads and written as checkpoints before any cell is dispatched, so
//! that a start by time or by `newest` means the same after a crash.

use super::{
    Home, lane, read_graves, read_lane,
    write::{Trouble, Wrote, write},
};
use crate::{
    cell::{AddedId, Alone, Checkpoint, Epoch, LaneKind, Lease, LeaseWrite, StoreError, TriggerId, chain, clock},
    checkpoint::Window,
    dispatch::{Cursor, Now, Start, Trigger},
    tail::{self, TailError},
};
use std::{collections::BTreeMap, sync::Arc};

/// Why cursors could not be made.
pub(super) enum NoStart {
    /// The lease is not ours any more.
    Lost,
    /// The store did not answer as it should: to be tried again soon.
    Soon(String),
    /// To be tried again, but a person has to look.
    Later(String),
}

impl From<StoreError> for NoStart {
    fn from(error: StoreError) -> Self {
        TailError::from(error).into()
    }
}

impl From<TailError> for NoStart {
    fn from(error: TailError) -> Self {
        if error.may_pass() { Self::Soon(chain(&error)) } else { Self::Later(chain(&error)) }
    }
}

/// Cursors that begin, and what was written to that end.
pub(super) struct Started {
    /// Of the last write.
    pub(super) seq: u64,
    /// The checkpoints that were written.
    pub(super) fresh: BTreeMap<TriggerId, Checkpoint>,
    /// Triggers that are registered no more have no checkpoint here, and were given none.
    pub(super) left_out: bool,
    pub(super) cursors: Result<Vec<Cursor>, NoStart>,
}

/// One cursor for each trigger, with its active lane loaded. `culprit` is a cell to be put aside.
pub(super) async fn start(
    home: Arc<Home>,
    mut lease: Lease,
    mut triggers: Vec<Arc<Trigger>>,
    culprit: Option<Alone>,
    trouble: &Trouble,
) -> Started {
    let mut written = BTreeMap::new();
    let all = triggers.len();
    let cursors = match still_registered(&home, &lease, &mut triggers).await {
        Ok(()) => cursors(&home, &mut lease, &triggers, culprit.as_ref(), trouble, &mut written).await,
        Err(error) => Err(error.into()),
    };
    Started { seq: lease.seq, fresh: written, left_out: triggers.len() < all, cursors }
}

/// Keeps the triggers that have a checkpoint here or are registered. Whoever was frozen may not have heard that a trigger was
/// retired and its checkpoints are gone: it would begin anew, and call for the whole log. Before a shard had an owner there was
/// nothing to be gone.
async fn still_registered(home: &Home, lease: &Lease, triggers: &mut Vec<Arc<Trigger>>) -> Result<(), StoreError> {
    let is_fresh = |trigger: &Arc<Trigger>| !lease.checkpoints.contains_key(&trigger.record.id);
    if lease.epoch > Epoch(1) && triggers.iter().any(is_fresh) {
        let registered = home.shared.ledger.triggers().await?;
        triggers.retain(|trigger| !is_fresh(trigger) || registered.iter().any(|record| record.id == trigger.record.id));
    }
    Ok(())
}

async fn cursors(
    home: &Home,
    lease: &mut Lease,
    triggers: &[Arc<Trigger>],
    culprit: Option<&Alone>,
    trouble: &Trouble,
    written: &mut BTreeMap<TriggerId, Checkpoint>,
) -> Result<Vec<Cursor>, NoStart> {
    let tip = tail::newest(&**home.cells.log(), home.shard.shard).await?;
    home.cells.heard(home.shard.shard, tip);
    let mut fresh: BTreeMap<TriggerId, Checkpoint> = BTreeMap::new();
    for trigger in triggers {
        let id = &trigger.record.id;
        match lease.checkpoints.get(id) {
            Some(checkpoint) => {
                let later = |error: String| NoStart::Later(format!("trigger {}: {error}", trigger.name));
                let window =
                    Window::resume(checkpoint.low, &checkpoint.done).map_err(|error| later(error.to_string()))?;
                // What is finished beyond low-water counts too: new cells at these places would never be called for.
                let after = window.end();
                if after > tip {
                    return Err(later(TailError::AboveTip { shard: home.shard.shard, after, tip }.to_string()));
                }
            }
            None => {
                let low = place(home, trigger).await?;
                fresh.insert(
                    id.clone(),
                    Checkpoint {
                        low,
                        generation: trigger.record.generation,
                        outlived: lease.deaths,
                        ..Checkpoint::default()
                    },
                );
            }
        }
    }
    if !fresh.is_empty() {
        let lease_write = LeaseWrite {
            shard: home.shard.clone(),
            owner: home.me.clone(),
            epoch: lease.epoch,
            seq: lease.seq + 1,
            checkpoints: fresh,
            lanes: Vec::new(),
            alone: lease.alone.clone(),
            release: false,
        };
        match write(home.shared.ledger.clone(), home.fence.clone(), &lease_write, trouble).await {
            Wrote::Accepted => {
                lease.seq = lease_write.seq;
                lease.checkpoints.extend(lease_write.checkpoints.clone());
                *written = lease_write.checkpoints;
            }
            Wrote::LaneChanged | Wrote::Lost => return Err(NoStart::Lost),
        }
    }
    let mut cursors = Vec::with_capacity(triggers.len());
    for trigger in triggers {
        let checkpoint = lease.checkpoints.get(&trigger.record.id).cloned().unwrap_or_default();
        let mut cursor = Cursor::new(trigger.clone(), home.shard.clone(), &checkpoint)
            .map_err(|error| NoStart::Later(format!("trigger {}: {error}", trigger.name)))?;
        let (ledger, lane) = (&*home.shared.ledger, |kind| lane(&cursor, &home.shard, kind));
        let parked = read_lane(ledger, &lane(LaneKind::Active)).await?;
        let graves = read_graves(ledger, &lane(LaneKind::Dead)).await?;
        let now = Now { instant: clock::now(), wall: clock::wall() };
        cursor.resume_lane(parked, now);
        cursor.count_graves(graves);
        if let Some(culprit) = culprit.filter(|culprit| culprit.trigger == trigger.record.id) {
            cursor.quarantine(culprit.added_id, lease.deaths.saturating_sub(checkpoint.outlived), now);
        }
        cursor.on_trial(lease.deaths, tip, now);
        cursors.push(cursor);
    }
    Ok(cursors)
}

/// Where a trigger without a checkpoint begins in this shard.
async fn place(home: &Home, trigger: &Trigger) -> Result<AddedId, NoStart> {
    let (log, shard) = (&**home.cells.log(), home.shard.shard);
    if let Some(start) = &trigger.record.start {
        return Ok(start.get(shard.0 as usize).copied().unwrap_or_default());
    }
    Ok(match &trigger.config.start {
        Start::Oldest | Start::Newest => tail::oldest(log, shard).await?,
        Start::Time(time) => tail::at_time(log, shard, *time).await?,
        Start::Added(places) => match places.get(&shard) {
            Some(place) => (*place).min(tail::newest(log, shard).await?),
            None => tail::oldest(log, shard).await?,
        },
    })
}
