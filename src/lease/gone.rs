//! Triggers that a worker works for and that are registered no more.

use crate::cell::{Ledger, StoreError, TriggerId, TriggerRecord};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// What became of a trigger that is registered no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gone {
    /// An operator retired it: it is never called again, and nothing more is written for it.
    Retired(TriggerRecord),
    /// Nobody knows it: the group's tables were made anew.
    Unknown,
}

/// Which of the triggers of a worker, `mine`, are not among the `registered` ones, with what is known of others. Only
/// those that are missing cost a read, and the retired ones, which stay so, only one.
pub(super) async fn look(
    ledger: &dyn Ledger,
    mine: &BTreeSet<TriggerId>,
    registered: &[TriggerRecord],
    known: &Arc<BTreeMap<TriggerId, Gone>>,
) -> Result<Arc<BTreeMap<TriggerId, Gone>>, StoreError> {
    let is_registered = |id: &TriggerId| registered.iter().any(|record| record.id == *id);
    let mut gone = known.clone();
    if known.keys().any(is_registered) {
        Arc::make_mut(&mut gone).retain(|id, _| !is_registered(id));
    }
    for id in mine.iter().filter(|id| !is_registered(id)) {
        if matches!(known.get(id), Some(Gone::Retired(_))) {
            continue;
        }
        let now = ledger.retired(id).await?.map_or(Gone::Unknown, Gone::Retired);
        if known.get(id) != Some(&now) {
            Arc::make_mut(&mut gone).insert(id.clone(), now);
        }
    }
    Ok(gone)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cell::{Incarnation, Name, TriggerState},
        store::memory::MemoryLedger,
    };

    #[tokio::test]
    async fn retired_is_told_from_made_anew() {
        let ledger = MemoryLedger::new();
        let name = |text| Name::new(text).unwrap();
        let record = TriggerRecord {
            id: TriggerId::from_stored("t1"),
            name: name("bill"),
            formerly: BTreeSet::new(),
            source: name("trips"),
            incarnation: Incarnation::random(),
            state: TriggerState::Active,
            generation: 0,
            start: None,
            revision: 0,
        };
        ledger.register(&record).await.unwrap();
        let lost = TriggerId::from_stored("t2");
        let mine = BTreeSet::from([record.id.clone(), lost.clone()]);
        let look = async |known| look(&ledger, &mine, &ledger.triggers().await.unwrap(), &known).await.unwrap();
        let gone = look(Arc::default()).await;
        assert_eq!(*gone, BTreeMap::from([(lost.clone(), Gone::Unknown)]));
        assert!(Arc::ptr_eq(&gone, &look(gone.clone()).await), "nothing new");
        let retired = TriggerRecord { state: TriggerState::Retired, ..record };
        ledger.update_trigger(&retired).await.unwrap();
        let gone = look(gone).await;
        let after = TriggerRecord { revision: 1, ..retired };
        assert_eq!(*gone, BTreeMap::from([(after.id.clone(), Gone::Retired(after)), (lost, Gone::Unknown)]));
    }
}
