//! `Log`: order and limits of the readers, tips, trim.

use super::log_append::{append, cell, commit, key};
use super::{Fixture, cases};
use bytes::Bytes;
use cellhook::cell::Consistency::{Eventual, Strong};
use cellhook::cell::{
    AddedId, CellKey, Commit, Committed, Log, Name, NewCell, Refused, SegmentKey, Settled, ShardId, Slice,
};
use std::sync::Arc;

cases! {
    pages_come_in_order_and_within_their_limit
    a_page_that_is_full_before_its_limit_is_followed_by_the_next
    the_latest_cell_is_that_of_exactly_its_column
    a_row_comes_in_order_and_within_its_limit
    a_row_larger_than_a_page_comes_whole
    a_bucket_has_the_tips_of_its_shards
    trimming_is_raised_only_up_to_the_tip
    deleted_segments_are_gone_and_their_cells_stay
    settling_sees_segment_and_tip
    many_cells_are_got_at_once
    groups_are_enlisted_once
    a_scan_brings_every_cell_once
}

/// Appends `sizes.len()` segments of so many cells each.
async fn fill(log: &Arc<dyn Log>, shard: u32, sizes: &[u64]) {
    let mut tip = log.tip(ShardId(shard)).await.unwrap();
    for size in sizes {
        let place = tip.map_or(0, |tip| tip.tip.0);
        let cells = (0..*size).map(|at| cell(&format!("r{shard}"), "x", place + at)).collect();
        tip = Some(append(log, shard, tip, cells).await);
    }
}

async fn pages_come_in_order_and_within_their_limit(fixture: Arc<dyn Fixture>) {
    let log = fixture.log(2).await;
    // Keys 3, 4, 9, 10, 11, 99, 100, 101: text order would be another.
    fill(&log, 0, &[3, 1, 5, 1, 1, 88, 1, 1]).await;
    fill(&log, 1, &[2]).await;
    let all: Vec<SegmentKey> = [(3, 3), (4, 1), (9, 5), (10, 1), (11, 1), (99, 88), (100, 1), (101, 1)]
        .map(|(last, n)| SegmentKey { last: AddedId(last), n })
        .to_vec();
    let shard = ShardId(0);
    assert_eq!(log.keys(shard, AddedId(0), 100).await.unwrap(), all);
    for after in 0..=102 {
        let wanted: Vec<SegmentKey> = all.iter().copied().filter(|key| key.last.0 > after).collect();
        for limit in [1, 3, 100] {
            let wanted = &wanted[..wanted.len().min(limit as usize)];
            assert_eq!(log.keys(shard, AddedId(after), limit).await.unwrap(), wanted, "after {after}");
        }
    }
    for consistency in [Eventual, Strong] {
        let page = log.page(shard, AddedId(3), 3, consistency).await.unwrap();
        assert_eq!(page.iter().map(|segment| segment.key()).collect::<Vec<_>>(), all[1..4]);
    }
    let next = log.page(shard, AddedId(5), 1, Strong).await.unwrap();
    assert_eq!(next[0].key(), all[2], "the segment that holds the cell after a checkpoint in its middle");
}

async fn a_page_that_is_full_before_its_limit_is_followed_by_the_next(fixture: Arc<dyn Fixture>) {
    let log = fixture.log(1).await;
    let mut tip = None;
    for at in 0..8 {
        let commit = commit(0, tip, vec![cell("r", "x", at)]);
        let commit = Commit { packed: Bytes::from(vec![u8::try_from(at).unwrap(); 300 * 1024]), ..commit };
        tip = Some(commit.tip_after());
        assert_eq!(log.commit(commit).await.unwrap(), Committed::Accepted);
    }
    let (mut after, mut seen) = (AddedId(0), Vec::new());
    loop {
        let page = log.page(ShardId(0), after, 100, Strong).await.unwrap();
        let Some(last) = page.last() else { break };
        after = last.last;
        seen.extend(page.iter().map(|segment| (segment.last.0, segment.packed[0], segment.packed.len())));
    }
    assert_eq!(seen, (0..8).map(|at| (u64::from(at) + 1, at, 300 * 1024)).collect::<Vec<_>>());
    let (mut after, mut seen) = (AddedId(0), Vec::new());
    loop {
        let keys = log.keys(ShardId(0), after, 100).await.unwrap();
        let Some(last) = keys.last() else { break };
        after = last.last;
        seen.extend(keys.iter().map(|key| key.last.0));
    }
    assert_eq!(seen, (1..=8).collect::<Vec<_>>());
}

async fn the_latest_cell_is_that_of_exactly_its_column(fixture: Arc<dyn Fixture>) {
    let log = fixture.log(1).await;
    // '"' and '$' stand before and behind the '#' that ends a column in the sort key.
    let columns = ["A", "A\"", "A$", "AB", "A0", "B"];
    let mut tip = None;
    for (at, column) in (0..).zip(columns) {
        let cells = [0, 9, 10, 1_000_000 + at].map(|ref_key| cell("r", column, ref_key));
        tip = Some(append(&log, 0, tip, cells.to_vec()).await);
    }
    append(&log, 0, tip, vec![cell("q", "A", 5_000_000), cell("r2", "A", 6_000_000)]).await;
    for (at, column) in (0..).zip(columns) {
        let latest = log.latest("r", column).await.unwrap().unwrap().cell;
        assert_eq!(latest.key, key("r", column, 1_000_000 + at));
    }
    for absent in ["", "a", "A#", "AA", "C"] {
        assert_eq!(log.latest("r", absent).await.unwrap(), None, "{absent}");
    }
}

async fn a_row_comes_in_order_and_within_its_limit(fixture: Arc<dyn Fixture>) {
    let log = fixture.log(1).await;
    let cells = [("r", "b", 2), ("r", "a", 10), ("q", "a", 1), ("r", "a", 9), ("r", "b", 1), ("rr", "a", 1)];
    append(&log, 0, None, cells.map(|(row, column, at)| cell(row, column, at)).to_vec()).await;
    let wanted = [("a", 9), ("a", 10), ("b", 1), ("b", 2)].map(|(column, at)| key("r", column, at));
    for limit in [0, 1, 3, 4, 100] {
        let row = log.row("r", None, limit).await.unwrap();
        let found: Vec<_> = row.into_iter().map(|stored| stored.cell.key).collect();
        assert_eq!(found, wanted[..limit.min(4)], "limit {limit}");
    }
    for (at, after) in wanted.iter().enumerate() {
        let row = log.row("r", Some(after), 2).await.unwrap();
        let found: Vec<_> = row.into_iter().map(|stored| stored.cell.key).collect();
        assert_eq!(found, wanted[at + 1..(at + 3).min(4)], "after {after:?}");
    }
}

async fn a_row_larger_than_a_page_comes_whole(fixture: Arc<dyn Fixture>) {
    let log = fixture.log(1).await;
    let mut tip = None;
    for at in 0..6 {
        let body = format!("\"{}\"", "x".repeat(300 * 1024));
        tip = Some(append(&log, 0, tip, vec![NewCell { body: body.into(), ..cell("r", "x", at) }]).await);
    }
    let row = log.row("r", None, 100).await.unwrap();
    assert_eq!(row.iter().map(|stored| stored.cell.key.ref_key).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
    assert!(row.iter().all(|stored| stored.cell.body.len() == 300 * 1024 + 2));
    assert_eq!(log.row("r", None, 5).await.unwrap().len(), 5);
}

async fn a_bucket_has_the_tips_of_its_shards(fixture: Arc<dyn Fixture>) {
    for (shards, buckets) in [(40, 16), (2048, 32)] {
        let log = fixture.log(shards).await;
        assert_eq!(log.datastore().buckets(), buckets);
        let mut tips = Vec::new();
        for shard in [0, buckets, 2 * buckets, 1, 1 + buckets] {
            tips.push(append(&log, shard, None, vec![cell(&format!("r{shard}"), "x", 0)]).await);
        }
        for consistency in [Eventual, Strong] {
            for (bucket, wanted) in [(0, &tips[..3]), (1, &tips[3..]), (2, &[])] {
                let mut found = log.tips(bucket, consistency).await.unwrap();
                found.sort_by_key(|tip| tip.shard);
                assert_eq!(found, wanted);
            }
        }
        assert_eq!(log.tip(ShardId(buckets)).await.unwrap(), Some(tips[1]));
    }
}

async fn trimming_is_raised_only_up_to_the_tip(fixture: Arc<dyn Fixture>) {
    let log = fixture.log(1).await;
    fill(&log, 0, &[2, 3]).await;
    let shard = ShardId(0);
    let trimmed = async || log.tip(shard).await.unwrap().unwrap().trimmed_to.0;
    assert!(!log.raise_trim(shard, AddedId(6)).await.unwrap(), "above the tip");
    assert!(!log.raise_trim(shard, AddedId(0)).await.unwrap(), "not higher");
    assert_eq!(trimmed().await, 0);
    assert!(log.raise_trim(shard, AddedId(2)).await.unwrap());
    assert_eq!(trimmed().await, 2);
    assert!(!log.raise_trim(shard, AddedId(2)).await.unwrap(), "not higher");
    assert!(!log.raise_trim(shard, AddedId(1)).await.unwrap(), "lower");
    assert!(log.raise_trim(shard, AddedId(5)).await.unwrap(), "the tip itself");
    assert_eq!(trimmed().await, 5);

    fill(&log, 0, &[1]).await;
    assert_eq!(trimmed().await, 5, "an append keeps it");
    let stale = log.commit(commit(0, None, vec![cell("z", "x", 0)])).await.unwrap();
    let Committed::Refused(Refused { tip: Some(Some(tip)), .. }) = stale else { panic!("{stale:?}") };
    assert_eq!((tip.tip.0, tip.trimmed_to.0), (6, 5), "a refusal tells it");
}

async fn deleted_segments_are_gone_and_their_cells_stay(fixture: Arc<dyn Fixture>) {
    let log = fixture.log(1).await;
    fill(&log, 0, &[2, 2, 2]).await;
    let shard = ShardId(0);
    assert!(log.raise_trim(shard, AddedId(4)).await.unwrap());
    for last in [2, 4, 4] {
        log.delete_segment(shard, AddedId(last)).await.unwrap();
    }
    let left = log.page(shard, AddedId(0), 10, Strong).await.unwrap();
    assert_eq!(left.iter().map(|segment| segment.last.0).collect::<Vec<_>>(), [6]);
    assert_eq!(log.segment(shard, AddedId(2)).await.unwrap(), None);
    let settled = log.settle(shard, AddedId(4)).await.unwrap();
    assert_eq!((settled.segment, settled.tip.unwrap().trimmed_to), (None, AddedId(4)));
    assert_eq!(log.row("r0", None, 10).await.unwrap().len(), 6, "cells are never trimmed");
    fill(&log, 0, &[1]).await;
    assert_eq!(log.tip(shard).await.unwrap().unwrap().tip, AddedId(7));
}

async fn settling_sees_segment_and_tip(fixture: Arc<dyn Fixture>) {
    let log = fixture.log(1).await;
    fill(&log, 0, &[2, 1]).await;
    let shard = ShardId(0);
    let (segment, tip) = (log.segment(shard, AddedId(2)).await.unwrap(), log.tip(shard).await.unwrap());
    assert!(segment.is_some() && tip.is_some());
    assert_eq!(log.settle(shard, AddedId(2)).await.unwrap(), Settled { segment, tip });
    assert_eq!(log.settle(shard, AddedId(1)).await.unwrap(), Settled { segment: None, tip });
}

async fn many_cells_are_got_at_once(fixture: Arc<dyn Fixture>) {
    let log = fixture.log(1).await;
    assert_eq!(log.get_all(&[]).await.unwrap(), []);
    let mut tip = None;
    for first in [0, 90, 180] {
        tip = Some(append(&log, 0, tip, (first..first + 90).map(|at| cell("r", "x", at)).collect()).await);
    }
    // More than one request takes, in no order, some twice, some not there.
    let keys: Vec<_> =
        (0..300).map(|at| key("r", "x", (at * 7) % 300)).chain([key("r", "x", 3), key("s", "x", 3)]).collect();
    let found = log.get_all(&keys).await.unwrap();
    assert_eq!(found.len(), keys.len());
    for (key, found) in keys.iter().zip(found) {
        assert_eq!(found, log.get(key).await.unwrap(), "{key:?}");
        assert_eq!(found.is_some(), key.ref_key < 270 && *key.row_key == *"r", "{key:?}");
    }
}

async fn groups_are_enlisted_once(fixture: Arc<dyn Fixture>) {
    let log = fixture.log(1).await;
    assert!(log.groups().await.unwrap().is_empty());
    let [a, b] = ["billing", "mail"].map(|name| Name::new(name).unwrap());
    for group in [&b, &a, &b] {
        log.enlist(group).await.unwrap();
    }
    assert_eq!(log.groups().await.unwrap(), [a, b].into());
}

/// All that a scan of a slice brings, by pages of at most `limit`.
async fn scanned(log: &Arc<dyn Log>, slice: Slice, limit: u32) -> Vec<CellKey> {
    let (mut found, mut after) = (Vec::new(), None);
    for consistency in [Strong, Eventual].into_iter().cycle() {
        let page = log.scan(slice, after.as_ref(), limit, consistency).await.unwrap();
        assert!(page.cells.len() <= limit as usize && page.damaged.is_empty(), "{page:?}");
        for stored in page.cells {
            assert_eq!(log.get(&stored.cell.key).await.unwrap().as_ref(), Some(&stored));
            found.push(stored.cell.key);
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    found.sort();
    found
}

async fn a_scan_brings_every_cell_once(fixture: Arc<dyn Fixture>) {
    let log = fixture.log(2).await;
    assert_eq!(scanned(&log, Slice::WHOLE, 10).await, []);
    let mut wanted = Vec::new();
    let mut tips = [None, None];
    for at in 0..12 {
        let shard = at % 2;
        // Columns on both sides of the '#' in the sort key, several cells a row.
        let cells = ["A", "A\"", "A$"].map(|column| cell(&format!("row {}", at / 3), column, at.into()));
        wanted.extend(cells.iter().map(|cell| cell.key.clone()));
        tips[shard as usize] = Some(append(&log, shard, tips[shard as usize], cells.to_vec()).await);
    }
    wanted.sort();
    for limit in [1, 5, 36, 1000] {
        assert_eq!(scanned(&log, Slice::WHOLE, limit).await, wanted, "limit {limit}");
    }
    let mut parts = Vec::new();
    for index in 0..7 {
        parts.extend(scanned(&log, Slice { index, of: 7 }, 5).await);
    }
    parts.sort();
    assert_eq!(parts, wanted, "each row lies in one slice");
}
