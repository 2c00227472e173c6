//! One held shard's life in one loop: tail, dispatch, checkpoint.
//!
//! Plain state and one `select!` over closed events; no locks, and no task a cell: calls are futures of this loop. At most one
//! read of the log, and one write of the lease or one reading of the lanes, are under way at a time.

mod ring;
mod start;
mod write;

use crate::{
    cell::{
        AddedId, Epoch, Lane, LaneKind, Lease, LeaseWrite, Ledger, Millis, Name, Parked, SessionId, ShardRef,
        StoreError, TriggerId, TriggerRecord, TriggerState, chain, clock,
    },
    dispatch::{Attempted, Budget, Cursor, Next, Now, Trigger, attempt},
    lease::{Ended, Fence, Grant, nudge_all},
    metrics,
    store::Cells,
    tail::{Entry, Run, TailError, run},
};
use futures_util::{
    FutureExt, StreamExt,
    future::{BoxFuture, OptionFuture},
    stream::FuturesUnordered,
};
use ring::Ring;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::Instant,
};
use write::Wrote;

/// Lane changes of one write; the lease takes one action, and the store's transactions hold 100.
const LANE_CHANGES_MAX: usize = 90;
/// Cells that one read is aimed at.
const READ_CELLS: usize = 1000;
/// Segments that one read asks for at most.
const READ_SEGMENTS: u32 = 100;
/// Bytes that a read is taken for before the first one came back.
const READ_BYTES: usize = 64 << 10;
/// Calls that are started in one turn of the loop.
const CALLS_A_TURN: usize = 256;
/// While the fence is closed or the budget is used up, this is how often they are looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Rest of a shard that cannot be read until a person was there.
const STOPPED_REST: Duration = Duration::from_secs(30);
/// Parked cells of a page.
const LANE_PAGE: usize = 500;
/// What is told about a shard is told at most this often.
const TOLD: Duration = Duration::from_millis(500);

/// The triggers that this process works for, and their records as last read.
#[derive(Clone, Default)]
pub struct Triggers {
    /// At work.
    pub active: Arc<[Arc<Trigger>]>,
    /// Of the whole group.
    pub records: Arc<[TriggerRecord]>,
}

/// What a shard tells about one of its triggers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Low-water.
    pub low: AddedId,
    /// The tip, as heard.
    pub tip: AddedId,
    /// Cells up to the tip that are not finished.
    pub lag: u64,
    /// `created_at` of the oldest unfinished cell, when there is one.
    pub oldest: Option<Millis>,
    /// Parked cells: retrying, waiting, dead since the last resume.
    pub parked: (usize, usize, u64),
    /// Why nothing is called, if so.
    pub paused: Option<String>,
    /// Why the log cannot be read, if so.
    pub stopped: Option<String>,
}

/// By trigger.
type Told = BTreeMap<Name, Standing>;

/// What all shards of this process tell.
#[derive(Clone, Default)]
pub struct Standings(Arc<Mutex<BTreeMap<ShardRef, (Epoch, Told)>>>);

impl Standings {
    fn tell(&self, shard: &ShardRef, epoch: Epoch, told: Told) {
        self.all().insert(shard.clone(), (epoch, told));
    }

    /// As last told.
    #[must_use]
    pub fn read(&self) -> BTreeMap<ShardRef, Told> {
        self.all().iter().map(|(shard, (_, told))| (shard.clone(), told.clone())).collect()
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<ShardRef, (Epoch, Told)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes back what a shard task told when that ends, however it ends; not what the task of a later epoch tells.
struct Silence(Standings, ShardRef, Epoch);

impl Drop for Silence {
    fn drop(&mut self) {
        let Self(standings, shard, epoch) = self;
        let mut all = standings.all();
        if all.get(shard).is_some_and(|(told_at, _)| told_at == epoch) {
            all.remove(shard);
        }
    }
}

/// What every shard task of a process shares.
#[derive(Clone)]
pub struct Shared {
    /// Leases and lanes.
    pub ledger: Arc<dyn Ledger>,
    /// Fencing from the inside.
    pub fence: Fence,
    /// Memory of all windows and rings.
    pub budget: Budget,
    /// How long a finished cell may wait for its checkpoint.
    pub interval: Duration,
    /// What is told.
    pub standings: Standings,
}

/// All that a shard task is given.
pub struct Shard {
    /// Which one.
    pub shard: ShardRef,
    /// Its datastore.
    pub cells: Cells,
    /// The session that holds it.
    pub me: SessionId,
    /// The lease, and whether to hand it over.
    pub grant: watch::Receiver<Grant>,
    /// What to call.
    pub triggers: watch::Receiver<Triggers>,
    /// What all share.
    pub shared: Shared,
}

/// Work of the loop on the lease or the lanes; one at a time.
enum Books {
    Wrote(Wrote),
    Looked(Result<Vec<(usize, Vec<Parked>)>, StoreError>),
}

/// How the loop goes on.
enum Turn {
    On,
    /// The triggers changed: once nothing is in flight and all is written, begin again with the new ones.
    Rebuilt,
    Ended(Ended),
}

impl Shard {
    /// Runs until the shard is handed over or lost.
    pub async fn run(mut self) -> Ended {
        let lease = self.grant.borrow_and_update().lease.clone();
        let mut lease = Lease::clone(&lease);
        let _silence = Silence(self.shared.standings.clone(), self.shard.clone(), lease.epoch);
        loop {
            let set = self.triggers.borrow_and_update().clone();
            let mine = set.active.iter().filter(|trigger| trigger.config.source == self.shard.source);
            let mine: Vec<Arc<Trigger>> = mine.cloned().collect();
            // Before the lanes are read: what an operator does meanwhile is looked at again.
            let look = self.grant.borrow().look;
            match start::cursors(&self, &mut lease, &mine).await {
                Ok(cursors) => {
                    let mut at_work = AtWork::new(&self, lease, cursors, &set.records, look);
                    match at_work.run(&mut self).await {
                        Turn::Ended(ended) => return ended,
                        _ => lease = at_work.lease,
                    }
                }
                Err(start::NoStart::Lost) => return Ended::Lost,
                Err(start::NoStart::Later(error)) => {
                    // A shard that cannot start must rest before it tries again.
                    tracing::error!(shard = %self.shard, error, "this shard stands still");
                    self.stand_still(lease.epoch, &mine, &error);
                    let give = tokio::select! {
                        biased;
                        grant = self.grant.wait_for(|grant| grant.give_by.is_some()) => Some(grant.is_ok()),
                        _ = self.triggers.changed() => None,
                        () = tokio::time::sleep(STOPPED_REST) => None,
                    };
                    match give {
                        // Nothing is in hand, so there is nothing to write before it is given away.
                        Some(true) => return self.release(&lease).await,
                        Some(false) => return Ended::Lost,
                        None => {}
                    }
                }
            }
        }
    }

    fn stand_still(&self, epoch: Epoch, triggers: &[Arc<Trigger>], error: &str) {
        let standing = Standing { stopped: Some(error.to_owned()), ..Standing::default() };
        let standings = triggers.iter().map(|trigger| (trigger.name.clone(), standing.clone()));
        self.shared.standings.tell(&self.shard, epoch, standings.collect());
    }

    async fn release(&self, lease: &Lease) -> Ended {
        let write = LeaseWrite {
            shard: self.shard.clone(),
            owner: self.me.clone(),
            epoch: lease.epoch,
            seq: lease.seq + 1,
            checkpoints: BTreeMap::new(),
            lanes: Vec::new(),
            release: true,
        };
        match write::write(self.shared.ledger.clone(), self.shared.fence.clone(), write).await {
            Wrote::Accepted(_) => Ended::Released,
            Wrote::LaneChanged | Wrote::Lost => Ended::Lost,
        }
    }
}

/// The loop's state between two starts.
struct AtWork {
    shard: ShardRef,
    cells: Cells,
    me: SessionId,
    shared: Shared,
    lease: Lease,
    epoch: Epoch,
    cursors: Vec<Cursor>,
    /// Whether a cursor has asked for a slot.
    asked: Vec<bool>,
    slots: FuturesUnordered<BoxFuture<'static, (usize, OwnedSemaphorePermit)>>,
    calls: FuturesUnordered<BoxFuture<'static, Attempted>>,
    ring: Ring,
    read: OptionFuture<BoxFuture<'static, (AddedId, Result<Run, TailError>)>>,
    reading: bool,
    read_segments: u32,
    read_bytes: usize,
    /// Not read before then.
    read_rests: Option<Instant>,
    read_failures: u32,
    stopped: Option<String>,
    turn: usize,
    books: OptionFuture<BoxFuture<'static, Books>>,
    booking: bool,
    /// Cursors that the write under way is about.
    written: Vec<usize>,
    releasing: bool,
    look: u64,
    look_due: bool,
    give_by: Option<Instant>,
    rebuild: bool,
    tip: watch::Receiver<AddedId>,
    told: Instant,
    tell_due: bool,
    chores: FuturesUnordered<BoxFuture<'static, ()>>,
}

impl AtWork {
    fn new(home: &Shard, lease: Lease, cursors: Vec<Cursor>, records: &[TriggerRecord], look: u64) -> Self {
        let grant = home.grant.borrow();
        let mut at_work = Self {
            shard: home.shard.clone(),
            cells: home.cells.clone(),
            me: home.me.clone(),
            shared: home.shared.clone(),
            epoch: lease.epoch,
            lease,
            asked: vec![false; cursors.len()],
            cursors,
            slots: FuturesUnordered::new(),
            calls: FuturesUnordered::new(),
            ring: Ring::default(),
            read: None.into(),
            reading: false,
            read_segments: 8,
            read_bytes: READ_BYTES,
            read_rests: None,
            read_failures: 0,
            stopped: None,
            turn: 0,
            books: None.into(),
            booking: false,
            written: Vec::new(),
            releasing: false,
            look: grant.look,
            look_due: grant.look > look,
            give_by: grant.give_by,
            rebuild: false,
            tip: home.cells.tip(home.shard.shard),
            told: Instant::now() - TOLD,
            tell_due: true,
            chores: FuturesUnordered::new(),
        };
        drop(grant);
        at_work.follow(records);
        at_work
    }

    async fn run(&mut self, home: &mut Shard) -> Turn {
        loop {
            let now = Now { instant: Instant::now(), wall: clock::wall() };
            match self.advance(now) {
                Turn::On => {}
                turn => return turn,
            }
            let timer = self.timer(now);
            tokio::select! {
                biased;
                Some(attempted) = self.calls.next(), if !self.calls.is_empty() => {
                    let now = Now { instant: Instant::now(), wall: clock::wall() };
                    self.settle(attempted, now);
                    // Whatever else has ended meanwhile, in the same turn.
                    for _ in 0..CALLS_A_TURN {
                        match self.calls.next().now_or_never() {
                            Some(Some(attempted)) => self.settle(attempted, now),
                            _ => break,
                        }
                    }
                }
                Some(books) = &mut self.books, if self.booking => {
                    self.booking = false;
                    let now = Now { instant: Instant::now(), wall: clock::wall() };
                    if let Some(ended) = self.book(books, now) {
                        return Turn::Ended(ended);
                    }
                }
                Some((after, result)) = &mut self.read, if self.reading => {
                    self.reading = false;
                    self.on_read(after, result);
                }
                Some((cursor, permit)) = self.slots.next(), if !self.slots.is_empty() => {
                    self.asked[cursor] = false;
                    let now = Now { instant: Instant::now(), wall: clock::wall() };
                    self.call(cursor, permit, now);
                }
                changed = home.grant.changed() => {
                    if changed.is_err() {
                        // The coordinator dropped it; what is in flight is not ours to finish.
                        return Turn::Ended(Ended::Lost);
                    }
                    let grant = home.grant.borrow_and_update();
                    self.give_by = grant.give_by;
                    self.look_due |= grant.look > self.look;
                    self.look = grant.look;
                }
                changed = home.triggers.changed() => {
                    if changed.is_err() {
                        return Turn::Ended(Ended::Lost);
                    }
                    let set = home.triggers.borrow_and_update().clone();
                    self.follow(&set.records);
                    let mine = set.active.iter().filter(|trigger| trigger.config.source == self.shard.source);
                    let now_mine: Vec<*const Trigger> = mine.map(Arc::as_ptr).collect();
                    let before: Vec<*const Trigger> = self.cursors.iter().map(|c| Arc::as_ptr(c.trigger())).collect();
                    self.rebuild |= now_mine != before;
                }
                Ok(()) = self.tip.changed() => { let _ = self.tip.borrow_and_update(); }
                Some(()) = self.chores.next(), if !self.chores.is_empty() => {}
                () = sleep_until(timer) => {}
            }
            self.tell_due = true;
        }
    }

    fn leaving(&self) -> bool {
        self.give_by.is_some() || self.rebuild
    }

    /// Everything that can be begun now.
    fn advance(&mut self, now: Now) -> Turn {
        let safe = self.shared.fence.is_safe();
        for cursor in &mut self.cursors {
            cursor.wake(now);
        }
        if self.leaving() {
            let in_flight = self.cursors.iter().any(|cursor| cursor.in_flight() > 0);
            let late = self.give_by.is_some_and(|by| now.instant >= by);
            if in_flight && late {
                tracing::warn!(shard = %self.shard, "calls still run at the drain deadline: they will be made again");
            }
            if (!in_flight || late) && !self.booking && self.cursors.iter().all(Cursor::is_clean) {
                if self.give_by.is_none() {
                    return Turn::Rebuilt;
                }
                self.start_write(true);
            }
        } else if safe {
            self.feed(now);
            self.start_calls(now);
            self.start_read(now);
        }
        if safe && !self.booking {
            if self.look_due {
                self.start_look();
            } else if self.cursors.iter().any(|cursor| {
                let interval = if self.leaving() { Duration::ZERO } else { self.shared.interval };
                cursor.write_due(interval).is_some_and(|due| due <= now.instant)
            }) {
                self.start_write(false);
            }
        }
        self.start_pauses();
        self.tell(now);
        Turn::On
    }

    /// When to turn the loop although nothing happened.
    fn timer(&self, now: Now) -> Option<Instant> {
        let mut at: Option<Instant> = None;
        let mut by = |other: Option<Instant>| at = [at, other].into_iter().flatten().min();
        if !self.shared.fence.is_safe() {
            // Nothing may be begun, whatever is due.
            return Some(now.instant + LOOK);
        }
        by(self.give_by.filter(|by| *by > now.instant));
        if !self.booking {
            let interval = if self.leaving() { Duration::ZERO } else { self.shared.interval };
            by(self.cursors.iter().filter_map(|cursor| cursor.write_due(interval)).min());
        }
        if !self.leaving() {
            by(self.read_rests);
            for (cursor, asked) in self.cursors.iter().zip(&self.asked) {
                match cursor.next(now) {
                    Next::At(at) => by(Some(at)),
                    Next::Call if !asked => by(Some(now.instant + LOOK)),
                    Next::Call | Next::Idle => {}
                }
            }
        }
        if self.tell_due && self.told + TOLD > now.instant {
            by(Some(self.told + TOLD));
        }
        at
    }

    // ---- reading ----

    /// Hands what was read to the cursors that come to it.
    fn feed(&mut self, now: Now) {
        for cursor in &mut self.cursors {
            while let Some(at) = cursor.wants() {
                let Some((chunk, last)) = self.ring.after(at) else { break };
                match &chunk.entry {
                    Entry::Cells(cells) => cursor.admit(cells, &chunk.ballast, now),
                    Entry::Trimmed { .. } => {
                        tracing::warn!(shard = %self.shard, trigger = %cursor.trigger().name, from = %at.next(), to = %last,
                            "passed a trimmed part of the log");
                        metrics::trim_met(cursor.trigger().name.as_str(), last.0 - at.0);
                        cursor.pass(last, now);
                    }
                    Entry::Damaged { reason, .. } => {
                        tracing::error!(shard = %self.shard, trigger = %cursor.trigger().name, from = %at.next(), to = %last,
                            reason, "a damaged part of the log is parked");
                        cursor.damaged(last, reason, now);
                    }
                }
                if cursor.at() == at {
                    break;
                }
            }
        }
        self.ring.trim(self.cursors.iter().map(Cursor::at));
    }

    /// Reads on for the next cursor in turn that wants what is not there.
    fn start_read(&mut self, now: Now) {
        if self.reading || self.cursors.is_empty() || self.read_rests.is_some_and(|at| at > now.instant) {
            return;
        }
        self.read_rests = None;
        let tip = *self.tip.borrow();
        let n = self.cursors.len();
        let turn = self.turn;
        let hungry = (0..n).map(|i| (turn + i) % n).find_map(|i| {
            let at = self.cursors[i].wants()?;
            (at < tip && self.ring.after(at).is_none()).then_some((i, at))
        });
        let Some((i, after)) = hungry else { return };
        // Whoever holds nothing may read one segment on credit: everybody else's memory comes free only as they go on.
        let holds_nothing = self.ring.is_empty() && self.cursors.iter().all(Cursor::holds_nothing);
        let limit = match self.shared.budget.left() {
            left if left >= self.read_bytes => self.read_segments,
            _ if holds_nothing => 1,
            _ => {
                self.read_rests = Some(now.instant + LOOK);
                return;
            }
        };
        self.turn = i + 1;
        let (log, shard) = (self.cells.log().clone(), self.shard.shard);
        self.reading = true;
        self.read = Some(async move { (after, run(&*log, shard, after, limit, tip).await) }.boxed()).into();
    }

    fn on_read(&mut self, after: AddedId, result: Result<Run, TailError>) {
        let now = Instant::now();
        match result {
            Ok(run) => {
                self.read_failures = 0;
                self.stopped = None;
                let cells = |entry: &Entry| match entry {
                    Entry::Cells(cells) => cells.len(),
                    Entry::Trimmed { .. } | Entry::Damaged { .. } => READ_CELLS,
                };
                let (segments, cells) = (run.entries.len(), run.entries.iter().map(cells).sum::<usize>());
                if run.end(after) == after {
                    // The tip was heard of before this read could see it.
                    self.read_rests = Some(now + Duration::from_millis(20));
                }
                if segments as u64 >= u64::from(self.read_segments) && cells * 2 <= READ_CELLS {
                    self.read_segments = (self.read_segments * 2).min(READ_SEGMENTS);
                } else if cells >= READ_CELLS * 2 {
                    self.read_segments = (self.read_segments / 2).max(1);
                }
                let budget = &self.shared.budget;
                for entry in run.entries {
                    self.ring.insert(entry, budget);
                }
                self.read_bytes = self.ring.bytes().max(READ_BYTES);
            }
            Err(error) => {
                self.read_failures += 1;
                let text = chain(&error);
                let passing = error.may_pass();
                if self.stopped.as_ref() != Some(&text) && (!passing || self.read_failures == 3) {
                    tracing::error!(shard = %self.shard, error = text, "this shard cannot be read");
                    if let TailError::Hole { .. } = error {
                        metrics::hole_met(self.shard.source.as_str());
                    }
                    self.stopped = Some(text);
                }
                let wait = if passing {
                    Duration::from_millis(50).saturating_mul(1 << self.read_failures.min(7)).min(Duration::from_secs(5))
                } else {
                    STOPPED_REST
                };
                self.read_rests = Some(now + wait.mul_f64(0.5 + fastrand::f64() / 2.0));
            }
        }
    }

    // ---- calling ----

    fn start_calls(&mut self, now: Now) {
        for i in 0..self.cursors.len() {
            for _ in 0..CALLS_A_TURN {
                if self.asked[i] || self.cursors[i].next(now) != Next::Call {
                    break;
                }
                let slots = self.cursors[i].trigger().slots.clone();
                match slots.clone().try_acquire_owned() {
                    Ok(permit) => {
                        if !self.call(i, permit, now) {
                            break;
                        }
                    }
                    Err(_) => {
                        self.asked[i] = true;
                        self.slots.push(
                            async move { (i, slots.acquire_owned().await.expect("slots are never closed")) }.boxed(),
                        );
                    }
                }
            }
        }
    }

    /// Starts one call; `false` when there was nothing to call after all.
    fn call(&mut self, cursor: usize, permit: OwnedSemaphorePermit, now: Now) -> bool {
        if self.leaving() || !self.shared.fence.is_safe() {
            return false;
        }
        let Some((items, probe)) = self.cursors[cursor].take(now) else { return false };
        let trigger = self.cursors[cursor].trigger().clone();
        self.calls.push(attempt(trigger, cursor, self.epoch, items, probe, permit).boxed());
        true
    }

    fn settle(&mut self, attempted: Attempted, now: Now) {
        let cursor = &mut self.cursors[attempted.cursor];
        for (item, verdict) in attempted.items {
            cursor.settle(item, verdict, attempted.probe, now);
        }
    }

    /// Handlers that asked for a pause of their trigger.
    fn start_pauses(&mut self) {
        for cursor in &mut self.cursors {
            if let Some(reason) = cursor.take_pause_wish() {
                let ledger = self.shared.ledger.clone();
                let (name, id) = (cursor.trigger().name.clone(), cursor.trigger().record.id.clone());
                tracing::error!(trigger = %name, reason, "its handler asks for a pause: not called until resumed");
                self.chores.push(
                    async move {
                        if let Err(error) = pause(&*ledger, &id, reason).await {
                            tracing::warn!(trigger = %name, error = %chain(&error), "the pause could not be stored");
                        }
                    }
                    .boxed(),
                );
            }
        }
    }

    fn follow(&mut self, records: &[TriggerRecord]) {
        for cursor in &mut self.cursors {
            if let Some(record) = records.iter().find(|record| record.id == cursor.trigger().record.id) {
                cursor.follow(record);
            }
        }
    }

    // ---- the lease and the lanes ----

    fn start_write(&mut self, release: bool) {
        let mut room = LANE_CHANGES_MAX;
        let mut write = LeaseWrite {
            shard: self.shard.clone(),
            owner: self.me.clone(),
            epoch: self.epoch,
            seq: self.lease.seq + 1,
            checkpoints: BTreeMap::new(),
            lanes: Vec::new(),
            release,
        };
        self.written.clear();
        for (i, cursor) in self.cursors.iter_mut().enumerate() {
            if cursor.is_clean() && !release {
                continue;
            }
            let (checkpoint, lanes) = cursor.fill(room);
            room -= lanes.len();
            write.checkpoints.insert(cursor.trigger().record.id.clone(), checkpoint);
            write.lanes.extend(lanes);
            self.written.push(i);
        }
        self.releasing = release;
        let (ledger, fence) = (self.shared.ledger.clone(), self.shared.fence.clone());
        self.booking = true;
        self.books = Some(async move { Books::Wrote(write::write(ledger, fence, write).await) }.boxed()).into();
    }

    /// Reads all active lanes: an operator was there.
    fn start_look(&mut self) {
        self.look_due = false;
        let ledger = self.shared.ledger.clone();
        let lanes: Vec<(usize, Lane)> =
            self.cursors.iter().enumerate().map(|(i, cursor)| (i, active_lane(cursor, &self.shard))).collect();
        self.booking = true;
        self.books = Some(
            async move {
                let mut all = Vec::with_capacity(lanes.len());
                for (i, lane) in lanes {
                    match read_lane(&*ledger, &lane).await {
                        Ok(parked) => all.push((i, parked)),
                        Err(error) => return Books::Looked(Err(error)),
                    }
                }
                Books::Looked(Ok(all))
            }
            .boxed(),
        )
        .into();
    }

    fn book(&mut self, books: Books, now: Now) -> Option<Ended> {
        match books {
            Books::Wrote(Wrote::Accepted(lease)) => {
                self.lease = *lease;
                for i in std::mem::take(&mut self.written) {
                    self.cursors[i].written(now);
                }
                if self.releasing {
                    return Some(Ended::Released);
                }
            }
            Books::Wrote(Wrote::LaneChanged) => {
                for i in std::mem::take(&mut self.written) {
                    self.cursors[i].unsent(now);
                }
                self.start_look();
            }
            Books::Wrote(Wrote::Lost) => return Some(Ended::Lost),
            Books::Looked(Ok(all)) => {
                for (i, parked) in all {
                    self.cursors[i].reconcile(parked, now);
                }
            }
            Books::Looked(Err(error)) => {
                tracing::warn!(shard = %self.shard, error = %chain(&error), "cannot read the parked cells; trying again");
                self.look_due = true;
                self.booking = true;
                self.books = Some(
                    async {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        Books::Looked(Ok(Vec::new()))
                    }
                    .boxed(),
                )
                .into();
            }
        }
        None
    }

    fn tell(&mut self, now: Now) {
        if !self.tell_due || self.told + TOLD > now.instant {
            return;
        }
        self.told = now.instant;
        self.tell_due = false;
        let tip = *self.tip.borrow();
        let standings = self.cursors.iter().map(|cursor| {
            let (retrying, waiting) = cursor.parked();
            let lag = cursor.lag(tip);
            let standing = Standing {
                low: cursor.low(),
                tip,
                lag,
                oldest: (lag > 0).then(|| cursor.oldest()).flatten(),
                parked: (retrying, waiting, cursor.dead()),
                paused: cursor.pause().map(str::to_owned),
                stopped: self.stopped.clone(),
            };
            (cursor.trigger().name.clone(), standing)
        });
        self.shared.standings.tell(&self.shard, self.epoch, standings.collect());
    }
}

fn active_lane(cursor: &Cursor, shard: &ShardRef) -> Lane {
    Lane { trigger: cursor.trigger().record.id.clone(), shard: shard.clone(), kind: LaneKind::Active }
}

/// All of a lane.
async fn read_lane(ledger: &dyn Ledger, lane: &Lane) -> Result<Vec<Parked>, StoreError> {
    let mut all: Vec<Parked> = Vec::new();
    loop {
        let after = all.last().map_or(AddedId(0), |parked| parked.added_id);
        let page = ledger.parked(lane, after, LANE_PAGE).await?;
        let whole = page.len() < LANE_PAGE;
        all.extend(page);
        if whole {
            return Ok(all);
        }
    }
}

/// Stores the pause of a trigger and tells all live sessions.
async fn pause(ledger: &dyn Ledger, id: &TriggerId, reason: String) -> Result<(), StoreError> {
    let Some(record) = ledger.triggers().await?.into_iter().find(|record| record.id == *id) else { return Ok(()) };
    if record.state == TriggerState::Active {
        ledger.update_trigger(&TriggerRecord { state: TriggerState::Paused { reason }, ..record }).await?;
    }
    nudge_all(ledger).await
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
