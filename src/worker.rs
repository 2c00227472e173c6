//! The engine: makes the running shard tasks equal to the leases held, and drains on stop. Also the API for those who embed
//! it in a program of their own.
//!
//! Two futures of one task: the coordination, which is never spawned, since a heartbeat that outlived the work that it
//! vouches for would keep a dead worker's shards; and this loop, which owns one task for each held shard and joins it.

mod minder;
mod tips;

use crate::{
    cell::{
        AddedId, Answer, Consistency, Epoch, Handler, Ledger, Name, SessionId, ShardRef, StoreError, TriggerId,
        TriggerRecord, TriggerState, chain,
    },
    dispatch::{Budget, Config, Start, Trigger},
    filter::{Filter, FilterError},
    lease::{self, Coordinator, Ended, EndedShard, Grant, Identity, Turns, View, nudge_all},
    metrics,
    shard::{Foreign, News, Shard, Shared, Standings, Triggers},
    store::{Cells, Presence},
    tail,
};
use futures_util::{
    FutureExt, StreamExt,
    future::{BoxFuture, OptionFuture},
    stream::FuturesUnordered,
};
pub use minder::Stuck;
use minder::{Minder, Task, Turning};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

/// How often it is looked whether a replaced trigger is still in use.
const RETIRING: Duration = Duration::from_millis(500);
/// How long aborted tasks may take to end when the worker leaves. They do at once, but for one whose thread is blocked.
const LAST_TASKS: Duration = Duration::from_secs(5);

/// A trigger to work for.
#[derive(Clone)]
pub struct TriggerSpec {
    /// Its label.
    pub name: Name,
    /// What the file says.
    pub config: Config,
    /// The code. A reload that brings the same handler and config changes nothing.
    pub handler: Arc<dyn Handler>,
}

/// Wraps every task of a worker: the identity, or a simulation's means to freeze a whole worker.
pub type Wrap = Arc<dyn Fn(BoxFuture<'static, EndedShard>) -> BoxFuture<'static, EndedShard> + Send + Sync>;

/// All that a worker is made of.
pub struct Setup {
    /// Times of coordination.
    pub lease: lease::Config,
    /// How often tips are read.
    pub poll: tail::Config,
    /// How long a finished cell may wait for its checkpoint.
    pub checkpoint_interval: Duration,
    /// Bytes of all windows and rings.
    pub memory: u64,
    /// The group's name.
    pub group: Name,
    /// The group's coordination.
    pub ledger: Arc<dyn Ledger>,
    /// Tells at once when a process of this host ends.
    pub presence: Option<Presence>,
    /// Who this process is, for people.
    pub identity: Identity,
    /// The datastores that triggers tail, now or after a reload.
    pub sources: BTreeMap<Name, Cells>,
    /// What to call.
    pub triggers: Vec<TriggerSpec>,
    /// See [`Wrap`].
    pub wrap: Option<Wrap>,
}

/// Why a worker could not start, or a reload was refused.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The registered trigger tails something else.
    #[error(
        "trigger {trigger} is registered on datastore {registered}, and the config says {configured}: give the new one another \
         name"
    )]
    OtherSource {
        /// Its name.
        trigger: Name,
        /// What it is registered on.
        registered: Name,
        /// What the config says.
        configured: Name,
    },
    /// The datastore was made anew under a registered trigger.
    #[error(
        "trigger {trigger} is registered on incarnation {registered} of datastore {source_name}, which is now incarnation {now}: \
         the datastore was made anew. Restore the old tables, or use a new group name"
    )]
    OtherIncarnation {
        /// Its name.
        trigger: Name,
        /// The datastore.
        source_name: Name,
        /// What it is registered on.
        registered: String,
        /// What is there.
        now: String,
    },
    /// A trigger names a datastore that the worker was not given.
    #[error("trigger {trigger} tails datastore {source_name}, which is not configured")]
    NoSource {
        /// Its name.
        trigger: Name,
        /// The datastore.
        source_name: Name,
    },
    /// The filter is no expression.
    #[error("the filter of trigger {trigger} cannot be used")]
    Filter {
        /// Its name.
        trigger: Name,
        /// What is wrong with it.
        #[source]
        error: FilterError,
    },
    /// The triggers could not be registered.
    #[error("the triggers could not be registered")]
    Store(#[from] StoreError),
}

/// Triggers to work for from now on, instead of those so far.
pub struct Reload {
    /// All of them.
    pub triggers: Vec<TriggerSpec>,
    /// Told how many there are once they are at work; or why nothing changed.
    pub answer: oneshot::Sender<Result<usize, WorkerError>>,
}

/// What others may see of a worker.
#[derive(Clone)]
pub struct Watch {
    /// The coordination.
    pub view: watch::Receiver<View>,
    /// Each shard's progress.
    pub standings: Standings,
    turning: Turning,
}

impl Watch {
    /// Loops that should turn and do not, with no cure but a new process. Empty while all is well, before the worker runs and
    /// after it has left. A shard that stands still for want of the store, of a handler or of an operator is not among them.
    #[must_use]
    pub fn stuck(&self) -> Vec<Stuck> {
        self.turning.stuck()
    }
}

/// A worker that is not yet running.
pub struct Worker {
    setup: Setup,
    coordinator: Coordinator,
    view: watch::Receiver<View>,
    ended: mpsc::UnboundedSender<EndedShard>,
    triggers: Vec<Arc<Trigger>>,
    shared: Shared,
    foreign: watch::Sender<Foreign>,
    turning: Turning,
}

/// A reload whose triggers were registered or refused, and who is to be told.
type Registered = (Result<Vec<Arc<Trigger>>, WorkerError>, oneshot::Sender<Result<usize, WorkerError>>);

struct Running {
    grant: watch::Sender<Grant>,
    task: AbortHandle,
    turns: Turns,
}

impl Worker {
    /// Registers the triggers.
    ///
    /// # Errors
    /// When a trigger contradicts what is registered, or the store does not answer.
    pub async fn new(setup: Setup) -> Result<Self, WorkerError> {
        let budget = Budget::new(setup.memory);
        let triggers = register(&setup, &budget, &setup.triggers, &[]).await?;
        budget.share_among(triggers.len());
        let sources = setup.sources.values().map(|cells| (**cells.datastore()).clone()).collect();
        let (coordinator, view, ended) = Coordinator::new(
            setup.lease.clone(),
            setup.ledger.clone(),
            setup.presence.clone(),
            setup.identity.clone(),
            sources,
        );
        let foreign = watch::Sender::new(Foreign::default());
        let shared = Shared {
            ledger: setup.ledger.clone(),
            fence: coordinator.fence(),
            budget,
            interval: setup.checkpoint_interval,
            standings: Standings::default(),
            foreign: foreign.subscribe(),
        };
        let turning = Turning::default();
        Ok(Self { setup, coordinator, view, ended, triggers, shared, foreign, turning })
    }

    /// What others may see of it.
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch { view: self.view.clone(), standings: self.shared.standings.clone(), turning: self.turning.clone() }
    }

    /// Runs until `stop`, then drains: shards finish and are handed over first, coordination ends last, then the handlers.
    /// Each message of `reload` replaces the triggers; one that is refused changes nothing.
    ///
    /// The loop itself never waits for the store or for a handler: heartbeats go on meanwhile.
    pub async fn run(self, stop: CancellationToken, mut reload: mpsc::Receiver<Reload>) {
        let Self { setup, coordinator, mut view, ended, triggers, shared, foreign, turning } = self;
        let at_work = News::new(Triggers { active: triggers.into(), records: Arc::new([]) });
        let mut retiring: Vec<Arc<Trigger>> = Vec::new();
        let mut seen: BTreeSet<TriggerId> = BTreeSet::new();
        let mut stopping: FuturesUnordered<BoxFuture<'static, ()>> = FuturesUnordered::new();
        let mut registering: OptionFuture<BoxFuture<'_, Registered>> = None.into();
        let mut is_registering = false;
        let mut tasks: JoinSet<EndedShard> = JoinSet::new();
        let mut running: BTreeMap<ShardRef, Running> = BTreeMap::new();
        // A grant whose task has ended is over, even if a view that was published before still shows it: its checkpoint is
        // that of the claim, and its epoch has called its cells already.
        let mut over: BTreeMap<ShardRef, Epoch> = BTreeMap::new();
        let mut minder = Minder::new(coordinator.turns.clone(), turning);
        let coordination = coordinator.run(stop.clone());
        tokio::pin!(coordination);
        let (held_sender, held) = watch::channel(BTreeSet::new());
        let tips = tips::poll(setup.poll.clone(), setup.sources.clone(), held, foreign);
        tokio::pin!(tips);
        let mut look_at = Instant::now() + RETIRING;
        loop {
            tokio::select! {
                biased;
                Some(ended_task) = tasks.join_next_with_id() => {
                    let message = match ended_task {
                        Ok((id, message)) => {
                            minder.ended(id);
                            Some(message)
                        }
                        Err(error) => {
                            let panicked = !error.is_cancelled();
                            if panicked {
                                tracing::error!(error = %chain(&error), "a shard task panicked; the shard is claimed anew");
                            }
                            let task = minder.ended(error.id());
                            // Of a task that the view dropped nobody needs to hear.
                            let task = task.filter(|task| panicked || task.was_aborted());
                            task.map(|task| (task.shard, task.epoch, Ended::Lost))
                        }
                    };
                    if let Some((shard, epoch, ended_as)) = message {
                        let last = over.entry(shard.clone()).or_default();
                        *last = epoch.max(*last);
                        let this = |running: &Running| running.grant.borrow().lease.epoch == epoch;
                        if running.get(&shard).is_some_and(this) {
                            running.remove(&shard);
                        }
                        // The coordinator may be gone already.
                        let _ = ended.send((shard, epoch, ended_as));
                    }
                }
                () = &mut coordination => break,
                Ok(()) = view.changed() => {
                    let now = view.borrow_and_update().clone();
                    at_work.change(|triggers| {
                        let changed = triggers.records != now.triggers;
                        triggers.records = now.triggers.clone();
                        changed
                    });
                    tell_vanished(&mut seen, &at_work.get().active, &now);
                    running.retain(|shard, running| {
                        let epoch = running.grant.borrow().lease.epoch;
                        let kept = now.grants.get(shard).is_some_and(|grant| grant.lease.epoch == epoch);
                        if !kept {
                            running.turns.give_up();
                            running.task.abort();
                        }
                        kept
                    });
                    let Some(me) = now.session else { continue };
                    for (shard, grant) in &*now.grants {
                        if let Some(running) = running.get(shard) {
                            running.grant.send_if_modified(|known| {
                                let changed = known != grant;
                                if changed {
                                    *known = grant.clone();
                                }
                                changed
                            });
                            continue;
                        }
                        let Some(cells) = setup.sources.get(&shard.source) else { continue };
                        if over.get(shard).is_some_and(|over| grant.lease.epoch <= *over) {
                            continue;
                        }
                        let epoch = grant.lease.epoch;
                        let (sender, receiver) = watch::channel(grant.clone());
                        let turns = Turns::default();
                        let task = Shard {
                            shard: shard.clone(),
                            cells: cells.clone(),
                            me: SessionId::clone(&me),
                            grant: receiver,
                            triggers: at_work.follow(),
                            turns: turns.clone(),
                            rounds: minder.rounds(),
                            shared: shared.clone(),
                        };
                        let of = shard.clone();
                        let future: BoxFuture<'static, EndedShard> =
                            Box::pin(async move { (of, epoch, task.run().await) });
                        let future = match &setup.wrap {
                            Some(wrap) => wrap(future),
                            None => future,
                        };
                        let task = tasks.spawn(future);
                        minder.started(task.id(), Task::new(shard.clone(), epoch, task.clone(), turns.clone()));
                        running.insert(shard.clone(), Running { grant: sender, task, turns });
                    }
                    metrics::shards_held(running.len());
                    held_sender.send_if_modified(|held| {
                        let now: BTreeSet<ShardRef> = running.keys().cloned().collect();
                        let changed = *held != now;
                        *held = now;
                        changed
                    });
                }
                Some(Reload { triggers, answer }) = reload.recv(), if !is_registering => {
                    let before = at_work.get().active;
                    let setup = &setup;
                    is_registering = true;
                    let budget = &shared.budget;
                    let register = async move { (register(setup, budget, &triggers, &before).await, answer) };
                    registering = Some(register.boxed()).into();
                }
                Some((registered, answer)) = &mut registering, if is_registering => {
                    is_registering = false;
                    let registered = registered.map(|after| {
                        let before = at_work.get().active;
                        retiring.extend(before.iter().filter(|old| !after.iter().any(|new| Arc::ptr_eq(old, new))).cloned());
                        let triggers = after.len();
                        // Those that leave finish what they hold, beyond the budget for that long.
                        shared.budget.share_among(triggers);
                        at_work.change(|triggers| {
                            triggers.active = after.into();
                            true
                        });
                        triggers
                    });
                    // Whoever asked may have gone.
                    let _ = answer.send(registered);
                }
                () = tokio::time::sleep_until(look_at), if !retiring.is_empty() => {
                    look_at = Instant::now() + RETIRING;
                    let (gone, kept): (Vec<_>, Vec<_>) =
                        retiring.into_iter().partition(|trigger: &Arc<Trigger>| Arc::strong_count(trigger) == 1);
                    retiring = kept;
                    let active = at_work.get().active;
                    for trigger in gone {
                        // Only a handler that no other trigger took over has to stop.
                        if !active.iter().any(|other| Arc::ptr_eq(&other.handler, &trigger.handler)) {
                            stopping.push(trigger.handler.clone().stop());
                        }
                    }
                }
                Some(()) = stopping.next(), if !stopping.is_empty() => {}
                () = minder.next() => minder.look(),
                () = &mut tips => {}
            }
        }
        drop(minder);
        if timeout(LAST_TASKS, tasks.shutdown()).await.is_err() {
            tracing::error!(tasks = tasks.len(), "shard tasks block their threads: they are left behind");
        }
        let active = at_work.get().active;
        stopping.extend(active.iter().chain(&retiring).map(|trigger| trigger.handler.clone().stop()));
        while stopping.next().await.is_some() {}
    }
}

/// Says of triggers at work that were seen among the registered ones that they are there no more.
fn tell_vanished(seen: &mut BTreeSet<TriggerId>, active: &[Arc<Trigger>], view: &View) {
    for trigger in active {
        let registered = view.triggers.iter().any(|record| record.id == trigger.record.id);
        if registered {
            seen.insert(trigger.record.id.clone());
        } else if seen.remove(&trigger.record.id) {
            tracing::error!(trigger = %trigger.name,
                "this trigger is no longer registered: the group's tables were made anew, or it was retired. Start this worker again");
        }
    }
}

/// Makes the configured triggers equal to registered ones. Those that did not change stay the same object.
async fn register(
    setup: &Setup,
    budget: &Budget,
    specs: &[TriggerSpec],
    before: &[Arc<Trigger>],
) -> Result<Vec<Arc<Trigger>>, WorkerError> {
    let Setup { group, ledger, sources, .. } = setup;
    let ledger = &**ledger;
    let registered = ledger.triggers().await?;
    let mut fresh = false;
    let mut triggers = Vec::with_capacity(specs.len());
    for spec in specs {
        let cells = sources.get(&spec.config.source).ok_or_else(|| WorkerError::NoSource {
            trigger: spec.name.clone(),
            source_name: spec.config.source.clone(),
        })?;
        let record = match registered.iter().find(|record| record.name == spec.name) {
            Some(record) => record.clone(),
            None => {
                fresh = true;
                // Before it is registered: from then on a trim asks how far it is.
                cells.log().enlist(group).await?;
                register_new(ledger, cells, spec).await?
            }
        };
        if record.source != spec.config.source {
            return Err(WorkerError::OtherSource {
                trigger: spec.name.clone(),
                registered: record.source,
                configured: spec.config.source.clone(),
            });
        }
        if record.incarnation != cells.datastore().incarnation {
            return Err(WorkerError::OtherIncarnation {
                trigger: spec.name.clone(),
                source_name: spec.config.source.clone(),
                registered: record.incarnation.to_string(),
                now: cells.datastore().incarnation.to_string(),
            });
        }
        let same = before.iter().find(|old| {
            old.record.id == record.id && old.config == spec.config && Arc::ptr_eq(&old.handler, &spec.handler)
        });
        let trigger = match same {
            Some(same) => same.clone(),
            None => {
                let filter = Filter::new(&spec.config.columns, spec.config.filter.as_deref())
                    .map_err(|error| WorkerError::Filter { trigger: spec.name.clone(), error })?;
                let share = budget.share();
                Arc::new(Trigger::new(record, spec.config.clone(), filter, spec.handler.clone(), cells.clone(), share))
            }
        };
        triggers.push(trigger);
    }
    if fresh {
        // A hint: it may be the first of its datastore, whose shards nobody holds yet.
        let _ = nudge_all(ledger).await;
    }
    Ok(triggers)
}

/// Registers a trigger, or takes what another worker registered at the same time.
async fn register_new(ledger: &dyn Ledger, cells: &Cells, spec: &TriggerSpec) -> Result<TriggerRecord, StoreError> {
    let datastore = cells.datastore();
    let start = match spec.config.start {
        Start::Newest => {
            let mut tips = vec![AddedId(0); datastore.shards as usize];
            for bucket in 0..datastore.buckets() {
                for tip in cells.log().tips(bucket, Consistency::Strong).await? {
                    tips[tip.shard.0 as usize] = tip.tip;
                }
            }
            Some(tips.into())
        }
        Start::Oldest | Start::Time(_) | Start::Added(_) => None,
    };
    let record = TriggerRecord {
        id: TriggerId::random(),
        name: spec.name.clone(),
        source: spec.config.source.clone(),
        incarnation: datastore.incarnation.clone(),
        state: TriggerState::Active,
        generation: 0,
        start,
        revision: 0,
    };
    Ok(match ledger.register(&record).await? {
        Answer::Accepted(record) | Answer::Refused(Some(record)) => record,
        Answer::Refused(None) => record,
    })
}
