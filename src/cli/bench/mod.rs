//! `bench`: what this release does on this machine. Each figure stands beside a bare loop of the same run over the same store,
//! which is the most that anything could do there.

mod append;
mod child;
mod deliver;

use super::{Context, exit::Done};
use crate::{
    cell::{CellKey, Log, Name, NewCell, NewDatastore},
    store::{Cells, Config, Store},
};
use clap::ValueEnum;
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// Bytes of a body, about.
const BODY: usize = 1000;
/// Cells of a caller's batch.
const BATCH: usize = 100;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only these.
    #[arg(long, value_enum, value_name = "NAME")]
    only: Vec<What>,
    /// How long each of the appending ones runs.
    #[arg(long, default_value_t = 5, value_name = "N")]
    seconds: u64,
    /// Shards of the datastore.
    #[arg(long, default_value_t = 64, value_name = "N")]
    shards: u32,
    /// Cells that are delivered.
    #[arg(long, default_value_t = 200_000, value_name = "N")]
    cells: usize,
    /// Where the store is made, and removed afterwards; default: the place for temporary files.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Be a child of kind exec that is done with everything.
    #[arg(long, hide = true)]
    child: bool,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// 64 callers, each with a batch of 100 cells over random rows.
    Append,
    /// Single cells, one at a time by each of 16 callers.
    Single,
    /// A backlog to a handler in Rust that does nothing.
    CatchUp,
    /// A backlog to a child process in Rust.
    Exec,
    /// A backlog to a child process in Python.
    Python,
    /// From the call of put to the start of the handler, in one process.
    Latency,
    /// Memory with a backlog and a handler that hardly goes on.
    Backlog,
    /// Memory and time of the processor of an idle worker.
    Idle,
}

const ALL: [What; 8] =
    [What::Append, What::Single, What::CatchUp, What::Exec, What::Python, What::Latency, What::Backlog, What::Idle];

/// One measured figure.
#[derive(Debug, Serialize)]
struct Figure {
    name: &'static str,
    value: f64,
    unit: &'static str,
    /// The same by a bare loop.
    bare: Option<f64>,
    /// `value` by `bare`.
    ratio: Option<f64>,
}

impl Figure {
    fn of(name: &'static str, value: f64, unit: &'static str) -> Self {
        Self { name, value, unit, bare: None, ratio: None }
    }

    fn beside(self, bare: f64) -> Self {
        Self { bare: Some(bare), ratio: Some(self.value / bare), ..self }
    }
}

/// A store in a place of its own, which goes with it.
struct Bench {
    dir: PathBuf,
    store: Store,
    shards: u32,
    seconds: Duration,
    made: u32,
}

impl Drop for Bench {
    fn drop(&mut self) {
        // Nobody needs it; what cannot be removed is in the place for temporary files.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Bench {
    async fn new(args: &Args) -> anyhow::Result<Self> {
        let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
        let dir = parent.join(format!("cellhook-bench-{}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        let store = Store::open(&Config { path: dir.join("store.db"), ..Config::default() }).await?;
        Ok(Self { dir, store, shards: args.shards, seconds: Duration::from_secs(args.seconds), made: 0 })
    }

    fn dir(&self) -> &Path {
        &self.dir
    }

    /// A new datastore without cells.
    async fn datastore(&mut self, shards: u32) -> anyhow::Result<Arc<dyn Log>> {
        self.made += 1;
        let name = Name::new(&format!("bench{}", self.made))?;
        self.store.init_datastore(&NewDatastore { name: name.clone(), shards }).await?;
        Ok(self.store.datastore(&name, Some(shards)).await?)
    }

    /// A new datastore with a backlog.
    async fn backlog(&mut self, cells: usize) -> anyhow::Result<Cells> {
        let datastore = Cells::new(self.datastore(self.shards).await?);
        let mut made = 0;
        while made < cells {
            let batch = (cells - made).min(5000);
            for put in datastore.put((0..batch).map(|_| random_cell()).collect()).await {
                put?;
            }
            made += batch;
        }
        Ok(datastore)
    }
}

/// A cell of a random row, which compresses about as well as a body of somebody's.
fn random_cell() -> NewCell {
    let pad: String = std::iter::repeat_with(fastrand::alphanumeric).take(BODY / 2).collect();
    let body = format!("{{\"fare\":{},\"note\":\"{pad}{}\"}}", fastrand::u32(..10_000), "x".repeat(BODY / 2 - 30));
    let row = format!("row-{:x}", fastrand::u64(..1 << 40));
    let key = CellKey { row_key: row.into(), column: "BASE".into(), ref_key: fastrand::u64(..1 << 60) };
    NewCell { key, body: body.into(), origin: None }
}

pub(super) async fn bench(context: &mut Context, args: Args) -> anyhow::Result<Done> {
    if args.child {
        child::run()?;
        return Ok(Done::All);
    }
    let mut rows = Vec::new();
    for what in ALL.into_iter().filter(|what| args.only.is_empty() || args.only.contains(what)) {
        let mut bench = Bench::new(&args).await?;
        let figures = match what {
            What::Append => append::batches(&mut bench).await?,
            What::Single => append::singles(&mut bench).await?,
            What::CatchUp => deliver::catch_up(&mut bench, args.cells).await?,
            What::Exec => deliver::exec(&mut bench, args.cells).await?,
            What::Python => deliver::python(&mut bench, args.cells / 4).await?,
            What::Latency => deliver::latency(&mut bench).await?,
            What::Backlog => deliver::backlog(&mut bench, args.cells).await?,
            What::Idle => deliver::idle(&mut bench).await?,
        };
        for figure in figures {
            if context.output.is_json() {
                context.output.object(&figure)?;
            } else {
                rows.push(row(&figure));
            }
        }
    }
    context.output.table(["FIGURE", "VALUE", "UNIT", "BARE", "RATIO"], &rows)?;
    Ok(Done::All)
}

fn row(figure: &Figure) -> [String; 5] {
    let number = |value: f64| if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") };
    let optional = |value: Option<f64>| value.map_or_else(|| "-".into(), number);
    [figure.name.into(), number(figure.value), figure.unit.into(), optional(figure.bare), optional(figure.ratio)]
}

/// A percentile of some times, in milliseconds.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank")]
fn percentile(times: &mut [Duration], p: f64) -> f64 {
    times.sort_unstable();
    let rank = ((times.len() as f64 * p / 100.0) as usize).min(times.len().saturating_sub(1));
    times.get(rank).map_or(0.0, |time| time.as_secs_f64() * 1000.0)
}

/// How many a second.
#[expect(clippy::cast_precision_loss, reason = "for people")]
fn rate(n: usize, time: Duration) -> f64 {
    n as f64 / time.as_secs_f64()
}
