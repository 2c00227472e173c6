//! One worker's part in the coordination of its group: a loop over closed events with plain state.
//!
//! It publishes what this worker holds ([`View`]); the worker room makes the running shard tasks equal to it and tells
//! back how they ended. Level-triggered: every turn compares the wanted set with the held set, so that a hint that was lost
//! costs time and nothing else.

mod leave;

use super::{
    AllVacant, Config, Fence, Gone, Turns, assign,
    claim::{Claimed, claim, reason, without_checkpoints},
    gone,
    heart::{self, Pulse},
    moves::{Move, Moves},
    nudge::back_off,
    vacant::Vacancies,
    wanted,
    watchman::Watchman,
};
use crate::{
    cell::{
        Answer, Datastore, Epoch, Lease, Ledger, Name, Role, Session, SessionId, SessionState, ShardRef, StoreError,
        TriggerId, TriggerRecord, chain, clock, planted,
    },
    metrics,
    store::Presence,
};
use futures_util::{StreamExt, stream};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// Leases are read at least this often.
const SWEEP: Duration = Duration::from_secs(60);
/// Between sweeps while a shard that this worker wants has another owner.
const SWEEP_WAITING: Duration = Duration::from_millis(500);
/// Between sweeps when that has gone on for a while.
const SWEEP_PATIENT: Duration = Duration::from_secs(5);
/// A shard that was handed over rests before it is handed over again.
const REST: Duration = Duration::from_secs(30);
/// Rest before a shard whose lease was lost is claimed again.
const REST_LOST: Duration = Duration::from_secs(1);
/// So often in a row a free lease whose claim was refused is claimed again at once, with what the refusal told.
const SURPRISES: u32 = 3;
/// Claims and releases under way at a time.
const PARALLEL: usize = 16;
/// Claims in one turn of the loop, so that it turns while thousands are claimed.
const CLAIMS_A_TURN: usize = 128;
/// How often a worker that leaves tries to say so.
const SIGN_OFF_TRIES: u32 = 3;
/// Dead sessions are kept this long, for people.
const SESSION_KEPT: Duration = Duration::from_secs(86_400);

/// Who this process is, for people.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// Host name.
    pub host: String,
    /// Process id.
    pub pid: u32,
    /// Version of the program.
    pub version: String,
}

/// A shard that this worker holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// As it was when it was claimed.
    pub lease: Arc<Lease>,
    /// Set when the shard is to be handed over: finish what is in flight until then, write, release.
    pub give_by: Option<Instant>,
    /// Grows when somebody said "look again".
    pub look: u64,
}

/// What is held.
pub type Grants = BTreeMap<ShardRef, Grant>;

/// What the rest of the process sees of the coordination.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// What this worker holds.
    pub grants: Arc<Grants>,
    /// The group's triggers, as last read.
    pub triggers: Arc<[TriggerRecord]>,
    /// Those that this worker works for, or did, and that were not among them.
    pub gone: Arc<BTreeMap<TriggerId, Gone>>,
    /// The session under which it works.
    pub session: Option<SessionId>,
    /// The leases were read, and assignment counts with this worker.
    pub counted: bool,
    /// Shards that it should hold.
    pub wanted: usize,
    /// Workers that share the shards.
    pub workers: usize,
    /// Those of them that nobody holds.
    pub vacant: Arc<AllVacant>,
    /// Live sessions of the group.
    pub sessions: usize,
    /// Shards that cannot be worked on, with the reason.
    pub stopped: BTreeMap<ShardRef, String>,
}

impl View {
    /// Whether a name means a trigger that this worker worked for until it was retired.
    #[must_use]
    pub fn is_retired(&self, name: &Name) -> bool {
        let was = |gone: &Gone| matches!(gone, Gone::Retired(record) if record.goes_by(name));
        self.gone.values().any(was) && !self.triggers.iter().any(|record| record.goes_by(name))
    }
}

/// How a shard task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The release is durable.
    Released,
    /// The lease belongs to somebody else, or nobody knows.
    Lost,
}

/// A message of the worker about one of its shard tasks.
pub type EndedShard = (ShardRef, Epoch, Ended);

/// The coordination of one worker.
pub struct Coordinator {
    config: Config,
    ledger: Arc<dyn Ledger>,
    presence: Option<Presence>,
    identity: Identity,
    sources: Vec<Datastore>,
    working_for: watch::Receiver<BTreeSet<TriggerId>>,
    /// What became of those that are registered no more.
    gone: Arc<BTreeMap<TriggerId, Gone>>,
    fence: Fence,
    /// Of its loop. It waits for the store within a turn.
    pub turns: Turns,
    view: watch::Sender<View>,
    ended: mpsc::UnboundedReceiver<EndedShard>,
}

/// Why a tenure ended.
enum Over {
    /// Asked to leave, and left.
    Left,
    /// Declared dead.
    Dead,
}

impl Coordinator {
    /// Not started. `sources` are the datastores that this worker can tail; of these, the group shares the shards of
    /// those that a registered trigger tails. `working_for` are the triggers that it calls: it is told which of them
    /// are gone.
    #[must_use]
    pub fn new(
        config: Config,
        ledger: Arc<dyn Ledger>,
        presence: Option<Presence>,
        identity: Identity,
        sources: Vec<Datastore>,
        working_for: watch::Receiver<BTreeSet<TriggerId>>,
    ) -> (Self, watch::Receiver<View>, mpsc::UnboundedSender<EndedShard>) {
        let (view, receiver) = watch::channel(View::default());
        let (sender, ended) = mpsc::unbounded_channel();
        let (gone, fence, turns) = (Arc::default(), Fence::default(), Turns::default());
        let coordinator =
            Self { config, ledger, presence, identity, sources, working_for, gone, fence, turns, view, ended };
        (coordinator, receiver, sender)
    }

    /// Fencing from the inside, for all that act for this worker.
    #[must_use]
    pub fn fence(&self) -> Fence {
        self.fence.clone()
    }

    /// Runs until `stop`, then hands over what it holds and leaves. A session that is declared dead is followed by a new
    /// one.
    pub async fn run(mut self, stop: CancellationToken) {
        while let Some((me, guard)) = self.open(&stop).await {
            let (pulse_sender, pulse) = watch::channel(Pulse::default());
            let heart =
                heart::beat(self.ledger.clone(), self.config.clone(), me.clone(), self.fence.clone(), pulse_sender);
            let opened = clock::now();
            let mut tenure = Tenure::new(&mut self, me.clone(), pulse);
            let over = tokio::select! {
                biased;
                () = heart => Over::Dead,
                () = tenure.run(&stop) => Over::Left,
            };
            tenure.tell_lost(&over);
            self.fence.close();
            self.view.send_modify(|view| {
                view.grants = Arc::default();
                view.vacant = Arc::default();
                view.session = None;
                view.counted = false;
            });
            drop(guard);
            match over {
                Over::Left => return,
                Over::Dead => metrics::session_lost(),
            }
            if clock::since(opened) < self.config.session {
                // Nobody can have found it silent for its length: who opened the next one at once would soon open thousands.
                rest(self.config.heartbeat, &stop).await;
            }
            // The tasks of the old session end by themselves; what they still say is about the past.
            while self.ended.try_recv().is_ok() {}
        }
    }

    /// Opens a session; `None` when asked to stop first.
    async fn open(&self, stop: &CancellationToken) -> Option<(SessionId, Option<impl Sized + use<>>)> {
        let mut failures = 0_u32;
        loop {
            self.turns.turn();
            if stop.is_cancelled() {
                return None;
            }
            let (id, now) = (SessionId::random(), clock::wall());
            let session = Session {
                id: id.clone(),
                state: SessionState::Live,
                beat: 0,
                inbox: 0,
                parked_inbox: 0,
                role: Role::Worker,
                host: self.identity.host.clone(),
                pid: self.identity.pid,
                version: self.identity.version.clone(),
                length: self.config.session,
                sources: self.sources.iter().map(|source| source.name.clone()).collect(),
                started_at: now,
                beat_at: now,
            };
            // Held before the session can be seen, so that nobody finds it without its process.
            let guard = self.presence.as_ref().map(|presence| presence.hold(&id)).transpose();
            let guard = guard.unwrap_or_else(|error| {
                tracing::warn!(%error, "other processes of this host will not see at once when this one ends");
                None
            });
            let sent = clock::boot();
            match self.ledger.open_session(&session).await {
                Ok(Answer::Accepted(_)) => {
                    self.fence.enter(&id, sent + self.config.session.saturating_sub(self.config.heartbeat));
                    tracing::info!(session = %id, "session opened");
                    return Some((id, guard));
                }
                // Whether it was stored or not: an id is never tried twice, and an orphan is found dead.
                Ok(Answer::Refused(_)) => {
                    failures += 1;
                    tracing::error!(failures, "a session is refused, though its id was never used; trying another");
                }
                Err(error) => {
                    failures += 1;
                    tracing::error!(error = %chain(&error), failures, "cannot open a session; trying again");
                }
            }
            rest(Duration::from_millis(500) * (1 << failures.min(5)), stop).await;
        }
    }
}

/// What is believed of a shard that is held.
struct Held {
    grant: Grant,
    /// Not handed over on the plan's account before this.
    rests_until: Instant,
}

/// The life of one session.
struct Tenure<'a> {
    home: &'a mut Coordinator,
    me: SessionId,
    pulse: watch::Receiver<Pulse>,
    inbox: u64,
    parked_inbox: u64,
    watchman: Watchman,
    /// As last read; the dead ones are final.
    sessions: BTreeMap<SessionId, SessionState>,
    /// What the workers can tail.
    able: BTreeMap<SessionId, BTreeSet<Name>>,
    /// Without checkpoints: the answer to a claim brings the true ones.
    leases: BTreeMap<ShardRef, Lease>,
    held: BTreeMap<ShardRef, Held>,
    /// By source, the wanted owner of each shard.
    plan: Vec<Vec<SessionId>>,
    wanted: BTreeSet<ShardRef>,
    resting: BTreeMap<ShardRef, Instant>,
    stopped: BTreeMap<ShardRef, String>,
    vacancies: Vacancies,
    triggers: Arc<[TriggerRecord]>,
    look: u64,
    next_reading: Instant,
    next_sweep: Instant,
    /// Since when some wanted shard has another owner.
    waiting_since: Option<Instant>,
    read_failures: u32,
    /// Turns in a row in which a claim was refused on a lease that is free.
    surprises: u32,
    swept: bool,
    draining: Option<Draining>,
    /// Hand-overs that are not told yet, and when they will be.
    handed_over: Moves,
    tell_at: Option<Instant>,
}

/// A worker that leaves.
struct Draining {
    /// Works on until all others have seen that it leaves.
    give_from: Instant,
    /// What is not handed over by then is left to be found.
    leave_by: Instant,
    /// The session says that it leaves.
    told: bool,
}

impl<'a> Tenure<'a> {
    fn new(home: &'a mut Coordinator, me: SessionId, pulse: watch::Receiver<Pulse>) -> Self {
        let watchman = Watchman::new(me.clone(), home.config.membership, home.config.heartbeat);
        let now = clock::now();
        Self {
            home,
            me,
            pulse,
            inbox: 0,
            parked_inbox: 0,
            watchman,
            sessions: BTreeMap::new(),
            able: BTreeMap::new(),
            leases: BTreeMap::new(),
            held: BTreeMap::new(),
            plan: Vec::new(),
            wanted: BTreeSet::new(),
            resting: BTreeMap::new(),
            stopped: BTreeMap::new(),
            vacancies: Vacancies::default(),
            triggers: Arc::new([]),
            look: 0,
            next_reading: now,
            next_sweep: now,
            waiting_since: None,
            read_failures: 0,
            surprises: 0,
            swept: false,
            draining: None,
            handed_over: Moves::default(),
            tell_at: None,
        }
    }

    async fn run(&mut self, stop: &CancellationToken) {
        loop {
            self.home.turns.turn();
            let give_from = self.draining.as_ref().map(|draining| draining.give_from);
            let leave_by = self.draining.as_ref().map(|draining| draining.leave_by);
            tokio::select! {
                biased;
                () = stop.cancelled(), if self.draining.is_none() => self.drain().await,
                Some(ended) = self.home.ended.recv() => {
                    let mut all = vec![ended];
                    while let Ok(ended) = self.home.ended.try_recv() {
                        all.push(ended);
                    }
                    self.on_ended(all).await;
                }
                Ok(()) = self.pulse.changed() => self.on_pulse().await,
                () = clock::sleep_until(self.next_reading) => self.read_members().await,
                () = clock::sleep_until(self.next_sweep) => self.sweep().await,
                () = until(give_from), if give_from.is_some_and(|at| at > clock::now()) => {}
                () = until(leave_by) => {}
                () = until(self.tell_at) => self.tell_handed_over(),
            }
            if self.home.fence.wants_reading() {
                self.read_held().await;
            }
            if self.swept && self.home.fence.is_safe() {
                self.reconcile().await;
            }
            self.publish();
            if let Some(draining) = &self.draining {
                let late = clock::now() >= draining.leave_by;
                if self.held.is_empty() || late {
                    if late && !self.held.is_empty() {
                        tracing::warn!(shards = self.held.len(), "left before these shards were handed over");
                    }
                    self.sign_off().await;
                    return;
                }
            }
        }
    }

    async fn on_pulse(&mut self) {
        let pulse = *self.pulse.borrow_and_update();
        if pulse.failures > 0 {
            self.watchman.disturbed();
        }
        self.hear(pulse.inbox, pulse.parked_inbox);
    }

    /// Somebody may have said "look at your leases", or "look at your parked cells".
    fn hear(&mut self, inbox: u64, parked_inbox: u64) {
        if inbox > self.inbox {
            self.inbox = inbox;
            self.next_sweep = clock::now();
        }
        if parked_inbox > self.parked_inbox {
            self.parked_inbox = parked_inbox;
            self.look += 1;
            for held in self.held.values_mut() {
                held.grant.look = self.look;
            }
        }
    }

    /// Reads all sessions: who is alive, who is to be declared dead.
    async fn read_members(&mut self) {
        self.tell_draining().await;
        let membership = self.home.config.membership;
        let result = self.home.ledger.sessions().await;
        let sessions = match result {
            Ok(sessions) => sessions,
            Err(error) => {
                self.read_failures += 1;
                self.watchman.disturbed();
                if self.read_failures == 1 {
                    tracing::warn!(error = %chain(&error), "cannot read the sessions; trying again");
                }
                self.next_reading = clock::now() + back_off(membership, self.read_failures);
                return;
            }
        };
        if std::mem::take(&mut self.read_failures) > 0 {
            tracing::info!("the sessions can be read again");
        }
        self.sessions = sessions.iter().map(|session| (session.id.clone(), session.state)).collect();
        self.able = sessions.iter().map(|session| (session.id.clone(), session.sources.clone())).collect();
        if let Some(me) = sessions.iter().find(|session| session.id == self.me) {
            self.hear(me.inbox, me.parked_inbox);
        }
        let presence = self.home.presence.clone();
        let gone = |id: &SessionId| presence.as_ref().is_some_and(|presence| presence.is_gone(id));
        let findings = self.watchman.reading(clock::boot(), &sessions, gone);
        let mut declared = false;
        for (id, beat) in findings.dead {
            declared |= self.declare_dead(&id, beat).await;
        }
        if findings.changed || declared {
            if self.watchman.roster().is_empty() && self.draining.is_none() {
                tracing::debug!("waiting for the membership to settle");
            }
            self.replan();
        }
        // While anybody drains, hand-overs are at hand.
        let draining = sessions.iter().any(|session| session.state == SessionState::Draining);
        let interval = if draining { membership.min(SWEEP_WAITING) } else { membership };
        // A death takes effect with the reading that shows it.
        self.next_reading = clock::now() + if declared { Duration::ZERO } else { interval };
    }

    async fn declare_dead(&mut self, id: &SessionId, beat: u64) -> bool {
        if !self.home.fence.is_safe() {
            return false;
        }
        match self.home.ledger.declare_dead(id, Some(beat)).await {
            Ok(Answer::Accepted(_)) => {
                tracing::warn!(session = %id, "its heartbeat stood still: declared dead");
                metrics::session_declared_dead();
            }
            // It beats, or another observer was faster; the next reading tells.
            Ok(Answer::Refused(Some(session))) if session.state == SessionState::Dead => {}
            Ok(Answer::Refused(_)) => return false,
            Err(error) => {
                tracing::warn!(error = %chain(&error), session = %id, "its heartbeat stood still, and it could not be declared dead");
                return false;
            }
        }
        self.sessions.insert(id.clone(), SessionState::Dead);
        true
    }

    fn replan(&mut self) {
        let roster = self.watchman.roster();
        let able = |source: &Name| {
            let able = roster.iter().filter(|id| self.able.get(*id).is_some_and(|sources| sources.contains(source)));
            able.cloned().collect::<BTreeSet<SessionId>>()
        };
        let plan = self.home.sources.iter().map(|source| match self.is_tailed(source) {
            true => assign(source, &able(&source.name)),
            false => Vec::new(),
        });
        self.plan = plan.collect();
        self.wanted.clear();
        for (source, plan) in self.home.sources.iter().zip(&self.plan) {
            let mine = wanted(plan, &self.me).into_iter();
            self.wanted.extend(mine.map(|shard| ShardRef { source: source.name.clone(), shard }));
        }
        self.stopped.retain(|shard, _| self.wanted.contains(shard));
        tracing::info!(workers = roster.len(), shards = self.wanted.len(), "the shards are shared anew");
    }

    /// Whether some trigger of the group wants the cells of a datastore.
    fn is_tailed(&self, source: &Datastore) -> bool {
        self.triggers.iter().any(|trigger| trigger.source == source.name)
    }

    fn wanted_owner(&self, shard: &ShardRef) -> Option<&SessionId> {
        let source = self.home.sources.iter().position(|source| source.name == shard.source)?;
        self.plan.get(source)?.get(shard.shard.0 as usize)
    }

    /// Reads all leases and triggers.
    async fn sweep(&mut self) {
        match self.read_leases().await {
            Ok(()) => {
                self.swept = true;
                self.next_sweep = clock::now() + self.sweep_interval();
            }
            Err(error) => {
                tracing::warn!(error = %chain(&error), "cannot read the leases; trying again");
                self.next_sweep = clock::now() + back_off(SWEEP_WAITING, 3);
            }
        }
    }

    /// Until the next sweep: sooner while a shard that this worker wants has another owner, but not for ever.
    fn sweep_interval(&self) -> Duration {
        let membership = self.home.config.membership;
        match self.waiting_since.map(clock::since) {
            Some(waited) if waited < SWEEP => SWEEP_WAITING.max(membership),
            Some(_) => SWEEP_PATIENT.max(membership),
            None => SWEEP.mul_f64(0.9 + 0.2 * fastrand::f64()),
        }
    }

    async fn read_leases(&mut self) -> Result<(), StoreError> {
        let tailed_before: Vec<bool> = self.home.sources.iter().map(|source| self.is_tailed(source)).collect();
        // Noted before the reading: whoever is worked for by now is registered, or was.
        let mine = self.home.working_for.borrow().clone();
        let triggers: Arc<[TriggerRecord]> = self.home.ledger.triggers().await?.into();
        let gone = gone::look(&*self.home.ledger, &mine, &triggers, &self.home.gone).await?;
        // Both or none: a plan that was not made because one of them failed is made by the next sweep.
        (self.triggers, self.home.gone) = (triggers, gone);
        let tailed: Vec<bool> = self.home.sources.iter().map(|source| self.is_tailed(source)).collect();
        if tailed != tailed_before {
            self.replan();
        }
        for at in (0..tailed.len()).filter(|at| tailed[*at]) {
            for lease in self.home.ledger.leases(&self.home.sources[at].name).await? {
                // The sweep may be older than what a claim told.
                let known = self.leases.get(&lease.shard);
                if known.is_none_or(|known| known.epoch <= lease.epoch) {
                    self.know(lease);
                }
            }
        }
        let lost: Vec<ShardRef> = self
            .held
            .iter()
            .filter(|(shard, held)| self.leases.get(*shard).is_some_and(|lease| lease.epoch > held.grant.lease.epoch))
            .map(|(shard, _)| shard.clone())
            .collect();
        let mut moves = Moves::default();
        for shard in lost {
            moves.note(Move::Lost, "an operator or another worker changed the lease", self.owner(&shard), &shard);
            self.held.remove(&shard);
        }
        moves.tell();
        self.forget_sessions().await;
        Ok(())
    }

    /// A lease as it was read.
    fn know(&mut self, lease: Lease) {
        if self.wanted.contains(&lease.shard) && !self.held.contains_key(&lease.shard) {
            self.vacancies.know(&lease);
        }
        self.leases.insert(lease.shard.clone(), without_checkpoints(lease));
    }

    /// As last read.
    fn owner(&self, shard: &ShardRef) -> Option<&SessionId> {
        self.leases.get(shard)?.owner.as_ref()
    }

    /// The session is over, and what it held is lost.
    fn tell_lost(&mut self, over: &Over) {
        self.tell_handed_over();
        let reason = match over {
            Over::Dead => "this worker's session was declared dead",
            Over::Left => "this worker left before they were handed over",
        };
        let mut moves = Moves::default();
        self.held.keys().for_each(|shard| moves.note(Move::Lost, reason, None, shard));
        moves.tell();
    }

    /// Dead sessions that no lease names go after a day.
    async fn forget_sessions(&mut self) {
        if self.watchman.roster().first() != Some(&self.me) {
            return;
        }
        let named: BTreeSet<&SessionId> = self.leases.values().filter_map(|lease| lease.owner.as_ref()).collect();
        let Ok(sessions) = self.home.ledger.sessions().await else { return };
        let kept = i64::try_from(SESSION_KEPT.as_millis()).unwrap_or(i64::MAX);
        for session in sessions {
            let last_seen = session.beat_at.max(session.started_at);
            let old = clock::wall().0 - last_seen.0 > kept;
            if session.state == SessionState::Dead && old && !named.contains(&session.id) {
                // Housekeeping: the next sweep tries again.
                let _ = self.home.ledger.forget_session(&session.id).await;
            }
        }
    }

    /// After a lapse of the fence: nobody declared this session dead, but an operator may have been there.
    async fn read_held(&mut self) {
        let shards: Vec<ShardRef> = self.held.keys().cloned().collect();
        let ledger = &self.home.ledger;
        let reads = shards.into_iter().map(|shard| async move {
            let lease = ledger.lease(&shard).await;
            (shard, lease)
        });
        let reads: Vec<_> = stream::iter(reads).buffer_unordered(PARALLEL).collect().await;
        let mut moves = Moves::default();
        for (shard, lease) in reads {
            match lease {
                Ok(lease) => {
                    let mine = |held: &Held| {
                        lease.as_ref().is_some_and(|lease| {
                            lease.owner.as_ref() == Some(&self.me) && lease.epoch == held.grant.lease.epoch
                        })
                    };
                    if !self.held.get(&shard).is_some_and(mine) && self.held.remove(&shard).is_some() {
                        let owner = lease.as_ref().and_then(|lease| lease.owner.as_ref());
                        moves.note(Move::Lost, "the lease changed while no heartbeat was accepted", owner, &shard);
                    }
                    lease.into_iter().for_each(|lease| self.know(lease));
                }
                // Still closed; the next pulse tries again.
                Err(_) => return moves.tell(),
            }
        }
        moves.tell();
        self.home.fence.reopen();
        tracing::info!(margin = ?self.home.fence.margin(), "heartbeats are accepted again: going on");
    }

    /// Compares what is wanted with what is held.
    async fn reconcile(&mut self) {
        self.give();
        if self.draining.is_none() {
            self.claim().await;
        } else {
            self.vacancies.are(&BTreeSet::new(), clock::now());
        }
        self.let_go().await;
    }

    /// Marks what has to be handed over.
    fn give(&mut self) {
        let now = clock::now();
        let deadline = now + self.home.config.drain_deadline;
        let all = self.draining.as_ref().is_some_and(|draining| now >= draining.give_from);
        let planned = !self.plan.is_empty() && !self.watchman.roster().is_empty();
        for (shard, held) in &mut self.held {
            let unwanted =
                planned && !self.wanted.contains(shard) && now >= held.rests_until && self.draining.is_none();
            if (all || unwanted) && held.grant.give_by.is_none() {
                held.grant.give_by = Some(deadline);
            }
        }
    }

    /// Claims what is wanted and free.
    async fn claim(&mut self) {
        let now = clock::now();
        self.resting.retain(|_, until| *until > now);
        let mut free = Vec::new();
        let mut absent = BTreeSet::new();
        let mut vacant = BTreeSet::new();
        let mut waiting = false;
        for shard in self.wanted.iter().filter(|shard| !self.held.contains_key(*shard)) {
            let seen = self.leases.get(shard);
            if self.is_vacant(seen) {
                vacant.insert(shard.clone());
            }
            if self.resting.contains_key(shard) {
                waiting = true;
                continue;
            }
            match seen.and_then(|lease| lease.owner.as_ref()) {
                None => free.push((shard.clone(), seen.cloned())),
                Some(owner) if *owner == self.me => free.push((shard.clone(), seen.cloned())),
                Some(owner) => match self.sessions.get(owner) {
                    Some(SessionState::Dead) => free.push((shard.clone(), seen.cloned())),
                    Some(_) => waiting = true,
                    None if planted::is("absence is death") => free.push((shard.clone(), seen.cloned())),
                    None => {
                        absent.insert(owner.clone());
                        waiting = true;
                    }
                },
            }
        }
        // Absence is not death: an owner without an item gets one.
        for owner in absent {
            match self.home.ledger.declare_dead(&owner, None).await {
                Ok(Answer::Accepted(_)) => {
                    self.sessions.insert(owner, SessionState::Dead);
                    self.next_reading = now;
                }
                // The next reading shows it.
                Ok(Answer::Refused(_)) => {}
                Err(error) => {
                    let error = chain(&error);
                    tracing::warn!(error, session = %owner, "it holds shards and is not there, and could not be declared dead");
                }
            }
        }
        free.retain(|(shard, seen)| self.is_ours(shard, seen.as_ref()));
        let mut more = free.len() > CLAIMS_A_TURN;
        free.truncate(CLAIMS_A_TURN);
        let (ledger, me, fence) = (&self.home.ledger, &self.me, &self.home.fence);
        let sources = &self.home.sources;
        let claims = free.into_iter().filter_map(|(shard, seen)| {
            let source = sources.iter().find(|source| source.name == shard.source)?;
            Some(async move {
                let claimed = claim(ledger, fence, source, &shard, me, seen.as_ref()).await;
                (shard, seen, claimed)
            })
        });
        let claims: Vec<_> = stream::iter(claims).buffer_unordered(PARALLEL).collect().await;
        // Handed over by a worker that is still there, on the plan's account; not by one that left before this one came.
        let others = self.watchman.roster().len() > 1;
        let mut moves = Moves::default();
        let mut surprised = Vec::new();
        for (shard, seen, claimed) in claims {
            match claimed {
                Claimed::Held(lease) => {
                    let reason = reason(seen.as_ref(), &self.me);
                    moves.note(Move::Took, reason, seen.and_then(|lease| lease.owner).as_ref(), &shard);
                    metrics::shard_claimed(reason);
                    tracing::debug!(%shard, epoch = %lease.epoch, reason, "claimed");
                    vacant.remove(&shard);
                    let rests = if others && reason == "handed over" { REST } else { Duration::ZERO };
                    let lease = Arc::new(lease);
                    self.leases.insert(shard.clone(), without_checkpoints(Lease::clone(&lease)));
                    let grant = Grant { lease, give_by: None, look: self.look };
                    self.held.insert(shard, Held { grant, rests_until: clock::now() + rests });
                }
                Claimed::Taken(lease) => {
                    waiting = true;
                    if self.is_vacant(lease.as_ref()) {
                        // What was known of the lease was old; it is free after all.
                        surprised.push(shard.clone());
                    } else {
                        vacant.remove(&shard);
                    }
                    match lease {
                        Some(lease) => self.know(lease),
                        None => drop(self.leases.remove(&shard)),
                    }
                }
                Claimed::Unknown => {
                    waiting = true;
                    self.resting.insert(shard, clock::now() + REST_LOST);
                }
            }
        }
        moves.tell();
        self.surprises = if surprised.is_empty() { 0 } else { self.surprises.saturating_add(1) };
        if self.surprises <= SURPRISES {
            more |= !surprised.is_empty();
        } else {
            let until = clock::now() + REST_LOST;
            self.resting.extend(surprised.into_iter().map(|shard| (shard, until)));
        }
        self.vacancies.are(&vacant, clock::now());
        self.waiting_since = waiting.then(|| self.waiting_since.unwrap_or(now));
        if more {
            self.next_reading = clock::now();
        } else if waiting {
            self.next_sweep = self.next_sweep.min(clock::now() + self.sweep_interval());
        }
    }

    /// Whether nobody holds a shard of that lease, and this worker does not either.
    fn is_vacant(&self, lease: Option<&Lease>) -> bool {
        let owner = lease.and_then(|lease| lease.owner.as_ref()).filter(|owner| **owner != self.me);
        owner.is_none_or(|owner| self.sessions.get(owner).is_none_or(|state| *state == SessionState::Dead))
    }

    /// Whether the lease belongs to the datastore that we tail; says so loudly when not.
    fn is_ours(&mut self, shard: &ShardRef, seen: Option<&Lease>) -> bool {
        let source = self.home.sources.iter().find(|source| source.name == shard.source);
        let (Some(source), Some(lease)) = (source, seen) else { return true };
        if lease.incarnation == source.incarnation {
            self.stopped.remove(shard);
            return true;
        }
        let reason = format!(
            "its checkpoints belong to incarnation {} of datastore {}, which is now incarnation {}: the datastore was made \
             anew. Restore the old tables, or start with a new group name",
            lease.incarnation, source.name, source.incarnation
        );
        if self.stopped.insert(shard.clone(), reason.clone()).is_none() {
            tracing::error!(%shard, reason, "this shard stands still");
        }
        false
    }

    fn publish(&self) {
        let counted = self.swept && self.watchman.roster().contains(&self.me);
        let live = self.sessions.values().filter(|state| **state == SessionState::Live).count();
        self.home.view.send_if_modified(|view| {
            let same = |(told, held): (&Grant, &Held)| {
                let Grant { lease, give_by, look } = &held.grant;
                Arc::ptr_eq(&told.lease, lease) && (told.give_by, told.look) == (*give_by, *look)
            };
            // Thousands, several times a second: compared without a copy. A lease is never shared by two shards.
            let moved = view.grants.len() != self.held.len() || !view.grants.values().zip(self.held.values()).all(same);
            let changed = moved
                || view.triggers != self.triggers
                || view.gone != self.home.gone
                || view.session.as_ref() != Some(&self.me)
                || view.stopped != self.stopped
                || !Arc::ptr_eq(&view.vacant, self.vacancies.all())
                || (view.counted, view.wanted, view.workers, view.sessions)
                    != (counted, self.wanted.len(), self.watchman.roster().len(), live);
            if changed {
                if moved {
                    let grants = self.held.iter().map(|(shard, held)| (shard.clone(), held.grant.clone()));
                    view.grants = Arc::new(grants.collect());
                }
                view.triggers = self.triggers.clone();
                view.gone = self.home.gone.clone();
                view.session = Some(self.me.clone());
                view.counted = counted;
                view.wanted = self.wanted.len();
                view.workers = self.watchman.roster().len();
                view.sessions = live;
                view.vacant = self.vacancies.all().clone();
                view.stopped.clone_from(&self.stopped);
            }
            changed
        });
    }
}

/// Waits, with half of it jitter, or until `stop`.
async fn rest(wait: Duration, stop: &CancellationToken) {
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = clock::sleep(wait.mul_f64(0.5 + fastrand::f64() / 2.0)) => {}
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => clock::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
