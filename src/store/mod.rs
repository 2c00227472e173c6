//! What is durable.

mod config;

pub use config::{Config, Durability, Kind};
