//! One held shard's life in one loop: tail, dispatch, checkpoint.
//!
//! Plain state and one `select!` over closed events (`work.rs`); no locks, and no task a cell: calls are futures of this loop. At
//! most one read of the log, and one write of the lease or one reading of the lanes, are under way at a time.

mod company;
mod news;
mod pause;
mod ring;
mod signals;
mod standing;
mod start;
mod work;
mod write;

use crate::{
    cell::{
        AddedId, Lane, LaneKind, Ledger, Millis, Name, Parked, SessionId, ShardRef, StoreError, TriggerId,
        TriggerRecord,
    },
    dispatch::{Budget, Cursor, GRAVES_MAX, Trigger},
    lease::{Ended, Fence, Gone, Grant, Turns},
    store::Cells,
};
pub use company::Company;
pub use news::{Follower, News};
use standing::Silence;
pub use standing::{Standing, Standings};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::sync::watch;
use work::Work;

/// Parked cells of a page.
const LANE_PAGE: usize = 500;

/// The triggers that this process works for, and their records as last read.
#[derive(Clone, Default)]
pub struct Triggers {
    /// At work.
    pub active: Arc<[Arc<Trigger>]>,
    /// Of the whole group.
    pub records: Arc<[TriggerRecord]>,
    /// Those that are registered no more.
    pub gone: Arc<BTreeMap<TriggerId, Gone>>,
}

/// Datastores whose tables are not those that the process opened, with what to do.
pub type Foreign = Arc<BTreeMap<Name, String>>;

/// What every shard task of a process shares.
#[derive(Clone)]
pub struct Shared {
    /// Leases and lanes.
    pub ledger: Arc<dyn Ledger>,
    /// Fencing from the inside.
    pub fence: Fence,
    /// Memory of all windows and rings.
    pub budget: Budget,
    /// How long a finished cell may wait for its checkpoint.
    pub interval: Duration,
    /// What is told.
    pub standings: Standings,
    /// What they know of each other's calls.
    pub company: Company,
    /// Datastores that must not be worked on.
    pub foreign: watch::Receiver<Foreign>,
}

/// All that a shard task is given.
pub struct Shard {
    /// Which one.
    pub shard: ShardRef,
    /// Its datastore.
    pub cells: Cells,
    /// The session that holds it.
    pub me: SessionId,
    /// The lease, and whether to hand it over.
    pub grant: watch::Receiver<Grant>,
    /// What to call.
    pub triggers: Follower<Triggers>,
    /// Counts the turns of its loop.
    pub turns: Turns,
    /// Changes now and then, so that an idle loop turns too.
    pub rounds: Follower<u64>,
    /// What all share.
    pub shared: Shared,
}

/// What does not change in the life of a shard task.
struct Home {
    shard: ShardRef,
    cells: Cells,
    me: SessionId,
    /// Of this session alone.
    fence: Fence,
    turns: Turns,
    shared: Shared,
}

impl Shard {
    /// Runs until the shard is handed over or lost.
    pub async fn run(self) -> Ended {
        let Self { shard, cells, me, grant, triggers, turns, rounds, shared } = self;
        let epoch = grant.borrow().lease.epoch;
        let _silence = Silence(shared.standings.clone(), shard.clone(), epoch);
        let fence = shared.fence.of(&me);
        let home = Arc::new(Home { shard, cells, me, fence, turns, shared });
        // In a box: what an async function takes by value lies in its future twice, and shards come by the thousand.
        Box::new(Work::new(home, grant, triggers, rounds)).run().await
    }
}

fn lane(cursor: &Cursor, shard: &ShardRef, kind: LaneKind) -> Lane {
    Lane { trigger: cursor.trigger().record.id.clone(), shard: shard.clone(), kind }
}

/// All of a lane.
async fn read_lane(ledger: &dyn Ledger, lane: &Lane) -> Result<Vec<Parked>, StoreError> {
    let mut all: Vec<Parked> = Vec::new();
    loop {
        let after = all.last().map_or(AddedId(0), |parked| parked.added_id);
        let page = ledger.parked(lane, after, LANE_PAGE).await?;
        let whole = page.len() < LANE_PAGE;
        all.extend(page);
        if whole {
            return Ok(all);
        }
    }
}

/// What lies in a dead lane, for those who watch: each place, and since when it was tried. Of a very full one not all.
async fn read_graves(ledger: &dyn Ledger, lane: &Lane) -> Result<BTreeMap<AddedId, Millis>, StoreError> {
    let mut graves = BTreeMap::new();
    loop {
        let after = graves.last_key_value().map_or(AddedId(0), |(id, _)| *id);
        let page = ledger.parked(lane, after, LANE_PAGE).await?;
        let whole = page.len() < LANE_PAGE;
        graves.extend(page.into_iter().map(|parked| (parked.added_id, parked.since)));
        if whole || graves.len() >= GRAVES_MAX {
            return Ok(graves);
        }
    }
}
