//! `Log`: what is erased, and what stays of it; and the erase of a row that is built on top.

use super::log_append::{append, cell, commit, key};
use super::{Fixture, cases};
use bytes::Bytes;
use cellhook::cell::Consistency::Strong;
use cellhook::cell::{
    AddedId, Cell, CellPlace, Committed, Log, NewCell, Origin, Refused, Segment, ShardId, StoredCell, TriggerId,
};
use cellhook::store::{Cells, PutError};
use cellhook::tail::{self, Entry, Erased, Mode};
use std::collections::BTreeMap;
use std::sync::Arc;

cases! {
    an_erased_cell_keeps_its_place
    places_come_in_order_after_a_place
    places_of_a_row_larger_than_a_page_come_all
    a_segment_is_replaced_only_as_it_was_read
    a_row_is_erased_and_the_others_stay
    an_erase_that_was_interrupted_is_finished_by_the_next
    what_is_trimmed_does_not_come_back
    erases_that_meet_in_a_segment_all_succeed
}

async fn an_erased_cell_keeps_its_place(fixture: Arc<dyn Fixture>) {
    let log = fixture.log(1).await;
    let origin = Origin { trigger: TriggerId::from_stored("t"), event: "d/i/0/7".into() };
    let new = NewCell { origin: Some(origin), ..cell("r", "x", 2) };
    let tip = append(&log, 0, None, vec![cell("r", "x", 1), new.clone()]).await;
    assert!(!log.erase_cell(&key("r", "x", 3)).await.unwrap(), "it is not there");
    assert_eq!(log.get(&key("r", "x", 3)).await.unwrap(), None, "and is not made");
    let before = log.get(&new.key).await.unwrap().unwrap();
    assert!(log.erase_cell(&new.key).await.unwrap());
    assert!(!log.erase_cell(&new.key).await.unwrap(), "once");

    let wanted = StoredCell { cell: Cell { body: "".into(), ..before.cell.clone() }, origin: before.origin };
    assert!(wanted.cell.is_erased());
    assert_eq!(log.get(&new.key).await.unwrap().as_ref(), Some(&wanted));
    assert_eq!(log.latest("r", "x").await.unwrap().as_ref(), Some(&wanted), "the latest is the latest, erased or not");
    assert_eq!(log.row("r", None, 9).await.unwrap()[1], wanted);
    assert_eq!(log.get_all(std::slice::from_ref(&new.key)).await.unwrap()[0].as_ref(), Some(&wanted));
    assert!(!log.get(&key("r", "x", 1)).await.unwrap().unwrap().cell.is_erased(), "the other has its body");
    let place = |at, erased| {
        let (shard, added_id) = (ShardId(0), AddedId(at));
        CellPlace { key: key("r", "x", at), shard, added_id, erased }
    };
    assert_eq!(log.places("r", None, 9).await.unwrap(), [place(1, false), place(2, true)]);

    let answer = log.commit(commit(0, Some(tip), vec![new, cell("r", "x", 3)])).await.unwrap();
    let cells = vec![(0, wanted)];
    assert_eq!(answer, Committed::Refused(Refused { cells, ..Refused::default() }), "its address stays taken");
}

async fn places_come_in_order_after_a_place(fixture: Arc<dyn Fixture>) {
    let log = fixture.log(1).await;
    // '"' and '$' stand before and behind the '#' that ends a column in the sort key.
    let columns = ["A\"", "A", "A$", "A0", "AB", "B"];
    let cells = columns.iter().flat_map(|column| [9, 10].map(|ref_key| cell("r", column, ref_key)));
    append(&log, 0, None, cells.chain([cell("q", "A", 1), cell("rr", "A", 1)]).collect()).await;
    let wanted: Vec<_> = columns.iter().flat_map(|column| [9, 10].map(|ref_key| key("r", column, ref_key))).collect();
    for limit in [1, 5, 12, 100] {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = log.places("r", after.as_ref(), limit).await.unwrap();
            assert!(page.len() <= limit, "{} of {limit}", page.len());
            let Some(last) = page.last() else { break };
            after = Some(last.key.clone());
            found.extend(page.into_iter().map(|place| place.key));
        }
        assert_eq!(found, wanted, "limit {limit}");
    }
    assert_eq!(log.places("none", None, 9).await.unwrap(), []);
    assert_eq!(log.places("r", Some(&key("r", "A", 11)), 1).await.unwrap()[0].key, key("r", "A$", 9), "a gap");
}

async fn places_of_a_row_larger_than_a_page_come_all(fixture: Arc<dyn Fixture>) {
    let log = fixture.log(1).await;
    let mut tip = None;
    for at in 0..6 {
        let body = format!("\"{}\"", "x".repeat(300 * 1024));
        tip = Some(append(&log, 0, tip, vec![NewCell { body: body.into(), ..cell("r", "x", at) }]).await);
    }
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = log.places("r", after.as_ref(), 100).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.key.clone());
        found.extend(page.into_iter().map(|place| place.added_id.0));
    }
    assert_eq!(found, [1, 2, 3, 4, 5, 6]);
}

async fn a_segment_is_replaced_only_as_it_was_read(fixture: Arc<dyn Fixture>) {
    let log = fixture.log(1).await;
    let shard = ShardId(0);
    let tip = append(&log, 0, None, vec![cell("a", "x", 0), cell("b", "x", 0)]).await;
    append(&log, 0, Some(tip), vec![cell("c", "x", 0)]).await;
    let old = log.segment(shard, AddedId(2)).await.unwrap().unwrap();
    let other = log.segment(shard, AddedId(3)).await.unwrap();
    let packed = Bytes::from_static(b"less");
    let new = Segment { packed: packed.clone(), ..old.clone() };
    assert!(log.replace_segment(shard, &old, packed.clone()).await.unwrap());
    assert_eq!(log.segment(shard, AddedId(2)).await.unwrap().as_ref(), Some(&new), "all else is as it was");
    assert_eq!(log.segment(shard, AddedId(3)).await.unwrap(), other);
    assert!(!log.replace_segment(shard, &old, Bytes::from_static(b"late")).await.unwrap(), "it is another by now");
    assert_eq!(log.segment(shard, AddedId(2)).await.unwrap().as_ref(), Some(&new));
    assert!(log.raise_trim(shard, AddedId(2)).await.unwrap());
    log.delete_segment(shard, AddedId(2)).await.unwrap();
    assert!(!log.replace_segment(shard, &new, packed).await.unwrap());
    assert_eq!(log.segment(shard, AddedId(2)).await.unwrap(), None, "what is deleted stays deleted");
}

/// Three rows, many to a segment; gives what was put by place.
async fn three_rows(log: &Arc<dyn Log>) -> BTreeMap<AddedId, NewCell> {
    let cells = Cells::new(log.clone());
    let mut all = BTreeMap::new();
    for batch in 0..4 {
        let batch: Vec<NewCell> = (0..30)
            .map(|at| cell(["anna", "ben", "carl"][at % 3], ["x", "y"][at % 2], batch * 100 + at as u64))
            .collect();
        for (put, new) in cells.put(batch.clone()).await.into_iter().zip(batch) {
            all.insert(put.unwrap().added_id, new);
        }
    }
    all
}

/// What the log has, by place.
async fn in_log(log: &Arc<dyn Log>) -> BTreeMap<AddedId, Cell> {
    let (mut all, mut after) = (BTreeMap::new(), AddedId(0));
    let tip = log.tip(ShardId(0)).await.unwrap().map_or(AddedId(0), |tip| tip.tip);
    while after < tip {
        let run = tail::run(&**log, ShardId(0), after, 10, tip).await.unwrap();
        for entry in &run.entries {
            if let Entry::Cells(cells) = entry {
                all.extend(cells.iter().map(|cell| (cell.added_id, cell.clone())));
            }
        }
        after = run.end(after);
    }
    all
}

/// These rows have no body any more, in `cells` and in the log; the others are as they were put.
async fn gone(log: &Arc<dyn Log>, put: &BTreeMap<AddedId, NewCell>, rows: &[&str]) {
    for (place, cell) in in_log(log).await {
        let new = &put[&place];
        let body = if rows.contains(&&*new.key.row_key) { "" } else { &*new.body };
        assert_eq!((&cell.key, &*cell.body), (&new.key, body), "in the log at {place}");
    }
    for new in put.values() {
        let stored = log.get(&new.key).await.unwrap().unwrap().cell;
        assert_eq!(stored.is_erased(), rows.contains(&&*new.key.row_key), "{:?}", new.key);
    }
    // No part of it is left in the bytes, packed or not.
    for segment in log.page(ShardId(0), AddedId(0), 1000, Strong).await.unwrap() {
        for cell in cellhook::store::segment::unpack(ShardId(0), &segment).unwrap() {
            assert!(cell.is_erased() == rows.contains(&&*cell.key.row_key));
        }
    }
}

async fn a_row_is_erased_and_the_others_stay(fixture: Arc<dyn Fixture>) {
    let log = fixture.log(1).await;
    let put = three_rows(&log).await;
    let met = |bodies, segments| Erased { cells: 40, bodies, segments, left: Vec::new() };
    assert_eq!(tail::erase(&*log, "anna", Mode::Look).await.unwrap(), met(40, 4));
    gone(&log, &put, &[]).await;
    assert_eq!(tail::erase(&*log, "anna", Mode::Erase).await.unwrap(), met(40, 4));
    gone(&log, &put, &["anna"]).await;
    assert_eq!(tail::erase(&*log, "anna", Mode::Erase).await.unwrap(), met(0, 0), "nothing is left to do");
    assert_eq!(tail::erase(&*log, "nobody", Mode::Erase).await.unwrap(), Erased::default());

    let cells = Cells::new(log.clone());
    let again = cells.put(vec![cell("anna", "x", 0), cell("anna", "x", 9_999)]).await;
    assert!(matches!(&again[0], Err(PutError::Erased { .. })), "{again:?}");
    assert_eq!(again[1].as_ref().unwrap().added_id, AddedId(121), "another address of the row takes a cell");
    assert_eq!(tail::erase(&*log, "anna", Mode::Look).await.unwrap(), Erased { cells: 41, ..met(1, 1) });
    assert_eq!(tail::erase(&*log, "ben", Mode::Erase).await.unwrap(), met(40, 4), "in segments of format 2");
    let mut put = put;
    put.insert(AddedId(121), cell("anna", "x", 9_999));
    assert_eq!(tail::erase(&*log, "anna", Mode::Erase).await.unwrap(), Erased { cells: 41, ..met(1, 1) });
    gone(&log, &put, &["anna", "ben"]).await;
}

async fn an_erase_that_was_interrupted_is_finished_by_the_next(fixture: Arc<dyn Fixture>) {
    let log = fixture.log(1).await;
    let put = three_rows(&log).await;
    // As if it ended among the cells: some have no body any more, and the log has all of them.
    let of_anna = put.values().filter(|new| &*new.key.row_key == "anna").take(15);
    for new in of_anna {
        assert!(log.erase_cell(&new.key).await.unwrap());
    }
    let met = |bodies, segments| Erased { cells: 40, bodies, segments, left: Vec::new() };
    assert_eq!(tail::erase(&*log, "anna", Mode::Look).await.unwrap(), met(25, 4));
    assert_eq!(tail::erase(&*log, "anna", Mode::Erase).await.unwrap(), met(25, 4));
    gone(&log, &put, &["anna"]).await;
    // As if it ended between cells and log.
    for new in put.values().filter(|new| &*new.key.row_key == "ben") {
        assert!(log.erase_cell(&new.key).await.unwrap());
    }
    assert_eq!(tail::erase(&*log, "ben", Mode::Erase).await.unwrap(), met(0, 4));
    gone(&log, &put, &["anna", "ben"]).await;
}

async fn what_is_trimmed_does_not_come_back(fixture: Arc<dyn Fixture>) {
    let log = fixture.log(1).await;
    let put = three_rows(&log).await;
    let segments = async || log.keys(ShardId(0), AddedId(0), 100).await.unwrap().len();
    // Into the third segment: it stays.
    assert_eq!(tail::trim(&*log, &[], ShardId(0), AddedId(70), u64::MAX).await.unwrap().segments, 2);
    let met = tail::erase(&*log, "anna", Mode::Erase).await.unwrap();
    assert_eq!(met, Erased { cells: 40, bodies: 40, segments: 2, left: Vec::new() });
    gone(&log, &put, &["anna"]).await;
    assert_eq!(segments().await, 2);
    assert_eq!(tail::trim(&*log, &[], ShardId(0), AddedId(120), u64::MAX).await.unwrap().segments, 2);
    let met = tail::erase(&*log, "ben", Mode::Erase).await.unwrap();
    assert_eq!(met, Erased { cells: 40, bodies: 40, segments: 0, left: Vec::new() });
    assert_eq!(segments().await, 0);
}

async fn erases_that_meet_in_a_segment_all_succeed(fixture: Arc<dyn Fixture>) {
    let log = fixture.log(1).await;
    let put = three_rows(&log).await;
    let erase = |row: &'static str| {
        let log = log.clone();
        async move { tail::erase(&*log, row, Mode::Erase).await.unwrap() }
    };
    let cells = Cells::new(log.clone());
    let appends = async {
        let mut late = BTreeMap::new();
        for at in 0..20 {
            let new = cell("carl", "late", at);
            late.insert(cells.put(vec![new.clone()]).await[0].as_ref().unwrap().added_id, new);
        }
        late
    };
    let (anna, again, ben, late) = tokio::join!(erase("anna"), erase("anna"), erase("ben"), appends);
    assert!([&anna, &again, &ben].iter().all(|met| met.left.is_empty()), "{anna:?} {again:?} {ben:?}");
    let put = put.into_iter().chain(late).collect();
    gone(&log, &put, &["anna", "ben"]).await;
}
