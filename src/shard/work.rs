//! The loop of a held shard.

mod guard;
mod tell;

use super::{
    Follower, Home, Triggers, lane,
    pause::{Wish, pause},
    read_graves, read_lane,
    ring::{self, Ring},
    signals::{Signal, signals},
    start::{NoStart, Started, start},
    write::{Trouble, Wrote, write},
};
use crate::{
    cell::{
        AddedId, Alone, Epoch, Go, Lane, LaneKind, Lease, LeaseWrite, Millis, Parked, StoreError, TriggerId,
        TriggerRecord, chain, clock, planted,
    },
    dispatch::{Attempted, Cursor, May, Next, Now, Pages, Trigger, attempt},
    lease::{Ended, Fence, Gone, Grant},
    metrics,
    store::segment,
    tail::{Entry, Run, TailError, run},
};
use futures_util::{
    FutureExt, StreamExt,
    future::{BoxFuture, OptionFuture},
    stream::FuturesUnordered,
};
use guard::Guard;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::Instant,
};

/// Lane changes of one write; the lease takes one action, and the store's transactions hold 100.
const LANE_CHANGES_MAX: usize = 90;
/// Checkpoints of one write; an expression of the store ends at 4 KB. More than the 32 triggers that a source has, since those that
/// were replaced write until they have finished.
const CHECKPOINTS_MAX: usize = 64;
/// Cells that one read is aimed at.
const READ_CELLS: usize = 1000;
/// Bytes that one read is aimed at, in memory.
const READ_BYTES: usize = 2 << 20;
/// Segments that one read asks for at most.
const READ_SEGMENTS: u32 = 100;
/// Calls that are started in one turn of the loop.
const CALLS_A_TURN: usize = 256;
/// While the fence is closed, or a trigger's memory is used up, this is how often it is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// First rest after something that may pass failed; longest one.
const RESTS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Rest of what cannot go on until a person was there.
const STOPPED_REST: Duration = Duration::from_secs(30);
/// What is told about a shard is told at most this often.
const TOLD: Duration = Duration::from_millis(500);

/// Work on the lease or the lanes; one at a time.
enum Books {
    Started(Started),
    Wrote(Wrote),
    Looked(Result<Vec<Looked>, StoreError>),
}

/// What lies in the lanes of a cursor.
struct Looked {
    number: u64,
    active: Vec<Parked>,
    /// `None` where none were known before: only the owner adds to them.
    dead: Option<BTreeMap<AddedId, Millis>>,
}

/// A read that ended: after which place, what paid for it, and what came.
type Read = (AddedId, Pages, Result<Run, TailError>);

/// A cursor at work.
struct Held {
    cursor: Cursor,
    /// It has asked for a slot.
    asked: bool,
    /// Its trigger was changed or taken away: it finishes what is in flight, writes, and goes.
    leaving: bool,
    /// Its trigger was retired: it is leaving, and nothing more is written for it.
    retired: bool,
}

impl Held {
    fn new(cursor: Cursor) -> Self {
        Self { cursor, asked: false, leaving: false, retired: false }
    }

    /// Takes the triggers as they are now.
    fn follow(&mut self, wanted: &[Arc<Trigger>], records: &[TriggerRecord], gone: &BTreeMap<TriggerId, Gone>) {
        let trigger = self.cursor.trigger();
        let id = &trigger.record.id;
        self.retired = matches!(gone.get(id), Some(Gone::Retired(_))) && !planted::is("a retired trigger is called on");
        self.leaving = self.retired || !wanted.iter().any(|wanted| Arc::ptr_eq(wanted, trigger));
        if let Some(record) = records.iter().find(|record| record.id == *id) {
            self.cursor.follow(record);
        }
    }

    fn is_idle(&self) -> bool {
        self.cursor.in_flight() == 0 && self.is_written()
    }

    /// Whether nothing of it is to be written.
    fn is_written(&self) -> bool {
        self.retired || self.cursor.is_clean()
    }
}

/// The loop's state.
pub(super) struct Work {
    home: Arc<Home>,
    grant: watch::Receiver<Grant>,
    triggers: Follower<Triggers>,
    rounds: Follower<u64>,
    /// The triggers that shall be at work here.
    wanted: Vec<Arc<Trigger>>,
    records: Arc<[TriggerRecord]>,
    gone: Arc<BTreeMap<TriggerId, Gone>>,
    /// With the checkpoints of those triggers that are not at work here.
    lease: Lease,
    epoch: Epoch,
    /// `seq` of the last write; every write has one of its own.
    seq: u64,
    /// Whether calls may begin, and answers be written.
    may: May,
    /// By number, which is never used again. In boxes: a map has room for eleven from the first one on, in each of thousands of
    /// idle shards.
    cursors: BTreeMap<u64, Box<Held>>,
    next_number: u64,
    start_rests: Option<Instant>,
    start_failures: u32,
    /// Why cursors could not be made, if so.
    start_error: Option<String>,
    slots: FuturesUnordered<BoxFuture<'static, (u64, OwnedSemaphorePermit)>>,
    calls: FuturesUnordered<BoxFuture<'static, Attempted>>,
    ring: Ring,
    /// Memory that is waited for: a read that could not be paid.
    room: OptionFuture<BoxFuture<'static, Pages>>,
    waiting: bool,
    paid: Option<Pages>,
    read: OptionFuture<BoxFuture<'static, Read>>,
    reading: bool,
    read_segments: u32,
    segment_bytes: usize,
    /// Not read before then.
    read_rests: Option<Instant>,
    /// Where the last read failed, and how many did in a row. A read elsewhere, for a cursor that is further, ends nothing.
    read_failed: Option<(AddedId, u32)>,
    stopped: Option<String>,
    /// The cursor that was read for last.
    turn: u64,
    books: OptionFuture<BoxFuture<'static, Books>>,
    booking: bool,
    /// Cursors that the write under way is about, and the cell that it says is called alone.
    written: Vec<u64>,
    wrote_alone: Option<Alone>,
    guard: Guard,
    releasing: bool,
    /// Writes in a row that an operator's change refused, and until when they rest.
    lane_refusals: u32,
    write_rests: Option<Instant>,
    trouble: Arc<Trouble>,
    look: u64,
    look_due: bool,
    give_by: Option<Instant>,
    late_told: bool,
    tip: watch::Receiver<AddedId>,
    told: Instant,
    tell_due: bool,
    chores: FuturesUnordered<BoxFuture<'static, ()>>,
}

impl Work {
    pub(super) fn new(
        home: Arc<Home>,
        mut grant: watch::Receiver<Grant>,
        triggers: Follower<Triggers>,
        rounds: Follower<u64>,
    ) -> Self {
        let (lease, look, give_by) = {
            let grant = grant.borrow_and_update();
            (Lease::clone(&grant.lease), grant.look, grant.give_by)
        };
        let tip = home.cells.tip(home.shard.shard);
        let may = |so: fn(&Fence) -> bool| {
            let (fence, turns) = (home.fence.clone(), home.turns.clone());
            Go::while_it(move || so(&fence) && !turns.is_given_up())
        };
        let may = May { call: may(Fence::may_call), write: may(Fence::is_safe) };
        let mut work = Self {
            home,
            grant,
            triggers,
            rounds,
            wanted: Vec::new(),
            records: Arc::new([]),
            gone: Arc::default(),
            epoch: lease.epoch,
            seq: lease.seq,
            guard: Guard::new(lease.alone.clone()),
            lease,
            may,
            cursors: BTreeMap::new(),
            next_number: 0,
            start_rests: None,
            start_failures: 0,
            start_error: None,
            slots: FuturesUnordered::new(),
            calls: FuturesUnordered::new(),
            ring: Ring::default(),
            room: None.into(),
            waiting: false,
            paid: None,
            read: None.into(),
            reading: false,
            read_segments: 1,
            segment_bytes: segment::RAW_MAX,
            read_rests: None,
            read_failed: None,
            stopped: None,
            turn: 0,
            books: None.into(),
            booking: false,
            written: Vec::new(),
            wrote_alone: None,
            releasing: false,
            lane_refusals: 0,
            write_rests: None,
            trouble: Arc::new(watch::Sender::new(None)),
            look,
            look_due: false,
            give_by,
            late_told: false,
            tip,
            told: clock::now() - TOLD,
            tell_due: true,
            chores: FuturesUnordered::new(),
        };
        work.follow();
        work
    }

    pub(super) async fn run(mut self: Box<Self>) -> Ended {
        let mut signals = signals(
            self.grant.clone(),
            self.tip.clone(),
            self.trouble.subscribe(),
            self.home.shared.foreign.clone(),
            self.triggers.clone(),
            self.rounds.clone(),
        );
        let budget = self.home.shared.budget.clone();
        loop {
            self.home.turns.turn();
            if self.home.turns.is_given_up() {
                return Ended::Lost;
            }
            let longer_queue = budget.longer_queue();
            let now = now();
            self.advance(now);
            let timer = self.timer(now);
            tokio::select! {
                biased;
                Some(attempted) = self.calls.next(), if !self.calls.is_empty() => {
                    let now = self::now();
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
                    // What has ended is let go of: it holds memory, in each of thousands of idle shards.
                    (self.books, self.booking) = (None.into(), false);
                    if let Some(ended) = self.book(books, self::now()) {
                        return ended;
                    }
                }
                Some(ready) = &mut self.guard.ready, if self.guard.waiting => self.on_ready(ready, self::now()),
                Some((after, paid, result)) = &mut self.read, if self.reading => {
                    (self.read, self.reading) = (None.into(), false);
                    self.on_read(after, paid, result);
                }
                Some(paid) = &mut self.room, if self.waiting => {
                    (self.room, self.waiting) = (None.into(), false);
                    self.paid = Some(paid);
                }
                Some((number, permit)) = self.slots.next(), if !self.slots.is_empty() => {
                    if let Some(held) = self.cursors.get_mut(&number) {
                        held.asked = false;
                        self.call(number, permit, self::now());
                    }
                }
                Some(signal) = signals.next() => match signal {
                    Signal::Grant => {
                        let grant = self.grant.borrow();
                        self.give_by = grant.give_by;
                        self.look_due |= grant.look > self.look;
                        self.look = grant.look;
                    }
                    // What is in flight is not ours to finish.
                    Signal::Dropped => return Ended::Lost,
                    Signal::Triggers => self.follow(),
                    Signal::Other => {}
                    // Nothing happened that were to be told.
                    Signal::Round => continue,
                },
                () = longer_queue, if !self.ring.is_empty() => self.shed(),
                Some(()) = self.chores.next(), if !self.chores.is_empty() => {}
                () = sleep_until(timer) => {}
            }
            self.tell_due = true;
        }
    }

    /// Takes the triggers as they are now.
    fn follow(&mut self) {
        let Triggers { active, records, gone } = self.triggers.get();
        let mine = active.iter().filter(|trigger| trigger.config.source == self.home.shard.source);
        self.wanted = mine.cloned().collect();
        (self.records, self.gone) = (records, gone);
        self.start_rests = None;
        for held in self.cursors.values_mut() {
            held.follow(&self.wanted, &self.records, &self.gone);
        }
    }

    /// Wanted triggers that are not at work. One whose older form still finishes has to wait: they share a checkpoint.
    fn missing(&self) -> impl Iterator<Item = &Arc<Trigger>> {
        let at_work =
            |trigger: &Trigger| self.cursors.values().any(|held| held.cursor.trigger().record.id == trigger.record.id);
        self.wanted.iter().filter(move |trigger| !at_work(trigger))
    }

    /// Everything that can be begun now.
    fn advance(&mut self, now: Now) {
        let safe = self.home.fence.is_safe();
        for held in self.cursors.values_mut() {
            held.cursor.wake(now);
        }
        // Before anything is written or handed over: a pause is stored by a chore of its own.
        self.start_pauses();
        let foreign = self.is_foreign();
        if self.give_by.is_some() || foreign {
            // Nothing more is read: the memory is the others'.
            (self.room, self.waiting, self.paid) = (None.into(), false, None);
        }
        if self.give_by.is_some() {
            self.stand_down(now);
            self.drain(now);
        } else if self.home.fence.may_call() {
            self.dismiss();
            self.feed(now);
            if !foreign {
                self.start_calls(now);
                self.start_read(now);
            }
        }
        if safe && !self.booking {
            let rests = |until: Option<Instant>| until.is_some_and(|until| until > now.instant);
            if self.look_due && !self.cursors.is_empty() {
                self.start_look();
            } else if self.write_due(now).is_some_and(|due| due <= now.instant) && !rests(self.write_rests) {
                self.start_write(false);
            } else if self.may_start() && !rests(self.start_rests) {
                self.start_cursors();
            }
        }
        self.tell(now);
    }

    /// Whether cursors are missing that may be made. Not on tables that are another datastore's: their places mean nothing here.
    fn may_start(&self) -> bool {
        self.give_by.is_none() && !self.is_foreign() && self.missing().next().is_some()
    }

    /// Cursors that were to leave and have written everything go. Not while something is written or started: the one may be about
    /// them, and the other has a copy of the checkpoints.
    fn dismiss(&mut self) {
        if self.booking {
            return;
        }
        let gone = self.cursors.extract_if(.., |_, held| held.leaving && held.is_idle());
        let gone = gone.map(|(_, held)| (held.cursor.trigger().record.id.clone(), held.cursor.checkpoint()));
        self.lease.checkpoints.extend(gone);
    }

    /// Finishes what is in flight, until the deadline, and hands over.
    fn drain(&mut self, now: Now) {
        let late = self.give_by.is_some_and(|by| now.instant >= by);
        let busy = self.cursors.values().any(|held| held.cursor.in_flight() > 0) || !self.chores.is_empty();
        if busy && late && !std::mem::replace(&mut self.late_told, true) {
            tracing::warn!(shard = %self.home.shard, "calls still run at the drain deadline: they will be made again");
        }
        let rests = self.write_rests.is_some_and(|until| until > now.instant);
        if (!busy || late) && !self.booking && !rests && self.cursors.values().all(|held| held.is_written()) {
            self.start_write(true);
        }
    }

    /// When something is to be written.
    fn write_due(&self, now: Now) -> Option<Instant> {
        let due = |held: &Held| {
            let at_once = held.leaving || self.give_by.is_some();
            held.cursor.write_due(if at_once { Duration::ZERO } else { self.home.shared.interval })
        };
        let cursors = self.cursors.values().filter(|held| !held.retired).filter_map(|held| due(held));
        let at_once = if planted::is("what is due at once is due a moment later") { clock::now() } else { now.instant };
        cursors.chain(self.guard.wants_write().then_some(at_once)).min()
    }

    /// When to turn the loop although nothing happened.
    fn timer(&self, now: Now) -> Option<Instant> {
        let mut at: Option<Instant> = None;
        let mut by = |other: Option<Instant>| at = [at, other].into_iter().flatten().min();
        if !self.home.fence.is_safe() {
            // Nothing may be begun, whatever is due.
            return Some(now.instant + LOOK);
        }
        by(self.give_by.filter(|by| *by > now.instant));
        if !self.booking {
            by(self.write_due(now).map(|due| self.write_rests.map_or(due, |rests| rests.max(due))));
            by(self.write_rests.filter(|rests| self.give_by.is_some() && *rests > now.instant));
            if self.may_start() {
                by(self.start_rests);
            }
        }
        if self.give_by.is_none() && !self.is_foreign() {
            by(self.read_rests);
            for held in self.cursors.values().filter(|held| !held.leaving) {
                if held.cursor.is_starved() {
                    by(Some(now.instant + LOOK));
                }
                match held.cursor.next(now) {
                    Next::At(at) => by(Some(at)),
                    Next::Call if !held.asked && self.guard.is_idle() => by(Some(now.instant + LOOK)),
                    Next::Call | Next::Idle => {}
                }
            }
        }
        if self.tell_due && self.told + TOLD > now.instant {
            by(Some(self.told + TOLD));
        }
        at
    }

    /// Whether the tables of the datastore are not those that this process opened.
    fn is_foreign(&self) -> bool {
        self.home.shared.foreign.borrow().contains_key(&self.home.shard.source)
    }

    // ---- reading ----

    /// Hands what was read to the cursors that come to it.
    fn feed(&mut self, now: Now) {
        let shard = &self.home.shard;
        for held in self.cursors.values_mut().filter(|held| !held.leaving) {
            let cursor = &mut held.cursor;
            cursor.look_for_memory();
            while let Some(at) = cursor.wants() {
                let Some((chunk, last)) = self.ring.after(at) else { break };
                match &chunk.entry {
                    Entry::Cells(cells) => cursor.admit(cells, chunk.bytes, now),
                    Entry::Trimmed { .. } => {
                        tracing::warn!(%shard, trigger = %cursor.trigger().name, from = %at.next(), to = %last,
                            "passed a trimmed part of the log");
                        metrics::trim_met(cursor.trigger().name.as_str(), last.0 - at.0);
                        cursor.pass(last, now);
                    }
                    Entry::Damaged { reason, .. } => {
                        tracing::error!(%shard, trigger = %cursor.trigger().name, from = %at.next(), to = %last,
                            reason, "a damaged part of the log is parked");
                        cursor.damaged(last, reason, now);
                    }
                }
                if cursor.at() == at {
                    break;
                }
            }
            if let Some((chunk, _)) = self.ring.after(cursor.at()) {
                match &chunk.entry {
                    Entry::Cells(cells) => cursor.learn(cells),
                    Entry::Trimmed { .. } | Entry::Damaged { .. } => cursor.learn_nothing(now),
                }
            }
        }
        let coming = self.cursors.values().filter(|held| !held.leaving);
        self.ring.trim(coming.map(|held| held.cursor.at()));
        if !self.ring.is_empty() && self.home.shared.budget.somebody_waits() {
            self.shed();
        }
    }

    /// Reads on for the next cursor in turn that wants what is not there.
    fn start_read(&mut self, now: Now) {
        if self.reading || self.read_rests.is_some_and(|at| at > now.instant) {
            return;
        }
        self.read_rests = None;
        let Some((number, after)) = self.hungry() else {
            (self.room, self.waiting, self.paid) = (None.into(), false, None);
            return;
        };
        let Some((paid, limit)) = self.pay() else { return };
        self.turn = number;
        let (log, shard, tip) = (self.home.cells.log().clone(), self.home.shard.shard, *self.tip.borrow());
        self.reading = true;
        self.read = Some(async move { (after, paid, run(&*log, shard, after, limit, tip).await) }.boxed()).into();
    }

    /// The next cursor in turn that wants what is not in the ring.
    fn hungry(&self) -> Option<(u64, AddedId)> {
        let tip = *self.tip.borrow();
        let later = self.cursors.range(self.turn + 1..);
        let mut in_turn = later.chain(self.cursors.range(..=self.turn));
        in_turn.find_map(|(number, held)| {
            let at = held.cursor.is_curious(tip).filter(|_| !held.leaving && !held.cursor.is_starved())?;
            (at < tip && self.ring.after(at).is_none()).then_some((*number, at))
        })
    }

    /// Memory for a read, and how many segments it may bring; `None` while there is none.
    fn pay(&mut self) -> Option<(Pages, u32)> {
        if let Some(paid) = self.paid.take() {
            return Some((paid, 1));
        }
        if self.waiting {
            return None;
        }
        let budget = &self.home.shared.budget;
        let wanted = self.segment_bytes.saturating_mul(self.read_segments as usize);
        if let Some(paid) = budget.take(wanted) {
            return Some((paid, self.read_segments));
        }
        self.waiting = true;
        self.room = Some(budget.clone().wait(self.segment_bytes).boxed()).into();
        None
    }

    /// Gives back what was read for cursors that cannot take it in now: another shard wants to read.
    fn shed(&mut self) {
        let with_room = self.cursors.values().filter(|held| !held.leaving && !held.cursor.is_starved());
        let with_room: Vec<AddedId> = with_room.filter_map(|held| held.cursor.wants()).collect();
        self.ring.shed(&with_room, 0);
    }

    fn on_read(&mut self, after: AddedId, mut paid: Pages, result: Result<Run, TailError>) {
        let now = clock::now();
        match result {
            Ok(run) => {
                let stands = |at| self.cursors.values().any(|held| held.cursor.at() == at);
                if self.read_failed.is_none_or(|(at, _)| at == after || !stands(at)) {
                    (self.read_failed, self.stopped) = (None, None);
                }
                if run.end(after) == after {
                    // The tip was heard of before this read could see it.
                    self.read_rests = Some(now + Duration::from_millis(20));
                }
                let (mut cells, mut bytes, segments) = (0, 0, run.entries.len());
                for entry in run.entries {
                    let size = ring::size(&entry);
                    bytes += size;
                    cells += match &entry {
                        Entry::Cells(cells) => cells.len(),
                        Entry::Trimmed { .. } | Entry::Damaged { .. } => READ_CELLS,
                    };
                    self.ring.insert(entry, paid.split(size));
                }
                self.aim(segments, cells, bytes);
            }
            Err(error) => {
                let failures = self.read_failed.map_or(0, |(_, failures)| failures) + 1;
                self.read_failed = Some((after, failures));
                let text = chain(&error);
                let passing = error.may_pass();
                if self.stopped.as_ref() != Some(&text) && (!passing || failures == 3) {
                    tracing::error!(shard = %self.home.shard, error = text, "this shard cannot be read");
                    if let TailError::Hole { .. } = error {
                        metrics::hole_met(self.home.shard.source.as_str());
                    }
                    self.stopped = Some(text);
                }
                let rest = if passing { rest(failures) } else { STOPPED_REST };
                self.read_rests = Some(now + rest.mul_f64(0.5 + fastrand::f64() / 2.0));
            }
        }
    }

    /// Aims the next read at a number of cells and bytes, by what the last one brought.
    fn aim(&mut self, segments: usize, cells: usize, bytes: usize) {
        if segments == 0 {
            return;
        }
        self.segment_bytes = (bytes / segments + bytes / segments / 4).max(4096);
        let full = segments as u64 >= u64::from(self.read_segments);
        if full && cells * 2 <= READ_CELLS && bytes * 2 <= READ_BYTES {
            self.read_segments = (self.read_segments * 2).min(READ_SEGMENTS);
        } else if cells >= READ_CELLS * 2 || bytes >= READ_BYTES * 2 {
            self.read_segments = (self.read_segments / 2).max(1);
        }
    }

    // ---- calling ----

    fn start_calls(&mut self, now: Now) {
        // A slot that nobody can use would wake the next shard that waits for one, and so on round and round.
        if self.guard(now) || self.home.shared.company.is_hushed() {
            return;
        }
        let numbers: Vec<u64> = self.cursors.keys().copied().collect();
        for number in numbers {
            for _ in 0..CALLS_A_TURN {
                let Some(held) = self.cursors.get_mut(&number) else { break };
                if held.leaving || held.asked || held.cursor.next(now) != Next::Call {
                    break;
                }
                let slots = held.cursor.trigger().slots.clone();
                match slots.clone().try_acquire_owned() {
                    Ok(permit) => {
                        if !self.call(number, permit, now) {
                            break;
                        }
                    }
                    Err(_) => {
                        held.asked = true;
                        self.slots.push(
                            async move { (number, slots.acquire_owned().await.expect("slots are never closed")) }
                                .boxed(),
                        );
                    }
                }
            }
        }
    }

    /// Starts one call; `false` when there was nothing to call after all.
    fn call(&mut self, number: u64, permit: OwnedSemaphorePermit, now: Now) -> bool {
        if !self.may_call() || !self.guard.is_off() {
            return false;
        }
        let Some(joined) = self.home.shared.company.join() else { return false };
        let Some(held) = self.cursors.get_mut(&number).filter(|held| !held.leaving) else { return false };
        let Some((items, probe)) = held.cursor.take(now) else { return false };
        let trigger = held.cursor.trigger().clone();
        let call = attempt(trigger, number, self.epoch, items, probe, permit, self.may.clone());
        self.calls.push(call.inspect(move |_| drop(joined)).boxed());
        true
    }

    fn settle(&mut self, attempted: Attempted, now: Now) {
        let Attempted { cursor, items, probe } = attempted;
        let held = self.cursors.get_mut(&cursor).expect("a cursor with calls in flight stays");
        for ended in items {
            held.cursor.settle(ended, probe, now);
        }
        self.guard_settled();
    }

    /// Handlers that asked for a pause of their trigger.
    fn start_pauses(&mut self) {
        let Home { shared, fence, .. } = &*self.home;
        for held in self.cursors.values_mut() {
            if let Some((reason, generation)) = held.cursor.take_pause_wish() {
                let (name, id) = (held.cursor.trigger().name.clone(), held.cursor.trigger().record.id.clone());
                tracing::error!(trigger = %name, reason, "its handler asks for a pause: not called until resumed");
                let wish = Wish { id, generation, reason };
                self.chores.push(pause(shared.ledger.clone(), fence.clone(), name, wish).boxed());
            }
        }
    }

    // ---- the lease and the lanes ----

    fn begin(&mut self, books: BoxFuture<'static, Books>) {
        self.booking = true;
        self.books = Some(books).into();
    }

    fn start_cursors(&mut self) {
        let missing = self.missing().cloned().collect();
        let (home, trouble) = (self.home.clone(), self.trouble.clone());
        let lease = Lease { seq: self.seq, alone: self.alone_in(false).0, ..self.lease.clone() };
        let culprit = self.guard.culprit().cloned();
        self.begin(async move { Books::Started(start(home, lease, missing, culprit, &trouble).await) }.boxed());
    }

    fn start_write(&mut self, release: bool) {
        self.seq += 1;
        let mut room = LANE_CHANGES_MAX;
        let mut lease_write = LeaseWrite {
            shard: self.home.shard.clone(),
            owner: self.home.me.clone(),
            epoch: self.epoch,
            seq: self.seq,
            checkpoints: BTreeMap::new(),
            lanes: Vec::new(),
            alone: None,
            release,
        };
        self.written.clear();
        for (number, held) in &mut self.cursors {
            if held.retired || held.cursor.is_clean() && !release {
                continue;
            }
            if self.written.len() == CHECKPOINTS_MAX {
                // The others are written next. A release comes when all are.
                break;
            }
            let (checkpoint, lanes) = held.cursor.fill(room);
            room -= lanes.len();
            lease_write.checkpoints.insert(held.cursor.trigger().record.id.clone(), checkpoint);
            lease_write.lanes.extend(lanes);
            self.written.push(*number);
        }
        self.releasing = release;
        (self.wrote_alone, self.guard.sent) = self.alone_in(release);
        lease_write.alone.clone_from(&self.wrote_alone);
        let (home, trouble) = (self.home.clone(), self.trouble.clone());
        self.begin(
            async move {
                let (ledger, fence) = (home.shared.ledger.clone(), home.fence.clone());
                Books::Wrote(write(ledger, fence, &lease_write, &trouble).await)
            }
            .boxed(),
        );
    }

    /// Reads all active lanes, and the dead ones that are not empty: an operator was there.
    fn start_look(&mut self) {
        self.look_due = false;
        let shard = &self.home.shard;
        let lanes = self.cursors.iter().map(|(number, held)| {
            let cursor = &held.cursor;
            let dead = cursor.has_dead().then(|| lane(cursor, shard, LaneKind::Dead));
            (*number, lane(cursor, shard, LaneKind::Active), dead)
        });
        let lanes: Vec<(u64, Lane, Option<Lane>)> = lanes.collect();
        let ledger = self.home.shared.ledger.clone();
        self.begin(
            async move {
                let mut all = Vec::with_capacity(lanes.len());
                for (number, active, dead) in lanes {
                    let active = read_lane(&*ledger, &active).await?;
                    let dead = match dead {
                        Some(dead) => Some(read_graves(&*ledger, &dead).await?),
                        None => None,
                    };
                    all.push(Looked { number, active, dead });
                }
                Ok(all)
            }
            .map(Books::Looked)
            .boxed(),
        );
    }

    fn book(&mut self, books: Books, now: Now) -> Option<Ended> {
        match books {
            Books::Started(Started { seq, fresh, left_out, cursors }) => {
                self.seq = seq;
                self.lease.checkpoints.extend(fresh);
                if left_out {
                    self.start_rests = Some(now.instant + RESTS.1);
                }
                return self.on_started(cursors, now);
            }
            Books::Wrote(Wrote::Accepted) => {
                if self.give_by.is_none() {
                    // A hand-over that is refused is followed by writes that are not.
                    self.lane_refusals = 0;
                }
                for held in self.cursors.iter_mut().filter(|(n, _)| self.written.contains(n)).map(|(_, held)| held) {
                    held.cursor.written(now);
                }
                if self.releasing {
                    return Some(Ended::Released);
                }
                let alone = self.wrote_alone.take();
                self.guard_written(alone.as_ref(), now);
            }
            Books::Wrote(Wrote::LaneChanged) => {
                self.guard.sent = guard::Sent::Nothing;
                for held in self.cursors.iter_mut().filter(|(n, _)| self.written.contains(n)).map(|(_, held)| held) {
                    held.cursor.unsent(now);
                }
                self.lane_refusals += 1;
                if self.lane_refusals > 1 {
                    self.write_rests = Some(now.instant + rest(self.lane_refusals));
                }
                if self.lane_refusals == 5 {
                    tracing::warn!(shard = %self.home.shard, "parked cells keep changing under the writes of their owner");
                }
                self.start_look();
            }
            Books::Wrote(Wrote::Lost) => return Some(Ended::Lost),
            Books::Looked(Ok(all)) => {
                for Looked { number, active, dead } in all {
                    if let Some(held) = self.cursors.get_mut(&number) {
                        held.cursor.reconcile(active, now);
                        if let Some(dead) = dead {
                            held.cursor.count_graves(dead);
                        }
                    }
                }
            }
            Books::Looked(Err(error)) => {
                tracing::warn!(shard = %self.home.shard, error = %chain(&error), "cannot read the parked cells; trying again");
                self.look_due = true;
                // Nothing is written meanwhile: it might change what was not seen.
                self.begin(
                    async {
                        clock::sleep(Duration::from_secs(1)).await;
                        Books::Looked(Ok(Vec::new()))
                    }
                    .boxed(),
                );
            }
        }
        None
    }

    fn on_started(&mut self, cursors: Result<Vec<Cursor>, NoStart>, now: Now) -> Option<Ended> {
        let (error, rests) = match cursors {
            Ok(cursors) => {
                self.start_failures = 0;
                self.start_error = None;
                for cursor in cursors {
                    self.lease.checkpoints.remove(&cursor.trigger().record.id);
                    let mut held = Held::new(cursor);
                    held.follow(&self.wanted, &self.records, &self.gone);
                    self.next_number += 1;
                    self.cursors.insert(self.next_number, Box::new(held));
                }
                if self.lease.checkpoints.is_empty() {
                    // An emptied map keeps its memory.
                    self.lease.checkpoints = BTreeMap::new();
                }
                return None;
            }
            Err(NoStart::Lost) => return Some(Ended::Lost),
            Err(NoStart::Soon(error)) => {
                self.start_failures += 1;
                (error, rest(self.start_failures))
            }
            Err(NoStart::Later(error)) => {
                self.start_failures = self.start_failures.max(2) + 1;
                (error, STOPPED_REST)
            }
        };
        if self.start_failures >= 3 && self.start_error.as_ref() != Some(&error) {
            tracing::error!(shard = %self.home.shard, error, "this shard stands still");
            self.start_error = Some(error);
        }
        // A shard that cannot start must rest before it tries again.
        self.start_rests = Some(now.instant + rests.mul_f64(0.5 + fastrand::f64() / 2.0));
        None
    }
}

fn now() -> Now {
    Now { instant: clock::now(), wall: clock::wall() }
}

/// A rest that doubles with each failure in a row.
fn rest(failures: u32) -> Duration {
    RESTS.0.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(RESTS.1)
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => clock::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
