//! The suite on Amazon's DynamoDB Local, a second opinion on what DynamoDB does.

use super::{OnStore, hold};
use cellhook::cell::{CellKey, Name, NewCell, NewDatastore};
use cellhook::metrics;
use cellhook::store::{Cells, Config, Kind, Store};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// A running server, killed when dropped.
pub(crate) struct Server {
    child: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts DynamoDB Local in memory on a free port. `None`, said aloud, where it is not installed; with
    /// `HOOKTEST_REQUIRE_ALL=1` that is a failure.
    pub(crate) async fn start() -> Option<Self> {
        let project = Path::new(env!("CARGO_MANIFEST_DIR"));
        let dir = std::env::var_os("HOOKTEST_DYNAMODB_LOCAL").map(PathBuf::from);
        let dir = dir.unwrap_or_else(|| project.join("target/dynamodb-local"));
        let java = Command::new("java").arg("-version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        let why = match java {
            Ok(status) if status.success() && dir.join("DynamoDBLocal.jar").is_file() => None,
            Ok(status) if status.success() => Some(format!("it is not in {}", dir.display())),
            _ => Some("there is no java".to_owned()),
        };
        if let Some(why) = why {
            let text = format!("SKIPPED: DynamoDB Local: {why}. Install it with: tests/install-dynamodb-local.sh");
            assert!(std::env::var_os("HOOKTEST_REQUIRE_ALL").is_none_or(|all| all != "1"), "{text}");
            // Past the capture of the test harness, which would swallow it.
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "{text}");
            return None;
        }
        // The port may be lost to another between here and there: then the server ends and another is tried.
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let child = Command::new("java")
                .arg("-Djava.library.path=./DynamoDBLocal_lib")
                .args(["-jar", "DynamoDBLocal.jar", "-inMemory", "-sharedDb", "-disableTelemetry", "-port"])
                .arg(port.to_string())
                .current_dir(&dir)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let mut server = Self { child, port };
            let deadline = Instant::now() + Duration::from_secs(120);
            while server.child.try_wait().unwrap().is_none() && Instant::now() < deadline {
                if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                    return Some(server);
                }
                sleep(Duration::from_millis(100)).await;
            }
        }
        panic!("DynamoDB Local in {} does not start", dir.display());
    }

    /// How to reach it.
    pub(crate) fn config(&self) -> Config {
        let endpoint = Some(format!("http://127.0.0.1:{}", self.port));
        Config { kind: Kind::Dynamodb, endpoint, table_prefix: "Some-prefix_1.".into(), ..Config::default() }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dynamodb_local_conforms() {
    let Some(server) = Server::start().await else { return };
    let store = Store::open(&server.config()).await.unwrap();
    consumes_what_the_rules_say(&store).await;
    hold(OnStore::fixture(store)).await;
}

/// What is counted is what the server reports. For a transaction's writes that is twice what DynamoDB charges and the embedded
/// store reports (`store::dynamo::meter`): a quirk of DynamoDB Local.
async fn consumes_what_the_rules_say(store: &Store) {
    let name = Name::new("metered").unwrap();
    store.init_datastore(&NewDatastore { name: name.clone(), shards: 1 }).await.unwrap();
    let log = store.datastore(&name, None).await.unwrap();
    let key = CellKey { row_key: "a".into(), column: "BASE".into(), ref_key: 1 };
    let body = format!("\"{}\"", "x".repeat(1100)).into();
    let cells = Cells::new(log.clone());
    cells.put(vec![NewCell { key: key.clone(), body, origin: None }]).await[0].as_ref().unwrap();
    log.get(&key).await.unwrap();
    let consumed = metrics::consumed();
    let of = |table: &str, operation: &str| {
        let units = consumed[&(format!("Some-prefix_1.metered.{table}"), operation.to_owned())];
        (units.read, units.write)
    };
    let written = ["tips", "log", "cells"].map(|table| of(table, "TransactWriteItems"));
    assert_eq!(written, [(0.0, 4.0), (0.0, 4.0), (0.0, 8.0)]);
    let before = of("cells", "GetItem");
    log.get(&key).await.unwrap();
    let consumed = metrics::consumed();
    let after = consumed[&("Some-prefix_1.metered.cells".to_owned(), "GetItem".to_owned())];
    assert_eq!((after.read - before.0, after.write), (1.0, 0.0), "a consistent read of 1 KB");
}
