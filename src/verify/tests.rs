//! What goes on meanwhile is nothing wrong. Over the twin in memory, which changes while it is read.

use super::*;
use crate::{
    cell::{
        CellKey, Checkpoint, Epoch, LaneChange, LeaseWrite, Millis, NewCell, NewDatastore, Parked, ParkedState,
        SegmentKey, SessionId, ShardRef, TriggerId, TriggerRecord, TriggerState, Written,
    },
    store::{
        Cells,
        memory::{MemoryLedger, MemoryLog},
        segment,
    },
    tail::{self, Mode},
};
use futures_util::FutureExt;
use tokio::time::{Instant, sleep};

const SHARD: ShardId = ShardId(0);

fn cell(ref_key: u64) -> NewCell {
    let key = CellKey { row_key: "r".into(), column: "c".into(), ref_key };
    NewCell { key, body: "1".into(), origin: None }
}

fn trips(shards: u32) -> Arc<MemoryLog> {
    Arc::new(MemoryLog::new(&NewDatastore { name: name("trips"), shards }))
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// So many segments of one cell each.
async fn filled(segments: u64) -> (Arc<MemoryLog>, Cells) {
    let log = trips(1);
    let cells = Cells::new(log.clone());
    for ref_key in 1..=segments {
        assert!(cells.put(vec![cell(ref_key)]).await[0].is_ok());
    }
    (log, cells)
}

/// Verifies, and does something once, when so many cells were passed.
async fn verified(log: &MemoryLog, plan: Plan, at: u64, act: impl FnOnce()) -> (Summary, Vec<Flaw>) {
    let (mut flaws, mut passed, mut act) = (Vec::new(), 0, Some(act));
    let mut hear = |event| {
        match event {
            Event::Passed(cells) => passed += cells,
            Event::Found(finding) => flaws.push(finding.flaw),
        }
        if passed >= at
            && let Some(act) = act.take()
        {
            act();
        }
        ControlFlow::Continue(())
    };
    let summary = verify(log, &[], plan, &mut hear).await.unwrap();
    assert!(act.is_none(), "it came so far");
    (summary, flaws)
}

fn plans() -> [Plan; 2] {
    [Plan::default(), Plan { sample: Some(Sample { per_million: 1_000_000, seed: 0 }), rate: None }]
}

#[tokio::test(start_paused = true)]
async fn a_trim_that_goes_past_the_reader_is_no_hole() {
    for plan in plans() {
        let (log, _) = filled(700).await;
        let trim = || {
            assert!(log.raise_trim(SHARD, AddedId(600)).now_or_never().unwrap().unwrap());
            for last in (1..=600).map(AddedId) {
                log.delete_segment(SHARD, last).now_or_never().unwrap().unwrap();
            }
        };
        let (summary, flaws) = verified(&log, plan, 10, trim).await;
        assert_eq!(flaws, [], "{plan:?}");
        assert_eq!((summary.cells, summary.trimmed), (700, 600), "{plan:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_appended_meanwhile_is_new_and_not_wrong() {
    for plan in plans() {
        let (log, cells) = filled(60).await;
        let append = || assert!(cells.put(vec![cell(1000)]).now_or_never().unwrap()[0].is_ok());
        let (summary, flaws) = verified(&log, plan, 60, append).await;
        assert_eq!((flaws, summary.newer, summary.logged), (vec![], 1, 60), "{plan:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn tables_that_are_made_anew_meanwhile_are_told() {
    for plan in plans() {
        let (log, _) = filled(60).await;
        let (_, flaws) = verified(&log, plan, 60, || log.make_anew()).await;
        assert_eq!(flaws.last(), Some(&Flaw::DatastoreChanged), "{plan:?}: {flaws:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_has_heard_enough_ends_it() {
    let (log, _) = filled(3).await;
    let ended = verify(&*log, &[], Plan::default(), &mut |_| ControlFlow::Break(())).await;
    assert!(matches!(ended, Err(Stopped::Unheard)));
}

#[tokio::test(start_paused = true)]
async fn a_rate_is_kept() {
    let (log, _) = filled(200).await;
    let begun = Instant::now();
    let plan = Plan { rate: Some(10), ..Plan::default() };
    let summary = verify(&*log, &[], plan, &mut |_| ControlFlow::Continue(())).await.unwrap();
    assert!(summary.units > 10, "{summary:?}");
    assert!(begun.elapsed().as_millis() >= u128::from(summary.units - 1) * 100, "{:?} {summary:?}", begun.elapsed());
}

/// What is told of a log that nobody changes.
async fn flaws(log: &MemoryLog, groups: &[Group], plan: Plan) -> (Summary, Vec<Flaw>) {
    let mut flaws = Vec::new();
    let mut hear = |event| {
        if let Event::Found(finding) = event {
            flaws.push(finding.flaw);
        }
        ControlFlow::Continue(())
    };
    let summary = verify(log, groups, plan, &mut hear).await.unwrap();
    (summary, flaws)
}

/// Puts another cell at a place of the log, in a segment of its own.
async fn replace(log: &MemoryLog, at: u64, other: NewCell) {
    let segment = log.segment(SHARD, AddedId(at)).await.unwrap().unwrap();
    assert_eq!(segment.key(), SegmentKey { last: AddedId(at), n: 1 });
    assert!(log.replace_segment(SHARD, &segment, segment::pack(&[other])).await.unwrap());
}

/// Erases the body of the cell at a place of the log, in a segment of its own.
async fn erase_in_log(log: &MemoryLog, at: u64) {
    let segment = log.segment(SHARD, AddedId(at)).await.unwrap().unwrap();
    let erased = segment::erased(&segment::unpack(SHARD, &segment).unwrap(), &[AddedId(at)].into());
    assert!(log.replace_segment(SHARD, &segment, erased).await.unwrap());
}

/// Thousands that differ are looked at together, and none of them again that was told of.
#[tokio::test(start_paused = true)]
async fn many_that_differ_take_little_longer_than_one() {
    const CELLS: u64 = 2500;
    for plan in plans() {
        let (log, _) = filled(CELLS).await;
        for at in 1..=CELLS {
            // In each range of places there is one that is not in `cells`, whose place somebody else claims there.
            let other = if at % 10 == 5 { cell(at + CELLS) } else { NewCell { body: "2".into(), ..cell(at) } };
            replace(&log, at, other).await;
        }
        let begun = Instant::now();
        let (summary, flaws) = flaws(&log, &[], plan).await;
        let count = |flaw| flaws.iter().filter(|other| **other == flaw).count() as u64;
        let counts = [Flaw::CellBody, Flaw::CellMissing, Flaw::CellNotInLog].map(count);
        assert_eq!((counts, summary.findings), ([2250, 250, 250], 2750), "{plan:?}");
        // Three times a thousand.
        assert!(begun.elapsed() < Duration::from_secs(3), "{plan:?}: {:?}", begun.elapsed());
        // A cell and its segment at each look, the walk, and the lookup of what is not in the log.
        assert!(summary.units < 14 * CELLS, "{plan:?}: {summary:?}");
    }
}

/// It does not wait for the end, or for a thousand others.
#[tokio::test(start_paused = true)]
async fn what_differs_is_told_soon() {
    let (log, _) = filled(2500).await;
    replace(&log, 1, NewCell { body: "2".into(), ..cell(1) }).await;
    let begun = Instant::now();
    let mut told = None;
    let mut hear = |event| {
        if let Event::Found(_) = event {
            told = Some(begun.elapsed());
        }
        ControlFlow::Continue(())
    };
    let plan = Plan { rate: Some(50), ..plans()[1] };
    verify(&*log, &[], plan, &mut hear).await.unwrap();
    assert!(begun.elapsed() > Duration::from_secs(90), "{:?}", begun.elapsed());
    assert!(told.unwrap() < Duration::from_secs(45), "{told:?}");
}

/// Wherever an erase ended, it is told as that, and once a row.
#[tokio::test(start_paused = true)]
async fn an_erase_that_is_half_way_is_told_once_and_by_its_name() {
    for plan in plans() {
        let (log, cells) = filled(60).await;
        let other = CellKey { row_key: "another".into(), ..cell(1).key };
        assert!(cells.put(vec![NewCell { key: other, ..cell(1) }]).await[0].is_ok());
        let erase = || (1..=60).for_each(|i| assert!(log.erase_cell(&cell(i).key).now_or_never().unwrap().unwrap()));
        let (summary, told) = verified(&log, plan, 30, erase).await;
        assert_eq!((told, summary.findings), (vec![Flaw::EraseUnfinished], 1), "{plan:?}: beside it");
        erase_in_log(&log, 7).await;
        assert_eq!(flaws(&log, &[], plan).await.1, [Flaw::EraseUnfinished], "{plan:?}: interrupted");
        assert!(tail::erase(&*log, "r", Mode::Erase).await.unwrap().left.is_empty());
        assert_eq!(flaws(&log, &[], plan).await.1, [], "{plan:?}: the same erase again");
    }
}

/// One that is done before the last look was never there.
#[tokio::test(start_paused = true)]
async fn an_erase_that_ends_meanwhile_is_nothing() {
    for plan in plans() {
        let (log, _) = filled(60).await;
        for i in 1..=60 {
            assert!(log.erase_cell(&cell(i).key).await.unwrap());
        }
        let end = async {
            sleep(Duration::from_millis(500)).await;
            tail::erase(&*log, "r", Mode::Erase).await.unwrap();
        };
        let ((_, told), ()) = tokio::join!(flaws(&log, &[], plan), end);
        assert_eq!(told, [], "{plan:?}");
    }
}

/// `cells` was restored to a moment before an erase: nothing but the same erase again helps.
#[tokio::test(start_paused = true)]
async fn bodies_that_only_cells_has_are_an_erase_that_is_to_be_finished() {
    for plan in plans() {
        let (log, _) = filled(9).await;
        for at in 2..=9 {
            erase_in_log(&log, at).await;
        }
        assert_eq!(flaws(&log, &[], plan).await.1, [Flaw::EraseUnfinished], "{plan:?}");
        tail::erase(&*log, "r", Mode::Erase).await.unwrap();
        assert_eq!(flaws(&log, &[], plan).await.1, [], "{plan:?}");
    }
}

fn record(log: &MemoryLog, trigger: &str) -> TriggerRecord {
    TriggerRecord {
        id: TriggerId::from_stored(trigger),
        name: name(trigger),
        formerly: BTreeSet::new(),
        source: log.datastore().name.clone(),
        incarnation: log.datastore().incarnation.clone(),
        state: TriggerState::Active,
        generation: 0,
        start: None,
        revision: 0,
    }
}

/// Has a trigger begin on all shards, with a parked cell at the first place of each.
async fn begin(log: &MemoryLog, ledger: &MemoryLedger, trigger: &str) {
    for shard in log.datastore().all_shards() {
        let at = ShardRef { source: log.datastore().name.clone(), shard };
        let seen = ledger.lease(&at).await.unwrap();
        let owner = SessionId::random();
        if let Some(lease) = &seen {
            ledger.declare_dead(lease.owner.as_ref().unwrap(), None).await.unwrap();
        }
        ledger.claim(&at, &log.datastore().incarnation, &owner, seen.as_ref(), Millis(1)).await.unwrap();
        let first = log.page(shard, AddedId(0), 1, crate::cell::Consistency::Strong).await.unwrap().remove(0);
        let cell = segment::unpack(shard, &first).unwrap().remove(0);
        let parked = Parked {
            trigger: TriggerId::from_stored(trigger),
            shard: at.clone(),
            added_id: cell.added_id,
            last: cell.added_id,
            row_key: cell.key.row_key.to_string(),
            column: cell.key.column.to_string(),
            ref_key: cell.key.ref_key,
            state: ParkedState::Dead,
            attempts: 1,
            errors: Vec::new(),
            next_attempt_at: Millis(0),
            since: Millis(0),
            revision: 1,
        };
        let write = LeaseWrite {
            shard: at,
            owner,
            epoch: Epoch(seen.map_or(0, |lease| lease.epoch.0) + 1),
            seq: 1,
            checkpoints: [(TriggerId::from_stored(trigger), Checkpoint::default())].into(),
            lanes: vec![LaneChange::Put(parked)],
            alone: None,
            release: false,
        };
        assert_eq!(ledger.write(&write).await.unwrap(), Written::Accepted);
    }
}

/// A datastore of so many shards with a cell in each, and a group that it knows.
async fn with_group(shards: u32) -> (Arc<MemoryLog>, Arc<MemoryLedger>, [Group; 1]) {
    let log = trips(shards);
    let cells = Cells::new(log.clone());
    for shard in log.datastore().all_shards() {
        let row = (0..).map(|i| format!("r{i}")).find(|row| ShardId::of(row, shards) == shard).unwrap();
        let key = CellKey { row_key: row.into(), ..cell(1).key };
        assert!(cells.put(vec![NewCell { key, ..cell(1) }]).await[0].is_ok());
    }
    log.enlist(&name("g")).await.unwrap();
    let ledger = Arc::new(MemoryLedger::new());
    let groups = [Group { name: name("g"), ledger: Some(ledger.clone()) }];
    (log, ledger, groups)
}

#[tokio::test(start_paused = true)]
async fn a_trigger_that_is_registered_meanwhile_is_known() {
    let (log, ledger, groups) = with_group(9).await;
    ledger.register(&record(&log, "old")).await.unwrap();
    begin(&log, &ledger, "old").await;
    // A shard takes seconds.
    let plan = Plan { rate: Some(1), ..Plan::default() };
    let begun = Instant::now();
    let at = flaws(&log, &[], plan).await.0.units + 10;
    let reload = async {
        sleep(Duration::from_secs(at)).await;
        ledger.register(&record(&log, "new")).await.unwrap();
        begin(&log, &ledger, "new").await;
    };
    let (verified, ()) = tokio::join!(flaws(&log, &groups, plan), reload);
    assert_eq!((verified.1, verified.0.dead), (vec![], 9));
    assert!(begun.elapsed() > Duration::from_secs(at + 30), "shards were read after it: {:?}", begun.elapsed());
    // One that was never there is told, on each shard.
    begin(&log, &ledger, "ghost").await;
    assert_eq!(flaws(&log, &groups, Plan::default()).await.1, [Flaw::ParkedTrigger; 9]);
}

/// Once it is retired, a trim asks no more how far it is.
#[tokio::test(start_paused = true)]
async fn a_trigger_that_is_retired_meanwhile_may_be_trimmed_past() {
    let (log, ledger, groups) = with_group(9).await;
    ledger.register(&record(&log, "old")).await.unwrap();
    begin(&log, &ledger, "old").await;
    let plan = Plan { rate: Some(1), ..Plan::default() };
    let at = flaws(&log, &[], plan).await.0.units + 10;
    let retire = async {
        sleep(Duration::from_secs(at)).await;
        let registered = ledger.triggers().await.unwrap().remove(0);
        ledger.update_trigger(&TriggerRecord { state: TriggerState::Retired, ..registered }).await.unwrap();
        for shard in log.datastore().all_shards() {
            tail::trim(&*log, &[], shard, AddedId(1), u64::MAX).await.unwrap();
        }
    };
    let ((_, told), ()) = tokio::join!(flaws(&log, &groups, plan), retire);
    assert_eq!(told, []);
}

/// Checkpoints that passed what a restore took away, on all shards.
#[tokio::test(start_paused = true)]
async fn many_leases_and_lanes_that_do_not_fit_take_little_longer_than_one() {
    let (log, ledger, groups) = with_group(200).await;
    ledger.register(&record(&log, "old")).await.unwrap();
    begin(&log, &ledger, "old").await;
    let (empty, begun) = (trips(200), Instant::now());
    empty.enlist(&name("g")).await.unwrap();
    let (_, told) = flaws(&empty, &groups, Plan::default()).await;
    let parked = told.iter().filter(|flaw| **flaw == Flaw::ParkedAboveTip).count();
    assert_eq!((parked, told.len()), (200, 200 + 200 + 1), "each lease and trigger is of other tables");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_group_that_is_not_known_is_told_if_it_has_triggers_and_costs_nothing_if_not() {
    let (log, ledger, _) = with_group(9).await;
    let others = [Group { name: name("other"), ledger: Some(ledger.clone()) }];
    let alone = flaws(&log, &[], Plan::default()).await.0.units;
    let (summary, told) = flaws(&log, &others, Plan::default()).await;
    assert_eq!((told, summary.units), (vec![], alone + 1));
    assert_eq!(measure(&*log, &others).await.unwrap().groups, 0);
    ledger.register(&record(&log, "old")).await.unwrap();
    assert_eq!(flaws(&log, &others, Plan::default()).await.1, [Flaw::GroupNotEnlisted]);
    log.enlist(&name("other")).await.unwrap();
    assert_eq!(flaws(&log, &others, Plan::default()).await.1, []);
}

/// However many triggers there are.
#[tokio::test(start_paused = true)]
async fn what_is_said_beforehand_is_about_what_it_takes() {
    for triggers in [0, 1, 32] {
        let (log, ledger, groups) = with_group(64).await;
        for i in 0..triggers {
            ledger.register(&record(&log, &format!("t{i}"))).await.unwrap();
        }
        ledger.register(&TriggerRecord { source: name("other"), ..record(&log, "elsewhere") }).await.unwrap();
        let sizes = measure(&*log, &groups).await.unwrap();
        assert_eq!((sizes.groups, sizes.triggers), (1, triggers));
        let (said, took) =
            (estimate(&sizes, &Plan::default()).units, flaws(&log, &groups, Plan::default()).await.0.units);
        assert!(took <= said && said <= took * 3 / 2, "{triggers} triggers: {said} said, {took} taken");
    }
}
