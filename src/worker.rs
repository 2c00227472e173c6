//! The engine: makes the running shard tasks equal to the leases held, and drains on stop. Also the API for those who embed
//! it in a program of their own.
//!
//! Two futures of one task: the coordination, which is never spawned, since a heartbeat that outlived the work that it
//! vouches for would keep a dead worker's shards; and this loop, which owns one task for each held shard and joins it.

mod minder;
mod muster;
mod retention;
mod tips;

use crate::{
    cell::{Epoch, Handler, Ledger, Name, SessionId, ShardRef, StoreError, TriggerId, chain, clock},
    dispatch::{Budget, Config, Trigger},
    filter::FilterError,
    lease::{self, Coordinator, Ended, EndedShard, Fence, Grant, Identity, Turns, View},
    metrics,
    shard::{Company, Foreign, News, Shard, Shared, Standings, Triggers},
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
use muster::{Told, ids, register, replace, without_retired};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::{AbortHandle, JoinSet},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

pub use retention::{OpenLedger, Retention};

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
    /// How long logs are kept; `None`: for ever.
    pub retention: Option<Retention>,
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
    /// Two triggers of the config are one.
    #[error(
        "trigger {former} was renamed to {trigger}, and the config has both: leave out {former}, or free its name with \
         `cellhook triggers retire {former}`"
    )]
    SameTrigger {
        /// Its name.
        trigger: Name,
        /// A former name of it.
        former: Name,
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
    /// The triggers at work.
    pub triggers: News<Triggers>,
    /// How long it may trust its session.
    pub fence: Fence,
    /// Its memory.
    pub budget: Budget,
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
    triggers: News<Triggers>,
    /// Their ids, for the coordination.
    working_for: watch::Sender<BTreeSet<TriggerId>>,
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
        let working_for = watch::Sender::new(ids(&triggers));
        let sources = setup.sources.values().map(|cells| (**cells.datastore()).clone()).collect();
        let (coordinator, view, ended) = Coordinator::new(
            setup.lease.clone(),
            setup.ledger.clone(),
            setup.presence.clone(),
            setup.identity.clone(),
            sources,
            working_for.subscribe(),
        );
        let foreign = watch::Sender::new(Foreign::default());
        let shared = Shared {
            ledger: setup.ledger.clone(),
            fence: coordinator.fence(),
            budget,
            interval: setup.checkpoint_interval,
            standings: Standings::default(),
            company: Company::default(),
            foreign: foreign.subscribe(),
        };
        setup.sources.keys().for_each(|source| metrics::tailed(source.as_str()));
        let triggers = News::new(Triggers { active: triggers.into(), ..Triggers::default() });
        let turning = Turning::default();
        Ok(Self { setup, coordinator, view, ended, triggers, working_for, shared, foreign, turning })
    }

    /// What others may see of it.
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch {
            view: self.view.clone(),
            standings: self.shared.standings.clone(),
            triggers: self.triggers.clone(),
            fence: self.shared.fence.clone(),
            budget: self.shared.budget.clone(),
            turning: self.turning.clone(),
        }
    }

    /// Runs until `stop`, then drains: shards finish and are handed over first, coordination ends last, then the handlers.
    /// Each message of `reload` replaces the triggers; one that is refused changes nothing.
    ///
    /// The loop itself never waits for the store or for a handler: heartbeats go on meanwhile.
    pub async fn run(self, stop: CancellationToken, mut reload: mpsc::Receiver<Reload>) {
        let Self { setup, coordinator, mut view, ended, triggers: at_work, working_for, shared, foreign, turning } =
            self;
        let mut retiring: Vec<Arc<Trigger>> = Vec::new();
        let mut told = Told::default();
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
        let trims = setup.retention.clone().map(|retention| {
            retention::run(retention, setup.sources.clone(), setup.group.clone(), setup.ledger.clone(), held.clone())
                .boxed()
        });
        let mut trims: OptionFuture<BoxFuture<'_, ()>> = trims.into();
        let tips = tips::poll(setup.poll.clone(), setup.sources.clone(), held, foreign);
        tokio::pin!(tips);
        let mut look_at = clock::now() + RETIRING;
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
                    told.tell(&at_work.get().active, &now);
                    at_work.change(|triggers| {
                        let changed = triggers.records != now.triggers || triggers.gone != now.gone;
                        triggers.records = now.triggers.clone();
                        triggers.gone = now.gone.clone();
                        changed
                    });
                    if let Some(after) = without_retired(&at_work.get().active, &now.gone) {
                        retiring.extend(replace(&at_work, after, &shared.budget, &working_for));
                    }
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
                        // The lag of those that nobody holds is told too.
                        let now: BTreeSet<ShardRef> = running.keys().chain(now.vacant.keys()).cloned().collect();
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
                        // One may have been retired since they were read.
                        let after = without_retired(&after, &view.borrow().gone).unwrap_or(after);
                        let triggers = after.len();
                        retiring.extend(replace(&at_work, after, &shared.budget, &working_for));
                        triggers
                    });
                    // Whoever asked may have gone.
                    let _ = answer.send(registered);
                }
                () = clock::sleep_until(look_at), if !retiring.is_empty() => {
                    look_at = clock::now() + RETIRING;
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
                Some(()) = &mut trims => {}
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
