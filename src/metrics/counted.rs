//! What is counted when it happens.

use super::{FAMILIES, families::Times};
use prometheus::{IntCounter, IntGauge, core::Collector};
use std::{collections::BTreeMap, time::Duration};

/// Verdicts of an attempt, as labels.
const VERDICTS: [&str; 7] = ["done", "failed", "snooze", "drop", "dead_letter", "pause", "interrupted"];
/// Reasons for the end of a child, as labels.
const CHILD_ENDS: [&str; 2] = ["ended", "not_started"];

/// Counters of one trigger's calls, fetched once; counting is then one atomic addition.
#[derive(Clone, Debug)]
pub struct Calls {
    attempts: [IntCounter; VERDICTS.len()],
    times: Times,
    in_flight: IntGauge,
}

/// A call that was started, until it is dropped.
#[derive(Debug)]
pub struct Started(IntGauge);

impl Drop for Started {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Calls {
    /// Those of a trigger. From now on the page shows all that is counted of it, with zeros.
    #[must_use]
    pub fn of(trigger: &str) -> Self {
        let one = &[trigger];
        for family in
            [&FAMILIES.dropped, &FAMILIES.protocol_faults, &FAMILIES.trimmed, &FAMILIES.erased, &FAMILIES.quarantined]
        {
            let _ = family.with_label_values(one);
        }
        for reason in CHILD_ENDS {
            let _ = FAMILIES.children_ended.with_label_values(&[trigger, reason]);
        }
        Self {
            attempts: VERDICTS.map(|verdict| FAMILIES.attempts.with_label_values(&[trigger, verdict])),
            times: FAMILIES.handler_seconds.with_label_values(one),
            in_flight: FAMILIES.in_flight.with_label_values(one),
        }
    }

    /// A call begins.
    #[must_use]
    pub fn started(&self) -> Started {
        self.in_flight.inc();
        Started(self.in_flight.clone())
    }

    /// A call took so long.
    pub fn took(&self, time: Duration) {
        self.times.observe(time.as_secs_f64());
    }

    /// A call ended for one cell, with the label of its verdict. An unknown label is not counted.
    pub fn ended(&self, verdict: &'static str) {
        if let Some(at) = VERDICTS.iter().position(|label| *label == verdict) {
            self.attempts[at].inc();
        }
    }
}

/// This worker works on so many shards.
pub fn shards_held(shards: usize) {
    FAMILIES.shards_held.set(i64::try_from(shards).unwrap_or(i64::MAX));
}

/// So many of them call one cell at a time.
pub fn shards_guarded(shards: usize) {
    FAMILIES.shards_guarded.set(i64::try_from(shards).unwrap_or(i64::MAX));
}

/// A cell that kills workers was put aside.
pub fn quarantined(trigger: &str) {
    FAMILIES.quarantined.with_label_values(&[trigger]).inc();
}

/// A shard task did not turn its loop any more, and was aborted.
pub fn shard_task_aborted() {
    FAMILIES.tasks_aborted.inc();
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

/// A trigger passed a cell that was erased.
pub fn erased_passed(trigger: &str) {
    FAMILIES.erased.with_label_values(&[trigger]).inc();
}

/// So many cells of a datastore went out of the log, since they were older than its retention.
pub fn retention_trimmed(datastore: &str, cells: u64) {
    FAMILIES.retention_trimmed.with_label_values(&[datastore]).inc_by(cells);
}

/// A datastore is tailed: what is counted of it is shown, with zeros.
pub fn tailed(source: &str) {
    let _ = FAMILIES.holes.with_label_values(&[source]);
    let _ = FAMILIES.retention_trimmed.with_label_values(&[source]);
}

/// A request ended: `ok`, `refused` (its condition did not hold), `conflict`, `throttled`, `unanswered` or `failed`.
pub fn dynamodb_request(table: &str, operation: &str, outcome: &'static str, time: Duration) {
    FAMILIES.requests.with_label_values(&[table, operation, outcome]).inc();
    FAMILIES.request_seconds.with_label_values(&[operation]).observe(time.as_secs_f64());
    // There from the first request on, so that its rate is not missing before the first throttle.
    let _ = FAMILIES.throttles.with_label_values(&[table, operation]);
}

/// A request was throttled, whole or in part.
pub fn dynamodb_throttled(table: &str, operation: &str) {
    FAMILIES.throttles.with_label_values(&[table, operation]).inc();
}

/// An answer reported consumed units.
pub fn dynamodb_consumed(table: &str, operation: &str, units: Units) {
    let labels = &[table, operation];
    if units.read > 0.0 {
        FAMILIES.read_units.with_label_values(labels).inc_by(units.read);
    }
    if units.write > 0.0 {
        FAMILIES.write_units.with_label_values(labels).inc_by(units.write);
    }
}

/// DynamoDB's units of work.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Units {
    /// Of 4 KB, half of them when the read need not be consistent, twice when it is a transaction.
    pub read: f64,
    /// Of 1 KB, twice in a transaction.
    pub write: f64,
}

/// Requests of this process so far that ended otherwise than with `ok`: what they consumed was not told.
#[must_use]
pub fn unmetered_requests() -> u64 {
    let families = FAMILIES.requests.collect();
    let metrics = families.iter().flat_map(|family| family.get_metric());
    let is_ok = |label: &prometheus::proto::LabelPair| label.name() == "outcome" && label.value() == "ok";
    let others = metrics.filter(|metric| !metric.get_label().iter().any(is_ok));
    others.map(|metric| metric.get_counter().get_value()).sum::<f64>().round() as u64
}

/// What the answers of this process have reported so far, by table and operation.
#[must_use]
pub fn consumed() -> BTreeMap<(String, String), Units> {
    let mut consumed: BTreeMap<(String, String), Units> = BTreeMap::new();
    for (family, is_read) in [(&FAMILIES.read_units, true), (&FAMILIES.write_units, false)] {
        for metric in family.collect().iter().flat_map(|family| family.get_metric()) {
            let label = |name: &str| {
                let mut labels = metric.get_label().iter();
                labels.find(|label| label.name() == name).map_or_else(String::new, |label| label.value().to_owned())
            };
            let units = consumed.entry((label("table"), label("operation"))).or_default();
            let value = metric.get_counter().get_value();
            if is_read { units.read = value } else { units.write = value }
        }
    }
    consumed
}
