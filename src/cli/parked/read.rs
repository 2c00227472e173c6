//! Finding parked cells without reading every lane.
//!
//! Nothing says which lanes hold cells: a checkpoint counts the dead ones since the last resume only. Asking each lane of
//! 4,096 shards takes 8,192 requests, each of which is paid for though most lanes are empty. The table itself holds nothing
//! but parked cells, so it is read as a whole first, up to the price of asking the lanes; only when it is larger, because many
//! cells are parked of which few are meant, the lanes are asked after all. So the cost stays near twice the least, for cells of
//! half a KiB; with errors as long as they may be the reading in vain costs six times as much.

use super::filter::Filter;
use crate::{
    cell::{AddedId, Lane, LaneKind, Ledger, Millis, Parked, ShardId, ShardRef, StoreError, TriggerId, TriggerRecord},
    cli::{exit::Usage, open::Open},
    store::{lane_where, patiently},
};
use futures_util::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use std::collections::{BTreeMap, BTreeSet};

/// Lanes that are read at a time.
const PARALLEL: usize = 16;
/// Parked cells of a page of the table.
const PAGE: usize = 1000;
/// So few lanes are asked at once.
const FEW: usize = 8;
/// Parked cells that cost as much to read as an empty lane: one read unit is 4 KiB, of cells of half a KiB.
const CELLS_A_LANE: usize = 8;
/// Most cells of the table that are read, and kept in memory, before the lanes are asked.
const WHOLE_MAX: usize = 32_000;
/// What is to be read: parked cells of some triggers that a filter leaves.
pub(super) struct Reader<'a> {
    ledger: &'a dyn Ledger,
    filter: &'a Filter,
    now: Millis,
    triggers: BTreeMap<&'a TriggerId, usize>,
    /// With the number of its trigger.
    lanes: Vec<(usize, Lane)>,
}

/// A parked cell with the number of its trigger.
pub(super) type Hit = (usize, Parked);

impl<'a> Reader<'a> {
    /// Of these triggers; a datastore that has not the shard of the filter is left out.
    ///
    /// # Errors
    /// When none has it.
    pub(super) async fn new(
        open: &Open,
        ledger: &'a dyn Ledger,
        triggers: &'a [TriggerRecord],
        filter: &'a Filter,
        now: Millis,
    ) -> anyhow::Result<Self> {
        let mut lanes = Vec::new();
        let mut looked = triggers.is_empty();
        for (number, trigger) in triggers.iter().enumerate() {
            // The number of shards is the datastore's, and a trigger of another file's datastore is listed too.
            let log = open.store.datastore(&trigger.source, None).await?;
            let Some(shards) = filter.shards(log.datastore().shards) else { continue };
            looked = true;
            let lane = |shard, kind| Lane {
                trigger: trigger.id.clone(),
                shard: ShardRef { source: trigger.source.clone(), shard },
                kind,
            };
            let of_shard = |shard: ShardId| filter.lanes().iter().map(move |kind| (number, lane(shard, *kind)));
            lanes.extend(shards.into_iter().flat_map(of_shard));
        }
        if !looked {
            let sources: BTreeSet<&str> = triggers.iter().map(|trigger| trigger.source.as_str()).collect();
            let sources = sources.into_iter().collect::<Vec<_>>().join(", ");
            let shard = filter.shard.unwrap_or_default();
            return Err(Usage(format!("--shard: there is no shard {shard} of {sources}")).into());
        }
        let ids = triggers.iter().enumerate().map(|(number, trigger)| (&trigger.id, number)).collect();
        Ok(Self { ledger, filter, now, triggers: ids, lanes })
    }

    /// The cells by trigger, shard, lane and place.
    pub(super) async fn read(&self) -> Result<BoxStream<'_, Result<Hit, StoreError>>, StoreError> {
        if let Some(all) = self.whole().await? {
            return Ok(stream::iter(all.into_iter().map(Ok)).boxed());
        }
        let lanes = stream::iter(&self.lanes).map(|(number, lane)| self.lane(*number, lane)).buffered(PARALLEL);
        Ok(lanes.map_ok(|hits| stream::iter(hits.into_iter().map(Ok))).try_flatten().boxed())
    }

    /// Reads the table as a whole; `None` when the lanes are cheaper.
    async fn whole(&self) -> Result<Option<Vec<Hit>>, StoreError> {
        if self.lanes.len() <= FEW {
            return Ok(None);
        }
        let mut left = (self.lanes.len() * CELLS_A_LANE).min(WHOLE_MAX);
        let mut hits = Vec::new();
        let mut after: Option<Parked> = None;
        while left > 0 {
            let wanted = PAGE.min(left);
            let page = patiently(|| self.ledger.all_parked(after.as_ref(), wanted)).await?;
            let ended = page.len() < wanted;
            left -= page.len();
            after = page.last().cloned();
            let hit = |parked: Parked| Some((*self.triggers.get(&parked.trigger)?, parked));
            hits.extend(page.into_iter().filter(|parked| self.filter.lets(parked, self.now)).filter_map(hit));
            if ended {
                hits.sort_by_cached_key(|(number, parked)| {
                    (*number, parked.shard.shard, parked.lane().kind, parked.added_id)
                });
                return Ok(Some(hits));
            }
        }
        Ok(None)
    }

    async fn lane(&self, number: usize, lane: &Lane) -> Result<Vec<Hit>, StoreError> {
        let found = lane_where(self.ledger, lane, |parked| self.filter.lets(parked, self.now)).await?;
        Ok(found.into_iter().map(|parked| (number, parked)).collect())
    }
}

/// The parked cell at a place, in whichever lane. One that moves to the other lane meanwhile is found all the same.
pub(super) async fn place(
    ledger: &dyn Ledger,
    trigger: &TriggerId,
    shard: &ShardRef,
    id: AddedId,
) -> Result<Option<Parked>, StoreError> {
    for kind in [LaneKind::Dead, LaneKind::Active, LaneKind::Dead] {
        let lane = Lane { trigger: trigger.clone(), shard: shard.clone(), kind };
        let found = patiently(|| ledger.parked(&lane, AddedId(id.0.saturating_sub(1)), 1)).await?;
        if let Some(parked) = found.into_iter().next().filter(|parked| parked.added_id == id) {
            return Ok(Some(parked));
        }
    }
    Ok(None)
}

/// The parked cell, or range, that a place of a shard lies in.
pub(in crate::cli) async fn at(
    ledger: &dyn Ledger,
    trigger: &TriggerRecord,
    shard: ShardId,
    id: AddedId,
) -> Result<Option<Parked>, StoreError> {
    let shard = ShardRef { source: trigger.source.clone(), shard };
    if let Some(parked) = place(ledger, &trigger.id, &shard, id).await? {
        return Ok(Some(parked));
    }
    // Ranges are dead, and begin before the place.
    let dead = Lane { trigger: trigger.id.clone(), shard, kind: LaneKind::Dead };
    let ranges = lane_where(ledger, &dead, |parked| parked.added_id < id && id <= parked.last).await?;
    Ok(ranges.into_iter().next())
}
