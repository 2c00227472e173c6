//! Cells that leave the window for a lane, and those that come back from one.

use super::{Cursor, Item, Now, Row, note};
use crate::{
    cell::{AddedId, CellKey, Millis, Parked, ParkedState, ShardPause, planted},
    dispatch::{
        config::{Exhausted, Order},
        lane,
        retry::IN_MEMORY,
    },
    metrics,
};
use bytestring::ByteString;
use std::{collections::VecDeque, time::Duration};
use tokio::time::Instant;

/// Bytes of an error that the log shows; all of it stands in the lane.
const LOGGED: usize = 200;
/// Longest wait, whatever a handler asks for.
const WAIT_MAX: Duration = Duration::from_hours(365 * 24);

impl Cursor {
    /// Later again: soon from memory, much later from the active lane.
    pub(super) fn again(&mut self, mut item: Item, wait: Duration, now: Now) {
        let wait = wait.min(WAIT_MAX);
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
            if planted::is("a parked cell is deleted before it is tried again") {
                self.book.remove(item.added_id);
            }
            self.dirty_since.get_or_insert(now.instant);
        } else if wait > IN_MEMORY && self.trigger.config.order != Order::Shard && self.has_room_for(&item) {
            self.park(&mut item, ParkedState::Retrying, next_attempt_at, now);
        } else if item.attempts > 0 {
            self.attempts.insert(item.added_id, item.attempts);
            self.dirty_since.get_or_insert(now.instant);
        }
        let (head, parked) = (item.added_id, item.parked);
        let lock = item.lock.clone();
        self.retries.insert(due, item);
        if planted::is("a row goes on while its cell waits to be tried again") {
            return self.leave_row(&lock, now);
        }
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

    /// Whether the active lane has room for a cell of the window.
    fn has_room_for(&self, item: &Item) -> bool {
        let (row_key, column) = item.cell.as_ref().map_or(("", ""), |cell| (&*cell.key.row_key, &*cell.key.column));
        self.book.has_room(lane::size(row_key, column, &item.errors))
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
        let Parked { row_key: row, column, ref_key, attempts, .. } = &parked;
        let (trigger, shard, added_id) = (&self.trigger.name, &self.shard, item.added_id);
        let error = parked.errors.last().map(|error| cut(error));
        if state == ParkedState::Retrying {
            tracing::info!(%trigger, %shard, %added_id, row, column, ref_key, attempts, error, "parked until it is tried again");
        } else {
            tracing::info!(%trigger, %shard, %added_id, row, column, ref_key, "parked behind a retrying cell of its row");
        }
        self.book.park(parked);
        self.undone -= 1;
        self.bytes -= item.size();
        self.attempts.remove(&item.added_id);
        item.cell = None;
        item.key = key;
        item.parked = true;
        item.ballast = None;
        item.errors = Vec::new();
        self.in_hand.insert(item.added_id);
        self.dirty_since.get_or_insert(now.instant);
        self.proves(item.added_id);
    }

    pub(super) fn parked_as(&self, added_id: AddedId, state: ParkedState, now: Now) -> Parked {
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
    pub(super) fn park_behind(&mut self, head: AddedId, mut item: Item, now: Now) {
        let lock = item.lock.clone();
        let has_room = self.has_room_for(&item);
        let Some(row) = self.rows.get_mut(&lock) else { return };
        // The lane is full, of whatever rows: it waits in the window. And so does whatever comes after it in its row: a new owner
        // calls what lies in the lane before it reads what does not.
        if !has_room || row.queue.back().is_some_and(|last| !last.parked) {
            row.queue.push_back(item);
            return;
        }
        if row.queue.len() < self.trigger.config.max_waiting as usize {
            self.park(&mut item, ParkedState::Waiting, Millis(0), now);
            if let Some(row) = self.rows.get_mut(&lock) {
                row.queue.push_back(item);
            }
            return;
        }
        row.queue.push_back(item);
        if self.trigger.config.exhausted != Exhausted::Block
            && let Some(mut head) = self.retries.remove(head)
        {
            if let Some(parked) = self.book.get(head.added_id) {
                head.errors.clone_from(&parked.errors);
                self.refresh(&mut head);
            }
            note(
                &mut head.errors,
                format!("{} later cells of its row wait behind it", self.trigger.config.max_waiting),
            );
            self.exhaust(head, now);
        }
    }

    pub(super) fn exhaust(&mut self, item: Item, now: Now) {
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

    /// Parks a cell as dead, and what waited behind it comes.
    pub(super) fn bury(&mut self, item: Item, now: Now) {
        let lock = item.lock.clone();
        self.put_in_grave(item, now);
        self.leave_row(&lock, now);
    }

    /// Parks a cell as dead. It blocks nobody.
    pub(super) fn put_in_grave(&mut self, item: Item, now: Now) {
        self.proves(item.added_id);
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
            self.in_hand.remove(&item.added_id);
            match self.book.remove(item.added_id) {
                Some(parked) => Parked { state: ParkedState::Dead, revision: Parked::fresh_revision(), ..parked },
                None => return,
            }
        };
        let parked = Parked { attempts: item.attempts, errors: item.errors, next_attempt_at: Millis(0), ..parked };
        let Parked { row_key: row, column, ref_key, attempts, .. } = &parked;
        // What CEL says may show the cell's values, which are in no log.
        let filtered = *attempts == 0;
        let error =
            if filtered { Some("the filter fails on it") } else { parked.errors.last().map(|error| cut(error)) };
        tracing::warn!(trigger = %self.trigger.name, shard = %self.shard, added_id = %item.added_id,
            row, column, ref_key, attempts, error, "parked as dead");
        if planted::is("a dead cell is not written") {
            self.window.finish(item.added_id);
            return self.leave_row(&item.lock, now);
        }
        self.book.bury(parked, from_window);
        self.count_dead(now);
    }

    /// Parks a range that cannot be read as dead.
    pub(super) fn bury_range(&mut self, first: AddedId, last: AddedId, why: String, now: Now) {
        let parked = Parked { last, errors: vec![why], ..self.parked_as(first, ParkedState::Dead, now) };
        self.book.bury(parked, true);
        self.count_dead(now);
    }

    /// One more is dead; too many are a systematic error, and a person has to look.
    fn count_dead(&mut self, now: Now) {
        self.dead += 1;
        if self.dead > self.trigger.config.max_parked && self.paused.is_none() {
            let reason = format!("{} dead cells on this shard, more than max_parked", self.dead);
            tracing::error!(trigger = %self.trigger.name, shard = %self.shard, reason, "paused on this shard");
            self.paused = Some(ShardPause { generation: self.generation, reason });
        }
        self.dirty_since.get_or_insert(now.instant);
    }

    /// Takes the active lane as it is stored, at the start. A parked cell that the checkpoint does not count as finished is
    /// before it again, after a rewind or because the finished ranges did not fit: the log brings it in its order, and its
    /// lane item goes.
    pub fn resume_lane(&mut self, stored: Vec<Parked>, now: Now) {
        if planted::is("a new owner does not load the lane") {
            return;
        }
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
        for parked in gone {
            self.forget(&parked, now);
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
            if let Some(item) = self.retries.remove(id) {
                // The due time may have changed.
                self.retries.insert(due, item);
            } else if !self.in_hand.contains(&id) {
                self.load(parked, due);
            }
        }
    }

    /// What a parked cell waits behind.
    fn lock_of(&self, row_key: &ByteString) -> ByteString {
        match self.trigger.config.order {
            Order::Row => row_key.clone(),
            Order::Shard | Order::None => ByteString::new(),
        }
    }

    /// Takes a parked cell that was not in hand.
    fn load(&mut self, parked: Parked, due: Instant) {
        let key = CellKey { row_key: parked.row_key.into(), column: parked.column.into(), ref_key: parked.ref_key };
        let lock = self.lock_of(&key.row_key);
        let item = Item {
            added_id: parked.added_id,
            cell: None,
            key: (!key.row_key.is_empty()).then_some(key),
            attempts: parked.attempts,
            interruptions: 0,
            probed: false,
            lock,
            errors: Vec::new(),
            since: Some(parked.since),
            parked: true,
            ballast: None,
        };
        self.in_hand.insert(item.added_id);
        if self.trigger.config.order == Order::None {
            self.retries.insert(due, item);
            return;
        }
        match self.rows.get_mut(&item.lock) {
            Some(_) if planted::is("a waiting cell does not wait") => self.retries.insert(due, item),
            Some(row) => {
                let place = row.queue.partition_point(|other| other.added_id < item.added_id);
                row.queue.insert(place, item);
            }
            None => {
                self.rows.insert(item.lock.clone(), Row { head: item.added_id, queue: VecDeque::new() });
                self.retries.insert(due, item);
            }
        }
    }

    /// An operator took a parked cell away. One in flight is passed when it comes back.
    fn forget(&mut self, parked: &Parked, now: Now) {
        let id = parked.added_id;
        self.proves(id);
        let head = self.retries.remove(id).or_else(|| {
            let place = self.ready.iter().position(|item| item.added_id == id)?;
            self.ready.remove(place)
        });
        if let Some(item) = head {
            self.in_hand.remove(&id);
            self.leave_row(&item.lock, now);
            return;
        }
        let lock = self.lock_of(&ByteString::from(parked.row_key.as_str()));
        if let Some(row) = self.rows.get_mut(&lock)
            && let Ok(place) = row.queue.binary_search_by_key(&id, |item| item.added_id)
        {
            row.queue.remove(place);
            self.in_hand.remove(&id);
        }
    }
}

fn cut(error: &str) -> &str {
    let end = (0..=LOGGED.min(error.len())).rev().find(|end| error.is_char_boundary(*end));
    &error[..end.unwrap_or(0)]
}
