//! The seam to the cells of one datastore.
//!
//! The trait is made of single requests, each of which may fail in three ways: it was refused, it was not
//! applied, or nobody knows. Everything that takes more than one request (racing for the tip, settling an
//! unknown outcome, walking a hole) is built on top of it, once, so that simulation and production share it.

use super::{AddedId, CellKey, CellPlace, Incarnation, Millis, Name, NewCell, ShardId, StoredCell};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use std::{collections::BTreeSet, fmt};

/// What a request of a seam gives.
pub type Out<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// Number of the layout of our tables. Tables of another number are refused.
pub const SCHEMA: u32 = 1;

/// A request that did not come to an answer of the kind that was asked for.
#[derive(Debug, thiserror::Error)]
#[error("{operation} on table {table}: {kind}{}", doubt(*kind, operation))]
pub struct StoreError {
    /// What to do next.
    pub kind: ErrorKind,
    /// The table, or the file of an embedded store.
    pub table: String,
    /// The DynamoDB operation.
    pub operation: &'static str,
    /// What was told to us.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What a write that got no answer leaves open. Of DynamoDB's operations, these only read.
fn doubt(kind: ErrorKind, operation: &str) -> &'static str {
    let reads = ["BatchGet", "Describe", "Get", "List", "Query", "Scan", "TransactGet"];
    match kind {
        ErrorKind::Unanswered if !reads.iter().any(|read| operation.starts_with(read)) => {
            "; it may or may not have been applied"
        }
        _ => "",
    }
}

/// Failures of a request by what follows from them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// No answer, or one that says nothing about the outcome: a write may have been applied, or may be
    /// applied later.
    Unanswered,
    /// Not applied: too many requests. Again after a back-off.
    Throttled,
    /// Not applied: another transaction holds one of the items. Again after a back-off.
    Conflict,
    /// Not applied, and the same request never will be: it breaks a limit of the store.
    Invalid,
    /// The answer of a read cannot be decoded.
    Undecodable,
    /// Not applied: there is no such table.
    MissingTable,
    /// Not applied: credentials lack the right.
    Denied,
    /// Not applied: no credentials, or expired ones.
    Credentials,
    /// Not applied: the embedded store's file cannot be used (disk full, no rights, lock held too long).
    Broken,
}

impl ErrorKind {
    /// Whether the request is certain not to have been applied.
    #[must_use]
    pub fn not_applied(self) -> bool {
        self != Self::Unanswered
    }

    /// Whether the same request may succeed later.
    #[must_use]
    pub fn may_pass(self) -> bool {
        !matches!(self, Self::Invalid)
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unanswered => "no usable answer",
            Self::Throttled => "throttled",
            Self::Conflict => "conflict with another transaction",
            Self::Invalid => "refused as invalid",
            Self::Undecodable => "the answer cannot be decoded",
            Self::MissingTable => "the table does not exist",
            Self::Denied => "access denied",
            Self::Credentials => "no valid credentials",
            Self::Broken => "the embedded store cannot be used",
        })
    }
}

/// A datastore as it was made; never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datastore {
    /// Its name.
    pub name: Name,
    /// Number of shards, 1 or more.
    pub shards: u32,
    /// Drawn when it was made.
    pub incarnation: Incarnation,
}

impl Datastore {
    /// Number of tips buckets: one `Query` reads all tips of a bucket.
    #[must_use]
    pub fn buckets(&self) -> u32 {
        Self::buckets_of(self.shards)
    }

    /// [`Datastore::buckets`] for a number of shards: 16, and more from 1024 shards on, so that a bucket
    /// holds at most 64.
    #[must_use]
    pub fn buckets_of(shards: u32) -> u32 {
        16.max(shards / 64)
    }

    /// The bucket of a shard.
    #[must_use]
    pub fn bucket(&self, shard: ShardId) -> u32 {
        shard.0 % self.buckets()
    }

    /// All shards in order.
    pub fn all_shards(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.shards).map(ShardId)
    }
}

/// A datastore to be made.
#[derive(Clone, Debug)]
pub struct NewDatastore {
    /// Its name.
    pub name: Name,
    /// Number of shards, 1 to 65536.
    pub shards: u32,
}

/// The tip item of a shard. A shard that was never written has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tip {
    /// The shard.
    pub shard: ShardId,
    /// Highest added ID.
    pub tip: AddedId,
    /// `created_at` of that cell.
    pub created_at: Millis,
    /// Log up to here, inclusive, may have been deleted.
    pub trimmed_to: AddedId,
}

/// One item of the log: the packed cells of one append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Added ID of its last cell, by which it is keyed.
    pub last: AddedId,
    /// Number of cells; the first is `last - n + 1`.
    pub n: u32,
    /// Format number and packed cells; decoded by the `store` room's segment codec.
    pub packed: Bytes,
    /// When it was appended.
    pub created_at: Millis,
}

impl Segment {
    /// Its key alone.
    #[must_use]
    pub fn key(&self) -> SegmentKey {
        SegmentKey { last: self.last, n: self.n }
    }
}

/// A segment without its cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentKey {
    /// Added ID of its last cell.
    pub last: AddedId,
    /// Number of cells.
    pub n: u32,
}

impl SegmentKey {
    /// Added ID of its first cell; 0 for an impossible record, which readers refuse.
    #[must_use]
    pub fn first(self) -> AddedId {
        let before = self.last.0.checked_sub(u64::from(self.n));
        AddedId(before.map_or(0, |before| before.saturating_add(1)))
    }
}

/// One append: a transaction of 2 + k actions.
#[derive(Clone, Debug)]
pub struct Commit {
    /// The shard of all its cells.
    pub shard: ShardId,
    /// The tip as the writer knows it; `None` for a shard that was never written. The condition.
    pub tip: Option<Tip>,
    /// The cells in order, each address once; they get the added IDs after the tip.
    pub cells: Vec<NewCell>,
    /// The same cells as a packed segment.
    pub packed: Bytes,
    /// Not before the tip's.
    pub created_at: Millis,
}

impl Commit {
    /// The tip that this append makes.
    #[must_use]
    pub fn tip_after(&self) -> Tip {
        let (before, trimmed_to) = self.tip.map_or_else(Default::default, |tip| (tip.tip, tip.trimmed_to));
        let tip = AddedId(before.0 + self.cells.len() as u64);
        Tip { shard: self.shard, tip, created_at: self.created_at, trimmed_to }
    }
}

/// How an append ended when an answer came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Committed {
    /// All of it is stored.
    Accepted,
    /// None of it is.
    Refused(Refused),
}

/// Why an append was refused: all that its answer tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// The tip was not the expected one: the real one, if the refusal brought it.
    pub tip: Option<Option<Tip>>,
    /// Cells that exist, by their index in the batch, as they are stored.
    pub cells: Vec<(usize, StoredCell)>,
    /// Cells that exist, by their index in the batch, but cannot be decoded: what is wrong with each.
    pub damaged: Vec<(usize, String)>,
    /// A segment lies where the new one would go, although the tip is the expected one: tables restored
    /// to different moments.
    pub segment: bool,
    /// Not all conditions were looked at, since another transaction held an item or it was throttled. What is told
    /// is true, but there may be more; again after a back-off.
    pub contended: bool,
}

/// Strong reads cost twice as much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// May be some moments old.
    Eventual,
    /// Sees every write that was acknowledged before.
    Strong,
}

/// What a transaction of reads saw of one segment and its tip, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The segment, if it exists.
    pub segment: Option<Segment>,
    /// The tip item, if it exists.
    pub tip: Option<Tip>,
}

/// The cells of one datastore. Every method is one request, but for those that give many items, which follow the pages.
///
/// Implementations: DynamoDB (a server, or embedded), memory. One conformance suite holds them alike.
pub trait Log: Send + Sync + 'static {
    /// What it is.
    fn datastore(&self) -> &Datastore;

    /// Appends in one transaction, on the conditions that the tip is `commit.tip`, that no segment lies at the
    /// new tip, and that none of the cells exists. When several conditions fail, all are told.
    fn commit(&self, commit: Commit) -> Out<'_, Committed>;

    /// One cell, strongly consistent.
    fn get<'a>(&'a self, key: &'a CellKey) -> Out<'a, Option<StoredCell>>;

    /// Cells by their addresses, each strongly consistent, in the order of the addresses.
    fn get_all<'a>(&'a self, keys: &'a [CellKey]) -> Out<'a, Vec<Option<StoredCell>>>;

    /// The cell of a column with the highest ref key, strongly consistent.
    fn latest<'a>(&'a self, row_key: &'a str, column: &'a str) -> Out<'a, Option<StoredCell>>;

    /// The cells of a row, by column and ref key, strongly consistent: those after `after`, from the first without it; all of
    /// them, or `limit`.
    fn row<'a>(&'a self, row_key: &'a str, after: Option<&'a CellKey>, limit: usize) -> Out<'a, Vec<StoredCell>>;

    /// Where the cells of a row lie, without their bodies, by column and ref key, strongly consistent: those after `after`, from
    /// the first without it. At most `limit`, or fewer where a page is full before; an empty answer means that there is none.
    fn places<'a>(&'a self, row_key: &'a str, after: Option<&'a CellKey>, limit: usize) -> Out<'a, Vec<CellPlace>>;

    /// Segments whose key is above `after`, ascending: at most `limit`, or fewer where a page is full before.
    /// An empty answer means that there is none.
    fn page(&self, shard: ShardId, after: AddedId, limit: u32, consistency: Consistency) -> Out<'_, Vec<Segment>>;

    /// As [`Log::page`], strongly consistent, without the cells.
    fn keys(&self, shard: ShardId, after: AddedId, limit: u32) -> Out<'_, Vec<SegmentKey>>;

    /// One segment by its key, strongly consistent.
    fn segment(&self, shard: ShardId, last: AddedId) -> Out<'_, Option<Segment>>;

    /// One segment by its key together with the tip, in one transaction of reads.
    fn settle(&self, shard: ShardId, last: AddedId) -> Out<'_, Settled>;

    /// All tips of a bucket.
    fn tips(&self, bucket: u32, consistency: Consistency) -> Out<'_, Vec<Tip>>;

    /// The tip of a shard, strongly consistent.
    fn tip(&self, shard: ShardId) -> Out<'_, Option<Tip>>;

    /// Raises `trimmed_to` on the condition that it is lower and not above the tip. A refusal changes nothing
    /// and gives `false`.
    fn raise_trim(&self, shard: ShardId, to: AddedId) -> Out<'_, bool>;

    /// Deletes one segment of the log. Deleting what is gone is no error.
    fn delete_segment(&self, shard: ShardId, last: AddedId) -> Out<'_, ()>;

    /// Erases the body of a cell and keeps the rest, on the condition that it is there and has one. A refusal changes nothing
    /// and gives `false`.
    fn erase_cell<'a>(&'a self, key: &'a CellKey) -> Out<'a, bool>;

    /// Replaces the packed cells of a segment by others, on the condition that it is there and has the packed cells of `old`.
    /// A refusal changes nothing and gives `false`: what a trim deleted does not come back.
    fn replace_segment<'a>(&'a self, shard: ShardId, old: &'a Segment, packed: Bytes) -> Out<'a, bool>;

    /// The incarnation that the tables have now: another one than the [datastore's](Log::datastore) means that they were made
    /// anew since this was opened. `None` where the datastore's own item is gone. Strongly consistent.
    fn incarnation(&self) -> Out<'_, Option<Incarnation>>;

    /// The groups that have a trigger on this datastore: a trim asks for their checkpoints. Strongly consistent.
    fn groups(&self) -> Out<'_, BTreeSet<Name>>;

    /// Adds a group to them. May be repeated at will.
    fn enlist<'a>(&'a self, group: &'a Name) -> Out<'a, ()>;

    /// A page of the cells of a slice, in no order: those after `after`, at most `limit`, or fewer where a page is full
    /// before. For `verify` alone: no worker and no other verb scans a table, or needs the right to.
    fn scan<'a>(
        &'a self,
        slice: Slice,
        after: Option<&'a ScanPlace>,
        limit: u32,
        consistency: Consistency,
    ) -> Out<'a, Scanned>;
}

/// A part of the rows of a datastore, by a hash that is the store's own: number `index` of `of`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Below `of`.
    pub index: u32,
    /// 1 to 1,000,000.
    pub of: u32,
}

impl Slice {
    /// All rows.
    pub const WHOLE: Self = Self { index: 0, of: 1 };
}

/// Where a [scan](Log::scan) goes on: the stored key of the last item that it saw, which need not be one of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanPlace {
    /// The row key.
    pub row_key: String,
    /// The sort key, `column#ref_key`.
    pub cell: String,
}

/// A page of a [scan](Log::scan).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scanned {
    /// The cells.
    pub cells: Vec<StoredCell>,
    /// Items that cannot be decoded: where each lies, and what is wrong with it.
    pub damaged: Vec<(ScanPlace, String)>,
    /// Where to go on; `None` at the end.
    pub next: Option<ScanPlace>,
}

/// An error with its causes, for one line of a log.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let inner = error.to_string();
        if !text.ends_with(&inner) {
            text.push_str(": ");
            text.push_str(&inner);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_write_without_an_answer_may_have_been_applied() {
        let told = |kind, operation| StoreError { kind, table: "t".into(), operation, source: None }.to_string();
        for reads in ["GetItem", "BatchGetItem", "Query", "Scan", "TransactGetItems", "DescribeTable"] {
            assert_eq!(told(ErrorKind::Unanswered, reads), format!("{reads} on table t: no usable answer"));
        }
        for writes in ["PutItem", "UpdateItem", "DeleteItem", "TransactWriteItems", "CreateTable", "TagResource"] {
            assert!(told(ErrorKind::Unanswered, writes).ends_with("; it may or may not have been applied"), "{writes}");
            assert_eq!(told(ErrorKind::Throttled, writes), format!("{writes} on table t: throttled"));
        }
    }
}
