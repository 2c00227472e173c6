//! A disk that gets full, and has room again.

use super::home::{Home, noting, skipped};
use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};

/// What a test process in namespaces of its own finds its directory by.
const INSIDE: &str = "HOOKTEST_INSIDE";

/// Where the rest of a test runs.
pub(crate) enum Inside {
    /// In this process, which has a directory of its own.
    Here(PathBuf),
    /// It ran in another one, and passed.
    Ran,
    /// Nowhere, and that was told.
    Skipped,
}

/// Runs the rest of a test in a child process that has namespaces to itself, which `unshare` gives it by these flags; a shell
/// sets them up first, and begins in a directory that only it has. Where that cannot be, what is not tested is told.
pub(crate) fn inside(what: &str, flags: &str, set_up: &str, module: &str, test: &str) -> Inside {
    if let Some(dir) = std::env::var_os(INSIDE) {
        return Inside::Here(dir.into());
    }
    let dir = tempfile::tempdir().unwrap();
    let script = format!("cd \"$0\" && {{ {set_up}; }} || exit 77; exec \"$@\"");
    let test = format!("{}::{test}", module.split_once("::").unwrap().1);
    let mut child = Command::new("unshare");
    child.args([flags, "sh", "-c", &script]).arg(dir.path()).arg(std::env::current_exe().unwrap());
    child.args(["--exact", &test, "--nocapture", "--include-ignored"]).env(INSIDE, dir.path());
    child.current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let told = child.spawn().map(|mut child| {
        let stderr = child.stderr.take().unwrap();
        let errors = std::thread::spawn(move || std::io::read_to_string(stderr).unwrap());
        let mut said = String::new();
        for line in BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok) {
            // A soak is watched by people.
            println!("{line}");
            said.push_str(&line);
        }
        (child.wait().unwrap(), said, errors.join().unwrap())
    });
    match told {
        Ok((status, said, errors)) if status.success() => {
            assert!(said.contains("1 passed"), "the child found no test {test}");
            // What it did not test either.
            errors.lines().filter_map(|line| line.strip_prefix("SKIPPED: ")).for_each(skipped);
            return Inside::Ran;
        }
        Ok((_, said, errors)) if said.is_empty() => skipped(&format!("{what}: {errors}")),
        Ok((_, _, errors)) => panic!("{errors}"),
        Err(error) => skipped(&format!("{what}: {error}")),
    }
    Inside::Skipped
}

/// The rest of a test with a small file system to itself.
fn small_disk(test: &str) -> Option<PathBuf> {
    match inside("a full disk", "-rm", "mount -t tmpfs -o size=6m none .", module_path!(), test) {
        Inside::Here(disk) => Some(disk),
        Inside::Ran | Inside::Skipped => None,
    }
}

/// Takes all the room that there is.
pub(crate) fn fill(disk: &Path) -> PathBuf {
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
