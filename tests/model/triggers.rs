//! A trigger's record, its generations, the pauses of its shards, and its end, under the model checker.
//!
//! Some workers, one shard, one name: the trigger that has it is paused, resumed, retired, and its name registered
//! again. What a generation is: a number of the trigger's record that a resume of the whole trigger makes grow, and
//! nothing else does. **No condition of any write reads it.** It is a label with which a reader tells whether the pause
//! of a shard, which lies in the shard's checkpoint, is in force: its label is that of the record. So one write ends
//! the pauses of all shards, and what an owner that has not heard of it writes brings none of them back. What guards a
//! pause against being lost is the same as what guards low-water: owner, epoch and `seq` of the lease. No call is made
//! and no cell is covered on account of a generation, so that the lease model does without: a worker that stands still
//! is there one that sleeps.
//!
//! This model in turn knows nothing of sessions, parked cells and finished cells beyond low-water: anybody may claim
//! the lease at any moment, which is more than a session that is dead allows, and a checkpoint is the number of cells
//! that are finished. Requests are late, repeated and lost as in the lease model. An operator's change of a checkpoint
//! is made upon a record that was read at any earlier time, and on the lease as it is: the conditions on epoch and `seq`
//! let no other pass.
//!
//! Reductions, as in the lease model: requests that can never be accepted again are taken out; a worker whose epoch has
//! passed, or whose claim was refused, has learnt it, unless it has yet to say that a handler asks for a pause; workers
//! have no names of their own.

use stateright::{Model, Property};

/// Most workers.
const WORKERS: usize = 3;
const NOBODY: u8 = u8::MAX;

pub(super) const I1_OWN: &str = "I1: a trigger's checkpoint covers only what was finished for that very trigger";
pub(super) const I3_BACK: &str = "I3: the checkpoint does not go back, nor away";
pub(super) const I3_PAUSE: &str = "I3: no owner's write takes away a pause that is in force";
pub(super) const I3_KNOWN: &str = "I3: the lease's owner knows of the pause that is stored with its checkpoint";
pub(super) const I7_STANDS: &str = "I7: a worker stands still only for a pause that is in force, as far as it has read";
pub(super) const I7_RESUMED: &str = "I7: a resume ends every pause that was asked for before it";

pub(super) const RESUMED: &str = "all cells are covered after a shard was paused and resumed";
pub(super) const ENDED: &str = "a stored pause is over, with the trigger's next generation";
pub(super) const ASKED: &str = "a handler's pause of the whole trigger is stored after an earlier one was resumed";
pub(super) const SUCCEEDED: &str = "all cells are covered for the trigger that took a retired one's name";
pub(super) const BESIDE: &str = "a retired trigger's checkpoint lies beside its successor's";

/// The protocol as it is, or with one rule left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rules {
    /// As designed.
    Sound,
    /// An operator's change of a checkpoint leaves owner and epoch as they are.
    OperatorFencesNobody,
    /// An operator's change of a checkpoint has the epoch as its condition, but not the number of the last write.
    OperatorWithoutSeq,
    /// A pause has no generation: a resume of the trigger takes it out of the checkpoint, and fences nobody off.
    PauseIsAFlag,
    /// An operator's pause bears the generation of the record as he read it, even where the checkpoint is of a later one.
    PauseByAnOldRecord,
    /// A handler's wish for a pause is stored even if the trigger was resumed since.
    WishOutlivesItsGeneration,
    /// Checkpoints are filed under the trigger's name.
    FiledByName,
}

/// Where the exploration ends. Every number is a total over the whole history.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Workers, at most [`WORKERS`].
    pub(super) workers: usize,
    /// Cells of the shard.
    pub(super) cells: u8,
    /// Highest epoch of the lease.
    pub(super) epochs: u8,
    /// Pauses and resumes of the shard alone by the operator.
    pub(super) operations: u8,
    /// Pauses of the shard alone by its owner.
    pub(super) pauses: u8,
    /// Resumes of the whole trigger.
    pub(super) resumes: u8,
    /// Handlers that ask for a pause of the whole trigger.
    pub(super) wishes: u8,
    /// Whether the trigger is retired, and another takes its name.
    pub(super) retires: bool,
}

/// What the model checker explores.
#[derive(Clone, Copy, Debug)]
pub(super) struct TriggerModel {
    pub(super) rules: Rules,
    pub(super) bounds: Bounds,
    /// Whether states that differ in nothing of consequence are taken for one.
    pub(super) reduced: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Standing {
    Unregistered,
    Active,
    Paused,
    Retired,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Record {
    standing: Standing,
    generation: u8,
    revision: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Checkpoint {
    low: u8,
    /// The pause of this shard alone, by its generation.
    paused: Option<u8>,
    generation: u8,
}

/// By trigger: the first one, and that which takes its name.
type Checkpoints = [Option<Checkpoint>; 2];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Lease {
    epoch: u8,
    owner: u8,
    seq: u8,
    checkpoints: Checkpoints,
}

/// A trigger at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Cursor {
    id: usize,
    /// As it would be written.
    now: Checkpoint,
    /// As it was read or written last.
    stored: Checkpoint,
    /// The whole trigger is paused, as far as it knows.
    stopped: bool,
    /// Its handler asked for a pause when the record was at this revision.
    asked_at: Option<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Pending {
    Nothing,
    Claim { epoch: u8 },
    Write { entry: Option<(usize, Checkpoint)>, release: bool },
}

/// A handler's wish that the whole trigger be paused, not known to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Wish {
    id: usize,
    generation: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Worker {
    /// The epoch at which it holds the shard; 0 when it does not.
    holds: u8,
    seq: u8,
    /// What the claim brought, and what was written since.
    checkpoints: Checkpoints,
    cursor: Option<Cursor>,
    pending: Pending,
    wish: Option<Wish>,
    /// The triggers' records, as last read.
    read: [Record; 2],
}

/// A request on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Request {
    /// `Ledger::claim`.
    Claim { by: u8, epoch: u8, owner: u8 },
    /// `Ledger::write`.
    Write { by: u8, epoch: u8, seq: u8, entry: Option<(usize, Checkpoint)>, release: bool },
    /// `Ledger::operate`; only where a late one differs from a prompt one.
    Operate { epoch: u8, seq: u8, id: usize, checkpoint: Checkpoint },
    /// `Ledger::update_trigger`: a pause that a handler asked for in that generation.
    Pause { id: usize, revision: u8, asked_in: u8 },
}

/// Broken invariants that only the step shows.
mod broken {
    pub(super) const WENT_BACK: u8 = 1;
    pub(super) const PAUSE_LOST: u8 = 2;
    pub(super) const RESUME_UNDONE: u8 = 4;
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct State {
    records: [Record; 2],
    lease: Lease,
    workers: [Worker; WORKERS],
    /// Sorted, without repeats.
    requests: Vec<Request>,
    /// Cells that a handler finished, by trigger.
    finished: [u8; 2],
    broken: u8,
    operations: u8,
    pauses: u8,
    wishes: u8,
}

/// One step of anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A worker asks for the lease as it stands.
    Claim(usize),
    /// A request reaches the store.
    Apply(Request),
    /// A worker learns what became of its request.
    Answer(usize),
    /// A worker loses its task of the shard, or its process ends and begins anew.
    LetGo(usize),
    /// A worker reads the triggers' records and follows them.
    Read(usize),
    /// A worker begins where the checkpoint ended, or writes the first one.
    Start(usize),
    /// A worker's call of the next cell ends well.
    Call(usize),
    /// Too many dead cells: a worker pauses the shard.
    TooMany(usize),
    /// A handler asks for a pause of the whole trigger.
    Ask(usize),
    /// A worker reads the record and sends the pause that was asked for, or finds that it need not.
    Store(usize),
    /// A worker learns that the pause is stored.
    Stored(usize),
    /// A worker writes what it knows, and lets go of the lease or not.
    Write { worker: usize, release: bool },
    /// The operator pauses a shard, upon a record of that generation.
    PauseShard { id: usize, generation: u8 },
    /// The operator ends the pause of a shard, upon a record of that generation.
    ResumeShard { id: usize, generation: u8 },
    /// The operator resumes the whole trigger.
    Resume(usize),
    /// The operator retires the first trigger.
    Retire,
    /// Checkpoints of the retired trigger are removed.
    Forget,
    /// Its name is registered again.
    Register,
}

impl Checkpoint {
    fn at(low: u8, generation: u8) -> Self {
        Self { low, paused: None, generation }
    }
}

impl Worker {
    fn start(read: [Record; 2]) -> Self {
        Self { holds: 0, seq: 0, checkpoints: [None; 2], cursor: None, pending: Pending::Nothing, wish: None, read }
    }

    fn let_go(&mut self) {
        *self = Self::start(self.read);
    }

    fn releasing(&self) -> bool {
        matches!(self.pending, Pending::Write { release: true, .. })
    }

    /// `Cursor::follow`: takes the record as it was read.
    fn follow(&mut self, rules: Rules) {
        let Some(cursor) = &mut self.cursor else { return };
        let record = self.read[cursor.id];
        if record.standing == Standing::Retired {
            self.cursor = None;
            return;
        }
        if cursor.asked_at.is_none_or(|asked_at| record.revision > asked_at) {
            cursor.asked_at = None;
            cursor.stopped = record.standing == Standing::Paused;
        }
        if record.generation > cursor.now.generation {
            cursor.now.generation = record.generation;
            if rules != Rules::PauseIsAFlag {
                cursor.now.paused = None;
            }
        }
    }
}

impl State {
    fn send(&mut self, request: Request) {
        if let Err(at) = self.requests.binary_search(&request) {
            self.requests.insert(at, request);
        }
    }

    fn owns(&self, who: usize) -> bool {
        self.lease.epoch == self.workers[who].holds && usize::from(self.lease.owner) == who
    }
}

impl TriggerModel {
    /// Where a trigger's checkpoint lies.
    fn place(&self, id: usize) -> usize {
        if self.rules == Rules::FiledByName { 0 } else { id }
    }

    /// Whether whoever looks at the record and this checkpoint takes the shard for paused.
    fn in_force(&self, record: Record, checkpoint: Checkpoint) -> bool {
        match self.rules {
            Rules::PauseIsAFlag => checkpoint.paused.is_some(),
            _ => checkpoint.paused == Some(record.generation),
        }
    }

    /// Whether the store accepts this request now; what it refuses once, it refuses for ever.
    fn accepts(&self, state: &State, request: Request) -> bool {
        let lease = &state.lease;
        match request {
            Request::Claim { epoch, owner, .. } => (lease.epoch, lease.owner) == (epoch, owner),
            Request::Write { by, epoch, seq, entry, .. } => {
                let falls = |(id, checkpoint): (usize, Checkpoint)| {
                    lease.checkpoints[self.place(id)].is_some_and(|stored| stored.low > checkpoint.low)
                };
                (lease.epoch, lease.owner) == (epoch, by) && lease.seq < seq && !entry.is_some_and(falls)
            }
            Request::Operate { epoch, seq, .. } => {
                lease.epoch == epoch && (lease.seq == seq || self.rules == Rules::OperatorWithoutSeq)
            }
            Request::Pause { id, revision, .. } => {
                state.records[id].revision == revision && state.records[id].standing != Standing::Retired
            }
        }
    }

    fn apply(&self, state: &mut State, request: Request) {
        if !self.accepts(state, request) {
            return;
        }
        match request {
            Request::Claim { by, epoch, .. } => {
                state.lease = Lease { epoch: epoch + 1, owner: by, seq: 0, ..state.lease };
            }
            Request::Write { seq, entry, release, .. } => {
                state.lease.seq = seq;
                if release {
                    state.lease.owner = NOBODY;
                }
                if let Some((id, checkpoint)) = entry {
                    let before = state.lease.checkpoints[self.place(id)];
                    let record = state.records[id];
                    let paused = before.is_some_and(|before| self.in_force(record, before));
                    if paused && !self.in_force(record, checkpoint) {
                        state.broken |= broken::PAUSE_LOST;
                    }
                    if self.in_force(record, checkpoint) && checkpoint.paused < Some(record.generation) {
                        state.broken |= broken::RESUME_UNDONE;
                    }
                    self.put(state, id, checkpoint);
                }
            }
            Request::Operate { epoch, id, checkpoint, .. } => {
                if self.rules != Rules::OperatorFencesNobody {
                    (state.lease.epoch, state.lease.owner, state.lease.seq) = (epoch + 1, NOBODY, 0);
                }
                self.put(state, id, checkpoint);
            }
            Request::Pause { id, revision, asked_in } => {
                let record = &mut state.records[id];
                if asked_in < record.generation {
                    state.broken |= broken::RESUME_UNDONE;
                }
                *record = Record { standing: Standing::Paused, revision: revision + 1, ..*record };
            }
        }
    }

    fn put(&self, state: &mut State, id: usize, checkpoint: Checkpoint) {
        let stored = &mut state.lease.checkpoints[self.place(id)];
        if stored.is_some_and(|stored| stored.low > checkpoint.low) {
            state.broken |= broken::WENT_BACK;
        }
        *stored = Some(checkpoint);
    }

    /// Whether a worker's request was applied.
    fn applied(state: &State, who: usize) -> bool {
        let (lease, worker) = (&state.lease, &state.workers[who]);
        match worker.pending {
            Pending::Nothing => false,
            Pending::Claim { epoch } => usize::from(lease.owner) == who && lease.epoch == epoch + 1,
            Pending::Write { .. } => lease.epoch == worker.holds && lease.seq > worker.seq,
        }
    }

    /// Whether the answer to a worker's request is certain.
    fn settled(state: &State, who: usize) -> bool {
        let never = match state.workers[who].pending {
            Pending::Nothing => false,
            // Whoever claims, or lets go, changes one of the two.
            Pending::Claim { epoch } => state.lease.epoch != epoch,
            Pending::Write { .. } => !state.owns(who),
        };
        never || Self::applied(state, who)
    }

    fn answer(&self, state: &mut State, who: usize) {
        let applied = Self::applied(state, who);
        let lease = state.lease;
        let worker = &mut state.workers[who];
        match worker.pending {
            Pending::Nothing => {}
            Pending::Claim { .. } => {
                worker.let_go();
                if applied {
                    (worker.holds, worker.seq, worker.checkpoints) = (lease.epoch, lease.seq, lease.checkpoints);
                }
            }
            Pending::Write { release, .. } if release || !applied => worker.let_go(),
            Pending::Write { entry, .. } => {
                worker.seq += 1;
                worker.pending = Pending::Nothing;
                let Some((id, checkpoint)) = entry else { return };
                worker.checkpoints[self.place(id)] = Some(checkpoint);
                if let Some(cursor) = worker.cursor.as_mut().filter(|cursor| cursor.id == id) {
                    cursor.stored = checkpoint;
                }
            }
        }
    }

    /// `shard::start`, for the trigger that is registered as far as the worker has read.
    fn start(&self, state: &mut State, who: usize) {
        let worker = &mut state.workers[who];
        let Some(id) = Self::registered(&worker.read) else { return };
        let Some(stored) = worker.checkpoints[self.place(id)] else {
            let entry = Some((id, Checkpoint::at(0, worker.read[id].generation)));
            return Self::write(state, who, entry, false);
        };
        worker.cursor = Some(Cursor { id, now: stored, stored, stopped: false, asked_at: None });
        worker.follow(self.rules);
    }

    fn registered(records: &[Record; 2]) -> Option<usize> {
        records.iter().position(|record| matches!(record.standing, Standing::Active | Standing::Paused))
    }

    fn write(state: &mut State, who: usize, entry: Option<(usize, Checkpoint)>, release: bool) {
        let worker = &mut state.workers[who];
        worker.pending = Pending::Write { entry, release };
        let (epoch, seq) = (worker.holds, worker.seq + 1);
        state.send(Request::Write { by: name(who), epoch, seq, entry, release });
    }

    /// An operator changes the checkpoint as it stands.
    fn operate(&self, state: &mut State, id: usize, change: impl FnOnce(Checkpoint) -> Checkpoint) {
        state.operations += 1;
        let Lease { epoch, seq, checkpoints, .. } = state.lease;
        let Some(stored) = checkpoints[self.place(id)] else { return };
        let request = Request::Operate { epoch, seq, id, checkpoint: change(stored) };
        match self.rules {
            Rules::OperatorWithoutSeq => state.send(request),
            _ => self.apply(state, request),
        }
    }

    fn worker_steps(&self, state: &State, who: usize, steps: &mut Vec<Step>) {
        let worker = &state.workers[who];
        if Self::settled(state, who) {
            steps.push(Step::Answer(who));
        }
        if worker.read != state.records {
            steps.push(Step::Read(who));
        }
        if worker.wish.is_some() {
            steps.extend([Step::Store(who), Step::Stored(who)]);
        }
        if worker.holds != 0 || worker.pending != Pending::Nothing {
            steps.push(Step::LetGo(who));
        }
        if worker.holds == 0 {
            if worker.pending == Pending::Nothing && state.lease.epoch < self.bounds.epochs {
                steps.push(Step::Claim(who));
            }
            return;
        }
        if worker.releasing() {
            return;
        }
        let free = worker.pending == Pending::Nothing;
        if let Some(cursor) = &worker.cursor {
            if cursor.now.paused.is_none() && !cursor.stopped {
                if cursor.now.low < self.bounds.cells {
                    steps.push(Step::Call(who));
                }
                if state.pauses < self.bounds.pauses {
                    steps.push(Step::TooMany(who));
                }
                if state.wishes < self.bounds.wishes {
                    steps.push(Step::Ask(who));
                }
            }
            if free && cursor.now != cursor.stored {
                steps.push(Step::Write { worker: who, release: false });
            }
        } else if free && Self::registered(&worker.read).is_some() {
            steps.push(Step::Start(who));
        }
        if free {
            steps.push(Step::Write { worker: who, release: true });
        }
    }

    fn others_steps(&self, state: &State, steps: &mut Vec<Step>) {
        let room = state.lease.epoch < self.bounds.epochs;
        for (id, record) in state.records.iter().enumerate() {
            let stored = state.lease.checkpoints[self.place(id)];
            if record.standing == Standing::Unregistered {
                continue;
            }
            if let Some(stored) = stored.filter(|_| room && state.operations < self.bounds.operations) {
                let pauses = (0..=record.generation).filter(|&generation| stored.paused != Some(generation));
                steps.extend(pauses.map(|generation| Step::PauseShard { id, generation }));
                if let Some(generation) = stored.paused {
                    steps.push(Step::ResumeShard { id, generation });
                }
            }
            let registered = record.standing != Standing::Retired;
            if registered && state.records.iter().map(|record| record.generation).sum::<u8>() < self.bounds.resumes {
                steps.push(Step::Resume(id));
            }
        }
        let [first, second] = &state.records;
        if first.standing == Standing::Retired {
            if state.lease.checkpoints[0].is_some() {
                steps.push(Step::Forget);
            }
            // Even where checkpoints are filed by name, nobody would register it before the old ones are gone.
            let tidy = self.rules != Rules::FiledByName || state.lease.checkpoints[0].is_none();
            if second.standing == Standing::Unregistered && tidy {
                steps.push(Step::Register);
            }
        } else if self.bounds.retires {
            steps.push(Step::Retire);
        }
    }

    fn take(&self, state: &mut State, step: Step) {
        match step {
            Step::Claim(who) => {
                let Lease { epoch, owner, .. } = state.lease;
                state.workers[who].pending = Pending::Claim { epoch };
                state.send(Request::Claim { by: name(who), epoch, owner });
            }
            Step::Apply(request) => self.apply(state, request),
            Step::Answer(who) => self.answer(state, who),
            Step::LetGo(who) => state.workers[who].let_go(),
            Step::Read(who) => {
                state.workers[who].read = state.records;
                state.workers[who].follow(self.rules);
            }
            Step::Start(who) => self.start(state, who),
            Step::Call(who) => {
                if let Some(cursor) = &mut state.workers[who].cursor {
                    cursor.now.low += 1;
                    let finished = &mut state.finished[cursor.id];
                    *finished = cursor.now.low.max(*finished);
                }
            }
            Step::TooMany(who) => {
                state.pauses += 1;
                if let Some(cursor) = &mut state.workers[who].cursor {
                    cursor.now.paused = Some(cursor.now.generation);
                }
            }
            Step::Ask(who) => {
                state.wishes += 1;
                let worker = &mut state.workers[who];
                if let Some(cursor) = &mut worker.cursor {
                    cursor.stopped = true;
                    cursor.asked_at = Some(worker.read[cursor.id].revision);
                    worker.wish = Some(Wish { id: cursor.id, generation: cursor.now.generation });
                }
            }
            Step::Store(who) => {
                let Some(Wish { id, generation }) = state.workers[who].wish else { return };
                let record = state.records[id];
                let resumed = record.generation > generation && self.rules != Rules::WishOutlivesItsGeneration;
                if record.standing != Standing::Active || resumed {
                    state.workers[who].wish = None;
                } else {
                    state.send(Request::Pause { id, revision: record.revision, asked_in: generation });
                }
            }
            Step::Stored(who) => state.workers[who].wish = None,
            Step::Write { worker: who, release } => {
                let entry = state.workers[who].cursor.map(|cursor| (cursor.id, cursor.now));
                Self::write(state, who, entry, release);
            }
            Step::PauseShard { id, generation } => self.operate(state, id, |stored| {
                let newest = stored.generation.max(generation);
                let by = if self.rules == Rules::PauseByAnOldRecord { generation } else { newest };
                Checkpoint { paused: Some(by), generation: newest, ..stored }
            }),
            Step::ResumeShard { id, .. } => {
                self.operate(state, id, |stored| Checkpoint { paused: None, ..stored });
            }
            Step::Resume(id) => {
                let Record { generation, revision, .. } = state.records[id];
                state.records[id] =
                    Record { standing: Standing::Active, generation: generation + 1, revision: revision + 1 };
                if let Some(stored) = &mut state.lease.checkpoints[self.place(id)]
                    && self.rules == Rules::PauseIsAFlag
                {
                    stored.paused = None;
                }
            }
            Step::Retire => state.records[0].standing = Standing::Retired,
            Step::Forget => {
                if self.rules == Rules::FiledByName && state.records[1].standing != Standing::Unregistered {
                    state.broken |= broken::WENT_BACK;
                }
                state.lease.checkpoints[0] = None;
            }
            Step::Register => {
                state.records[1] = Record { standing: Standing::Active, generation: 0, revision: 0 };
            }
        }
    }

    /// The state that stands for this one.
    pub(super) fn normal(&self, mut state: State) -> State {
        if !self.reduced {
            return state;
        }
        let mut requests = std::mem::take(&mut state.requests);
        requests.retain(|&request| self.accepts(&state, request));
        state.requests = requests;
        for who in 0..self.bounds.workers {
            let worker = &state.workers[who];
            let passed = worker.holds != 0 && !state.owns(who) && state.wishes == self.bounds.wishes;
            let refused = matches!(worker.pending, Pending::Claim { .. }) && Self::settled(&state, who);
            if worker.wish.is_none() && (passed || refused && !Self::applied(&state, who)) {
                state.workers[who].let_go();
            }
        }
        let present = self.bounds.workers;
        let sorted = ORDERS.iter().filter(|order| {
            let absent = &order[present..];
            absent.iter().all(|&who| who >= present) && order[..present].is_sorted_by_key(|&who| state.workers[who])
        });
        sorted.map(|&order| renamed(&state, order)).min().expect("some order is sorted")
    }
}

/// All orders of the workers.
const ORDERS: [[usize; WORKERS]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

fn name(who: usize) -> u8 {
    u8::try_from(who).expect("few workers")
}

/// The same state with the workers in this order.
fn renamed(state: &State, order: [usize; WORKERS]) -> State {
    let rename = |id: &mut u8| {
        if let Some(place) = order.iter().position(|who| *who == usize::from(*id)) {
            *id = name(place);
        }
    };
    let mut to = state.clone();
    to.workers = order.map(|who| state.workers[who]);
    rename(&mut to.lease.owner);
    for request in &mut to.requests {
        match request {
            Request::Claim { by, owner, .. } => {
                rename(by);
                rename(owner);
            }
            Request::Write { by, .. } => rename(by),
            Request::Operate { .. } | Request::Pause { .. } => {}
        }
    }
    to.requests.sort_unstable();
    to
}

impl Model for TriggerModel {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let record = |standing| Record { standing, generation: 0, revision: 0 };
        let records = [record(Standing::Active), record(Standing::Unregistered)];
        vec![State {
            records,
            lease: Lease { epoch: 0, owner: NOBODY, seq: 0, checkpoints: [None; 2] },
            workers: [Worker::start(records); WORKERS],
            requests: Vec::new(),
            finished: [0; 2],
            broken: 0,
            operations: 0,
            pauses: 0,
            wishes: 0,
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        steps.extend(state.requests.iter().map(|&request| Step::Apply(request)));
        for who in 0..self.bounds.workers {
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
        vec![
            Property::always(I1_OWN, |model: &Self, state: &State| {
                let covered = |id: usize| state.lease.checkpoints[model.place(id)].map_or(0, |stored| stored.low);
                Self::registered(&state.records).is_none_or(|id| covered(id) <= state.finished[id])
            }),
            Property::always(I3_BACK, |_, state: &State| state.broken & broken::WENT_BACK == 0),
            Property::always(I3_PAUSE, |_, state: &State| state.broken & broken::PAUSE_LOST == 0),
            Property::always(I3_KNOWN, |model: &Self, state: &State| {
                let knows = |(who, worker): (usize, &Worker)| match worker.cursor {
                    Some(cursor) if state.owns(who) => {
                        let stored = state.lease.checkpoints[model.place(cursor.id)];
                        let paused = stored.is_some_and(|stored| model.in_force(state.records[cursor.id], stored));
                        !paused || cursor.now.paused.is_some()
                    }
                    _ => true,
                };
                state.workers.iter().enumerate().all(knows)
            }),
            Property::always(I7_STANDS, |model: &Self, state: &State| {
                let stands = |worker: &Worker| match worker.cursor {
                    Some(cursor) => cursor.now.paused.is_some_and(|by| by < worker.read[cursor.id].generation),
                    None => false,
                };
                model.rules == Rules::PauseIsAFlag || !state.workers.iter().any(stands)
            }),
            Property::always(I7_RESUMED, |_, state: &State| state.broken & broken::RESUME_UNDONE == 0),
            Property::sometimes(RESUMED, |model: &Self, state: &State| {
                let all = Checkpoint::at(model.bounds.cells, 0);
                state.operations > 1 && state.lease.checkpoints[0] == Some(all)
            }),
            Property::sometimes(ENDED, |_, state: &State| {
                let paused = state.lease.checkpoints[0].and_then(|stored| stored.paused);
                paused.is_some_and(|by| by < state.records[0].generation)
            }),
            Property::sometimes(ASKED, |_, state: &State| {
                state.records[0].standing == Standing::Paused && state.records[0].generation > 0
            }),
            Property::sometimes(SUCCEEDED, |model: &Self, state: &State| {
                state.lease.checkpoints[1].is_some_and(|stored| stored.low == model.bounds.cells)
            }),
            Property::sometimes(BESIDE, |_, state: &State| {
                state.lease.checkpoints.iter().all(Option::is_some) && state.finished[1] > 0
            }),
        ]
    }
}
