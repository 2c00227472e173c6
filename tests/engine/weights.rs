//! Shares in proportion to weights, and a group of two releases that knows different plans.

use super::*;
use cellhook::cell::{Role, Session, SessionId, SessionState};

async fn worker(group: &Group, weight: u32) -> Running {
    let triggers = vec![spec("a", "trips", good().0)];
    group.worker_as(&["trips"], 1 << 24, triggers, |setup| setup.lease.weight = weight).await
}

fn shares(workers: &[&Running]) -> Vec<usize> {
    workers.iter().map(|worker| worker.watch.view.borrow().grants.len()).collect()
}

#[tokio::test(start_paused = true)]
async fn shards_are_held_in_proportion_to_the_weights() {
    let group = Group::new(&[("trips", 64)]);
    let (one, three, four) = (worker(&group, 1).await, worker(&group, 3).await, worker(&group, 4).await);
    sleep(180 * SECOND).await;
    assert_eq!(shares(&[&one, &three, &four]), [8, 24, 32]);
    four.leave().await;
    sleep(60 * SECOND).await;
    assert_eq!(shares(&[&one, &three]), [16, 48]);
}

#[tokio::test(start_paused = true)]
async fn all_follow_the_oldest_plan_that_somebody_knows() {
    let group = Group::new(&[("trips", 64)]);
    // Of a release that knows neither weights nor plans, and that takes its shards as it knows to.
    let old = Session {
        state: SessionState::Live,
        role: Role::Worker,
        length: 3600 * SECOND,
        sources: [name("trips")].into(),
        ..Session::dead(&SessionId::from_stored("old"))
    };
    group.ledger.open_session(&old).await.unwrap();
    let (one, three) = (worker(&group, 1).await, worker(&group, 3).await);
    sleep(180 * SECOND).await;
    let with_old = shares(&[&one, &three]);
    assert!(with_old.iter().all(|shards| (20..=22).contains(shards)), "{with_old:?}: a third each");
    group.ledger.set_state(&old.id, SessionState::Dead).await.unwrap();
    sleep(60 * SECOND).await;
    assert_eq!(shares(&[&one, &three]), [16, 48]);
}
