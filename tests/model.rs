//! The protocol under a model checker (`stateright`).
//!
//! **The lease** (`state.rs`, `steps.rs`): two or three workers and one shard of one trigger, as `cell::Ledger` defines
//! the requests and their conditions: sessions, heartbeats, declarations of death, claims, writes (checkpoint, lane
//! changes and hand-over in one transaction), drain, an operator's rewind, skip and drop of a parked cell. Requests are
//! lost, late and repeated, applied with the answer lost; workers crash, or leave, and come back under a new session.
//! Any worker may act at any time. Every interleaving within the bounds is visited.
//!
//! **The trigger** (`triggers.rs`): its record, its generations, the pauses of a shard and of the whole trigger, its
//! retirement and the next one of its name. Why it may be a model of its own is said there.
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
//! * **Drain.** A worker that is asked to leave sends `draining`, claims nothing more, works on, writes and releases in
//!   the same write, sets its session dead and ends, handed over or not: the deadline is time. Nobody waits for
//!   anything that `draining` says. A `draining` or a heartbeat that arrives after the session set itself dead is
//!   refused; `HeartbeatAfterRelease` is the variant in which it is not. Signing off without success is a crash.
//! * **A lease that names a session that does not hold it** (the answer to a claim was lost) is released by a write of
//!   the coordinator, on epoch and `seq` as it read them. A late one does what a prompt one would do at that moment,
//!   since nobody can come to hold that epoch any more; `ReleaseByName` is the variant in which it does more.
//! * **`open_session`, the sweep.** A session is used only after its opening was acknowledged, under an id that nobody
//!   knew before. A session that was swept refuses heartbeats as a dead one does, and whoever finds it absent has to put
//!   it as dead before a claim. (An opening that arrives a day late, after the sweep, revives an item that no lease
//!   names.)
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
//!   condition looks at. Order of rows is not the protocol's business. More shards and triggers share no item of the
//!   store but sessions, whose only state here is alive or dead, and `draining`.
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
//! R5: workers and sessions have no names of their own; among all orders of the workers, the least state stands for
//! the others. R6: `draining` in the store is left out, since nothing reads it. That these are no more than economies is
//! not only argued: `the_reductions_lose_no_state` visits every state of small bounds without them and finds each one's
//! representative among the states visited with them, and none besides.
//!
//! The bounds end the exploration, and nothing else does: number of requests on their way and length of a history
//! are free. Stateright tells states apart by a 64-bit hash; a collision among some millions is improbable.

mod reduction;
mod state;
mod steps;
mod triggers;

use state::{NOBODY, Pending, State, Used, Worker, broken, cells_of, low};
use stateright::{Checker, HasDiscoveries, Model, Property};
use std::{
    collections::{BTreeSet, HashSet},
    fmt::Debug,
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash},
};
use steps::{Bounds, LeaseModel, Rules};
use triggers::{Bounds as Life, TriggerModel};

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
const LEFT: &str = "a worker has handed over and left";
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
            let given = |to: &Worker, from: &Worker| {
                from.releasing() && to.pending == Pending::Claim { epoch: from.holds, owner: NOBODY }
            };
            let workers = &state.workers;
            state.lease.owner == NOBODY && workers.iter().any(|to| workers.iter().any(|from| given(to, from)))
        }),
        Property::sometimes(REWOUND, |model: &LeaseModel, state: &State| {
            state.operated != 0 && state.skipped == 0 && low(state.lease.cover) == model.bounds.cells
        }),
        Property::sometimes(LEFT, |_, state: &State| {
            let leaves = state.workers.iter().any(|worker| worker.draining);
            let Used { drains, crashes, operations, .. } = state.used;
            let gone = drains > 0 && !leaves && (crashes, operations) == (0, 0);
            gone && state.lease.owner == NOBODY && state.lease.cover != 0
        }),
    ];
    if model.letter {
        properties.push(Property::always(I8_LETTER, |_, state: &State| state.broken & broken::DEAD_WROTE == 0));
    }
    if !model.reduced {
        properties.push(Property::sometimes(REPEATED, |_, state: &State| {
            let done = state.workers.map(|worker| worker.done);
            done[0] & done[1] | done[0] & done[2] | done[1] & done[2] != 0
        }));
        properties.push(Property::sometimes(OUTLIVED, |_, state: &State| {
            state.workers.iter().any(|worker| worker.holds != 0 && worker.holds < state.lease.epoch)
        }));
    }
    properties
}

/// The least in which anything happens; what more there is, a test says.
const LITTLE: Bounds = Bounds {
    workers: 2,
    cells: 1,
    epochs: 1,
    sessions: 2,
    crashes: 0,
    failures: 0,
    operations: 0,
    drops: 0,
    drains: 0,
};

/// Explores everything within the bounds. Every invariant has to hold, and each of `sights` has to be seen: a model
/// in which nothing happens proves nothing.
fn explore<M>(model: M, sights: &[&'static str])
where
    M: Model<State: Clone + Hash + PartialEq + Send + Sync, Action: Clone + Debug + PartialEq>,
    M: Clone + Debug + Send + Sync + 'static,
{
    let began = tokio::time::Instant::now();
    let checker = model.clone().checker().threads(2).spawn_bfs().join();
    let (states, depth) = (checker.unique_state_count(), checker.max_depth());
    println!("{model:?}: {states} states, {depth} deep, in {:.1?}", began.elapsed());
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
fn trace<M: Model<Action: Debug>>(model: &M, name: &'static str, path: Vec<(M::State, Option<M::Action>)>) -> String {
    let holds = model.property(name).condition;
    let (steps, states): (Vec<_>, Vec<_>) = path.into_iter().map(|(state, step)| (step, state)).unzip();
    let length = states.iter().position(|state| !holds(model, state)).expect("a counterexample breaks its invariant");
    let lines = steps.into_iter().flatten().take(length).enumerate();
    lines.map(|(n, step)| format!("    {:2}. {step:?}\n", n + 1)).collect()
}

/// Explores until the named property is broken, and gives the way there.
fn refute<M>(model: M, rules: impl Debug, name: &'static str) -> String
where
    M: Model<State: Clone + Hash + PartialEq + Send + Sync, Action: Clone + Debug + PartialEq>,
    M: Clone + Send + Sync + 'static,
{
    let goal = HasDiscoveries::AnyOf(BTreeSet::from([name]));
    let checker = model.clone().checker().finish_when(goal).spawn_bfs().join();
    let states = checker.unique_state_count();
    let path = checker.discovery(name).unwrap_or_else(|| panic!("{rules:?} does not break {name}"));
    let found = format!("{rules:?} breaks {name} ({states} states):\n{}", trace(&model, name, path.into_vec()));
    println!("{found}");
    found
}

/// The lease protocol as it is.
fn sound(bounds: Bounds, reduced: bool) -> LeaseModel {
    LeaseModel { rules: Rules::Sound, bounds, reduced, letter: false }
}

const SIGHTS: [&str; 6] = [FINISHED, PARKED, TAKEN_OVER, HANDED_OVER, LEFT, REWOUND];

/// I1, I3, I5 and I8 for 2 workers, 3 cells, 3 epochs and a crash; besides, two sessions more than workers, a failing
/// call, an intervention of the operator and a parked cell that he drops.
#[test]
fn the_lease_protocol_holds() {
    let bounds =
        Bounds { cells: 3, epochs: 3, sessions: 4, crashes: 1, failures: 1, operations: 1, drops: 1, ..LITTLE };
    explore(sound(bounds, true), &[FINISHED, PARKED, TAKEN_OVER, HANDED_OVER, REWOUND]);
}

/// The same with a worker that leaves, and one cell less.
#[test]
fn the_lease_protocol_holds_when_a_worker_leaves() {
    let more = Bounds { sessions: 4, crashes: 1, failures: 1, operations: 1, drops: 1, drains: 1, ..LITTLE };
    explore(sound(Bounds { cells: 2, epochs: 3, ..more }, true), &SIGHTS);
}

/// Three workers, one of which leaves.
#[test]
fn the_lease_protocol_holds_for_three_workers() {
    let more = Bounds { sessions: 4, crashes: 1, failures: 1, operations: 1, drains: 1, ..LITTLE };
    explore(sound(Bounds { workers: 3, cells: 2, epochs: 3, ..more }, true), &SIGHTS);
}

/// Three workers, as far as three minutes of two idle cores go.
#[test]
#[ignore = "takes minutes"]
fn the_lease_protocol_holds_for_three_workers_further_out() {
    let more = Bounds { sessions: 4, crashes: 1, failures: 1, operations: 1, drops: 1, drains: 1, ..LITTLE };
    explore(sound(Bounds { workers: 3, cells: 3, epochs: 3, ..more }, true), &SIGHTS);
}

/// Two workers further out: an epoch, a crash and a failing call more.
#[test]
#[ignore = "takes minutes"]
fn the_lease_protocol_holds_further_out() {
    let bounds = Bounds { cells: 3, epochs: 4, sessions: 4, crashes: 2, failures: 2, operations: 1, ..LITTLE };
    explore(sound(bounds, true), &[FINISHED, PARKED, TAKEN_OVER, HANDED_OVER, REWOUND]);
}

/// A smaller world as it is, without any reduction. Here the zombies can be seen.
#[test]
fn the_lease_protocol_holds_without_reductions() {
    let bounds = Bounds { epochs: 2, operations: 1, drains: 1, ..LITTLE };
    explore(sound(bounds, false), &[REPEATED, OUTLIVED, TAKEN_OVER, HANDED_OVER, LEFT]);
}

/// An epoch more of it.
#[test]
#[ignore = "takes a minute"]
fn the_lease_protocol_holds_without_reductions_further_out() {
    explore(sound(Bounds { epochs: 3, ..LITTLE }, false), &[REPEATED, OUTLIVED, TAKEN_OVER, HANDED_OVER]);
}

/// All states that can be reached, each as `kept` gives it.
fn reachable<M, K: Eq + Hash>(model: &M, kept: impl Fn(M::State) -> K) -> (usize, HashSet<K>)
where
    M: Model<State: Clone + Hash + PartialEq>,
{
    let hash = |state: &M::State| BuildHasherDefault::<DefaultHasher>::default().hash_one(state);
    let mut frontier = model.init_states();
    let mut seen: HashSet<u64> = frontier.iter().map(hash).collect();
    let mut all = HashSet::new();
    while let Some(state) = frontier.pop() {
        frontier.extend(model.next_states(&state).into_iter().filter(|next| seen.insert(hash(next))));
        all.insert(kept(state));
    }
    (seen.len(), all)
}

/// Each state that is reached without reductions has its representative among those that are reached with them, and
/// each of those stands for one that is reached without.
fn lose_no_state<M>(few: M, many: M, normal: impl Fn(&M, M::State) -> M::State)
where
    M: Model<State: Clone + Debug + Eq + Hash> + Debug,
{
    let (_, visited) = reachable(&few, |state| state);
    let (count, represented) = reachable(&many, |state| normal(&few, state));
    println!("{few:?}: {} states stand for {count}", visited.len());
    assert_eq!(represented.difference(&visited).next(), None, "a state was lost");
    assert_eq!(visited.difference(&represented).next(), None, "a state was invented");
}

/// R1 to R6.
#[test]
fn the_reductions_lose_no_state() {
    for bounds in [
        Bounds { epochs: 2, failures: 1, operations: 1, drops: 1, ..LITTLE },
        Bounds { sessions: 3, crashes: 1, ..LITTLE },
        Bounds { cells: 2, failures: 1, ..LITTLE },
        Bounds { epochs: 2, drains: 1, ..LITTLE },
        Bounds { workers: 3, sessions: 3, ..LITTLE },
    ] {
        lose_no_state(sound(bounds, true), sound(bounds, false), LeaseModel::normal);
    }
}

/// Those of the model of triggers.
#[test]
fn the_reductions_of_triggers_lose_no_state() {
    for bounds in [
        Life { operations: 1, resumes: 1, ..QUIET },
        Life { epochs: 1, resumes: 1, wishes: 1, ..QUIET },
        Life { epochs: 1, retires: true, ..QUIET },
        Life { workers: 3, epochs: 1, pauses: 1, ..QUIET },
    ] {
        let [few, many] = [true, false].map(|reduced| trigger(triggers::Rules::Sound, bounds, reduced));
        lose_no_state(few, many, TriggerModel::normal);
    }
}

/// Each rule of the protocol is needed: without it the invariant that is named here breaks.
#[test]
fn every_rule_is_needed() {
    let cases = [
        // The design names this one: a value alone does not tell who wrote it, nor when.
        (Rules::CompareAndSwap, I3_OWNER, Bounds { cells: 2, epochs: 2, ..LITTLE }),
        // A late repetition of an older write of the same epoch takes cells out of the done set.
        (Rules::WithoutSeq, I3_BACK, Bounds { cells: 3, ..LITTLE }),
        (Rules::FailedNotParked, I1, Bounds { failures: 1, ..LITTLE }),
        (Rules::LanesApart, I5, Bounds { epochs: 2, failures: 1, ..LITTLE }),
        (Rules::ClaimWithoutEpoch, I3_EPOCH, Bounds { epochs: 3, ..LITTLE }),
        (Rules::DeadNotFinal, I8_BEAT, Bounds { epochs: 2, ..LITTLE }),
        // What follows from it: one works on, in good faith, on what another has taken.
        (Rules::DeadNotFinal, I8_HELD, Bounds { epochs: 2, ..LITTLE }),
        (Rules::HeartbeatAfterRelease, I8_BEAT, Bounds { drains: 1, ..LITTLE }),
        // A release that arrives late takes the lease away from the claim that came after it.
        (Rules::ReleaseByName, I8_HELD, Bounds { epochs: 2, ..LITTLE }),
        // The list of sessions was read before that session was opened, the lease after.
        (Rules::AbsenceIsDeath, I8_HELD, Bounds { epochs: 2, sessions: 3, crashes: 1, ..LITTLE }),
        // The next write has the number of the one that was given up, and takes its success for its own.
        (Rules::LookIsProof, I1, Bounds { cells: 3, failures: 1, ..LITTLE }),
        (Rules::NameIsHold, I8_HELD, LITTLE),
        (Rules::NameIsHold, I1, Bounds { cells: 3, failures: 1, ..LITTLE }),
        // The operator drops a parked cell; before that arrives he rewinds, the cell fails anew and is parked anew.
        (Rules::RevisionAnew, I1, Bounds { epochs: 3, failures: 2, operations: 1, drops: 1, ..LITTLE }),
    ];
    for (rules, name, bounds) in cases {
        let reduced = rules == Rules::RevisionAnew;
        refute(LeaseModel { rules, ..sound(bounds, reduced) }, rules, name);
    }
}

/// I8 cannot be had to the letter: a checkpoint (or a claim) that was sent in good time and arrives after its session
/// was declared dead is accepted while nobody has claimed the lease since. It does no harm: its owner and epoch are
/// still the lease's, so that no other can have begun, and what it says is true. What holds is that nothing is
/// changed under an epoch that has passed, and that a claim of a dead session takes nothing from anybody alive.
#[test]
fn a_dead_session_may_still_write_what_nobody_else_has_claimed() {
    let model = LeaseModel { letter: true, ..sound(LITTLE, false) };
    let found = refute(model, model.rules, I8_LETTER);
    assert!(found.contains("DeclareDead"));
}

/// The least of a trigger's life; what more there is, a test says.
const QUIET: Life =
    Life { workers: 2, cells: 1, epochs: 2, operations: 0, pauses: 0, resumes: 0, wishes: 0, retires: false };

fn trigger(rules: triggers::Rules, bounds: Life, reduced: bool) -> TriggerModel {
    TriggerModel { rules, bounds, reduced }
}

/// Pauses of a shard and of the whole trigger, resumes, and what late writes make of them.
#[test]
fn pauses_and_generations_hold() {
    let sound = |bounds| trigger(triggers::Rules::Sound, bounds, true);
    let shard = Life { cells: 2, epochs: 3, operations: 2, pauses: 1, resumes: 2, ..QUIET };
    explore(sound(shard), &[triggers::RESUMED, triggers::ENDED]);
    let three = Life { workers: 3, cells: 1, resumes: 1, ..shard };
    explore(sound(three), &[triggers::RESUMED, triggers::ENDED]);
    let whole = Life { operations: 1, pauses: 1, resumes: 1, wishes: 1, ..QUIET };
    explore(sound(whole), &[triggers::ENDED, triggers::ASKED]);
}

/// A trigger is retired, and its name registered anew.
#[test]
fn a_retired_trigger_leaves_nothing_to_its_successor() {
    let bounds = Life { cells: 2, epochs: 3, operations: 1, retires: true, ..QUIET };
    explore(trigger(triggers::Rules::Sound, bounds, true), &[triggers::SUCCEEDED, triggers::BESIDE]);
}

/// Both further out, and together.
#[test]
#[ignore = "takes a minute"]
fn the_life_of_a_trigger_holds_further_out() {
    for bounds in [
        Life { epochs: 3, operations: 1, pauses: 1, resumes: 1, wishes: 1, ..QUIET },
        Life { resumes: 2, wishes: 2, ..QUIET },
        Life { cells: 2, epochs: 3, operations: 1, resumes: 1, retires: true, ..QUIET },
    ] {
        explore(trigger(triggers::Rules::Sound, bounds, true), &[]);
    }
}

/// Each rule about a trigger's record and its pauses is needed.
#[test]
fn every_rule_about_triggers_is_needed() {
    use triggers::{I1_OWN, I3_BACK, I3_KNOWN, I3_PAUSE, I7_RESUMED, I7_STANDS, Rules};
    let cases = [
        // The owner, which does not know of it, writes the pause away and goes on.
        (Rules::OperatorFencesNobody, I3_PAUSE, Life { operations: 1, ..QUIET }),
        (Rules::OperatorFencesNobody, I3_KNOWN, Life { operations: 1, ..QUIET }),
        (Rules::OperatorWithoutSeq, I3_BACK, Life { operations: 1, ..QUIET }),
        // The owner has not heard of the resume, and writes the pause back.
        (Rules::PauseIsAFlag, I7_RESUMED, Life { pauses: 1, resumes: 1, ..QUIET }),
        // The operator read the record before the resume, and stored his pause after the owner had written of it.
        (Rules::PauseByAnOldRecord, I7_STANDS, Life { epochs: 3, operations: 1, resumes: 1, ..QUIET }),
        // A resume comes before the pause is stored, or between its first copy and the repetition.
        (Rules::WishOutlivesItsGeneration, I7_RESUMED, Life { wishes: 1, resumes: 1, ..QUIET }),
        // An owner that has not heard of the retirement writes its checkpoint, which is the new trigger's.
        (Rules::FiledByName, I1_OWN, Life { retires: true, ..QUIET }),
        (Rules::FiledByName, I3_BACK, Life { retires: true, ..QUIET }),
    ];
    for (rules, name, bounds) in cases {
        refute(trigger(rules, bounds, false), rules, name);
    }
}
