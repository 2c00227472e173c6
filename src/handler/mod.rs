//! The carriers of a call.

mod config;

pub use config::{BuildError, CellsConfig, CommandConfig, Config, ExecConfig, LogConfig};
