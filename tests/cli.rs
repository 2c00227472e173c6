//! The binary as a user runs it, a file per noun.

mod bench;
mod cells;
mod health;
mod home;
mod manual;
mod parked;
mod service;
mod surface;
mod triggers;
mod worker;
