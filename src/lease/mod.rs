//! Who works on what, and until when this process may believe it.
//!
//! Why no shard is ever moved by two at once:
//! * A session that was declared dead stays dead, and only an observer that saw its beat stand still can declare it, on the
//!   condition that the beat still stands. No wall clock takes part.
//! * A lease is claimed only from nobody, from a dead session, or from oneself, on the condition that owner and epoch are
//!   as read; each claim grows the epoch.
//! * Everything that a worker writes about a shard has owner and epoch as its condition: a worker that wakes up from a
//!   pause is refused (fencing from the outside).
//! * A worker stops by itself before others may declare it dead ([`Fence`], fencing from the inside), so that calls do not
//!   overlap either while clocks run at about the same rate.

mod claim;
mod config;
mod coordinator;
mod fence;
mod gone;
mod heart;
mod moves;
mod nudge;
mod plan;
mod retire;
#[cfg(test)]
mod tests;
mod turns;
mod vacant;
mod watchman;

pub use config::{Config, OnControlOutage};
pub use coordinator::{Coordinator, Ended, EndedShard, Grant, Grants, Identity, View};
pub use fence::Fence;
pub use gone::Gone;
pub use nudge::nudge_all;
pub use plan::{assign, wanted};
pub(crate) use retire::change;
pub use retire::{RetireError, remains, retire};
pub use turns::Turns;
pub use vacant::{AllVacant, Vacant};
pub use watchman::{Findings, Watchman};
