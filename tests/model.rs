//! The lease protocol under a model checker (`stateright`).
//!
//! Two workers and one shard of one trigger, as `cell::Ledger` defines the requests and their conditions: sessions,
//! heartbeats, declarations of death, claims, writes (checkpoint, lane changes and hand-over in one transaction), an
//! operator's rewind, skip and drop of a parked cell. Requests are lost, late and repeated, applied with the answer
//! lost; workers crash and come back under a new session. Every interleaving within the bounds is visited.
//!
//! # What is left out, and why nothing is lost by it
//!
//! * **Time.** There is none: an observer may declare any session dead at any moment, and a worker may sleep at any
//!   point and act afterwards on what it believed before. So what holds here needs no clock, no bound on a pause and
//!   none on a delay. The safe time of a worker and the flock of the embedded store only take behaviours away.
//! * **`beat`.** A declaration has the condition that `beat` stands where the observer saw it. It refuses some of the
//!   declarations that the model allows, and a late one that is accepted is the same as a prompt one at that moment.
//!   What a heartbeat is for is its refusal: a worker whose session is dead learns it, drops everything and opens
//!   another session, or does not get to it for as long as it likes.
//! * **`set_state`, `open_session`, the sweep.** A worker that leaves drops everything and sets itself dead: a crash
//!   and a declaration. `draining` changes no condition. A session is used only after its opening was acknowledged,
//!   under an id that nobody knew before. A session that was swept refuses heartbeats as a dead one does, and whoever
//!   finds it absent has to put it as dead before a claim. (An opening that arrives a day late, after the sweep,
//!   revives an item that no lease names.)
//! * **Answers.** A request that was sent stays on its way for ever, may be applied at any later time and again, or
//!   never. A worker learns the outcome once the request was applied or can never be: that is an acceptance, or the
//!   refusal of a repetition with the item as it stands. An answer that is late is a worker that sleeps; one that is
//!   lost is one that never takes the step. The operator's rewind and a declaration need no request on its way: on
//!   their conditions a late one does what a prompt one would do at that moment. (The rewind's condition on `seq` is
//!   left out: it only refuses rewinds that the model allows.)
//! * **Reads.** Leases and sessions are read at the moment of the step that uses them. An older read gives a request
//!   that was sent earlier, and those are all there; dead is final, so an old read of it is as good as a new one.
//! * **A handler's call** is one step. What it does is known to the observer (`finished`) from then on, to the worker
//!   until it lets go, to the store when a write carries it. A rewind asks for calls anew, so it takes `finished` back.
//! * **Parked cells**: one kind for `retrying`, `waiting` and `dead`; a retry that fails again changes nothing that a
//!   condition looks at. Order of rows is not the protocol's business. More shards, triggers and workers share no item
//!   of the store but sessions, whose only state here is alive or dead.
//! * **A revision** begins at the epoch of the put, so that an item that was put again is told from the earlier one.
//!   Beginning at 1 each time is the broken variant `RevisionAnew`.
//!
//! # Reductions (`reduction.rs`)
//!
//! R1: a request whose condition can never hold again is taken out (epochs, and numbers within an epoch, only grow; an
//! owner within an epoch only goes away; revisions of an item are never used twice). R2: a worker whose request was
//! refused for good, or whose epoch has passed, is one that has learnt it: all that it could still do is to call
//! handlers, which I1 can only profit from. One that is *deceived* (I8) is kept as it is. R3: a finished call counts
//! only while somebody remembers it, and only where I1 asks for it. R4: `seq` and revisions count from the present.
//! R5: workers and sessions have no names of their own. That these are no more than economies is not only argued:
//! `the_reductions_lose_no_state` visits every state of small bounds without them and finds each one's
//! representative among the states visited with them.
//!
//! The bounds end the exploration, and nothing else does: number of requests on their way and length of a history
//! are free. Stateright tells states apart by a 64-bit hash; a collision among some millions is improbable.

mod reduction;
mod state;
mod steps;

use state::{NOBODY, Pending, State, broken, cells_of, low};
use stateright::{Checker, HasDiscoveries, Model, Property};
use std::collections::{BTreeSet, HashSet};
use steps::{Bounds, LeaseModel, Rules, Step};

const I1: &str = "I1: the checkpoint covers only what is finished, parked, or skipped by the operator";
const I3_OWNER: &str = "I3: only the lease's owner at its epoch moves the checkpoint";
const I3_BACK: &str = "I3: the checkpoint does not go back";
const I3_EPOCH: &str = "I3: the epoch grows with every claim";
const I5: &str = "I5: no write under an old epoch changes a parked cell";
const I8_BEAT: &str = "I8: dead is final";
const I8_HELD: &str = "I8: who holds under a live session is the owner, unless an operator took the lease";
const I8_LETTER: &str = "I8 to the letter: no request of a dead session is applied";

const FINISHED: &str = "all cells are covered, without the operator";
const PARKED: &str = "a cell is parked and covered";
const TAKEN_OVER: &str = "a dead owner's lease is claimed";
const HANDED_OVER: &str = "a released lease is claimed by the other worker";
const REWOUND: &str = "all cells are covered again after a rewind";
const REPEATED: &str = "two workers have each finished the same cell";
const OUTLIVED: &str = "a worker holds an epoch that has passed";

fn properties(model: &LeaseModel) -> Vec<Property<LeaseModel>> {
    let mut properties = vec![
        Property::always(I1, |_, state: &State| {
            state.lease.cover & !(state.finished | cells_of(state.parked) | state.skipped) == 0
        }),
        Property::always(I3_OWNER, |_, state: &State| state.broken & broken::STRANGER_WROTE == 0),
        Property::always(I3_BACK, |_, state: &State| state.broken & broken::WENT_BACK == 0),
        Property::always(I3_EPOCH, |_, state: &State| state.broken & broken::EPOCH_NOT_NEW == 0),
        Property::always(I5, |_, state: &State| state.broken & broken::OLD_EPOCH_PARKED == 0),
        Property::always(I8_BEAT, |_, state: &State| state.broken & broken::DEAD_BEAT == 0),
        Property::always(I8_HELD, |_, state: &State| !state.workers.iter().any(|worker| state.deceived(worker))),
        Property::sometimes(FINISHED, |model: &LeaseModel, state: &State| {
            state.operated == 0 && low(state.lease.cover) == model.bounds.cells
        }),
        Property::sometimes(PARKED, |_, state: &State| state.lease.cover & cells_of(state.parked) != 0),
        Property::sometimes(TAKEN_OVER, |_, state: &State| {
            state.workers.iter().any(|worker| match worker.pending {
                Pending::Claim { epoch, owner } => {
                    state.is_dead(owner) && state.lease.owner == worker.session && state.lease.epoch == epoch + 1
                }
                _ => false,
            })
        }),
        Property::sometimes(HANDED_OVER, |_, state: &State| {
            let [one, other] = &state.workers;
            [(one, other), (other, one)].iter().any(|(from, to)| {
                let claim = Pending::Claim { epoch: from.holds, owner: NOBODY };
                from.releasing() && to.pending == claim && state.lease.owner == NOBODY
            })
        }),
        Property::sometimes(REWOUND, |model: &LeaseModel, state: &State| {
            state.operated != 0 && state.skipped == 0 && low(state.lease.cover) == model.bounds.cells
        }),
    ];
    if model.letter {
        properties.push(Property::always(I8_LETTER, |_, state: &State| state.broken & broken::DEAD_WROTE == 0));
    }
    if !model.reduced {
        properties
            .push(Property::sometimes(REPEATED, |_, state: &State| state.workers[0].done & state.workers[1].done != 0));
        properties.push(Property::sometimes(OUTLIVED, |_, state: &State| {
            state.workers.iter().any(|worker| worker.holds != 0 && worker.holds < state.lease.epoch)
        }));
    }
    properties
}

/// Cells, epochs, sessions, crashes, failures, operations, drops.
fn bounds([cells, epochs, sessions, crashes, failures, operations, drops]: [u8; 7]) -> Bounds {
    Bounds { cells, epochs, sessions, crashes, failures, operations, drops }
}

/// Explores everything within the bounds. Every invariant has to hold, and each of `sights` has to be seen: a model
/// in which nothing happens proves nothing.
fn explore(bounds: Bounds, reduced: bool, sights: &[&'static str]) {
    let began = tokio::time::Instant::now();
    let model = LeaseModel { rules: Rules::Sound, bounds, reduced, letter: false };
    let checker = model.checker().threads(2).spawn_bfs().join();
    let (states, depth) = (checker.unique_state_count(), checker.max_depth());
    println!("{bounds:?}, reduced: {reduced}: {states} states, {depth} deep, in {:.1?}", began.elapsed());
    for (name, path) in checker.discoveries() {
        if name.starts_with('I') {
            panic!("{name} is broken:\n{}", trace(&model, name, path.into_vec()));
        }
    }
    assert!(checker.is_done());
    for sight in sights {
        checker.assert_any_discovery(sight);
    }
}

/// The steps to the first state that breaks the invariant.
fn trace(model: &LeaseModel, name: &'static str, path: Vec<(State, Option<Step>)>) -> String {
    let holds = model.property(name).condition;
    let (steps, states): (Vec<_>, Vec<_>) = path.into_iter().map(|(state, step)| (step, state)).unzip();
    let length = states.iter().position(|state| !holds(model, state)).expect("a counterexample breaks its invariant");
    let lines = steps.into_iter().flatten().take(length).enumerate();
    lines.map(|(n, step)| format!("    {:2}. {step:?}\n", n + 1)).collect()
}

/// Explores until the named property is broken, and gives the way there.
fn refute(model: LeaseModel, name: &'static str) -> String {
    let goal = HasDiscoveries::AnyOf(BTreeSet::from([name]));
    let checker = model.checker().finish_when(goal).spawn_bfs().join();
    let states = checker.unique_state_count();
    let path = checker.discovery(name).unwrap_or_else(|| panic!("{:?} does not break {name}", model.rules));
    let found = format!("{:?} breaks {name} ({states} states):\n{}", model.rules, trace(&model, name, path.into_vec()));
    println!("{found}");
    found
}

const SIGHTS: [&str; 5] = [FINISHED, PARKED, TAKEN_OVER, HANDED_OVER, REWOUND];

/// I1, I3, I5 and I8 for 2 workers, 3 cells, 3 epochs and a crash; besides, two sessions more than workers, a failing
/// call, an intervention of the operator and a parked cell that he drops.
#[test]
fn the_lease_protocol_holds() {
    explore(bounds([3, 3, 4, 1, 1, 1, 1]), true, &SIGHTS);
}

/// The same further out: an epoch, a crash and a failing call more. A minute on two cores.
#[test]
#[ignore = "takes a minute"]
fn the_lease_protocol_holds_further_out() {
    explore(bounds([3, 4, 4, 2, 2, 1, 0]), true, &SIGHTS);
}

/// A smaller world as it is, without any reduction. Here the zombies can be seen.
#[test]
fn the_lease_protocol_holds_without_reductions() {
    explore(bounds([1, 3, 2, 0, 0, 1, 0]), false, &[REPEATED, OUTLIVED, TAKEN_OVER, HANDED_OVER, REWOUND]);
}

/// All states that can be reached.
fn reachable(model: LeaseModel) -> HashSet<State> {
    let mut seen: HashSet<State> = model.init_states().into_iter().collect();
    let mut frontier: Vec<State> = seen.iter().cloned().collect();
    while let Some(state) = frontier.pop() {
        for next in model.next_states(&state) {
            if seen.insert(next.clone()) {
                frontier.push(next);
            }
        }
    }
    seen
}

/// Each state that is reached without reductions has its representative among those that are reached with them, and
/// each of those stands for one that is reached without.
#[test]
fn the_reductions_lose_no_state() {
    for bounds in [[1, 2, 2, 0, 1, 1, 1], [1, 2, 3, 1, 0, 0, 0], [2, 2, 2, 0, 0, 0, 0]].map(bounds) {
        let model = LeaseModel { rules: Rules::Sound, bounds, reduced: true, letter: false };
        let few = reachable(model);
        let many = reachable(LeaseModel { reduced: false, ..model });
        println!("{bounds:?}: {} states stand for {}", few.len(), many.len());
        let represented: HashSet<State> = many.into_iter().map(|state| model.normal(state)).collect();
        assert_eq!(represented.difference(&few).next(), None, "a state was lost");
        assert_eq!(few.difference(&represented).next(), None, "a state was invented");
    }
}

/// Each rule of the protocol is needed: without it the invariant that is named here breaks.
#[test]
fn every_rule_is_needed() {
    let cases = [
        // The design names this one: a value alone does not tell who wrote it, nor when.
        (Rules::CompareAndSwap, I3_OWNER, [2, 2, 2, 0, 0, 0, 0]),
        // A late repetition of an older write of the same epoch takes cells out of the done set.
        (Rules::WithoutSeq, I3_BACK, [3, 1, 2, 0, 0, 0, 0]),
        (Rules::FailedNotParked, I1, [1, 1, 2, 0, 1, 0, 0]),
        (Rules::LanesApart, I5, [1, 2, 2, 0, 1, 0, 0]),
        (Rules::ClaimWithoutEpoch, I3_EPOCH, [1, 3, 2, 0, 0, 0, 0]),
        (Rules::DeadNotFinal, I8_BEAT, [1, 2, 2, 0, 0, 0, 0]),
        // What follows from it: one works on, in good faith, on what another has taken.
        (Rules::DeadNotFinal, I8_HELD, [1, 2, 2, 0, 0, 0, 0]),
        // The list of sessions was read before that session was opened, the lease after.
        (Rules::AbsenceIsDeath, I8_HELD, [1, 2, 3, 1, 0, 0, 0]),
        // The next write has the number of the one that was given up, and takes its success for its own.
        (Rules::LookIsProof, I1, [3, 1, 2, 0, 1, 0, 0]),
        (Rules::NameIsHold, I8_HELD, [1, 1, 2, 0, 0, 0, 0]),
        (Rules::NameIsHold, I1, [3, 1, 2, 0, 1, 0, 0]),
        // The operator drops a parked cell; before that arrives he rewinds, the cell fails anew and is parked anew.
        (Rules::RevisionAnew, I1, [1, 3, 2, 0, 2, 1, 1]),
    ];
    for (rules, name, numbers) in cases {
        let reduced = rules == Rules::RevisionAnew;
        refute(LeaseModel { rules, bounds: bounds(numbers), reduced, letter: false }, name);
    }
}

/// I8 cannot be had to the letter: a checkpoint (or a claim) that was sent in good time and arrives after its session
/// was declared dead is accepted while nobody has claimed the lease since. It does no harm: its owner and epoch are
/// still the lease's, so that no other can have begun, and what it says is true. What holds is that nothing is
/// changed under an epoch that has passed, and that a claim of a dead session takes nothing from anybody alive.
#[test]
fn a_dead_session_may_still_write_what_nobody_else_has_claimed() {
    let bounds = bounds([1, 1, 2, 0, 0, 0, 0]);
    let found = refute(LeaseModel { rules: Rules::Sound, bounds, reduced: false, letter: true }, I8_LETTER);
    assert!(found.contains("DeclareDead"));
}
