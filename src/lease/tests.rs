//! The coordination of one worker over a store that answers badly, in virtual time.

use super::{Config, Coordinator, Identity, View};
use crate::{
    cell::{
        AddedId, Answer, Checkpoint, Incarnation, LeaseWrite, Ledger, Millis, Name, NewDatastore, SessionId, ShardId,
        ShardRef, TriggerId, TriggerRecord, TriggerState, Written, clock,
    },
    store::{Fault, Faults},
};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// Claimed once, left at a checkpoint, and owned by nobody since.
async fn left(ledger: &dyn Ledger, shard: &ShardRef, incarnation: &Incarnation, trigger: &TriggerId) {
    let me = SessionId::from_stored("before");
    assert!(matches!(ledger.claim(shard, incarnation, &me, None, Millis(1)).await.unwrap(), Answer::Accepted(_)));
    let checkpoint = Checkpoint { low: AddedId(7), ..Checkpoint::default() };
    let write = LeaseWrite {
        shard: shard.clone(),
        owner: me,
        epoch: crate::cell::Epoch(1),
        seq: 1,
        checkpoints: [(trigger.clone(), checkpoint)].into(),
        lanes: Vec::new(),
        alone: None,
        release: true,
    };
    assert_eq!(ledger.write(&write).await.unwrap(), Written::Accepted);
}

/// While the claim of a shard is not answered, the worker that should hold it speaks for it: with the checkpoints of its
/// lease, and since when nobody holds it.
#[tokio::test(start_paused = true)]
async fn a_wanted_shard_that_nobody_holds_is_seen() {
    let (store, faults) = Faults::store();
    store.init_datastore(&NewDatastore { name: name("trips"), shards: 1 }).await.unwrap();
    store.init_group(&name("g")).await.unwrap();
    let datastore = store.datastore(&name("trips"), None).await.unwrap().datastore().clone();
    let ledger: Arc<dyn Ledger> = store.ledger(&name("g")).await.unwrap();
    let record = TriggerRecord {
        id: TriggerId::random(),
        name: name("bill"),
        formerly: std::collections::BTreeSet::new(),
        source: name("trips"),
        incarnation: datastore.incarnation.clone(),
        state: TriggerState::Active,
        generation: 0,
        start: None,
        revision: 0,
    };
    ledger.register(&record).await.unwrap();
    let shard = ShardRef { source: name("trips"), shard: ShardId(0) };
    left(&*ledger, &shard, &datastore.incarnation, &record.id).await;

    // Claims and heartbeats are the same operation: both are throttled for a while, and the claim gives up once.
    (0..40).for_each(|_| faults.next("UpdateItem", Fault::error("ThrottlingException")));
    let config = Config { heartbeat: Duration::from_secs(3), session: Duration::from_mins(1), ..Config::default() };
    let (_sender, working_for) = tokio::sync::watch::channel(std::collections::BTreeSet::new());
    let (coordinator, mut view, _ended) =
        Coordinator::new(config, ledger, None, Identity::default(), vec![datastore], working_for);
    let stop = CancellationToken::new();
    let seen = async {
        let vacant = view.wait_for(|view| !view.vacant.is_empty()).await.unwrap().vacant.clone();
        let lease = vacant[&shard].lease.clone().expect("its lease was read");
        assert_eq!(lease.checkpoints[&record.id].low, AddedId(7));
        assert!(view.borrow().grants.is_empty());
        let since = vacant[&shard].since;
        let held = |view: &View| view.grants.contains_key(&shard);
        let view_then = view.wait_for(held).await.unwrap().clone();
        assert!(view_then.vacant.is_empty(), "held, and no longer without an owner");
        assert!(clock::since(since) >= Duration::from_secs(1), "it took a while");
        assert_eq!(view_then.sessions, 1);
    };
    tokio::select! {
        biased;
        () = seen => {}
        () = coordinator.run(stop) => panic!("nobody stopped it"),
        () = clock::sleep(Duration::from_mins(10)) => panic!("never claimed"),
    }
}
