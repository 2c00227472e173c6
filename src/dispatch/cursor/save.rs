//! What is written of a cursor's work: the checkpoint, and the changes of its lanes.

use super::{Cursor, GRAVES_MAX, Now};
use crate::{
    cell::{Checkpoint, LaneChange, planted},
    checkpoint::{Window, encode_attempts},
};
use std::time::Duration;
use tokio::time::Instant;

impl Cursor {
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
        self.dirty_since.is_none() && self.book.is_written() && self.leaving.is_empty()
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
        let changes = if planted::is("a cell is passed before it is parked") { Vec::new() } else { changes };
        self.leaving = leaving;
        self.unsaved_sent = self.unsaved;
        self.sent_since = self.unstored_since();
        self.dirty_since = None;
        (checkpoint, changes)
    }

    /// What is durable of its work, when [all is](Cursor::is_clean).
    #[must_use]
    pub fn checkpoint(&self) -> Checkpoint {
        self.checkpoint_of(&self.window)
    }

    fn checkpoint_of(&self, window: &Window) -> Checkpoint {
        if planted::is("checkpoint passes an unfinished cell") {
            return Checkpoint { low: self.at, generation: self.generation, ..Checkpoint::default() };
        }
        let low = if planted::is("low-water is the highest finished cell") { window.end() } else { window.low() };
        Checkpoint {
            low,
            done: window.encode().0,
            attempts: encode_attempts(window.low(), self.attempts.iter().map(|(id, n)| (*id, *n))),
            paused: self.paused.clone(),
            dead: self.dead,
            generation: self.generation,
            outlived: self.outlived,
        }
    }

    /// The write was accepted.
    pub fn written(&mut self, now: Now) {
        for (first, last) in std::mem::take(&mut self.leaving) {
            self.window.finish_range(first, last);
        }
        self.sent_since = None;
        for (id, since) in self.book.written() {
            if self.graves.len() < GRAVES_MAX {
                self.graves.insert(id, since);
            }
        }
        self.unsaved -= std::mem::take(&mut self.unsaved_sent);
        if self.book.pending() > 0 {
            self.dirty_since.get_or_insert(now.instant);
        }
        if self.undone == 0 {
            // What is emptied keeps its memory, in each of thousands of idle shards.
            self.ready.shrink_to_fit();
            self.rows.shrink_to_fit();
            self.in_hand.shrink_to_fit();
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
