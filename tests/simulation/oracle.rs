//! The oracle: an omniscient record of what was applied and what the handlers said, and the invariants over it.
//!
//! It is told of every write at the moment at which it is applied, by the twins ([`super::watched`]) or by the connector
//! ([`super::connector`]), and by the handlers of each call. It keeps its own account of cells, owners, epochs, checkpoints
//! and parked cells, and is never fed from what the daemon says of itself.

use cellhook::{cell::*, dispatch::Order};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

/// Which columns a trigger is called for; none: all.
pub(super) type Columns = fn(&Name) -> Vec<String>;
/// A trigger's cell.
type Place = (Name, ShardId, AddedId);
/// The rows of a trigger on a shard in one epoch; no row where the whole shard is in order.
type Line = (Name, ShardId, String, Epoch);

/// A worker that read that a trigger is retired begins no call of it after so many seconds in which it was not frozen: it may go
/// slowly, and reads the leases before it tells its shards.
const HEARD: u32 = 12;
/// Nor does any, so many healthy seconds after: twice as long as between two sweeps, for the slowest clock.
const KNOWN: u32 = 300;

/// The account of a trigger: the name by which it was registered, and of one that took a retired one's name, the how manieth.
pub(super) fn account(name: &Name, earlier: usize) -> Name {
    if earlier == 0 { name.clone() } else { Name::new(&format!("{name}_{earlier}")).unwrap() }
}

/// What the oracle knows of a trigger's end.
#[derive(Default)]
struct End {
    /// Its record says so.
    retired: bool,
    /// Healthy seconds since.
    known: u32,
    /// Workers that read it, and for how many seconds they have turned since.
    heard: BTreeMap<u32, u32>,
    /// Whether a checkpoint of it was removed since it was last asked for.
    swept: bool,
    /// Shards whose owners wrote for it since then.
    late: BTreeSet<ShardId>,
}

/// What the oracle knows of one lease.
#[derive(Default)]
struct KnownLease {
    owner: Option<SessionId>,
    epoch: Epoch,
    low: BTreeMap<TriggerId, AddedId>,
    claims_since_healed: u32,
}

/// A write of a lease by its owner, as it was applied.
pub(super) struct Wrote<'a> {
    pub(super) shard: &'a ShardRef,
    pub(super) owner: &'a SessionId,
    pub(super) epoch: Epoch,
    pub(super) release: bool,
    pub(super) lows: Vec<(TriggerId, AddedId)>,
    pub(super) lanes: Vec<LaneMove>,
}

/// A change of an item of a lane.
#[derive(Clone)]
pub(super) struct LaneMove {
    pub(super) trigger: TriggerId,
    pub(super) kind: LaneKind,
    pub(super) first: AddedId,
    /// Last place of the range that was put; none when it was taken out.
    pub(super) put: Option<AddedId>,
    /// It is parked unread, since its segment cannot be decoded.
    pub(super) unread: bool,
}

/// What lies in a trigger's lanes of a shard, by the first place: up to where, and in which lanes.
type Lanes = BTreeMap<AddedId, (AddedId, BTreeSet<LaneKind>)>;

#[derive(Default)]
struct Facts {
    violations: Vec<String>,
    /// Dead sessions.
    dead: BTreeSet<SessionId>,
    leases: BTreeMap<ShardRef, KnownLease>,
    /// Their accounts, and the names by which they were registered.
    names: BTreeMap<TriggerId, Name>,
    firsts: BTreeMap<TriggerId, Name>,
    /// Triggers whose retirement was asked for.
    ends: BTreeMap<TriggerId, End>,
    is_healthy: bool,
    /// Where triggers began that took a retired one's name.
    began: BTreeMap<(Name, ShardId), AddedId>,
    /// Where trims ended.
    trimmed: BTreeMap<ShardId, AddedId>,
    created: BTreeMap<(ShardId, AddedId), Millis>,
    /// Every cell that was ever appended, by its place, and where it lies.
    cells: BTreeMap<(ShardId, AddedId), CellKey>,
    places: BTreeMap<CellKey, (ShardId, AddedId)>,
    tips: BTreeMap<ShardId, AddedId>,
    /// Calls that were answered with done or drop: in which epoch, and what the answer appends. Such an answer counts only
    /// once the cell is stored.
    finished: BTreeMap<Place, Vec<(Epoch, Option<CellKey>)>>,
    lanes: BTreeMap<(Name, ShardId), Lanes>,
    parked: u64,
    /// Cells that an operator skipped or dropped; those that were erased, for all triggers.
    skipped: BTreeSet<Place>,
    erased: BTreeSet<(ShardId, AddedId)>,
    /// Cells whose segment was damaged for good.
    damaged: BTreeSet<(ShardId, AddedId)>,
    /// Calls under way and the last one started.
    lines: BTreeMap<Line, (u32, AddedId)>,
    /// Epochs in which a trigger's shard was called.
    epochs: BTreeMap<(Name, ShardId), BTreeSet<Epoch>>,
    repeats: BTreeMap<(Name, ShardId), u64>,
    /// Shards whose checkpoint an operator rewound: what is called again there is his wish.
    rewound: BTreeSet<(Name, ShardId)>,
    /// Dead cells that an operator had tried again: out of order on purpose.
    revived: BTreeSet<Place>,
    /// Who claimed a shard at an epoch; until when a session may be trusted, by its host's clock.
    owners: BTreeMap<(ShardId, Epoch), SessionId>,
    trusted: BTreeMap<SessionId, Duration>,
    calls: u64,
    takeovers: u64,
    hand_overs: u64,
}

/// See the module.
pub(super) struct Oracle {
    facts: Mutex<Facts>,
    columns: Columns,
    /// Nothing may be called past the time for which a session is to be trusted.
    fenced: bool,
    /// How long logs are kept at least.
    keep: Option<Duration>,
}

/// What the oracle counted.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    pub(super) cells: u64,
    pub(super) calls: u64,
    pub(super) repeats: u64,
    pub(super) takeovers: u64,
    pub(super) hand_overs: u64,
    pub(super) parked: u64,
}

/// A call under way; dropped unanswered when its worker loses it.
pub(super) struct Witnessed {
    oracle: Arc<Oracle>,
    line: Line,
    place: Place,
    repeat: bool,
}

impl Drop for Witnessed {
    fn drop(&mut self) {
        if let Some((under_way, _)) = self.oracle.facts().lines.get_mut(&self.line) {
            *under_way -= 1;
        }
    }
}

impl Witnessed {
    /// The handler reported that the call failed, or wants another: the call counts as no repeat.
    pub(super) fn unfinished(&self) {
        if self.repeat {
            let (trigger, shard, _) = self.place.clone();
            *self.oracle.facts().repeats.entry((trigger, shard)).or_default() -= 1;
        }
    }

    /// The handler said that the cell is finished, and what is to be appended.
    pub(super) fn finished(&self, put: Option<CellKey>) {
        let answer = (self.line.3, put);
        self.oracle.facts().finished.entry(self.place.clone()).or_default().push(answer);
    }
}

impl Oracle {
    pub(super) fn new(columns: Columns, fenced: bool, keep: Option<Duration>) -> Self {
        Self { facts: Mutex::default(), columns, fenced, keep }
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap()
    }

    pub(super) fn is_violated(&self) -> bool {
        !self.facts().violations.is_empty()
    }

    pub(super) fn violations(&self) -> Vec<String> {
        self.facts().violations.clone()
    }

    pub(super) fn violated(&self, what: String) {
        self.facts().violations.push(what);
    }

    pub(super) fn counts(&self) -> Counts {
        let facts = self.facts();
        Counts {
            cells: facts.cells.len() as u64,
            calls: facts.calls,
            repeats: facts.repeats.values().sum(),
            takeovers: facts.takeovers,
            hand_overs: facts.hand_overs,
            parked: facts.parked,
        }
    }

    // ---- the log ----

    /// Cells were appended to a shard: I2.
    pub(super) fn appended(&self, shard: ShardId, at: Millis, cells: impl Iterator<Item = (CellKey, AddedId)>) {
        let facts = &mut *self.facts();
        for (key, added_id) in cells {
            let tip = facts.tips.entry(shard).or_default();
            if added_id != tip.next() {
                facts.violations.push(format!("I2: shard {shard}: {added_id} was appended after {tip}"));
            }
            *tip = added_id;
            if let Some(before) = facts.places.insert(key.clone(), (shard, added_id)) {
                facts.violations.push(format!("I2: {key:?} was stored at {before:?}, and again at {shard}/{added_id}"));
            }
            facts.cells.insert((shard, added_id), key);
            facts.created.insert((shard, added_id), at);
        }
    }

    /// A writer was told where its cell lies.
    pub(super) fn acknowledged(&self, key: &CellKey, added_id: AddedId) {
        let facts = &mut *self.facts();
        let place = facts.places.get(key).map(|(_, place)| *place);
        if place != Some(added_id) {
            facts.violations.push(format!("I2: {key:?} was acknowledged at {added_id}, and lies at {place:?}"));
        }
    }

    /// Every cell, by its place.
    pub(super) fn cells(&self) -> BTreeMap<(ShardId, AddedId), CellKey> {
        self.facts().cells.clone()
    }

    // ---- sessions, leases and lanes ----

    pub(super) fn died(&self, id: &SessionId) {
        self.facts().dead.insert(id.clone());
    }

    /// A heartbeat was accepted: I8.
    pub(super) fn beat(&self, id: &SessionId) {
        let facts = &mut *self.facts();
        if facts.dead.contains(id) {
            facts.violations.push(format!("I8: the dead session {id} beats"));
        }
    }

    /// A session may be trusted until then, by its host's clock.
    pub(super) fn trusts(&self, session: &SessionId, until: Duration) {
        let facts = &mut *self.facts();
        let trusted = facts.trusted.entry(session.clone()).or_default();
        *trusted = until.max(*trusted);
    }

    /// A trigger was registered, under an id that was never there before.
    pub(super) fn registered(&self, id: &TriggerId, name: &Name) {
        let facts = &mut *self.facts();
        // A renamed trigger is the same one: its config, and so its handler, go on with the name that they know.
        let earlier: Vec<&TriggerId> =
            facts.firsts.iter().filter(|(_, first)| *first == name).map(|(id, _)| id).collect();
        if earlier.iter().any(|id| !facts.is_retired(id)) {
            facts.violations.push(format!("I1: {name} is registered anew, and would be called from the start"));
        }
        let account = account(name, earlier.len());
        facts.names.insert(id.clone(), account);
        facts.firsts.insert(id.clone(), name.clone());
    }

    /// How many were registered.
    pub(super) fn registrations(&self) -> usize {
        self.facts().names.len()
    }

    /// The account of a trigger.
    pub(super) fn registered_as(&self, id: &TriggerId) -> Name {
        self.facts().names[id].clone()
    }

    /// A lease was claimed: I3.
    pub(super) fn claimed(&self, shard: &ShardRef, me: &SessionId, epoch: Epoch) {
        let facts = &mut *self.facts();
        let known = facts.leases.entry(shard.clone()).or_default();
        match &known.owner {
            None => facts.hand_overs += u64::from(known.epoch.0 > 0),
            Some(owner) if owner == me => {}
            Some(owner) if facts.dead.contains(owner) => facts.takeovers += 1,
            Some(owner) => {
                facts.violations.push(format!("I3: {me} claimed {shard} from {owner}, which is alive"));
            }
        }
        if epoch.0 != known.epoch.0 + 1 {
            facts.violations.push(format!("I3: {shard}: the epoch went from {} to {epoch}", known.epoch));
        }
        facts.owners.insert((shard.shard, epoch), me.clone());
        known.owner = Some(me.clone());
        known.epoch = epoch;
        known.claims_since_healed += 1;
    }

    /// The owner of a lease wrote: I1, I3 and I5.
    pub(super) fn wrote(&self, wrote: &Wrote<'_>) {
        let facts = &mut *self.facts();
        let Wrote { shard, owner, epoch, release, lows, lanes } = wrote;
        let lease = facts.leases.entry((*shard).clone()).or_default();
        if lease.owner.as_ref() != Some(*owner) || lease.epoch != *epoch {
            let what = if lows.is_empty() && !lanes.is_empty() { "I5" } else { "I3" };
            facts.violations.push(format!(
                "{what}: {owner} wrote {shard} at epoch {epoch}, which belongs to {:?} at epoch {}",
                lease.owner, lease.epoch
            ));
        }
        if *release {
            lease.owner = None;
        }
        let left = facts.moved(shard.shard, lanes);
        for (trigger, low) in lows {
            let lease = facts.leases.get_mut(*shard).expect("made above");
            let known = lease.low.insert(trigger.clone(), *low);
            if let Some(end) = facts.ends.get_mut(trigger).filter(|end| end.retired) {
                // Its owner has not heard of it. What it says of cells that were given up counts no more.
                end.late.insert(shard.shard);
                continue;
            }
            let name = facts.names[trigger].clone();
            if known.is_none() && name != facts.firsts[trigger] {
                facts.begins(&name, shard.shard, *low);
            }
            let before = known.unwrap_or_default();
            if *low < before {
                facts.violations.push(format!("I3: {shard}: low-water fell from {before} to {low}"));
            }
            for added_id in (before.0 + 1..=low.0).map(AddedId) {
                let place = (name.clone(), shard.shard, added_id);
                if !facts.is_finished(&place, self.columns) {
                    facts.violations.push(format!("I1: the checkpoint passed {place:?}, which is not finished"));
                }
            }
        }
        facts.check_left(shard, &left, self.columns);
    }

    /// An operator changed lanes. What he dropped is told before.
    pub(super) fn sorted(&self, shard: &ShardRef, lanes: &[LaneMove]) {
        let facts = &mut *self.facts();
        let left = facts.moved(shard.shard, lanes);
        for (trigger, added_id) in &left {
            let place = (facts.names[trigger].clone(), shard.shard, *added_id);
            if facts.ends.contains_key(trigger) && !facts.is_parked(&place) {
                facts.skipped.insert(place);
            }
        }
        facts.check_left(shard, &left, self.columns);
    }

    /// An operator is about to give up a cell.
    pub(super) fn drops(&self, trigger: &Name, shard: ShardId, added_id: AddedId) {
        self.facts().skipped.insert((trigger.clone(), shard, added_id));
    }

    // ---- operators, who are the simulation itself ----

    /// An operator is about to set a checkpoint elsewhere, which is a new epoch without an owner.
    pub(super) fn rewinds(&self, shard: &ShardRef, trigger: &TriggerId, from: AddedId, to: AddedId) {
        let facts = &mut *self.facts();
        let name = facts.names[trigger].clone();
        facts.rewound.insert((name.clone(), shard.shard));
        facts.skipped.extend((from.0 + 1..=to.0).map(|id| (name.clone(), shard.shard, AddedId(id))));
    }

    /// An operator's change was accepted.
    pub(super) fn operated(&self, shard: &ShardRef, epoch: Epoch, trigger: &TriggerId, low: AddedId) {
        let facts = &mut *self.facts();
        let known = facts.leases.entry(shard.clone()).or_default();
        known.owner = None;
        known.epoch = epoch;
        known.low.insert(trigger.clone(), low);
    }

    /// An operator is about to have a dead cell tried again.
    pub(super) fn revived(&self, trigger: &Name, shard: ShardId, added_id: AddedId) {
        self.facts().revived.insert((trigger.clone(), shard, added_id));
    }

    /// A row is about to be erased.
    pub(super) fn erases(&self, row: &str) {
        let facts = &mut *self.facts();
        facts.erased.extend(facts.cells.iter().filter(|(_, key)| *key.row_key == *row).map(|(place, _)| *place));
    }

    /// A segment is about to be damaged for good.
    pub(super) fn damages(&self, shard: ShardId, first: AddedId, last: AddedId) {
        self.facts().damaged.extend((first.0..=last.0).map(|id| (shard, AddedId(id))));
    }

    // ---- the ends of triggers ----

    /// An operator asks for a trigger's retirement, perhaps again.
    pub(super) fn retires(&self, id: &TriggerId) {
        let facts = &mut *self.facts();
        let end = facts.ends.entry(id.clone()).or_default();
        (end.swept, end.late) = (false, BTreeSet::new());
    }

    /// A trigger's record says that it is retired.
    pub(super) fn retired(&self, id: &TriggerId) {
        let facts = &mut *self.facts();
        match facts.ends.get_mut(id) {
            Some(end) => end.retired = true,
            None => facts.violations.push(format!("I11: {id} is retired, and nobody asked for it")),
        }
    }

    /// A worker read that a trigger is retired.
    pub(super) fn hears(&self, host: u32, id: &TriggerId) {
        if let Some(end) = self.facts().ends.get_mut(id) {
            end.heard.entry(host).or_default();
        }
    }

    /// A second has passed, and these hosts were not frozen.
    pub(super) fn turned(&self, hosts: impl Iterator<Item = u32>) {
        let facts = &mut *self.facts();
        let hosts: Vec<u32> = hosts.collect();
        for end in facts.ends.values_mut().filter(|end| end.retired) {
            end.known += u32::from(facts.is_healthy);
            for host in &hosts {
                end.heard.entry(*host).and_modify(|seconds| *seconds += 1);
            }
        }
    }

    /// A trigger's checkpoint was removed from a lease.
    pub(super) fn forgot(&self, shard: &ShardRef, id: &TriggerId) {
        let facts = &mut *self.facts();
        if let Some(lease) = facts.leases.get_mut(shard) {
            lease.low.remove(id);
        }
        match facts.ends.get_mut(id).filter(|end| end.retired) {
            Some(end) if end.swept => {
                end.late.remove(&shard.shard);
            }
            Some(end) => (end.swept, end.late) = (true, BTreeSet::new()),
            None => facts.violations.push(format!("I11: the checkpoint of {id} is removed, and it is not retired")),
        }
    }

    /// A retirement says that it is whole: nothing is left, but for what an owner wrote that had not heard of it.
    pub(super) fn is_whole(&self, id: &TriggerId) {
        let facts = &mut *self.facts();
        let (end, name) = (&facts.ends[id], &facts.names[id]);
        let in_leases =
            facts.leases.iter().filter(|(_, lease)| lease.low.contains_key(id)).map(|(shard, _)| shard.shard);
        let in_lanes = facts.lanes.iter().filter(|((of, _), lanes)| of == name && !lanes.is_empty());
        let left: BTreeSet<ShardId> = in_leases.chain(in_lanes.map(|((_, shard), _)| *shard)).collect();
        let left: Vec<&ShardId> = left.difference(&end.late).collect();
        let what = match (end.retired, left.is_empty()) {
            (true, true) => return,
            (true, false) => format!("I11: {name} was retired, and something of it is left on {left:?}"),
            (false, _) => format!("I11: {name} is said to be retired, and is not"),
        };
        facts.violations.push(what);
    }

    // ---- trims ----

    /// A worker is about to trim a shard by its retention, and its wall clock shows that: I12.
    pub(super) fn trims(&self, host: u32, wall: Millis, shard: ShardId, to: AddedId) {
        let facts = &mut *self.facts();
        let from = facts.trimmed.get(&shard).copied().unwrap_or_default();
        let keep = self.keep.map_or(i64::MAX, |keep| i64::try_from(keep.as_millis()).unwrap());
        let young = (from.0 + 1..=to.0)
            .map(|id| (shard, AddedId(id)))
            .find(|place| facts.created.get(place).is_none_or(|created| wall.0.saturating_sub(created.0) <= keep));
        if let Some(place) = young {
            let created = facts.created.get(&place);
            facts.violations.push(format!("I12: host {host} trims {place:?} of {created:?} at {wall:?}"));
        }
    }

    /// The end of a trim was raised.
    pub(super) fn trimmed(&self, shard: ShardId, to: AddedId) {
        let facts = &mut *self.facts();
        let trimmed = facts.trimmed.entry(shard).or_default();
        *trimmed = to.max(*trimmed);
    }

    /// A worker deleted a segment: what it holds was said to be trimmed before, and every trigger has passed it: I12.
    pub(super) fn deleted(&self, shard: ShardId, last: AddedId) {
        let facts = &mut *self.facts();
        if facts.trimmed.get(&shard).is_none_or(|to| last > *to) {
            facts.violations.push(format!("I12: {shard}/{last} was deleted, and nobody said so before"));
        }
        let of = facts.leases.iter().filter(|(of, _)| of.shard == shard).flat_map(|(_, lease)| &lease.low);
        let behind = of.filter(|(id, low)| !facts.is_retired(id) && **low < last);
        let behind: Vec<String> = behind.map(|(id, low)| format!("{} at {low}", facts.names[id])).collect();
        if !behind.is_empty() {
            facts.violations.push(format!("I12: {shard}/{last} was deleted before {behind:?}"));
        }
    }

    // ---- calls ----

    /// A handler was called by a host, whose clock shows that: I4, I8, and the account of repeats.
    pub(super) fn call(self: &Arc<Self>, host: u32, shown: Duration, event: &Event, order: Order) -> Witnessed {
        let facts = &mut *self.facts();
        facts.calls += 1;
        let cell = &event.cell;
        let place = (event.trigger.clone(), cell.shard, cell.added_id);
        let row = if order == Order::Shard { String::new() } else { cell.key.row_key.to_string() };
        let line = (event.trigger.clone(), cell.shard, row, event.epoch);
        let (under_way, last) = facts.lines.get(&line).copied().unwrap_or_default();
        if order != Order::None && under_way > 0 {
            facts.violations.push(format!("I4: {line:?}: {} is called while {last} is under way", cell.added_id));
        }
        if order != Order::None && last > cell.added_id && !facts.revived.contains(&place) {
            facts.violations.push(format!("I4: {line:?}: {} is called after {last}", cell.added_id));
        }
        // Under the session that claimed this epoch, whatever session its host has now.
        let session = facts.owners.get(&(cell.shard, event.epoch));
        let trusted = session.and_then(|session| facts.trusted.get(session)).copied().unwrap_or_default();
        if self.fenced && shown > trusted {
            let late = shown - trusted;
            facts
                .violations
                .push(format!("I8: host {host} calls {place:?} {late:?} after its session was to be trusted"));
        }
        facts.check_end(host, &event.trigger);
        facts.lines.insert(line.clone(), (under_way + 1, last.max(cell.added_id)));
        let shard = (event.trigger.clone(), cell.shard);
        facts.epochs.entry(shard.clone()).or_default().insert(event.epoch);
        // After an answer whose append failed, the daemon rightly calls again within the epoch.
        let answers = facts.finished.get(&place).into_iter().flatten();
        let repeat = answers.filter(|(epoch, put)| *epoch != event.epoch || put.is_none()).count() > 0;
        if repeat {
            *facts.repeats.entry(shard).or_default() += 1;
        }
        Witnessed { oracle: self.clone(), line, place, repeat }
    }

    // ---- once all is over ----

    /// From now on nothing goes wrong any more.
    pub(super) fn healed(&self) {
        let facts = &mut *self.facts();
        facts.is_healthy = true;
        facts.leases.values_mut().for_each(|lease| lease.claims_since_healed = 0);
    }

    /// How often all leases were claimed.
    pub(super) fn claims(&self) -> u64 {
        self.facts().leases.values().map(|lease| lease.epoch.0).sum()
    }

    /// I7: leases do not go round and round.
    pub(super) fn check_claims(&self, most: u32) {
        let facts = &mut *self.facts();
        for (shard, lease) in &facts.leases {
            let claims = lease.claims_since_healed;
            if claims > most {
                facts.violations.push(format!("I7: {shard} was claimed {claims} times since the world healed"));
            }
        }
    }

    /// I6: repeats of each shard against its changes of owner.
    pub(super) fn check_repeats(&self, window: u64) {
        let facts = &mut *self.facts();
        for (shard, repeats) in &facts.repeats {
            let changes = facts.epochs.get(shard).map_or(0, |epochs| epochs.len() as u64 - 1);
            if *repeats > window * changes && !facts.rewound.contains(shard) {
                facts.violations.push(format!("I6: {shard:?}: {repeats} repeats, {changes} changes of owner"));
            }
        }
    }

    /// I1: everything appended is finished, parked or passed, for every trigger that is not retired.
    pub(super) fn check_all(&self) {
        let facts = &mut *self.facts();
        let triggers: Vec<Name> =
            facts.names.iter().filter(|(id, _)| !facts.is_retired(id)).map(|(_, name)| name.clone()).collect();
        for (trigger, (shard, added_id)) in
            triggers.iter().flat_map(|trigger| facts.cells.keys().map(move |place| (trigger, place)))
        {
            let place = (trigger.clone(), *shard, *added_id);
            if !facts.is_finished(&place, self.columns) {
                facts.violations.push(format!("I1: {place:?} was never handled"));
            }
        }
    }
}

impl Facts {
    fn is_retired(&self, id: &TriggerId) -> bool {
        self.ends.get(id).is_some_and(|end| end.retired)
    }

    /// A trigger that took a retired one's name begins with the oldest cell of a shard that there is.
    fn begins(&mut self, name: &Name, shard: ShardId, low: AddedId) {
        let trimmed = self.trimmed.get(&shard).copied().unwrap_or_default();
        if low > trimmed {
            self.violations.push(format!("I1: {name} begins after {shard}/{low}, and only {trimmed} is trimmed"));
        }
        self.began.insert((name.clone(), shard), low);
    }

    /// I11: who read that a trigger is retired begins no call of it.
    fn check_end(&mut self, host: u32, name: &Name) {
        let ended = self.ends.iter().find(|(id, end)| end.retired && self.names[*id] == *name);
        let Some((_, End { known, heard, .. })) = ended else { return };
        let heard = heard.get(&host).copied().unwrap_or_default();
        if heard > HEARD || *known > KNOWN {
            let known = *known;
            self.violations.push(format!(
                "I11: host {host} calls {name}, which is retired: {heard} s after it read that, {known} healthy s after it was so"
            ));
        }
    }

    /// Books changes of lanes, and gives the places that lie in none any more.
    fn moved(&mut self, shard: ShardId, changes: &[LaneMove]) -> Vec<(TriggerId, AddedId)> {
        let mut out = Vec::new();
        for LaneMove { trigger, kind, first, put, unread } in changes {
            let until = put.filter(|_| *unread).map_or(0, |last| last.0);
            for place in (first.0..=until).map(|id| (shard, AddedId(id))).filter(|place| !self.damaged.contains(place))
            {
                self.violations.push(format!("I1: {place:?} is parked unread, and could be read"));
            }
            let lanes = self.lanes.entry((self.names[trigger].clone(), shard)).or_default();
            match put {
                Some(last) => {
                    self.parked += 1;
                    let lane = lanes.entry(*first).or_insert_with(|| (*last, BTreeSet::new()));
                    lane.0 = *last;
                    lane.1.insert(*kind);
                }
                None => {
                    if let Some((last, kinds)) = lanes.get_mut(first) {
                        kinds.remove(kind);
                        out.extend((first.0..=last.0).map(|id| (trigger.clone(), AddedId(id))));
                        if kinds.is_empty() {
                            lanes.remove(first);
                        }
                    }
                }
            }
        }
        out
    }

    /// I5: what left its lanes and was passed is finished.
    fn check_left(&mut self, shard: &ShardRef, left: &[(TriggerId, AddedId)], columns: Columns) {
        for (trigger, added_id) in left {
            if self.is_retired(trigger) {
                continue;
            }
            let place = (self.names[trigger].clone(), shard.shard, *added_id);
            let low = self.leases.get(shard).and_then(|lease| lease.low.get(trigger)).copied().unwrap_or_default();
            if *added_id <= low && !self.is_finished(&place, columns) {
                self.violations.push(format!("I5: {place:?} left its lane, and is not finished"));
            }
        }
    }

    fn is_parked(&self, (trigger, shard, added_id): &Place) -> bool {
        let lanes = self.lanes.get(&(trigger.clone(), *shard));
        // A dead cell may lie in a lane beside a range that was parked unread over it.
        let mut before = lanes.into_iter().flat_map(|lanes| lanes.range(..=*added_id).rev());
        before.any(|(_, (last, kinds))| last >= added_id && !kinds.is_empty())
    }

    fn is_finished(&self, place: &Place, columns: Columns) -> bool {
        let (trigger, shard, added_id) = place;
        let cell = (*shard, *added_id);
        let mut answers = self.finished.get(place).into_iter().flatten();
        answers.any(|(_, put)| put.as_ref().is_none_or(|key| self.places.contains_key(key)))
            || self.is_parked(place)
            || self.skipped.contains(place)
            || self.erased.contains(&cell)
            || self.began.get(&(trigger.clone(), *shard)).is_some_and(|began| added_id <= began)
            || self.is_passed(columns(trigger), &cell)
    }

    /// Whether the trigger is not called for this cell.
    fn is_passed(&self, columns: Vec<String>, cell: &(ShardId, AddedId)) -> bool {
        !columns.is_empty()
            && self.cells.get(cell).is_some_and(|key| !columns.iter().any(|column| **column == *key.column))
    }
}
