//! A worker inside this process, whose trigger is at first paused: what a start costs is no part of what follows.

use super::process::until;
use crate::{
    cell::{Answer, Handler, Ledger, Name, SessionId, TriggerId, TriggerRecord, TriggerState},
    config::Paces,
    dispatch::{self, MEMORY},
    lease::{self, Identity, nudge_all},
    store::{Cells, Kind, Store},
    worker::{Setup, TriggerSpec, Watch, Worker},
};
use anyhow::{Context as _, bail, ensure};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// What a worker is made of.
pub(super) struct Job<'a> {
    pub(super) store: &'a Store,
    pub(super) group: Name,
    pub(super) cells: &'a Cells,
    pub(super) config: dispatch::Config,
    pub(super) handler: Arc<dyn Handler>,
    pub(super) lease: lease::Config,
    /// The kind of store whose intervals it keeps.
    pub(super) paces: Kind,
    /// Whether it sees at once when a process of this host ends. Over DynamoDB nobody does.
    pub(super) presence: bool,
}

/// A worker at work.
pub(super) struct Running {
    group: Group,
    watch: Watch,
    stop: CancellationToken,
    worker: JoinSet<()>,
}

impl Running {
    /// Starts it and waits until its session holds shards or finds that others do.
    pub(super) async fn start(job: Job<'_>) -> anyhow::Result<Self> {
        let Job { store, group, cells, config, handler, mut lease, paces, presence } = job;
        let paces = Paces::of(paces, lease.heartbeat);
        lease.membership = paces.membership;
        let name = cells.datastore().name.clone();
        let group = Group::open(store, group, cells).await?;
        let setup = Setup {
            lease,
            poll: paces.poll,
            checkpoint_interval: paces.checkpoint,
            memory: MEMORY,
            ledger: group.ledger.clone(),
            group: group.name.clone(),
            presence: if presence { store.presence() } else { None },
            identity: Identity::default(),
            sources: BTreeMap::from([(name.clone(), cells.clone())]),
            triggers: vec![TriggerSpec { name, config, handler }],
            retention: None,
            wrap: None,
        };
        let worker = Worker::new(setup).await?;
        let (watch, stop, mut task) = (worker.watch(), CancellationToken::new(), JoinSet::new());
        task.spawn(worker.run(stop.clone(), mpsc::channel(1).1));
        Ok(Self { group, watch, stop, worker: task })
    }

    pub(super) fn group(&self) -> &Group {
        &self.group
    }

    /// Shards that it holds.
    pub(super) fn held(&self) -> BTreeSet<crate::cell::ShardId> {
        self.watch.view.borrow().grants.keys().map(|shard| shard.shard).collect()
    }

    /// Waits until it holds all shards.
    pub(super) async fn holds_all(&mut self, shards: u32) -> anyhow::Result<()> {
        let all = |view: &lease::View| view.grants.len() == shards as usize;
        self.watch.view.wait_for(all).await.context("the worker is gone")?;
        Ok(())
    }

    /// Waits until all shards are ready to work on, or with nothing left to do.
    pub(super) async fn is_idle(&self, shards: u32) -> anyhow::Result<()> {
        let idle = async || {
            let mut ready = 0;
            self.watch.standings.each(|_, triggers| {
                ready += u32::from(triggers.iter().any(|(_, standing)| standing.lag == 0 || standing.paused.is_some()));
            });
            Ok(ready == shards)
        };
        until("starting a worker", idle).await
    }

    pub(super) async fn leave(mut self) -> anyhow::Result<()> {
        self.stop.cancel();
        self.worker.join_next().await.context("the worker is gone")??;
        Ok(())
    }
}

/// The group of a bench's workers, with its one trigger.
pub(super) struct Group {
    pub(super) name: Name,
    pub(super) ledger: Arc<dyn Ledger>,
    source: Name,
    trigger: TriggerId,
}

impl Group {
    /// Registers the trigger, paused, if it is not there.
    pub(super) async fn open(store: &Store, name: Name, cells: &Cells) -> anyhow::Result<Self> {
        let ledger = store.ledger(&name).await?;
        let datastore = cells.datastore();
        let record = TriggerRecord {
            id: TriggerId::random(),
            name: datastore.name.clone(),
            formerly: BTreeSet::new(),
            source: datastore.name.clone(),
            incarnation: datastore.incarnation.clone(),
            state: TriggerState::Paused { reason: "not begun".into() },
            generation: 0,
            start: None,
            revision: 0,
        };
        let trigger = match ledger.register(&record).await? {
            Answer::Accepted(record) | Answer::Refused(Some(record)) => record.id,
            Answer::Refused(None) => bail!("a trigger of the bench can neither be registered nor found"),
        };
        Ok(Self { name, ledger, source: datastore.name.clone(), trigger })
    }

    /// Lets the trigger begin.
    pub(super) async fn resume(&self) -> anyhow::Result<()> {
        let triggers = self.ledger.triggers().await?;
        let record = triggers.into_iter().find(|record| record.id == self.trigger).context("the trigger is gone")?;
        let active = TriggerRecord { state: TriggerState::Active, generation: record.generation + 1, ..record };
        let resumed = self.ledger.update_trigger(&active).await?;
        ensure!(matches!(resumed, Answer::Accepted(_)), "somebody else changed a trigger of the bench");
        nudge_all(&*self.ledger).await?;
        Ok(())
    }

    /// How many shards each worker holds and is ready to work on.
    pub(super) async fn owners(&self) -> anyhow::Result<BTreeMap<SessionId, u32>> {
        let mut owners = BTreeMap::new();
        for lease in self.ledger.leases(&self.source).await? {
            if let Some(owner) = lease.owner.filter(|_| lease.checkpoints.contains_key(&self.trigger)) {
                *owners.entry(owner).or_insert(0) += 1;
            }
        }
        Ok(owners)
    }

    /// Waits until so many workers share all shards evenly.
    pub(super) async fn is_shared(&self, shards: u32, workers: u32) -> anyhow::Result<()> {
        let most = shards.div_ceil(workers);
        let shared = async || {
            let owners = self.owners().await?;
            let all = owners.values().sum::<u32>() == shards;
            Ok(all && owners.len() == workers as usize && owners.values().all(|held| *held <= most))
        };
        until("sharing the shards", shared).await
    }

    /// Shards whose first cells, up to this one, are finished.
    pub(super) async fn finished(&self, up_to: u64) -> anyhow::Result<u32> {
        let leases = self.ledger.leases(&self.source).await?;
        let done = leases.iter().filter(|lease| lease.checkpoints.get(&self.trigger).is_some_and(|c| c.low.0 >= up_to));
        Ok(u32::try_from(done.count())?)
    }
}
