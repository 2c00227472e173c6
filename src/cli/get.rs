//! `get`: one cell, or those of a row.

use super::{
    Context,
    exit::{Absent, Done, Usage},
    open::Open,
    output::{CellLine, plain, say, time},
};
use crate::cell::{Cell, CellKey, Name, REF_KEY_MAX, RefKey};

/// Most cells of a row that are printed.
const ROW_MAX: usize = 10_000;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The datastore.
    datastore: Name,
    /// The row key.
    row: String,
    /// The column; without one, all cells of the row are listed.
    column: Option<String>,
    /// The ref key; without one, the latest cell of the column.
    #[arg(long = "ref", value_name = "N", requires = "column", value_parser = clap::value_parser!(u64).range(..=REF_KEY_MAX))]
    ref_key: Option<RefKey>,
}

pub(super) async fn get(context: &mut Context, args: Args) -> anyhow::Result<Done> {
    let Args { datastore, row, column, ref_key } = args;
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
        let mut cells = log.row(&row, ROW_MAX + 1).await?;
        if cells.is_empty() {
            return Err(Absent(format!("{datastore} has no cell of row {}", plain(&row))).into());
        }
        if cells.len() > ROW_MAX {
            cells.truncate(ROW_MAX);
            say(format_args!("the row has more cells; these are the first {ROW_MAX}"));
        }
        let cells: Vec<Cell> = cells.into_iter().map(|stored| stored.cell).collect();
        return list(context, &cells);
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
    if context.output.is_json() {
        context.output.object(&CellLine::of(&stored.cell)?)?;
    } else {
        context.output.text(&stored.cell.body)?;
    }
    Ok(Done::All)
}

fn list(context: &mut Context, cells: &[Cell]) -> anyhow::Result<Done> {
    if context.output.is_json() {
        for cell in cells {
            context.output.object(&CellLine::of(cell)?)?;
        }
        return Ok(Done::All);
    }
    let rows: Vec<[String; 6]> = cells
        .iter()
        .map(|cell| {
            let Cell { key, shard, added_id, created_at, body } = cell;
            let (column, ref_key) = (key.column.to_string(), key.ref_key.to_string());
            [column, ref_key, shard.to_string(), added_id.to_string(), time(*created_at), body.to_string()]
        })
        .collect();
    context.output.table(["COLUMN", "REF_KEY", "SHARD", "ADDED_ID", "CREATED_AT", "BODY"], &rows)?;
    Ok(Done::All)
}
