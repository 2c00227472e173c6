//! What looks wrong, until it is looked at again: many together, since each look comes after a while.

use super::{
    Finding, LOOKS, Stopped, Verifier,
    compare::{Fetched, difference, lies_at_its_place},
    pause,
    read::Opened,
};
use crate::cell::{AddedId, Cell, CellKey, ShardId};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;

/// So many wait at most.
const MOST: usize = 1000;
/// The first of them waits about so long at most.
const LONGEST: Duration = Duration::from_secs(10);

/// What waits to be looked at again.
#[derive(Debug)]
pub(super) struct Doubts<T> {
    waiting: Vec<T>,
    since: Option<Instant>,
}

impl<T> Default for Doubts<T> {
    fn default() -> Self {
        Self { waiting: Vec::new(), since: None }
    }
}

impl<T> Doubts<T> {
    pub(super) fn add(&mut self, doubt: T) {
        self.since.get_or_insert_with(Instant::now);
        self.waiting.push(doubt);
    }

    pub(super) fn are_due(&self) -> bool {
        self.waiting.len() >= MOST || self.since.is_some_and(|since| since.elapsed() >= LONGEST)
    }

    pub(super) fn take(&mut self) -> Vec<T> {
        std::mem::take(self).waiting
    }
}

/// A cell that differs on the two sides.
pub(super) struct Differing {
    shard: ShardId,
    /// Where its segment ends.
    last: AddedId,
    place: AddedId,
    finding: Finding,
}

/// What is wrong at places of one segment.
type Doubted = BTreeMap<AddedId, Finding>;

impl Verifier<'_> {
    /// Compares cells of one segment with `cells`, and says how many of them lie there at their places.
    pub(super) async fn compare(&mut self, last: AddedId, cells: &[Cell]) -> Result<u64, Stopped> {
        let keys: Vec<CellKey> = cells.iter().map(|cell| cell.key.clone()).collect();
        let stored = self.reader.cells(&keys).await?;
        for (cell, stored) in cells.iter().zip(&stored) {
            if let Some(finding) = difference(cell, stored) {
                self.doubt(last, cell, finding);
            }
        }
        self.settle_differing_if_due().await?;
        Ok(cells.iter().zip(&stored).filter(|(cell, stored)| lies_at_its_place(cell, stored)).count() as u64)
    }

    /// What seems to be wrong with a cell of the log, whose segment ends there.
    pub(super) fn doubt(&mut self, last: AddedId, logged: &Cell, finding: Finding) {
        if !self.told.knows(&finding) {
            self.differing.add(Differing { shard: logged.shard, last, place: logged.added_id, finding });
        }
    }

    pub(super) async fn settle_differing_if_due(&mut self) -> Result<(), Stopped> {
        if self.differing.are_due() { self.settle_differing().await } else { Ok(()) }
    }

    /// Reads again, on both sides, what was in doubt, and tells what stays.
    pub(super) async fn settle_differing(&mut self) -> Result<(), Stopped> {
        let mut segments: BTreeMap<(ShardId, AddedId), Doubted> = BTreeMap::new();
        for Differing { shard, last, place, finding } in self.differing.take() {
            segments.entry((shard, last)).or_default().insert(place, finding);
        }
        for look in 1..LOOKS {
            if segments.is_empty() {
                return Ok(());
            }
            pause(look).await;
            for ((shard, last), doubted) in &mut segments {
                self.look_again(*shard, *last, doubted).await?;
            }
            segments.retain(|_, doubted| !doubted.is_empty());
        }
        segments.into_values().flat_map(Doubted::into_values).try_for_each(|finding| self.told.finding(finding))
    }

    async fn look_again(&mut self, shard: ShardId, last: AddedId, doubted: &mut Doubted) -> Result<(), Stopped> {
        let opened = match self.reader.segment(shard, last).await? {
            Ok(None) => Opened::Gone,
            Ok(Some(segment)) => self.reader.open(shard, last, Ok(segment)).await?,
            Err(why) => Opened::Damaged(why),
        };
        let mut cells = match opened {
            Opened::Cells(cells) => cells,
            Opened::Gone => {
                doubted.clear();
                return Ok(());
            }
            // It could be read before: what was seen then stands.
            Opened::Newer(_) | Opened::Damaged(_) => return Ok(()),
        };
        cells.retain(|cell| doubted.contains_key(&cell.added_id));
        let keys: Vec<CellKey> = cells.iter().map(|cell| cell.key.clone()).collect();
        let stored = self.reader.cells(&keys).await?;
        let differs = |(cell, stored): (&Cell, &Fetched)| Some((cell.added_id, difference(cell, stored)?));
        *doubted = cells.iter().zip(&stored).filter_map(differs).collect();
        Ok(())
    }
}
