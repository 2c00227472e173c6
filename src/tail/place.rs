//! Where to start in a shard: the place before the first cell that is wanted. By strong reads.

use super::TailError;
use crate::cell::{AddedId, Consistency, Log, Millis, ShardId};

/// Before the oldest cell that the log still has.
///
/// # Errors
/// When the store cannot be read.
pub async fn oldest(log: &dyn Log, shard: ShardId) -> Result<AddedId, TailError> {
    Ok(log.tip(shard).await?.map_or(AddedId(0), |tip| tip.trimmed_to))
}

/// After the newest cell.
///
/// # Errors
/// When the store cannot be read.
pub async fn newest(log: &dyn Log, shard: ShardId) -> Result<AddedId, TailError> {
    Ok(log.tip(shard).await?.map_or(AddedId(0), |tip| tip.tip))
}

/// Before the first cell that was appended at or after `time`. A binary search, since `created_at` never goes back inside
/// a shard: at most 64 reads of one segment.
///
/// # Errors
/// When the store cannot be read.
pub async fn at_time(log: &dyn Log, shard: ShardId, time: Millis) -> Result<AddedId, TailError> {
    let Some(tip) = log.tip(shard).await? else { return Ok(AddedId(0)) };
    if tip.created_at < time {
        return Ok(tip.tip);
    }
    // Everything up to `low` is older than `time`, everything above `high` is not.
    let (mut low, mut high) = (tip.trimmed_to, tip.tip);
    while low < high {
        let middle = AddedId(low.0 + (high.0 - low.0 - 1) / 2);
        match log.page(shard, middle, 1, Consistency::Strong).await?.first() {
            Some(segment) if segment.created_at < time => low = segment.last.max(low.next()),
            Some(segment) => high = AddedId(segment.key().first().0.saturating_sub(1)).clamp(low, AddedId(high.0 - 1)),
            None => high = middle,
        }
    }
    Ok(low)
}
