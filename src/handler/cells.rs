//! The `cells` carrier: appends each cell to another datastore. Copies, fan-out, a stream kept for ever.

use crate::{
    cell::{Call, Handler, NewCell, Verdict, chain},
    store::{Cells, PutError},
};
use futures_util::future::BoxFuture;
use std::sync::Arc;

/// Appends the cells that it is called for to a datastore, under their own addresses: a repeat finds its cell there.
pub struct Copy {
    target: Cells,
}

impl Copy {
    /// To this datastore.
    #[must_use]
    pub fn new(target: Cells) -> Self {
        Self { target }
    }
}

impl Handler for Copy {
    fn call(self: Arc<Self>, call: Call) -> BoxFuture<'static, Vec<Verdict>> {
        Box::pin(async move {
            let copy = |cell: crate::cell::Cell| NewCell { key: cell.key, body: cell.body, origin: None };
            let cells = call.events.into_iter().map(|event| copy(event.cell)).collect::<Vec<_>>();
            let number = cells.len();
            match tokio::time::timeout(call.timeout, self.target.put(cells)).await {
                Ok(answers) => answers.into_iter().map(verdict).collect(),
                // What was under way may still be stored; the next attempt finds it.
                Err(_) => vec![Verdict::failed("the target datastore did not answer in time"); number],
            }
        })
    }
}

fn verdict<T>(answer: Result<T, PutError>) -> Verdict {
    match answer {
        Ok(_) => Verdict::done(),
        // A copy was made once, and an operator erased it.
        Err(PutError::Erased { .. }) => Verdict::done(),
        Err(error @ (PutError::Conflict { .. } | PutError::Store(_))) => Verdict::failed(chain(&error)),
        // It passed the same door before; only another release can refuse it.
        Err(error @ PutError::Refused(_)) => Verdict::DeadLetter { error: chain(&error) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cell::{AddedId, Cell, CellKey, Epoch, Event, Log, Millis, Name, NewDatastore, ShardId},
        store::memory::MemoryLog,
    };
    use std::time::Duration;

    #[tokio::test]
    async fn a_copy_is_made_once_and_a_conflict_is_told() {
        let log = |name: &str| Arc::new(MemoryLog::new(&NewDatastore { name: Name::new(name).unwrap(), shards: 4 }));
        let (source, target) = (log("trips"), log("archive"));
        let handler = Arc::new(Copy::new(Cells::new(target.clone())));
        let event = |body: &str| Event {
            cell: Cell {
                key: CellKey { row_key: "r".into(), column: "BASE".into(), ref_key: 7 },
                shard: ShardId(0),
                added_id: AddedId(1),
                created_at: Millis(0),
                body: body.into(),
            },
            datastore: Arc::new(source.datastore().clone()),
            trigger: Name::new("copy").unwrap(),
            attempt: 1,
            epoch: Epoch(1),
            latest: Arc::new([]),
            alone: false,
        };
        let call = |body: &str| Call::new(vec![event(body)], Duration::from_secs(5));
        assert_eq!(handler.clone().call(call("{\"a\":1}")).await, [Verdict::done()]);
        assert_eq!(handler.clone().call(call("{ \"a\": 1 }")).await, [Verdict::done()], "a repeat");
        let verdicts = handler.clone().call(call("{\"a\":2}")).await;
        assert!(
            matches!(&verdicts[..], [Verdict::Failed { error, .. }] if error.contains("another body")),
            "{verdicts:?}"
        );
        let key = CellKey { row_key: "r".into(), column: "BASE".into(), ref_key: 7 };
        assert_eq!(*target.get(&key).await.unwrap().unwrap().cell.body, *"{\"a\":1}");
        assert!(target.erase_cell(&key).await.unwrap());
        assert_eq!(
            handler.call(call("{\"a\":1}")).await,
            [Verdict::done()],
            "a copy that was erased is not made again"
        );
        assert!(target.get(&key).await.unwrap().unwrap().cell.is_erased());
    }
}
