//! `Ledger`: leases: claims, writes by the owner, an operator's intervention.

use super::ledger_sessions::{accepted, refused};
use super::{Fixture, cases};
use bytes::Bytes;
use cellhook::cell::{
    AddedId, Alone, Answer, Checkpoint, Epoch, Incarnation, Lease, LeaseWrite, Ledger, Millis, Name, SessionId,
    ShardId, ShardPause, ShardRef, TriggerId, Written,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::task::JoinSet;

cases! {
    a_lease_that_is_absent_is_claimed_once
    a_claim_needs_the_epoch_and_the_owner_that_it_saw
    a_claim_keeps_the_checkpoints_and_starts_the_seq_anew
    of_claims_at_the_same_time_one_wins
    the_leases_of_a_source_are_its_own
    a_write_moves_its_triggers_and_no_others
    a_write_needs_owner_epoch_and_a_higher_seq
    no_low_water_falls
    a_release_removes_the_owner
    a_write_without_a_lease_is_refused
    an_operator_sets_one_checkpoint_and_fences_the_owner
    what_an_owner_stored_after_an_operators_look_is_not_undone
    thirty_two_triggers_fit_one_write
    a_retired_trigger_is_forgotten_and_nobody_is_fenced
    deaths_are_counted_by_claims_from_dead_owners
    a_cell_that_is_called_alone_is_evidence_only_of_a_death
}

/// A write that must be accepted; gives the lease as it stands then.
pub(super) async fn written(ledger: &Arc<dyn Ledger>, write: &LeaseWrite) -> Lease {
    assert_eq!(ledger.write(write).await.unwrap(), Written::Accepted);
    ledger.lease(&write.shard).await.unwrap().unwrap()
}

/// A write that must be refused; gives what the refusal told.
pub(super) async fn unwritten(ledger: &Arc<dyn Ledger>, write: &LeaseWrite) -> Option<Lease> {
    match ledger.write(write).await.unwrap() {
        Written::Refused(lease) => lease,
        Written::Accepted => panic!("{write:?} was accepted"),
    }
}

pub(super) fn shard(source: &str, shard: u32) -> ShardRef {
    ShardRef { source: Name::new(source).unwrap(), shard: ShardId(shard) }
}

pub(super) fn id(text: &str) -> SessionId {
    SessionId::from_stored(text)
}

pub(super) fn at(low: u64) -> Checkpoint {
    Checkpoint { low: AddedId(low), ..Checkpoint::default() }
}

pub(super) fn points<const N: usize>(list: [(&str, Checkpoint); N]) -> BTreeMap<TriggerId, Checkpoint> {
    list.into_iter().map(|(trigger, checkpoint)| (TriggerId::from_stored(trigger), checkpoint)).collect()
}

pub(super) async fn claim(ledger: &Arc<dyn Ledger>, shard: &ShardRef, me: &str, seen: Option<&Lease>) -> Answer<Lease> {
    ledger.claim(shard, &Incarnation::from_stored("inc"), &id(me), seen, Millis(7)).await.unwrap()
}

/// A write of that lease by its owner, with the next seq.
pub(super) fn next(lease: &Lease) -> LeaseWrite {
    LeaseWrite {
        shard: lease.shard.clone(),
        owner: lease.owner.clone().expect("an owner"),
        epoch: lease.epoch,
        seq: lease.seq + 1,
        checkpoints: BTreeMap::new(),
        lanes: Vec::new(),
        alone: None,
        release: false,
    }
}

async fn a_lease_that_is_absent_is_claimed_once(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let shard = shard("trips", 7);
    assert_eq!(ledger.lease(&shard).await.unwrap(), None);
    let lease = accepted(claim(&ledger, &shard, "me", None).await);
    let wanted = Lease {
        shard: shard.clone(),
        incarnation: Incarnation::from_stored("inc"),
        owner: Some(id("me")),
        epoch: Epoch(1),
        seq: 0,
        claimed_at: Millis(7),
        checkpoints: BTreeMap::new(),
        deaths: 0,
        alone: None,
    };
    assert_eq!(lease, wanted);
    assert_eq!(ledger.lease(&shard).await.unwrap(), Some(lease.clone()));
    assert_eq!(refused(claim(&ledger, &shard, "you", None).await), Some(lease.clone()));
    assert_eq!(refused(claim(&ledger, &shard, "me", None).await), Some(lease), "nor a second time by its owner");
}

async fn a_claim_needs_the_epoch_and_the_owner_that_it_saw(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let shard = shard("trips", 7);
    let first = accepted(claim(&ledger, &shard, "me", None).await);
    let second = accepted(claim(&ledger, &shard, "you", Some(&first)).await);
    assert_eq!((second.epoch, &second.owner), (Epoch(2), &Some(id("you"))));
    assert_eq!(second.incarnation, first.incarnation);

    assert_eq!(refused(claim(&ledger, &shard, "me", Some(&first)).await), Some(second.clone()), "an old epoch");
    for owner in [None, Some(id("me"))] {
        let other = Lease { owner, ..second.clone() };
        assert_eq!(refused(claim(&ledger, &shard, "me", Some(&other)).await), Some(second.clone()), "another owner");
    }
    let own = accepted(claim(&ledger, &shard, "you", Some(&second)).await);
    assert_eq!((own.epoch, own.owner), (Epoch(3), Some(id("you"))), "an owner may claim anew");

    let absent = Lease { shard: self::shard("trips", 8), ..first };
    assert_eq!(refused(claim(&ledger, &absent.shard, "me", Some(&absent)).await), None);
    assert_eq!(ledger.lease(&absent.shard).await.unwrap(), None);
}

async fn a_claim_keeps_the_checkpoints_and_starts_the_seq_anew(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let shard = shard("trips", 0);
    let first = accepted(claim(&ledger, &shard, "me", None).await);
    let full = Checkpoint {
        low: AddedId(1 << 60),
        done: Bytes::from(vec![0xff; 512]),
        attempts: Bytes::from_static(&[0, 1]),
        paused: Some(ShardPause { generation: 3, reason: "why".into() }),
        dead: 17,
        generation: 2,
        outlived: 4,
    };
    let checkpoints = points([("t1", full), ("t2", Checkpoint::default())]);
    let write = LeaseWrite { checkpoints: checkpoints.clone(), seq: 5, ..next(&first) };
    let written = written(&ledger, &write).await;
    assert_eq!(written, Lease { seq: 5, checkpoints: checkpoints.clone(), ..first });
    let second = accepted(claim(&ledger, &shard, "you", Some(&written)).await);
    assert_eq!(second, Lease { owner: Some(id("you")), epoch: Epoch(2), seq: 0, checkpoints, deaths: 1, ..written });
    assert_eq!(ledger.lease(&shard).await.unwrap(), Some(second));
}

async fn of_claims_at_the_same_time_one_wins(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let shard = shard("trips", 0);
    let mut seen = None;
    for epoch in 1..=6 {
        let mut race = JoinSet::new();
        for worker in 0..16 {
            let (ledger, shard, seen) = (ledger.clone(), shard.clone(), seen.clone());
            race.spawn(async move { claim(&ledger, &shard, &format!("w{worker}"), seen.as_ref()).await });
        }
        let answers = race.join_all().await;
        let lease = ledger.lease(&shard).await.unwrap().unwrap();
        assert_eq!(lease.epoch, Epoch(epoch));
        let won: Vec<_> = answers.iter().filter(|answer| matches!(answer, Answer::Accepted(_))).collect();
        assert_eq!(won, [&Answer::Accepted(lease.clone())]);
        let told = |answer: &Answer<Lease>| matches!(answer, Answer::Refused(Some(found)) if *found == lease);
        assert_eq!(answers.iter().filter(|answer| told(answer)).count(), 15);
        seen = Some(lease);
    }
}

async fn the_leases_of_a_source_are_its_own(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    assert_eq!(ledger.leases(&Name::new("trips").unwrap()).await.unwrap(), []);
    let mut wanted = Vec::new();
    for number in (0..40).chain([4_095, 65_535]) {
        wanted.push(accepted(claim(&ledger, &shard("trips", number), "me", None).await));
    }
    for other in ["trip", "trips2", "trips_x"] {
        accepted(claim(&ledger, &shard(other, 0), "me", None).await);
    }
    let mut found = ledger.leases(&Name::new("trips").unwrap()).await.unwrap();
    found.sort_by_key(|lease| lease.shard.shard);
    assert_eq!(found, wanted);
    assert_eq!(ledger.leases(&Name::new("trip").unwrap()).await.unwrap().len(), 1);
}

async fn a_write_moves_its_triggers_and_no_others(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let lease = accepted(claim(&ledger, &shard("trips", 3), "me", None).await);
    let first = LeaseWrite { checkpoints: points([("t1", at(5)), ("t2", at(7))]), ..next(&lease) };
    let lease = written(&ledger, &first).await;
    assert_eq!((lease.seq, &lease.checkpoints), (1, &first.checkpoints));
    let paused = Checkpoint { paused: Some(ShardPause { generation: 0, reason: String::new() }), ..at(9) };
    let second = LeaseWrite { checkpoints: points([("t2", paused.clone()), ("t3", at(0))]), ..next(&lease) };
    let lease = written(&ledger, &second).await;
    let wanted = points([("t1", at(5)), ("t2", paused), ("t3", at(0))]);
    assert_eq!((lease.seq, &lease.checkpoints), (2, &wanted));
    let unpaused = LeaseWrite { checkpoints: points([("t2", at(9))]), ..next(&lease) };
    let lease = written(&ledger, &unpaused).await;
    assert_eq!(lease.checkpoints[&TriggerId::from_stored("t2")], at(9), "a checkpoint is replaced whole");
    assert_eq!(ledger.lease(&lease.shard).await.unwrap(), Some(lease));
}

async fn a_write_needs_owner_epoch_and_a_higher_seq(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let shard = shard("trips", 3);
    let first = accepted(claim(&ledger, &shard, "me", None).await);
    let lease = accepted(claim(&ledger, &shard, "me", Some(&first)).await);
    let write = LeaseWrite { checkpoints: points([("t", at(1))]), ..next(&lease) };
    let lease = written(&ledger, &write).await;
    let good = LeaseWrite { checkpoints: points([("t", at(2))]), ..next(&lease) };
    let bad = [
        ("the same again", LeaseWrite { checkpoints: points([("t", at(2))]), ..write }),
        ("seq 0", LeaseWrite { seq: 0, ..good.clone() }),
        ("another owner", LeaseWrite { owner: id("you"), ..good.clone() }),
        ("an old epoch", LeaseWrite { epoch: Epoch(1), ..good.clone() }),
        ("a coming epoch", LeaseWrite { epoch: Epoch(3), ..good.clone() }),
    ];
    for (what, write) in bad {
        assert_eq!(unwritten(&ledger, &write).await, Some(lease.clone()), "{what}");
    }
    assert_eq!(ledger.lease(&shard).await.unwrap(), Some(lease));
    let far = LeaseWrite { seq: 1_000, ..good };
    assert_eq!(written(&ledger, &far).await.seq, 1_000, "higher is enough");
}

async fn no_low_water_falls(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let lease = accepted(claim(&ledger, &shard("trips", 3), "me", None).await);
    let write = LeaseWrite { checkpoints: points([("a", at(10)), ("b", at(99))]), ..next(&lease) };
    let lease = written(&ledger, &write).await;
    // 9 and 100: as texts they would compare the other way round.
    for falling in [points([("a", at(9))]), points([("a", at(100)), ("b", at(98))])] {
        let write = LeaseWrite { checkpoints: falling, ..next(&lease) };
        assert_eq!(unwritten(&ledger, &write).await, Some(lease.clone()));
    }
    let same = LeaseWrite { checkpoints: points([("a", at(10)), ("b", at(100))]), ..next(&lease) };
    let lease = written(&ledger, &same).await;
    assert_eq!(lease.checkpoints, same.checkpoints);
}

async fn a_release_removes_the_owner(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let lease = accepted(claim(&ledger, &shard("trips", 3), "me", None).await);
    let write = LeaseWrite { checkpoints: points([("a", at(10))]), release: true, ..next(&lease) };
    let free = written(&ledger, &write).await;
    assert_eq!(free, Lease { owner: None, seq: 1, checkpoints: write.checkpoints.clone(), ..lease.clone() });
    let late = LeaseWrite { seq: 9, ..write };
    assert_eq!(unwritten(&ledger, &late).await, Some(free.clone()), "its word no longer counts");
    let stale = Lease { owner: Some(id("me")), ..free.clone() };
    assert_eq!(refused(claim(&ledger, &free.shard, "you", Some(&stale)).await), Some(free.clone()));
    let taken = accepted(claim(&ledger, &free.shard, "you", Some(&free)).await);
    assert_eq!((taken.epoch, taken.owner), (Epoch(2), Some(id("you"))));
}

async fn a_write_without_a_lease_is_refused(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let lease = accepted(claim(&ledger, &shard("trips", 3), "me", None).await);
    let absent = LeaseWrite { shard: shard("trips", 4), checkpoints: points([("a", at(1))]), ..next(&lease) };
    assert_eq!(unwritten(&ledger, &absent).await, None);
    assert_eq!(ledger.lease(&absent.shard).await.unwrap(), None);
}

async fn an_operator_sets_one_checkpoint_and_fences_the_owner(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let shard = shard("trips", 3);
    let trigger = TriggerId::from_stored("a");
    let lease = accepted(claim(&ledger, &shard, "me", None).await);
    let absent = Lease { shard: self::shard("trips", 4), ..lease.clone() };
    assert_eq!(refused(ledger.operate(&absent, &trigger, &at(1)).await.unwrap()), None);

    let write = LeaseWrite { checkpoints: points([("a", at(10)), ("b", at(20))]), ..next(&lease) };
    let lease = written(&ledger, &write).await;
    for stale in [0, 2] {
        let seen = Lease { epoch: Epoch(stale), ..lease.clone() };
        let answer = ledger.operate(&seen, &trigger, &at(3)).await.unwrap();
        assert_eq!(refused(answer), Some(lease.clone()));
    }
    let after = accepted(ledger.operate(&lease, &trigger, &at(3)).await.unwrap());
    assert_eq!((after.epoch, after.seq, &after.owner), (Epoch(2), 0, &None));
    assert_eq!(after.checkpoints, points([("a", at(3)), ("b", at(20))]), "a rewind may go back, of one trigger");
    let late = LeaseWrite { checkpoints: points([("a", at(11))]), ..next(&lease) };
    assert_eq!(unwritten(&ledger, &late).await, Some(after.clone()));

    let unheld = accepted(ledger.operate(&after, &TriggerId::from_stored("c"), &at(1)).await.unwrap());
    assert_eq!((unheld.epoch, unheld.checkpoints.len()), (Epoch(3), 3), "nor is an owner needed, or the trigger");
    let taken = accepted(claim(&ledger, &shard, "me", Some(&unheld)).await);
    assert_eq!((taken.epoch, taken.seq), (Epoch(4), 0));
}

async fn what_an_owner_stored_after_an_operators_look_is_not_undone(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let trigger = TriggerId::from_stored("a");
    let seen = accepted(claim(&ledger, &shard("trips", 3), "me", None).await);
    let write = LeaseWrite { checkpoints: points([("a", at(10))]), ..next(&seen) };
    let moved = written(&ledger, &write).await;
    assert_eq!(refused(ledger.operate(&seen, &trigger, &at(3)).await.unwrap()), Some(moved.clone()));
    let other = LeaseWrite { checkpoints: points([("b", at(1))]), ..next(&moved) };
    let later = written(&ledger, &other).await;
    assert_eq!(
        refused(ledger.operate(&moved, &trigger, &at(3)).await.unwrap()),
        Some(later.clone()),
        "whatever it was"
    );
    let after = accepted(ledger.operate(&later, &trigger, &at(3)).await.unwrap());
    assert_eq!(refused(ledger.operate(&later, &trigger, &at(5)).await.unwrap()), Some(after), "nor another operator's");
}

async fn thirty_two_triggers_fit_one_write(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let mut lease = accepted(claim(&ledger, &shard("trips", 3), "me", None).await);
    for round in 1..=2 {
        let full = Checkpoint { done: Bytes::from(vec![1; 512]), ..at(round) };
        let checkpoints = (0..32).map(|_| (TriggerId::random(), full.clone()));
        let checkpoints = if round == 1 {
            checkpoints.collect()
        } else {
            lease.checkpoints.keys().map(|trigger| (trigger.clone(), full.clone())).collect()
        };
        let write = LeaseWrite { checkpoints, ..next(&lease) };
        lease = written(&ledger, &write).await;
        assert_eq!(lease.checkpoints, write.checkpoints);
    }
}

async fn a_retired_trigger_is_forgotten_and_nobody_is_fenced(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let shard = shard("trips", 7);
    let (gone, stays) = (TriggerId::from_stored("gone"), TriggerId::from_stored("stays"));
    ledger.forget_checkpoint(&shard, &gone).await.unwrap();
    assert_eq!(ledger.lease(&shard).await.unwrap(), None, "no lease is made");
    let lease = accepted(claim(&ledger, &shard, "me", None).await);
    let write = LeaseWrite { checkpoints: points([("gone", at(5)), ("stays", at(6))]), ..next(&lease) };
    let lease = written(&ledger, &write).await;
    for _ in 0..2 {
        ledger.forget_checkpoint(&shard, &gone).await.unwrap();
        let wanted = Lease { checkpoints: points([("stays", at(6))]), ..lease.clone() };
        assert_eq!(ledger.lease(&shard).await.unwrap(), Some(wanted));
    }
    let after = written(&ledger, &LeaseWrite { checkpoints: points([("stays", at(9))]), ..next(&lease) }).await;
    assert_eq!(after.checkpoints.keys().collect::<Vec<_>>(), [&stays]);
}

async fn deaths_are_counted_by_claims_from_dead_owners(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let shard = shard("trips", 7);
    let mut lease = accepted(claim(&ledger, &shard, "a", None).await);
    assert_eq!(lease.deaths, 0);
    for (owner, deaths) in [("b", 1), ("c", 2), ("c", 2), ("d", 3)] {
        let seen = lease.clone();
        lease = accepted(claim(&ledger, &shard, owner, Some(&seen)).await);
        assert_eq!(lease.deaths, deaths, "{owner}, after {:?}", seen.owner);
        assert_eq!(
            refused(claim(&ledger, &shard, "e", Some(&seen)).await),
            Some(lease.clone()),
            "a refused one adds none"
        );
    }
    let free = written(&ledger, &LeaseWrite { release: true, ..next(&lease) }).await;
    assert_eq!(accepted(claim(&ledger, &shard, "a", Some(&free)).await).deaths, 3, "nobody died");
}

async fn a_cell_that_is_called_alone_is_evidence_only_of_a_death(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let shard = shard("trips", 7);
    let mut lease = accepted(claim(&ledger, &shard, "a", None).await);
    let alone =
        |added_id, quiet| Some(Alone { trigger: TriggerId::from_stored("t"), added_id: AddedId(added_id), quiet });
    for recorded in [alone(7, false), alone(8, true), None, alone(9, true)] {
        lease = written(&ledger, &LeaseWrite { alone: recorded.clone(), ..next(&lease) }).await;
        assert_eq!(lease.alone, recorded, "each write says what is so from now on");
    }
    let late = LeaseWrite { seq: lease.seq, ..next(&lease) };
    assert_eq!(unwritten(&ledger, &late).await, Some(lease.clone()), "a refused one says nothing");
    lease = accepted(claim(&ledger, &shard, "b", Some(&lease)).await);
    assert_eq!(lease.alone, alone(9, true), "its owner died");
    lease = accepted(claim(&ledger, &shard, "b", Some(&lease)).await);
    assert_eq!(lease.alone, None, "its owner claimed anew");
    let write = LeaseWrite { alone: alone(9, true), release: true, ..next(&lease) };
    lease = written(&ledger, &write).await;
    lease = accepted(claim(&ledger, &shard, "c", Some(&lease)).await);
    assert_eq!(lease.alone, None, "its owner left");
}
