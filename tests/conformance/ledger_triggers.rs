//! `Ledger`: registered triggers.

use super::ledger_sessions::{accepted, refused};
use super::{Fixture, cases};
use cellhook::cell::{AddedId, Answer, Incarnation, Name, TriggerId, TriggerRecord, TriggerState};
use std::{collections::BTreeSet, sync::Arc};
use tokio::task::JoinSet;

cases! {
    a_name_is_registered_once
    an_update_needs_the_revision_that_it_saw
    every_state_and_start_comes_back
    retiring_frees_the_name
    a_renamed_trigger_keeps_its_former_names
    a_name_that_is_taken_is_given_to_nobody
    a_former_name_is_freed_by_itself_or_with_its_trigger
    of_renames_at_the_same_time_one_wins
    of_registrations_at_the_same_time_one_wins
}

fn record(id: &str, name: &str) -> TriggerRecord {
    TriggerRecord {
        id: TriggerId::from_stored(id),
        name: Name::new(name).unwrap(),
        formerly: BTreeSet::new(),
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
    assert_eq!(ledger.retired(&after.id).await.unwrap(), Some(after.clone()), "by its id it is still known");
    assert_eq!(ledger.retired(&TriggerId::from_stored("t2")).await.unwrap(), None);
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

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn names<const N: usize>(texts: [&str; N]) -> BTreeSet<Name> {
    texts.map(name).into()
}

async fn a_renamed_trigger_keeps_its_former_names(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let start = Some([AddedId(4), AddedId(0)].into());
    let first = TriggerRecord { start, generation: 3, ..record("t1", "a") };
    let first = accepted(ledger.register(&first).await.unwrap());
    let second = accepted(ledger.rename_trigger(&first, &name("b")).await.unwrap());
    let wanted = TriggerRecord { name: name("b"), formerly: names(["a"]), revision: 2, ..first.clone() };
    assert_eq!(second, wanted);
    assert_eq!(ledger.triggers().await.unwrap(), std::slice::from_ref(&second), "under one name only");
    assert_eq!(refused(ledger.register(&record("t2", "a")).await.unwrap()), None, "nobody takes a former name");
    assert_eq!(refused(ledger.register(&record("t2", "b")).await.unwrap()), Some(second.clone()));
    assert_eq!(refused(ledger.rename_trigger(&first, &name("b")).await.unwrap()), None, "a late copy");
    assert_eq!(refused(ledger.rename_trigger(&first, &name("c")).await.unwrap()), None, "it is not there any more");
    assert_eq!(refused(ledger.update_trigger(&first).await.unwrap()), None);

    let third = accepted(ledger.rename_trigger(&second, &name("c")).await.unwrap());
    assert_eq!((&third.name, &third.formerly), (&name("c"), &names(["a", "b"])));
    let back = accepted(ledger.rename_trigger(&third, &name("a")).await.unwrap());
    assert_eq!((&back.name, &back.formerly, back.revision), (&name("a"), &names(["b", "c"]), 4));
    assert_eq!(
        refused(ledger.rename_trigger(&first, &name("d")).await.unwrap()),
        Some(back.clone()),
        "an old revision"
    );
    let paused = TriggerState::Paused { reason: "full".into() };
    let paused = accepted(ledger.update_trigger(&TriggerRecord { state: paused, ..back }).await.unwrap());
    assert_eq!(paused.formerly, names(["b", "c"]));
    assert_eq!(ledger.triggers().await.unwrap(), [paused]);
}

async fn a_name_that_is_taken_is_given_to_nobody(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let a = accepted(ledger.register(&record("t1", "a")).await.unwrap());
    let b = accepted(ledger.register(&record("t2", "b")).await.unwrap());
    assert_eq!(refused(ledger.rename_trigger(&a, &name("b")).await.unwrap()), None, "another has it");
    assert_eq!(refused(ledger.rename_trigger(&a, &name("a")).await.unwrap()), None, "it has it");
    let b = accepted(ledger.rename_trigger(&b, &name("c")).await.unwrap());
    assert_eq!(refused(ledger.rename_trigger(&a, &name("b")).await.unwrap()), None, "another had it");
    let stranger = TriggerRecord { id: TriggerId::from_stored("t9"), ..a.clone() };
    assert_eq!(refused(ledger.rename_trigger(&stranger, &name("d")).await.unwrap()), Some(a.clone()));
    assert_eq!(refused(ledger.rename_trigger(&record("t1", "e"), &name("d")).await.unwrap()), None, "it is not there");
    let mut all = ledger.triggers().await.unwrap();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(all, [a, b]);
}

async fn a_former_name_is_freed_by_itself_or_with_its_trigger(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let mut record_now = accepted(ledger.register(&record("t1", "a")).await.unwrap());
    for to in ["b", "c", "d"] {
        record_now = accepted(ledger.rename_trigger(&record_now, &name(to)).await.unwrap());
    }
    assert_eq!(refused(ledger.free_name(&record_now, &name("d")).await.unwrap()), None, "it is its name");
    assert_eq!(refused(ledger.free_name(&record_now, &name("x")).await.unwrap()), None);
    let stale = TriggerRecord { revision: 1, ..record_now.clone() };
    assert_eq!(refused(ledger.free_name(&stale, &name("b")).await.unwrap()), Some(record_now.clone()));
    let without = accepted(ledger.free_name(&record_now, &name("b")).await.unwrap());
    assert_eq!(without, TriggerRecord { formerly: names(["a", "c"]), revision: 5, ..record_now });
    assert_eq!(ledger.triggers().await.unwrap(), std::slice::from_ref(&without));
    accepted(ledger.register(&record("t2", "b")).await.unwrap());
    assert_eq!(refused(ledger.register(&record("t3", "a")).await.unwrap()), None);

    let retired = TriggerRecord { state: TriggerState::Retired, ..without };
    let retired = accepted(ledger.update_trigger(&retired).await.unwrap());
    assert_eq!(ledger.retired(&retired.id).await.unwrap(), Some(retired));
    for (id, free) in [("t4", "a"), ("t5", "c"), ("t6", "d")] {
        accepted(ledger.register(&record(id, free)).await.unwrap());
    }
    assert_eq!(ledger.triggers().await.unwrap().len(), 4);
}

async fn of_renames_at_the_same_time_one_wins(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let first = accepted(ledger.register(&record("t1", "a")).await.unwrap());
    let mut race = JoinSet::new();
    for at in 0..8 {
        let (ledger, first) = (ledger.clone(), first.clone());
        race.spawn(async move {
            loop {
                // On a server a transaction may meet another one.
                match ledger.rename_trigger(&first, &name(&format!("n{at}"))).await {
                    Ok(answer) => return answer,
                    Err(error) => assert!(error.kind.may_pass(), "{error}"),
                }
            }
        });
    }
    let answers = race.join_all().await;
    let won: Vec<&TriggerRecord> = answers
        .iter()
        .filter_map(|answer| match answer {
            Answer::Accepted(record) => Some(record),
            Answer::Refused(_) => None,
        })
        .collect();
    let stored = ledger.triggers().await.unwrap();
    // One whose answer was lost in a conflict may have won unheard.
    assert!(stored.len() == 1 && won.iter().all(|won| **won == stored[0]), "{won:?}, and there is {stored:?}");
    assert_eq!(stored[0].formerly, names(["a"]));
}
