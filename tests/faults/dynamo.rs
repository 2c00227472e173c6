//! DynamoDB Local, missing, gone, back again, and its tables too.

use super::home::{Home, noting, skipped, until};
use rustix::process::Signal;
use std::{
    io::{self, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, SystemTime},
};
use tempfile::TempDir;

const OF_DATASTORE: [&str; 3] = ["trips.cells", "trips.log", "trips.tips"];
const OF_GROUP: [&str; 2] = ["default.control", "default.parked"];

/// A server that keeps its tables when it is killed; killed when dropped.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) port: u16,
    pub(crate) data: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// `None`, said aloud, where it is not installed; with `HOOKTEST_REQUIRE_ALL=1` that is a failure.
    pub(crate) fn new() -> Option<Self> {
        let java = Command::new("java").arg("-version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !java.is_ok_and(|status| status.success()) || !folder().join("DynamoDBLocal.jar").is_file() {
            let what = "faults of DynamoDB: install DynamoDB Local with: tests/install-dynamodb-local.sh";
            assert!(std::env::var_os("HOOKTEST_REQUIRE_ALL").is_none_or(|all| all != "1"), "{what}");
            skipped(what);
            return None;
        }
        let data = tempfile::tempdir().unwrap();
        // It may be somebody else's: then the server ends and another port is tried.
        for _ in 0..5 {
            let port = quiet_port();
            if let Some(child) = start(port, data.path()) {
                return Some(Self { child, port, data });
            }
        }
        panic!("DynamoDB Local does not start");
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn start_again(&mut self) {
        self.child = start(self.port, self.data.path()).expect("it starts again");
    }

    fn home(&self) -> Home {
        Home::new(&format!(
            "[store]\nkind = \"dynamodb\"\nendpoint = \"http://127.0.0.1:{}\"\nregion = \"eu-central-1\"\n\
             [datastores.trips]\nshards = 2\n[metrics]\nlisten = \"off\"\n\
             [worker]\nheartbeat = \"500ms\"\nsession = \"2s\"\ndrain_deadline = \"10s\"\n\
             [triggers.bill]\nsource = \"trips\"\n{}",
            self.port,
            noting("true")
        ))
    }

    fn delete(&self, table: &str) {
        let answer = ask(self.port, "DeleteTable", &format!("{{\"TableName\":\"{table}\"}}")).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

/// Makes a request without an SDK, and waits for its answer as long as it takes.
fn ask(port: u16, operation: &str, body: &str) -> io::Result<String> {
    let request = format!(
        "POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nX-Amz-Target: DynamoDB_20120810.{operation}\r\n\
         Content-Type: application/x-amz-json-1.0\r\nContent-Length: {}\r\n\
         Authorization: AWS4-HMAC-SHA256 Credential=nobody/20260101/eu-central-1/dynamodb/aws4_request, \
         SignedHeaders=host, Signature=none\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// A port that no connection going out is ever given, so that it stays free while nobody listens there.
pub(crate) fn quiet_port() -> u16 {
    fastrand::u16(20_000..30_000)
}

fn folder() -> PathBuf {
    let dir = std::env::var_os("HOOKTEST_DYNAMODB_LOCAL").map(PathBuf::from);
    dir.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/dynamodb-local"))
}

fn start(port: u16, data: &Path) -> Option<Child> {
    let mut child = Command::new("java")
        .arg("-Djava.library.path=./DynamoDBLocal_lib")
        .args(["-jar", "DynamoDBLocal.jar", "-sharedDb", "-disableTelemetry", "-port"])
        .arg(port.to_string())
        .arg("-dbPath")
        .arg(data)
        .current_dir(folder())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut up = false;
    until(|| {
        // It listens before it is ready, and its first answer takes long: longer than a request of ours may.
        up = ask(port, "ListTables", "{}").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"));
        up || child.try_wait().unwrap().is_some()
    })?;
    if !up {
        let _ = child.wait();
        return None;
    }
    Some(child)
}

#[test]
fn a_server_that_goes_and_comes_back() {
    let Some(mut server) = Server::new() else { return };
    let home = server.home();
    let missing = "trips.cells, trips.log, trips.tips. Make them with `cellhook init`";
    home.run(&["run"]).ended(2).says("missing in DynamoDB at http://127.0.0.1").says(missing);
    home.run(&["put", "trips", "row", "BASE", "1"]).ended(2).says(missing);
    home.run(&["init"]).ended(0);
    let mut worker = home.worker();
    home.put("first");
    home.until_handled(1);

    server.kill();
    let (since, lines) = (SystemTime::now(), worker.lines());
    home.run(&["put", "trips", "row", "BASE", "1"]).ended(5).says("Connection refused");
    worker.hears("a heartbeat failed; trying again");
    worker.hears("cannot read the sessions; trying again");
    worker.hears("cannot read the tips; trying again");
    std::thread::sleep(Duration::from_secs(10));
    let seconds = since.elapsed().unwrap().as_secs() as usize;
    let said = worker.lines() - lines;
    assert!(said <= 5 + seconds, "{said} lines in {seconds} s: {}", worker.said());
    assert!(worker.runs(), "{}", worker.said());

    server.start_again();
    worker.hears("the sessions can be read again");
    home.put("second");
    home.until_handled(2);
    assert_eq!(home.called(2).len(), 2);
    worker.signal(Signal::TERM);
    worker.ends_with(0);
}

/// Puts three cells, has them handled, deletes these tables under the worker, and makes them anew once it has noticed.
fn made_anew(server: &Server, home: &Home, tables: &[&str]) -> super::home::Worker {
    home.run(&["init"]).ended(0);
    let worker = home.worker();
    for row in ["a", "b", "c"] {
        home.put(row);
    }
    home.until_handled(3);
    tables.iter().for_each(|table| server.delete(table));
    worker.hears("cannot read the tips; trying again");
    worker.hears("Query on table trips.tips: the table does not exist");
    let made = home.run(&["init"]).ended(0);
    assert!(made.stdout.contains("datastore trips: made, 2 shards"), "{made:?}");
    worker
}

#[test]
fn a_datastore_made_anew_under_a_worker_is_not_worked_on() {
    let Some(server) = Server::new() else { return };
    let home = server.home();
    let mut worker = made_anew(&server, &home, &OF_DATASTORE);
    let lines = worker.lines();
    home.put("a");
    worker.hears("no shard of this datastore is worked on");
    worker.hears("datastore trips was made anew: this worker opened incarnation");
    worker.hears("Restore the old tables, or start again with a new group name");
    for row in ["d", "e", "f", "g", "h", "i"] {
        home.put(row);
    }
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(home.calls().len(), 3, "none of the new cells under the old checkpoints");
    assert!(worker.lines() - lines <= 6, "{}", worker.said());
    worker.signal(Signal::TERM);
    worker.ends_with(0);
    home.run(&["run"]).ended(2).says("the datastore was made anew. Restore the old tables, or use a new group name");
}

/// As above, but the new tips pass the old ones before the worker reads them.
#[test]
fn a_datastore_made_anew_and_filled_at_once_is_not_worked_on() {
    let Some(server) = Server::new() else { return };
    let home = server.home();
    let worker = made_anew(&server, &home, &OF_DATASTORE);
    let mut bulk = home.bulk();
    for row in 0..60 {
        bulk.give(&format!("row {row}"));
    }
    assert_eq!(bulk.ended().code, Some(0));
    worker.hears("no shard of this datastore is worked on");
    assert_eq!(home.calls().len(), 3, "none of the new cells under the old checkpoints");
}

/// The tables of the group too: its triggers are no longer registered.
#[test]
fn a_group_made_anew_under_a_worker_is_told() {
    let Some(server) = Server::new() else { return };
    let home = server.home();
    let mut worker = made_anew(&server, &home, &[&OF_DATASTORE[..], &OF_GROUP].concat());
    home.put("a");
    let handled = until(|| !worker.runs() || home.calls().len() > 3 || worker.said().contains("made anew"));
    assert!(handled.is_some(), "{}", worker.said());
}
