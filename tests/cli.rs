//! The binary as a user runs it.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::Duration,
};
use tempfile::TempDir;

/// Longer than anything here takes on a machine that works.
const DEADLINE: Duration = Duration::from_secs(60);

/// A directory with a config and a store of its own.
struct Home {
    dir: TempDir,
}

/// How a command ended.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ended {
    /// The objects that it printed.
    #[track_caller]
    fn objects(&self) -> Vec<Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{self:?}"))).collect()
    }

    #[track_caller]
    fn done(self) -> Self {
        self.ended(0)
    }

    #[track_caller]
    fn ended(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }

    #[track_caller]
    fn says(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "{text:?} is missing in {self:?}");
        self
    }
}

impl Home {
    /// One datastore of four shards, and this trigger's table, in TOML.
    fn with_trigger(trigger: &str) -> Self {
        Self::with(&format!(
            "[store]\nkind = \"embedded\"\n[datastores.trips]\nshards = 4\n[metrics]\nlisten = \"127.0.0.1:0\"\n\
             [worker]\nheartbeat = \"200ms\"\nsession = \"2s\"\ndrain_deadline = \"20s\"\n\
             [triggers.bill]\nsource = \"trips\"\n{trigger}"
        ))
    }

    fn with(config: &str) -> Self {
        let home = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(home.path("config")).unwrap();
        home.write(config);
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, config: &str) {
        fs::write(self.path("config/cellhook.toml"), config).unwrap();
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cellhook"));
        let path = std::env::var_os("PATH").unwrap_or_default();
        command.args(words).current_dir(self.dir.path()).env_clear().env("PATH", path);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, words: &[&str]) -> Ended {
        Self::ended(self.command(words).spawn().unwrap())
    }

    fn run_with(&self, words: &[&str], stdin: &str) -> Ended {
        let mut child = self.command(words).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
        Self::ended(child)
    }

    /// Nobody reads what it prints and says: both pipes are closed before it starts.
    fn unheard(&self, words: &[&str]) -> Child {
        let closed = || std::io::pipe().unwrap().1;
        self.command(words).stdout(closed()).stderr(closed()).spawn().unwrap()
    }

    fn ended(child: Child) -> Ended {
        let output = child.wait_with_output().unwrap();
        Ended {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn worker(&self) -> Worker {
        Worker::start(self.command(&["run"]))
    }

    /// Puts as soon as a worker has made the tables.
    #[track_caller]
    fn until_put(&self, words: &[&str]) {
        until(|| self.run(words).code == Some(0)).unwrap_or_else(|| panic!("{:?}", self.run(words)));
    }

    /// Asks with `--json` until the objects are as wanted.
    #[track_caller]
    fn until(&self, words: &[&str], wanted: impl Fn(&[Value]) -> bool) -> Vec<Value> {
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

/// Asks until it is so; `None` when that takes too long.
fn until(mut so: impl FnMut() -> bool) -> Option<()> {
    let start = std::time::SystemTime::now();
    while !so() {
        if start.elapsed().unwrap_or_default() > DEADLINE {
            return None;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Some(())
}

/// The exit code, once it has one.
fn exit_code(child: &mut Child) -> Option<i32> {
    let mut status = None;
    until(|| {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.and_then(|status| status.code())
}

/// A running `cellhook run`; killed when dropped.
struct Worker {
    child: Child,
    said: Arc<Mutex<String>>,
    listener: Option<JoinHandle<()>>,
}

impl Worker {
    fn start(mut command: Command) -> Self {
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

    fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    #[track_caller]
    fn hears(&self, text: &str) {
        until(|| self.said().contains(text)).unwrap_or_else(|| panic!("no {text:?} in {}", self.said()));
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn exit_code(&mut self) -> Option<i32> {
        exit_code(&mut self.child)
    }

    fn get(&self, page: &str) -> String {
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

const LOG: &str = "handler = { kind = \"log\" }\n";

/// A handler that runs a shell command for each cell.
fn shell(command: &str) -> String {
    format!("handler = {{ kind = \"command\", command = [\"sh\", \"-c\", {command:?}] }}\n")
}

fn lag_is_gone(shards: &[Value]) -> bool {
    shards.iter().all(|shard| shard["triggers"]["bill"]["lag_cells"] == 0)
}

#[test]
fn check_prints_the_effective_config_and_hides_secrets() {
    let home = Home::with_trigger(
        "[triggers.bill.handler]\nkind = \"exec\"\ncommand = [\"true\"]\nenv = { TOKEN = \"s3cret\" }\n",
    );
    let checked = home.run(&["check"]).done().says("config/cellhook.toml is good");
    assert!(checked.stdout.contains("shards = 4") && checked.stdout.contains("timeout = \"30s\""));
    assert!(checked.stdout.contains("TOKEN = \"***\"") && !checked.stdout.contains("s3cret"));
    let store = home.dir.path().canonicalize().unwrap().join("config/cellhook.db");
    let effective: Value = serde_json::from_str(&home.run(&["check", "--json"]).done().stdout).unwrap();
    assert_eq!(Path::new(effective["store"]["path"].as_str().unwrap()).file_name(), store.file_name());
    assert!(!store.exists(), "check starts nothing");
}

#[test]
fn a_wrong_config_is_told_with_line_and_suggestion() {
    let home = Home::with("[store]\nkind = \"embedded\"\ndurabilty = \"full\"\n");
    let told = "config/cellhook.toml:3: store.durabilty: unknown key `durabilty`; did you mean `durability`?";
    for verb in [&["check"][..], &["run"], &["shards"], &["get", "trips", "row"]] {
        home.run(verb).ended(2).says(told);
    }
    home.write("[worker]\nsession = \"1s\"\n");
    home.run(&["check"]).ended(2).says("config/cellhook.toml:2: worker.session: \"1s\" is under three heartbeats");
    home.write("group = \"a\"\n[triggers.t]\nsource = \"trips\"\norder = \"sideways\"\n");
    home.run(&["check"]).ended(2).says("config/cellhook.toml:4: triggers.t.order: unknown value `sideways`");
    let mut command = home.command(&["check"]);
    home.write("");
    let ended = Home::ended(command.env("CELLHOOK_GROUP", "Not A Name").spawn().unwrap());
    ended.ended(2).says("environment variable CELLHOOK_GROUP: group: \"Not A Name\" is not a name");
}

#[test]
fn a_filter_that_cannot_be_read_is_refused_before_anything_starts() {
    let home = Home::with_trigger(&format!("filter = \"data.body. >\"\n{LOG}"));
    home.run(&["check"]).ended(2).says("triggers.bill.filter");
    home.run(&["run"]).ended(2).says("triggers.bill.filter");
}

#[test]
fn no_config_tells_where_it_was_looked_for() {
    let home = Home { dir: tempfile::tempdir().unwrap() };
    home.run(&["check"]).ended(2).says("looked for ./config/cellhook.toml, /etc/cellhook/cellhook.toml");
    home.run(&["check", "--config", "none.toml"]).ended(2).says("config file none.toml cannot be read: No such file");
}

#[test]
fn every_verb_has_help_and_a_wrong_line_is_a_usage_error() {
    let home = Home::with("");
    let verbs = [
        "run",
        "init",
        "check",
        "put",
        "get",
        "tail",
        "trim",
        "shards",
        "workers",
        "parked",
        "triggers",
        "checkpoint",
        "bench",
    ];
    for verb in verbs {
        let help = home.run(&[verb, "--help"]).done();
        assert!(help.stdout.contains("Usage: cellhook"), "{help:?}");
        assert!(help.stdout.contains("\nExample") && help.stdout.contains(&format!("  cellhook {verb}")), "{help:?}");
    }
    for words in [["parked", "retry"], ["parked", "drop"], ["triggers", "pause"], ["triggers", "resume"]] {
        home.run(&[words[0], words[1], "--help"]).done();
    }
    for verb in ["show", "rewind", "skip"] {
        let help = home.run(&["checkpoint", verb, "--help"]).done().stdout;
        assert!(help.contains(&format!("Example:\n  cellhook checkpoint {verb}")), "{help}");
    }
    for verb in ["list", "show"] {
        let help = home.run(&["workers", verb, "--help"]).done().stdout;
        assert!(help.contains(&format!("Example:\n  cellhook workers {verb}")), "{help}");
    }
    let help = home.run(&["--help"]).done().stdout;
    assert!(verbs.iter().all(|verb| help.contains(verb)) && help.contains("Exit codes:"), "{help}");
    home.run(&[]).ended(2);
    home.run(&["fly"]).ended(2);
    home.run(&["put", "trips"]).ended(2);
    home.run(&["get", "trips"]).ended(2);
    home.run(&["get", "trips", "row", "--file", "x"]).ended(2);
    home.run(&["put", "Trips", "row", "C", "1"]).ended(2).says("is not a name");
    home.run(&["put", "trips", "row", "C", "1", "--ref", "9223372036854775808"]).ended(2);
}

#[test]
fn a_store_without_tables_names_them_and_the_command() {
    let home = Home::with_trigger(LOG);
    home.run(&["get", "trips", "row"]).ended(2).says("trips.cells").says("cellhook init");
    let made = home.run(&["init", "--json"]).done().objects();
    assert_eq!(made[0]["new"], true);
    assert_eq!(home.run(&["init", "--json"]).done().objects()[0]["new"], false);
    home.run(&["get", "trips", "row"]).ended(4).says("no cell");
    home.run(&["get", "copies", "row"]).ended(2).says("has no datastore copies; it has: trips");
    home.write("[store]\nkind = \"embedded\"\n[datastores.trips]\nshards = 8\n");
    home.run(&["get", "trips", "row"]).ended(2).says("made with 4 shards");
}

#[test]
fn a_store_out_of_reach_has_its_own_code() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let home = Home::with(&format!(
        "[store]\nkind = \"dynamodb\"\nendpoint = \"http://{nobody}\"\nregion = \"eu-central-1\"\n[datastores.trips]\n"
    ));
    home.run(&["shards"]).ended(5);
    let home = Home::with("[store]\nkind = \"embedded\"\npath = \"/proc/nowhere/x.db\"\n[datastores.trips]\n");
    home.run(&["shards"]).ended(5).says("/proc/nowhere");
}

#[test]
fn a_cell_that_is_put_can_be_got() {
    let home = Home::with_trigger(LOG);
    home.run(&["init"]).done();
    let put = home.run(&["put", "trips", "row", "BASE", "{\"fare\": 12}", "--json"]).done().objects();
    let (shard, added_id) = (put[0]["shard"].clone(), put[0]["added_id"].clone());
    let wanted =
        json!({"row_key": "row", "column": "BASE", "ref_key": 1, "shard": shard, "added_id": 1, "status": "new"});
    assert_eq!(put, [wanted]);
    assert_eq!(home.run(&["get", "trips", "row", "BASE"]).done().stdout, "{\"fare\": 12}\n");

    let next = home.run(&["put", "trips", "row", "BASE", "{\"fare\": 13}", "--json"]).done().objects();
    assert_eq!((&next[0]["ref_key"], &next[0]["added_id"]), (&json!(2), &json!(2)));
    let again = home.run(&["put", "trips", "row", "BASE", "{ \"fare\":12 }", "--ref", "1", "--json"]).done().objects();
    assert_eq!((&again[0]["status"], &again[0]["added_id"]), (&json!("repeated"), &added_id));
    let other = home.run(&["put", "trips", "row", "BASE", "0", "--ref", "1", "--json"]).ended(3).says("digest");
    assert_eq!(other.objects()[0]["status"], "conflict");
    home.run(&["put", "trips", "row", "BASE", "no json"]).ended(3).says("refused: body is not valid JSON");
    home.run(&["put", "trips", "row", "B#", "1"]).ended(3).says("contains '#'");
    home.run(&["put", "trips", "", "B", "1"]).ended(3).says("row_key has 0 bytes");

    let got = home.run(&["get", "trips", "row", "BASE", "--ref", "1", "--json"]).done().objects();
    let created_at = got[0]["created_at"].clone();
    assert!(created_at.is_i64());
    let wanted = json!({"row_key": "row", "column": "BASE", "ref_key": 1, "shard": shard, "added_id": 1,
        "created_at": created_at, "body": {"fare": 12}});
    assert_eq!(got, [wanted]);
    assert_eq!(home.run(&["get", "trips", "row", "--json"]).done().objects().len(), 2);
    assert_eq!(home.run(&["tail", "trips", "--json"]).done().objects()[0], got[0]);
    let shard = shard.to_string();
    let tail = ["tail", "trips", "--shard", &shard, "--json", "--from"];
    assert_eq!(home.run(&[&tail[..], &["2"]].concat()).done().objects()[0]["added_id"], 2);
    assert_eq!(home.run(&[&tail[..], &["newest"]].concat()).done().stdout, "");
    assert_eq!(home.run(&[&tail[..], &["1h"]].concat()).done().objects().len(), 2);
    home.run(&["tail", "trips", "--shard", "4"]).ended(2).says("its shards are 0 to 3");
    home.run(&["get", "trips", "row", "OTHER"]).ended(4);
    home.run(&["get", "trips", "row", "BASE", "--ref", "7"]).ended(4);
}

#[test]
fn a_bulk_file_goes_on_after_its_bad_lines() {
    let home = Home::with_trigger(LOG);
    home.run(&["init"]).done();
    let mut text = String::new();
    for i in 0..500 {
        text.push_str(&format!(
            "{{\"row_key\":\"row {}\",\"column\":\"NOTE\",\"ref_key\":{i},\"body\":{i}}}\n",
            i % 50
        ));
    }
    home.run_with(&["put", "trips", "--file", "-"], &text).done().says("500 new, 0 repeated, 0 in conflict, 0 refused");
    text.push_str("nonsense\n\n{\"row_key\":\"row 0\",\"column\":\"NOTE\",\"ref_key\":0,\"body\":true}\n");
    text.push_str(
        "{\"row_key\":\"row 0\",\"column\":\"#\",\"body\":1}\n{\"row_key\":\"row 0\",\"column\":\"NEXT\",\"body\":1}\n",
    );
    text.push_str("{\"row_key\":\"row 0\",\"column\":\"NEXT\",\"body\":2}");
    fs::write(home.path("cells.ndjson"), text).unwrap();
    let told = home.run(&["put", "trips", "--file", "cells.ndjson", "--json"]).ended(3);
    let told = told.says("2 new, 500 repeated, 1 in conflict, 2 refused").objects();
    assert_eq!(told.len(), 506);
    assert_eq!(told[505], json!({"new": 2, "repeated": 500, "conflict": 1, "refused": 2}));
    assert_eq!((&told[500]["line"], &told[500]["status"]), (&json!(501), &json!("refused")));
    assert_eq!((&told[501]["line"], &told[501]["status"]), (&json!(503), &json!("conflict")));
    assert_eq!((&told[503]["ref_key"], &told[504]["ref_key"]), (&json!(1), &json!(2)));
    let said = home.run(&["put", "trips", "--file", "cells.ndjson"]).ended(3);
    said.says("line 501: refused").says("line 503: conflict").says("line 504: refused");
    home.run(&["put", "trips", "--file", "none.ndjson"]).ended(2).says("none.ndjson cannot be read: No such file");
}

#[test]
fn cells_are_got_by_the_addresses_of_a_file() {
    let home = Home::with_trigger(LOG);
    home.run(&["init"]).done();
    let address = |i| json!({"row_key": format!("row {}", i % 7), "column": "NOTE", "ref_key": i});
    let lines = |lines: Vec<Value>| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    let with_body = |i: u64| {
        let mut cell = address(i);
        cell["body"] = json!({"i": i});
        cell
    };
    home.run_with(&["put", "trips", "--file", "-"], &lines((0..300).map(with_body).collect())).done();

    // What `tail` prints names the cells, and the same comes back in the order of the lines.
    let all = home.run(&["tail", "trips", "--json"]).done().stdout;
    let got = home.run_with(&["get", "trips", "--file", "-", "--json"], &all).done();
    assert_eq!(got.says("300 found, 0 absent, 0 refused").stdout, all);

    fs::write(home.path("some.ndjson"), lines([299, 300, 0, 299].map(address).to_vec())).unwrap();
    let got = home.run(&["get", "trips", "--file", "some.ndjson", "--json"]).ended(4).says("3 found, 1 absent");
    let got = got.objects();
    let ids: Vec<&Value> = got.iter().map(|line| &line["ref_key"]).collect();
    assert_eq!(ids, [299, 300, 0, 299]);
    assert_eq!(got[1], json!({"row_key": "row 6", "column": "NOTE", "ref_key": 300, "status": "absent"}));
    assert_eq!((&got[0]["body"], &got[3]), (&json!({"i": 299}), &got[0]));
    let got = home.run(&["get", "trips", "--file", "some.ndjson"]).ended(4);
    assert_eq!(got.says("line 2: absent: row 6 NOTE 300").stdout.lines().count(), 3);

    let wrong = "{\"row_key\":\"a\",\"column\":\"NOTE\"}\n{\"row_key\":\"a\",\"column\":\"#\",\"ref_key\":1}\n";
    let got = home.run_with(&["get", "trips", "--file", "-", "--json"], wrong).ended(3).objects();
    assert_eq!(got[0], json!({"line": 1, "status": "refused", "error": "missing field `ref_key` at column 31"}));
    assert_eq!((got.len(), &got[1]["status"]), (2, &json!("refused")));
    home.run(&["get", "trips", "--file", "none.ndjson"]).ended(2).says("none.ndjson cannot be read: No such file");
}

/// The log of 40 cells that are finished goes, that of 40 that are not stays; forced, that goes too, and the next worker
/// counts what it will never be called for.
#[test]
fn a_trim_keeps_what_is_not_finished_unless_it_is_forced() {
    let home = Home::with_trigger(LOG);
    let put = |from: u64| {
        let cell = |i| format!("{{\"row_key\":\"row {i}\",\"column\":\"NOTE\",\"ref_key\":{from},\"body\":{i}}}\n");
        let cells: String = (0..40).map(cell).collect();
        home.run_with(&["put", "trips", "--file", "-"], &cells).done().says("40 new");
    };
    let in_log = || home.run(&["tail", "trips"]).done().stdout.lines().count();
    let sum = |parts: &[Value], key: &str| parts.iter().map(|part| part[key].as_u64().unwrap()).sum::<u64>();
    let trim = ["trim", "trips", "--before", "2100-01-01T00:00:00Z", "--json"];
    let trim = |more: &[&str]| home.run(&[&trim[..], more].concat());

    let mut worker = home.worker();
    put(1);
    home.until(&["shards"], |shards| lag_is_gone(shards) && sum(shards, "tip") == 40);
    worker.signal(Signal::TERM);
    assert_eq!(worker.exit_code(), Some(0), "{}", worker.said());
    put(2);

    let parts = trim(&["--dry-run"]).done().says("would be deleted: the log of 40 cells of trips").objects();
    assert!(
        parts.iter().all(|part| part["kept_by"] == "bill of group default" && part["segments"].is_null()),
        "{parts:?}"
    );
    assert_eq!((parts.len(), sum(&parts, "trimmed_to"), sum(&parts, "to"), in_log()), (4, 0, 40, 80));
    trim(&[]).ended(2).says("Nobody can answer here: say --yes");
    assert_eq!(in_log(), 80);
    home.run(&["trim", "trips", "--before", "1d", "--yes", "--json"]).done().says("deleted: the log of 0 cells");
    trim(&["--before", "yesterday"]).ended(2);

    let parts = trim(&["--yes"]).done().says("deleted: the log of 40 cells of trips").objects();
    assert!(sum(&parts, "segments") >= 4, "{parts:?}");
    assert_eq!(in_log(), 40);
    home.run(&["get", "trips", "row 7", "NOTE", "--ref", "1"]).done();
    trim(&["--yes"]).done().says("the log of 0 cells");

    let parts = trim(&["--yes", "--force"]).done().says("deleted: the log of 40 cells of trips").objects();
    assert!(parts.iter().all(|part| part["kept_by"].is_null()), "{parts:?}");
    assert_eq!((sum(&parts, "to"), in_log()), (80, 0));
    let worker = home.worker();
    home.until(&["shards"], lag_is_gone);
    let counted = "cellhook_trimmed_cells_total{trigger=\"bill\"} 40";
    until(|| worker.get("/metrics").contains(counted)).unwrap_or_else(|| panic!("{}", worker.get("/metrics")));
    worker.hears("passed a trimmed part of the log");
}

/// A shard that only some datastores have leaves the others out.
#[test]
fn parked_cells_of_one_shard_are_listed_over_all_triggers() {
    let home = Home::with(&format!(
        "[store]\nkind = \"embedded\"\n[datastores.few]\nshards = 2\n[datastores.many]\nshards = 8\n[metrics]\nlisten = \"off\"\n\
         [triggers.a]\nsource = \"few\"\n{LOG}[triggers.b]\nsource = \"many\"\n{LOG}"
    ));
    home.run(&["init"]).done();
    assert_eq!(home.run(&["parked", "--shard", "9"]).done().stdout, "", "no trigger is registered yet");
    let _worker = home.worker();
    home.run(&["parked", "--shard", "7"]).done();
    home.run(&["parked", "--shard", "8"]).ended(2).says("there is no shard 8 of few, many");
    home.run(&["parked", "--shard", "7", "--trigger", "a"]).ended(2).says("there is no shard 7 of few");
    home.run(&["parked", "drop", "--shard", "7", "--trigger", "a"]).ended(2).says("there is no shard 7 of few");
}

/// Holds `docs/cli.md` to the code.
#[test]
fn the_objects_have_the_keys_that_are_written() {
    let table = include_str!("../docs/cli.md");
    let home = Home::with_trigger(&shell("exit 65"));
    let holds = |verb: &str, words: &[&str]| {
        let row = table.lines().find(|line| line.starts_with('|') && line.contains(&format!("`{verb}`"))).unwrap();
        let forms: Vec<Vec<&str>> = row
            .split('{')
            .skip(1)
            .map(|form| form.split('}').next().unwrap().split(", ").collect())
            .map(|mut keys: Vec<&str>| {
                keys.sort_unstable();
                keys
            })
            .collect();
        let objects = home.run(&[words, &["--json"]].concat()).objects();
        assert!(!objects.is_empty(), "{verb}");
        for object in objects {
            let keys: Vec<&str> =
                object.as_object().unwrap().keys().map(String::as_str).filter(|key| *key != "done").collect();
            assert!(forms.contains(&keys), "{verb}: {object} is none of {forms:?}");
        }
    };
    holds("init", &["init"]);
    let _worker = home.worker();
    holds("put", &["put", "trips", "row", "BASE", "1"]);
    fs::write(home.path("cells.ndjson"), "{\"row_key\":\"row\",\"column\":\"BASE\",\"ref_key\":1,\"body\":1}\n")
        .unwrap();
    holds("put --file", &["put", "trips", "--file", "cells.ndjson"]);
    holds("get", &["get", "trips", "row", "BASE"]);
    holds("tail", &["tail", "trips"]);
    fs::write(home.path("no.ndjson"), "{\"row_key\":\"no\",\"column\":\"BASE\",\"ref_key\":1}\nno\n").unwrap();
    holds("get --file", &["get", "trips", "--file", "no.ndjson"]);
    home.until(&["parked"], |parked| parked.len() == 1);
    holds("parked", &["parked"]);
    holds("parked", &["parked", "drop", "--trigger", "bill", "--all"]);
    holds("trim", &["trim", "trips", "--before", "2100-01-01T00:00:00Z", "--force", "--dry-run"]);
    holds("shards", &["shards"]);
    holds("triggers", &["triggers"]);
    holds("workers", &["workers"]);
    let id = home.run(&["workers", "--json"]).done().objects()[0]["id"].as_str().unwrap().to_owned();
    holds("workers show", &["workers", "show", &id]);
    holds("checkpoint show", &["checkpoint", "show", "bill"]);
    holds("checkpoint rewind", &["checkpoint", "rewind", "bill", "--to", "oldest", "--dry-run"]);
    holds("checkpoint skip", &["checkpoint", "skip", "bill", "--shard", "0", "--added-id", "99"]);
}

/// `cellhook put --file cells.ndjson --json | head -1` puts all of them.
#[test]
fn a_bulk_put_that_nobody_listens_to_is_finished() {
    let home = Home::with_trigger(LOG);
    home.run(&["init"]).done();
    let cell = |i| format!("{{\"row_key\":\"row {i}\",\"column\":\"NOTE\",\"ref_key\":1,\"body\":{i}}}\n");
    fs::write(home.path("cells.ndjson"), (0..3000).map(cell).collect::<String>()).unwrap();
    let mut put = home.unheard(&["put", "trips", "--file", "cells.ndjson", "--json"]);
    assert_eq!(exit_code(&mut put), Some(0));
    assert_eq!(home.run(&["tail", "trips"]).done().stdout.lines().count(), 3000);

    let bad = |i| format!("nonsense\n{}", cell(i));
    fs::write(home.path("cells.ndjson"), (2000..4000).map(bad).collect::<String>()).unwrap();
    let mut put = home.unheard(&["put", "trips", "--file", "cells.ndjson"]);
    assert_eq!(exit_code(&mut put), Some(3));
    assert_eq!(home.run(&["tail", "trips"]).done().stdout.lines().count(), 4000);
    assert_eq!(exit_code(&mut home.unheard(&["tail", "trips"])), Some(0), "what only reads has been read enough");
    assert_eq!(exit_code(&mut home.unheard(&["get", "trips", "none"])), Some(4));
}

#[test]
fn a_worker_that_nobody_listens_to_works() {
    let home = Home::with_trigger(&shell("touch called"));
    let mut worker = home.unheard(&["run"]);
    home.until_put(&["put", "trips", "row", "BASE", "1"]);
    until(|| home.path("called").exists()).expect("the handler is called");
    kill_process(Pid::from_child(&worker), Signal::TERM).unwrap();
    assert_eq!(exit_code(&mut worker), Some(0));
}

#[test]
fn a_worker_handles_what_is_put_and_leaves_at_a_signal() {
    let home = Home::with_trigger(&shell("cat >> out; echo >> out"));
    let mut worker = home.worker();
    worker.hears("this host only");
    for row in ["a", "b", "c"] {
        home.run(&["put", "trips", row, "BASE", "{\"fare\": 12}"]).done();
    }
    let shards = home.until(&["shards"], |shards| {
        lag_is_gone(shards) && shards.iter().map(|shard| shard["tip"].as_u64().unwrap()).sum::<u64>() == 3
    });
    assert_eq!(shards.len(), 4);
    assert!(shards.iter().all(|shard| shard["owner"].is_string() && shard["epoch"] == 1), "{shards:?}");
    let out = fs::read_to_string(home.path("out")).unwrap();
    let mut rows: Vec<String> = out
        .lines()
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["subject"].as_str().unwrap().into())
        .collect();
    rows.sort();
    assert_eq!(rows, ["a", "b", "c"]);

    until(|| worker.get("/readyz").starts_with("HTTP/1.1 200")).expect("it becomes ready");
    assert!(worker.get("/livez").contains("ok"));
    let lag = "cellhook_trigger_lag_cells{trigger=\"bill\"} 0";
    until(|| worker.get("/metrics").contains(lag)).unwrap_or_else(|| panic!("{}", worker.get("/metrics")));

    worker.signal(Signal::TERM);
    assert_eq!(worker.exit_code(), Some(0), "{}", worker.said());
    let shards = home.run(&["shards", "--json"]).done().objects();
    assert!(shards.iter().all(|shard| shard["owner"].is_null()), "handed over: {shards:?}");
}

#[test]
fn a_second_signal_leaves_at_once() {
    let home = Home::with_trigger(&shell("touch began; sleep 15"));
    let mut worker = home.worker();
    home.run(&["put", "trips", "row", "BASE", "1"]).done();
    until(|| home.path("began").exists()).expect("the handler is called");
    worker.signal(Signal::INT);
    worker.hears("stopping");
    worker.signal(Signal::TERM);
    assert_eq!(worker.exit_code(), Some(143), "{}", worker.said());
}

/// The daemon gives up on a call at the drain deadline; what is left of the call's own time holds nobody up.
#[test]
fn a_hung_child_does_not_outlive_the_drain_deadline_by_much() {
    let child = r#"echo '{"ready": {"protocol": 1, "concurrency": 1}}'; read -r event; touch began; exec sleep 1000"#;
    let home = Home::with_trigger(&format!(
        "timeout = \"90s\"\nhandler = {{ kind = \"exec\", command = [\"sh\", \"-c\", {child:?}] }}\n"
    ));
    let config = fs::read_to_string(home.path("config/cellhook.toml")).unwrap();
    home.write(&config.replace("drain_deadline = \"20s\"", "drain_deadline = \"1s\""));
    let mut worker = home.worker();
    home.run(&["put", "trips", "row", "BASE", "1"]).done();
    until(|| home.path("began").exists()).expect("the handler is called");
    worker.signal(Signal::TERM);
    // Within DEADLINE, which is shorter than the call's time.
    assert_eq!(worker.exit_code(), Some(0), "{}", worker.said());
}

#[test]
fn a_reload_changes_triggers_and_a_bad_file_changes_nothing() {
    let home = Home::with_trigger(&shell("echo one >> out"));
    let config = fs::read_to_string(home.path("config/cellhook.toml")).unwrap();
    let mut worker = home.worker();
    let out = |text: &str| fs::read_to_string(home.path("out")).is_ok_and(|out| out == text);
    home.run(&["put", "trips", "row", "BASE", "1"]).done();
    until(|| out("one\n")).expect("the first handler is called");

    home.write("[datastores.trips]\nshards = 4\n[trigers.bill]\n");
    worker.signal(Signal::HUP);
    worker.hears("the reload is refused; nothing changed");
    worker.hears("did you mean `triggers`?");
    home.write(&config);
    home.run(&["put", "trips", "row", "BASE", "2"]).done();
    until(|| out("one\none\n")).expect("the handler is called as before");

    let fresh = config.replace("echo one", "echo two").replace("[worker]", "[log]\nlevel = \"debug\"\n[worker]");
    home.write(&fresh);
    worker.signal(Signal::HUP);
    worker.hears("these changed too and take a restart");
    worker.hears("triggers reloaded");
    home.run(&["put", "trips", "row", "BASE", "3"]).done();
    until(|| out("one\none\ntwo\n")).expect("the new handler is called");
    worker.signal(Signal::TERM);
    assert_eq!(worker.exit_code(), Some(0), "{}", worker.said());
}

#[test]
fn a_dead_cell_is_listed_tried_again_and_given_up() {
    // 65 is the verdict dead-letter.
    let home = Home::with_trigger(&shell("test -e good || exit 65"));
    let _worker = home.worker();
    for row in ["c", "d", "e"] {
        home.run(&["put", "trips", row, "BASE", "1"]).done();
    }
    home.until(&["parked"], |parked| parked.len() == 3);
    // Nobody listens: all of them are given up all the same.
    assert_eq!(exit_code(&mut home.unheard(&["parked", "drop", "--trigger", "bill", "--all", "--json"])), Some(0));
    assert_eq!(home.run(&["parked"]).done().stdout, "");
    for row in ["a", "b"] {
        home.run(&["put", "trips", row, "BASE", "1"]).done();
    }
    let parked = home.until(&["parked"], |parked| parked.len() == 2);
    assert!(parked.iter().all(|parked| parked["state"] == "dead" && parked["trigger"] == "bill"), "{parked:?}");
    let of_row = |row: &str| parked.iter().find(|parked| parked["row_key"] == row).unwrap().clone();
    let list = home.run(&["parked", "list", "--trigger", "bill", "--state", "dead", "--row", "a", "--json"]).done();
    assert_eq!(list.objects(), [of_row("a")]);
    assert_eq!(home.run(&["parked", "--state", "retrying", "--json"]).done().objects(), [Value::Null; 0]);

    home.run(&["parked", "retry", "--trigger", "bill"]).ended(2).says("--all");
    home.run(&["parked", "retry", "--trigger", "bill", "--row", "none"]).ended(4);
    home.run(&["parked", "retry", "--trigger", "none", "--all"]).ended(4).says("known: bill");
    fs::write(home.path("good"), "").unwrap();
    home.run(&["parked", "retry", "--trigger", "bill", "--row", "a"]).done().says("1 retried");
    home.until(&["parked"], |parked| parked.len() == 1 && parked[0]["row_key"] == "b");
    let shard = of_row("b")["shard"].to_string();
    let place = ["--trigger", "bill", "--shard", &shard, "--added-id", &of_row("b")["added_id"].to_string()];
    home.run(&[&["parked", "drop"], &place[..]].concat()).done().says("1 dropped");
    assert_eq!(home.run(&["parked"]).done().stdout, "");
}

#[test]
fn a_paused_trigger_is_not_called_until_it_is_resumed() {
    let home = Home::with_trigger(&shell("echo called >> out"));
    let worker = home.worker();
    home.until(&["shards"], |shards| shards.iter().all(|shard| shard["triggers"]["bill"]["low_water"] == 0));
    let paused = home.run(&["triggers", "pause", "bill", "--reason", "the bank is closed", "--json"]).done().objects();
    assert_eq!((&paused[0]["state"], &paused[0]["reason"]), (&json!("paused"), &json!("the bank is closed")));
    assert_eq!(home.run(&["triggers", "--json"]).done().objects(), paused);
    until(|| worker.get("/readyz").contains("the bank is closed")).expect("the worker knows it");
    home.run(&["put", "trips", "row", "BASE", "1"]).done();
    let shards = home.run(&["shards", "--json"]).done().objects();
    assert!(!lag_is_gone(&shards) && !home.path("out").exists(), "{shards:?}");
    home.run(&["triggers", "resume", "bill"]).done();
    home.until(&["shards"], lag_is_gone);
    assert_eq!(fs::read_to_string(home.path("out")).unwrap(), "called\n");
    home.run(&["triggers", "pause", "none", "--reason", "x"]).ended(4);
}

#[test]
fn bench_prints_each_figure_and_leaves_nothing_behind() {
    let home = Home::with("");
    let place = home.path("place");
    let dir = place.to_str().unwrap();
    let small = ["bench", "--json", "--seconds", "1", "--cells", "2000", "--shards", "4", "--dir", dir];
    let only = ["--only", "append", "--only", "single", "--only", "catch-up", "--only", "exec", "--only", "python"];
    let figures = home.run(&[&small[..], &only[..]].concat()).done().objects();
    let value = |figure: &Value, key: &str| figure[key].as_f64().unwrap_or(0.0);
    assert_eq!(figures.len(), 7, "{figures:?}");
    for figure in &figures {
        assert!(value(figure, "value") > 0.0, "{figure}");
        assert!(figure["bare"].is_null() || value(figure, "ratio") > 0.0, "{figure}");
    }
    assert_eq!(fs::read_dir(place).unwrap().count(), 0);
}

fn sum(objects: &[Value], key: &str) -> u64 {
    objects.iter().map(|object| object[key].as_u64().unwrap_or_else(|| panic!("{key} of {object}"))).sum()
}

#[test]
fn a_rewound_trigger_is_called_again() {
    let home = Home::with_trigger(&shell("echo called >> out"));
    home.run(&["init"]).done();
    home.run(&["checkpoint", "show", "bill"]).ended(4).says("no trigger bill");
    let mut worker = home.worker();
    let cell = |i| format!("{{\"row_key\":\"row {i}\",\"column\":\"NOTE\",\"body\":{i}}}\n");
    home.run_with(&["put", "trips", "--file", "-"], &(0..10).map(cell).collect::<String>()).done();
    let show = ["checkpoint", "show", "bill"];
    let handled = |shards: &[Value]| {
        shards.iter().all(|shard| shard["lag_cells"] == 0 && shard["low_water"] == shard["tip"])
            && sum(shards, "tip") == 10
    };
    let calls = || fs::read_to_string(home.path("out")).unwrap_or_default().lines().count();
    let shards = home.until(&show, handled);
    assert_eq!((shards.len(), sum(&shards, "done_beyond"), sum(&shards, "epoch"), calls()), (4, 0, 4, 10));
    assert!(shards.iter().all(|shard| shard["owner"].is_string() && shard["paused"].is_null()), "{shards:?}");

    let rewind = ["checkpoint", "rewind", "bill", "--json"];
    let rewind = |more: &[&str]| home.run(&[&rewind[..], more].concat());
    rewind(&["--to", "oldest"]).ended(2).says("10 finished cells are called again").says("say --yes");
    let would = rewind(&["--to", "oldest", "--dry-run"]).done().says("would be done").objects();
    assert_eq!((sum(&would, "low_water"), sum(&would, "to"), &would[0]["status"]), (10, 0, &Value::Null));
    assert_eq!(home.until(&show, handled), shards, "nothing was changed");
    let done = rewind(&["--to", "oldest", "--yes"]).done().says("10 finished cells are called again").objects();
    assert!(done.iter().all(|shard| shard["status"] == "rewound" && shard["epoch"] == 2), "{done:?}");
    home.until(&show, |shards| handled(shards) && shards.iter().all(|shard| shard["owner"].is_string()));
    assert_eq!(calls(), 20);

    let full = shards.iter().find(|shard| shard["tip"].as_u64() >= Some(2)).unwrap();
    let (shard, tip) = (full["shard"].to_string(), full["tip"].as_u64().unwrap());
    rewind(&["--to", "2"]).ended(2).says("--shard");
    rewind(&["--to", "soon"]).ended(2);
    rewind(&["--to", "oldest", "--shard", "4"]).ended(2).says("its shards are 0 to 3");
    let above = (tip + 2).to_string();
    rewind(&["--to", &above, "--shard", &shard, "--yes"]).ended(3).says("the next cell to come is");
    rewind(&["--to", "2", "--shard", &shard, "--yes"]).done();
    home.until(&show, handled);
    let calls_then = 20 + usize::try_from(tip).unwrap() - 1;
    assert_eq!(calls(), calls_then);

    worker.signal(Signal::TERM);
    assert_eq!(worker.exit_code(), Some(0), "{}", worker.said());
    rewind(&["--to", "1h", "--yes"]).done();
    let shards = home.run(&[&show[..], &["--json"]].concat()).done().objects();
    assert_eq!((sum(&shards, "low_water"), sum(&shards, "lag_cells")), (0, 10));
    assert!(shards.iter().all(|shard| shard["owner"].is_null()), "{shards:?}");
    rewind(&["--to", "newest", "--yes"]).done().says("10 unfinished cells are never called");
    rewind(&["--to", "newest", "--yes"]).done().says("nothing to change");
    home.run(&["trim", "trips", "--before", "2100-01-01T00:00:00Z", "--yes"]).done();
    rewind(&["--to", "1", "--shard", &shard, "--yes"]).ended(3).says("its log was trimmed");
    let one = home.run(&["checkpoint", "show", "bill", "--shard", &shard, "--json"]).done().objects();
    assert_eq!((one.len(), &one[0]["low_water"]), (1, &json!(tip)));
    let _worker = home.worker();
    home.until(&show, |shards| shards.iter().all(|shard| shard["owner"].is_string() && shard["lag_cells"] == 0));
    assert_eq!(calls(), calls_then);
}

#[test]
fn a_skipped_cell_holds_up_nobody() {
    let home = Home::with_trigger(&format!(
        "timeout = \"90s\"\n{}",
        shell("e=$(cat); case $e in *hang*) echo hung >> out; sleep 1000;; *fail*) exit 1;; *dead*) exit 65;; esac")
    ));
    let mut worker = home.worker();
    let put = |row: &str| home.run(&["put", "trips", row, "BASE", "1", "--json"]).done().objects().remove(0);
    let bad = ["hang", "fail"].map(put);
    let dead = put("dead");
    for i in 0..20 {
        put(&format!("row {i}"));
    }
    home.until(&["parked"], |parked| parked.len() == 1);
    let show = ["checkpoint", "show", "bill"];
    home.until(&show, |shards| sum(shards, "lag_cells") == 2);
    assert!(home.path("out").exists());
    let skip = |cell: &Value, more: &[&str]| {
        let (shard, id) = (cell["shard"].to_string(), cell["added_id"].to_string());
        home.run(&[&["checkpoint", "skip", "bill", "--shard", &shard, "--added-id", &id, "--json"], more].concat())
    };
    skip(&bad[0], &[]).ended(2).says("say --yes");
    assert_eq!(skip(&bad[0], &["--dry-run"]).done().objects()[0]["status"], Value::Null);
    skip(&dead, &["--yes"]).ended(3).says("cellhook parked drop --trigger bill --shard");
    let far = json!({"shard": 0, "added_id": 999});
    assert_eq!(skip(&far, &["--yes"]).ended(3).says("there is no cell 999 yet").objects()[0]["status"], "refused");
    for cell in &bad {
        let skipped = skip(cell, &["--yes"]).done().objects();
        assert_eq!((&skipped[0]["status"], &skipped[0]["added_id"]), (&json!("skipped"), &cell["added_id"]));
    }
    home.until(&show, |shards| {
        shards.iter().all(|shard| shard["low_water"] == shard["tip"] && shard["owner"].is_string())
    });
    assert_eq!(skip(&bad[0], &["--yes"]).done().objects()[0]["status"], "unchanged");
    assert_eq!(fs::read_to_string(home.path("out")).unwrap(), "hung\n", "and it is not called again");
    worker.signal(Signal::TERM);
    assert_eq!(worker.exit_code(), Some(0), "{}", worker.said());
    let late = put("hang");
    assert_eq!(skip(&late, &["--yes"]).done().objects()[0]["to"], late["added_id"], "without a worker too");
}

#[test]
fn workers_are_listed_with_what_they_hold() {
    let home = Home::with_trigger(LOG);
    home.run(&["workers"]).ended(2).says("cellhook init");
    home.run(&["init"]).done();
    assert_eq!(home.run(&["workers"]).done().stdout, "");
    let mut worker = home.worker();
    let one = home.until(&["workers"], |workers| workers.len() == 1 && workers[0]["shards"] == 4).remove(0);
    assert_eq!(
        (&one["state"], &one["role"], &one["pid"]),
        (&json!("live"), &json!("worker"), &json!(worker.child.id()))
    );
    assert_eq!((&one["datastores"], &one["session_seconds"]), (&json!(["trips"]), &json!(2.0)));
    assert!(one["started_at"].as_u64() > Some(1_500_000_000_000) && one["leases"].is_null(), "{one}");
    home.until(&["workers"], |workers| workers[0]["beats"].as_u64() > one["beats"].as_u64());
    let id = one["id"].as_str().unwrap();
    for id in [id, &id[..6]] {
        let shown = home.run(&["workers", "show", id, "--json"]).done().objects().remove(0);
        assert_eq!((&shown["id"], &shown["leases"]), (&one["id"], &json!({"trips": {"0": 1, "1": 1, "2": 1, "3": 1}})));
    }
    assert!(home.run(&["workers", "list"]).done().stdout.contains(id));
    let shown = home.run(&["workers", "show", id]).done().stdout;
    assert!(shown.contains("SESSION") && shown.contains("\nDATASTORE") && shown.contains("trips"), "{shown}");
    home.run(&["workers", "show", "none"]).ended(4).says("no session none");

    let other = home.worker();
    home.until(&["workers"], |workers| workers.len() == 2 && sum(workers, "shards") == 4);
    home.run(&["workers", "show", ""]).ended(2).says("several sessions");
    drop(other);
    worker.signal(Signal::TERM);
    assert_eq!(worker.exit_code(), Some(0), "{}", worker.said());
    let all = home.run(&["workers", "--all", "--json"]).done().objects();
    let gone = all.iter().find(|session| session["id"] == one["id"]).unwrap();
    assert_eq!((all.len(), &gone["state"], &gone["shards"]), (2, &json!("dead"), &json!(0)));
    assert!(home.run(&["workers", "--json"]).done().objects().iter().all(|session| session["id"] != one["id"]));
}
