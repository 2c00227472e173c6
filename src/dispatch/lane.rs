//! The parked cells of one cursor: what the active lane holds, and the changes that are not durable yet.
//!
//! A cell leaves the window for a lane in one transaction: the change here and the checkpoint that passes the cell are
//! written together. Until that write is accepted the window keeps the cell.

use super::budget::Charge;
use crate::cell::{AddedId, LaneChange, Millis, Parked};
use std::collections::BTreeMap;

/// Active parked cells of one trigger and shard at most; a cell that would be one more waits in the window.
const ACTIVE_MAX: usize = 10_000;
/// Bytes that a parked cell takes in memory beside its texts, about: its entry here, and its place in the queue.
const ENTRY: usize = 600;

/// Bytes that a parked cell takes in memory, about.
pub(super) fn size(row_key: &str, column: &str, errors: &[String]) -> usize {
    ENTRY + 2 * (row_key.len() + column.len()) + errors.iter().map(String::len).sum::<usize>()
}

fn size_of(parked: &Parked) -> usize {
    size(&parked.row_key, &parked.column, &parked.errors)
}

/// The active lane as it will be once everything is written.
#[derive(Debug)]
pub(super) struct LaneBook {
    active: BTreeMap<AddedId, Parked>,
    /// Pays for them.
    charge: Charge,
    out: BTreeMap<AddedId, Change>,
    sending: BTreeMap<AddedId, Change>,
    /// Changes with which a cell leaves the window, in both.
    leaves: usize,
    /// Cells that were finished in the lane, as long as the store still has them there.
    removals: usize,
}

/// What is to be written about one place.
#[derive(Clone, Debug, Default)]
struct Change {
    active: Option<Active>,
    dead: Option<Parked>,
    /// Cells that leave the window with this write.
    leaves: Option<(AddedId, AddedId)>,
}

/// The change in the active lane. `Put` and `Update` write the item as the book has it at that time.
#[derive(Clone, Debug)]
enum Active {
    Put,
    Update,
    Delete(Parked),
}

impl Change {
    fn actions(&self) -> usize {
        usize::from(self.active.is_some()) + usize::from(self.dead.is_some())
    }
}

impl LaneBook {
    /// Without cells.
    pub(super) fn new(charge: Charge) -> Self {
        Self { active: BTreeMap::new(), charge, out: BTreeMap::new(), sending: BTreeMap::new(), leaves: 0, removals: 0 }
    }

    /// Whether one more of so many bytes may be parked; else it waits in the window, which pays for it.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.active.len() < ACTIVE_MAX && self.charge.fits(bytes)
    }

    fn insert(&mut self, id: AddedId, parked: Parked) {
        let added = size_of(&parked);
        let gone = self.active.insert(id, parked).as_ref().map_or(0, size_of);
        self.charge.change(added, gone);
    }

    fn take(&mut self, id: AddedId) -> Option<Parked> {
        let parked = self.active.remove(&id)?;
        self.charge.change(0, size_of(&parked));
        Some(parked)
    }

    pub(super) fn get(&self, id: AddedId) -> Option<&Parked> {
        self.active.get(&id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Parked> {
        self.active.values()
    }

    /// Dead cells whose write is not accepted yet, and since when they were tried.
    pub(super) fn burying(&self) -> impl Iterator<Item = Millis> {
        self.out.values().chain(self.sending.values()).filter_map(|change| change.dead.as_ref()).map(|dead| dead.since)
    }

    /// Changes that wait to be written.
    pub(super) fn pending(&self) -> usize {
        self.out.len()
    }

    /// Whether a change of this place waits to be taken for a write.
    pub(super) fn is_unsent(&self, id: AddedId) -> bool {
        self.out.contains_key(&id)
    }

    /// Whether nothing waits to be written, or for the answer to its write.
    pub(super) fn is_written(&self) -> bool {
        self.out.is_empty() && self.sending.is_empty()
    }

    /// Cells that leave the window with a write that is not yet accepted.
    pub(super) fn leaves(&self) -> usize {
        self.leaves
    }

    /// Cells that were finished in the lane, as long as the store still has them there: a new owner would call for them again.
    pub(super) fn removals(&self) -> usize {
        self.removals
    }

    fn recount(&mut self) {
        let changes = || self.out.values().chain(self.sending.values());
        self.leaves = changes().filter(|change| change.leaves.is_some()).count();
        self.removals = changes().filter(|change| matches!(change.active, Some(Active::Delete(_)))).count();
    }

    /// A cell of the window becomes active.
    pub(super) fn park(&mut self, parked: Parked) {
        let id = parked.added_id;
        let change = self.out.entry(id).or_default();
        change.active = Some(Active::Put);
        change.leaves = Some((id, parked.last));
        self.leaves += 1;
        self.insert(id, parked);
    }

    /// An active cell changes.
    pub(super) fn update(&mut self, id: AddedId, change: impl FnOnce(&mut Parked)) {
        let Some(parked) = self.active.get_mut(&id) else { return };
        let before = size_of(parked);
        change(parked);
        self.charge.change(size_of(parked), before);
        let out = self.out.entry(id).or_default();
        if out.active.is_none() {
            out.active = Some(Active::Update);
        }
    }

    /// An active cell is finished. `None` when it is no longer there: an operator dropped it.
    pub(super) fn remove(&mut self, id: AddedId) -> Option<Parked> {
        let parked = self.take(id)?;
        let out = self.out.entry(id).or_default();
        out.active = match out.active {
            // Never written: nothing to delete, but it still leaves the window.
            Some(Active::Put) => None,
            _ => {
                self.removals += 1;
                Some(Active::Delete(parked.clone()))
            }
        };
        Some(parked)
    }

    /// An item of the stored lane is of no use.
    pub(super) fn void(&mut self, parked: Parked) {
        self.removals += 1;
        let change = self.out.entry(parked.added_id).or_default();
        change.active = Some(Active::Delete(parked));
    }

    /// The same for one that the book has.
    pub(super) fn void_known(&mut self, id: AddedId) {
        if let Some(parked) = self.take(id) {
            self.void(parked);
        }
    }

    /// A cell becomes dead, from the window or, after [`LaneBook::remove`], from the active lane.
    pub(super) fn bury(&mut self, parked: Parked, from_window: bool) {
        let out = self.out.entry(parked.added_id).or_default();
        if from_window {
            out.leaves = Some((parked.added_id, parked.last));
            self.leaves += 1;
        }
        out.dead = Some(parked);
    }

    /// Takes changes for one write, at most `room` actions, and tells which cells leave the window with it.
    pub(super) fn fill(&mut self, mut room: usize) -> (Vec<LaneChange>, Vec<(AddedId, AddedId)>) {
        debug_assert!(self.sending.is_empty(), "one write at a time");
        let mut changes = Vec::new();
        let mut leaves = Vec::new();
        while let Some(entry) = self.out.first_entry() {
            if entry.get().actions() > room {
                break;
            }
            let (id, change) = entry.remove_entry();
            room -= change.actions();
            leaves.extend(change.leaves);
            match (&change.active, self.active.get(&id)) {
                (Some(Active::Put), Some(parked)) => changes.push(LaneChange::Put(parked.clone())),
                (Some(Active::Update), Some(parked)) => changes.push(LaneChange::Update(parked.clone())),
                (Some(Active::Delete(parked)), _) => changes.push(LaneChange::Delete(parked.clone())),
                _ => {}
            }
            changes.extend(change.dead.clone().map(LaneChange::Put));
            self.sending.insert(id, change);
        }
        (changes, leaves)
    }

    /// The write was accepted. Tells which cells lie in the dead lane now, and since when they were tried.
    pub(super) fn written(&mut self) -> Vec<(AddedId, Millis)> {
        let mut buried = Vec::new();
        for (id, change) in std::mem::take(&mut self.sending) {
            buried.extend(change.dead.map(|dead| (id, dead.since)));
            let Some(Active::Update) = change.active else { continue };
            let Some(revision) = self.revision(id).map(|revision| revision + 1) else { continue };
            if let Some(parked) = self.active.get_mut(&id) {
                parked.revision = revision;
            } else if let Some(Active::Delete(parked)) = self.out.get_mut(&id).and_then(|out| out.active.as_mut()) {
                parked.revision = revision;
            }
        }
        self.recount();
        buried
    }

    fn revision(&self, id: AddedId) -> Option<u64> {
        let deleted = || match self.out.get(&id).and_then(|out| out.active.as_ref()) {
            Some(Active::Delete(parked)) => Some(parked.revision),
            _ => None,
        };
        self.active.get(&id).map(|parked| parked.revision).or_else(deleted)
    }

    /// The write was refused because an operator changed a parked cell, or because of another trigger's lane: its changes
    /// wait again.
    pub(super) fn unsent(&mut self) {
        for (id, mut change) in std::mem::take(&mut self.sending) {
            if let Some(newer) = self.out.remove(&id) {
                change.active = match (change.active, newer.active) {
                    (Some(Active::Put), Some(Active::Delete(_))) => None,
                    (Some(Active::Put), Some(Active::Update)) => Some(Active::Put),
                    (older, None) => older,
                    (_, newer) => newer,
                };
                change.dead = newer.dead.or(change.dead);
                change.leaves = change.leaves.or(newer.leaves);
            }
            self.out.insert(id, change);
        }
        self.recount();
    }

    /// Compares the book with the lane as it is stored: operators' changes win over changes of ours that are not durable.
    /// Returns those that are gone, and those that are new or have another due time.
    pub(super) fn reconcile(&mut self, stored: Vec<Parked>) -> (Vec<Parked>, Vec<AddedId>) {
        let stored: BTreeMap<AddedId, Parked> = stored.into_iter().map(|parked| (parked.added_id, parked)).collect();
        let unsent = |out: &BTreeMap<AddedId, Change>, id: &AddedId| {
            matches!(out.get(id), Some(Change { active: Some(Active::Put), .. }))
        };
        let is_gone = |id: &&AddedId| !stored.contains_key(*id) && !unsent(&self.out, id) && !unsent(&self.sending, id);
        let gone: Vec<AddedId> = self.active.keys().filter(is_gone).copied().collect();
        let gone: Vec<Parked> = gone.into_iter().filter_map(|id| self.take(id)).collect();
        // A finished cell leaves the lane whatever an operator changed about it; only if he dropped it there is nothing to do.
        // Other changes of ours are void when he was faster.
        self.out.retain(|id, change| {
            let stored = stored.get(id).map(|parked| parked.revision);
            match (&mut change.active, stored) {
                (Some(Active::Delete(parked)), Some(revision)) => parked.revision = revision,
                (Some(Active::Delete(_)), None) => change.active = None,
                (Some(Active::Update), _) if stored != self.active.get(id).map(|parked| parked.revision) => {
                    change.active = None;
                }
                _ => {}
            }
            change.active.is_some() || change.dead.is_some() || change.leaves.is_some()
        });
        self.recount();
        let mut fresh = Vec::new();
        for (id, parked) in stored {
            let leaving = |out: &BTreeMap<AddedId, Change>| {
                matches!(out.get(&id), Some(Change { active: Some(Active::Delete(_)), .. }))
            };
            let known = self.active.get(&id);
            let newer = known.is_none_or(|known| known.revision != parked.revision) && !unsent(&self.out, &id);
            if newer && !leaving(&self.out) && !leaving(&self.sending) && !self.sending.contains_key(&id) {
                self.insert(id, parked);
                fresh.push(id);
            }
        }
        (gone, fresh)
    }
}
