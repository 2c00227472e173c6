//! The seam to the coordination and the parked cells of one group.
//!
//! As in [`Log`](super::Log), a method is one request. A conditional write that was answered gives an
//! [`Answer`]: accepted, or refused with the item as it stands, so that the caller can see whether its own
//! earlier attempt was applied after all.

use super::{AddedId, Epoch, Incarnation, Millis, Name, Out, SessionId, ShardRef, TriggerId};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// The answer to a conditional write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<T> {
    /// Applied; the item after it.
    Accepted(T),
    /// Not applied by this request; the item as it stands, or `None` where there is none.
    Refused(Option<T>),
}

/// The answer to a write by the owner of a lease. What is accepted needs no telling: nobody else changes the lease meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// Applied.
    Accepted,
    /// Not applied by this request; the lease as it stands, or `None` where there is none.
    Refused(Option<Lease>),
}

/// What a nudge is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nudge {
    /// Leases or triggers.
    Leases,
    /// Parked cells, which an operator changed.
    Parked,
}

/// What a session is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Takes shards.
    Worker,
    /// Holds locks only; assignment does not see it.
    Client,
}

/// Where a session stands. `Dead` is final.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SessionState {
    /// At work.
    Live,
    /// At work for what it has, taking nothing new.
    Draining,
    /// Gone, or declared so by an observer.
    Dead,
}

/// A session item: one life of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its key.
    pub id: SessionId,
    /// Where it stands.
    pub state: SessionState,
    /// Counts heartbeats.
    pub beat: u64,
    /// Others bump it to say "look at your leases".
    pub inbox: u64,
    /// Operators bump it to say "look at your parked cells".
    pub parked_inbox: u64,
    /// What it is there for.
    pub role: Role,
    /// For people: where it runs.
    pub host: String,
    /// For people.
    pub pid: u32,
    /// For people: of the program.
    pub version: String,
    /// How long its beat may stand still before others declare it dead.
    pub length: Duration,
    /// The datastores of its config: only their shards are given to it.
    pub sources: BTreeSet<Name>,
    /// Its share of the shards, in proportion to the others'; 1 or more.
    pub weight: u32,
    /// The newest way to share the shards that it knows; 1 or more.
    pub plan: u32,
    /// For people: when it was opened, by its own clock.
    pub started_at: Millis,
    /// For people: when it beat last, by its own clock.
    pub beat_at: Millis,
}

impl Session {
    /// One that is known by its id alone, and dead: for an owner that has no session.
    #[must_use]
    pub fn dead(id: &SessionId) -> Self {
        Self {
            id: id.clone(),
            state: SessionState::Dead,
            beat: 0,
            inbox: 0,
            parked_inbox: 0,
            role: Role::Worker,
            host: String::new(),
            pid: 0,
            version: String::new(),
            length: Duration::ZERO,
            sources: BTreeSet::new(),
            weight: 1,
            plan: 1,
            started_at: Millis(0),
            beat_at: Millis(0),
        }
    }
}

/// Where a trigger stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TriggerState {
    /// Called.
    Active,
    /// Not called until resumed.
    Paused {
        /// Why, by a person or by the handler's verdict.
        reason: String,
    },
    /// Never called again; its name is free.
    Retired,
}

/// A registered trigger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TriggerRecord {
    /// What checkpoints and lanes are filed under.
    pub id: TriggerId,
    /// The label, and the key of the item.
    pub name: Name,
    /// Names that it went by before: a config that still has one of them means this trigger, and nothing else can be
    /// registered under them.
    pub formerly: BTreeSet<Name>,
    /// The datastore that it tails.
    pub source: Name,
    /// The datastore's incarnation when the trigger was registered.
    pub incarnation: Incarnation,
    /// Where it stands.
    pub state: TriggerState,
    /// Grows with every resume, which so ends the pauses of single shards too.
    pub generation: u64,
    /// Start positions that were fixed at registration (`newest`): the low-water of each shard, in order.
    pub start: Option<Arc<[AddedId]>>,
    /// Grows with every write of this item.
    pub revision: u64,
}

impl TriggerRecord {
    /// Whether this name means this trigger: its own, or a former one.
    #[must_use]
    pub fn goes_by(&self, name: &Name) -> bool {
        self.name == *name || self.formerly.contains(name)
    }

    /// The same trigger by another name, as the next revision.
    #[must_use]
    pub fn renamed(&self, to: &Name) -> Self {
        let mut next = Self { name: to.clone(), revision: self.revision + 1, ..self.clone() };
        next.formerly.insert(self.name.clone());
        next.formerly.remove(to);
        next
    }

    /// The same trigger without a former name, as the next revision.
    #[must_use]
    pub fn without_name(&self, name: &Name) -> Self {
        let mut next = Self { revision: self.revision + 1, ..self.clone() };
        next.formerly.remove(name);
        next
    }
}

/// A pause of one shard of a trigger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardPause {
    /// In force while the trigger's generation is this one.
    pub generation: u64,
    /// Why.
    pub reason: String,
}

/// What is durable of one trigger's work on one shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// Low-water: every cell up to here is done, dropped, parked or filtered out.
    pub low: AddedId,
    /// Cells finished beyond it; encoded by the `checkpoint` room, at most 512 bytes.
    pub done: Bytes,
    /// Attempts so far of unfinished cells; encoded by the `checkpoint` room.
    pub attempts: Bytes,
    /// Set when this shard of the trigger is paused.
    pub paused: Option<ShardPause>,
    /// Cells parked as dead since the last resume.
    pub dead: u64,
    /// The generation of the trigger that `dead` counts from.
    pub generation: u64,
    /// As many of the lease's `deaths` are behind it: an owner after them called each cell once that they may have had in
    /// flight. What the lease counts beyond, it counts against this trigger's window.
    pub outlived: u64,
}

/// A cell that is called alone, because owners died with it or with others beside it. Written before its call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alone {
    /// Whose cell.
    pub trigger: TriggerId,
    /// Its place.
    pub added_id: AddedId,
    /// The whole worker makes no other call meanwhile. Without it, only the shards under guard keep still.
    pub quiet: bool,
}

/// A lease item: a shard's lock and its checkpoints. Never deleted while the shard exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The shard.
    pub shard: ShardRef,
    /// Of the datastore, when the lease was first claimed.
    pub incarnation: Incarnation,
    /// Who holds it.
    pub owner: Option<SessionId>,
    /// Fencing token.
    pub epoch: Epoch,
    /// Number of the last write of this epoch; starts anew at 0 with each claim.
    pub seq: u64,
    /// For people: when it was claimed last, by the clock of who did.
    pub claimed_at: Millis,
    /// By trigger.
    pub checkpoints: BTreeMap<TriggerId, Checkpoint>,
    /// Owners that were declared dead while they held it, from the first on.
    pub deaths: u64,
    /// The cell that is called alone or, right after a claim, that was when the owner died.
    pub alone: Option<Alone>,
}

/// The two lanes of parked cells of a trigger's shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LaneKind {
    /// `retrying` and `waiting`.
    Active,
    /// `dead`.
    Dead,
}

/// Names one lane: a partition of the `parked` table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane {
    /// The trigger.
    pub trigger: TriggerId,
    /// The shard.
    pub shard: ShardRef,
    /// Which of the two.
    pub kind: LaneKind,
}

/// Where a parked cell stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ParkedState {
    /// Tried again at `next_attempt_at`.
    Retrying,
    /// Behind a retrying cell of its row.
    Waiting,
    /// Given up; blocks nobody.
    Dead,
}

/// A parked cell. Its body stays in the datastore's `cells` table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parked {
    /// Its lane's trigger.
    pub trigger: TriggerId,
    /// Its lane's shard.
    pub shard: ShardRef,
    /// Its place in the log, and in the lane.
    pub added_id: AddedId,
    /// Last place of the range when a segment that cannot be decoded was parked; else `added_id` again.
    pub last: AddedId,
    /// Address of the cell; empty row key for a range.
    pub row_key: String,
    /// Address of the cell.
    pub column: String,
    /// Address of the cell.
    pub ref_key: u64,
    /// Where it stands.
    pub state: ParkedState,
    /// Attempts so far.
    pub attempts: u32,
    /// The last errors, newest last: at most 3 of at most 1 KiB each.
    pub errors: Vec<String>,
    /// When it is tried again, by the wall clock; only for [`ParkedState::Retrying`].
    pub next_attempt_at: Millis,
    /// When it was first attempted or, for a waiting one, parked.
    pub since: Millis,
    /// The condition of every change: drawn anew whenever the item is put, and grows with every update. Never the same for two
    /// puts at one place, so that an operator's change that arrives late cannot meet a newer item (the model finds that loss).
    pub revision: u64,
}

impl Parked {
    /// A revision for an item that is put: 1 or more, and practically never drawn twice.
    #[must_use]
    pub fn fresh_revision() -> u64 {
        fastrand::u64(1..1 << 52)
    }

    /// The lane that its state puts it in.
    #[must_use]
    pub fn lane(&self) -> Lane {
        let kind = if self.state == ParkedState::Dead { LaneKind::Dead } else { LaneKind::Active };
        Lane { trigger: self.trigger.clone(), shard: self.shard.clone(), kind }
    }
}

/// A change of one item of a lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LaneChange {
    /// Writes the item as it is, over whatever lies there: a cell that leaves the window. Its revision is a
    /// [fresh one](Parked::fresh_revision).
    Put(Parked),
    /// Writes the item with `revision + 1`, on the condition that it is at `revision`.
    Update(Parked),
    /// Deletes the item, on the condition that it is at `revision`.
    Delete(Parked),
}

/// A write by the owner of a lease. One transaction: the lease item on the condition
/// `owner = me AND epoch = mine AND seq < :seq`, no low-water falling, and every lane change on its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseWrite {
    /// The lease.
    pub shard: ShardRef,
    /// The writer.
    pub owner: SessionId,
    /// The epoch at which it claimed.
    pub epoch: Epoch,
    /// One more than its last write of this epoch.
    pub seq: u64,
    /// New checkpoints; other triggers' stay as they are.
    pub checkpoints: BTreeMap<TriggerId, Checkpoint>,
    /// Changes of parked cells, each item at most once; at most 90.
    pub lanes: Vec<LaneChange>,
    /// The cell that is called alone from now on; `None` removes what was there.
    pub alone: Option<Alone>,
    /// Hand-over: removes the owner.
    pub release: bool,
}

/// The coordination and the parked cells of one group.
///
/// Implementations: DynamoDB (a server, or embedded), memory. One conformance suite holds them alike.
/// All reads are strongly consistent unless said otherwise.
pub trait Ledger: Send + Sync + 'static {
    /// Stores a new session if its id is not taken.
    fn open_session<'a>(&'a self, session: &'a Session) -> Out<'a, Answer<Session>>;

    /// `beat + 1`, and `beat_at`, while the session exists and is not dead. May be repeated at will.
    fn beat<'a>(&'a self, id: &'a SessionId, at: Millis) -> Out<'a, Answer<Session>>;

    /// A session about itself: sets its state while it exists and is not dead.
    fn set_state<'a>(&'a self, id: &'a SessionId, state: SessionState) -> Out<'a, Answer<Session>>;

    /// An observer about another: sets `dead` on the condition that it is not dead and `beat` is `seen`.
    /// With `None`: stores a dead session on the condition that there is none by that id.
    fn declare_dead<'a>(&'a self, id: &'a SessionId, seen: Option<u64>) -> Out<'a, Answer<Session>>;

    /// `inbox + 1`, or `parked_inbox + 1`, if the session exists. A hint: nothing depends on it.
    fn nudge<'a>(&'a self, id: &'a SessionId, about: Nudge) -> Out<'a, ()>;

    /// All sessions.
    fn sessions(&self) -> Out<'_, Vec<Session>>;

    /// Deletes a session on the condition that it is dead.
    fn forget_session<'a>(&'a self, id: &'a SessionId) -> Out<'a, ()>;

    /// All triggers, retired ones left out.
    fn triggers(&self) -> Out<'_, Vec<TriggerRecord>>;

    /// A retired trigger. What is neither here nor among [`Ledger::triggers`] was never registered in these tables.
    fn retired<'a>(&'a self, id: &'a TriggerId) -> Out<'a, Option<TriggerRecord>>;

    /// Stores a new trigger if its name is not taken. Refused: the trigger of that name, or `None` when it is a former
    /// name of one.
    fn register<'a>(&'a self, record: &'a TriggerRecord) -> Out<'a, Answer<TriggerRecord>>;

    /// Replaces a trigger's item under the same name by `record` with `revision + 1`, on the condition that it is at
    /// `record.revision` and has the same id. Its names do not change by this, but that a retired one moves away from
    /// all of them. Refused: the trigger of that name, or `None`.
    fn update_trigger<'a>(&'a self, record: &'a TriggerRecord) -> Out<'a, Answer<TriggerRecord>>;

    /// Moves a trigger to the name `to`, on the condition that it is at `record.revision` and has the same id, and that
    /// nothing lies under `to` but a former name of this very trigger. Its name so far becomes a former one. One
    /// transaction. Refused: the trigger of the name so far, or `None`: there is none, or `to` is taken.
    fn rename_trigger<'a>(&'a self, record: &'a TriggerRecord, to: &'a Name) -> Out<'a, Answer<TriggerRecord>>;

    /// Gives up a former name of a trigger, which is free then, on the condition that the trigger is at
    /// `record.revision` and has the same id. One transaction. Refused: the trigger of its name, or `None`: there is
    /// none, or `name` is none of its own.
    fn free_name<'a>(&'a self, record: &'a TriggerRecord, name: &'a Name) -> Out<'a, Answer<TriggerRecord>>;

    /// All leases of a source; eventually consistent.
    fn leases<'a>(&'a self, source: &'a Name) -> Out<'a, Vec<Lease>>;

    /// One lease.
    fn lease<'a>(&'a self, shard: &'a ShardRef) -> Out<'a, Option<Lease>>;

    /// Becomes owner: `owner = me, epoch + 1, seq = 0`, and `claimed_at`, on the condition that epoch and owner are those of `seen`
    /// (`None`: that there is no such lease; the new one gets `incarnation` and epoch 1). An owner other than `me` is dead: then
    /// `deaths + 1`, and `alone` stays as evidence; else `alone` is removed.
    fn claim<'a>(
        &'a self,
        shard: &'a ShardRef,
        incarnation: &'a Incarnation,
        me: &'a SessionId,
        seen: Option<&'a Lease>,
        at: Millis,
    ) -> Out<'a, Answer<Lease>>;

    /// A write by the owner. Refused: the lease as it stands; when that lease still satisfies the condition of the
    /// write, it was a lane change that was refused.
    fn write<'a>(&'a self, write: &'a LeaseWrite) -> Out<'a, Written>;

    /// An operator's change of one trigger's checkpoint: sets it, removes the owner, `epoch + 1`, `seq = 0`, on the
    /// condition that epoch and `seq` are those of `seen`. So nothing that the owner stored since then is undone.
    fn operate<'a>(
        &'a self,
        seen: &'a Lease,
        trigger: &'a TriggerId,
        checkpoint: &'a Checkpoint,
    ) -> Out<'a, Answer<Lease>>;

    /// Removes a trigger's checkpoint from a lease, if it is there: of one that is retired. Fences nobody off.
    fn forget_checkpoint<'a>(&'a self, shard: &'a ShardRef, trigger: &'a TriggerId) -> Out<'a, ()>;

    /// Parked cells of a lane with a place above `after`, ascending, at most `limit`; fewer only at the end.
    fn parked<'a>(&'a self, lane: &'a Lane, after: AddedId, limit: usize) -> Out<'a, Vec<Parked>>;

    /// Parked cells of all lanes, of all triggers, behind this one; at most `limit`, fewer only at the end. A lane's cells are
    /// together and ascending, the lanes in no order. What moves to another lane meanwhile may be met twice, or not at all.
    fn all_parked<'a>(&'a self, after: Option<&'a Parked>, limit: usize) -> Out<'a, Vec<Parked>>;

    /// An operator's change of parked cells, in one transaction, each on its condition; `false` when one is refused.
    fn operate_parked<'a>(&'a self, changes: &'a [LaneChange]) -> Out<'a, bool>;
}
