//! What is durable: the traits `Log` and `Ledger` over DynamoDB (a server, or embedded) and over memory.

mod config;
mod dynamo;
mod embedded;

pub use config::{Config, Durability, Kind};
pub use dynamo::{Made, OpenError, Store};
pub use embedded::{FileError, Held, Presence};
