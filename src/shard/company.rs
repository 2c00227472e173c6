//! What the shards of a process know of each other's calls, so that one of them can call a cell with nothing beside it.

use crate::metrics;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// All of them.
#[derive(Clone)]
pub struct Company(Arc<Board>);

struct Board {
    state: Mutex<State>,
    /// A call ended.
    ended: Notify,
    /// For the shards under guard: one of them at a time.
    turn: Arc<Semaphore>,
}

#[derive(Default)]
struct State {
    /// Under way in shards that are not under guard.
    calls: usize,
    /// None is to begin.
    hushed: bool,
    /// Shards under guard.
    guarded: usize,
}

impl Default for Company {
    fn default() -> Self {
        Self(Arc::new(Board { state: Mutex::default(), ended: Notify::new(), turn: Arc::new(Semaphore::new(1)) }))
    }
}

/// A call of a shard that is not under guard, until it is dropped.
pub(super) struct Joined(Company);

/// The turn of a shard under guard, until it is dropped.
pub(super) struct Turn {
    company: Company,
    hushes: bool,
    _permit: OwnedSemaphorePermit,
}

/// A shard under guard, until it is dropped.
pub(super) struct Guarded(Company);

impl Company {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call begins; `None` while none may.
    pub(super) fn join(&self) -> Option<Joined> {
        let mut state = self.state();
        (!state.hushed).then(|| {
            state.calls += 1;
            Joined(self.clone())
        })
    }

    /// Whether no call may begin.
    pub(super) fn is_hushed(&self) -> bool {
        self.state().hushed
    }

    /// Waits for the turn of a shard under guard, in the order in which they ask.
    pub(super) async fn turn(self) -> Turn {
        let permit = self.0.turn.clone().acquire_owned().await.expect("turns are never closed");
        Turn { company: self, hushes: false, _permit: permit }
    }

    /// One more shard is under guard. The first one is told loudly, for all.
    pub(super) fn guard(&self) -> Guarded {
        let mut state = self.state();
        state.guarded += 1;
        metrics::shards_guarded(state.guarded);
        if state.guarded == 1 {
            tracing::error!(
                "owners of shards died again and again: cells that may be the cause are called one at a time, and one that kills \
                 another worker is put aside"
            );
        }
        Guarded(self.clone())
    }
}

impl Turn {
    /// Lets no other call begin, and waits until those under way have ended.
    pub(super) async fn hush(&mut self) {
        self.hushes = true;
        self.company.state().hushed = true;
        loop {
            let mut ended = std::pin::pin!(self.company.0.ended.notified());
            ended.as_mut().enable();
            if self.company.state().calls == 0 {
                return;
            }
            ended.await;
        }
    }
}

impl Turn {
    /// Lets the others call again.
    pub(super) fn unhush(&mut self) {
        if std::mem::take(&mut self.hushes) {
            self.company.state().hushed = false;
        }
    }

    /// Whether no other call is under way or can begin.
    pub(super) fn is_hushed(&self) -> bool {
        self.hushes
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.unhush();
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.0.state().calls -= 1;
        self.0.0.ended.notify_waiters();
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.guarded -= 1;
        metrics::shards_guarded(state.guarded);
        if state.guarded == 0 {
            tracing::info!("cells are called as ever again: those that might have killed workers are through");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test]
    async fn whoever_hushes_is_alone_until_he_leaves() {
        let company = Company::default();
        let call = company.join().unwrap();
        let mut turn = company.clone().turn().await;
        let mut next = Box::pin(company.clone().turn());
        assert!((&mut next).now_or_never().is_none(), "one at a time");
        assert!(company.join().is_some(), "others go on beside it");
        {
            let mut hush = Box::pin(turn.hush());
            assert!((&mut hush).now_or_never().is_none(), "a call is under way");
            assert!(company.join().is_none(), "and none begins");
            drop(call);
            assert!((&mut hush).now_or_never().is_some());
        }
        assert!(company.join().is_none());
        drop(turn);
        assert!(company.join().is_some());
        assert!(next.now_or_never().is_some());
    }

    #[tokio::test]
    async fn whoever_gives_up_waiting_for_silence_ends_it() {
        let company = Company::default();
        let _call = company.join().unwrap();
        let mut turn = company.clone().turn().await;
        let mut hush = Box::pin(async move { turn.hush().await });
        assert!((&mut hush).now_or_never().is_none());
        drop(hush);
        assert!(company.join().is_some());
    }
}
