//! The tables: their names, their keys, how they are made and how their absence is noticed.

use super::failure::failed;
use super::items::{self, Item, s};
use super::settings::{Billing, TableSettings, modes, tag};
use crate::cell::{AddedId, ErrorKind, Name, ShardId, StoreError};
use aws_sdk_dynamodb::{
    Client,
    types::{AttributeDefinition, KeySchemaElement, KeyType, ScalarAttributeType, TableDescription},
};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long a table may take from its making to its first answer.
const READY_WITHIN: Duration = Duration::from_secs(90);

/// Names of the tables of a datastore.
#[derive(Clone, Debug)]
pub(crate) struct DatastoreTables {
    pub(crate) cells: String,
    pub(crate) log: String,
    pub(crate) tips: String,
}

impl DatastoreTables {
    pub(crate) fn of(prefix: &str, datastore: &Name) -> Self {
        let table = |name| format!("{prefix}{datastore}.{name}");
        Self { cells: table("cells"), log: table("log"), tips: table("tips") }
    }

    pub(crate) fn all(&self) -> Vec<Table> {
        let key = |row: &str| [("row_key".to_owned(), s(row)), ("cell".to_owned(), s("#"))].into();
        vec![
            Table::new(&self.cells, [("row_key", Text), ("cell", Text)], key("probe")),
            Table::new(&self.log, [("shard", Number), ("last", Number)], items::segment_key(ShardId(0), AddedId(0))),
            Table::new(&self.tips, [("bucket", Number), ("shard", Number)], items::datastore_key()),
        ]
    }
}

/// Names of the tables of a group.
#[derive(Clone, Debug)]
pub(crate) struct GroupTables {
    pub(crate) control: String,
    pub(crate) parked: String,
}

impl GroupTables {
    pub(crate) fn of(prefix: &str, group: &Name) -> Self {
        let table = |name| format!("{prefix}{group}.{name}");
        Self { control: table("control"), parked: table("parked") }
    }

    pub(crate) fn all(&self) -> Vec<Table> {
        let key = |a: &str, b: &str| [(a.to_owned(), s("probe")), (b.to_owned(), s("probe"))].into();
        vec![
            Table::new(&self.control, [("scope", Text), ("item", Text)], key("scope", "item")),
            Table::new(&self.parked, [("lane", Text), ("position", Text)], key("lane", "position")),
        ]
    }
}

use ScalarAttributeType::{N as Number, S as Text};

/// A table with its key and the key of an item that it is asked for to see whether it is there: that needs no other
/// rights than the daily work does, and costs next to nothing.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(crate) name: String,
    keys: [(&'static str, ScalarAttributeType); 2],
    probe: Item,
}

/// What came of looking for a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// There, and ready.
    Ready,
    /// Not there, or not ready yet.
    Missing,
    /// There with another key: not a table of ours.
    Foreign,
}

impl Table {
    fn new(name: &str, keys: [(&'static str, ScalarAttributeType); 2], probe: Item) -> Self {
        Self { name: name.to_owned(), keys, probe }
    }

    /// The same under another name.
    #[cfg(test)]
    pub(super) fn renamed(self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self }
    }

    /// Looks whether it is there.
    pub(crate) async fn look(&self, client: &Client) -> Result<Found, StoreError> {
        let get = client.get_item().table_name(&self.name).set_key(Some(self.probe.clone())).send().await;
        match get.map_err(|error| failed(&self.name, "GetItem", error)) {
            Ok(_) => Ok(Found::Ready),
            Err(error) if error.kind == ErrorKind::MissingTable => Ok(Found::Missing),
            Err(error) if error.kind == ErrorKind::Invalid => Ok(Found::Foreign),
            Err(error) => Err(error),
        }
    }

    /// Whether a table that is there has this key: the same attributes, in the same parts of it.
    pub(super) fn has_keys_of(&self, found: &TableDescription) -> bool {
        let parts = found.key_schema().iter().map(|part| (part.attribute_name(), part.key_type()));
        let kind = |name: &str| {
            let mut definitions = found.attribute_definitions().iter();
            definitions.find(|one| one.attribute_name() == name).map(|one| one.attribute_type())
        };
        let own = self.keys.iter().zip([&KeyType::Hash, &KeyType::Range]);
        parts.eq(own.clone().map(|((name, _), part)| (*name, part)))
            && own.into_iter().all(|((name, own), _)| kind(name) == Some(own))
    }

    /// Makes it, unless it is there; says whether it made it. It need not be ready yet. Of the settings it gets those that
    /// can be said here; point-in-time recovery cannot.
    pub(crate) async fn make(&self, client: &Client, settings: &TableSettings) -> Result<bool, StoreError> {
        let (mode, units) = modes(settings.billing.unwrap_or(Billing::OnDemand));
        let mut create = client.create_table().table_name(&self.name).billing_mode(mode);
        create = create.set_provisioned_throughput(units).set_deletion_protection_enabled(settings.deletion_protection);
        for (key, value) in &settings.tags {
            create = create.tags(tag(key, value));
        }
        for ((name, kind), part) in self.keys.clone().into_iter().zip([KeyType::Hash, KeyType::Range]) {
            let attribute = AttributeDefinition::builder().attribute_name(name).attribute_type(kind).build();
            let element = KeySchemaElement::builder().attribute_name(name).key_type(part).build();
            create = create
                .attribute_definitions(attribute.expect("name and type are set"))
                .key_schema(element.expect("name and type are set"));
        }
        match create.send().await {
            Ok(_) => Ok(true),
            Err(error) if error.as_service_error().is_some_and(|told| told.is_resource_in_use_exception()) => Ok(false),
            Err(error) => Err(failed(&self.name, "CreateTable", error)),
        }
    }
}

/// Makes those of the tables that are missing and waits until all can be used. Gives the names of the made ones and
/// the first that is not ours. Repeats by itself what may pass, within a limit; but not
/// for a store that never answered: most likely there is none where it was looked for.
pub(crate) async fn make_all(
    client: &Client,
    tables: &[Table],
    settings: &TableSettings,
) -> Result<(Vec<String>, Option<String>), StoreError> {
    let deadline = Instant::now() + READY_WITHIN;
    let mut made = Vec::new();
    let mut answered = false;
    let mut pause = Duration::from_millis(20);
    loop {
        match step(client, tables, settings, &mut made, &mut answered).await {
            Ok(Step::Ready) => return Ok((made, None)),
            Ok(Step::Foreign(table)) => return Ok((made, Some(table))),
            Ok(Step::Wait(table)) if Instant::now() >= deadline => {
                let source = Some(format!("not ready {} seconds after it was made", READY_WITHIN.as_secs()).into());
                return Err(StoreError { kind: ErrorKind::MissingTable, table, operation: "CreateTable", source });
            }
            Ok(Step::Wait(_)) => {}
            Err(error) => {
                let passes = match error.kind {
                    ErrorKind::Throttled | ErrorKind::Conflict => true,
                    ErrorKind::Unanswered => answered,
                    _ => false,
                };
                if !passes || Instant::now() >= deadline {
                    return Err(error);
                }
                tracing::warn!(error = &error as &dyn std::error::Error, "making tables; trying again");
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

enum Step {
    Ready,
    Wait(String),
    Foreign(String),
}

async fn step(
    client: &Client,
    tables: &[Table],
    settings: &TableSettings,
    made: &mut Vec<String>,
    answered: &mut bool,
) -> Result<Step, StoreError> {
    let mut wait = None;
    for table in tables {
        let found = table.look(client).await?;
        *answered = true;
        match found {
            Found::Ready => {}
            Found::Foreign => return Ok(Step::Foreign(table.name.clone())),
            Found::Missing => {
                if !made.contains(&table.name) && table.make(client, settings).await? {
                    made.push(table.name.clone());
                }
                wait = Some(table.name.clone());
            }
        }
    }
    Ok(wait.map_or(Step::Ready, Step::Wait))
}
