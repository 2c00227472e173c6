//! What a group keeps about the datastore: triggers, leases, checkpoints, parked cells.

use super::{
    Finding, Flaw, Group, LOOKS, Stopped, Verifier,
    compare::Fetched,
    group, pause,
    read::{self, patiently},
};
use crate::cell::{
    AddedId, CellKey, Lane, LaneKind, Lease, Ledger, Millis, Name, Parked, SessionState, ShardId, ShardRef, Tip,
    TriggerId, TriggerRecord,
};
use std::collections::BTreeSet;

/// Parked cells of a page.
const PAGE: usize = 500;
/// Bytes of a lease, a session, a trigger or a parked item, about.
const ITEM: usize = 512;

/// A group that is verified.
struct Subject<'a> {
    name: &'a Name,
    ledger: &'a dyn Ledger,
    /// Those that tail the datastore, as they were read first.
    triggers: Vec<TriggerRecord>,
    /// Those that tail the datastore, as they were read last.
    registered: BTreeSet<TriggerId>,
    /// Those that only leases know. Retired, for an id is registered once, and before a lease knows it.
    retired: BTreeSet<TriggerId>,
    /// Sessions that are not dead; `None` where they cannot be read.
    alive: Option<BTreeSet<String>>,
}

impl Subject<'_> {
    fn finding(&self, finding: Finding) -> Finding {
        finding.in_group(self.name)
    }

    fn knows(&self, trigger: &TriggerId) -> bool {
        self.registered.contains(trigger) || self.triggers.iter().any(|record| record.id == *trigger)
    }

    /// Whether a finding is of no trigger, or of one that was registered when they were read last.
    fn still_matters(&self, finding: &Finding) -> bool {
        let named = |record: &&TriggerRecord| finding.trigger.as_deref() == Some(record.name.as_str());
        self.triggers.iter().find(named).is_none_or(|record| self.registered.contains(&record.id))
    }
}

/// Where something of a group has to be looked at again.
#[derive(Debug)]
pub(super) enum Unfit {
    /// The lease of a shard.
    Lease(ShardRef),
    /// A page of a lane, and whose it is.
    Page { lane: Lane, trigger: Name, after: AddedId },
}

/// What was read, and what is wrong with it; or that it cannot be decoded.
type Looked<T> = Result<(T, Vec<Finding>), Box<Finding>>;

impl Verifier<'_> {
    /// What a group keeps about the datastore.
    pub(super) async fn group(&mut self, group: &Group) -> Result<(), Stopped> {
        let name = &group.name;
        let Some(ledger) = group.ledger.as_deref() else {
            let detail = "it has triggers on the datastore, and its tables are missing";
            return self.told.finding(Finding::new(Flaw::GroupMissing, detail).in_group(name));
        };
        let datastore = self.reader.datastore();
        let triggers = match read::triggers(ledger, &datastore.name).await? {
            Ok(triggers) => triggers,
            Err(why) => {
                let detail = format!("{why}; the group was not verified");
                return self.told.finding(Finding::new(Flaw::TriggerUndecodable, detail).in_group(name));
            }
        };
        // After the triggers: a group enlists before it registers one.
        if self.reader.groups().await?.is_ok_and(|groups| !groups.contains(name)) {
            if triggers.is_empty() {
                return Ok(());
            }
            let names: Vec<&str> = triggers.iter().map(|record| record.name.as_str()).collect();
            let detail = format!(
                "it has triggers on the datastore ({}), which does not know of it: the trim of another group does not ask \
                 how far they are; start a worker of the group, which enlists it",
                names.join(", ")
            );
            self.told.finding(Finding::new(Flaw::GroupNotEnlisted, detail).in_group(name))?;
        }
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
        let registered = triggers.iter().map(|record| record.id.clone()).collect();
        let mut subject = Subject { name, ledger, triggers, registered, retired: BTreeSet::new(), alive };
        let mut undecodable = false;
        for shard in datastore.all_shards() {
            undecodable |= !self.shard_of_group(&mut subject, shard).await?;
            if self.unfit.are_due() {
                self.settle_unfit(&mut subject).await?;
            }
        }
        self.settle_unfit(&mut subject).await?;
        self.stray_leases(&subject, undecodable).await
    }

    /// Looks again at what does not fit, and tells what stays.
    async fn settle_unfit(&mut self, subject: &mut Subject<'_>) -> Result<(), Stopped> {
        let mut unfit = self.unfit.take();
        for look in 1..LOOKS {
            if unfit.is_empty() {
                return Ok(());
            }
            pause(look).await;
            let mut still = Vec::new();
            for place in unfit {
                let findings = match &place {
                    Unfit::Lease(at) => self.lease(subject, at).await?.map(|(_, findings)| findings),
                    Unfit::Page { lane, trigger, after } => {
                        self.page(subject, lane, trigger, *after).await?.map(|(_, findings)| findings)
                    }
                };
                let findings = findings.unwrap_or_else(|finding| vec![*finding]);
                if findings.is_empty() {
                    continue;
                }
                if look + 1 == LOOKS {
                    // Of a trigger that was retired meanwhile nothing has to hold any more.
                    self.read_registered(subject).await?;
                    for finding in findings.into_iter().filter(|finding| subject.still_matters(finding)) {
                        self.told.finding(subject.finding(finding))?;
                    }
                }
                still.push(place);
            }
            unfit = still;
        }
        Ok(())
    }

    /// Which triggers are registered now.
    async fn read_registered(&mut self, subject: &mut Subject<'_>) -> Result<(), Stopped> {
        match read::triggers(subject.ledger, &self.reader.datastore().name).await? {
            Ok(triggers) => {
                self.reader.spend(triggers.len() * ITEM).await;
                subject.registered = triggers.into_iter().map(|record| record.id).collect();
                Ok(())
            }
            Err(why) => self.told.finding(subject.finding(Finding::new(Flaw::TriggerUndecodable, why))),
        }
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
    async fn shard_of_group(&mut self, subject: &mut Subject<'_>, shard: ShardId) -> Result<bool, Stopped> {
        let at = ShardRef { source: self.reader.datastore().name.clone(), shard };
        let lease = match self.lease(subject, &at).await? {
            Ok((lease, findings)) => {
                if !findings.is_empty() {
                    self.unfit.add(Unfit::Lease(at.clone()));
                }
                lease
            }
            Err(finding) => {
                self.told.finding(subject.finding(*finding))?;
                return Ok(false);
            }
        };
        self.count_owner(subject, lease.as_ref());
        for record in &subject.triggers {
            for kind in [LaneKind::Active, LaneKind::Dead] {
                let lane = Lane { trigger: record.id.clone(), shard: at.clone(), kind };
                self.lane(subject, record, &lane).await?;
            }
        }
        // Whoever had a checkpoint here may have left something parked.
        for id in lease.into_iter().flat_map(|lease| lease.checkpoints.into_keys()) {
            if !subject.knows(&id) {
                self.unknown_trigger(subject, &at, id).await?;
            }
        }
        Ok(true)
    }

    /// The lease of a shard.
    async fn lease(&mut self, subject: &Subject<'_>, at: &ShardRef) -> Result<Looked<Option<Lease>>, Stopped> {
        let shard = at.shard;
        let before = self.tip_or_none(shard).await?;
        let lease = match patiently(|| subject.ledger.lease(at)).await? {
            Ok(lease) => lease,
            Err(why) => return Ok(Err(Box::new(Finding::at(Flaw::LeaseUndecodable, shard, None, why)))),
        };
        self.reader.spend(ITEM).await;
        let after = self.tip_or_none(shard).await?;
        let datastore = self.reader.datastore();
        let facts = group::Facts { datastore, shard, before, lease: lease.as_ref(), after };
        let findings = group::lease(&facts, &subject.triggers);
        Ok(Ok((lease, findings)))
    }

    /// A tip; one that cannot be decoded is told when the log is read.
    async fn tip_or_none(&mut self, shard: ShardId) -> Result<Option<Tip>, Stopped> {
        let none = Tip { shard, tip: AddedId(0), created_at: Millis(0), trimmed_to: AddedId(0) };
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
            let page = match self.page(subject, lane, &record.name, after).await? {
                Ok((page, findings)) => {
                    if !findings.is_empty() {
                        self.unfit.add(Unfit::Page { lane: lane.clone(), trigger: record.name.clone(), after });
                    }
                    page
                }
                Err(finding) => return self.told.finding(subject.finding(*finding)),
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

    /// A page of a lane.
    async fn page(
        &mut self,
        subject: &Subject<'_>,
        lane: &Lane,
        trigger: &Name,
        after: AddedId,
    ) -> Result<Looked<Vec<Parked>>, Stopped> {
        let shard = lane.shard.shard;
        let page = match patiently(|| subject.ledger.parked(lane, after, PAGE)).await? {
            Ok(page) => page,
            Err(why) => {
                let detail = format!("{why}; what follows in this lane was not verified");
                let finding = Finding::at(Flaw::ParkedUndecodable, shard, after.next(), detail);
                return Ok(Err(Box::new(finding.of_trigger(trigger))));
            }
        };
        self.reader.spend(page.len() * ITEM).await;
        let findings = self.parked(shard, &page).await?;
        Ok(Ok((page, findings.into_iter().map(|finding| finding.of_trigger(trigger)).collect())))
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

    /// Lanes of a trigger that was not registered when they were read.
    async fn unknown_trigger(
        &mut self,
        subject: &mut Subject<'_>,
        at: &ShardRef,
        id: TriggerId,
    ) -> Result<(), Stopped> {
        for kind in [LaneKind::Active, LaneKind::Dead] {
            let lane = Lane { trigger: id.clone(), shard: at.clone(), kind };
            let Ok(first) = patiently(|| subject.ledger.parked(&lane, AddedId(0), 1)).await? else { continue };
            self.reader.spend(ITEM).await;
            let Some(parked) = first.first() else { continue };
            if !subject.retired.contains(&id) {
                self.read_registered(subject).await?;
                if subject.registered.contains(&id) {
                    return Ok(());
                }
                subject.retired.insert(id.clone());
            }
            let lane = if kind == LaneKind::Active { "active" } else { "dead" };
            let detail = format!("its {lane} lane has cells, and it is not registered: retired, or never there");
            let finding = Finding::at(Flaw::ParkedTrigger, at.shard, parked.added_id, detail);
            self.told.finding(subject.finding(finding.of_trigger(&id)))?;
        }
        Ok(())
    }
}
