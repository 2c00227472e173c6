//! The oracle: an omniscient record of what was applied and what the handlers said, and the invariants over it.
//!
//! It stands between the networks and the ledger's twin, so that it sees every write at the moment at which it is applied,
//! and it is told by the handlers of each call. It keeps its own account of owners, epochs, checkpoints and parked cells.

use cellhook::cell::*;
use cellhook::dispatch::Order;
use cellhook::store::{
    memory::{MemoryLedger, MemoryLog},
    segment::unpack,
};
use futures_util::FutureExt;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

/// Which columns a trigger is called for.
type Columns = fn(&Name) -> Vec<String>;
/// A trigger's cell.
type Place = (Name, ShardId, AddedId);

/// What the oracle knows of one lease.
#[derive(Default)]
struct KnownLease {
    owner: Option<SessionId>,
    epoch: Epoch,
    low: BTreeMap<TriggerId, AddedId>,
}

#[derive(Default)]
struct Facts {
    violations: Vec<String>,
    /// Dead sessions.
    dead: BTreeSet<SessionId>,
    leases: BTreeMap<ShardRef, KnownLease>,
    names: BTreeMap<TriggerId, Name>,
    /// Calls that were answered with done or drop: in which epoch, and what the answer appends. Such an answer counts only
    /// once the cell is stored.
    finished: BTreeMap<Place, Vec<(Epoch, Option<CellKey>)>>,
    /// Cells that have lain in a lane.
    parked: BTreeSet<Place>,
    /// What was appended, and which columns a trigger is called for.
    log: Option<(Arc<MemoryLog>, Columns)>,
    /// Columns of cells, as far as they were asked for.
    columns: BTreeMap<(ShardId, AddedId), String>,
    /// Calls under way and the last one started, by trigger, shard, row (none where the whole shard is in order) and epoch.
    rows: BTreeMap<(Name, ShardId, String, Epoch), (u32, AddedId)>,
    /// Epochs in which a trigger's shard was called.
    epochs: BTreeMap<(Name, ShardId), BTreeSet<Epoch>>,
    repeats: BTreeMap<(Name, ShardId), u64>,
    /// Shards whose checkpoint an operator rewound: what is called again there is his wish.
    rewound: BTreeSet<(Name, ShardId)>,
    /// Dead cells that an operator had tried again: out of order on purpose.
    revived: BTreeSet<Place>,
    calls: u64,
    takeovers: u64,
    hand_overs: u64,
}

/// See the module.
pub(super) struct Oracle {
    inner: MemoryLedger,
    facts: Mutex<Facts>,
}

/// What the oracle counted.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    pub(super) calls: u64,
    pub(super) repeats: u64,
    pub(super) takeovers: u64,
    pub(super) hand_overs: u64,
    pub(super) parked: u64,
}

/// A call under way; dropped unanswered when its worker loses it.
pub(super) struct Witnessed {
    oracle: Arc<Oracle>,
    row: (Name, ShardId, String, Epoch),
    place: Place,
    repeat: bool,
}

impl Drop for Witnessed {
    fn drop(&mut self) {
        if let Some((under_way, _)) = self.oracle.facts.lock().unwrap().rows.get_mut(&self.row) {
            *under_way -= 1;
        }
    }
}

impl Witnessed {
    /// The handler reported that the call failed, or wants another: the call counts as no repeat.
    pub(super) fn unfinished(&self) {
        if self.repeat {
            let (trigger, shard, _) = self.place.clone();
            *self.oracle.facts.lock().unwrap().repeats.entry((trigger, shard)).or_default() -= 1;
        }
    }

    /// The handler said that the cell is finished, and what is to be appended.
    pub(super) fn finished(&self, put: Option<CellKey>) {
        let answers = &mut self.oracle.facts.lock().unwrap().finished;
        answers.entry(self.place.clone()).or_default().push((self.row.3, put));
    }
}

impl Oracle {
    pub(super) fn new() -> Self {
        Self { inner: MemoryLedger::new(), facts: Mutex::default() }
    }

    pub(super) fn violations(&self) -> Vec<String> {
        self.facts.lock().unwrap().violations.clone()
    }

    pub(super) fn violated(&self, what: String) {
        self.facts.lock().unwrap().violations.push(what);
    }

    pub(super) fn counts(&self) -> Counts {
        let facts = self.facts.lock().unwrap();
        Counts {
            calls: facts.calls,
            repeats: facts.repeats.values().sum(),
            takeovers: facts.takeovers,
            hand_overs: facts.hand_overs,
            parked: facts.parked.len() as u64,
        }
    }

    /// Where to see which column a cell has, and which columns a trigger is called for (none: all).
    pub(super) fn watch(&self, log: Arc<MemoryLog>, columns: Columns) {
        self.facts.lock().unwrap().log = Some((log, columns));
    }

    /// A handler was called: I4, and the account of repeats.
    pub(super) fn call(self: &Arc<Self>, event: &Event, order: Order) -> Witnessed {
        let mut facts = self.facts.lock().unwrap();
        facts.calls += 1;
        let cell = &event.cell;
        let place = (event.trigger.clone(), cell.shard, cell.added_id);
        let lane = if order == Order::Shard { String::new() } else { cell.key.row_key.to_string() };
        let row = (event.trigger.clone(), cell.shard, lane, event.epoch);
        let ordered = order != Order::None;
        let (under_way, last) = facts.rows.get(&row).copied().unwrap_or_default();
        if ordered && under_way > 0 {
            facts.violations.push(format!("I4: {row:?}: {} is called while {last} is under way", cell.added_id));
        }
        if ordered && last > cell.added_id && !facts.revived.contains(&place) {
            facts.violations.push(format!("I4: {row:?}: {} is called after {last}", cell.added_id));
        }
        facts.rows.insert(row.clone(), (under_way + 1, last.max(cell.added_id)));
        let shard = (event.trigger.clone(), cell.shard);
        facts.epochs.entry(shard.clone()).or_default().insert(event.epoch);
        // After an answer whose append failed, the daemon rightly calls again within the epoch.
        let answers = facts.finished.get(&place).into_iter().flatten();
        let repeat = answers.filter(|(epoch, put)| *epoch != event.epoch || put.is_none()).count() > 0;
        if repeat {
            *facts.repeats.entry(shard).or_default() += 1;
        }
        drop(facts);
        Witnessed { oracle: self.clone(), row, place, repeat }
    }

    /// The name by which a trigger was registered.
    pub(super) fn registered_as(&self, id: &TriggerId) -> Name {
        self.facts.lock().unwrap().names[id].clone()
    }

    /// An operator is about to rewind.
    pub(super) fn rewound(&self, trigger: &Name, shard: ShardId) {
        self.facts.lock().unwrap().rewound.insert((trigger.clone(), shard));
    }

    /// An operator is about to have a dead cell tried again.
    pub(super) fn revived(&self, trigger: &Name, shard: ShardId, added_id: AddedId) {
        self.facts.lock().unwrap().revived.insert((trigger.clone(), shard, added_id));
    }

    /// I6, once all is over: repeats of each shard against its changes of owner.
    pub(super) fn check_repeats(&self, window: u64) {
        let mut facts = self.facts.lock().unwrap();
        for (shard, repeats) in facts.repeats.clone() {
            let changes = facts.epochs.get(&shard).map_or(0, |epochs| epochs.len() as u64 - 1);
            if repeats > window * changes && !facts.rewound.contains(&shard) {
                facts.violations.push(format!("I6: {shard:?}: {repeats} repeats, {changes} changes of owner"));
            }
        }
    }

    /// Everything appended is finished, parked or passed.
    pub(super) fn check_all(&self, shard: ShardId, tip: AddedId, triggers: &[Name]) {
        let mut facts = self.facts.lock().unwrap();
        for trigger in triggers {
            for id in (1..=tip.0).map(AddedId) {
                let place = (trigger.clone(), shard, id);
                if !facts.is_finished(&place) {
                    facts.violations.push(format!("I1: {place:?} was never handled"));
                }
            }
        }
    }

    fn wrote(&self, write: &LeaseWrite) {
        let mut facts = self.facts.lock().unwrap();
        let facts = &mut *facts;
        for change in &write.lanes {
            if let LaneChange::Put(parked) = change {
                let name = facts.names.get(&parked.trigger).cloned().expect("registered");
                for id in parked.added_id.0..=parked.last.0 {
                    facts.parked.insert((name.clone(), parked.shard.shard, AddedId(id)));
                }
            }
        }
        let lease = facts.leases.entry(write.shard.clone()).or_default();
        if lease.owner.as_ref() != Some(&write.owner) || lease.epoch != write.epoch {
            facts.violations.push(format!(
                "I3: {} wrote {} at epoch {}, which belongs to {:?} at epoch {}",
                write.owner, write.shard, write.epoch, lease.owner, lease.epoch
            ));
        }
        if write.release {
            lease.owner = None;
        }
        for (id, checkpoint) in &write.checkpoints {
            let name = facts.names.get(id).cloned().expect("registered");
            let lease = facts.leases.entry(write.shard.clone()).or_default();
            let before = lease.low.insert(id.clone(), checkpoint.low).unwrap_or_default();
            if checkpoint.low < before {
                facts
                    .violations
                    .push(format!("I3: {}: low-water fell from {before} to {}", write.shard, checkpoint.low));
            }
            for added_id in (before.0 + 1..=checkpoint.low.0).map(AddedId) {
                let place = (name.clone(), write.shard.shard, added_id);
                if !facts.is_finished(&place) {
                    facts.violations.push(format!("I1: the checkpoint passed {place:?}, which is not finished"));
                }
            }
        }
    }

    fn claimed(&self, shard: &ShardRef, me: &SessionId, lease: &Lease) {
        let mut facts = self.facts.lock().unwrap();
        let facts = &mut *facts;
        let known = facts.leases.entry(shard.clone()).or_default();
        match &known.owner {
            None => facts.hand_overs += u64::from(known.epoch.0 > 0),
            Some(owner) if owner == me => {}
            Some(owner) if facts.dead.contains(owner) => facts.takeovers += 1,
            Some(owner) => {
                facts.violations.push(format!("I3: {me} claimed {shard} from {owner}, which is alive"));
            }
        }
        if lease.epoch.0 != known.epoch.0 + 1 {
            facts.violations.push(format!("I3: {shard}: the epoch went from {} to {}", known.epoch, lease.epoch));
        }
        known.owner = Some(me.clone());
        known.epoch = lease.epoch;
    }
}

impl Facts {
    fn is_finished(&mut self, place: &Place) -> bool {
        self.is_answered(place) || self.parked.contains(place) || self.is_passed(place)
    }

    fn is_answered(&self, place: &Place) -> bool {
        let stored = |key: &CellKey| {
            let (log, _) = self.log.as_ref().expect("watched");
            log.get(key).now_or_never().expect("ready").expect("memory").is_some()
        };
        let mut answers = self.finished.get(place).into_iter().flatten();
        answers.any(|(_, put)| put.as_ref().is_none_or(stored))
    }

    /// Whether the trigger is not called for this cell.
    fn is_passed(&mut self, (trigger, shard, added_id): &Place) -> bool {
        let Some((log, columns)) = self.log.clone() else { return false };
        let columns = columns(trigger);
        if columns.is_empty() {
            return false;
        }
        if !self.columns.contains_key(&(*shard, *added_id)) {
            let before = AddedId(added_id.0 - 1);
            let page = log.page(*shard, before, 1, Consistency::Strong).now_or_never().expect("ready").expect("memory");
            for segment in page {
                for cell in unpack(*shard, &segment).expect("whole") {
                    self.columns.insert((*shard, cell.added_id), cell.key.column.to_string());
                }
            }
        }
        self.columns.get(&(*shard, *added_id)).is_some_and(|column| !columns.contains(column))
    }
}

impl Ledger for Oracle {
    fn open_session<'a>(&'a self, session: &'a Session) -> Out<'a, Answer<Session>> {
        self.inner.open_session(session)
    }
    fn beat<'a>(&'a self, id: &'a SessionId, at: Millis) -> Out<'a, Answer<Session>> {
        Box::pin(async move {
            let answer = self.inner.beat(id, at).await?;
            if matches!(answer, Answer::Accepted(_)) && self.facts.lock().unwrap().dead.contains(id) {
                self.violated(format!("I8: the dead session {id} beats"));
            }
            Ok(answer)
        })
    }
    fn set_state<'a>(&'a self, id: &'a SessionId, state: SessionState) -> Out<'a, Answer<Session>> {
        Box::pin(async move {
            let answer = self.inner.set_state(id, state).await?;
            if matches!(answer, Answer::Accepted(_)) && state == SessionState::Dead {
                self.facts.lock().unwrap().dead.insert(id.clone());
            }
            Ok(answer)
        })
    }
    fn declare_dead<'a>(&'a self, id: &'a SessionId, seen: Option<u64>) -> Out<'a, Answer<Session>> {
        Box::pin(async move {
            let answer = self.inner.declare_dead(id, seen).await?;
            if matches!(answer, Answer::Accepted(_)) {
                self.facts.lock().unwrap().dead.insert(id.clone());
            }
            Ok(answer)
        })
    }
    fn nudge<'a>(&'a self, id: &'a SessionId, about: Nudge) -> Out<'a, ()> {
        self.inner.nudge(id, about)
    }
    fn sessions(&self) -> Out<'_, Vec<Session>> {
        self.inner.sessions()
    }
    fn forget_session<'a>(&'a self, id: &'a SessionId) -> Out<'a, ()> {
        self.inner.forget_session(id)
    }
    fn triggers(&self) -> Out<'_, Vec<TriggerRecord>> {
        self.inner.triggers()
    }
    fn register<'a>(&'a self, record: &'a TriggerRecord) -> Out<'a, Answer<TriggerRecord>> {
        Box::pin(async move {
            let answer = self.inner.register(record).await?;
            if let Answer::Accepted(record) = &answer {
                let mut facts = self.facts.lock().unwrap();
                // A renamed trigger is the same one: its config, and so its handler, go on with the name that they
                // know.
                if !facts.names.values().all(|name| *name != record.name) {
                    facts
                        .violations
                        .push(format!("{} is registered anew, and would be called from the start", record.name));
                }
                facts.names.insert(record.id.clone(), record.name.clone());
            }
            Ok(answer)
        })
    }
    fn update_trigger<'a>(&'a self, record: &'a TriggerRecord) -> Out<'a, Answer<TriggerRecord>> {
        self.inner.update_trigger(record)
    }
    fn retired<'a>(&'a self, id: &'a TriggerId) -> Out<'a, Option<TriggerRecord>> {
        self.inner.retired(id)
    }
    fn rename_trigger<'a>(&'a self, record: &'a TriggerRecord, to: &'a Name) -> Out<'a, Answer<TriggerRecord>> {
        self.inner.rename_trigger(record, to)
    }
    fn free_name<'a>(&'a self, record: &'a TriggerRecord, name: &'a Name) -> Out<'a, Answer<TriggerRecord>> {
        self.inner.free_name(record, name)
    }
    fn leases<'a>(&'a self, source: &'a Name) -> Out<'a, Vec<Lease>> {
        self.inner.leases(source)
    }
    fn lease<'a>(&'a self, shard: &'a ShardRef) -> Out<'a, Option<Lease>> {
        self.inner.lease(shard)
    }
    fn claim<'a>(
        &'a self,
        shard: &'a ShardRef,
        incarnation: &'a Incarnation,
        me: &'a SessionId,
        seen: Option<&'a Lease>,
        at: Millis,
    ) -> Out<'a, Answer<Lease>> {
        Box::pin(async move {
            let answer = self.inner.claim(shard, incarnation, me, seen, at).await?;
            if let Answer::Accepted(lease) = &answer {
                self.claimed(shard, me, lease);
            }
            Ok(answer)
        })
    }
    fn write<'a>(&'a self, write: &'a LeaseWrite) -> Out<'a, Written> {
        Box::pin(async move {
            let answer = self.inner.write(write).await?;
            if answer == Written::Accepted {
                self.wrote(write);
            }
            Ok(answer)
        })
    }
    fn operate<'a>(
        &'a self,
        seen: &'a Lease,
        trigger: &'a TriggerId,
        checkpoint: &'a Checkpoint,
    ) -> Out<'a, Answer<Lease>> {
        Box::pin(async move {
            let answer = self.inner.operate(seen, trigger, checkpoint).await?;
            if let Answer::Accepted(lease) = &answer {
                let mut facts = self.facts.lock().unwrap();
                let known = facts.leases.entry(seen.shard.clone()).or_default();
                known.owner = None;
                known.epoch = lease.epoch;
                known.low.insert(trigger.clone(), checkpoint.low);
            }
            Ok(answer)
        })
    }
    fn parked<'a>(&'a self, lane: &'a Lane, after: AddedId, limit: usize) -> Out<'a, Vec<Parked>> {
        self.inner.parked(lane, after, limit)
    }
    fn all_parked<'a>(&'a self, after: Option<&'a Parked>, limit: usize) -> Out<'a, Vec<Parked>> {
        self.inner.all_parked(after, limit)
    }
    fn forget_checkpoint<'a>(&'a self, shard: &'a ShardRef, trigger: &'a TriggerId) -> Out<'a, ()> {
        self.inner.forget_checkpoint(shard, trigger)
    }
    fn operate_parked<'a>(&'a self, changes: &'a [LaneChange]) -> Out<'a, bool> {
        self.inner.operate_parked(changes)
    }
}
