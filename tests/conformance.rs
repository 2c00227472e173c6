//! One suite over every implementation of the store's traits.
//!
//! A case is a function over a [`Fixture`]. Each implementation runs all of them, in one test that names the cases
//! that failed.

mod embedded;
mod ledger_leases;
mod ledger_parked;
mod ledger_sessions;
mod ledger_triggers;
mod limits;
pub(crate) mod local;
mod log_append;
mod log_erase;
mod log_read;
mod opening;

use cellhook::cell::{Ledger, Log, Name, NewDatastore};
use cellhook::store::memory::{MemoryLedger, MemoryLog};
use cellhook::store::{Config, Durability, Kind, Store};
use futures_util::future::BoxFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::task::JoinSet;

/// Makes what a case works with.
pub(crate) trait Fixture: Send + Sync + 'static {
    /// A datastore without cells.
    fn log(&self, shards: u32) -> BoxFuture<'_, Arc<dyn Log>>;
    /// A group without anything.
    fn ledger(&self) -> BoxFuture<'_, Arc<dyn Ledger>>;
    /// Which implementation it is.
    fn of(&self) -> Of;
}

/// The implementations, where they differ: `docs/differences.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    /// The twins in memory.
    Memory,
    /// The engine of the embedded store, wherever it keeps its data.
    Embedded,
    /// Amazon's DynamoDB Local.
    Local,
}

/// A case with its name.
type Case = (&'static str, fn(Arc<dyn Fixture>) -> BoxFuture<'static, ()>);

/// Lists the cases of a module.
macro_rules! cases {
    ($($name:ident)*) => {
        pub(super) const CASES: &[super::Case] =
            &[$((concat!(module_path!(), "::", stringify!($name)), |fixture| Box::pin($name(fixture)))),*];
    };
}
use cases;

/// Runs all cases and panics with the names of those that failed. One case's failure does not keep the others.
pub(crate) async fn hold(fixture: Arc<dyn Fixture>) {
    let modules = [
        log_append::CASES,
        log_read::CASES,
        log_erase::CASES,
        ledger_sessions::CASES,
        ledger_triggers::CASES,
        ledger_leases::CASES,
        ledger_parked::CASES,
        limits::CASES,
    ];
    let (mut failed, mut count) = (Vec::new(), 0);
    for (name, case) in modules.concat() {
        count += 1;
        let mut task = JoinSet::new();
        task.spawn(case(fixture.clone()));
        if let Some(Err(_)) = task.join_next().await {
            failed.push(name);
        }
    }
    assert!(failed.is_empty(), "{} of {count} cases failed: {failed:#?}", failed.len());
}

/// Datastores and groups of a store, each under a fresh name.
pub(crate) struct OnStore {
    store: Store,
    next: AtomicU32,
}

impl OnStore {
    pub(crate) fn fixture(store: Store) -> Arc<dyn Fixture> {
        Arc::new(Self { store, next: AtomicU32::new(0) })
    }

    fn name(&self) -> Name {
        Name::new(&format!("n{}", self.next.fetch_add(1, Ordering::Relaxed))).unwrap()
    }
}

impl Fixture for OnStore {
    fn log(&self, shards: u32) -> BoxFuture<'_, Arc<dyn Log>> {
        Box::pin(async move {
            let name = self.name();
            self.store.init_datastore(&NewDatastore { name: name.clone(), shards }).await.unwrap();
            self.store.datastore(&name, Some(shards)).await.unwrap()
        })
    }

    fn ledger(&self) -> BoxFuture<'_, Arc<dyn Ledger>> {
        Box::pin(async move {
            let group = self.name();
            self.store.init_group(&group).await.unwrap();
            self.store.ledger(&group).await.unwrap()
        })
    }

    fn of(&self) -> Of {
        match self.store.kind() {
            Kind::Embedded => Of::Embedded,
            Kind::Dynamodb => Of::Local,
        }
    }
}

/// The config of an embedded store in that directory.
pub(crate) fn in_dir(dir: &tempfile::TempDir) -> Config {
    Config { path: dir.path().join("store.db"), ..Config::default() }
}

/// The twins.
struct InMemory;

impl Fixture for InMemory {
    fn log(&self, shards: u32) -> BoxFuture<'_, Arc<dyn Log>> {
        let name = Name::new("twin").unwrap();
        Box::pin(async move { Arc::new(MemoryLog::new(&NewDatastore { name, shards })) as Arc<dyn Log> })
    }

    fn ledger(&self) -> BoxFuture<'_, Arc<dyn Ledger>> {
        Box::pin(async { Arc::new(MemoryLedger::new()) as Arc<dyn Ledger> })
    }

    fn of(&self) -> Of {
        Of::Memory
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_twins_conform() {
    hold(Arc::new(InMemory)).await;
}

#[tokio::test]
async fn embedded_inline_conforms() {
    hold(OnStore::fixture(Store::inline().unwrap())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded_memory_conforms() {
    hold(OnStore::fixture(Store::in_memory().unwrap())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded_file_conforms() {
    let dir = tempfile::tempdir().unwrap();
    hold(OnStore::fixture(Store::open(&in_dir(&dir)).await.unwrap())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded_file_of_normal_durability_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { durability: Durability::Normal, ..in_dir(&dir) };
    hold(OnStore::fixture(Store::open(&config).await.unwrap())).await;
}

/// What workers ask for is what is held alike: every request that the error matrix knows is made by some case of the suite.
#[tokio::test(start_paused = true)]
async fn every_request_of_a_worker_is_in_the_suite() {
    let server = crate::errors::server::Server::new();
    server.watch();
    hold(OnStore::fixture(Store::over(server.line(true)))).await;
    let asked = server.seen().asked;
    let missing: Vec<&str> = crate::errors::statements().into_iter().filter(|name| !asked.contains_key(name)).collect();
    assert!(missing.is_empty(), "no case makes these requests: {missing:#?}");
}
