//! A value that many tasks follow.
//!
//! As tokio's `watch`, but those who wait are woken in the order in which they began to, and not in one drawn by chance: a
//! simulation has to come out the same twice.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// The value, for whoever changes it.
#[derive(Default)]
pub struct News<T>(Arc<Board<T>>);

impl<T> Clone for News<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// The value, for one who follows it.
pub struct Follower<T> {
    board: Arc<Board<T>>,
    seen: u64,
}

#[derive(Default)]
struct Board<T> {
    /// With the number of its changes.
    value: Mutex<(u64, T)>,
    changed: Notify,
}

impl<T> Board<T> {
    fn value(&self) -> MutexGuard<'_, (u64, T)> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Clone> News<T> {
    /// Begins with a value.
    #[must_use]
    pub fn new(value: T) -> Self {
        Self(Arc::new(Board { value: Mutex::new((0, value)), changed: Notify::new() }))
    }

    /// The value.
    #[must_use]
    pub fn get(&self) -> T {
        self.0.value().1.clone()
    }

    /// Changes the value, if `change` says that it did.
    pub fn change(&self, change: impl FnOnce(&mut T) -> bool) {
        let mut value = self.0.value();
        if change(&mut value.1) {
            value.0 += 1;
            drop(value);
            self.0.changed.notify_waiters();
        }
    }

    /// Somebody who has not seen it yet.
    #[must_use]
    pub fn follow(&self) -> Follower<T> {
        let seen = self.0.value().0;
        Follower { board: self.0.clone(), seen }
    }
}

impl<T: Clone> Follower<T> {
    /// The value.
    #[must_use]
    pub fn get(&self) -> T {
        self.board.value().1.clone()
    }
}

impl<T> Follower<T> {
    /// Waits until there is a value that was not seen; it is now.
    pub async fn changed(&mut self) {
        loop {
            let mut notified = std::pin::pin!(self.board.changed.notified());
            notified.as_mut().enable();
            let number = self.board.value().0;
            if number != self.seen {
                self.seen = number;
                return;
            }
            notified.await;
        }
    }
}

impl<T> Clone for Follower<T> {
    fn clone(&self) -> Self {
        Self { board: self.board.clone(), seen: self.seen }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test]
    async fn a_follower_sees_every_change_once() {
        let news = News::new(1);
        let mut follower = news.follow();
        let mut other = follower.clone();
        assert!(follower.changed().now_or_never().is_none());
        news.change(|value| {
            *value = 2;
            true
        });
        assert!(follower.changed().now_or_never().is_some(), "also one that came before it waited");
        assert_eq!(follower.get(), 2);
        news.change(|_| false);
        assert!(follower.changed().now_or_never().is_none());
        assert!(other.changed().now_or_never().is_some(), "each for himself");
    }
}
