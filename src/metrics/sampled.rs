//! The metrics that are looked at once a second and shown as a whole: one that is left out vanishes.
//!
//! A sample is plain numbers; it becomes metrics only when somebody asks for the page. So looking is cheap however many
//! shards there are.

use super::{
    FAMILIES,
    families::{Family, full},
};
use prometheus::{
    core::{Collector, Desc},
    proto::{Gauge, LabelPair, Metric, MetricFamily, MetricType},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

/// States of parked cells, as labels and in the order of [`AtWork::parked`].
const PARKED: [&str; 3] = ["retrying", "waiting", "dead"];
/// States of a breaker, as labels.
pub const BREAKER: [&str; 3] = ["closed", "open", "half_open"];

/// What a worker looks like at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Of the whole worker.
    pub worker: WorkerNow,
    /// Triggers of the config, and registered ones that it lacks.
    pub triggers: Vec<TriggerNow>,
    /// With `metrics.per_shard` only.
    pub shards: Vec<ShardNow>,
}

/// The worker as a whole.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WorkerNow {
    /// Shards that the assignment gives to this worker.
    pub shards_wanted: f64,
    /// Of those, the ones that nobody holds.
    pub shards_unowned: f64,
    /// For how long nobody has held the one that has waited longest.
    pub unowned_seconds_max: f64,
    /// Shards that stand still until a person was there.
    pub shards_stopped: f64,
    /// Live sessions of the group.
    pub sessions: f64,
    /// Until the fence closes, if no further heartbeat is accepted.
    pub margin: f64,
    /// The lowest of late.
    pub margin_min: f64,
    /// What a heartbeat that is accepted at once brings it to.
    pub margin_limit: f64,
    /// Memory of what is being read, and of the windows: used, and its limit.
    pub memory: [(f64, f64); 2],
}

/// A trigger over all shards that this worker speaks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TriggerNow {
    /// Its name.
    pub name: String,
    /// Cells up to the tips that are not finished.
    pub lag_cells: f64,
    /// Age of the oldest of them.
    pub lag_seconds: f64,
    /// The whole trigger is paused.
    pub paused: bool,
    /// Registered, and not in the config.
    pub missing: bool,
    /// `None` when this worker does not work for it.
    pub at_work: Option<AtWork>,
}

/// What only a worker that works for a trigger knows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AtWork {
    /// Parked cells and the age of the oldest: retrying, waiting, dead.
    pub parked: [(f64, f64); 3],
    /// Fullest window of a shard, 0 to 1.
    pub window_fill: f64,
    /// Oldest finished cell that no stored checkpoint covers.
    pub checkpoint_age: f64,
    /// Shards on which it alone is paused.
    pub shards_paused: f64,
    /// One of [`BREAKER`]; `None` when it has no breaker.
    pub breaker: Option<&'static str>,
}

/// A trigger on one shard.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ShardNow {
    /// The datastore.
    pub datastore: String,
    /// The shard's number.
    pub shard: u32,
    /// The trigger's name.
    pub trigger: String,
    /// Cells up to the tip that are not finished.
    pub lag_cells: f64,
    /// Age of the oldest of them.
    pub lag_seconds: f64,
    /// Parked cells: retrying, waiting, dead. `None` on a shard that nobody holds.
    pub parked: Option<[f64; 3]>,
}

/// Replaces what is shown.
pub fn show(sample: Sample) {
    *FAMILIES.sampled.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(sample);
}

/// Takes the values of the labels, in their order, and the number.
type Row<'a> = &'a mut dyn FnMut(&[&str], f64);

/// One gauge: its name, labels and help, and its rows in a sample.
type Shown = (&'static str, &'static [&'static str], &'static str, fn(&Sample, Row<'_>));

const T: &[&str] = &["trigger"];
const TS: &[&str] = &["trigger", "state"];

const SHOWN: &[Shown] = &[
    (
        "trigger_lag_cells",
        T,
        "Cells up to the tips that the trigger has not finished, over the shards that this worker holds and those \
         without an owner that the assignment gives it.",
        |s, row| s.triggers.iter().for_each(|t| row(&[&t.name], t.lag_cells)),
    ),
    (
        "trigger_lag_seconds",
        T,
        "Age of the oldest cell that the trigger has not finished, over the same shards; 0 when there is none.",
        |s, row| s.triggers.iter().for_each(|t| row(&[&t.name], t.lag_seconds)),
    ),
    ("trigger_paused", T, "1 while the whole trigger is paused.", |s, row| {
        s.triggers.iter().for_each(|t| row(&[&t.name], f64::from(u8::from(t.paused))))
    }),
    ("trigger_missing", T, "1 while the trigger is registered and this worker's config lacks it.", |s, row| {
        s.triggers.iter().for_each(|t| row(&[&t.name], f64::from(u8::from(t.missing))))
    }),
    (
        "shards_paused",
        T,
        "Shards of this worker on which the trigger alone is paused: by itself, for too many dead cells, or by somebody.",
        |s, row| s.at_work().for_each(|(t, w)| row(&[t], w.shards_paused)),
    ),
    (
        "parked_cells",
        TS,
        "Parked cells of the shards that this worker holds. Dead ones are counted up to 2000 a shard.",
        |s, row| s.parked(|t, state, (cells, _)| row(&[t, state], cells)),
    ),
    (
        "parked_oldest_age_seconds",
        TS,
        "Time since the oldest parked cell was first attempted, or parked if it never was; 0 when there is none.",
        |s, row| s.parked(|t, state, (_, age)| row(&[t, state], age)),
    ),
    (
        "window_fill_ratio",
        T,
        "How full the fullest window of a shard is, in cells or bytes: at 1 nothing more is read for the trigger there.",
        |s, row| s.at_work().for_each(|(t, w)| row(&[t], w.window_fill)),
    ),
    (
        "checkpoint_age_seconds",
        T,
        "Age of the oldest change, over the shards, that no stored checkpoint covers yet; 0 when there is none.",
        |s, row| s.at_work().for_each(|(t, w)| row(&[t], w.checkpoint_age)),
    ),
    ("breaker_state", TS, "1 for the state in which the trigger's circuit breaker is, 0 for the others.", |s, row| {
        for (t, state) in s.at_work().filter_map(|(t, w)| Some((t, w.breaker?))) {
            BREAKER.iter().for_each(|other| row(&[t, other], f64::from(u8::from(*other == state))));
        }
    }),
    ("shards_wanted", &[], "Shards that the assignment gives to this worker.", |s, row| {
        row(&[], s.worker.shards_wanted)
    }),
    ("shards_unowned", &[], "Shards without an owner, of those that the assignment gives to this worker.", |s, row| {
        row(&[], s.worker.shards_unowned)
    }),
    (
        "unowned_seconds_max",
        &[],
        "For how long this worker has seen the one of them that waits longest without an owner.",
        |s, row| row(&[], s.worker.unowned_seconds_max),
    ),
    (
        "shards_stopped",
        &[],
        "Shards of this worker that stand still although they should not; /readyz tells why.",
        |s, row| row(&[], s.worker.shards_stopped),
    ),
    ("sessions_live", &[], "Live sessions of the group, as this worker last read them.", |s, row| {
        row(&[], s.worker.sessions)
    }),
    (
        "heartbeat_margin_seconds",
        &[],
        "Time until this worker stops by itself if no further heartbeat is accepted.",
        |s, row| row(&[], s.worker.margin),
    ),
    ("heartbeat_margin_min_seconds", &[], "The lowest that it was in the last one to two minutes.", |s, row| {
        row(&[], s.worker.margin_min)
    }),
    (
        "heartbeat_margin_limit_seconds",
        &[],
        "What it is after a heartbeat that is accepted at once: session less heartbeat.",
        |s, row| row(&[], s.worker.margin_limit),
    ),
    (
        "memory_used_bytes",
        &["part"],
        "Memory of cells that is in use: for what is being read, and for the windows.",
        |s, row| s.memory(|part, (used, _)| row(&[part], used)),
    ),
    ("memory_limit_bytes", &["part"], "The part of [worker] memory that each may use.", |s, row| {
        s.memory(|part, (_, limit)| row(&[part], limit))
    }),
    (
        "shard_lag_cells",
        &["datastore", "shard", "trigger"],
        "As cellhook_trigger_lag_cells, by shard. With metrics.per_shard only.",
        |s, row| s.shards.iter().for_each(|n| row(&[&n.datastore, &n.shard.to_string(), &n.trigger], n.lag_cells)),
    ),
    (
        "shard_lag_seconds",
        &["datastore", "shard", "trigger"],
        "As cellhook_trigger_lag_seconds, by shard. With metrics.per_shard only.",
        |s, row| s.shards.iter().for_each(|n| row(&[&n.datastore, &n.shard.to_string(), &n.trigger], n.lag_seconds)),
    ),
    (
        "shard_parked_cells",
        &["datastore", "shard", "trigger", "state"],
        "As cellhook_parked_cells, by shard. With metrics.per_shard only.",
        |s, row| {
            for (n, parked) in s.shards.iter().filter_map(|n| Some((n, n.parked?))) {
                for (state, cells) in PARKED.iter().zip(parked) {
                    row(&[&n.datastore, &n.shard.to_string(), &n.trigger, state], cells);
                }
            }
        },
    ),
];

impl Sample {
    fn at_work(&self) -> impl Iterator<Item = (&str, &AtWork)> {
        self.triggers.iter().filter_map(|t| Some((&*t.name, t.at_work.as_ref()?)))
    }

    fn parked(&self, mut row: impl FnMut(&str, &str, (f64, f64))) {
        for (trigger, at_work) in self.at_work() {
            PARKED.iter().zip(at_work.parked).for_each(|(state, parked)| row(trigger, state, parked));
        }
    }

    fn memory(&self, mut row: impl FnMut(&str, (f64, f64))) {
        ["reads", "windows"].iter().zip(self.worker.memory).for_each(|(part, memory)| row(part, memory));
    }
}

/// All of them.
pub(super) fn families() -> impl Iterator<Item = Family> {
    SHOWN.iter().map(|(name, labels, help, _)| Family { name, help, labels })
}

/// The sample that is shown.
#[derive(Clone, Default)]
pub(super) struct Sampled(Arc<Mutex<Arc<Sample>>>);

static DESCS: std::sync::LazyLock<Vec<Desc>> = std::sync::LazyLock::new(|| {
    let desc = |(name, labels, help, _): &Shown| {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        Desc::new(full(name), (*help).to_owned(), labels, HashMap::new())
    };
    SHOWN.iter().map(|shown| desc(shown).expect("names and labels of metrics are fixed and valid")).collect()
});

impl Collector for Sampled {
    fn desc(&self) -> Vec<&Desc> {
        DESCS.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let sample = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let family = |(name, labels, help, rows): &Shown| {
            let mut metrics = Vec::new();
            rows(&sample, &mut |values, number| metrics.push(metric(labels, values, number)));
            let mut family = MetricFamily::default();
            family.set_name(full(name));
            family.set_help((*help).to_owned());
            family.set_field_type(MetricType::GAUGE);
            family.set_metric(metrics);
            family
        };
        SHOWN.iter().map(family).collect()
    }
}

fn metric(labels: &[&str], values: &[&str], number: f64) -> Metric {
    let pair = |(label, value): (&&str, &&str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*label).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    let mut pairs: Vec<LabelPair> = labels.iter().zip(values).map(pair).collect();
    // As the others have them.
    pairs.sort_by(|a, b| a.name().cmp(b.name()));
    let mut gauge = Gauge::default();
    gauge.set_value(number);
    let mut metric = Metric::from_gauge(gauge);
    metric.set_label(pairs);
    metric
}
