//! One test program.

mod binary;
mod chaos;
mod cli;
mod configuration;
mod conformance;
mod engine;
mod errors;
mod faults;
mod handlers;
mod house;
mod kill;
mod model;
mod simulation;
mod watchdog;
