//! The traits over DynamoDB's interface, a server's or the embedded engine's: one code path for both.

mod failure;
mod items;
mod ledger;
mod log;
mod open;
mod tables;
#[cfg(test)]
mod tests;

pub use open::{Made, OpenError, Store};
