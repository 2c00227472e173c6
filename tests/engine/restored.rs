//! Tables that were restored to different moments: what nobody has called for is never taken for finished.

use super::*;
use cellhook::{
    cell::{
        AddedId, Checkpoint, Epoch, LeaseWrite, Log, SessionId, ShardId, ShardRef, TriggerId, TriggerRecord, Written,
    },
    checkpoint::Window,
};
use std::collections::BTreeSet;

/// A trigger of the group that is registered, and has this checkpoint on the only shard.
async fn registered(group: &Group, checkpoint: Checkpoint) {
    let (trips, id) = (name("trips"), TriggerId::from_stored("t"));
    let incarnation = group.logs[&trips].datastore().incarnation.clone();
    let record = TriggerRecord {
        id: id.clone(),
        name: name("a"),
        formerly: BTreeSet::new(),
        source: trips.clone(),
        incarnation: incarnation.clone(),
        state: TriggerState::Active,
        generation: 0,
        start: None,
        revision: 0,
    };
    group.ledger.register(&record).await.unwrap();
    let (shard, owner) = (ShardRef { source: trips, shard: ShardId(0) }, SessionId::from_stored("before"));
    group.ledger.claim(&shard, &incarnation, &owner, None, Millis(1)).await.unwrap();
    let write = LeaseWrite {
        shard,
        owner,
        epoch: Epoch(1),
        seq: 1,
        checkpoints: BTreeMap::from([(id, checkpoint)]),
        lanes: Vec::new(),
        alone: None,
        release: true,
    };
    assert_eq!(group.ledger.write(&write).await.unwrap(), Written::Accepted);
}

fn log(group: &Group) -> Arc<MemoryLog> {
    group.logs[&name("trips")].clone()
}

/// Its low-water is not above the tip, but what is finished beyond it is.
#[tokio::test(start_paused = true)]
async fn a_shard_whose_finished_cells_lie_above_the_tip_stands_still() {
    let group = Group::new(&[("trips", 1)]);
    let mut window = Window::new(AddedId(0));
    window.finish_range(AddedId(2), AddedId(100));
    let done = Checkpoint { low: window.low(), done: window.encode().0, ..Checkpoint::default() };
    registered(&group, done).await;
    let (handler, handled) = good();
    let worker = group.worker(&["trips"], 1 << 24, vec![spec("a", "trips", handler)]).await;
    worker.put("trips", rows(50), 10).await;
    sleep(120 * SECOND).await;
    assert_eq!(handled.lock().unwrap().len(), 0, "one of these would be called, and 49 passed");
    let stopped = worker.watch.standings.read().into_values().find_map(|told| told[&name("a")].stopped.clone());
    assert!(stopped.as_ref().is_some_and(|reason| reason.contains("above")), "{stopped:?}");
    worker.leave().await;
}

/// The datastore is of before the group was told to it: a trim would ask nobody.
#[tokio::test(start_paused = true)]
async fn a_group_is_told_to_the_datastore_at_each_start() {
    let group = Group::new(&[("trips", 1)]);
    registered(&group, Checkpoint::default()).await;
    assert_eq!(log(&group).groups().await.unwrap(), BTreeSet::new());
    let worker = group.worker(&["trips"], 1 << 24, vec![spec("a", "trips", good().0)]).await;
    assert_eq!(log(&group).groups().await.unwrap(), BTreeSet::from([name("g")]));
    worker.leave().await;
}
