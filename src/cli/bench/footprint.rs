//! What a worker takes that has nothing to do, or more than it can, and how soon it works: seen from outside, on a process that
//! was started as a user starts it.

use super::{
    Place,
    figure::{Figure, Reach, millis, percentile},
    machine::{Memory, busy, processor},
    place::{cell_of, fill},
    process::{Printed, Process, WorkerConfig, until},
    worker::Group,
};
use crate::{
    cell::ShardId,
    dispatch,
    handler::{self, ExecConfig},
    store::Cells,
};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::{Instant, sleep};

/// How long a worker that became idle is left alone before it is looked at.
const SETTLE: Duration = Duration::from_secs(2);
/// What a slow handler takes for a cell, in milliseconds.
const SLOW: u64 = 500;
/// Where the log tells of a cell.
const CALLED: &str = "cellhook::handler::log";

/// Starts a worker; with a group whose trigger is active from the start.
async fn worker(
    place: &mut Place,
    cells: &Cells,
    handler: handler::Config,
    level: &'static str,
) -> anyhow::Result<(Group, Process, Printed)> {
    let name = place.group().await?;
    let group = Group::open(&place.store, name, cells).await?;
    group.resume().await?;
    let (process, printed) = start(place, &group, cells, handler, level)?;
    Ok((group, process, printed))
}

fn start(
    place: &Place,
    group: &Group,
    cells: &Cells,
    handler: handler::Config,
    level: &'static str,
) -> anyhow::Result<(Process, Printed)> {
    let datastore = cells.datastore();
    let trigger = dispatch::Config { handler, ..dispatch::Config::new(datastore.name.clone()) };
    let session = place.sizes.session;
    WorkerConfig { group: &group.name, datastore, trigger, session, level }.run(place)
}

fn log() -> handler::Config {
    handler::Config::Log(handler::LogConfig::default())
}

/// Memory and processor of a worker whose shards have each a cell, and nothing new.
pub(super) async fn idle(place: &mut Place) -> anyhow::Result<Vec<Figure>> {
    let (few, many) = (place.sizes.shards, place.sizes.many);
    let (small, large) = (idle_with(place, few).await?, idle_with(place, many).await?);
    let [memory, processor] = large;
    Ok(small.into_iter().chain([memory.reach(Reach::AtMost(80.0)), processor]).collect())
}

async fn idle_with(place: &mut Place, shards: u32) -> anyhow::Result<[Figure; 2]> {
    let cells = place.datastore(shards).await?;
    fill(&cells, 1, 1).await?;
    let (group, process, _printed) = worker(place, &cells, log(), "error").await?;
    until("becoming idle", async || Ok(group.finished(1).await? == shards)).await?;
    sleep(SETTLE.min(place.sizes.seconds)).await;
    let (start, before) = (Instant::now(), processor(process.pid())?);
    sleep(place.sizes.seconds).await;
    let used = processor(process.pid())?.saturating_sub(before);
    let (used, memory) = (busy(used, start.elapsed()), Memory::of(process.pid())?);
    process.leave().await?;
    Ok([
        Figure::of(format!("memory of an idle worker, {shards} shards"), memory.now, "MB"),
        Figure::of(format!("processor of an idle worker, {shards} shards"), used, "% of a core"),
    ])
}

/// The most memory of a worker while a backlog waits for a handler that hardly goes on.
pub(super) async fn backlog(place: &mut Place) -> anyhow::Result<Vec<Figure>> {
    let n = place.sizes.cells;
    let cells = place.backlog(n).await?;
    let program = std::env::current_exe()?.display().to_string();
    let command = vec![program, "bench".into(), "child".into(), "--delay".into(), SLOW.to_string()];
    let exec = ExecConfig { command, children: 1, dir: None, env: BTreeMap::new(), env_pass: Vec::new() };
    let (_group, process, _printed) = worker(place, &cells, handler::Config::Exec(exec), "error").await?;
    sleep(place.sizes.seconds * 2).await;
    let memory = Memory::of(process.pid())?.most;
    drop(process);
    let name = format!("memory of a worker, {n} cells of backlog and a slow handler, the most");
    Ok(vec![Figure::of(name, memory, "MB").reach(Reach::AtMost(250.0))])
}

/// From the start of the process to the first call, with a cell that waits.
pub(super) async fn start_up(place: &mut Place) -> anyhow::Result<Vec<Figure>> {
    let shards = place.sizes.shards;
    let cells = place.datastore(shards).await?;
    let name = place.group().await?;
    let group = Group::open(&place.store, name, &cells).await?;
    group.resume().await?;
    let mut times = Vec::new();
    for _ in 0..place.sizes.trials {
        for put in cells.put(vec![cell_of(ShardId(fastrand::u32(..shards)), shards)]).await {
            put?;
        }
        let begun = Instant::now();
        let (process, mut printed) = start(place, &group, &cells, log(), "warn,cellhook::handler::log=info")?;
        while !printed.next().await?.contains(CALLED) {}
        times.push(begun.elapsed());
        process.leave().await?;
    }
    let (first, n) = (millis(times[0]), times.len());
    let slowest = percentile(&mut times, 100.0);
    Ok(vec![
        Figure::of(format!("process start to first dispatch, slowest of {n}"), slowest, "ms")
            .reach(Reach::AtMost(300.0))
            .samples(n),
        Figure::of("process start to first dispatch, the first of its group", first, "ms"),
    ])
}
