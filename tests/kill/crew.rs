//! What the tests that strike real processes share: a running worker, the history of what happened, and the program that
//! judges it.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, TryLockError},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, SystemTime},
};

/// The least that must have happened, and the bounds; as the checker takes them.
pub(crate) struct Least {
    pub(crate) window: usize,
    pub(crate) cells: usize,
    pub(crate) rows: usize,
    pub(crate) kills: usize,
    pub(crate) freezes: usize,
    pub(crate) stops: usize,
    pub(crate) children: usize,
    pub(crate) shards: usize,
    pub(crate) stake: usize,
    /// Workers that were cut off from the store, and whose shards others took over.
    pub(crate) cuts: usize,
}

pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kill")
}

/// Whether the checker finds a history sound, and what it says.
pub(crate) fn judged(history: &Path, least: &Least) -> (bool, String) {
    let Least { window, cells, rows, kills, freezes, stops, children, shards, stake, cuts } = least;
    let output = Command::new("python3")
        .arg(folder().join("checker.py"))
        .arg(history)
        .args([format!("window={window}"), format!("cells={cells}"), format!("rows={rows}")])
        .args([format!("kills={kills}"), format!("freezes={freezes}"), format!("stops={stops}")])
        .args([format!("children={children}"), format!("shards={shards}"), format!("stake={stake}")])
        .arg(format!("cuts={cuts}"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(matches!(output.status.code(), Some(0 | 1)) && output.stderr.is_empty(), "the checker failed: {said}");
    (output.status.success(), said)
}

/// A running worker; killed when the test ends early.
pub(crate) struct Worker {
    pub(crate) child: Child,
    log: PathBuf,
}

impl Worker {
    /// Starts `cellhook run` by a command that has everything but its way out.
    pub(crate) fn start(mut command: Command, log: PathBuf) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log).unwrap());
        Self { child: command.spawn().unwrap(), log }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The session under which it works, by its log; `None` before it has one.
    pub(crate) fn session(&self) -> Option<String> {
        let log = self.log();
        let line = log.lines().rev().find(|line| line.contains("session opened"))?;
        let id = line.split("session=").nth(1)?;
        Some(id.chars().take_while(char::is_ascii_alphanumeric).collect())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A call: its id, attempt and handler's process.
type Call = (String, u64, u64);

/// The history as far as it is written, for the test's own decisions; the checker reads it for itself.
pub(crate) struct History {
    file: File,
    pub(crate) path: PathBuf,
    rest: String,
    pub(crate) acknowledged: usize,
    pub(crate) done: BTreeSet<(u64, u64)>,
    /// By worker, its handler's latest process.
    pub(crate) handlers: BTreeMap<u64, u64>,
    /// How often a handler's process said that it has read all that it was given.
    pub(crate) idle: BTreeMap<u64, usize>,
    /// By worker, the calls under way with their shard and epoch.
    pub(crate) under_way: BTreeMap<u64, BTreeMap<Call, (u64, u64)>>,
    pub(crate) newest: BTreeMap<u64, u64>,
}

impl History {
    pub(crate) fn new(path: PathBuf) -> Self {
        File::create(&path).unwrap();
        let file = File::open(&path).unwrap();
        let (done, rest, idle) = (BTreeSet::new(), String::new(), BTreeMap::new());
        let (handlers, under_way, newest) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { file, path, rest, acknowledged: 0, done, handlers, idle, under_way, newest }
    }

    pub(crate) fn note(&self, record: &Value) {
        append(&self.path, &format!("{record}\n"));
    }

    /// Reads on.
    pub(crate) fn look(&mut self) {
        self.file.read_to_string(&mut self.rest).unwrap();
        let whole = self.rest.rfind('\n').map_or(0, |end| end + 1);
        let lines: String = self.rest.drain(..whole).collect();
        for record in lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            let number = |key: &str| record[key].as_u64().unwrap_or_default();
            let call = || (record["id"].as_str().unwrap().to_owned(), number("attempt"), number("pid"));
            let (worker, shard, epoch) = (number("worker"), number("shard"), number("epoch"));
            match record["at"].as_str().unwrap() {
                "up" => drop(self.handlers.insert(worker, number("pid"))),
                "idle" => *self.idle.entry(number("pid")).or_default() += 1,
                "ack" => self.acknowledged += 1,
                "start" => {
                    self.under_way.entry(worker).or_default().insert(call(), (shard, epoch));
                    let newest = self.newest.entry(shard).or_default();
                    *newest = epoch.max(*newest);
                }
                "end" => {
                    self.under_way.entry(worker).or_default().remove(&call());
                    if record["verdict"] == "done" {
                        self.done.insert((shard, number("added_id")));
                    }
                }
                // What its handler had under way has ended with it.
                "child" => {
                    self.under_way.values_mut().for_each(|calls| calls.retain(|(_, _, pid), _| *pid != number("pid")))
                }
                _ => {}
            }
        }
    }

    pub(crate) fn under_way(&self, worker: u32) -> usize {
        self.under_way.get(&worker.into()).map_or(0, BTreeMap::len)
    }
}

/// Whether all threads of a process are stopped; the signal takes a moment to reach them.
pub(crate) fn is_frozen(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let stopped = |stat: String| stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" T"));
    // A thread that has just ended has no file any more.
    threads.flatten().all(|thread| fs::read_to_string(thread.path().join("stat")).map_or(true, stopped))
}

/// One write, so that lines of several processes do not mix.
pub(crate) fn append(path: &Path, text: &str) {
    let mut file = File::options().append(true).open(path).unwrap();
    assert_eq!(file.write(text.as_bytes()).unwrap(), text.len());
}

/// Whether a frozen process holds the lock of an embedded store's file.
pub(crate) fn holds_lock(store: &Path, pid: u32) -> bool {
    let path = store.with_added_extension("lock");
    let mut file = File::options().read(true).write(true).open(path).unwrap();
    let start = SystemTime::now();
    loop {
        match file.try_lock() {
            Ok(()) => return false,
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => panic!("{error}"),
        }
        let mut text = String::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_string(&mut text).unwrap();
        // Others hold it for a moment only.
        if text.lines().next().is_some_and(|line| line.trim() == pid.to_string())
            && start.elapsed().unwrap_or_default() > Duration::from_millis(50)
        {
            return true;
        }
        sleep(Duration::from_millis(1));
    }
}
