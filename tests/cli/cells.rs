//! Cells in and out: `put`, `get`, `trim`.

use super::home::*;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;

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
    let deep = "[".repeat(200) + &"]".repeat(200);
    home.run(&["put", "trips", "row", "BASE", &deep]).ended(3).says("arrays and objects may lie at most 100 deep");
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
    assert_eq!(told[505], json!({"new": 2, "repeated": 500, "conflict": 1, "refused": 2, "erased": 0}));
    assert_eq!((&told[500]["line"], &told[500]["status"]), (&json!(501), &json!("refused")));
    assert_eq!((&told[501]["line"], &told[501]["status"]), (&json!(503), &json!("conflict")));
    assert_eq!((&told[503]["ref_key"], &told[504]["ref_key"]), (&json!(1), &json!(2)));
    let said = home.run(&["put", "trips", "--file", "cells.ndjson"]).ended(3);
    said.says("line 501: refused").says("line 503: conflict").says("line 504: refused");
    home.run(&["put", "trips", "--file", "none.ndjson"]).ended(2).says("none.ndjson cannot be read: No such file");
}

/// More cells than any page has.
#[test]
fn a_row_is_got_whole() {
    let home = Home::with_trigger(LOG);
    home.run(&["init"]).done();
    let cell = |i| format!("{{\"row_key\":\"big\",\"column\":\"NOTE\",\"ref_key\":{i},\"body\":{i}}}\n");
    let cells: String = (0..10_005).map(cell).collect();
    home.run_with(&["put", "trips", "--file", "-"], &cells).done();
    let got = home.run(&["get", "trips", "big", "--json"]).done();
    assert_eq!(got.stderr, "");
    assert!(
        got.objects().iter().map(|cell| cell["ref_key"].as_u64().unwrap()).eq(0..10_005),
        "in order, none left out"
    );
    assert_eq!(home.run(&["get", "trips", "big"]).done().stdout.lines().count(), 10_006, "and the headings");
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
    let trim = ["trim", "trips", "--before", "0s", "--json"];
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
    home.run(&["trim", "trips", "--before", "yesterday", "--yes"]).ended(2).says("or so long ago such as 1h");
    home.run(&["trim", "trips", "--before", "2100-01-01T00:00:00Z", "--yes"]).ended(2).says("it is still to come");
    home.run(&["tail", "trips", "--from", "2100-01-01T00:00:00Z"]).ended(2).says("it is still to come");

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
