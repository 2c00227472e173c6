//! What every verb has in common: help, errors, exit codes, the keys of its objects.

use super::home::*;
use serde_json::Value;
use std::{fs, path::Path};

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
    home.write("[log]\nlevel = \"warning\"\n");
    home.run(&["check"])
        .ended(2)
        .says("config/cellhook.toml:2: log.level")
        .says("\"warning\" is none of error, warn, info");
    home.write("group = \"a\"\n[triggers.t]\nsource = \"trips\"\norder = \"sideways\"\n");
    home.run(&["check"]).ended(2).says("config/cellhook.toml:4: triggers.t.order: unknown value `sideways`");
    let mut command = home.command(&["check"]);
    home.write("");
    let ended = Ended::of(command.env("CELLHOOK_GROUP", "Not A Name").spawn().unwrap());
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
        "retention",
        "erase",
        "shards",
        "workers",
        "parked",
        "triggers",
        "checkpoint",
        "verify",
        "bench",
        "iam-policy",
        "health",
        "completions",
        "man",
    ];
    for verb in verbs {
        let help = home.run(&[verb, "--help"]).done();
        assert!(help.stdout.contains("Usage: cellhook"), "{help:?}");
        assert!(help.stdout.contains("\nExample") && help.stdout.contains(&format!("  cellhook {verb}")), "{help:?}");
    }
    for verb in ["list", "show", "retry", "drop"] {
        let help = home.run(&["parked", verb, "--help"]).done().stdout;
        assert!(help.contains("\nExample") && help.contains(&format!("  cellhook parked {verb}")), "{help}");
    }
    for verb in ["list", "show", "pause", "resume", "rename", "retire"] {
        let help = home.run(&["triggers", verb, "--help"]).done().stdout;
        assert!(help.contains(&format!("Example:\n  cellhook triggers {verb}")), "{help}");
    }
    for verb in ["list", "show"] {
        let help = home.run(&["shards", verb, "--help"]).done().stdout;
        assert!(help.contains(&format!("Example:\n  cellhook shards {verb}")), "{help}");
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

/// Where a person puts it first.
#[test]
fn options_of_all_verbs_stand_between_noun_and_verb_too_and_those_of_a_list_do_not() {
    let home = Home::with_trigger(LOG);
    home.run(&["init"]).done();
    let _worker = home.worker();
    home.until(&["triggers"], |triggers| triggers.len() == 1);
    let id = home.run(&["workers", "--json"]).done().objects()[0]["id"].as_str().unwrap().to_owned();
    for (noun, verb) in [
        ("parked", &["list"][..]),
        ("parked", &["list", "--trigger", "bill"]),
        ("shards", &["list", "trips"]),
        ("shards", &["show", "trips", "1"]),
        ("workers", &["list", "--all"]),
        ("workers", &["show", &id]),
        ("triggers", &["list"]),
        ("triggers", &["show", "bill"]),
        ("checkpoint", &["show", "bill"]),
    ] {
        let between = [&[noun, "--json", "--config", "config/cellhook.toml"], verb].concat();
        let between = home.run(&between).done();
        let behind = home.run(&[&[noun], verb, &["--json"]].concat()).done();
        assert_eq!(between.objects().len(), behind.objects().len(), "{noun} {verb:?}");
        assert!(between.stdout.is_empty() || between.stdout.starts_with('{'), "{between:?}");
    }
    for words in [
        &["parked", "--trigger", "bill", "drop", "--trigger", "bill", "--all"][..],
        &["parked", "--count", "list"],
        &["shards", "trips", "show", "trips", "1"],
        &["workers", "--all", "show", &id],
    ] {
        let told = home.run(words).ended(2).says("stands before the verb");
        assert!(told.stderr.contains("Usage: cellhook"), "{told:?}");
    }
}

#[test]
fn the_conclusion_comes_after_the_data() {
    let home = Home::with_trigger(&shell("exit 65"));
    home.run(&["init"]).done();
    let last = |words: &[&str]| home.shown(words).pop().unwrap();
    assert_eq!(last(&["init"]), "nothing was missing");
    assert!(last(&["check"]).ends_with("is good"));
    let _worker = home.worker();
    home.run(&["put", "trips", "row", "BASE", "1"]).done();
    home.until(&["parked"], |parked| parked.len() == 1);
    assert!(last(&["parked", "--limit", "1"]).contains("there may be more"));
    assert!(last(&["parked", "retry", "--trigger", "bill", "--all", "--dry-run"]).starts_with("would try 1 "));
    assert!(last(&["checkpoint", "rewind", "bill", "--to", "oldest", "--dry-run"]).starts_with("would be done: "));
    assert!(last(&["trim", "trips", "--before", "1d", "--dry-run"]).starts_with("would be deleted: "));
    assert!(last(&["triggers", "retire", "bill", "--force", "--dry-run"]).starts_with("refused: "));
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
    for words in [&["shards"][..], &["put", "trips", "row", "BASE", "1"], &["init"], &["run"]] {
        let told = home.run(words).ended(5).says("GetItem on table ").says(": no usable answer");
        assert!(!told.stderr.contains("applied"), "it read: {told:?}");
        told.says(&format!(
            "the store is DynamoDB at http://{nobody}, region eu-central-1, as ./config/cellhook.toml says"
        ));
    }
    let home = Home::with("[store]\nkind = \"embedded\"\npath = \"/proc/nowhere/x.db\"\n[datastores.trips]\n");
    home.run(&["shards"]).ended(5).says("/proc/nowhere");
}

/// Holds `docs/cli.md` to the code.
#[test]
fn the_objects_have_the_keys_that_are_written() {
    let table = include_str!("../../docs/cli.md");
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
            let keys: Vec<&str> = object.as_object().unwrap().keys().map(String::as_str).collect();
            assert!(forms.contains(&keys), "{verb}: {object} is none of {forms:?}");
        }
    };
    holds("init", &["init"]);
    holds("verify", &["verify"]);
    let worker = home.worker();
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
    holds("parked --count", &["parked", "--count"]);
    let cell = home.run(&["parked", "--json"]).done().objects().remove(0);
    holds("parked show", &["parked", "show", "bill", &cell["shard"].to_string(), &cell["added_id"].to_string()]);
    holds("parked retry", &["parked", "retry", "--trigger", "bill", "--all", "--dry-run"]);
    holds("parked drop", &["parked", "drop", "--trigger", "bill", "--all", "--yes"]);
    holds("iam-policy", &["iam-policy"]);
    holds("trim", &["trim", "trips", "--before", "0s", "--force", "--dry-run"]);
    holds("retention", &["retention"]);
    holds("erase", &["erase", "trips", "row", "--dry-run"]);
    holds("erase", &["erase", "trips", "row", "--yes"]);
    holds("get", &["get", "trips", "row", "BASE"]);
    holds("get", &["get", "trips", "row"]);
    holds("tail", &["tail", "trips"]);
    holds("shards", &["shards"]);
    holds("shards show", &["shards", "show", "trips", "0"]);
    holds("triggers", &["triggers"]);
    holds("triggers show", &["triggers", "show", "bill"]);
    holds("triggers pause --shard", &["triggers", "pause", "bill", "--shard", "0", "--reason", "x"]);
    holds("triggers pause --shard", &["triggers", "resume", "bill", "--shard", "0"]);
    holds("rename", &["triggers", "rename", "bill", "charge"]);
    holds("rename", &["triggers", "rename", "charge", "bill"]);
    holds("pause", &["triggers", "pause", "bill", "--reason", "x"]);
    holds("resume", &["triggers", "resume", "bill"]);
    holds("triggers retire", &["triggers", "retire", "charge", "--dry-run"]);
    holds("triggers retire", &["triggers", "retire", "bill", "--force", "--dry-run"]);
    holds("workers", &["workers"]);
    let id = home.run(&["workers", "--json"]).done().objects()[0]["id"].as_str().unwrap().to_owned();
    holds("workers show", &["workers", "show", &id]);
    holds("checkpoint show", &["checkpoint", "show", "bill"]);
    holds("checkpoint rewind", &["checkpoint", "rewind", "bill", "--to", "oldest", "--dry-run"]);
    let page = worker.said();
    let address = page.split("http://").nth(1).and_then(|rest| rest.split('/').next()).unwrap();
    holds("health", &["health", "--address", address]);
    holds("completions", &["completions", "fish"]);
    holds("man", &["man"]);
    holds("man --dir", &["man", "--dir", "pages"]);
    holds("checkpoint skip", &["checkpoint", "skip", "bill", "--shard", "0", "--added-id", "99"]);
}
