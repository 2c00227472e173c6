//! The limits of DynamoDB through our own requests: at the bound, and one above. Where the stores differ, what each does is held
//! here, and told in `docs/differences.md`.

use super::{Fixture, Of, cases};
use super::{
    ledger_leases::{at, claim, next, shard, written},
    ledger_sessions::accepted,
    log_append::{append, cell, commit, key},
};
use bytes::Bytes;
use cellhook::cell::{
    AddedId, Checkpoint, Commit, Committed, Consistency::Strong, ErrorKind, LaneChange, Lease, LeaseWrite, Ledger, Log,
    Millis, NewCell, Parked, ParkedState, Refused, ShardId, Tip, TriggerId, Written,
};
use std::{collections::BTreeMap, sync::Arc};

cases! {
    items_end_at_400_kb
    segments_end_at_400_kb
    appends_end_at_4_mb
    appends_end_at_100_actions
    lease_writes_end_at_100_actions
    keys_end_at_2048_and_1024_bytes
    a_lease_ends_at_400_kb
    one_write_moves_twice_as_many_triggers_as_a_source_has
    pages_end_at_1_mb
    a_refusal_brings_all_items_however_large
    more_than_16_mb_are_got_at_once
    an_address_twice_in_one_append
}

/// An append of what was asked for, behind the last one.
struct Writer {
    log: Arc<dyn Log>,
    tip: Option<Tip>,
}

impl Writer {
    async fn new(fixture: &Arc<dyn Fixture>) -> Self {
        Self { log: fixture.log(1).await, tip: None }
    }

    /// Whether it is accepted; otherwise it must be refused as invalid, and leave nothing.
    async fn takes(&mut self, cells: Vec<NewCell>, packed: Option<Bytes>) -> bool {
        let commit = commit(0, self.tip, cells);
        // A moment that costs the same bytes in every append.
        let commit = Commit { packed: packed.unwrap_or(commit.packed), created_at: Millis(1111), ..commit };
        let (after, first) = (commit.tip_after(), commit.cells[0].key.clone());
        match self.log.commit(commit).await {
            Ok(Committed::Accepted) => {
                self.tip = Some(after);
                true
            }
            Err(error) if error.kind == ErrorKind::Invalid => {
                assert_eq!(self.log.tip(ShardId(0)).await.unwrap(), self.tip, "{error}");
                if first.row_key.len() <= 2048 && !first.row_key.is_empty() && first.column.len() <= 1003 {
                    assert_eq!(self.log.get(&first).await.unwrap(), None, "{error}");
                }
                false
            }
            other => panic!("{other:?}"),
        }
    }
}

/// The highest number that is accepted: `low` is, and `high` is not.
macro_rules! highest {
    ($low:expr, $high:expr, |$n:ident| $accepts:expr) => {{
        let (mut low, mut high): (usize, usize) = ($low, $high);
        for ($n, wanted) in [(low, true), (high, false)] {
            assert_eq!($accepts, wanted, "{}", $n);
        }
        while high - low > 1 {
            let $n = low + (high - low) / 2;
            if $accepts {
                low = $n;
            } else {
                high = $n;
            }
        }
        low
    }};
}

fn with_body(number: u64, bytes: usize) -> NewCell {
    NewCell { body: "1".repeat(bytes).into(), ..cell("r", "x", number) }
}

/// 409,600 bytes with the names of the attributes. How a number counts is told by AWS only roughly: there the stores may differ by
/// a few bytes, and a cell that passes the door stays 18 KB below.
async fn items_end_at_400_kb(fixture: Arc<dyn Fixture>) {
    let (mut writer, mut number) = (Writer::new(&fixture).await, 0);
    let most = highest!(400_000, 409_600, |bytes| {
        number += 1;
        writer.takes(vec![with_body(number, bytes)], None).await
    });
    let wanted = match fixture.of() {
        Of::Memory => 409_498,
        Of::Embedded => 409_533,
        Of::Local => 409_533,
    };
    assert_eq!(most, wanted);
}

async fn segments_end_at_400_kb(fixture: Arc<dyn Fixture>) {
    let (mut writer, mut number) = (Writer::new(&fixture).await, 0);
    let most = highest!(400_000, 409_600, |bytes| {
        number += 1;
        writer.takes(vec![cell("r", "x", number)], Some(vec![7; bytes].into())).await
    });
    let wanted = match fixture.of() {
        Of::Memory => 409_500,
        Of::Embedded => 409_567,
        Of::Local => 409_567,
    };
    assert_eq!(most, wanted);
}

/// 4,194,304 bytes of items in a transaction. DynamoDB Local counts some 400 bytes more than the embedded store: the items that are
/// looked at, perhaps. The appender's batches end at about 2.4 MB.
async fn appends_end_at_4_mb(fixture: Arc<dyn Fixture>) {
    let (mut writer, mut number) = (Writer::new(&fixture).await, 0);
    let most = highest!(390_000, 400_000, |bytes| {
        number += 11;
        let mut cells: Vec<NewCell> = (1..11).map(|at| with_body(number + at, 380_000)).collect();
        cells.push(with_body(number, bytes));
        writer.takes(cells, None).await
    });
    let wanted = match fixture.of() {
        Of::Memory => 393_074,
        Of::Embedded => 393_506,
        Of::Local => 393_093,
    };
    assert_eq!(most, wanted);
}

/// 98 cells, the tip and the segment.
async fn appends_end_at_100_actions(fixture: Arc<dyn Fixture>) {
    let (mut writer, mut number) = (Writer::new(&fixture).await, 0);
    let most = highest!(90, 110, |cells| {
        number += 1000;
        writer.takes((0..cells as u64).map(|at| cell("r", "x", number + at)).collect(), None).await
    });
    assert_eq!(most, 98);
}

fn parked(place: u64) -> Parked {
    Parked {
        trigger: TriggerId::from_stored("t"),
        shard: shard("trips", 3),
        added_id: AddedId(place),
        last: AddedId(place),
        row_key: "r".into(),
        column: "BASE".into(),
        ref_key: 3,
        state: ParkedState::Retrying,
        attempts: 2,
        errors: Vec::new(),
        next_attempt_at: Millis(1),
        since: Millis(1),
        revision: 1,
    }
}

/// Whether a write of the owner is accepted; otherwise it must be refused as invalid, and leave nothing.
async fn moves(ledger: &Arc<dyn Ledger>, lease: &mut Lease, write: LeaseWrite) -> bool {
    match ledger.write(&write).await {
        Ok(Written::Accepted) => {
            *lease = ledger.lease(&lease.shard).await.unwrap().unwrap();
            true
        }
        Err(error) if error.kind == ErrorKind::Invalid => {
            assert_eq!(ledger.lease(&lease.shard).await.unwrap().as_ref(), Some(&*lease), "{error}");
            false
        }
        other => panic!("{other:?}"),
    }
}

async fn held(ledger: &Arc<dyn Ledger>) -> Lease {
    accepted(claim(ledger, &shard("trips", 3), "me", None).await)
}

/// The lease and 99 parked cells; an operator has no lease in it. Ours end at 90.
async fn lease_writes_end_at_100_actions(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let mut lease = held(&ledger).await;
    let lanes = |n: usize| (1..=n as u64).map(|place| LaneChange::Put(parked(place))).collect::<Vec<_>>();
    let most = highest!(90, 110, |n| {
        let write = LeaseWrite { lanes: lanes(n), ..next(&lease) };
        moves(&ledger, &mut lease, write).await
    });
    assert_eq!(most, 99);
    assert!(ledger.operate_parked(&lanes(100)).await.unwrap());
    assert_eq!(ledger.operate_parked(&lanes(101)).await.unwrap_err().kind, ErrorKind::Invalid);
}

/// A column comes with a '#' and twenty digits. The door lets pass 1,024 bytes of a row key and 255 of a column.
async fn keys_end_at_2048_and_1024_bytes(fixture: Arc<dyn Fixture>) {
    let mut writer = Writer::new(&fixture).await;
    let of =
        |row: usize, column: usize| NewCell { key: key(&"r".repeat(row), &"c".repeat(column), 1), ..cell("r", "x", 1) };
    assert_eq!(highest!(1024, 4096, |bytes| writer.takes(vec![of(bytes, 5)], None).await), 2048);
    assert_eq!(highest!(255, 4096, |bytes| writer.takes(vec![of(5, bytes)], None).await), 1003);
    assert!(!writer.takes(vec![of(0, 5)], None).await, "no empty row key");
}

/// By its checkpoints, which are bounded to 32 of 0.8 KB. The twin does not weigh leases.
async fn a_lease_ends_at_400_kb(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let mut lease = held(&ledger).await;
    let trigger = TriggerId::from_stored("t");
    let large = |bytes: usize| Checkpoint { done: Bytes::from(vec![1; bytes]), ..at(1) };
    let mut takes = async |bytes: usize| {
        let write = LeaseWrite { checkpoints: [(trigger.clone(), large(bytes))].into(), ..next(&lease) };
        moves(&ledger, &mut lease, write).await
    };
    assert!(takes(400_000).await);
    assert_eq!(takes(410_000).await, fixture.of() == Of::Memory);
    assert!(takes(1).await, "and it is well again");
}

/// An expression ends at 4 KB. A source has at most 32 triggers; where all of them are replaced by others at once, the former ones
/// write a last time together with the new ones.
async fn one_write_moves_twice_as_many_triggers_as_a_source_has(fixture: Arc<dyn Fixture>) {
    let ledger = fixture.ledger().await;
    let lease = held(&ledger).await;
    let checkpoints: BTreeMap<TriggerId, Checkpoint> = (0..64).map(|_| (TriggerId::random(), at(7))).collect();
    let write = LeaseWrite { checkpoints: checkpoints.clone(), ..next(&lease) };
    let lease = written(&ledger, &write).await;
    assert_eq!(lease.checkpoints, checkpoints);
    let lanes = vec![LaneChange::Put(parked(1))];
    let write = LeaseWrite { checkpoints: checkpoints.clone(), lanes, ..next(&lease) };
    assert_eq!(written(&ledger, &write).await.checkpoints, checkpoints);
}

/// What is read of a page ends near 1 MB: before the item that would pass it, or behind it. Only an empty page is the end.
async fn pages_end_at_1_mb(fixture: Arc<dyn Fixture>) {
    let mut writer = Writer::new(&fixture).await;
    for number in 0..14 {
        assert!(writer.takes(vec![cell("r", "x", number)], Some(vec![7; 100_000].into())).await);
    }
    let page = writer.log.page(ShardId(0), AddedId(0), 1000, Strong).await.unwrap();
    let wanted = match fixture.of() {
        Of::Memory => 14,
        Of::Embedded => 10,
        Of::Local => 11,
    };
    assert_eq!(page.len(), wanted);
    let rest = writer.log.page(ShardId(0), page.last().unwrap().last, 1000, Strong).await.unwrap();
    assert_eq!(page.len() + rest.len(), 14);
    // Without the cells the whole of the items counts all the same.
    let keys = writer.log.keys(ShardId(0), AddedId(0), 1000).await.unwrap();
    assert_eq!(keys.len(), wanted);
}

/// The reasons of a refused append bring what lies at the addresses, though that is more than an answer of a read may hold.
async fn a_refusal_brings_all_items_however_large(fixture: Arc<dyn Fixture>) {
    let log = fixture.log(1).await;
    let cells: Vec<NewCell> = (0..10).map(|number| with_body(number, 380_000)).collect();
    let tip = append(&log, 0, None, cells.clone()).await;
    let many: Vec<NewCell> = (100..198).map(|number| cell("r", "x", number)).collect();
    let tip = append(&log, 0, Some(tip), many.clone()).await;
    for cells in [cells, many] {
        let Committed::Refused(refused) = log.commit(commit(0, Some(tip), cells.clone())).await.unwrap() else {
            panic!("they are there")
        };
        let found: Vec<NewCell> = refused
            .cells
            .iter()
            .map(|(at, stored)| {
                assert_eq!(cells[*at].key, stored.cell.key);
                NewCell { key: stored.cell.key.clone(), body: stored.cell.body.clone(), origin: None }
            })
            .collect();
        assert_eq!(found, cells);
        assert_eq!(Refused { cells: Vec::new(), ..refused }, Refused::default());
    }
}

/// An answer to `BatchGetItem` ends at 16 MB and names what is left.
async fn more_than_16_mb_are_got_at_once(fixture: Arc<dyn Fixture>) {
    let mut writer = Writer::new(&fixture).await;
    for batch in 0..5 {
        let cells = (0..10).map(|at| with_body(batch * 10 + at, 380_000)).collect();
        assert!(writer.takes(cells, None).await);
    }
    let keys: Vec<_> = (0..50).rev().map(|number| key("r", "x", number)).collect();
    let found = writer.log.get_all(&keys).await.unwrap();
    let found: Vec<_> = found.into_iter().map(|stored| stored.unwrap().cell).collect();
    assert_eq!(found.iter().map(|cell| cell.key.clone()).collect::<Vec<_>>(), keys);
    assert!(found.iter().all(|cell| cell.body.len() == 380_000));
}

/// AWS refuses a transaction with two actions on one item as invalid. DynamoDB Local goes through the actions in order, and the second
/// one meets the first. Never sent: a batch has each address once.
async fn an_address_twice_in_one_append(fixture: Arc<dyn Fixture>) {
    let log = fixture.log(1).await;
    let answer = log.commit(commit(0, None, vec![cell("r", "x", 1), cell("r", "x", 1)])).await;
    match (fixture.of(), answer) {
        (Of::Embedded | Of::Memory, Err(error)) => assert_eq!(error.kind, ErrorKind::Invalid),
        (Of::Local, Ok(Committed::Refused(_))) => {}
        (_, other) => panic!("{other:?}"),
    }
    assert_eq!(log.tip(ShardId(0)).await.unwrap(), None);
}
