//! A rate limit: a bucket of tokens that fills evenly and holds a second's worth.
//!
//! Own code and not a crate, because it has to run on tokio's clock: a simulation stops that one.

use crate::cell::clock;
use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Shared by all shards of a trigger in this worker.
#[derive(Debug)]
pub struct Rate {
    per_second: f64,
    bucket: Mutex<(Instant, f64)>,
}

impl Rate {
    /// A full bucket. `per_second` above 0.
    #[must_use]
    pub fn new(per_second: f64) -> Self {
        Self { per_second, bucket: Mutex::new((clock::now(), per_second.max(1.0))) }
    }

    /// Takes `n` tokens, or tells when one will be there. A bucket with at least one gives all `n` on credit, so that a batch
    /// larger than a second's worth can start at all.
    ///
    /// # Errors
    /// The time to ask again.
    pub fn take(&self, now: Instant, n: usize) -> Result<(), Instant> {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, tokens) = *bucket;
        let filled = tokens + now.duration_since(at).as_secs_f64() * self.per_second;
        let tokens = filled.min(self.per_second.max(1.0));
        if tokens < 1.0 {
            *bucket = (now, tokens);
            let wait = (1.0 - tokens) / self.per_second;
            return Err(now + Duration::from_secs_f64(wait.min(86_400.0)) + Duration::from_millis(1));
        }
        #[expect(clippy::cast_precision_loss, reason = "a batch is small")]
        let n = n as f64;
        *bucket = (now, tokens - n);
        Ok(())
    }

    /// Gives back what was taken for nothing.
    pub fn give_back(&self, n: usize) {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        #[expect(clippy::cast_precision_loss, reason = "a batch is small")]
        let n = n as f64;
        bucket.1 += n;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_kept_over_time() {
        let rate = Rate::new(50.0);
        let start = clock::now();
        let mut taken = 0;
        while clock::since(start) < Duration::from_secs(10) {
            match rate.take(clock::now(), 1) {
                Ok(()) => taken += 1,
                Err(at) => clock::sleep_until(at).await,
            }
        }
        assert!((500..=560).contains(&taken), "50 a second and the first bucket: {taken}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_larger_than_the_bucket_is_on_credit() {
        let rate = Rate::new(0.5);
        let now = clock::now();
        assert_eq!(rate.take(now, 10), Ok(()));
        let again = rate.take(now, 1).unwrap_err() - now;
        assert!(again > Duration::from_secs(19) && again < Duration::from_secs(21), "{again:?}");
    }
}
