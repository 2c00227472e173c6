//! Whether a loop turns: it counts each time it goes round, and whoever watches over it looks whether the count grows.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

/// How often one loop has gone round. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Turns(Arc<State>);

#[derive(Debug, Default)]
struct State {
    count: AtomicU64,
    given_up: AtomicBool,
}

impl Turns {
    /// The loop has gone round once more.
    pub fn turn(&self) {
        self.0.count.fetch_add(1, Relaxed);
    }

    /// So far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.count.load(Relaxed)
    }

    /// Nobody waits for this loop any more. If it ever wakes up, it has to end without another step.
    pub fn give_up(&self) {
        self.0.given_up.store(true, Relaxed);
    }

    /// Whether it was given up.
    #[must_use]
    pub fn is_given_up(&self) -> bool {
        self.0.given_up.load(Relaxed)
    }
}
