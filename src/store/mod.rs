//! What is durable: the traits `Log` and `Ledger` over DynamoDB (a server, or embedded) and over memory.

mod cells;
mod config;
mod dynamo;
mod embedded;
mod lane;
pub mod memory;
mod patience;
pub mod segment;

pub use cells::{BATCH_MAX, Cells, Placed, PutError};
pub use config::{Config, Durability, Kind};
pub use dynamo::{
    Billing, Difference, IamRole, Made, Making, OpenError, Scope, Store, TableSettings, TableSize, policy,
};
#[cfg(test)]
pub(crate) use dynamo::{Fault, Faults};
pub use embedded::{FileError, Held, Presence};
pub(crate) use lane::lane_where;
pub(crate) use patience::patiently;
