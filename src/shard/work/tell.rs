//! What a shard tells about its work.

use super::{TOLD, Work};
use crate::{
    cell::AddedId,
    checkpoint,
    dispatch::Now,
    shard::standing::{Standing, Told},
};

impl Work {
    /// Tells how far each trigger is, now and then.
    pub(super) fn tell(&mut self, now: Now) {
        if !self.tell_due || self.told + TOLD > now.instant {
            return;
        }
        self.told = now.instant;
        self.tell_due = false;
        let tip = *self.tip.borrow();
        let shared = &self.home.shared;
        let foreign = shared.foreign.borrow().get(&self.home.shard.source).cloned();
        let stopped = foreign.or_else(|| self.stopped.clone()).or_else(|| self.trouble.borrow().clone());
        let standings = self.cursors.values().map(|held| {
            let cursor = &held.cursor;
            let lag = cursor.lag(tip);
            let standing = Standing {
                low: cursor.low(),
                tip,
                lag,
                oldest: (lag > 0).then(|| cursor.oldest()).flatten(),
                parked: cursor.lots(),
                window_fill: cursor.window_fill(),
                unstored_since: cursor.unstored_since(),
                paused: cursor.pause().map(str::to_owned),
                stopped: stopped.clone(),
            };
            (cursor.trigger().name.clone(), standing)
        });
        let mut told: Told = standings.collect();
        for trigger in self.missing() {
            // Not at work yet: how far it is stands in the lease.
            let checkpoint = self.lease.checkpoints.get(&trigger.record.id);
            let low = checkpoint.map_or(AddedId(0), |checkpoint| checkpoint.low);
            let lag = checkpoint.map_or(0, |checkpoint| checkpoint::lag(checkpoint, tip));
            if lag > 0 || self.start_error.is_some() {
                let stopped = self.start_error.clone();
                told.push((trigger.name.clone(), Standing { low, tip, lag, stopped, ..Standing::default() }));
            }
        }
        told.shrink_to_fit();
        shared.standings.tell(&self.home.shard, self.epoch, told);
    }
}
