//! `put`, `get`, `tail`: cells.

use super::{
    Exit,
    home::{Home, NotThere, print_json, print_line},
};
use crate::{
    cell::{AddedId, Cell, CellKey, Millis, Name, NewCell, RefKey, ShardId, StoreError, chain},
    store::{Cells, Placed, PutError},
    tail::{at_time, cells as read_cells, newest, oldest},
};
use anyhow::Context as _;
use bytestring::ByteString;
use clap::Args;
use futures_util::{StreamExt, stream};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, BufRead, BufReader, Read, Write as _},
    path::PathBuf,
    time::Duration,
};

/// Cells of a bulk that are appended together.
const BULK: usize = 2000;
/// Longest line of a bulk file: the largest cell, escaped, with room.
const LINE_MAX: u64 = 4 << 20;
/// Latest ref keys that are looked up at a time.
const LOOK_UPS: usize = 32;
/// Cells of a row that `get` prints at most.
const ROW_MAX: usize = 10_000;
/// Cells that `tail` reads at a time.
const PAGE: usize = 500;
/// Between two looks of `tail --follow`.
const FOLLOW: Duration = Duration::from_millis(200);

/// Arguments of `put`.
#[derive(Debug, Args)]
pub(super) struct Put {
    /// The datastore
    datastore: Name,
    /// Row key
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    row: Option<String>,
    /// Column
    #[arg(required_unless_present = "file")]
    column: Option<String>,
    /// JSON text
    #[arg(required_unless_present = "file")]
    body: Option<String>,
    /// Ref key; default: one more than the latest of that row and column
    #[arg(long = "ref", value_name = "N")]
    ref_key: Option<RefKey>,
    /// Lines of {"row_key", "column", "ref_key"?, "body"}; - for standard input
    #[arg(long, value_name = "FILE", conflicts_with = "ref_key")]
    file: Option<PathBuf>,
    /// One JSON object a cell on standard output; for a file, the counts at the end
    #[arg(long)]
    json: bool,
}

/// Arguments of `get`.
#[derive(Debug, Args)]
pub(super) struct Get {
    /// The datastore
    datastore: Name,
    /// Row key
    row: String,
    /// Column; without it, all cells of the row
    column: Option<String>,
    /// One version; default: the latest
    #[arg(long = "ref", value_name = "N", requires = "column")]
    ref_key: Option<RefKey>,
    /// The whole cell as a JSON object, not its body alone
    #[arg(long)]
    json: bool,
}

/// Arguments of `tail`.
#[derive(Debug, Args)]
pub(super) struct Tail {
    /// The datastore
    datastore: Name,
    /// One shard; default: all
    #[arg(long, value_name = "N")]
    shard: Option<u32>,
    /// oldest, newest, an added ID, or a time such as 2026-11-21T10:00:00Z
    #[arg(long, value_name = "PLACE", default_value = "oldest")]
    from: String,
    /// Wait for more
    #[arg(long)]
    follow: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

/// A line of a bulk file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    row_key: String,
    column: String,
    #[serde(default)]
    ref_key: Option<RefKey>,
    #[serde(borrow)]
    body: &'a RawValue,
}

/// What `put` answers about a cell.
#[derive(Serialize)]
struct Answer<'a> {
    row_key: &'a str,
    column: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ref_key: Option<RefKey>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shard: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    added_id: Option<u64>,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// How many cells ended how.
#[derive(Default, Serialize)]
struct Counts {
    new: u64,
    repeated: u64,
    conflict: u64,
    refused: u64,
}

/// Appends one cell, or those of a file.
pub(super) async fn put(home: &Home, put: Put) -> anyhow::Result<Exit> {
    let store = home.store().await?;
    let cells = home.cells(&store, &put.datastore).await?;
    match put.file {
        Some(path) => put_file(&cells, path, put.json).await,
        None => {
            let text = |text: Option<String>| ByteString::from(text.unwrap_or_default());
            let asked =
                Asked { row_key: text(put.row), column: text(put.column), ref_key: put.ref_key, body: text(put.body) };
            let new = number(&cells, vec![asked]).await?;
            let answer = cells.put(new.clone()).await.pop().context("one answer for one cell")?;
            say(&new[0], &answer, put.json, None)?;
            match answer {
                Ok(_) => Ok(Exit::Done),
                Err(PutError::Refused(_) | PutError::Conflict { .. }) => Ok(Exit::Refused),
                Err(error @ PutError::Store(_)) => Err(error.into()),
            }
        }
    }
}

/// A cell that may still need its ref key.
struct Asked {
    row_key: ByteString,
    column: ByteString,
    ref_key: Option<RefKey>,
    body: ByteString,
}

/// Gives those without a ref key the one after the latest. Decided once: a race for it ends in a conflict, told as such.
async fn number(cells: &Cells, asked: Vec<Asked>) -> Result<Vec<NewCell>, StoreError> {
    let open: BTreeSet<(ByteString, ByteString)> = asked
        .iter()
        .filter(|cell| cell.ref_key.is_none())
        .map(|cell| (cell.row_key.clone(), cell.column.clone()))
        .filter(|(row_key, column)| {
            CellKey { row_key: row_key.clone(), column: column.clone(), ref_key: 0 }.check().is_ok()
        })
        .collect();
    let look_ups = open.into_iter().map(|(row_key, column)| async move {
        let latest = cells.log().latest(&row_key, &column).await?;
        Ok::<_, StoreError>(((row_key, column), latest.map_or(0, |stored| stored.cell.key.ref_key.saturating_add(1))))
    });
    let found: Vec<_> = stream::iter(look_ups).buffer_unordered(LOOK_UPS).collect().await;
    let mut next: BTreeMap<(ByteString, ByteString), RefKey> = found.into_iter().collect::<Result<_, _>>()?;
    let new = asked.into_iter().map(|Asked { row_key, column, ref_key, body }| {
        let ref_key = ref_key.unwrap_or_else(|| {
            let next = next.entry((row_key.clone(), column.clone())).or_default();
            let this = *next;
            *next = next.saturating_add(1);
            this
        });
        NewCell { key: CellKey { row_key, column, ref_key }, body, origin: None }
    });
    Ok(new.collect())
}

async fn put_file(cells: &Cells, path: PathBuf, json: bool) -> anyhow::Result<Exit> {
    let input: Box<dyn Read + Send> = if path.as_os_str() == "-" {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(&path).with_context(|| format!("cannot open {}", path.display()))?)
    };
    let mut lines = BufReader::with_capacity(1 << 20, input);
    let progress = ProgressBar::no_length();
    progress.set_draw_target(ProgressDrawTarget::stderr_with_hz(5));
    if let Ok(style) = ProgressStyle::with_template("{spinner} {human_pos} cells, {per_sec}, {elapsed}") {
        progress.set_style(style);
    }
    let start = tokio::time::Instant::now();
    let mut counts = Counts::default();
    let mut at = 0_u64;
    let mut ended = false;
    while !ended {
        let mut batch = Vec::with_capacity(BULK);
        let mut places = Vec::with_capacity(BULK);
        tokio::task::block_in_place(|| -> anyhow::Result<()> {
            while batch.len() < BULK {
                let mut line = Vec::new();
                let read = lines.by_ref().take(LINE_MAX + 1).read_until(b'\n', &mut line);
                let read = read.with_context(|| format!("cannot read {}", path.display()))?;
                if read == 0 {
                    ended = true;
                    break;
                }
                at += 1;
                if line.len() as u64 > LINE_MAX {
                    while line.last() != Some(&b'\n') {
                        line.clear();
                        if lines.by_ref().take(LINE_MAX).read_until(b'\n', &mut line)? == 0 {
                            break;
                        }
                    }
                    refuse(&mut counts, at, "the line is longer than 4 MiB", json)?;
                    continue;
                }
                if line.trim_ascii().is_empty() {
                    continue;
                }
                match parse(&line) {
                    Ok(asked) => {
                        batch.push(asked);
                        places.push(at);
                    }
                    Err(error) => refuse(&mut counts, at, &error, json)?,
                }
                // What is typed or piped in slowly is appended as it comes.
                if lines.buffer().is_empty() && path.as_os_str() == "-" {
                    break;
                }
            }
            Ok(())
        })?;
        let new = number(cells, batch).await?;
        let answers = cells.put(new.clone()).await;
        let mut unreachable = None;
        for ((cell, answer), at) in new.iter().zip(answers).zip(places) {
            say(cell, &answer, json, Some(at))?;
            match answer {
                Ok(Placed { new: true, .. }) => counts.new += 1,
                Ok(Placed { new: false, .. }) => counts.repeated += 1,
                Err(PutError::Conflict { .. }) => counts.conflict += 1,
                Err(PutError::Refused(_)) => counts.refused += 1,
                Err(error @ PutError::Store(_)) => unreachable = Some((at, error)),
            }
        }
        progress.set_position(counts.new + counts.repeated);
        if let Some((at, error)) = unreachable {
            progress.finish_and_clear();
            return Err(error).with_context(|| format!("line {at}; put the file again to go on, repeats do no harm"));
        }
    }
    progress.finish_and_clear();
    let Counts { new, repeated, conflict, refused } = counts;
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = (new + repeated) as f64 / start.elapsed().as_secs_f64().max(0.001);
    eprintln!("{new} new, {repeated} repeated, {conflict} in conflict, {refused} refused; {rate:.0} cells a second");
    if json {
        print_json(&counts)?;
    }
    Ok(if conflict + refused > 0 { Exit::Refused } else { Exit::Done })
}

fn parse(line: &[u8]) -> Result<Asked, String> {
    let line: Line<'_> = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    Ok(Asked {
        row_key: line.row_key.into(),
        column: line.column.into(),
        ref_key: line.ref_key,
        body: line.body.get().into(),
    })
}

fn refuse(counts: &mut Counts, at: u64, error: &str, json: bool) -> anyhow::Result<()> {
    counts.refused += 1;
    eprintln!("line {at}: refused: {error}");
    if json {
        print_json(&serde_json::json!({ "line": at, "status": "refused", "error": error }))?;
    }
    Ok(())
}

/// Says how a cell ended: in JSON on standard output; what went wrong also to people, with the line of its file.
fn say(cell: &NewCell, answer: &Result<Placed, PutError>, json: bool, line: Option<u64>) -> anyhow::Result<()> {
    let CellKey { row_key, column, ref_key } = &cell.key;
    let (status, placed, error) = match answer {
        Ok(placed) => (if placed.new { "new" } else { "repeated" }, Some((placed.shard, placed.added_id)), None),
        Err(PutError::Conflict { existing }) => {
            let stored = &existing.cell;
            let error = format!(
                "another body is stored at added ID {}: its digest is {}, this one's {}",
                stored.added_id,
                digest(&stored.body),
                digest(&cell.body)
            );
            ("conflict", Some((stored.shard, stored.added_id)), Some(error))
        }
        Err(PutError::Refused(refusal)) => ("refused", None, Some(refusal.to_string())),
        Err(PutError::Store(error)) => ("unknown", None, Some(chain(&**error))),
    };
    if let Some(error) = &error {
        let line = line.map_or_else(String::new, |line| format!("line {line}: "));
        eprintln!("{line}{row_key}/{column}/{ref_key}: {status}: {error}");
    }
    if json {
        let (shard, added_id) = placed.map(|(shard, added_id)| (shard.0, added_id.0)).unzip();
        let ref_key = Some(*ref_key);
        return print_json(&Answer { row_key, column, ref_key, shard, added_id, status, error });
    }
    if line.is_none()
        && let Some((shard, added_id)) = placed
        && error.is_none()
    {
        let what = if status == "new" { "stored" } else { "already there" };
        print_line(format_args!("{row_key}/{column}/{ref_key}: {what}, shard {shard}, added ID {added_id}"))?;
    }
    Ok(())
}

/// To tell two bodies apart without printing them.
fn digest(body: &str) -> String {
    format!("xxh3:{:016x}", xxhash_rust::xxh3::xxh3_64(body.as_bytes()))
}

/// A cell for programs.
#[derive(Serialize)]
struct CellJson<'a> {
    row_key: &'a str,
    column: &'a str,
    ref_key: RefKey,
    shard: u32,
    added_id: u64,
    created_at: i64,
    body: &'a RawValue,
}

fn print_cell(cell: &Cell) -> anyhow::Result<()> {
    let body: &RawValue = serde_json::from_str(&cell.body).context("the stored body is no JSON")?;
    print_json(&CellJson {
        row_key: &cell.key.row_key,
        column: &cell.key.column,
        ref_key: cell.key.ref_key,
        shard: cell.shard.0,
        added_id: cell.added_id.0,
        created_at: cell.created_at.0,
        body,
    })
}

/// Prints a cell's body, or the cells of a row.
pub(super) async fn get(home: &Home, get: Get) -> anyhow::Result<Exit> {
    let store = home.store().await?;
    let cells = home.cells(&store, &get.datastore).await?;
    let log = cells.log();
    let found: Vec<Cell> = match (&get.column, get.ref_key) {
        (Some(column), Some(ref_key)) => {
            let key = CellKey { row_key: get.row.clone().into(), column: column.clone().into(), ref_key };
            key.check().map_err(|refusal| NotThere(refusal.to_string()))?;
            log.get(&key).await?.map(|stored| stored.cell).into_iter().collect()
        }
        (Some(column), None) => {
            let key = CellKey { row_key: get.row.clone().into(), column: column.clone().into(), ref_key: 0 };
            key.check().map_err(|refusal| NotThere(refusal.to_string()))?;
            log.latest(&get.row, column).await?.map(|stored| stored.cell).into_iter().collect()
        }
        (None, _) => log.row(&get.row, ROW_MAX).await?.into_iter().map(|stored| stored.cell).collect(),
    };
    if found.is_empty() {
        let column = get.column.map_or_else(String::new, |column| format!("/{column}"));
        return Err(NotThere(format!("no cell at {}{column}", get.row)).into());
    }
    for cell in &found {
        if get.json {
            print_cell(cell)?;
        } else if get.column.is_some() {
            print_line(format_args!("{}", cell.body))?;
        } else {
            print_line(format_args!("{}\t{}\t{}", cell.key.column, cell.key.ref_key, cell.body))?;
        }
    }
    if found.len() == ROW_MAX {
        eprintln!("the row has more: only its first {ROW_MAX} cells are printed");
    }
    Ok(Exit::Done)
}

/// Prints the log.
pub(super) async fn tail(home: &Home, tail: Tail) -> anyhow::Result<Exit> {
    let store = home.store().await?;
    let cells = home.cells(&store, &tail.datastore).await?;
    let log = &**cells.log();
    let n = cells.datastore().shards;
    let shards: Vec<ShardId> = match tail.shard {
        Some(shard) if shard < n => vec![ShardId(shard)],
        Some(shard) => {
            return Err(NotThere(format!("{} has no shard {shard}, only 0 to {}", tail.datastore, n - 1)).into());
        }
        None => cells.datastore().all_shards().collect(),
    };
    let mut places = Vec::with_capacity(shards.len());
    for shard in shards {
        let place = match tail.from.as_str() {
            "oldest" => oldest(log, shard).await?,
            "newest" => newest(log, shard).await?,
            from => match from.parse::<u64>() {
                Ok(added_id) => AddedId(added_id),
                Err(_) => {
                    let time: jiff::Timestamp = from.parse().with_context(|| {
                        format!("--from {from:?} is none of oldest, newest, an added ID, or a time such as 2026-11-21T10:00:00Z")
                    })?;
                    at_time(log, shard, Millis(time.as_millisecond())).await?
                }
            },
        };
        places.push((shard, place));
    }
    loop {
        let mut quiet = true;
        for (shard, place) in &mut places {
            loop {
                let page = read_cells(log, *shard, *place, PAGE).await?;
                quiet &= page.cells.is_empty();
                *place = page.next;
                for cell in &page.cells {
                    if tail.json {
                        print_cell(cell)?;
                    } else {
                        let CellKey { row_key, column, ref_key } = &cell.key;
                        let mut out = io::stdout().lock();
                        writeln!(
                            out,
                            "{}\t{}\t{row_key}/{column}/{ref_key}\t{}",
                            cell.shard, cell.added_id, cell.body
                        )?;
                    }
                }
                if page.cells.len() < PAGE {
                    break;
                }
            }
        }
        if !tail.follow {
            return Ok(Exit::Done);
        }
        if quiet {
            tokio::time::sleep(FOLLOW).await;
        }
    }
}
