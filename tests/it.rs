//! One test program.

mod cli;
mod conformance;
mod engine;
mod faults;
mod handlers;
mod house;
mod kill;
mod model;
mod simulation;
mod watchdog;
