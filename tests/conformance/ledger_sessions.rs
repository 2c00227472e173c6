//! `Ledger`: sessions.

use super::{Fixture, cases};
use cellhook::cell::{Answer, Ledger, Millis, Name, Nudge, Role, Session, SessionId, SessionState};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

cases! {
    a_session_is_opened_once
    beats_are_counted_until_death
    a_state_is_set_until_death
    an_observer_kills_only_the_beat_that_it_saw
    an_owner_without_item_gets_a_dead_one
    a_nudge_reaches_who_is_there
    only_the_dead_are_forgotten
    all_sessions_are_listed
    beats_and_a_death_at_the_same_time
}

pub(super) fn accepted<T: std::fmt::Debug>(answer: Answer<T>) -> T {
    match answer {
        Answer::Accepted(value) => value,
        refused @ Answer::Refused(_) => panic!("{refused:?}"),
    }
}

pub(super) fn refused<T: std::fmt::Debug>(answer: Answer<T>) -> Option<T> {
    match answer {
        Answer::Refused(found) => found,
        accepted @ Answer::Accepted(_) => panic!("{accepted:?}"),
    }
}

fn session(id: &str) -> Session {
    Session {
        id: SessionId::from_stored(id),
        state: SessionState::Live,
        beat: 0,
        inbox: 0,
        parked_inbox: 0,
        role: Role::Worker,
        host: "höst".into(),
        pid: 4711,
        version: "1.2.3".into(),
        length: Duration::from_millis(10_500),
        sources: ["rides", "trips"].map(|name| Name::new(name).unwrap()).into(),
        started_at: Millis(1_700_000_000_123),
        beat_at: Millis(1_700_000_000_456),
        weight: 7,
        plan: 3,
    }
}

async fn open(ledger: &Arc<dyn Ledger>, id: &str) -> SessionId {
    accepted(ledger.open_session(&session(id)).await.unwrap()).id
}

async fn state_of(ledger: &Arc<dyn Ledger>, id: &SessionId) -> Option<Session> {
    ledger.sessions().await.unwrap().into_iter().find(|session| session.id == *id)
}

async fn a_session_is_opened_once(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let first = Session { role: Role::Client, ..session("one") };
    assert_eq!(accepted(ledger.open_session(&first).await.unwrap()), first);
    assert_eq!(ledger.sessions().await.unwrap(), std::slice::from_ref(&first));
    let again = Session { host: "other".into(), ..session("one") };
    assert_eq!(refused(ledger.open_session(&again).await.unwrap()), Some(first.clone()));
    assert_eq!(ledger.sessions().await.unwrap(), [first]);
}

async fn beats_are_counted_until_death(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let id = open(&ledger, "one").await;
    for beat in 1..=3 {
        assert_eq!(
            accepted(ledger.beat(&id, Millis(5)).await.unwrap()),
            Session { beat, beat_at: Millis(5), ..session("one") }
        );
    }
    accepted(ledger.set_state(&id, SessionState::Draining).await.unwrap());
    assert_eq!(accepted(ledger.beat(&id, Millis(5)).await.unwrap()).beat, 4, "who drains is alive");
    let dead = accepted(ledger.set_state(&id, SessionState::Dead).await.unwrap());
    assert_eq!(refused(ledger.beat(&id, Millis(5)).await.unwrap()), Some(dead.clone()));
    assert_eq!(state_of(&ledger, &id).await, Some(dead), "a refused beat is not counted");
    assert_eq!(refused(ledger.beat(&SessionId::from_stored("absent"), Millis(5)).await.unwrap()), None);
    assert_eq!(ledger.sessions().await.unwrap().len(), 1, "and makes no session");
}

async fn a_state_is_set_until_death(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let id = open(&ledger, "one").await;
    for state in [SessionState::Draining, SessionState::Live, SessionState::Dead] {
        let after = accepted(ledger.set_state(&id, state).await.unwrap());
        assert_eq!(after, Session { state, ..session("one") });
    }
    for state in [SessionState::Live, SessionState::Draining, SessionState::Dead] {
        let found = refused(ledger.set_state(&id, state).await.unwrap());
        assert_eq!(found.unwrap().state, SessionState::Dead, "dead is final");
    }
    let absent = SessionId::from_stored("absent");
    assert_eq!(refused(ledger.set_state(&absent, SessionState::Dead).await.unwrap()), None);
}

async fn an_observer_kills_only_the_beat_that_it_saw(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let id = open(&ledger, "one").await;
    accepted(ledger.beat(&id, Millis(5)).await.unwrap());
    accepted(ledger.beat(&id, Millis(5)).await.unwrap());
    for stale in [0, 1, 3] {
        let found = refused(ledger.declare_dead(&id, Some(stale)).await.unwrap()).unwrap();
        assert_eq!((found.beat, found.state), (2, SessionState::Live));
    }
    let dead = accepted(ledger.declare_dead(&id, Some(2)).await.unwrap());
    assert_eq!(dead, Session { state: SessionState::Dead, beat: 2, beat_at: Millis(5), ..session("one") });
    assert_eq!(refused(ledger.declare_dead(&id, Some(2)).await.unwrap()), Some(dead), "once");
    let absent = SessionId::from_stored("absent");
    assert_eq!(refused(ledger.declare_dead(&absent, Some(0)).await.unwrap()), None);
    assert_eq!(ledger.sessions().await.unwrap().len(), 1);
}

async fn an_owner_without_item_gets_a_dead_one(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let id = SessionId::from_stored("lost");
    let dead = accepted(ledger.declare_dead(&id, None).await.unwrap());
    assert_eq!((&dead.id, dead.state), (&id, SessionState::Dead));
    assert_eq!(refused(ledger.beat(&id, Millis(5)).await.unwrap()), Some(dead.clone()), "it stays out");
    assert_eq!(refused(ledger.open_session(&session("lost")).await.unwrap()), Some(dead.clone()));
    assert_eq!(refused(ledger.declare_dead(&id, None).await.unwrap()), Some(dead));

    let living = open(&ledger, "living").await;
    let found = refused(ledger.declare_dead(&living, None).await.unwrap());
    assert_eq!(found, Some(session("living")), "who has an item is not declared dead for want of one");
}

async fn a_nudge_reaches_who_is_there(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let id = open(&ledger, "one").await;
    for about in [Nudge::Leases, Nudge::Parked, Nudge::Leases] {
        ledger.nudge(&id, about).await.unwrap();
    }
    assert_eq!(
        accepted(ledger.beat(&id, Millis(5)).await.unwrap()),
        Session { beat: 1, inbox: 2, parked_inbox: 1, beat_at: Millis(5), ..session("one") }
    );
    ledger.nudge(&SessionId::from_stored("absent"), Nudge::Leases).await.unwrap();
    assert_eq!(ledger.sessions().await.unwrap().len(), 1, "a nudge makes no session");
}

async fn only_the_dead_are_forgotten(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let id = open(&ledger, "one").await;
    ledger.forget_session(&id).await.unwrap();
    assert!(state_of(&ledger, &id).await.is_some(), "it lives");
    accepted(ledger.set_state(&id, SessionState::Dead).await.unwrap());
    ledger.forget_session(&id).await.unwrap();
    assert_eq!(state_of(&ledger, &id).await, None);
    ledger.forget_session(&id).await.unwrap();
}

async fn all_sessions_are_listed(fixture: Arc<dyn Fixture>) {
    let (ledger, other) = (fixture.ledger().await, fixture.ledger().await);
    let mut wanted = Vec::new();
    for at in 0..60 {
        wanted.push(open(&ledger, &format!("s{at:02}")).await);
    }
    let mut found: Vec<_> = ledger.sessions().await.unwrap().into_iter().map(|session| session.id).collect();
    found.sort();
    assert_eq!(found, wanted);
    assert_eq!(other.sessions().await.unwrap(), [], "two groups never meet");
}

async fn beats_and_a_death_at_the_same_time(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let id = open(&ledger, "one").await;
    let mut beats = JoinSet::new();
    for _ in 0..16 {
        let (ledger, id) = (ledger.clone(), id.clone());
        beats.spawn(async move { accepted(ledger.beat(&id, Millis(5)).await.unwrap()).beat });
    }
    let mut counted = beats.join_all().await;
    counted.sort_unstable();
    assert_eq!(counted, (1..=16).collect::<Vec<_>>(), "every beat counts once");

    let mut race = JoinSet::new();
    for observer in 0..16 {
        let (ledger, id) = (ledger.clone(), id.clone());
        race.spawn(async move {
            match observer {
                0..8 => matches!(ledger.declare_dead(&id, Some(16)).await.unwrap(), Answer::Accepted(_)),
                _ => ledger.beat(&id, Millis(5)).await.map(|_| false).unwrap(),
            }
        });
    }
    let deaths = race.join_all().await.into_iter().filter(|killed| *killed).count();
    let state = state_of(&ledger, &id).await.unwrap();
    match deaths {
        0 => assert!(state.beat > 16 && state.state == SessionState::Live),
        _ => assert_eq!((deaths, state.beat, state.state), (1, 16, SessionState::Dead)),
    }
}
