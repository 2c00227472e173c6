//! How fast cells are appended.

use super::{BATCH, Bench, Figure, percentile, random_cell, rate};
use crate::{
    cell::{Commit, Committed, Log, NewCell, ShardId, Tip, clock},
    store::{BATCH_MAX, Cells, segment},
};
use anyhow::ensure;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{task::JoinSet, time::Instant};

/// Callers at a time.
const CALLERS: usize = 64;
/// Callers of single cells.
const SINGLES: usize = 16;

/// 64 callers with batches, beside a bare loop of full transactions.
pub(super) async fn batches(bench: &mut Bench) -> anyhow::Result<Vec<Figure>> {
    let bare = bare(bench, BATCH_MAX).await?;
    let (cells, time, mut times) = callers(bench, CALLERS, BATCH).await?;
    let figure = Figure::of("append, 64 callers, batches of 100", rate(cells, time), "cells/s").beside(bare);
    Ok(vec![figure, Figure::of("append, p99 of a batch", percentile(&mut times, 99.0), "ms")])
}

/// Single cells, beside a bare loop of transactions of one cell.
pub(super) async fn singles(bench: &mut Bench) -> anyhow::Result<Vec<Figure>> {
    let bare = bare(bench, 1).await?;
    let (cells, time, mut times) = callers(bench, SINGLES, 1).await?;
    let figure = Figure::of("append, 16 callers, single cells", rate(cells, time), "cells/s").beside(bare);
    Ok(vec![figure, Figure::of("append, p99 of a single cell", percentile(&mut times, 99.0), "ms")])
}

async fn callers(bench: &mut Bench, callers: usize, batch: usize) -> anyhow::Result<(usize, Duration, Vec<Duration>)> {
    let datastore = Cells::new(bench.datastore(bench.shards).await?);
    let start = Instant::now();
    let until = start + bench.seconds;
    let mut tasks = JoinSet::new();
    for _ in 0..callers {
        let datastore = datastore.clone();
        tasks.spawn(async move {
            let (mut cells, mut times) = (0, Vec::new());
            while Instant::now() < until {
                let batch: Vec<NewCell> = (0..batch).map(|_| random_cell()).collect();
                let sent = Instant::now();
                for put in datastore.put(batch).await {
                    put?;
                    cells += 1;
                }
                times.push(sent.elapsed());
            }
            anyhow::Ok((cells, times))
        });
    }
    let (mut cells, mut times) = (0, Vec::new());
    while let Some(ended) = tasks.join_next().await {
        let (more, took) = ended??;
        cells += more;
        times.extend(took);
    }
    Ok((cells, start.elapsed(), times))
}

/// Transactions of so many cells, one after another, by somebody who is alone.
async fn bare(bench: &mut Bench, batch: usize) -> anyhow::Result<f64> {
    let log: Arc<dyn Log> = bench.datastore(bench.shards).await?;
    let mut tips: BTreeMap<ShardId, Tip> = BTreeMap::new();
    let (mut made, mut shard) = (0, 0);
    let mut spent = Duration::ZERO;
    while spent < bench.seconds {
        shard = (shard + 1) % bench.shards;
        let id = ShardId(shard);
        let cells: Vec<NewCell> = (0..batch).map(|_| random_cell()).collect();
        let start = Instant::now();
        let packed = segment::pack(&cells);
        let commit = Commit { shard: id, tip: tips.get(&id).copied(), cells, packed, created_at: clock::wall() };
        let after = commit.tip_after();
        ensure!(log.commit(commit).await? == Committed::Accepted, "somebody else appends here");
        spent += start.elapsed();
        tips.insert(id, after);
        made += batch;
    }
    Ok(rate(made, spent))
}
