//! Several workers of the real engine over the memory twins, in virtual time, with faults drawn from a seed.
//!
//! One paused runtime, one thread: a seed decides everything, and the same seed gives the same trace. Each worker reaches the
//! store through a network of its own that loses, delays, repeats, throttles and refuses; workers are killed, frozen and
//! stopped, and new ones start. The oracle watches what is applied to the twins and what the handlers said; it is never fed
//! from what the daemon says of itself.
//!
//! More seeds: `HOOKTEST_SEEDS=100000 cargo test --release simulation -- --nocapture`; one seed with its trace:
//! `HOOKTEST_SEED=42 cargo test --release simulation::one_seed -- --nocapture`.

mod network;
mod oracle;
mod verify;
mod world;

use std::collections::BTreeMap;
use tokio::time::Instant;
use world::{Outcome, Swarm, run};

/// Seeds of a run in CI.
const DOSE: u64 = 1000;
/// Seeds within which a planted bug has to be found.
const DOSE_PLANTED: u64 = 200;

fn seeds() -> u64 {
    std::env::var("HOOKTEST_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(DOSE)
}

/// Runs seeds on as many threads as there are cores, until `stop` says enough.
fn run_seeds(from: u64, to: u64, planted: &'static str, stop: fn(&Outcome) -> bool) -> BTreeMap<u64, Outcome> {
    let threads = std::thread::available_parallelism().map_or(2, usize::from) as u64;
    let enough = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                let enough = &enough;
                scope.spawn(move || {
                    let mut outcomes = BTreeMap::new();
                    for seed in (from..to).filter(|seed| seed % threads == thread) {
                        if enough.load(std::sync::atomic::Ordering::Relaxed) {
                            break;
                        }
                        let outcome = run(seed, Swarm::draw(seed), planted, false);
                        enough.fetch_or(stop(&outcome), std::sync::atomic::Ordering::Relaxed);
                        outcomes.insert(seed, outcome);
                    }
                    outcomes
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a seed does not panic")).collect()
    })
}

#[test]
fn no_seed_breaks_an_invariant() {
    let start = Instant::now();
    let outcomes = run_seeds(0, seeds(), "", |outcome| !outcome.violations.is_empty());
    let n = outcomes.len() as u64;
    let sum = |of: fn(&Outcome) -> u64| outcomes.values().map(of).sum::<u64>();
    let mut faults: BTreeMap<&str, u64> = BTreeMap::new();
    for (name, count) in outcomes.values().flat_map(|outcome| &outcome.faults) {
        *faults.entry(name).or_default() += count;
    }
    println!(
        "{n} seeds, {} virtual hours in {:.1} s, {} requests, {} cells, {} calls, {} repeats, {} takeovers, {} hand-overs, \
         {} parked",
        sum(|o| o.virtual_seconds) / 3600,
        start.elapsed().as_secs_f64(),
        sum(|o| o.requests),
        sum(|o| o.cells),
        sum(|o| o.calls),
        sum(|o| o.repeats),
        sum(|o| o.takeovers),
        sum(|o| o.hand_overs),
        sum(|o| o.parked),
    );
    println!("faults: {faults:?}");
    for (seed, outcome) in outcomes.iter().filter(|(_, outcome)| !outcome.violations.is_empty()) {
        println!("seed {seed}: {:#?}", &outcome.violations[..outcome.violations.len().min(5)]);
        println!("replay: HOOKTEST_SEED={seed} cargo test --release simulation::one_seed -- --nocapture");
    }
    let bad: Vec<u64> = outcomes.iter().filter(|(_, o)| !o.violations.is_empty()).map(|(seed, _)| *seed).collect();
    assert!(bad.is_empty(), "seeds with violations: {bad:?}");
    assert!(sum(|o| o.takeovers) >= n, "less than one takeover a seed: the faults are too tame to prove anything");
    assert!(sum(|o| o.parked) >= n && sum(|o| o.repeats) > 0, "nothing was parked or repeated");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 0..20 {
        let trace = || run(seed, Swarm::draw(seed), "", false).trace;
        assert_eq!(trace(), trace(), "seed {seed}");
    }
}

/// For a person: one seed, told.
#[test]
fn one_seed() {
    let Some(seed) = std::env::var("HOOKTEST_SEED").ok().and_then(|seed| seed.parse().ok()) else { return };
    let outcome = run(seed, Swarm::draw(seed), "", true);
    println!("{outcome:#?}");
    assert!(outcome.violations.is_empty());
}

/// The oracle sees a bug that is there, by the invariant that the bug breaks.
fn is_caught(planted: &'static str, invariant: &str) {
    let outcomes = run_seeds(0, DOSE_PLANTED, planted, |outcome| !outcome.violations.is_empty());
    let caught = outcomes.iter().find(|(_, outcome)| !outcome.violations.is_empty());
    let Some((seed, outcome)) = caught else { panic!("{planted:?} was not caught in {DOSE_PLANTED} seeds") };
    println!("{planted:?}: seed {seed}, {}", outcome.violations[0]);
    assert!(outcome.violations[0].starts_with(invariant), "{planted:?} is caught by {}", outcome.violations[0]);
}

#[test]
fn a_checkpoint_that_passes_an_unfinished_cell_is_caught() {
    is_caught("checkpoint passes an unfinished cell", "I1");
}

#[test]
fn a_claim_without_the_epoch_condition_is_caught() {
    is_caught("claim without the epoch condition", "I3");
}

#[test]
fn a_hole_that_is_taken_for_a_trim_is_caught() {
    is_caught("hole taken for a trim", "I1");
}
