//! The traits over DynamoDB's interface, a server's or the embedded engine's: one code path for both.

mod failure;
#[cfg(test)]
mod faulty;
mod items;
mod ledger;
mod log;
mod meter;
mod open;
mod policy;
mod settings;
mod tables;
#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use faulty::{Fault, Faults};
pub use open::{Made, Making, OpenError, Store, TableSize};
pub use policy::{IamRole, Scope, policy};
pub use settings::{Billing, Difference, TableSettings};
