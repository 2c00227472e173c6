//! Metrics: one function per observation, so that no other room names the metrics crate. What a metric tells is its help
//! text, here and on the page; what to do about it stands in `docs/operations.md`.

mod counted;
mod families;
mod sampled;

pub use counted::{
    Calls, Started, Units, child_ended, consumed, dropped, dynamodb_consumed, dynamodb_request, dynamodb_throttled,
    erased_passed, hole_met, protocol_fault, quarantined, retention_trimmed, session_declared_dead, session_lost,
    shard_claimed, shard_task_aborted, shards_guarded, shards_held, tailed, trim_met, unmetered_requests,
};
use families::Families;
pub use families::Family;
use prometheus::TextEncoder;
pub use sampled::{AtWork, BREAKER, Sample, ShardNow, TriggerNow, WorkerNow, show};
use std::sync::LazyLock;

/// Content type of the page.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

static FAMILIES: LazyLock<Families> = LazyLock::new(Families::new);

/// The page.
#[must_use]
pub fn gather() -> String {
    let families = FAMILIES.registry.gather();
    TextEncoder::new().encode_to_string(&families).unwrap_or_else(|error| format!("# {error}\n"))
}

/// All metrics that there are.
#[must_use]
pub fn families() -> &'static [Family] {
    &FAMILIES.all
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::BTreeMap, time::Duration};

    #[test]
    fn a_sample_is_shown_as_a_whole_and_forgets_what_was_left_out() {
        let trigger = |name: &str, lag_cells| TriggerNow { name: name.into(), lag_cells, ..TriggerNow::default() };
        let shown = |triggers| show(Sample { triggers, ..Sample::default() });
        shown(vec![trigger("bill_rider", 3.0), trigger("gone", 1.0)]);
        let parked = [(1.0, 0.5), (2.0, 0.0), (3.0, 9.0)];
        let at_work = AtWork { parked, breaker: Some("open"), ..AtWork::default() };
        shown(vec![TriggerNow { at_work: Some(at_work), paused: true, ..trigger("bill_rider", 0.0) }]);
        let page = gather();
        for line in [
            "cellhook_trigger_lag_cells{trigger=\"bill_rider\"} 0",
            "cellhook_parked_cells{state=\"dead\",trigger=\"bill_rider\"} 3",
            "cellhook_parked_oldest_age_seconds{state=\"retrying\",trigger=\"bill_rider\"} 0.5",
            "cellhook_breaker_state{state=\"open\",trigger=\"bill_rider\"} 1",
            "cellhook_breaker_state{state=\"closed\",trigger=\"bill_rider\"} 0",
            "cellhook_trigger_paused{trigger=\"bill_rider\"} 1",
        ] {
            assert!(page.contains(&format!("{line}\n")), "{line} is missing in {page}");
        }
        assert!(!page.contains("gone") && !page.contains("cellhook_shard_lag"), "{page}");
    }

    #[test]
    fn calls_are_counted_by_verdict_and_while_they_last() {
        let calls = Calls::of("counted");
        let line = |line: &str| assert!(gather().contains(&format!("{line}\n")), "{line} is missing in {}", gather());
        line("cellhook_dropped_cells_total{trigger=\"counted\"} 0");
        calls.ended("done");
        Calls::of("counted").ended("done");
        calls.ended("failed");
        calls.ended("no such verdict");
        calls.took(Duration::from_millis(3));
        let started = calls.started();
        line("cellhook_attempts_total{trigger=\"counted\",verdict=\"done\"} 2");
        line("cellhook_attempts_total{trigger=\"counted\",verdict=\"failed\"} 1");
        line("cellhook_handler_duration_seconds_bucket{trigger=\"counted\",le=\"0.005\"} 1");
        line("cellhook_handler_duration_seconds_bucket{trigger=\"counted\",le=\"0.0025\"} 0");
        line("cellhook_calls_in_flight{trigger=\"counted\"} 1");
        drop(started);
        line("cellhook_calls_in_flight{trigger=\"counted\"} 0");
    }

    #[test]
    fn consumed_units_are_added_by_table_and_operation() {
        let units = |read, write| Units { read, write };
        dynamodb_consumed("x.cells", "GetItem", units(0.5, 0.0));
        dynamodb_consumed("x.cells", "GetItem", units(2.0, 0.0));
        dynamodb_consumed("x.tips", "TransactWriteItems", units(0.0, 8.0));
        let all = consumed();
        let of = |table: &str, operation: &str| all[&(table.to_owned(), operation.to_owned())];
        assert_eq!(of("x.cells", "GetItem"), units(2.5, 0.0));
        assert_eq!(of("x.tips", "TransactWriteItems"), units(0.0, 8.0));
    }

    /// Holds the table of `docs/operations.md` to the code, both ways.
    #[test]
    fn every_metric_is_documented_with_its_labels() {
        let page = include_str!("../../docs/operations.md");
        let rows = page.lines().filter(|line| line.starts_with("| `cellhook_"));
        let documented: BTreeMap<String, String> = rows
            .map(|row| {
                let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
                assert_eq!(cells.len(), 4, "metric, labels, what it says, what to do: {row}");
                assert!(cells[2..].iter().all(|cell| !cell.is_empty()), "{row}");
                (cells[0].trim_matches('`').to_owned(), cells[1].replace('`', ""))
            })
            .collect();
        let there: BTreeMap<String, String> =
            families().iter().map(|family| (families::full(family.name), family.labels.join(", "))).collect();
        assert_eq!(documented, there);
    }
}
