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

mod look;
mod parking;
mod retries;
mod save;
mod trial;

use super::{Ballast, Ended, Gate, Trigger, config::Order, lane::LaneBook, retry::IN_MEMORY};
use crate::{
    cell::{
        AddedId, Cell, CellKey, Checkpoint, Millis, ParkedState, ShardPause, ShardRef, TriggerRecord, TriggerState,
        Verdict, planted,
    },
    checkpoint::{Damaged, Window, decode_attempts},
    filter::Decision,
    metrics,
};
use bytestring::ByteString;
pub use look::{GRAVES_MAX, Lot};
use retries::Retries;
use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;
use trial::Trial;

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
    /// It was the breaker's probe already, and failed.
    probed: bool,
    /// What it waits behind.
    lock: ByteString,
    /// Of a parked one, attempts, errors and `since` are those of the book.
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
    /// So much memory it wanted when its trigger's share was used up.
    starved: Option<usize>,
    ready: VecDeque<Item>,
    ready_since: Option<Instant>,
    rows: HashMap<ByteString, Row>,
    retries: Retries,
    in_flight: u32,
    /// Parked cells in memory: ready, in flight, or waiting.
    in_hand: HashSet<AddedId>,
    attempts: BTreeMap<AddedId, u32>,
    book: LaneBook,
    dead: u64,
    /// The dead lane as it is stored: each place, and since when it was tried.
    graves: BTreeMap<AddedId, Millis>,
    generation: u64,
    paused: Option<ShardPause>,
    trigger_paused: bool,
    /// As the trigger's record was last read.
    revision: u64,
    /// A handler asked for a pause when the record was at this revision.
    pausing: Option<u64>,
    pause_wish: Option<String>,
    /// Since when something is finished that no durable checkpoint covers.
    dirty_since: Option<Instant>,
    /// The same of what the write under way covers.
    sent_since: Option<Instant>,
    /// Window positions that leave with the write under way.
    leaving: Vec<(AddedId, AddedId)>,
    rate_wait: Option<Instant>,
    /// First place and `created_at` of the segments from low-water on.
    times: VecDeque<(AddedId, Millis)>,
    /// Deaths of owners that are behind it, and what it has to get through until the others are.
    outlived: u64,
    trial: Option<Box<Trial>>,
    /// To be parked as dead when it is met, and why.
    condemned: Option<(AddedId, String)>,
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
            starved: None,
            ready: VecDeque::new(),
            ready_since: None,
            rows: HashMap::new(),
            retries: Retries::default(),
            in_flight: 0,
            in_hand: HashSet::new(),
            attempts,
            book: LaneBook::new(trigger.share.charge()),
            dead: checkpoint.dead,
            graves: BTreeMap::new(),
            generation: checkpoint.generation,
            paused: checkpoint.paused.clone(),
            trigger_paused: false,
            revision: trigger.record.revision,
            pausing: None,
            pause_wish: None,
            dirty_since: None,
            sent_since: None,
            leaving: Vec::new(),
            rate_wait: None,
            times: VecDeque::new(),
            outlived: checkpoint.outlived,
            trial: None,
            condemned: None,
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
        let low = self.window.low();
        if low >= self.at {
            // All that was read is finished: what counts is what was learned of what comes next.
            return self.times.back().filter(|(first, _)| *first > low).map(|(_, created_at)| *created_at);
        }
        let next = low.next();
        let place = self.times.partition_point(|(first, _)| *first <= next);
        self.times.get(place.saturating_sub(1)).map(|(_, created_at)| *created_at)
    }

    /// Calls under way, in cells.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight
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

    /// A reason to pause the whole trigger that a handler gave, once, and in which of the trigger's generations.
    pub fn take_pause_wish(&mut self) -> Option<(String, u64)> {
        self.pause_wish.take().map(|reason| (reason, self.generation))
    }

    /// A fresher reading of the trigger's record.
    pub fn follow(&mut self, record: &TriggerRecord) {
        self.revision = record.revision;
        // The pause that its handler asked for is not stored yet: this reading is older.
        if self.pausing.is_none_or(|asked_at| record.revision > asked_at) {
            self.pausing = None;
            self.trigger_paused = record.state != TriggerState::Active;
        }
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

    /// Where it wants to read, if only to know how old the first unfinished cell is.
    #[must_use]
    pub fn is_curious(&self, tip: AddedId) -> Option<AddedId> {
        self.wants().or_else(|| (self.at < tip && self.oldest().is_none()).then_some(self.at))
    }

    /// What comes next, whether there is room for it or not.
    pub fn learn(&mut self, next: &[Cell]) {
        if let Some(cell) = next.iter().find(|cell| cell.added_id > self.at) {
            self.comes_next(cell.added_id, cell.created_at);
        }
    }

    /// What comes next says nothing of a time.
    pub fn learn_nothing(&mut self, now: Now) {
        self.comes_next(self.at.next(), now.wall);
    }

    fn comes_next(&mut self, first: AddedId, created_at: Millis) {
        if self.oldest().is_none() {
            self.times.clear();
            self.times.push_back((first, created_at));
        }
    }

    /// Where it will read on, room or not.
    #[must_use]
    pub fn at(&self) -> AddedId {
        self.at
    }

    /// Its trigger's share may have memory again.
    pub fn look_for_memory(&mut self) {
        let fits = |size: &mut usize| self.trigger.share.fits(*size, self.bytes == 0);
        self.starved.take_if(fits);
    }

    /// Whether it waits for memory of its trigger's share.
    #[must_use]
    pub fn is_starved(&self) -> bool {
        self.starved.is_some()
    }

    fn has_room(&self) -> bool {
        let window = &self.trigger.config.window;
        let leaving = u32::try_from(self.book.leaves()).unwrap_or(u32::MAX);
        (planted::is("the window has no bound")
            || self.undone.saturating_add(self.unsaved).saturating_add(leaving) < window.cells)
            && self.bytes as u64 <= window.bytes
            && self.book.pending() < PENDING_MAX
            && self.pause().is_none()
            && !self.window.is_ragged()
    }

    /// Takes cells of one segment in log order, from the one after [`Cursor::at`] on, while there is room. `size` is what they
    /// keep in memory, all or one.
    pub fn admit(&mut self, cells: &[Cell], size: usize, now: Now) {
        let ballast = self.trigger.share.take(size, self.bytes == 0);
        self.starved = ballast.is_none().then_some(size);
        let Some(ballast) = ballast.map(Arc::new) else { return };
        let skip = cells.partition_point(|cell| cell.added_id <= self.at);
        for cell in &cells[skip..] {
            if !self.has_room() {
                break;
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
                Decision::Erased => {
                    self.attempts.remove(&cell.added_id);
                    self.window.finish(cell.added_id);
                    self.dirty_since.get_or_insert(now.instant);
                    metrics::erased_passed(self.trigger.name.as_str());
                }
                Decision::Call => match self.condemned.take_if(|(id, _)| *id == cell.added_id) {
                    None => self.enter(cell.clone(), ballast.clone(), now),
                    Some((_, why)) => {
                        let mut item = self.item(cell.clone(), ballast.clone());
                        item.attempts += 1;
                        self.refuse(item, why, now);
                    }
                },
                Decision::Failed(error) => {
                    let item = self.item(cell.clone(), ballast.clone());
                    self.refuse(item, error, now);
                }
            }
        }
        self.judge();
    }

    /// Passes a trimmed hole.
    pub fn pass(&mut self, last: AddedId, now: Now) {
        if last > self.at {
            self.window.finish_range(self.at.next(), last);
            self.at = last;
            self.dirty_since.get_or_insert(now.instant);
            self.judge();
        }
    }

    /// Parks a damaged range as dead.
    pub fn damaged(&mut self, last: AddedId, reason: &str, now: Now) {
        if last <= self.at || !self.has_room() {
            return;
        }
        let mut first = self.at.next();
        self.at = last;
        while first <= last && self.window.is_done(first) {
            first = first.next();
        }
        if first <= last {
            let why = clip(format!("the log's segment cannot be decoded: {reason}"));
            self.bury_range(first, last, why, now);
        }
        self.judge();
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
            probed: false,
            lock,
            errors: Vec::new(),
            since: None,
            parked: false,
            ballast: Some(ballast),
        }
    }

    /// Parks a cell as dead that was just read. It was never the head of its row.
    fn refuse(&mut self, mut item: Item, why: String, now: Now) {
        item.errors.push(clip(why));
        self.undone += 1;
        self.bytes += item.size();
        self.put_in_grave(item, now);
    }

    fn enter(&mut self, cell: Cell, ballast: Arc<Ballast>, now: Now) {
        let item = self.item(cell, ballast);
        self.meets(item.added_id);
        self.undone += 1;
        self.bytes += item.size();
        if self.trigger.config.order == Order::None || planted::is("a row is not waited for") {
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
        while let Some(item) = self.retries.pop(now.instant) {
            self.make_ready(item, now);
        }
    }

    /// What it wants to do next, a slot provided.
    #[must_use]
    pub fn next(&self, now: Now) -> Next {
        let due = self.retries.due();
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
        if planted::is("the window has no bound") {
            return usize::MAX;
        }
        let exposed = (self.in_flight as usize) + (self.unsaved as usize) + self.book.removals();
        (self.trigger.config.window.cells as usize).saturating_sub(exposed)
    }

    /// Takes the cells of one call, and whether it is the breaker's probe.
    pub fn take(&mut self, now: Now) -> Option<(Vec<Item>, bool)> {
        self.take_at_most(usize::MAX, now)
    }

    /// The same, of so many cells.
    pub fn take_at_most(&mut self, most: usize, now: Now) -> Option<(Vec<Item>, bool)> {
        if self.next(now) != Next::Call {
            return None;
        }
        let batch = most.min(self.trigger.config.batch as usize);
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
            Some(Gate::Probe) => {
                if let Some(rate) = &self.trigger.rate {
                    rate.give_back(n - 1);
                }
                self.choose_probe();
                (1, true)
            }
            Some(Gate::Wait(_)) => {
                if let Some(rate) = &self.trigger.rate {
                    rate.give_back(n);
                }
                return None;
            }
        };
        let mut items: Vec<Item> = self.ready.drain(..n).collect();
        self.ready_since = (!self.ready.is_empty()).then_some(now.instant);
        self.in_flight += u32::try_from(n).unwrap_or(u32::MAX);
        for item in &mut items {
            self.refresh(item);
            item.since.get_or_insert(now.wall);
        }
        Some((items, probe))
    }

    /// Puts the cell with the best prospects first: what failed before may be bad itself, and tell nothing of the outage.
    fn choose_probe(&mut self) {
        let prospects = |(i, item): &(usize, &Item)| (item.probed, item.attempts, *i);
        let best = self.ready.iter().enumerate().min_by_key(prospects).map(|(i, _)| i);
        if let Some(item) = best.and_then(|best| self.ready.remove(best)) {
            self.ready.push_front(item);
        }
    }

    /// Of a parked cell the book knows best: an operator may have reset its attempts meanwhile.
    fn refresh(&self, item: &mut Item) {
        if item.parked
            && let Some(parked) = self.book.get(item.added_id)
        {
            item.attempts = parked.attempts;
            item.since = Some(parked.since);
        }
    }

    /// Takes a cell back with its verdict; `probe` when it was the breaker's.
    pub fn settle(&mut self, ended: Ended, probe: bool, now: Now) {
        let Ended { item, verdict, called } = ended;
        self.in_flight -= 1;
        if called {
            self.trigger.calls.ended(verdict.label());
            self.proves(item.added_id);
        }
        self.tell_breaker(&verdict, called, probe, now);
        self.decide(item, verdict, probe, now);
        self.judge();
    }

    /// What becomes of a cell after its verdict.
    fn decide(&mut self, mut item: Item, verdict: Verdict, probe: bool, now: Now) {
        if item.parked {
            let Some(parked) = self.book.get(item.added_id) else {
                // An operator dropped it meanwhile.
                self.in_hand.remove(&item.added_id);
                self.leave_row(&item.lock, now);
                return;
            };
            item.errors.clone_from(&parked.errors);
            self.refresh(&mut item);
        }
        match verdict {
            Verdict::Done { .. } | Verdict::Drop => self.finish(item, now),
            Verdict::Snooze { after } => self.again(item, after.max(SNOOZE_MIN), now),
            Verdict::Interrupted { error } => {
                item.interruptions += 1;
                note(&mut item.errors, error);
                self.again(item, INTERRUPTED_WAIT, now);
            }
            Verdict::Failed { error, .. } if probe && !item.probed => {
                // The attempt was made to see whether the outage is over, not for the cell's sake. The next probe is another
                // cell, if there is one: this one may be bad itself.
                note(&mut item.errors, error);
                item.probed = true;
                self.make_ready(item, now);
            }
            Verdict::Failed { .. } if planted::is("a failed cell counts as done") => self.finish(item, now),
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
                self.pausing = Some(self.revision);
                self.pause_wish = Some(clip(error));
                self.ready_since.get_or_insert(now.instant);
                self.ready.push_front(item);
            }
        }
    }

    fn tell_breaker(&self, verdict: &Verdict, called: bool, probe: bool, now: Now) {
        let Some(breaker) = &self.trigger.breaker else { return };
        if !called {
            if probe {
                breaker.probe_was_not_made(now.instant);
            }
            return;
        }
        let good = !matches!(verdict, Verdict::Failed { .. } | Verdict::Interrupted { .. });
        if breaker.report(now.instant, probe, good) {
            tracing::warn!(trigger = %self.trigger.name, "everything fails: calls stop for a while");
        }
    }

    fn finish(&mut self, item: Item, now: Now) {
        self.proves(item.added_id);
        if item.parked {
            self.book.remove(item.added_id);
            self.in_hand.remove(&item.added_id);
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
