//! The command line: a file per noun, a function per verb. Data goes to stdout, talk to stderr.
//!
//! Verbs read and write the store itself, so they work whether a worker runs or not.

mod cells;
mod home;
mod parked;
mod run;
mod shards;
mod store;
mod triggers;

use clap::{Parser, Subcommand};
use home::Home;
use std::{path::PathBuf, process::ExitCode};

/// How a verb ended; the exit code says it to scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// 0: all of it was done.
    Done,
    /// 1: it failed.
    Failed,
    /// 2: the command line or the config is wrong.
    Usage,
    /// 3: some of the input was refused, or is in conflict.
    Refused,
    /// 4: what was asked for is not there.
    NotFound,
    /// 5: the store is out of reach.
    OutOfReach,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Refused => 3,
            Exit::NotFound => 4,
            Exit::OutOfReach => 5,
        })
    }
}

/// Calls your code for every change, and never loses one.
#[derive(Debug, Parser)]
#[command(name = "cellhook", version, after_help = "Example: cellhook put trips trip-1 BASE '{\"fare\": 12}'")]
struct Arguments {
    /// The config file; else $CELLHOOK_CONFIG, ./config/cellhook.toml, /etc/cellhook/cellhook.toml
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start a worker
    #[command(after_help = "Example: cellhook run --config /etc/cellhook/cellhook.toml")]
    Run,
    /// Make the tables of the config's datastores and group; what exists stays as it is
    #[command(after_help = "Example: cellhook init")]
    Init,
    /// Prove a config without starting anything, and print what it comes to, secrets hidden
    #[command(after_help = "Example: cellhook check --config new.toml")]
    Check,
    /// Append one cell, or the cells of a file
    #[command(
        after_help = "Examples:\n  cellhook put trips trip-1 BASE '{\"fare\": 12}'\n  cellhook put trips --file cells.ndjson"
    )]
    Put(cells::Put),
    /// Print the latest cell of a column, one version of it, or a whole row
    #[command(after_help = "Example: cellhook get trips trip-1 STATUS")]
    Get(cells::Get),
    /// Print the log of a datastore's shards
    #[command(after_help = "Example: cellhook tail trips --shard 3 --from 2026-11-21T10:00:00Z --follow")]
    Tail(cells::Tail),
    /// List the shards: who owns them, and how far behind each trigger is
    #[command(after_help = "Example: cellhook shards trips --json")]
    Shards(shards::Shards),
    /// Parked cells: list, retry, drop
    #[command(after_help = "Example: cellhook parked retry bill_rider --state dead --all")]
    Parked(parked::Parked),
    /// Triggers: list, pause, resume
    #[command(after_help = "Example: cellhook triggers pause bill_rider --reason 'processor is down'")]
    Triggers(triggers::Triggers),
}

/// Parses the command line and does what it says.
#[must_use]
pub fn main() -> ExitCode {
    let Arguments { config, verb } = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Also the way of --help and --version, which are no errors.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cellhook: cannot start: {error}");
            return Exit::Failed.into();
        }
    };
    let result = runtime.block_on(async {
        let home = Home::load(config)?;
        match verb {
            Verb::Run => run::run(home).await,
            Verb::Init => store::init(&home).await,
            Verb::Check => Ok(store::check(&home)),
            Verb::Put(put) => cells::put(&home, put).await,
            Verb::Get(get) => cells::get(&home, get).await,
            Verb::Tail(tail) => cells::tail(&home, tail).await,
            Verb::Shards(shards) => shards::list(&home, shards).await,
            Verb::Parked(parked) => parked::parked(&home, parked).await,
            Verb::Triggers(triggers) => triggers::triggers(&home, triggers).await,
        }
    });
    // A reader of standard input that is stuck in the system must not hold the exit.
    runtime.shutdown_background();
    result
        .unwrap_or_else(|error| {
            if !error.chain().any(home::is_closed_pipe) {
                eprintln!("cellhook: {error:#}");
            }
            home::exit_of(&error)
        })
        .into()
}
