//! What an operator does to a trigger while workers run: it is retired, it is renamed.

use super::*;
use cellhook::cell::{AddedId, Answer, Ledger, ShardId, ShardRef, TriggerRecord};

impl Group {
    async fn record(&self, text: &str) -> TriggerRecord {
        self.ledger.triggers().await.unwrap().into_iter().find(|record| record.goes_by(&name(text))).unwrap()
    }

    async fn retire(&self, text: &str) -> TriggerRecord {
        let retired = TriggerRecord { state: TriggerState::Retired, ..self.record(text).await };
        let Answer::Accepted(retired) = self.ledger.update_trigger(&retired).await.unwrap() else { panic!("{text}") };
        lease::nudge_all(&*self.ledger).await.unwrap();
        retired
    }

    async fn rename(&self, from: &str, to: &str) {
        let answer = self.ledger.rename_trigger(&self.record(from).await, &name(to)).await.unwrap();
        assert!(matches!(answer, Answer::Accepted(_)), "{answer:?}");
        lease::nudge_all(&*self.ledger).await.unwrap();
    }

    /// Low-water of a trigger, over all shards.
    async fn low(&self, trigger: &TriggerRecord) -> u64 {
        let leases = self.ledger.leases(&trigger.source).await.unwrap();
        leases.iter().filter_map(|lease| lease.checkpoints.get(&trigger.id)).map(|at| at.low.0).sum()
    }
}

fn more(n: usize) -> impl Iterator<Item = String> {
    (0..n).map(|i| format!("more-{i}"))
}

#[tokio::test(start_paused = true)]
async fn a_retired_trigger_is_not_called_any_more() {
    let group = Group::new(&[("trips", 4)]);
    let ((a, handled_a), (b, handled_b)) = (good(), good());
    let (old, other) = (spec("old", "trips", a.clone()), spec("other", "trips", b));
    let worker = group.worker(&["trips"], 1 << 24, vec![old, other.clone()]).await;
    worker.put("trips", rows(20), 10).await;
    until(&handled_a, 20, 60 * SECOND).await;
    sleep(5 * SECOND).await;
    let retired = group.retire("old").await;
    sleep(10 * SECOND).await;
    worker.put("trips", more(20), 10).await;
    until(&handled_b, 40, 10 * SECOND).await;
    sleep(30 * SECOND).await;
    assert_eq!(handled_a.lock().unwrap().len(), 20);
    assert_eq!(group.low(&retired).await, 20, "nothing is checkpointed for it");
    let told = worker.watch.standings.read();
    assert!(
        told.values().all(|told| !told.contains_key(&name("old")) && told.contains_key(&name("other"))),
        "{told:?}"
    );
    assert!(worker.watch.view.borrow().is_retired(&name("old")));
    for shard in (0..4).map(ShardId) {
        let at = ShardRef { source: name("trips"), shard };
        let other = group.ledger.lease(&at).await.unwrap().unwrap().checkpoints[&group.record("other").await.id].low;
        let keeper = tail::keeper(&*group.ledger, &name("g"), &name("trips"), shard).await.unwrap().unwrap();
        assert_eq!((keeper.low, keeper.trigger.as_str()), (other, "other"), "no trim is held up");
    }
    // The same name again is another trigger, which begins at the start.
    worker.reload(vec![spec("old", "trips", a), other]).await.unwrap();
    until(&handled_a, 60, 20 * SECOND).await;
    assert_ne!(group.record("old").await.id, retired.id);
    sleep(10 * SECOND).await;
    assert!(!worker.watch.view.borrow().is_retired(&name("old")));
    assert_eq!((handled_a.lock().unwrap().len(), handled_b.lock().unwrap().len()), (60, 40));
    group.retire("old").await;
    group.retire("other").await;
    sleep(60 * SECOND).await;
    assert_eq!(worker.watch.view.borrow().grants.len(), 0, "nobody tails trips any more");
    worker.leave().await;
}

#[tokio::test(start_paused = true)]
async fn calls_under_way_for_a_retired_trigger_are_finished_and_written_nowhere() {
    let group = Group::new(&[("trips", 2)]);
    let handled = Handled::default();
    let all = handled.clone();
    let handler = handler_fn(move |event: Event| {
        let all = all.clone();
        async move {
            sleep(60 * SECOND).await;
            all.lock().unwrap().push((event.cell.key.row_key.to_string(), Instant::now()));
            Verdict::DeadLetter { error: "bad".into() }
        }
    });
    let mut slow = spec("slow", "trips", handler);
    (slow.config.in_flight, slow.config.timeout) = (4, 100 * SECOND);
    // With the last trigger of a datastore its shards would go too, within the drain deadline.
    let (other, _) = good();
    let worker = group.worker(&["trips"], 1 << 24, vec![slow, spec("other", "trips", other)]).await;
    worker.put("trips", rows(20), 10).await;
    sleep(20 * SECOND).await;
    let retired = group.retire("slow").await;
    until(&handled, 4, 60 * SECOND).await;
    sleep(120 * SECOND).await;
    assert_eq!(handled.lock().unwrap().len(), 4, "and no other is begun");
    assert_eq!(group.low(&retired).await, 0);
    for shard in (0..2).map(ShardId) {
        let shard = ShardRef { source: name("trips"), shard };
        for kind in [cellhook::cell::LaneKind::Active, cellhook::cell::LaneKind::Dead] {
            let lane = cellhook::cell::Lane { trigger: retired.id.clone(), shard: shard.clone(), kind };
            assert_eq!(group.ledger.parked(&lane, AddedId(0), 9).await.unwrap(), []);
        }
    }
    worker.leave().await;
}

#[tokio::test(start_paused = true)]
async fn a_trigger_that_is_retired_before_its_worker_looks_is_never_called() {
    let group = Group::new(&[("trips", 2)]);
    let ((a, handled_a), (b, handled_b)) = (good(), good());
    let worker = group.worker(&["trips"], 1 << 24, vec![spec("a", "trips", a), spec("b", "trips", b)]).await;
    group.retire("a").await;
    worker.put("trips", rows(20), 10).await;
    until(&handled_b, 20, 60 * SECOND).await;
    sleep(100 * SECOND).await;
    assert_eq!(handled_a.lock().unwrap().len(), 0);
    worker.leave().await;
}

#[tokio::test(start_paused = true)]
async fn a_renamed_trigger_goes_on_under_any_of_its_names() {
    let group = Group::new(&[("trips", 4)]);
    let (handler, handled) = good();
    let by = |text: &str| spec(text, "trips", handler.clone());
    let worker = group.worker(&["trips"], 1 << 24, vec![by("one")]).await;
    worker.put("trips", rows(20), 10).await;
    until(&handled, 20, 60 * SECOND).await;
    let before = group.record("one").await;
    group.rename("one", "two").await;
    group.rename("two", "three").await;
    sleep(10 * SECOND).await;
    worker.put("trips", more(20), 10).await;
    until(&handled, 40, 10 * SECOND).await;
    // A pause reaches it all the same.
    let paused = TriggerState::Paused { reason: "test".into() };
    let paused = TriggerRecord { state: paused, ..group.record("three").await };
    let Answer::Accepted(paused) = group.ledger.update_trigger(&paused).await.unwrap() else { panic!() };
    lease::nudge_all(&*group.ledger).await.unwrap();
    sleep(10 * SECOND).await;
    worker.put("trips", (0..10).map(|i| format!("late-{i}")), 10).await;
    sleep(30 * SECOND).await;
    assert_eq!(handled.lock().unwrap().len(), 40);
    let resumed = TriggerRecord { state: TriggerState::Active, generation: paused.generation + 1, ..paused };
    group.ledger.update_trigger(&resumed).await.unwrap();
    lease::nudge_all(&*group.ledger).await.unwrap();
    // Whatever of its names the config says, now or after a restart, it is the same trigger.
    for text in ["one", "two", "three"] {
        assert_eq!(worker.reload(vec![by(text)]).await.unwrap(), 1);
        until(&handled, 50, 20 * SECOND).await;
    }
    let told = worker.reload(vec![by("two"), by("three")]).await.unwrap_err();
    assert!(told.to_string().contains("trigger two was renamed to three, and the config has both"), "{told}");
    let told = worker.reload(vec![by("one"), by("two"), by("new")]).await.unwrap_err();
    assert!(matches!(told, WorkerError::SameTrigger { .. }), "{told}");
    worker.leave().await;
    for text in ["one", "two", "three"] {
        let worker = group.worker(&["trips"], 1 << 24, vec![by(text)]).await;
        sleep(30 * SECOND).await;
        worker.leave().await;
    }
    assert_eq!(handled.lock().unwrap().len(), 50, "nothing is called again");
    let triggers = group.ledger.triggers().await.unwrap();
    assert_eq!((triggers.len(), &triggers[0].id), (1, &before.id), "and nothing else was registered: {triggers:?}");
    // A freed name means another trigger.
    let freed = group.ledger.free_name(&triggers[0], &name("one")).await.unwrap();
    assert!(matches!(freed, Answer::Accepted(_)));
    let worker = group.worker(&["trips"], 1 << 24, vec![by("one"), by("three")]).await;
    until(&handled, 100, 60 * SECOND).await;
    assert_eq!(group.ledger.triggers().await.unwrap().len(), 2);
    worker.leave().await;
}
