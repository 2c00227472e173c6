//! The binary as a user runs it, a file per noun.

mod bench;
mod cells;
mod home;
mod logs;
mod metrics;
mod parked;
mod surface;
mod triggers;
mod worker;
