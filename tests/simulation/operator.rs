//! Operators: they trim, erase, damage, rewind, skip, retry, drop and rename meanwhile, with the library's own verbs where it has
//! them. Their requests have no faults: what a fault does to a request of theirs the workers' own have shown. A retirement, which
//! is many requests, has ([`super::retirement`]).

use super::{oracle::Oracle, weather::SharedWeather};
use bytes::Bytes;
use cellhook::{
    cell::{clock, *},
    checkpoint::Window,
    tail,
};
use std::sync::Arc;

/// The way to what is stored that has no faults.
#[derive(Clone)]
pub(super) struct Truth {
    pub(super) log: Arc<dyn Log>,
    pub(super) ledger: Arc<dyn Ledger>,
}

/// See the module.
pub(super) struct Operator {
    pub(super) truth: Truth,
    pub(super) oracle: Arc<Oracle>,
    pub(super) weather: SharedWeather,
    pub(super) source: Name,
    pub(super) group: Name,
    pub(super) triggers: usize,
}

impl Operator {
    fn rng(&self) -> fastrand::Rng {
        fastrand::Rng::with_seed(self.weather.lock().unwrap().rng.u64(..))
    }

    fn shard(&self, rng: &mut fastrand::Rng) -> ShardRef {
        ShardRef { source: self.source.clone(), shard: ShardId(rng.u32(..self.truth.log.datastore().shards)) }
    }

    fn told(&self, what: &'static str, on: &ShardRef, more: &str) {
        let mut weather = self.weather.lock().unwrap();
        weather.count(what);
        weather.note(format_args!("{what} on {on} {more}"));
    }

    /// Trims one shard, up to the lowest checkpoint.
    pub(super) async fn trim(&self) {
        let shard = self.shard(&mut self.rng());
        if self.oracle.registrations() < self.triggers {
            // One that is registered later begins with the oldest cell.
            return;
        }
        let keeper = tail::keeper(&*self.truth.ledger, &self.group, &self.source, shard.shard).await.unwrap();
        let to = keeper.map_or(AddedId(0), |keeper| keeper.low);
        let groups: [(Name, Arc<dyn Ledger>); 1] = [(self.group.clone(), self.truth.ledger.clone())];
        // A damaged segment in its way is told, and it goes on another day.
        let _ = tail::trim(&*self.truth.log, &groups, shard.shard, to, u64::MAX).await;
        if let Some(tip) = self.truth.log.tip(shard.shard).await.unwrap() {
            self.oracle.trimmed(shard.shard, tip.trimmed_to);
        }
        self.told("an operator trims", &shard, "");
    }

    /// Erases one row.
    pub(super) async fn erase(&self, rows: usize) {
        let mut rng = self.rng();
        let row = format!("row-{}", rng.usize(..rows));
        let shard =
            ShardRef { source: self.source.clone(), shard: ShardId::of(&row, self.truth.log.datastore().shards) };
        self.oracle.erases(&row);
        let erased = tail::erase(&*self.truth.log, &row, tail::Mode::Erase).await.unwrap();
        tail::erase_parked(&*self.truth.ledger, &shard, &row, tail::Mode::Erase).await.unwrap();
        self.told("an operator erases", &shard, &format!("{row}: {erased:?}"));
    }

    /// Damages one stored segment for good.
    pub(super) async fn damage(&self) {
        let mut rng = self.rng();
        let shard = self.shard(&mut rng);
        let segments = self.truth.log.page(shard.shard, AddedId(0), 1000, Consistency::Strong).await.unwrap();
        let Some(old) = rng.choice(&segments) else { return };
        // The format number stays: another one would be a newer writer's, which stops the shard until it is known.
        let mut packed = old.packed.to_vec();
        let end = packed.len();
        packed.truncate(1 + rng.usize(..(end / 2).max(1)));
        self.oracle.damages(shard.shard, old.key().first(), old.last);
        if self.truth.log.replace_segment(shard.shard, old, Bytes::from(packed)).await.unwrap() {
            self.told("a segment is damaged", &shard, &old.last.to_string());
        }
    }

    /// Does something to the parked cells of one trigger and shard, to its checkpoint, or to its name.
    pub(super) async fn operate(&self) {
        let mut rng = self.rng();
        let shard = self.shard(&mut rng);
        let ledger = &self.truth.ledger;
        let triggers = ledger.triggers().await.unwrap();
        let Some(trigger) = rng.choice(triggers.iter()) else { return };
        let Ok(Some(lease)) = ledger.lease(&shard).await else { return };
        let did = match rng.u8(..6) {
            0 => self.revive(&mut rng, trigger, &shard).await,
            1 => self.drop(&mut rng, trigger, &shard).await,
            2 => self.hurry(&mut rng, trigger, &shard).await,
            3 => self.rename(&mut rng, trigger).await,
            4 => self.skip(trigger, &lease).await,
            _ => self.rewind(&mut rng, trigger, &lease).await,
        };
        let Some(what) = did else { return };
        if let Some(owner) = &lease.owner {
            for about in [Nudge::Leases, Nudge::Parked] {
                ledger.nudge(owner, about).await.unwrap();
            }
        }
        self.told(what, &shard, trigger.name.as_str());
    }

    async fn parked(&self, trigger: &TriggerRecord, shard: &ShardRef, kind: LaneKind) -> Vec<Parked> {
        let lane = Lane { trigger: trigger.id.clone(), shard: shard.clone(), kind };
        self.truth.ledger.parked(&lane, AddedId(0), 50).await.unwrap()
    }

    async fn revive(&self, rng: &mut fastrand::Rng, trigger: &TriggerRecord, of: &ShardRef) -> Option<&'static str> {
        let dead = self.parked(trigger, of, LaneKind::Dead).await;
        // A range of cells that cannot be read is no cell that could be called.
        let parked = rng.choice(dead).filter(|parked| parked.last == parked.added_id)?;
        self.oracle.revived(&self.oracle.registered_as(&trigger.id), of.shard, parked.added_id);
        let again = Parked {
            revision: Parked::fresh_revision(),
            state: ParkedState::Retrying,
            attempts: 0,
            next_attempt_at: clock::wall(),
            ..parked.clone()
        };
        self.truth.ledger.operate_parked(&[LaneChange::Delete(parked), LaneChange::Put(again)]).await.unwrap();
        Some("an operator retries a dead cell")
    }

    async fn drop(&self, rng: &mut fastrand::Rng, trigger: &TriggerRecord, of: &ShardRef) -> Option<&'static str> {
        let kind = if rng.bool() { LaneKind::Active } else { LaneKind::Dead };
        let parked = rng.choice(self.parked(trigger, of, kind).await)?;
        let name = self.oracle.registered_as(&trigger.id);
        for place in parked.added_id.0..=parked.last.0 {
            self.oracle.drops(&name, of.shard, AddedId(place));
        }
        self.truth.ledger.operate_parked(&[LaneChange::Delete(parked)]).await.unwrap();
        Some("an operator drops a parked cell")
    }

    async fn hurry(&self, rng: &mut fastrand::Rng, trigger: &TriggerRecord, of: &ShardRef) -> Option<&'static str> {
        let active = self.parked(trigger, of, LaneKind::Active).await;
        let retrying = active.into_iter().filter(|parked| parked.state == ParkedState::Retrying);
        let parked = rng.choice(retrying.collect::<Vec<_>>())?;
        let now = Parked { next_attempt_at: clock::wall(), ..parked };
        self.truth.ledger.operate_parked(&[LaneChange::Update(now)]).await.unwrap();
        Some("an operator retries a cell now")
    }

    /// To and fro: the config says the first name all the time.
    async fn rename(&self, rng: &mut fastrand::Rng, trigger: &TriggerRecord) -> Option<&'static str> {
        let first = self.oracle.registered_as(&trigger.id);
        let names = ["", "_anew", "_again"].map(|end| Name::new(&format!("{first}{end}")).unwrap());
        let others: Vec<&Name> = names.iter().filter(|name| **name != trigger.name).collect();
        let answer = self.truth.ledger.rename_trigger(trigger, rng.choice(others).unwrap()).await.unwrap();
        assert!(matches!(answer, Answer::Accepted(_)), "nobody else has these names: {answer:?}");
        Some("an operator renames")
    }

    /// `checkpoint rewind`, which goes forwards too: what lies before is never called, what lies after it again.
    async fn rewind(&self, rng: &mut fastrand::Rng, trigger: &TriggerRecord, lease: &Lease) -> Option<&'static str> {
        let now = lease.checkpoints.get(&trigger.id)?;
        let tip = self.truth.log.tip(lease.shard.shard).await.unwrap()?;
        let to = if rng.u8(..4) == 0 { now.low.0 + rng.u64(1..4) } else { now.low.0.saturating_sub(rng.u64(1..10)) };
        let low = AddedId(to.clamp(tip.trimmed_to.0, tip.tip.0));
        self.oracle.rewinds(&lease.shard, &trigger.id, now.low, low);
        let to = Checkpoint { low, generation: now.generation, dead: now.dead, ..Checkpoint::default() };
        self.truth.ledger.operate(lease, &trigger.id, &to).await.unwrap();
        Some("an operator rewinds")
    }

    /// `checkpoint skip`: one cell is given up, and what is finished stays so.
    async fn skip(&self, trigger: &TriggerRecord, lease: &Lease) -> Option<&'static str> {
        let now = lease.checkpoints.get(&trigger.id)?;
        let tip = self.truth.log.tip(lease.shard.shard).await.unwrap()?;
        let cell = Some(now.low.next()).filter(|cell| *cell <= tip.tip)?;
        let mut window = Window::resume(now.low, &now.done).unwrap();
        window.finish(cell);
        self.oracle.drops(&self.oracle.registered_as(&trigger.id), lease.shard.shard, cell);
        let to = Checkpoint { low: window.low(), done: window.encode().0, attempts: Bytes::new(), ..now.clone() };
        self.truth.ledger.operate(lease, &trigger.id, &to).await.unwrap();
        Some("an operator skips")
    }
}
