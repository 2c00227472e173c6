//! What the model consists of: the durable items, the workers, the requests on their way, the omniscient observer.

/// Most cells that a model may have.
pub(super) const CELLS: usize = 3;

/// Most workers that a model may have.
pub(super) const WORKERS: usize = 3;

/// Nobody: no owner, no session.
pub(super) const NOBODY: u8 = u8::MAX;

/// A set of cells or of sessions, one bit each.
pub(super) type Bits = u8;

/// Parked cells, each with its revision; 0 where there is no item.
pub(super) type Lane = [u8; CELLS];

/// The set of one.
pub(super) fn bit(n: u8) -> Bits {
    1 << n
}

/// The first `n`.
pub(super) fn below(n: u8) -> Bits {
    bit(n) - 1
}

/// Low-water of a checkpoint.
pub(super) fn low(cover: Bits) -> u8 {
    u8::try_from(cover.trailing_ones()).expect("a byte has 8 bits")
}

/// The cells of a lane.
pub(super) fn cells_of(lane: Lane) -> Bits {
    (0..).zip(lane).filter(|&(_, revision)| revision != 0).fold(0, |all, (cell, _)| all | bit(cell))
}

/// The lane with these cells only.
pub(super) fn only(lane: Lane, cells: Bits) -> Lane {
    let mut kept = [0; CELLS];
    for ((cell, kept), revision) in (0..).zip(&mut kept).zip(lane) {
        *kept = if cells & bit(cell) == 0 { 0 } else { revision };
    }
    kept
}

/// The lease item. `cover` is its one checkpoint: low-water is the number of cells before the first gap, the bits
/// after the gap are the set done beyond it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Lease {
    /// 0 while there is no item.
    pub(super) epoch: u8,
    pub(super) owner: u8,
    pub(super) seq: u8,
    pub(super) cover: Bits,
}

/// What a worker has sent and has no answer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Pending {
    Nothing,
    Claim { epoch: u8, owner: u8 },
    Write { cover: Bits, park: Bits, free: Lane, release: bool },
}

/// What a process believes. All of it is lost in a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Worker {
    /// Its session; nobody's for a worker that is not there, because of the bound on workers or on sessions.
    pub(super) session: u8,
    /// It leaves: it claims nothing any more.
    pub(super) draining: bool,
    /// The epoch at which it holds the shard; 0 when it does not.
    pub(super) holds: u8,
    /// Number of its last settled write of this epoch.
    pub(super) seq: u8,
    /// Cells that the checkpoint covers, as far as it knows.
    pub(super) known: Bits,
    /// Cells finished since.
    pub(super) done: Bits,
    /// Cells that failed since.
    pub(super) failed: Bits,
    /// Parked cells, as it loaded or put them.
    pub(super) lane: Lane,
    /// Those of them that were retried with success since.
    pub(super) freed: Bits,
    pub(super) pending: Pending,
    /// Sessions that it saw in the list; used only where absence counts as death.
    pub(super) view: Bits,
}

impl Worker {
    pub(super) fn start(session: u8, view: Bits) -> Self {
        Self {
            session,
            draining: false,
            holds: 0,
            seq: 0,
            known: 0,
            done: 0,
            failed: 0,
            lane: [0; CELLS],
            freed: 0,
            pending: Pending::Nothing,
            view,
        }
    }

    /// Drops the window and what it waited for; the session goes on.
    pub(super) fn let_go(&mut self) {
        *self = Self { draining: self.draining, ..Self::start(self.session, self.view) };
    }

    /// Whether it hands over: nothing more is called then.
    pub(super) fn releasing(&self) -> bool {
        matches!(self.pending, Pending::Write { release: true, .. })
    }

    /// What a write would make of the checkpoint.
    pub(super) fn cover(&self) -> Bits {
        self.known | self.done | self.failed
    }
}

/// A request on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Request {
    /// `Ledger::claim`.
    Claim { by: u8, epoch: u8, owner: u8 },
    /// `Ledger::write`: checkpoint, lane changes and perhaps the hand-over in one transaction.
    Write {
        by: u8,
        epoch: u8,
        seq: u8,
        cover: Bits,
        park: Bits,
        free: Lane,
        release: bool,
        /// The checkpoint before; 0 but where a rule looks at it.
        before: Bits,
    },
    /// `Ledger::operate_parked`: the operator drops a parked cell that was read at this revision.
    Drop { cell: u8, revision: u8 },
    /// `Ledger::set_state`: a session says that it drains.
    Drain { by: u8 },
    /// `Ledger::beat`, of a session that has left; sent only where it is not refused.
    Beat { by: u8 },
    /// The release of a lease that a session does not hold; sent only where a late one differs from a prompt one.
    Release { by: u8 },
}

/// Broken invariants that only the step shows, not the state after it.
pub(super) mod broken {
    /// The checkpoint was moved by another than the lease's owner and epoch.
    pub(in super::super) const STRANGER_WROTE: u8 = 1;
    /// The checkpoint lost a cell without the operator.
    pub(in super::super) const WENT_BACK: u8 = 2;
    /// The epoch did not grow with a claim.
    pub(in super::super) const EPOCH_NOT_NEW: u8 = 4;
    /// A parked cell was changed under an epoch that has passed.
    pub(in super::super) const OLD_EPOCH_PARKED: u8 = 8;
    /// A heartbeat or a `draining` of a dead session was accepted.
    pub(in super::super) const DEAD_BEAT: u8 = 16;
    /// A write or a claim was applied whose session is dead.
    pub(in super::super) const DEAD_WROTE: u8 = 32;
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct State {
    pub(super) lease: Lease,
    pub(super) parked: Lane,
    /// Session items that are dead.
    pub(super) dead: Bits,
    /// Session items that say `draining`, or said so when they died.
    pub(super) draining: Bits,
    pub(super) workers: [Worker; WORKERS],
    /// Sorted, without repeats: a request that was sent may be applied at any later time, any number of times, or
    /// never.
    pub(super) requests: Vec<Request>,
    /// Cells that a handler finished since the operator last rewound over them.
    pub(super) finished: Bits,
    /// Cells that the operator skipped or dropped since then.
    pub(super) skipped: Bits,
    /// The epoch that the operator made last.
    pub(super) operated: u8,
    /// Of [`broken`].
    pub(super) broken: u8,
    /// How much of each of [`Bounds`](super::steps::Bounds) is used.
    pub(super) used: Used,
}

/// Counts of what is bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Used {
    pub(super) sessions: u8,
    pub(super) crashes: u8,
    pub(super) failures: u8,
    pub(super) operations: u8,
    pub(super) drops: u8,
    pub(super) drains: u8,
}

impl State {
    pub(super) fn is_dead(&self, session: u8) -> bool {
        session != NOBODY && self.dead & bit(session) != 0
    }

    /// Puts a request on its way, unless it is there already.
    pub(super) fn send(&mut self, request: Request) {
        if let Err(at) = self.requests.binary_search(&request) {
            self.requests.insert(at, request);
        }
    }

    /// Whether the lease names a session that does not hold it: nobody waits for the answer to that claim.
    pub(super) fn is_stray(&self) -> bool {
        let Lease { epoch, owner, .. } = self.lease;
        let waits = |worker: &Worker| matches!(worker.pending, Pending::Claim { epoch: seen, .. } if seen + 1 == epoch);
        let holds = |worker: &Worker| worker.session == owner && (worker.holds == epoch || waits(worker));
        owner != NOBODY && !self.workers.iter().any(holds)
    }

    /// Whether the lease is what this worker believes.
    pub(super) fn owns(&self, worker: &Worker) -> bool {
        self.lease.epoch == worker.holds && self.lease.owner == worker.session
    }

    /// Whether this worker works on what is no longer its own, although its session is in order and no operator
    /// took it away.
    pub(super) fn deceived(&self, worker: &Worker) -> bool {
        worker.holds != 0
            && !self.owns(worker)
            && !worker.releasing()
            && !self.is_dead(worker.session)
            && self.operated <= worker.holds
    }

    /// Sessions that anything still speaks of.
    pub(super) fn mentioned(&self) -> Bits {
        let owner = std::iter::once(self.lease.owner);
        let workers = self.workers.iter().map(|worker| worker.session);
        let requests = self.requests.iter().flat_map(|request| match *request {
            Request::Claim { by, owner, .. } => [by, owner],
            Request::Write { by, .. } | Request::Release { by, .. } | Request::Drain { by } | Request::Beat { by } => {
                [by, NOBODY]
            }
            Request::Drop { .. } => [NOBODY; 2],
        });
        owner.chain(workers).chain(requests).filter(|&id| id != NOBODY).fold(0, |all, id| all | bit(id))
    }
}
