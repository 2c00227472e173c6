//! From the end of a worker to the work of the next: real processes, killed or asked to leave.
//!
//! On the embedded store a lock of the kernel tells at once when a process of this host ends. Workers on several hosts have only
//! the session's heartbeat for that. So the survivor, which is in this process, is started both with that lock and without, and
//! without it at the intervals of either kind of store.

use super::{
    Place,
    figure::{Figure, Reach, percentile},
    place::cell_of,
    process::{LONGEST, Printed, Process, WorkerConfig, lease},
    worker::{Job, Running},
};
use crate::{
    cell::{Event, ShardId, Verdict, setting::duration},
    dispatch,
    handler::{self, handler_fn},
    store::{Cells, Kind},
};
use anyhow::Context as _;
use futures_util::future::try_join_all;
use rustix::process::Signal;
use std::{collections::BTreeSet, time::Duration};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

/// How a worker ends, and how the other one learns of it.
#[derive(Clone, Copy)]
struct How {
    signal: Signal,
    presence: bool,
    paces: Kind,
}

/// Crashes and stops, each so many times.
pub(super) async fn takeover(place: &mut Place) -> anyhow::Result<Vec<Figure>> {
    let stop = How { signal: Signal::TERM, presence: true, paces: Kind::Embedded };
    let seen = How { signal: Signal::KILL, ..stop };
    let unseen = How { presence: false, ..seen };
    let remote = How { paces: Kind::Dynamodb, ..unseen };
    let session = place.sizes.session;
    let crash = format!("crash to takeover, session of {}", duration::text(session));
    let most = (session.as_secs_f64() * 14.0).round() / 10.0;
    let within = |seconds| Some(Reach::AtMost(seconds));
    let mut figures = Vec::new();
    for (name, how, reach) in [
        (format!("{crash}, by its heartbeat"), unseen, within(most)),
        (format!("{crash}, by its heartbeat, at the intervals of DynamoDB"), remote, None),
        ("crash to takeover on one host, by its lock".into(), seen, None),
        ("graceful stop to takeover".into(), stop, within(1.0)),
    ] {
        let mut times = trials(place, how).await?;
        let (slowest, n) = (percentile(&mut times, 100.0) / 1000.0, times.len());
        let figure = Figure::of(format!("{name}, slowest of {n}"), slowest, "s").samples(n);
        figures.push(match reach {
            Some(reach) => figure.reach(reach),
            None => figure,
        });
    }
    Ok(figures)
}

async fn trials(place: &mut Place, how: How) -> anyhow::Result<Vec<Duration>> {
    let mut pairs = Vec::new();
    for _ in 0..place.sizes.trials {
        pairs.push(Pair::start(place, how).await?);
    }
    for pair in &pairs {
        pair.survivor.group().is_shared(pair.cells.datastore().shards, 2).await?;
    }
    if !how.presence {
        // They all wait, most of the time.
        return try_join_all(pairs.into_iter().map(|pair| pair.end(how.signal))).await;
    }
    let mut times = Vec::new();
    for pair in pairs {
        times.push(pair.end(how.signal).await?);
    }
    Ok(times)
}

/// Two workers that share a datastore.
struct Pair {
    cells: Cells,
    victim: Process,
    _printed: Printed,
    survivor: Running,
    /// The shard of each call of the survivor.
    calls: mpsc::UnboundedReceiver<ShardId>,
}

impl Pair {
    async fn start(place: &mut Place, how: How) -> anyhow::Result<Self> {
        let cells = place.datastore(place.sizes.shards).await?;
        let group = place.group().await?;
        let (called, calls) = mpsc::unbounded_channel();
        let handler = handler_fn(move |event: Event| {
            // Whoever waits for it is there as long as this is.
            let _ = called.send(event.cell.shard);
            async { Verdict::done() }
        });
        let config = dispatch::Config::new(cells.datastore().name.clone());
        let job = Job {
            store: &place.store,
            group: group.clone(),
            cells: &cells,
            config: config.clone(),
            handler,
            lease: lease(place.sizes.session),
            paces: how.paces,
            presence: how.presence,
        };
        let survivor = Running::start(job).await?;
        survivor.group().resume().await?;
        let trigger = dispatch::Config { handler: handler::Config::Log(handler::LogConfig::default()), ..config };
        let datastore = cells.datastore();
        let config = WorkerConfig { group: &group, datastore, trigger, session: place.sizes.session, level: "error" };
        let (victim, printed) = config.run(place)?;
        Ok(Self { cells, victim, _printed: printed, survivor, calls })
    }

    /// Ends the victim, and waits until the survivor has called for a new cell of each shard that it took over.
    async fn end(self, signal: Signal) -> anyhow::Result<Duration> {
        let Self { cells, victim, _printed, mut survivor, mut calls } = self;
        // At any moment between two heartbeats.
        sleep(lease(Duration::from_secs(10)).heartbeat.mul_f64(fastrand::f64())).await;
        let shards = cells.datastore().shards;
        let held = survivor.held();
        let mut waiting: BTreeSet<ShardId> = cells.datastore().all_shards().filter(|id| !held.contains(id)).collect();
        let start = Instant::now();
        victim.signal(signal)?;
        survivor.holds_all(shards).await?;
        let fresh = waiting.iter().map(|shard| cell_of(*shard, shards)).collect();
        for put in cells.put(fresh).await {
            put?;
        }
        while !waiting.is_empty() {
            let called = timeout(LONGEST, calls.recv()).await.context("a shard that was taken over stands still")?;
            waiting.remove(&called.context("the handler is gone")?);
        }
        let took = start.elapsed();
        drop(victim);
        survivor.leave().await?;
        Ok(took)
    }
}
