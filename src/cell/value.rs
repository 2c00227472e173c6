//! Cells, as they are given and as they are stored.

use super::{AddedId, Millis, RefKey, ShardId, TriggerId};
use bytestring::ByteString;

/// The address of a cell. An update is a new cell with a higher `ref_key`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CellKey {
    /// The row: decides the shard, and is the unit of order.
    pub row_key: ByteString,
    /// The column.
    pub column: ByteString,
    /// The version.
    pub ref_key: RefKey,
}

/// A cell on its way in. Passes the door ([`NewCell::check`]) before anything else happens to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewCell {
    /// Where it goes.
    pub key: CellKey,
    /// JSON text.
    pub body: ByteString,
    /// Set when a handler's answer wrote it.
    pub origin: Option<Origin>,
}

/// Which call of which trigger wrote a cell. Makes a handler's answer repeatable, and tells two triggers
/// apart that answer with the same address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The trigger.
    pub trigger: TriggerId,
    /// The id of the event that was answered.
    pub event: String,
}

/// A cell in its log: an immutable fact, of which only the body can be erased. Clones share the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Address.
    pub key: CellKey,
    /// Log it lies in.
    pub shard: ShardId,
    /// Place in that log.
    pub added_id: AddedId,
    /// When it was appended; never goes back inside a shard.
    pub created_at: Millis,
    /// JSON text; empty, which no JSON text is, once the cell was erased.
    pub body: ByteString,
}

impl Cell {
    /// Whether an operator erased its body. Nobody is called for it.
    #[must_use]
    pub fn is_erased(&self) -> bool {
        self.body.is_empty()
    }

    /// Bytes that this cell holds: keys and body.
    #[must_use]
    pub fn size(&self) -> usize {
        self.key.row_key.len() + self.key.column.len() + self.body.len()
    }
}

/// Where a cell of a row lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CellPlace {
    /// Address.
    pub key: CellKey,
    /// Log it lies in.
    pub shard: ShardId,
    /// Place in that log.
    pub added_id: AddedId,
    /// Whether its body was erased from the `cells` table.
    pub erased: bool,
}

/// A cell as the `cells` table has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredCell {
    /// The cell.
    pub cell: Cell,
    /// Set when a handler's answer wrote it.
    pub origin: Option<Origin>,
}
