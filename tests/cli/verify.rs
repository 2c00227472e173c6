//! What `verify` finds: each damage is planted in the tables of a healthy store, and exactly that is found.

use super::home::*;
use bytes::Bytes;
use cellhook::{
    cell::{
        AddedId, Answer, CellKey, Checkpoint, Commit, Epoch, LaneChange, LeaseWrite, Millis, Name, NewCell,
        NewDatastore, Parked, ParkedState, Role, Session, SessionId, SessionState, ShardId, ShardRef, TriggerId,
        TriggerRecord, TriggerState, Written,
    },
    checkpoint::Window,
    store::{Cells, Config, Store, segment},
    tail,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

const CONFIG: &str = "[store]\nkind = \"embedded\"\n[datastores.trips]\nshards = 4\n";

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn shard_ref(shard: u32) -> ShardRef {
    ShardRef { source: name("trips"), shard: ShardId(shard) }
}

/// A row for each place of a shard, which belongs there.
fn row(shard: u32, place: u64) -> String {
    let rows = (0..).map(|i| format!("row-{place}-{i}"));
    rows.into_iter().find(|row| ShardId::of(row, 4) == ShardId(shard)).unwrap()
}

fn new_cell(shard: u32, place: u64) -> NewCell {
    let key = CellKey { row_key: row(shard, place).into(), column: "BASE".into(), ref_key: 1 };
    NewCell { key, body: format!("{{\"at\":{place}}}").into(), origin: None }
}

async fn open(home: &Home) -> Store {
    Store::open(&Config { path: home.path("config/cellhook.db"), ..Config::default() }).await.unwrap()
}

/// A parked cell of shard 0.
fn parked(place: u64, state: ParkedState) -> Parked {
    Parked {
        trigger: TriggerId::from_stored("t1"),
        shard: shard_ref(0),
        added_id: AddedId(place),
        last: AddedId(place),
        row_key: row(0, place),
        column: "BASE".into(),
        ref_key: 1,
        state,
        attempts: 2,
        errors: vec!["no".into()],
        next_attempt_at: Millis(i64::MAX),
        since: Millis(1),
        revision: 1,
    }
}

/// A store with some of everything. Shard 0: segments 1-3, 4, 5-6, 7-8, and parked cells. Shard 1: 3-4, 5-7, trimmed
/// to 3. Shard 2: 1, 2, and no lease. Shard 3: nothing.
async fn fill(home: &Home) {
    let store = open(home).await;
    store.init_datastore(&NewDatastore { name: name("trips"), shards: 4 }).await.unwrap();
    store.init_group(&name("default")).await.unwrap();
    let log = store.datastore(&name("trips"), None).await.unwrap();
    let cells = Cells::new(log.clone());
    for (shard, sizes) in [(0, &[3, 1, 2, 2][..]), (1, &[2, 2, 3]), (2, &[1, 1])] {
        let mut place = 0;
        for size in sizes {
            let batch = (1..=*size).map(|i| new_cell(shard, place + i)).collect();
            assert!(cells.put(batch).await.iter().all(Result::is_ok));
            place += size;
        }
    }
    assert_eq!(tail::trim(&*log, &[], ShardId(1), AddedId(3), u64::MAX).await.unwrap().segments, 1);
    log.enlist(&name("default")).await.unwrap();
    let ledger = store.ledger(&name("default")).await.unwrap();
    for (id, trigger) in [("t1", "bill"), ("t2", "old")] {
        let record = TriggerRecord {
            id: TriggerId::from_stored(id),
            name: name(trigger),
            formerly: std::collections::BTreeSet::new(),
            source: name("trips"),
            incarnation: log.datastore().incarnation.clone(),
            state: TriggerState::Active,
            generation: 0,
            start: Some([0, 3, 0, 0].map(AddedId).into()),
            revision: 0,
        };
        let Answer::Accepted(record) = ledger.register(&record).await.unwrap() else { panic!("{trigger}") };
        if trigger == "old" {
            ledger.update_trigger(&TriggerRecord { state: TriggerState::Retired, ..record }).await.unwrap();
        }
    }
    let owner = SessionId::from_stored("s1");
    let session = Session { state: SessionState::Live, role: Role::Worker, ..Session::dead(&owner) };
    ledger.open_session(&session).await.unwrap();
    let mut window = Window::new(AddedId(6));
    window.finish(AddedId(8));
    let checkpoint = |low, done| Checkpoint { low: AddedId(low), done, ..Checkpoint::default() };
    let lanes = [(2, ParkedState::Retrying), (3, ParkedState::Waiting), (5, ParkedState::Dead)];
    let lanes = lanes.map(|(place, state)| LaneChange::Put(parked(place, state))).to_vec();
    let range = Parked { last: AddedId(6), row_key: String::new(), ..parked(6, ParkedState::Dead) };
    for (shard, checkpoint, lanes) in [
        (0, checkpoint(6, window.encode().0), [lanes, vec![LaneChange::Put(range)]].concat()),
        (1, checkpoint(3, Bytes::new()), Vec::new()),
    ] {
        ledger.claim(&shard_ref(shard), &log.datastore().incarnation, &owner, None, Millis(1)).await.unwrap();
        let checkpoints = ["t1", "t2"].map(|id| (TriggerId::from_stored(id), checkpoint.clone()));
        let write = LeaseWrite {
            shard: shard_ref(shard),
            owner: owner.clone(),
            epoch: Epoch(1),
            seq: 1,
            checkpoints: BTreeMap::from(checkpoints),
            lanes,
            alone: None,
            release: false,
        };
        assert_eq!(ledger.write(&write).await.unwrap(), Written::Accepted);
    }
}

/// The tables of a store that nobody has open, past everything that guards them.
struct Tables(dynoxide::Database);

fn request<T: DeserializeOwned>(json: Value) -> T {
    serde_json::from_value(json).unwrap()
}

impl Tables {
    fn get(&self, table: &str, key: &Value) -> Value {
        let got = self.0.get_item(request(json!({ "TableName": table, "Key": key, "ConsistentRead": true }))).unwrap();
        let item = serde_json::to_value(got).unwrap()["Item"].clone();
        assert!(item.is_object(), "{table} has no {key}");
        item
    }

    fn put(&self, table: &str, item: &Value) {
        self.0.put_item(request(json!({ "TableName": table, "Item": item }))).unwrap();
    }

    fn delete(&self, table: &str, key: &Value) {
        self.get(table, key);
        self.0.delete_item(request(json!({ "TableName": table, "Key": key }))).unwrap();
    }

    /// Sets attributes of an item that is there.
    fn set(&self, table: &str, key: &Value, attributes: &Value) {
        let mut item = self.get(table, key);
        item.as_object_mut().unwrap().extend(attributes.as_object().unwrap().clone());
        self.put(table, &item);
    }

    fn unset(&self, table: &str, key: &Value, attribute: &str) {
        let mut item = self.get(table, key);
        assert!(item.as_object_mut().unwrap().remove(attribute).is_some(), "it had {attribute}");
        self.put(table, &item);
    }

    /// A copy of an item elsewhere, with some other attributes.
    fn copy(&self, table: &str, key: &Value, attributes: &Value) {
        let mut item = self.get(table, key);
        item.as_object_mut().unwrap().extend(attributes.as_object().unwrap().clone());
        self.put(table, &item);
        assert_ne!(self.get(table, key), item, "the copy has another key");
    }

    /// Changes the checkpoint of the trigger `bill`.
    fn checkpoint(&self, shard: u32, attribute: &str, value: Value) {
        let mut lease = self.get("default.control", &lease(shard));
        lease["checkpoints"]["M"]["t1"]["M"][attribute] = value;
        self.put("default.control", &lease);
    }
}

fn n(number: u64) -> Value {
    json!({ "N": number.to_string() })
}

fn tip(shard: u64) -> Value {
    json!({ "bucket": n(shard % 16), "shard": n(shard) })
}

/// The datastore's own item.
fn own() -> Value {
    json!({ "bucket": { "N": "-1" }, "shard": { "N": "-1" } })
}

fn segment(shard: u64, last: u64) -> Value {
    json!({ "shard": n(shard), "last": n(last) })
}

fn cell(shard: u32, place: u64) -> Value {
    json!({ "row_key": { "S": row(shard, place) }, "cell": { "S": format!("BASE#{:020}", 1) } })
}

fn lease(shard: u32) -> Value {
    json!({ "scope": { "S": format!("leases/{shard}") }, "item": { "S": format!("trips/{shard:05}") } })
}

fn trigger() -> Value {
    json!({ "scope": { "S": "triggers" }, "item": { "S": "bill" } })
}

fn parked_key(lane: &str, place: u64) -> Value {
    json!({ "lane": { "S": lane }, "position": { "S": format!("{place:020}") } })
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

fn healthy() -> Home {
    let home = Home::with(CONFIG);
    block_on(fill(&home));
    home
}

/// What is found in a copy of a healthy store after something was done to its tables: the whole, and a sample of all.
fn found(healthy: &Home, plant: impl Fn(&Home, &Tables)) -> [Vec<Value>; 2] {
    let home = Home::with(CONFIG);
    for file in fs::read_dir(healthy.path("config")).unwrap().map(Result::unwrap) {
        fs::copy(file.path(), home.path("config").join(file.file_name())).unwrap();
    }
    plant(&home, &Tables(dynoxide::Database::new(home.path("config/cellhook.db").to_str().unwrap()).unwrap()));
    let sample = ["verify", "trips", "--sample", "100", "--json"];
    // Beside each other: what looks wrong is read again after a while.
    let runs = [&["verify", "--json"][..], &sample].map(|words| home.command(words).spawn().unwrap());
    runs.map(|run| {
        let mut objects = Ended::of(run).ended(1).objects();
        let counts = objects.pop().unwrap();
        assert_eq!(counts["findings"], objects.len(), "{objects:?}");
        objects
    })
}

type Plant = fn(&Tables);

/// Each is found, once, and nothing else with it, by the whole and by the sample.
#[track_caller]
fn each_is_found(plants: &[(&str, Option<u64>, Plant)]) {
    let healthy = healthy();
    for (flaw, shard, plant) in plants {
        for found in found(&healthy, |_, tables| plant(tables)) {
            let flaws: Vec<&str> = found.iter().map(|finding| finding["finding"].as_str().unwrap()).collect();
            assert_eq!(flaws, [*flaw], "{found:#?}");
            assert_eq!(found[0]["shard"].as_u64(), *shard, "{found:#?}");
            assert_eq!(found[0]["datastore"], "trips");
        }
    }
}

#[test]
fn a_healthy_store_holds_and_is_counted() {
    let home = healthy();
    let ended = home.run(&["verify", "--json"]).done().says("17 cells, 14 of them in the log; about ");
    let ended = ended.says("read units and one for each parked cell");
    let counts = ended.says("0 findings").objects();
    let wanted = json!({
        "shards": 4, "segments": 8, "logged": 15, "cells": 17, "trimmed": 3, "newer": 0, "owned": 2, "orphaned": 0,
        "parked": 2, "dead": 2, "findings": 0, "read_units": counts[0]["read_units"],
    });
    assert_eq!(counts, [wanted]);
    assert!(counts[0]["read_units"].as_u64().unwrap() > 20);
    let sample = home.run(&["verify", "trips", "--sample", "100", "--json"]).done().objects();
    assert_eq!((&sample[0]["logged"], &sample[0]["cells"]), (&json!(15), &json!(17)));
    let none = home.run(&["verify", "--sample", "0.0001", "--seed", "7", "--json"]).done().objects();
    assert_eq!((&none[0]["logged"], &none[0]["segments"]), (&json!(0), &json!(8)), "the keys are read whole");
    assert_eq!(home.run(&["verify", "--dry-run"]).done().says("read units").stdout, "");
    assert_eq!(home.run(&["verify", "--rate", "100000"]).done().says("at 100000 a second").stdout, "");
    home.run(&["verify", "--seed", "1"]).ended(2);
    home.run(&["verify", "--sample", "0"]).ended(2).says("from 0.0001 to 100");
    home.run(&["verify", "riders"]).ended(2).says("has no datastore riders");
}

#[test]
fn damage_to_tips_and_log_is_found() {
    each_is_found(&[
        ("tip_undecodable", Some(0), |tables| tables.set("trips.tips", &tip(0), &json!({ "trimmed_to": n(9) }))),
        ("tip_misplaced", None, |tables| tables.copy("trips.tips", &tip(0), &json!({ "bucket": n(1) }))),
        ("tip_time", Some(2), |tables| tables.set("trips.tips", &tip(2), &json!({ "created_at": n(7) }))),
        ("log_hole", Some(0), |tables| tables.delete("trips.log", &segment(0, 6))),
        // The first places, and those after a trim.
        ("log_hole", Some(0), |tables| tables.delete("trips.log", &segment(0, 3))),
        ("log_hole", Some(1), |tables| tables.delete("trips.log", &segment(1, 4))),
        ("log_overlap", Some(0), |tables| {
            tables.copy("trips.log", &segment(0, 6), &json!({ "last": n(5), "n": n(3) }));
        }),
        ("log_overlap", Some(1), |tables| {
            tables.copy("trips.log", &segment(1, 4), &json!({ "last": n(5), "n": n(4) }));
        }),
        ("log_beyond_tip", Some(2), |tables| {
            let created_at = &tables.get("trips.log", &segment(2, 1))["created_at"];
            tables.set("trips.tips", &tip(2), &json!({ "tip": n(1), "created_at": created_at }));
        }),
        ("log_beyond_tip", Some(2), |tables| tables.delete("trips.tips", &tip(2))),
        ("log_ends_early", Some(0), |tables| tables.set("trips.tips", &tip(0), &json!({ "tip": n(10) }))),
        ("log_ends_early", Some(2), |tables| tables.delete("trips.log", &segment(2, 2))),
        ("log_time", Some(0), |tables| {
            let later = json!({ "created_at": n(1 << 50) });
            tables.set("trips.log", &segment(0, 4), &later);
            tables.set("trips.cells", &cell(0, 4), &later);
        }),
        ("segment_damaged", Some(0), |tables| {
            tables.set("trips.log", &segment(0, 4), &json!({ "cells": { "B": "AQAAAAAA" } }));
        }),
        // Of another number of cells than it says, and one that is no item of ours.
        ("segment_damaged", Some(0), |tables| {
            let cells = &tables.get("trips.log", &segment(0, 3))["cells"];
            tables.set("trips.log", &segment(0, 6), &json!({ "cells": cells }));
        }),
        ("segment_damaged", Some(0), |tables| tables.set("trips.log", &segment(0, 6), &json!({ "n": n(0) }))),
        ("segment_newer", Some(0), |tables| {
            tables.set("trips.log", &segment(0, 4), &json!({ "cells": { "B": "Y2NjYw==" } }));
        }),
    ]);
}

#[test]
fn damage_to_cells_is_found() {
    each_is_found(&[
        ("cell_missing", Some(0), |tables| tables.delete("trips.cells", &cell(0, 6))),
        ("cell_body", Some(1), |tables| {
            tables.set("trips.cells", &cell(1, 5), &json!({ "body": { "S": "{\"at\":6}" } }))
        }),
        ("erase_unfinished", Some(1), |tables| {
            tables.unset("trips.cells", &cell(1, 5), "body");
            tables.set("trips.cells", &cell(1, 5), &json!({ "erased": { "BOOL": true } }));
        }),
        ("cell_place", Some(0), |tables| tables.set("trips.cells", &cell(0, 7), &json!({ "added_id": n(6) }))),
        ("cell_place", Some(0), |tables| tables.set("trips.cells", &cell(0, 7), &json!({ "created_at": n(6) }))),
        // At a place that another cell has, and above the tip.
        ("cell_not_in_log", Some(2), |tables| {
            tables.copy("trips.cells", &cell(2, 1), &json!({ "row_key": { "S": row(2, 99) } }));
        }),
        ("cell_not_in_log", Some(2), |tables| {
            let stray = json!({ "row_key": { "S": row(2, 99) }, "added_id": n(99) });
            tables.copy("trips.cells", &cell(2, 1), &stray);
        }),
        ("cell_undecodable", Some(0), |tables| tables.set("trips.cells", &cell(0, 7), &json!({ "added_id": n(0) }))),
    ]);
    // One that both sides agree on, but its row belongs elsewhere.
    let healthy = healthy();
    let found = found(&healthy, |home, _| {
        block_on(async {
            let log = open(home).await.datastore(&name("trips"), None).await.unwrap();
            let cells = vec![new_cell(0, 1000)];
            let packed = segment::pack(&cells);
            let commit = Commit { shard: ShardId(3), tip: None, cells, packed, created_at: Millis(5) };
            log.commit(commit).await.unwrap();
        });
    });
    for found in found {
        assert_eq!(found.len(), 1, "{found:#?}");
        assert_eq!((&found[0]["finding"], &found[0]["row_key"]), (&json!("cell_shard"), &json!(row(0, 1000))));
    }
}

#[test]
fn damage_to_a_group_is_found() {
    const CONTROL: &str = "default.control";
    const PARKED: &str = "default.parked";
    each_is_found(&[
        ("group_missing", None, |tables| {
            tables.set("trips.tips", &own(), &json!({ "groups": { "SS": ["default", "ghost"] } }));
        }),
        ("group_not_enlisted", None, |tables| tables.unset("trips.tips", &own(), "groups")),
        ("session_undecodable", None, |tables| {
            let session = json!({ "scope": { "S": "sessions" }, "item": { "S": "s1" } });
            tables.set(CONTROL, &session, &json!({ "state": { "S": "undead" } }));
        }),
        ("trigger_undecodable", None, |tables| tables.set(CONTROL, &trigger(), &json!({ "state": { "S": "odd" } }))),
        ("trigger_incarnation", None, |tables| {
            tables.set(CONTROL, &trigger(), &json!({ "incarnation": { "S": "another" } }));
        }),
        // Of another number of shards, and above the tip of a shard where it did not begin yet.
        ("trigger_start", None, |tables| tables.set(CONTROL, &trigger(), &json!({ "start": { "B": "AAAA" } }))),
        ("trigger_start", Some(2), |tables| tables.set(CONTROL, &trigger(), &json!({ "start": { "B": "AAAJAA==" } }))),
        ("lease_undecodable", Some(0), |tables| tables.set(CONTROL, &lease(0), &json!({ "epoch": n(0) }))),
        ("lease_incarnation", Some(1), |tables| {
            tables.set(CONTROL, &lease(1), &json!({ "incarnation": { "S": "another" } }));
        }),
        ("lease_shard", Some(9), |tables| tables.copy(CONTROL, &lease(1), &lease(9))),
        ("checkpoint_damaged", Some(0), |tables| tables.checkpoint(0, "done", json!({ "B": "gA==" }))),
        ("checkpoint_above_tip", Some(0), |tables| tables.checkpoint(0, "low", n(8))),
        ("checkpoint_above_tip", Some(1), |tables| tables.checkpoint(1, "low", n(8))),
        ("checkpoint_trimmed", Some(1), |tables| tables.checkpoint(1, "low", n(2))),
        ("parked_undecodable", Some(0), |tables| {
            tables.set(PARKED, &parked_key("t1/0/active", 2), &json!({ "state": { "S": "dead" } }));
        }),
        ("parked_above_tip", Some(0), |tables| {
            tables.set(PARKED, &parked_key("t1/0/dead", 6), &json!({ "last": n(9) }));
        }),
        ("parked_address", Some(0), |tables| {
            tables.set(PARKED, &parked_key("t1/0/dead", 5), &json!({ "ref_key": n(2) }));
        }),
        ("parked_address", Some(0), |tables| {
            let mut elsewhere = parked_key("t1/0/active", 4);
            elsewhere["last"] = n(4);
            tables.copy(PARKED, &parked_key("t1/0/active", 2), &elsewhere);
        }),
        ("parked_trigger", Some(0), |tables| {
            tables.copy(PARKED, &parked_key("t1/0/dead", 5), &parked_key("t2/0/dead", 5));
        }),
    ]);
}

/// An erase ended after `cells`, and the same again goes on as `verify` says.
#[test]
fn an_erase_that_was_interrupted_is_told_and_the_same_again_ends_it() {
    let home = healthy();
    let [row, other] = [row(0, 2), row(0, 3)];
    block_on(async {
        let log = open(&home).await.datastore(&name("trips"), None).await.unwrap();
        assert!(log.erase_cell(&new_cell(0, 2).key).await.unwrap());
    });
    let ended = home.run(&["verify"]).ended(1).says("1 findings");
    let line = format!(
        "erase_unfinished trips/0/2 {row} BASE 1: in `cells` it is erased, in the log it has 8 bytes: the same erase of its \
         row again finishes it\n"
    );
    assert_eq!(ended.stdout, line);
    home.run(&["erase", "trips", &row, "--yes"]).done();
    home.run(&["verify"]).done().says("0 findings");
    home.run(&["get", "trips", &other, "BASE"]).done();
}

/// Tables that were restored to a moment before the group's first trigger do not know of it.
#[test]
fn the_group_of_the_config_is_verified_whether_the_datastore_knows_of_it_or_not() {
    let home = healthy();
    let tables = Tables(dynoxide::Database::new(home.path("config/cellhook.db").to_str().unwrap()).unwrap());
    tables.unset("trips.tips", &own(), "groups");
    tables.checkpoint(0, "low", n(8));
    drop(tables);
    let found = home.run(&["verify", "--json"]).ended(1).objects();
    assert_eq!(
        found.iter().filter_map(|line| line["finding"].as_str()).collect::<Vec<_>>(),
        ["group_not_enlisted", "checkpoint_above_tip"]
    );
    let detail = found[0]["detail"].as_str().unwrap();
    assert!(detail.contains("(bill)") && detail.contains("start a worker of the group"), "{detail}");
    // A group that has nothing there is nothing wrong, with tables of its own or without.
    let other =
        |home: &Home| fs::write(home.path("config/cellhook.toml"), format!("group = \"other\"\n{CONFIG}")).unwrap();
    other(&home);
    home.run(&["verify"]).done();
    home.run(&["init"]).done();
    home.run(&["verify"]).done();
}

#[test]
fn a_finding_is_a_line_for_people_too_and_a_reader_who_leaves_changes_no_code() {
    let healthy = healthy();
    let tables = Tables(dynoxide::Database::new(healthy.path("config/cellhook.db").to_str().unwrap()).unwrap());
    tables.delete("trips.cells", &cell(0, 6));
    drop(tables);
    let ended = healthy.run(&["verify"]).ended(1).says("1 findings");
    let line = format!("cell_missing trips/0/6 {} BASE 1: the log has it, `cells` has not\n", row(0, 6));
    assert_eq!(ended.stdout, line);
    assert_eq!(exit_code(&mut healthy.unheard(&["verify"])), Some(1));
}

/// Workers and writers go on meanwhile, with cells that fail, wait and are parked, and the log is trimmed.
#[test]
fn what_goes_on_meanwhile_is_nothing_wrong() {
    // Every seventh cell fails at first, and some for good.
    let script = "case $CELLHOOK_REF_KEY in *7) exit 65;; *3) test $CELLHOOK_ATTEMPT -gt 1;; esac";
    let home = Home::with_trigger(&format!("retry = {{ min = \"1s\", max = \"20s\" }}\n{}", shell(script)));
    let _worker = home.worker();
    let done = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (writing, home) = (done.clone(), &home);
        let writer = scope.spawn(move || {
            let mut ref_key = 0_u64;
            while !writing.load(SeqCst) {
                let line = |i: u64| {
                    format!(
                        "{{\"row_key\":\"r{}\",\"column\":\"C\",\"ref_key\":{},\"body\":{i}}}\n",
                        i % 13,
                        ref_key + i
                    )
                };
                let lines: String = (0..40).map(line).collect();
                ref_key += 40;
                home.run_with(&["put", "trips", "--file", "-"], &lines).done();
                home.run(&["trim", "trips", "--before", "1s", "--yes"]).done();
            }
        });
        let mut logged = 0;
        for round in 0..8 {
            let sample: &[&str] = if round % 2 == 0 { &[] } else { &["--sample", "100"] };
            let ended = home.run(&[&["verify", "--json"], sample].concat()).done();
            let objects = ended.objects();
            assert_eq!(objects.len(), 1, "{objects:#?}");
            logged += objects[0]["logged"].as_u64().unwrap();
        }
        done.store(true, SeqCst);
        writer.join().unwrap();
        assert!(logged > 0, "it read something");
    });
}

#[test]
fn a_store_out_of_reach_is_no_finding() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let home = Home::with(&format!(
        "[store]\nkind = \"dynamodb\"\nendpoint = \"http://{nobody}\"\nregion = \"eu-central-1\"\n[datastores.trips]\n"
    ));
    assert_eq!(home.run(&["verify"]).ended(5).stdout, "");
}
