//! What a group keeps about the datastore: triggers, leases, checkpoints, parked cells.

use super::{Finding, Flaw, Group, LOOKS, Stopped, Verifier, compare::Fetched, group, pause, read::patiently};
use crate::cell::{
    AddedId, CellKey, Lane, LaneKind, Lease, Ledger, Name, Parked, SessionState, ShardId, ShardRef, TriggerId,
    TriggerRecord,
};
use std::collections::BTreeSet;

/// Parked cells of a page.
const PAGE: usize = 500;
/// Bytes of a lease, a session or a parked item, about.
const ITEM: usize = 512;

/// A group that is verified.
struct Subject<'a> {
    name: &'a Name,
    ledger: &'a dyn Ledger,
    /// Those that tail the datastore.
    triggers: Vec<TriggerRecord>,
    /// Sessions that are not dead; `None` where they cannot be read.
    alive: Option<BTreeSet<String>>,
}

impl Subject<'_> {
    fn finding(&self, finding: Finding) -> Finding {
        finding.in_group(self.name)
    }
}

impl Verifier<'_> {
    /// What a group keeps about the datastore.
    pub(super) async fn group(&mut self, group: &Group) -> Result<(), Stopped> {
        let name = &group.name;
        let Some(ledger) = group.ledger.as_deref() else {
            let detail = "it has triggers on the datastore, and its tables are missing";
            return self.told.finding(Finding::new(Flaw::GroupMissing, detail).in_group(name));
        };
        let triggers = match patiently(|| ledger.triggers()).await? {
            Ok(triggers) => triggers,
            Err(why) => {
                let detail = format!("{why}; the group was not verified");
                return self.told.finding(Finding::new(Flaw::TriggerUndecodable, detail).in_group(name));
            }
        };
        let datastore = self.reader.datastore();
        let triggers: Vec<TriggerRecord> = triggers.into_iter().filter(|t| t.source == datastore.name).collect();
        for record in &triggers {
            for finding in group::trigger(datastore, record) {
                self.told.finding(finding.in_group(name))?;
            }
        }
        let alive = match patiently(|| ledger.sessions()).await? {
            Ok(sessions) => {
                let alive = sessions.iter().filter(|session| session.state != SessionState::Dead);
                Some(alive.map(|session| session.id.to_string()).collect())
            }
            Err(why) => {
                self.told.finding(Finding::new(Flaw::SessionUndecodable, why).in_group(name))?;
                None
            }
        };
        let subject = Subject { name, ledger, triggers, alive };
        let mut undecodable = false;
        for shard in datastore.all_shards() {
            undecodable |= !self.shard_of_group(&subject, shard).await?;
        }
        self.stray_leases(&subject, undecodable).await
    }

    /// Leases of shards that the datastore has not.
    async fn stray_leases(&mut self, subject: &Subject<'_>, undecodable: bool) -> Result<(), Stopped> {
        let datastore = self.reader.datastore();
        let leases = match patiently(|| subject.ledger.leases(&datastore.name)).await? {
            Ok(leases) => leases,
            Err(_) if undecodable => return Ok(()),
            Err(why) => {
                return self.told.finding(subject.finding(Finding::new(Flaw::LeaseUndecodable, why)));
            }
        };
        self.reader.spend(leases.len() * ITEM).await;
        for lease in leases.iter().filter(|lease| lease.shard.shard.0 >= datastore.shards) {
            let detail = format!("the datastore has {} shards", datastore.shards);
            let finding = Finding::at(Flaw::LeaseShard, lease.shard.shard, None, detail);
            self.told.finding(subject.finding(finding))?;
        }
        Ok(())
    }

    /// The lease of a shard, and what is parked there. `false` when the lease cannot be decoded.
    async fn shard_of_group(&mut self, subject: &Subject<'_>, shard: ShardId) -> Result<bool, Stopped> {
        let at = ShardRef { source: self.reader.datastore().name.clone(), shard };
        let mut look = 1;
        let lease = loop {
            let before = self.tip_or_none(shard).await?;
            let lease = match patiently(|| subject.ledger.lease(&at)).await? {
                Ok(lease) => lease,
                Err(why) => {
                    let finding = Finding::at(Flaw::LeaseUndecodable, shard, None, why);
                    self.told.finding(subject.finding(finding))?;
                    return Ok(false);
                }
            };
            self.reader.spend(ITEM).await;
            let after = self.tip_or_none(shard).await?;
            let datastore = self.reader.datastore();
            let facts = group::Facts { datastore, shard, before, lease: lease.as_ref(), after };
            let findings = group::lease(&facts, &subject.triggers);
            if findings.is_empty() || look == LOOKS {
                findings.into_iter().try_for_each(|finding| self.told.finding(subject.finding(finding)))?;
                break lease;
            }
            pause(look).await;
            look += 1;
        };
        self.count_owner(subject, lease.as_ref());
        for record in &subject.triggers {
            for kind in [LaneKind::Active, LaneKind::Dead] {
                let lane = Lane { trigger: record.id.clone(), shard: at.clone(), kind };
                self.lane(subject, record, &lane).await?;
            }
        }
        // Whoever had a checkpoint here may have left something parked.
        let known: BTreeSet<&TriggerId> = subject.triggers.iter().map(|record| &record.id).collect();
        for id in lease.iter().flat_map(|lease| lease.checkpoints.keys()).filter(|id| !known.contains(id)) {
            self.unknown_trigger(subject, &at, id).await?;
        }
        Ok(true)
    }

    /// A tip; one that cannot be decoded is told when the log is read.
    async fn tip_or_none(&mut self, shard: ShardId) -> Result<Option<crate::cell::Tip>, Stopped> {
        let none =
            crate::cell::Tip { shard, tip: AddedId(0), created_at: crate::cell::Millis(0), trimmed_to: AddedId(0) };
        Ok(self.reader.tip(shard).await?.ok().map(|tip| tip.unwrap_or(none)))
    }

    fn count_owner(&mut self, subject: &Subject<'_>, lease: Option<&Lease>) {
        let Some(owner) = lease.and_then(|lease| lease.owner.as_ref()) else { return };
        match &subject.alive {
            Some(alive) if alive.contains(owner.as_str()) => self.summary.owned += 1,
            Some(_) => self.summary.orphaned += 1,
            None => {}
        }
    }

    /// Every item of a lane.
    async fn lane(&mut self, subject: &Subject<'_>, record: &TriggerRecord, lane: &Lane) -> Result<(), Stopped> {
        let mut after = AddedId(0);
        loop {
            let mut look = 1;
            let page = loop {
                let page = match patiently(|| subject.ledger.parked(lane, after, PAGE)).await? {
                    Ok(page) => page,
                    Err(why) => {
                        let detail = format!("{why}; what follows in this lane was not verified");
                        let finding = Finding::at(Flaw::ParkedUndecodable, lane.shard.shard, after.next(), detail);
                        return self.told.finding(subject.finding(finding.of_trigger(&record.name)));
                    }
                };
                self.reader.spend(page.len() * ITEM).await;
                let findings = self.parked(lane.shard.shard, &page).await?;
                if findings.is_empty() || look == LOOKS {
                    for finding in findings {
                        self.told.finding(subject.finding(finding.of_trigger(&record.name)))?;
                    }
                    break page;
                }
                pause(look).await;
                look += 1;
            };
            match lane.kind {
                LaneKind::Active => self.summary.parked += page.len() as u64,
                LaneKind::Dead => self.summary.dead += page.len() as u64,
            }
            match page.last() {
                Some(last) if page.len() == PAGE => after = last.added_id,
                _ => return Ok(()),
            }
        }
    }

    async fn parked(&mut self, shard: ShardId, page: &[Parked]) -> Result<Vec<Finding>, Stopped> {
        if page.is_empty() {
            return Ok(Vec::new());
        }
        let with_address: Vec<&Parked> = page.iter().filter(|parked| !parked.row_key.is_empty()).collect();
        let keys: Vec<CellKey> = with_address.iter().map(|parked| group::address(parked)).collect();
        let mut stored = self.reader.cells(&keys).await?.into_iter();
        let tip = self.tip_or_none(shard).await?.map(|tip| tip.tip);
        let finding = |parked: &Parked| {
            let stored: Option<Fetched> = if parked.row_key.is_empty() { None } else { stored.next() };
            group::parked(parked, tip, stored.as_ref())
        };
        Ok(page.iter().filter_map(finding).collect())
    }

    /// Lanes of a trigger that is not registered on the datastore.
    async fn unknown_trigger(&mut self, subject: &Subject<'_>, at: &ShardRef, id: &TriggerId) -> Result<(), Stopped> {
        for kind in [LaneKind::Active, LaneKind::Dead] {
            let lane = Lane { trigger: id.clone(), shard: at.clone(), kind };
            let Ok(first) = patiently(|| subject.ledger.parked(&lane, AddedId(0), 1)).await? else { continue };
            self.reader.spend(ITEM).await;
            if let Some(parked) = first.first() {
                let lane = if kind == LaneKind::Active { "active" } else { "dead" };
                let detail = format!("its {lane} lane has cells, and it is not registered: retired, or never there");
                let finding = Finding::at(Flaw::ParkedTrigger, at.shard, parked.added_id, detail);
                self.told.finding(subject.finding(finding.of_trigger(id)))?;
            }
        }
        Ok(())
    }
}
