//! A directory with a config, and the processes that work there.

pub(super) use crate::binary::{Ended, until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};
use tempfile::TempDir;

/// A handler that notes shard, added ID and epoch of each call in `calls` before it runs the rest of the script.
pub(super) fn noting(script: &str) -> String {
    let script = format!("echo $CELLHOOK_SHARD $CELLHOOK_ADDED_ID $CELLHOOK_EPOCH >> calls; {script}");
    format!("handler = {{ kind = \"command\", command = [\"sh\", \"-c\", {script:?}] }}\n")
}

/// Says on the terminal, past the capture of the test harness, that something was not tested.
pub(crate) fn skipped(what: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {what}");
}

pub(super) struct Home {
    dir: TempDir,
    logs: AtomicUsize,
}

impl Home {
    pub(super) fn new(config: &str) -> Self {
        let home = Self { dir: tempfile::tempdir().unwrap(), logs: AtomicUsize::new(0) };
        home.configure(config);
        home
    }

    /// One embedded datastore of four shards, and this trigger's table, in TOML.
    pub(super) fn embedded(trigger: &str) -> Self {
        Self::new(&Self::config("store.db", trigger))
    }

    pub(super) fn config(path: &str, trigger: &str) -> String {
        format!(
            "[store]\nkind = \"embedded\"\npath = {path:?}\n[datastores.trips]\nshards = 4\n[metrics]\nlisten = \"off\"\n\
             [worker]\nheartbeat = \"500ms\"\nsession = \"2s\"\ndrain_deadline = \"10s\"\n\
             [triggers.bill]\nsource = \"trips\"\n{trigger}"
        )
    }

    pub(super) fn configure(&self, config: &str) {
        fs::write(self.path("cellhook.toml"), config).unwrap();
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cellhook"));
        let path = std::env::var_os("PATH").unwrap_or_default();
        command.args(["--config", "cellhook.toml"]).args(words).current_dir(self.dir.path()).env_clear();
        command.env("PATH", path).env("AWS_EC2_METADATA_DISABLED", "true");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(super) fn begin(&self, words: &[&str]) -> Child {
        self.command(words).spawn().unwrap()
    }

    pub(super) fn run(&self, words: &[&str]) -> Ended {
        Ended::of(self.begin(words))
    }

    #[track_caller]
    pub(super) fn put(&self, row: &str) {
        self.run(&["put", "trips", row, "BASE", "1"]).ended(0);
    }

    /// A bulk put that is fed line by line.
    pub(super) fn bulk(&self) -> Bulk {
        let command = &mut self.command(&["put", "trips", "--file", "-", "--json"]);
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        let (cells, answers) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        Bulk { child, cells, answers }
    }

    /// A worker that has begun to start.
    pub(super) fn starting(&self) -> Worker {
        let log = self.path(&format!("worker-{}.log", self.logs.fetch_add(1, Relaxed)));
        let stderr = File::create(&log).unwrap();
        let child = self.command(&["run"]).stdout(Stdio::null()).stderr(stderr).spawn().unwrap();
        Worker { child, log }
    }

    /// A worker that holds shards.
    #[track_caller]
    pub(super) fn worker(&self) -> Worker {
        let worker = self.starting();
        worker.hears("took shards");
        worker
    }

    /// What `shards` tells, once it is as wanted.
    #[track_caller]
    pub(super) fn until_shards(&self, what: &str, wanted: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let mut shards = Vec::new();
        until(|| {
            let told = self.run(&["shards", "--json"]);
            shards = told.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            told.code == Some(0) && wanted(&shards)
        })
        .unwrap_or_else(|| panic!("{what}: {shards:?}"));
        shards
    }

    /// Waits until so many cells are put and nothing is left to do.
    #[track_caller]
    pub(super) fn until_handled(&self, cells: u64) {
        self.until_shards("all is handled", |shards| {
            shards.iter().all(|shard| shard["triggers"]["bill"]["lag_cells"] == 0)
                && shards.iter().filter_map(|shard| shard["tip"].as_u64()).sum::<u64>() == cells
        });
    }

    /// The calls so far, in order: shard, added ID, epoch.
    pub(super) fn calls(&self) -> Vec<(u64, u64, u64)> {
        let text = fs::read_to_string(self.path("calls")).unwrap_or_default();
        let numbers = |line: &str| line.split(' ').map(|number| number.parse().unwrap()).collect::<Vec<u64>>();
        text.lines().map(numbers).map(|numbers| (numbers[0], numbers[1], numbers[2])).collect()
    }

    /// So many cells were called, and in no shard did a call start under an epoch that had passed.
    #[track_caller]
    pub(super) fn called(&self, cells: usize) -> Vec<(u64, u64, u64)> {
        let calls = self.calls();
        let different: BTreeSet<(u64, u64)> = calls.iter().map(|(shard, added_id, _)| (*shard, *added_id)).collect();
        assert_eq!(different.len(), cells, "{calls:?}");
        let mut newest = BTreeMap::new();
        for (shard, _, epoch) in &calls {
            let newest = newest.entry(shard).or_insert(epoch);
            assert!(epoch >= newest, "a passed epoch: {calls:?}");
            *newest = epoch;
        }
        calls
    }
}

/// A running bulk put.
pub(super) struct Bulk {
    child: Child,
    cells: Option<ChildStdin>,
    answers: BufReader<std::process::ChildStdout>,
}

impl Bulk {
    pub(super) fn give(&mut self, row: &str) {
        let line = serde_json::json!({"row_key": row, "column": "BASE", "ref_key": 1, "body": 1});
        writeln!(self.cells.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Waits for the next answer.
    #[track_caller]
    pub(super) fn is_acknowledged(&mut self) {
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        assert!(answer.contains("\"status\":\"new\""), "{answer:?}");
    }

    pub(super) fn ended(mut self) -> Ended {
        self.cells = None;
        Ended::of(self.child)
    }
}

/// A running `cellhook run`; killed when dropped.
pub(super) struct Worker {
    child: Child,
    log: PathBuf,
}

impl Worker {
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    pub(super) fn lines(&self) -> usize {
        self.said().lines().count()
    }

    /// How often it said that.
    pub(super) fn said_times(&self, text: &str) -> usize {
        self.said().matches(text).count()
    }

    #[track_caller]
    pub(super) fn hears(&self, text: &str) {
        self.hears_times(text, 1);
    }

    /// Waits until it was said so many times.
    #[track_caller]
    pub(super) fn hears_times(&self, text: &str, times: usize) {
        until(|| self.said_times(text) >= times).unwrap_or_else(|| panic!("no {text:?} in {}", self.said()));
    }

    pub(super) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    #[track_caller]
    pub(super) fn ends_with(&mut self, code: i32) {
        let mut status = None;
        until(|| {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        assert_eq!(status.and_then(|status| status.code()), Some(code), "{}", self.said());
    }

    pub(super) fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that took the store's lock and was stopped in the middle; killed when dropped.
pub(super) struct Holder(Child);

impl Holder {
    pub(super) fn stopped(home: &Home) -> Self {
        let script = "import fcntl, os, signal\n\
                      file = os.open('store.db.lock', os.O_RDWR | os.O_CREAT)\n\
                      fcntl.flock(file, fcntl.LOCK_EX)\n\
                      os.pwrite(file, b'%-16d\\n' % os.getpid(), 0)\n\
                      os.kill(os.getpid(), signal.SIGSTOP)\n";
        let child = Command::new("python3").args(["-c", script]).current_dir(home.dir.path()).spawn().unwrap();
        until(|| state(child.id()) == Some('T')).expect("it holds the lock and is stopped");
        Self(child)
    }

    /// As whoever waits names it.
    pub(super) fn named(&self) -> String {
        format!("held by process {} (stopped; continue it with SIGCONT or end it)", self.0.id())
    }

    pub(super) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Lets it go on, and so let go of the lock.
    pub(super) fn goes_on(mut self) {
        kill_process(Pid::from_child(&self.0), Signal::CONT).unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The state letter of a process, as `ps` shows it.
pub(super) fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// Runs a script of Python, for what only SQLite or a socket can bring about.
#[track_caller]
pub(super) fn python(home: &Home, script: &str) {
    let status = Command::new("python3").args(["-c", script]).current_dir(home.dir.path()).status().unwrap();
    assert!(status.success(), "{script}");
}
