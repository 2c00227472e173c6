//! What other processes of a bench do: this program again, with a part to play until its stdin ends.

use super::{
    Place,
    append::Appenders,
    place::random_cell,
    process::lease,
    worker::{Job, Running},
};
use crate::{
    cell::{Event, Name, Verdict, clock, setting::duration},
    dispatch,
    handler::handler_fn,
    store::{Cells, Kind, Store},
};
use anyhow::Context as _;
use serde::Deserialize;
use std::{
    io::{self, BufRead, Write},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, stdin},
    time::sleep,
};

/// How often a process tells how far it is.
pub(super) const TOLD: Duration = Duration::from_millis(50);

/// A part to play. The place is the directory of the bench's store.
#[derive(Clone, Debug, clap::Subcommand)]
pub(super) enum Role {
    /// A child of kind exec that is done with everything.
    #[command(hide = true)]
    Child {
        /// Milliseconds that it takes for each event.
        #[arg(long, default_value_t = 0)]
        delay: u64,
    },
    /// Puts single cells whose ref key is the time of the put.
    #[command(hide = true)]
    Put { place: PathBuf, datastore: Name },
    /// Appends as fast as it can, and prints how many.
    #[command(hide = true)]
    Append { place: PathBuf, datastore: Name },
    /// A worker whose handler does nothing; prints how many cells it was called for.
    #[command(hide = true)]
    Work {
        place: PathBuf,
        datastore: Name,
        group: Name,
        #[arg(value_parser = duration::parse)]
        session: Duration,
    },
}

impl Role {
    pub(super) async fn play(self) -> anyhow::Result<()> {
        match self {
            Self::Child { delay: 0 } => Ok(quick_child()?),
            Self::Child { delay } => Ok(slow_child(Duration::from_millis(delay))?),
            Self::Put { place, datastore } => put(&open(place, &datastore).await?.1).await,
            Self::Append { place, datastore } => append(&open(place, &datastore).await?.1).await,
            Self::Work { place, datastore, group, session } => work(place, &datastore, group, session).await,
        }
    }
}

async fn open(place: PathBuf, datastore: &Name) -> anyhow::Result<(Store, Cells)> {
    let store = Store::open(&Place::config(&place)).await?;
    let log = store.datastore(datastore, None).await?;
    Ok((store, Cells::new(log)))
}

/// Waits for the end of stdin: whoever started this process wants it to end, or has ended.
async fn dismissed() {
    let mut stdin = stdin();
    while matches!(stdin.read(&mut [0; 64]).await, Ok(1..)) {}
}

/// Tells a count whenever it has grown, until this process is dismissed.
async fn tell(count: &AtomicUsize) -> anyhow::Result<()> {
    let telling = async {
        let mut told = 0;
        loop {
            sleep(TOLD).await;
            let now = count.load(Relaxed);
            if now != told {
                told = now;
                line(now)?;
            }
        }
    };
    tokio::select! {
        biased;
        () = dismissed() => Ok(()),
        failed = telling => failed,
    }
}

fn line(number: usize) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{number}")?;
    Ok(stdout.flush()?)
}

async fn put(cells: &Cells) -> anyhow::Result<()> {
    let putting = async {
        loop {
            sleep(Duration::from_millis(fastrand::u64(40..120))).await;
            let mut cell = random_cell();
            cell.key.ref_key = u64::try_from(clock::boot().as_nanos())?;
            for put in cells.put(vec![cell]).await {
                put?;
            }
        }
    };
    tokio::select! {
        biased;
        () = dismissed() => Ok(()),
        failed = putting => failed,
    }
}

async fn append(cells: &Cells) -> anyhow::Result<()> {
    let mut appenders = Appenders::start(cells);
    let count = appenders.count.clone();
    tokio::select! {
        biased;
        told = tell(&count) => told,
        failed = appenders.failed() => Err(failed),
    }
}

async fn work(place: PathBuf, datastore: &Name, group: Name, session: Duration) -> anyhow::Result<()> {
    let (store, cells) = open(place, datastore).await?;
    let count: Arc<AtomicUsize> = Arc::default();
    let counting = count.clone();
    let handler = handler_fn(move |_: Event| {
        counting.fetch_add(1, Relaxed);
        async { Verdict::done() }
    });
    let job = Job {
        store: &store,
        group,
        cells: &cells,
        config: dispatch::Config::new(datastore.clone()),
        handler,
        lease: lease(session),
        paces: Kind::Embedded,
        presence: true,
    };
    let running = Running::start(job).await?;
    tell(&count).await?;
    running.leave().await
}

/// A line of the daemon.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    event: Option<Asked<'a>>,
    #[serde(borrow, default)]
    events: Vec<Asked<'a>>,
}

/// All that is wanted of an event.
#[derive(Deserialize)]
struct Asked<'a> {
    id: &'a str,
}

const READY: &[u8] = b"{\"ready\":{\"protocol\":1,\"concurrency\":256}}\n";

/// Answers until its input ends.
fn quick_child() -> io::Result<()> {
    let mut input = io::BufReader::with_capacity(1 << 16, io::stdin().lock());
    let mut output = io::BufWriter::with_capacity(1 << 16, io::stdout().lock());
    output.write_all(READY)?;
    output.flush()?;
    let mut line = String::new();
    loop {
        line.clear();
        if input.read_line(&mut line)? == 0 {
            return output.flush();
        }
        let Line { event, events } = serde_json::from_str(&line)?;
        for Asked { id } in event.into_iter().chain(events) {
            writeln!(output, "{{\"id\":\"{id}\",\"verdict\":\"done\"}}")?;
        }
        if input.buffer().is_empty() {
            output.flush()?;
        }
    }
}

/// As [`quick_child`], with one event after the other, each after a while.
fn slow_child(delay: Duration) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(READY)?;
    stdout.flush()?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let Line { event, events } = serde_json::from_str(&line).context("no line of the contract")?;
        for Asked { id } in event.into_iter().chain(events) {
            std::thread::sleep(delay);
            writeln!(stdout, "{{\"id\":\"{id}\",\"verdict\":\"done\"}}")?;
            stdout.flush()?;
        }
    }
    Ok(())
}
