//! What the shards of a process tell about their work, for whoever watches.

use crate::{
    cell::{AddedId, Epoch, Millis, Name, ShardRef},
    dispatch::Lot,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::time::Instant;

/// What a shard tells about one of its triggers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    /// Low-water.
    pub low: AddedId,
    /// The tip, as heard.
    pub tip: AddedId,
    /// Cells up to the tip that are not finished.
    pub lag: u64,
    /// `created_at` of the oldest unfinished cell, when there is one.
    pub oldest: Option<Millis>,
    /// Parked cells: retrying, waiting, dead.
    pub parked: [Lot; 3],
    /// How full the window is, from 0 to 1.
    pub window_fill: f64,
    /// Since when something is finished that no stored checkpoint covers.
    pub unstored_since: Option<Instant>,
    /// Why nothing is called, if so.
    pub paused: Option<String>,
    /// Why there is no progress though there should be, if so.
    pub stopped: Option<String>,
}

/// By trigger.
pub(super) type Told = Vec<(Name, Standing)>;

/// What all shards of this process tell.
#[derive(Clone, Default)]
pub struct Standings(Arc<Mutex<BTreeMap<ShardRef, (Epoch, Told)>>>);

impl Standings {
    pub(super) fn tell(&self, shard: &ShardRef, epoch: Epoch, told: Told) {
        self.all().insert(shard.clone(), (epoch, told));
    }

    /// Shows what was last told, without a copy of it.
    pub fn each(&self, mut see: impl FnMut(&ShardRef, &[(Name, Standing)])) {
        for (shard, (_, told)) in &*self.all() {
            see(shard, told);
        }
    }

    /// As last told.
    #[must_use]
    pub fn read(&self) -> BTreeMap<ShardRef, BTreeMap<Name, Standing>> {
        self.all().iter().map(|(shard, (_, told))| (shard.clone(), told.iter().cloned().collect())).collect()
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<ShardRef, (Epoch, Told)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes back what a shard task told when that ends, however it ends; not what the task of a later epoch tells.
pub(super) struct Silence(pub(super) Standings, pub(super) ShardRef, pub(super) Epoch);

impl Drop for Silence {
    fn drop(&mut self) {
        let Self(standings, shard, epoch) = self;
        let mut all = standings.all();
        if all.get(shard).is_some_and(|(told_at, _)| told_at == epoch) {
            all.remove(shard);
        }
    }
}
