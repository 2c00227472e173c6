//! A disk that gets full, and has room again.

use super::home::{Home, noting, skipped};
use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

/// Where the test finds its small disk when it runs again under `unshare`.
const DISK: &str = "HOOKTEST_FULL_DISK";

/// Runs the rest of a test in a child process that has a small file system to itself, which `unshare` gives it. There, gives
/// the file system's directory.
fn small_disk(test: &str) -> Option<PathBuf> {
    if let Some(disk) = std::env::var_os(DISK) {
        return Some(disk.into());
    }
    let dir = tempfile::tempdir().unwrap();
    let mount = "mount -t tmpfs -o size=6m none \"$0\" || exit 77; exec \"$@\"";
    let test = format!("{}::{test}", module_path!().split_once("::").unwrap().1);
    let mut child = Command::new("unshare");
    child.args(["-rm", "sh", "-c", mount]).arg(dir.path()).arg(std::env::current_exe().unwrap());
    child.args(["--exact", &test, "--nocapture", "--include-ignored"]).env(DISK, dir.path());
    match child.output() {
        Ok(output) if output.status.success() => {
            assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "the child found no test {test}");
        }
        Ok(output) if output.stdout.is_empty() => {
            skipped(&format!("a full disk: no file system of its own: {}", String::from_utf8_lossy(&output.stderr)));
        }
        Ok(output) => panic!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
        Err(error) => skipped(&format!("a full disk: {error}")),
    }
    None
}

/// Takes all the room that there is.
fn fill(disk: &Path) -> PathBuf {
    let ballast = disk.join("ballast");
    let mut file = File::create(&ballast).unwrap();
    while file.write_all(&[7; 4096]).is_ok() {}
    ballast
}

#[test]
fn a_full_disk_stops_nothing_for_good() {
    let Some(disk) = small_disk("a_full_disk_stops_nothing_for_good") else { return };
    // `slow` is called while there is room, and done when there is none.
    let home = Home::new("");
    let store = disk.join("store.db");
    home.configure(&Home::config(store.to_str().unwrap(), &noting("grep -q '\"subject\":\"slow\"' && sleep 3; true")));
    let mut worker = home.worker();
    home.put("first");
    let mut bulk = home.bulk();
    bulk.give("second");
    bulk.is_acknowledged();
    home.until_handled(2);
    home.put("slow");
    super::home::until(|| home.calls().len() == 3).unwrap();

    let ballast = fill(&disk);
    let (full_since, lines) = (SystemTime::now(), worker.lines());
    // Large, so that no page that is free already takes it.
    let body = format!("\"{}\"", "x".repeat(100_000));
    let refused = home.run(&["put", "trips", "refused", "BASE", &body]);
    refused.ended(5).says("was not acknowledged: TransactWriteItems on table trips.log").says("disk is full");
    worker.hears("a heartbeat failed; trying again");
    bulk.give("third");
    std::thread::sleep(Duration::from_secs(1));
    let seconds = full_since.elapsed().unwrap().as_secs() as usize;
    let said = worker.lines() - lines;
    assert!(said <= 5 + seconds / 2, "{said} lines in {seconds} s: {}", worker.said());
    assert!(worker.runs(), "{}", worker.said());
    // What is stored can be read meanwhile: a read needs no room.
    let calls = home.calls().len();
    assert_eq!(calls, 3, "a cell whose end cannot be written is not called again");

    std::fs::remove_file(&ballast).unwrap();
    bulk.is_acknowledged();
    bulk.ended().ended(0);
    worker.hears("heartbeats are accepted again: going on");
    home.put("fourth");
    home.until_handled(5);
    let calls = home.called(5);
    assert_eq!(calls.len(), 5, "nobody took the shards away, so nothing is called twice: {calls:?}");
    worker.signal(rustix::process::Signal::TERM);
    worker.ends_with(0);
}

#[test]
fn a_worker_says_that_its_disk_is_full() {
    let Some(disk) = small_disk("a_worker_says_that_its_disk_is_full") else { return };
    let home = Home::new("");
    home.configure(&Home::config(disk.join("store.db").to_str().unwrap(), &noting("true")));
    let worker = home.worker();
    fill(&disk);
    worker.hears("a heartbeat failed; trying again");
    worker.hears("disk is full");
}
