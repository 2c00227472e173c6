//! One test program.

mod cli;
mod conformance;
mod handlers;
mod house;
mod kill;
mod model;
mod simulation;
