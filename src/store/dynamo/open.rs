//! Opening a store: the clients, and what is checked before anybody works with the tables.

use super::failure::{failed, undecodable};
use super::items::{self, FoundDatastore};
use super::ledger::DynamoLedger;
use super::log::DynamoLog;
use super::meter::Meter;
use super::settings::{Difference, TableSettings, settle};
use super::tables::{DatastoreTables, Found, GroupTables, Table, make_all};
use crate::cell::{Datastore, Incarnation, Ledger, Log, Name, NewDatastore, SCHEMA, StoreError};
use crate::store::config::{Config, Durability, Kind};
use crate::store::embedded::{Connector, Engine, FileError, Presence};
use aws_config::{BehaviorVersion, Region};
use aws_sdk_dynamodb::{
    Client,
    config::{
        Builder, Credentials, ProvideCredentials, StalledStreamProtectionConfig, retry::RetryConfig,
        timeout::TimeoutConfig,
    },
    operation::put_item::PutItemError,
    types::ReturnValuesOnConditionCheckFailure,
};
use aws_smithy_runtime_api::client::http::HttpClient;
use std::{sync::Arc, time::Duration};

/// What a request of the control plane may take; a heartbeat must be told apart from a hanging one in time.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(2);
/// What a request of the data plane may take.
const DATA_TIMEOUT: Duration = Duration::from_secs(5);
/// What a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// What the sources of credentials may take, all together.
const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(15);
/// Most shards of a datastore: a lease's sort key has five digits.
const SHARDS_MAX: u32 = 65_536;

/// The durable store, by its two clients: one for the control plane and one for the data plane, each with its own
/// connections, so that a busy data plane cannot starve a heartbeat.
///
/// Cheap to clone. An embedded store is closed when the last clone, and all that was made of it, are gone. Opened twice in
/// one process, the second shares the first's file.
#[derive(Clone, Debug)]
pub struct Store {
    control: Client,
    data: Client,
    prefix: String,
    described: String,
    kind: Kind,
    presence: Option<Presence>,
}

/// Why a store cannot be worked with, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The prefix cannot be part of the name of a table.
    #[error("store.table_prefix {0:?} is refused: at most 100 letters, digits, '_', '-' and '.' may stand there")]
    Prefix(String),
    /// Nobody says which region.
    #[error("no AWS region is known: set store.region, AWS_REGION, or the region of the profile")]
    Region,
    /// No credentials, or unusable ones.
    #[error("no AWS credentials can be loaded: set AWS_PROFILE or AWS_ACCESS_KEY_ID, or store.profile, or sign in")]
    Credentials(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The number of shards is out of range.
    #[error("{0} shards are refused: a datastore has 1 to 65536")]
    ShardsOutOfRange(u32),
    /// Tables are missing.
    #[error("missing in {place}: {tables}. Make them with `cellhook init`", tables = .tables.join(", "))]
    MissingTables {
        /// Where they were looked for.
        place: String,
        /// Their names.
        tables: Vec<String>,
    },
    /// A table of that name has another key than ours.
    #[error("table {0} is not one of cellhook's: it has another key. Set store.table_prefix to keep the two apart")]
    ForeignTable(String),
    /// The tables are there, their datastore's item is not.
    #[error("table {0} has no datastore item: its making was cut short. Run `cellhook init` again")]
    Unfinished(String),
    /// Made by another version.
    #[error(
        "datastore {datastore} has tables of schema {found}, this program works with schema {SCHEMA}: use the version \
         of cellhook that made them, or move the cells to a new datastore"
    )]
    Schema {
        /// The datastore.
        datastore: Name,
        /// Its schema number.
        found: u32,
    },
    /// Made with another number of shards.
    #[error(
        "datastore {datastore} was made with {found} shards, not with {expected}; the number is fixed for good: \
         set datastores.{datastore}.shards = {found}, or use another name"
    )]
    Shards {
        /// The datastore.
        datastore: Name,
        /// As it was made.
        found: u32,
        /// As it is configured.
        expected: u32,
    },
    /// The tables belong to a datastore of another name, copied or restored perhaps.
    #[error("table {table} belongs to datastore {found}: restore it under its own name, or make a new datastore")]
    OtherName {
        /// The table.
        table: String,
        /// The name in its item.
        found: Name,
    },
    /// The file of the embedded store.
    #[error(transparent)]
    File(#[from] FileError),
    /// A request failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What `init` found or made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// The datastore as it is now.
    pub datastore: Datastore,
    /// Tables that did not exist before, by name.
    pub tables: Vec<String>,
    /// Whether the datastore itself is new.
    pub new: bool,
    /// What was not as asked for of tables that existed.
    pub differences: Vec<Difference>,
}

/// How `init` makes tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Making {
    /// What is asked of them.
    pub settings: TableSettings,
    /// Whether those that exist and are not so are changed; otherwise it is only told.
    pub update: bool,
}

/// How large a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSize {
    /// Its items.
    pub items: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Store {
    /// Opens the store that the config names. An embedded file is made if there is none; no table is made or looked
    /// for.
    ///
    /// # Errors
    /// When the file cannot be used, or region or credentials are not known. Whether a server can be reached shows
    /// only with the first request.
    pub async fn open(config: &Config) -> Result<Self, OpenError> {
        let prefix = &config.table_prefix;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        if prefix.len() > 100 || !prefix.bytes().all(plain) {
            return Err(OpenError::Prefix(prefix.clone()));
        }
        match config.kind {
            Kind::Embedded => {
                let engine = Engine::open(&config.path, config.durability).await?;
                let path = std::path::absolute(&config.path).unwrap_or_else(|_| config.path.clone());
                let presence = Presence::of(&path);
                let normal = if config.durability == Durability::Normal { ", durability normal" } else { "" };
                let described = format!("{} (embedded, this host only{normal})", path.display());
                Ok(Self { presence: Some(presence), ..Self::embedded(engine, prefix, described) })
            }
            Kind::Dynamodb => Self::aws(config).await,
        }
    }

    /// A store in memory that ends with its last clone, executed on threads of its own: for tests.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn in_memory() -> Result<Self, OpenError> {
        Ok(Self::embedded(Arc::new(Engine::in_memory()?), "", "memory".into()))
    }

    /// As [`Store::in_memory`], executed on the caller's task: for simulation under a stopped clock.
    ///
    /// # Errors
    /// When the engine refuses.
    pub fn inline() -> Result<Self, OpenError> {
        Ok(Self::embedded(Arc::new(Engine::inline()?), "", "memory, inline".into()))
    }

    fn embedded(engine: Arc<Engine>, prefix: &str, described: String) -> Self {
        // The engine gives up before the SDK does: then it can say why, and that nothing was done.
        let deadline = |timeout: Duration| timeout * 3 / 4;
        Self {
            control: inside(Connector::control(engine.clone(), deadline(CONTROL_TIMEOUT)), CONTROL_TIMEOUT),
            data: inside(Connector::data(engine, deadline(DATA_TIMEOUT)), DATA_TIMEOUT),
            prefix: prefix.to_owned(),
            described,
            kind: Kind::Embedded,
            presence: None,
        }
    }

    /// Over a server that the caller stands for, with this program's clients before it: for tests of bad answers.
    #[cfg(any(test, feature = "planted"))]
    #[must_use]
    pub fn over(server: impl HttpClient + Clone + 'static) -> Self {
        Self {
            control: inside(server.clone(), CONTROL_TIMEOUT),
            data: inside(server, DATA_TIMEOUT),
            prefix: String::new(),
            described: "a server of the caller's".into(),
            kind: Kind::Embedded,
            presence: None,
        }
    }

    /// A client, to bring about in tests what the traits cannot.
    #[cfg(test)]
    pub(super) fn raw(&self) -> &Client {
        &self.data
    }

    async fn aws(config: &Config) -> Result<Self, OpenError> {
        let mut loader = aws_config::defaults(BehaviorVersion::latest());
        if let Some(profile) = &config.profile {
            loader = loader.profile_name(profile);
        }
        if let Some(region) = &config.region {
            loader = loader.region(Region::new(region.clone()));
        }
        if let Some(endpoint) = &config.endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        // An emulator on this host checks no credentials; asking all of AWS's places for some would take seconds.
        let configured = config.profile.is_some()
            || ["AWS_ACCESS_KEY_ID", "AWS_PROFILE"].into_iter().any(|name| std::env::var_os(name).is_some());
        if !configured && config.endpoint.as_deref().is_some_and(is_loopback) {
            loader = loader.credentials_provider(nobody());
        }
        let shared = loader.load().await;
        let region = match (shared.region(), &config.endpoint) {
            (Some(region), _) => region.clone(),
            (None, Some(_)) => Region::from_static("us-east-1"),
            (None, None) => return Err(OpenError::Region),
        };
        // Asked for here once: later a slow or missing source of them would only look like a request without answer.
        if let Some(provider) = shared.credentials_provider() {
            let credentials = tokio::time::timeout(CREDENTIALS_TIMEOUT, provider.provide_credentials()).await;
            let credentials = credentials.map_err(|late| OpenError::Credentials(late.into()))?;
            credentials.map_err(|error| OpenError::Credentials(error.into()))?;
        }
        let client = |timeout| {
            let config = Builder::from(&shared).region(region.clone());
            Client::from_conf(ours(config, timeout).build())
        };
        let described = match &config.endpoint {
            Some(endpoint) => format!("DynamoDB at {endpoint}, region {region}"),
            None => format!("DynamoDB in {region}"),
        };
        Ok(Self {
            control: client(CONTROL_TIMEOUT),
            data: client(DATA_TIMEOUT),
            prefix: config.table_prefix.clone(),
            described,
            kind: Kind::Dynamodb,
            presence: None,
        })
    }

    /// Where it is, for people: the file, or the region or endpoint.
    #[must_use]
    pub fn describe(&self) -> &str {
        &self.described
    }

    /// What kind it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The presence of sessions on this host; only for an embedded store in a file.
    #[must_use]
    pub fn presence(&self) -> Option<Presence> {
        self.presence.clone()
    }

    /// Makes what is missing of a datastore: its tables, and its own item. Run again, it makes nothing.
    ///
    /// # Errors
    /// When it exists with another number of shards or another schema, or a request fails for good.
    pub async fn init_datastore(&self, new: &NewDatastore) -> Result<Made, OpenError> {
        self.init_datastore_with(new, &Making::default()).await
    }

    /// The same, with settings of the tables.
    ///
    /// # Errors
    /// As [`Store::init_datastore`], and when a setting cannot be changed.
    pub async fn init_datastore_with(&self, new: &NewDatastore, making: &Making) -> Result<Made, OpenError> {
        if !(1..=SHARDS_MAX).contains(&new.shards) {
            return Err(OpenError::ShardsOutOfRange(new.shards));
        }
        let names = DatastoreTables::of(&self.prefix, &new.name);
        let (tables, differences) = self.make(&names.all(), making).await?;
        let fresh = Datastore { name: new.name.clone(), shards: new.shards, incarnation: Incarnation::random() };
        let put = self
            .data
            .put_item()
            .table_name(&names.tips)
            .set_item(Some(items::datastore_item(&fresh)))
            .condition_expression("attribute_not_exists(#shard)")
            .expression_attribute_names("#shard", "shard")
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        let new_one = match put.send().await {
            Ok(_) => true,
            Err(error) => match error.as_service_error() {
                Some(PutItemError::ConditionalCheckFailedException(_)) => false,
                _ => return Err(failed(&names.tips, "PutItem", error).into()),
            },
        };
        // Read in either case: what is told is what is stored.
        let datastore = self.check(&new.name, &names, Some(new.shards)).await?;
        Ok(Made { datastore, tables, new: new_one, differences })
    }

    /// Makes what is missing of a group's tables and names what it made. Run again, it makes nothing.
    ///
    /// # Errors
    /// When a table of such a name is not one of ours, or a request fails for good.
    pub async fn init_group(&self, group: &Name) -> Result<Vec<String>, OpenError> {
        self.init_group_with(group, &Making::default()).await.map(|(made, _)| made)
    }

    /// The same, with settings of the tables; tells also what was not so of those that existed.
    ///
    /// # Errors
    /// As [`Store::init_group`], and when a setting cannot be changed.
    pub async fn init_group_with(
        &self,
        group: &Name,
        making: &Making,
    ) -> Result<(Vec<String>, Vec<Difference>), OpenError> {
        self.make(&GroupTables::of(&self.prefix, group).all(), making).await
    }

    async fn make(&self, tables: &[Table], making: &Making) -> Result<(Vec<String>, Vec<Difference>), OpenError> {
        let Making { settings, update } = making;
        let made = match make_all(&self.data, tables, settings).await? {
            (made, None) => made,
            (_, Some(foreign)) => return Err(OpenError::ForeignTable(foreign)),
        };
        let mut differences = Vec::new();
        for table in tables {
            let new = made.contains(&table.name);
            if new && settings.is_empty() {
                continue;
            }
            let found = settle(&self.data, table, settings, new || *update).await?;
            let found = found.ok_or_else(|| OpenError::ForeignTable(table.name.clone()))?;
            if !new {
                differences.extend(found);
            }
        }
        Ok((made, differences))
    }

    /// Opens a datastore.
    ///
    /// # Errors
    /// When its tables are missing or of another schema, or it has another number of shards than expected.
    pub async fn datastore(&self, name: &Name, expected_shards: Option<u32>) -> Result<Arc<dyn Log>, OpenError> {
        let tables = DatastoreTables::of(&self.prefix, name);
        self.present(&tables.all()).await?;
        let datastore = self.check(name, &tables, expected_shards).await?;
        Ok(Arc::new(DynamoLog::new(self.data.clone(), tables, datastore)))
    }

    /// How large a datastore's tables `cells` and `log` are, as DynamoDB counts them every few hours. `None` where it does not
    /// say: on an embedded store, without the right to ask, for a new table.
    pub async fn sizes(&self, name: &Name) -> Option<(TableSize, TableSize)> {
        if self.kind == Kind::Embedded {
            return None;
        }
        let tables = DatastoreTables::of(&self.prefix, name);
        Some((self.size(&tables.cells).await?, self.size(&tables.log).await?))
    }

    async fn size(&self, table: &str) -> Option<TableSize> {
        let table = self.control.describe_table().table_name(table).send().await.ok()?.table?;
        let known = |number: Option<i64>| number.and_then(|number| u64::try_from(number).ok()).filter(|n| *n > 0);
        Some(TableSize { items: known(table.item_count)?, bytes: known(table.table_size_bytes)? })
    }

    /// Opens a group.
    ///
    /// # Errors
    /// When its tables are missing.
    pub async fn ledger(&self, group: &Name) -> Result<Arc<dyn Ledger>, OpenError> {
        let tables = GroupTables::of(&self.prefix, group);
        self.present(&tables.all()).await?;
        Ok(Arc::new(DynamoLedger::new(self.control.clone(), tables)))
    }

    /// Refuses when any of the tables is missing, and names them all.
    async fn present(&self, tables: &[Table]) -> Result<(), OpenError> {
        let mut missing = Vec::new();
        for table in tables {
            match table.look(&self.control).await? {
                Found::Ready => {}
                Found::Missing => missing.push(table.name.clone()),
                Found::Foreign => return Err(OpenError::ForeignTable(table.name.clone())),
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        Err(OpenError::MissingTables { place: self.described.clone(), tables: missing })
    }

    async fn check(
        &self,
        name: &Name,
        tables: &DatastoreTables,
        expected: Option<u32>,
    ) -> Result<Datastore, OpenError> {
        let get = self.data.get_item().table_name(&tables.tips).set_key(Some(items::datastore_key()));
        let answer = get.consistent_read(true).send().await;
        let answer = answer.map_err(|error| failed(&tables.tips, "GetItem", error))?;
        let Some(item) = answer.item else {
            return Err(OpenError::Unfinished(tables.tips.clone()));
        };
        let found = items::datastore(item).map_err(|why| undecodable(&tables.tips, "GetItem", why))?;
        let datastore = match found {
            FoundDatastore::OtherSchema(found) => return Err(OpenError::Schema { datastore: name.clone(), found }),
            FoundDatastore::Ours(datastore) => datastore,
        };
        if datastore.name != *name {
            return Err(OpenError::OtherName { table: tables.tips.clone(), found: datastore.name });
        }
        match expected {
            Some(expected) if expected != datastore.shards => {
                Err(OpenError::Shards { datastore: name.clone(), found: datastore.shards, expected })
            }
            _ => Ok(datastore),
        }
    }
}

/// A client whose requests do not leave this process.
fn inside(connector: impl HttpClient + 'static, timeout: Duration) -> Client {
    let config = Builder::default()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::from_static("local"))
        .allow_no_auth()
        .http_client(connector)
        .endpoint_url("http://embedded.invalid");
    Client::from_conf(ours(config, timeout).build())
}

/// What holds for every client: no retries (ours know three outcomes), an end to every attempt, and all is counted.
pub(super) fn ours(config: Builder, timeout: Duration) -> Builder {
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .operation_attempt_timeout(timeout)
        .operation_timeout(timeout)
        .build();
    config
        .interceptor(Meter)
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts)
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
}

/// Credentials for a server that checks none.
fn nobody() -> Credentials {
    Credentials::new("local", "local", None, None, "cellhook")
}

/// Whether a URL names this host.
fn is_loopback(url: &str) -> bool {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest).split('/').next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_recognised() {
        for url in ["http://127.0.0.1:8000", "http://localhost", "https://[::1]:1/x", "http://127.9.9.9/"] {
            assert!(is_loopback(url), "{url}");
        }
        for url in ["http://10.0.0.1:8000", "https://dynamodb.eu-central-1.amazonaws.com", "http://localhost.evil"] {
            assert!(!is_loopback(url), "{url}");
        }
    }

    #[tokio::test]
    async fn a_prefix_that_no_table_can_have_is_refused() {
        for prefix in ["a b", "é", &"x".repeat(101)] {
            let config = Config { table_prefix: prefix.into(), ..Config::default() };
            assert!(matches!(Store::open(&config).await, Err(OpenError::Prefix(_))), "{prefix}");
        }
    }
}
