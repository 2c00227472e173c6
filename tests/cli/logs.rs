//! What a worker says on stderr at `info`.

use super::home::*;
use rustix::process::Signal;
use serde_json::Value;
use std::fs;

/// The lines of a JSON log that have this message.
fn told(said: &str, message: &str) -> Vec<Value> {
    let lines = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["message"] == message).collect()
}

fn in_json(home: Home) -> Home {
    let config = fs::read_to_string(home.path("config/cellhook.toml")).unwrap();
    home.write(&config.replace("[worker]", "[log]\nformat = \"json\"\n[worker]"));
    home
}

#[test]
fn every_change_of_an_owner_is_told_with_its_reason() {
    let home = in_json(Home::with_trigger(LOG));
    let mut first = home.worker();
    first.hears("took shards");
    let took = told(&first.said(), "took shards");
    let first_took = &took[0];
    assert_eq!((&first_took["datastore"], &first_took["reason"]), (&"trips".into(), &"new".into()), "{took:?}");
    let all: u64 = took.iter().map(|line| line["number"].as_u64().unwrap()).sum();
    assert_eq!(all, 4, "{took:?}");

    let second = home.worker();
    second.hears("took shards");
    first.hears("handed shards over");
    let gave = told(&first.said(), "handed shards over");
    assert_eq!(gave[0]["reason"], "the assignment gives them to another");
    let got = told(&second.said(), "took shards");
    assert_eq!(got[0]["reason"], "handed over", "{got:?}");
    assert!(gave[0]["shards"].is_string() && gave[0]["to"].is_string(), "{gave:?}");

    // One that is killed has no time for a word; the other says whose shards it takes.
    home.until(&["workers"], |workers| sum(workers, "shards") == 4 && workers.iter().all(|w| w["shards"] != 0));
    let workers = home.run(&["workers", "--json"]).done().objects();
    let dead = workers.iter().find(|worker| worker["pid"] == second.child.id()).unwrap()["id"].clone();
    second.signal(Signal::KILL);
    first.hears("owner dead");
    let took = told(&first.said(), "took shards");
    let last = took.last().unwrap();
    assert_eq!((&last["reason"], &last["from"]), (&"owner dead".into(), &dead), "{took:?}");

    first.signal(Signal::TERM);
    assert_eq!(first.exit_code(), Some(0), "{}", first.said());
    let gave = told(&first.said(), "handed shards over");
    assert_eq!(gave.last().unwrap()["reason"], "this worker leaves", "{gave:?}");

    // From the first line to the last.
    let said = first.said();
    let lines: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let (starting, pages) = (&lines[0], &lines[1]);
    assert!(
        starting["store"].as_str().unwrap().ends_with("config/cellhook.db (embedded, this host only)"),
        "{starting}"
    );
    assert_eq!((&starting["message"], &starting["config"]), (&"starting".into(), &"./config/cellhook.toml".into()));
    assert!(pages["url"].as_str().unwrap().ends_with("/metrics"), "{pages}");
    assert_eq!(lines.last().unwrap()["message"], "stopped");
}

#[test]
fn an_operator_who_takes_a_shard_is_told() {
    let home = in_json(Home::with_trigger(LOG));
    let worker = home.worker();
    home.run(&["put", "trips", "row", "BASE", "1"]).done();
    home.until(&["shards"], lag_is_gone);
    let event = told(&worker.said(), "event").remove(0);
    assert!(event["epoch"].is_u64() && event["ref_key"].is_u64(), "{event}");
    home.run(&["checkpoint", "rewind", "bill", "--to", "oldest", "--yes"]).done();
    worker.hears("lost shards");
    let lost = told(&worker.said(), "lost shards");
    assert!(lost[0]["reason"].is_string() && lost[0]["number"].as_u64() >= Some(1), "{lost:?}");
}

/// A line for each parked cell, with its address; none for the others, and no body in any.
#[test]
fn parked_cells_are_told_and_bodies_are_not() {
    let handler = r#"
import json, sys
print('{"ready": {"protocol": 1, "concurrency": 1}}', flush=True)
for line in sys.stdin:
    event = json.loads(line)["event"]
    answer = {"id": event["id"], "verdict": "done"}
    if event["subject"] == "dead":
        answer |= {"verdict": "dead_letter", "error": "e" * 5000}
    if event["subject"] == "later":
        answer |= {"verdict": "failed", "error": "not now", "retry_after_ms": 3600000}
    if event["subject"] == "echo":
        print(line, end="", flush=True)
    print(json.dumps(answer), flush=True)
"#;
    let home = in_json(Home::with_trigger(
        "filter = 'data.body.n > 0'\nhandler = { kind = \"exec\", command = [\"python3\", \"handler.py\"], env_pass = [\"PATH\"], env = { TOKEN = \"s3cret-token\" } }\n",
    ));
    fs::write(home.path("handler.py"), handler).unwrap();
    let mut worker = home.worker();
    let body = "{\"n\": 1, \"name\": \"s3cret-body\"}";
    for row in ["good", "dead", "later", "later", "echo"] {
        home.run(&["put", "trips", row, "BASE", body]).done();
    }
    // The filter fails on it, and its error would show the value.
    home.run(&["put", "trips", "odd", "BASE", "{\"n\": \"s3cret-body\"}"]).done();
    let parked = home.until(&["parked"], |parked| parked.len() == 4);
    home.until(&["shards"], lag_is_gone);
    worker.signal(Signal::TERM);
    assert_eq!(worker.exit_code(), Some(0), "{}", worker.said());
    let said = worker.said();
    assert!(!said.contains("s3cret"), "{said}");
    assert!(!said.contains("good"), "nothing of a cell that is done: {said}");

    let lines = |message: &str| told(&said, message);
    let dead = lines("parked as dead");
    let of_row = |row: &str| dead.iter().find(|line| line["row"] == row).unwrap_or_else(|| panic!("{row} in {dead:?}"));
    assert_eq!(dead.len(), 2, "{said}");
    let line = of_row("dead");
    assert_eq!((&line["column"], &line["attempts"]), (&"BASE".into(), &1.into()));
    assert_eq!(line["error"].as_str().unwrap().len(), 200, "cut");
    assert!(line["trigger"] == "bill" && line["shard"].is_string() && line["ref_key"].is_u64(), "{line}");
    assert_eq!(of_row("odd")["error"], "the filter fails on it");
    let retrying = lines("parked until it is tried again");
    assert_eq!((retrying.len(), &retrying[0]["row"], &retrying[0]["error"]), (1, &"later".into(), &"not now".into()));
    let waiting = lines("parked behind a retrying cell of its row");
    assert_eq!((waiting.len(), &waiting[0]["row"]), (1, &"later".into()), "{said}");
    assert_eq!(parked.len(), dead.len() + retrying.len() + waiting.len());
}

/// A child that never comes up is an error that comes again and again.
#[test]
fn an_error_that_comes_again_is_counted_and_not_repeated() {
    let home = in_json(Home::with_trigger(
        "handler = { kind = \"exec\", command = [\"sh\", \"-c\", \"exit 3\"], env_pass = [\"PATH\"] }\n",
    ));
    let mut worker = home.worker();
    let failed = |line: &str| {
        line.strip_prefix("cellhook_children_ended_total{reason=\"not_started\",trigger=\"bill\"} ").map(str::to_owned)
    };
    let times = || worker.get("/metrics").lines().find_map(failed).map_or(0, |n| n.parse::<u64>().unwrap());
    until(|| times() >= 3).expect("it is started again");
    worker.signal(Signal::TERM);
    assert_eq!(worker.exit_code(), Some(0), "{}", worker.said());
    let said = worker.said();
    let errors = told(&said, "child could not be started; tried again after a rest");
    assert_eq!(errors.len(), 1, "{said}");
    assert_eq!((&errors[0]["trigger"], &errors[0]["child"]), (&"bill".into(), &0.into()), "as in the lines of cells");
    let more = told(&said, "the same came more often");
    let child =
        more.iter().find(|line| line["error"].as_str().unwrap().contains("child could not be started")).unwrap();
    assert!(child["repeated"].as_u64() >= Some(2), "{said}");
}
