//! `run`: the life of a worker, from the config to the last hand-over.

use super::{
    Context,
    crew::Crew,
    exit::Done,
    init,
    observe::{Observer, SAMPLES},
};
use crate::{
    admin::Admin,
    cell::{Name, chain},
    config::Config,
    lease::Identity,
    process::{self, Signal, Signals},
    store::{Cells, Kind, Store},
    worker::{Setup, TriggerSpec, Worker},
};
use anyhow::Context as _;
use std::{collections::BTreeMap, future::Future};
use tokio::{
    sync::mpsc,
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
    observer: Observer,
    admin: Option<Admin>,
}

pub(super) async fn run(context: &mut Context, Args {}: Args) -> anyhow::Result<Done> {
    let config = context.config()?;
    process::log_to_stderr(&config.log)?;
    let mut signals = Signals::listen().context("signals cannot be listened to")?;
    let life = tokio::select! {
        biased;
        left = leave(&mut signals) => return Ok(left),
        life = begin(config) => life?,
    };
    let Life { mut config, mut crew, worker, observer, admin } = life;

    let stop = CancellationToken::new();
    let (reloads, reloaded) = mpsc::channel(1);
    let work = worker.run(stop.clone(), reloaded);
    tokio::pin!(work);
    let served = stop.clone();
    let faces = serve(admin, observer.clone(), async move { served.cancelled().await });
    tokio::pin!(faces);
    let mut samples = interval(SAMPLES);
    samples.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = &mut work => break,
            signal = signals.next() => match signal {
                Signal::Stop(name) => {
                    let deadline = config.lease.drain_deadline;
                    tracing::info!(signal = name, ?deadline, "stopping: calls under way are finished, shards handed over");
                    stop.cancel();
                }
                Signal::Reload => match reload(context, &config, &mut crew) {
                    Ok((fresh, triggers)) => {
                        observer.know(fresh.triggers.keys().cloned());
                        config = fresh;
                        if reloads.try_send(triggers).is_err() {
                            tracing::warn!("the last reload is not done yet; send SIGHUP again");
                        }
                    }
                    Err(error) => tracing::error!(error = %chain(error.as_ref()), "the reload is refused; nothing changed"),
                },
            },
            _ = samples.tick() => observer.sample(),
            () = &mut faces => {}
        }
    }
    tracing::info!("stopped");
    Ok(Done::All)
}

/// A signal to stop before anything runs.
async fn leave(signals: &mut Signals) -> Done {
    while let Signal::Reload = signals.next().await {}
    Done::All
}

/// Opens what the config names and registers its triggers.
async fn begin(config: Config) -> anyhow::Result<Life> {
    let store = Store::open(&config.store).await?;
    eprintln!("cellhook {}: {}, config {}", env!("CARGO_PKG_VERSION"), store.describe(), config.file.display());
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
    let triggers = crew.muster(&config)?;
    let setup = Setup {
        lease: config.lease.clone(),
        poll: config.poll.clone(),
        checkpoint_interval: config.checkpoint_interval,
        memory: config.memory,
        ledger,
        presence: store.presence(),
        identity: identity(),
        sources: sources.clone(),
        triggers,
        wrap: None,
    };
    let worker = Worker::new(setup).await?;
    let observer = Observer::new(worker.watch(), sources, config.triggers.keys().cloned());
    if let Some(admin) = &admin {
        eprintln!("metrics on http://{}/metrics", admin.address());
    }
    let shards: u32 = config.datastores.values().map(|datastore| datastore.shards).sum();
    tracing::info!(group = %config.group, triggers = config.triggers.len(), shards, "working");
    Ok(Life { config, crew, worker, observer, admin })
}

/// The config as it is now, with handlers for its triggers. What did not change keeps running.
fn reload(context: &Context, before: &Config, crew: &mut Crew) -> anyhow::Result<(Config, Vec<TriggerSpec>)> {
    let fresh = context.config()?;
    let triggers = crew.muster(&fresh)?;
    let other = before.changed_beside_triggers(&fresh);
    if !other.is_empty() {
        tracing::warn!(
            tables = other.join(", "),
            "these changed too and take a restart; only the triggers are reloaded"
        );
    }
    // What takes a restart stays as it was, so that the next reload tells it again.
    Ok((Config { triggers: fresh.triggers, ..before.clone() }, triggers))
}

/// Serves the pages, if anybody wants them. A worker whose pages fail works on.
async fn serve(admin: Option<Admin>, observer: Observer, stop: impl Future<Output = ()> + Send + 'static) {
    if let Some(admin) = admin
        && let Err(error) = admin.serve(move || observer.readiness(), stop).await
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
