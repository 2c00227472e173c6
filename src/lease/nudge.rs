//! Hints to other workers, and how long to wait before a request is made again.

use crate::cell::{Ledger, Nudge, Role, SessionState, StoreError};
use std::time::Duration;

/// Asks all workers to look at their leases and triggers again. A hint: when it is lost, they look by themselves, later.
///
/// # Errors
/// When the sessions cannot be read, or one cannot be reached.
pub async fn nudge_all(ledger: &dyn Ledger) -> Result<(), StoreError> {
    for session in ledger.sessions().await? {
        if session.state != SessionState::Dead && session.role == Role::Worker {
            ledger.nudge(&session.id, Nudge::Leases).await?;
        }
    }
    Ok(())
}

/// Doubling from `first`, at most 64 times it, with half of it jitter.
pub(super) fn back_off(first: Duration, failures: u32) -> Duration {
    (first * (1 << failures.min(6))).mul_f64(0.5 + fastrand::f64() / 2.0).min(Duration::from_secs(10))
}
