//! What goes on meanwhile is nothing wrong. Over the twin in memory, which changes while it is read.

use super::*;
use crate::{
    cell::{CellKey, NewCell, NewDatastore},
    store::{Cells, memory::MemoryLog},
};
use futures_util::FutureExt;

const SHARD: ShardId = ShardId(0);

fn cell(ref_key: u64) -> NewCell {
    let key = CellKey { row_key: "r".into(), column: "c".into(), ref_key };
    NewCell { key, body: "1".into(), origin: None }
}

/// So many segments of one cell each.
async fn filled(segments: u64) -> (Arc<MemoryLog>, Cells) {
    let log = Arc::new(MemoryLog::new(&NewDatastore { name: Name::new("trips").unwrap(), shards: 1 }));
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
    let begun = tokio::time::Instant::now();
    let plan = Plan { rate: Some(10), ..Plan::default() };
    let summary = verify(&*log, &[], plan, &mut |_| ControlFlow::Continue(())).await.unwrap();
    assert!(summary.units > 10, "{summary:?}");
    assert!(begun.elapsed().as_millis() >= u128::from(summary.units - 1) * 100, "{:?} {summary:?}", begun.elapsed());
}
