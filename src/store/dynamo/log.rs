//! The trait `Log` over the tables of a datastore.

use super::failure::{Reason, failed, refused_transaction, undecodable};
use super::items::{self, FoundDatastore, Item, b, n, s};
use super::tables::DatastoreTables;
use crate::cell::{
    AddedId, CellKey, CellPlace, Commit, Committed, Consistency, Datastore, ErrorKind, Incarnation, Log, Name, Out,
    Refused, ScanPlace, Scanned, Segment, SegmentKey, Settled, ShardId, Slice, StoreError, StoredCell, Tip, clock,
};
use aws_sdk_dynamodb::{
    Client,
    error::SdkError,
    operation::{
        query::builders::QueryFluentBuilder, transact_get_items::TransactGetItemsError, update_item::UpdateItemError,
    },
    types::{
        AttributeValue, Get, KeysAndAttributes, Put, ReturnValuesOnConditionCheckFailure, TransactGetItem,
        TransactWriteItem, Update,
    },
};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Items a `Query` asks for at most; the answer ends at 1 MB anyway.
pub(super) const QUERY_LIMIT: i32 = 1000;
/// Addresses that a `BatchGetItem` takes at most.
const BATCH_GET_MAX: usize = 100;
/// Answers of a `BatchGetItem` without a single item before it counts as throttled.
const EMPTY_ANSWERS_MAX: u32 = 5;
/// Pages that one call follows at most: far above anything that the tables can hold.
pub(super) const PAGES_MAX: usize = 10_000;

/// The cells of one datastore in DynamoDB.
pub(super) struct DynamoLog {
    client: Client,
    tables: DatastoreTables,
    datastore: Datastore,
}

impl DynamoLog {
    pub(super) fn new(client: Client, tables: DatastoreTables, datastore: Datastore) -> Self {
        Self { client, tables, datastore }
    }

    fn tip_key(&self, shard: ShardId) -> Item {
        items::tip_key(self.datastore.bucket(shard), shard)
    }

    fn decode_tip(&self, bucket: u32, item: Item, operation: &'static str) -> Result<Tip, StoreError> {
        items::tip(&self.datastore, bucket, item).map_err(|why| undecodable(&self.tables.tips, operation, why))
    }

    fn decode_cell(&self, item: Item, operation: &'static str) -> Result<StoredCell, StoreError> {
        items::cell(item).map_err(|why| undecodable(&self.tables.cells, operation, why))
    }

    fn segments_above(&self, shard: ShardId, after: AddedId, limit: u32) -> QueryFluentBuilder {
        self.client
            .query()
            .table_name(&self.tables.log)
            .key_condition_expression("#shard = :shard AND #last > :after")
            .expression_attribute_names("#shard", "shard")
            .expression_attribute_names("#last", "last")
            .expression_attribute_values(":shard", n(shard))
            .expression_attribute_values(":after", n(after))
            .limit(i32::try_from(limit).map_or(QUERY_LIMIT, |limit| limit.clamp(1, QUERY_LIMIT)))
    }

    /// The three kinds of action of an append, in the order in which [`refusal`](Self::refusal) reads them.
    fn actions(&self, commit: &Commit) -> Result<Vec<TransactWriteItem>, StoreError> {
        if commit.cells.is_empty() {
            let source = Some("an append without cells".into());
            let table = self.tables.log.clone();
            return Err(StoreError { kind: ErrorKind::Invalid, table, operation: "TransactWriteItems", source });
        }
        let after = commit.tip_after();
        let mut tip = Update::builder()
            .table_name(&self.tables.tips)
            .set_key(Some(self.tip_key(commit.shard)))
            .expression_attribute_names("#tip", "tip")
            .expression_attribute_names("#at", "created_at")
            .expression_attribute_values(":new", n(after.tip))
            .expression_attribute_values(":at", n(after.created_at))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        tip = match &commit.tip {
            Some(old) => tip
                .update_expression("SET #tip = :new, #at = :at")
                .condition_expression("#tip = :old")
                .expression_attribute_values(":old", n(old.tip)),
            None => tip
                .update_expression("SET #tip = :new, #at = :at, #trimmed = :none")
                .condition_expression("attribute_not_exists(#tip)")
                .expression_attribute_names("#trimmed", "trimmed_to")
                .expression_attribute_values(":none", n(0)),
        };
        let cells = u32::try_from(commit.cells.len()).unwrap_or(u32::MAX);
        let segment =
            Segment { last: after.tip, n: cells, packed: commit.packed.clone(), created_at: commit.created_at };
        let first = after.tip.0 - u64::from(cells);
        let mut actions = vec![
            TransactWriteItem::builder().update(self.built(tip.build())?).build(),
            self.put_if_absent(&self.tables.log, "last", items::segment_item(commit.shard, segment))?,
        ];
        for (place, cell) in (first + 1..).zip(&commit.cells) {
            let item = items::cell_item(cell, commit.shard, AddedId(place), commit.created_at);
            actions.push(self.put_if_absent(&self.tables.cells, "cell", item)?);
        }
        Ok(actions)
    }

    fn put_if_absent(&self, table: &str, key: &str, item: Item) -> Result<TransactWriteItem, StoreError> {
        let put = Put::builder()
            .table_name(table)
            .set_item(Some(item))
            .condition_expression("attribute_not_exists(#key)")
            .expression_attribute_names("#key", key)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        Ok(TransactWriteItem::builder().put(self.built(put.build())?).build())
    }

    fn built<T>(&self, built: Result<T, aws_sdk_dynamodb::error::BuildError>) -> Result<T, StoreError> {
        built.map_err(|error| unbuilt(&self.tables.log, error))
    }

    fn refusal(&self, commit: &Commit, reasons: Vec<Reason>) -> Result<Committed, StoreError> {
        const OPERATION: &str = "TransactWriteItems";
        let contended = reasons.iter().any(|reason| matches!(reason, Reason::Other(_)));
        let mut refused = Refused { contended, ..Refused::default() };
        let mut reasons = reasons.into_iter();
        let tip = reasons.next();
        // Behind another tip, or one that another writer holds, a segment may well lie there: that writer's.
        let tip_held = matches!(tip, Some(Reason::Held));
        refused.segment = matches!(reasons.next(), Some(Reason::Refused(_))) && tip_held;
        if let Some(Reason::Refused(item)) = tip {
            let bucket = self.datastore.bucket(commit.shard);
            refused.tip = Some(item.map(|item| self.decode_tip(bucket, item, OPERATION)).transpose()?);
        }
        for (index, reason) in reasons.enumerate() {
            let Reason::Refused(Some(item)) = reason else { continue };
            match items::cell(item) {
                Ok(cell) => refused.cells.push((index, cell)),
                Err(why) => refused.damaged.push((index, why.to_string())),
            }
        }
        Ok(Committed::Refused(refused))
    }
}

/// A request that lacks a part: a limit of the store that the caller's values broke.
pub(super) fn unbuilt(table: &str, error: aws_sdk_dynamodb::error::BuildError) -> StoreError {
    let source = Some(error.into());
    StoreError { kind: ErrorKind::Invalid, table: table.to_owned(), operation: "TransactWriteItems", source }
}

/// Whether the condition of an update held.
fn applied<T>(
    table: &str,
    answer: Result<T, SdkError<UpdateItemError, aws_smithy_runtime_api::client::orchestrator::HttpResponse>>,
) -> Result<bool, StoreError> {
    match answer {
        Ok(_) => Ok(true),
        Err(SdkError::ServiceError(told)) if told.err().is_conditional_check_failed_exception() => Ok(false),
        Err(error) => Err(failed(table, "UpdateItem", error)),
    }
}

/// Follows the pages of a query until `enough` items are there (the last page may bring more) or none is left.
pub(super) async fn follow(table: &str, query: QueryFluentBuilder, enough: usize) -> Result<Vec<Item>, StoreError> {
    let mut found = Vec::new();
    let mut start = None;
    for _ in 0..PAGES_MAX {
        let answer = query.clone().set_exclusive_start_key(start).send().await;
        let answer = answer.map_err(|error| failed(table, "Query", error))?;
        found.extend(answer.items.unwrap_or_default());
        start = answer.last_evaluated_key;
        if start.is_none() || found.len() >= enough {
            return Ok(found);
        }
    }
    Err(endless(table, "Query"))
}

/// A read whose pages do not end.
pub(super) fn endless(table: &str, operation: &'static str) -> StoreError {
    let source = Some(format!("more than {PAGES_MAX} pages").into());
    StoreError { kind: ErrorKind::Undecodable, table: table.to_owned(), operation, source }
}

impl Log for DynamoLog {
    fn datastore(&self) -> &Datastore {
        &self.datastore
    }

    fn commit(&self, commit: Commit) -> Out<'_, Committed> {
        Box::pin(async move {
            let actions = self.actions(&commit)?;
            match self.client.transact_write_items().set_transact_items(Some(actions)).send().await {
                Ok(_) => Ok(Committed::Accepted),
                Err(error) => self.refusal(&commit, refused_transaction(&self.tables.log, error)?),
            }
        })
    }

    fn get<'a>(&'a self, key: &'a CellKey) -> Out<'a, Option<StoredCell>> {
        Box::pin(async move {
            let get = self.client.get_item().table_name(&self.tables.cells).set_key(Some(items::cell_key(key)));
            let answer = get.consistent_read(true).send().await;
            let answer = answer.map_err(|error| failed(&self.tables.cells, "GetItem", error))?;
            answer.item.map(|item| self.decode_cell(item, "GetItem")).transpose()
        })
    }

    fn get_all<'a>(&'a self, keys: &'a [CellKey]) -> Out<'a, Vec<Option<StoredCell>>> {
        Box::pin(async move {
            // A request holds an address once, and says nothing of what is not there.
            let wanted: BTreeSet<&CellKey> = keys.iter().collect();
            let wanted: Vec<&CellKey> = wanted.into_iter().collect();
            let mut found = BTreeMap::new();
            for keys in wanted.chunks(BATCH_GET_MAX) {
                for stored in self.batch_get(keys).await? {
                    found.insert(stored.cell.key.clone(), stored);
                }
            }
            Ok(keys.iter().map(|key| found.get(key).cloned()).collect())
        })
    }

    fn latest<'a>(&'a self, row_key: &'a str, column: &'a str) -> Out<'a, Option<StoredCell>> {
        Box::pin(async move {
            let query = self
                .client
                .query()
                .table_name(&self.tables.cells)
                .key_condition_expression("#row = :row AND #cell BETWEEN :low AND :high")
                .expression_attribute_names("#row", "row_key")
                .expression_attribute_names("#cell", "cell")
                .expression_attribute_values(":row", s(row_key))
                .expression_attribute_values(":low", s(format!("{column}#{}", "0".repeat(20))))
                .expression_attribute_values(":high", s(format!("{column}#{}", "9".repeat(20))))
                .scan_index_forward(false)
                .consistent_read(true)
                .limit(1);
            let found = follow(&self.tables.cells, query, 1).await?.pop();
            found.map(|item| self.decode_cell(item, "Query")).transpose()
        })
    }

    fn row<'a>(&'a self, row_key: &'a str, after: Option<&'a CellKey>, limit: usize) -> Out<'a, Vec<StoredCell>> {
        Box::pin(async move {
            let query = self.cells_after(row_key, after, limit);
            let found = follow(&self.tables.cells, query, limit).await?;
            found.into_iter().take(limit).map(|item| self.decode_cell(item, "Query")).collect()
        })
    }

    fn places<'a>(&'a self, row_key: &'a str, after: Option<&'a CellKey>, limit: usize) -> Out<'a, Vec<CellPlace>> {
        Box::pin(async move {
            let names = items::CELL_PLACE_ATTRIBUTES.into_iter().map(|name| (format!("#{name}"), name.to_owned()));
            let query = names.fold(self.cells_after(row_key, after, limit), |query, (placeholder, name)| {
                query.expression_attribute_names(placeholder, name)
            });
            let query = query.projection_expression("#row_key, #cell, #shard, #added_id, #erased");
            let found = follow(&self.tables.cells, query, 1).await?;
            let found: Result<Vec<_>, _> = found.into_iter().map(items::cell_place).collect();
            found.map_err(|why| undecodable(&self.tables.cells, "Query", why))
        })
    }

    fn page(&self, shard: ShardId, after: AddedId, limit: u32, consistency: Consistency) -> Out<'_, Vec<Segment>> {
        Box::pin(async move {
            let query = self.segments_above(shard, after, limit).consistent_read(consistency == Consistency::Strong);
            let found = follow(&self.tables.log, query, 1).await?;
            let decode = |item| items::segment(shard, item);
            let found: Result<Vec<_>, _> = found.into_iter().map(decode).collect();
            found.map_err(|why| undecodable(&self.tables.log, "Query", why))
        })
    }

    fn keys(&self, shard: ShardId, after: AddedId, limit: u32) -> Out<'_, Vec<SegmentKey>> {
        Box::pin(async move {
            let [shard_, last, cells] = items::SEGMENT_KEY_ATTRIBUTES;
            let query = self
                .segments_above(shard, after, limit)
                .projection_expression("#shard, #last, #n")
                .expression_attribute_names("#shard", shard_)
                .expression_attribute_names("#last", last)
                .expression_attribute_names("#n", cells)
                .consistent_read(true);
            let found = follow(&self.tables.log, query, 1).await?;
            let decode = |item| items::segment_key_only(shard, item);
            let found: Result<Vec<_>, _> = found.into_iter().map(decode).collect();
            found.map_err(|why| undecodable(&self.tables.log, "Query", why))
        })
    }

    fn segment(&self, shard: ShardId, last: AddedId) -> Out<'_, Option<Segment>> {
        Box::pin(async move {
            let key = items::segment_key(shard, last);
            let get = self.client.get_item().table_name(&self.tables.log).set_key(Some(key)).consistent_read(true);
            let answer = get.send().await;
            let answer = answer.map_err(|error| failed(&self.tables.log, "GetItem", error))?;
            let found = answer.item.map(|item| items::segment(shard, item)).transpose();
            found.map_err(|why| undecodable(&self.tables.log, "GetItem", why))
        })
    }

    fn settle(&self, shard: ShardId, last: AddedId) -> Out<'_, Settled> {
        const OPERATION: &str = "TransactGetItems";
        Box::pin(async move {
            let get = |table: &str, key| {
                let get = Get::builder().table_name(table).set_key(Some(key)).build();
                self.built(get).map(|get| TransactGetItem::builder().get(get).build())
            };
            let segment = get(&self.tables.log, items::segment_key(shard, last))?;
            let tip = get(&self.tables.tips, self.tip_key(shard))?;
            let read = self.client.transact_get_items().transact_items(segment).transact_items(tip);
            let answer = read.send().await.map_err(|error| self.unsettled(error))?;
            let mut found = answer.responses.unwrap_or_default().into_iter().map(|one| one.item);
            let (segment, tip) = (found.next().flatten(), found.next().flatten());
            let segment = segment.map(|item| items::segment(shard, item)).transpose();
            Ok(Settled {
                segment: segment.map_err(|why| undecodable(&self.tables.log, OPERATION, why))?,
                tip: tip.map(|item| self.decode_tip(self.datastore.bucket(shard), item, OPERATION)).transpose()?,
            })
        })
    }

    fn tips(&self, bucket: u32, consistency: Consistency) -> Out<'_, Vec<Tip>> {
        Box::pin(async move {
            let query = self
                .client
                .query()
                .table_name(&self.tables.tips)
                .key_condition_expression("#bucket = :bucket")
                .expression_attribute_names("#bucket", "bucket")
                .expression_attribute_values(":bucket", n(bucket))
                .consistent_read(consistency == Consistency::Strong)
                .limit(QUERY_LIMIT);
            let found = follow(&self.tables.tips, query, usize::MAX).await?;
            found.into_iter().map(|item| self.decode_tip(bucket, item, "Query")).collect()
        })
    }

    fn tip(&self, shard: ShardId) -> Out<'_, Option<Tip>> {
        Box::pin(async move {
            let get = self.client.get_item().table_name(&self.tables.tips).set_key(Some(self.tip_key(shard)));
            let answer = get.consistent_read(true).send().await;
            let answer = answer.map_err(|error| failed(&self.tables.tips, "GetItem", error))?;
            answer.item.map(|item| self.decode_tip(self.datastore.bucket(shard), item, "GetItem")).transpose()
        })
    }

    fn raise_trim(&self, shard: ShardId, to: AddedId) -> Out<'_, bool> {
        Box::pin(async move {
            let update = self
                .client
                .update_item()
                .table_name(&self.tables.tips)
                .set_key(Some(self.tip_key(shard)))
                .update_expression("SET #trimmed = :to")
                .condition_expression("#trimmed < :to AND #tip >= :to")
                .expression_attribute_names("#trimmed", "trimmed_to")
                .expression_attribute_names("#tip", "tip")
                .expression_attribute_values(":to", n(to));
            applied(&self.tables.tips, update.send().await)
        })
    }

    fn delete_segment(&self, shard: ShardId, last: AddedId) -> Out<'_, ()> {
        Box::pin(async move {
            let delete = self.client.delete_item().table_name(&self.tables.log);
            let answer = delete.set_key(Some(items::segment_key(shard, last))).send().await;
            answer.map_err(|error| failed(&self.tables.log, "DeleteItem", error))?;
            Ok(())
        })
    }

    fn erase_cell<'a>(&'a self, key: &'a CellKey) -> Out<'a, bool> {
        Box::pin(async move {
            let update = self
                .client
                .update_item()
                .table_name(&self.tables.cells)
                .set_key(Some(items::cell_key(key)))
                .update_expression("SET #erased = :true REMOVE #body")
                .condition_expression("attribute_exists(#cell) AND attribute_not_exists(#erased)")
                .expression_attribute_names("#erased", "erased")
                .expression_attribute_names("#body", "body")
                .expression_attribute_names("#cell", "cell")
                .expression_attribute_values(":true", AttributeValue::Bool(true));
            applied(&self.tables.cells, update.send().await)
        })
    }

    fn replace_segment<'a>(&'a self, shard: ShardId, old: &'a Segment, packed: Bytes) -> Out<'a, bool> {
        Box::pin(async move {
            let update = self
                .client
                .update_item()
                .table_name(&self.tables.log)
                .set_key(Some(items::segment_key(shard, old.last)))
                .update_expression("SET #cells = :new")
                .condition_expression("#cells = :old")
                .expression_attribute_names("#cells", "cells")
                .expression_attribute_values(":new", b(packed))
                .expression_attribute_values(":old", b(old.packed.clone()));
            applied(&self.tables.log, update.send().await)
        })
    }

    fn incarnation(&self) -> Out<'_, Option<Incarnation>> {
        Box::pin(async move {
            let Some(item) = self.own_item().await? else { return Ok(None) };
            match items::datastore(item) {
                Ok(FoundDatastore::Ours(datastore)) => Ok(Some(datastore.incarnation)),
                // Of another release: certainly not the one that was opened.
                Ok(FoundDatastore::OtherSchema(_)) => Ok(None),
                Err(why) => Err(undecodable(&self.tables.tips, "GetItem", why)),
            }
        })
    }

    fn groups(&self) -> Out<'_, BTreeSet<Name>> {
        Box::pin(async move {
            let groups = items::groups(self.own_item().await?.unwrap_or_default());
            groups.map_err(|why| undecodable(&self.tables.tips, "GetItem", why))
        })
    }

    fn enlist<'a>(&'a self, group: &'a Name) -> Out<'a, ()> {
        Box::pin(async move {
            let update = self
                .client
                .update_item()
                .table_name(&self.tables.tips)
                .set_key(Some(items::datastore_key()))
                .update_expression("ADD #groups :group")
                .condition_expression("attribute_exists(#shard)")
                .expression_attribute_names("#groups", "groups")
                .expression_attribute_names("#shard", "shard")
                .expression_attribute_values(":group", AttributeValue::Ss(vec![group.to_string()]));
            let answer = update.send().await;
            answer.map_err(|error| failed(&self.tables.tips, "UpdateItem", error))?;
            Ok(())
        })
    }

    fn scan<'a>(
        &'a self,
        slice: Slice,
        after: Option<&'a ScanPlace>,
        limit: u32,
        consistency: Consistency,
    ) -> Out<'a, Scanned> {
        const OPERATION: &str = "Scan";
        Box::pin(async move {
            let table = &self.tables.cells;
            let mut scan = self
                .client
                .scan()
                .table_name(table)
                .limit(i32::try_from(limit).map_or(QUERY_LIMIT, |limit| limit.clamp(1, QUERY_LIMIT)))
                .set_exclusive_start_key(after.map(items::scan_key))
                .consistent_read(consistency == Consistency::Strong);
            if slice != Slice::WHOLE {
                let [index, of] = [slice.index, slice.of].map(|number| i32::try_from(number).unwrap_or(i32::MAX));
                scan = scan.segment(index).total_segments(of);
            }
            let answer = scan.send().await.map_err(|error| failed(table, OPERATION, error))?;
            let place = |item: &Item| items::scan_place(item).map_err(|why| undecodable(table, OPERATION, why));
            let mut scanned =
                Scanned { next: answer.last_evaluated_key.as_ref().map(place).transpose()?, ..Scanned::default() };
            for item in answer.items.unwrap_or_default() {
                let at = place(&item)?;
                match items::cell(item) {
                    Ok(cell) => scanned.cells.push(cell),
                    Err(why) => scanned.damaged.push((at, why.to_string())),
                }
            }
            Ok(scanned)
        })
    }
}

impl DynamoLog {
    /// A strongly consistent query of a row's cells, without its key condition.
    fn cells_of(&self, row_key: &str, limit: usize) -> QueryFluentBuilder {
        self.client
            .query()
            .table_name(&self.tables.cells)
            .expression_attribute_names("#row", "row_key")
            .expression_attribute_values(":row", s(row_key))
            .consistent_read(true)
            .limit(i32::try_from(limit).map_or(QUERY_LIMIT, |limit| limit.clamp(1, QUERY_LIMIT)))
    }

    /// Those of them after one, in the order of the table.
    fn cells_after(&self, row_key: &str, after: Option<&CellKey>, limit: usize) -> QueryFluentBuilder {
        let query = self.cells_of(row_key, limit);
        match after.map(items::cell_key).and_then(|mut key| key.remove("cell")) {
            None => query.key_condition_expression("#row = :row"),
            Some(after) => query
                .key_condition_expression("#row = :row AND #cell > :after")
                .expression_attribute_names("#cell", "cell")
                .expression_attribute_values(":after", after),
        }
    }

    /// The datastore's own item.
    async fn own_item(&self) -> Result<Option<Item>, StoreError> {
        let get = self.client.get_item().table_name(&self.tables.tips).set_key(Some(items::datastore_key()));
        let answer = get.consistent_read(true).send().await;
        Ok(answer.map_err(|error| failed(&self.tables.tips, "GetItem", error))?.item)
    }

    /// One batch of reads, and what the store left unread of it: an answer ends at 16 MB, or sooner when it is busy.
    async fn batch_get(&self, keys: &[&CellKey]) -> Result<Vec<StoredCell>, StoreError> {
        const OPERATION: &str = "BatchGetItem";
        let table = &self.tables.cells;
        let mut left: Vec<Item> = keys.iter().map(|key| items::cell_key(key)).collect();
        let mut found = Vec::with_capacity(left.len());
        let mut empty_answers = 0;
        while !left.is_empty() {
            let wanted = KeysAndAttributes::builder().set_keys(Some(left)).consistent_read(true).build();
            let wanted = wanted.map_err(|error| unbuilt(table, error))?;
            let answer = self.client.batch_get_item().request_items(table, wanted).send().await;
            let answer = answer.map_err(|error| failed(table, OPERATION, error))?;
            let items = answer.responses.and_then(|mut tables| tables.remove(table)).unwrap_or_default();
            left =
                answer.unprocessed_keys.and_then(|mut tables| tables.remove(table)).map_or_else(Vec::new, |k| k.keys);
            if items.is_empty() && !left.is_empty() {
                empty_answers += 1;
                if empty_answers == EMPTY_ANSWERS_MAX {
                    let source = Some(format!("{} items stay unread", left.len()).into());
                    let (kind, table) = (ErrorKind::Throttled, table.clone());
                    return Err(StoreError { kind, table, operation: OPERATION, source });
                }
                let bound = Duration::from_millis(50) * (1 << empty_answers);
                clock::sleep(bound.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            }
            for item in items {
                found.push(self.decode_cell(item, OPERATION)?);
            }
        }
        Ok(found)
    }

    /// A transaction of reads is cancelled by a write under way to one of its items.
    fn unsettled(
        &self,
        error: SdkError<TransactGetItemsError, aws_smithy_runtime_api::client::orchestrator::HttpResponse>,
    ) -> StoreError {
        let conflict = match error.as_service_error() {
            Some(TransactGetItemsError::TransactionCanceledException(canceled)) => {
                canceled.cancellation_reasons().iter().any(|reason| reason.code() == Some("TransactionConflict"))
            }
            _ => false,
        };
        let error = failed(&self.tables.log, "TransactGetItems", error);
        if conflict { StoreError { kind: ErrorKind::Conflict, ..error } } else { error }
    }
}
