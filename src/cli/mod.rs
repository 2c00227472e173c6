//! The command line: a file per noun, a function per verb. Data goes to stdout, talk to stderr; `--json` makes the data one
//! object a line.
//!
//! All verbs but `run` read and write the same tables as the workers do, so they work whether or not one is running.

// They panic when nobody listens: see `output`.
#![warn(clippy::print_stderr, clippy::print_stdout)]

mod ask;
mod bar;
mod bench;
mod check;
mod checkpoint;
mod completions;
mod crew;
mod erase;
mod examples;
mod exit;
mod get;
mod health;
mod iam_policy;
mod init;
mod lanes;
mod lines;
mod man;
mod moment;
mod noun;
mod observe;
mod open;
mod operate;
mod output;
mod parked;
mod put;
mod retention;
mod run;
mod shards;
mod standing;
mod status;
mod tail;
mod triggers;
mod trim;
mod verify;
mod workers;

use crate::{
    config::{Config, ConfigError, Environment, load},
    store::Store,
};
use clap::{Parser, Subcommand};
use exit::Done;
use output::Output;
use std::{cell::OnceCell, path::PathBuf, process::ExitCode};

/// A daemon that calls your code for every change, and never loses one.
#[derive(Debug, Parser)]
#[command(name = "cellhook", version, max_term_width = 120, after_help = exit::CODES)]
struct Cli {
    /// The config file; else $CELLHOOK_CONFIG, ./config/cellhook.toml or /etc/cellhook/cellhook.toml.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print data as JSON, one object a line.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Work: take shards, call handlers, until SIGTERM or SIGINT. SIGHUP reads the triggers of the config again.
    #[command(after_help = examples::RUN)]
    Run(run::Args),
    /// Make the tables that the config needs and that are missing; say what is there, and how it differs from the options.
    #[command(after_help = examples::INIT)]
    Init(init::Args),
    /// Prove the config without starting anything, and print what it comes to; secrets are hidden.
    #[command(after_help = examples::CHECK)]
    Check,
    /// Append one cell, or those of a file.
    #[command(after_help = examples::PUT)]
    Put(put::Args),
    /// Print a cell's body: the latest of a column, or that of a ref key. Without a column: the row's cells.
    #[command(after_help = examples::GET)]
    Get(get::Args),
    /// Print the cells of a datastore in the order of its logs.
    #[command(after_help = examples::TAIL)]
    Tail(tail::Args),
    /// Delete the old part of a datastore's logs. The cells stay and can be got; what a trigger has not finished is kept.
    #[command(after_help = examples::TRIM)]
    Trim(trim::Args),
    /// How long logs are kept, how old they are, what a trim would delete now, and who keeps it.
    #[command(after_help = examples::RETENTION)]
    Retention(retention::Args),
    /// Erase the bodies of a row's cells, everywhere and for ever; their places stay, and nobody is called for them.
    #[command(after_help = examples::ERASE)]
    Erase(erase::Args),
    /// List shards: owner, epoch, tip, and how far each trigger is behind; or show all of one.
    #[command(after_help = examples::SHARDS)]
    Shards(shards::Args),
    /// List workers, and show what one holds.
    #[command(after_help = examples::WORKERS)]
    Workers(workers::Args),
    /// Cells taken out of the window with failed attempts: list them, try them again, give them up.
    #[command(after_help = examples::PARKED)]
    Parked(parked::Args),
    /// Registered triggers: list, show, pause, resume, rename, retire.
    #[command(after_help = examples::TRIGGERS)]
    Triggers(triggers::Args),
    /// How far a trigger is on each shard: show it, set it back or forward, skip one cell.
    #[command(after_help = examples::CHECKPOINT)]
    Checkpoint(checkpoint::Args),
    /// Print the least AWS policy with which a role can work on the tables of the config.
    #[command(after_help = examples::IAM_POLICY)]
    IamPolicy(iam_policy::Args),
    /// Check that log, cells, tips, checkpoints and parked cells of a datastore agree with each other. Reads only.
    #[command(after_help = examples::VERIFY)]
    Verify(verify::Args),
    /// Measure this release on this machine, beside bare loops of the same run, in a store of its own that is removed afterwards.
    #[command(after_help = examples::BENCH)]
    Bench(bench::Args),
    /// Ask the worker of this config whether it is well, by its own page.
    #[command(after_help = examples::HEALTH)]
    Health(health::Args),
    /// Print what a shell needs to complete this command line.
    #[command(after_help = examples::COMPLETIONS)]
    Completions(completions::Args),
    /// Print the manual page, or write those of all verbs into a directory.
    #[command(after_help = examples::MAN)]
    Man(man::Args),
}

impl Verb {
    /// Whether it changes anything.
    fn changes(&self) -> bool {
        match self {
            Self::Run(_) | Self::Init(_) | Self::Put(_) | Self::Trim(_) | Self::Erase(_) | Self::Bench(_) => true,
            Self::Check
            | Self::IamPolicy(_)
            | Self::Get(_)
            | Self::Tail(_)
            | Self::Retention(_)
            | Self::Shards(_)
            | Self::Workers(_)
            | Self::Verify(_) => false,
            Self::Parked(args) => args.changes(),
            Self::Triggers(args) => args.changes(),
            Self::Checkpoint(args) => args.changes(),
            Self::Health(_) | Self::Completions(_) => false,
            Self::Man(args) => args.changes(),
        }
    }
}

/// What every verb is given.
struct Context {
    file: Option<PathBuf>,
    environment: Environment,
    output: Output,
    /// What it opened, in words, once it did.
    store: OnceCell<String>,
}

impl Context {
    fn config(&self) -> Result<Config, ConfigError> {
        load(self.file.as_deref(), &self.environment)
    }

    /// This is the store that is used from now on.
    fn opened(&self, config: &Config, store: &Store) {
        self.store.get_or_init(|| format!("{}, as {} says", store.describe(), config.file.display()));
    }
}

/// The program: reads the command line, does what it says, and gives the exit code.
#[must_use]
pub fn main() -> ExitCode {
    // A wrong command line ends here, with code 2.
    let Cli { config, json, verb } = Cli::parse();
    let output = Output::to_stdout(json, verb.changes());
    let mut context = Context { file: config, environment: Environment::of_process(), output, store: OnceCell::new() };
    let ended = act(&mut context, verb);
    exit::code(ended, context.store.get().map(String::as_str))
}

fn act(context: &mut Context, verb: Verb) -> anyhow::Result<Done> {
    let mut runtime = match verb {
        Verb::Run(_) | Verb::Bench(_) => tokio::runtime::Builder::new_multi_thread(),
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime = runtime.enable_all().build()?;
    let done = runtime.block_on(async {
        match verb {
            Verb::Run(args) => run::run(context, args).await,
            Verb::Init(args) => init::init(context, args).await,
            Verb::Check => check::check(context),
            Verb::IamPolicy(args) => iam_policy::iam_policy(context, args),
            Verb::Put(args) => put::put(context, args).await,
            Verb::Get(args) => get::get(context, args).await,
            Verb::Tail(args) => tail::tail(context, args).await,
            Verb::Trim(args) => trim::trim(context, args).await,
            Verb::Retention(args) => retention::retention(context, args).await,
            Verb::Erase(args) => erase::erase(context, args).await,
            Verb::Shards(args) => shards::shards(context, args).await,
            Verb::Workers(args) => workers::workers(context, args).await,
            Verb::Parked(args) => parked::parked(context, args).await,
            Verb::Triggers(args) => triggers::triggers(context, args).await,
            Verb::Checkpoint(args) => checkpoint::checkpoint(context, args).await,
            Verb::Verify(args) => verify::verify(context, args).await,
            Verb::Bench(args) => bench::bench(context, args).await,
            Verb::Health(args) => health::health(context, args).await,
            Verb::Completions(args) => completions::completions(context, args),
            Verb::Man(args) => man::man(context, args),
        }
    });
    // A thread that blocks on stdin must not keep the process.
    runtime.shutdown_background();
    let told = context.output.finish();
    done.and_then(|done| told.map(|()| done))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_bare_noun_lists() {
        for line in [
            "parked --trigger t --state dead",
            "parked list --trigger t",
            "parked --error timeout --older 1h --newer 1d --limit 10",
            "parked --count",
            "parked show t 3 7",
            "init --billing provisioned --read-units 5 --write-units 5 --deletion-protection --tag a=b --tag c=d",
            "triggers",
            "triggers list",
            "shards",
            "workers --all",
        ] {
            let words = std::iter::once("cellhook").chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_ok(), "{line}");
        }
        for line in [
            "put trips",
            "put trips row column",
            "put trips row column {} --file f",
            "get trips",
            "parked retry",
            "init --tag a",
            "init --read-units 0",
            "parked --limit 0",
            "parked show t 3",
            "parked --older soon",
        ] {
            let words = std::iter::once("cellhook").chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_err(), "{line}");
        }
    }
}
