//! What a worker shows: metrics, health pages, and the alert rules over them.

use super::home::*;
use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Answers by the row: done, dead, or failed for an hour.
const HANDLER: &str = r#"
import json, sys
print('{"ready": {"protocol": 1, "concurrency": 8}}', flush=True)
for line in sys.stdin:
    event = json.loads(line)["event"]
    answer = {"id": event["id"], "verdict": "done"}
    if event["subject"].startswith("dead"):
        answer |= {"verdict": "dead_letter", "error": "no such rider"}
    if event["subject"].startswith("later"):
        answer |= {"verdict": "failed", "error": "try later", "retry_after_ms": 3600000}
    print(json.dumps(answer), flush=True)
"#;

/// A home whose trigger `bill` is called by [`HANDLER`], with metrics of each shard.
fn home() -> Home {
    let home = Home::with_trigger(
        "handler = { kind = \"exec\", command = [\"python3\", \"handler.py\"], env_pass = [\"PATH\"] }\n",
    );
    fs::write(home.path("handler.py"), HANDLER).unwrap();
    let config = fs::read_to_string(home.path("config/cellhook.toml")).unwrap();
    home.write(&config.replace("listen = \"127.0.0.1:0\"", "listen = \"127.0.0.1:0\"\nper_shard = true"));
    home
}

fn project(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(file)
}

/// The metrics of a worker, without the answer's head.
fn scrape(worker: &Worker) -> String {
    worker.get("/metrics").split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// Waits until the page has all these lines.
#[track_caller]
fn shows(worker: &Worker, lines: &[&str]) {
    let missing = || {
        let page = scrape(worker);
        lines.iter().find(|line| !page.lines().any(|shown| shown == **line)).map(|line| (*line, page))
    };
    until(|| missing().is_none()).unwrap_or_else(|| panic!("{:?}", missing()));
}

fn page(worker: &Worker, path: &str) -> (bool, Value) {
    let answer = worker.get(path);
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    (answer.starts_with("HTTP/1.1 200"), serde_json::from_str(body).unwrap_or_else(|_| panic!("{answer}")))
}

/// `promtool`, or said aloud that it is not there; with `HOOKTEST_REQUIRE_ALL=1` that is a failure.
fn promtool(words: &[&str], stdin: &str) -> Option<String> {
    let spawned = Command::new("promtool")
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = spawned else {
        let text = "SKIPPED: there is no promtool. Install it with: tests/install-tools.sh";
        assert!(std::env::var_os("HOOKTEST_REQUIRE_ALL").is_none_or(|all| all != "1"), "{text}");
        // Past the capture of the test harness, which would swallow it.
        let _ = writeln!(std::io::stderr(), "{text}");
        return None;
    };
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "promtool {words:?}: {said}\n{stdin}");
    Some(said)
}

/// A worker that has done, parked and buried cells shows every metric that there is, and Prometheus's own tool has nothing to
/// say about them.
#[test]
fn a_busy_worker_shows_every_metric_and_promtool_is_silent() {
    let home = home();
    let worker = home.worker();
    for row in ["a", "b", "c", "dead-1", "dead-2", "later"] {
        home.run(&["put", "trips", row, "BASE", "{\"fare\": 12}"]).done();
    }
    shows(
        &worker,
        &[
            "cellhook_attempts_total{trigger=\"bill\",verdict=\"done\"} 3",
            "cellhook_handler_duration_seconds_count{trigger=\"bill\"} 6",
            "cellhook_calls_in_flight{trigger=\"bill\"} 0",
            "cellhook_parked_cells{state=\"dead\",trigger=\"bill\"} 2",
            "cellhook_parked_cells{state=\"retrying\",trigger=\"bill\"} 1",
            "cellhook_trigger_lag_cells{trigger=\"bill\"} 0",
            "cellhook_breaker_state{state=\"closed\",trigger=\"bill\"} 1",
            "cellhook_trigger_paused{trigger=\"bill\"} 0",
            "cellhook_checkpoint_age_seconds{trigger=\"bill\"} 0",
            "cellhook_shards_held 4",
            "cellhook_shards_wanted 4",
            "cellhook_shards_unowned 0",
            "cellhook_sessions_live 1",
            "cellhook_heartbeat_margin_limit_seconds 1.8",
            "cellhook_shards_claimed_total{reason=\"new\"} 4",
        ],
    );
    let page = scrape(&worker);
    let shown: BTreeSet<&str> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE cellhook_")?.split(' ').next()).collect();
    let all: BTreeSet<&str> = cellhook::metrics::families().iter().map(|family| family.name).collect();
    assert_eq!(shown, all);
    let value = |line: &str| -> f64 {
        let found = page.lines().find_map(|shown| shown.strip_prefix(line)?.strip_prefix(' '));
        found.unwrap_or_else(|| panic!("{line} in {page}")).parse().unwrap()
    };
    let sum = |metric: &str| -> f64 {
        let lines = page.lines().filter(|line| line.starts_with(&format!("{metric}{{")));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    };
    assert!(value("cellhook_parked_oldest_age_seconds{state=\"dead\",trigger=\"bill\"}") > 0.0);
    assert!((0.1..=1.8).contains(&value("cellhook_heartbeat_margin_min_seconds")), "{page}");
    assert!(sum("cellhook_shard_parked_cells") == 3.0 && sum("cellhook_shard_lag_cells") == 0.0);
    let writes = "{operation=\"TransactWriteItems\",table=\"default.control\"}";
    assert!(
        value(&format!("cellhook_dynamodb_consumed_write_units_total{writes}")) >= 2.0,
        "checkpoints of parked cells"
    );
    assert!(value("cellhook_memory_limit_bytes{part=\"reads\"}") == 32_000_000.0, "a quarter of 128 MB");
    if let Some(said) = promtool(&["check", "metrics"], &page) {
        assert_eq!(said, "", "{page}");
    }

    // What an operator drops is no longer there.
    home.run(&["parked", "drop", "--trigger", "bill", "--all", "--yes"]).done();
    shows(
        &worker,
        &[
            "cellhook_parked_cells{state=\"dead\",trigger=\"bill\"} 0",
            "cellhook_parked_cells{state=\"retrying\",trigger=\"bill\"} 0",
            "cellhook_parked_oldest_age_seconds{state=\"dead\",trigger=\"bill\"} 0",
        ],
    );
}

/// Its cells are counted and their age is told although nobody reads them here; so are pauses.
#[test]
fn a_trigger_that_the_config_lacks_is_behind_and_missing() {
    let two = format!("{LOG}[triggers.mail]\nsource = \"trips\"\n{LOG}");
    let home = Home::with_trigger(&two);
    let mut worker = home.worker();
    home.run(&["put", "trips", "a", "BASE", "1"]).done();
    shows(&worker, &["cellhook_attempts_total{trigger=\"mail\",verdict=\"done\"} 1"]);
    worker.signal(rustix::process::Signal::TERM);
    assert_eq!(worker.exit_code(), Some(0), "{}", worker.said());

    let config = fs::read_to_string(home.path("config/cellhook.toml")).unwrap();
    home.write(config.split("[triggers.mail]").next().unwrap());
    let worker = home.worker();
    for row in ["b", "c", "d"] {
        home.run(&["put", "trips", row, "BASE", "1"]).done();
    }
    home.run(&["triggers", "pause", "mail", "--reason", "holiday"]).done();
    shows(
        &worker,
        &[
            "cellhook_trigger_lag_cells{trigger=\"mail\"} 3",
            "cellhook_trigger_lag_cells{trigger=\"bill\"} 0",
            "cellhook_trigger_missing{trigger=\"mail\"} 1",
            "cellhook_trigger_missing{trigger=\"bill\"} 0",
            "cellhook_trigger_paused{trigger=\"mail\"} 1",
        ],
    );
    let aged = |line: &str| line.strip_prefix("cellhook_trigger_lag_seconds{trigger=\"mail\"} ").map(str::to_owned);
    until(|| scrape(&worker).lines().find_map(aged).is_some_and(|age| age.parse::<f64>().unwrap() > 0.0))
        .expect("the log is asked how old they are");
    assert!(!scrape(&worker).contains("cellhook_parked_cells{state=\"dead\",trigger=\"mail\"}"), "nobody here knows");
    // Not for a deploy's time, but from the start.
    let (ready, told) = page(&worker, "/readyz");
    assert!(ready && told["paused"]["mail"] == "holiday" && told["missing_triggers"] == json!([]), "{told}");
}

/// The pages say what `docs/operations.md` says that they say.
#[test]
fn the_health_pages_have_the_documented_keys() {
    let home = Home::with_trigger(LOG);
    let worker = home.worker();
    until(|| page(&worker, "/readyz").0).unwrap_or_else(|| panic!("{:?}", page(&worker, "/readyz")));
    let docs = fs::read_to_string(project("docs/operations.md")).unwrap();
    for path in ["/livez", "/readyz"] {
        let table = docs.split(&format!("\n`{path}` ")).nth(1).unwrap();
        let rows = table.lines().skip_while(|line| !line.starts_with("| `")).take_while(|line| line.starts_with("| `"));
        let documented: BTreeSet<&str> = rows
            .flat_map(|row| row.split('|').nth(1).unwrap().split(',').map(|key| key.trim().trim_matches('`')))
            .collect();
        let (good, told) = page(&worker, path);
        let keys: BTreeSet<&str> = told.as_object().unwrap().keys().map(String::as_str).collect();
        assert!(good && keys == documented, "{told} has not {documented:?}");
    }
    let (_, ready) = page(&worker, "/readyz");
    assert_eq!((&ready["shards_held"], &ready["shards_wanted"], &ready["workers"]), (&json!(4), &json!(4), &json!(1)));
    let (_, live) = page(&worker, "/livez");
    assert!(live["live"] == true && live["turned_seconds_ago"].as_f64().unwrap() < 10.0, "{live}");
}

/// Who cannot be sure of its session calls nobody, and says so.
#[test]
fn a_worker_without_heartbeats_is_not_ready() {
    let home = Home::with_trigger(LOG);
    let worker = home.worker();
    until(|| page(&worker, "/readyz").0).unwrap_or_else(|| panic!("{:?}", page(&worker, "/readyz")));
    let lock = fs::File::options().read(true).write(true).open(home.path("config/cellhook.db.lock")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let refused = || Some(page(&worker, "/readyz").1).filter(|told| told["ready"] == false);
    until(|| refused().is_some_and(|told| told["heartbeat_margin_seconds"] == 0.0 && told["shards_held"] == 4))
        .unwrap_or_else(|| panic!("{:?}", page(&worker, "/readyz")));
    drop(lock);
    until(|| page(&worker, "/readyz").0).unwrap_or_else(|| panic!("{:?}", page(&worker, "/readyz")));
}

/// Each rule fires when it should and does not when it should not, and names a paragraph that is there.
#[test]
fn alert_rules_hold_and_name_their_paragraphs() {
    let rules = fs::read_to_string(project("config/alerts.yml")).unwrap();
    let tests = fs::read_to_string(project("tests/alerts_test.yml")).unwrap();
    let docs = fs::read_to_string(project("docs/operations.md")).unwrap();
    let anchor = |heading: &str| heading.to_lowercase().replace(' ', "-");
    let anchors: BTreeSet<String> = docs
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .map(|heading| format!("docs/operations.md#{}", anchor(heading)))
        .collect();
    let mut named = BTreeMap::new();
    for rule in rules.split("- alert: ").skip(1) {
        let name = rule.lines().next().unwrap();
        let url = rule.split("runbook_url: ").nth(1).unwrap().lines().next().unwrap();
        let paragraph = url.split_once("/blob/main/").unwrap().1;
        assert!(anchors.contains(paragraph), "{name}: {paragraph} is none of {anchors:?}");
        for needed in ["severity: ", "summary: ", "description: "] {
            assert!(rule.contains(needed), "{name} has no {needed}");
        }
        let cases: Vec<&str> = tests.split(&format!("alertname: {name}\n")).skip(1).collect();
        assert!(
            cases.iter().any(|case| case.trim_start().starts_with("exp_alerts: []")),
            "{name}: when it does not fire"
        );
        assert!(cases.iter().any(|case| case.trim_start().starts_with("exp_alerts:\n")), "{name}: when it fires");
        named.insert(paragraph.to_owned(), name.to_owned());
    }
    assert_eq!(named.keys().cloned().collect::<BTreeSet<_>>(), anchors, "each paragraph belongs to a rule");
    // A metric that a rule names exists.
    for word in rules.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| word.starts_with("cellhook_")) {
        let known = cellhook::metrics::families().iter().any(|family| word == format!("cellhook_{}", family.name));
        assert!(known, "{word}");
    }
    let file = |file: &str| project(file).display().to_string();
    if promtool(&["check", "rules", &file("config/alerts.yml")], "").is_some() {
        promtool(&["test", "rules", &file("tests/alerts_test.yml")], "");
    }
}
