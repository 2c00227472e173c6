//! The steps of the model: what a worker may do next, what a request does to the store, what an answer tells.

use super::state::{Bits, CELLS, Lane, Lease, NOBODY, Pending, Request, State, Used, WORKERS, Worker};
use super::state::{below, bit, broken, cells_of, low, only};
use stateright::{Model, Property};

/// The protocol as it is, or with one rule left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rules {
    /// As designed.
    Sound,
    /// A checkpoint is written on the condition of the old checkpoint alone.
    CompareAndSwap,
    /// A checkpoint is written without the condition `seq < :seq`.
    WithoutSeq,
    /// A failed cell counts as finished and is not parked.
    FailedNotParked,
    /// Lane changes are requests of their own, without a check of owner and epoch.
    LanesApart,
    /// A claim is made on the condition of the owner alone.
    ClaimWithoutEpoch,
    /// A heartbeat revives a dead session.
    DeadNotFinal,
    /// A worker that left released its shards and set its session dead; a heartbeat of it that arrives later revives it.
    HeartbeatAfterRelease,
    /// An owner that is not in the list of sessions counts as dead.
    AbsenceIsDeath,
    /// A read that does not find a write counts as proof that it will not be applied.
    LookIsProof,
    /// A worker goes on with a lease that names it, without a new claim.
    NameIsHold,
    /// A worker lets go of a lease that names it on the condition of the name alone.
    ReleaseByName,
    /// A parked cell begins at revision 1 whenever it is put.
    RevisionAnew,
}

/// Where the exploration ends. Every number is a total over the whole history.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Workers, at most [`WORKERS`].
    pub(super) workers: u8,
    /// Cells of the shard, at most [`CELLS`].
    pub(super) cells: u8,
    /// Highest epoch of the lease.
    pub(super) epochs: u8,
    /// Sessions opened, the first one of each worker included.
    pub(super) sessions: u8,
    /// Ends of a process without a word.
    pub(super) crashes: u8,
    /// Calls that fail.
    pub(super) failures: u8,
    /// Rewinds and skips by the operator.
    pub(super) operations: u8,
    /// Parked cells that the operator drops.
    pub(super) drops: u8,
    /// Workers that are asked to leave.
    pub(super) drains: u8,
}

/// What the model checker explores: some workers and one shard of one trigger.
#[derive(Clone, Copy, Debug)]
pub(super) struct LeaseModel {
    pub(super) rules: Rules,
    pub(super) bounds: Bounds,
    /// Whether states that differ in nothing of consequence are taken for one (`reduction.rs`).
    pub(super) reduced: bool,
    /// Whether I8 is taken to the letter.
    pub(super) letter: bool,
}

/// One step of anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A worker asks for the lease as it stands.
    Claim(usize),
    /// A worker's call of a cell ends well.
    Handle(usize, u8),
    /// A worker's call of a cell fails for good.
    Fail(usize, u8),
    /// A worker's retry of a parked cell ends well.
    Retry(usize, u8),
    /// A worker writes what it knows, and lets go of the lease or not.
    Write { worker: usize, release: bool },
    /// A request reaches the store.
    Apply(Request),
    /// A worker learns what became of its request.
    Answer(usize),
    /// A worker gives a request up because a read did not find it applied.
    GiveUp(usize),
    /// A worker sees that the lease is not its own any more, or loses its task of this shard.
    LetGo(usize),
    /// A session is removed from a lease that names it and that it does not hold.
    Release,
    /// A worker is asked to leave.
    Drain(usize),
    /// A worker that was asked to leave sets its session dead and ends, whether it has handed over or not.
    Leave(usize),
    /// A worker finds its name in the lease and goes on from there.
    Adopt(usize),
    /// A worker's heartbeat is answered.
    Beat(usize),
    /// A worker reads the list of sessions.
    ReadSessions(usize),
    /// A process ends without a word and starts again.
    Crash(usize),
    /// An observer declares a session dead.
    DeclareDead(u8),
    /// The operator sets the low-water, the owner away and the epoch up.
    Operate { low: u8 },
    /// The operator drops the parked cell as it stands.
    Drop(u8),
}

impl LeaseModel {
    /// The condition of a claim, as `Ledger::claim` has it.
    fn may_claim(&self, lease: &Lease, epoch: u8, owner: u8) -> bool {
        (lease.epoch == epoch || (self.rules == Rules::ClaimWithoutEpoch && epoch > 0)) && lease.owner == owner
    }

    /// The condition of a write on the lease, as `Ledger::write` has it.
    fn may_write(&self, lease: &Lease, by: u8, epoch: u8, seq: u8, cover: Bits, before: Bits) -> bool {
        if self.rules == Rules::CompareAndSwap {
            return lease.cover == before;
        }
        lease.owner == by
            && lease.epoch == epoch
            && (lease.seq < seq || self.rules == Rules::WithoutSeq)
            && low(cover) >= low(lease.cover)
    }

    /// The condition of the deletions in a write: each item as it was read.
    fn may_free(state: &State, free: Lane) -> bool {
        only(state.parked, cells_of(free)) == free
    }

    /// Whether the store accepts this request now.
    pub(super) fn accepts(&self, state: &State, request: Request) -> bool {
        match request {
            Request::Claim { epoch, owner, .. } => self.may_claim(&state.lease, epoch, owner),
            Request::Write { by, epoch, seq, cover, free, before, .. } => {
                self.may_write(&state.lease, by, epoch, seq, cover, before) && Self::may_free(state, free)
            }
            Request::Release { by } => state.lease.owner == by,
            Request::Drop { cell, revision } => state.parked[usize::from(cell)] == revision,
            Request::Drain { by } => !state.is_dead(by) || self.rules == Rules::DeadNotFinal,
            Request::Beat { by } => !state.is_dead(by) || self.rules == Rules::HeartbeatAfterRelease,
        }
    }

    /// Whether a worker may hope for the lease as it stands: nobody's, a dead owner's, or its own that it does not
    /// hold.
    fn claimable(&self, state: &State, worker: &Worker) -> bool {
        let owner = state.lease.owner;
        let absent = self.rules == Rules::AbsenceIsDeath && owner != NOBODY && worker.view & bit(owner) == 0;
        owner == NOBODY || owner == worker.session || state.is_dead(owner) || absent
    }

    fn apply(&self, state: &mut State, request: Request) {
        let accepted = self.accepts(state, request);
        match request {
            Request::Claim { by, epoch, .. } if accepted => {
                if epoch < state.lease.epoch {
                    state.broken |= broken::EPOCH_NOT_NEW;
                }
                if self.letter && state.is_dead(by) {
                    state.broken |= broken::DEAD_WROTE;
                }
                state.lease = Lease { epoch: epoch + 1, owner: by, seq: 0, cover: state.lease.cover };
            }
            Request::Write { by, epoch, seq, cover, park, free, release, .. } => {
                if accepted || self.rules == Rules::LanesApart {
                    self.change_lane(state, epoch, park, free);
                }
                if !accepted {
                    return;
                }
                let own = state.lease.owner == by && state.lease.epoch == epoch;
                if self.letter && state.is_dead(by) {
                    state.broken |= broken::DEAD_WROTE;
                }
                if state.lease.cover & !cover != 0 {
                    state.broken |= broken::WENT_BACK;
                }
                let before = state.lease;
                state.lease.cover = cover;
                state.lease.seq = seq;
                if release {
                    state.lease.owner = NOBODY;
                }
                if !own && (state.lease.cover, state.lease.owner) != (before.cover, before.owner) {
                    state.broken |= broken::STRANGER_WROTE;
                }
            }
            Request::Release { .. } if accepted => state.lease.owner = NOBODY,
            Request::Drop { cell, .. } if accepted => state.parked[usize::from(cell)] = 0,
            Request::Drain { by } if accepted => {
                Self::revive(state, by);
                state.draining |= bit(by);
            }
            Request::Beat { by } if accepted => Self::revive(state, by),
            _ => {}
        }
    }

    /// A session item is written as one that lives.
    fn revive(state: &mut State, session: u8) {
        if state.is_dead(session) {
            state.broken |= broken::DEAD_BEAT;
        }
        state.dead &= !bit(session);
    }

    fn change_lane(&self, state: &mut State, epoch: u8, park: Bits, free: Lane) {
        let before = state.parked;
        for (cell, item) in (0..).zip(&mut state.parked) {
            if park & bit(cell) != 0 {
                *item = if self.rules == Rules::RevisionAnew { 1 } else { epoch };
            } else if free[usize::from(cell)] == *item {
                *item = 0;
            }
        }
        if epoch != state.lease.epoch && state.parked != before {
            state.broken |= broken::OLD_EPOCH_PARKED;
        }
    }

    /// Whether a worker's request was applied: what the lease says that comes with an acceptance or a refusal.
    pub(super) fn applied(&self, state: &State, worker: &Worker) -> bool {
        let lease = &state.lease;
        match worker.pending {
            Pending::Nothing => false,
            Pending::Claim { epoch, .. } => lease.owner == worker.session && lease.epoch == epoch + 1,
            Pending::Write { cover, .. } if self.rules == Rules::CompareAndSwap => lease.cover == cover,
            Pending::Write { .. } => lease.epoch == worker.holds && lease.seq > worker.seq,
        }
    }

    /// Whether the answer to a worker's request is certain: it was applied, or it never will be. Until then it is
    /// sent again.
    pub(super) fn settled(&self, state: &State, worker: &Worker) -> bool {
        let never = match worker.pending {
            Pending::Nothing => false,
            Pending::Claim { epoch, owner } => !self.may_claim(&state.lease, epoch, owner),
            Pending::Write { cover, free, .. } => {
                let Worker { session, holds, seq, known, .. } = *worker;
                !self.may_write(&state.lease, session, holds, seq + 1, cover, known) || !Self::may_free(state, free)
            }
        };
        never || self.applied(state, worker)
    }

    fn answer(&self, state: &mut State, who: usize) {
        let applied = self.applied(state, &state.workers[who]);
        let (lease, parked) = (state.lease, state.parked);
        let lane_refused = !applied && state.owns(&state.workers[who]);
        let worker = &mut state.workers[who];
        match worker.pending {
            Pending::Nothing => {}
            Pending::Claim { .. } => {
                worker.let_go();
                if applied {
                    Self::hold(worker, lease, parked);
                }
            }
            // An operator changed a parked cell meanwhile: look at the lane again, then write anew.
            Pending::Write { .. } if lane_refused && self.rules != Rules::CompareAndSwap => {
                worker.lane = parked;
                worker.freed &= cells_of(parked);
                worker.pending = Pending::Nothing;
            }
            Pending::Write { release, .. } if release || !applied => worker.let_go(),
            Pending::Write { cover, park, free, .. } => {
                worker.seq += 1;
                worker.known |= cover;
                worker.done &= !cover;
                worker.failed &= !park;
                worker.lane = only(worker.lane, !cells_of(free));
                for cell in (0..self.bounds.cells).filter(|&cell| park & bit(cell) != 0) {
                    let revision = if self.rules == Rules::RevisionAnew { 1 } else { worker.holds };
                    worker.lane[usize::from(cell)] = revision;
                }
                worker.freed &= !cells_of(free) & !park;
                worker.pending = Pending::Nothing;
            }
        }
    }

    /// Begins with what is durable.
    fn hold(worker: &mut Worker, lease: Lease, parked: Lane) {
        worker.holds = lease.epoch;
        worker.seq = lease.seq;
        worker.known = lease.cover;
        worker.lane = parked;
    }

    /// A process begins anew, under a session that was never there before.
    fn restart(&self, state: &mut State, who: usize) {
        let session = if state.used.sessions == self.bounds.sessions {
            NOBODY
        } else {
            let fresh = if self.reduced { low(state.mentioned()) } else { state.used.sessions };
            state.used.sessions += 1;
            state.dead &= !bit(fresh);
            state.draining &= !bit(fresh);
            fresh
        };
        state.workers[who] = Worker::start(session, self.view_at_start(state.used.sessions));
    }

    fn view_at_start(&self, sessions: u8) -> Bits {
        if self.rules == Rules::AbsenceIsDeath { below(sessions) } else { 0 }
    }

    fn worker_steps(&self, state: &State, who: usize, steps: &mut Vec<Step>) {
        let worker = &state.workers[who];
        if worker.session == NOBODY {
            return;
        }
        if self.settled(state, worker) {
            steps.push(Step::Answer(who));
        }
        if self.rules == Rules::LookIsProof && matches!(worker.pending, Pending::Write { release: false, .. }) {
            steps.push(Step::GiveUp(who));
        }
        if self.rules == Rules::NameIsHold && worker.holds == 0 && state.lease.owner == worker.session {
            steps.push(Step::Adopt(who));
        }
        if self.rules == Rules::AbsenceIsDeath {
            steps.push(Step::ReadSessions(who));
        }
        if state.is_dead(worker.session) {
            steps.push(Step::Beat(who));
        }
        if state.used.crashes < self.bounds.crashes {
            steps.push(Step::Crash(who));
        }
        if worker.holds != 0 || worker.pending != Pending::Nothing {
            steps.push(Step::LetGo(who));
        }
        if worker.draining {
            let released = worker.releasing() && self.applied(state, worker);
            if released || self.rules != Rules::HeartbeatAfterRelease {
                steps.push(Step::Leave(who));
            }
        } else if state.used.drains < self.bounds.drains {
            steps.push(Step::Drain(who));
        }
        if worker.holds != 0 {
            self.holder_steps(state, who, steps);
        } else if worker.pending == Pending::Nothing
            && !worker.draining
            && state.lease.epoch < self.bounds.epochs
            && self.claimable(state, worker)
        {
            steps.push(Step::Claim(who));
        }
    }

    fn holder_steps(&self, state: &State, who: usize, steps: &mut Vec<Step>) {
        let worker = &state.workers[who];
        if worker.releasing() {
            return;
        }
        let parked = cells_of(worker.lane) & !worker.freed;
        for cell in 0..self.bounds.cells {
            if worker.cover() & bit(cell) == 0 {
                steps.push(Step::Handle(who, cell));
                if state.used.failures < self.bounds.failures {
                    steps.push(Step::Fail(who, cell));
                }
            }
            if parked & bit(cell) != 0 {
                steps.push(Step::Retry(who, cell));
            }
        }
        if worker.pending == Pending::Nothing {
            if worker.cover() != worker.known || worker.freed != 0 {
                steps.push(Step::Write { worker: who, release: false });
            }
            steps.push(Step::Write { worker: who, release: true });
        }
    }

    fn others_steps(&self, state: &State, steps: &mut Vec<Step>) {
        let alive = state.mentioned() & !state.dead;
        steps.extend((0..8).filter(|&id| alive & bit(id) != 0).map(Step::DeclareDead));
        if state.is_stray() {
            steps.push(Step::Release);
        }
        let Used { operations, drops, .. } = state.used;
        let Lease { epoch, cover, .. } = state.lease;
        if operations < self.bounds.operations && (1..self.bounds.epochs).contains(&epoch) {
            let lows = (0..=self.bounds.cells).filter(|&to| below(to) != cover);
            steps.extend(lows.map(|low| Step::Operate { low }));
        }
        if drops < self.bounds.drops {
            let parked = cells_of(state.parked);
            steps.extend((0..self.bounds.cells).filter(|&cell| parked & bit(cell) != 0).map(Step::Drop));
        }
    }

    fn take(&self, state: &mut State, step: Step) {
        match step {
            Step::Claim(who) => {
                let Lease { epoch, owner, .. } = state.lease;
                state.workers[who].pending = Pending::Claim { epoch, owner };
                state.send(Request::Claim { by: state.workers[who].session, epoch, owner });
            }
            Step::Handle(who, cell) => {
                state.workers[who].done |= bit(cell);
                state.finished |= bit(cell);
            }
            Step::Fail(who, cell) => {
                state.used.failures += 1;
                let worker = &mut state.workers[who];
                match self.rules {
                    Rules::FailedNotParked => worker.done |= bit(cell),
                    _ => worker.failed |= bit(cell),
                }
            }
            Step::Retry(who, cell) => {
                state.workers[who].freed |= bit(cell);
                state.finished |= bit(cell);
            }
            Step::Write { worker: who, release } => {
                let worker = &mut state.workers[who];
                let (cover, park) = (worker.cover(), worker.failed);
                let free = only(worker.lane, worker.freed & !park);
                worker.pending = Pending::Write { cover, park, free, release };
                let (by, epoch, seq) = (worker.session, worker.holds, worker.seq + 1);
                let before = if self.rules == Rules::CompareAndSwap { worker.known } else { 0 };
                state.send(Request::Write { by, epoch, seq, cover, park, free, release, before });
            }
            Step::Apply(request) => self.apply(state, request),
            Step::Answer(who) => self.answer(state, who),
            Step::GiveUp(who) => state.workers[who].pending = Pending::Nothing,
            Step::LetGo(who) => state.workers[who].let_go(),
            Step::Release if self.rules == Rules::ReleaseByName => {
                state.send(Request::Release { by: state.lease.owner })
            }
            Step::Release => state.lease.owner = NOBODY,
            Step::Drain(who) => {
                state.used.drains += 1;
                state.workers[who].draining = true;
                state.send(Request::Drain { by: state.workers[who].session });
            }
            Step::Leave(who) => {
                let session = state.workers[who].session;
                state.dead |= bit(session);
                if self.rules == Rules::HeartbeatAfterRelease {
                    state.send(Request::Beat { by: session });
                }
                self.restart(state, who);
            }
            Step::Adopt(who) => {
                let (lease, parked) = (state.lease, state.parked);
                state.workers[who].let_go();
                Self::hold(&mut state.workers[who], lease, parked);
            }
            Step::Beat(who) if self.rules == Rules::DeadNotFinal => Self::revive(state, state.workers[who].session),
            Step::Beat(who) => self.restart(state, who),
            Step::ReadSessions(who) => state.workers[who].view = below(state.used.sessions),
            Step::Crash(who) => {
                state.used.crashes += 1;
                self.restart(state, who);
            }
            Step::DeclareDead(id) => state.dead |= bit(id),
            Step::Operate { low: to } => {
                state.used.operations += 1;
                let passed = state.lease.cover;
                let epoch = state.lease.epoch + 1;
                state.lease = Lease { epoch, owner: NOBODY, seq: 0, cover: below(to) };
                state.operated = epoch;
                state.finished &= below(to);
                state.skipped = (state.skipped | !passed) & below(to);
            }
            Step::Drop(cell) => {
                state.used.drops += 1;
                state.skipped |= bit(cell);
                state.send(Request::Drop { cell, revision: state.parked[usize::from(cell)] });
            }
        }
    }
}

impl Model for LeaseModel {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let workers = self.bounds.workers;
        let view = self.view_at_start(workers);
        let mut all = [Worker::start(NOBODY, view); WORKERS];
        for (session, worker) in (0..workers).zip(&mut all) {
            worker.session = session;
        }
        vec![self.normal(State {
            lease: Lease { epoch: 0, owner: NOBODY, seq: 0, cover: 0 },
            parked: [0; CELLS],
            dead: 0,
            draining: 0,
            workers: all,
            requests: Vec::new(),
            finished: 0,
            skipped: 0,
            operated: 0,
            broken: 0,
            used: Used { sessions: workers, crashes: 0, failures: 0, operations: 0, drops: 0, drains: 0 },
        })]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        steps.extend(state.requests.iter().map(|&request| Step::Apply(request)));
        for who in 0..state.workers.len() {
            self.worker_steps(state, who, steps);
        }
        self.others_steps(state, steps);
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        self.take(&mut state, step);
        let state = self.normal(state);
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        super::properties(self)
    }
}
