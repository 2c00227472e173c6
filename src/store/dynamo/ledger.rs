//! The trait `Ledger` over the tables of a group.

mod triggers;

use super::failure::{Reason, failed, refused_transaction, undecodable, unreadable_after};
use super::items::{self, Impossible, Item, n, s};
use super::log::{PAGES_MAX, QUERY_LIMIT, endless, follow, unbuilt};
use super::tables::GroupTables;
use crate::cell::{
    AddedId, Answer, Checkpoint, Epoch, Incarnation, Lane, LaneChange, Lease, LeaseWrite, Ledger, Millis, Name, Nudge,
    Out, Parked, Session, SessionId, SessionState, ShardRef, StoreError, TriggerId, TriggerRecord, Written,
};
use aws_sdk_dynamodb::{
    Client,
    error::SdkError,
    operation::{
        put_item::PutItemError,
        query::builders::QueryFluentBuilder,
        update_item::{UpdateItemError, builders::UpdateItemFluentBuilder},
    },
    types::{Delete, Put, ReturnValue, ReturnValuesOnConditionCheckFailure, TransactWriteItem, Update},
};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use std::collections::BTreeMap;

const ALL_OLD: ReturnValuesOnConditionCheckFailure = ReturnValuesOnConditionCheckFailure::AllOld;
/// So many of the 16 scopes of leases are read at the same time.
const SCOPES_AT_ONCE: usize = 4;

/// The coordination and the parked cells of one group in DynamoDB.
pub(super) struct DynamoLedger {
    client: Client,
    tables: GroupTables,
}

/// One conditional update of an item of `control`: expression, names and values in one place, so that it can be sent
/// alone or inside a transaction.
#[derive(Default)]
struct Change {
    key: Item,
    set: Vec<String>,
    remove: Vec<&'static str>,
    add: Option<&'static str>,
    condition: Vec<String>,
    names: BTreeMap<String, String>,
    values: Item,
}

impl Change {
    fn of(key: Item) -> Self {
        Self { key, ..Self::default() }
    }

    fn name(mut self, alias: &str, name: &str) -> Self {
        self.names.insert(alias.into(), name.into());
        self
    }

    fn value(mut self, alias: &str, value: aws_sdk_dynamodb::types::AttributeValue) -> Self {
        self.values.insert(alias.into(), value);
        self
    }

    fn set(mut self, what: impl Into<String>) -> Self {
        self.set.push(what.into());
        self
    }

    fn on(mut self, condition: impl Into<String>) -> Self {
        self.condition.push(condition.into());
        self
    }

    fn expression(&self) -> String {
        let mut parts = Vec::new();
        if !self.set.is_empty() {
            parts.push(format!("SET {}", self.set.join(", ")));
        }
        if !self.remove.is_empty() {
            parts.push(format!("REMOVE {}", self.remove.join(", ")));
        }
        if let Some(add) = self.add {
            parts.push(format!("ADD {add}"));
        }
        parts.join(" ")
    }

    fn alone(self, client: &Client, table: &str) -> UpdateItemFluentBuilder {
        client
            .update_item()
            .table_name(table)
            .update_expression(self.expression())
            .condition_expression(self.condition.join(" AND "))
            .set_key(Some(self.key))
            .set_expression_attribute_names(Some(self.names.into_iter().collect()))
            .set_expression_attribute_values((!self.values.is_empty()).then_some(self.values))
            .return_values(ReturnValue::AllNew)
            .return_values_on_condition_check_failure(ALL_OLD)
    }

    fn action(self, table: &str) -> Result<TransactWriteItem, StoreError> {
        let update = Update::builder()
            .table_name(table)
            .update_expression(self.expression())
            .condition_expression(self.condition.join(" AND "))
            .set_key(Some(self.key))
            .set_expression_attribute_names(Some(self.names.into_iter().collect()))
            .set_expression_attribute_values((!self.values.is_empty()).then_some(self.values))
            .return_values_on_condition_check_failure(ALL_OLD);
        let update = update.build().map_err(|error| unbuilt(table, error))?;
        Ok(TransactWriteItem::builder().update(update).build())
    }
}

type Decode<T> = fn(Item) -> Result<T, Impossible>;

impl DynamoLedger {
    pub(super) fn new(client: Client, tables: GroupTables) -> Self {
        Self { client, tables }
    }

    fn refused<T>(
        &self,
        item: Option<Item>,
        operation: &'static str,
        decode: Decode<T>,
    ) -> Result<Answer<T>, StoreError> {
        let item = item.map(decode).transpose();
        item.map(Answer::Refused).map_err(|why| undecodable(&self.tables.control, operation, why))
    }

    async fn update<T>(&self, change: Change, decode: Decode<T>) -> Result<Answer<T>, StoreError> {
        const OPERATION: &str = "UpdateItem";
        match change.alone(&self.client, &self.tables.control).send().await {
            Ok(answer) => match decode(answer.attributes.unwrap_or_default()) {
                Ok(value) => Ok(Answer::Accepted(value)),
                Err(why) => Err(unreadable_after(&self.tables.control, OPERATION, why)),
            },
            Err(error) => match error.as_service_error() {
                Some(UpdateItemError::ConditionalCheckFailedException(told)) => {
                    self.refused(told.item.clone(), OPERATION, decode)
                }
                _ => Err(failed(&self.tables.control, OPERATION, error)),
            },
        }
    }

    /// Puts an item on a condition; on success the answer is `value`.
    async fn put<T>(
        &self,
        item: Item,
        condition: Change,
        value: T,
        decode: Decode<T>,
    ) -> Result<Answer<T>, StoreError> {
        const OPERATION: &str = "PutItem";
        let put = self
            .client
            .put_item()
            .table_name(&self.tables.control)
            .set_item(Some(item))
            .condition_expression(condition.condition.join(" AND "))
            .set_expression_attribute_names(Some(condition.names.into_iter().collect()))
            .set_expression_attribute_values((!condition.values.is_empty()).then_some(condition.values))
            .return_values_on_condition_check_failure(ALL_OLD);
        match put.send().await {
            Ok(_) => Ok(Answer::Accepted(value)),
            Err(error) => match error.as_service_error() {
                Some(PutItemError::ConditionalCheckFailedException(told)) => {
                    self.refused(told.item.clone(), OPERATION, decode)
                }
                _ => Err(failed(&self.tables.control, OPERATION, error)),
            },
        }
    }

    async fn put_if_absent<T>(&self, item: Item, value: T, decode: Decode<T>) -> Result<Answer<T>, StoreError> {
        let absent = Change::default().name("#item", "item").on("attribute_not_exists(#item)");
        self.put(item, absent, value, decode).await
    }

    fn scope(&self, scope: &str) -> QueryFluentBuilder {
        self.client
            .query()
            .table_name(&self.tables.control)
            .key_condition_expression("#scope = :scope")
            .expression_attribute_names("#scope", "scope")
            .expression_attribute_values(":scope", s(scope))
            .limit(QUERY_LIMIT)
    }

    async fn all<T>(&self, query: QueryFluentBuilder, decode: Decode<T>) -> Result<Vec<T>, StoreError> {
        let found = follow(&self.tables.control, query, usize::MAX).await?;
        let found: Result<Vec<_>, _> = found.into_iter().map(decode).collect();
        found.map_err(|why| undecodable(&self.tables.control, "Query", why))
    }

    async fn read<T>(&self, key: Item, decode: Decode<T>) -> Result<Option<T>, StoreError> {
        const OPERATION: &str = "GetItem";
        let get = self.client.get_item().table_name(&self.tables.control).set_key(Some(key));
        let answer = get.consistent_read(true).send().await;
        let answer = answer.map_err(|error| failed(&self.tables.control, OPERATION, error))?;
        let item = answer.item.map(decode).transpose();
        item.map_err(|why| undecodable(&self.tables.control, OPERATION, why))
    }

    async fn read_lease(&self, shard: &ShardRef) -> Result<Option<Lease>, StoreError> {
        self.read(items::lease_key(shard), items::lease).await
    }

    /// The update of the lease in a write by its owner.
    fn lease_change(write: &LeaseWrite) -> Change {
        let mut change = Change::of(items::lease_key(&write.shard))
            .name("#owner", "owner")
            .name("#epoch", "epoch")
            .name("#seq", "seq")
            .value(":me", s(write.owner.as_str()))
            .value(":epoch", n(write.epoch))
            .value(":seq", n(write.seq))
            .set("#seq = :seq")
            .on("#owner = :me AND #epoch = :epoch AND #seq < :seq");
        for (at, (trigger, checkpoint)) in write.checkpoints.iter().enumerate() {
            change = change
                // In short: an expression ends at 4 KB, and this makes room for 64 triggers.
                .name("#a", "checkpoints")
                .name("#l", "low")
                .name(&format!("#t{at}"), trigger.as_str())
                .value(&format!(":c{at}"), items::checkpoint_value(checkpoint))
                .value(&format!(":l{at}"), n(checkpoint.low))
                .set(format!("#a.#t{at} = :c{at}"))
                .on(format!("(attribute_not_exists(#a.#t{at}) OR #a.#t{at}.#l <= :l{at})"));
        }
        if write.release {
            change.remove.push("#owner");
        }
        change = change.name("#alone", "alone");
        match &write.alone {
            Some(alone) => change.set("#alone = :alone").value(":alone", items::alone_value(alone)),
            None => {
                change.remove.push("#alone");
                change
            }
        }
    }

    fn lane_action(&self, change: &LaneChange) -> Result<TransactWriteItem, StoreError> {
        let table = &self.tables.parked;
        let put = |item, seen: Option<u64>| {
            let put = Put::builder().table_name(table).set_item(Some(item));
            let put = match seen {
                None => put,
                Some(seen) => put
                    .condition_expression("#revision = :seen")
                    .expression_attribute_names("#revision", "revision")
                    .expression_attribute_values(":seen", n(seen)),
            };
            put.build().map(|put| TransactWriteItem::builder().put(put).build())
        };
        let action = match change {
            LaneChange::Put(parked) => put(items::parked_item(parked, parked.revision), None),
            LaneChange::Update(parked) => put(items::parked_item(parked, parked.revision + 1), Some(parked.revision)),
            LaneChange::Delete(parked) => Delete::builder()
                .table_name(table)
                .set_key(Some(items::parked_key(parked)))
                .condition_expression("#revision = :seen")
                .expression_attribute_names("#revision", "revision")
                .expression_attribute_values(":seen", n(parked.revision))
                .build()
                .map(|delete| TransactWriteItem::builder().delete(delete).build()),
        };
        action.map_err(|error| unbuilt(table, error))
    }

    /// Sends a transaction; `None` when it was applied, the reasons when it was refused.
    async fn transact(&self, actions: Vec<TransactWriteItem>) -> Result<Option<Vec<Reason>>, StoreError> {
        match self.client.transact_write_items().set_transact_items(Some(actions)).send().await {
            Ok(_) => Ok(None),
            Err(error) => refused_transaction(&self.tables.control, error).map(Some),
        }
    }

    /// A change of one session on the condition that it is not dead.
    fn living(id: &SessionId) -> Change {
        Change::of(items::session_key(id))
            .name("#state", "state")
            .value(":live", s(items::state_word(SessionState::Live)))
            .value(":draining", s(items::state_word(SessionState::Draining)))
            .on("#state IN (:live, :draining)")
    }
}

impl Ledger for DynamoLedger {
    fn open_session<'a>(&'a self, session: &'a Session) -> Out<'a, Answer<Session>> {
        Box::pin(self.put_if_absent(items::session_item(session), session.clone(), items::session))
    }

    fn beat<'a>(&'a self, id: &'a SessionId, at: Millis) -> Out<'a, Answer<Session>> {
        let mut change = Self::living(id)
            .name("#beat", "beat")
            .name("#at", "beat_at")
            .value(":one", n(1))
            .value(":at", n(at))
            .set("#at = :at");
        change.add = Some("#beat :one");
        Box::pin(self.update(change, items::session))
    }

    fn set_state<'a>(&'a self, id: &'a SessionId, state: SessionState) -> Out<'a, Answer<Session>> {
        let change = Self::living(id).set("#state = :new").value(":new", s(items::state_word(state)));
        Box::pin(self.update(change, items::session))
    }

    fn declare_dead<'a>(&'a self, id: &'a SessionId, seen: Option<u64>) -> Out<'a, Answer<Session>> {
        let Some(seen) = seen else {
            let dead = Session::dead(id);
            return Box::pin(self.put_if_absent(items::session_item(&dead), dead, items::session));
        };
        let change = Self::living(id)
            .name("#beat", "beat")
            .value(":seen", n(seen))
            .value(":dead", s(items::state_word(SessionState::Dead)))
            .set("#state = :dead")
            .on("#beat = :seen");
        Box::pin(self.update(change, items::session))
    }

    fn nudge<'a>(&'a self, id: &'a SessionId, about: Nudge) -> Out<'a, ()> {
        let inbox = match about {
            Nudge::Leases => "inbox",
            Nudge::Parked => "parked_inbox",
        };
        let mut change =
            Change::of(items::session_key(id)).name("#inbox", inbox).value(":one", n(1)).on("attribute_exists(#inbox)");
        change.add = Some("#inbox :one");
        Box::pin(async move { self.update(change, items::session).await.map(|_| ()) })
    }

    fn sessions(&self) -> Out<'_, Vec<Session>> {
        Box::pin(self.all(self.scope(items::SESSIONS).consistent_read(true), items::session))
    }

    fn forget_session<'a>(&'a self, id: &'a SessionId) -> Out<'a, ()> {
        Box::pin(async move {
            let delete = self
                .client
                .delete_item()
                .table_name(&self.tables.control)
                .set_key(Some(items::session_key(id)))
                .condition_expression("#state = :dead")
                .expression_attribute_names("#state", "state")
                .expression_attribute_values(":dead", s(items::state_word(SessionState::Dead)));
            match delete.send().await {
                Ok(_) => Ok(()),
                Err(SdkError::ServiceError(told)) if told.err().is_conditional_check_failed_exception() => Ok(()),
                Err(error) => Err(failed(&self.tables.control, "DeleteItem", error)),
            }
        })
    }

    fn triggers(&self) -> Out<'_, Vec<TriggerRecord>> {
        Box::pin(self.read_triggers())
    }

    fn retired<'a>(&'a self, id: &'a TriggerId) -> Out<'a, Option<TriggerRecord>> {
        Box::pin(self.read(items::retired_key(id), items::trigger))
    }

    fn register<'a>(&'a self, record: &'a TriggerRecord) -> Out<'a, Answer<TriggerRecord>> {
        Box::pin(self.put_trigger(record))
    }

    fn update_trigger<'a>(&'a self, record: &'a TriggerRecord) -> Out<'a, Answer<TriggerRecord>> {
        Box::pin(self.change_trigger(record))
    }

    fn rename_trigger<'a>(&'a self, record: &'a TriggerRecord, to: &'a Name) -> Out<'a, Answer<TriggerRecord>> {
        Box::pin(self.rename(record, to))
    }

    fn free_name<'a>(&'a self, record: &'a TriggerRecord, name: &'a Name) -> Out<'a, Answer<TriggerRecord>> {
        Box::pin(self.free(record, name))
    }

    fn leases<'a>(&'a self, source: &'a Name) -> Out<'a, Vec<Lease>> {
        Box::pin(async move {
            let scope = |scope| {
                let query = self
                    .scope(&items::lease_scope(scope))
                    .key_condition_expression("#scope = :scope AND begins_with(#item, :source)")
                    .expression_attribute_names("#item", "item")
                    .expression_attribute_values(":source", s(items::lease_prefix(source)));
                self.all(query, items::lease)
            };
            let scopes = stream::iter(0..items::LEASE_SCOPES).map(scope).buffered(SCOPES_AT_ONCE);
            let mut leases: Vec<Lease> = scopes.try_concat().await?;
            leases.sort_by_key(|lease| lease.shard.shard);
            Ok(leases)
        })
    }

    fn lease<'a>(&'a self, shard: &'a ShardRef) -> Out<'a, Option<Lease>> {
        Box::pin(self.read_lease(shard))
    }

    fn claim<'a>(
        &'a self,
        shard: &'a ShardRef,
        incarnation: &'a Incarnation,
        me: &'a SessionId,
        seen: Option<&'a Lease>,
        at: Millis,
    ) -> Out<'a, Answer<Lease>> {
        let Some(seen) = seen else {
            let lease = Lease {
                shard: shard.clone(),
                incarnation: incarnation.clone(),
                owner: Some(me.clone()),
                epoch: Epoch(1),
                seq: 0,
                claimed_at: at,
                checkpoints: BTreeMap::new(),
                deaths: 0,
                alone: None,
            };
            return Box::pin(self.put_if_absent(items::lease_item(&lease), lease, items::lease));
        };
        let change = Change::of(items::lease_key(shard))
            .name("#owner", "owner")
            .name("#epoch", "epoch")
            .name("#seq", "seq")
            .value(":me", s(me.as_str()))
            .value(":seen", n(seen.epoch))
            .value(":next", n(seen.epoch.0 + 1))
            .name("#at", "claimed_at")
            .value(":none", n(0))
            .value(":at", n(at))
            .set("#owner = :me, #epoch = :next, #seq = :none, #at = :at")
            .on("#epoch = :seen");
        let mut change = match &seen.owner {
            Some(owner) => change.value(":owner", s(owner.as_str())).on("#owner = :owner"),
            None => change.on("attribute_not_exists(#owner)"),
        };
        if seen.owner.as_ref().is_some_and(|owner| owner != me) {
            change = change.name("#deaths", "deaths").value(":one", n(1));
            change.add = Some("#deaths :one");
        } else {
            change = change.name("#alone", "alone");
            change.remove.push("#alone");
        }
        Box::pin(self.update(change, items::lease))
    }

    /// Refused on account of a lane, the lease is read once more to answer: a transaction brings only what refused it.
    fn write<'a>(&'a self, write: &'a LeaseWrite) -> Out<'a, Written> {
        Box::pin(async move {
            let change = Self::lease_change(write);
            let written = |answer| match answer {
                Answer::Accepted(_) => Written::Accepted,
                Answer::Refused(lease) => Written::Refused(lease),
            };
            if write.lanes.is_empty() {
                return self.update(change, items::lease).await.map(written);
            }
            let mut actions = vec![change.action(&self.tables.control)?];
            for change in &write.lanes {
                actions.push(self.lane_action(change)?);
            }
            match self.transact(actions).await?.map(|reasons| reasons.into_iter().next()) {
                None => Ok(Written::Accepted),
                Some(Some(Reason::Refused(item))) => {
                    self.refused(item, "TransactWriteItems", items::lease).map(written)
                }
                // Not "a lane was refused": an earlier copy of this write may be what holds the lease.
                Some(Some(Reason::Other(error))) => Err(error),
                Some(_) => Ok(Written::Refused(self.read_lease(&write.shard).await?)),
            }
        })
    }

    fn operate<'a>(
        &'a self,
        seen: &'a Lease,
        trigger: &'a TriggerId,
        checkpoint: &'a Checkpoint,
    ) -> Out<'a, Answer<Lease>> {
        let mut change = Change::of(items::lease_key(&seen.shard))
            .name("#owner", "owner")
            .name("#epoch", "epoch")
            .name("#seq", "seq")
            .name("#all", "checkpoints")
            .name("#trigger", trigger.as_str())
            .value(":seen", n(seen.epoch))
            .value(":next", n(seen.epoch.0 + 1))
            .value(":seq", n(seen.seq))
            .value(":none", n(0))
            .value(":checkpoint", items::checkpoint_value(checkpoint))
            .set("#all.#trigger = :checkpoint, #epoch = :next, #seq = :none")
            .on("#epoch = :seen AND #seq = :seq");
        change.remove.push("#owner");
        Box::pin(self.update(change, items::lease))
    }

    fn forget_checkpoint<'a>(&'a self, shard: &'a ShardRef, trigger: &'a TriggerId) -> Out<'a, ()> {
        let mut change = Change::of(items::lease_key(shard))
            .name("#all", "checkpoints")
            .name("#trigger", trigger.as_str())
            .on("attribute_exists(#all.#trigger)");
        change.remove.push("#all.#trigger");
        Box::pin(async move { self.update(change, items::lease).await.map(|_| ()) })
    }

    fn parked<'a>(&'a self, lane: &'a Lane, after: AddedId, limit: usize) -> Out<'a, Vec<Parked>> {
        Box::pin(async move {
            let page = i32::try_from(limit).map_or(QUERY_LIMIT, |limit| limit.clamp(1, QUERY_LIMIT));
            let query = self
                .client
                .query()
                .table_name(&self.tables.parked)
                .key_condition_expression("#lane = :lane AND #position > :after")
                .expression_attribute_names("#lane", "lane")
                .expression_attribute_names("#position", "position")
                .expression_attribute_values(":lane", s(items::lane_key(lane)))
                .expression_attribute_values(":after", s(items::position(after)))
                .consistent_read(true)
                .limit(page);
            let found = follow(&self.tables.parked, query, limit).await?;
            let found: Result<Vec<_>, _> =
                found.into_iter().take(limit).map(|item| items::parked(lane, item)).collect();
            found.map_err(|why| undecodable(&self.tables.parked, "Query", why))
        })
    }

    fn all_parked<'a>(&'a self, after: Option<&'a Parked>, limit: usize) -> Out<'a, Vec<Parked>> {
        const OPERATION: &str = "Scan";
        let table = &self.tables.parked;
        Box::pin(async move {
            let mut found = Vec::new();
            let mut start = after.map(items::parked_key);
            for _ in 0..PAGES_MAX {
                let page = i32::try_from(limit - found.len()).map_or(QUERY_LIMIT, |left| left.clamp(1, QUERY_LIMIT));
                let scan = self.client.scan().table_name(table).consistent_read(true).limit(page);
                let answer = scan.set_exclusive_start_key(start).send().await;
                let answer = answer.map_err(|error| failed(table, OPERATION, error))?;
                for item in answer.items.unwrap_or_default() {
                    found.push(items::parked_anywhere(item).map_err(|why| undecodable(table, OPERATION, why))?);
                }
                start = answer.last_evaluated_key;
                if start.is_none() || found.len() >= limit {
                    found.truncate(limit);
                    return Ok(found);
                }
            }
            Err(endless(table, OPERATION))
        })
    }

    fn operate_parked<'a>(&'a self, changes: &'a [LaneChange]) -> Out<'a, bool> {
        Box::pin(async move {
            if changes.is_empty() {
                return Ok(true);
            }
            let actions: Result<Vec<_>, _> = changes.iter().map(|change| self.lane_action(change)).collect();
            let Some(reasons) = self.transact(actions?).await? else { return Ok(true) };
            // Refused is only what was looked at as a whole: an earlier copy may be half applied.
            let unseen = reasons.into_iter().find_map(|reason| match reason {
                Reason::Other(error) => Some(error),
                _ => None,
            });
            unseen.map_or(Ok(false), Err)
        })
    }
}
