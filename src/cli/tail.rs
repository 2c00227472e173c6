//! `tail`: the cells of a datastore, in the order of its logs.

use super::{
    Context,
    exit::{Done, Usage},
    moment::{EXAMPLES, past},
    open::Open,
    output::Output,
};
use crate::{
    cell::{AddedId, Consistency, Log, Millis, Name, ShardId},
    tail::{self, TailError},
};
use std::{collections::BTreeMap, str::FromStr};

/// Cells that are read at a time.
const PAGE: usize = 500;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The datastore.
    datastore: Name,
    /// One shard; without it, all of them, each in its own order.
    #[arg(long, value_name = "N")]
    shard: Option<u32>,
    /// Where to begin: oldest, newest, a time ("2026-11-21T10:00:00Z"), so long ago ("1h"), or, with --shard, the added ID of
    /// the first cell.
    #[arg(long, value_name = "X", default_value = "oldest")]
    from: From,
    /// Go on with the cells that are appended later.
    #[arg(long)]
    follow: bool,
}

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    Oldest,
    Newest,
    At(Millis),
    /// The added ID of the first cell.
    Place(AddedId),
}

impl From {
    /// The place before the first cell that is wanted of a shard.
    pub(super) async fn before(self, log: &dyn Log, shard: ShardId) -> Result<AddedId, TailError> {
        match self {
            Self::Oldest => tail::oldest(log, shard).await,
            Self::Newest => tail::newest(log, shard).await,
            Self::At(time) => tail::at_time(log, shard, time).await,
            Self::Place(first) => Ok(AddedId(first.0.saturating_sub(1))),
        }
    }

    /// An added ID is a place in one shard.
    pub(super) fn fits(self, shard: Option<u32>) -> Result<(), Usage> {
        match (self, shard) {
            (Self::Place(_), None) => Err(Usage("an added ID is a place in one shard: say which with --shard".into())),
            _ => Ok(()),
        }
    }
}

impl FromStr for From {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(place) = text.parse() {
            return Ok(Self::Place(AddedId(place)));
        }
        match text {
            "oldest" => Ok(Self::Oldest),
            "newest" => Ok(Self::Newest),
            _ => past(text)?.map(Self::At).ok_or_else(|| format!("it must be oldest, newest, an added ID, {EXAMPLES}")),
        }
    }
}

pub(super) async fn tail(context: &mut Context, args: Args) -> anyhow::Result<Done> {
    let open = Open::new(context).await?;
    let log = open.datastore(&args.datastore).await?;
    let shards = shards(&log, args.shard)?;
    args.from.fits(args.shard)?;
    let mut after = BTreeMap::new();
    for shard in shards {
        after.insert(shard, args.from.before(log.as_ref(), shard).await?);
    }
    let (floor, ceiling) = (open.config.poll.floor, open.config.poll.ceiling);
    let mut interval = floor;
    let mut consistency = Consistency::Strong;
    loop {
        let moved = catch_up(&mut context.output, log.as_ref(), &mut after, consistency).await?;
        if !args.follow {
            return Ok(Done::All);
        }
        consistency = Consistency::Eventual;
        interval = if moved { floor } else { interval.mul_f64(1.5).clamp(floor, ceiling) };
        tokio::time::sleep(interval).await;
    }
}

/// The shards of a datastore, or the one that is wanted.
pub(super) fn shards(log: &std::sync::Arc<dyn Log>, only: Option<u32>) -> Result<Vec<ShardId>, Usage> {
    let datastore = log.datastore();
    match only {
        None => Ok(datastore.all_shards().collect()),
        Some(shard) if shard < datastore.shards => Ok(vec![ShardId(shard)]),
        Some(shard) => {
            let (name, last) = (&datastore.name, datastore.shards - 1);
            Err(Usage(format!("{name} has no shard {shard}; its shards are 0 to {last}")))
        }
    }
}

/// Prints what lies between the places and the tips. Says whether there was anything.
async fn catch_up(
    output: &mut Output,
    log: &dyn Log,
    after: &mut BTreeMap<ShardId, AddedId>,
    consistency: Consistency,
) -> anyhow::Result<bool> {
    let mut moved = false;
    let buckets: std::collections::BTreeSet<u32> = after.keys().map(|shard| log.datastore().bucket(*shard)).collect();
    for bucket in buckets {
        for tip in log.tips(bucket, consistency).await? {
            let Some(place) = after.get_mut(&tip.shard) else { continue };
            while *place < tip.tip {
                let page = tail::cells(log, tip.shard, *place, PAGE).await?;
                for cell in &page.cells {
                    output.cell(cell)?;
                }
                if page.next <= *place {
                    // Not to be read yet; the next round looks again.
                    break;
                }
                *place = page.next;
                moved = true;
                output.flush()?;
            }
        }
    }
    Ok(moved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginnings_are_read() {
        assert_eq!("oldest".parse(), Ok(From::Oldest));
        assert_eq!("17".parse(), Ok(From::Place(AddedId(17))));
        assert_eq!("1970-01-01T00:00:02Z".parse(), Ok(From::At(Millis(2000))));
        assert!("yesterday".parse::<From>().unwrap_err().starts_with("it must be oldest, newest, an added ID"));
    }
}
