//! What is durable: the traits `Log` and `Ledger` over DynamoDB (a server, or embedded) and over memory.

mod cells;
mod config;
pub mod memory;
mod presence;
pub mod segment;

pub use cells::{BATCH_MAX, Cells, Placed, PutError};
pub use config::{Config, Durability, Kind};
pub use presence::Presence;
