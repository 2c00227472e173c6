//! What the requests of a store would be charged for on DynamoDB, counted while they are made.
//!
//! Each request asks for its consumed capacity, and the engine, which knows the items before and after, answers it by DynamoDB's
//! rules: a write unit for each KB written, a read unit for each 4 KB read, half of that where the read may be stale, and twice
//! as much inside a transaction; each item, and each page of a query, rounded up.

use super::{Connector, execute::Operation};
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Units of one table.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Units {
    /// For reading.
    pub(crate) read: f64,
    /// For writing.
    pub(crate) write: f64,
}

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Counted {
    /// By the name of the table.
    pub(crate) tables: BTreeMap<String, Units>,
    /// Requests.
    pub(crate) requests: u64,
    /// Of these, those that were answered with an error, which does not tell what it cost.
    pub(crate) refused: u64,
}

/// A counter; clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meter(Arc<Mutex<Counted>>);

impl Meter {
    /// What was counted since the last look.
    pub(crate) fn take(&self) -> Counted {
        std::mem::take(&mut self.counted())
    }

    /// Counts what goes through a connector.
    pub(crate) fn over(&self, connector: Connector) -> Metered {
        Metered { connector, meter: self.clone() }
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, operation: Operation, status: u16, answer: &[u8]) {
        let mut counted = self.counted();
        counted.requests += 1;
        if status != 200 {
            counted.refused += 1;
            return;
        }
        for Consumed { table, units } in consumed(answer) {
            let sum = counted.tables.entry(table).or_default();
            if operation.writes() {
                sum.write += units;
            } else {
                sum.read += units;
            }
        }
    }
}

/// What one request consumed of one table.
#[derive(Debug, PartialEq, Deserialize)]
struct Consumed {
    #[serde(rename = "TableName")]
    table: String,
    #[serde(rename = "CapacityUnits")]
    units: f64,
}

/// The part of an answer that tells it: of one table, or in a transaction of several.
#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "ConsumedCapacity")]
    consumed: Option<OneOrMore>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(Consumed),
    More(Vec<Consumed>),
}

fn consumed(answer: &[u8]) -> Vec<Consumed> {
    match serde_json::from_slice(answer) {
        Ok(Answer { consumed: Some(OneOrMore::One(one)) }) => vec![one],
        Ok(Answer { consumed: Some(OneOrMore::More(more)) }) => more,
        Ok(Answer { consumed: None }) | Err(_) => Vec::new(),
    }
}

/// The same request, which now asks for what it consumes.
fn asking(body: &[u8]) -> Option<Vec<u8>> {
    let mut asking = body.strip_suffix(b"}")?.to_vec();
    asking.extend_from_slice(b",\"ReturnConsumedCapacity\":\"TOTAL\"}");
    Some(asking)
}

/// A connector whose requests are counted.
#[derive(Clone, Debug)]
pub(crate) struct Metered {
    connector: Connector,
    meter: Meter,
}

impl HttpConnector for Metered {
    fn call(&self, mut request: HttpRequest) -> HttpConnectorFuture {
        let operation = request.headers().get("x-amz-target").and_then(Operation::of_target);
        let Some(operation) = operation.filter(|operation| *operation != Operation::CreateTable) else {
            return self.connector.call(request);
        };
        if let Some(body) = request.body().bytes().and_then(asking) {
            *request.body_mut() = SdkBody::from(body);
        }
        let (answer, meter) = (self.connector.call(request), self.meter.clone());
        HttpConnectorFuture::new(async move {
            let response = answer.await?;
            meter.note(operation, response.status().as_u16(), response.body().bytes().unwrap_or_default());
            Ok(response)
        })
    }
}

impl HttpClient for Metered {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::{AddedId, CellKey, Consistency, Name, NewCell, NewDatastore, ShardId};
    use crate::store::{Cells, Store};

    fn cells(n: u64, body: usize) -> Vec<NewCell> {
        // Digits that zstd cannot make much shorter.
        let text = || std::iter::repeat_with(fastrand::alphanumeric).take(body).collect::<String>();
        let key = |ref_key| CellKey { row_key: "row".into(), column: "BASE".into(), ref_key };
        (0..n).map(|i| NewCell { key: key(i), body: format!("\"{}\"", text()).into(), origin: None }).collect()
    }

    async fn datastore() -> (Meter, Cells) {
        let (store, meter) = Store::metered().unwrap();
        let name = Name::new("trips").unwrap();
        store.init_datastore(&NewDatastore { name: name.clone(), shards: 1 }).await.unwrap();
        let cells = Cells::new(store.datastore(&name, None).await.unwrap());
        cells.log().tip(ShardId(0)).await.unwrap();
        meter.take();
        (meter, cells)
    }

    fn close(units: Units, read: f64, write: f64) -> bool {
        (units.read - read).abs() < 1e-9 && (units.write - write).abs() < 1e-9
    }

    #[tokio::test]
    async fn an_append_is_charged_twice_its_items() {
        let (meter, datastore) = datastore().await;
        assert!(datastore.put(cells(1, 10)).await.iter().all(Result::is_ok));
        let counted = meter.take();
        assert!(close(counted.tables["trips.tips"], 1.0, 2.0), "the tip is read once, and written: {counted:?}");
        assert!(close(counted.tables["trips.log"], 0.0, 2.0), "{counted:?}");
        assert!(close(counted.tables["trips.cells"], 0.0, 2.0), "{counted:?}");
        assert_eq!((counted.requests, counted.refused), (2, 0));

        let (meter, datastore) = self::datastore().await;
        assert!(datastore.put(cells(10, 1500)).await.iter().all(Result::is_ok));
        let counted = meter.take();
        let log = counted.tables["trips.log"].write;
        assert!(close(counted.tables["trips.cells"], 0.0, 40.0), "ten cells of 2 KB: {counted:?}");
        assert!((20.0..=32.0).contains(&log) && log % 2.0 == 0.0, "a segment of ten times 1.5 KB, packed: {counted:?}");
    }

    #[tokio::test]
    async fn a_read_is_charged_by_what_it_reads_and_a_stale_one_half() {
        let (meter, datastore) = datastore().await;
        assert!(datastore.put(cells(10, 1500)).await.iter().all(Result::is_ok));
        meter.take();
        let log = datastore.log();
        let charged = async |consistency| {
            log.page(ShardId(0), AddedId(0), 10, consistency).await.unwrap();
            meter.take().tables["trips.log"].read
        };
        let (strong, stale) = (charged(Consistency::Strong).await, charged(Consistency::Eventual).await);
        assert!((3.0..=4.0).contains(&strong), "a segment of 12 to 16 KB: {strong}");
        assert!((strong / stale - 2.0).abs() < 1e-9);
        log.tips(0, Consistency::Eventual).await.unwrap();
        assert!(close(meter.take().tables["trips.tips"], 0.5, 0.0));
        log.settle(ShardId(0), AddedId(10)).await.unwrap();
        let settled = meter.take().tables;
        assert!(
            close(settled["trips.tips"], 2.0, 0.0) && close(settled["trips.log"], 2.0 * strong, 0.0),
            "{settled:?}"
        );
        let key = CellKey { row_key: "row".into(), column: "BASE".into(), ref_key: 0 };
        log.get(&key).await.unwrap().unwrap();
        assert!(close(meter.take().tables["trips.cells"], 1.0, 0.0));
    }

    #[tokio::test]
    async fn a_refusal_is_counted_and_its_units_are_not_known() {
        let (meter, datastore) = datastore().await;
        assert!(datastore.put(cells(1, 10)).await.iter().all(Result::is_ok));
        meter.take();
        assert!(datastore.put(cells(1, 11)).await[0].is_err(), "another body at the same address");
        let counted = meter.take();
        assert_eq!((counted.refused, counted.tables.len()), (1, 0), "{counted:?}");
    }

    #[test]
    fn what_is_no_answer_of_ours_counts_nothing() {
        for answer in ["", "{", "[]", "{\"ConsumedCapacity\": 3}", "{\"Item\": {}}"] {
            assert_eq!(consumed(answer.as_bytes()), [], "{answer}");
        }
        assert_eq!(asking(b""), None);
    }
}
