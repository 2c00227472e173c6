//! One trigger's work on one shard.
//!
//! ```text
//!            admit                 take                settle
//!  log ──────────────▶ ready ─────────────▶ in flight ────────┬─▶ finished
//!        │ row busy      ▲  ▲                                 │
//!        ▼               │  └──────── due ──── retries ◀──────┤ failed, snoozed: up to 10 s here
//!     row's queue ───────┘ head left           ▲              │
//!                                              │ due          ▼ longer
//!                                              └───────── active lane     dead lane ◀── exhausted
//! ```
//!
//! A cell counts against the window until it is finished and covered by a durable checkpoint, or parked in a durable lane.

use super::{
    Ballast, Gate, Trigger,
    config::{Exhausted, Order},
    lane::{ACTIVE_MAX, LaneBook},
    retry::IN_MEMORY,
};
use crate::{
    cell::{
        AddedId, Cell, CellKey, Checkpoint, LaneChange, Millis, Parked, ParkedState, ShardPause, ShardRef,
        TriggerRecord, TriggerState, Verdict,
    },
    checkpoint::{Damaged, Window, decode_attempts, encode_attempts},
    filter::Decision,
    metrics,
};
use bytestring::ByteString;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// Errors that are kept of a parked cell.
const ERRORS_KEPT: usize = 3;
/// Bytes that are kept of an error.
const ERROR_MAX: usize = 1024;
/// Wait after an interruption that was not the cell's fault as far as anybody knows.
const INTERRUPTED_WAIT: Duration = Duration::from_millis(100);
/// A snooze for no time at all must not become a hot loop.
const SNOOZE_MIN: Duration = Duration::from_millis(10);
/// Times of segments that are remembered to tell how far behind it is.
const TIMES_MAX: usize = 8192;
/// Changes of lanes that may wait to be written before reading stops.
const PENDING_MAX: usize = 512;

/// The time, by the two clocks that decisions use.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For waits in memory.
    pub instant: Instant,
    /// For what is stored.
    pub wall: Millis,
}

/// A cell in hand.
#[derive(Debug)]
pub struct Item {
    /// Its place.
    pub added_id: AddedId,
    /// The cell; `None` for a parked one, which is fetched for each attempt.
    pub cell: Option<Cell>,
    /// Address of a parked one; `None` for a damaged range.
    pub key: Option<CellKey>,
    /// Failed attempts so far.
    pub attempts: u32,
    /// Ends of a carrier's process in which it was in flight.
    pub interruptions: u32,
    /// What it waits behind.
    lock: ByteString,
    errors: Vec<String>,
    since: Option<Millis>,
    /// Out of the window: in the active lane, or on its way there.
    parked: bool,
    ballast: Option<Arc<Ballast>>,
}

impl Item {
    fn size(&self) -> usize {
        self.cell.as_ref().map_or(0, Cell::size)
    }
}

/// What a cursor wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Call, as soon as there is a slot.
    Call,
    /// Nothing before then.
    At(Instant),
    /// Nothing until something happens.
    Idle,
}

/// What waits behind the head of a row.
#[derive(Debug)]
struct Row {
    head: AddedId,
    queue: VecDeque<Item>,
}

/// One trigger's work on one shard.
pub struct Cursor {
    trigger: Arc<Trigger>,
    shard: ShardRef,
    /// Last place admitted.
    at: AddedId,
    window: Window,
    /// Places finished in an earlier life beyond low-water are passed when they are met.
    resumed_to: AddedId,
    /// Cells admitted, called for, and neither finished nor on their way to a lane.
    undone: u32,
    /// Cells finished since the last durable checkpoint, and those of them that the write under way covers.
    unsaved: u32,
    unsaved_sent: u32,
    bytes: usize,
    ready: VecDeque<Item>,
    ready_since: Option<Instant>,
    rows: HashMap<ByteString, Row>,
    retries: BTreeMap<(Instant, AddedId), Item>,
    in_flight: u32,
    /// Parked cells in flight.
    parked_in_flight: BTreeSet<AddedId>,
    attempts: BTreeMap<AddedId, u32>,
    book: LaneBook,
    dead: u64,
    generation: u64,
    paused: Option<ShardPause>,
    trigger_paused: bool,
    pause_wish: Option<String>,
    /// Since when something is finished that no durable checkpoint covers.
    dirty_since: Option<Instant>,
    /// Window positions that leave with the write under way.
    leaving: Vec<(AddedId, AddedId)>,
    rate_wait: Option<Instant>,
    /// First place and `created_at` of the segments from low-water on.
    times: VecDeque<(AddedId, Millis)>,
}

impl Cursor {
    /// Goes on where a checkpoint ended. The active lane is loaded with [`Cursor::resume_lane`] before the first call.
    ///
    /// # Errors
    /// When the checkpoint is damaged.
    pub fn new(trigger: Arc<Trigger>, shard: ShardRef, checkpoint: &Checkpoint) -> Result<Self, Damaged> {
        let window = Window::resume(checkpoint.low, &checkpoint.done)?;
        let attempts = decode_attempts(checkpoint.low, &checkpoint.attempts)?;
        Ok(Self {
            shard,
            at: checkpoint.low,
            resumed_to: window.end(),
            window,
            undone: 0,
            unsaved: 0,
            unsaved_sent: 0,
            bytes: 0,
            ready: VecDeque::new(),
            ready_since: None,
            rows: HashMap::new(),
            retries: BTreeMap::new(),
            in_flight: 0,
            parked_in_flight: BTreeSet::new(),
            attempts,
            book: LaneBook::default(),
            dead: checkpoint.dead,
            generation: checkpoint.generation,
            paused: checkpoint.paused.clone(),
            trigger_paused: false,
            pause_wish: None,
            dirty_since: None,
            leaving: Vec::new(),
            rate_wait: None,
            times: VecDeque::new(),
            trigger,
        })
    }

    /// The trigger.
    #[must_use]
    pub fn trigger(&self) -> &Arc<Trigger> {
        &self.trigger
    }

    /// Everything up to here is finished.
    #[must_use]
    pub fn low(&self) -> AddedId {
        self.window.low()
    }

    /// Cells up to a tip that are not finished.
    #[must_use]
    pub fn lag(&self, tip: AddedId) -> u64 {
        tip.0.saturating_sub(self.window.low().0).saturating_sub(self.window.done_beyond())
    }

    /// `created_at` of the oldest cell that is not finished, as far as it was read.
    #[must_use]
    pub fn oldest(&self) -> Option<Millis> {
        let next = self.window.low().next();
        let place = self.times.partition_point(|(first, _)| *first <= next);
        self.times.get(place.saturating_sub(1)).map(|(_, created_at)| *created_at)
    }

    /// Calls under way, in cells.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Cells in the active lane: retrying, waiting.
    #[must_use]
    pub fn parked(&self) -> (usize, usize) {
        let retrying = self.book.iter().filter(|parked| parked.state == ParkedState::Retrying).count();
        (retrying, self.book.len() - retrying)
    }

    /// Dead cells since the last resume.
    #[must_use]
    pub fn dead(&self) -> u64 {
        self.dead
    }

    /// Why nothing is called, if so.
    #[must_use]
    pub fn pause(&self) -> Option<&str> {
        match &self.paused {
            Some(pause) => Some(&pause.reason),
            None => self.trigger_paused.then_some("the trigger is paused"),
        }
    }

    /// A reason to pause the whole trigger that a handler gave, once.
    pub fn take_pause_wish(&mut self) -> Option<String> {
        self.pause_wish.take()
    }

    /// A fresher reading of the trigger's record.
    pub fn follow(&mut self, record: &TriggerRecord) {
        self.trigger_paused = record.state != TriggerState::Active;
        if record.generation > self.generation {
            self.generation = record.generation;
            self.dead = 0;
            self.paused = None;
        }
    }

    // ---- reading ----

    /// Where it wants to read on, if it has room.
    #[must_use]
    pub fn wants(&self) -> Option<AddedId> {
        self.has_room().then_some(self.at)
    }

    /// Where it will read on, room or not.
    #[must_use]
    pub fn at(&self) -> AddedId {
        self.at
    }

    /// Whether no cell of the log is kept in memory on its account.
    #[must_use]
    pub fn holds_nothing(&self) -> bool {
        self.bytes == 0
    }

    fn has_room(&self) -> bool {
        let window = &self.trigger.config.window;
        let leaving = u32::try_from(self.book.leaves()).unwrap_or(u32::MAX);
        self.undone.saturating_add(self.unsaved).saturating_add(leaving) < window.cells
            && self.bytes as u64 <= window.bytes
            && self.book.pending() < PENDING_MAX
            && self.pause().is_none()
            && !self.window.is_ragged()
    }

    /// Takes cells in log order, from the one after [`Cursor::at`] on, while there is room.
    pub fn admit(&mut self, cells: &[Cell], ballast: &Arc<Ballast>, now: Now) {
        let skip = cells.partition_point(|cell| cell.added_id <= self.at);
        for cell in &cells[skip..] {
            if !self.has_room() {
                return;
            }
            debug_assert_eq!(cell.added_id, self.at.next(), "a dense run");
            self.at = cell.added_id;
            if self.times.len() < TIMES_MAX
                && self.times.back().is_none_or(|(_, created_at)| *created_at != cell.created_at)
            {
                self.times.push_back((cell.added_id, cell.created_at));
            }
            if cell.added_id <= self.resumed_to && self.window.is_done(cell.added_id) {
                continue;
            }
            match self.trigger.filter.decide(cell, self.trigger.cells.datastore()) {
                Decision::Pass => {
                    self.window.finish(cell.added_id);
                    self.dirty_since.get_or_insert(now.instant);
                }
                Decision::Call => self.enter(cell.clone(), ballast.clone(), now),
                Decision::Failed(error) => {
                    let mut item = self.item(cell.clone(), ballast.clone());
                    item.errors.push(clip(error));
                    self.undone += 1;
                    self.bytes += item.size();
                    self.bury(item, now);
                }
            }
        }
    }

    /// Passes a trimmed hole.
    pub fn pass(&mut self, last: AddedId, now: Now) {
        if last > self.at {
            self.window.finish_range(self.at.next(), last);
            self.at = last;
            self.dirty_since.get_or_insert(now.instant);
        }
    }

    /// Parks a damaged range as dead.
    pub fn damaged(&mut self, last: AddedId, reason: &str, now: Now) {
        if last <= self.at || !self.has_room() {
            return;
        }
        let first = self.at.next();
        self.at = last;
        self.dead += 1;
        self.dirty_since.get_or_insert(now.instant);
        let parked = Parked {
            last,
            errors: vec![clip(format!("the log's segment cannot be decoded: {reason}"))],
            ..self.parked_as(first, ParkedState::Dead, now)
        };
        self.book.bury(parked, true);
    }

    fn item(&mut self, cell: Cell, ballast: Arc<Ballast>) -> Item {
        let lock = match self.trigger.config.order {
            Order::Row => cell.key.row_key.clone(),
            Order::Shard | Order::None => ByteString::new(),
        };
        let attempts = self.attempts.get(&cell.added_id).copied().unwrap_or(0);
        Item {
            added_id: cell.added_id,
            cell: Some(cell),
            key: None,
            attempts,
            interruptions: 0,
            lock,
            errors: Vec::new(),
            since: None,
            parked: false,
            ballast: Some(ballast),
        }
    }

    fn enter(&mut self, cell: Cell, ballast: Arc<Ballast>, now: Now) {
        let item = self.item(cell, ballast);
        self.undone += 1;
        self.bytes += item.size();
        if self.trigger.config.order == Order::None {
            self.make_ready(item, now);
            return;
        }
        match self.rows.get(&item.lock) {
            None => {
                self.rows.insert(item.lock.clone(), Row { head: item.added_id, queue: VecDeque::new() });
                self.make_ready(item, now);
            }
            Some(row) => {
                let long = self.book.get(row.head).is_some_and(|head| {
                    let in_memory = i64::try_from(IN_MEMORY.as_millis()).unwrap_or(i64::MAX);
                    head.state == ParkedState::Retrying && head.next_attempt_at.0 - now.wall.0 > in_memory
                });
                let head = row.head;
                if long {
                    self.park_behind(head, item, now);
                } else if let Some(row) = self.rows.get_mut(&item.lock) {
                    row.queue.push_back(item);
                }
            }
        }
    }

    fn make_ready(&mut self, item: Item, now: Now) {
        self.ready_since.get_or_insert(now.instant);
        self.ready.push_back(item);
    }

    // ---- calling ----

    /// Moves what is due back to what is ready.
    pub fn wake(&mut self, now: Now) {
        while let Some(entry) = self.retries.first_entry() {
            if entry.key().0 > now.instant {
                return;
            }
            let item = entry.remove();
            self.make_ready(item, now);
        }
    }

    /// What it wants to do next, a slot provided.
    #[must_use]
    pub fn next(&self, now: Now) -> Next {
        let due = self.retries.first_key_value().map(|((at, _), _)| *at);
        let wait = |at: Option<Instant>| at.map_or(Next::Idle, Next::At);
        if self.pause().is_some() {
            return Next::Idle;
        }
        if self.ready.is_empty() || self.callable() == 0 {
            return wait(due);
        }
        let batch = self.trigger.config.batch as usize;
        let linger = self.trigger.config.linger;
        let filled = self.ready.len() >= batch || linger.is_zero();
        let filled_at = self.ready_since.filter(|_| !filled).map(|since| since + linger);
        let gate = self.trigger.breaker.as_ref().and_then(|breaker| breaker.opens_at(now.instant));
        let late = [filled_at, gate, self.rate_wait].into_iter().flatten().filter(|at| *at > now.instant).max();
        match late {
            None => Next::Call,
            Some(at) => Next::At(due.map_or(at, |due| at.min(due))),
        }
    }

    /// How many cells more may be called for: those in flight, and those finished that a new owner would call for again, are at
    /// most the window.
    fn callable(&self) -> usize {
        let exposed = (self.in_flight as usize) + (self.unsaved as usize) + self.book.removals();
        (self.trigger.config.window.cells as usize).saturating_sub(exposed)
    }

    /// Takes the cells of one call, and whether it is the breaker's probe.
    pub fn take(&mut self, now: Now) -> Option<(Vec<Item>, bool)> {
        if self.next(now) != Next::Call {
            return None;
        }
        let batch = self.trigger.config.batch as usize;
        let alone = self.ready.front().is_some_and(|item| item.interruptions >= 2);
        let together = self.ready.iter().take(batch).take_while(|item| item.interruptions < 2).count();
        let n = if alone { 1 } else { together.min(self.callable()) };
        if let Some(rate) = &self.trigger.rate
            && let Err(at) = rate.take(now.instant, n)
        {
            self.rate_wait = Some(at);
            return None;
        }
        let (n, probe) = match self.trigger.breaker.as_ref().map(|breaker| breaker.gate(now.instant)) {
            None | Some(Gate::Go) => (n, false),
            Some(Gate::Probe) => (1, true),
            Some(Gate::Wait(_)) => return None,
        };
        let mut items: Vec<Item> = self.ready.drain(..n).collect();
        self.ready_since = (!self.ready.is_empty()).then_some(now.instant);
        self.in_flight += u32::try_from(n).unwrap_or(u32::MAX);
        for item in &mut items {
            item.since.get_or_insert(now.wall);
        }
        self.parked_in_flight.extend(items.iter().filter(|item| item.parked).map(|item| item.added_id));
        Some((items, probe))
    }

    /// Takes a cell back with its verdict.
    pub fn settle(&mut self, mut item: Item, verdict: Verdict, probe: bool, now: Now) {
        self.in_flight -= 1;
        self.parked_in_flight.remove(&item.added_id);
        self.trigger.attempts.ended(verdict.label());
        if item.parked && self.book.get(item.added_id).is_none() {
            // An operator dropped it meanwhile.
            self.leave_row(&item.lock, now);
            return;
        }
        let good = !matches!(verdict, Verdict::Failed { .. } | Verdict::Interrupted { .. });
        if let Some(breaker) = &self.trigger.breaker
            && breaker.report(now.instant, probe, good)
        {
            tracing::warn!(trigger = %self.trigger.name, "everything fails: calls stop for a while");
        }
        match verdict {
            Verdict::Done { .. } | Verdict::Drop => self.finish(item, now),
            Verdict::Snooze { after } => self.again(item, after.max(SNOOZE_MIN), now),
            Verdict::Interrupted { error } => {
                item.interruptions += 1;
                note(&mut item.errors, error);
                self.again(item, INTERRUPTED_WAIT, now);
            }
            Verdict::Failed { error, .. } if probe => {
                // The attempt was made to see whether the outage is over, not for the cell's sake.
                note(&mut item.errors, error);
                self.make_ready_first(item, now);
            }
            Verdict::Failed { error, retry_after } => {
                item.attempts += 1;
                note(&mut item.errors, error);
                let since = item.since.unwrap_or(now.wall);
                if self.trigger.config.retry.exhausted(item.attempts, since, now.wall) {
                    self.exhaust(item, now);
                } else {
                    let wait = retry_after.unwrap_or_else(|| self.trigger.config.retry.wait(item.attempts));
                    self.again(item, wait, now);
                }
            }
            Verdict::DeadLetter { error } => {
                item.attempts += 1;
                note(&mut item.errors, error);
                self.bury(item, now);
            }
            Verdict::Pause { error } => {
                self.trigger_paused = true;
                self.pause_wish = Some(clip(error));
                self.make_ready_first(item, now);
            }
        }
    }

    fn make_ready_first(&mut self, item: Item, now: Now) {
        self.ready_since.get_or_insert(now.instant);
        self.ready.push_front(item);
    }

    fn finish(&mut self, item: Item, now: Now) {
        if item.parked {
            self.book.remove(item.added_id);
        } else {
            self.undone -= 1;
            self.unsaved += 1;
            self.bytes -= item.size();
            self.attempts.remove(&item.added_id);
            self.window.finish(item.added_id);
        }
        self.dirty_since.get_or_insert(now.instant);
        self.leave_row(&item.lock, now);
    }

    /// The head of a row left: the next one comes.
    fn leave_row(&mut self, lock: &ByteString, now: Now) {
        if self.trigger.config.order == Order::None {
            return;
        }
        let Some(row) = self.rows.get_mut(lock) else { return };
        match row.queue.pop_front() {
            Some(next) => {
                row.head = next.added_id;
                self.make_ready(next, now);
            }
            None => {
                self.rows.remove(lock);
            }
        }
    }

    /// Later again: soon from memory, much later from the active lane.
    fn again(&mut self, mut item: Item, wait: Duration, now: Now) {
        let due = now.instant + wait;
        let millis = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
        let next_attempt_at = Millis(now.wall.0.saturating_add(millis));
        if item.parked {
            self.book.update(item.added_id, |parked| {
                parked.state = ParkedState::Retrying;
                parked.attempts = item.attempts;
                parked.errors.clone_from(&item.errors);
                parked.next_attempt_at = next_attempt_at;
            });
            self.dirty_since.get_or_insert(now.instant);
        } else if wait > IN_MEMORY && self.trigger.config.order != Order::Shard && self.book.len() < ACTIVE_MAX {
            self.park(&mut item, ParkedState::Retrying, next_attempt_at, now);
        } else if item.attempts > 0 {
            self.attempts.insert(item.added_id, item.attempts);
            self.dirty_since.get_or_insert(now.instant);
        }
        let (head, parked) = (item.added_id, item.parked);
        let lock = item.lock.clone();
        self.retries.insert((due, head), item);
        if parked && wait > IN_MEMORY {
            let Some(row) = self.rows.get_mut(&lock) else { return };
            // What waits in memory behind it leaves the window too.
            for waiting in std::mem::take(&mut row.queue) {
                if waiting.parked {
                    if let Some(row) = self.rows.get_mut(&lock) {
                        row.queue.push_back(waiting);
                    }
                } else {
                    self.park_behind(head, waiting, now);
                }
            }
        }
    }

    /// Takes a cell out of the window into the active lane.
    fn park(&mut self, item: &mut Item, state: ParkedState, next_attempt_at: Millis, now: Now) {
        let key = item.cell.as_ref().map(|cell| cell.key.clone());
        let parked = Parked {
            row_key: key.as_ref().map_or_else(String::new, |key| key.row_key.to_string()),
            column: key.as_ref().map_or_else(String::new, |key| key.column.to_string()),
            ref_key: key.as_ref().map_or(0, |key| key.ref_key),
            attempts: item.attempts,
            errors: item.errors.clone(),
            next_attempt_at,
            since: item.since.unwrap_or(now.wall),
            ..self.parked_as(item.added_id, state, now)
        };
        tracing::debug!(trigger = %self.trigger.name, shard = %self.shard, added_id = %item.added_id, ?state, "parked");
        self.book.park(parked);
        self.undone -= 1;
        self.bytes -= item.size();
        self.attempts.remove(&item.added_id);
        item.cell = None;
        item.key = key;
        item.parked = true;
        item.ballast = None;
        self.dirty_since.get_or_insert(now.instant);
    }

    fn parked_as(&self, added_id: AddedId, state: ParkedState, now: Now) -> Parked {
        Parked {
            trigger: self.trigger.record.id.clone(),
            shard: self.shard.clone(),
            added_id,
            last: added_id,
            row_key: String::new(),
            column: String::new(),
            ref_key: 0,
            state,
            attempts: 0,
            errors: Vec::new(),
            next_attempt_at: Millis(0),
            since: now.wall,
            revision: Parked::fresh_revision(),
        }
    }

    /// Parks a cell behind the retrying head of its row; too many there, and the head counts as exhausted.
    fn park_behind(&mut self, head: AddedId, mut item: Item, now: Now) {
        let lock = item.lock.clone();
        let Some(row) = self.rows.get_mut(&lock) else { return };
        let full = row.queue.len() >= self.trigger.config.max_waiting as usize || self.book.len() >= ACTIVE_MAX;
        if !full {
            self.park(&mut item, ParkedState::Waiting, Millis(0), now);
            if let Some(row) = self.rows.get_mut(&lock) {
                row.queue.push_back(item);
            }
            return;
        }
        row.queue.push_back(item);
        if self.trigger.config.exhausted != Exhausted::Block
            && let Some(key) = self.retries.keys().find(|(_, id)| *id == head).copied()
            && let Some(mut head) = self.retries.remove(&key)
        {
            note(
                &mut head.errors,
                format!("{} later cells of its row wait behind it", self.trigger.config.max_waiting),
            );
            self.exhaust(head, now);
        }
    }

    fn exhaust(&mut self, item: Item, now: Now) {
        match self.trigger.config.exhausted {
            Exhausted::Park => self.bury(item, now),
            Exhausted::Block => {
                let wait = self.trigger.config.retry.max.mul_f64(0.5 + fastrand::f64() / 2.0);
                self.again(item, wait, now);
            }
            Exhausted::Drop => {
                tracing::warn!(trigger = %self.trigger.name, shard = %self.shard, added_id = %item.added_id,
                    attempts = item.attempts, "attempts used up: dropped");
                metrics::dropped(self.trigger.name.as_str());
                self.finish(item, now);
            }
        }
    }

    /// Parks a cell as dead. It blocks nobody.
    fn bury(&mut self, item: Item, now: Now) {
        let from_window = !item.parked;
        let parked = if from_window {
            self.undone -= 1;
            self.bytes -= item.size();
            self.attempts.remove(&item.added_id);
            let key = item.cell.as_ref().map(|cell| cell.key.clone());
            Parked {
                row_key: key.as_ref().map_or_else(String::new, |key| key.row_key.to_string()),
                column: key.as_ref().map_or_else(String::new, |key| key.column.to_string()),
                ref_key: key.as_ref().map_or(0, |key| key.ref_key),
                since: item.since.unwrap_or(now.wall),
                ..self.parked_as(item.added_id, ParkedState::Dead, now)
            }
        } else {
            match self.book.remove(item.added_id) {
                Some(parked) => Parked { state: ParkedState::Dead, revision: Parked::fresh_revision(), ..parked },
                None => return self.leave_row(&item.lock, now),
            }
        };
        let parked = Parked { attempts: item.attempts, errors: item.errors, next_attempt_at: Millis(0), ..parked };
        tracing::warn!(trigger = %self.trigger.name, shard = %self.shard, added_id = %item.added_id,
            row = parked.row_key, attempts = parked.attempts, error = parked.errors.last(), "parked as dead");
        self.book.bury(parked, from_window);
        self.dead += 1;
        if self.dead > self.trigger.config.max_parked && self.paused.is_none() {
            let reason = format!("{} dead cells on this shard, more than max_parked", self.dead);
            tracing::error!(trigger = %self.trigger.name, shard = %self.shard, reason, "paused on this shard");
            self.paused = Some(ShardPause { generation: self.generation, reason });
        }
        self.dirty_since.get_or_insert(now.instant);
        self.leave_row(&item.lock, now);
    }

    // ---- the active lane as it is stored ----

    /// Takes the active lane as it is stored, at the start. A parked cell that the checkpoint does not count as finished is
    /// before it again, after a rewind or because the finished ranges did not fit: the log brings it in its order, and its
    /// lane item goes.
    pub fn resume_lane(&mut self, stored: Vec<Parked>, now: Now) {
        let (kept, void): (Vec<Parked>, Vec<Parked>) =
            stored.into_iter().partition(|parked| self.window.is_done(parked.added_id));
        self.reconcile(kept, now);
        for parked in void {
            self.book.void(parked);
            self.dirty_since.get_or_insert(now.instant);
        }
    }

    /// Compares with the active lane as it is stored, whenever an operator was there.
    pub fn reconcile(&mut self, stored: Vec<Parked>, now: Now) {
        let (gone, fresh) = self.book.reconcile(stored);
        for id in gone {
            self.forget(id, now);
        }
        for id in fresh {
            if !self.window.is_done(id) {
                // It is in the window, after a rewind, and an operator revived its dead copy: the log's order rules.
                self.book.void_known(id);
                self.dirty_since.get_or_insert(now.instant);
                continue;
            }
            let Some(parked) = self.book.get(id).cloned() else { continue };
            let wait =
                u64::try_from(parked.next_attempt_at.0 - now.wall.0).map_or(Duration::ZERO, Duration::from_millis);
            let due = now.instant + wait;
            if let Some(key) = self.retries.keys().find(|(_, of)| *of == id).copied() {
                // The due time changed.
                if let Some(item) = self.retries.remove(&key) {
                    self.retries.insert((due, id), item);
                }
                continue;
            }
            if !self.parked_in_flight.contains(&id) {
                self.load(parked, due);
            }
        }
    }

    /// Takes a parked cell that was not in hand.
    fn load(&mut self, parked: Parked, due: Instant) {
        let in_hand =
            |row: &Row| row.head == parked.added_id || row.queue.iter().any(|i| i.added_id == parked.added_id);
        let key = CellKey { row_key: parked.row_key.into(), column: parked.column.into(), ref_key: parked.ref_key };
        let lock = match self.trigger.config.order {
            Order::Row => key.row_key.clone(),
            Order::Shard | Order::None => ByteString::new(),
        };
        let item = Item {
            added_id: parked.added_id,
            cell: None,
            key: (!key.row_key.is_empty()).then_some(key),
            attempts: parked.attempts,
            interruptions: 0,
            lock,
            errors: parked.errors,
            since: Some(parked.since),
            parked: true,
            ballast: None,
        };
        if self.trigger.config.order == Order::None {
            let ready = self.ready.iter().any(|other| other.added_id == item.added_id);
            if !ready {
                self.retries.insert((due, item.added_id), item);
            }
            return;
        }
        match self.rows.get_mut(&item.lock) {
            Some(row) if in_hand(row) => {}
            Some(row) => {
                let place = row.queue.partition_point(|other| other.added_id < item.added_id);
                row.queue.insert(place, item);
            }
            None => {
                self.rows.insert(item.lock.clone(), Row { head: item.added_id, queue: VecDeque::new() });
                self.retries.insert((due, item.added_id), item);
            }
        }
    }

    /// An operator took a parked cell away. One in flight is passed when it comes back.
    fn forget(&mut self, id: AddedId, now: Now) {
        if let Some(key) = self.retries.keys().find(|(_, of)| *of == id).copied() {
            if let Some(item) = self.retries.remove(&key) {
                self.leave_row(&item.lock, now);
            }
        } else if let Some(place) = self.ready.iter().position(|item| item.added_id == id) {
            if let Some(item) = self.ready.remove(place) {
                self.leave_row(&item.lock, now);
            }
        } else {
            for row in self.rows.values_mut() {
                row.queue.retain(|item| item.added_id != id);
            }
        }
    }

    // ---- the checkpoint ----

    /// When a write is due: parked cells at once, finished cells after `interval`, or as soon as they fill half the window.
    #[must_use]
    pub fn write_due(&self, interval: Duration) -> Option<Instant> {
        let since = self.dirty_since?;
        let half = self.unsaved.saturating_mul(2) >= self.trigger.config.window.cells;
        Some(if half || self.book.pending() > 0 || self.window.is_ragged() { since } else { since + interval })
    }

    /// Whether everything that can be durable is.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.dirty_since.is_none() && self.book.pending() == 0
    }

    /// What to write: at most `room` lane changes, and the checkpoint that holds once they are stored.
    pub fn fill(&mut self, room: usize) -> (Checkpoint, Vec<LaneChange>) {
        let (changes, leaving) = self.book.fill(room);
        let checkpoint = if leaving.is_empty() {
            self.checkpoint_of(&self.window)
        } else {
            let mut after = self.window.clone();
            for (first, last) in &leaving {
                after.finish_range(*first, *last);
            }
            self.checkpoint_of(&after)
        };
        let next = checkpoint.low.next();
        while self.times.get(1).is_some_and(|(first, _)| *first <= next) {
            self.times.pop_front();
        }
        self.leaving = leaving;
        self.unsaved_sent = self.unsaved;
        self.dirty_since = None;
        (checkpoint, changes)
    }

    fn checkpoint_of(&self, window: &Window) -> Checkpoint {
        #[cfg(feature = "planted")]
        if crate::cell::planted::is("checkpoint passes an unfinished cell") {
            return Checkpoint { low: self.at, generation: self.generation, ..Checkpoint::default() };
        }
        Checkpoint {
            low: window.low(),
            done: window.encode().0,
            attempts: encode_attempts(window.low(), self.attempts.iter().map(|(id, n)| (*id, *n))),
            paused: self.paused.clone(),
            dead: self.dead,
            generation: self.generation,
        }
    }

    /// The write was accepted.
    pub fn written(&mut self, now: Now) {
        for (first, last) in std::mem::take(&mut self.leaving) {
            self.window.finish_range(first, last);
        }
        self.book.written();
        self.unsaved -= std::mem::take(&mut self.unsaved_sent);
        if self.book.pending() > 0 {
            self.dirty_since.get_or_insert(now.instant);
        }
    }

    /// The write was refused on account of a lane; [`Cursor::reconcile`] follows.
    pub fn unsent(&mut self, now: Now) {
        self.leaving.clear();
        self.unsaved_sent = 0;
        self.book.unsent();
        self.dirty_since.get_or_insert(now.instant);
    }
}

fn clip(mut error: String) -> String {
    if error.len() > ERROR_MAX {
        let end = (0..=ERROR_MAX - 3).rev().find(|end| error.is_char_boundary(*end)).unwrap_or(0);
        error.truncate(end);
        error.push('…');
    }
    error
}

fn note(errors: &mut Vec<String>, error: String) {
    errors.push(clip(error));
    if errors.len() > ERRORS_KEPT {
        errors.remove(0);
    }
}
