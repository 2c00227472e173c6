//! Chaos with real processes.
mod proxy;
