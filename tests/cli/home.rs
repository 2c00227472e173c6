//! A directory with a config, and the processes that work there.

pub(super) use crate::binary::{Ended, until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread::JoinHandle,
};
use tempfile::TempDir;

/// A directory with a config and a store of its own.
pub(super) struct Home {
    pub(super) dir: TempDir,
}

impl Home {
    /// One datastore of four shards, and this trigger's table, in TOML.
    pub(super) fn with_trigger(trigger: &str) -> Self {
        Self::with(&format!(
            "[store]\nkind = \"embedded\"\n[datastores.trips]\nshards = 4\n[metrics]\nlisten = \"127.0.0.1:0\"\n\
             [worker]\nheartbeat = \"200ms\"\nsession = \"2s\"\ndrain_deadline = \"20s\"\n\
             [triggers.bill]\nsource = \"trips\"\n{trigger}"
        ))
    }

    pub(super) fn with(config: &str) -> Self {
        let home = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(home.path("config")).unwrap();
        home.write(config);
        home
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn write(&self, config: &str) {
        fs::write(self.path("config/cellhook.toml"), config).unwrap();
    }

    pub(super) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cellhook"));
        let path = std::env::var_os("PATH").unwrap_or_default();
        command.args(words).current_dir(self.dir.path()).env_clear().env("PATH", path);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(super) fn run(&self, words: &[&str]) -> Ended {
        Ended::of(self.command(words).spawn().unwrap())
    }

    pub(super) fn run_with(&self, words: &[&str], stdin: &str) -> Ended {
        let mut child = self.command(words).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
        Ended::of(child)
    }

    /// The lines of both streams as a terminal shows them: in the order in which they came.
    pub(super) fn shown(&self, words: &[&str]) -> Vec<String> {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut command = self.command(words);
        let mut child = command.stdout(writer.try_clone().unwrap()).stderr(writer).spawn().unwrap();
        // It has ends of the pipe too.
        drop(command);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        child.wait().unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// Nobody reads what it prints and says: both pipes are closed before it starts.
    pub(super) fn unheard(&self, words: &[&str]) -> Child {
        let closed = || std::io::pipe().unwrap().1;
        self.command(words).stdout(closed()).stderr(closed()).spawn().unwrap()
    }

    pub(super) fn worker(&self) -> Worker {
        Worker::start(self.command(&["run"]))
    }

    /// Puts as soon as a worker has made the tables.
    #[track_caller]
    pub(super) fn until_put(&self, words: &[&str]) {
        until(|| self.run(words).code == Some(0)).unwrap_or_else(|| panic!("{:?}", self.run(words)));
    }

    /// Asks with `--json` until the objects are as wanted.
    #[track_caller]
    pub(super) fn until(&self, words: &[&str], wanted: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let words = [words, &["--json"]].concat();
        let mut last = None;
        until(|| {
            let objects = self.run(&words).done().objects();
            let good = wanted(&objects);
            last = Some(objects);
            good
        })
        .unwrap_or_else(|| panic!("{words:?} gave {last:?}"));
        last.unwrap()
    }
}

/// The exit code, once it has one.
pub(super) fn exit_code(child: &mut Child) -> Option<i32> {
    let mut status = None;
    until(|| {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.and_then(|status| status.code())
}

/// A running `cellhook run`; killed when dropped.
pub(super) struct Worker {
    pub(super) child: Child,
    said: Arc<Mutex<String>>,
    listener: Option<JoinHandle<()>>,
}

impl Worker {
    pub(super) fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let said = Arc::new(Mutex::new(String::new()));
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let to = said.clone();
        let listener = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let mut to = to.lock().unwrap();
                to.push_str(&line);
                to.push('\n');
            }
        });
        let worker = Self { child, said, listener: Some(listener) };
        worker.hears("working");
        worker
    }

    pub(super) fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    #[track_caller]
    pub(super) fn hears(&self, text: &str) {
        until(|| self.said().contains(text)).unwrap_or_else(|| panic!("no {text:?} in {}", self.said()));
    }

    pub(super) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub(super) fn exit_code(&mut self) -> Option<i32> {
        exit_code(&mut self.child)
    }

    pub(super) fn get(&self, page: &str) -> String {
        let said = self.said();
        let address = said.split("http://").nth(1).and_then(|rest| rest.split('/').next()).unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {page} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(listener) = self.listener.take() {
            // A child of a handler may hold the other end of stderr a little longer; what it says is not wanted.
            drop(listener);
        }
    }
}

pub(super) const LOG: &str = "handler = { kind = \"log\" }\n";

/// A handler that runs a shell command for each cell.
pub(super) fn shell(command: &str) -> String {
    format!("handler = {{ kind = \"command\", command = [\"sh\", \"-c\", {command:?}] }}\n")
}

pub(super) fn lag_is_gone(shards: &[Value]) -> bool {
    shards.iter().all(|shard| shard["triggers"]["bill"]["lag_cells"] == 0)
}

/// Of what the objects have under a key.
pub(super) fn sum(objects: &[Value], key: &str) -> u64 {
    objects.iter().map(|object| object[key].as_u64().unwrap_or_else(|| panic!("{key} of {object}"))).sum()
}

/// Says aloud that something could not be tested here; with `HOOKTEST_REQUIRE_ALL=1` that is a failure.
pub(super) fn skipped(why: &str) {
    let text = format!("SKIPPED: {why}. Install it with: tests/install-tools.sh");
    assert!(std::env::var_os("HOOKTEST_REQUIRE_ALL").is_none_or(|all| all != "1"), "{text}");
    // Past the capture of the test harness, which would swallow it.
    let _ = writeln!(std::io::stderr(), "{text}");
}
