//! Carriers of the call: from an event to the code of the user, and back with a verdict.
//!
//! * [`Exec`]: long-lived children that speak NDJSON (`talk` is the conversation, `child` a child's life, `pool` who
//!   gets which call, `answer` and [`envelope`] the messages).
//! * [`Command`]: one process per event.
//! * [`Copy`](struct@Copy): appends to another datastore.
//! * [`Log`]: prints the event.
//! * [`handler_fn`]: a closure of the program that links this crate.
//!
//! A carrier to come is one file here and one kind in [`Config`].

mod answer;
mod cells;
mod child;
mod closure;
mod command;
mod config;
#[cfg(test)]
mod contract;
pub mod envelope;
mod exec;
#[cfg(test)]
mod fixture;
mod group;
#[cfg(test)]
mod hostile;
mod lines;
mod log;
mod mutter;
mod pool;
mod talk;
mod turns;

pub use cells::Copy;
pub use closure::{HandlerFn, handler_fn};
pub use command::Command;
pub use config::{BuildError, CellsConfig, CommandConfig, Config, ExecConfig, LogConfig};
pub use exec::{Counts, Exec};
pub use log::Log;

/// Compiles the Rust of the contract.
#[cfg(doctest)]
#[doc = include_str!("../../docs/handlers.md")]
struct Contract;
