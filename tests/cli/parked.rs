//! Parked cells: listed, tried again, given up.

use super::{dynamo::Dynamo, home::*};
use cellhook::{
    cell::{
        AddedId, Incarnation, LaneChange, Millis, Name, NewDatastore, Parked, ParkedState, ShardId, ShardRef,
        TriggerId, TriggerRecord, TriggerState,
    },
    store::{Config, Kind, Store},
};
use serde_json::Value;
use std::{collections::BTreeMap, fs};

/// A shard that only some datastores have leaves the others out.
#[test]
fn parked_cells_of_one_shard_are_listed_over_all_triggers() {
    let home = Home::with(&format!(
        "[store]\nkind = \"embedded\"\n[datastores.few]\nshards = 2\n[datastores.many]\nshards = 8\n[metrics]\nlisten = \"off\"\n\
         [triggers.a]\nsource = \"few\"\n{LOG}[triggers.b]\nsource = \"many\"\n{LOG}"
    ));
    home.run(&["init"]).done();
    assert_eq!(home.run(&["parked", "--shard", "9"]).done().stdout, "", "no trigger is registered yet");
    home.run(&["parked", "--datastore", "few"]).ended(4).says("none is registered");
    let _worker = home.worker();
    home.run(&["parked", "--datastore", "fwe"]).ended(4).says("on the datastore fwe; they are on: few, many");
    home.run(&["parked", "--datastore", "few", "--trigger", "b"]).ended(4).says("they are on: many");
    home.run(&["parked", "--shard", "7"]).done();
    home.run(&["parked", "--shard", "8"]).ended(2).says("there is no shard 8 of few, many");
    home.run(&["parked", "--shard", "7", "--trigger", "a"]).ended(2).says("there is no shard 7 of few");
    home.run(&["parked", "drop", "--shard", "7", "--trigger", "a"]).ended(2).says("there is no shard 7 of few");
    home.run(&["parked", "--shard", "7", "--datastore", "few"]).ended(2).says("there is no shard 7 of few");
    home.run(&["parked", "--shard", "7", "--datastore", "many"]).done();
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
    assert_eq!(
        exit_code(&mut home.unheard(&["parked", "drop", "--trigger", "bill", "--all", "--yes", "--json"])),
        Some(0)
    );
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
    let drop = [&["parked", "drop"], &place[..]].concat();
    // Nobody can answer: no script gives up what cannot be got back without saying so.
    home.run(&drop).ended(2).says("give up 1 parked cells of bill").says("say --yes");
    assert_eq!(home.run(&["parked", "--json"]).done().objects().len(), 1, "nothing was done");
    home.run(&[&drop[..], &["--yes"]].concat()).done().says("1 dropped");
    assert_eq!(home.run(&["parked"]).done().stdout, "");
}

fn key<'a>(objects: &'a [Value], key: &str) -> Vec<&'a str> {
    let mut texts: Vec<&str> = objects.iter().map(|object| object[key].as_str().unwrap()).collect();
    texts.sort_unstable();
    texts
}

#[test]
fn parked_cells_are_told_apart_counted_and_tried_out() {
    // What the child says becomes the error. 65 is the verdict dead-letter.
    let home = Home::with_trigger(&shell(r#"echo "no $CELLHOOK_ROW_KEY" >&2; exit 65"#));
    let _worker = home.worker();
    for row in ["a", "b", "c"] {
        home.run(&["put", "trips", row, "BASE", "{\"fare\": 12}"]).done();
    }
    home.until(&["parked"], |parked| parked.len() == 3);
    let list = |words: &[&str]| home.run(&[&["parked", "--json"], words].concat()).done().objects();
    assert_eq!(key(&list(&["--error", "65: no b"]), "row_key"), ["b"]);
    assert_eq!(key(&list(&["--error", "no "]), "row_key"), ["a", "b", "c"]);
    assert_eq!(list(&["--error", "[a-z]"]), [Value::Null; 0], "a text, no pattern");
    assert_eq!((list(&["--newer", "1h"]).len(), list(&["--older", "1h"]).len()), (3, 0));
    assert_eq!(list(&["--limit", "2"]).len(), 2);
    home.run(&["parked", "--limit", "2"]).done().says("there may be more");
    let counts = list(&["--count"]);
    assert_eq!(counts.len(), 1);
    assert_eq!(
        (&counts[0]["trigger"], &counts[0]["state"], &counts[0]["cells"]),
        (&"bill".into(), &"dead".into(), &3.into())
    );
    assert_eq!(counts[0]["oldest"].as_i64(), list(&[]).iter().map(|cell| cell["since"].as_i64().unwrap()).min());

    let change =
        |verb: &str, words: &[&str]| home.run(&[&["parked", verb, "--trigger", "bill", "--json"], words].concat());
    let rehearsed =
        change("drop", &["--error", "no b", "--dry-run"]).done().says("would give up 1 parked cells of bill");
    assert_eq!((key(&rehearsed.objects(), "row_key"), &rehearsed.objects()[0]["done"]), (vec!["b"], &Value::Null));
    change("retry", &["--all", "--dry-run"]).done().says("would try 3 parked cells of bill again");
    for (verb, would) in [("retry", "would be retried "), ("drop", "would be dropped ")] {
        let told = home.run(&["parked", verb, "--trigger", "bill", "--all", "--dry-run"]).done().stdout;
        assert!(told.lines().count() == 3 && told.lines().all(|line| line.starts_with(would)), "{told}");
    }
    assert_eq!(list(&[]).len(), 3, "nothing was done");
    change("drop", &["--error", "no x"]).ended(4);
    let dropped = change("drop", &["--all", "--limit", "2", "--yes"])
        .done()
        .says("2 dropped")
        .says("there may be more")
        .objects();
    assert!(dropped.iter().all(|cell| cell["done"] == "dropped"), "{dropped:?}");
    let left = list(&[]);
    let shown = |cell: &Value| {
        let words = ["parked", "show", "bill", &cell["shard"].to_string(), &cell["added_id"].to_string()];
        home.run(&[&words[..], &["--json"]].concat())
    };
    let whole = &shown(&left[0]).done().objects()[0];
    assert!(left[0].as_object().unwrap().iter().all(|(key, value)| whole[key] == *value), "{whole}");
    assert_eq!((&whole["body"]["fare"], &whole["waits_for"]), (&12.into(), &Value::Null));
    let end = format!("/{}/{}", left[0]["shard"], left[0]["added_id"]);
    assert!(whole["event_id"].as_str().unwrap().ends_with(&end), "{whole}");
    let text = home.run(&["parked", "show", "bill", &left[0]["shard"].to_string(), &left[0]["added_id"].to_string()]);
    assert!(text.done().stdout.contains("exit code 65: no "), "all errors");
    shown(&dropped[0]).ended(4).says("no cell of bill lies parked at");
    home.run(&["parked", "show", "bill", "9", "1"]).ended(2).says("trips has no shard 9");
}

#[test]
fn a_waiting_cell_says_what_it_waits_for_and_goes_on_after_it() {
    let home = Home::with_trigger(&format!("retry = {{ min = \"1d\", max = \"7d\" }}\n{}", shell("test -e good")));
    let _worker = home.worker();
    for body in ["1", "2", "3"] {
        home.run(&["put", "trips", "row", "BASE", body]).done();
        home.until(&["parked"], |parked| parked.len().to_string() == body);
    }
    let parked = home.run(&["parked", "--json"]).done().objects();
    let states: Vec<&str> = parked.iter().map(|cell| cell["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["retrying", "waiting", "waiting"]);
    let shard = parked[0]["shard"].to_string();
    let show = |place: &str| home.run(&["parked", "show", "bill", &shard, place, "--json"]).done().objects().remove(0);
    let (head, second) = (show("1"), show("2"));
    assert_eq!((&head["waits_for"], &head["ahead"], &head["behind"]), (&Value::Null, &0.into(), &2.into()));
    let waits_for = (&second["waits_for"]["added_id"], &second["waits_for"]["next_attempt_at"]);
    assert_eq!(waits_for, (&1.into(), &head["next_attempt_at"]));
    assert_eq!((&second["ahead"], &second["behind"], &second["body"]), (&1.into(), &1.into(), &2.into()));
    home.run(&["parked", "show", "bill", &shard, "2"]).done();

    let waiting = home.run(&["parked", "retry", "--trigger", "bill", "--state", "waiting", "--json"]).done();
    assert!(waiting.objects().iter().all(|cell| cell["done"] == "waits"), "{waiting:?}");
    waiting.says("0 retried; 2 wait behind a retrying cell of their row and go on after it");
    fs::write(home.path("good"), "").unwrap();
    home.run(&["parked", "retry", "--trigger", "bill", "--all"]).done().says("1 retried; 2 wait");
    home.until(&["parked"], |parked| parked.is_empty());
}

/// A store with a trigger, and cells parked past any worker: so many of a shard, in so many of its shards.
async fn with_parked(dynamo: &Dynamo, shards: u32, in_shards: u32, each: u64) -> Home {
    let home = dynamo.home(&format!("[datastores.trips]\nshards = {shards}\n"));
    let config = Config { kind: Kind::Dynamodb, endpoint: Some(dynamo.endpoint()), ..Config::default() };
    let store = Store::open(&config).await.unwrap();
    let trips = Name::new("trips").unwrap();
    store.init_datastore(&NewDatastore { name: trips.clone(), shards }).await.unwrap();
    let group = Name::new("default").unwrap();
    store.init_group(&group).await.unwrap();
    let ledger = store.ledger(&group).await.unwrap();
    let record = TriggerRecord {
        id: TriggerId::random(),
        name: Name::new("bill").unwrap(),
        formerly: std::collections::BTreeSet::new(),
        source: trips.clone(),
        incarnation: Incarnation::random(),
        state: TriggerState::Active,
        generation: 0,
        start: None,
        revision: 0,
    };
    ledger.register(&record).await.unwrap();
    let cell = |shard: u32, place: u64| Parked {
        trigger: record.id.clone(),
        shard: ShardRef { source: trips.clone(), shard: ShardId(shard) },
        added_id: AddedId(place),
        last: AddedId(place),
        row_key: format!("row {shard} {place}"),
        column: "BASE".into(),
        ref_key: 1,
        state: ParkedState::Dead,
        attempts: 1,
        errors: vec!["no".into()],
        next_attempt_at: Millis(0),
        since: Millis(1),
        revision: 7,
    };
    let puts: Vec<LaneChange> = (0..in_shards)
        .flat_map(|shard| (1..=each).map(move |place| (shard, place)))
        .map(|(shard, place)| LaneChange::Put(cell(shard, place)))
        .collect();
    for some in puts.chunks(90) {
        assert!(ledger.operate_parked(some).await.unwrap());
    }
    dynamo.asked();
    home
}

/// Requests to the table of parked cells, by operation.
fn requests(dynamo: &Dynamo) -> BTreeMap<String, usize> {
    let mut requests = BTreeMap::new();
    for asked in dynamo.asked().into_iter().filter(|asked| asked.table == "default.parked") {
        *requests.entry(asked.action).or_default() += 1;
    }
    requests
}

/// The numbers of `docs/cli.md`: one `GetItem` sees whether the table is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lanes_are_asked_only_when_the_table_is_dearer() {
    let counted = |requests: BTreeMap<String, usize>| {
        ["GetItem", "Scan", "Query"].map(|operation| requests.get(operation).copied().unwrap_or_default())
    };
    for (shards, in_shards, each, wanted) in [
        (64, 2, 5, [1, 1, 0]),
        (4096, 2, 5, [1, 1, 0]),
        (4096, 16, 100, [1, 2, 0]),
        // More than an eighth of a thousand lanes holds: 1,024 cells are read in vain, in two pages.
        (64, 16, 100, [1, 2, 128]),
    ] {
        let dynamo = Dynamo::start();
        let home = with_parked(&dynamo, shards, in_shards, each).await;
        let counts = home.run(&["parked", "--count", "--json"]).done().objects();
        assert_eq!(counts[0]["cells"], u64::from(in_shards) * each);
        assert_eq!(counted(requests(&dynamo)), wanted, "{shards} shards, {in_shards} with {each} cells");
        if shards == 64 && each == 5 {
            let listed = home.run(&["parked", "--row", "row 1 3", "--json"]).done().objects();
            assert_eq!(listed.len(), 0, "no row lies where this test put it");
            assert_eq!(counted(requests(&dynamo)), [1, 0, 2], "a row has one shard");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_are_given_up_up_to_a_limit() {
    let dynamo = Dynamo::start();
    let home = with_parked(&dynamo, 64, 32, 50).await;
    let dropped =
        home.run(&["parked", "drop", "--trigger", "bill", "--all", "--limit", "1000", "--yes", "--json"]).done();
    let cells = dropped.objects();
    assert!(cells.len() == 1000 && cells.iter().all(|cell| cell["done"] == "dropped"), "{}", cells.len());
    dropped.says("1000 dropped").says("there may be more");
    home.run(&["parked", "drop", "--trigger", "bill", "--state", "dead", "--yes"]).done().says("600 dropped");
    let none = home.run(&["parked", "--count", "--json"]).done().says("no cell lies parked");
    assert_eq!(none.stdout, "");
    home.run(&["parked"]).done().says("no cell lies parked");
}
