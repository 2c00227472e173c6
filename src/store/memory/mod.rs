//! The twins in memory of [`Log`](crate::cell::Log) and [`Ledger`](crate::cell::Ledger): the same answers as
//! DynamoDB, for simulation and for tests of what is built on them. Held to it by the conformance suite.

mod ledger;
mod log;

pub use ledger::MemoryLedger;
pub use log::MemoryLog;
