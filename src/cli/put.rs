//! `put`: one cell, or those of a file.

use super::{
    Context,
    bar::bar,
    exit::{Done, Usage},
    lines::{self, Line, Lines},
    open::Open,
    output::{ERASED, Output, plain},
};
use crate::{
    cell::{Log, Name, NewCell, REF_KEY_MAX, RefKey, ShardId, StoreError},
    store::{Cells, Placed, PutError},
};
use anyhow::Context as _;
use bytestring::ByteString;
use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::{HumanCount, ProgressBar};
use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::value::RawValue;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
};
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

/// Latest cells that are read at a time.
const PARALLEL_READS: usize = 32;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The datastore.
    datastore: Name,
    /// The row key.
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    row: Option<String>,
    /// The column.
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    column: Option<String>,
    /// The body, a JSON text.
    #[arg(required_unless_present = "file", conflicts_with = "file", allow_hyphen_values = true)]
    body: Option<String>,
    /// The ref key; without one, the latest cell's plus one, or 1.
    #[arg(long = "ref", value_name = "N", conflicts_with = "file", value_parser = clap::value_parser!(u64).range(..=REF_KEY_MAX))]
    ref_key: Option<RefKey>,
    /// A file with one object a line: {"row_key", "column", "ref_key"?, "body"}; "-" for stdin.
    #[arg(long)]
    file: Option<PathBuf>,
}

pub(super) async fn put(context: &mut Context, args: Args) -> anyhow::Result<Done> {
    let open = Open::new(context).await?;
    let cells = Cells::new(open.datastore(&args.datastore).await?);
    match args {
        Args { file: Some(file), .. } => put_file(&mut context.output, &cells, file).await,
        Args { row: Some(row), column: Some(column), body: Some(body), ref_key, .. } => {
            let wanted = Wanted { row_key: row.into(), column: column.into(), ref_key, body: body.into() };
            put_one(&mut context.output, &cells, wanted).await
        }
        _ => Err(Usage("a cell has a row, a column and a body".into()).into()),
    }
}

/// A cell as it was given.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) row_key: ByteString,
    pub(super) column: ByteString,
    /// Left out: to be decided, once.
    pub(super) ref_key: Option<RefKey>,
    pub(super) body: ByteString,
}

/// What became of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    New,
    Repeated,
    Conflict,
    Refused,
    Erased,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::New => "new",
            Self::Repeated => "repeated",
            Self::Conflict => "conflict",
            Self::Refused => "refused",
            Self::Erased => ERASED,
        })
    }
}

/// The answer for one cell. What is not known of a line that is no cell is null.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u64>,
    row_key: Option<&'a str>,
    column: Option<&'a str>,
    ref_key: Option<RefKey>,
    shard: Option<u32>,
    added_id: Option<u64>,
    status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl<'a> Answer<'a> {
    /// Of what is no cell.
    fn refused(line: Option<u64>, error: String) -> Self {
        let (row_key, column, ref_key, shard, added_id) = (None, None, None, None, None);
        Self { line, row_key, column, ref_key, shard, added_id, status: Status::Refused, error: Some(error) }
    }

    /// Of a cell that was not let in.
    fn refused_cell(line: Option<u64>, wanted: &'a Wanted, reason: String) -> Self {
        Self {
            row_key: Some(&wanted.row_key),
            column: Some(&wanted.column),
            ref_key: wanted.ref_key,
            ..Self::refused(line, reason)
        }
    }

    /// Of what the store said; its own failures are no answer.
    fn of(
        line: Option<u64>,
        cell: &'a NewCell,
        decided: bool,
        shards: u32,
        put: Result<Placed, PutError>,
    ) -> Result<Self, PutError> {
        let shard = ShardId::of(&cell.key.row_key, shards);
        let (added_id, status, error) = match put {
            Ok(Placed { added_id, new, .. }) => {
                (Some(added_id.0), if new { Status::New } else { Status::Repeated }, None)
            }
            Err(PutError::Refused(refusal)) => (None, Status::Refused, Some(refusal.to_string())),
            Err(PutError::Conflict { existing }) => {
                let digest = |body: &str| format!("{:016x}", xxh3_64(body.as_bytes()));
                let (theirs, ours) = (digest(&existing.cell.body), digest(&cell.body));
                let race = if decided { "; somebody else put this ref_key at the same time, put again" } else { "" };
                let error = format!("the stored body has digest {theirs}, this one {ours}{race}");
                (Some(existing.cell.added_id.0), Status::Conflict, Some(error))
            }
            Err(PutError::Erased { existing }) => {
                let error = "the cell at this address was erased, and an address is never used again";
                (Some(existing.cell.added_id.0), Status::Erased, Some(error.into()))
            }
            Err(error) => return Err(error),
        };
        let (row_key, column) = (Some(&*cell.key.row_key), Some(&*cell.key.column));
        Ok(Self {
            line,
            row_key,
            column,
            ref_key: Some(cell.key.ref_key),
            shard: Some(shard.0),
            added_id,
            status,
            error,
        })
    }
}

async fn put_one(output: &mut Output, cells: &Cells, wanted: Wanted) -> anyhow::Result<Done> {
    let decided = wanted.ref_key.is_none();
    let mut decide = Deciding::default();
    decide.read(cells.log().as_ref(), std::iter::once(&wanted)).await?;
    let answer;
    let cell;
    match decide.cell(&wanted) {
        Err(reason) => answer = Answer::refused_cell(None, &wanted, reason),
        Ok(new) => {
            cell = new;
            let mut puts = cells.put(vec![cell.clone()]).await;
            let put = puts.pop().context("a put of one cell has one answer")?;
            answer = Answer::of(None, &cell, decided, cells.datastore().shards, put)?;
        }
    }
    if output.is_json() {
        output.object(&answer)?;
    }
    match &answer {
        Answer { status, error: Some(error), .. } => output.say(format_args!("cellhook: {status}: {}", plain(error))),
        Answer { status, ref_key: Some(ref_key), shard: Some(shard), added_id: Some(added_id), .. }
            if !output.is_json() =>
        {
            output.text(&format!("{status}: ref_key {ref_key}, shard {shard}, added_id {added_id}"))?;
        }
        _ => {}
    }
    Ok(if answer.error.is_some() { Done::Partly } else { Done::All })
}

/// Gives cells without a ref key the next one of their column, each once.
#[derive(Default)]
struct Deciding {
    latest: BTreeMap<(ByteString, ByteString), Option<RefKey>>,
}

impl Deciding {
    /// Reads the latest cells of all columns that need it.
    async fn read<'a>(&mut self, log: &dyn Log, wanted: impl Iterator<Item = &'a Wanted>) -> Result<(), StoreError> {
        let undecided = wanted.filter(|wanted| wanted.ref_key.is_none());
        // What is no address would be refused by the store, and by us with the reason, later.
        let columns: BTreeSet<_> = undecided
            .filter(|wanted| wanted.address(0).check().is_ok())
            .map(|wanted| (wanted.row_key.clone(), wanted.column.clone()))
            .collect();
        let reads = stream::iter(columns).map(async |(row, column)| {
            let latest = log.latest(&row, &column).await?;
            Ok(((row, column), latest.map(|stored| stored.cell.key.ref_key)))
        });
        self.latest = reads.buffer_unordered(PARALLEL_READS).try_collect().await?;
        Ok(())
    }

    /// The cell, checked; or why it is none. One that is refused takes no ref key.
    fn cell(&mut self, wanted: &Wanted) -> Result<NewCell, String> {
        let latest = self.latest.get_mut(&(wanted.row_key.clone(), wanted.column.clone()));
        let ref_key = match (wanted.ref_key, &latest) {
            (Some(given), _) => given,
            (None, Some(Some(REF_KEY_MAX))) => {
                return Err(format!(
                    "the latest cell of the column has ref_key {REF_KEY_MAX} already, and there is none above it: say which \
                     ref_key this one has"
                ));
            }
            (None, Some(latest)) => latest.map_or(1, |latest| latest + 1),
            // Not read because it is no address; the check says why.
            (None, None) => 0,
        };
        let cell = NewCell { key: wanted.address(ref_key), body: wanted.body.clone(), origin: None };
        cell.check().map_err(|refusal| refusal.to_string())?;
        if let Some(latest) = latest {
            *latest = (*latest).max(Some(ref_key));
        }
        Ok(cell)
    }
}

/// A cell of a line. The fields that `tail --json` prints beside are no mistake; others are.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written<'a> {
    row_key: String,
    column: String,
    #[serde(default)]
    ref_key: Option<RefKey>,
    #[serde(borrow)]
    body: &'a RawValue,
    #[serde(default, rename = "shard")]
    _shard: IgnoredAny,
    #[serde(default, rename = "added_id")]
    _added_id: IgnoredAny,
    #[serde(default, rename = "created_at")]
    _created_at: IgnoredAny,
    /// An erased cell, as `tail` prints it, has no body: its `null` is not one.
    #[serde(default)]
    erased: bool,
}

impl Wanted {
    /// Of a line of a bulk file.
    pub(super) fn read(line: &[u8]) -> Result<Self, String> {
        let Written { row_key, column, ref_key, body, erased, .. } = lines::object(line)?;
        if erased {
            return Err("the cell was erased: there is no body to put".into());
        }
        Ok(Self { row_key: row_key.into(), column: column.into(), ref_key, body: body.get().into() })
    }

    fn address(&self, ref_key: RefKey) -> crate::cell::CellKey {
        crate::cell::CellKey { row_key: self.row_key.clone(), column: self.column.clone(), ref_key }
    }
}

/// How many cells ended how; the last line of a bulk put.
#[derive(Debug, Default, Serialize)]
struct Counts {
    new: u64,
    repeated: u64,
    conflict: u64,
    refused: u64,
    erased: u64,
}

impl Counts {
    fn count(&mut self, status: Status) {
        *match status {
            Status::New => &mut self.new,
            Status::Repeated => &mut self.repeated,
            Status::Conflict => &mut self.conflict,
            Status::Refused => &mut self.refused,
            Status::Erased => &mut self.erased,
        } += 1;
    }

    fn all(&self) -> u64 {
        self.new + self.repeated + self.conflict + self.refused + self.erased
    }
}

/// A bulk put that is under way.
struct Bulk<'a> {
    output: &'a mut Output,
    cells: &'a Cells,
    counts: Counts,
    bar: ProgressBar,
    started: Instant,
}

async fn put_file(output: &mut Output, cells: &Cells, file: PathBuf) -> anyhow::Result<Done> {
    let named = file.display().to_string();
    let Lines { mut chunks, length } = lines::read(file, Wanted::read)?;
    let bar = match length {
        Some(_) => bar(length, "{wide_bar} {bytes}/{total_bytes}  {msg}"),
        None => bar(None, "{spinner} {bytes}  {msg}"),
    };
    let mut bulk = Bulk { output, cells, counts: Counts::default(), bar, started: Instant::now() };
    let mut ended = Ok(());
    let mut received = Vec::new();
    while chunks.recv_many(&mut received, lines::CHUNKS).await > 0 {
        let mut lines = Vec::new();
        for chunk in received.drain(..) {
            bulk.bar.inc(chunk.bytes);
            lines.extend(chunk.lines);
            if let Some(error) = chunk.error {
                ended = Err(error).with_context(|| format!("{named} cannot be read on"));
            }
        }
        if let Err(error) = bulk.put(lines).await {
            ended = Err(error);
            break;
        }
    }
    let Bulk { counts, bar, started, .. } = bulk;
    bar.finish_and_clear();
    let seconds = started.elapsed().as_secs_f64().max(0.001);
    if output.is_json() {
        output.object(&counts)?;
    }
    let Counts { new, repeated, conflict, refused, erased } = &counts;
    let rate = per_second(counts.all(), seconds);
    output.say(format_args!(
        "{new} new, {repeated} repeated, {conflict} in conflict, {refused} refused, {erased} erased; {seconds:.1} s, {rate} cells/s"
    ));
    ended?;
    Ok(if *conflict + *refused + *erased > 0 { Done::Partly } else { Done::All })
}

impl Bulk<'_> {
    /// Puts the cells of some lines and tells what became of each, in order.
    async fn put(&mut self, lines: Vec<Line<Wanted>>) -> anyhow::Result<()> {
        let shards = self.cells.datastore().shards;
        let mut decide = Deciding::default();
        let wanted = lines.iter().filter_map(|line| line.item.as_ref().ok());
        decide.read(self.cells.log().as_ref(), wanted).await?;
        let mut new_cells = Vec::with_capacity(lines.len());
        // Of each line: the place of its cell among those that are put, or why it has none.
        let mut places = Vec::with_capacity(lines.len());
        for line in &lines {
            places.push(match line.item.as_ref().map(|wanted| (wanted, decide.cell(wanted))) {
                Ok((wanted, Ok(cell))) => {
                    new_cells.push(cell);
                    Ok((new_cells.len() - 1, wanted.ref_key.is_none()))
                }
                Ok((wanted, Err(reason))) => Err(Answer::refused_cell(Some(line.number), wanted, reason)),
                Err(reason) => Err(Answer::refused(Some(line.number), reason.clone())),
            });
        }
        let mut puts: Vec<Option<_>> = self.cells.put(new_cells.clone()).await.into_iter().map(Some).collect();
        let mut unacknowledged: Option<(u64, u64, PutError)> = None;
        for (line, place) in lines.iter().zip(places) {
            let answer = match place {
                Err(refused) => refused,
                Ok((at, decided)) => {
                    let put = puts[at].take().context("each line has a cell of its own")?;
                    match Answer::of(Some(line.number), &new_cells[at], decided, shards, put) {
                        Ok(answer) => answer,
                        Err(error) => {
                            let (first, others, error) = unacknowledged.unwrap_or((line.number, 0, error));
                            unacknowledged = Some((first, others + 1, error));
                            continue;
                        }
                    }
                }
            };
            self.tell(&answer)?;
        }
        self.output.flush()?;
        let rate = per_second(self.counts.all(), self.started.elapsed().as_secs_f64());
        self.bar.set_message(format!("{} cells, {rate}/s", HumanCount(self.counts.all())));
        match unacknowledged {
            None => Ok(()),
            Some((first, cells, error)) => Err(error).with_context(|| {
                format!(
                    "{cells} cells were not acknowledged, the first of them on line {first}; nothing after these was put. Put \
                     the lines from there again: a cell with a ref_key that is stored already is only repeated"
                )
            }),
        }
    }

    fn tell(&mut self, answer: &Answer<'_>) -> anyhow::Result<()> {
        self.counts.count(answer.status);
        if self.output.is_json() {
            self.output.object(answer)?;
        } else if let Answer { line: Some(line), status, error: Some(error), .. } = answer {
            let error = plain(error);
            self.bar.suspend(|| self.output.say(format_args!("line {line}: {status}: {error}")));
        }
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "for people")]
fn per_second(cells: u64, seconds: f64) -> HumanCount {
    HumanCount((cells as f64 / seconds.max(0.001)) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cell::NewDatastore, store::memory::MemoryLog};
    use std::sync::Arc;

    fn wanted(row: &str, ref_key: Option<RefKey>) -> Wanted {
        Wanted { row_key: row.into(), column: "C".into(), ref_key, body: "1".into() }
    }

    #[tokio::test]
    async fn a_missing_ref_key_is_the_next_one_of_its_column() {
        let name = Name::new("trips").unwrap();
        let cells = Cells::new(Arc::new(MemoryLog::new(&NewDatastore { name, shards: 4 })));
        let mut stored = Deciding::default();
        assert!(cells.put(vec![stored.cell(&wanted("a", Some(41))).unwrap()]).await[0].is_ok());

        let lines = [wanted("a", None), wanted("b", None), wanted("b", Some(7)), wanted("b", None), wanted("a", None)];
        let mut deciding = Deciding::default();
        deciding.read(cells.log().as_ref(), lines.iter()).await.unwrap();
        let keys = lines.map(|line| deciding.cell(&line).unwrap().key.ref_key);
        assert_eq!(keys, [42, 1, 7, 8, 43]);
        assert!(deciding.cell(&wanted("", None)).unwrap_err().starts_with("row_key has 0 bytes"));
    }

    #[tokio::test]
    async fn a_cell_that_is_refused_takes_no_ref_key() {
        let name = Name::new("trips").unwrap();
        let log = MemoryLog::new(&NewDatastore { name, shards: 4 });
        let bad = |wanted: Wanted| Wanted { body: "no JSON".into(), ..wanted };
        let mut deciding = Deciding::default();
        deciding.read(&log, [wanted("a", None)].iter()).await.unwrap();
        for refused in [bad(wanted("a", Some(REF_KEY_MAX))), wanted("a", Some(u64::MAX)), bad(wanted("a", None))] {
            assert!(deciding.cell(&refused).is_err());
        }
        let mut next = |ref_key| deciding.cell(&wanted("a", ref_key)).map(|cell| cell.key.ref_key);
        assert_eq!(next(None), Ok(1));
        assert_eq!(next(Some(REF_KEY_MAX)), Ok(REF_KEY_MAX));
        assert!(next(None).unwrap_err().contains("has ref_key 9223372036854775807 already"));
        assert_eq!(next(Some(7)), Ok(7));
    }
}
