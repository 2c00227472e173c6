//! One write of a shard's lease, until it is accepted or refused.

use crate::{
    cell::{LeaseWrite, Ledger, Written, chain, clock},
    lease::Fence,
};
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};

/// How a write ended.
#[derive(Debug)]
pub(super) enum Wrote {
    /// It is durable.
    Accepted,
    /// The lease is still ours: an operator changed a parked cell that the write would have changed.
    LaneChanged,
    /// The lease is not ours any more.
    Lost,
}

/// While the fence is closed nothing is sent; this is how often it is looked at.
const FENCED: Duration = Duration::from_millis(100);
/// Failures in a row before it is told.
const TOLD_FROM: u32 = 3;
/// Told again after so long.
const TOLD_AGAIN: Duration = Duration::from_mins(1);

/// Why the checkpoints of a shard cannot be written, if so.
pub(super) type Trouble = watch::Sender<Option<String>>;

/// Sends a write until somebody says yes or no. An answer that is lost is settled by sending the same write again: its `seq`
/// makes the second copy refused, and the refusal shows that the first was accepted. No other write of this lease is made
/// before, and no other write ever has its `seq`.
pub(super) async fn write(ledger: Arc<dyn Ledger>, fence: Fence, write: &LeaseWrite, trouble: &Trouble) -> Wrote {
    let mut failures = 0_u32;
    let mut told: Option<Instant> = None;
    let answer = loop {
        if !fence.is_safe() {
            clock::sleep(FENCED).await;
            continue;
        }
        match ledger.write(write).await {
            Ok(answer) => break answer,
            Err(error) => {
                failures += 1;
                if failures >= TOLD_FROM && told.is_none_or(|told| clock::since(told) >= TOLD_AGAIN) {
                    let error = chain(&error);
                    tracing::warn!(shard = %write.shard, error, failures, "cannot write the checkpoint; trying again");
                    trouble.send_replace(Some(format!("cannot write the checkpoint: {error}")));
                    told = Some(clock::now());
                }
                let bound = Duration::from_millis(20) * (1 << failures.min(8));
                clock::sleep(bound.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            }
        }
    };
    if told.is_some() {
        tracing::info!(shard = %write.shard, "the checkpoint can be written again");
        trouble.send_replace(None);
    }
    let lease = match answer {
        Written::Accepted => return Wrote::Accepted,
        Written::Refused(None) => return Wrote::Lost,
        Written::Refused(Some(lease)) => lease,
    };
    let same_epoch = lease.epoch == write.epoch;
    if same_epoch && lease.seq == write.seq {
        // No other write of this epoch has this number.
        return Wrote::Accepted;
    }
    let ours = same_epoch && lease.owner.as_ref() == Some(&write.owner);
    if !ours || lease.seq > write.seq {
        return Wrote::Lost;
    }
    let falls = write
        .checkpoints
        .iter()
        .any(|(id, checkpoint)| lease.checkpoints.get(id).is_some_and(|stored| stored.low > checkpoint.low));
    if falls {
        // What we believe of our own checkpoints is wrong. The shard is claimed anew, with the true ones.
        tracing::error!(shard = %write.shard, "a low-water would have gone back; the shard begins anew");
        return Wrote::Lost;
    }
    Wrote::LaneChanged
}
