//! `Log::commit`: what is accepted, what is refused and with which contents, races, limits.

use super::{Fixture, cases};
use bytes::Bytes;
use cellhook::cell::{
    AddedId, BODY_MAX, CellKey, Commit, Committed, ErrorKind, Log, Millis, NewCell, Origin, REF_KEY_MAX, Refused,
    Segment, Settled, ShardId, StoredCell, Tip, TriggerId,
};
use std::sync::Arc;
use tokio::task::JoinSet;

cases! {
    an_empty_datastore_has_nothing
    an_append_is_there_in_every_view
    appends_follow_each_other
    another_tip_is_refused_with_the_real_one
    existing_cells_are_refused_with_what_is_stored
    all_failed_conditions_are_told
    sixteen_writers_have_one_winner_a_place
    the_largest_append_is_accepted
    too_many_cells_or_too_large_ones_are_invalid
    odd_texts_survive
}

pub(super) fn key(row: &str, column: &str, ref_key: u64) -> CellKey {
    CellKey { row_key: row.into(), column: column.into(), ref_key }
}

pub(super) fn cell(row: &str, column: &str, ref_key: u64) -> NewCell {
    let body = format!("{{\"of\":\"{row}/{column}/{ref_key}\"}}");
    NewCell { key: key(row, column, ref_key), body: body.into(), origin: None }
}

/// An append of these cells behind `tip`; the segment's bytes are told apart by the first row.
pub(super) fn commit(shard: u32, tip: Option<Tip>, cells: Vec<NewCell>) -> Commit {
    let packed = Bytes::from(format!("packed {}", cells[0].key.row_key));
    let created_at = Millis(tip.map_or(1_000, |tip| tip.created_at.0 + 10));
    Commit { shard: ShardId(shard), tip, cells, packed, created_at }
}

/// Appends and gives the new tip.
pub(super) async fn append(log: &Arc<dyn Log>, shard: u32, tip: Option<Tip>, cells: Vec<NewCell>) -> Tip {
    let commit = commit(shard, tip, cells);
    let after = commit.tip_after();
    assert_eq!(log.commit(commit).await.unwrap(), Committed::Accepted);
    after
}

async fn an_empty_datastore_has_nothing(fixture: Arc<dyn Fixture>) {
    let log = fixture.log(4).await;
    assert_eq!(log.datastore().shards, 4);
    let (shard, one) = (ShardId(3), AddedId(1));
    assert_eq!(log.tip(shard).await.unwrap(), None);
    assert_eq!(log.segment(shard, one).await.unwrap(), None);
    assert_eq!(log.settle(shard, one).await.unwrap(), Settled { segment: None, tip: None });
    assert_eq!(log.keys(shard, AddedId(0), 10).await.unwrap(), []);
    assert_eq!(log.get(&key("r", "c", 0)).await.unwrap(), None);
    assert_eq!(log.latest("r", "c").await.unwrap(), None);
    assert_eq!(log.row("r", None, 10).await.unwrap(), []);
    for bucket in 0..log.datastore().buckets() {
        assert_eq!(log.tips(bucket, cellhook::cell::Consistency::Strong).await.unwrap(), []);
    }
    assert!(!log.raise_trim(shard, one).await.unwrap());
    log.delete_segment(shard, one).await.unwrap();
    assert_eq!(log.tip(shard).await.unwrap(), None, "and none of this made anything");
}

async fn an_append_is_there_in_every_view(fixture: Arc<dyn Fixture>) {
    use cellhook::cell::Consistency::{Eventual, Strong};
    let log = fixture.log(4).await;
    let origin = Origin { trigger: TriggerId::from_stored("t"), event: "d/i/3/7".into() };
    let cells = vec![cell("a", "x", 1), NewCell { origin: Some(origin), ..cell("b", "y", 2) }];
    let commit = commit(3, None, cells.clone());
    let segment = Segment { last: AddedId(2), n: 2, packed: commit.packed.clone(), created_at: commit.created_at };
    let tip = Tip { shard: ShardId(3), tip: AddedId(2), created_at: commit.created_at, trimmed_to: AddedId(0) };
    assert_eq!(log.commit(commit).await.unwrap(), Committed::Accepted);

    for (place, new) in (1..).zip(&cells) {
        let stored = log.get(&new.key).await.unwrap().expect("the cell");
        assert_eq!(stored, stored_cell(new, 3, place, 1_000));
        assert_eq!(log.latest(&new.key.row_key, &new.key.column).await.unwrap(), Some(stored.clone()));
        assert_eq!(log.row(&new.key.row_key, None, 10).await.unwrap(), [stored]);
    }
    let shard = ShardId(3);
    assert_eq!(log.tip(shard).await.unwrap(), Some(tip));
    assert_eq!(log.tips(log.datastore().bucket(shard), Strong).await.unwrap(), [tip]);
    assert_eq!(log.segment(shard, AddedId(2)).await.unwrap(), Some(segment.clone()));
    assert_eq!(log.segment(shard, AddedId(1)).await.unwrap(), None, "keyed by its last cell");
    assert_eq!(log.page(shard, AddedId(1), 10, Strong).await.unwrap(), std::slice::from_ref(&segment));
    assert_eq!(log.page(shard, AddedId(2), 10, Eventual).await.unwrap(), []);
    assert_eq!(log.keys(shard, AddedId(0), 10).await.unwrap(), [segment.key()]);
    let settled = Settled { segment: Some(segment), tip: Some(tip) };
    assert_eq!(log.settle(shard, AddedId(2)).await.unwrap(), settled);
    assert_eq!(log.page(ShardId(2), AddedId(0), 10, Strong).await.unwrap(), [], "another shard has none of it");
}

fn stored_cell(new: &NewCell, shard: u32, place: u64, created_at: i64) -> StoredCell {
    let NewCell { key, body, origin } = new.clone();
    let (shard, added_id, created_at) = (ShardId(shard), AddedId(place), Millis(created_at));
    StoredCell { cell: cellhook::cell::Cell { key, shard, added_id, created_at, body }, origin }
}

async fn appends_follow_each_other(fixture: Arc<dyn Fixture>) {
    let log = fixture.log(1).await;
    let first = append(&log, 0, None, vec![cell("a", "x", 0), cell("a", "x", 1)]).await;
    let second = append(&log, 0, Some(first), vec![cell("a", "x", 2)]).await;
    assert_eq!((second.tip, second.created_at), (AddedId(3), Millis(1_010)));
    assert_eq!(log.tip(ShardId(0)).await.unwrap(), Some(second));
    let third = log.get(&key("a", "x", 2)).await.unwrap().unwrap().cell;
    assert_eq!((third.added_id, third.created_at), (AddedId(3), Millis(1_010)));
}

async fn another_tip_is_refused_with_the_real_one(fixture: Arc<dyn Fixture>) {
    let log = fixture.log(1).await;
    let refused = |tip| Committed::Refused(Refused { tip: Some(tip), ..Refused::default() });
    let imagined = Tip { shard: ShardId(0), tip: AddedId(5), ..Tip::default_of(0) };
    let answer = log.commit(commit(0, Some(imagined), vec![cell("z", "x", 0)])).await.unwrap();
    assert_eq!(answer, refused(None), "there is no tip at all");

    let one = append(&log, 0, None, vec![cell("a", "x", 0)]).await;
    let two = append(&log, 0, Some(one), vec![cell("b", "x", 0)]).await;
    for stale in [None, Some(one), Some(Tip { tip: AddedId(3), ..two })] {
        let answer = log.commit(commit(0, stale, vec![cell("z", "x", 0)])).await.unwrap();
        assert_eq!(answer, refused(Some(two)), "{stale:?}");
    }
    assert_eq!(log.tip(ShardId(0)).await.unwrap(), Some(two));
    assert_eq!(log.get(&key("z", "x", 0)).await.unwrap(), None, "nothing of a refused append is stored");
    assert_eq!(log.keys(ShardId(0), AddedId(0), 10).await.unwrap().len(), 2);
}

/// A tip to be changed into what a case needs.
trait DefaultOf {
    fn default_of(shard: u32) -> Tip;
}

impl DefaultOf for Tip {
    fn default_of(shard: u32) -> Tip {
        Tip { shard: ShardId(shard), tip: AddedId(1), created_at: Millis(0), trimmed_to: AddedId(0) }
    }
}

async fn existing_cells_are_refused_with_what_is_stored(fixture: Arc<dyn Fixture>) {
    let log = fixture.log(2).await;
    let tip = append(&log, 1, None, vec![cell("a", "x", 0), cell("b", "x", 0), cell("c", "x", 0)]).await;
    let other_body = NewCell { body: "{\"other\":true}".into(), ..cell("a", "x", 0) };
    let cells = vec![cell("new", "x", 0), other_body, cell("new", "x", 1), cell("c", "x", 0)];
    let answer = log.commit(commit(1, Some(tip), cells)).await.unwrap();
    let cells =
        vec![(1, stored_cell(&cell("a", "x", 0), 1, 1, 1_000)), (3, stored_cell(&cell("c", "x", 0), 1, 3, 1_000))];
    assert_eq!(answer, Committed::Refused(Refused { cells, ..Refused::default() }));
    assert_eq!(log.tip(ShardId(1)).await.unwrap(), Some(tip));
    assert_eq!(log.row("new", None, 10).await.unwrap(), [], "the others of the batch were not stored either");
}

async fn all_failed_conditions_are_told(fixture: Arc<dyn Fixture>) {
    let log = fixture.log(1).await;
    let tip = append(&log, 0, None, vec![cell("a", "x", 0)]).await;
    // The commonest repeat: the append was applied, but its writer was not told.
    let answer = log.commit(commit(0, None, vec![cell("a", "x", 0)])).await.unwrap();
    let cells = vec![(0, stored_cell(&cell("a", "x", 0), 0, 1, 1_000))];
    assert_eq!(answer, Committed::Refused(Refused { tip: Some(Some(tip)), cells, ..Refused::default() }));
}

async fn sixteen_writers_have_one_winner_a_place(fixture: Arc<dyn Fixture>) {
    const ROUNDS: u64 = 12;
    let log = fixture.log(1).await;
    let mut tip = None;
    for round in 0..ROUNDS {
        let mut writers = JoinSet::new();
        for writer in 0..16_u64 {
            let log = log.clone();
            let commit = commit(0, tip, vec![cell(&format!("w{writer}"), "x", round)]);
            writers.spawn(async move {
                // A conflict is no answer: the same append again until there is one.
                loop {
                    match log.commit(commit.clone()).await {
                        Ok(Committed::Refused(refused)) if refused.contended => {}
                        Ok(answer) => return (writer, answer),
                        Err(error) => assert!(matches!(error.kind, ErrorKind::Conflict), "{error}"),
                    }
                }
            });
        }
        let answers = writers.join_all().await;
        let winners: Vec<u64> =
            answers.iter().filter(|(_, answer)| *answer == Committed::Accepted).map(|(writer, _)| *writer).collect();
        assert_eq!(winners.len(), 1, "round {round}: {answers:?}");
        tip = log.tip(ShardId(0)).await.unwrap();
        assert_eq!(tip.map(|tip| tip.tip), Some(AddedId(round + 1)));
        let won = log.get(&key(&format!("w{}", winners[0]), "x", round)).await.unwrap().unwrap();
        assert_eq!(won.cell.added_id, AddedId(round + 1));
        for (_, answer) in answers.iter().filter(|(_, answer)| *answer != Committed::Accepted) {
            let Committed::Refused(refused) = answer else { unreachable!() };
            assert_eq!(*refused, Refused { tip: Some(tip), ..Refused::default() });
        }
    }
    let keys = log.keys(ShardId(0), AddedId(0), 100).await.unwrap();
    assert_eq!(keys.len() as u64, ROUNDS, "one segment a place");
    let mut rows = 0;
    for writer in 0..16 {
        rows += log.row(&format!("w{writer}"), None, 100).await.unwrap().len() as u64;
    }
    assert_eq!(rows, ROUNDS, "and one cell");
}

async fn the_largest_append_is_accepted(fixture: Arc<dyn Fixture>) {
    let log = fixture.log(1).await;
    let tip = append(&log, 0, None, (0..98).map(|at| cell("many", "x", at)).collect()).await;
    assert_eq!(tip.tip, AddedId(98));
    assert_eq!(log.row("many", None, 200).await.unwrap().len(), 98);

    let (row, column) = ("r".repeat(1024), "c".repeat(255));
    let body = format!("\"{}\"", "x".repeat(BODY_MAX - 2));
    let key = key(&row, &column, REF_KEY_MAX);
    let largest = NewCell { key: key.clone(), body: body.into(), origin: None };
    let packed = Bytes::from(vec![7; 380 * 1024]);
    let commit = Commit { packed: packed.clone(), ..commit(0, Some(tip), vec![largest.clone()]) };
    let after = commit.tip_after();
    assert_eq!(log.commit(commit).await.unwrap(), Committed::Accepted);
    assert_eq!(log.get(&key).await.unwrap().unwrap().cell.body, largest.body);
    assert_eq!(log.latest(&row, &column).await.unwrap().unwrap().cell.key, key);
    assert_eq!(log.segment(ShardId(0), after.tip).await.unwrap().unwrap().packed, packed);
}

async fn too_many_cells_or_too_large_ones_are_invalid(fixture: Arc<dyn Fixture>) {
    let log = fixture.log(1).await;
    let many = commit(0, None, (0..99).map(|at| cell("many", "x", at)).collect());
    let body = format!("\"{}\"", "x".repeat(400 * 1024));
    let large = commit(0, None, vec![cell("ok", "x", 0), NewCell { body: body.into(), ..cell("large", "x", 0) }]);
    let packed = Commit { packed: vec![7; 400 * 1024].into(), ..commit(0, None, vec![cell("p", "x", 0)]) };
    let none = Commit { cells: vec![], ..packed.clone() };
    for (what, commit) in [("99 cells", many), ("a body", large), ("a segment", packed), ("no cells", none)] {
        let error = log.commit(commit).await.expect_err(what);
        assert_eq!(error.kind, ErrorKind::Invalid, "{what}: {error}");
    }
    assert_eq!(log.tip(ShardId(0)).await.unwrap(), None);
    assert_eq!(log.row("ok", None, 10).await.unwrap(), []);
}

async fn odd_texts_survive(fixture: Arc<dyn Fixture>) {
    let log = fixture.log(1).await;
    let texts = ["é", "\u{1F600}", "a\"b", "a\\b", "a\nb", "a/b", " ", "a'b", "a\u{0}b", "\u{feff}", "%s{}$1"];
    let bodies = ["\"\\u0000\"", "{\"\u{1F600}\":\"\\n\"}", "12345678901234567890123456789.5e3", " [ 1 , 2 ]\n"];
    let mut tip = None;
    for (at, text) in texts.into_iter().enumerate() {
        let body = bodies[at % bodies.len()];
        let new = NewCell { key: key(text, text, at as u64), body: body.into(), origin: None };
        tip = Some(append(&log, 0, tip, vec![new.clone()]).await);
        let stored = log.get(&new.key).await.unwrap().expect(text).cell;
        assert_eq!((stored.key, stored.body), (new.key, new.body));
        assert_eq!(log.latest(text, text).await.unwrap().expect(text).cell.added_id, AddedId(at as u64 + 1));
    }
}
