//! The binary as a user runs it, a file per noun.

mod bench;
mod cells;
mod erase;
mod home;
mod parked;
mod surface;
mod triggers;
mod worker;
