//! The binary as a user runs it, a file per noun.

mod bench;
mod cells;
mod home;
mod parked;
mod shards;
mod surface;
mod triggers;
mod worker;
