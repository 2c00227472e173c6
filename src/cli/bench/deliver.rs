//! How fast cells come to a handler, and what that takes.

use super::{
    Place,
    figure::{Figure, Reach, count, rate},
    machine::processor,
    process::{LONGEST, lease},
    worker::{Job, Running},
};
use crate::{
    cell::{AddedId, Call, Consistency, Event, Handler, Verdict},
    dispatch,
    handler::{self, ExecConfig, handler_fn},
    store::{BATCH_MAX, Cells, Kind, segment},
};
use anyhow::{Context as _, ensure};
use futures_util::future::BoxFuture;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

/// Cells of a call to a child, at most: what a child in Python would be configured with.
const IN_FLIGHT: u32 = 256;
/// A child that is done with everything, as a user would write it in Python.
const PYTHON: &str = r#"
import json, sys
print('{"ready":{"protocol":1,"concurrency":256}}', flush=True)
for line in sys.stdin:
    message = json.loads(line)
    for event in message.get("events") or [message["event"]]:
        print(json.dumps({"id": event["id"], "verdict": "done"}), flush=True)
"#;

/// A backlog that was delivered.
struct Delivered {
    /// From the first call to the last answer.
    time: Duration,
    /// Time of the processor from when the worker, which held all shards, was let begin.
    processor: Duration,
}

/// Delivers a backlog of so many cells to a group of its own.
async fn deliver(
    place: &mut Place,
    cells: &Cells,
    n: usize,
    config: dispatch::Config,
    inner: Arc<dyn Handler>,
) -> anyhow::Result<Delivered> {
    let group = place.group().await?;
    let counter = Arc::new(Counter { all: n, ..Counter::default() });
    let job = Job {
        store: &place.store,
        group,
        cells,
        config,
        handler: Arc::new(Counting { inner, counter: counter.clone() }),
        lease: lease(place.sizes.session),
        paces: Kind::Embedded,
        presence: true,
    };
    let running = Running::start(job).await?;
    running.is_idle(cells.datastore().shards).await?;
    let me = std::process::id();
    let before = processor(me)?;
    running.group().resume().await?;
    let ended = timeout(LONGEST, counter.done.notified()).await;
    let used = processor(me)?.saturating_sub(before);
    let time = counter.begun.get().map(Instant::elapsed);
    running.leave().await?;
    ensure!(ended.is_ok(), "{} of {n} cells within {LONGEST:?}", counter.handled.load(Relaxed));
    Ok(Delivered { time: time.context("nothing was called")?, processor: used })
}

/// Counts what is handled, and tells when it is all.
#[derive(Default)]
struct Counter {
    all: usize,
    begun: OnceLock<Instant>,
    handled: AtomicUsize,
    done: Notify,
}

/// A handler whose calls are counted.
struct Counting {
    inner: Arc<dyn Handler>,
    counter: Arc<Counter>,
}

impl Handler for Counting {
    fn call(self: Arc<Self>, call: Call) -> BoxFuture<'static, Vec<Verdict>> {
        self.counter.begun.get_or_init(Instant::now);
        Box::pin(async move {
            let verdicts = self.inner.clone().call(call).await;
            let (n, counter) = (verdicts.len(), &self.counter);
            let before = counter.handled.fetch_add(n, Relaxed);
            if before < counter.all && before + n >= counter.all {
                counter.done.notify_one();
            }
            verdicts
        })
    }

    fn stop(self: Arc<Self>) -> BoxFuture<'static, ()> {
        self.inner.clone().stop()
    }
}

fn nothing() -> Arc<dyn Handler> {
    handler_fn(|_: Event| async { Verdict::done() })
}

/// Reads and unpacks the whole log, page by page, and does nothing with it.
async fn bare(cells: &Cells) -> anyhow::Result<f64> {
    let start = Instant::now();
    let mut read = 0;
    for shard in cells.datastore().all_shards() {
        let mut after = AddedId(0);
        loop {
            let page = cells.log().page(shard, after, 50, Consistency::Eventual).await?;
            let Some(last) = page.last() else { break };
            after = last.last;
            for segment in &page {
                read += segment::unpack(shard, segment)?.len();
            }
        }
    }
    Ok(rate(read, start.elapsed()))
}

/// To a handler that does nothing.
pub(super) async fn catch_up(place: &mut Place) -> anyhow::Result<Vec<Figure>> {
    let n = place.sizes.medium();
    let cells = place.backlog(n).await?;
    let bare = bare(&cells).await?;
    let config = dispatch::Config::new(cells.datastore().name.clone());
    let took = deliver(place, &cells, n, config, nothing()).await?.time;
    let figure = Figure::of("catch-up to a handler in Rust that does nothing", rate(n, took), "cells/s");
    Ok(vec![figure.beside(bare).reach(Reach::Ratio(0.5))])
}

/// To a child in Rust: this program itself.
pub(super) async fn exec(place: &mut Place) -> anyhow::Result<Vec<Figure>> {
    let program = std::env::current_exe()?.display().to_string();
    let n = place.sizes.medium();
    let took = children(place, n, vec![program, "bench".into(), "child".into()]).await?;
    Ok(vec![Figure::of("catch-up to an exec child in Rust", rate(n, took), "cells/s").reach(Reach::AtLeast(60_000.0))])
}

/// To a child in Python.
pub(super) async fn python(place: &mut Place) -> anyhow::Result<Vec<Figure>> {
    let script = place.dir().join("child.py");
    std::fs::write(&script, PYTHON)?;
    let n = place.sizes.medium();
    let took = children(place, n, vec!["python3".into(), script.display().to_string()]).await?;
    let figure = Figure::of("catch-up to an exec child in Python", rate(n, took), "cells/s");
    Ok(vec![figure.reach(Reach::AtLeast(15_000.0))])
}

async fn children(place: &mut Place, n: usize, command: Vec<String>) -> anyhow::Result<Duration> {
    let cells = place.backlog(n).await?;
    let exec = ExecConfig { command, children: 1, dir: None, env: BTreeMap::new(), env_pass: vec!["PATH".into()] };
    let name = cells.datastore().name.clone();
    let handler = handler::Config::Exec(exec).build(&name)?;
    let config = dispatch::Config { in_flight: IN_FLIGHT, ..dispatch::Config::new(name) };
    Ok(deliver(place, &cells, n, config, handler).await?.time)
}

/// Whether a cell costs more where there are more shards, or more of them wait: time of the processor from when a worker that
/// holds all shards begins, by cell.
pub(super) async fn growth(place: &mut Place) -> anyhow::Result<Vec<Figure>> {
    let (few, many) = (place.sizes.shards, place.sizes.many.max(place.sizes.shards));
    // The large backlog, in full segments, over many shards and over few.
    let segments = place.sizes.cells.div_ceil(BATCH_MAX * many as usize);
    let (wide, n) = place.full(many, segments).await?;
    let (narrow, m) = place.full(few, segments * (many / few) as usize).await?;
    let (narrow, wide) = (cost(place, &narrow, m).await?, cost(place, &wide, n).await?);
    let (n, m) = (place.sizes.cells, place.sizes.small());
    let (long, short) = (place.backlog(n).await?, place.backlog(m).await?);
    let (short, long) = (cost(place, &short, m).await?, cost(place, &long, n).await?);
    let of = |name, value: f64, bare| Figure::of(name, value, "us/cell").beside(bare).reach(Reach::Times(1.2));
    Ok(vec![
        of(format!("growth: processor a cell, {many} shards beside {few}"), wide, narrow),
        of(format!("growth: processor a cell, a backlog of {n} beside {m}"), long, short),
    ])
}

/// Microseconds of the processor for each cell.
async fn cost(place: &mut Place, cells: &Cells, n: usize) -> anyhow::Result<f64> {
    let config = dispatch::Config::new(cells.datastore().name.clone());
    let used = deliver(place, cells, n, config, nothing()).await?.processor;
    Ok(used.as_secs_f64() * 1e6 / count(n))
}
