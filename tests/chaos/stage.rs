//! The processes of a chaos run, and what is known of them: workers that each have a line of their own to the store, writers,
//! perhaps a server, perhaps a small disk. It starts them, looks at them, ends a round and has it judged.

use super::{line::Line, tally::Tally, writer::Writer};
use crate::{
    faults::dynamo::Server,
    kill::{History, Least, Worker, folder, judged},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Seek, SeekFrom},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, SystemTime},
};
use tempfile::TempDir;

pub(super) const SHARDS: usize = 16;
pub(super) const WINDOW: usize = 16;
/// For anything that has to come; far above what it takes.
const PATIENCE: Duration = Duration::from_secs(180);
/// The exit code of a verb to which the store did not answer.
const OUT_OF_REACH: i32 = 5;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(5);
/// Between two starts of a worker that finds no store.
const PAUSE: Duration = Duration::from_millis(300);

/// How a process gets to the store.
#[derive(Clone, Debug, Default)]
pub(super) struct Way {
    /// A command that runs it elsewhere.
    pub(super) prefix: Vec<String>,
    /// Another server than that of the config.
    pub(super) endpoint: Option<String>,
}

impl Way {
    /// A verb of cellhook, run this way.
    pub(super) fn command(&self, dir: &Path, words: &[&str]) -> Command {
        let own = [env!("CARGO_BIN_EXE_cellhook"), "--config", "cellhook.toml"];
        let mut all = self.prefix.iter().map(String::as_str).chain(own).chain(words.iter().copied());
        let mut command = Command::new(all.next().unwrap());
        command.args(all).current_dir(dir).env("AWS_EC2_METADATA_DISABLED", "true");
        command.env("AWS_ACCESS_KEY_ID", "nobody").env("AWS_SECRET_ACCESS_KEY", "none");
        if let Some(endpoint) = &self.endpoint {
            command.env("CELLHOOK_STORE__ENDPOINT", endpoint);
        }
        command
    }
}

/// A place for a worker.
pub(super) struct Seat {
    pub(super) worker: Worker,
    pub(super) way: Way,
    pub(super) line: Line,
    /// Whether its line is struck.
    pub(super) cut: bool,
    begun: SystemTime,
}

/// What a stage has.
pub(super) struct Scenery {
    /// Of the run, for people, and the last part of its test's name.
    pub(super) name: &'static str,
    /// The config's `[store]`, and what else is special about it.
    pub(super) config: String,
    /// Of each worker.
    pub(super) seats: Vec<(Way, Line)>,
    /// Of each writer, how it gets there.
    pub(super) writers: Vec<(Way, Line)>,
    pub(super) server: Option<Server>,
    /// A small file system.
    pub(super) disk: Option<PathBuf>,
    /// The file of an embedded store.
    pub(super) store: Option<PathBuf>,
    /// Cells that are put before the first of them are done.
    pub(super) backlog: usize,
    pub(super) seed: u64,
}

pub(super) struct Stage {
    /// Kept for inspection when the test fails.
    dir: Option<TempDir>,
    pub(super) path: PathBuf,
    name: &'static str,
    pub(super) seed: u64,
    pub(super) lots: fastrand::Rng,
    pub(super) seats: Vec<Seat>,
    pub(super) writers: Vec<Writer>,
    pub(super) writer_lines: Vec<Line>,
    pub(super) server: Option<Server>,
    pub(super) disk: Option<PathBuf>,
    /// The file of an embedded store.
    pub(super) store: Option<PathBuf>,
    pub(super) history: History,
    /// Its length when the round began.
    before: u64,
    /// Connections that had been struck when the round began.
    struck: usize,
    pub(super) tally: Tally,
    /// Workers that were asked to leave.
    pub(super) leaving: Vec<Worker>,
    pub(super) frozen: BTreeSet<u32>,
    pub(super) feeding: bool,
    backlog: usize,
    started: usize,
    config: String,
    begun: SystemTime,
    round_begun: SystemTime,
}

impl Drop for Stage {
    fn drop(&mut self) {
        if thread::panicking()
            && let Some(dir) = self.dir.take()
        {
            self.writers.clear();
            self.seats.clear();
            let (seed, name) = (self.seed, self.name);
            if let Some(store) = self.store.as_ref().and_then(|store| store.parent()) {
                // A file system of its own ends with this process.
                let _ = Command::new("cp").arg("-r").arg(store).arg(dir.path()).status();
            }
            if let Some(server) = &self.server {
                let _ = Command::new("cp").arg("-r").arg(server.data.path()).arg(dir.path().join("server")).status();
            }
            eprintln!(
                "seed {seed}: run it again with: HOOKTEST_CHAOS_SEED={seed} cargo test --release --test it -- {name}"
            );
            eprintln!("its history, logs and store are kept in {}", dir.keep().display());
        }
    }
}

pub(super) fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

impl Stage {
    pub(super) fn new(scenery: Scenery) -> Self {
        let Scenery { name, config, seats, writers, server, disk, store, backlog, seed } = scenery;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        let history = History::new(path.join("history.ndjson"));
        let (lots, now) = (fastrand::Rng::with_seed(seed), SystemTime::now());
        let (ways, writer_lines): (Vec<Way>, Vec<Line>) = writers.into_iter().unzip();
        let mut stage = Self {
            dir: Some(dir),
            path,
            name,
            seed,
            lots,
            seats: Vec::new(),
            writers: ways.into_iter().map(|way| Writer::new(String::new(), way)).collect(),
            writer_lines,
            server,
            disk,
            store,
            history,
            before: 0,
            struck: 0,
            tally: Tally::default(),
            leaving: Vec::new(),
            frozen: BTreeSet::new(),
            feeding: false,
            backlog,
            started: 0,
            config,
            begun: now,
            round_begun: now,
        };
        stage.configure();
        stage.run_well(&["init"]);
        for (way, line) in seats {
            let seat = stage.seat(way, line);
            stage.seats.push(seat);
        }
        stage
    }

    /// Writes the config, with the store where it is now.
    pub(super) fn configure(&self) {
        let (handler, notes, seed) = (folder().join("handler.py"), &self.history.path, self.seed);
        let store = match &self.store {
            Some(store) => format!("[store]\nkind = \"embedded\"\npath = {store:?}\n"),
            None => String::new(),
        };
        let config = format!(
            "{store}{}\n[datastores.trips]\nshards = {SHARDS}\n[datastores.probes]\nshards = 1\n[metrics]\nlisten = \"off\"\n[triggers.noted]\n\
             source = \"trips\"\nin_flight = 3\nwindow = {{ cells = {WINDOW} }}\nretry = {{ min = \"50ms\", max = \"500ms\" }}\n\
             breaker = \"off\"\n[triggers.noted.handler]\nkind = \"exec\"\n\
             command = [\"python3\", {handler:?}, {notes:?}, \"{seed}\"]\n",
            self.config
        );
        fs::write(self.path.join("cellhook.toml"), config).unwrap();
    }

    fn seat(&mut self, way: Way, line: Line) -> Seat {
        let log = self.path.join(format!("worker-{}.log", self.started));
        self.started += 1;
        let worker = Worker::start(way.command(&self.path, &["run"]), log);
        Seat { worker, way, line, cut: false, begun: SystemTime::now() }
    }

    /// Starts a worker at a seat; gives the one that was there.
    pub(super) fn start_at(&mut self, seat: usize) -> Worker {
        let Seat { way, .. } = &self.seats[seat];
        let way = way.clone();
        let Seat { worker, begun, .. } = self.seat(way, Line::None);
        self.seats[seat].begun = begun;
        if self.seats[seat].cut {
            self.history.note(&json!({"at": "cut", "worker": worker.pid()}));
        }
        std::mem::replace(&mut self.seats[seat].worker, worker)
    }

    pub(super) fn told(&self, what: &str) {
        println!("{:7.1} s  {}: {what}", self.begun.elapsed().unwrap_or_default().as_secs_f64(), self.name);
    }

    /// Sees to everything once.
    pub(super) fn look(&mut self) {
        let acknowledged: usize = self.writers.iter().map(Writer::acknowledged).sum();
        let room = (self.history.done.len() + self.backlog).saturating_sub(acknowledged);
        let may = if self.feeding { room / self.writers.len() } else { 0 };
        for writer in &mut self.writers {
            writer.look(&self.path, may, &self.history);
        }
        self.history.look();
        for seat in 0..self.seats.len() {
            let Seat { worker, begun, .. } = &mut self.seats[seat];
            let Some(ended) = worker.child.try_wait().unwrap() else { continue };
            // At its start it needs the store; afterwards it never ends by itself.
            let excused = worker.session().is_none() && ended.code() == Some(OUT_OF_REACH);
            assert!(excused, "a worker ended by itself: {ended}: {}", worker.log());
            if begun.elapsed().is_ok_and(|since| since >= PAUSE) {
                self.tally.add("started in vain", 1);
                self.start_at(seat);
            }
        }
    }

    fn struck(&self) -> usize {
        self.seats.iter().map(|seat| &seat.line).chain(&self.writer_lines).map(Line::struck).sum()
    }

    /// Looks again and again until `done`; the only way in which this test waits.
    pub(super) fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let start = SystemTime::now();
        loop {
            self.look();
            if done(self) {
                return;
            }
            assert!(start.elapsed().unwrap_or_default() < PATIENCE, "in vain: {what}");
            thread::sleep(LOOK);
        }
    }

    /// A pause of the schedule.
    pub(super) fn pause(&mut self, length: Duration) {
        let start = SystemTime::now();
        self.until("time passes", |_| start.elapsed().is_ok_and(|since| since >= length));
    }

    /// Runs a verb to its end: its exit code, and what it said.
    fn run(&self, words: &[&str]) -> (Option<i32>, String) {
        let mut command = Way::default().command(&self.path, words);
        let output = command.stdin(Stdio::null()).output().unwrap();
        let said = if output.status.success() { output.stdout } else { [output.stdout, output.stderr].concat() };
        (output.status.code(), String::from_utf8(said).unwrap())
    }

    /// What a verb says that ends well; again while the store, though nothing is wrong with it, is too slow for it.
    pub(super) fn run_well(&self, words: &[&str]) -> String {
        let mut ended = (None, String::new());
        let start = SystemTime::now();
        while ended.0.is_none_or(|code| code == OUT_OF_REACH) && start.elapsed().unwrap_or_default() < PATIENCE {
            ended = self.run(words);
        }
        assert_eq!(ended.0, Some(0), "{words:?}: {}", ended.1);
        ended.1
    }

    /// How many shards each session owns and how many cells are undone, or `None` while the store cannot be read.
    pub(super) fn shards(&self) -> Option<(BTreeMap<String, usize>, u64)> {
        let (code, said) = self.run(&["shards", "trips", "--json"]);
        let (mut owners, mut lag) = (BTreeMap::new(), 0);
        for shard in said.lines().take_while(|_| code == Some(0)) {
            let shard: Value = serde_json::from_str(shard).unwrap();
            if let Some(owner) = shard["owner"].as_str() {
                *owners.entry(owner.to_owned()).or_default() += 1;
            }
            lag += shard["triggers"]["noted"]["lag_cells"].as_u64().unwrap_or(1);
        }
        (code == Some(0)).then_some((owners, lag))
    }

    pub(super) fn owns_nothing(&self, session: &str) -> bool {
        self.shards().is_some_and(|(owners, _)| !owners.contains_key(session))
    }

    /// Waits until the handler of a worker that gives it nothing more has read what it was given before.
    pub(super) fn handler_reads_all(&mut self, worker: u32) {
        let Some(&handler) = self.history.handlers.get(&worker.into()) else { return };
        let pid = u32::try_from(handler).unwrap();
        if !is_alive(pid) {
            return;
        }
        let before = self.history.idle.get(&handler).copied();
        let _ = kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), Signal::USR1);
        self.until("its handler has read everything", |stage| {
            stage.history.idle.get(&handler).copied() != before || !is_alive(pid)
        });
    }

    /// A round begins: other rows, a history of its own.
    pub(super) fn begin_round(&mut self, seed: u64) {
        println!("HOOKTEST_CHAOS_SEED={seed}");
        (self.seed, self.lots, self.tally) = (seed, fastrand::Rng::with_seed(seed), Tally::default());
        self.round_begun = SystemTime::now();
        for (number, writer) in self.writers.iter_mut().enumerate() {
            *writer = Writer::new(format!("{seed}-{number}"), writer.way.clone());
        }
        self.history.look();
        self.history.done.clear();
        self.history.under_way.clear();
        // Handlers have this file open; what this round adds to it is judged.
        self.before = fs::metadata(&self.history.path).unwrap().len();
        self.struck = self.struck();
        self.until("the workers own all shards", |stage| {
            stage.shards().is_some_and(|(owners, _)| owners.values().sum::<usize>() == SHARDS && owners.len() > 1)
        });
        self.tally.weigh_before(self.seats.iter().map(|seat| seat.worker.pid()));
        self.feeding = true;
        self.until("cells are done", |stage| stage.history.done.len() >= 50);
    }

    /// Everything is well again; what is left is done, and the round is judged.
    pub(super) fn end_round(&mut self, least: &Least) {
        self.feeding = false;
        self.until("those that were to leave have left", |stage| {
            stage.leaving.retain_mut(|worker| match worker.child.try_wait().unwrap() {
                None => true,
                Some(status) => {
                    // One that had not yet begun to listen to it ends by the signal itself.
                    let left = status.code().is_some() || status.signal() == Some(Signal::TERM.as_raw());
                    assert!(left, "{status}: {}", worker.log());
                    false
                }
            });
            stage.leaving.is_empty()
        });
        self.until("all is put", |stage| stage.writers.iter().all(Writer::is_done));
        self.until("all is handled", |stage| stage.shards().is_some_and(|(_, lag)| lag == 0));
        let mine: BTreeSet<u32> = self.seats.iter().map(|seat| seat.worker.pid()).collect();
        self.until("handlers have ended what they had begun", |stage| {
            let open = |(worker, calls): (&u64, &BTreeMap<_, _>)| {
                let handler = stage.history.handlers.get(worker).map(|pid| u32::try_from(*pid).unwrap());
                let alive = handler.is_some_and(is_alive);
                alive && (!calls.is_empty() || !mine.contains(&u32::try_from(*worker).unwrap()))
            };
            !stage.history.under_way.iter().any(open)
        });
        self.writers.iter_mut().for_each(Writer::kill);
        let struck = self.struck() - self.struck;
        self.tally.add("connections struck", struck);
        self.tally.weigh_after(self.seats.iter().map(|seat| seat.worker.pid()));
        let round = self.path.join("round.ndjson");
        let mut history = File::open(&self.history.path).unwrap();
        history.seek(SeekFrom::Start(self.before)).unwrap();
        io::copy(&mut history, &mut File::create(&round).unwrap()).unwrap();
        let (sound, said) = judged(&round, least);
        self.tally.add("puts that ended early", self.writers.iter().map(|writer| writer.ended).sum());
        let lost = self.lost();
        self.tally.judged(&said, lost.len());
        let seconds = self.round_begun.elapsed().unwrap_or_default().as_secs();
        self.told(&format!("seed {}, {seconds} s: {}", self.seed, self.tally));
        assert!(sound, "the history is not as it should be: {said}");
        assert!(lost.is_empty(), "acknowledged, and not in the log as it was told: {lost:?}");
        self.run_well(&["verify", "--json", "--rate", "1000000"]);
    }

    /// What was acknowledged and is not where it should be, or twice.
    pub(super) fn lost(&self) -> Vec<String> {
        let since = format!("{}s", self.round_begun.elapsed().unwrap_or_default().as_secs() + 3600);
        let said = self.run_well(&["tail", "trips", "--json", "--from", &since]);
        let mut found = BTreeMap::new();
        let mut faults = Vec::new();
        for cell in said.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
            let name = (cell["row_key"].as_str().unwrap().to_owned(), cell["ref_key"].as_u64().unwrap());
            let place = (cell["shard"].as_u64().unwrap(), cell["added_id"].as_u64().unwrap());
            if let Some(other) = found.insert(name, place) {
                faults.push(format!("{cell} lies at {other:?} too"));
            }
        }
        for (name, place) in self.writers.iter().flat_map(Writer::places) {
            if found.get(&name) != Some(&place) {
                faults.push(format!("{name:?} at {place:?}: {:?}", found.get(&name)));
            }
        }
        faults
    }
}
