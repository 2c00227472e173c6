//! Whether the loops of a worker turn, and what follows when one does not.
//!
//! A shard task never waits within a turn of its loop, so one that does not turn has its thread blocked, by a handler in this
//! process as a rule. It is given up and aborted: if the thread comes free, the task ends and its shard alone is claimed anew. If
//! it does not end either, nothing but the end of the process frees the shard, and whoever watches is told ([`Stuck`]).
//!
//! Counted in rounds of the worker's own loop and not by a clock: when a process was frozen as a whole, or the machine
//! suspended, every loop is late and none is stuck.

use crate::{
    cell::{Epoch, ShardRef, planted},
    lease::Turns,
    metrics,
    shard::{Follower, News},
};
use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    task::{AbortHandle, Id},
    time::{Instant, Interval, MissedTickBehavior, interval_at},
};

/// Between two rounds. Each wakes every shard task, which for 4096 idle ones is lost in the noise of what they cost anyway.
const ROUND: Duration = Duration::from_secs(5);
/// A task that did not turn for so many rounds after it was woken is aborted: after 10 s, as long as a session of the default
/// length may be silent. A turn takes far less than a second, so that nothing that works comes near it.
const ABORTED_AFTER: u32 = 2;
/// And after so many it should have ended: 10 s more.
const STUCK_AFTER: u32 = 4;
/// The coordinator does wait within a turn, for requests that all have a timeout: by the dozen while the store is out of
/// reach, which restarting would not help. So many rounds, ten minutes, are beyond that.
const COORDINATOR_STUCK_AFTER: u32 = 120;
/// The worker's own loop makes the rounds. It never waits, and nothing but a blocked thread delays it by so many. By the clock,
/// since this is for who asks from another thread; who asks from the same one is not asked while it is blocked.
const LATE_AFTER: u32 = 3;

/// A loop that should turn and does not, with no cure but a new process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stuck {
    /// The task of this shard was aborted and does not end.
    Shard(ShardRef),
    /// The coordination.
    Coordinator,
    /// The loop that owns all the others.
    Worker,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shard(shard) => write!(f, "the task of shard {shard} blocks its thread and cannot be aborted"),
            Self::Coordinator => write!(f, "the coordinator's loop does not turn"),
            Self::Worker => write!(f, "the worker's loop does not turn"),
        }
    }
}

/// What is stuck, for whoever watches. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Turning(Arc<Mutex<Told>>);

#[derive(Default)]
struct Told {
    /// When the worker's loop is late; `None` while it does not run.
    late: Option<Instant>,
    stuck: Vec<Stuck>,
}

impl Turning {
    /// As of now.
    pub(super) fn stuck(&self) -> Vec<Stuck> {
        let told = self.told();
        match told.late {
            Some(late) if late <= Instant::now() => vec![Stuck::Worker],
            Some(_) | None => told.stuck.clone(),
        }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A loop that is watched.
struct Loop {
    turns: Turns,
    seen: u64,
    still: u32,
}

impl Loop {
    fn new(turns: Turns) -> Self {
        Self { seen: turns.count(), turns, still: 0 }
    }

    /// Once a round: for how many rounds it has not turned.
    fn look(&mut self) -> u32 {
        let count = self.turns.count();
        self.still = if count == self.seen { self.still.saturating_add(1) } else { 0 };
        self.seen = count;
        self.still
    }
}

/// A shard task that is watched.
pub(super) struct Task {
    pub(super) shard: ShardRef,
    pub(super) epoch: Epoch,
    handle: AbortHandle,
    its: Loop,
}

impl Task {
    pub(super) fn new(shard: ShardRef, epoch: Epoch, handle: AbortHandle, turns: Turns) -> Self {
        Self { shard, epoch, handle, its: Loop::new(turns) }
    }

    /// Whether it was aborted because it did not turn.
    pub(super) fn was_aborted(&self) -> bool {
        self.its.still >= ABORTED_AFTER
    }
}

/// Watches over the loops of a worker.
pub(super) struct Minder {
    rounds: News<u64>,
    ticks: Interval,
    coordinator: Loop,
    tasks: HashMap<Id, Task>,
    turning: Turning,
}

impl Minder {
    pub(super) fn new(coordinator: Turns, turning: Turning) -> Self {
        let (rounds, round) = (News::new(0), round());
        let mut ticks = interval_at(Instant::now() + round, round);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let minder = Self { rounds, ticks, coordinator: Loop::new(coordinator), tasks: HashMap::new(), turning };
        minder.tell(Vec::new());
        minder
    }

    /// For a shard task: woken by every round.
    pub(super) fn rounds(&self) -> Follower<u64> {
        self.rounds.follow()
    }

    pub(super) fn started(&mut self, id: Id, task: Task) {
        self.tasks.insert(id, task);
    }

    pub(super) fn ended(&mut self, id: Id) -> Option<Task> {
        self.tasks.remove(&id)
    }

    /// Waits for the next round. Loses nothing when dropped.
    pub(super) async fn next(&mut self) {
        self.ticks.tick().await;
    }

    /// Looks at every loop, and wakes those of the shards for the next look.
    pub(super) fn look(&mut self) {
        let mut stuck = Vec::new();
        if self.coordinator.look() >= COORDINATOR_STUCK_AFTER {
            stuck.push(Stuck::Coordinator);
        }
        for task in self.tasks.values_mut() {
            let (shard, still) = (&task.shard, task.its.look());
            if still == ABORTED_AFTER {
                tracing::error!(%shard, epoch = task.epoch.0,
                    "the task of this shard does not turn: a handler blocks its thread. It is aborted, the shard claimed anew");
                metrics::shard_task_aborted();
                task.its.turns.give_up();
                task.handle.abort();
            }
            if still == STUCK_AFTER {
                tracing::error!(%shard, epoch = task.epoch.0,
                    "the aborted task of this shard does not end: the process has to be started anew");
            }
            if still >= STUCK_AFTER {
                stuck.push(Stuck::Shard(shard.clone()));
            }
        }
        self.tell(stuck);
        self.rounds.change(|round| {
            *round += 1;
            true
        });
    }

    fn tell(&self, stuck: Vec<Stuck>) {
        let late = Instant::now() + self.ticks.period() * LATE_AFTER;
        *self.turning.told() = Told { late: Some(late), stuck };
    }
}

impl Drop for Minder {
    fn drop(&mut self) {
        *self.turning.told() = Told::default();
    }
}

/// How long a round is here.
fn round() -> Duration {
    if planted::is("rounds of a second") {
        return Duration::from_secs(1);
    }
    ROUND
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::{Name, ShardId};
    use futures_util::FutureExt;
    use std::future::pending;
    use tokio::task::JoinSet;

    fn minder(coordinator: &Turns) -> Minder {
        Minder::new(coordinator.clone(), Turning::default())
    }

    async fn rounds(minder: &mut Minder, rounds: u32) {
        for _ in 0..rounds {
            minder.next().await;
            minder.look();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_does_not_turn_is_aborted_and_what_does_not_end_is_told() {
        let coordinator = Turns::default();
        let mut minder = minder(&coordinator);
        let turning = minder.turning.clone();
        let mut woken = minder.rounds();
        let mut tasks: JoinSet<()> = JoinSet::new();
        let shard = |n| ShardRef { source: Name::new("trips").unwrap(), shard: ShardId(n) };
        let (good, bad) = (Turns::default(), Turns::default());
        for (n, turns) in [(1, &good), (2, &bad)] {
            let handle = tasks.spawn(pending());
            minder.started(handle.id(), Task::new(shard(n), Epoch(7), handle, turns.clone()));
        }
        let mut good_turns = async |minder: &mut Minder, n| {
            for _ in 0..n {
                coordinator.turn();
                good.turn();
                rounds(minder, 1).await;
                assert!(woken.changed().now_or_never().is_some(), "each round wakes the tasks");
            }
        };
        // The first look sees the turn that all began with.
        bad.turn();
        good_turns(&mut minder, 1 + ABORTED_AFTER - 1).await;
        assert!(!bad.is_given_up());
        good_turns(&mut minder, 1).await;
        assert!(bad.is_given_up() && !good.is_given_up());
        let ended = tasks.join_next_with_id().await.unwrap().unwrap_err();
        assert!(ended.is_cancelled());
        good_turns(&mut minder, STUCK_AFTER - ABORTED_AFTER - 1).await;
        assert_eq!(turning.stuck(), [], "there is still time to end");
        good_turns(&mut minder, 1).await;
        assert_eq!(turning.stuck(), [Stuck::Shard(shard(2))]);
        let task = minder.ended(ended.id()).unwrap();
        assert_eq!((task.shard.shard, task.was_aborted()), (ShardId(2), true));
        good_turns(&mut minder, 1).await;
        assert_eq!(turning.stuck(), [], "it ended after all");
    }

    #[tokio::test(start_paused = true)]
    async fn a_coordinator_may_wait_for_the_store_but_not_for_ever() {
        let coordinator = Turns::default();
        let mut minder = minder(&coordinator);
        let turning = minder.turning.clone();
        rounds(&mut minder, COORDINATOR_STUCK_AFTER - 1).await;
        assert_eq!(turning.stuck(), []);
        rounds(&mut minder, 1).await;
        assert_eq!(turning.stuck(), [Stuck::Coordinator]);
        coordinator.turn();
        rounds(&mut minder, 1).await;
        assert_eq!(turning.stuck(), []);
        // Nobody makes the rounds any more.
        tokio::time::sleep(ROUND * (LATE_AFTER - 1)).await;
        assert_eq!(turning.stuck(), []);
        tokio::time::sleep(ROUND).await;
        assert_eq!(turning.stuck(), [Stuck::Worker]);
        // A worker that has ended by itself is not stuck.
        drop(minder);
        assert_eq!(turning.stuck(), []);
    }

    /// What a frozen process, or a suspended machine, looks like from within.
    #[tokio::test(start_paused = true)]
    async fn a_process_that_was_frozen_aborts_nothing_when_it_wakes_up() {
        let coordinator = Turns::default();
        let mut minder = minder(&coordinator);
        let mut tasks: JoinSet<()> = JoinSet::new();
        let turns = Turns::default();
        let handle = tasks.spawn(pending());
        let shard = ShardRef { source: Name::new("trips").unwrap(), shard: ShardId(1) };
        minder.started(handle.id(), Task::new(shard, Epoch(1), handle, turns.clone()));
        tokio::time::advance(ROUND * 1000).await;
        rounds(&mut minder, 1).await;
        assert!(!turns.is_given_up());
    }
}
