//! cellhook calls your code for every change, and never loses one.
//!
//! The rooms of the house, lowest first; a room imports only rooms below it (`tests/house.rs` holds that).

pub mod cell;
pub mod metrics;

pub mod checkpoint;
pub mod store;

pub mod filter;
pub mod handler;

pub mod dispatch;
pub mod lease;
pub mod tail;

pub mod shard;

pub mod verify;
pub mod worker;

pub mod admin;
pub mod process;

pub mod config;

pub mod cli;
