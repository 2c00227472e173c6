//! `run`: the life of a worker, from the config to the last hand-over.

use super::{
    Context,
    crew::{Crew, Mustered},
    exit::Done,
    init,
    observe::{Observer, SAMPLES, Settings},
    status,
};
use crate::{
    admin::{Admin, Pages},
    cell::{Name, chain},
    config::Config,
    lease::Identity,
    process::{self, Manager, Signal, Signals},
    store::{Cells, Kind, Store},
    worker::{Reload, Retention, Setup, Watch, Worker, WorkerError},
};
use anyhow::Context as _;
use futures_util::{FutureExt, future::OptionFuture};
use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot},
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

#[derive(Debug, clap::Args)]
pub(super) struct Args {}

/// Everything that lives while the worker does.
struct Life {
    config: Config,
    crew: Crew,
    worker: Worker,
    watch: Watch,
    observer: Observer,
    admin: Option<Admin>,
}

pub(super) async fn run(context: &mut Context, Args {}: Args) -> anyhow::Result<Done> {
    let config = context.config()?;
    process::log_to_stderr(&config.log)?;
    let mut signals = Signals::listen().context("signals cannot be listened to")?;
    let mut manager = Manager::of_process();
    // A SIGHUP that comes at the start, or while one is answered, is heard afterwards: the file may have changed again.
    let mut reload_wanted = false;
    let life = tokio::select! {
        biased;
        left = leave(&mut signals, &mut reload_wanted) => {
            manager.stopping();
            return Ok(left);
        }
        life = begin(context, config) => life?,
    };
    let Life { mut config, mut crew, worker, watch, observer, admin } = life;

    let stop = CancellationToken::new();
    let (reloads, reloaded) = mpsc::channel(1);
    let work = worker.run(stop.clone(), reloaded);
    tokio::pin!(work);
    let served = stop.clone();
    let faces = serve(admin, observer.clone(), async move { served.cancelled().await });
    tokio::pin!(faces);
    let ages = observer.learn_ages();
    tokio::pin!(ages);
    let mut reloading: Option<Reloading> = None;
    let mut samples = interval(SAMPLES);
    samples.set_missed_tick_behavior(MissedTickBehavior::Delay);
    manager.ready();
    loop {
        if reloading.is_none() && std::mem::take(&mut reload_wanted) {
            manager.reloading();
            match reload(context, &config, &crew, &reloads) {
                Ok(begun) => reloading = Some(begun),
                Err(error) => {
                    tracing::error!(signal = "SIGHUP", error = %chain(error.as_ref()), "the reload is refused; nothing changed");
                    manager.ready();
                }
            }
        }
        tokio::select! {
            biased;
            () = &mut work => break,
            signal = signals.next() => match signal {
                Signal::Stop(name) => {
                    let deadline = config.lease.drain_deadline;
                    tracing::info!(signal = name, ?deadline, "stopping: calls under way are finished, shards handed over");
                    manager.stopping();
                    stop.cancel();
                }
                Signal::Reload => reload_wanted = true,
            },
            Some(answer) = OptionFuture::from(reloading.as_mut().map(|begun| &mut begun.answer)) => {
                let Some(Reloading { config: fresh, handlers, .. }) = reloading.take() else { continue };
                match answer {
                    Ok(Ok(triggers)) => {
                        observer.know(fresh.triggers.keys().cloned());
                        crew.adopt(handlers);
                        config = fresh;
                        tracing::info!(triggers, "triggers reloaded");
                    }
                    Ok(Err(error)) => tracing::error!(signal = "SIGHUP", error = %chain(&error), "the reload is refused; nothing changed"),
                    Err(_) => tracing::warn!("the worker stopped before it took the reload"),
                }
                manager.ready();
            }
            () = manager.hungry() => manager.feed(&watch.stuck()),
            _ = samples.tick() => {
                observer.sample();
                manager.status(|| status::line(&watch));
            }
            () = &mut faces => {}
            never = &mut ages => match never {},
        }
    }
    process::tell_all_repeated();
    tracing::info!("stopped");
    Ok(Done::All)
}

/// A signal to stop before anything runs. The file may have changed since it was read: a reload is remembered.
async fn leave(signals: &mut Signals, reload_wanted: &mut bool) -> Done {
    while let Signal::Reload = signals.next().await {
        *reload_wanted = true;
    }
    Done::All
}

/// Opens what the config names and registers its triggers.
async fn begin(context: &Context, config: Config) -> anyhow::Result<Life> {
    let store = Store::open(&config.store).await?;
    context.opened(&config, &store);
    let (version, file) = (env!("CARGO_PKG_VERSION"), config.file.display());
    tracing::info!(version, store = %store.describe(), config = %file, "starting");
    if store.kind() == Kind::Embedded {
        // Nobody pays for tables in a file. On DynamoDB, `init` is a decision of its own.
        init::make_all(&config, &store).await?;
    }
    let mut sources: BTreeMap<Name, Cells> = BTreeMap::new();
    for (name, datastore) in &config.datastores {
        let log = store.datastore(name, Some(datastore.shards)).await?;
        sources.insert(name.clone(), Cells::new(log));
    }
    let ledger = store.ledger(&config.group).await?;
    let admin = match config.metrics {
        Some(listen) => Some(Admin::bind(listen).await?),
        None => None,
    };
    let mut crew = Crew::new(sources.clone());
    let (triggers, handlers) = crew.muster(&config)?;
    crew.adopt(handlers);
    let setup = Setup {
        lease: config.lease.clone(),
        poll: config.poll.clone(),
        checkpoint_interval: config.checkpoint_interval,
        memory: config.memory,
        group: config.group.clone(),
        ledger,
        presence: store.presence(),
        identity: identity(),
        sources: sources.clone(),
        triggers,
        retention: Some(retention(&config, &store)),
        wrap: None,
    };
    let worker = Worker::new(setup).await?;
    let watch = worker.watch();
    let settings = Settings {
        per_shard: config.per_shard,
        margin_limit: config.lease.session.saturating_sub(config.lease.heartbeat),
    };
    let observer = Observer::new(watch.clone(), sources, config.triggers.keys().cloned(), settings);
    if let Some(admin) = &admin {
        tracing::info!(url = %format_args!("http://{}/metrics", admin.address()), "metrics are served");
    }
    let shards: u32 = config.datastores.values().map(|datastore| datastore.shards).sum();
    tracing::info!(group = %config.group, triggers = config.triggers.len(), shards, "working");
    Ok(Life { config, crew, worker, watch, observer, admin })
}

/// How long the config keeps logs. The groups that have triggers on them are opened when they are asked.
fn retention(config: &Config, store: &Store) -> Retention {
    let keep = config.datastores.iter().filter_map(|(name, of)| Some((name.clone(), of.retention?))).collect();
    let store = store.clone();
    let open = move |group| {
        let store = store.clone();
        async move { store.ledger(&group).await }.boxed()
    };
    Retention { keep, every: Duration::from_hours(1), open: Arc::new(open) }
}

/// A reload that the worker was asked for.
struct Reloading {
    config: Config,
    handlers: Mustered,
    answer: oneshot::Receiver<Result<usize, WorkerError>>,
}

/// Reads the config as it is now and asks the worker to take its triggers. Handlers that did not change keep running.
fn reload(
    context: &Context,
    before: &Config,
    crew: &Crew,
    reloads: &mpsc::Sender<Reload>,
) -> anyhow::Result<Reloading> {
    let permit = reloads.try_reserve().context("the worker takes no reload now")?;
    let fresh = context.config()?;
    let (triggers, handlers) = crew.muster(&fresh)?;
    let other = before.changed_beside_triggers(&fresh);
    if !other.is_empty() {
        tracing::warn!(
            signal = "SIGHUP",
            tables = other.join(", "),
            "these changed too and take a restart; only the triggers are reloaded"
        );
    }
    let (sender, answer) = oneshot::channel();
    permit.send(Reload { triggers, answer: sender });
    // What takes a restart stays as it was, so that the next reload tells it again.
    Ok(Reloading { config: Config { triggers: fresh.triggers, ..before.clone() }, handlers, answer })
}

/// What the pages tell of the worker.
fn pages(observer: Observer) -> Pages {
    let (live, ready) = (observer.clone(), observer);
    Pages { live: Arc::new(move || live.liveness()), ready: Arc::new(move || ready.readiness()) }
}

/// Serves the pages, if anybody wants them. A worker whose pages fail works on.
async fn serve(admin: Option<Admin>, observer: Observer, stop: impl Future<Output = ()> + Send + 'static) {
    if let Some(admin) = admin
        && let Err(error) = admin.serve(pages(observer), stop).await
    {
        tracing::error!(error = %chain(&error), "metrics are not served any more");
    }
    // This ends, but the loop that waits for it goes on.
    std::future::pending().await
}

/// Who this process is, for people.
fn identity() -> Identity {
    Identity { host: process::host(), pid: std::process::id(), version: env!("CARGO_PKG_VERSION").into() }
}
