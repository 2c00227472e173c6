//! The ground floor: the values that every room speaks of, and the three traits that are the only
//! seams of the house. Knows no I/O and no other room.
//!
//! * [`Log`]: one datastore: append, read a cell, read a shard's log.
//! * [`Ledger`]: one group: sessions, triggers, leases with their checkpoints, parked cells.
//! * [`Handler`]: the code that is called.

pub mod clock;
mod door;
mod event;
#[cfg(test)]
pub(crate) mod hostile;
mod id;
pub mod leb128;
mod ledger;
mod log;
pub mod planted;
pub mod setting;
mod value;

pub use door::{BODY_MAX, NESTING_MAX, REF_KEY_MAX, Refusal, same_json};
pub use event::{Call, Event, Go, Handler, Latest, PutCell, Verdict};
pub use id::{
    AddedId, Epoch, Incarnation, Millis, Name, NameError, Pattern, RefKey, SessionId, ShardId, ShardRef, TriggerId,
};
pub use ledger::{
    Alone, Answer, Checkpoint, Lane, LaneChange, LaneKind, Lease, LeaseWrite, Ledger, Nudge, Parked, ParkedState, Role,
    Session, SessionState, ShardPause, TriggerRecord, TriggerState, Written,
};
pub use log::{
    Commit, Committed, Consistency, Datastore, ErrorKind, Log, NewDatastore, Out, Refused, SCHEMA, ScanPlace, Scanned,
    Segment, SegmentKey, Settled, Slice, StoreError, Tip, chain,
};
pub use value::{Cell, CellKey, CellPlace, NewCell, Origin, StoredCell};
