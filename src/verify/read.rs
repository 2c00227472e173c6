//! Reads of a datastore: paced, patient, and with what cannot be decoded told apart from what cannot be reached.

use super::{
    compare::Fetched,
    pace::{Pace, halves},
};
use crate::{
    cell::{
        AddedId, Cell, CellKey,
        Consistency::{self, Eventual, Strong},
        Datastore, ErrorKind, Incarnation, Ledger, Log, Name, ScanPlace, Scanned, Segment, SegmentKey, Settled,
        ShardId, Slice, StoreError, Tip, TriggerRecord,
    },
    store::{
        self,
        segment::{SegmentError, unpack},
    },
};
use std::collections::BTreeSet;

/// Segments of a page at most.
const SEGMENTS: u32 = 50;
/// Keys of segments of a page at most.
const KEYS: u32 = 500;
/// Cells of a page of a scan at most.
const CELLS: u32 = 1000;
/// Bytes of an item besides keys and content.
const REST: usize = 100;

/// What was read, or why it cannot be decoded.
pub(super) type Decoded<T> = Result<T, String>;
type Read<T> = Result<Decoded<T>, StoreError>;

/// A segment of a walk: its key, and its content where that was wanted.
pub(super) struct Found {
    pub(super) key: SegmentKey,
    /// `None`: only the key was read, or it was trimmed since.
    pub(super) segment: Option<Decoded<Segment>>,
}

/// What the content of a segment is.
pub(super) enum Opened {
    Cells(Vec<Cell>),
    /// Of a newer release.
    Newer(String),
    Damaged(String),
    /// Trimmed meanwhile.
    Gone,
}

pub(super) struct Reader<'a> {
    log: &'a dyn Log,
    pace: Pace,
}

impl<'a> Reader<'a> {
    pub(super) fn new(log: &'a dyn Log, rate: Option<u32>) -> Self {
        Self { log, pace: Pace::new(rate) }
    }

    pub(super) fn datastore(&self) -> &'a Datastore {
        self.log.datastore()
    }

    pub(super) fn units(&self) -> u64 {
        self.pace.units()
    }

    /// Counts a read of another table, of about so many bytes.
    pub(super) async fn spend(&mut self, bytes: usize) {
        self.pace.spend(halves(bytes as u64, Strong)).await;
    }

    pub(super) async fn tip(&mut self, shard: ShardId) -> Read<Option<Tip>> {
        let tip = patiently(|| self.log.tip(shard)).await?;
        self.spend(REST).await;
        Ok(tip)
    }

    pub(super) async fn tips(&mut self, bucket: u32) -> Read<Vec<Tip>> {
        let tips = patiently(|| self.log.tips(bucket, Strong)).await?;
        self.spend(tips.as_ref().map_or(0, Vec::len) * REST).await;
        Ok(tips)
    }

    pub(super) async fn incarnation(&mut self) -> Read<Option<Incarnation>> {
        patiently(|| self.log.incarnation()).await
    }

    /// The groups that the datastore knows to have triggers on it.
    pub(super) async fn groups(&mut self) -> Read<BTreeSet<Name>> {
        let groups = patiently(|| self.log.groups()).await?;
        self.spend(REST).await;
        Ok(groups)
    }

    /// Segments after a place, those with content for which `wanted` says so. All of them: by pages of whole segments.
    pub(super) async fn segments(
        &mut self,
        shard: ShardId,
        after: AddedId,
        wanted: Option<&(dyn Fn(AddedId) -> bool + '_)>,
    ) -> Read<Vec<Found>> {
        if wanted.is_none()
            && let Ok(page) = self.page(shard, after, SEGMENTS).await?
        {
            return Ok(Ok(page.into_iter().map(|s| Found { key: s.key(), segment: Some(Ok(s)) }).collect()));
        }
        // A sample, or something in the page cannot be decoded: by their keys, one at a time.
        let limit = if wanted.is_none() { SEGMENTS } else { KEYS };
        let keys = match self.keys(shard, after, limit).await? {
            Ok(keys) => keys,
            Err(why) => return Ok(Err(why)),
        };
        let mut found = Vec::with_capacity(keys.len());
        for key in keys {
            let segment = match wanted.is_none_or(|wanted| wanted(key.last)) {
                false => None,
                true => match self.segment(shard, key.last).await? {
                    Ok(Some(segment)) => Some(Ok(segment)),
                    Ok(None) => None,
                    Err(why) => Some(Err(why)),
                },
            };
            found.push(Found { key, segment });
        }
        Ok(Ok(found))
    }

    /// A page of whole segments.
    pub(super) async fn page(&mut self, shard: ShardId, after: AddedId, limit: u32) -> Read<Vec<Segment>> {
        let page = patiently(|| self.log.page(shard, after, limit, Strong)).await?;
        let bytes = |page: &Vec<Segment>| page.iter().map(|segment| segment.packed.len() + REST).sum();
        self.spend(page.as_ref().map_or(REST, bytes)).await;
        Ok(page)
    }

    /// Keys of segments. The store charges for the whole items, whose sizes it does not tell: usual ones are counted.
    pub(super) async fn keys(&mut self, shard: ShardId, after: AddedId, limit: u32) -> Read<Vec<SegmentKey>> {
        let keys = patiently(|| self.log.keys(shard, after, limit)).await?;
        let cells: usize = keys.iter().flatten().map(|key| key.n as usize).sum();
        self.spend(cells * super::cost::PACKED_CELL).await;
        Ok(keys)
    }

    pub(super) async fn segment(&mut self, shard: ShardId, last: AddedId) -> Read<Option<Segment>> {
        let segment = patiently(|| self.log.segment(shard, last)).await?;
        self.spend(segment.iter().flatten().map(|segment| segment.packed.len() + REST).sum()).await;
        Ok(segment)
    }

    /// The content of a segment. One that cannot be unpacked is read once more.
    pub(super) async fn open(
        &mut self,
        shard: ShardId,
        last: AddedId,
        segment: Decoded<Segment>,
    ) -> Result<Opened, StoreError> {
        if let Ok(cells) =
            segment.map(|segment| unpack(shard, &segment)).and_then(|cells| cells.map_err(|_| String::new()))
        {
            return Ok(Opened::Cells(cells));
        }
        Ok(match self.segment(shard, last).await? {
            Ok(None) => Opened::Gone,
            Ok(Some(segment)) => match unpack(shard, &segment) {
                Ok(cells) => Opened::Cells(cells),
                Err(error @ SegmentError::UnknownFormat(_)) => Opened::Newer(error.to_string()),
                Err(error) => Opened::Damaged(error.to_string()),
            },
            Err(why) => Opened::Damaged(why),
        })
    }

    /// A segment and its tip, at one moment.
    pub(super) async fn settle(&mut self, shard: ShardId, last: AddedId) -> Read<Settled> {
        let settled = patiently(|| self.log.settle(shard, last)).await?;
        let bytes = settled.as_ref().ok().and_then(|settled| settled.segment.as_ref()).map_or(0, |s| s.packed.len());
        // A transaction costs twice.
        self.spend(2 * (bytes + REST)).await;
        Ok(settled)
    }

    /// What lies at these addresses.
    pub(super) async fn cells(&mut self, keys: &[CellKey]) -> Result<Vec<Fetched>, StoreError> {
        let found = match patiently(|| self.log.get_all(keys)).await? {
            Ok(found) => found.into_iter().map(Ok).collect(),
            // One of them cannot be decoded, and spoils the answer: one at a time.
            Err(_) => {
                let mut found = Vec::with_capacity(keys.len());
                for key in keys {
                    found.push(patiently(|| self.log.get(key)).await?);
                }
                found
            }
        };
        let found: Vec<Fetched> = found
            .into_iter()
            .map(|found| match found {
                Ok(Some(stored)) => Fetched::Cell(Box::new(stored.cell)),
                Ok(None) => Fetched::Absent,
                Err(why) => Fetched::Damaged(why),
            })
            .collect();
        let cost = found.iter().map(|found| match found {
            Fetched::Cell(cell) => halves((cell.size() + REST) as u64, Strong),
            Fetched::Absent | Fetched::Damaged(_) => 2,
        });
        self.pace.spend(cost.sum()).await;
        Ok(found)
    }

    /// A page of a scan.
    pub(super) async fn scan(
        &mut self,
        slice: Slice,
        after: Option<&ScanPlace>,
        consistency: Consistency,
    ) -> Read<Scanned> {
        let scanned = patiently(|| self.log.scan(slice, after, CELLS, consistency)).await?;
        let bytes = |page: &Scanned| page.cells.iter().map(|stored| stored.cell.size() + REST).sum::<usize>();
        let bytes = scanned.as_ref().map_or(0, bytes) as u64;
        self.pace.spend(halves(bytes, consistency)).await;
        Ok(scanned)
    }
}

/// Scans of the whole are made at half the price: what they miss or see too early is settled.
pub(super) const FIRST_SCAN: Consistency = Eventual;

/// The triggers of a group that tail a datastore.
pub(super) async fn triggers(ledger: &dyn Ledger, datastore: &Name) -> Read<Vec<TriggerRecord>> {
    let triggers = patiently(|| ledger.triggers()).await?;
    Ok(triggers.map(|triggers| triggers.into_iter().filter(|trigger| trigger.source == *datastore).collect()))
}

/// Makes a read until it is answered, or cannot be.
pub(super) async fn patiently<T, F: Future<Output = Result<T, StoreError>>>(request: impl Fn() -> F) -> Read<T> {
    match store::patiently(request).await {
        Err(error) if error.kind == ErrorKind::Undecodable => {
            Ok(Err(error.source.map_or_else(String::new, |source| source.to_string())))
        }
        answer => answer.map(Ok),
    }
}
