//! From a seed that fails to the least that it needs to fail: what can be left out of its world, and when the faults may end.

use super::{
    swarm::{KNOBS, Swarm},
    world::{Outcome, run},
};

/// The world of a failing seed, made simpler, and how to replay it.
pub(super) struct Shrunk {
    pub(super) seed: u64,
    /// What is left out.
    pub(super) without: Vec<String>,
    /// What it needs.
    pub(super) needs: Vec<&'static str>,
    /// Seconds after which faults may end.
    pub(super) faults_for: u64,
    pub(super) outcome: Outcome,
}

/// Leaves out one thing after the other as long as the same invariant still breaks, then lets the faults end earlier.
pub(super) fn shrink(seed: u64, swarm: &Swarm, bug: &'static str, mut outcome: Outcome) -> Shrunk {
    let broke = outcome.broke().map(str::to_owned);
    let still = |swarm: &Swarm| {
        let outcome = run(seed, swarm.clone(), bug, false);
        (outcome.broke() == broke.as_deref()).then_some(outcome)
    };
    let mut swarm = swarm.clone();
    let (mut without, mut needs) = (Vec::new(), Vec::new());
    for (name, take_out) in KNOBS {
        let mut simpler = swarm.clone();
        take_out(&mut simpler);
        if format!("{simpler:?}") == format!("{swarm:?}") {
            continue;
        }
        match still(&simpler) {
            Some(simplest) => {
                (swarm, outcome) = (simpler, simplest);
                without.push((*name).to_owned());
            }
            None => needs.push(*name),
        }
    }
    let (mut fails, mut passes) = (swarm.seconds, 0);
    while fails - passes > 1 {
        let middle = passes.midpoint(fails);
        match still(&Swarm { faults_for: middle, ..swarm.clone() }) {
            Some(simplest) => (fails, outcome) = (middle, simplest),
            None => passes = middle,
        }
    }
    Shrunk { seed, without, needs, faults_for: fails, outcome }
}

impl std::fmt::Display for Shrunk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { seed, without, needs, faults_for, outcome } = self;
        writeln!(f, "shrunk: it needs {needs:?}, for {faults_for} s: {}", outcome.violations.join("\n  "))?;
        let without = without.join(",");
        write!(f, "replay it told: HOOKTEST_SEED={seed} HOOKTEST_FAULTS_FOR={faults_for} HOOKTEST_WITHOUT={without}")?;
        write!(f, " cargo test --release --test it simulation::one_seed -- --nocapture")
    }
}
