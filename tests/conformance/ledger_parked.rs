//! `Ledger`: parked cells, by the owner together with its checkpoint, and by an operator.

use super::ledger_leases::{at, claim, id, next, points, shard, unwritten, written};
use super::ledger_sessions::accepted;
use super::{Fixture, cases};
use cellhook::cell::{
    AddedId, Lane, LaneChange, LaneKind, Lease, LeaseWrite, Ledger, Millis, Parked, ParkedState, TriggerId,
};
use std::sync::Arc;

cases! {
    cells_are_parked_with_their_checkpoint
    what_is_parked_comes_back_whole
    lanes_are_apart_in_order_and_within_their_limit
    a_lane_larger_than_a_page_comes_whole
    all_lanes_come_whole_page_by_page
    a_refused_lane_change_keeps_the_checkpoint
    a_refused_checkpoint_keeps_the_lane
    an_owner_changes_deletes_and_moves
    a_put_overwrites
    ninety_changes_fit_one_write
    an_operator_changes_all_or_nothing
}

fn parked(trigger: &str, number: u32, added_id: u64, state: ParkedState) -> Parked {
    Parked {
        trigger: TriggerId::from_stored(trigger),
        shard: shard("trips", number),
        added_id: AddedId(added_id),
        last: AddedId(added_id),
        row_key: format!("row {added_id}"),
        column: "BASE".into(),
        ref_key: 3,
        state,
        attempts: 2,
        errors: vec!["first".into(), "second\n\"é\"".into()],
        next_attempt_at: Millis(1_700_000_000_000),
        since: Millis(1_600_000_000_000),
        revision: 1,
    }
}

fn retrying(added_id: u64) -> Parked {
    parked("t", 3, added_id, ParkedState::Retrying)
}

fn active() -> Lane {
    retrying(1).lane()
}

fn dead() -> Lane {
    Lane { kind: LaneKind::Dead, ..active() }
}

async fn held(ledger: &Arc<dyn Ledger>) -> Lease {
    accepted(claim(ledger, &shard("trips", 3), "me", None).await)
}

/// Writes lane changes by the owner; gives the lease after it.
async fn write(ledger: &Arc<dyn Ledger>, lease: &Lease, lanes: Vec<LaneChange>) -> Lease {
    written(ledger, &LeaseWrite { lanes, ..next(lease) }).await
}

async fn all(ledger: &Arc<dyn Ledger>, lane: &Lane) -> Vec<Parked> {
    ledger.parked(lane, AddedId(0), 10_000).await.unwrap()
}

fn places(list: &[Parked]) -> Vec<u64> {
    list.iter().map(|parked| parked.added_id.0).collect()
}

async fn cells_are_parked_with_their_checkpoint(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let lease = held(&ledger).await;
    assert_eq!(all(&ledger, &active()).await, []);
    let lanes = vec![LaneChange::Put(retrying(2)), LaneChange::Put(retrying(1))];
    let write = LeaseWrite { lanes, checkpoints: points([("t", at(2))]), ..next(&lease) };
    let after = written(&ledger, &write).await;
    assert_eq!(after, Lease { seq: 1, checkpoints: write.checkpoints.clone(), ..lease });
    assert_eq!(all(&ledger, &active()).await, [retrying(1), retrying(2)]);
    assert_eq!(unwritten(&ledger, &write).await, Some(after), "once");
}

async fn what_is_parked_comes_back_whole(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let lease = held(&ledger).await;
    let range = Parked {
        last: AddedId(90),
        row_key: String::new(),
        column: String::new(),
        ref_key: 0,
        attempts: 0,
        errors: vec![],
        next_attempt_at: Millis(0),
        ..parked("t", 3, 7, ParkedState::Dead)
    };
    let long = Parked {
        row_key: "r".repeat(1024),
        column: "c".repeat(255),
        ref_key: u64::MAX >> 1,
        errors: vec!["e".repeat(1024); 3],
        ..parked("t", 3, u64::MAX >> 1, ParkedState::Dead)
    };
    write(&ledger, &lease, vec![LaneChange::Put(range.clone()), LaneChange::Put(long.clone())]).await;
    assert_eq!(all(&ledger, &dead()).await, [range, long]);
}

async fn lanes_are_apart_in_order_and_within_their_limit(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let lease = held(&ledger).await;
    let order = [100, 9, 10, 99, 11];
    let mut lanes: Vec<_> = order.map(|place| LaneChange::Put(retrying(place))).into();
    lanes.push(LaneChange::Put(parked("t", 3, 50, ParkedState::Waiting)));
    for other in [parked("t", 3, 60, ParkedState::Dead), parked("u", 3, 61, ParkedState::Retrying)] {
        lanes.push(LaneChange::Put(other));
    }
    lanes.push(LaneChange::Put(parked("t", 30, 62, ParkedState::Retrying)));
    write(&ledger, &lease, lanes).await;
    let sorted = [9, 10, 11, 50, 99, 100];
    assert_eq!(places(&all(&ledger, &active()).await), sorted, "both active states, one order");
    for after in [0, 8, 9, 10, 98, 100, 101] {
        for limit in [0, 1, 2, 100] {
            let wanted: Vec<u64> = sorted.into_iter().filter(|place| *place > after).take(limit).collect();
            let found = ledger.parked(&active(), AddedId(after), limit).await.unwrap();
            assert_eq!(places(&found), wanted, "after {after}, limit {limit}");
        }
    }
    assert_eq!(places(&all(&ledger, &dead()).await), [60]);
    let other = parked("u", 3, 61, ParkedState::Retrying).lane();
    assert_eq!(places(&all(&ledger, &other).await), [61]);
    let other = parked("t", 30, 62, ParkedState::Retrying).lane();
    assert_eq!(places(&all(&ledger, &other).await), [62]);
}

async fn a_lane_larger_than_a_page_comes_whole(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let mut lease = held(&ledger).await;
    for round in 0..8 {
        let large = |place| Parked { errors: vec!["e".repeat(1024); 3], ..retrying(place) };
        let lanes = (1..=50).map(|place| LaneChange::Put(large(round * 50 + place))).collect();
        lease = write(&ledger, &lease, lanes).await;
    }
    assert_eq!(places(&all(&ledger, &active()).await), (1..=400).collect::<Vec<_>>());
    let some = ledger.parked(&active(), AddedId(5), 390).await.unwrap();
    assert_eq!(places(&some), (6..=395).collect::<Vec<_>>(), "the limit and not the page decides");
}

/// Read in pages of any size, each parked cell of the group is met once, and a lane's cells come together and in order.
async fn all_lanes_come_whole_page_by_page(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    assert_eq!(ledger.all_parked(None, 10).await.unwrap(), []);
    let lease = held(&ledger).await;
    let mut put = Vec::new();
    for (trigger, shard) in [("t", 3), ("t", 30), ("u", 3)] {
        for (place, state) in [(100, ParkedState::Retrying), (9, ParkedState::Waiting), (11, ParkedState::Dead)] {
            let large = Parked { errors: vec!["e".repeat(1024); 3], ..parked(trigger, shard, place, state) };
            put.extend([large.clone(), Parked { added_id: AddedId(place + 1), last: AddedId(place + 1), ..large }]);
        }
    }
    write(&ledger, &lease, put.iter().cloned().map(LaneChange::Put).collect()).await;
    let by_place = |parked: &Parked| (parked.lane(), parked.added_id);
    put.sort_by_key(by_place);
    for limit in [1, 2, 5, 17, 18, 1000] {
        let mut found: Vec<Parked> = Vec::new();
        loop {
            let page = ledger.all_parked(found.last(), limit).await.unwrap();
            let ended = page.len() < limit;
            found.extend(page);
            if ended {
                break;
            }
        }
        let mut lanes: Vec<Lane> = found.iter().map(Parked::lane).collect();
        lanes.dedup();
        assert_eq!(lanes.len(), 6, "limit {limit}: a lane's cells are together");
        assert!(found.windows(2).all(|two| two[0].lane() != two[1].lane() || two[0].added_id < two[1].added_id));
        found.sort_by_key(by_place);
        assert_eq!(found, put, "limit {limit}");
    }
    // The cell that a page ended with may be gone when the next is asked for.
    let page = ledger.all_parked(None, 4).await.unwrap();
    assert!(ledger.operate_parked(&[LaneChange::Delete(page[3].clone())]).await.unwrap());
    assert_eq!(ledger.all_parked(page.last(), 100).await.unwrap().len(), 14);
}

async fn a_refused_lane_change_keeps_the_checkpoint(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let lease = held(&ledger).await;
    let lease = write(&ledger, &lease, vec![LaneChange::Put(retrying(1))]).await;
    let stale = Parked { revision: 2, ..retrying(1) };
    for change in [LaneChange::Update(stale.clone()), LaneChange::Delete(stale), LaneChange::Delete(retrying(2))] {
        let lanes = vec![LaneChange::Put(retrying(8)), change];
        let write = LeaseWrite { lanes, checkpoints: points([("t", at(9))]), ..next(&lease) };
        let found = unwritten(&ledger, &write).await.unwrap();
        assert_eq!(found, lease, "it still satisfies the write's condition, which so tells what was refused");
    }
    assert_eq!(all(&ledger, &active()).await, [retrying(1)], "and the other change was not made either");
}

async fn a_refused_checkpoint_keeps_the_lane(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let lease = held(&ledger).await;
    let lanes = vec![LaneChange::Put(retrying(1))];
    let write = LeaseWrite { lanes, checkpoints: points([("t", at(9))]), ..next(&lease) };
    let lease = written(&ledger, &write).await;
    let lanes = vec![LaneChange::Put(retrying(2)), LaneChange::Delete(retrying(1))];
    let good = LeaseWrite { lanes, ..next(&lease) };
    let bad = [
        LeaseWrite { seq: 1, ..good.clone() },
        LeaseWrite { owner: id("you"), ..good.clone() },
        LeaseWrite { epoch: cellhook::cell::Epoch(2), ..good.clone() },
        LeaseWrite { checkpoints: points([("t", at(8))]), ..good.clone() },
    ];
    for write in bad {
        assert_eq!(unwritten(&ledger, &write).await, Some(lease.clone()));
        assert_eq!(all(&ledger, &active()).await, [retrying(1)]);
    }
    let absent = LeaseWrite { shard: shard("trips", 4), ..good.clone() };
    assert_eq!(unwritten(&ledger, &absent).await, None);
    let release = LeaseWrite { release: true, ..good };
    assert_eq!(written(&ledger, &release).await.owner, None);
    assert_eq!(all(&ledger, &active()).await, [retrying(2)]);
}

async fn an_owner_changes_deletes_and_moves(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let lease = held(&ledger).await;
    let lease = write(&ledger, &lease, (1..=3).map(|place| LaneChange::Put(retrying(place))).collect()).await;
    let changed = Parked { attempts: 9, errors: vec![], state: ParkedState::Waiting, ..retrying(2) };
    let buried = parked("t", 3, 3, ParkedState::Dead);
    let lanes = vec![
        LaneChange::Delete(retrying(1)),
        LaneChange::Update(changed.clone()),
        LaneChange::Delete(retrying(3)),
        LaneChange::Put(buried.clone()),
    ];
    let lease = write(&ledger, &lease, lanes).await;
    let changed = Parked { revision: 2, ..changed };
    assert_eq!(all(&ledger, &active()).await, std::slice::from_ref(&changed));
    assert_eq!(all(&ledger, &dead()).await, [buried]);
    write(&ledger, &lease, vec![LaneChange::Update(changed)]).await;
    assert_eq!(all(&ledger, &active()).await[0].revision, 3);
}

async fn a_put_overwrites(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let lease = held(&ledger).await;
    let lease = write(&ledger, &lease, vec![LaneChange::Put(Parked { revision: 77, ..retrying(1) })]).await;
    assert_eq!(
        all(&ledger, &active()).await,
        [Parked { revision: 77, ..retrying(1) }],
        "a put has the revision that it brings"
    );
    let lease = write(&ledger, &lease, vec![LaneChange::Update(Parked { revision: 77, ..retrying(1) })]).await;
    let fresh = Parked { attempts: 0, ..retrying(1) };
    write(&ledger, &lease, vec![LaneChange::Put(fresh.clone())]).await;
    assert_eq!(all(&ledger, &active()).await, [fresh], "whatever lay there");
}

async fn ninety_changes_fit_one_write(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let lease = held(&ledger).await;
    let long = |place| Parked { row_key: "r".repeat(1024), errors: vec!["e".repeat(1024); 3], ..retrying(place) };
    let lease = write(&ledger, &lease, (1..=90).map(|place| LaneChange::Put(long(place))).collect()).await;
    assert_eq!(all(&ledger, &active()).await.len(), 90);
    write(&ledger, &lease, (1..=90).map(|place| LaneChange::Delete(long(place))).collect()).await;
    assert_eq!(all(&ledger, &active()).await, []);
}

async fn an_operator_changes_all_or_nothing(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let lease = held(&ledger).await;
    assert!(ledger.operate_parked(&[]).await.unwrap(), "nothing to do is done");
    let buried = |place| parked("t", 3, place, ParkedState::Dead);
    write(&ledger, &lease, vec![LaneChange::Put(buried(1)), LaneChange::Put(buried(2))]).await;
    let stale = Parked { revision: 2, ..buried(2) };
    let bad = [LaneChange::Delete(buried(1)), LaneChange::Put(retrying(1)), LaneChange::Delete(stale)];
    assert!(!ledger.operate_parked(&bad).await.unwrap());
    assert!(!ledger.operate_parked(&[LaneChange::Update(buried(3))]).await.unwrap(), "absent");
    assert_eq!((all(&ledger, &dead()).await.len(), all(&ledger, &active()).await.len()), (2, 0));

    let again = [LaneChange::Delete(buried(1)), LaneChange::Put(retrying(1)), LaneChange::Update(buried(2))];
    assert!(ledger.operate_parked(&again).await.unwrap());
    assert!(!ledger.operate_parked(&again).await.unwrap(), "once");
    assert_eq!(all(&ledger, &active()).await, [retrying(1)]);
    assert_eq!(all(&ledger, &dead()).await, [Parked { revision: 2, ..buried(2) }]);
    assert_eq!(ledger.lease(&lease.shard).await.unwrap().unwrap().epoch, lease.epoch, "the lease is not touched");
}
