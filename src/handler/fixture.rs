//! Values that the tests of this room share.

use crate::cell::{AddedId, Call, Cell, CellKey, Datastore, Epoch, Event, Incarnation, Millis, Name, ShardId};
use std::{sync::Arc, time::Duration};

/// Shard of all events here.
pub(super) const SHARD: u32 = 5;

/// An event of the cell at `added_id` of datastore `trips`.
pub(super) fn event(added_id: u64, body: &str) -> Event {
    Event {
        cell: Cell {
            key: CellKey { row_key: format!("row-{added_id}").into(), column: "BASE".into(), ref_key: 7 },
            shard: ShardId(SHARD),
            added_id: AddedId(added_id),
            created_at: Millis(1_763_719_200_123),
            body: body.into(),
        },
        datastore: Arc::new(Datastore {
            name: Name::new("trips").unwrap(),
            shards: 64,
            incarnation: Incarnation::from_stored("k3v9"),
        }),
        trigger: Name::new("bill_rider").unwrap(),
        attempt: 2,
        epoch: Epoch(31),
        latest: Arc::new([]),
        alone: false,
    }
}

/// A call of events with these added IDs.
pub(super) fn call(added_ids: impl IntoIterator<Item = u64>, timeout: Duration) -> Call {
    Call::new(added_ids.into_iter().map(|id| event(id, "{}")).collect(), timeout)
}
