//! What is durable: the traits `Log` and `Ledger` over DynamoDB (a server, or embedded) and over memory.

mod cells;
pub mod memory;
pub mod segment;

pub use cells::{BATCH_MAX, Cells, Placed, PutError};
