//! Reads a shard forwards, and hands on only a dense run.

mod config;

pub use config::Config;
