//! `parked`: cells out of the window with failed attempts: listed, shown, tried again, given up.

mod change;
mod filter;
mod list;
mod read;
mod show;

pub(super) use read::at;

use super::{Context, ask::Ask, exit::Done, noun::Noun};
use crate::cell::{Name, Parked, ParkedState};
use change::{Change, DropArgs, RetryArgs};
use clap::Subcommand;
use filter::State;
use list::ListArgs;
use serde::Serialize;
use show::ShowArgs;

pub(super) type Args = Noun<Verb, ListArgs>;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List parked cells, or count them; the same as without a verb.
    #[command(after_help = "Examples:\n  cellhook parked list --trigger bill_rider --error timeout --newer 1h\n  \
                            cellhook parked list --count")]
    List(ListArgs),
    /// Show everything about one parked cell: all errors that are kept, its body, what it waits for.
    #[command(after_help = "Example:\n  cellhook parked show bill_rider 5 123")]
    Show(ShowArgs),
    /// Try cells again now, with their attempts counted anew: dead ones, and retrying ones before their time.
    #[command(after_help = "Examples:\n  cellhook parked retry --trigger bill_rider --error timeout --dry-run\n  \
                            cellhook parked retry --trigger bill_rider --state dead")]
    Retry(RetryArgs),
    /// Give cells up for good: they are not called again. Asks, unless --yes.
    #[command(
        after_help = "Examples:\n  cellhook parked drop --trigger bill_rider --state dead --older 30d --dry-run\n  \
                            cellhook parked drop --trigger bill_rider --shard 5 --added-id 123 --yes"
    )]
    Drop(DropArgs),
}

impl Args {
    /// Whether it does more than list.
    pub(super) fn changes(&self) -> bool {
        matches!(self.said(), Some(Verb::Retry(_) | Verb::Drop(_)))
    }
}

/// A parked cell, as it is printed.
#[derive(Serialize)]
struct ParkedLine<'a> {
    trigger: &'a Name,
    datastore: &'a Name,
    shard: u32,
    added_id: u64,
    /// Differs from `added_id` for a range of the log that cannot be decoded.
    last: u64,
    row_key: &'a str,
    column: &'a str,
    ref_key: u64,
    state: &'static str,
    attempts: u32,
    since: i64,
    next_attempt_at: Option<i64>,
    errors: &'a [String],
}

impl<'a> ParkedLine<'a> {
    fn of(trigger: &'a Name, parked: &'a Parked) -> Self {
        let retrying = parked.state == ParkedState::Retrying;
        Self {
            trigger,
            datastore: &parked.shard.source,
            shard: parked.shard.shard.0,
            added_id: parked.added_id.0,
            last: parked.last.0,
            row_key: &parked.row_key,
            column: &parked.column,
            ref_key: parked.ref_key,
            state: State::of(parked.state).text(),
            attempts: parked.attempts,
            since: parked.since.0,
            next_attempt_at: retrying.then_some(parked.next_attempt_at.0),
            errors: &parked.errors,
        }
    }
}

/// The place of a cell, or the places of a range, for people.
fn places(parked: &Parked) -> String {
    match parked.last {
        last if last == parked.added_id => last.to_string(),
        last => format!("{}-{last}", parked.added_id),
    }
}

pub(super) async fn parked(context: &mut Context, args: Args) -> anyhow::Result<Done> {
    match args.verb(Verb::List) {
        Verb::List(args) => list::list(context, args).await,
        Verb::Show(args) => show::show(context, args).await,
        Verb::Retry(RetryArgs { change, dry_run }) => {
            change::change(context, change, Change::Retry, Ask { dry_run, ..Ask::SAID }).await
        }
        Verb::Drop(DropArgs { change, ask }) => change::change(context, change, Change::Drop, ask).await,
    }
}

#[cfg(test)]
mod testing {
    use crate::cell::{AddedId, Millis, Name, Parked, ParkedState, ShardId, ShardRef, TriggerId};

    /// A parked cell of trigger t at place 7 of shard 3.
    pub(super) fn parked(state: ParkedState) -> Parked {
        Parked {
            trigger: TriggerId::from_stored("t"),
            shard: ShardRef { source: Name::new("trips").unwrap(), shard: ShardId(3) },
            added_id: AddedId(7),
            last: AddedId(7),
            row_key: "row".into(),
            column: "BASE".into(),
            ref_key: 1,
            state,
            attempts: 9,
            errors: vec!["no".into()],
            next_attempt_at: Millis(0),
            since: Millis(1),
            revision: 1,
        }
    }
}
