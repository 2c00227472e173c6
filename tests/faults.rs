//! Faults of the world around the processes: disks, locks, files, signals, freezes, servers, tables that do not fit. The real
//! binary each time: what it says, how it ends, and how it goes on.

pub(crate) mod disk;
pub(crate) mod dynamo;
mod files;
mod frozen;
pub(crate) mod home;
mod lock;
mod misfits;
mod signals;
