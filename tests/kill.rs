//! Real processes, killed, frozen and stopped, on one embedded file; judged by a program that shares nothing with them.
//!
//! `tests/kill/handler.py` notes each call in a file before it answers; `tests/kill/checker.py` reads that file and what `put`
//! acknowledged. The schedule is drawn from a seed; each disturbance hits the worker that owns most shards, while cells are
//! undone.

use rustix::process::{Pid, Signal, kill_process};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};
use tokio::time::Instant;

const CELLS: usize = 20_000;
const ROWS: usize = 2_000;
const SHARDS: usize = 64;
const WORKERS: usize = 3;
const WINDOW: usize = 16;
/// Shards that have to change owner with cells undone.
const LEAST_SHARDS: usize = 30;
const KILLS: usize = 12;
const FREEZES: usize = 6;
const STOPS: usize = 4;
/// For anything that has to come; far above what it takes.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Disturbance {
    Kill,
    Freeze,
    Stop,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kill")
}

/// A running worker; killed when the test ends early.
struct Worker {
    child: Child,
    log: PathBuf,
}

impl Worker {
    fn start(dir: &Path, number: usize) -> Self {
        let log = dir.join(format!("worker-{number}.log"));
        let child = Command::new(env!("CARGO_BIN_EXE_cellhook"))
            .args(["--config", "cellhook.toml", "run"])
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Self { child, log }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// The session under which it works, by its log; `None` before it has one.
    fn session(&self) -> Option<String> {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let line = log.lines().rev().find(|line| line.contains("session opened"))?;
        let id = line.split("session=").nth(1)?;
        Some(id.chars().take_while(char::is_ascii_alphanumeric).collect())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The test failed before it ended this one.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Scene {
    dir: PathBuf,
    workers: Vec<Worker>,
    started: usize,
    begun: Instant,
}

impl Scene {
    fn new(dir: &Path) -> Self {
        let handler = folder().join("handler.py");
        let calls = dir.join("calls.ndjson");
        let config = format!(
            r#"
            [store]
            kind = "embedded"
            path = "cellhook.db"
            [datastores.trips]
            shards = {SHARDS}
            [worker]
            heartbeat = "500ms"
            session = "2s"
            [metrics]
            listen = "off"
            [triggers.noted]
            source = "trips"
            in_flight = 8
            window = {{ cells = {WINDOW} }}
            retry = {{ min = "50ms", max = "500ms" }}
            breaker = "off"
            [triggers.noted.handler]
            kind = "exec"
            command = ["python3", {handler:?}, {calls:?}]
            "#,
        );
        fs::write(dir.join("cellhook.toml"), config).unwrap();
        let mut scene = Self { dir: dir.to_owned(), workers: Vec::new(), started: 0, begun: Instant::now() };
        (0..WORKERS).for_each(|_| scene.start());
        scene
    }

    fn start(&mut self) {
        self.workers.push(Worker::start(&self.dir, self.started));
        self.started += 1;
    }

    fn told(&self, what: &str) {
        println!("{:7.1} s  {what}", self.begun.elapsed().as_secs_f64());
    }

    /// Looks again and again until `done`; the only way in which this test waits.
    fn until(&self, what: &str, patience: Duration, mut done: impl FnMut() -> bool) -> bool {
        let start = Instant::now();
        while !done() {
            if start.elapsed() > patience {
                self.told(&format!("in vain: {what}"));
                return false;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        true
    }

    fn must(&self, what: &str, done: impl FnMut() -> bool) {
        assert!(self.until(what, PATIENCE, done), "{what}; see {}", self.dir.display());
    }

    /// Owners of the shards and cells undone, or `None` while the store cannot be read.
    fn shards(&self) -> Option<(BTreeMap<String, usize>, u64)> {
        let output = Command::new(env!("CARGO_BIN_EXE_cellhook"))
            .args(["--config", "cellhook.toml", "shards", "trips", "--json"])
            .current_dir(&self.dir)
            .output()
            .unwrap();
        if !output.status.success() {
            return None;
        }
        let (mut owners, mut lag) = (BTreeMap::new(), 0);
        for line in String::from_utf8(output.stdout).unwrap().lines() {
            let shard: serde_json::Value = serde_json::from_str(line).unwrap();
            if let Some(owner) = shard["owner"].as_str() {
                *owners.entry(owner.to_owned()).or_default() += 1;
            }
            match shard["triggers"]["noted"]["lag_cells"].as_u64() {
                Some(cells) => lag += cells,
                None => lag += 1,
            }
        }
        Some((owners, lag))
    }

    /// The worker that owns most shards, once somebody owns some.
    fn victim(&self) -> usize {
        let mut victim = None;
        self.must("a worker owns shards", || {
            let Some((owners, _)) = self.shards() else { return false };
            let owned = |worker: &Worker| worker.session().and_then(|id| owners.get(&id)).copied().unwrap_or(0);
            victim = (0..self.workers.len())
                .filter(|i| owned(&self.workers[*i]) > 0)
                .max_by_key(|i| owned(&self.workers[*i]));
            victim.is_some()
        });
        victim.unwrap()
    }

    fn owns_nothing(&self, session: &str) -> bool {
        self.shards().is_some_and(|(owners, _)| !owners.contains_key(session))
    }

    /// Puts cells and keeps the answers.
    fn put(&self, cells: std::ops::Range<usize>) {
        let acknowledged =
            File::options().append(true).create(true).open(self.dir.join("acknowledged.ndjson")).unwrap();
        let mut put = Command::new(env!("CARGO_BIN_EXE_cellhook"))
            .args(["--config", "cellhook.toml", "put", "trips", "--file", "-", "--json"])
            .current_dir(&self.dir)
            .stdin(Stdio::piped())
            .stdout(acknowledged)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut input = put.stdin.take().unwrap();
        for cell in cells {
            // Neighbours share a row, so that its cells meet in one window and their order is at stake.
            let row = cell / (CELLS / ROWS);
            writeln!(input, r#"{{"row_key":"row-{row}","column":"BASE","ref_key":{cell},"body":{{"n":{cell}}}}}"#)
                .unwrap();
        }
        drop(input);
        assert!(put.wait().unwrap().success(), "put; see {}", self.dir.display());
    }

    /// Returns whether it had the effect that it should have.
    fn disturb(&mut self, disturbance: Disturbance) -> bool {
        let victim = self.victim();
        let session = self.workers[victim].session().unwrap();
        self.told(&format!("{disturbance:?} {session}"));
        match disturbance {
            Disturbance::Kill => {
                drop(self.workers.remove(victim));
                self.start();
                self.must("others own the killed worker's shards", || self.owns_nothing(&session));
                true
            }
            Disturbance::Stop => {
                self.workers[victim].signal(Signal::TERM);
                let mut leaving = self.workers.remove(victim);
                self.start();
                let mut status = None;
                self.must("the stopped worker leaves", || {
                    status = leaving.child.try_wait().unwrap();
                    status.is_some()
                });
                assert!(status.unwrap().success(), "a graceful stop ends well; see {}", self.dir.display());
                self.must("others own the stopped worker's shards", || self.owns_nothing(&session));
                true
            }
            Disturbance::Freeze => {
                self.workers[victim].signal(Signal::STOP);
                // One that was frozen in the middle of a write holds the file's lock: then nobody can take over.
                let taken = self.until("others own the frozen worker's shards", Duration::from_secs(20), || {
                    self.owns_nothing(&session)
                });
                self.workers[victim].signal(Signal::CONT);
                taken
            }
        }
    }
}

#[test]
fn nothing_is_lost_when_workers_are_killed_frozen_and_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let mut scene = Scene::new(dir.path());
    scene.must("the workers own all shards", || {
        scene.shards().is_some_and(|(owners, _)| owners.values().sum::<usize>() == SHARDS)
    });
    let mut schedule = vec![Disturbance::Kill; KILLS];
    schedule.extend([Disturbance::Freeze; FREEZES]);
    schedule.extend([Disturbance::Stop; STOPS]);
    fastrand::Rng::with_seed(7).shuffle(&mut schedule);
    let chunk = CELLS.div_ceil(schedule.len());
    for (i, disturbance) in schedule.iter().enumerate() {
        scene.put(i * chunk..((i + 1) * chunk).min(CELLS));
        let effective = (0..4).any(|_| scene.disturb(*disturbance));
        assert!(effective, "{disturbance:?} four times without effect; see {}", dir.keep().display());
    }
    scene.told("all is put; waiting until all is handled");
    let done = scene.until("all is handled", PATIENCE, || scene.shards().is_some_and(|(_, lag)| lag == 0));
    scene.told("judging");
    let verdict = Command::new("python3")
        .arg(folder().join("checker.py"))
        .args([scene.dir.join("acknowledged.ndjson"), scene.dir.join("calls.ndjson")])
        .args([WINDOW.to_string(), LEAST_SHARDS.to_string()])
        .output()
        .unwrap();
    println!("{}", String::from_utf8_lossy(&verdict.stdout));
    if !done || !verdict.status.success() {
        drop(scene);
        panic!("not all was handled as it should be; the files are in {}", dir.keep().display());
    }
}

#[test]
fn the_checker_finds_doctored_histories() {
    let output = Command::new("python3").arg(folder().join("checker.py")).arg("--self-test").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
