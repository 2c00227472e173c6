//! One state for all that differ in nothing of consequence. Holds for [`Rules::Sound`] and
//! [`Rules::RevisionAnew`] only; why, says the module comment of `tests/model.rs`, rule by rule.

use super::state::{Lane, NOBODY, Pending, Request, State, WORKERS, Worker, bit, cells_of};
use super::steps::{LeaseModel, Rules};

impl LeaseModel {
    /// The state that stands for this one.
    pub(super) fn normal(&self, mut state: State) -> State {
        if !self.reduced {
            return state;
        }
        Self::forget_draining(&mut state);
        self.forget_refused(&mut state);
        Self::forget_lost_calls(&mut state);
        Self::count_from_now(&mut state);
        let nameless = state.workers.map(|worker| nameless(&state, worker));
        let sorted = ORDERS.iter().filter(|order| order.is_sorted_by_key(|&who| nameless[who]));
        sorted.map(|&order| renamed(&state, order)).min().expect("some order is sorted")
    }

    /// R6: what a session says of itself while it lives.
    fn forget_draining(state: &mut State) {
        state.draining = 0;
        state.requests.retain(|request| !matches!(request, Request::Drain { .. }));
    }

    /// R1, R2: requests that can never be accepted, and workers that wait for such a one or hold what has passed.
    fn forget_refused(&self, state: &mut State) {
        let mut requests = std::mem::take(&mut state.requests);
        requests.retain(|&request| match request {
            Request::Drop { .. } if self.rules == Rules::RevisionAnew => true,
            _ => self.accepts(state, request),
        });
        state.requests = requests;
        for who in 0..state.workers.len() {
            let worker = &state.workers[who];
            let passed = worker.holds != 0 && !state.owns(worker) && !state.deceived(worker);
            let refused = matches!(worker.pending, Pending::Claim { .. }) && self.settled(state, worker);
            if (passed || refused) && !self.applied(state, worker) {
                state.workers[who].let_go();
            }
        }
    }

    /// R3: calls whose end nobody remembers, and those of cells that are parked or skipped anyway and stay so.
    fn forget_lost_calls(state: &mut State) {
        let covered = state.lease.cover;
        let workers = state.workers.iter().map(|worker| worker.done | worker.freed);
        let requests = state.requests.iter().map(|request| match *request {
            Request::Write { cover, park, free, .. } => (cover & !park & !covered) | cells_of(free),
            Request::Drop { cell, .. } => covered & bit(cell),
            _ => 0,
        });
        let told = workers.chain(requests).fold(covered & !cells_of(state.parked), |all, cells| all | cells);
        state.finished &= told & !state.skipped;
    }

    /// R4: numbers that only ever meet their equals.
    fn count_from_now(state: &mut State) {
        let lease = state.lease;
        let to_one = |lane: &mut Lane| *lane = lane.map(|revision| revision.min(1));
        state.lease.seq = u8::from(lease.epoch > 0);
        to_one(&mut state.parked);
        for worker in &mut state.workers {
            worker.seq = if worker.holds == lease.epoch && lease.epoch > 0 { worker.seq + 1 - lease.seq } else { 0 };
            to_one(&mut worker.lane);
            if let Pending::Write { free, .. } = &mut worker.pending {
                to_one(free);
            }
        }
        for request in &mut state.requests {
            match request {
                Request::Write { seq, free, .. } => {
                    *seq = *seq + 1 - lease.seq;
                    to_one(free);
                }
                Request::Drop { revision, .. } => *revision = 1,
                _ => {}
            }
        }
    }
}

/// All orders of the workers.
const ORDERS: [[usize; WORKERS]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

/// What can be said of a worker without a name: equal for workers that take each other's place.
fn nameless(state: &State, worker: Worker) -> (Worker, bool, bool) {
    let (dead, owner) = (state.is_dead(worker.session), state.lease.owner == worker.session);
    let pending = match worker.pending {
        Pending::Claim { epoch, .. } => Pending::Claim { epoch, owner: 0 },
        pending => pending,
    };
    (Worker { session: if worker.session == NOBODY { NOBODY } else { 0 }, pending, ..worker }, dead, owner)
}

/// R5: the same state with the workers in this order, and the sessions numbered as they are met.
fn renamed(state: &State, order: [usize; WORKERS]) -> State {
    let mut names = [NOBODY; 8];
    let mut next = 0;
    let mut name = |id: &mut u8| {
        if *id != NOBODY {
            let slot = &mut names[usize::from(*id)];
            if *slot == NOBODY {
                *slot = next;
                next += 1;
            }
            *id = *slot;
        }
    };
    let mut to = state.clone();
    to.workers = order.map(|who| state.workers[who]);
    to.workers.iter_mut().for_each(|worker| name(&mut worker.session));
    name(&mut to.lease.owner);
    for worker in &mut to.workers {
        if let Pending::Claim { owner, .. } = &mut worker.pending {
            name(owner);
        }
    }
    to.requests.sort_by_key(|&request| match request {
        Request::Claim { by, epoch, owner } => (Request::Claim { by: 0, epoch, owner }, state.is_dead(by)),
        _ => (request, false),
    });
    for request in &mut to.requests {
        match request {
            Request::Claim { by, owner, .. } => {
                name(by);
                name(owner);
            }
            Request::Write { by, .. } | Request::Release { by, .. } | Request::Drain { by } | Request::Beat { by } => {
                name(by)
            }
            Request::Drop { .. } => {}
        }
    }
    to.requests.sort_unstable();
    let dead = names.iter().zip(0..).filter(|&(&new, old)| new != NOBODY && state.dead & bit(old) != 0);
    to.dead = dead.fold(0, |all, (&new, _)| all | bit(new));
    to
}
