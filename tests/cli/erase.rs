//! Cells that go: `erase` and `retention`.

use super::home::*;
use cellhook::{
    cell::Name,
    store::{Config, Store},
};
use serde_json::{Value, json};
use std::fs;

fn erase(home: &Home, row: &str, more: &[&str]) -> Ended {
    home.run(&[&["erase", "trips", row, "--json"], more].concat())
}

/// What `erase` says of a row, but for its shard.
fn met(ended: &Ended) -> Value {
    let mut met = ended.objects().remove(0);
    met.as_object_mut().unwrap().remove("shard");
    met
}

#[test]
fn a_row_is_erased_and_nobody_is_called_for_it() {
    let home = Home::with_trigger(&shell("cat >> out; echo >> out"));
    home.run(&["init"]).done();
    for (row, column) in [("anna", "BASE"), ("anna", "BASE"), ("anna", "NOTE"), ("ben", "BASE")] {
        home.run(&["put", "trips", row, column, &format!("\"secret of {row}\"")]).done();
    }
    let would = erase(&home, "anna", &["--dry-run"]).done();
    let line = |bodies: u64, segments: u64, status: Value| {
        json!({"datastore": "trips", "row_key": "anna", "cells": 3, "bodies": bodies, "segments": segments, "parked": 0,
            "left": [], "status": status})
    };
    assert_eq!(met(&would), line(3, 3, Value::Null));
    would.says("would be erased: the bodies of 3 of the 3 cells of row anna, in 3 segments of the log");
    erase(&home, "anna", &[]).ended(2).says("say --yes");
    assert!(home.run(&["tail", "trips"]).done().stdout.contains("secret of anna"), "nothing was done yet");
    assert_eq!(met(&erase(&home, "anna", &["--yes"]).done()), line(3, 3, json!("erased")));
    assert_eq!(met(&erase(&home, "anna", &[]).done()), line(0, 0, json!("erased")), "nothing is left to ask about");
    for ask in ["--yes", "--dry-run"] {
        let absent = erase(&home, "carl", &[ask]).ended(4);
        assert_eq!(absent.stderr, "cellhook: trips has no cell of row carl\n", "nothing stopped half-way");
    }
    erase(&home, "", &["--yes"]).ended(2).says("row_key has 0 bytes");

    home.run(&["get", "trips", "anna", "BASE"]).ended(4).says("the cell BASE of row anna with ref_key 2 was erased");
    let got = home.run(&["get", "trips", "anna", "BASE", "--ref", "1", "--json"]).ended(4).objects();
    assert_eq!(got, [json!({"row_key": "anna", "column": "BASE", "ref_key": 1, "status": "erased"})]);
    let row = home.run(&["get", "trips", "anna", "--json"]).done().objects();
    assert!(row.len() == 3 && row.iter().all(|cell| cell["body"].is_null() && cell["erased"] == true), "{row:?}");
    assert!(
        home.run(&["get", "trips", "anna"])
            .done()
            .stdout
            .lines()
            .all(|line| line.ends_with("erased") != line.ends_with("BODY"))
    );
    let tail = home.run(&["tail", "trips", "--json"]).done();
    let erased = |cell: &&Value| cell["erased"] == true && cell["body"].is_null() && cell["added_id"].is_u64();
    assert_eq!(tail.objects().iter().filter(erased).count(), 3);
    assert!(tail.objects().iter().any(|cell| cell["body"] == "secret of ben" && cell.get("erased").is_none()));
    let file = home.run_with(&["get", "trips", "--file", "-", "--json"], &tail.stdout).ended(4);
    assert_eq!(file.objects().iter().filter(|line| line["status"] == "erased").count(), 3);
    file.says("1 found, 0 absent, 0 refused, 3 erased");

    for body in ["\"secret of anna\"", "2"] {
        let put = home.run(&["put", "trips", "anna", "BASE", body, "--ref", "1", "--json"]).ended(3).objects();
        assert_eq!((&put[0]["status"], &put[0]["added_id"]), (&json!("erased"), &row[0]["added_id"]));
    }
    let again = home.run_with(&["put", "trips", "--file", "-", "--json"], &tail.stdout).ended(3);
    again.says("0 new, 1 repeated, 0 in conflict, 3 refused, 0 erased");
    let bulk = "{\"row_key\":\"anna\",\"column\":\"NOTE\",\"ref_key\":1,\"body\":1}\n";
    let bulk = home.run_with(&["put", "trips", "--file", "-", "--json"], bulk).ended(3).objects();
    assert_eq!((&bulk[0]["status"], &bulk[1]["erased"]), (&json!("erased"), &json!(1)));
    let next = home.run(&["put", "trips", "anna", "BASE", "\"new\"", "--json"]).done().objects();
    assert_eq!((&next[0]["ref_key"], &next[0]["status"]), (&json!(3), &json!("new")), "no address is used again");
    assert_eq!(home.run(&["get", "trips", "anna", "BASE"]).done().stdout, "\"new\"\n");

    let worker = home.worker();
    home.until(&["shards"], lag_is_gone);
    let out = fs::read_to_string(home.path("out")).unwrap();
    let mut bodies: Vec<String> = out
        .lines()
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["data"]["body"].as_str().unwrap().to_owned())
        .collect();
    bodies.sort();
    assert_eq!(bodies, ["new", "secret of ben"], "called for what is there, and for nothing else");
    let counted = "cellhook_erased_cells_total{trigger=\"bill\"} 3";
    until(|| worker.get("/metrics").contains(counted)).unwrap_or_else(|| panic!("{}", worker.get("/metrics")));
}

/// A handler's complaint may quote the body. It goes too, and the cells leave their lanes without a call.
#[test]
fn the_error_texts_of_parked_cells_are_erased_too() {
    let home = Home::with_trigger(&format!(
        "retry = {{ min = \"1d\", max = \"2d\" }}\n{}",
        shell("grep -o 'secret of [a-z]*' >&2; echo >> calls; test -e dead && exit 65; exit 1")
    ));
    let _worker = home.worker();
    home.run(&["put", "trips", "anna", "BASE", "\"secret of anna\""]).done();
    home.run(&["put", "trips", "ben", "BASE", "\"secret of ben\""]).done();
    home.until(&["parked", "--state", "retrying"], |parked| parked.len() == 2);
    fs::write(home.path("dead"), "").unwrap();
    home.run(&["put", "trips", "carl", "BASE", "\"secret of carl\""]).done();
    home.until(&["parked", "--state", "dead"], |parked| parked.len() == 1);
    let texts = || home.run(&["parked", "--json"]).done().stdout;
    assert!(["anna", "ben", "carl"].iter().all(|row| texts().contains(&format!("secret of {row}"))), "{}", texts());

    for row in ["anna", "carl"] {
        assert_eq!(met(&erase(&home, row, &["--dry-run"]).done())["parked"], 1);
        assert_eq!(met(&erase(&home, row, &["--yes"]).done())["parked"], 1);
        assert_eq!(met(&erase(&home, row, &["--yes"]).done())["parked"], 0);
        assert!(!texts().contains(&format!("secret of {row}")), "{}", texts());
    }
    assert!(texts().contains("secret of ben") && texts().contains("went when the cell was erased"), "{}", texts());
    let calls = || fs::read_to_string(home.path("calls")).unwrap().lines().count();
    let before = calls();
    home.run(&["parked", "retry", "--trigger", "bill", "--row", "anna"]).done();
    home.run(&["parked", "retry", "--trigger", "bill", "--row", "carl"]).done();
    home.until(&["parked"], |parked| parked.len() == 1 && parked[0]["row_key"] == "ben");
    assert_eq!(calls(), before, "they leave without a call");
}

/// A group whose tables are gone keeps nothing from being erased, and is named.
#[test]
fn what_cannot_be_erased_is_told_and_the_rest_is_erased() {
    let home = Home::with_trigger(LOG);
    home.run(&["init"]).done();
    home.run(&["put", "trips", "anna", "BASE", "1"]).done();
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(async {
        let config = Config { path: home.path("config/cellhook.db"), ..Config::default() };
        let store = Store::open(&config).await.unwrap();
        let log = store.datastore(&Name::new("trips").unwrap(), None).await.unwrap();
        log.enlist(&Name::new("gone").unwrap()).await.unwrap();
    });
    let met = erase(&home, "anna", &["--yes"]).ended(1).says("the same erase again goes on");
    let line = met.objects().remove(0);
    let left = line["left"][0].as_str().unwrap();
    assert!(
        left.starts_with("group gone: the error texts of its parked cells") && left.contains("gone.control"),
        "{left}"
    );
    assert_eq!((&line["bodies"], &line["segments"], &line["status"]), (&json!(1), &json!(1), &json!("incomplete")));
    home.run(&["get", "trips", "anna", "BASE"]).ended(4).says("was erased");
}

#[test]
fn retention_shows_what_is_kept_and_by_whom() {
    let home = Home::with_trigger(LOG);
    home.run(&["init"]).done();
    let look = || home.run(&["retention", "trips", "--json"]).done().objects().remove(0);
    let empty = json!({"datastore": "trips", "retention_seconds": null, "oldest_at": null, "cells": 0, "old_cells": null,
        "would_trim": null, "kept_by": []});
    assert_eq!(look(), empty);
    home.run(&["put", "trips", "anna", "BASE", "1"]).done();
    let config = fs::read_to_string(home.path("config/cellhook.toml")).unwrap();
    home.write(&config.replace("shards = 4\n", "shards = 4\nretention = \"30d\"\n[datastores.rides]\n"));
    home.run(&["init"]).done();
    assert!(home.run(&["check"]).done().stdout.contains("retention = \"30d\""));
    let young = look();
    assert_eq!((&young["retention_seconds"], &young["cells"]), (&json!(30 * 86_400), &json!(1)));
    assert_eq!((&young["old_cells"], &young["would_trim"], &young["kept_by"]), (&json!(0), &json!(0), &json!([])));
    assert!(young["oldest_at"].as_i64() > Some(1_700_000_000_000), "{young}");
    let table = home.run(&["retention"]).done().stdout;
    assert!(table.contains("30d") && table.contains("for ever") && table.contains("rides"), "{table}");
    home.run(&["retention", "copies"]).ended(2).says("has no datastore copies");
    home.write(&config.replace("shards = 4\n", "shards = 4\nretention = \"1s\"\n"));
    home.run(&["check"]).ended(2).says("datastores.trips.retention: \"1s\" is out of range");
}
