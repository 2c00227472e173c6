//! One group in memory.

use crate::cell::{
    AddedId, Answer, Checkpoint, Epoch, ErrorKind, Incarnation, Lane, LaneChange, Lease, LeaseWrite, Ledger, Millis,
    Name, Nudge, Out, Parked, Session, SessionId, SessionState, ShardRef, StoreError, TriggerId, TriggerRecord,
    TriggerState, Written, planted,
};
use std::{
    collections::BTreeMap,
    ops::Bound::{Excluded, Unbounded},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// One group in memory.
#[derive(Default)]
pub struct MemoryLedger {
    tables: Mutex<Tables>,
}

#[derive(Default)]
struct Tables {
    sessions: BTreeMap<SessionId, Session>,
    triggers: BTreeMap<Name, TriggerRecord>,
    /// Whose former name it is.
    former: BTreeMap<Name, TriggerId>,
    retired: BTreeMap<TriggerId, TriggerRecord>,
    leases: BTreeMap<ShardRef, Lease>,
    lanes: BTreeMap<(Lane, AddedId), Parked>,
}

impl MemoryLedger {
    /// A new, empty group.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        // The tables are consistent whenever the lock is free: every change below is made without a panic.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The limit of DynamoDB's transactions.
const ACTIONS_MAX: usize = 100;

fn too_many_actions<'a, T: Send + 'a>() -> Out<'a, T> {
    let (kind, table) = (ErrorKind::Invalid, "control".to_owned());
    let error = StoreError { kind, table, operation: "TransactWriteItems", source: None };
    Box::pin(std::future::ready(Err(error)))
}

fn ready<'a, T: Send + 'a>(value: T) -> Out<'a, T> {
    Box::pin(std::future::ready(Ok(value)))
}

impl Tables {
    /// Applies `change` to a session if `condition` holds of it.
    fn session(
        &mut self,
        id: &SessionId,
        condition: impl FnOnce(&Session) -> bool,
        change: impl FnOnce(&mut Session),
    ) -> Answer<Session> {
        match self.sessions.get_mut(id) {
            Some(session) if condition(session) => {
                change(session);
                Answer::Accepted(session.clone())
            }
            other => Answer::Refused(other.cloned()),
        }
    }

    /// What a change of a trigger is refused with, unless it is as it was read.
    fn refusal(&self, record: &TriggerRecord) -> Option<Answer<TriggerRecord>> {
        match self.triggers.get(&record.name) {
            Some(stored) if (&stored.id, stored.revision) == (&record.id, record.revision) => None,
            other => Some(Answer::Refused(other.cloned())),
        }
    }

    fn lane_allows(&self, change: &LaneChange) -> bool {
        match change {
            LaneChange::Put(_) => true,
            LaneChange::Update(parked) | LaneChange::Delete(parked) => {
                let item = self.lanes.get(&(parked.lane(), parked.added_id));
                item.is_some_and(|item| item.revision == parked.revision)
            }
        }
    }

    fn change_lane(&mut self, change: &LaneChange) {
        let (LaneChange::Put(parked) | LaneChange::Update(parked) | LaneChange::Delete(parked)) = change;
        let key = (parked.lane(), parked.added_id);
        match change {
            LaneChange::Put(parked) => self.lanes.insert(key, parked.clone()),
            LaneChange::Update(parked) => {
                self.lanes.insert(key, Parked { revision: parked.revision + 1, ..parked.clone() })
            }
            LaneChange::Delete(_) => self.lanes.remove(&key),
        };
    }

    fn write(&mut self, write: &LeaseWrite) -> Written {
        let lanes = write.lanes.iter().all(|change| self.lane_allows(change));
        let Some(lease) = self.leases.get_mut(&write.shard) else { return Written::Refused(None) };
        if !lanes || !allows(lease, write) {
            return Written::Refused(Some(lease.clone()));
        }
        lease.seq = write.seq;
        lease.alone.clone_from(&write.alone);
        lease.checkpoints.extend(write.checkpoints.iter().map(|(id, checkpoint)| (id.clone(), checkpoint.clone())));
        if write.release {
            lease.owner = None;
        }
        for change in &write.lanes {
            self.change_lane(change);
        }
        Written::Accepted
    }
}

/// The condition of an owner's write on the lease item.
fn allows(lease: &Lease, write: &LeaseWrite) -> bool {
    let falls = |(id, checkpoint): (&TriggerId, &Checkpoint)| {
        lease.checkpoints.get(id).is_some_and(|stored| stored.low > checkpoint.low)
    };
    let mine = lease.owner.as_ref() == Some(&write.owner) && lease.epoch == write.epoch;
    (mine || planted::is("a write without the epoch's condition"))
        && lease.seq < write.seq
        && !write.checkpoints.iter().any(falls)
}

impl Ledger for MemoryLedger {
    fn open_session<'a>(&'a self, session: &'a Session) -> Out<'a, Answer<Session>> {
        let mut tables = self.tables();
        ready(match tables.sessions.get(&session.id) {
            Some(other) => Answer::Refused(Some(other.clone())),
            None => {
                tables.sessions.insert(session.id.clone(), session.clone());
                Answer::Accepted(session.clone())
            }
        })
    }

    fn beat<'a>(&'a self, id: &'a SessionId, at: Millis) -> Out<'a, Answer<Session>> {
        let beats = |session: &mut Session| {
            session.beat += 1;
            session.beat_at = at;
        };
        let lives = |s: &Session| s.state != SessionState::Dead || planted::is("a dead session beats");
        ready(self.tables().session(id, lives, beats))
    }

    fn set_state<'a>(&'a self, id: &'a SessionId, state: SessionState) -> Out<'a, Answer<Session>> {
        ready(self.tables().session(id, |s| s.state != SessionState::Dead, |s| s.state = state))
    }

    fn declare_dead<'a>(&'a self, id: &'a SessionId, seen: Option<u64>) -> Out<'a, Answer<Session>> {
        let mut tables = self.tables();
        if seen.is_none() && !tables.sessions.contains_key(id) {
            let session = Session::dead(id);
            tables.sessions.insert(id.clone(), session.clone());
            return ready(Answer::Accepted(session));
        }
        let condition = |s: &Session| Some(s.beat) == seen && s.state != SessionState::Dead;
        ready(tables.session(id, condition, |s| s.state = SessionState::Dead))
    }

    fn nudge<'a>(&'a self, id: &'a SessionId, about: Nudge) -> Out<'a, ()> {
        let bump = |session: &mut Session| match about {
            Nudge::Leases => session.inbox += 1,
            Nudge::Parked => session.parked_inbox += 1,
        };
        let _ = self.tables().session(id, |_| true, bump);
        ready(())
    }

    fn sessions(&self) -> Out<'_, Vec<Session>> {
        ready(self.tables().sessions.values().cloned().collect())
    }

    fn forget_session<'a>(&'a self, id: &'a SessionId) -> Out<'a, ()> {
        let mut tables = self.tables();
        if tables.sessions.get(id).is_some_and(|s| s.state == SessionState::Dead) {
            tables.sessions.remove(id);
        }
        ready(())
    }

    fn triggers(&self) -> Out<'_, Vec<TriggerRecord>> {
        ready(self.tables().triggers.values().cloned().collect())
    }

    fn retired<'a>(&'a self, id: &'a TriggerId) -> Out<'a, Option<TriggerRecord>> {
        ready(self.tables().retired.get(id).cloned())
    }

    fn register<'a>(&'a self, record: &'a TriggerRecord) -> Out<'a, Answer<TriggerRecord>> {
        let mut tables = self.tables();
        let stored = tables.triggers.get(&record.name);
        if stored.is_some() || tables.former.contains_key(&record.name) {
            return ready(Answer::Refused(stored.cloned()));
        }
        tables.triggers.insert(record.name.clone(), record.clone());
        ready(Answer::Accepted(record.clone()))
    }

    fn update_trigger<'a>(&'a self, record: &'a TriggerRecord) -> Out<'a, Answer<TriggerRecord>> {
        let mut tables = self.tables();
        if let Some(refused) = tables.refusal(record) {
            return ready(refused);
        }
        let after = TriggerRecord { revision: record.revision + 1, ..record.clone() };
        if after.state == TriggerState::Retired {
            tables.triggers.remove(&record.name);
            tables.former.retain(|_, id| *id != record.id);
            tables.retired.insert(record.id.clone(), after.clone());
        } else {
            tables.triggers.insert(record.name.clone(), after.clone());
        }
        ready(Answer::Accepted(after))
    }

    fn rename_trigger<'a>(&'a self, record: &'a TriggerRecord, to: &'a Name) -> Out<'a, Answer<TriggerRecord>> {
        let mut tables = self.tables();
        if *to == record.name {
            return ready(Answer::Refused(None));
        }
        if let Some(refused) = tables.refusal(record) {
            return ready(refused);
        }
        if tables.triggers.contains_key(to) || tables.former.get(to).is_some_and(|id| *id != record.id) {
            return ready(Answer::Refused(None));
        }
        let after = record.renamed(to);
        tables.triggers.remove(&record.name);
        tables.former.remove(to);
        tables.former.insert(record.name.clone(), record.id.clone());
        tables.triggers.insert(to.clone(), after.clone());
        ready(Answer::Accepted(after))
    }

    fn free_name<'a>(&'a self, record: &'a TriggerRecord, name: &'a Name) -> Out<'a, Answer<TriggerRecord>> {
        let mut tables = self.tables();
        if !record.formerly.contains(name) {
            return ready(Answer::Refused(None));
        }
        if let Some(refused) = tables.refusal(record) {
            return ready(refused);
        }
        let after = record.without_name(name);
        tables.former.remove(name);
        tables.triggers.insert(record.name.clone(), after.clone());
        ready(Answer::Accepted(after))
    }

    fn leases<'a>(&'a self, source: &'a Name) -> Out<'a, Vec<Lease>> {
        ready(self.tables().leases.values().filter(|lease| lease.shard.source == *source).cloned().collect())
    }

    fn lease<'a>(&'a self, shard: &'a ShardRef) -> Out<'a, Option<Lease>> {
        ready(self.tables().leases.get(shard).cloned())
    }

    fn claim<'a>(
        &'a self,
        shard: &'a ShardRef,
        incarnation: &'a Incarnation,
        me: &'a SessionId,
        seen: Option<&'a Lease>,
        at: Millis,
    ) -> Out<'a, Answer<Lease>> {
        let mut tables = self.tables();
        let stored = tables.leases.get(shard);
        let as_seen = stored.map(|l| (l.epoch, &l.owner)) == seen.map(|l| (l.epoch, &l.owner));
        let as_seen = as_seen || planted::is("claim without the epoch condition");
        if !as_seen {
            return ready(Answer::Refused(stored.cloned()));
        }
        let mut lease = stored.cloned().unwrap_or_else(|| Lease {
            shard: shard.clone(),
            incarnation: incarnation.clone(),
            owner: None,
            epoch: Epoch(0),
            seq: 0,
            claimed_at: at,
            checkpoints: BTreeMap::new(),
            deaths: 0,
            alone: None,
        });
        match lease.owner.replace(me.clone()) {
            Some(owner) if owner != *me => lease.deaths += 1,
            _ => lease.alone = None,
        }
        lease.epoch = Epoch(lease.epoch.0 + 1);
        lease.seq = 0;
        lease.claimed_at = at;
        tables.leases.insert(shard.clone(), lease.clone());
        ready(Answer::Accepted(lease))
    }

    fn write<'a>(&'a self, write: &'a LeaseWrite) -> Out<'a, Written> {
        if write.lanes.len() + 1 > ACTIONS_MAX {
            return too_many_actions();
        }
        ready(self.tables().write(write))
    }

    fn operate<'a>(
        &'a self,
        seen: &'a Lease,
        trigger: &'a TriggerId,
        checkpoint: &'a Checkpoint,
    ) -> Out<'a, Answer<Lease>> {
        let mut tables = self.tables();
        ready(match tables.leases.get_mut(&seen.shard) {
            Some(lease) if (lease.epoch, lease.seq) == (seen.epoch, seen.seq) => {
                lease.epoch = Epoch(seen.epoch.0 + 1);
                lease.owner = None;
                lease.seq = 0;
                lease.checkpoints.insert(trigger.clone(), checkpoint.clone());
                Answer::Accepted(lease.clone())
            }
            other => Answer::Refused(other.cloned()),
        })
    }

    fn forget_checkpoint<'a>(&'a self, shard: &'a ShardRef, trigger: &'a TriggerId) -> Out<'a, ()> {
        if let Some(lease) = self.tables().leases.get_mut(shard) {
            lease.checkpoints.remove(trigger);
        }
        ready(())
    }

    fn parked<'a>(&'a self, lane: &'a Lane, after: AddedId, limit: usize) -> Out<'a, Vec<Parked>> {
        let tables = self.tables();
        let range = tables.lanes.range((Excluded((lane.clone(), after)), Unbounded));
        ready(range.take_while(|((of, _), _)| of == lane).map(|(_, parked)| parked.clone()).take(limit).collect())
    }

    fn all_parked<'a>(&'a self, after: Option<&'a Parked>, limit: usize) -> Out<'a, Vec<Parked>> {
        let from = after.map_or(Unbounded, |after| Excluded((after.lane(), after.added_id)));
        ready(self.tables().lanes.range((from, Unbounded)).map(|(_, parked)| parked.clone()).take(limit).collect())
    }

    fn operate_parked<'a>(&'a self, changes: &'a [LaneChange]) -> Out<'a, bool> {
        if changes.len() > ACTIONS_MAX {
            return too_many_actions();
        }
        let mut tables = self.tables();
        let allowed = changes.iter().all(|change| tables.lane_allows(change));
        if allowed {
            for change in changes {
                tables.change_lane(change);
            }
        }
        ready(allowed)
    }
}
