//! `verify`: whether what is stored agrees with itself.

use super::{
    Context,
    ask::Ask,
    bar::bar,
    exit::Done,
    open::Open,
    output::{Output, plain, say},
};
use crate::{
    cell::{Log, Name, setting::duration},
    store::{Kind, OpenError},
    verify::{self, Estimate, Event, Finding, Group, Plan, Sample, Stopped, Summary},
};
use anyhow::Context as _;
use indicatif::HumanCount;
use serde::Serialize;
use std::{ops::ControlFlow, str::FromStr, sync::Arc, time::Duration};

/// Read units a second on DynamoDB, unless `--rate` says otherwise.
const RATE: u32 = 500;
/// Read units from which on a person is asked.
const ASK_FROM: u64 = 1_000_000;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// One datastore; without it, all of the config.
    datastore: Option<Name>,
    /// Compare only so many percent of the segments and rows. The places of the log are checked whole, and so are
    /// checkpoints and parked cells.
    #[arg(long, value_name = "PERCENT")]
    sample: Option<Percent>,
    /// Another seed chooses another sample.
    #[arg(long, value_name = "N", default_value_t = 0, requires = "sample")]
    seed: u64,
    /// Read units a second at most; without it, 500 on DynamoDB, and as fast as one reader goes on an embedded store.
    #[arg(long, value_name = "READ_UNITS_PER_SECOND", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    #[command(flatten)]
    ask: Ask,
}

/// A part, in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Percent(u32);

impl FromStr for Percent {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const REASON: &str = "it must be a number from 0.0001 to 100";
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(fraction) || fraction.len() > 4 {
            return Err(REASON);
        }
        let number = format!("{whole}{fraction:0<4}").parse().map_err(|_| REASON)?;
        if (1..=1_000_000).contains(&number) { Ok(Self(number)) } else { Err(REASON) }
    }
}

/// A datastore that is verified.
struct Subject {
    log: Arc<dyn Log>,
    groups: Vec<Group>,
    estimate: Estimate,
}

/// What does not hold, as it is printed.
#[derive(Serialize)]
struct Line<'a> {
    datastore: &'a Name,
    group: Option<&'a Name>,
    trigger: Option<&'a str>,
    shard: Option<u32>,
    added_id: Option<u64>,
    row_key: Option<&'a str>,
    column: Option<&'a str>,
    ref_key: Option<u64>,
    finding: &'static str,
    detail: &'a str,
}

impl<'a> Line<'a> {
    fn of(datastore: &'a Name, finding: &'a Finding) -> Self {
        let cell = finding.cell.as_ref();
        Self {
            datastore,
            group: finding.group.as_ref(),
            trigger: finding.trigger.as_deref(),
            shard: finding.shard.map(|shard| shard.0),
            added_id: finding.added_id.map(|id| id.0),
            row_key: cell.map(|cell| &*cell.row_key),
            column: cell.map(|cell| &*cell.column),
            ref_key: cell.map(|cell| cell.ref_key),
            finding: finding.flaw.name(),
            detail: &finding.detail,
        }
    }

    /// For people.
    fn text(&self) -> String {
        let mut text = format!("{} {}", self.finding, self.datastore);
        if let Some(shard) = self.shard {
            text.push_str(&format!("/{shard}"));
        }
        if let Some(added_id) = self.added_id {
            text.push_str(&format!("/{added_id}"));
        }
        for name in [self.group.map(Name::as_str), self.trigger].into_iter().flatten() {
            text.push_str(&format!(" {name}"));
        }
        if let (Some(row), Some(column), Some(ref_key)) = (self.row_key, self.column, self.ref_key) {
            text.push_str(&format!(" {} {} {ref_key}", plain(row), plain(column)));
        }
        format!("{text}: {}", plain(self.detail))
    }
}

/// What was looked at; the last line.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Counts {
    shards: u64,
    segments: u64,
    logged: u64,
    cells: u64,
    trimmed: u64,
    newer: u64,
    owned: u64,
    orphaned: u64,
    parked: u64,
    dead: u64,
    read_units: u64,
    findings: u64,
}

impl Counts {
    fn add(&mut self, summary: &Summary) {
        let Summary { shards, segments, logged, cells, trimmed, newer, owned, orphaned, parked, dead, findings, units } =
            *summary;
        self.shards += shards;
        self.segments += segments;
        self.logged += logged;
        self.cells += cells;
        self.trimmed += trimmed;
        self.newer += newer;
        self.owned += owned;
        self.orphaned += orphaned;
        self.parked += parked;
        self.dead += dead;
        self.read_units += units;
        self.findings += findings;
    }

    fn text(&self) -> String {
        let Self { shards, segments, logged, cells, trimmed, newer, owned, orphaned, parked, dead, .. } = self;
        format!(
            "{shards} shards, {segments} segments, {logged} cells read in the log and {cells} in `cells` ({trimmed} of them \
             trimmed from the log, {newer} new meanwhile); {owned} leases owned, {orphaned} by nobody alive; {parked} cells \
             parked, {dead} dead; {} read units; {} findings",
            self.read_units, self.findings
        )
    }
}

pub(super) async fn verify(context: &mut Context, args: Args) -> anyhow::Result<Done> {
    let open = Open::new(context).await?;
    let on_dynamodb = open.store.kind() == Kind::Dynamodb;
    let sample = args.sample.map(|Percent(per_million)| Sample { per_million, seed: args.seed });
    let plan = Plan { sample, rate: args.rate.or(on_dynamodb.then_some(RATE)) };
    let names = match args.datastore {
        Some(name) => vec![name],
        None => open.config.datastores.keys().cloned().collect(),
    };
    let mut subjects = Vec::new();
    for name in names {
        subjects.push(subject(&open, &name, &plan).await?);
    }
    if args.ask.dry_run {
        return Ok(Done::All);
    }
    let units = subjects.iter().map(|subject| subject.estimate.units).sum();
    if on_dynamodb && units >= ASK_FROM {
        args.ask.agreed(&mut context.output, &format!("Read about {} units?", HumanCount(units)))?;
    }
    let mut counts = Counts::default();
    for subject in &subjects {
        match run(&mut context.output, subject, plan).await? {
            Some(summary) => counts.add(&summary),
            // Whoever read the findings has seen enough of them.
            None => return Ok(Done::Faulty),
        }
    }
    if context.output.is_json() {
        context.output.object(&counts)?;
    }
    context.output.say(counts.text());
    Ok(if counts.findings == 0 { Done::All } else { Done::Faulty })
}

/// A datastore of the config with its groups; says what its verification costs.
async fn subject(open: &Open, name: &Name, plan: &Plan) -> anyhow::Result<Subject> {
    let log = open.datastore(name).await?;
    let mut groups = Vec::new();
    let enlisted = log.groups().await?;
    // The config's own too: restored tables may not know of it any more.
    for group in enlisted.union(&[open.config.group.clone()].into()).cloned() {
        let ledger = match open.store.ledger(&group).await {
            Ok(ledger) => Some(ledger),
            Err(OpenError::MissingTables { .. }) if enlisted.contains(&group) => None,
            Err(OpenError::MissingTables { .. }) => continue,
            Err(error) => {
                return Err(error).with_context(|| format!("what group {group} keeps about {name} cannot be read"));
            }
        };
        groups.push(Group { name: group, ledger });
    }
    let mut sizes = verify::measure(log.as_ref(), &groups).await?;
    if let Some((cells, segments)) = open.store.sizes(name).await {
        sizes.cells_bytes = Some(cells.bytes);
        sizes.log_bytes = Some(segments.bytes);
        sizes.segments = Some(segments.items);
    }
    let estimate = verify::estimate(&sizes, plan);
    let mut told = format!(
        "{name}: {} cells, {} of them in the log; about {} read units and one for each parked cell",
        HumanCount(sizes.cells),
        HumanCount(sizes.logged),
        HumanCount(estimate.units)
    );
    if !estimate.measured {
        told.push_str(" (by usual sizes: the store does not tell its own)");
    }
    if let Some(rate) = plan.rate {
        let lasts = Duration::from_secs(estimate.units.div_ceil(u64::from(rate)));
        told.push_str(&format!(", {} at {rate} a second", duration::text(lasts)));
    }
    let whole = verify::estimate(&sizes, &Plan { sample: None, ..*plan });
    if plan.sample.is_some() && whole.units <= estimate.units {
        told.push_str(&format!("; the whole is cheaper than this sample: {} units", HumanCount(whole.units)));
    }
    say(told);
    Ok(Subject { log, groups, estimate })
}

/// Verifies a datastore and prints what does not hold. `None` when nobody reads it any more.
async fn run(output: &mut Output, subject: &Subject, plan: Plan) -> anyhow::Result<Option<Summary>> {
    let name = &subject.log.datastore().name;
    let template = "{msg} {wide_bar} {human_pos}/{human_len} cells, {eta} left";
    let bar = bar(Some(subject.estimate.passes), template).with_message(name.to_string());
    let mut failed = None;
    let mut hear = |event| match event {
        Event::Passed(cells) => {
            bar.inc(cells);
            ControlFlow::Continue(())
        }
        Event::Found(finding) => {
            let line = Line::of(name, &finding);
            let print = || if output.is_json() { output.object(&line) } else { output.text(&line.text()) };
            match bar.suspend(print).and_then(|()| output.flush()) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            }
        }
    };
    let ended = verify::verify(subject.log.as_ref(), &subject.groups, plan, &mut hear).await;
    bar.finish_and_clear();
    match (ended, failed) {
        (Ok(summary), _) => Ok(Some(summary)),
        (Err(Stopped::Unheard), Some(error)) if !error.is::<super::output::Unheard>() => Err(error),
        (Err(Stopped::Unheard), _) => Ok(None),
        (Err(error), _) => Err(error).with_context(|| format!("datastore {name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentage_is_read_exactly() {
        for (text, millionths) in
            [("100", 1_000_000), ("1", 10_000), ("0.5", 5_000), ("0.0001", 1), ("12.3456", 123_456)]
        {
            assert_eq!(text.parse(), Ok(Percent(millionths)), "{text}");
        }
        for bad in ["", "0", "0.0", "100.0001", "101", "-1", "1e1", ".5", "5.", "0.00001", "1,5", "99999999999"] {
            assert!(bad.parse::<Percent>().is_err(), "{bad}");
        }
    }
}
