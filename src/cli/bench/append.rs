//! How fast cells are appended.

use super::{
    Place,
    figure::{Figure, Reach, percentile, rate},
    place::random_cell,
};
use crate::{
    cell::{Commit, Committed, NewCell, ShardId, Tip, clock},
    store::{BATCH_MAX, Cells, segment},
};
use anyhow::ensure;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

/// Callers at a time.
const CALLERS: u32 = 64;
/// Cells of a caller's batch.
const BATCH: usize = 100;
/// Callers of single cells.
const SINGLES: u32 = 16;

/// 64 callers with batches, beside a bare loop of full transactions; then the same at half the rate that this came to.
pub(super) async fn batches(place: &mut Place) -> anyhow::Result<Vec<Figure>> {
    let bare = bare(place, BATCH_MAX).await?;
    let (cells, time, mut times) = callers(place, CALLERS, BATCH).await?;
    let full = rate(cells, time);
    let mut late = paced(place, full / 2.0).await?;
    let samples = late.len();
    Ok(vec![
        Figure::of(format!("append, {CALLERS} callers, batches of {BATCH}"), full, "cells/s")
            .beside(bare)
            .reach(Reach::AtLeastOr(18_000.0, 0.88)),
        Figure::of("append, p99 of a batch at full rate", percentile(&mut times, 99.0), "ms").samples(times.len()),
        Figure::of("append at half that rate, p99 of a batch from when it was due", percentile(&mut late, 99.0), "ms")
            .reach(Reach::AtMost(100.0))
            .samples(samples),
    ])
}

/// Single cells, beside a bare loop of transactions of one cell.
pub(super) async fn singles(place: &mut Place) -> anyhow::Result<Vec<Figure>> {
    let bare = bare(place, 1).await?;
    let (cells, time, mut times) = callers(place, SINGLES, 1).await?;
    let figure = Figure::of(format!("append, {SINGLES} callers, single cells"), rate(cells, time), "cells/s");
    Ok(vec![
        figure.beside(bare).reach(Reach::Ratio(0.8)),
        Figure::of("append, p99 of a single cell", percentile(&mut times, 99.0), "ms").samples(times.len()),
    ])
}

/// Each caller sends its next batch as soon as the last one is answered.
async fn callers(place: &mut Place, callers: u32, batch: usize) -> anyhow::Result<(usize, Duration, Vec<Duration>)> {
    let datastore = place.datastore(place.sizes.shards).await?;
    let start = Instant::now();
    let until = start + place.sizes.seconds;
    let mut tasks = JoinSet::new();
    for _ in 0..callers {
        let datastore = datastore.clone();
        tasks.spawn(async move {
            let mut times = Vec::new();
            while Instant::now() < until {
                let batch = random_cells(batch);
                let sent = Instant::now();
                put(&datastore, batch).await?;
                times.push(sent.elapsed());
            }
            anyhow::Ok(times)
        });
    }
    let times = all(tasks).await?;
    Ok((times.len() * batch, start.elapsed(), times))
}

/// Batches that are due at a fixed rate, whether or not those before are answered; the times of each from when it was due. Who
/// waits for an answer is late with the next, and that counts too.
async fn paced(place: &mut Place, cells_a_second: f64) -> anyhow::Result<Vec<Duration>> {
    let datastore = place.datastore(place.sizes.shards).await?;
    let interval = Duration::from_secs_f64(BATCH as f64 / cells_a_second.max(1.0));
    let start = Instant::now();
    let until = start + place.sizes.seconds;
    let mut tasks = JoinSet::new();
    for caller in 0..CALLERS {
        let datastore = datastore.clone();
        tasks.spawn(async move {
            let mut times = Vec::new();
            for turn in 0.. {
                let due = start + interval * (turn * CALLERS + caller);
                if due >= until {
                    break;
                }
                let batch = random_cells(BATCH);
                sleep_until(due).await;
                put(&datastore, batch).await?;
                times.push(due.elapsed());
            }
            anyhow::Ok(times)
        });
    }
    all(tasks).await
}

async fn all(mut tasks: JoinSet<anyhow::Result<Vec<Duration>>>) -> anyhow::Result<Vec<Duration>> {
    let mut all = Vec::new();
    while let Some(times) = tasks.join_next().await {
        all.extend(times??);
    }
    Ok(all)
}

fn random_cells(n: usize) -> Vec<NewCell> {
    (0..n).map(|_| random_cell()).collect()
}

async fn put(datastore: &Cells, cells: Vec<NewCell>) -> anyhow::Result<()> {
    for put in datastore.put(cells).await {
        put?;
    }
    Ok(())
}

/// Transactions of so many cells, one after another, by somebody who is alone.
async fn bare(place: &mut Place, batch: usize) -> anyhow::Result<f64> {
    let shards = place.sizes.shards;
    let datastore = place.datastore(shards).await?;
    let mut tips: BTreeMap<ShardId, Tip> = BTreeMap::new();
    let (mut made, mut shard) = (0, 0);
    let mut spent = Duration::ZERO;
    while spent < place.sizes.seconds {
        shard = (shard + 1) % shards;
        let id = ShardId(shard);
        let cells = random_cells(batch);
        let start = Instant::now();
        let packed = segment::pack(&cells);
        let commit = Commit { shard: id, tip: tips.get(&id).copied(), cells, packed, created_at: clock::wall() };
        let after = commit.tip_after();
        ensure!(datastore.log().commit(commit).await? == Committed::Accepted, "somebody else appends here");
        spent += start.elapsed();
        tips.insert(id, after);
        made += batch;
    }
    Ok(rate(made, spent))
}

/// The callers of a process that appends until it is dismissed.
pub(super) struct Appenders {
    /// Cells so far.
    pub(super) count: Arc<AtomicUsize>,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl Appenders {
    pub(super) fn start(cells: &Cells) -> Self {
        let count: Arc<AtomicUsize> = Arc::default();
        let mut tasks = JoinSet::new();
        for _ in 0..CALLERS {
            let (cells, count) = (cells.clone(), count.clone());
            tasks.spawn(async move {
                loop {
                    put(&cells, random_cells(BATCH)).await?;
                    count.fetch_add(BATCH, Relaxed);
                }
            });
        }
        Self { count, tasks }
    }

    /// Waits for one that cannot go on.
    pub(super) async fn failed(&mut self) -> anyhow::Error {
        match self.tasks.join_next().await {
            Some(Ok(Err(error))) => error,
            _ => anyhow::anyhow!("a caller ended without a word"),
        }
    }
}
