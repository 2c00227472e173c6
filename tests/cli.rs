//! The binary as a user runs it, a file per noun.

mod bench;
mod cells;
mod dynamo;
mod erase;
mod health;
mod home;
mod iam;
mod init;
mod logs;
mod manual;
mod metrics;
mod parked;
mod service;
mod shards;
mod surface;
mod triggers;
mod verify;
mod worker;
