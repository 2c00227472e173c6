//! Counts every request of the SDK in one place: how it ended, how long it took, and what it consumed.
//!
//! An interceptor of the clients, so that no request can be forgotten. It asks for the consumed units where an operation
//! has such, and reads them from the answer. Operations about a resource
//! that is no table are counted by their name alone.

use super::failure::kind_of_code;
use crate::{
    cell::ErrorKind,
    metrics::{self, Units},
};
use aws_sdk_dynamodb::{
    error::ProvideErrorMetadata,
    operation as op,
    types::{CancellationReason, ConsumedCapacity, ReturnConsumedCapacity::Total, TransactGetItem, TransactWriteItem},
};
use aws_smithy_runtime_api::{
    box_error::BoxError,
    client::{
        interceptors::{
            Intercept,
            context::{BeforeSerializationInterceptorContextMut, Error, FinalizerInterceptorContextRef, Input, Output},
        },
        orchestrator::{Metadata, OrchestratorError},
        runtime_components::RuntimeComponents,
    },
};
use aws_smithy_types::config_bag::{ConfigBag, Storable, StoreReplace};
use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};
use tokio::time::Instant;

/// Counts the requests of a client.
#[derive(Debug)]
pub(super) struct Meter;

/// A request under way. One that is dropped before its end, because nobody waits for it any more, was not answered.
#[derive(Debug)]
struct Asked {
    table: String,
    operation: String,
    sent: Instant,
    told: AtomicBool,
}

impl Storable for Asked {
    type Storer = StoreReplace<Self>;
}

impl Asked {
    fn ended(&self, outcome: &'static str) {
        if !self.told.swap(true, Relaxed) {
            metrics::dynamodb_request(&self.table, &self.operation, outcome, self.sent.elapsed());
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.ended("unanswered");
    }
}

impl Intercept for Meter {
    fn name(&self) -> &'static str {
        "Meter"
    }

    fn modify_before_serialization(
        &self,
        context: &mut BeforeSerializationInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let table = ask(context.input_mut()).unwrap_or_default();
        let operation = config.load::<Metadata>().map_or_else(String::new, |metadata| metadata.name().to_owned());
        let asked = Asked { table, operation, sent: Instant::now(), told: AtomicBool::new(false) };
        config.interceptor_state().store_put(asked);
        Ok(())
    }

    fn read_after_execution(
        &self,
        context: &FinalizerInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let Some(asked) = config.load::<Asked>() else { return Ok(()) };
        match context.output_or_error() {
            Some(Ok(output)) => {
                let Answered { consumed, throttled } = answered(output);
                for (table, units) in consumed {
                    metrics::dynamodb_consumed(table.unwrap_or(&asked.table), &asked.operation, units);
                }
                asked.ended("ok");
                if throttled {
                    metrics::dynamodb_throttled(&asked.table, &asked.operation);
                }
            }
            Some(Err(error)) => {
                let (outcome, throttled) = failed(error);
                asked.ended(outcome);
                if throttled {
                    metrics::dynamodb_throttled(&asked.table, &asked.operation);
                }
            }
            None => {}
        }
        Ok(())
    }
}

/// What an answer says beside what was asked for.
#[derive(Default)]
struct Answered<'a> {
    /// Units by table; the request's own when none is named.
    consumed: Vec<(Option<&'a str>, Units)>,
    /// Something was left undone.
    throttled: bool,
}

fn units(consumed: &ConsumedCapacity, writes: bool) -> (Option<&str>, Units) {
    let ConsumedCapacity { capacity_units, read_capacity_units, write_capacity_units, .. } = consumed;
    let units = match (read_capacity_units, write_capacity_units) {
        // A transaction tells them apart: one that was applied before is answered by reads.
        (None, None) if writes => Units { read: 0.0, write: capacity_units.unwrap_or_default() },
        (None, None) => Units { read: capacity_units.unwrap_or_default(), write: 0.0 },
        (read, write) => Units { read: read.unwrap_or_default(), write: write.unwrap_or_default() },
    };
    (consumed.table_name.as_deref(), units)
}

fn first_key<T>(tables: &Option<HashMap<String, T>>) -> Option<String> {
    tables.as_ref()?.keys().min().cloned()
}

fn first_write(actions: &Option<Vec<TransactWriteItem>>) -> Option<String> {
    let TransactWriteItem { condition_check, put, delete, update, .. } = actions.as_ref()?.first()?;
    let put = put.as_ref().map(|put| &put.table_name);
    let update = update.as_ref().map(|update| &update.table_name);
    let delete = delete.as_ref().map(|delete| &delete.table_name);
    put.or(update).or(delete).or(condition_check.as_ref().map(|check| &check.table_name)).cloned()
}

fn first_read(actions: &Option<Vec<TransactGetItem>>) -> Option<String> {
    actions.as_ref()?.first()?.get.as_ref().map(|get| get.table_name.clone())
}

/// The operations on items: their types, whether they write, where their table stands, and what a partial answer is. And those
/// on tables, which consume nothing.
macro_rules! operations {
    (
        items {
            $($module:ident($in:ident, $out:ident, $error:ident) $writes:literal, |$i:ident| $table:expr, |$o:ident| $part:expr;)*
        }
        tables { $($of_table:ident($table_in:ident, $table_error:ident);)* }
    ) => {
        /// Asks for the consumed units, and gives the table.
        fn ask(input: &mut Input) -> Option<String> {
            $(if let Some($i) = input.downcast_mut::<op::$module::$in>() {
                $i.return_consumed_capacity = Some(Total);
                return $table;
            })*
            $(if let Some(input) = input.downcast_ref::<op::$of_table::$table_in>() {
                return input.table_name.clone();
            })*
            None
        }

        fn answered(output: &Output) -> Answered<'_> {
            $(if let Some($o) = output.downcast_ref::<op::$module::$out>() {
                let consumed = Listed::list(&$o.consumed_capacity).iter().map(|one| units(one, $writes)).collect();
                return Answered { consumed, throttled: $part };
            })*
            Answered::default()
        }

        /// The code of an error that the service named.
        fn code(error: &Error) -> Option<&str> {
            $(if let Some(error) = error.downcast_ref::<op::$module::$error>() {
                return error.code();
            })*
            $(if let Some(error) = error.downcast_ref::<op::$of_table::$table_error>() {
                return error.code();
            })*
            None
        }
    };
}

operations! {
    items {
        get_item(GetItemInput, GetItemOutput, GetItemError) false, |i| i.table_name.clone(), |_o| false;
        query(QueryInput, QueryOutput, QueryError) false, |i| i.table_name.clone(), |_o| false;
        update_item(UpdateItemInput, UpdateItemOutput, UpdateItemError) true, |i| i.table_name.clone(), |_o| false;
        put_item(PutItemInput, PutItemOutput, PutItemError) true, |i| i.table_name.clone(), |_o| false;
        delete_item(DeleteItemInput, DeleteItemOutput, DeleteItemError) true, |i| i.table_name.clone(), |_o| false;
        scan(ScanInput, ScanOutput, ScanError) false, |i| i.table_name.clone(), |_o| false;
        transact_write_items(TransactWriteItemsInput, TransactWriteItemsOutput, TransactWriteItemsError) true,
            |i| first_write(&i.transact_items), |_o| false;
        transact_get_items(TransactGetItemsInput, TransactGetItemsOutput, TransactGetItemsError) false,
            |i| first_read(&i.transact_items), |_o| false;
        // An answer that has some of the items may be full; one that has none while keys are left was cut short.
        batch_get_item(BatchGetItemInput, BatchGetItemOutput, BatchGetItemError) false, |i| first_key(&i.request_items),
            |o| o.responses().is_none_or(|tables| tables.values().all(Vec::is_empty))
                && o.unprocessed_keys().is_some_and(|keys| !keys.is_empty());
        batch_write_item(BatchWriteItemInput, BatchWriteItemOutput, BatchWriteItemError) true,
            |i| first_key(&i.request_items), |o| o.unprocessed_items().is_some_and(|items| !items.is_empty());
    }
    tables {
        create_table(CreateTableInput, CreateTableError);
        describe_table(DescribeTableInput, DescribeTableError);
        update_table(UpdateTableInput, UpdateTableError);
        describe_continuous_backups(DescribeContinuousBackupsInput, DescribeContinuousBackupsError);
        update_continuous_backups(UpdateContinuousBackupsInput, UpdateContinuousBackupsError);
    }
}

/// One report or several, as the operation has it.
trait Listed {
    fn list(&self) -> &[ConsumedCapacity];
}

impl Listed for Option<ConsumedCapacity> {
    fn list(&self) -> &[ConsumedCapacity] {
        self.as_slice()
    }
}

impl Listed for Option<Vec<ConsumedCapacity>> {
    fn list(&self) -> &[ConsumedCapacity] {
        self.as_deref().unwrap_or_default()
    }
}

/// The outcome of a request that failed, and whether anything of it was throttled.
fn failed(error: &OrchestratorError<Error>) -> (&'static str, bool) {
    let Some(error) = error.as_operation_error() else { return ("unanswered", false) };
    let reasons = reasons(error);
    let codes: Vec<&str> = match code(error) {
        Some("TransactionCanceledException") => reasons.iter().filter_map(CancellationReason::code).collect(),
        Some(code) => vec![code],
        // A body that cannot be parsed.
        None => return ("unanswered", false),
    };
    let refused = |code: &&str| matches!(*code, "ConditionalCheckFailed" | "ConditionalCheckFailedException");
    let is = |kind| codes.iter().any(|code| kind_of_code(code) == kind);
    let throttled = is(ErrorKind::Throttled);
    let outcome = match () {
        () if codes.iter().any(refused) => "refused",
        () if throttled => "throttled",
        () if is(ErrorKind::Conflict) => "conflict",
        () if is(ErrorKind::MissingTable) => "missing",
        () => "failed",
    };
    (outcome, throttled)
}

fn reasons(error: &Error) -> &[CancellationReason] {
    use op::{
        transact_get_items::TransactGetItemsError as Get, transact_write_items::TransactWriteItemsError as Write,
    };
    if let Some(Write::TransactionCanceledException(canceled)) = error.downcast_ref() {
        return canceled.cancellation_reasons();
    }
    match error.downcast_ref() {
        Some(Get::TransactionCanceledException(canceled)) => canceled.cancellation_reasons(),
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::super::faulty::{Fault, Faults};
    use crate::{
        cell::{CellKey, ErrorKind, Name, NewCell, NewDatastore, ShardId},
        metrics::{self, Units},
        store::Cells,
    };

    fn requests(table: &str, operation: &str, outcome: &str) -> u64 {
        let labels = format!("{{operation=\"{operation}\",outcome=\"{outcome}\",table=\"{table}\"}} ");
        value("cellhook_dynamodb_requests_total", &labels)
    }

    fn value(metric: &str, labels: &str) -> u64 {
        let page = metrics::gather();
        let line = page.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(labels).map(str::to_owned));
        line.map_or(0, |number| number.parse().unwrap())
    }

    fn cell(row: &str, bytes: usize) -> NewCell {
        let key = CellKey { row_key: row.into(), column: "BASE".into(), ref_key: 1 };
        NewCell { key, body: format!("\"{}\"", "x".repeat(bytes)).into(), origin: None }
    }

    /// By DynamoDB's rules: a transaction writes twice the size rounded up to 1 KB, a consistent read takes 1 for 4 KB.
    #[tokio::test]
    async fn units_are_those_of_the_rules() {
        let (store, _) = Faults::store();
        let name = Name::new("metered").unwrap();
        store.init_datastore(&NewDatastore { name: name.clone(), shards: 1 }).await.unwrap();
        let log = store.datastore(&name, None).await.unwrap();
        let before = metrics::consumed();
        let of = |table: &str, operation: &str| {
            let key = (table.to_owned(), operation.to_owned());
            let was = before.get(&key).copied().unwrap_or_default();
            let is = metrics::consumed().get(&key).copied().unwrap_or_default();
            Units { read: is.read - was.read, write: is.write - was.write }
        };
        let cells = Cells::new(log.clone());
        cells.put(vec![cell("a", 1100)]).await[0].as_ref().unwrap();
        let written = |table| of(table, "TransactWriteItems");
        assert_eq!(written("metered.tips"), Units { read: 0.0, write: 2.0 });
        assert_eq!(written("metered.log"), Units { read: 0.0, write: 2.0 }, "packed");
        assert_eq!(written("metered.cells"), Units { read: 0.0, write: 4.0 });
        log.get(&cell("a", 0).key).await.unwrap();
        assert_eq!(of("metered.cells", "GetItem"), Units { read: 1.0, write: 0.0 });
        log.settle(ShardId(0), crate::cell::AddedId(1)).await.unwrap();
        assert_eq!(of("metered.log", "TransactGetItems"), Units { read: 2.0, write: 0.0 });
        assert_eq!(of("metered.tips", "TransactGetItems"), Units { read: 2.0, write: 0.0 });
        log.get_all(&[cell("a", 0).key, cell("b", 0).key]).await.unwrap();
        assert_eq!(of("metered.cells", "BatchGetItem"), Units { read: 2.0, write: 0.0 });
    }

    /// Every way in which a request can end, and none of them counted twice.
    #[tokio::test(start_paused = true)]
    async fn requests_are_counted_by_how_they_end() {
        let (store, faults) = Faults::store();
        let name = Name::new("outcomes").unwrap();
        store.init_datastore(&NewDatastore { name: name.clone(), shards: 1 }).await.unwrap();
        let log = store.datastore(&name, None).await.unwrap();
        let table = "outcomes.cells";
        let of = |outcome| requests(table, "GetItem", outcome);
        let (ok, seen) = (of("ok"), ["throttled", "failed", "unanswered"].map(of));
        let key = cell("a", 0).key;
        log.get(&key).await.unwrap();
        assert_eq!(of("ok"), ok + 1);
        for (fault, kind) in [
            (Fault::error("ThrottlingException"), ErrorKind::Throttled),
            (Fault::error("AccessDeniedException"), ErrorKind::Denied),
            (Fault::Broken, ErrorKind::Unanswered),
            (Fault::Silent, ErrorKind::Unanswered),
        ] {
            faults.next("GetItem", fault);
            assert_eq!(log.get(&key).await.unwrap_err().kind, kind);
        }
        let throttles = value("cellhook_dynamodb_throttles_total", "{operation=\"GetItem\",table=\"outcomes.cells\"} ");
        assert_eq!((of("ok"), throttles), (ok + 1, 1));
        let counted: Vec<u64> =
            ["throttled", "failed", "unanswered"].iter().zip(seen).map(|(outcome, seen)| of(outcome) - seen).collect();
        assert_eq!(counted, [1, 1, 2]);
        // Nobody waits for it any more.
        faults.next("GetItem", Fault::Silent);
        let second = std::time::Duration::from_secs(1);
        assert!(tokio::time::timeout(second, log.get(&key)).await.is_err());
        assert_eq!(of("unanswered"), seen[2] + 3);

        let writes = |outcome| requests("outcomes.tips", "TransactWriteItems", outcome);
        let cells = Cells::new(log.clone());
        cells.put(vec![cell("a", 1)]).await[0].as_ref().unwrap();
        assert_eq!(writes("ok"), 1);
        // Another body at the same address.
        cells.put(vec![cell("a", 2)]).await[0].as_ref().unwrap_err();
        assert_eq!((writes("ok"), writes("refused")), (1, 1));
        faults.next("TransactWriteItems", Fault::canceled(&["TransactionConflict", "None", "None"]));
        cells.put(vec![cell("b", 1)]).await[0].as_ref().unwrap();
        assert_eq!((writes("ok"), writes("conflict")), (2, 1));

        // Requests about tables bear their names too.
        store.init_datastore(&NewDatastore { name: name.clone(), shards: 1 }).await.unwrap();
        assert!(requests(table, "DescribeTable", "ok") > 0);
        assert!(store.datastore(&Name::new("absent").unwrap(), None).await.is_err());
        assert_eq!(requests("absent.tips", "GetItem", "missing"), 1);
    }
}
