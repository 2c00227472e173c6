//! `shards`: who works on what, and how far each trigger is behind. From the tables alone, so that it tells the truth of
//! them and not a worker's.

use super::{
    Context,
    exit::Done,
    lanes::{self, Counts},
    noun::Noun,
    open::Open,
    output::{plain, time},
    standing::{Standing, checkpoint_of, dead, decimal, number, standing, why_paused},
    tail,
};
use crate::{
    cell::{AddedId, Consistency, Lease, Ledger, Log, Millis, Name, Session, ShardId, ShardRef, Tip, TriggerRecord},
    checkpoint::Window,
};
use clap::Subcommand;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use std::collections::BTreeMap;

/// Reads at a time.
const PARALLEL: usize = 16;

pub(super) type Args = Noun<Verb, ListArgs>;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List shards; the same as without a verb.
    #[command(after_help = "Example:\n  cellhook shards list trips --json | jq 'select(.owner == null)'")]
    List(ListArgs),
    /// Show all of one shard: who holds it, and each trigger there with its pause and its parked cells.
    #[command(after_help = "Example:\n  cellhook shards show trips 5 --json | jq .triggers.bill_rider.parked")]
    Show {
        /// The datastore.
        datastore: Name,
        /// The shard.
        shard: u32,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    /// One datastore; without it, all of the config.
    datastore: Option<Name>,
}

/// One shard. What was never written, claimed or started is null.
#[derive(Serialize)]
struct ShardLine<'a> {
    datastore: &'a Name,
    shard: u32,
    owner: Option<String>,
    epoch: u64,
    since: Option<i64>,
    tip: u64,
    triggers: BTreeMap<&'a str, Standing>,
}

pub(super) async fn shards(context: &mut Context, args: Args) -> anyhow::Result<Done> {
    match args.verb(Verb::List) {
        Verb::List(args) => list(context, args).await,
        Verb::Show { datastore, shard } => show(context, &datastore, shard).await,
    }
}

async fn list(context: &mut Context, args: ListArgs) -> anyhow::Result<Done> {
    let open = Open::new(context).await?;
    let names = match args.datastore {
        Some(name) => vec![name],
        None => open.config.datastores.keys().cloned().collect(),
    };
    let ledger = open.ledger().await?;
    let triggers = ledger.triggers().await?;
    let mut rows = Vec::new();
    for name in names {
        let log = open.datastore(&name).await?;
        let triggers: Vec<&TriggerRecord> = triggers.iter().filter(|trigger| trigger.source == name).collect();
        let tips = tips(log.as_ref()).await?;
        let leases = ledger.leases(&name).await?;
        let leases: BTreeMap<ShardId, &Lease> = leases.iter().map(|lease| (lease.shard.shard, lease)).collect();
        let lines = stream::iter(log.datastore().all_shards()).map(async |shard| {
            let (tip, lease) = (tips.get(&shard), leases.get(&shard).copied());
            line(log.as_ref(), shard, tip, lease, &triggers).await
        });
        let lines: Vec<ShardLine<'_>> = lines.buffered(PARALLEL).try_collect().await?;
        for line in lines {
            if context.output.is_json() {
                context.output.object(&line)?;
            } else {
                rows.extend(table_rows(&line));
            }
        }
    }
    let headings =
        ["DATASTORE", "SHARD", "OWNER", "EPOCH", "SINCE", "TIP", "TRIGGER", "LOW_WATER", "LAG_CELLS", "LAG_SECONDS"];
    context.output.table(headings, &rows)?;
    Ok(Done::All)
}

/// The tips of all shards that have one.
pub(super) async fn tips(log: &dyn Log) -> anyhow::Result<BTreeMap<ShardId, Tip>> {
    let reads = stream::iter(0..log.datastore().buckets()).map(|bucket| log.tips(bucket, Consistency::Strong));
    let buckets: Vec<Vec<Tip>> = reads.buffer_unordered(PARALLEL).try_collect().await?;
    Ok(buckets.into_iter().flatten().map(|tip| (tip.shard, tip)).collect())
}

async fn line<'a>(
    log: &'a dyn Log,
    shard: ShardId,
    tip: Option<&Tip>,
    lease: Option<&Lease>,
    triggers: &[&'a TriggerRecord],
) -> anyhow::Result<ShardLine<'a>> {
    let tip = tip.map_or(AddedId(0), |tip| tip.tip);
    let mut standings = BTreeMap::new();
    for trigger in triggers {
        let standing = standing(log, shard, checkpoint_of(trigger, lease), tip).await?;
        standings.insert(trigger.name.as_str(), standing);
    }
    Ok(ShardLine {
        datastore: &log.datastore().name,
        shard: shard.0,
        owner: lease.and_then(|lease| lease.owner.as_ref()).map(ToString::to_string),
        epoch: lease.map_or(0, |lease| lease.epoch.0),
        since: since(lease).map(|since| since.0),
        tip: tip.0,
        triggers: standings,
    })
}

/// When its owner claimed a shard.
fn since(lease: Option<&Lease>) -> Option<Millis> {
    lease.filter(|lease| lease.owner.is_some()).map(|lease| lease.claimed_at)
}

fn table_rows(line: &ShardLine<'_>) -> Vec<[String; 10]> {
    let row = |trigger: &str, standing: Standing| {
        [
            line.datastore.to_string(),
            line.shard.to_string(),
            line.owner.clone().unwrap_or_else(|| "-".into()),
            line.epoch.to_string(),
            line.since.map_or_else(|| "-".into(), |since| time(Millis(since))),
            line.tip.to_string(),
            trigger.into(),
            number(standing.low_water),
            number(standing.lag_cells),
            decimal(standing.lag_seconds),
        ]
    };
    if line.triggers.is_empty() {
        return vec![row("-", Standing::default())];
    }
    line.triggers.iter().map(|(trigger, standing)| row(trigger, *standing)).collect()
}

/// All of one shard. What was never written, claimed or started is null; so is what only the owner's session tells,
/// when there is none by that id.
#[derive(Serialize)]
struct ShowLine<'a> {
    datastore: &'a Name,
    shard: u32,
    incarnation: &'a str,
    owner: Option<&'a str>,
    owner_state: Option<&'static str>,
    host: Option<&'a str>,
    pid: Option<u32>,
    beats: Option<u64>,
    beat_age_seconds: Option<f64>,
    epoch: u64,
    since: Option<i64>,
    tip: u64,
    tip_at: Option<i64>,
    trimmed_to: u64,
    /// The cell that is called alone, because owners died.
    alone: Option<AloneOn<'a>>,
    triggers: BTreeMap<&'a str, TriggerOn<'a>>,
}

#[derive(Serialize)]
struct AloneOn<'a> {
    trigger: &'a str,
    added_id: u64,
}

/// A trigger on the shard.
#[derive(Serialize)]
struct TriggerOn<'a> {
    id: &'a str,
    #[serde(flatten)]
    standing: Standing,
    done_beyond: Option<u64>,
    /// Why it is not called there: the whole trigger, or this shard.
    paused: Option<&'a str>,
    /// Cells parked as dead since the last resume.
    dead: u64,
    /// Owners that died before they were through with the cells that they found undone.
    deaths: u64,
    parked: Counts,
}

async fn show(context: &mut Context, name: &Name, shard: u32) -> anyhow::Result<Done> {
    let open = Open::new(context).await?;
    let log = open.datastore(name).await?;
    let shard = tail::shards(&log, Some(shard))?[0];
    let ledger = open.ledger().await?;
    let at = ShardRef { source: name.clone(), shard };
    let tip = log.tip(shard).await?;
    let lease = ledger.lease(&at).await?;
    let sessions = ledger.sessions().await?;
    let mut records = ledger.triggers().await?;
    records.retain(|record| record.source == *name);
    let owner = lease.as_ref().and_then(|lease| lease.owner.as_ref());
    let session = owner.and_then(|owner| sessions.iter().find(|session| session.id == *owner));
    let mut triggers = BTreeMap::new();
    for record in &records {
        let on = trigger_on(ledger.as_ref(), log.as_ref(), &at, record, tip.as_ref(), lease.as_ref()).await?;
        triggers.insert(record.name.as_str(), on);
    }
    let alone = lease.as_ref().and_then(|lease| lease.alone.as_ref()).map(|alone| AloneOn {
        trigger: records.iter().find(|record| record.id == alone.trigger).map_or("", |record| record.name.as_str()),
        added_id: alone.added_id.0,
    });
    let datastore = log.datastore();
    let line = ShowLine {
        datastore: &datastore.name,
        shard: shard.0,
        incarnation: datastore.incarnation.as_str(),
        owner: owner.map(|owner| owner.as_str()),
        owner_state: session.map(|session| super::workers::state_word(session.state)),
        host: session.map(|session| session.host.as_str()),
        pid: session.map(|session| session.pid),
        beats: session.map(|session| session.beat),
        beat_age_seconds: session.and_then(super::workers::beat_age),
        epoch: lease.as_ref().map_or(0, |lease| lease.epoch.0),
        since: since(lease.as_ref()).map(|since| since.0),
        tip: tip.as_ref().map_or(0, |tip| tip.tip.0),
        tip_at: tip.as_ref().map(|tip| tip.created_at.0),
        trimmed_to: tip.as_ref().map_or(0, |tip| tip.trimmed_to.0),
        alone,
        triggers,
    };
    if context.output.is_json() {
        context.output.object(&line)?;
    } else {
        tell(context, &line, session, tip.as_ref())?;
    }
    Ok(Done::All)
}

async fn trigger_on<'a>(
    ledger: &dyn Ledger,
    log: &dyn Log,
    at: &ShardRef,
    record: &'a TriggerRecord,
    tip: Option<&Tip>,
    lease: Option<&'a Lease>,
) -> anyhow::Result<TriggerOn<'a>> {
    let checkpoint = checkpoint_of(record, lease);
    let window = checkpoint.map(|checkpoint| Window::resume(checkpoint.low, &checkpoint.done)).transpose()?;
    Ok(TriggerOn {
        id: record.id.as_str(),
        standing: standing(log, at.shard, checkpoint, tip.map_or(AddedId(0), |tip| tip.tip)).await?,
        done_beyond: window.map(|window| window.done_beyond()),
        paused: why_paused(record, checkpoint),
        dead: dead(record, checkpoint),
        deaths: lease.map_or(0, |lease| lease.deaths.saturating_sub(checkpoint.map_or(0, |at| at.outlived))),
        parked: lanes::count(ledger, &record.id, std::slice::from_ref(at)).await?,
    })
}

fn tell(
    context: &mut Context,
    line: &ShowLine<'_>,
    session: Option<&Session>,
    tip: Option<&Tip>,
) -> anyhow::Result<()> {
    let output = &mut context.output;
    output.text(&format!("shard {} of {}, incarnation {}", line.shard, line.datastore, line.incarnation))?;
    output.text(&match (line.owner, session) {
        (None, _) => format!("held by nobody, epoch {}", line.epoch),
        (Some(owner), None) => format!("held by {owner}, whose session is gone, epoch {}", line.epoch),
        (Some(owner), Some(session)) => format!(
            "held by {owner}: {}, {} pid {}, last heartbeat {} s ago, epoch {} since {}",
            super::workers::state_word(session.state),
            plain(&session.host),
            session.pid,
            decimal(line.beat_age_seconds),
            line.epoch,
            line.since.map_or_else(|| "-".into(), |since| time(Millis(since)))
        ),
    })?;
    let of_tip = tip.map(|tip| format!(" of {}", time(tip.created_at))).unwrap_or_default();
    output.text(&format!("tip {}{of_tip}, trimmed to {}", line.tip, line.trimmed_to))?;
    if let Some(AloneOn { trigger, added_id }) = &line.alone {
        output.text(&format!("cell {added_id} of trigger {trigger} is called alone, because workers died"))?;
    }
    let row = |(name, on): (&&str, &TriggerOn<'_>)| {
        [
            (*name).into(),
            number(on.standing.low_water),
            number(on.done_beyond),
            number(on.standing.lag_cells),
            decimal(on.standing.lag_seconds),
            on.parked.retrying.to_string(),
            on.parked.waiting.to_string(),
            on.parked.dead.to_string(),
            on.paused.map_or_else(|| "-".into(), plain),
        ]
    };
    let rows: Vec<[String; 9]> = line.triggers.iter().map(row).collect();
    let headings =
        ["TRIGGER", "LOW_WATER", "DONE_BEYOND", "LAG_CELLS", "LAG_SECONDS", "RETRYING", "WAITING", "DEAD", "PAUSED"];
    output.table(headings, &rows)
}
