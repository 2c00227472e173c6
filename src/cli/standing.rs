//! How far a trigger is on a shard, as the tables have it.

use crate::{
    cell::{
        AddedId, Checkpoint, Consistency, Lease, Log, Millis, ShardId, StoreError, TriggerRecord, TriggerState, clock,
    },
    checkpoint::lag,
};
use serde::Serialize;

/// How far a trigger is on a shard. What cannot be known, because it was not started there, is null.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Standing {
    pub(super) low_water: Option<u64>,
    pub(super) lag_cells: Option<u64>,
    pub(super) lag_seconds: Option<f64>,
}

/// Reads the log only of a trigger that is behind, to know since when.
pub(super) async fn standing(
    log: &dyn Log,
    shard: ShardId,
    checkpoint: Option<&Checkpoint>,
    tip: AddedId,
) -> Result<Standing, StoreError> {
    let mut standing = without_log(checkpoint, tip);
    if let (Some(low), Some(1..)) = (standing.low_water, standing.lag_cells) {
        let next = log.page(shard, AddedId(low), 1, Consistency::Eventual).await?;
        let since = next.first().map(|segment| segment.created_at);
        standing.lag_seconds = Some(since.map_or(0.0, |since| seconds(since, clock::wall())));
    }
    Ok(standing)
}

/// What can be told without reading the log.
pub(super) fn without_log(checkpoint: Option<&Checkpoint>, tip: AddedId) -> Standing {
    let Some(checkpoint) = checkpoint else {
        // A trigger that was not started on a shard without cells has nothing to do there.
        let nothing = tip == AddedId(0);
        return Standing { low_water: None, lag_cells: nothing.then_some(0), lag_seconds: nothing.then_some(0.0) };
    };
    let lag = lag(checkpoint, tip);
    Standing { low_water: Some(checkpoint.low.0), lag_cells: Some(lag), lag_seconds: (lag == 0).then_some(0.0) }
}

/// How long ago something was, by two clocks that may differ a little.
#[expect(clippy::cast_precision_loss, reason = "for people")]
pub(super) fn seconds(since: Millis, now: Millis) -> f64 {
    now.0.saturating_sub(since.0).max(0) as f64 / 1000.0
}

/// The checkpoint of a trigger in a lease.
pub(super) fn checkpoint_of<'a>(record: &TriggerRecord, lease: Option<&'a Lease>) -> Option<&'a Checkpoint> {
    lease.and_then(|lease| lease.checkpoints.get(&record.id))
}

/// Why this shard alone is paused, if it is: a pause ends with the trigger's next generation.
pub(super) fn pause<'a>(record: &TriggerRecord, checkpoint: Option<&'a Checkpoint>) -> Option<&'a str> {
    let pause = checkpoint.and_then(|checkpoint| checkpoint.paused.as_ref());
    pause.filter(|pause| pause.generation == record.generation).map(|pause| pause.reason.as_str())
}

/// Why a trigger is not called on a shard, if it is paused: as a whole, or there alone.
pub(super) fn why_paused<'a>(record: &'a TriggerRecord, checkpoint: Option<&'a Checkpoint>) -> Option<&'a str> {
    match &record.state {
        TriggerState::Paused { reason } => Some(reason),
        TriggerState::Active | TriggerState::Retired => pause(record, checkpoint),
    }
}

/// Cells that were parked as dead since the last resume.
pub(super) fn dead(record: &TriggerRecord, checkpoint: Option<&Checkpoint>) -> u64 {
    checkpoint.filter(|checkpoint| checkpoint.generation == record.generation).map_or(0, |checkpoint| checkpoint.dead)
}

/// For a table.
pub(super) fn number(number: Option<u64>) -> String {
    number.map_or_else(|| "-".into(), |number| number.to_string())
}

/// For a table.
pub(super) fn decimal(seconds: Option<f64>) -> String {
    seconds.map_or_else(|| "-".into(), |seconds| format!("{seconds:.1}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Window;

    #[test]
    fn lag_counts_what_is_not_done() {
        let mut window = Window::new(AddedId(10));
        window.finish(AddedId(12));
        let checkpoint = Checkpoint { low: window.low(), done: window.encode().0, ..Checkpoint::default() };
        let at = |tip| without_log(Some(&checkpoint), AddedId(tip));
        assert_eq!(at(15), Standing { low_water: Some(10), lag_cells: Some(4), lag_seconds: None });
        let done = Checkpoint { low: AddedId(15), ..Checkpoint::default() };
        let done = without_log(Some(&done), AddedId(15));
        assert_eq!(done, Standing { low_water: Some(15), lag_cells: Some(0), lag_seconds: Some(0.0) });
        assert_eq!(without_log(None, AddedId(0)).lag_cells, Some(0));
        assert_eq!(without_log(None, AddedId(3)).lag_cells, None);
    }
}
