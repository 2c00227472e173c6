//! Metrics: one function per observation, so that no other room names the metrics crate. What a metric tells is its help
//! text, here and on the page.

use prometheus::{
    Gauge, GaugeVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
    core::{Collector, GenericCounter, GenericGauge},
};
use std::sync::{LazyLock, PoisonError, RwLock};

/// Content type of the page.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Verdicts of an attempt, as labels.
const VERDICTS: [&str; 7] = ["done", "failed", "snooze", "drop", "dead_letter", "pause", "interrupted"];

static FAMILIES: LazyLock<Families> = LazyLock::new(Families::new);

struct Families {
    registry: Registry,
    /// Held for writing while the values of a family are replaced, so that no page shows half of them.
    replacing: RwLock<()>,
    lag_cells: GaugeVec,
    lag_seconds: GaugeVec,
    parked: GaugeVec,
    shards_held: IntGauge,
    attempts: IntCounterVec,
    dropped: IntCounterVec,
    claimed: IntCounterVec,
    session_lost: IntCounter,
    declared_dead: IntCounter,
    tasks_aborted: IntCounter,
    children_ended: IntCounterVec,
    protocol_faults: IntCounterVec,
    trimmed: IntCounterVec,
    holes: IntCounterVec,
}

impl Families {
    fn new() -> Self {
        let registry = Registry::new();
        let r = &registry;
        let families = Self {
            lag_cells: gauges(
                r,
                "trigger_lag_cells",
                "Cells up to the tips that the trigger has not finished.",
                &["trigger"],
            ),
            lag_seconds: gauges(
                r,
                "trigger_lag_seconds",
                "Age of the oldest cell that the trigger has not finished; 0 when there is none.",
                &["trigger"],
            ),
            parked: gauges(r, "parked_cells", "Cells out of the window with failed attempts.", &["trigger", "state"]),
            shards_held: gauge(r, "shards_held", "Shards that this worker works on."),
            attempts: counters(r, "attempts_total", "Calls of a handler that ended, by cell.", &["trigger", "verdict"]),
            dropped: counters(
                r,
                "dropped_cells_total",
                "Cells given up for good by exhausted = \"drop\".",
                &["trigger"],
            ),
            claimed: counters(r, "shards_claimed_total", "Leases that this worker took, by how.", &["reason"]),
            session_lost: counter(r, "sessions_lost_total", "Times that others declared this worker dead."),
            declared_dead: counter(r, "sessions_declared_dead_total", "Workers that this one declared dead."),
            tasks_aborted: counter(
                r,
                "shard_tasks_aborted_total",
                "Shards let go of because their task did not turn its loop any more.",
            ),
            children_ended: counters(
                r,
                "children_ended_total",
                "Children of a handler that ended by themselves or were killed, or never came up; another is started.",
                &["trigger", "reason"],
            ),
            protocol_faults: counters(
                r,
                "protocol_faults_total",
                "Lines of a handler that are no answer to what it was asked.",
                &["trigger"],
            ),
            trimmed: counters(
                r,
                "trimmed_cells_total",
                "Cells that a trim deleted before the trigger saw them.",
                &["trigger"],
            ),
            holes: counters(
                r,
                "holes_total",
                "Times that cells were missing from a log though no trim deleted them.",
                &["source"],
            ),
            replacing: RwLock::new(()),
            registry: registry.clone(),
        };
        gauge_with(r, "build_info", "Always 1, with the version.", "version", env!("CARGO_PKG_VERSION")).set(1.0);
        families
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("cellhook_{name}"), help)
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
    let collector = made.expect("names and labels of metrics are fixed and valid");
    registry.register(Box::new(collector.clone())).expect("each metric is registered once");
    collector
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    register(registry, GenericGauge::with_opts(opts(name, help)))
}

fn gauge_with(registry: &Registry, name: &str, help: &str, label: &str, value: &str) -> Gauge {
    register(registry, GenericGauge::with_opts(opts(name, help).const_label(label, value)))
}

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
    register(registry, GaugeVec::new(opts(name, help), labels))
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    register(registry, GenericCounter::with_opts(opts(name, help)))
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    register(registry, IntCounterVec::new(opts(name, help), labels))
}

/// The page.
#[must_use]
pub fn gather() -> String {
    let families = {
        let _whole = FAMILIES.replacing.read().unwrap_or_else(PoisonError::into_inner);
        FAMILIES.registry.gather()
    };
    TextEncoder::new().encode_to_string(&families).unwrap_or_else(|error| format!("# {error}\n"))
}

/// Lag of a trigger over all shards that this worker holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Lag<'a> {
    /// The trigger's name.
    pub trigger: &'a str,
    /// Cells up to the tips that are not finished.
    pub cells: f64,
    /// Age of the oldest unfinished cell.
    pub seconds: f64,
}

/// Replaces the lags of all triggers: one that is left out vanishes.
pub fn set_trigger_lag<'a>(lags: impl IntoIterator<Item = Lag<'a>>) {
    let _whole = FAMILIES.replacing.write().unwrap_or_else(PoisonError::into_inner);
    FAMILIES.lag_cells.reset();
    FAMILIES.lag_seconds.reset();
    for Lag { trigger, cells, seconds } in lags {
        FAMILIES.lag_cells.with_label_values(&[trigger]).set(cells);
        FAMILIES.lag_seconds.with_label_values(&[trigger]).set(seconds);
    }
}

/// Parked cells of a trigger over all shards that this worker holds.
#[derive(Clone, Debug, PartialEq)]
pub struct ParkedCells<'a> {
    /// The trigger's name.
    pub trigger: &'a str,
    /// `retrying`, `waiting` or `dead`.
    pub state: &'static str,
    /// How many.
    pub cells: f64,
}

/// Replaces the numbers of parked cells of all triggers: one that is left out vanishes.
pub fn set_parked_cells<'a>(parked: impl IntoIterator<Item = ParkedCells<'a>>) {
    let _whole = FAMILIES.replacing.write().unwrap_or_else(PoisonError::into_inner);
    FAMILIES.parked.reset();
    for ParkedCells { trigger, state, cells } in parked {
        FAMILIES.parked.with_label_values(&[trigger, state]).set(cells);
    }
}

/// This worker works on so many shards.
pub fn shards_held(shards: usize) {
    FAMILIES.shards_held.set(i64::try_from(shards).unwrap_or(i64::MAX));
}

/// Counters of one trigger's attempts, fetched once; counting is then one atomic addition.
#[derive(Clone, Debug)]
pub struct Attempts([IntCounter; VERDICTS.len()]);

impl Attempts {
    /// Those of a trigger.
    #[must_use]
    pub fn of(trigger: &str) -> Self {
        Self(VERDICTS.map(|verdict| FAMILIES.attempts.with_label_values(&[trigger, verdict])))
    }

    /// A call ended for one cell, with the label of its verdict. An unknown label is not counted.
    pub fn ended(&self, verdict: &'static str) {
        if let Some(at) = VERDICTS.iter().position(|label| *label == verdict) {
            self.0[at].inc();
        }
    }
}

/// A call ended for one cell, with the label of its verdict. Where that is often, see [`Attempts`].
pub fn attempt(trigger: &str, verdict: &'static str) {
    FAMILIES.attempts.with_label_values(&[trigger, verdict]).inc();
}

/// A cell was given up for good by the trigger's policy.
pub fn dropped(trigger: &str) {
    FAMILIES.dropped.with_label_values(&[trigger]).inc();
}

/// A lease was taken: new, after a hand-over, from a dead owner.
pub fn shard_claimed(reason: &'static str) {
    FAMILIES.claimed.with_label_values(&[reason]).inc();
}

/// This worker's session was declared dead.
pub fn session_lost() {
    FAMILIES.session_lost.inc();
}

/// This worker declared another's session dead.
pub fn session_declared_dead() {
    FAMILIES.declared_dead.inc();
}

/// A shard task did not turn its loop any more, and was aborted.
pub fn shard_task_aborted() {
    FAMILIES.tasks_aborted.inc();
}

/// A handler's child is gone though nobody stopped it: it `ended`, or was `not_started`.
pub fn child_ended(trigger: &str, reason: &'static str) {
    FAMILIES.children_ended.with_label_values(&[trigger, reason]).inc();
}

/// A handler wrote something that is no answer to what it was asked.
pub fn protocol_fault(trigger: &str) {
    FAMILIES.protocol_faults.with_label_values(&[trigger]).inc();
}

/// A trim had deleted so many cells before the trigger saw them.
pub fn trim_met(trigger: &str, cells: u64) {
    FAMILIES.trimmed.with_label_values(&[trigger]).inc_by(cells);
}

/// Cells are missing from a shard's log, and no trim deleted them.
pub fn hole_met(source: &str) {
    FAMILIES.holes.with_label_values(&[source]).inc();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_set_forgets_what_was_left_out() {
        let lag = |trigger, cells, seconds| Lag { trigger, cells, seconds };
        set_trigger_lag([lag("bill_rider", 3.0, 0.5), lag("gone", 1.0, 1.0)]);
        set_parked_cells([ParkedCells { trigger: "bill_rider", state: "dead", cells: 2.0 }]);
        set_trigger_lag([lag("bill_rider", 0.0, 0.0)]);
        let page = gather();
        assert!(page.contains("cellhook_trigger_lag_cells{trigger=\"bill_rider\"} 0\n"), "{page}");
        assert!(page.contains("cellhook_trigger_lag_seconds{trigger=\"bill_rider\"} 0\n"), "{page}");
        assert!(page.contains("cellhook_parked_cells{state=\"dead\",trigger=\"bill_rider\"} 2\n"), "{page}");
        assert!(!page.contains("gone"), "{page}");
    }

    #[test]
    fn attempts_are_counted_by_verdict() {
        let attempts = Attempts::of("counted");
        attempts.ended("done");
        attempt("counted", "done");
        attempts.ended("failed");
        attempts.ended("no such verdict");
        let page = gather();
        assert!(page.contains("cellhook_attempts_total{trigger=\"counted\",verdict=\"done\"} 2\n"), "{page}");
        assert!(page.contains("cellhook_attempts_total{trigger=\"counted\",verdict=\"failed\"} 1\n"), "{page}");
    }
}
