//! The memory of a process for cells: a part for what is being read, and a share for the windows of each trigger.
//!
//! Nobody's memory can be held by somebody who stands still: a trigger that is paused or hangs fills its own share and no more,
//! and what was read and waits for a slow trigger is given back as soon as another shard wants to read.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, Weak,
    atomic::{AtomicUsize, Ordering::SeqCst},
};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, futures::Notified};

/// Bytes a permit stands for.
const UNIT: usize = 1024;

/// The memory of a process for cells.
#[derive(Clone, Debug)]
pub struct Budget {
    pages: Arc<Semaphore>,
    all_pages: u32,
    queue: Arc<Queue>,
    windows: usize,
    /// For parked cells that wait to be tried again: a quarter of all there is, beside it.
    lanes: usize,
    /// Bytes of each trigger's share, and of its part for parked cells.
    share: Arc<AtomicUsize>,
    lane_share: Arc<AtomicUsize>,
    /// What is used of each share that somebody still holds.
    used: Arc<Mutex<Vec<Weak<AtomicUsize>>>>,
}

/// Pays for what was read until all triggers have taken of it what they want.
#[derive(Debug, Default)]
pub struct Pages(Option<OwnedSemaphorePermit>);

impl Pages {
    /// Takes a part of it, or all when there is not so much.
    #[must_use]
    pub fn split(&mut self, bytes: usize) -> Self {
        let Some(permit) = &mut self.0 else { return Self(None) };
        if bytes.div_ceil(UNIT) < permit.num_permits() {
            return Self(permit.split(bytes.div_ceil(UNIT)));
        }
        Self(self.0.take())
    }
}

/// Those who wait for pages.
#[derive(Debug, Default)]
struct Queue {
    waiting: AtomicUsize,
    longer: Notify,
}

/// Counts somebody who waits for as long as he does.
struct Waits(Arc<Queue>);

impl Waits {
    fn new(queue: Arc<Queue>) -> Self {
        queue.waiting.fetch_add(1, SeqCst);
        queue.longer.notify_waiters();
        Self(queue)
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, SeqCst);
    }
}

impl Budget {
    /// So many bytes: a quarter for what is being read, the rest for the windows.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        let all_pages = u32::try_from(bytes / 4 / UNIT as u64).unwrap_or(u32::MAX >> 3).clamp(1, u32::MAX >> 3);
        let windows = usize::try_from(bytes - bytes / 4).unwrap_or(usize::MAX);
        Self {
            pages: Arc::new(Semaphore::new(all_pages as usize)),
            all_pages,
            queue: Arc::default(),
            windows,
            lanes: windows / 3,
            share: Arc::new(AtomicUsize::new(windows)),
            lane_share: Arc::new(AtomicUsize::new(windows / 3)),
            used: Arc::default(),
        }
    }

    /// The windows' part is shared among so many triggers from now on.
    pub fn share_among(&self, triggers: usize) {
        self.share.store(self.windows / triggers.max(1), SeqCst);
        self.lane_share.store(self.lanes / triggers.max(1), SeqCst);
    }

    /// A share, of which nothing is used.
    #[must_use]
    pub fn share(&self) -> Share {
        let used = Arc::new(AtomicUsize::new(0));
        let mut all = self.shares();
        all.retain(|used| used.strong_count() > 0);
        all.push(Arc::downgrade(&used));
        Share { limit: self.share.clone(), used, lane_limit: self.lane_share.clone(), lanes: Arc::default() }
    }

    fn shares(&self) -> MutexGuard<'_, Vec<Weak<AtomicUsize>>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is being read and what the windows hold, each with its limit, in bytes.
    #[must_use]
    pub fn levels(&self) -> [(usize, usize); 2] {
        let limit = self.all_pages as usize * UNIT;
        let reads = limit - self.pages.available_permits() * UNIT;
        let windows = self.shares().iter().filter_map(Weak::upgrade).map(|used| used.load(SeqCst)).sum();
        [(reads, limit), (windows, self.windows)]
    }

    /// More than all there is counts as all.
    fn permits(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).min(self.all_pages)
    }

    /// Takes bytes for a read, or `None` when they are not there.
    #[must_use]
    pub fn take(&self, bytes: usize) -> Option<Pages> {
        self.pages.clone().try_acquire_many_owned(self.permits(bytes)).ok().map(|permit| Pages(Some(permit)))
    }

    /// Waits for bytes for a read; who waits is served in turn.
    pub async fn wait(self, bytes: usize) -> Pages {
        let permits = self.permits(bytes);
        let _waits = Waits::new(self.queue);
        Pages(self.pages.acquire_many_owned(permits).await.ok())
    }

    /// Whether anybody waits for bytes for a read.
    #[must_use]
    pub fn somebody_waits(&self) -> bool {
        self.queue.waiting.load(SeqCst) > 0
    }

    /// Ends when one more waits, from now on: those who keep what they could read again should give it back.
    pub fn longer_queue(&self) -> Notified<'_> {
        self.queue.longer.notified()
    }
}

/// A trigger's part of the memory for windows, over all shards.
#[derive(Clone, Debug)]
pub struct Share {
    limit: Arc<AtomicUsize>,
    used: Arc<AtomicUsize>,
    lane_limit: Arc<AtomicUsize>,
    lanes: Arc<AtomicUsize>,
}

/// What the parked cells of one shard take of their trigger's part for such.
#[derive(Debug)]
pub(super) struct Charge {
    limit: Arc<AtomicUsize>,
    used: Arc<AtomicUsize>,
    bytes: usize,
}

impl Charge {
    /// Whether so many bytes more would fit.
    pub(super) fn fits(&self, bytes: usize) -> bool {
        self.used.load(SeqCst).saturating_add(bytes) <= self.limit.load(SeqCst)
    }

    /// Counts what was added and what went, whether it fits or not: what lies in a lane has to be known.
    pub(super) fn change(&mut self, added: usize, gone: usize) {
        self.used.fetch_add(added, SeqCst);
        self.used.fetch_sub(gone, SeqCst);
        self.bytes = self.bytes + added - gone;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes, SeqCst);
    }
}

/// Pays for cells in a window until the last of them is dropped.
#[derive(Debug)]
pub struct Ballast(Arc<AtomicUsize>, usize);

impl Drop for Ballast {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, SeqCst);
    }
}

impl Share {
    /// Takes bytes, or `None` when they are not there. A trigger that holds nothing at all gets them in any case, and so does,
    /// for a quarter more than the share, a shard that holds nothing of it.
    #[must_use]
    pub fn take(&self, bytes: usize, holds_nothing: bool) -> Option<Ballast> {
        let taken = self.used.fetch_update(SeqCst, SeqCst, |used| {
            self.fits_beside(used, bytes, holds_nothing).then(|| used.saturating_add(bytes))
        });
        taken.is_ok().then(|| Ballast(self.used.clone(), bytes))
    }

    /// For the parked cells of one shard.
    pub(super) fn charge(&self) -> Charge {
        Charge { limit: self.lane_limit.clone(), used: self.lanes.clone(), bytes: 0 }
    }

    /// Whether [`Share::take`] would give them now.
    #[must_use]
    pub fn fits(&self, bytes: usize, holds_nothing: bool) -> bool {
        self.fits_beside(self.used.load(SeqCst), bytes, holds_nothing)
    }

    fn fits_beside(&self, used: usize, bytes: usize, holds_nothing: bool) -> bool {
        let limit = self.limit.load(SeqCst);
        let limit = if holds_nothing { limit + limit / 4 } else { limit };
        used == 0 || used.saturating_add(bytes) <= limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test]
    async fn pages_are_given_in_turn_and_it_is_seen_that_somebody_waits() {
        let budget = Budget::new(400 * 1024);
        let mut all = budget.take(90 * 1024).unwrap();
        assert!(budget.take(20 * 1024).is_none());
        let longer_queue = budget.longer_queue();
        let mut later = Box::pin(budget.clone().wait(20 * 1024));
        assert!((&mut later).now_or_never().is_none());
        assert!(budget.somebody_waits() && longer_queue.now_or_never().is_some());
        assert!(budget.longer_queue().now_or_never().is_none(), "told once");
        drop(all.split(15 * 1024));
        assert!(later.now_or_never().is_some(), "a part was given back");
        assert!(!budget.somebody_waits());
        drop(all);
        assert!(budget.take(1 << 30).is_some(), "more than all counts as all");
    }

    #[test]
    fn a_part_is_at_most_the_whole() {
        let budget = Budget::new(40 * 1024);
        let mut whole = budget.take(4 * 1024).unwrap();
        let part = whole.split(1024);
        let rest = whole.split(1 << 20);
        drop(part);
        assert!(budget.take(8 * 1024).is_none() && budget.take(7 * 1024).is_some());
        drop(rest);
        assert!(budget.take(10 * 1024).is_some());
    }

    #[test]
    fn a_trigger_fills_its_own_share_and_no_more() {
        let budget = Budget::new(8000);
        budget.share_among(2);
        let (a, b) = (budget.share(), budget.share());
        let huge = a.take(1 << 20, false).unwrap();
        assert!(a.take(1, true).is_none(), "one thing may be larger than the share");
        assert_eq!(budget.levels(), [(0, 1024), (1 << 20, 6000)]);
        let held = b.take(3000, false).unwrap();
        assert!(b.take(1, false).is_none() && b.take(800, true).is_none());
        assert!(b.take(700, true).is_some(), "a shard that holds nothing of it");
        drop((huge, held));
        assert!(a.take(3000, false).is_some() && b.take(3000, false).is_some());
    }
}
