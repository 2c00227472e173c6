//! `Store`: what `init` makes, and what opening refuses; on the embedded store and on DynamoDB Local.

use super::local::Server;
use cellhook::cell::{ErrorKind, Name, NewDatastore};
use cellhook::store::{Config, Kind, OpenError, Store};

fn new(name: &str, shards: u32) -> NewDatastore {
    NewDatastore { name: Name::new(name).unwrap(), shards }
}

async fn holds(store: &Store, prefix: &str) {
    let name = Name::new("trips").unwrap();
    let tables = ["cells", "log", "tips"].map(|table| format!("{prefix}trips.{table}"));
    let error = store.datastore(&name, None).await.err().unwrap();
    let OpenError::MissingTables { tables: missing, .. } = &error else { panic!("{error}") };
    assert_eq!(*missing, tables, "all that is missing is named");
    assert!(error.to_string().contains("cellhook init"), "{error}");

    for shards in [0, 65_537] {
        let error = store.init_datastore(&new("trips", shards)).await.err().unwrap();
        assert!(matches!(error, OpenError::ShardsOutOfRange(_)), "{error}");
    }
    let made = store.init_datastore(&new("trips", 12)).await.unwrap();
    assert_eq!((&made.tables[..], made.new, made.datastore.shards), (&tables[..], true, 12));
    let again = store.init_datastore(&new("trips", 12)).await.unwrap();
    assert_eq!((again.tables.len(), again.new, &again.datastore), (0, false, &made.datastore), "nothing twice");
    assert_eq!(*store.datastore(&name, None).await.unwrap().datastore(), made.datastore);
    assert_eq!(store.datastore(&name, Some(12)).await.unwrap().datastore().shards, 12);

    let other = store.init_datastore(&new("trips", 13)).await.err().unwrap();
    assert!(matches!(other, OpenError::Shards { found: 12, expected: 13, .. }), "{other}");
    let other = store.datastore(&name, Some(64)).await.err().unwrap();
    assert!(matches!(other, OpenError::Shards { found: 12, expected: 64, .. }), "{other}");
    assert!(other.to_string().contains("datastores.trips.shards = 12"), "{other}");

    let second = store.init_datastore(&new("rides", 1)).await.unwrap();
    assert_ne!(second.datastore.incarnation, made.datastore.incarnation);

    let error = store.ledger(&name).await.err().unwrap();
    let tables = ["control", "parked"].map(|table| format!("{prefix}trips.{table}"));
    let OpenError::MissingTables { tables: missing, .. } = &error else { panic!("{error}") };
    assert_eq!(*missing, tables, "a group may have a datastore's name");
    assert_eq!(store.init_group(&name).await.unwrap(), tables);
    assert_eq!(store.init_group(&name).await.unwrap(), [""; 0]);
    assert!(store.ledger(&name).await.unwrap().sessions().await.unwrap().is_empty());
}

#[tokio::test]
async fn the_embedded_store_is_made_and_opened() {
    holds(&Store::inline().unwrap(), "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dynamodb_local_is_made_and_opened() {
    let Some(server) = Server::start().await else { return };
    let config = server.config();
    holds(&Store::open(&config).await.unwrap(), &config.table_prefix).await;
}

#[tokio::test]
async fn an_endpoint_where_nobody_listens_is_an_error_that_names_table_and_operation() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = Config { kind: Kind::Dynamodb, endpoint: Some(format!("http://{nobody}")), ..Config::default() };
    let store = Store::open(&config).await.unwrap();
    let error = store.datastore(&Name::new("trips").unwrap(), None).await.err().unwrap();
    let OpenError::Store(error) = error else { panic!("{error}") };
    assert_eq!(error.kind, ErrorKind::Unanswered);
    assert_eq!((&*error.table, error.operation), ("trips.cells", "GetItem"));
    assert!(store.describe().contains(&nobody.to_string()));
}

/// A server that answers one request with a head that announces a body of `length` bytes, says the beginning of one, and hangs up;
/// or says a byte now and then, until nobody listens.
fn bad_server(length: usize, drips: bool) -> std::net::SocketAddr {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut request, mut piece) = (Vec::new(), [0; 4096]);
        // The body of a request ends with the brace of its JSON.
        while !request.ends_with(b"}") {
            let n = stream.read(&mut piece).unwrap();
            request.extend_from_slice(&piece[..n]);
        }
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(b"{\"Item\":").unwrap();
        while drips && stream.write_all(b" ").is_ok() {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    });
    address
}

/// What a flapping link cuts off, what something between has written, and what does not come to its end is no damage: it says nothing
/// about what is stored. On real sockets; what follows from it is held by the error matrix.
#[tokio::test]
async fn a_body_that_is_cut_or_drips_or_does_not_parse_is_no_answer() {
    for (length, drips) in [(100, false), (8, false), (100_000, true)] {
        let endpoint = Some(format!("http://{}", bad_server(length, drips)));
        let config = Config { kind: Kind::Dynamodb, endpoint, ..Config::default() };
        let store = Store::open(&config).await.unwrap();
        let error = store.datastore(&Name::new("trips").unwrap(), None).await.err().unwrap();
        let OpenError::Store(error) = error else { panic!("{error}") };
        assert_eq!(error.kind, ErrorKind::Unanswered, "a body of {length} bytes, dripping: {drips}: {error:?}");
    }
}

/// The first-run config on a server that speaks like DynamoDB: `init`, a worker, a cell, and what the handler answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bill_rider_runs_on_dynamodb_local() {
    use std::process::{Command, Stdio};
    let Some(server) = super::local::Server::start().await else { return };
    let project = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let cellhook = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cellhook"));
        command.args(["--config", "config/cellhook.toml"]).args(words).current_dir(project);
        command
            .env("CELLHOOK_STORE__KIND", "dynamodb")
            .env("CELLHOOK_STORE__ENDPOINT", server.config().endpoint.unwrap());
        command.env("CELLHOOK_POLL__CEILING", "200ms").env("CELLHOOK_METRICS__LISTEN", "off");
        command.env("AWS_ACCESS_KEY_ID", "local").env("AWS_SECRET_ACCESS_KEY", "local").env("AWS_REGION", "us-east-1");
        command.stdin(Stdio::null());
        command
    };
    let missing = cellhook(&["run"]).output().unwrap();
    let told = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(!missing.status.success() && told.contains("trips.cells") && told.contains("cellhook init"), "{told}");
    assert!(cellhook(&["init"]).output().unwrap().status.success());
    let mut worker = cellhook(&["run"]).stderr(Stdio::null()).spawn().unwrap();
    assert!(cellhook(&["put", "trips", "trip-1", "BASE", r#"{"fare": 12}"#]).output().unwrap().status.success());
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    let status = loop {
        let status = cellhook(&["get", "trips", "trip-1", "STATUS"]).output().unwrap();
        if status.status.success() || tokio::time::Instant::now() > deadline {
            break String::from_utf8(status.stdout).unwrap();
        }
    };
    worker.kill().unwrap();
    worker.wait().unwrap();
    assert!(status.contains("\"is_completed\":true") || status.contains("\"is_completed\": true"), "{status:?}");
}
