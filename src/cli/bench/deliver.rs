//! How fast cells come to a handler, and what that takes.

use super::{Bench, Figure, percentile, random_cell, rate};
use crate::{
    cell::{AddedId, Consistency, Event, Handler, Name, Verdict},
    dispatch::{self, MEMORY},
    handler::{self, ExecConfig, handler_fn},
    lease::{self, Identity},
    store::{Cells, segment},
    tail,
    worker::{Setup, TriggerSpec, Worker},
};
use anyhow::{Context as _, ensure};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// Longest time that a delivery may take.
const LONGEST: Duration = Duration::from_mins(10);
/// A child that is done with everything, as a user would write it in Python.
const PYTHON: &str = r#"
import json, sys
print('{"ready":{"protocol":1,"concurrency":256}}', flush=True)
for line in sys.stdin:
    message = json.loads(line)
    for event in message.get("events") or [message["event"]]:
        print(json.dumps({"id": event["id"], "verdict": "done"}), flush=True)
"#;

/// A worker at work, and who waits for what it does.
struct Running {
    stop: CancellationToken,
    worker: JoinSet<()>,
}

impl Running {
    async fn start(
        bench: &Bench,
        cells: &Cells,
        config: dispatch::Config,
        handler: Arc<dyn Handler>,
    ) -> anyhow::Result<Self> {
        let group = Name::new("bench")?;
        bench.store.init_group(&group).await?;
        let name = cells.datastore().name.clone();
        let setup = Setup {
            lease: lease::Config { membership: Duration::from_millis(200), ..lease::Config::default() },
            poll: tail::Config { floor: Duration::from_millis(10), ceiling: Duration::from_millis(200) },
            checkpoint_interval: Duration::from_secs(1),
            memory: MEMORY,
            ledger: bench.store.ledger(&group).await?,
            group,
            presence: bench.store.presence(),
            identity: Identity::default(),
            sources: BTreeMap::from([(name.clone(), cells.clone())]),
            triggers: vec![TriggerSpec { name, config, handler }],
            retention: None,
            wrap: None,
        };
        let worker = Worker::new(setup).await?;
        let stop = CancellationToken::new();
        let mut task = JoinSet::new();
        task.spawn(worker.run(stop.clone(), mpsc::channel(1).1));
        Ok(Self { stop, worker: task })
    }

    async fn leave(mut self) -> anyhow::Result<()> {
        self.stop.cancel();
        self.worker.join_next().await.context("the worker is gone")??;
        Ok(())
    }
}

fn config(cells: &Cells) -> dispatch::Config {
    dispatch::Config { in_flight: 64, ..dispatch::Config::new(cells.datastore().name.clone()) }
}

/// Counts what is handled, and tells when it is all.
#[derive(Clone)]
struct Counter {
    handled: Arc<AtomicUsize>,
    all: usize,
    done: Arc<Notify>,
}

impl Counter {
    fn to(all: usize) -> Self {
        Self { handled: Arc::default(), all, done: Arc::default() }
    }

    fn count(&self) {
        if self.handled.fetch_add(1, Relaxed) + 1 == self.all {
            self.done.notify_one();
        }
    }
}

/// The time from the first call to the last answer.
async fn deliver(
    bench: &mut Bench,
    cells: &Cells,
    n: usize,
    config: dispatch::Config,
    inner: Arc<dyn Handler>,
) -> anyhow::Result<Duration> {
    let counter = Counter::to(n);
    let begun: Arc<Mutex<Option<Instant>>> = Arc::default();
    let counting = Counting { inner, counter: counter.clone(), begun: begun.clone() };
    let running = Running::start(bench, cells, config, Arc::new(counting)).await?;
    let ended = tokio::time::timeout(LONGEST, counter.done.notified()).await;
    let took = begun.lock().unwrap_or_else(PoisonError::into_inner).map(|begun| begun.elapsed());
    running.leave().await?;
    ensure!(ended.is_ok(), "{} of {n} cells within {LONGEST:?}", counter.handled.load(Relaxed));
    took.context("nothing was called")
}

/// A handler whose calls are counted.
struct Counting {
    inner: Arc<dyn Handler>,
    counter: Counter,
    begun: Arc<Mutex<Option<Instant>>>,
}

impl Handler for Counting {
    fn call(self: Arc<Self>, call: crate::cell::Call) -> futures_util::future::BoxFuture<'static, Vec<Verdict>> {
        if self.counter.handled.load(Relaxed) == 0 {
            self.begun.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(Instant::now);
        }
        Box::pin(async move {
            let verdicts = self.inner.clone().call(call).await;
            verdicts.iter().for_each(|_| self.counter.count());
            verdicts
        })
    }

    fn stop(self: Arc<Self>) -> futures_util::future::BoxFuture<'static, ()> {
        self.inner.clone().stop()
    }
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
pub(super) async fn catch_up(bench: &mut Bench, n: usize) -> anyhow::Result<Vec<Figure>> {
    let cells = bench.backlog(n).await?;
    let bare = bare(&cells).await?;
    let nothing = handler_fn(|_: Event| async { Verdict::done() });
    let took = deliver(bench, &cells, n, config(&cells), nothing).await?;
    Ok(vec![Figure::of("catch-up to a handler in Rust", rate(n, took), "cells/s").beside(bare)])
}

/// To a child in Rust: this program itself.
pub(super) async fn exec(bench: &mut Bench, n: usize) -> anyhow::Result<Vec<Figure>> {
    let program = std::env::current_exe()?.display().to_string();
    let took = children(bench, n, vec![program, "bench".into(), "--child".into()]).await?;
    Ok(vec![Figure::of("catch-up to a child in Rust", rate(n, took), "cells/s")])
}

/// To a child in Python.
pub(super) async fn python(bench: &mut Bench, n: usize) -> anyhow::Result<Vec<Figure>> {
    let script = bench.dir().join("child.py");
    std::fs::write(&script, PYTHON)?;
    let took = children(bench, n, vec!["python3".into(), script.display().to_string()]).await?;
    Ok(vec![Figure::of("catch-up to a child in Python", rate(n, took), "cells/s")])
}

async fn children(bench: &mut Bench, n: usize, command: Vec<String>) -> anyhow::Result<Duration> {
    let cells = bench.backlog(n).await?;
    let exec = ExecConfig { command, children: 1, dir: None, env: BTreeMap::new(), env_pass: vec!["PATH".into()] };
    let handler = handler::Config::Exec(exec).build(&cells.datastore().name)?;
    let config = dispatch::Config { in_flight: 256, ..config(&cells) };
    deliver(bench, &cells, n, config, handler).await
}

/// From put to the start of the handler, while little happens.
pub(super) async fn latency(bench: &mut Bench) -> anyhow::Result<Vec<Figure>> {
    let cells = Cells::new(bench.datastore(bench.shards).await?);
    let (starts, mut started) = mpsc::unbounded_channel();
    let handler = handler_fn(move |event: Event| {
        // Whoever waits for it is there as long as this is.
        let _ = starts.send((event.cell.key.ref_key, Instant::now()));
        async { Verdict::done() }
    });
    let running = Running::start(bench, &cells, config(&cells), handler).await?;
    let mut times = Vec::new();
    let until = Instant::now() + bench.seconds.max(Duration::from_secs(5));
    let warm = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        let cell = random_cell();
        let (ref_key, sent) = (cell.key.ref_key, Instant::now());
        for put in cells.put(vec![cell]).await {
            put?;
        }
        let waits = tokio::time::timeout(LONGEST, started.recv());
        let (called, at) = waits.await?.context("the handler is gone")?;
        ensure!(called == ref_key, "another cell was called for");
        if sent > warm {
            times.push(at - sent);
        }
        tokio::time::sleep(Duration::from_millis(fastrand::u64(1..20))).await;
    }
    running.leave().await?;
    let (half, most) = (percentile(&mut times, 50.0), percentile(&mut times, 99.0));
    Ok(vec![Figure::of("put to handler, median", half, "ms"), Figure::of("put to handler, p99", most, "ms")])
}

/// Memory while a backlog waits for a handler that hardly goes on. Less what the appending took before.
pub(super) async fn backlog(bench: &mut Bench, n: usize) -> anyhow::Result<Vec<Figure>> {
    let cells = bench.backlog(n).await?;
    let before = resident()?;
    let slow = handler_fn(|_: Event| async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        Verdict::done()
    });
    let running = Running::start(bench, &cells, config(&cells), slow).await?;
    let mut most = before;
    let until = Instant::now() + bench.seconds.max(Duration::from_secs(10));
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(100)).await;
        most = most.max(resident()?);
    }
    running.leave().await?;
    Ok(vec![Figure::of("memory, slow handler and a backlog", most, "MB"), Figure::of("memory before", before, "MB")])
}

/// An idle worker.
pub(super) async fn idle(bench: &mut Bench) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (shards, memory, time) in [
        (64, "memory, idle, 64 shards", "processor, idle, 64 shards"),
        (4096, "memory, idle, 4096 shards", "processor, idle, 4096 shards"),
    ] {
        let cells = Cells::new(bench.datastore(shards).await?);
        let nothing = handler_fn(|_: Event| async { Verdict::done() });
        let running = Running::start(bench, &cells, config(&cells), nothing).await?;
        tokio::time::sleep(Duration::from_secs(15)).await;
        let (start, before) = (Instant::now(), processor()?);
        tokio::time::sleep(bench.seconds.max(Duration::from_secs(10))).await;
        let used = (processor()? - before) / start.elapsed().as_secs_f64();
        figures.push(Figure::of(memory, resident()?, "MB"));
        figures.push(Figure::of(time, used * 100.0, "%"));
        running.leave().await?;
    }
    Ok(figures)
}

/// Resident memory of this process, in MB.
fn resident() -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes: f64 = line.and_then(|line| line.split_whitespace().next()).context("no VmRSS")?.parse()?;
    Ok(kilobytes * 1024.0 / 1e6)
}

/// Seconds of the processor that this process has used.
fn processor() -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    // After the name: fields 14 and 15 of the whole, in hundredths of a second.
    let ticks: f64 = [11, 12].iter().filter_map(|i| fields.get(*i)?.parse::<f64>().ok()).sum();
    Ok(ticks / 100.0)
}
