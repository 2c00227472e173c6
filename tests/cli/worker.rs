//! The life of a worker, as its user sees it.

use super::home::*;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::fs;

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
    worker.hears("config/cellhook.db (embedded, this host only)");
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
    assert!(worker.get("/livez").contains("\"live\":true"));
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
fn workers_are_listed_with_what_they_hold() {
    let home = Home::with_trigger(LOG);
    home.run(&["workers"]).ended(2).says("cellhook init");
    home.run(&["init"]).done();
    let nobody = home.run(&["workers"]).done().says("no worker is there: `cellhook run` starts one");
    assert_eq!(nobody.stdout, "");
    home.run(&["triggers"]).done().says("no trigger is registered");
    let mut worker = home.worker();
    let one = home.until(&["workers"], |workers| workers.len() == 1 && workers[0]["shards"] == 4).remove(0);
    assert_eq!(
        (&one["state"], &one["role"], &one["pid"]),
        (&json!("live"), &json!("worker"), &json!(worker.child.id()))
    );
    assert_eq!((&one["datastores"], &one["session_seconds"]), (&json!(["trips"]), &json!(2.0)));
    assert!(one["started_at"].as_u64() > Some(1_500_000_000_000) && one["leases"].is_null(), "{one}");
    home.until(&["workers"], |workers| workers[0]["beats"].as_u64() > one["beats"].as_u64());
    assert!(one["beat_age_seconds"].as_f64() < Some(3600.0), "{one}");
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
