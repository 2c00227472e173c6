//! Triggers and their checkpoints in the hands of an operator.

use super::home::*;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;

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
