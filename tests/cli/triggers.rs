//! Triggers and their checkpoints in the hands of an operator.

use super::home::*;
use cellhook::{
    cell::Name,
    store::{Config, Store},
};
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
    let listed = home.run(&["triggers", "--json"]).done().objects().remove(0);
    assert_eq!((&listed["state"], &listed["reason"]), (&paused[0]["state"], &paused[0]["reason"]));
    assert_eq!(listed["paused_shards"], 0, "all of it is");
    until(|| worker.get("/readyz").contains("the bank is closed")).expect("the worker knows it");
    assert!(!worker.get("/readyz").contains("bill on trips"), "once, and not for each shard");
    home.run(&["put", "trips", "row", "BASE", "1"]).done();
    let shards = home.run(&["shards", "--json"]).done().objects();
    assert!(!lag_is_gone(&shards) && !home.path("out").exists(), "{shards:?}");
    home.run(&["triggers", "resume", "bill"]).done();
    home.until(&["shards"], lag_is_gone);
    assert_eq!(fs::read_to_string(home.path("out")).unwrap(), "called\n");
    home.run(&["triggers", "pause", "none", "--reason", "x"]).ended(4);
    home.run(&["triggers", "pause", "bill", "--reason", " "]).ended(2).says("whoever looks wants to know why");
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
    rewind(&["--to", "soon"]).ended(2).says("it must be oldest, newest, an added ID, a time such as");
    // Not the same as `newest`, which gives up a backlog.
    rewind(&["--to", "2100-01-01T00:00:00Z", "--yes"]).ended(2).says("it is still to come");
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
    home.run(&["trim", "trips", "--before", "0s", "--yes"]).done();
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

/// The config of [`Home::with_trigger`] with the trigger under these names.
fn config_of(triggers: &[(&str, &str)]) -> String {
    let tables = triggers.iter().map(|(name, trigger)| format!("[triggers.{name}]\nsource = \"trips\"\n{trigger}"));
    format!(
        "[store]\nkind = \"embedded\"\n[datastores.trips]\nshards = 4\n[metrics]\nlisten = \"127.0.0.1:0\"\n\
         [worker]\nheartbeat = \"200ms\"\nsession = \"2s\"\ndrain_deadline = \"20s\"\n{}",
        tables.collect::<String>()
    )
}

/// A handler that leaves a line for each call in a file.
fn counting() -> String {
    shell("echo called >> out")
}

fn calls(home: &Home) -> usize {
    fs::read_to_string(home.path("out")).unwrap_or_default().lines().count()
}

/// Rows that fall on each of the four shards.
fn put_rows(home: &Home, from: usize, to: usize) {
    let cell = |i| format!("{{\"row_key\":\"row {i}\",\"column\":\"NOTE\",\"body\":{i}}}\n");
    home.run_with(&["put", "trips", "--file", "-"], &(from..to).map(cell).collect::<String>()).done();
}

#[test]
fn one_shard_is_paused_and_resumed_by_itself() {
    let home = Home::with_trigger(&counting());
    home.run(&["init"]).done();
    home.run(&["triggers", "pause", "bill", "--shard", "0", "--reason", "x"]).ended(4).says("no trigger bill");
    let mut worker = home.worker();
    put_rows(&home, 0, 20);
    home.until(&["shards"], lag_is_gone);
    home.until(&["shards"], |_| calls(&home) == 20);
    let show = |home: &Home| home.run(&["triggers", "show", "bill", "--json"]).done().objects().remove(0);
    let shards = |shown: &Value| shown["shards"].as_array().unwrap().clone();
    let held =
        |shards: &[Value]| shards[0]["shards"].as_array().unwrap().iter().all(|shard| shard["owner"].is_string());
    for shard in ["1", "2"] {
        let words = ["triggers", "pause", "bill", "--shard", shard, "--reason", "bad rows", "--json"];
        assert_eq!(home.run(&words).done().objects()[0]["status"], "paused");
        assert_eq!(home.run(&words).done().objects()[0]["status"], "unchanged");
    }
    home.until(&["triggers", "show", "bill"], held);
    let shown = show(&home);
    assert_eq!((&shown["state"], &shown["reason"], &shown["started"]), (&json!("active"), &Value::Null, &Value::Null));
    let paused: Vec<Value> = shards(&shown).iter().map(|shard| shard["paused"].clone()).collect();
    assert_eq!(paused, [Value::Null, json!("bad rows"), json!("bad rows"), Value::Null]);
    assert_eq!(home.run(&["triggers", "--json"]).done().objects()[0]["paused_shards"], 2);
    let listed = home.run(&["triggers"]).done().stdout;
    assert!(listed.contains("active, paused on 2 shards"), "{listed}");
    put_rows(&home, 20, 60);
    let lags = |shards: &[Value]| -> Vec<u64> {
        let shards = shards[0]["shards"].as_array().unwrap();
        shards.iter().map(|shard| shard["lag_cells"].as_u64().unwrap()).collect()
    };
    let behind = |lags: &[u64]| lags[0] == 0 && lags[3] == 0 && lags[1] > 0 && lags[2] > 0;
    let shown = home.until(&["triggers", "show", "bill"], |shown| behind(&lags(shown)));
    let lag: u64 = lags(&shown).iter().sum();
    home.until(&["shards"], |_| calls(&home) == 60 - usize::try_from(lag).unwrap());
    until(|| worker.get("/readyz").contains("bad rows")).expect("the worker knows it");
    let text = home.run(&["triggers", "show", "bill"]).done().stdout;
    assert!(text.contains(&format!("2 paused, 0 not started; lag {lag} cells")) && text.contains("bad rows"), "{text}");

    // Without a worker too, and the other one's pause goes on.
    worker.signal(Signal::TERM);
    assert_eq!(worker.exit_code(), Some(0), "{}", worker.said());
    let resume = |shard: &str| home.run(&["triggers", "resume", "bill", "--shard", shard, "--json"]);
    assert_eq!(resume("1").done().objects()[0]["status"], "resumed");
    assert_eq!(resume("1").done().objects()[0]["status"], "unchanged");
    resume("9").ended(2).says("its shards are 0 to 3");
    let _worker = home.worker();
    let wanted = |lags: &[u64]| lags[1] == 0 && lags[2] > 0;
    home.until(&["triggers", "show", "bill"], |shown| held(shown) && wanted(&lags(shown)));
    // A resume of the whole trigger ends the pauses of its shards.
    home.run(&["triggers", "pause", "bill", "--reason", "all of it"]).done();
    resume("2").done().says("the whole trigger is still paused: all of it");
    let again = ["triggers", "pause", "bill", "--shard", "2", "--reason", "again"];
    home.run(&again).done();
    home.run(&["triggers", "resume", "bill"]).done();
    home.until(&["shards"], lag_is_gone);
    home.until(&["shards"], |_| calls(&home) == 60);
    assert!(shards(&show(&home)).iter().all(|shard| shard["paused"].is_null()));
    home.run(&["triggers", "show", "none"]).ended(4);
}

#[test]
fn a_renamed_trigger_goes_on_whatever_name_the_config_says() {
    let home = Home::with(&config_of(&[("bill", &counting())]));
    let worker = home.worker();
    put_rows(&home, 0, 10);
    home.until(&["shards"], |_| calls(&home) == 10);
    let id = home.run(&["triggers", "--json"]).done().objects()[0]["id"].clone();
    home.run(&["triggers", "rename", "bill", "bill"]).ended(2);
    home.run(&["triggers", "rename", "none", "charge"]).ended(4);
    let renamed = home.run(&["triggers", "rename", "bill", "charge", "--json"]).done().says("says bill").objects();
    let wanted = (&json!("charge"), &id, &json!(["bill"]));
    assert_eq!((&renamed[0]["name"], &renamed[0]["id"], &renamed[0]["formerly"]), wanted);
    assert_eq!(
        home.run(&["triggers", "rename", "bill", "charge", "--json"]).done().objects(),
        renamed,
        "once is enough"
    );
    home.run(&["triggers", "rename", "bill", "other"]).ended(2).says("it is charge by now");
    worker.hears("this trigger was renamed");
    put_rows(&home, 10, 20);
    home.until(&["checkpoint", "show", "charge"], |shards| sum(shards, "lag_cells") == 0);
    home.until(&["shards"], |_| calls(&home) == 20);
    assert!(worker.get("/readyz").starts_with("HTTP/1.1 200"), "{}", worker.get("/readyz"));
    // Killed, and started with the old name: it is the same trigger.
    drop(worker);
    let mut worker = home.worker();
    worker.hears("this trigger was renamed");
    put_rows(&home, 20, 30);
    home.until(&["checkpoint", "show", "bill"], |shards| sum(shards, "lag_cells") == 0);
    worker.signal(Signal::TERM);
    assert_eq!(worker.exit_code(), Some(0), "{}", worker.said());
    assert!(calls(&home) == 30, "{} calls", calls(&home));
    home.write(&config_of(&[("bill", LOG), ("charge", LOG)]));
    home.run(&["run"]).ended(2).says("trigger bill was renamed to charge, and the config has both");
    home.write(&config_of(&[("charge", &counting()), ("late", LOG)]));
    let _worker = home.worker();
    home.until(&["triggers"], |triggers| triggers.len() == 2);
    home.run(&["triggers", "rename", "charge", "late"]).ended(3).says("there is a trigger late already");
    home.run(&["triggers", "rename", "late", "bill"]).ended(3).says("bill is a former name of charge");
    put_rows(&home, 30, 40);
    home.until(&["checkpoint", "show", "charge"], |shards| sum(shards, "lag_cells") == 0);
    home.until(&["shards"], |_| calls(&home) == 40);

    // The old name is given up by itself.
    home.run(&["triggers", "retire", "bill"]).ended(2).says("say --yes");
    home.run(&["triggers", "retire", "bill", "--dry-run"]).done().says("would be done: bill is free then");
    let freed = home.run(&["triggers", "retire", "bill", "--yes", "--json"]).done().says("charge goes on").objects();
    assert_eq!((&freed[0]["name"], &freed[0]["status"]), (&json!("bill"), &json!("freed")));
    let triggers = home.run(&["triggers", "--json"]).done().objects();
    assert_eq!((&triggers[0]["id"], &triggers[0]["formerly"]), (&id, &json!([])));
    home.run(&["triggers", "show", "bill"]).ended(4);
}

/// Its workers park on until they hear of it.
#[test]
fn nothing_of_a_trigger_that_is_retired_at_work_is_left_behind() {
    let home = Home::with(&config_of(&[("bad", &shell("exit 65"))]));
    let _worker = home.worker();
    put_rows(&home, 0, 400);
    home.until(&["parked"], |parked| parked.len() >= 20);
    home.run(&["triggers", "retire", "bad", "--force", "--drop-parked", "--yes"]).done();
    home.run(&["verify", "--yes"]).done();
    // Neither in the leases, which everybody reads all the time.
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(async {
        let config = Config { path: home.path("config/cellhook.db"), ..Config::default() };
        let ledger = Store::open(&config).await.unwrap().ledger(&Name::new("default").unwrap()).await.unwrap();
        let leases = ledger.leases(&Name::new("trips").unwrap()).await.unwrap();
        assert!(!leases.is_empty() && leases.iter().all(|lease| lease.checkpoints.is_empty()), "{leases:?}");
    });
}

#[test]
fn a_retired_trigger_is_over() {
    let home = Home::with(&config_of(&[("bill", &counting()), ("bad", &shell("exit 65"))]));
    let worker = home.worker();
    put_rows(&home, 0, 20);
    home.until(&["parked"], |parked| parked.len() == 20);
    home.until(&["shards"], |_| calls(&home) == 20);
    let retire = |more: &[&str]| home.run(&[&["triggers", "retire", "bad", "--json"], more].concat());
    retire(&["--yes"]).ended(2).says("still names bad").says("--force");
    home.write(&config_of(&[("bill", &counting())]));
    let refused = retire(&["--yes"]).ended(3).says("20 cells of it lie parked").objects();
    assert_eq!((&refused[0]["status"], &refused[0]["parked"]["dead"]), (&json!("refused"), &json!(20)));
    retire(&["--drop-parked"]).ended(2).says("say --yes");
    let would =
        retire(&["--drop-parked", "--dry-run"]).done().says("would be done: bad is never called again").objects();
    assert_eq!((&would[0]["status"], &would[0]["lag_cells"]), (&Value::Null, &json!(0)));
    assert_eq!(home.run(&["parked", "--json"]).done().objects().len(), 20, "nothing was done");
    // The worker still has it in the config that it read.
    let retired = retire(&["--drop-parked", "--yes"]).done().says("20 dead").objects();
    assert_eq!(retired[0]["status"], "retired");
    worker.hears("this trigger was retired");
    assert_eq!(home.run(&["parked", "--json"]).done().objects(), Vec::<Value>::new());
    retire(&["--yes"]).ended(4).says("no trigger bad");
    let metrics = || worker.get("/metrics");
    until(|| !metrics().contains("cellhook_trigger_lag_cells{trigger=\"bad\"}"))
        .unwrap_or_else(|| panic!("{}", metrics()));
    put_rows(&home, 20, 40);
    home.until(&["checkpoint", "show", "bill"], |shards| sum(shards, "lag_cells") == 0);
    home.until(&["shards"], |_| calls(&home) == 40);
    assert_eq!(home.run(&["parked", "--json"]).done().objects(), Vec::<Value>::new(), "it was not called");
    // By force, under a config that names it: the next start registers it anew.
    home.run(&["triggers", "retire", "bill", "--yes"]).ended(2).says("still names bill");
    let id = home.run(&["triggers", "--json"]).done().objects()[0]["id"].clone();
    home.run(&["triggers", "retire", "bill", "--yes", "--force"]).done();
    assert_eq!(home.run(&["triggers", "--json"]).done().objects(), Vec::<Value>::new());
    drop(worker);
    let _worker = home.worker();
    home.until(&["shards"], |_| calls(&home) == 80);
    assert_ne!(home.run(&["triggers", "--json"]).done().objects()[0]["id"], id);
}
