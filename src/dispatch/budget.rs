//! The memory of all windows and rings of a process, as permits that travel with what they pay for.

use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes a permit stands for.
const UNIT: usize = 1024;
/// Reads on credit at a time, in a process whose budget is used up.
const CREDITS: usize = 4;

/// A budget of bytes.
///
/// Whoever waits is served in turn. A cursor that holds nothing may read one segment on credit: what is in memory may belong
/// to triggers that stand still, and they must not hold up the others.
#[derive(Clone, Debug)]
pub struct Budget {
    bytes: Arc<Semaphore>,
    all: u32,
    credits: Arc<Semaphore>,
}

/// Pays for cells in memory until the last of them is dropped.
#[derive(Debug, Default)]
pub struct Ballast(Option<OwnedSemaphorePermit>);

impl Ballast {
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

impl Budget {
    /// So many bytes.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        let permits = bytes.div_ceil(UNIT as u64).min(Semaphore::MAX_PERMITS as u64);
        let all = u32::try_from(permits).unwrap_or(u32::MAX).max(1);
        Self { bytes: Arc::new(Semaphore::new(all as usize)), all, credits: Arc::new(Semaphore::new(CREDITS)) }
    }

    /// More than all there is counts as all.
    fn permits(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).min(self.all)
    }

    /// Takes bytes, or `None` when they are not there.
    #[must_use]
    pub fn take(&self, bytes: usize) -> Option<Ballast> {
        self.bytes.clone().try_acquire_many_owned(self.permits(bytes)).ok().map(|permit| Ballast(Some(permit)))
    }

    /// Waits for bytes; or for a credit, if that is allowed and comes first.
    pub async fn wait(self, bytes: usize, credit: bool) -> Ballast {
        let permits = self.permits(bytes);
        let permit = tokio::select! {
            biased;
            permit = self.bytes.acquire_many_owned(permits) => permit,
            permit = self.credits.acquire_owned(), if credit => permit,
        };
        Ballast(permit.ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test]
    async fn what_is_used_up_can_be_had_on_credit_by_a_few() {
        let budget = Budget::new(100 * 1024);
        let mut all = budget.take(90 * 1024).unwrap();
        assert!(budget.take(20 * 1024).is_none());
        assert!(budget.clone().wait(20 * 1024, false).now_or_never().is_none());
        let credits: Vec<Ballast> =
            (0..CREDITS).filter_map(|_| budget.clone().wait(20 * 1024, true).now_or_never()).collect();
        assert_eq!(credits.len(), CREDITS);
        assert!(budget.clone().wait(20 * 1024, true).now_or_never().is_none(), "so many and no more");
        drop(all.split(15 * 1024));
        assert!(budget.take(20 * 1024).is_some(), "a part was given back");
        drop(all);
        assert!(budget.take(1 << 30).is_some(), "more than all counts as all");
    }

    #[test]
    fn a_part_is_at_most_the_whole() {
        let budget = Budget::new(10 * 1024);
        let mut whole = budget.take(4 * 1024).unwrap();
        let part = whole.split(1024);
        let rest = whole.split(1 << 20);
        drop(part);
        assert!(budget.take(8 * 1024).is_none() && budget.take(7 * 1024).is_some());
        drop(rest);
        assert!(budget.take(10 * 1024).is_some());
    }
}
