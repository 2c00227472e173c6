//! Real processes, killed, frozen and stopped, on one embedded file; judged by a program that shares nothing with them.
//!
//! `tests/kill/handler.py` notes each call in a history before it answers; what `put` acknowledged and what this test did to
//! the workers stands in it too, in one total order. `tests/kill/checker.py` judges it, and `doctored.rs` proves the judge.
//! The plan is drawn from a seed, which a failing run prints: `HOOKTEST_KILL_SEED` draws it again.

mod crew;
mod doctored;

pub(crate) use crew::{History, Least, Worker, append, folder, holds_lock, is_frozen, judged};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread::{self, JoinHandle, sleep},
    time::{Duration, SystemTime},
};
use tempfile::TempDir;

const CELLS: usize = 20_000;
const ROWS: usize = 2_000;
/// Rows whose cells come in turn, so that the cells of a row come one after another and not all at once.
const ROWS_AT_A_TIME: usize = 100;
/// Cells that are put before the first of them are done.
const BACKLOG: usize = 600;
const SHARDS: usize = 64;
const WORKERS: usize = 3;
const PLAN: [(Blow, usize); 4] = [(Blow::Kill, 12), (Blow::Freeze, 6), (Blow::Stop, 4), (Blow::Child, 4)];
const LEAST: Least = Least {
    window: 16,
    cells: CELLS,
    rows: ROWS,
    kills: 12,
    freezes: 6,
    stops: 4,
    children: 4,
    shards: 30,
    stake: 500,
    cuts: 0,
};
/// For anything that has to come; far above what it takes.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(5);

/// What is done to a worker.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Blow {
    Kill,
    Freeze,
    Stop,
    /// Its handler's process is killed.
    Child,
}

/// Puts all cells, as far as it may, and notes what is acknowledged.
struct Putter {
    thread: JoinHandle<()>,
    /// Cells that it may put by now.
    allowed: Arc<AtomicUsize>,
}

impl Putter {
    fn start(dir: PathBuf, history: PathBuf) -> Self {
        let allowed = Arc::new(AtomicUsize::new(0));
        let limit = allowed.clone();
        let put = move || {
            let mut begun = 0;
            while begun < CELLS {
                let (mut put, mut cells, notes) = put(&dir, &history);
                // Ends early when the put does; what it left out is put by the next one.
                let mut all = true;
                for cell in begun..CELLS {
                    while limit.load(SeqCst) <= cell && put.try_wait().unwrap().is_none() {
                        sleep(LOOK);
                    }
                    if writeln!(cells, "{}", line(cell)).is_err() {
                        all = false;
                        break;
                    }
                }
                drop(cells);
                let acknowledged: usize = notes.join().unwrap();
                let ended = put.wait().unwrap();
                begun += acknowledged;
                assert_eq!(ended.success(), all && begun == CELLS, "put: {ended}, {acknowledged} cells acknowledged");
            }
        };
        Self { thread: thread::spawn(put), allowed }
    }
}

/// A running `put`, its input, and who notes what it acknowledges and counts it.
fn put(dir: &Path, history: &Path) -> (Child, std::process::ChildStdin, JoinHandle<usize>) {
    let mut put = Command::new(env!("CARGO_BIN_EXE_cellhook"))
        .args(["--config", "cellhook.toml", "put", "trips", "--file", "-", "--json"])
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(File::options().append(true).create(true).open(dir.join("put.log")).unwrap())
        .spawn()
        .unwrap();
    let answers = BufReader::new(put.stdout.take().unwrap());
    let history = history.to_owned();
    let note = move || {
        let mut acknowledged = 0;
        for answer in answers.lines().map_while(Result::ok) {
            let answer: Value = serde_json::from_str(&answer).unwrap();
            if answer.get("row_key").is_none() {
                continue; // The counts at the end.
            }
            assert!(answer["status"] == "new" || answer["status"] == "repeated", "{answer}");
            assert_eq!(answer["line"], acknowledged + 1, "in order, none left out");
            let (row, shard, added_id) = (&answer["row_key"], &answer["shard"], &answer["added_id"]);
            append(&history, &format!("{}\n", json!({"at": "ack", "row": row, "shard": shard, "added_id": added_id})));
            acknowledged += 1;
        }
        acknowledged
    };
    let cells = put.stdin.take().unwrap();
    (put, cells, thread::spawn(note))
}

/// A cell to be put. Some rows at a time, and these in turn: while a row's cell is called, the next one comes.
fn line(cell: usize) -> Value {
    let together = ROWS_AT_A_TIME * CELLS / ROWS;
    let row = cell / together * ROWS_AT_A_TIME + cell % ROWS_AT_A_TIME;
    json!({"row_key": format!("row-{row}"), "column": "BASE", "ref_key": cell, "body": {"n": cell}})
}

struct Scene {
    /// Kept for inspection when the test fails.
    dir: Option<TempDir>,
    path: PathBuf,
    seed: u64,
    lots: fastrand::Rng,
    workers: Vec<Worker>,
    started: usize,
    begun: SystemTime,
    history: History,
}

impl Drop for Scene {
    fn drop(&mut self) {
        if thread::panicking()
            && let Some(dir) = self.dir.take()
        {
            self.workers.clear();
            eprintln!("seed {}: run it again with HOOKTEST_KILL_SEED={}", self.seed, self.seed);
            eprintln!("its history, logs and store are kept in {}", dir.keep().display());
        }
    }
}

impl Scene {
    fn new(seed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        let handler = folder().join("handler.py");
        let history = History::new(path.join("history.ndjson"));
        let notes = &history.path;
        let window = LEAST.window;
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
            window = {{ cells = {window} }}
            retry = {{ min = "50ms", max = "500ms" }}
            breaker = "off"
            [triggers.noted.handler]
            kind = "exec"
            command = ["python3", {handler:?}, {notes:?}, "{seed}"]
            "#,
        );
        fs::write(path.join("cellhook.toml"), config).unwrap();
        let lots = fastrand::Rng::with_seed(seed);
        let (workers, begun) = (Vec::new(), SystemTime::now());
        let mut scene = Self { dir: Some(dir), path, seed, lots, workers, started: 0, begun, history };
        (0..WORKERS).for_each(|_| scene.start());
        scene
    }

    fn start(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cellhook"));
        command.args(["--config", "cellhook.toml", "run"]).current_dir(&self.path);
        let log = self.path.join(format!("worker-{}.log", self.started));
        self.workers.push(Worker::start(command, log));
        self.started += 1;
    }

    fn told(&self, what: &str) {
        println!("{:7.1} s  {what}", self.begun.elapsed().unwrap_or_default().as_secs_f64());
    }

    /// Looks again and again until `done`; the only way in which this test waits.
    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let start = SystemTime::now();
        loop {
            self.history.look();
            if done(self) {
                return;
            }
            for worker in &mut self.workers {
                let ended = worker.child.try_wait().unwrap();
                assert!(ended.is_none(), "a worker ended by itself: {ended:?}: {}", worker.log());
            }
            assert!(start.elapsed().unwrap_or_default() < PATIENCE, "in vain: {what}");
            sleep(LOOK);
        }
    }

    /// How many shards each session owns and how many cells are undone, or `None` while the store cannot be read.
    fn shards(&self) -> Option<(BTreeMap<String, usize>, u64)> {
        let output = Command::new(env!("CARGO_BIN_EXE_cellhook"))
            .args(["--config", "cellhook.toml", "shards", "trips", "--json"])
            .current_dir(&self.path)
            .output()
            .unwrap();
        if !output.status.success() {
            return None;
        }
        let (mut owners, mut lag) = (BTreeMap::new(), 0);
        for line in String::from_utf8(output.stdout).unwrap().lines() {
            let shard: Value = serde_json::from_str(line).unwrap();
            if let Some(owner) = shard["owner"].as_str() {
                *owners.entry(owner.to_owned()).or_default() += 1;
            }
            lag += shard["triggers"]["noted"]["lag_cells"].as_u64().unwrap_or(1);
        }
        Some((owners, lag))
    }

    fn owns_nothing(&self, session: &str) -> bool {
        self.shards().is_some_and(|(owners, _)| !owners.contains_key(session))
    }

    /// A worker that has at least so many calls under way, drawn by lot among those that have.
    fn victim(&mut self, calls: usize) -> usize {
        let mut able = Vec::new();
        self.until("a worker has calls under way", |scene| {
            let busy = |worker: &Worker| scene.history.under_way(worker.pid()) >= calls && worker.session().is_some();
            able = (0..scene.workers.len()).filter(|i| busy(&scene.workers[*i])).collect();
            !able.is_empty()
        });
        able[self.lots.usize(..able.len())]
    }

    /// Strikes until it had the effect that it should have.
    fn strike(&mut self, blow: Blow) {
        for _ in 0..50 {
            let struck = match blow {
                Blow::Kill => self.kill(),
                Blow::Freeze => self.freeze(),
                Blow::Stop => self.stop(),
                Blow::Child => self.kill_child(),
            };
            if struck {
                return;
            }
        }
        panic!("{blow:?} fifty times without effect");
    }

    fn kill(&mut self) -> bool {
        let victim = self.victim(1);
        let worker = self.workers.remove(victim);
        let session = worker.session().unwrap();
        self.told(&format!("kill {} {session}", worker.pid()));
        self.history.note(&json!({"at": "kill", "worker": worker.pid()}));
        drop(worker);
        self.start();
        self.until("others own the killed worker's shards", |scene| scene.owns_nothing(&session));
        true
    }

    fn kill_child(&mut self) -> bool {
        let victim = self.victim(2);
        let Some(&pid) = self.history.handlers.get(&self.workers[victim].pid().into()) else { return false };
        self.told(&format!("kill the handler's process {pid}"));
        self.history.note(&json!({"at": "child", "pid": pid}));
        // It may have ended meanwhile.
        let _ = kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), Signal::KILL);
        let worker = u64::from(self.workers[victim].pid());
        self.until("another one is started", |scene| scene.history.handlers[&worker] != pid);
        true
    }

    fn stop(&mut self) -> bool {
        let victim = self.victim(4);
        let mut worker = self.workers.remove(victim);
        let (pid, session) = (worker.pid(), worker.session().unwrap());
        let deaths = |worker: &Worker| worker.log().matches("declared dead by another worker").count();
        let before = deaths(&worker);
        self.told(&format!("stop {pid} {session}"));
        self.history.note(&json!({"at": "stop", "worker": pid}));
        worker.signal(Signal::TERM);
        self.history.look();
        let calls = self.history.under_way(pid);
        self.start();
        let mut status = None;
        self.until("the stopped worker leaves", |_| {
            status = worker.child.try_wait().unwrap();
            status.is_some()
        });
        assert!(status.unwrap().success(), "a graceful stop ends well: {}", worker.log());
        let log = worker.log();
        let session_kept = Some(&session) == worker.session().as_ref() && deaths(&worker) == before;
        let clean = session_kept && !log.contains("left before") && !log.contains("drain deadline: they will be");
        self.history.note(&json!({"at": "stopped", "worker": pid, "clean": clean}));
        self.until("others own the stopped worker's shards", |scene| scene.owns_nothing(&session));
        clean && calls > 0
    }

    fn freeze(&mut self) -> bool {
        let victim = self.victim(2);
        let pid = self.workers[victim].pid();
        let session = self.workers[victim].session().unwrap();
        self.history.note(&json!({"at": "freeze", "worker": pid}));
        self.workers[victim].signal(Signal::STOP);
        self.until("it is frozen, each of its threads", |_| is_frozen(pid));
        let calls: Vec<(u64, u64)> =
            self.history.under_way.get(&pid.into()).map(|calls| calls.values().copied().collect()).unwrap_or_default();
        // One that was frozen in the middle of a write holds the file's lock: then nobody can take over.
        let works = !calls.is_empty() && !holds_lock(&self.path.join("cellhook.db"), pid);
        if works {
            self.told(&format!("freeze {pid} {session}"));
            self.until("others own the frozen worker's shards", |scene| scene.owns_nothing(&session));
            self.until("others call for them", |scene| {
                calls.iter().any(|(shard, epoch)| scene.history.newest[shard] > *epoch)
            });
            // What was on its way to its handler has arrived: what comes now, the woken worker sends.
            let handler = self.history.handlers[&pid.into()];
            let before = self.history.idle.get(&handler).copied();
            kill_process(Pid::from_raw(handler.try_into().unwrap()).unwrap(), Signal::USR1).unwrap();
            self.until("its handler has read everything", |scene| scene.history.idle.get(&handler).copied() != before);
        }
        self.history.note(&json!({"at": "continue", "worker": pid}));
        self.workers[victim].signal(Signal::CONT);
        works
    }
}

#[test]
fn nothing_is_lost_when_workers_are_killed_frozen_and_stopped() {
    let seed = std::env::var("HOOKTEST_KILL_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("HOOKTEST_KILL_SEED={seed}");
    let mut scene = Scene::new(seed);
    scene.until("the workers own all shards", |scene| {
        scene.shards().is_some_and(|(owners, _)| owners.values().sum::<usize>() == SHARDS)
    });
    let mut plan: Vec<Blow> = PLAN.iter().flat_map(|(blow, times)| vec![*blow; *times]).collect();
    scene.lots.shuffle(&mut plan);
    let putter = Putter::start(scene.path.clone(), scene.history.path.clone());
    let share = CELLS / (plan.len() + 1);
    // As many as are done, and a backlog, but never more than the plan has come to: the last blow falls while cells come.
    let feed = |scene: &Scene, most: usize| {
        assert!(!putter.thread.is_finished() || scene.history.acknowledged >= CELLS, "put ended");
        putter.allowed.store((scene.history.done.len() + BACKLOG).min(most), SeqCst);
    };
    for (i, blow) in plan.into_iter().enumerate() {
        scene.until("cells are put", |scene| {
            feed(scene, (i + 2) * share);
            scene.history.acknowledged >= (i + 1) * share
        });
        scene.strike(blow);
    }
    scene.told("the last cells are put");
    scene.until("all is put", |scene| {
        feed(scene, CELLS);
        scene.history.acknowledged >= CELLS
    });
    putter.thread.join().unwrap();
    scene.until("all is handled", |scene| scene.shards().is_some_and(|(_, lag)| lag == 0));
    scene.told("judging");
    scene.workers.clear();
    let (sound, said) = judged(&scene.history.path, &LEAST);
    scene.told(&said);
    assert!(sound, "the history is not as it should be");
}
