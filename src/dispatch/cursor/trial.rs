//! What a cursor has to get through before the deaths of its shard's owners are behind it.
//!
//! Whoever dies takes with him what he knew of his calls. What he may have had in flight are the cells that the next owner
//! finds undone: the first of the log, as many as a window holds, and the parked ones that were due. When each of them has
//! been called and its owner lives, none of them is to blame.

use super::{Cursor, Now, note};
use crate::{
    cell::{AddedId, ShardPause},
    dispatch::config::Exhausted,
    metrics,
};
use std::collections::HashSet;

/// Deaths after which cells are called one at a time.
const DEATHS: u64 = 2;

/// A trial that is not over, as a rule.
#[derive(Debug)]
pub(super) struct Trial {
    /// Of the lease.
    deaths: u64,
    /// Cells behind this place were not there when the owner died.
    end: AddedId,
    /// So many more cells of the log may have been in flight.
    left: u32,
    /// Those that were met, and whose call has not ended yet.
    unproven: HashSet<AddedId>,
}

impl Cursor {
    /// Begins one, if owners died that are not behind it: the lease counts `deaths`, and the log ends at `tip`. To be told
    /// once, when the active lane is loaded.
    pub fn on_trial(&mut self, deaths: u64, tip: AddedId, now: Now) {
        if deaths > self.outlived {
            let unproven = self.retries.due_by(now.instant).collect();
            let left = self.trigger.config.window.cells;
            self.trial = Some(Box::new(Trial { deaths, end: tip, left, unproven }));
            self.judge();
        }
    }

    /// Deaths that its cells may be to blame for.
    #[must_use]
    pub fn deaths(&self) -> u64 {
        self.trial.as_ref().map_or(0, |trial| trial.deaths.saturating_sub(self.outlived))
    }

    /// Whether so many owners died over its cells that these must be called one at a time. Not while it is paused.
    #[must_use]
    pub fn is_suspect(&self) -> bool {
        self.deaths() >= DEATHS && self.pause().is_none()
    }

    /// Puts a cell first, if it is ready.
    pub fn bring_forward(&mut self, id: AddedId) {
        if let Some(at) = self.ready.iter().position(|item| item.added_id == id)
            && let Some(item) = self.ready.remove(at)
        {
            self.ready.push_front(item);
        }
    }

    /// Parks a cell as dead, as soon as it is met, that was the only one in flight when the last of so many owners died.
    /// Where failures are to block, the trigger pauses on this shard instead. To be told once the active lane is loaded.
    pub fn quarantine(&mut self, id: AddedId, deaths: u64, now: Now) {
        if self.window.is_done(id) && !self.retries.has(id) {
            return;
        }
        let why = format!("{deaths} workers died with this cell in flight, the last one while it made no other call");
        metrics::quarantined(self.trigger.name.as_str());
        tracing::error!(trigger = %self.trigger.name, shard = %self.shard, added_id = %id, deaths, "this cell kills workers: quarantined");
        if self.trigger.config.exhausted == Exhausted::Block {
            self.paused = Some(ShardPause { generation: self.generation, reason: format!("cell {id}: {why}") });
            self.dirty_since.get_or_insert(now.instant);
        } else if let Some(mut item) = self.retries.remove(id) {
            if let Some(parked) = self.book.get(id) {
                item.errors.clone_from(&parked.errors);
            }
            item.attempts += 1;
            note(&mut item.errors, why);
            self.bury(item, now);
        } else {
            self.condemned = Some((id, why));
        }
    }

    /// Whether the quarantine of a cell is in no write yet.
    #[must_use]
    pub fn condemns(&self, id: AddedId) -> bool {
        self.condemned.as_ref().is_some_and(|(condemned, _)| *condemned == id) || self.book.is_unsent(id)
    }

    /// A cell of the log is to be called for.
    pub(super) fn meets(&mut self, id: AddedId) {
        if let Some(trial) = &mut self.trial
            && trial.left > 0
            && id <= trial.end
        {
            trial.left -= 1;
            trial.unproven.insert(id);
        }
    }

    /// Its call ended, or it will not be called.
    pub(super) fn proves(&mut self, id: AddedId) {
        if let Some(trial) = &mut self.trial {
            trial.unproven.remove(&id);
        }
    }

    /// Ends the trial when nothing is left of it.
    pub(super) fn judge(&mut self) {
        let over = |trial: &mut Box<Trial>| trial.unproven.is_empty() && (trial.left == 0 || self.at >= trial.end);
        if let Some(trial) = self.trial.take_if(over) {
            self.outlived = trial.deaths;
        }
        self.condemned.take_if(|(id, _)| *id <= self.at);
    }
}
