//! A pause of a whole trigger that its handler asked for.

use crate::{
    cell::{Answer, Ledger, Name, StoreError, TriggerId, TriggerState, chain, clock},
    lease::{Fence, nudge_all},
};
use std::{sync::Arc, time::Duration};

/// First wait after a request that failed; longest one.
const WAITS: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// Stores the pause and tells all workers. Goes on until it is stored, or somebody else paused or retired the trigger.
pub(super) async fn pause(ledger: Arc<dyn Ledger>, fence: Fence, name: Name, id: TriggerId, reason: String) {
    let mut wait = WAITS.0;
    let mut sent = false;
    loop {
        if fence.is_safe() {
            match store(&*ledger, &id, &reason, &mut sent).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(trigger = %name, error = %chain(&error), "the pause could not be stored; trying again");
                }
            }
        }
        clock::sleep(wait.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        wait = (wait * 2).min(WAITS.1);
    }
}

/// One try; `false` when somebody else changed the trigger meanwhile.
async fn store(ledger: &dyn Ledger, id: &TriggerId, reason: &str, sent: &mut bool) -> Result<bool, StoreError> {
    let Some(mut record) = ledger.triggers().await?.into_iter().find(|record| record.id == *id) else {
        return Ok(true);
    };
    let stored = match &record.state {
        TriggerState::Active => {
            *sent = true;
            record.state = TriggerState::Paused { reason: reason.to_owned() };
            matches!(ledger.update_trigger(&record).await?, Answer::Accepted(_))
        }
        // An earlier try of ours whose answer was lost: the others may not know.
        TriggerState::Paused { reason: stored } if *sent && stored == reason => true,
        TriggerState::Paused { .. } | TriggerState::Retired => return Ok(true),
    };
    if stored {
        // A hint: without it they look by themselves, later.
        let _ = nudge_all(ledger).await;
    }
    Ok(stored)
}
