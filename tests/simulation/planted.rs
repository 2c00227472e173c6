//! Bugs that are planted one at a time, and the invariant by which the simulation has to see each.
//!
//! A panic or a time-out does not count, nor does another invariant. Each stands in the code behind
//! `cell::planted::is("…")`, which no build for use has.

use super::{
    run_seeds,
    swarm::{Level, Swarm},
    world::{Outcome, run},
};
use std::collections::BTreeSet;

/// Seeds within which each has to be found.
const DOSE: u64 = 2000;

/// A bug: where it is planted, its name, and the invariant that it breaks; two where both are broken by the same deed.
pub(super) type Bug = (&'static str, &'static str, &'static str);

/// All of them, but for `rounds of a second`, with which `tests/watchdog.rs` makes a slow thing fast.
pub(super) const BUGS: &[Bug] = &[
    ("lease", "claim without the epoch condition", "I3"),
    ("lease", "a write without the epoch's condition", "I3"),
    ("lease", "absence is death", "I3"),
    ("lease", "death at the first sight", "I7"),
    ("lease", "safe time counts from the answer", "I8"),
    ("lease", "the fence is never closed", "I8"),
    ("lease", "a dead session beats", "I8"),
    ("tail", "hole taken for a trim", "I1"),
    ("tail", "damage is believed at the first read", "I1"),
    ("tail", "the segment that holds the checkpoint is passed", "I1"),
    ("tail", "what cannot be decoded is passed", "I1"),
    ("tail", "a trim passes the checkpoints", "I1 or I12"),
    ("dispatch", "checkpoint passes an unfinished cell", "I1"),
    ("dispatch", "low-water is the highest finished cell", "I1"),
    ("dispatch", "a row is not waited for", "I4"),
    ("dispatch", "a row goes on while its cell waits to be tried again", "I4"),
    ("dispatch", "a failed cell counts as done", "I1"),
    ("dispatch", "the window has no bound", "I6"),
    ("dispatch", "an answer counts though it was not appended", "I1"),
    ("parking", "a cell is passed before it is parked", "I1"),
    ("parking", "a parked cell is deleted before it is tried again", "I5"),
    ("parking", "a waiting cell does not wait", "I4"),
    ("parking", "a new owner does not load the lane", "I4 or I7"),
    ("parking", "a dead cell is not written", "I1"),
    ("parking", "a cell that kills workers is called again", "I7"),
    ("parking", "what is due at once is due a moment later", "I7"),
    ("retirement", "a retired trigger is called on", "I11"),
    ("retirement", "what is parked until the workers hear of a retirement is left", "I11"),
    ("retention", "retention does not ask how old cells are", "I12"),
    ("append", "append without the tip's condition", "I2"),
    ("append", "append without the cells' condition", "I2"),
    ("append", "no answer is a yes", "I1 or I2"),
    ("append", "another body is taken", "I2"),
    ("append", "places are counted from the tip", "I2"),
    ("append", "a lost race is never learnt", "I7"),
];

#[test]
fn every_planted_bug_is_seen_by_its_invariant() {
    let mut unseen = Vec::new();
    let only: Option<String> = super::asked("HOOKTEST_BUG");
    for (room, bug, invariant) in BUGS.iter().filter(|(_, bug, _)| only.as_ref().is_none_or(|only| only == bug)) {
        let one = |seed| run(seed, Swarm::draw(Level::Port, seed), bug, false);
        let outcomes = run_seeds(0, DOSE, one, Outcome::is_bad);
        let first = outcomes.iter().find(|(_, outcome)| outcome.is_bad());
        let Some((seed, outcome)) = first else {
            println!("{room}: {bug:?}: not seen in {DOSE} seeds");
            unseen.push(*bug);
            continue;
        };
        println!("{room}: {bug:?}: seed {seed}, {}", outcome.violations[0]);
        if outcome.broke().is_none_or(|broke| !invariant.split(" or ").any(|one| one == broke)) {
            println!("  expected {invariant}");
            unseen.push(*bug);
        }
    }
    assert!(unseen.is_empty(), "not seen, or not by their invariants: {unseen:#?}");
}

/// What is listed is planted, and what is planted is listed; at least 25 of them, 5 in each room.
#[test]
fn the_list_of_planted_bugs_is_whole() {
    fn names(folder: &std::path::Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                names(&path, found);
            } else {
                let code = std::fs::read_to_string(path).unwrap();
                let planted =
                    code.split("planted::is(\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned());
                found.extend(planted);
            }
        }
    }
    let mut planted = BTreeSet::new();
    names(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut planted);
    planted.remove("rounds of a second");
    let listed: BTreeSet<String> = BUGS.iter().map(|(_, bug, _)| (*bug).to_owned()).collect();
    assert_eq!(planted, listed);
    assert!(BUGS.len() >= 25);
    for room in ["lease", "tail", "dispatch", "parking", "append"] {
        assert!(BUGS.iter().filter(|(of, _, _)| *of == room).count() >= 5, "{room}");
    }
}
