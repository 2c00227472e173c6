//! What DynamoDB would charge: units, counted and not computed. By the clock of a simulation, so that an hour takes seconds and
//! comes out the same on any machine, over an engine in memory that answers with DynamoDB's own units.

use super::{
    Place,
    figure::{Figure, Reach, count},
    place::{cell_of, fill, make, random_cell},
    process::lease,
    worker::{Job, Running},
};
use crate::{
    cell::{Event, Millis, Name, ShardId, Verdict, clock},
    dispatch,
    handler::handler_fn,
    metrics::{self, Units},
    store::{BATCH_MAX, Cells, Kind, Store},
};
use anyhow::{Context as _, ensure};
use std::{collections::BTreeMap, thread, time::Duration};
use tokio::{
    runtime,
    sync::oneshot,
    time::{interval, sleep},
};

/// How long an idle worker is watched, and how long before that it is left alone.
const WATCHED: u32 = 5;
const SETTLE: Duration = Duration::from_secs(30);
const MINUTE: Duration = Duration::from_mins(1);
/// Segments of each shard that are handled.
const SEGMENTS: usize = 2;

/// Appending, handling, and standing still.
pub(super) async fn cost(place: &mut Place) -> anyhow::Result<Vec<Figure>> {
    let (few, many) = (place.sizes.shards, place.sizes.many);
    let mut figures = in_no_time(appends).await?;
    figures.extend(in_no_time(move || handled(few)).await?);
    figures.extend(in_no_time(move || idle(few)).await?.into_iter().flat_map(Idle::plain));
    figures.extend(in_no_time(move || busy(few)).await?);
    figures.extend(in_no_time(move || idle(many)).await?.into_iter().flat_map(Idle::held));
    Ok(figures)
}

/// Runs by a clock that jumps ahead whenever all wait for it.
async fn in_no_time<T, F, W>(work: W) -> anyhow::Result<T>
where
    T: Send + 'static,
    F: Future<Output = anyhow::Result<T>>,
    W: FnOnce() -> F + Send + 'static,
{
    let (done, told) = oneshot::channel();
    // A thread of its own: a clock is replaced for a whole thread.
    let run = move || {
        let runtime = runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let result = runtime.context("no runtime").and_then(|runtime| {
            runtime.block_on(async {
                clock::simulate(Millis(1_700_000_000_000));
                work().await
            })
        });
        // Nobody is there to hear it when the bench was interrupted.
        let _ = done.send(result);
    };
    thread::Builder::new().name("bench-cost".into()).spawn(run)?;
    told.await.context("the counting broke down")?
}

/// Units by table.
type Counted = BTreeMap<String, Units>;

/// A datastore and a group whose requests are counted. What the process counts is for all stores: only one is at work then.
struct Counting {
    store: Store,
    cells: Cells,
    group: Name,
    before: Counted,
    unknown_before: u64,
}

impl Counting {
    async fn new(shards: u32) -> anyhow::Result<Self> {
        let store = Store::inline()?;
        let (cells, group) = (make(&store, Name::new("cells")?, shards).await?, Name::new("group")?);
        store.init_group(&group).await?;
        let (before, unknown_before) = so_far();
        Ok(Self { store, cells, group, before, unknown_before })
    }

    /// A worker that does nothing with what there is, at the intervals of a store that costs money, once it is idle.
    async fn worker(&self) -> anyhow::Result<Running> {
        let usual = crate::lease::Config::default();
        let job = Job {
            store: &self.store,
            group: self.group.clone(),
            cells: &self.cells,
            config: dispatch::Config::new(self.cells.datastore().name.clone()),
            handler: handler_fn(|_: Event| async { Verdict::done() }),
            lease: lease(usual.session),
            paces: Kind::Dynamodb,
            presence: false,
        };
        let running = Running::start(job).await?;
        running.is_idle(self.cells.datastore().shards).await?;
        Ok(running)
    }

    /// What was counted since the last look, all of it known.
    fn take(&mut self) -> anyhow::Result<Counted> {
        let (counted, unknown) = so_far();
        let refused = unknown - self.unknown_before;
        ensure!(refused == 0, "{refused} requests were refused, and nobody tells what they cost");
        let before = std::mem::replace(&mut self.before, counted.clone());
        let since = |(table, units): (String, Units)| {
            let before = before.get(&table).copied().unwrap_or_default();
            (table, Units { read: units.read - before.read, write: units.write - before.write })
        };
        Ok(counted.into_iter().map(since).collect())
    }
}

/// What all requests so far consumed, by table, and how many did not tell it.
fn so_far() -> (Counted, u64) {
    let mut tables = Counted::new();
    for ((table, _), units) in metrics::consumed() {
        let sum = tables.entry(table).or_default();
        *sum = Units { read: sum.read + units.read, write: sum.write + units.write };
    }
    (tables, metrics::unmetered_requests())
}

fn sum(counted: &Counted, wanted: impl Fn(&str) -> bool) -> Units {
    let tables = counted.iter().filter(|(table, _)| wanted(table));
    tables
        .fold(Units::default(), |sum, (_, units)| Units { read: sum.read + units.read, write: sum.write + units.write })
}

/// Cells of 1 KB: one alone, and as many as a transaction takes.
async fn appends() -> anyhow::Result<Vec<Figure>> {
    let mut counting = Counting::new(1).await?;
    let mut figures = Vec::new();
    // The first one reads the tip; it is not counted.
    for (n, name) in [(1, ""), (1, "append of a cell alone"), (BATCH_MAX, "append of a full transaction, a cell")] {
        counting.take()?;
        for put in counting.cells.put((0..n).map(|_| random_cell()).collect()).await {
            put?;
        }
        figures.push(Figure::of(name, sum(&counting.take()?, |_| true).write / count(n), "write units"));
    }
    Ok(figures.split_off(1))
}

/// Cells of a backlog, in full segments; with the reading that tells how old the first of them is.
async fn handled(shards: u32) -> anyhow::Result<Vec<Figure>> {
    let mut counting = Counting::new(shards).await?;
    fill(&counting.cells, SEGMENTS, BATCH_MAX).await?;
    let running = counting.worker().await?;
    running.group().resume().await?;
    let all = u64::try_from(SEGMENTS * BATCH_MAX)?;
    while running.group().finished(all).await? < shards {
        sleep(Duration::from_secs(1)).await;
    }
    let read = sum(&counting.take()?, |table| table.ends_with(".log")).read;
    let cells = count(SEGMENTS * BATCH_MAX * shards as usize);
    Ok(vec![Figure::of("reading a cell of a full segment", read / cells, "read units")])
}

/// A cell a second in each shard.
async fn busy(shards: u32) -> anyhow::Result<Vec<Figure>> {
    let mut counting = Counting::new(shards).await?;
    let running = counting.worker().await?;
    running.group().resume().await?;
    let mut second = interval(Duration::from_secs(1));
    let cells = counting.cells.clone();
    let mut minute = async || {
        for _ in 0..60 {
            second.tick().await;
            for put in cells.put((0..shards).map(|id| cell_of(ShardId(id), shards)).collect()).await {
                put?;
            }
        }
        anyhow::Ok(())
    };
    minute().await?;
    counting.take()?;
    minute().await?;
    let write = sum(&counting.take()?, |table| table.ends_with(".control")).write;
    let name = format!("checkpoints, a cell a second in each of {shards} shards");
    Ok(vec![Figure::of(name, write, "write units/min")])
}

/// Units a minute of a worker that holds all shards, each with a cell, and has nothing to do.
struct Idle {
    shards: u32,
    control: Units,
    tips: f64,
}

async fn idle(shards: u32) -> anyhow::Result<Vec<Idle>> {
    let mut counting = Counting::new(shards).await?;
    fill(&counting.cells, 1, 1).await?;
    let running = counting.worker().await?;
    running.group().resume().await?;
    while running.group().finished(1).await? < shards {
        sleep(Duration::from_secs(1)).await;
    }
    sleep(SETTLE).await;
    counting.take()?;
    sleep(MINUTE * WATCHED).await;
    let counted = counting.take()?;
    let minutes = f64::from(WATCHED);
    let (control, tips) = (sum(&counted, |table| table.ends_with(".control")), sum(&counted, |t| t.ends_with(".tips")));
    let rest = sum(&counted, |table| !table.ends_with(".control") && !table.ends_with(".tips"));
    ensure!(rest == Units::default(), "an idle worker read or wrote cells: {counted:?}");
    let control = Units { read: control.read / minutes, write: control.write / minutes };
    Ok(vec![Idle { shards, control, tips: tips.read / minutes }])
}

impl Idle {
    /// Writes and reads of the control plane, and reads of tips.
    fn plain(self) -> [Figure; 3] {
        let Self { shards, control, tips } = self;
        let of = |what, value, unit| Figure::of(format!("{what}, {shards} shards, one idle worker"), value, unit);
        [
            of("control plane", control.write, "write units/min"),
            of("control plane", control.read, "read units/min"),
            of("tips", tips, "read units/min"),
        ]
    }

    fn held(self) -> [Figure; 3] {
        let [write, read, tips] = self.plain();
        [write.reach(Reach::AtMost(60.0)), read.reach(Reach::AtMost(250.0)), tips]
    }
}
