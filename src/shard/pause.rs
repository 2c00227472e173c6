//! A pause of a whole trigger that its handler asked for.

use crate::{
    cell::{Answer, Ledger, Name, StoreError, TriggerId, TriggerState, chain, clock},
    lease::{Fence, nudge_all},
};
use std::{sync::Arc, time::Duration};

/// First wait after a request that failed; longest one.
const WAITS: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// What the handler asked for.
pub(super) struct Wish {
    /// Of which trigger.
    pub(super) id: TriggerId,
    /// In which of the trigger's generations it was called.
    pub(super) generation: u64,
    /// Why.
    pub(super) reason: String,
}

/// Stores the pause and tells all workers. Goes on until it is stored, or somebody else paused, resumed or retired the
/// trigger.
pub(super) async fn pause(ledger: Arc<dyn Ledger>, fence: Fence, name: Name, wish: Wish) {
    let mut wait = WAITS.0;
    let mut sent = false;
    loop {
        if fence.is_safe() {
            match store(&*ledger, &wish, &mut sent).await {
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
async fn store(ledger: &dyn Ledger, wish: &Wish, sent: &mut bool) -> Result<bool, StoreError> {
    let Wish { id, generation, reason } = wish;
    let Some(mut record) = ledger.triggers().await?.into_iter().find(|record| record.id == *id) else {
        return Ok(true);
    };
    if record.generation > *generation {
        // Resumed since then, perhaps from this very pause: an earlier try of ours whose answer was lost. The handler is
        // called again, and can ask again.
        return Ok(true);
    }
    let stored = match &record.state {
        TriggerState::Active => {
            *sent = true;
            record.state = TriggerState::Paused { reason: reason.clone() };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cell::{Incarnation, TriggerRecord},
        store::memory::MemoryLedger,
    };

    #[tokio::test]
    async fn a_resume_ends_the_pause_that_was_asked_for_before_it() {
        let ledger = MemoryLedger::new();
        let record = TriggerRecord {
            id: TriggerId::from_stored("t"),
            name: Name::new("bill").unwrap(),
            formerly: Default::default(),
            source: Name::new("trips").unwrap(),
            incarnation: Incarnation::random(),
            state: TriggerState::Active,
            generation: 3,
            start: None,
            revision: 0,
        };
        ledger.register(&record).await.unwrap();
        let wish = |generation| Wish { id: record.id.clone(), generation, reason: "closed".into() };
        let stored = async || ledger.triggers().await.unwrap().remove(0);
        let mut sent = false;
        assert!(store(&ledger, &wish(3), &mut sent).await.unwrap());
        let paused = stored().await;
        assert_eq!((sent, &paused.state), (true, &TriggerState::Paused { reason: "closed".into() }));
        // Its answer was lost, and a person resumes before it is tried again.
        let resumed = TriggerRecord { state: TriggerState::Active, generation: 4, ..paused };
        ledger.update_trigger(&resumed).await.unwrap();
        assert!(store(&ledger, &wish(3), &mut sent).await.unwrap(), "done with");
        assert_eq!(stored().await.state, TriggerState::Active);
        assert!(store(&ledger, &wish(4), &mut false).await.unwrap());
        assert_ne!(stored().await.state, TriggerState::Active, "it asks again");
    }
}
