//! One write of a shard's lease, until it is accepted or refused.

use crate::{
    cell::{Answer, ErrorKind, Lease, LeaseWrite, Ledger, chain},
    lease::Fence,
};
use std::{sync::Arc, time::Duration};

/// How a write ended.
#[derive(Debug)]
pub(super) enum Wrote {
    /// It is durable.
    Accepted(Box<Lease>),
    /// The lease is still ours: an operator changed a parked cell that the write would have changed.
    LaneChanged,
    /// The lease is not ours any more.
    Lost,
}

/// While the fence is closed nothing is sent; this is how often it is looked at.
const FENCED: Duration = Duration::from_millis(100);

/// Sends a write until somebody says yes or no. An answer that is lost is settled by sending the same write again: its `seq`
/// makes the second copy refused, and the refusal shows that the first was accepted. No other write of this lease is made
/// before.
pub(super) async fn write(ledger: Arc<dyn Ledger>, fence: Fence, write: LeaseWrite) -> Wrote {
    let mut failures = 0_u32;
    let mut unanswered = false;
    loop {
        if !fence.is_safe() {
            tokio::time::sleep(FENCED).await;
            continue;
        }
        let lease = match ledger.write(&write).await {
            Ok(Answer::Accepted(lease)) => return Wrote::Accepted(Box::new(lease)),
            Ok(Answer::Refused(None)) => return Wrote::Lost,
            Ok(Answer::Refused(Some(lease))) => lease,
            Err(error) => {
                unanswered |= !error.kind.not_applied();
                failures += 1;
                if failures == 3 || error.kind == ErrorKind::Invalid && failures == 1 {
                    tracing::warn!(shard = %write.shard, error = %chain(&error), "cannot write the checkpoint; trying again");
                }
                let bound = Duration::from_millis(20) * (1 << failures.min(8));
                tokio::time::sleep(bound.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                continue;
            }
        };
        let same_epoch = lease.epoch == write.epoch;
        if unanswered && same_epoch && lease.seq == write.seq {
            return Wrote::Accepted(Box::new(lease));
        }
        let ours = same_epoch && lease.owner.as_ref() == Some(&write.owner);
        return if ours && lease.seq < write.seq { Wrote::LaneChanged } else { Wrote::Lost };
    }
}
