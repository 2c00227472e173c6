//! Reads a shard forwards, and hands on only a dense run.
//!
//! A page is an eventually consistent read, and a query beside a transaction may see part of it. So a page is taken as
//! far as it is dense: each segment has to begin where the one before ended. At the first place that does not fit:
//!
//! | seen | then |
//! | --- | --- |
//! | a segment begins above the next place | read again, strongly |
//! | still so | the missing segment ends just before the next begins, or at the tip: `TransactGetItems` of that key and the tip |
//! | it exists | it was a torn read: read again |
//! | it does not, and `trimmed_to` covers the hole | a trim: counted and told, the run goes on after it |
//! | it does not, and `trimmed_to` does not | [`TailError::Hole`]: the shard stops |
//! | a segment begins below the next place, other than the one that holds the checkpoint | [`TailError::Overlap`]: the shard stops |
//!
//! A segment that cannot be unpacked is read once more, strongly; only then it is handed on as [`Entry::Damaged`], to be
//! parked as a range. One of an unknown format stops the shard and is tried again: a newer writer is no damage.

mod config;
mod erase;
mod place;
mod read;
mod trim;

pub use config::Config;
pub use erase::{Erased, Mode, erase, erase_parked};
pub use place::{at_time, newest, oldest};
pub use read::{Cells, Entry, Run, TailError, cells, run};
pub use trim::{Due, Groups, Keeper, Trimmed, before, due, keeper, trim};
