//! Parked cells: listed, tried again, given up.

use super::home::*;
use serde_json::Value;
use std::fs;

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
