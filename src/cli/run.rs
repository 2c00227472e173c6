//! `run`: the life of a worker, from its config to its drain.

use super::{Exit, home::Home};
use crate::{
    admin::{Admin, Readiness},
    cell::{Handler, Name, NewDatastore, chain, clock},
    config::Config,
    dispatch, handler,
    lease::Identity,
    metrics::{Lag, ParkedCells, set_parked_cells, set_trigger_lag},
    process::{Signal, Signals, log_to_stderr},
    store::{Cells, Kind, Store},
    worker::{Setup, TriggerSpec, Watch, Worker},
};
use anyhow::Context as _;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// How often lag and parked cells are put on the metrics page.
const TOLD: Duration = Duration::from_secs(1);

/// Runs a worker until a signal says stop.
pub(super) async fn run(home: Home) -> anyhow::Result<Exit> {
    log_to_stderr(&home.config.log).map_err(anyhow::Error::new)?;
    let mut signals = Signals::listen().context("cannot listen to signals")?;
    let config = &home.config;
    let store = home.store().await?;
    if store.kind() == Kind::Embedded {
        make_tables(config, &store).await?;
        tracing::info!(file = store.describe(), "embedded store: this host only");
    } else {
        tracing::info!(store = store.describe(), "store");
    }
    let mut sources = BTreeMap::new();
    for (name, datastore) in &config.datastores {
        sources.insert(name.clone(), Cells::new(store.datastore(name, Some(datastore.shards)).await?));
    }
    let mut handlers = Handlers { sources: sources.clone(), built: BTreeMap::new() };
    let worker = Worker::new(Setup {
        lease: config.lease.clone(),
        poll: config.poll.clone(),
        checkpoint_interval: config.checkpoint_interval,
        memory: config.memory,
        ledger: home.ledger(&store).await?,
        presence: store.presence(),
        identity: identity(),
        sources,
        triggers: handlers.specs(config)?,
        wrap: None,
    })
    .await?;
    let watch = worker.watch();
    let stop = CancellationToken::new();
    let (reload, reloads) = mpsc::channel(1);
    let work = worker.run(stop.clone(), reloads);
    let admin = serve(config, watch.clone(), stop.clone()).await?;
    tracing::info!(group = %config.group, triggers = config.triggers.len(), "worker started");
    tokio::pin!(work, admin);
    let mut telling = tokio::time::interval(TOLD);
    telling.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut serving = true;
    loop {
        tokio::select! {
            biased;
            () = &mut work => break,
            signal = signals.next() => match signal {
                Signal::Stop(name) => {
                    tracing::info!(signal = name, "leaving: calls under way are finished; a second signal leaves at once");
                    stop.cancel();
                }
                Signal::Reload => reload_triggers(&home, &mut handlers, &reload).await,
            },
            () = &mut admin, if serving => serving = false,
            _ = telling.tick() => tell(&watch),
        }
    }
    tracing::info!("left");
    Ok(Exit::Done)
}

async fn make_tables(config: &Config, store: &Store) -> anyhow::Result<()> {
    for (name, datastore) in &config.datastores {
        store.init_datastore(&NewDatastore { name: name.clone(), shards: datastore.shards }).await?;
    }
    store.init_group(&config.group).await?;
    Ok(())
}

/// The handlers that were built, by trigger and what the config said: a reload that says the same keeps the same children.
struct Handlers {
    sources: BTreeMap<Name, Cells>,
    built: BTreeMap<Name, (handler::Config, Arc<dyn Handler>)>,
}

impl Handlers {
    fn specs(&mut self, config: &Config) -> anyhow::Result<Vec<TriggerSpec>> {
        // All are checked before any is built: a reload changes everything or nothing.
        for (name, trigger) in &config.triggers {
            trigger.handler.check().with_context(|| format!("trigger {name}"))?;
            let known = |source: &Name| self.sources.contains_key(source);
            if !known(&trigger.source) || !self.target(trigger).is_none_or(known) {
                anyhow::bail!("trigger {name} names a datastore that this worker was not started with: restart it");
            }
        }
        let mut built = BTreeMap::new();
        let mut specs = Vec::new();
        for (name, trigger) in &config.triggers {
            let handler = match self.built.get(name) {
                Some((before, handler)) if *before == trigger.handler => handler.clone(),
                _ => self.build(name, trigger)?,
            };
            built.insert(name.clone(), (trigger.handler.clone(), handler.clone()));
            specs.push(TriggerSpec { name: name.clone(), config: trigger.clone(), handler });
        }
        self.built = built;
        Ok(specs)
    }

    fn target<'a>(&self, trigger: &'a dispatch::Config) -> Option<&'a Name> {
        match &trigger.handler {
            handler::Config::Cells(cells) => Some(&cells.datastore),
            _ => None,
        }
    }

    fn build(&self, name: &Name, trigger: &dispatch::Config) -> anyhow::Result<Arc<dyn Handler>> {
        match self.target(trigger).and_then(|target| self.sources.get(target)) {
            Some(target) => Ok(Arc::new(handler::Copy::new(target.clone()))),
            None => trigger.handler.build(name).with_context(|| format!("trigger {name}")),
        }
    }
}

async fn reload_triggers(home: &Home, handlers: &mut Handlers, reload: &mpsc::Sender<Vec<TriggerSpec>>) {
    let config = match home.again() {
        Ok(config) => config,
        Err(error) => return tracing::error!(error = %chain(&error), "the config cannot be reloaded; nothing changed"),
    };
    let others = home.config.changed_beside_triggers(&config);
    if !others.is_empty() {
        tracing::warn!(tables = ?others, "these tables changed too, which takes a restart");
    }
    match handlers.specs(&config) {
        Ok(specs) => {
            // The worker is gone only when the process is leaving.
            let _ = reload.send(specs).await;
        }
        Err(error) => tracing::error!(error = format!("{error:#}"), "the config cannot be reloaded; nothing changed"),
    }
}

/// The metrics port as a future that ends with the process's stop; pending for ever where it is off.
async fn serve(
    config: &Config,
    watch: Watch,
    stop: CancellationToken,
) -> anyhow::Result<impl Future<Output = ()> + use<>> {
    let admin = match config.metrics {
        Some(listen) => Some(Admin::bind(listen).await?),
        None => None,
    };
    if let Some(admin) = &admin {
        tracing::info!(url = format!("http://{}/metrics", admin.address()), "metrics");
    }
    Ok(async move {
        let Some(admin) = admin else { return std::future::pending().await };
        let readiness = move || readiness(&watch);
        if let Err(error) = admin.serve(readiness, stop.cancelled_owned()).await {
            tracing::error!(%error, "the metrics port is closed");
        }
    })
}

/// Ready when it holds what it should.
fn readiness(watch: &Watch) -> Readiness {
    let view = watch.view.borrow();
    let held = view.grants.len();
    let ready = view.session.is_some() && view.workers > 0 && held >= view.wanted && view.stopped.is_empty();
    let details = serde_json::json!({
        "ready": ready,
        "session": view.session.as_ref().map(ToString::to_string),
        "workers": view.workers,
        "shards_held": held,
        "shards_wanted": view.wanted,
        "shards_stopped": view.stopped.len(),
    });
    Readiness { ready, details }
}

/// Puts lag and parked cells of the shards that are held on the metrics page.
fn tell(watch: &Watch) {
    let now = clock::wall();
    let mut sums: BTreeMap<Name, (f64, f64, [f64; 3])> = BTreeMap::new();
    for standing in watch.standings.read().into_values().flatten() {
        let (name, standing) = standing;
        let (cells, seconds, parked) = sums.entry(name).or_default();
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
        let number = |n: u64| n as f64;
        *cells += number(standing.tip.0.saturating_sub(standing.low.0));
        let age = standing.oldest.map_or(0, |oldest| u64::try_from(now.0 - oldest.0).unwrap_or(0));
        *seconds = seconds.max(number(age) / 1000.0);
        let (retrying, waiting, dead) = standing.parked;
        for (sum, n) in parked.iter_mut().zip([retrying as u64, waiting as u64, dead]) {
            *sum += number(n);
        }
    }
    set_trigger_lag(sums.iter().map(|(name, (cells, seconds, _))| Lag {
        trigger: name.as_str(),
        cells: *cells,
        seconds: *seconds,
    }));
    set_parked_cells(sums.iter().flat_map(|(name, (_, _, parked))| {
        let states = ["retrying", "waiting", "dead"].into_iter().zip(parked);
        states.map(|(state, cells)| ParkedCells { trigger: name.as_str(), state, cells: *cells })
    }));
}

fn identity() -> Identity {
    let uname = rustix::system::uname();
    Identity {
        host: uname.nodename().to_string_lossy().into_owned(),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").into(),
    }
}
