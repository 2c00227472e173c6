//! `verify` over a network that loses, tears and garbles, while cells are appended and logs trimmed: nothing is wrong, and
//! nothing is called so.

use super::network::{FarLog, Faults, Network, Weather};
use cellhook::{
    cell::{AddedId, CellKey, Name, NewCell, NewDatastore, ShardId},
    store::{Cells, memory::MemoryLog},
    tail,
    verify::{Event, Plan, Sample, verify},
};
use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// Runs of each plan.
const SEEDS: u64 = 10;

fn cells(round: u64, rng: &mut fastrand::Rng) -> Vec<NewCell> {
    let cell = |i: u64, rng: &mut fastrand::Rng| {
        let row_key = format!("r{}", rng.u32(..40)).into();
        NewCell {
            key: CellKey { row_key, column: "C".into(), ref_key: round * 100 + i },
            body: "1".into(),
            origin: None,
        }
    };
    (0..rng.u64(1..8)).map(|i| cell(i, rng)).collect()
}

/// Verifies once. Gives what was called wrong, and how many faults there were.
async fn seed(seed: u64, sample: Option<Sample>) -> (Vec<String>, u64) {
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
        garbled: 0.1,
        slow: 0.05,
        ..Faults::default()
    };
    let now = Instant::now();
    let weather = Arc::new(Mutex::new(Weather {
        rng: fastrand::Rng::with_seed(seed),
        faults,
        outage_until: now,
        counts: BTreeMap::new(),
        requests: 0,
        trace: 0,
        start: now,
        told: false,
    }));
    let far = FarLog { inner: log.clone(), network: Network { host: 1, weather: weather.clone() } };
    let mut wrong = Vec::new();
    let mut hear = |event| {
        if let Event::Found(finding) = event {
            wrong.push(format!("{finding:?}"));
        }
        ControlFlow::Continue(())
    };
    let goes_on = async {
        for round in 150.. {
            assert!(writer.put(cells(round, &mut rng)).await.iter().all(Result::is_ok));
            let shard = ShardId(rng.u32(..3));
            let tip = tail::newest(&*log, shard).await.unwrap();
            if rng.u32(..10) == 0 {
                tail::trim(&*log, &[], shard, AddedId(rng.u64(..=tip.0)), u64::MAX).await.unwrap();
            }
            sleep(Duration::from_millis(rng.u64(1..3000))).await;
        }
    };
    tokio::select! {
        summary = verify(&far, &[], Plan { sample, rate: None }, &mut hear) => assert!(summary.unwrap().cells > 300),
        () = goes_on => unreachable!("it goes on for ever"),
    }
    let faults = weather.lock().unwrap().counts.values().sum();
    (wrong, faults)
}

#[test]
fn a_bad_network_and_what_goes_on_meanwhile_are_no_findings() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let mut faults = 0;
    for number in 0..SEEDS {
        for sample in [None, Some(Sample { per_million: 1_000_000, seed: number })] {
            let (wrong, met) = runtime.block_on(seed(number, sample));
            assert!(wrong.is_empty(), "seed {number}, {sample:?}: {wrong:#?}");
            faults += met;
        }
    }
    assert!(faults > SEEDS * 10, "{faults}");
}
