//! `retention`: how long the logs of datastores are kept, and whether they are.

use super::{
    Context,
    exit::{Done, Usage},
    open::Open,
    trim::keeper_text,
};
use crate::{
    cell::{Millis, Name, clock, setting::duration},
    tail::{self, Due},
};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use std::{collections::BTreeSet, time::Duration};

/// Shards that are looked at, at a time.
const PARALLEL: usize = 8;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The datastore; without one, all of the config.
    datastore: Option<Name>,
}

/// A datastore, as it is printed.
#[derive(Serialize)]
struct Line<'a> {
    datastore: &'a Name,
    /// As the config says it; null: kept for ever.
    retention_seconds: Option<u64>,
    /// `created_at` of the oldest cell in its logs.
    oldest_at: Option<i64>,
    /// Cells in its logs.
    cells: u64,
    /// Of them, those older than the retention.
    old_cells: Option<u64>,
    /// Of those, what a trim would delete now.
    would_trim: Option<u64>,
    /// Who keeps the others.
    kept_by: BTreeSet<String>,
}

pub(super) async fn retention(context: &mut Context, args: Args) -> anyhow::Result<Done> {
    let open = Open::new(context).await?;
    let names: Vec<&Name> = match &args.datastore {
        Some(name) => vec![name],
        None => open.config.datastores.keys().collect(),
    };
    if names.is_empty() {
        return Err(Usage(format!("{} has no datastore", open.config.file.display())).into());
    }
    let now = clock::wall();
    let mut rows = Vec::new();
    for name in names {
        let line = look(&open, name, now).await?;
        if context.output.is_json() {
            context.output.object(&line)?;
        } else {
            rows.push(row(&line, now));
        }
    }
    context.output.table(["DATASTORE", "RETENTION", "OLDEST", "CELLS", "OLD", "WOULD_TRIM", "KEPT_BY"], &rows)?;
    Ok(Done::All)
}

async fn look<'a>(open: &Open, name: &'a Name, now: Millis) -> anyhow::Result<Line<'a>> {
    let log = open.datastore(name).await?;
    let log = log.as_ref();
    let retention = open.config.datastores.get(name).and_then(|datastore| datastore.retention);
    let groups = match retention {
        Some(_) => open.groups(log).await?,
        None => Vec::new(),
    };
    // Nothing is older than the beginning of time.
    let before = retention.map_or(Millis(i64::MIN), |retention| tail::before(now, retention));
    let shards = stream::iter(log.datastore().all_shards()).map(|shard| tail::due(log, &groups, shard, before));
    let shards: Vec<Due> = shards.buffered(PARALLEL).try_collect().await?;
    let sum = |cells: fn(&Due) -> u64| shards.iter().map(cells).sum::<u64>();
    Ok(Line {
        datastore: name,
        retention_seconds: retention.map(|retention| retention.as_secs()),
        oldest_at: shards.iter().filter_map(|due| due.oldest).min().map(|oldest| oldest.0),
        cells: sum(|due| due.tip.0 - due.trimmed_to.0),
        old_cells: retention.map(|_| sum(|due| due.old_to.0 - due.trimmed_to.0)),
        would_trim: retention.map(|_| sum(|due| due.to.0 - due.trimmed_to.0)),
        kept_by: shards.iter().filter_map(|due| due.kept_by.as_ref()).map(keeper_text).collect(),
    })
}

fn row(line: &Line<'_>, now: Millis) -> [String; 7] {
    let number = |cells: Option<u64>| cells.map_or_else(|| "-".into(), |cells| cells.to_string());
    let kept_by: Vec<&str> = line.kept_by.iter().map(String::as_str).collect();
    [
        line.datastore.to_string(),
        line.retention_seconds
            .map_or_else(|| "for ever".into(), |seconds| duration::text(Duration::from_secs(seconds))),
        line.oldest_at.map_or_else(|| "-".into(), |oldest| age(now.0.saturating_sub(oldest))),
        line.cells.to_string(),
        number(line.old_cells),
        number(line.would_trim),
        if kept_by.is_empty() { "-".into() } else { kept_by.join(", ") },
    ]
}

/// An age for people: its two largest units.
fn age(millis: i64) -> String {
    let seconds = u64::try_from(millis / 1000).unwrap_or(0);
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (1.., _, _) => format!("{days}d {hours}h"),
        (0, 1.., _) => format!("{hours}h {minutes}min"),
        (0, 0, 1..) => format!("{minutes}min {}s", seconds % 60),
        (0, 0, 0) => format!("{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_their_two_largest_units() {
        for (millis, text) in [
            (-5, "0s"),
            (59_999, "59s"),
            (61_000, "1min 1s"),
            (3_600_000, "1h 0min"),
            (90_000_000, "1d 1h"),
            (2_700_000_000, "31d 6h"),
        ] {
            assert_eq!(age(millis), text);
        }
    }
}
