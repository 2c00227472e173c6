//! `bench`: what this release does on this machine. A figure stands beside a bare loop of the same run over the same store, where
//! there is one: that is the most that anything could do there.

mod append;
mod cost;
mod deliver;
mod figure;
mod footprint;
mod latency;
mod machine;
mod place;
mod process;
mod role;
mod share;
mod takeover;
mod worker;

use super::{
    Context,
    exit::{Done, Usage},
};
use crate::{
    cell::setting::duration,
    process::{Signal, Signals},
};
use anyhow::bail;
use clap::{
    ValueEnum,
    builder::{RangedU64ValueParser, TypedValueParser},
};
use figure::Figure;
use machine::Machine;
use place::Place;
use role::Role;
use std::{path::PathBuf, time::Duration};

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Args {
    /// Only these.
    #[arg(long, value_enum, value_name = "NAME")]
    only: Vec<What>,
    /// How long each of those that could go on for ever runs.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Print the table in Markdown.
    #[arg(long)]
    markdown: bool,
    /// Shards of a datastore.
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = shards())]
    shards: u32,
    /// Shards of a datastore with many.
    #[arg(long, default_value_t = 4096, value_name = "N", value_parser = shards())]
    many: u32,
    /// Cells of the largest backlog; the others are parts of it.
    #[arg(long, default_value_t = 1_000_000, value_name = "N", value_parser = from(1000))]
    cells: usize,
    /// Length of a worker's session.
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = duration::parse)]
    session: Duration,
    /// How often a worker is started, stopped and killed.
    #[arg(long, default_value_t = 6, value_name = "N", value_parser = from(1))]
    trials: usize,
    /// An existing directory in which the store is made, and removed afterwards; default: that for temporary files.
    #[arg(long)]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    role: Option<Role>,
}

/// As many as a datastore can have.
fn shards() -> impl TypedValueParser<Value = u32> {
    clap::value_parser!(u32).range(1..=65_536)
}

fn from(least: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(least..)
}

/// What is measured, in the order in which it is. Those that follow each other under one store share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// 64 callers, each with a batch of 100 cells over random rows: all that goes, and half of that.
    Append,
    /// Single cells, one at a time by each of 16 callers.
    Single,
    /// A backlog to a handler in Rust that does nothing.
    CatchUp,
    /// A backlog to a child process in Rust.
    Exec,
    /// A backlog to a child process in Python.
    Python,
    /// Three processes on one store beside one.
    Share,
    /// From the call of put to the start of the handler, in one process and between two.
    Latency,
    /// From the end of a worker to the work of the next.
    Takeover,
    /// From the start of a worker to its first call.
    Start,
    /// Memory and processor of an idle worker.
    Idle,
    /// Units that DynamoDB would charge for appends, cells that are handled, and an idle worker.
    Cost,
    /// Memory with a backlog and a handler that hardly goes on.
    Backlog,
    /// What a cell costs where there are more shards, or where more cells wait.
    Growth,
}

impl What {
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Whether it works on the store that the one before left.
    fn goes_on_after(self, before: Self) -> bool {
        let delivers = |what| matches!(what, Self::CatchUp | Self::Exec | Self::Python | Self::Share);
        let large = |what| matches!(what, Self::Backlog | Self::Growth);
        delivers(self) && delivers(before) || large(self) && large(before)
    }

    async fn measure(self, place: &mut Place) -> anyhow::Result<Vec<Figure>> {
        match self {
            Self::Append => append::batches(place).await,
            Self::Single => append::singles(place).await,
            Self::CatchUp => deliver::catch_up(place).await,
            Self::Exec => deliver::exec(place).await,
            Self::Python => deliver::python(place).await,
            Self::Share => share::share(place).await,
            Self::Latency => latency::latency(place).await,
            Self::Takeover => takeover::takeover(place).await,
            Self::Start => footprint::start_up(place).await,
            Self::Idle => footprint::idle(place).await,
            Self::Cost => cost::cost(place).await,
            Self::Backlog => footprint::backlog(place).await,
            Self::Growth => deliver::growth(place).await,
        }
    }
}

pub(super) async fn bench(context: &mut Context, args: Args) -> anyhow::Result<Done> {
    if let Some(role) = args.role {
        role.play().await?;
        return Ok(Done::All);
    }
    if args.markdown && context.output.is_json() {
        return Err(Usage("--json and --markdown: one of them".into()).into());
    }
    let mut signals = Signals::listen()?;
    let mut rows = Vec::new();
    let ended = tokio::select! {
        biased;
        // What was begun is dropped, and with it processes and files go.
        signal = stopped(&mut signals) => Err(anyhow::anyhow!("interrupted by {signal}")),
        ended = measure(context, &args, &mut rows) => ended,
    };
    print(context, args.markdown, &rows)?;
    ended
}

async fn stopped(signals: &mut Signals) -> &'static str {
    loop {
        if let Signal::Stop(name) = signals.next().await {
            return name;
        }
    }
}

/// Measures what is asked for. What cannot be measured is told, and the others are.
async fn measure(context: &mut Context, args: &Args, rows: &mut Vec<[String; 6]>) -> anyhow::Result<Done> {
    let mut place: Option<(What, Place)> = None;
    let mut failed = Vec::new();
    let machine = {
        let first = Place::new(args).await?;
        Machine::look(first.dir())?
    };
    if machine.is_busy() {
        context.output.say("other processes are at work on this machine: the figures are lower than they could be");
    }
    if context.output.is_json() {
        context.output.object(&machine)?;
    } else {
        context.output.text(&format!("{machine}\n"))?;
    }
    context.output.flush()?;
    for what in What::value_variants().iter().copied().filter(|what| args.only.is_empty() || args.only.contains(what)) {
        let name = what.name();
        context.output.say(format_args!("measuring {name}"));
        let mut here = match place.take() {
            Some((before, place)) if what.goes_on_after(before) => place,
            other => {
                drop(other);
                Place::new(args).await?
            }
        };
        match what.measure(&mut here).await {
            Ok(figures) => {
                for figure in figures {
                    if context.output.is_json() {
                        context.output.object(&figure.line(&name))?;
                        context.output.flush()?;
                    }
                    rows.push(figure.row());
                }
            }
            Err(error) => {
                context.output.say(format_args!("{name} could not be measured: {error:#}"));
                failed.push(name);
            }
        }
        place = Some((what, here));
    }
    if !failed.is_empty() {
        bail!("not measured: {}", failed.join(", "));
    }
    Ok(Done::All)
}

const HEADINGS: [&str; 6] = ["FIGURE", "VALUE", "BARE", "RATIO", "REACH", "MET"];

fn print(context: &mut Context, markdown: bool, rows: &[[String; 6]]) -> anyhow::Result<()> {
    if context.output.is_json() {
        return Ok(());
    }
    if !markdown {
        return context.output.table(HEADINGS, rows);
    }
    context.output.text("| figure | value | bare | ratio | reach | met |\n| --- | --- | --- | --- | --- | --- |")?;
    rows.iter().try_for_each(|row| context.output.text(&format!("| {} |", row.join(" | "))))
}
