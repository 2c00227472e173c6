//! The crash guard: finds the cell that kills its workers, and blames no other.
//!
//! When two owners in a row died before they were through with what they had found undone (`dispatch`'s trial of a cursor),
//! the shard's cells are called one at a time, and of all such shards of a process one. Each is recorded in the lease before
//! its call, and the record is gone, durably, before the next shard has its turn:
//!
//! ```text
//! idle ─▶ waiting for a turn ─▶ preparing ─▶ recording ─▶ calling ─▶ clearing ─▶ idle
//!                                 │ takes the cell   └── durable        └── durable
//! ```
//!
//! A record whose owner died names a suspect, and no more: shards that are not under guard went on beside it. The next owner
//! calls the suspect with nothing beside it in the whole process, and records that too. If that owner dies as well, the
//! cell is quarantined. So whoever stands beside a bad cell is never taken for it.

use super::{LOOK, Work};
use crate::{
    cell::{Alone, Verdict, planted},
    dispatch::{Ended, Item, Next, Now, attempt},
    shard::company::{Guarded, Turn},
};
use futures_util::{
    FutureExt,
    future::{BoxFuture, OptionFuture},
};
use std::time::Duration;
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

/// What the guard waits for.
pub(super) enum Ready {
    /// Its turn in the process.
    Turn(Turn),
    /// The turn again, and a slot of the trigger, with silence where it was asked for.
    Prepared(Turn, OwnedSemaphorePermit),
}

/// A cell that is to be called alone.
struct Taken {
    number: u64,
    items: Vec<Item>,
    probe: bool,
    alone: Alone,
}

#[derive(Default)]
enum Step {
    #[default]
    Idle,
    Waiting,
    Preparing(Taken),
    Recording(Taken, Turn, OwnedSemaphorePermit),
    Calling(Alone, Turn),
    Clearing {
        turn: Turn,
    },
}

/// What the write under way does for the guard.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Sent {
    #[default]
    Nothing,
    Record,
    Clear,
}

/// Its state.
#[derive(Default)]
pub(super) struct Guard {
    step: Step,
    pub(super) sent: Sent,
    pub(super) ready: OptionFuture<BoxFuture<'static, Ready>>,
    pub(super) waiting: bool,
    /// What the owner before, who died, recorded; until a write makes it obsolete.
    inherited: Option<Alone>,
    /// The same, for as long as the cell was not called with nothing beside it.
    suspect: Option<Alone>,
    /// There was nothing to call, though it seemed so.
    rests: Option<Instant>,
    /// The cursor that had the last turn.
    last: u64,
    /// It was told that it is on.
    told: Option<Guarded>,
}

impl Guard {
    /// `alone` is that of the lease as it was claimed.
    pub(super) fn new(alone: Option<Alone>) -> Self {
        Self { suspect: alone.clone().filter(|alone| !alone.quiet), inherited: alone, ..Self::default() }
    }

    /// The cell to be quarantined.
    pub(super) fn culprit(&self) -> Option<&Alone> {
        self.inherited.as_ref().filter(|alone| alone.quiet && !planted::is("a cell that kills workers is called again"))
    }

    /// Whether something has to be written at once.
    pub(super) fn wants_write(&self) -> bool {
        matches!(self.step, Step::Recording(..) | Step::Clearing { .. })
    }

    /// Whether calls are none of its matter.
    pub(super) fn is_off(&self) -> bool {
        self.told.is_none() && self.is_idle()
    }

    /// Whether nothing of it is under way.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.step, Step::Idle)
    }
}

impl Work {
    /// Whether calls are the guard's matter now; takes its next step if so.
    pub(super) fn guard(&mut self, now: Now) -> bool {
        let on = self.is_guarded();
        if on != self.guard.told.is_some() {
            self.guard.told = on.then(|| self.home.shared.company.guard());
            tracing::debug!(shard = %self.home.shard, on, "crash guard");
        }
        if !self.home.fence.is_safe() {
            // Nothing can be recorded. The others, if they may call, do not wait for that.
            self.stand_down(now);
            if let Step::Recording(_, turn, _) | Step::Clearing { turn } = &mut self.guard.step {
                turn.unhush();
            }
            return on || !self.guard.is_idle();
        }
        let rests = self.guard.rests.is_some_and(|until| until > now.instant);
        if on && self.guard.is_idle() && !rests && self.calls.is_empty() && self.next_alone(now).is_some() {
            self.guard.step = Step::Waiting;
            self.wait_for(self.home.shared.company.clone().turn().map(Ready::Turn).boxed());
        }
        on || !self.guard.is_idle()
    }

    fn is_guarded(&self) -> bool {
        self.cursors.values().any(|held| !held.leaving && held.cursor.is_suspect())
    }

    fn wait_for(&mut self, ready: BoxFuture<'static, Ready>) {
        (self.guard.ready, self.guard.waiting) = (Some(ready).into(), true);
    }

    /// The cursor whose cell is called next: the suspect's, or the next one in turn.
    fn next_alone(&self, now: Now) -> Option<u64> {
        let calls = |number: &u64| {
            let held = &self.cursors[number];
            !held.leaving && held.cursor.next(now) == Next::Call
        };
        // A culprit that is about to be read is put aside first: a record would take the place of the evidence.
        if let Some(culprit) = self.guard.culprit()
            && self.cursors.values().any(|held| held.cursor.condemns(culprit.added_id) && held.cursor.wants().is_some())
        {
            return None;
        }
        let of_suspect = |number: &u64| self.suspect_of(*number).is_some();
        let later = self.cursors.range(self.guard.last + 1..);
        let in_turn = later.chain(self.cursors.range(..=self.guard.last)).map(|(number, _)| *number);
        self.cursors.keys().copied().filter(of_suspect).chain(in_turn).find(calls)
    }

    /// The suspect, if it is this cursor's.
    fn suspect_of(&self, number: u64) -> Option<&Alone> {
        let trigger = &self.cursors.get(&number)?.cursor.trigger().record.id;
        self.guard.suspect.as_ref().filter(|suspect| suspect.trigger == *trigger)
    }

    /// What the guard waited for is there.
    pub(super) fn on_ready(&mut self, ready: Ready, now: Now) {
        (self.guard.ready, self.guard.waiting) = (None.into(), false);
        match (ready, std::mem::take(&mut self.guard.step)) {
            (Ready::Turn(turn), _) => self.prepare(turn, now),
            (Ready::Prepared(turn, permit), Step::Preparing(taken)) => {
                self.guard.step = Step::Recording(taken, turn, permit);
            }
            (Ready::Prepared(..), _) => {}
        }
    }

    /// Takes one cell, and waits for what its call needs.
    fn prepare(&mut self, mut turn: Turn, now: Now) {
        let next = self.next_alone(now).filter(|_| self.calls.is_empty() && self.may_call());
        let suspect = next.and_then(|number| self.suspect_of(number)).cloned();
        let taken = next.and_then(|number| {
            let cursor = &mut self.cursors.get_mut(&number)?.cursor;
            if let Some(suspect) = &suspect {
                cursor.bring_forward(suspect.added_id);
            }
            let (items, probe) = cursor.take_at_most(1, now)?;
            let added_id = items.first()?.added_id;
            let quiet = suspect.is_some_and(|suspect| suspect.added_id == added_id);
            let alone = Alone { trigger: cursor.trigger().record.id.clone(), added_id, quiet };
            Some((Taken { number, items, probe, alone }, cursor.trigger().slots.clone()))
        });
        let Some((taken, slots)) = taken else {
            self.guard.rests = Some(now.instant + LOOK);
            return;
        };
        self.guard.last = taken.number;
        let quiet = taken.alone.quiet;
        self.guard.step = Step::Preparing(taken);
        self.wait_for(
            async move {
                if quiet {
                    turn.hush().await;
                }
                Ready::Prepared(turn, slots.acquire_owned().await.expect("slots are never closed"))
            }
            .boxed(),
        );
    }

    /// What a write says of the cell that is called alone. A write that hands the shard over says nothing.
    pub(super) fn alone_in(&self, release: bool) -> (Option<Alone>, Sent) {
        match &self.guard.step {
            _ if release => (None, Sent::Clear),
            Step::Recording(taken, ..) => (Some(taken.alone.clone()), Sent::Record),
            Step::Calling(alone, _) => (Some(alone.clone()), Sent::Nothing),
            Step::Clearing { .. } => (None, Sent::Clear),
            Step::Idle | Step::Waiting | Step::Preparing(_) => (self.inherited().cloned(), Sent::Nothing),
        }
    }

    /// What the owner before recorded, as long as it is good for something: of a culprit until its quarantine is written, of
    /// a suspect until it was called. To be asked after the write has taken what it writes of the lanes.
    fn inherited(&self) -> Option<&Alone> {
        let inherited = self.guard.inherited.as_ref()?;
        let of = |held: &&super::Held| held.cursor.trigger().record.id == inherited.trigger;
        let good = match self.cursors.values().map(|held| &**held).find(of) {
            Some(held) if inherited.quiet => held.cursor.condemns(inherited.added_id),
            Some(held) => held.cursor.is_suspect(),
            None => self.missing().any(|trigger| trigger.record.id == inherited.trigger),
        };
        good.then_some(inherited)
    }

    /// The write under way was accepted.
    pub(super) fn guard_written(&mut self, wrote: Option<&Alone>, now: Now) {
        if wrote != self.guard.inherited.as_ref() {
            self.guard.inherited = None;
        }
        match (std::mem::take(&mut self.guard.sent), std::mem::take(&mut self.guard.step)) {
            (Sent::Record, Step::Recording(taken, turn, permit)) => self.call_alone(taken, turn, permit, now),
            (Sent::Clear, Step::Clearing { .. }) => {}
            (_, step) => self.guard.step = step,
        }
    }

    fn call_alone(&mut self, taken: Taken, turn: Turn, permit: OwnedSemaphorePermit, now: Now) {
        let leaving = self.cursors.get(&taken.number).is_none_or(|held| held.leaving);
        if leaving || !self.may_call() || taken.alone.quiet && !turn.is_hushed() {
            self.give_back(taken, now);
            self.guard.step = Step::Clearing { turn };
            return;
        }
        let Taken { number, items, probe, alone } = taken;
        self.guard.suspect.take_if(|suspect| alone.quiet && suspect.added_id == alone.added_id);
        let trigger = self.cursors[&number].cursor.trigger().clone();
        self.calls.push(attempt(trigger, number, self.epoch, items, probe, permit, self.may.clone()).boxed());
        self.guard.step = Step::Calling(alone, turn);
    }

    /// A call ended.
    pub(super) fn guard_settled(&mut self) {
        match std::mem::take(&mut self.guard.step) {
            Step::Calling(_, turn) => self.guard.step = Step::Clearing { turn },
            step => self.guard.step = step,
        }
    }

    /// A cell that was taken is not called after all.
    fn give_back(&mut self, taken: Taken, now: Now) {
        let Some(held) = self.cursors.get_mut(&taken.number) else { return };
        for item in taken.items {
            let ended = Ended { item, verdict: Verdict::Snooze { after: Duration::ZERO }, called: false };
            held.cursor.settle(ended, taken.probe, now);
        }
    }

    /// The shard is to be handed over: what was not recorded is not called.
    pub(super) fn stand_down(&mut self, now: Now) {
        if self.guard.sent == Sent::Record {
            return;
        }
        match std::mem::take(&mut self.guard.step) {
            Step::Preparing(taken) | Step::Recording(taken, ..) => self.give_back(taken, now),
            step @ (Step::Calling(..) | Step::Clearing { .. }) => {
                self.guard.step = step;
                return;
            }
            Step::Idle | Step::Waiting => {}
        }
        (self.guard.ready, self.guard.waiting) = (None.into(), false);
    }

    /// Whether a call may begin at all.
    pub(super) fn may_call(&self) -> bool {
        self.give_by.is_none() && self.home.fence.may_call() && !self.is_foreign()
    }
}
