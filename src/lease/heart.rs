//! The heartbeat of one session: one write for all shards of a worker.
//!
//! Runs beside the coordinator's work, never behind it. It is a future of the coordinator and not a task of its own, so that
//! it cannot outlive the work that it vouches for.

use super::{Config, Fence};
use crate::cell::{Answer, Ledger, Session, SessionId, chain, clock, planted};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

/// What the last heartbeat told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pulse {
    /// The session's inbox counter.
    pub(super) inbox: u64,
    /// And that for parked cells.
    pub(super) parked_inbox: u64,
    /// Heartbeats that failed without an answer, in a row.
    pub(super) failures: u32,
    /// The session was declared dead.
    pub(super) dead: bool,
}

/// Beats until the session is found dead; then returns. Extends the fence with every beat that is accepted.
pub(super) async fn beat(
    ledger: Arc<dyn Ledger>,
    config: Config,
    id: SessionId,
    fence: Fence,
    pulse: watch::Sender<Pulse>,
) {
    let safe = config.session.saturating_sub(config.heartbeat);
    let mut next = clock::now();
    let mut lapsed = false;
    loop {
        clock::sleep_until(next).await;
        if pulse.borrow().failures > 0 && !fence.is_safe() && !std::mem::replace(&mut lapsed, true) {
            let begins = true;
            match fence.may_call() {
                false => {
                    tracing::error!(session = %id, begins, "no heartbeat was accepted for too long: nothing is called or written until one is")
                }
                true => {
                    tracing::error!(session = %id, begins, "no heartbeat was accepted for too long: nothing is written until one is, and calls go on as far as the windows have room")
                }
            }
        }
        let (sent, sent_at) = (clock::boot(), clock::now());
        let answer = clock::timeout(config.heartbeat, ledger.beat(&id, clock::wall())).await;
        next = match answer {
            Ok(Ok(Answer::Accepted(session))) => {
                let sent = if planted::is("safe time counts from the answer") { clock::boot() } else { sent };
                fence.extend(sent + safe);
                lapsed = false;
                pulse.send_if_modified(|pulse| {
                    let Session { inbox, parked_inbox, .. } = session;
                    let after = Pulse { inbox, parked_inbox, failures: 0, dead: false };
                    let changed = *pulse != after;
                    *pulse = after;
                    changed
                });
                sent_at + config.heartbeat
            }
            Ok(Ok(Answer::Refused(session))) => {
                match session {
                    Some(_) => tracing::warn!(session = %id, "this session was declared dead by another worker"),
                    None => {
                        tracing::error!(session = %id, "this session is gone from the control table: was it made anew?")
                    }
                }
                fence.close();
                pulse.send_modify(|pulse| pulse.dead = true);
                return;
            }
            Ok(Err(error)) => {
                let failures = pulse.borrow().failures + 1;
                if failures == 1 {
                    let error = chain(&error);
                    tracing::warn!(session = %id, margin = ?fence.margin(), error, "a heartbeat failed; trying again");
                }
                pulse.send_modify(|pulse| pulse.failures = failures);
                clock::now() + retry_after(&config)
            }
            Err(_) => {
                let failures = pulse.borrow().failures + 1;
                if failures == 1 {
                    let (margin, waited) = (fence.margin(), config.heartbeat);
                    tracing::warn!(session = %id, ?margin, ?waited, "a heartbeat is not answered; trying again");
                }
                pulse.send_modify(|pulse| pulse.failures = failures);
                clock::now() + retry_after(&config)
            }
        };
    }
}

/// A fraction of the interval, with jitter so that workers do not come back together.
fn retry_after(config: &Config) -> Duration {
    config.heartbeat.mul_f64(0.1 + 0.2 * fastrand::f64())
}
