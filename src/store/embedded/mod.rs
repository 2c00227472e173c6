//! DynamoDB inside the process: the HTTP connector of the AWS SDK hands each request to an embedded engine over one
//! SQLite file. Every process of the host opens the file itself; there is no server among them.
//!
//! Why nothing is lost or done late here:
//! * A flock on `<file>.lock` is held around opening and around each write ([`lock`]), so that processes take turns
//!   and none waits long for another, and a process that ends lets go of it.
//! * A job whose deadline has passed, or whose asker has gone, is not executed; both are checked with the lock held.
//!   So "it timed out" and "it may be applied any time later" do not go together for long.
//! * A file is opened once a process, however many stores are made of it ([`shared`]).
//! * One thread writes and one reads, each with a connection of its own; a panic in the engine is caught, answered,
//!   and the file is opened anew.

mod engine;
mod execute;
mod file;
mod lock;
mod meter;
mod presence;
mod queue;
mod shared;

pub use file::FileError;
pub use presence::{Held, Presence};

pub(crate) use engine::{Connector, Engine};
pub(crate) use meter::{Counted, Meter, Units};

/// Why a request got no answer of the engine.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{what}")]
pub(crate) struct Trouble {
    what: String,
    executed: bool,
}

impl Trouble {
    /// The request had no effect and will have none.
    pub(crate) fn not_executed(what: impl Into<String>) -> Self {
        Self { what: what.into(), executed: false }
    }

    /// The request may have had its effect.
    pub(crate) fn perhaps_executed(what: impl Into<String>) -> Self {
        Self { what: what.into(), executed: true }
    }

    /// Whether the request may have had its effect.
    pub(crate) fn executed(&self) -> bool {
        self.executed
    }
}
