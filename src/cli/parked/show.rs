//! `parked show`: everything about one parked cell.

use super::{ParkedLine, filter::State, places, read::at};
use crate::{
    cell::{AddedId, CellKey, Lane, LaneKind, Ledger, Log, Name, Parked, ParkedState, StoreError, StoredCell},
    cli::{
        Context,
        exit::{Absent, Done},
        open::{Open, source, trigger},
        output::{one_line, plain, time},
        tail::shards,
    },
    store::lane_where,
};
use serde::Serialize;
use serde_json::value::RawValue;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ShowArgs {
    /// The trigger.
    trigger: Name,
    /// The shard of the cell.
    shard: u32,
    /// The place of the cell in its shard.
    added_id: u64,
}

/// A parked cell, as it is shown.
#[derive(Serialize)]
struct ShowLine<'a> {
    #[serde(flatten)]
    parked: ParkedLine<'a>,
    /// As the handler was given it.
    event_id: String,
    created_at: Option<i64>,
    body: Option<Box<RawValue>>,
    waits_for: Option<WaitsFor>,
    /// Parked cells of its row that go before it, and after it.
    ahead: usize,
    behind: usize,
}

/// The retrying cell of its row that a waiting one is behind.
#[derive(Serialize)]
struct WaitsFor {
    added_id: u64,
    attempts: u32,
    next_attempt_at: i64,
}

/// The parked cells of a row around one of them; a dead one blocks nobody and waits for nobody.
#[derive(Debug, Default, PartialEq)]
struct Row {
    head: Option<Parked>,
    ahead: usize,
    behind: usize,
}

impl Row {
    fn around(parked: &Parked, row: Vec<Parked>) -> Self {
        let ahead = row.iter().filter(|other| other.added_id < parked.added_id).count();
        let behind = row.iter().filter(|other| other.added_id > parked.added_id).count();
        let before = |other: &Parked| other.state == ParkedState::Retrying && other.added_id < parked.added_id;
        let waits = parked.state == ParkedState::Waiting;
        let head = row.into_iter().find(|other| waits && before(other));
        Self { head, ahead, behind }
    }

    async fn read(ledger: &dyn Ledger, parked: &Parked) -> Result<Self, StoreError> {
        let lane = Lane { kind: LaneKind::Active, ..parked.lane() };
        if parked.lane() != lane {
            return Ok(Self::default());
        }
        Ok(Self::around(parked, lane_where(ledger, &lane, |other| other.row_key == parked.row_key).await?))
    }
}

/// The cell itself; a range that cannot be decoded has none.
async fn stored(log: &dyn Log, parked: &Parked) -> Result<Option<StoredCell>, StoreError> {
    if parked.row_key.is_empty() {
        return Ok(None);
    }
    let (row_key, column) = (parked.row_key.as_str().into(), parked.column.as_str().into());
    log.get(&CellKey { row_key, column, ref_key: parked.ref_key }).await
}

pub(super) async fn show(context: &mut Context, args: ShowArgs) -> anyhow::Result<Done> {
    let open = Open::new(context).await?;
    let ledger = open.ledger().await?;
    let record = trigger(ledger.as_ref(), &args.trigger).await?;
    let log = source(&open, &record).await?;
    let ShowArgs { trigger: name, shard, added_id } = args;
    let [at_shard] = shards(&log, Some(shard))?[..] else { unreachable!("one shard was asked for") };
    let Some(parked) = at(ledger.as_ref(), &record, at_shard, AddedId(added_id)).await? else {
        let todo = format!("`cellhook checkpoint show {name} --shard {shard}` tells how far {name} is");
        return Err(Absent(format!("no cell of {name} lies parked at {added_id} of shard {shard}; {todo}")).into());
    };
    let row = Row::read(ledger.as_ref(), &parked).await?;
    let cell = stored(log.as_ref(), &parked).await?.map(|stored| stored.cell);
    let datastore = log.datastore();
    let line = ShowLine {
        parked: ParkedLine::of(&record.name, &parked),
        event_id: format!("{}/{}/{at_shard}/{}", datastore.name, datastore.incarnation, parked.added_id),
        created_at: cell.as_ref().map(|cell| cell.created_at.0),
        body: cell.as_ref().map(|cell| one_line(&cell.body)).transpose()?,
        waits_for: row.head.as_ref().map(|head| WaitsFor {
            added_id: head.added_id.0,
            attempts: head.attempts,
            next_attempt_at: head.next_attempt_at.0,
        }),
        ahead: row.ahead,
        behind: row.behind,
    };
    if context.output.is_json() {
        context.output.object(&line)?;
        return Ok(Done::All);
    }
    let retrying = |cell: &Parked| format!("tried again at {}", time(cell.next_attempt_at));
    let text = |text: &str| if text.is_empty() { "-".to_owned() } else { plain(text) };
    let state = match parked.state {
        ParkedState::Retrying => format!("retrying, {}", retrying(&parked)),
        state => State::of(state).text().into(),
    };
    let waits_for = row.head.as_ref().map_or_else(
        || "-".into(),
        |head| format!("added ID {}, which failed {} times and is {}", head.added_id, head.attempts, retrying(head)),
    );
    let mut lines = vec![
        ("trigger", record.name.to_string()),
        ("datastore", datastore.name.to_string()),
        ("shard", shard.to_string()),
        ("added ID", places(&parked)),
        ("event ID", line.event_id.clone()),
        ("row", text(&parked.row_key)),
        ("column", text(&parked.column)),
        ("ref key", parked.ref_key.to_string()),
        ("appended", cell.as_ref().map_or_else(|| "-".into(), |cell| time(cell.created_at))),
        ("state", state),
        ("attempts", parked.attempts.to_string()),
        ("since", time(parked.since)),
        ("waits for", waits_for),
        ("of its row", format!("{} parked ahead of it, {} behind it", row.ahead, row.behind)),
    ];
    let errors = parked.errors.iter().enumerate();
    lines.extend(errors.map(|(at, error)| (if at == 0 { "errors" } else { "" }, text(error))));
    lines.push(("body", cell.as_ref().map_or_else(|| "-".into(), |cell| plain(&cell.body))));
    for (label, value) in lines {
        context.output.text(&format!("{label:<12}{value}"))?;
    }
    Ok(Done::All)
}

#[cfg(test)]
mod tests {
    use super::super::testing::parked;
    use super::*;

    #[test]
    fn a_waiting_cell_waits_for_the_first_retrying_one_of_its_row() {
        let at = |place, state| Parked { added_id: AddedId(place), last: AddedId(place), ..parked(state) };
        let row = || vec![at(4, ParkedState::Retrying), at(5, ParkedState::Waiting), at(9, ParkedState::Waiting)];
        let around = |cell: &Parked| Row::around(cell, row());
        assert_eq!(around(&row()[0]), Row { head: None, ahead: 0, behind: 2 });
        assert_eq!(around(&row()[1]), Row { head: Some(row()[0].clone()), ahead: 1, behind: 1 });
        assert_eq!(around(&row()[2]), Row { head: Some(row()[0].clone()), ahead: 2, behind: 0 });
    }
}
