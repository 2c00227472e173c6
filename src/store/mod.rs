//! What is durable: the traits `Log` and `Ledger` over DynamoDB (a server, or embedded) and over memory.

mod cells;
mod config;
mod dynamo;
mod embedded;
pub mod memory;
pub mod segment;

pub use cells::{BATCH_MAX, Cells, Placed, PutError};
pub use config::{Config, Durability, Kind};
#[cfg(test)]
pub(crate) use dynamo::{Fault, Faults};
pub use dynamo::{Made, OpenError, Store};
pub(crate) use embedded::{Counted, Meter, Units};
pub use embedded::{FileError, Held, Presence};
