//! From the call of put to the start of the handler, while little happens.

use super::{
    Place,
    figure::{Figure, Reach, percentile},
    place::random_cell,
    process::{LONGEST, Process, lease},
    worker::{Job, Running},
};
use crate::{
    cell::{Event, Verdict, clock},
    dispatch,
    handler::handler_fn,
    store::{Cells, Kind},
};
use anyhow::{Context as _, ensure};
use std::time::Duration;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

/// Not counted: what is there for the first time.
const WARM: Duration = Duration::from_secs(1);

/// A worker that tells the ref key of each cell that it is called for, and when.
async fn worker(
    place: &mut Place,
    cells: &Cells,
) -> anyhow::Result<(Running, mpsc::UnboundedReceiver<(u64, Duration)>)> {
    let (starts, started) = mpsc::unbounded_channel();
    let handler = handler_fn(move |event: Event| {
        // Whoever waits for it is there as long as this is.
        let _ = starts.send((event.cell.key.ref_key, clock::boot()));
        async { Verdict::done() }
    });
    let job = Job {
        group: place.group().await?,
        store: &place.store,
        cells,
        config: dispatch::Config::new(cells.datastore().name.clone()),
        handler,
        lease: lease(place.sizes.session),
        paces: Kind::Embedded,
        presence: true,
    };
    let running = Running::start(job).await?;
    running.is_idle(cells.datastore().shards).await?;
    running.group().resume().await?;
    Ok((running, started))
}

/// Put by the process in which the worker runs, and by another one.
pub(super) async fn latency(place: &mut Place) -> anyhow::Result<Vec<Figure>> {
    let mut same = same(place).await?;
    let mut other = other(place).await?;
    let figures = |from: &str, times: &mut Vec<Duration>, most| {
        let of = |p: &str, value| Figure::of(format!("put to handler, {from}, {p}"), value, "ms").samples(times.len());
        let (half, slow) = (percentile(&mut times.clone(), 50.0), percentile(&mut times.clone(), 99.0));
        [of("median", half), of("p99", slow).reach(Reach::AtMost(most))]
    };
    let (same, other) = (figures("same process", &mut same, 10.0), figures("another process", &mut other, 250.0));
    Ok(same.into_iter().chain(other).collect())
}

async fn same(place: &mut Place) -> anyhow::Result<Vec<Duration>> {
    let cells = place.datastore(place.sizes.shards).await?;
    let (running, mut started) = worker(place, &cells).await?;
    let mut times = Vec::new();
    let warm = Instant::now() + WARM;
    let until = warm + place.sizes.seconds;
    while Instant::now() < until {
        let cell = random_cell();
        let (ref_key, sent, at) = (cell.key.ref_key, clock::boot(), Instant::now());
        for put in cells.put(vec![cell]).await {
            put?;
        }
        let (called, begun) = timeout(LONGEST, started.recv()).await?.context("the handler is gone")?;
        ensure!(called == ref_key, "another cell was called for");
        if at > warm {
            times.push(begun.saturating_sub(sent));
        }
        sleep(Duration::from_millis(fastrand::u64(1..20))).await;
    }
    running.leave().await?;
    Ok(times)
}

/// The other process puts its time into the ref key: the clock since boot is the same for all processes.
async fn other(place: &mut Place) -> anyhow::Result<Vec<Duration>> {
    let cells = place.datastore(place.sizes.shards).await?;
    let (running, mut started) = worker(place, &cells).await?;
    let datastore = cells.datastore().name.as_str();
    let words = ["bench".as_ref(), "put".as_ref(), place.dir().as_os_str(), datastore.as_ref()];
    let (mut putter, _printed) = Process::start(words, false)?;
    let mut times = Vec::new();
    let mut until = None;
    while until.is_none_or(|until| Instant::now() < until) {
        let (put_at, begun) = timeout(LONGEST, started.recv()).await?.context("the handler is gone")?;
        match until {
            Some(_) => times.push(begun.saturating_sub(Duration::from_nanos(put_at))),
            None => until = Some(Instant::now() + place.sizes.seconds),
        }
    }
    let status = putter.ended().await?;
    ensure!(status.success(), "the process that puts ended with {status}");
    running.leave().await?;
    Ok(times)
}
