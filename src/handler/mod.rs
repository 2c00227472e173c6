//! The carriers of a call.

mod config;

pub use config::Config;
