//! Where a bench works: a store of its own in a directory of its own, which goes with it, and what lies in it.

use super::{Args, Usage};
use crate::{
    cell::{CellKey, Commit, Committed, Log, Name, NewCell, NewDatastore, ShardId, clock},
    store::{BATCH_MAX, Cells, Config, Store, segment},
};
use anyhow::ensure;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

/// Bytes of a body, about.
const BODY: usize = 1000;
/// Cells that are given to the store at once while a backlog is made.
const AT_ONCE: usize = 5000;
/// Shards that are filled at a time.
const SHARDS_AT_ONCE: usize = 4;
/// Places that this process has made.
static MADE: AtomicU32 = AtomicU32::new(0);
/// How often a directory is removed that somebody still writes to.
const REMOVALS: u32 = 50;

/// How much of everything, as the command line says it.
#[derive(Clone, Debug)]
pub(super) struct Sizes {
    pub(super) seconds: Duration,
    /// Shards of a datastore, and of one with many.
    pub(super) shards: u32,
    pub(super) many: u32,
    /// Cells of a large backlog; others are parts of it.
    pub(super) cells: usize,
    /// Of a worker, where it matters.
    pub(super) session: Duration,
    /// How often what happens once is made to happen.
    pub(super) trials: usize,
}

impl Sizes {
    pub(super) fn of(args: &Args) -> Self {
        let Args { seconds, shards, many, cells, session, trials, .. } = *args;
        Self { seconds: Duration::from_secs(seconds), shards, many, cells, session, trials }
    }

    /// Cells of a backlog that is delivered to one handler after the other.
    pub(super) fn medium(&self) -> usize {
        self.cells / 5
    }

    /// A tenth of the large one.
    pub(super) fn small(&self) -> usize {
        self.cells / 10
    }
}

/// A directory that is removed with all that is in it.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        for _ in 0..REMOVALS {
            match fs::remove_dir_all(&self.0) {
                Err(error) if error.kind() != ErrorKind::NotFound => {}
                _ => return,
            }
            // A task that was told to end has not ended yet.
            std::thread::sleep(Duration::from_millis(20));
        }
        crate::cli::output::say(format_args!("{} cannot be removed: do it by hand", self.0.display()));
    }
}

/// A store, and what was made in it.
pub(super) struct Place {
    pub(super) store: Store,
    pub(super) sizes: Sizes,
    made: u32,
    backlogs: BTreeMap<(u32, usize, bool), Cells>,
    /// Last, so that the store is closed before its file goes.
    dir: Directory,
}

impl Place {
    pub(super) async fn new(args: &Args) -> anyhow::Result<Self> {
        let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
        // Never the same twice: of a bench that failed, somebody may still have the file open.
        let number = MADE.fetch_add(1, Relaxed);
        let dir = parent.join(format!("cellhook-bench-{}-{number}", std::process::id()));
        // Only what is removed again is made.
        fs::create_dir(&dir).map_err(|error| Usage(format!("--dir: {} cannot be made: {error}", dir.display())))?;
        let dir = Directory(std::path::absolute(dir)?);
        let store = Store::open(&Self::config(&dir.0)).await?;
        Ok(Self { store, sizes: Sizes::of(args), made: 0, backlogs: BTreeMap::new(), dir })
    }

    /// Of the store in a directory.
    pub(super) fn config(dir: &Path) -> Config {
        Config { path: dir.join("store.db"), ..Config::default() }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir.0
    }

    /// A name that nothing has yet.
    pub(super) fn name(&mut self, what: &str) -> anyhow::Result<Name> {
        self.made += 1;
        Ok(Name::new(&format!("{what}{}", self.made))?)
    }

    /// A new group.
    pub(super) async fn group(&mut self) -> anyhow::Result<Name> {
        let name = self.name("group")?;
        self.store.init_group(&name).await?;
        Ok(name)
    }

    /// A new datastore without cells.
    pub(super) async fn datastore(&mut self, shards: u32) -> anyhow::Result<Cells> {
        let name = self.name("cells")?;
        make(&self.store, name, shards).await
    }

    /// A datastore with a backlog of cells over random rows, the same each time.
    pub(super) async fn backlog(&mut self, cells: usize) -> anyhow::Result<Cells> {
        let key = (self.sizes.shards, cells, false);
        if let Some(there) = self.backlogs.get(&key) {
            return Ok(there.clone());
        }
        let made = self.datastore(self.sizes.shards).await?;
        let mut there = 0;
        while there < cells {
            let batch = (cells - there).min(AT_ONCE);
            for put in made.put((0..batch).map(|_| random_cell()).collect()).await {
                put?;
            }
            there += batch;
        }
        self.backlogs.insert(key, made.clone());
        Ok(made)
    }

    /// A datastore with as many full segments in each shard: the same log, whatever the number of shards. And how many cells
    /// that is.
    pub(super) async fn full(&mut self, shards: u32, segments: usize) -> anyhow::Result<(Cells, usize)> {
        let all = segments * BATCH_MAX * shards as usize;
        let key = (shards, all, true);
        if let Some(there) = self.backlogs.get(&key) {
            return Ok((there.clone(), all));
        }
        let made = self.datastore(shards).await?;
        fill(&made, segments, BATCH_MAX).await?;
        self.backlogs.insert(key, made.clone());
        Ok((made, all))
    }
}

/// A new datastore without cells.
pub(super) async fn make(store: &Store, name: Name, shards: u32) -> anyhow::Result<Cells> {
    store.init_datastore(&NewDatastore { name: name.clone(), shards }).await?;
    Ok(Cells::new(store.datastore(&name, Some(shards)).await?))
}

/// Appends so many segments of so many cells to each shard of an empty datastore.
pub(super) async fn fill(cells: &Cells, segments: usize, size: usize) -> anyhow::Result<()> {
    let shards = stream::iter(cells.datastore().all_shards());
    let fill = |shard| fill_one(&**cells.log(), shard, segments, size);
    shards.map(Ok).try_for_each_concurrent(SHARDS_AT_ONCE, fill).await
}

async fn fill_one(log: &dyn Log, shard: ShardId, segments: usize, size: usize) -> anyhow::Result<()> {
    let mut tip = None;
    for _ in 0..segments {
        let cells: Vec<NewCell> = (0..size).map(|_| random_cell()).collect();
        let packed = segment::pack(&cells);
        let commit = Commit { shard, tip, cells, packed, created_at: clock::wall() };
        tip = Some(commit.tip_after());
        ensure!(log.commit(commit).await? == Committed::Accepted, "somebody else appends to a datastore of this bench");
    }
    Ok(())
}

/// A cell of a random row, which compresses about as well as a body of somebody's.
pub(super) fn random_cell() -> NewCell {
    let pad: String = std::iter::repeat_with(fastrand::alphanumeric).take(BODY / 2).collect();
    let body = format!("{{\"fare\":{},\"note\":\"{pad}{}\"}}", fastrand::u32(..10_000), "x".repeat(BODY / 2 - 30));
    let row = format!("row-{:x}", fastrand::u64(..1 << 40));
    let key = CellKey { row_key: row.into(), column: "BASE".into(), ref_key: fastrand::u64(..1 << 60) };
    NewCell { key, body: body.into(), origin: None }
}

/// A random cell whose row lies in a shard.
pub(super) fn cell_of(shard: ShardId, shards: u32) -> NewCell {
    let mut cell = random_cell();
    while ShardId::of(&cell.key.row_key, shards) != shard {
        cell.key.row_key = format!("row-{:x}", fastrand::u64(..1 << 40)).into();
    }
    cell
}
