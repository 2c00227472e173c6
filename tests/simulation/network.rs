//! A worker's way to the store: each request has a fate.
#![expect(
    clippy::redundant_locals,
    reason = "one macro makes owned values of references, and of what is owned already"
)]

use super::oracle::Oracle;
use bytes::Bytes;
use cellhook::cell::*;
use futures_util::future::BoxFuture;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// How likely each fate is, per request.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    pub(super) lost: f64,
    pub(super) reply_lost: f64,
    pub(super) late: f64,
    pub(super) throttled: f64,
    pub(super) conflict: f64,
    pub(super) stale: f64,
    pub(super) torn: f64,
    pub(super) garbled: f64,
    pub(super) slow: f64,
}

/// What all networks of a world share.
pub(super) struct Weather {
    pub(super) rng: fastrand::Rng,
    pub(super) faults: Faults,
    /// Nobody reaches the store before then.
    pub(super) outage_until: Instant,
    pub(super) counts: BTreeMap<&'static str, u64>,
    pub(super) requests: u64,
    pub(super) trace: u64,
    pub(super) start: Instant,
    pub(super) told: bool,
}

impl Weather {
    pub(super) fn note(&mut self, text: std::fmt::Arguments<'_>) {
        let at = self.start.elapsed().as_millis();
        let line = format!("{at:>7} {text}");
        for byte in line.bytes() {
            self.trace = (self.trace ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        if self.told {
            println!("{line}");
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Fine,
    Lost,
    ReplyLost,
    Late,
    Throttled,
    Conflict,
    /// Conflict told, applied later: what holds the item is this very write.
    Applying,
    Outage,
}

/// One host's network.
#[derive(Clone)]
pub(super) struct Network {
    pub(super) host: u32,
    pub(super) weather: Arc<Mutex<Weather>>,
}

fn failed<T>(kind: ErrorKind, operation: &'static str) -> Result<T, StoreError> {
    Err(StoreError { kind, table: "simulated".into(), operation, source: None })
}

impl Network {
    /// Sends a request. `apply` does it, at the moment that fate decides.
    #[expect(clippy::disallowed_methods, reason = "a request that was delayed outlives whoever sent it")]
    async fn send<T: Send + 'static>(
        &self,
        operation: &'static str,
        apply: impl FnOnce() -> BoxFuture<'static, Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (fate, there, back, late) = {
            let mut weather = self.weather.lock().unwrap();
            weather.requests += 1;
            let faults = weather.faults;
            let draw = weather.rng.f64();
            let mut sum = 0.0;
            let fates = [
                (faults.lost, Fate::Lost),
                (faults.reply_lost, Fate::ReplyLost),
                (faults.late, Fate::Late),
                (faults.throttled, Fate::Throttled),
                (faults.conflict, Fate::Conflict),
            ];
            let mut fate = Fate::Fine;
            for (chance, this) in fates {
                sum += chance;
                if draw < sum {
                    fate = this;
                    break;
                }
            }
            if fate == Fate::Conflict && matches!(operation, "commit" | "write") && weather.rng.bool() {
                fate = Fate::Applying;
            }
            if Instant::now() < weather.outage_until {
                fate = Fate::Outage;
            }
            if fate != Fate::Fine {
                let name = match fate {
                    Fate::Lost => "request lost",
                    Fate::ReplyLost => "reply lost",
                    Fate::Late => "applied late",
                    Fate::Throttled => "throttled",
                    Fate::Conflict => "conflict",
                    Fate::Applying => "conflict told, applied later",
                    _ => "outage",
                };
                *weather.counts.entry(name).or_default() += 1;
            }
            let slow = weather.rng.f64() < faults.slow;
            let most = if slow { 1500 } else { 10 };
            let mut delay = || Duration::from_millis(weather.rng.u64(1..=most));
            let (there, back) = (delay(), delay());
            let late = Duration::from_millis(weather.rng.u64(500..30_000));
            let host = self.host;
            weather.note(format_args!("host {host} {operation} {fate:?}"));
            (fate, there, back, late)
        };
        sleep(there).await;
        let timeout = Duration::from_millis(1500);
        match fate {
            Fate::Fine => {
                let result = apply().await;
                sleep(back).await;
                result
            }
            Fate::Lost | Fate::Outage => {
                sleep(timeout).await;
                failed(ErrorKind::Unanswered, operation)
            }
            Fate::ReplyLost => {
                let _ = apply().await;
                sleep(timeout).await;
                failed(ErrorKind::Unanswered, operation)
            }
            Fate::Late => {
                tokio::spawn(async move {
                    sleep(late).await;
                    let _ = apply().await;
                });
                sleep(timeout).await;
                failed(ErrorKind::Unanswered, operation)
            }
            Fate::Throttled => failed(ErrorKind::Throttled, operation),
            Fate::Conflict => failed(ErrorKind::Conflict, operation),
            Fate::Applying => {
                tokio::spawn(async move {
                    sleep(late).await;
                    let _ = apply().await;
                });
                sleep(back).await;
                failed(ErrorKind::Conflict, operation)
            }
        }
    }

    /// Whether this read gets the better of a fault.
    fn draw(&self, name: &'static str, chance: fn(&Faults) -> f64) -> Option<fastrand::Rng> {
        let mut weather = self.weather.lock().unwrap();
        let chance = chance(&weather.faults);
        let hit = weather.rng.f64() < chance;
        hit.then(|| {
            *weather.counts.entry(name).or_default() += 1;
            fastrand::Rng::with_seed(weather.rng.u64(..))
        })
    }
}

/// The log, through a network.
pub(super) struct FarLog<L> {
    pub(super) inner: Arc<L>,
    pub(super) network: Network,
}

/// Sends a request on to the twin. References become owned values, since a late request outlives its sender.
macro_rules! far {
    ($self:ident, $name:ident ( $($arg:ident : $owned:expr => $pass:expr),* )) => {{
        let (inner, network) = ($self.inner.clone(), $self.network.clone());
        $(let $arg = $owned;)*
        Box::pin(async move {
            network
                .send(stringify!($name), move || Box::pin(async move { inner.$name($($pass),*).await }))
                .await
        })
    }};
}

impl<L: Log> Log for FarLog<L> {
    fn datastore(&self) -> &Datastore {
        self.inner.datastore()
    }
    fn commit(&self, commit: Commit) -> Out<'_, Committed> {
        let network = self.network.clone();
        let committed: Out<'_, Committed> = far!(self, commit(commit: commit => commit));
        Box::pin(async move {
            let mut committed = committed.await?;
            // Some conditions were not looked at: a rival held the tip or a cell.
            if let Committed::Refused(refused) = &mut committed
                && let Some(mut rng) = network.draw("mixed refusal", |faults| faults.conflict)
            {
                refused.contended = true;
                refused.tip = refused.tip.filter(|_| rng.bool());
                refused.cells.retain(|_| rng.bool());
            }
            Ok(committed)
        })
    }
    fn get<'a>(&'a self, key: &'a CellKey) -> Out<'a, Option<StoredCell>> {
        far!(self, get(key: key.clone() => &key))
    }
    fn get_all<'a>(&'a self, keys: &'a [CellKey]) -> Out<'a, Vec<Option<StoredCell>>> {
        far!(self, get_all(keys: keys.to_vec() => &keys))
    }
    fn latest<'a>(&'a self, row_key: &'a str, column: &'a str) -> Out<'a, Option<StoredCell>> {
        far!(self, latest(row: row_key.to_owned() => &row, column: column.to_owned() => &column))
    }
    fn row<'a>(&'a self, row_key: &'a str, after: Option<&'a CellKey>, limit: usize) -> Out<'a, Vec<StoredCell>> {
        far!(self, row(row: row_key.to_owned() => &row, after: after.cloned() => after.as_ref(), limit: limit => limit))
    }
    fn places<'a>(&'a self, row_key: &'a str, after: Option<&'a CellKey>, limit: usize) -> Out<'a, Vec<CellPlace>> {
        far!(self, places(row: row_key.to_owned() => &row, after: after.cloned() => after.as_ref(), limit: limit => limit))
    }
    fn page(&self, shard: ShardId, after: AddedId, limit: u32, consistency: Consistency) -> Out<'_, Vec<Segment>> {
        let network = self.network.clone();
        let page: Out<'_, Vec<Segment>> = far!(self, page(
            shard: shard => shard, after: after => after, limit: limit => limit, consistency: consistency => consistency
        ));
        Box::pin(async move {
            let mut page = page.await?;
            if consistency == Consistency::Eventual
                && let Some(mut rng) = network.draw("stale page", |faults| faults.stale)
            {
                page.truncate(rng.usize(..=page.len()));
            }
            // A query beside a transaction may see part of it, strong or not.
            if !page.is_empty()
                && let Some(mut rng) = network.draw("torn page", |faults| faults.torn)
            {
                page.remove(rng.usize(..page.len()));
            }
            if let Some(mut rng) = network.draw("garbled segment", |faults| faults.garbled)
                && !page.is_empty()
            {
                let at = rng.usize(..page.len());
                let mut packed = page[at].packed.to_vec();
                let byte = rng.usize(1..packed.len());
                packed[byte] ^= 0x55;
                page[at].packed = Bytes::from(packed);
            }
            Ok(page)
        })
    }
    fn keys(&self, shard: ShardId, after: AddedId, limit: u32) -> Out<'_, Vec<SegmentKey>> {
        far!(self, keys(shard: shard => shard, after: after => after, limit: limit => limit))
    }
    fn segment(&self, shard: ShardId, last: AddedId) -> Out<'_, Option<Segment>> {
        far!(self, segment(shard: shard => shard, last: last => last))
    }
    fn settle(&self, shard: ShardId, last: AddedId) -> Out<'_, Settled> {
        far!(self, settle(shard: shard => shard, last: last => last))
    }
    fn tips(&self, bucket: u32, consistency: Consistency) -> Out<'_, Vec<Tip>> {
        let network = self.network.clone();
        let tips: Out<'_, Vec<Tip>> =
            far!(self, tips(bucket: bucket => bucket, consistency: consistency => consistency));
        Box::pin(async move {
            let mut tips = tips.await?;
            if consistency == Consistency::Eventual && network.draw("stale tips", |faults| faults.stale).is_some() {
                tips.clear();
            }
            Ok(tips)
        })
    }
    fn tip(&self, shard: ShardId) -> Out<'_, Option<Tip>> {
        far!(self, tip(shard: shard => shard))
    }
    fn raise_trim(&self, shard: ShardId, to: AddedId) -> Out<'_, bool> {
        far!(self, raise_trim(shard: shard => shard, to: to => to))
    }
    fn delete_segment(&self, shard: ShardId, last: AddedId) -> Out<'_, ()> {
        far!(self, delete_segment(shard: shard => shard, last: last => last))
    }
    fn erase_cell<'a>(&'a self, key: &'a CellKey) -> Out<'a, bool> {
        far!(self, erase_cell(key: key.clone() => &key))
    }
    fn replace_segment<'a>(&'a self, shard: ShardId, old: &'a Segment, packed: Bytes) -> Out<'a, bool> {
        far!(self, replace_segment(shard: shard => shard, old: old.clone() => &old, packed: packed.clone() => packed))
    }
    fn incarnation(&self) -> Out<'_, Option<Incarnation>> {
        far!(self, incarnation())
    }
    fn groups(&self) -> Out<'_, BTreeSet<Name>> {
        far!(self, groups())
    }
    fn enlist<'a>(&'a self, group: &'a Name) -> Out<'a, ()> {
        far!(self, enlist(group: group.clone() => &group))
    }
    fn scan<'a>(
        &'a self,
        slice: Slice,
        after: Option<&'a ScanPlace>,
        limit: u32,
        consistency: Consistency,
    ) -> Out<'a, Scanned> {
        far!(self, scan(
            slice: slice => slice, after: after.cloned() => after.as_ref(), limit: limit => limit,
            consistency: consistency => consistency
        ))
    }
}

/// The ledger, through a network.
pub(super) struct FarLedger {
    pub(super) inner: Arc<Oracle>,
    pub(super) network: Network,
    /// The sweep before the last: what a stale reading shows.
    pub(super) before: Arc<Mutex<BTreeMap<Name, Vec<Lease>>>>,
}

impl Ledger for FarLedger {
    fn open_session<'a>(&'a self, session: &'a Session) -> Out<'a, Answer<Session>> {
        far!(self, open_session(session: session.clone() => &session))
    }
    fn beat<'a>(&'a self, id: &'a SessionId, at: Millis) -> Out<'a, Answer<Session>> {
        far!(self, beat(id: id.clone() => &id, at: at => at))
    }
    fn set_state<'a>(&'a self, id: &'a SessionId, state: SessionState) -> Out<'a, Answer<Session>> {
        far!(self, set_state(id: id.clone() => &id, state: state => state))
    }
    fn declare_dead<'a>(&'a self, id: &'a SessionId, seen: Option<u64>) -> Out<'a, Answer<Session>> {
        far!(self, declare_dead(id: id.clone() => &id, seen: seen => seen))
    }
    fn nudge<'a>(&'a self, id: &'a SessionId, about: Nudge) -> Out<'a, ()> {
        far!(self, nudge(id: id.clone() => &id, about: about => about))
    }
    fn sessions(&self) -> Out<'_, Vec<Session>> {
        far!(self, sessions())
    }
    fn forget_session<'a>(&'a self, id: &'a SessionId) -> Out<'a, ()> {
        far!(self, forget_session(id: id.clone() => &id))
    }
    fn triggers(&self) -> Out<'_, Vec<TriggerRecord>> {
        far!(self, triggers())
    }
    fn register<'a>(&'a self, record: &'a TriggerRecord) -> Out<'a, Answer<TriggerRecord>> {
        far!(self, register(record: record.clone() => &record))
    }
    fn update_trigger<'a>(&'a self, record: &'a TriggerRecord) -> Out<'a, Answer<TriggerRecord>> {
        far!(self, update_trigger(record: record.clone() => &record))
    }
    fn retired<'a>(&'a self, id: &'a TriggerId) -> Out<'a, Option<TriggerRecord>> {
        far!(self, retired(id: id.clone() => &id))
    }
    fn rename_trigger<'a>(&'a self, record: &'a TriggerRecord, to: &'a Name) -> Out<'a, Answer<TriggerRecord>> {
        far!(self, rename_trigger(record: record.clone() => &record, to: to.clone() => &to))
    }
    fn free_name<'a>(&'a self, record: &'a TriggerRecord, name: &'a Name) -> Out<'a, Answer<TriggerRecord>> {
        far!(self, free_name(record: record.clone() => &record, name: name.clone() => &name))
    }
    fn leases<'a>(&'a self, source: &'a Name) -> Out<'a, Vec<Lease>> {
        let (network, before, name) = (self.network.clone(), self.before.clone(), source.clone());
        let leases: Out<'_, Vec<Lease>> = far!(self, leases(source: source.clone() => &source));
        Box::pin(async move {
            let leases = leases.await?;
            let older = before.lock().unwrap().insert(name, leases.clone());
            match network.draw("stale leases", |faults| faults.stale) {
                Some(_) => Ok(older.unwrap_or_default()),
                None => Ok(leases),
            }
        })
    }
    fn lease<'a>(&'a self, shard: &'a ShardRef) -> Out<'a, Option<Lease>> {
        far!(self, lease(shard: shard.clone() => &shard))
    }
    fn claim<'a>(
        &'a self,
        shard: &'a ShardRef,
        incarnation: &'a Incarnation,
        me: &'a SessionId,
        seen: Option<&'a Lease>,
        at: Millis,
    ) -> Out<'a, Answer<Lease>> {
        far!(self, claim(
            shard: shard.clone() => &shard, incarnation: incarnation.clone() => &incarnation, me: me.clone() => &me,
            seen: seen.cloned() => seen.as_ref(), at: at => at
        ))
    }
    fn write<'a>(&'a self, write: &'a LeaseWrite) -> Out<'a, Written> {
        far!(self, write(write: write.clone() => &write))
    }
    fn operate<'a>(
        &'a self,
        seen: &'a Lease,
        trigger: &'a TriggerId,
        checkpoint: &'a Checkpoint,
    ) -> Out<'a, Answer<Lease>> {
        far!(self, operate(
            seen: seen.clone() => &seen, trigger: trigger.clone() => &trigger,
            checkpoint: checkpoint.clone() => &checkpoint
        ))
    }
    fn parked<'a>(&'a self, lane: &'a Lane, after: AddedId, limit: usize) -> Out<'a, Vec<Parked>> {
        far!(self, parked(lane: lane.clone() => &lane, after: after => after, limit: limit => limit))
    }
    fn all_parked<'a>(&'a self, after: Option<&'a Parked>, limit: usize) -> Out<'a, Vec<Parked>> {
        far!(self, all_parked(after: after.cloned() => after.as_ref(), limit: limit => limit))
    }
    fn forget_checkpoint<'a>(&'a self, shard: &'a ShardRef, trigger: &'a TriggerId) -> Out<'a, ()> {
        far!(self, forget_checkpoint(shard: shard.clone() => &shard, trigger: trigger.clone() => &trigger))
    }
    fn operate_parked<'a>(&'a self, changes: &'a [LaneChange]) -> Out<'a, bool> {
        far!(self, operate_parked(changes: changes.to_vec() => &changes))
    }
}
