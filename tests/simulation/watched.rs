//! The ledger's twin under the oracle's eyes: it sees every write at the moment at which it is applied.

use super::oracle::{LaneMove, Oracle, Wrote};
use cellhook::{cell::*, store::memory::MemoryLedger};
use std::sync::Arc;

/// Between the networks and the twin.
pub(super) struct Watched {
    pub(super) inner: MemoryLedger,
    pub(super) oracle: Arc<Oracle>,
}

/// What becomes of the items of lanes. An update moves nothing.
fn moves(changes: &[LaneChange]) -> Vec<LaneMove> {
    let moves = changes.iter().filter_map(|change| match change {
        LaneChange::Put(parked) => Some((parked, Some(parked.last))),
        LaneChange::Delete(parked) => Some((parked, None)),
        LaneChange::Update(_) => None,
    });
    moves
        .map(|(parked, put)| {
            let Lane { trigger, kind, .. } = parked.lane();
            LaneMove { trigger, kind, first: parked.added_id, put, unread: parked.row_key.is_empty() }
        })
        .collect()
}

fn wrote(write: &LeaseWrite) -> Wrote<'_> {
    Wrote {
        shard: &write.shard,
        owner: &write.owner,
        epoch: write.epoch,
        release: write.release,
        lows: write.checkpoints.iter().map(|(trigger, checkpoint)| (trigger.clone(), checkpoint.low)).collect(),
        lanes: moves(&write.lanes),
    }
}

impl Ledger for Watched {
    fn open_session<'a>(&'a self, session: &'a Session) -> Out<'a, Answer<Session>> {
        self.inner.open_session(session)
    }
    fn beat<'a>(&'a self, id: &'a SessionId, at: Millis) -> Out<'a, Answer<Session>> {
        Box::pin(async move {
            let answer = self.inner.beat(id, at).await?;
            if matches!(answer, Answer::Accepted(_)) {
                self.oracle.beat(id);
            }
            Ok(answer)
        })
    }
    fn set_state<'a>(&'a self, id: &'a SessionId, state: SessionState) -> Out<'a, Answer<Session>> {
        Box::pin(async move {
            let answer = self.inner.set_state(id, state).await?;
            if matches!(answer, Answer::Accepted(_)) && state == SessionState::Dead {
                self.oracle.died(id);
            }
            Ok(answer)
        })
    }
    fn declare_dead<'a>(&'a self, id: &'a SessionId, seen: Option<u64>) -> Out<'a, Answer<Session>> {
        Box::pin(async move {
            let answer = self.inner.declare_dead(id, seen).await?;
            if matches!(answer, Answer::Accepted(_)) {
                self.oracle.died(id);
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
                self.oracle.registered(&record.id, &record.name);
            }
            Ok(answer)
        })
    }
    fn update_trigger<'a>(&'a self, record: &'a TriggerRecord) -> Out<'a, Answer<TriggerRecord>> {
        Box::pin(async move {
            let answer = self.inner.update_trigger(record).await?;
            if let (Answer::Accepted(_), TriggerState::Retired) = (&answer, &record.state) {
                self.oracle.retired(&record.id);
            }
            Ok(answer)
        })
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
                self.oracle.claimed(shard, me, lease.epoch);
            }
            Ok(answer)
        })
    }
    fn write<'a>(&'a self, write: &'a LeaseWrite) -> Out<'a, Written> {
        Box::pin(async move {
            let answer = self.inner.write(write).await?;
            if answer == Written::Accepted {
                self.oracle.wrote(&wrote(write));
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
                self.oracle.operated(&seen.shard, lease.epoch, trigger, checkpoint.low);
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
        Box::pin(async move {
            self.inner.forget_checkpoint(shard, trigger).await?;
            self.oracle.forgot(shard, trigger);
            Ok(())
        })
    }
    fn operate_parked<'a>(&'a self, changes: &'a [LaneChange]) -> Out<'a, bool> {
        Box::pin(async move {
            let done = self.inner.operate_parked(changes).await?;
            if let (true, Some(LaneChange::Put(one) | LaneChange::Update(one) | LaneChange::Delete(one))) =
                (done, changes.first())
            {
                self.oracle.sorted(&one.shard, &moves(changes));
            }
            Ok(done)
        })
    }
}
