//! Where the cursors of a shard begin. Resolved by strong reads and written as checkpoints before any cell is dispatched, so
//! that a start by time or by `newest` means the same after a crash.

use super::{
    Shard, active_lane, read_lane,
    write::{Wrote, write},
};
use crate::{
    cell::{AddedId, Checkpoint, Lease, LeaseWrite, StoreError, TriggerId, chain, clock},
    dispatch::{Cursor, Now, Start, Trigger},
    tail::{self, TailError},
};
use std::{collections::BTreeMap, sync::Arc};
use tokio::time::Instant;

/// Why the cursors could not be made.
pub(super) enum NoStart {
    /// The lease is not ours any more.
    Lost,
    /// To be tried again, with the reason.
    Later(String),
}

impl From<StoreError> for NoStart {
    fn from(error: StoreError) -> Self {
        Self::Later(chain(&error))
    }
}

impl From<TailError> for NoStart {
    fn from(error: TailError) -> Self {
        Self::Later(chain(&error))
    }
}

/// One cursor for each trigger, with its active lane loaded. `lease` is as the last write left it.
pub(super) async fn cursors(
    home: &Shard,
    lease: &mut Lease,
    triggers: &[Arc<Trigger>],
) -> Result<Vec<Cursor>, NoStart> {
    let tip = tail::newest(&**home.cells.log(), home.shard.shard).await?;
    home.cells.heard(home.shard.shard, tip);
    let mut fresh: BTreeMap<TriggerId, Checkpoint> = BTreeMap::new();
    for trigger in triggers {
        let id = &trigger.record.id;
        match lease.checkpoints.get(id) {
            Some(checkpoint) if checkpoint.low > tip => {
                let error = TailError::AboveTip { shard: home.shard.shard, after: checkpoint.low, tip };
                return Err(NoStart::Later(format!("trigger {}: {error}", trigger.name)));
            }
            Some(_) => {}
            None => {
                let low = place(home, trigger).await?;
                fresh.insert(
                    id.clone(),
                    Checkpoint { low, generation: trigger.record.generation, ..Checkpoint::default() },
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
            release: false,
        };
        match write(home.shared.ledger.clone(), home.shared.fence.clone(), lease_write).await {
            Wrote::Accepted(after) => *lease = *after,
            Wrote::LaneChanged | Wrote::Lost => return Err(NoStart::Lost),
        }
    }
    let mut cursors = Vec::with_capacity(triggers.len());
    for trigger in triggers {
        let checkpoint = lease.checkpoints.get(&trigger.record.id).cloned().unwrap_or_default();
        let mut cursor = Cursor::new(trigger.clone(), home.shard.clone(), &checkpoint)
            .map_err(|error| NoStart::Later(format!("trigger {}: {error}", trigger.name)))?;
        let parked = read_lane(&*home.shared.ledger, &active_lane(&cursor, &home.shard)).await?;
        cursor.resume_lane(parked, Now { instant: Instant::now(), wall: clock::wall() });
        cursors.push(cursor);
    }
    Ok(cursors)
}

/// Where a trigger without a checkpoint begins in this shard.
async fn place(home: &Shard, trigger: &Trigger) -> Result<AddedId, NoStart> {
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
