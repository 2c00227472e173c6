//! `Ledger`: registered triggers.

use super::ledger_sessions::{accepted, refused};
use super::{Fixture, cases};
use cellhook::cell::{AddedId, Answer, Incarnation, Name, TriggerId, TriggerRecord, TriggerState};
use std::sync::Arc;
use tokio::task::JoinSet;

cases! {
    a_name_is_registered_once
    an_update_needs_the_revision_that_it_saw
    every_state_and_start_comes_back
    retiring_frees_the_name
    of_registrations_at_the_same_time_one_wins
}

fn record(id: &str, name: &str) -> TriggerRecord {
    TriggerRecord {
        id: TriggerId::from_stored(id),
        name: Name::new(name).unwrap(),
        source: Name::new("trips").unwrap(),
        incarnation: Incarnation::from_stored("inc"),
        state: TriggerState::Active,
        generation: 0,
        start: None,
        revision: 1,
    }
}

async fn a_name_is_registered_once(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    assert_eq!(ledger.triggers().await.unwrap(), []);
    let first = record("t1", "bill");
    assert_eq!(accepted(ledger.register(&first).await.unwrap()), first);
    assert_eq!(refused(ledger.register(&record("t2", "bill")).await.unwrap()), Some(first.clone()));
    let second = record("t3", "mail");
    accepted(ledger.register(&second).await.unwrap());
    let mut all = ledger.triggers().await.unwrap();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(all, [first, second]);
}

async fn an_update_needs_the_revision_that_it_saw(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let first = accepted(ledger.register(&record("t1", "bill")).await.unwrap());
    let paused = TriggerState::Paused { reason: "full".into() };
    let wish = TriggerRecord { state: paused, generation: 4, ..first.clone() };
    let second = accepted(ledger.update_trigger(&wish).await.unwrap());
    assert_eq!(second, TriggerRecord { revision: 2, ..wish.clone() });
    assert_eq!(ledger.triggers().await.unwrap(), std::slice::from_ref(&second));

    assert_eq!(refused(ledger.update_trigger(&wish).await.unwrap()), Some(second.clone()), "an old revision");
    let other = TriggerRecord { id: TriggerId::from_stored("t9"), ..second.clone() };
    assert_eq!(refused(ledger.update_trigger(&other).await.unwrap()), Some(second.clone()), "another id");
    assert_eq!(refused(ledger.update_trigger(&record("t1", "absent")).await.unwrap()), None);
    assert_eq!(ledger.triggers().await.unwrap(), std::slice::from_ref(&second));

    let resumed = TriggerRecord { state: TriggerState::Active, ..second };
    assert_eq!(accepted(ledger.update_trigger(&resumed).await.unwrap()).revision, 3);
}

async fn every_state_and_start_comes_back(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let starts = [vec![], vec![0], (0..4096).map(|at| at * at * at).collect(), vec![u64::MAX >> 1]];
    for (at, start) in starts.into_iter().enumerate() {
        let start = Some(start.into_iter().map(AddedId).collect());
        let state = TriggerState::Paused { reason: if at == 0 { String::new() } else { "ünd \"so\"".into() } };
        let wanted = TriggerRecord { start, state, ..record(&format!("t{at}"), &format!("n{at}")) };
        accepted(ledger.register(&wanted).await.unwrap());
        let found = ledger.triggers().await.unwrap();
        assert!(found.contains(&wanted), "{at}");
    }
}

async fn retiring_frees_the_name(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let first = accepted(ledger.register(&record("t1", "bill")).await.unwrap());
    let retired = TriggerRecord { state: TriggerState::Retired, ..first.clone() };
    let stale = TriggerRecord { revision: 7, ..retired.clone() };
    assert_eq!(refused(ledger.update_trigger(&stale).await.unwrap()), Some(first.clone()));
    assert_eq!(ledger.triggers().await.unwrap(), [first]);

    let after = accepted(ledger.update_trigger(&retired).await.unwrap());
    assert_eq!(after, TriggerRecord { revision: 2, ..retired.clone() });
    assert_eq!(ledger.triggers().await.unwrap(), []);
    assert_eq!(refused(ledger.update_trigger(&retired).await.unwrap()), None, "its name is empty now");

    let second = record("t2", "bill");
    assert_eq!(accepted(ledger.register(&second).await.unwrap()), second, "a retired name is a new trigger");
    assert_eq!(refused(ledger.update_trigger(&retired).await.unwrap()), Some(second.clone()));
    let again = TriggerRecord { state: TriggerState::Retired, ..second };
    accepted(ledger.update_trigger(&again).await.unwrap());
    assert_eq!(ledger.triggers().await.unwrap(), []);
}

async fn of_registrations_at_the_same_time_one_wins(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let mut race = JoinSet::new();
    for at in 0..16 {
        let ledger = ledger.clone();
        race.spawn(async move { ledger.register(&record(&format!("t{at}"), "bill")).await.unwrap() });
    }
    let answers = race.join_all().await;
    let stored = ledger.triggers().await.unwrap().pop().unwrap();
    assert_eq!(answers.iter().filter(|answer| matches!(answer, Answer::Accepted(_))).count(), 1);
    assert!(
        answers
            .into_iter()
            .all(|answer| matches!(answer, Answer::Accepted(won) | Answer::Refused(Some(won)) if won == stored))
    );
}
