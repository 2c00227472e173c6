//! What a worker shows of itself: the metrics that are computed and not counted, and whether it is ready.

use crate::{
    admin::Readiness,
    cell::{AddedId, Millis, Name, ShardRef, TriggerRecord, TriggerState, clock},
    lease::View,
    metrics::{self, Lag, ParkedCells},
    shard::Standing,
    store::Cells,
    worker::Watch,
};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// How often the metrics are computed.
pub(super) const SAMPLES: Duration = Duration::from_secs(1);
/// How long a registered trigger may be missing from the config before the worker is not ready: a rolling deploy takes a
/// while, and loses nothing meanwhile.
const MISSING_MAX: Duration = Duration::from_mins(15);

/// Looks at a worker. Clones share it.
#[derive(Clone)]
pub(super) struct Observer {
    watch: Watch,
    sources: BTreeMap<Name, Cells>,
    triggers: Arc<Mutex<Triggers>>,
}

/// Which triggers the config knows, and since when a registered one is missing from it.
#[derive(Default)]
struct Triggers {
    known: BTreeSet<Name>,
    missing: BTreeMap<Name, Instant>,
}

/// A trigger over all shards that the worker holds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sum {
    lag_cells: u64,
    oldest: Option<Millis>,
    retrying: usize,
    waiting: usize,
    dead: u64,
}

impl Observer {
    pub(super) fn new(watch: Watch, sources: BTreeMap<Name, Cells>, known: impl Iterator<Item = Name>) -> Self {
        let triggers = Triggers { known: known.collect(), missing: BTreeMap::new() };
        Self { watch, sources, triggers: Arc::new(Mutex::new(triggers)) }
    }

    /// The config knows these triggers from now on.
    pub(super) fn know(&self, triggers: impl Iterator<Item = Name>) {
        self.triggers().known = triggers.collect();
    }

    fn triggers(&self) -> MutexGuard<'_, Triggers> {
        self.triggers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Computes lag and parked cells anew, and looks which triggers are missing.
    pub(super) fn sample(&self) {
        let view = self.watch.view.borrow().clone();
        let mut triggers = self.triggers();
        triggers.look(&view.triggers, Instant::now());
        let mut sums: BTreeMap<Name, Sum> = triggers.known.iter().map(|name| (name.clone(), Sum::default())).collect();
        drop(triggers);
        self.watch.standings.each(|_, standings| {
            for (name, standing) in standings {
                sums.entry(name.clone()).or_default().add(standing);
            }
        });
        sums.retain(|name, _| !view.is_retired(name));
        for record in missing(&view, &sums) {
            sums.insert(record.name.clone(), self.idle(&view, record));
        }
        let now = clock::wall();
        metrics::set_trigger_lag(sums.iter().map(|(name, sum)| sum.lag(name, now)));
        metrics::set_parked_cells(sums.iter().flat_map(|(name, sum)| sum.parked(name)));
    }

    /// Of a trigger that the config does not know: nobody works on it here, its lag grows.
    fn idle(&self, view: &View, record: &TriggerRecord) -> Sum {
        let mut sum = Sum::default();
        let Some(cells) = self.sources.get(&record.source) else { return sum };
        for (shard, grant) in view.grants.iter().filter(|(shard, _)| shard.source == record.source) {
            let low = grant.lease.checkpoints.get(&record.id).map_or(AddedId(0), |checkpoint| checkpoint.low);
            sum.lag_cells += cells.tip(shard.shard).borrow().0.saturating_sub(low.0);
        }
        sum
    }

    /// Ready: in the group, at work on every shard that it should hold, none of them stopped, no trigger missing for long.
    pub(super) fn readiness(&self) -> Readiness {
        let view = self.watch.view.borrow().clone();
        let now = Instant::now();
        let missing: Vec<String> = self.triggers().overdue(now).map(ToString::to_string).collect();
        let mut stopped: BTreeMap<String, String> = view.stopped.iter().map(told).collect();
        let mut paused: BTreeMap<String, String> = view.triggers.iter().filter_map(pause).collect();
        self.watch.standings.each(|shard, standings| {
            for (name, standing) in standings {
                if let Some(reason) = &standing.stopped {
                    stopped.insert(shard.to_string(), reason.clone());
                }
                if let Some(reason) = &standing.paused {
                    paused.insert(format!("{name} on {shard}"), reason.clone());
                }
            }
        });
        let held = view.grants.len();
        let ready = view.counted && held >= view.wanted && stopped.is_empty() && missing.is_empty();
        let details = json!({
            "ready": ready,
            "session": view.session.as_ref().map(ToString::to_string),
            "workers": view.workers,
            "shards_held": held,
            "shards_wanted": view.wanted,
            "shards_stopped": stopped,
            "paused": paused,
            "missing_triggers": missing,
        });
        Readiness { ready, details }
    }
}

/// A pause of the whole trigger; those of single shards are told by the shards.
fn pause(record: &TriggerRecord) -> Option<(String, String)> {
    match &record.state {
        TriggerState::Paused { reason } => Some((record.name.to_string(), reason.clone())),
        TriggerState::Active | TriggerState::Retired => None,
    }
}

fn told((shard, reason): (&ShardRef, &String)) -> (String, String) {
    (shard.to_string(), reason.clone())
}

/// Registered triggers that nobody here works on.
fn missing<'a>(view: &'a View, sums: &BTreeMap<Name, Sum>) -> Vec<&'a TriggerRecord> {
    let registered = view.triggers.iter().filter(|record| record.state != TriggerState::Retired);
    registered.filter(|record| !sums.keys().any(|name| record.goes_by(name))).collect()
}

impl Triggers {
    fn look(&mut self, registered: &[TriggerRecord], now: Instant) {
        let retired = |record: &&TriggerRecord| record.state == TriggerState::Retired;
        let unknown = |record: &&TriggerRecord| !self.known.iter().any(|name| record.goes_by(name));
        let missing = registered.iter().filter(|record| !retired(record)).filter(unknown);
        let missing: BTreeSet<Name> = missing.map(|record| record.name.clone()).collect();
        self.missing.retain(|name, _| missing.contains(name));
        for name in missing {
            self.missing.entry(name).or_insert(now);
        }
    }

    fn overdue(&self, now: Instant) -> impl Iterator<Item = &Name> {
        self.missing.iter().filter(move |(_, since)| now - **since >= MISSING_MAX).map(|(name, _)| name)
    }
}

impl Sum {
    fn add(&mut self, standing: &Standing) {
        let Standing { low: _, tip: _, lag, oldest, parked: (retrying, waiting, dead), paused: _, stopped: _ } =
            standing;
        self.lag_cells += lag;
        self.oldest = self.oldest.into_iter().chain(*oldest).min();
        self.retrying += retrying;
        self.waiting += waiting;
        self.dead += dead;
    }

    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    fn lag<'a>(&self, trigger: &'a Name, now: Millis) -> Lag<'a> {
        let age = self.oldest.map_or(0, |oldest| now.0.saturating_sub(oldest.0).max(0));
        Lag { trigger: trigger.as_str(), cells: self.lag_cells as f64, seconds: age as f64 / 1000.0 }
    }

    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    fn parked<'a>(&self, trigger: &'a Name) -> [ParkedCells<'a>; 3] {
        let trigger = trigger.as_str();
        [("retrying", self.retrying as f64), ("waiting", self.waiting as f64), ("dead", self.dead as f64)]
            .map(|(state, cells)| ParkedCells { trigger, state, cells })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    #[test]
    fn shards_add_up_to_their_trigger() {
        let standing = |lag, oldest, dead| Standing { lag, oldest, parked: (1, 2, dead), ..Standing::default() };
        let mut sum = Sum::default();
        sum.add(&standing(7, Some(Millis(4000)), 5));
        sum.add(&standing(0, None, 0));
        sum.add(&standing(0, Some(Millis(9000)), 0));
        let trigger = name("t");
        assert_eq!(sum.lag(&trigger, Millis(5500)), Lag { trigger: "t", cells: 7.0, seconds: 1.5 });
        let cells: Vec<f64> = sum.parked(&trigger).into_iter().map(|parked| parked.cells).collect();
        assert_eq!(cells, [3.0, 6.0, 5.0]);
        assert_eq!(Sum::default().lag(&trigger, Millis(5)).seconds, 0.0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_trigger_may_be_missing_for_a_deploy() {
        let record = |text: &str, state| TriggerRecord {
            id: crate::cell::TriggerId::random(),
            name: name(text),
            formerly: BTreeSet::new(),
            source: name("trips"),
            incarnation: crate::cell::Incarnation::random(),
            state,
            generation: 0,
            start: None,
            revision: 0,
        };
        let registered =
            [record("a", TriggerState::Active), record("b", TriggerState::Active), record("c", TriggerState::Retired)];
        let mut triggers = Triggers { known: BTreeSet::from([name("a")]), ..Triggers::default() };
        let start = Instant::now();
        triggers.look(&registered, start);
        assert_eq!(triggers.overdue(start + MISSING_MAX / 2).count(), 0);
        triggers.look(&registered, start + MISSING_MAX / 2);
        assert_eq!(triggers.overdue(start + MISSING_MAX).collect::<Vec<_>>(), [&name("b")]);
        triggers.known.insert(name("b"));
        triggers.look(&registered, start + MISSING_MAX);
        assert_eq!(triggers.overdue(start + 2 * MISSING_MAX).count(), 0);
    }
}
