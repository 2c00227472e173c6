//! The table `cells`, against the log.

use super::{
    Finding, Flaw, Sample, Stopped, Verifier,
    compare::{Account, Fetched, Place, difference, wrong_shard},
    read::{self, FIRST_SCAN},
};
use crate::cell::{AddedId, Cell, CellKey, Consistency, ScanPlace, Scanned, ShardId, Slice, StoredCell};
use std::collections::BTreeSet;

/// Segments that are kept to look cells up.
const KEPT: usize = 8;

/// A segment that was read to look a cell up.
pub(super) struct Opened {
    shard: ShardId,
    last: AddedId,
    cells: Vec<Cell>,
}

/// What the log has at a place.
enum Logged {
    /// This cell, of a segment that ends there.
    Cell(Box<Cell>, AddedId),
    /// A segment that cannot be read, or does not count.
    Unreadable,
    Nothing,
}

impl Verifier<'_> {
    /// All of `cells` against the sums of the log.
    pub(super) async fn all_cells(&mut self, mut accounts: Vec<Option<Account>>) -> Result<(), Stopped> {
        let mut after = None;
        loop {
            let Scanned { cells, damaged, next } = self.scan(Slice::WHOLE, after.as_ref(), FIRST_SCAN).await?;
            self.damaged(damaged)?;
            for StoredCell { cell, .. } in &cells {
                let account = self.shard_of(cell, &mut accounts)?;
                match account.map(|account| account.scanned(cell)) {
                    Some(Place::Trimmed) => self.summary.trimmed += 1,
                    Some(Place::Above) => self.above(cell).await?,
                    Some(Place::Range(_)) | None => {}
                }
            }
            self.passed(&cells)?;
            after = next;
            if after.is_none() {
                break;
            }
        }
        let mut suspects = BTreeSet::new();
        for (shard, account) in (0..).map(ShardId).zip(&accounts) {
            let Some(account) = account else { continue };
            for range in account.unequal() {
                let (first, last) = account.bounds(range);
                if self.compare_range(shard, first, last).await? != account.scanned_in(range) {
                    suspects.insert((shard, range));
                }
            }
        }
        self.settle_differing().await?;
        if suspects.is_empty() { Ok(()) } else { self.suspects(&accounts, &suspects).await }
    }

    /// Looks up each cell of these ranges. Those that the log has were compared.
    async fn suspects(
        &mut self,
        accounts: &[Option<Account>],
        suspects: &BTreeSet<(ShardId, usize)>,
    ) -> Result<(), Stopped> {
        let mut after = None;
        loop {
            let Scanned { cells, next, .. } = self.scan(Slice::WHOLE, after.as_ref(), Consistency::Strong).await?;
            for StoredCell { cell, .. } in &cells {
                let account = accounts.get(cell.shard.0 as usize).and_then(Option::as_ref);
                if let Some(Place::Range(range)) = account.map(|account| account.place(cell.added_id))
                    && suspects.contains(&(cell.shard, range))
                {
                    match self.logged(cell.shard, cell.added_id).await? {
                        Logged::Cell(logged, _) if logged.key == cell.key => {}
                        other => self.not_in_log(cell, other).await?,
                    }
                }
            }
            after = next;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    /// Some slices of `cells`, each cell looked up in the log.
    pub(super) async fn some_cells(&mut self, sample: Sample, accounts: &[Option<Account>]) -> Result<(), Stopped> {
        for slice in sample.slices() {
            let mut after = None;
            loop {
                let Scanned { mut cells, damaged, next } = self.scan(slice, after.as_ref(), FIRST_SCAN).await?;
                self.damaged(damaged)?;
                // Cells of one segment are looked up one after the other.
                cells.sort_by_key(|stored| (stored.cell.shard, stored.cell.added_id));
                for StoredCell { cell, .. } in &cells {
                    self.belongs(cell)?;
                    let account = accounts.get(cell.shard.0 as usize).and_then(Option::as_ref);
                    match account.map(|account| account.place(cell.added_id)) {
                        Some(Place::Trimmed) => self.summary.trimmed += 1,
                        Some(Place::Above) => self.above(cell).await?,
                        Some(Place::Range(_)) => self.look_up(cell).await?,
                        None => {}
                    }
                }
                self.passed(&cells)?;
                after = next;
                if after.is_none() {
                    break;
                }
            }
        }
        self.settle_differing().await
    }

    async fn scan(
        &mut self,
        slice: Slice,
        after: Option<&ScanPlace>,
        consistency: Consistency,
    ) -> Result<Scanned, Stopped> {
        // Items are decoded one by one: only the whole answer could be garbled, and a page that stays so ends the scan.
        match self.reader.scan(slice, after, consistency).await? {
            Ok(scanned) => Ok(scanned),
            Err(why) => {
                let detail = format!("{why}; `cells` was not verified from here on");
                self.told.finding(Finding::new(Flaw::CellUndecodable, detail))?;
                Ok(Scanned::default())
            }
        }
    }

    fn passed(&mut self, cells: &[StoredCell]) -> Result<(), Stopped> {
        self.summary.cells += cells.len() as u64;
        self.told.passed(cells.len() as u64)
    }

    fn damaged(&mut self, damaged: Vec<(ScanPlace, String)>) -> Result<(), Stopped> {
        for (ScanPlace { row_key, cell }, why) in damaged {
            let parts = cell.rsplit_once('#').and_then(|(column, ref_key)| Some((column, ref_key.parse().ok()?)));
            let key = |(column, ref_key): (&str, u64)| CellKey {
                row_key: row_key.as_str().into(),
                column: column.into(),
                ref_key,
            };
            let detail = format!("row_key {row_key:?}, cell {cell:?}: {why}");
            let shard = ShardId::of(&row_key, self.reader.datastore().shards);
            let finding = Finding::at(Flaw::CellUndecodable, shard, None, detail);
            self.told.finding(Finding { cell: parts.map(key), ..finding })?;
        }
        Ok(())
    }

    fn belongs(&mut self, cell: &Cell) -> Result<(), Stopped> {
        match wrong_shard(cell, self.reader.datastore().shards) {
            Some(finding) => self.told.finding(finding),
            None => Ok(()),
        }
    }

    /// The account of a cell's shard; `None` where the log could not be read.
    fn shard_of<'b>(
        &mut self,
        cell: &Cell,
        accounts: &'b mut [Option<Account>],
    ) -> Result<Option<&'b mut Account>, Stopped> {
        self.belongs(cell)?;
        Ok(accounts.get_mut(cell.shard.0 as usize).and_then(Option::as_mut))
    }

    /// A cell above the tip that was read first: appended since, or not in the log.
    async fn above(&mut self, cell: &Cell) -> Result<(), Stopped> {
        let shard = cell.shard.0 as usize;
        if cell.added_id > self.tips[shard] {
            // In a transaction of reads: the cell may be seen before its tip is.
            let Ok(settled) = self.reader.settle(cell.shard, cell.added_id).await? else { return Ok(()) };
            self.tips[shard] = settled.tip.map_or(AddedId(0), |tip| tip.tip);
        }
        if cell.added_id <= self.tips[shard] {
            self.summary.newer += 1;
            return Ok(());
        }
        self.look_up(cell).await
    }

    /// Whether the log has a cell of `cells` at its place.
    async fn look_up(&mut self, cell: &Cell) -> Result<(), Stopped> {
        match self.logged(cell.shard, cell.added_id).await? {
            Logged::Cell(logged, last) if logged.key == cell.key => {
                if let Some(finding) = difference(&logged, &Fetched::Cell(Box::new(cell.clone()))) {
                    self.doubt(last, &logged, finding);
                }
                self.settle_differing_if_due().await
            }
            other => self.not_in_log(cell, other).await,
        }
    }

    /// A cell of `cells` whose place in the log has something else.
    async fn not_in_log(&mut self, cell: &Cell, found: Logged) -> Result<(), Stopped> {
        match found {
            Logged::Unreadable => Ok(()),
            Logged::Cell(logged, _) => {
                let CellKey { row_key, column, ref_key } = &logged.key;
                let detail = format!("the log has {row_key:?} {column:?} {ref_key} at its place");
                self.told.finding(Finding::of(Flaw::CellNotInLog, cell, detail))
            }
            Logged::Nothing => {
                let Ok(tip) = self.reader.tip(cell.shard).await? else { return Ok(()) };
                let tip = tip.map_or(AddedId(0), |tip| tip.tip);
                // Below the tip it was trimmed meanwhile, or lies in a hole, which is told.
                if cell.added_id <= tip {
                    return Ok(());
                }
                let detail = format!("its place is above the tip {tip}");
                self.told.finding(Finding::of(Flaw::CellNotInLog, cell, detail))
            }
        }
    }

    async fn logged(&mut self, shard: ShardId, place: AddedId) -> Result<Logged, Stopped> {
        let of = |opened: &Opened| {
            let cell = opened.cells.iter().find(|cell| cell.added_id == place)?;
            (opened.shard == shard).then(|| Logged::Cell(Box::new(cell.clone()), opened.last))
        };
        if let Some(logged) = self.segments.iter().find_map(of) {
            return Ok(logged);
        }
        let Ok(page) = self.reader.page(shard, AddedId(place.0 - 1), 1).await? else { return Ok(Logged::Unreadable) };
        let Some(segment) = page.into_iter().next().filter(|segment| segment.key().first() <= place) else {
            return Ok(Logged::Nothing);
        };
        let last = segment.last;
        if self.overlapping.contains(&(shard, last)) {
            return Ok(Logged::Unreadable);
        }
        let read::Opened::Cells(cells) = self.reader.open(shard, last, Ok(segment)).await? else {
            return Ok(Logged::Unreadable);
        };
        let opened = Opened { shard, last, cells };
        let logged = of(&opened).unwrap_or(Logged::Unreadable);
        self.segments.truncate(KEPT - 1);
        self.segments.push_front(opened);
        Ok(logged)
    }
}
