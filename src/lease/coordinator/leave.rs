//! How a worker gives shards away: those that it hands over, those that it lost, and all of them when it leaves.

use super::{Draining, REST_LOST, SIGN_OFF_TRIES, Tenure};
use crate::{
    cell::{LeaseWrite, Nudge, SessionState, Written, chain, clock},
    lease::{
        Ended, EndedShard,
        claim::{release, without_checkpoints},
        moves::{Move, Moves},
        nudge::back_off,
    },
};
use std::{collections::BTreeSet, time::Duration};

/// How long hand-overs are gathered before they are told: shards end one after the other.
const GATHERED: Duration = Duration::from_secs(1);

impl Tenure<'_> {
    /// Says that this worker leaves.
    pub(super) async fn drain(&mut self) {
        let now = clock::now();
        let alone = self.watchman.roster().len() <= 1;
        let seen_by_all = if alone { Duration::ZERO } else { self.home.config.membership };
        let leave_by = now + seen_by_all + self.home.config.drain_deadline + Duration::from_secs(5);
        self.draining = Some(Draining { give_from: now + seen_by_all, leave_by, told: false });
        self.tell_draining().await;
        self.next_reading = now;
    }

    /// Until it is told, each reading of the members tries again: the others take over the sooner.
    pub(super) async fn tell_draining(&mut self) {
        let Some(draining) = self.draining.as_mut().filter(|draining| !draining.told) else { return };
        match self.home.ledger.set_state(&self.me, SessionState::Draining).await {
            Ok(_) => draining.told = true,
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(error, "could not tell the others that this worker leaves; trying again");
            }
        }
    }

    /// Says that this worker is gone. Without it the others wait for the session's length; nothing else depends on it.
    pub(super) async fn sign_off(&self) {
        for tries in 1..=SIGN_OFF_TRIES {
            match self.home.ledger.set_state(&self.me, SessionState::Dead).await {
                Ok(_) => return,
                Err(error) => tracing::warn!(error = chain(&error), tries, "could not sign off"),
            }
            clock::sleep(back_off(Duration::from_millis(50), tries)).await;
        }
    }

    pub(super) async fn on_ended(&mut self, all: Vec<EndedShard>) {
        let mut nudged = BTreeSet::new();
        let mut lost = Moves::default();
        for (shard, epoch, ended) in all {
            if self.held.get(&shard).is_none_or(|held| held.grant.lease.epoch != epoch) {
                continue;
            }
            self.held.remove(&shard);
            match ended {
                Ended::Released => {
                    tracing::debug!(%shard, %epoch, "handed over");
                    if let Some(lease) = self.leases.get_mut(&shard) {
                        lease.owner = None;
                    }
                    let next = self.wanted_owner(&shard).filter(|owner| **owner != self.me);
                    let leaving = self.draining.is_some();
                    let reason = if leaving { "this worker leaves" } else { "the assignment gives them to another" };
                    nudged.extend(next.cloned());
                    let next = next.cloned();
                    self.handed_over.note(Move::HandedOver, reason, next.as_ref(), &shard);
                    self.tell_at.get_or_insert(clock::now() + GATHERED);
                }
                Ended::Lost => {
                    self.resting.insert(shard.clone(), clock::now() + REST_LOST);
                    self.next_sweep = self.next_sweep.min(clock::now() + REST_LOST);
                    if let Ok(lease) = self.home.ledger.lease(&shard).await {
                        lease.into_iter().for_each(|lease| self.know(lease));
                    }
                    lost.note(Move::Lost, "the lease is no longer this worker's", self.owner(&shard), &shard);
                }
            }
        }
        lost.tell();
        for owner in nudged {
            // A hint; the owner finds the shard by itself a little later.
            let _ = self.home.ledger.nudge(&owner, Nudge::Leases).await;
        }
    }

    /// Tells what was handed over in the last moments.
    pub(super) fn tell_handed_over(&mut self) {
        self.tell_at = None;
        std::mem::take(&mut self.handed_over).tell();
    }

    /// Removes this session from leases that name it, that it does not hold, and that it does not want: an answer was lost.
    pub(super) async fn let_go(&mut self) {
        let mine = self.leases.values().filter(|lease| lease.owner.as_ref() == Some(&self.me));
        let stray = mine.filter(|lease| !self.held.contains_key(&lease.shard));
        let stray = stray.filter(|lease| self.draining.is_some() || !self.wanted.contains(&lease.shard));
        let mut moves = Moves::default();
        let writes: Vec<LeaseWrite> = stray.map(|lease| release(lease, &self.me)).collect();
        for write in writes {
            match self.home.ledger.write(&write).await {
                Ok(Written::Accepted) => {
                    if let Some(lease) = self.leases.get_mut(&write.shard) {
                        lease.owner = None;
                        lease.seq = write.seq;
                    }
                    moves.note(Move::HandedOver, "it named this worker, which did not hold it", None, &write.shard);
                }
                Ok(Written::Refused(Some(lease))) => {
                    self.leases.insert(write.shard, without_checkpoints(lease));
                }
                Ok(Written::Refused(None)) => {
                    self.leases.remove(&write.shard);
                }
                Err(_) => break,
            }
        }
        moves.tell();
    }
}
