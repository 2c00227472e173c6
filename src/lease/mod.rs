//! Who works on what, and until when this process may believe it.

mod config;

pub use config::Config;
