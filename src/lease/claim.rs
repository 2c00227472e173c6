//! The requests of a coordinator about one lease: its claim, and its release when nobody works on it.

use super::{Fence, nudge::back_off};
use crate::cell::{Answer, Datastore, Epoch, Lease, LeaseWrite, Ledger, SessionId, ShardRef, chain, clock};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// How a claim ended.
pub(super) enum Claimed {
    /// It is ours, with its true checkpoints.
    Held(Lease),
    /// It is not as it was seen.
    Taken(Option<Lease>),
    /// Nobody knows.
    Unknown,
}

/// Sends one claim until it is accepted or refused. The condition makes a repeat harmless; a refusal that shows this
/// session at the next epoch means that an earlier copy was accepted.
pub(super) async fn claim(
    ledger: &Arc<dyn Ledger>,
    fence: &Fence,
    source: &Datastore,
    shard: &ShardRef,
    me: &SessionId,
    seen: Option<&Lease>,
) -> Claimed {
    let next = Epoch(seen.map_or(0, |lease| lease.epoch.0) + 1);
    let mut failures = 0;
    let mut sent = false;
    while fence.is_safe() {
        match ledger.claim(shard, &source.incarnation, me, seen, clock::wall()).await {
            Ok(Answer::Accepted(lease)) => return Claimed::Held(lease),
            Ok(Answer::Refused(Some(lease))) if sent && lease.owner.as_ref() == Some(me) && lease.epoch == next => {
                return Claimed::Held(lease);
            }
            Ok(Answer::Refused(lease)) => return Claimed::Taken(lease),
            Err(error) => {
                sent |= !error.kind.not_applied();
                failures += 1;
                if failures > 8 {
                    tracing::warn!(%shard, error = %chain(&error), "cannot claim");
                    break;
                }
                clock::sleep(back_off(Duration::from_millis(20), failures)).await;
            }
        }
    }
    Claimed::Unknown
}

/// Why a lease could be claimed.
pub(super) fn reason(seen: Option<&Lease>, me: &SessionId) -> &'static str {
    match seen.map(|lease| lease.owner.as_ref()) {
        None => "new",
        Some(None) => "handed over",
        Some(Some(owner)) if owner == me => "claimed anew",
        Some(Some(_)) => "owner dead",
    }
}

/// What a coordinator remembers of a lease: a claim brings the true checkpoints.
pub(super) fn without_checkpoints(lease: Lease) -> Lease {
    Lease { checkpoints: BTreeMap::new(), ..lease }
}

/// The write that lets go of a lease that is not held.
pub(super) fn release(lease: &Lease, me: &SessionId) -> LeaseWrite {
    LeaseWrite {
        shard: lease.shard.clone(),
        owner: me.clone(),
        epoch: lease.epoch,
        seq: lease.seq + 1,
        checkpoints: BTreeMap::new(),
        lanes: Vec::new(),
        alone: None,
        release: true,
    }
}
