//! How a worker learns of new cells: the tips of the buckets in which it holds shards, each read more often while cells come.
//! And how it notices that a datastore was made anew under it.

use crate::{
    cell::{AddedId, Consistency, Name, ShardId, ShardRef, chain, clock},
    shard::Foreign,
    store::Cells,
    tail::Config,
};
use futures_util::{StreamExt, stream};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// Buckets that are read at a time.
const PARALLEL: usize = 8;
/// How often it is looked whether a datastore is still the one that was opened.
const INCARNATION: Duration = Duration::from_mins(1);
/// When a tip seems to have gone back, which an eventually consistent read may show too, it is looked at once in so long; when the
/// tips could not be read for a while, at once.
const INCARNATION_DOUBTED: Duration = Duration::from_secs(5);

/// A tips bucket of a datastore.
type Bucket = (Name, u32);

/// When a bucket is read next.
struct Turn {
    at: Instant,
    interval: Duration,
    failures: u32,
}

/// Reads tips for ever, as long as somebody may hold shards.
pub(super) async fn poll(
    config: Config,
    sources: BTreeMap<Name, Cells>,
    mut held: watch::Receiver<BTreeSet<ShardRef>>,
    foreign: watch::Sender<Foreign>,
) {
    let mut turns: BTreeMap<Bucket, Turn> = BTreeMap::new();
    let mut shards: BTreeMap<Bucket, Vec<ShardId>> = BTreeMap::new();
    let mut looks: BTreeMap<Name, Instant> = sources.keys().map(|name| (name.clone(), clock::now())).collect();
    // When a datastore was last looked at because its tips were in doubt.
    let mut looked: BTreeMap<Name, Instant> = BTreeMap::new();
    held.mark_changed();
    loop {
        let now = clock::now();
        if held.has_changed().unwrap_or(false) {
            shards = by_bucket(&sources, &held.borrow_and_update());
            turns.retain(|bucket, _| shards.contains_key(bucket));
            for bucket in shards.keys() {
                turns.entry(bucket.clone()).or_insert(Turn { at: now, interval: config.floor, failures: 0 });
            }
        }
        let due = turns.iter().filter(|(_, turn)| turn.at <= now + turn.interval / 10);
        let due: Vec<Bucket> = due.map(|(bucket, _)| bucket.clone()).collect();
        let reads = due.into_iter().map(|bucket| {
            let cells = sources[&bucket.0].clone();
            async move {
                let tips = cells.log().tips(bucket.1, Consistency::Eventual).await;
                (bucket, cells, tips)
            }
        });
        let mut reads = stream::iter(reads).buffer_unordered(PARALLEL);
        while let Some((bucket, cells, tips)) = reads.next().await {
            let Some(turn) = turns.get_mut(&bucket) else { continue };
            turn.interval = match tips {
                Ok(tips) => {
                    let tips: BTreeMap<ShardId, AddedId> = tips.into_iter().map(|tip| (tip.shard, tip.tip)).collect();
                    let fell = shards[&bucket]
                        .iter()
                        .any(|shard| tips.get(shard).copied().unwrap_or_default() < *cells.tip(*shard).borrow());
                    let doubted = looked.get(&bucket.0).is_none_or(|at| clock::since(*at) >= INCARNATION_DOUBTED);
                    if turn.failures > 0 || fell && doubted {
                        // Before anybody hears of these tips: they may be another datastore's.
                        looked.insert(bucket.0.clone(), clock::now());
                        look_at(&bucket.0, &cells, &foreign).await;
                    }
                    turn.failures = 0;
                    let mut moved = false;
                    for shard in &shards[&bucket] {
                        let tip = tips.get(shard).copied().unwrap_or_default();
                        moved |= cells.heard(*shard, tip);
                    }
                    if moved { config.floor } else { turn.interval.mul_f64(1.5).clamp(config.floor, config.ceiling) }
                }
                Err(error) => {
                    turn.failures = turn.failures.saturating_add(1);
                    if turn.failures == 3 {
                        tracing::warn!(error = %chain(&error), "cannot read the tips; trying again");
                    }
                    config.ceiling.max(config.floor * (1 << turn.failures.min(6)))
                }
            };
            turn.at = clock::now() + turn.interval.mul_f64(0.9 + 0.2 * fastrand::f64());
        }
        drop(reads);
        for (name, look) in looks.iter_mut().filter(|(_, look)| **look <= now) {
            *look = clock::now() + INCARNATION;
            if shards.keys().any(|(source, _)| source == name) {
                look_at(name, &sources[name], &foreign).await;
            }
        }
        let next = turns.values().map(|turn| turn.at).chain(looks.values().copied()).min();
        tokio::select! {
            biased;
            changed = held.changed() => match changed {
                Ok(()) => held.mark_changed(),
                Err(_) => return std::future::pending().await,
            },
            () = clock::sleep_until(next.unwrap_or_else(|| clock::now() + INCARNATION)) => {}
        }
    }
}

fn by_bucket(sources: &BTreeMap<Name, Cells>, held: &BTreeSet<ShardRef>) -> BTreeMap<Bucket, Vec<ShardId>> {
    let mut shards: BTreeMap<Bucket, Vec<ShardId>> = BTreeMap::new();
    for shard in held {
        if let Some(cells) = sources.get(&shard.source) {
            let bucket = cells.datastore().bucket(shard.shard);
            shards.entry((shard.source.clone(), bucket)).or_default().push(shard.shard);
        }
    }
    shards
}

/// Looks whether a datastore is still the one that was opened. One that is not must not be worked on: its cells would be taken
/// for those that the checkpoints are about.
async fn look_at(name: &Name, cells: &Cells, foreign: &watch::Sender<Foreign>) {
    let opened = &cells.datastore().incarnation;
    // What cannot be read is told by whoever reads the tips.
    let Ok(found) = cells.log().incarnation().await else { return };
    let reason = match found {
        Some(found) if found == *opened => None,
        Some(found) => Some(format!(
            "datastore {name} was made anew: this worker opened incarnation {opened}, the tables are now {found}. Restore the old \
             tables, or start again with a new group name"
        )),
        None => Some(format!(
            "the tables of datastore {name} were emptied: its own item, incarnation {opened}, is gone. Restore the old tables, or \
             make it anew with `cellhook init` and start again with a new group name"
        )),
    };
    foreign.send_if_modified(|foreign| {
        if foreign.get(name) == reason.as_ref() {
            return false;
        }
        let mut all = BTreeMap::clone(foreign);
        match reason {
            Some(reason) => {
                tracing::error!(reason, "no shard of this datastore is worked on");
                all.insert(name.clone(), reason);
            }
            None => {
                tracing::info!(datastore = %name, "the datastore is the one that was opened again");
                all.remove(name);
            }
        }
        *foreign = Arc::new(all);
        true
    });
}
