//! Changes of registered triggers, whose key is a name: of their state, and of the names that they go by.

use super::{ALL_OLD, Change, DynamoLedger};
use crate::{
    cell::{Answer, Name, StoreError, TriggerId, TriggerRecord, TriggerState},
    store::dynamo::{
        failure::{Reason, undecodable},
        items::{self, Item, Named, n, s},
        log::unbuilt,
    },
};
use aws_sdk_dynamodb::{
    error::BuildError,
    types::{Delete, Put, TransactWriteItem},
};
use std::collections::{BTreeMap, BTreeSet};

/// How often the triggers are read again because a rename was half seen.
const READS: u32 = 5;

/// What lies under a name, told as the trigger that it is. A former name is nobody's item.
fn as_trigger(answer: Answer<Named>) -> Answer<TriggerRecord> {
    match answer {
        Answer::Accepted(Named::Trigger(record)) => Answer::Accepted(record),
        Answer::Accepted(Named::Former(_)) => Answer::Refused(None),
        Answer::Refused(item) => Answer::Refused(item.and_then(Named::trigger)),
    }
}

/// The triggers, if each was seen once: a query beside a rename may see its trigger under both names or under none. One
/// that is not seen would not keep its cells from a trim.
fn whole(found: Vec<Named>) -> Result<Vec<TriggerRecord>, TriggerId> {
    let mut triggers: BTreeMap<TriggerId, TriggerRecord> = BTreeMap::new();
    let mut former = BTreeSet::new();
    for named in found {
        match named {
            Named::Trigger(record) => {
                if let Some(twice) = triggers.insert(record.id.clone(), record) {
                    return Err(twice.id);
                }
            }
            Named::Former(id) => {
                former.insert(id);
            }
        }
    }
    match former.into_iter().find(|id| !triggers.contains_key(id)) {
        Some(unseen) => Err(unseen),
        None => Ok(triggers.into_values().collect()),
    }
}

/// On the condition that a trigger is as it was read.
fn as_seen(record: &TriggerRecord) -> Change {
    Change::default()
        .name("#id", "id")
        .name("#revision", "revision")
        .value(":id", s(record.id.as_str()))
        .value(":seen", n(record.revision))
        .on("#id = :id AND #revision = :seen")
}

/// On the condition that it is a former name of this trigger.
fn own_former(record: &TriggerRecord) -> Change {
    Change::default()
        .name("#id", "id")
        .name("#state", "state")
        .value(":id", s(record.id.as_str()))
        .value(":renamed", s(items::RENAMED))
        .on("#id = :id AND #state = :renamed")
}

impl DynamoLedger {
    pub(super) async fn read_triggers(&self) -> Result<Vec<TriggerRecord>, StoreError> {
        let mut reads = 1;
        loop {
            let found = self.all(self.scope(items::TRIGGERS).consistent_read(true), items::named).await?;
            match whole(found) {
                Ok(triggers) => return Ok(triggers),
                Err(_) if reads < READS => reads += 1,
                Err(id) => return Err(undecodable(&self.tables.control, "Query", items::half_named(&id))),
            }
        }
    }

    pub(super) async fn put_trigger(&self, record: &TriggerRecord) -> Result<Answer<TriggerRecord>, StoreError> {
        let put = self.put_if_absent(items::trigger_item(record), Named::Trigger(record.clone()), items::named);
        put.await.map(as_trigger)
    }

    pub(super) async fn change_trigger(&self, record: &TriggerRecord) -> Result<Answer<TriggerRecord>, StoreError> {
        let next = TriggerRecord { revision: record.revision + 1, ..record.clone() };
        if next.state != TriggerState::Retired {
            let put = self.put(items::trigger_item(&next), as_seen(record), Named::Trigger(next), items::named);
            return put.await.map(as_trigger);
        }
        let mut actions = vec![
            self.delete_name(&record.name, as_seen(record))?,
            self.put_name(items::trigger_item(&next), Change::default())?,
        ];
        for name in &record.formerly {
            actions.push(self.delete_name(name, own_former(record))?);
        }
        self.move_trigger(actions, next).await
    }

    pub(super) async fn rename(&self, record: &TriggerRecord, to: &Name) -> Result<Answer<TriggerRecord>, StoreError> {
        if *to == record.name {
            return Ok(Answer::Refused(None));
        }
        let next = record.renamed(to);
        let mut free = own_former(record);
        free.condition = vec![format!("attribute_not_exists(#id) OR {}", free.condition.join(" AND "))];
        let actions = vec![
            self.put_name(items::former_item(&record.name, &record.id), as_seen(record))?,
            self.put_name(items::trigger_item(&next), free)?,
        ];
        self.move_trigger(actions, next).await
    }

    pub(super) async fn free(&self, record: &TriggerRecord, name: &Name) -> Result<Answer<TriggerRecord>, StoreError> {
        if !record.formerly.contains(name) {
            return Ok(Answer::Refused(None));
        }
        let next = record.without_name(name);
        let actions = vec![
            self.put_name(items::trigger_item(&next), as_seen(record))?,
            self.delete_name(name, own_former(record))?,
        ];
        self.move_trigger(actions, next).await
    }

    /// Sends a transaction whose first action has the trigger's own item as its condition.
    async fn move_trigger(
        &self,
        actions: Vec<TransactWriteItem>,
        next: TriggerRecord,
    ) -> Result<Answer<TriggerRecord>, StoreError> {
        const OPERATION: &str = "TransactWriteItems";
        match self.transact(actions).await?.map(|reasons| reasons.into_iter().next()) {
            None => Ok(Answer::Accepted(next)),
            Some(Some(Reason::Refused(item))) => {
                let item = item.map(items::named).transpose();
                let item = item.map_err(|why| undecodable(&self.tables.control, OPERATION, why))?;
                Ok(Answer::Refused(item.and_then(Named::trigger)))
            }
            Some(Some(Reason::Other(error))) => Err(error),
            Some(_) => Ok(Answer::Refused(None)),
        }
    }

    fn put_name(&self, item: Item, condition: Change) -> Result<TransactWriteItem, StoreError> {
        let put = Put::builder().table_name(&self.tables.control).set_item(Some(item));
        let put = match condition.condition.is_empty() {
            true => put,
            false => put
                .condition_expression(condition.condition.join(" AND "))
                .set_expression_attribute_names(Some(condition.names.into_iter().collect()))
                .set_expression_attribute_values(Some(condition.values))
                .return_values_on_condition_check_failure(ALL_OLD),
        };
        let put = put.build().map_err(|error| self.unbuilt(error))?;
        Ok(TransactWriteItem::builder().put(put).build())
    }

    fn delete_name(&self, name: &Name, condition: Change) -> Result<TransactWriteItem, StoreError> {
        let delete = Delete::builder()
            .table_name(&self.tables.control)
            .set_key(Some(items::trigger_key(name)))
            .condition_expression(condition.condition.join(" AND "))
            .set_expression_attribute_names(Some(condition.names.into_iter().collect()))
            .set_expression_attribute_values(Some(condition.values))
            .return_values_on_condition_check_failure(ALL_OLD);
        let delete = delete.build().map_err(|error| self.unbuilt(error))?;
        Ok(TransactWriteItem::builder().delete(delete).build())
    }

    fn unbuilt(&self, error: BuildError) -> StoreError {
        unbuilt(&self.tables.control, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::Incarnation;

    #[test]
    fn a_rename_that_is_half_seen_is_noticed() {
        let before = TriggerRecord {
            id: TriggerId::from_stored("t1"),
            name: Name::new("bill").unwrap(),
            formerly: BTreeSet::new(),
            source: Name::new("trips").unwrap(),
            incarnation: Incarnation::from_stored("i"),
            state: TriggerState::Active,
            generation: 0,
            start: None,
            revision: 1,
        };
        let after = before.renamed(&Name::new("charge").unwrap());
        let former = || Named::Former(before.id.clone());
        assert_eq!(whole(vec![Named::Trigger(before.clone())]), Ok(vec![before.clone()]));
        assert_eq!(whole(vec![former(), Named::Trigger(after.clone())]), Ok(vec![after.clone()]));
        assert_eq!(whole(vec![former()]), Err(before.id.clone()), "neither the one nor the other");
        assert_eq!(whole(vec![Named::Trigger(before.clone()), Named::Trigger(after)]), Err(before.id.clone()), "both");
    }
}
