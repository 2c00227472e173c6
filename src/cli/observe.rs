//! What a worker shows of itself: the metrics that are computed and not counted, whether it turns, and whether it is ready.

mod ages;
mod sum;

use crate::{
    admin::Health,
    cell::{AddedId, Lease, Name, ShardRef, TriggerId, TriggerRecord, TriggerState, clock},
    checkpoint,
    lease::View,
    metrics::{self, AtWork, Sample, ShardNow, TriggerNow, WorkerNow},
    process,
    store::Cells,
    worker::{Stuck, Watch},
};
use ages::{Ages, Place};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use sum::Sum;
use tokio::time::{Instant, sleep};

/// How often the metrics are computed.
pub(super) const SAMPLES: Duration = Duration::from_secs(1);
/// A process whose loop has not turned for so long does not live.
const TURN_MAX: Duration = Duration::from_secs(10);
/// The lowest margin is that of one to two of these.
const LOWEST: Duration = Duration::from_mins(1);
/// How long a registered trigger may be missing from the config before the worker is not ready: a rolling deploy takes a
/// while, and loses nothing meanwhile.
const MISSING_MAX: Duration = Duration::from_mins(15);

/// Looks at a worker. Clones share it.
#[derive(Clone)]
pub(super) struct Observer {
    watch: Watch,
    sources: BTreeMap<Name, Cells>,
    settings: Settings,
    triggers: Arc<Mutex<Triggers>>,
    eyes: Arc<Mutex<Eyes>>,
}

/// What the config says about looking.
#[derive(Clone, Copy)]
pub(super) struct Settings {
    pub(super) per_shard: bool,
    /// What is left until the fence closes right after a heartbeat.
    pub(super) margin_limit: Duration,
}

/// Which triggers the config knows, and since when a registered one is missing from it.
#[derive(Default)]
struct Triggers {
    known: BTreeSet<Name>,
    missing: BTreeMap<Name, Instant>,
}

/// What is remembered from one look to the next.
struct Eyes {
    /// When the loop of the process last came by.
    turned: Instant,
    lowest: Lowest,
    ages: Ages,
}

/// The lowest margin of this minute and of the last one.
struct Lowest {
    since: Instant,
    this: Option<Duration>,
    last: Option<Duration>,
}

impl Observer {
    pub(super) fn new(
        watch: Watch,
        sources: BTreeMap<Name, Cells>,
        known: impl Iterator<Item = Name>,
        settings: Settings,
    ) -> Self {
        let triggers = Triggers { known: known.collect(), missing: BTreeMap::new() };
        let now = Instant::now();
        let lowest = Lowest { since: now, this: None, last: None };
        let eyes = Eyes { turned: now, lowest, ages: Ages::default() };
        let (triggers, eyes) = (Arc::new(Mutex::new(triggers)), Arc::new(Mutex::new(eyes)));
        Self { watch, sources, settings, triggers, eyes }
    }

    /// The config knows these triggers from now on.
    pub(super) fn know(&self, triggers: impl Iterator<Item = Name>) {
        self.triggers().known = triggers.collect();
    }

    fn triggers(&self) -> MutexGuard<'_, Triggers> {
        self.triggers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn eyes(&self) -> MutexGuard<'_, Eyes> {
        self.eyes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The loop of the process comes by: computes everything anew, and looks which triggers are missing.
    pub(super) fn sample(&self) {
        process::tell_repeated();
        let now = Instant::now();
        let view = self.watch.view.borrow().clone();
        let mut triggers = self.triggers();
        triggers.look(&view.triggers, now);
        let mut sums: BTreeMap<Name, Sum> = triggers.known.iter().map(|name| (name.clone(), Sum::default())).collect();
        drop(triggers);
        let mut look = Look { per_shard: self.settings.per_shard, shards: Vec::new(), places: Vec::new() };
        let mut stopped: BTreeSet<ShardRef> = view.stopped.keys().cloned().collect();
        let mut eyes = self.eyes();
        eyes.turned = now;
        self.watch.standings.each(|shard, standings| {
            for (name, standing) in standings {
                if standing.stopped.is_some() {
                    stopped.insert(shard.clone());
                }
                let place = Place { shard: shard.clone(), low: standing.low };
                let oldest = standing.oldest.or_else(|| eyes.ages.get(&place));
                if standing.lag > 0 && standing.oldest.is_none() && standing.stopped.is_some() {
                    look.places.push(place);
                }
                look.show(shard, name, standing.lag, oldest, Some(standing.parked.map(|lot| lot.cells)));
                // Looked up first: a name is cloned only where it is new.
                match sums.get_mut(name) {
                    Some(sum) => sum.add(standing, oldest),
                    None => sums.entry(name.clone()).or_default().add(standing, oldest),
                }
            }
        });
        sums.retain(|name, _| !view.is_retired(name));
        let missing: BTreeSet<Name> = missing(&view, &sums).map(|record| record.name.clone()).collect();
        for record in view.triggers.iter().filter(|record| record.state != TriggerState::Retired) {
            let is_missing = missing.contains(&record.name);
            // One that was renamed is shown by the name that the config here has.
            let name = sums.keys().find(|name| record.goes_by(name)).unwrap_or(&record.name).clone();
            let sum = sums.entry(name.clone()).or_default();
            for (shard, lag, low) in self.idle(&view, record, is_missing) {
                let place = Place { shard: shard.clone(), low };
                let oldest = eyes.ages.get(&place);
                look.show(shard, &name, lag, oldest, None);
                sum.add_idle(lag, oldest);
                if lag > 0 {
                    look.places.push(place);
                }
            }
        }
        eyes.ages.want(std::mem::take(&mut look.places));
        let worker = self.worker(&view, stopped.len(), &mut eyes.lowest, now);
        drop(eyes);
        let active = self.watch.triggers.get().active;
        let triggers = sums.iter().map(|(name, sum)| {
            let at_work = active.iter().find(|trigger| trigger.name == *name);
            let breaker = at_work.and_then(|trigger| trigger.breaker.as_ref());
            let missing = missing.contains(name);
            let paused = is_paused(&view, name);
            TriggerNow {
                name: name.to_string(),
                lag_cells: count(sum.lag),
                lag_seconds: sum::age(sum.oldest, clock::wall()),
                paused,
                missing,
                at_work: (!missing).then(|| AtWork {
                    // A pause of all of it is told by itself.
                    shards_paused: if paused { 0.0 } else { count(sum.shards_paused) },
                    ..sum.at_work(breaker.map(|breaker| breaker.label()), clock::wall(), now)
                }),
            }
        });
        metrics::show(Sample { worker, triggers: triggers.collect(), shards: look.shards });
    }

    fn worker(&self, view: &View, stopped: usize, lowest: &mut Lowest, now: Instant) -> WorkerNow {
        let margin = self.watch.fence.margin();
        let seen = self.watch.fence.take_lowest().into_iter().chain(view.session.is_some().then_some(margin)).min();
        lowest.saw(seen, now);
        let longest = view.vacant.values().map(|vacant| now.saturating_duration_since(vacant.since)).max();
        WorkerNow {
            shards_wanted: count(view.wanted),
            shards_unowned: count(view.vacant.len()),
            unowned_seconds_max: longest.unwrap_or_default().as_secs_f64(),
            shards_stopped: count(stopped),
            sessions: count(view.sessions),
            margin: margin.as_secs_f64(),
            margin_min: lowest.get().unwrap_or(margin).as_secs_f64(),
            margin_limit: self.settings.margin_limit.as_secs_f64(),
            memory: self.watch.budget.levels().map(|(used, limit)| (count(used), count(limit))),
        }
    }

    /// Where a trigger stands on shards on which nobody works for it: those without an owner that are this worker's to speak
    /// for, and all that it holds when its config lacks the trigger.
    fn idle<'a>(&self, view: &'a View, record: &TriggerRecord, missing: bool) -> Vec<(&'a ShardRef, u64, AddedId)> {
        let Some(cells) = self.sources.get(&record.source) else { return Vec::new() };
        // What stands still because the datastore is another one has places that mean nothing.
        let vacant = view.vacant.iter().filter(|(shard, _)| !view.stopped.contains_key(*shard));
        let vacant = vacant.filter_map(|(shard, vacant)| Some((shard, vacant.lease.as_deref()?)));
        let held = view.grants.iter().filter(|_| missing).map(|(shard, grant)| (shard, &*grant.lease));
        let here = vacant.chain(held).filter(|(shard, _)| shard.source == record.source);
        let lag = |(shard, lease): (&'a ShardRef, &Lease)| {
            let tip = *cells.tip(shard.shard).borrow();
            let (lag, low) = lag(lease, &record.id, record.start.as_deref(), shard, tip)?;
            Some((shard, lag, low))
        };
        here.filter_map(lag).collect()
    }

    /// Learns how old the cells are that nobody reads here, a few at a time. Apart from looking, since it asks the store.
    pub(super) async fn learn_ages(&self) -> Infallible {
        loop {
            let wanted = self.eyes().ages.unknown();
            let found = ages::read(&self.sources, wanted).await;
            self.eyes().ages.learn(found);
            sleep(SAMPLES).await;
        }
    }

    /// Live: the loop of the process turns.
    pub(super) fn liveness(&self) -> Health {
        live(self.eyes().turned.elapsed(), &self.watch.stuck())
    }

    /// Ready: in the group, sure of its session, at work on every shard that it should hold, none of them stopped, no trigger
    /// missing for long.
    pub(super) fn readiness(&self) -> Health {
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
                if let Some(reason) = standing.paused.as_ref().filter(|_| !is_paused(&view, name)) {
                    paused.insert(format!("{name} on {shard}"), reason.clone());
                }
            }
        });
        let held = view.grants.len();
        let margin = self.watch.fence.margin();
        let at_work = view.counted && !margin.is_zero() && held >= view.wanted;
        let good = at_work && stopped.is_empty() && missing.is_empty();
        let details = json!({
            "ready": good,
            "session": view.session.as_ref().map(ToString::to_string),
            "heartbeat_margin_seconds": margin.as_secs_f64(),
            "workers": view.workers,
            "shards_held": held,
            "shards_wanted": view.wanted,
            "shards_unowned": view.vacant.len(),
            "shards_stopped": stopped,
            "paused": paused,
            "missing_triggers": missing,
        });
        Health { good, details }
    }
}

/// The loop of a process that turned so long ago, and the loops that should turn and do not. The first moves the coordination and
/// every hand-over. Whoever finds one standing still may kill the process.
fn live(turned: Duration, stuck: &[Stuck]) -> Health {
    let good = turned < TURN_MAX && stuck.is_empty();
    let stuck: Vec<String> = stuck.iter().map(ToString::to_string).collect();
    Health { good, details: json!({ "live": good, "turned_seconds_ago": turned.as_secs_f64(), "stuck": stuck }) }
}

/// What one look collects beside the sums.
struct Look {
    per_shard: bool,
    shards: Vec<ShardNow>,
    /// Places whose cells nobody reads here.
    places: Vec<Place>,
}

impl Look {
    fn show(
        &mut self,
        shard: &ShardRef,
        trigger: &Name,
        lag: u64,
        oldest: Option<crate::cell::Millis>,
        parked: Option<[u64; 3]>,
    ) {
        if self.per_shard {
            self.shards.push(ShardNow {
                datastore: shard.source.to_string(),
                shard: shard.shard.0,
                trigger: trigger.to_string(),
                lag_cells: count(lag),
                lag_seconds: sum::age(oldest.filter(|_| lag > 0), clock::wall()),
                parked: parked.map(|cells| cells.map(count)),
            });
        }
    }
}

/// A number as a gauge has it.
#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn count(number: impl TryInto<u64>) -> f64 {
    number.try_into().unwrap_or(u64::MAX) as f64
}

/// How far a trigger is behind where only its lease tells, and where it goes on. `None` when nobody can know: it was never
/// started there, and begins at a place that has to be looked for.
fn lag(
    lease: &Lease,
    id: &TriggerId,
    start: Option<&[AddedId]>,
    shard: &ShardRef,
    tip: AddedId,
) -> Option<(u64, AddedId)> {
    match (lease.checkpoints.get(id), start) {
        (Some(checkpoint), _) => Some((checkpoint::lag(checkpoint, tip), checkpoint.low)),
        (None, Some(start)) => {
            let low = start.get(shard.shard.0 as usize).copied().unwrap_or_default();
            Some((tip.0.saturating_sub(low.0), low))
        }
        (None, None) => None,
    }
}

/// A pause of the whole trigger; those of single shards are told by the shards.
fn pause(record: &TriggerRecord) -> Option<(String, String)> {
    match &record.state {
        TriggerState::Paused { reason } => Some((record.name.to_string(), reason.clone())),
        TriggerState::Active | TriggerState::Retired => None,
    }
}

/// Whether all of a trigger is paused, whichever of its names this is.
fn is_paused(view: &View, name: &Name) -> bool {
    view.triggers.iter().any(|record| record.goes_by(name) && pause(record).is_some())
}

fn told((shard, reason): (&ShardRef, &String)) -> (String, String) {
    (shard.to_string(), reason.clone())
}

/// Registered triggers that nobody here works on.
fn missing<'a>(view: &'a View, sums: &BTreeMap<Name, Sum>) -> impl Iterator<Item = &'a TriggerRecord> {
    let registered = view.triggers.iter().filter(|record| record.state != TriggerState::Retired);
    registered.filter(|record| !sums.keys().any(|name| record.goes_by(name)))
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

impl Lowest {
    fn saw(&mut self, margin: Option<Duration>, now: Instant) {
        if now.saturating_duration_since(self.since) >= LOWEST {
            (self.since, self.last) = (now, self.this.take());
        }
        self.this = self.this.into_iter().chain(margin).min();
    }

    fn get(&self) -> Option<Duration> {
        self.this.into_iter().chain(self.last).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::{Checkpoint, Epoch, Incarnation, Millis, ShardId};

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    #[test]
    fn lag_without_an_owner_is_told_by_the_lease() {
        let (seen, other) = (TriggerId::from_stored("seen"), TriggerId::from_stored("other"));
        let shard = ShardRef { source: name("trips"), shard: ShardId(1) };
        let checkpoint = Checkpoint { low: AddedId(7), ..Checkpoint::default() };
        let lease = Lease {
            shard: shard.clone(),
            incarnation: Incarnation::from_stored("x"),
            owner: None,
            epoch: Epoch(3),
            seq: 0,
            claimed_at: Millis(7),
            checkpoints: [(seen.clone(), checkpoint)].into(),
            deaths: 0,
            alone: None,
        };
        let lag = |id, start| lag(&lease, id, start, &shard, AddedId(10));
        assert_eq!(lag(&seen, None), Some((3, AddedId(7))));
        assert_eq!(lag(&other, Some(&[AddedId(1), AddedId(4)])), Some((6, AddedId(4))), "fixed when it was registered");
        assert_eq!(lag(&other, None), None);
    }

    #[test]
    fn a_loop_that_does_not_turn_is_not_live() {
        assert!(live(SAMPLES, &[]).good);
        assert!(!live(SAMPLES, &[Stuck::Worker]).good);
        let stuck = live(TURN_MAX, &[]);
        assert!(!stuck.good);
        assert_eq!(stuck.details, json!({"live": false, "turned_seconds_ago": 10.0, "stuck": []}));
    }

    #[tokio::test(start_paused = true)]
    async fn the_lowest_margin_is_remembered_for_one_to_two_minutes() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut lowest = Lowest { since: start, this: None, last: None };
        lowest.saw(Some(5 * second), start);
        lowest.saw(Some(2 * second), start + 50 * second);
        lowest.saw(None, start + 59 * second);
        assert_eq!(lowest.get(), Some(2 * second));
        lowest.saw(Some(4 * second), start + 60 * second);
        assert_eq!(lowest.get(), Some(2 * second), "of the last minute");
        lowest.saw(Some(6 * second), start + 120 * second);
        assert_eq!(lowest.get(), Some(4 * second), "forgotten");
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
