//! The metrics that are counted as things happen, with their help texts and labels.

use super::sampled::Sampled;
use prometheus::{
    CounterVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, core::Collector,
};

/// Upper bounds of the times of handlers: from a closure in this process to the longest call that makes sense.
const HANDLER_SECONDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 60.0, 300.0, 900.0];
/// Upper bounds of the times of requests, which end after 5 s in any case.
const REQUEST_SECONDS: [f64; 11] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.0, 5.0];

/// A metric, as it is made known on the page and held against the documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// Without the prefix `cellhook_`.
    pub name: &'static str,
    /// What it says.
    pub help: &'static str,
    /// Its labels.
    pub labels: &'static [&'static str],
}

pub(super) struct Families {
    pub(super) registry: Registry,
    pub(super) sampled: Sampled,
    pub(super) shards_held: IntGauge,
    pub(super) shards_guarded: IntGauge,
    pub(super) quarantined: IntCounterVec,
    pub(super) attempts: IntCounterVec,
    pub(super) handler_seconds: HistogramVec,
    pub(super) in_flight: IntGaugeVec,
    pub(super) dropped: IntCounterVec,
    pub(super) claimed: IntCounterVec,
    pub(super) session_lost: IntCounter,
    pub(super) declared_dead: IntCounter,
    pub(super) tasks_aborted: IntCounter,
    pub(super) children_ended: IntCounterVec,
    pub(super) protocol_faults: IntCounterVec,
    pub(super) trimmed: IntCounterVec,
    pub(super) holes: IntCounterVec,
    pub(super) erased: IntCounterVec,
    pub(super) retention_trimmed: IntCounterVec,
    pub(super) requests: IntCounterVec,
    pub(super) request_seconds: HistogramVec,
    pub(super) throttles: IntCounterVec,
    pub(super) read_units: CounterVec,
    pub(super) write_units: CounterVec,
    pub(super) all: Vec<Family>,
}

impl Families {
    pub(super) fn new() -> Self {
        let sampled = Sampled::default();
        let mut make = Maker { registry: Registry::new(), all: super::sampled::families().collect() };
        make.registry.register(Box::new(sampled.clone())).expect("the sampled metrics are registered once");
        let families = Self {
            shards_held: make.gauge("shards_held", "Shards that this worker works on."),
            shards_guarded: make.gauge(
                "shards_guarded",
                "Shards of this worker whose cells are called one at a time because their owners died.",
            ),
            quarantined: make.counters(
                "quarantined_cells_total",
                "Cells that were the only one in flight when a worker died, and were put aside.",
                &["trigger"],
            ),
            attempts: make.counters(
                "attempts_total",
                "Calls of a handler that ended, by cell: a batch of ten counts ten times.",
                &["trigger", "verdict"],
            ),
            handler_seconds: make.histograms(
                "handler_duration_seconds",
                "Time of a call of a handler, a batch being one call, with the wait for a free child.",
                &["trigger"],
                &HANDLER_SECONDS,
            ),
            in_flight: make.gauges("calls_in_flight", "Calls of a handler that were started and not answered.", &["trigger"]),
            dropped: make.counters("dropped_cells_total", "Cells given up for good by exhausted = \"drop\".", &["trigger"]),
            claimed: make.counters("shards_claimed_total", "Leases that this worker took, by how.", &["reason"]),
            session_lost: make.counter("sessions_lost_total", "Times that others declared this worker dead."),
            declared_dead: make.counter("sessions_declared_dead_total", "Workers that this one declared dead."),
            tasks_aborted: make.counter(
                "shard_tasks_aborted_total",
                "Shards let go of because their task did not turn its loop any more.",
            ),
            children_ended: make.counters(
                "children_ended_total",
                "Children of a handler that ended by themselves or were killed, or never came up; another is started.",
                &["trigger", "reason"],
            ),
            protocol_faults: make.counters(
                "protocol_faults_total",
                "Lines of a handler that are no answer to what it was asked.",
                &["trigger"],
            ),
            trimmed: make.counters(
                "trimmed_cells_total",
                "Cells that a trim deleted before the trigger saw them.",
                &["trigger"],
            ),
            holes: make.counters(
                "holes_total",
                "Times that cells were missing from a log though no trim deleted them.",
                &["source"],
            ),
            erased: make.counters(
                "erased_cells_total",
                "Cells that the trigger passed without a call because they were erased.",
                &["trigger"],
            ),
            retention_trimmed: make.counters(
                "retention_trimmed_cells_total",
                "Cells whose place in the log this worker deleted because they were older than the datastore's retention.",
                &["datastore"],
            ),
            requests: make.counters(
                "dynamodb_requests_total",
                "Requests to DynamoDB or the embedded store, by how they ended. A transaction counts under the table of its \
                 first action; an operation that is about no table has none.",
                &["table", "operation", "outcome"],
            ),
            request_seconds: make.histograms(
                "dynamodb_request_duration_seconds",
                "Time of a request to DynamoDB or the embedded store.",
                &["operation"],
                &REQUEST_SECONDS,
            ),
            throttles: make.counters(
                "dynamodb_throttles_total",
                "Requests that were throttled, whole or in part: an action of a transaction, keys of a batch left unread.",
                &["table", "operation"],
            ),
            read_units: make.units(
                "dynamodb_consumed_read_units_total",
                "Read units that answers reported. The embedded store reports what DynamoDB's rules would charge. What a \
                 request without an answer took is not known.",
            ),
            write_units: make.units(
                "dynamodb_consumed_write_units_total",
                "Write units that answers reported. The embedded store reports what DynamoDB's rules would charge. What a \
                 refused condition or a request without an answer took is not known.",
            ),
            sampled,
            registry: make.registry.clone(),
            all: Vec::new(),
        };
        let info = make.gauges("build_info", "Always 1, with the version.", &["version"]);
        info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Self { all: make.all, ..families }
    }
}

/// Makes and registers metrics.
struct Maker {
    registry: Registry,
    all: Vec<Family>,
}

impl Maker {
    fn opts(&mut self, name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Opts {
        self.all.push(Family { name, help, labels });
        Opts::new(full(name), help)
    }

    fn register<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let collector = made.expect("names and labels of metrics are fixed and valid");
        self.registry.register(Box::new(collector.clone())).expect("each metric is registered once");
        collector
    }

    fn gauge(&mut self, name: &'static str, help: &'static str) -> IntGauge {
        let opts = self.opts(name, help, &[]);
        self.register(IntGauge::with_opts(opts))
    }

    fn gauges(&mut self, name: &'static str, help: &'static str, labels: &'static [&'static str]) -> IntGaugeVec {
        let opts = self.opts(name, help, labels);
        self.register(IntGaugeVec::new(opts, labels))
    }

    fn counter(&mut self, name: &'static str, help: &'static str) -> IntCounter {
        let opts = self.opts(name, help, &[]);
        self.register(IntCounter::with_opts(opts))
    }

    fn counters(&mut self, name: &'static str, help: &'static str, labels: &'static [&'static str]) -> IntCounterVec {
        let opts = self.opts(name, help, labels);
        self.register(IntCounterVec::new(opts, labels))
    }

    fn units(&mut self, name: &'static str, help: &'static str) -> CounterVec {
        let labels = &["table", "operation"];
        let opts = self.opts(name, help, labels);
        self.register(CounterVec::new(opts, labels))
    }

    fn histograms(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
        bounds: &[f64],
    ) -> HistogramVec {
        let opts = HistogramOpts { common_opts: self.opts(name, help, labels), buckets: bounds.to_vec() };
        self.register(HistogramVec::new(opts, labels))
    }
}

/// The name on the page.
pub(super) fn full(name: &str) -> String {
    format!("cellhook_{name}")
}

/// A histogram of one trigger.
pub(super) type Times = Histogram;
