//! `get`: one cell, those of a row, or those whose addresses a file has.

use super::{
    Context,
    exit::{Absent, Done, Usage},
    lines::{self, Lines},
    open::Open,
    output::{ERASED, Output, body_text, plain, time},
};
use crate::cell::{Cell, CellKey, Log, Name, REF_KEY_MAX, RefKey, StoredCell};
use anyhow::Context as _;
use serde::{Deserialize, Serialize, de::IgnoredAny};
use std::path::PathBuf;

/// Cells of a row that are read at a time.
const PAGE: usize = 500;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The datastore.
    datastore: Name,
    /// The row key.
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    row: Option<String>,
    /// The column; without one, all cells of the row are listed.
    #[arg(conflicts_with = "file")]
    column: Option<String>,
    /// The ref key; without one, the latest cell of the column.
    #[arg(long = "ref", value_name = "N", requires = "column", conflicts_with = "file", value_parser = clap::value_parser!(u64).range(..=REF_KEY_MAX))]
    ref_key: Option<RefKey>,
    /// A file with one address a line: {"row_key", "column", "ref_key"}; "-" for stdin.
    #[arg(long)]
    file: Option<PathBuf>,
}

pub(super) async fn get(context: &mut Context, args: Args) -> anyhow::Result<Done> {
    let Args { datastore, row, column, ref_key, file } = args;
    let row = match (row, file) {
        (Some(row), _) => row,
        (None, Some(file)) => {
            let open = Open::new(context).await?;
            let log = open.datastore(&datastore).await?;
            return get_file(&mut context.output, log.as_ref(), file).await;
        }
        (None, None) => return Err(Usage("a cell has a row".into()).into()),
    };
    let key = CellKey {
        row_key: row.as_str().into(),
        column: column.as_deref().unwrap_or("any").into(),
        ref_key: ref_key.unwrap_or(0),
    };
    if let Err(refusal) = key.check() {
        return Err(Usage(refusal.to_string()).into());
    }
    let open = Open::new(context).await?;
    let log = open.datastore(&datastore).await?;
    let Some(column) = column else {
        return get_row(&mut context.output, log.as_ref(), &row).await;
    };
    let stored = match ref_key {
        Some(_) => log.get(&key).await?,
        None => log.latest(&row, &column).await?,
    };
    let Some(stored) = stored else {
        let at = ref_key.map_or_else(String::new, |ref_key| format!(" with ref_key {ref_key}"));
        let (row, column) = (plain(&row), plain(&column));
        return Err(Absent(format!("{datastore} has no cell {column} of row {row}{at}")).into());
    };
    if stored.cell.is_erased() {
        let CellKey { row_key, column, ref_key } = &stored.cell.key;
        if context.output.is_json() {
            context.output.object(&NoCellLine { row_key, column, ref_key: *ref_key, status: ERASED })?;
        }
        let (row, column) = (plain(row_key), plain(column));
        return Err(Absent(format!("the cell {column} of row {row} with ref_key {ref_key} was erased")).into());
    }
    if context.output.is_json() {
        context.output.cell(&stored.cell)?;
    } else {
        context.output.text(&stored.cell.body)?;
    }
    Ok(Done::All)
}

/// All cells of a row, a page at a time.
async fn get_row(output: &mut Output, log: &dyn Log, row: &str) -> anyhow::Result<Done> {
    let mut rows: Vec<[String; 6]> = Vec::new();
    let mut last: Option<CellKey> = None;
    loop {
        let page = log.row(row, last.as_ref(), PAGE).await?;
        let Some(stored) = page.last() else { break };
        last = Some(stored.cell.key.clone());
        for StoredCell { cell, .. } in &page {
            if output.is_json() {
                output.cell(cell)?;
                continue;
            }
            let Cell { key, shard, added_id, created_at, .. } = cell;
            let (column, ref_key) = (key.column.to_string(), key.ref_key.to_string());
            let body = body_text(cell).into();
            rows.push([column, ref_key, shard.to_string(), added_id.to_string(), time(*created_at), body]);
        }
        if page.len() < PAGE {
            break;
        }
    }
    if last.is_none() {
        return Err(Absent(format!("{} has no cell of row {}", log.datastore().name, plain(row))).into());
    }
    output.table(["COLUMN", "REF_KEY", "SHARD", "ADDED_ID", "CREATED_AT", "BODY"], &rows)?;
    Ok(Done::All)
}

/// An address of a line. The other fields of a cell as `tail --json` prints it are no mistake; others are.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Address {
    row_key: String,
    column: String,
    ref_key: RefKey,
    #[serde(default, rename = "shard")]
    _shard: IgnoredAny,
    #[serde(default, rename = "added_id")]
    _added_id: IgnoredAny,
    #[serde(default, rename = "created_at")]
    _created_at: IgnoredAny,
    #[serde(default, rename = "body")]
    _body: IgnoredAny,
    #[serde(default, rename = "erased")]
    _erased: IgnoredAny,
}

fn address(line: &[u8]) -> Result<CellKey, String> {
    let Address { row_key, column, ref_key, .. } = lines::object(line)?;
    let key = CellKey { row_key: row_key.into(), column: column.into(), ref_key };
    key.check().map_err(|refusal| refusal.to_string())?;
    Ok(key)
}

/// The answer for an address without a cell, or with one that was erased.
#[derive(Serialize)]
struct NoCellLine<'a> {
    row_key: &'a str,
    column: &'a str,
    ref_key: RefKey,
    status: &'static str,
}

/// The answer for a line that is no address.
#[derive(Serialize)]
struct RefusedLine<'a> {
    line: u64,
    status: &'static str,
    error: &'a str,
}

/// Gets the cells of a file's lines, in order, a batch at a time.
async fn get_file(output: &mut Output, log: &dyn Log, file: PathBuf) -> anyhow::Result<Done> {
    let named = file.display().to_string();
    let Lines { mut chunks, .. } = lines::read(file, address)?;
    let (mut there, mut absent, mut erased, mut refused) = (0_u64, 0_u64, 0_u64, 0_u64);
    while let Some(chunk) = chunks.recv().await {
        let keys: Vec<CellKey> = chunk.lines.iter().filter_map(|line| line.item.as_ref().ok()).cloned().collect();
        let mut found = log.get_all(&keys).await?.into_iter();
        for line in &chunk.lines {
            let number = line.number;
            match line.item.as_ref().map(|key| (key, found.next().flatten())) {
                Ok((_, Some(stored))) if !stored.cell.is_erased() => {
                    there += 1;
                    output.cell(&stored.cell)?;
                }
                Ok((key, stored)) => {
                    let (status, count) =
                        if stored.is_some() { (ERASED, &mut erased) } else { ("absent", &mut absent) };
                    *count += 1;
                    let CellKey { row_key, column, ref_key } = key;
                    if output.is_json() {
                        output.object(&NoCellLine { row_key, column, ref_key: *ref_key, status })?;
                    } else {
                        let (row, column) = (plain(row_key), plain(column));
                        output.say(format_args!("line {number}: {status}: {row} {column} {ref_key}"));
                    }
                }
                Err(error) => {
                    refused += 1;
                    if output.is_json() {
                        output.object(&RefusedLine { line: number, status: "refused", error })?;
                    } else {
                        output.say(format_args!("line {number}: refused: {}", plain(error)));
                    }
                }
            }
        }
        output.flush()?;
        if let Some(error) = chunk.error {
            return Err(error).with_context(|| format!("{named} cannot be read on"));
        }
    }
    output.say(format_args!("{there} found, {absent} absent, {refused} refused, {erased} erased"));
    Ok(match (absent + erased, refused) {
        (_, 1..) => Done::Partly,
        (1.., 0) => Done::NotFound,
        (0, 0) => Done::All,
    })
}
