//! Several workers of the real engine in virtual time, with faults drawn from a seed.
//!
//! One paused runtime, one thread: a seed decides everything, and the same seed gives the same trace. Each worker has clocks
//! of its own pace, and reaches the store through a network of its own that loses, delays, repeats, throttles and refuses;
//! workers are killed, frozen, slowed and stopped, and new ones start; operators interfere. The oracle watches what is
//! applied and what the handlers said; it is never fed from what the daemon says of itself.
//!
//! More seeds: `HOOKTEST_SEEDS=100000 cargo test --release --test it simulation::no_seed -- --nocapture`; one seed with its
//! trace: `HOOKTEST_SEED=42 cargo test --release --test it simulation::one_seed -- --nocapture`.

mod connector;
mod eyes;
mod hosts;
mod network;
mod operator;
mod oracle;
mod planted;
mod retirement;
mod shrink;
mod stage;
mod swarm;
mod verify;
mod watched;
mod weather;
mod world;

use std::{collections::BTreeMap, str::FromStr};
use swarm::{Level, Swarm};
use tokio::time::Instant;
use world::{Outcome, run};

/// Seeds of a run in CI.
const DOSE: u64 = 1000;
/// The same at the level of the SDK.
const DOSE_SDK: u64 = 50;
/// Seeds that are run twice in CI.
const DOSE_TWICE: u64 = 200;

fn asked<T: FromStr>(variable: &str) -> Option<T> {
    std::env::var(variable).ok().and_then(|value| value.parse().ok())
}

/// Runs seeds on as many threads as there are cores, until `stop` says enough.
fn run_seeds<T: Send>(from: u64, to: u64, run: impl Fn(u64) -> T + Sync, stop: fn(&T) -> bool) -> BTreeMap<u64, T> {
    let threads = asked("HOOKTEST_THREADS").unwrap_or(std::thread::available_parallelism().map_or(2, usize::from));
    let enough = std::sync::atomic::AtomicBool::new(false);
    let next = std::sync::atomic::AtomicU64::new(from);
    let work = || {
        use std::sync::atomic::Ordering::Relaxed;
        let mut outcomes = BTreeMap::new();
        while !enough.load(Relaxed) {
            let seed = next.fetch_add(1, Relaxed);
            if seed >= to {
                break;
            }
            let outcome = run(seed);
            enough.fetch_or(stop(&outcome), Relaxed);
            outcomes.insert(seed, outcome);
        }
        outcomes
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a seed does not panic")).collect()
    })
}

/// Runs seeds of a level, and tells what happened.
fn no_seed(level: Level, from: u64, seeds: u64) {
    let start = Instant::now();
    let one = |seed| run(seed, Swarm::draw(level, seed), "", false);
    let outcomes = run_seeds(from, from + seeds, one, Outcome::is_bad);
    let n = outcomes.len() as u64;
    let sum = |of: fn(&Outcome) -> u64| outcomes.values().map(of).sum::<u64>();
    let mut faults: BTreeMap<&str, u64> = BTreeMap::new();
    for (name, count) in outcomes.values().flat_map(|outcome| &outcome.faults) {
        *faults.entry(name).or_default() += count;
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{level:?}: {n} seeds in {seconds:.1} s ({:.1} a second), {} virtual hours, {} requests, {} cells, {} calls, {} repeats, \
         {} takeovers, {} hand-overs, {} parked",
        n as f64 / seconds,
        sum(|o| o.virtual_seconds) / 3600,
        sum(|o| o.requests),
        sum(|o| o.cells),
        sum(|o| o.calls),
        sum(|o| o.repeats),
        sum(|o| o.takeovers),
        sum(|o| o.hand_overs),
        sum(|o| o.parked),
    );
    println!("faults: {faults:?}");
    let bad: Vec<_> = outcomes.iter().filter(|(_, outcome)| outcome.is_bad()).collect();
    for (seed, outcome) in &bad {
        println!("seed {seed}: {:#?}", &outcome.violations[..outcome.violations.len().min(5)]);
        println!("{}", shrink::shrink(**seed, &Swarm::draw(level, **seed), "", (*outcome).clone()));
    }
    println!("violations: {}", bad.len());
    assert!(bad.is_empty(), "seeds with violations: {:?}", bad.iter().map(|(seed, _)| seed).collect::<Vec<_>>());
    assert!(sum(|o| o.takeovers) >= n, "less than one takeover a seed: the faults are too tame to prove anything");
    assert!(sum(|o| o.parked) >= n && sum(|o| o.repeats) > 0, "nothing was parked or repeated");
}

#[test]
fn no_seed_breaks_an_invariant() {
    no_seed(Level::Port, asked("HOOKTEST_FROM").unwrap_or(0), asked("HOOKTEST_SEEDS").unwrap_or(DOSE));
}

#[test]
fn no_seed_of_the_sdk_breaks_an_invariant() {
    no_seed(Level::Sdk, asked("HOOKTEST_FROM").unwrap_or(0), asked("HOOKTEST_SDK_SEEDS").unwrap_or(DOSE_SDK));
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for (level, seeds) in [(Level::Port, DOSE_TWICE), (Level::Sdk, DOSE_TWICE / 20)] {
        let twice = |seed| {
            let trace = || run(seed, Swarm::draw(level, seed), "", false).trace;
            (trace(), trace())
        };
        for (seed, (one, other)) in run_seeds(0, seeds, twice, |_| false) {
            assert_eq!(one, other, "{level:?}: seed {seed}");
        }
    }
}

/// For a person: one seed, told.
#[test]
fn one_seed() {
    let Some(seed) = asked("HOOKTEST_SEED") else { return };
    let without: String = asked("HOOKTEST_WITHOUT").unwrap_or_default();
    let without: Vec<String> = without.split(',').map(str::to_owned).collect();
    let level =
        if asked::<String>("HOOKTEST_LEVEL").is_some_and(|level| level == "sdk") { Level::Sdk } else { Level::Port };
    let faults_for = asked("HOOKTEST_FAULTS_FOR").unwrap_or(u64::MAX);
    let swarm = Swarm { faults_for, ..Swarm::draw(level, seed).without(&without) };
    println!("{swarm:#?}");
    let outcome = run(seed, swarm, "", true);
    println!("{outcome:#?}");
    assert!(!outcome.is_bad());
}
