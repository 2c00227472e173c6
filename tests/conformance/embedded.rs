//! The embedded store proper: several stores of one file, the lock, deadlines, what survives. Several processes on one
//! file are the kill test's.

use super::in_dir;
use super::ledger_sessions::accepted;
use super::log_append::{append, cell, commit, key};
use cellhook::cell::{
    AddedId, Committed, ErrorKind, Ledger, Log, Millis, Name, NewDatastore, Refused, Session, SessionId, SessionState,
    ShardId,
};
use cellhook::store::{Config, FileError, OpenError, Store};
use std::error::Error;
use std::fs::{File, OpenOptions};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// A store with a datastore `trips` and a group `main`.
async fn made(config: &Config) -> (Store, Arc<dyn Log>, Arc<dyn Ledger>) {
    let store = Store::open(config).await.unwrap();
    store.init_datastore(&NewDatastore { name: name("trips"), shards: 4 }).await.unwrap();
    store.init_group(&name("main")).await.unwrap();
    let log = store.datastore(&name("trips"), Some(4)).await.unwrap();
    let ledger = store.ledger(&name("main")).await.unwrap();
    (store, log, ledger)
}

fn session(id: &SessionId) -> Session {
    Session { state: SessionState::Live, length: Duration::from_secs(10), ..Session::dead(id) }
}

fn lock_path(dir: &TempDir) -> PathBuf {
    dir.path().join("store.db.lock")
}

/// Takes the store's lock as another process would.
fn take_lock(dir: &TempDir) -> File {
    let file = OpenOptions::new().read(true).write(true).open(lock_path(dir)).unwrap();
    // The store holds it for moments only.
    file.lock().unwrap();
    file
}

/// Waits until somebody who waits for the lock has said so in its file.
async fn until_somebody_waits(dir: &TempDir, seen: &[u8]) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while std::fs::read(lock_path(dir)).unwrap() == seen {
        assert!(Instant::now() < deadline, "nobody came to wait");
        sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_who_open_a_new_file_at_once_share_one_datastore() {
    let dir = tempfile::tempdir().unwrap();
    let mut openers = JoinSet::new();
    for _ in 0..4 {
        let config = in_dir(&dir);
        openers.spawn(async move {
            let store = Store::open(&config).await.unwrap();
            let made = store.init_datastore(&NewDatastore { name: name("trips"), shards: 4 }).await.unwrap();
            (store, made)
        });
    }
    let opened = openers.join_all().await;
    let incarnation = &opened[0].1.datastore.incarnation;
    assert!(opened.iter().all(|(_, made)| made.datastore.incarnation == *incarnation));
    assert_eq!(opened.iter().filter(|(_, made)| made.new).count(), 1, "one of them made it");
    let tables: usize = opened.iter().map(|(_, made)| made.tables.len()).sum();
    assert_eq!(tables, 3, "and each table was made by one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_handles_on_one_file_one_wins_each_place() {
    const PLACES: u64 = 120;
    let dir = tempfile::tempdir().unwrap();
    let (first, log, _) = made(&in_dir(&dir)).await;
    let mut writers = JoinSet::new();
    for writer in 0..3 {
        let config = in_dir(&dir);
        writers.spawn(async move {
            let store = Store::open(&config).await.unwrap();
            let log = store.datastore(&name("trips"), None).await.unwrap();
            let (mut tip, mut won) = (None, 0_u64);
            loop {
                let place = tip.map_or(0, |tip: cellhook::cell::Tip| tip.tip.0);
                if place >= PLACES {
                    return won;
                }
                let commit = commit(0, tip, vec![cell(&format!("w{writer}"), "x", place)]);
                let after = commit.tip_after();
                match log.commit(commit).await.unwrap() {
                    Committed::Accepted => (tip, won) = (Some(after), won + 1),
                    Committed::Refused(Refused { tip: Some(real), .. }) => tip = real,
                    refused @ Committed::Refused(_) => panic!("{refused:?}"),
                }
            }
        });
    }
    let won = writers.join_all().await;
    assert_eq!(won.iter().sum::<u64>(), PLACES, "{won:?}");
    let keys = log.keys(ShardId(0), AddedId(0), 1000).await.unwrap();
    let places: Vec<u64> = keys.iter().map(|key| key.last.0).collect();
    assert_eq!(places, (1..=PLACES).collect::<Vec<_>>());
    drop(first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let (store, log, ledger) = made(&in_dir(&dir)).await;
    let (datastore, id) = (log.datastore().clone(), SessionId::random());
    let tip = append(&log, 1, None, vec![cell("r", "x", 7)]).await;
    accepted(ledger.open_session(&session(&id)).await.unwrap());
    drop((store, log, ledger));
    assert!(!dir.path().join("store.db-wal").exists(), "the last to close leaves one file");

    let store = Store::open(&in_dir(&dir)).await.unwrap();
    let log = store.datastore(&name("trips"), Some(4)).await.unwrap();
    assert_eq!(*log.datastore(), datastore);
    assert_eq!(log.tip(ShardId(1)).await.unwrap(), Some(tip));
    assert!(log.get(&key("r", "x", 7)).await.unwrap().is_some());
    let ledger = store.ledger(&name("main")).await.unwrap();
    assert_eq!(ledger.sessions().await.unwrap(), [session(&id)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_waits_too_long_fails_names_the_holder_and_is_never_done() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, log, ledger) = made(&in_dir(&dir)).await;
    let id = SessionId::random();
    accepted(ledger.open_session(&session(&id)).await.unwrap());
    let lock = take_lock(&dir);
    // On a machine that stands still for a moment the SDK may lose patience before the store does: once more then.
    let error = loop {
        let error = ledger.beat(&id, Millis(5)).await.unwrap_err();
        match error.kind {
            ErrorKind::Broken => break error,
            other => assert_eq!(other, ErrorKind::Unanswered, "not applied, and said so: {error}"),
        }
    };
    let told = error.source().unwrap().to_string();
    assert!(told.contains(&format!("process {}", std::process::id())), "{told}");
    assert_eq!(ledger.sessions().await.unwrap()[0].beat, 0, "reads need no lock");
    drop(lock);
    append(&log, 0, None, vec![cell("r", "x", 0)]).await;
    let beat = accepted(ledger.beat(&id, Millis(5)).await.unwrap()).beat;
    assert_eq!(beat, 1, "the late one was not done when its turn came");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_asker_has_gone_is_never_done() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, log, ledger) = made(&in_dir(&dir)).await;
    let id = SessionId::random();
    accepted(ledger.open_session(&session(&id)).await.unwrap());
    let lock = take_lock(&dir);
    let seen = std::fs::read(lock_path(&dir)).unwrap();
    tokio::select! {
        biased;
        answer = ledger.beat(&id, Millis(5)) => panic!("{answer:?}"),
        () = until_somebody_waits(&dir, &seen) => {}
    }
    drop(lock);
    append(&log, 0, None, vec![cell("r", "x", 0)]).await;
    assert_eq!(ledger.sessions().await.unwrap()[0].beat, 0);
}

/// The locks of this process on a file, as the kernel lists them.
fn posix_locks(path: &std::path::Path) -> usize {
    use std::os::unix::fs::MetadataExt;
    let inode = std::fs::metadata(path).unwrap().ino();
    let (pid, of) = (format!(" {} ", std::process::id()), format!(":{inode} "));
    let locks = std::fs::read_to_string("/proc/locks").unwrap();
    locks.lines().filter(|line| line.contains("POSIX") && line.contains(&pid) && line.contains(&of)).count()
}

/// Two stores of one file in one process: when one of them goes, the other still has its hold on the file, so that no
/// other process takes it for unused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_store_of_one_file_shares_it_and_takes_no_lock_away() {
    let dir = tempfile::tempdir().unwrap();
    let config = in_dir(&dir);
    let (first, log, _) = made(&config).await;
    let tip = append(&log, 0, None, vec![cell("r", "x", 0)]).await;
    let held = posix_locks(&config.path);
    assert!(held > 0, "SQLite holds the file");
    let link = dir.path().join("link.db");
    std::os::unix::fs::symlink(&config.path, &link).unwrap();
    for path in [config.path.clone(), link] {
        let second = Store::open(&Config { path, ..config.clone() }).await.unwrap();
        assert_eq!(second.datastore(&name("trips"), None).await.unwrap().tip(ShardId(0)).await.unwrap(), Some(tip));
        assert_eq!(posix_locks(&config.path), held, "with two");
        drop(second);
        assert_eq!(posix_locks(&config.path), held, "and when one has gone");
    }
    let normal = Config { durability: cellhook::store::Durability::Normal, ..config.clone() };
    let error = Store::open(&normal).await.unwrap_err();
    assert!(matches!(error, OpenError::File(FileError::Durability(_))), "{error}");
    append(&log, 0, Some(tip), vec![cell("r", "x", 1)]).await;
    drop((first, log));
}

/// Runs in a child process that has a small file system to itself, which `unshare` gives it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_told_and_passes_when_there_is_room() {
    const DISK: &str = "HOOKTEST_SMALL_DISK";
    let Some(disk) = std::env::var_os(DISK).map(PathBuf::from) else {
        let dir = tempfile::tempdir().unwrap();
        let mount = "mount -t tmpfs -o size=4m none \"$0\" || exit 77; exec \"$@\"";
        let test = concat!(module_path!(), "::a_full_disk_is_told_and_passes_when_there_is_room");
        let test = test.split_once("::").unwrap().1;
        let mut child = std::process::Command::new("unshare");
        child.args(["-rm", "sh", "-c", mount]).arg(dir.path()).arg(std::env::current_exe().unwrap());
        child.args(["--exact", test, "--nocapture"]).env(DISK, dir.path());
        let output = match child.output() {
            Ok(output) if output.status.success() => {
                return assert!(
                    String::from_utf8_lossy(&output.stdout).contains("1 passed"),
                    "the child found no test {test}"
                );
            }
            Ok(output) if output.stdout.is_empty() => String::from_utf8_lossy(&output.stderr).into_owned(),
            Ok(output) => {
                panic!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
            }
            Err(error) => error.to_string(),
        };
        use std::io::Write;
        // Past the capture of the test harness, which would swallow it.
        let _ = writeln!(std::io::stderr(), "SKIPPED: a full disk: no file system of its own for a child: {output}");
        return;
    };
    let config = Config { path: disk.join("store.db"), ..Config::default() };
    let (_store, log, ledger) = made(&config).await;
    let id = SessionId::random();
    accepted(ledger.open_session(&session(&id)).await.unwrap());
    let tip = append(&log, 0, None, vec![cell("r", "x", 0)]).await;
    let ballast = disk.join("ballast");
    let mut file = File::create(&ballast).unwrap();
    while std::io::Write::write_all(&mut file, &[7; 4096]).is_ok() {}
    drop(file);

    let body = format!("\"{}\"", "x".repeat(200_000));
    let large = cellhook::cell::NewCell { body: body.into(), ..cell("r", "x", 1) };
    let error = log.commit(commit(0, Some(tip), vec![large.clone()])).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Broken, "not applied, and said so: {}", cellhook::cell::chain(&error));
    assert!(cellhook::cell::chain(&error).contains("full"), "{}", cellhook::cell::chain(&error));
    assert_eq!(log.tip(ShardId(0)).await.unwrap(), Some(tip), "what is stored can be read meanwhile");

    // An append that meets the full disk waits for room.
    let cells = cellhook::store::Cells::new(log.clone());
    let mut put = Box::pin(cells.put(vec![large.clone()]));
    let others_fail = async {
        for _ in 0..20 {
            log.commit(commit(0, Some(tip), vec![large.clone()])).await.unwrap_err();
        }
    };
    tokio::select! {
        puts = &mut put => panic!("{puts:?}"),
        () = others_fail => {}
    }
    std::fs::remove_file(&ballast).unwrap();
    let put = put.await.remove(0);
    assert!(put.as_ref().is_ok_and(|placed| placed.new), "{put:?}");
    accepted(ledger.beat(&id, Millis(5)).await.unwrap());
}

#[tokio::test]
async fn a_file_of_something_else_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let config = in_dir(&dir);
    std::fs::write(&config.path, "dear diary").unwrap();
    let error = Store::open(&config).await.unwrap_err();
    assert!(matches!(error, OpenError::File(FileError::NotOurs { .. })), "{error}");
    assert!(error.to_string().contains("store.db") && error.to_string().contains("store.path"), "{error}");
    assert_eq!(std::fs::read(&config.path).unwrap(), b"dear diary");
}

#[tokio::test]
async fn a_directory_that_is_missing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { path: dir.path().join("absent/store.db"), ..Config::default() };
    let error = Store::open(&config).await.unwrap_err();
    assert!(matches!(error, OpenError::File(FileError::Directory(..))), "{error}");
    assert!(error.to_string().contains("absent"), "{error}");
}

#[tokio::test]
async fn presence_is_offered_for_a_file_and_nowhere_else() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&in_dir(&dir)).await.unwrap();
    let (presence, other) = (store.presence().unwrap(), Store::open(&in_dir(&dir)).await.unwrap().presence().unwrap());
    let id = SessionId::random();
    let held = presence.hold(&id).unwrap();
    assert!(!other.is_gone(&id));
    drop(held);
    assert!(other.is_gone(&id));
    assert!(Store::inline().unwrap().presence().is_none());
}

#[tokio::test]
async fn a_store_says_where_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&in_dir(&dir)).await.unwrap();
    assert!(store.describe().contains("store.db") && store.describe().contains("this host only"));
}
