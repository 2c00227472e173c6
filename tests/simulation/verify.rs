//! `verify` over a network that loses, tears and garbles, while cells are appended, logs trimmed and rows erased: nothing is
//! wrong, and nothing is called so, but for an erase that is to be finished.

use super::network::FarLog;
use super::weather::{Faults, Network, SharedWeather, Weather};
use cellhook::{
    cell::{AddedId, CellKey, Log, Name, NewCell, NewDatastore, ShardId},
    store::{Cells, memory::MemoryLog},
    tail::{self, Mode},
    verify::{Event, Finding, Flaw, Plan, Sample, verify},
};
use std::{
    collections::BTreeSet,
    ops::ControlFlow,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::{sleep, timeout};

/// Runs of each plan.
const SEEDS: u64 = 10;

/// Rows that are written.
const ROWS: u32 = 40;
/// Of them, those that may be erased.
const ERASED_ROWS: u32 = 30;

fn row(number: u32) -> String {
    format!("r{number}")
}

fn cells(round: u64, rng: &mut fastrand::Rng) -> Vec<NewCell> {
    let cell = |i: u64, rng: &mut fastrand::Rng| {
        let row_key = row(rng.u32(..ROWS)).into();
        NewCell {
            key: CellKey { row_key, column: "C".into(), ref_key: round * 100 + i },
            body: "1".into(),
            origin: None,
        }
    };
    (0..rng.u64(1..8)).map(|i| cell(i, rng)).collect()
}

/// A datastore with something in it, and the way to it.
struct World {
    log: Arc<MemoryLog>,
    far: FarLog<MemoryLog>,
    writer: Cells,
    weather: SharedWeather,
    rng: fastrand::Rng,
}

impl World {
    async fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let name = Name::new("trips").unwrap();
        let log = Arc::new(MemoryLog::new(&NewDatastore { name, shards: 3 }));
        let writer = Cells::new(log.clone());
        for round in 0..150 {
            assert!(writer.put(cells(round, &mut rng)).await.iter().all(Result::is_ok));
        }
        let faults = Faults {
            lost: 0.03,
            throttled: 0.03,
            conflict: 0.03,
            stale: 0.2,
            torn: 0.2,
            damaged: 0.1,
            slow: 0.05,
            ..Faults::default()
        };
        let weather = Arc::new(Mutex::new(Weather::new(seed, faults, false)));
        let far = FarLog { inner: log.clone(), network: Network { host: 1, weather: weather.clone() }, oracle: None };
        Self { log, far, writer, weather, rng }
    }

    /// Appends and trims, for ever.
    async fn append_and_trim(log: &MemoryLog, writer: &Cells, rng: &mut fastrand::Rng) {
        for round in 150.. {
            assert!(writer.put(cells(round, rng)).await.iter().all(Result::is_ok));
            let shard = ShardId(rng.u32(..3));
            let tip = tail::newest(log, shard).await.unwrap();
            if rng.u32(..10) == 0 {
                tail::trim(log, &[], shard, AddedId(rng.u64(..=tip.0)), u64::MAX).await.unwrap();
            }
            sleep(Duration::from_millis(rng.u64(1..3000))).await;
        }
    }

    fn faults(&self) -> u64 {
        self.weather.lock().unwrap().counts.values().sum()
    }
}

/// What is called wrong.
async fn findings(log: &dyn Log, sample: Option<Sample>) -> Vec<Finding> {
    let mut wrong = Vec::new();
    let mut hear = |event| {
        if let Event::Found(finding) = event {
            wrong.push(*finding);
        }
        ControlFlow::Continue(())
    };
    let summary = verify(log, &[], Plan { sample, rate: None }, &mut hear).await.unwrap();
    assert!(summary.cells > 300, "{summary:?}");
    wrong
}

/// Each seed, the whole and a sample of all.
fn each_seed(mut run: impl AsyncFnMut(World, Option<Sample>, &str)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    for seed in 0..SEEDS {
        for sample in [None, Some(Sample { per_million: 1_000_000, seed })] {
            runtime.block_on(async { run(World::new(seed).await, sample, &format!("seed {seed}, {sample:?}")).await });
        }
    }
}

#[test]
fn a_bad_network_and_what_goes_on_meanwhile_are_no_findings() {
    let mut faults = 0;
    each_seed(async |mut world, sample, which| {
        let wrong = tokio::select! {
            wrong = findings(&world.far, sample) => wrong,
            () = World::append_and_trim(&world.log, &world.writer, &mut world.rng) => unreachable!("it goes on for ever"),
        };
        assert!(wrong.is_empty(), "{which}: {wrong:#?}");
        faults += world.faults();
    });
    assert!(faults > SEEDS * 10, "{faults}");
}

/// Beside erases, of which some end half-way, and after them.
#[test]
fn an_erase_that_is_half_way_is_told_by_its_name_and_once_a_row() {
    let (mut told, mut interrupted) = (0, 0);
    each_seed(async |mut world, sample, which| {
        let mut begun = BTreeSet::new();
        let mut rng = fastrand::Rng::with_seed(world.rng.u64(..));
        let erases = async {
            loop {
                let row = row(rng.u32(..ERASED_ROWS));
                let erase = tail::erase(&world.far, &row, Mode::Erase);
                begun.insert(row.clone());
                let patience = Duration::from_millis(rng.u64(1..5000));
                interrupted += u64::from(timeout(patience, erase).await.is_err());
                sleep(Duration::from_millis(rng.u64(1..500))).await;
            }
        };
        let beside = tokio::select! {
            wrong = findings(&world.far, sample) => wrong,
            () = World::append_and_trim(&world.log, &world.writer, &mut world.rng) => unreachable!("it goes on for ever"),
            () = erases => unreachable!("it goes on for ever"),
        };
        let after = findings(&world.far, sample).await;
        for wrong in [beside, after] {
            let mut rows = BTreeSet::new();
            for Finding { flaw, cell, .. } in &wrong {
                let row = cell.as_ref().unwrap().row_key.to_string();
                assert_eq!(*flaw, Flaw::EraseUnfinished, "{which}: {wrong:#?}");
                assert!(begun.contains(&row) && rows.insert(row), "{which}: {wrong:#?}");
                told += 1;
            }
        }
        for row in &begun {
            assert!(tail::erase(&*world.log, row, Mode::Erase).await.unwrap().left.is_empty(), "{which}");
        }
        assert_eq!(findings(&world.far, sample).await, [], "{which}: the same erases again ended them");
    });
    assert!(told > SEEDS && interrupted > SEEDS, "{told} told, {interrupted} interrupted");
}
