//! Order, attempts and parking of the cells in hand.

mod config;

pub use config::{BreakerConfig, Config, Exhausted, MEMORY, Order, Retry, Start, WindowConfig};
