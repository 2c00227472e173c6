//! A worker's way to the store at the level of the ports, `Log` and `Ledger`: each request has a fate.
#![expect(
    clippy::redundant_locals,
    reason = "one macro makes owned values of references, and of what is owned already"
)]

use super::oracle::Oracle;
use super::watched::Watched;
use super::weather::{Fate, Network, Part, Trip};
use bytes::Bytes;
use cellhook::cell::*;
use futures_util::future::BoxFuture;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{sync::oneshot, time::sleep};

fn failed<T>(kind: ErrorKind, operation: &'static str) -> Result<T, StoreError> {
    Err(StoreError { kind, table: "simulated".into(), operation, source: None })
}

impl Network {
    /// Sends a request. `apply` does it, at the moment that fate decides; once it is on its way it no longer needs who sent it.
    #[expect(clippy::disallowed_methods, reason = "a request that is on its way outlives whoever sent it")]
    async fn send<T: Send + 'static>(
        &self,
        operation: &'static str,
        part: Part,
        apply: impl FnOnce() -> BoxFuture<'static, Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let is_transaction = matches!(operation, "commit" | "write" | "operate_parked");
        let trip = self.weather.lock().unwrap().trip(self.host, operation, part, is_transaction);
        // Some are held up before they leave the host, which may be frozen meanwhile.
        let at_home = trip.there.as_millis().is_multiple_of(4);
        if at_home {
            sleep(trip.there).await;
        }
        let (answer, answered) = oneshot::channel();
        tokio::spawn(async move {
            if !at_home {
                sleep(trip.there).await;
            }
            let _ = answer.send(travel(trip, operation, apply).await);
        });
        answered.await.expect("each request is answered")
    }
}

/// What becomes of a request, from when it arrives.
#[expect(clippy::disallowed_methods, reason = "it is answered before it is applied")]
async fn travel<T: Send + 'static>(
    Trip { fate, back, .. }: Trip,
    operation: &'static str,
    apply: impl FnOnce() -> BoxFuture<'static, Result<T, StoreError>> + Send + 'static,
) -> Result<T, StoreError> {
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
        Fate::Late(late) => {
            tokio::spawn(async move {
                sleep(late).await;
                let _ = apply().await;
            });
            sleep(timeout).await;
            failed(ErrorKind::Unanswered, operation)
        }
        Fate::BrokenBefore => failed(ErrorKind::Unanswered, operation),
        Fate::BrokenAfter | Fate::Garbled => {
            let _ = apply().await;
            sleep(back).await;
            failed(ErrorKind::Unanswered, operation)
        }
        Fate::Throttled => failed(ErrorKind::Throttled, operation),
        Fate::Conflict => failed(ErrorKind::Conflict, operation),
        Fate::Applying(late) => {
            tokio::spawn(async move {
                sleep(late).await;
                let _ = apply().await;
            });
            sleep(back).await;
            failed(ErrorKind::Conflict, operation)
        }
        Fate::Credentials => failed(ErrorKind::Credentials, operation),
        Fate::MissingTable => failed(ErrorKind::MissingTable, operation),
    }
}

/// The log, through a network.
pub(super) struct FarLog<L> {
    pub(super) inner: Arc<L>,
    pub(super) network: Network,
    /// Is told what is appended.
    pub(super) oracle: Option<Arc<Oracle>>,
}

/// Sends a request on to the twin. References become owned values, since a late request outlives its sender.
macro_rules! far {
    ($self:ident, $part:ident, $name:ident ( $($arg:ident : $owned:expr => $pass:expr),* )) => {{
        let (inner, network) = ($self.inner.clone(), $self.network.clone());
        $(let $arg = $owned;)*
        Box::pin(async move {
            network
                .send(stringify!($name), Part::$part, move || Box::pin(async move { inner.$name($($pass),*).await }))
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
        let (inner, oracle) = (self.inner.clone(), self.oracle.clone());
        let apply = async move {
            let applied = inner.commit(commit.clone()).await?;
            if let (Committed::Accepted, Some(oracle)) = (&applied, oracle) {
                let first = commit.tip_after().tip.0 + 1 - commit.cells.len() as u64;
                let cells = commit.cells.iter().zip(first..).map(|(cell, place)| (cell.key.clone(), AddedId(place)));
                oracle.appended(commit.shard, commit.created_at, cells);
            }
            Ok(applied)
        };
        let sending = self.network.clone();
        let committed: Out<'_, Committed> =
            Box::pin(async move { sending.send("commit", Part::Datastore, move || Box::pin(apply)).await });
        Box::pin(async move {
            let mut committed = committed.await?;
            // Some conditions were not looked at: a rival held the tip or a cell.
            if let Committed::Refused(refused) = &mut committed
                && let Some(mut rng) = network.hits("mixed refusal", |faults| faults.conflict)
            {
                refused.contended = true;
                refused.tip = refused.tip.filter(|_| rng.bool());
                refused.cells.retain(|_| rng.bool());
            }
            Ok(committed)
        })
    }
    fn get<'a>(&'a self, key: &'a CellKey) -> Out<'a, Option<StoredCell>> {
        far!(self, Datastore, get(key: key.clone() => &key))
    }
    fn get_all<'a>(&'a self, keys: &'a [CellKey]) -> Out<'a, Vec<Option<StoredCell>>> {
        far!(self, Datastore, get_all(keys: keys.to_vec() => &keys))
    }
    fn latest<'a>(&'a self, row_key: &'a str, column: &'a str) -> Out<'a, Option<StoredCell>> {
        far!(self, Datastore, latest(row: row_key.to_owned() => &row, column: column.to_owned() => &column))
    }
    fn row<'a>(&'a self, row_key: &'a str, after: Option<&'a CellKey>, limit: usize) -> Out<'a, Vec<StoredCell>> {
        far!(self, Datastore, row(row: row_key.to_owned() => &row, after: after.cloned() => after.as_ref(), limit: limit => limit))
    }
    fn places<'a>(&'a self, row_key: &'a str, after: Option<&'a CellKey>, limit: usize) -> Out<'a, Vec<CellPlace>> {
        far!(self, Datastore, places(row: row_key.to_owned() => &row, after: after.cloned() => after.as_ref(), limit: limit => limit))
    }
    fn page(&self, shard: ShardId, after: AddedId, limit: u32, consistency: Consistency) -> Out<'_, Vec<Segment>> {
        let network = self.network.clone();
        let page: Out<'_, Vec<Segment>> = far!(self, Datastore, page(
            shard: shard => shard, after: after => after, limit: limit => limit, consistency: consistency => consistency
        ));
        Box::pin(async move {
            let mut page = page.await?;
            if network.hits("undecodable page", |faults| faults.damaged).is_some() {
                return failed(ErrorKind::Undecodable, "page");
            }
            if consistency == Consistency::Eventual
                && let Some(mut rng) = network.hits("stale page", |faults| faults.stale)
            {
                page.truncate(rng.usize(..=page.len()));
            }
            // A page may end before it is full.
            if page.len() > 1
                && let Some(mut rng) = network.hits("short page", |faults| faults.short)
            {
                page.truncate(rng.usize(1..page.len()));
            }
            // A query beside a transaction may see part of it, strong or not.
            if !page.is_empty()
                && let Some(mut rng) = network.hits("torn page", |faults| faults.torn)
            {
                page.remove(rng.usize(..page.len()));
            }
            if let Some(mut rng) = network.hits("damaged segment", |faults| faults.damaged)
                && !page.is_empty()
            {
                let at = rng.usize(..page.len());
                let mut packed = page[at].packed.to_vec();
                // One that is damaged for good may have a single byte.
                let byte = rng.usize(1.min(packed.len() - 1)..packed.len());
                packed[byte] ^= 0x55;
                page[at].packed = Bytes::from(packed);
            }
            Ok(page)
        })
    }
    fn keys(&self, shard: ShardId, after: AddedId, limit: u32) -> Out<'_, Vec<SegmentKey>> {
        far!(self, Datastore, keys(shard: shard => shard, after: after => after, limit: limit => limit))
    }
    fn segment(&self, shard: ShardId, last: AddedId) -> Out<'_, Option<Segment>> {
        far!(self, Datastore, segment(shard: shard => shard, last: last => last))
    }
    fn settle(&self, shard: ShardId, last: AddedId) -> Out<'_, Settled> {
        far!(self, Datastore, settle(shard: shard => shard, last: last => last))
    }
    fn tips(&self, bucket: u32, consistency: Consistency) -> Out<'_, Vec<Tip>> {
        let network = self.network.clone();
        let tips: Out<'_, Vec<Tip>> =
            far!(self, Datastore, tips(bucket: bucket => bucket, consistency: consistency => consistency));
        Box::pin(async move {
            let mut tips = tips.await?;
            if consistency == Consistency::Eventual && network.hits("stale tips", |faults| faults.stale).is_some() {
                tips.clear();
            }
            Ok(tips)
        })
    }
    fn tip(&self, shard: ShardId) -> Out<'_, Option<Tip>> {
        far!(self, Datastore, tip(shard: shard => shard))
    }
    fn raise_trim(&self, shard: ShardId, to: AddedId) -> Out<'_, bool> {
        let Some(oracle) = self.oracle.clone() else {
            return far!(self, Datastore, raise_trim(shard: shard => shard, to: to => to));
        };
        oracle.trims(self.network.host, clock::wall(), shard, to);
        let (inner, network) = (self.inner.clone(), self.network.clone());
        let apply = async move {
            let raised = inner.raise_trim(shard, to).await?;
            raised.then(|| oracle.trimmed(shard, to));
            Ok(raised)
        };
        Box::pin(async move { network.send("raise_trim", Part::Datastore, move || Box::pin(apply)).await })
    }
    fn delete_segment(&self, shard: ShardId, last: AddedId) -> Out<'_, ()> {
        let (inner, oracle, network) = (self.inner.clone(), self.oracle.clone(), self.network.clone());
        let apply = async move {
            inner.delete_segment(shard, last).await?;
            if let Some(oracle) = oracle {
                oracle.deleted(shard, last);
            }
            Ok(())
        };
        Box::pin(async move { network.send("delete_segment", Part::Datastore, move || Box::pin(apply)).await })
    }
    fn erase_cell<'a>(&'a self, key: &'a CellKey) -> Out<'a, bool> {
        far!(self, Datastore, erase_cell(key: key.clone() => &key))
    }
    fn replace_segment<'a>(&'a self, shard: ShardId, old: &'a Segment, packed: Bytes) -> Out<'a, bool> {
        far!(self, Datastore, replace_segment(shard: shard => shard, old: old.clone() => &old, packed: packed.clone() => packed))
    }
    fn incarnation(&self) -> Out<'_, Option<Incarnation>> {
        far!(self, Datastore, incarnation())
    }
    fn groups(&self) -> Out<'_, BTreeSet<Name>> {
        far!(self, Datastore, groups())
    }
    fn enlist<'a>(&'a self, group: &'a Name) -> Out<'a, ()> {
        far!(self, Datastore, enlist(group: group.clone() => &group))
    }
    fn scan<'a>(
        &'a self,
        slice: Slice,
        after: Option<&'a ScanPlace>,
        limit: u32,
        consistency: Consistency,
    ) -> Out<'a, Scanned> {
        far!(self, Datastore, scan(
            slice: slice => slice, after: after.cloned() => after.as_ref(), limit: limit => limit,
            consistency: consistency => consistency
        ))
    }
}

/// The ledger, through a network.
pub(super) struct FarLedger {
    inner: Arc<Watched>,
    network: Network,
    /// Is told until when the host may trust its session.
    oracle: Arc<Oracle>,
    /// The sweep before the last: what a stale reading shows.
    before: Arc<Mutex<BTreeMap<Name, Vec<Lease>>>>,
}

impl FarLedger {
    pub(super) fn new(inner: Arc<Watched>, network: Network, oracle: Arc<Oracle>) -> Self {
        Self { inner, network, oracle, before: Arc::default() }
    }

    /// A request that vouches for a session: when it is answered with yes, its host may go on for a while.
    fn vouch<'a>(&self, id: &SessionId, sent: Out<'a, Answer<Session>>) -> Out<'a, Answer<Session>> {
        let (oracle, id, at) = (self.oracle.clone(), id.clone(), clock::boot());
        Box::pin(async move {
            let answer = sent.await?;
            if matches!(answer, Answer::Accepted(_)) {
                oracle.trusts(&id, at + TRUSTED);
            }
            Ok(answer)
        })
    }
}

/// How long a session is to be trusted after a beat was sent: its length less one heartbeat, with the defaults.
pub(super) const TRUSTED: Duration = Duration::from_secs(7);

impl Ledger for FarLedger {
    fn open_session<'a>(&'a self, session: &'a Session) -> Out<'a, Answer<Session>> {
        let is_old = self.network.weather.lock().unwrap().old.contains(&self.network.host);
        let session = Session { plan: if is_old { 1 } else { session.plan }, ..session.clone() };
        let id = session.id.clone();
        self.vouch(&id, far!(self, Group, open_session(session: session => &session)))
    }
    fn beat<'a>(&'a self, id: &'a SessionId, at: Millis) -> Out<'a, Answer<Session>> {
        self.vouch(id, far!(self, Group, beat(id: id.clone() => &id, at: at => at)))
    }
    fn set_state<'a>(&'a self, id: &'a SessionId, state: SessionState) -> Out<'a, Answer<Session>> {
        far!(self, Group, set_state(id: id.clone() => &id, state: state => state))
    }
    fn declare_dead<'a>(&'a self, id: &'a SessionId, seen: Option<u64>) -> Out<'a, Answer<Session>> {
        far!(self, Group, declare_dead(id: id.clone() => &id, seen: seen => seen))
    }
    fn nudge<'a>(&'a self, id: &'a SessionId, about: Nudge) -> Out<'a, ()> {
        far!(self, Group, nudge(id: id.clone() => &id, about: about => about))
    }
    fn sessions(&self) -> Out<'_, Vec<Session>> {
        far!(self, Group, sessions())
    }
    fn forget_session<'a>(&'a self, id: &'a SessionId) -> Out<'a, ()> {
        far!(self, Group, forget_session(id: id.clone() => &id))
    }
    fn triggers(&self) -> Out<'_, Vec<TriggerRecord>> {
        far!(self, Group, triggers())
    }
    fn register<'a>(&'a self, record: &'a TriggerRecord) -> Out<'a, Answer<TriggerRecord>> {
        far!(self, Group, register(record: record.clone() => &record))
    }
    fn update_trigger<'a>(&'a self, record: &'a TriggerRecord) -> Out<'a, Answer<TriggerRecord>> {
        far!(self, Group, update_trigger(record: record.clone() => &record))
    }
    fn retired<'a>(&'a self, id: &'a TriggerId) -> Out<'a, Option<TriggerRecord>> {
        let retired: Out<'_, Option<TriggerRecord>> = far!(self, Group, retired(id: id.clone() => &id));
        Box::pin(async move {
            let record = retired.await?;
            if record.is_some() {
                self.oracle.hears(self.network.host, id);
            }
            Ok(record)
        })
    }
    fn rename_trigger<'a>(&'a self, record: &'a TriggerRecord, to: &'a Name) -> Out<'a, Answer<TriggerRecord>> {
        far!(self, Group, rename_trigger(record: record.clone() => &record, to: to.clone() => &to))
    }
    fn free_name<'a>(&'a self, record: &'a TriggerRecord, name: &'a Name) -> Out<'a, Answer<TriggerRecord>> {
        far!(self, Group, free_name(record: record.clone() => &record, name: name.clone() => &name))
    }
    fn leases<'a>(&'a self, source: &'a Name) -> Out<'a, Vec<Lease>> {
        let (network, before, name) = (self.network.clone(), self.before.clone(), source.clone());
        let leases: Out<'_, Vec<Lease>> = far!(self, Group, leases(source: source.clone() => &source));
        Box::pin(async move {
            let leases = leases.await?;
            let older = before.lock().unwrap().insert(name, leases.clone());
            match network.hits("stale leases", |faults| faults.stale) {
                Some(_) => Ok(older.unwrap_or_default()),
                None => Ok(leases),
            }
        })
    }
    fn lease<'a>(&'a self, shard: &'a ShardRef) -> Out<'a, Option<Lease>> {
        far!(self, Group, lease(shard: shard.clone() => &shard))
    }
    fn claim<'a>(
        &'a self,
        shard: &'a ShardRef,
        incarnation: &'a Incarnation,
        me: &'a SessionId,
        seen: Option<&'a Lease>,
        at: Millis,
    ) -> Out<'a, Answer<Lease>> {
        far!(self, Group, claim(
            shard: shard.clone() => &shard, incarnation: incarnation.clone() => &incarnation, me: me.clone() => &me,
            seen: seen.cloned() => seen.as_ref(), at: at => at
        ))
    }
    fn write<'a>(&'a self, write: &'a LeaseWrite) -> Out<'a, Written> {
        far!(self, Group, write(write: write.clone() => &write))
    }
    fn operate<'a>(
        &'a self,
        seen: &'a Lease,
        trigger: &'a TriggerId,
        checkpoint: &'a Checkpoint,
    ) -> Out<'a, Answer<Lease>> {
        far!(self, Group, operate(
            seen: seen.clone() => &seen, trigger: trigger.clone() => &trigger,
            checkpoint: checkpoint.clone() => &checkpoint
        ))
    }
    fn parked<'a>(&'a self, lane: &'a Lane, after: AddedId, limit: usize) -> Out<'a, Vec<Parked>> {
        far!(self, Group, parked(lane: lane.clone() => &lane, after: after => after, limit: limit => limit))
    }
    fn all_parked<'a>(&'a self, after: Option<&'a Parked>, limit: usize) -> Out<'a, Vec<Parked>> {
        far!(self, Group, all_parked(after: after.cloned() => after.as_ref(), limit: limit => limit))
    }
    fn forget_checkpoint<'a>(&'a self, shard: &'a ShardRef, trigger: &'a TriggerId) -> Out<'a, ()> {
        far!(self, Group, forget_checkpoint(shard: shard.clone() => &shard, trigger: trigger.clone() => &trigger))
    }
    fn operate_parked<'a>(&'a self, changes: &'a [LaneChange]) -> Out<'a, bool> {
        far!(self, Group, operate_parked(changes: changes.to_vec() => &changes))
    }
}
