//! `init`: what it makes, and what it says of tables that are there.

use super::{
    dynamo::{Asked, Dynamo},
    home::*,
};
use crate::conformance::local::Server;
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

const TRIPS: &str = "[datastores.trips]\n";
const TABLES: [&str; 5] = ["trips.cells", "trips.log", "trips.tips", "default.control", "default.parked"];
const SETTINGS: [&str; 8] = [
    "init",
    "--json",
    "--billing=provisioned",
    "--read-units=5",
    "--write-units=6",
    "--deletion-protection",
    "--tag=team=rides",
    "--tag=cost=7",
];

fn differences(init: &Ended) -> Vec<Value> {
    init.objects().iter().flat_map(|line| line["differences"].as_array().unwrap().clone()).collect()
}

/// Actions that change something.
fn writes(asked: BTreeSet<Asked>) -> Vec<Asked> {
    let reads = ["Describe", "List", "Get"];
    let writes = asked.into_iter().filter(|asked| !reads.iter().any(|read| asked.action.starts_with(read)));
    // `PutItem` of the datastore's own item has the condition that there is none.
    writes.filter(|asked| asked.action != "PutItem").collect()
}

fn described(dynamo: &Dynamo, table: &str) -> Value {
    dynamo.ask("DescribeTable", &json!({ "TableName": table }))["Table"].clone()
}

fn recoverable(dynamo: &Dynamo, table: &str) -> bool {
    let told = dynamo.ask("DescribeContinuousBackups", &json!({ "TableName": table }));
    let status = &told["ContinuousBackupsDescription"]["PointInTimeRecoveryDescription"]["PointInTimeRecoveryStatus"];
    status == "ENABLED"
}

#[test]
fn new_tables_get_their_settings_and_a_second_run_changes_nothing() {
    let dynamo = Dynamo::start();
    let home = dynamo.home(TRIPS);
    let words = [&SETTINGS[..], &["--point-in-time-recovery"]].concat();
    let made = home.run(&words).done();
    assert_eq!(differences(&made), [Value::Null; 0], "what was just made is as asked for");
    assert_eq!(made.objects()[0]["tables"], json!(TABLES[..3]));
    for table in TABLES {
        let told = described(&dynamo, table);
        let units = &told["ProvisionedThroughput"];
        assert_eq!((&units["ReadCapacityUnits"], &units["WriteCapacityUnits"]), (&json!(5), &json!(6)), "{table}");
        assert_eq!(told["DeletionProtectionEnabled"], true, "{table}");
        let tags = dynamo.ask("ListTagsOfResource", &json!({ "ResourceArn": told["TableArn"] }))["Tags"].clone();
        assert_eq!(tags.as_array().unwrap().len(), 2, "{table}: {tags}");
        assert!(recoverable(&dynamo, table), "{table}");
    }
    dynamo.asked();
    for words in [&words[..], &["init"]] {
        home.run(words).done().says("nothing was missing");
        assert_eq!(writes(dynamo.rights()), [], "nothing is changed twice");
    }
}

#[test]
fn what_differs_is_told_and_changed_only_when_asked() {
    let dynamo = Dynamo::start();
    let home = dynamo.home(TRIPS);
    home.run(&["init"]).done();
    assert_eq!(described(&dynamo, "trips.log")["BillingModeSummary"]["BillingMode"], "PAY_PER_REQUEST");
    let words = [&SETTINGS[..], &["--point-in-time-recovery"]].concat();
    dynamo.asked();
    let told = home.run(&words).ended(3).says("25 settings of tables").says("--update changes them");
    assert_eq!(writes(dynamo.rights()), [], "it was only told");
    let of_log: Vec<Value> = differences(&told).into_iter().filter(|one| one["table"] == "trips.log").collect();
    let line = |setting: &str, found: &str, wanted: &str| json!({"table": "trips.log", "setting": setting, "found": found, "wanted": wanted, "changed": false});
    let wanted = [
        line("billing", "on-demand", "provisioned with 5 read units and 6 write units"),
        line("deletion_protection", "off", "on"),
        line("point_in_time_recovery", "off", "on"),
        line("tag cost", "absent", "\"7\""),
        line("tag team", "absent", "\"rides\""),
    ];
    assert_eq!(of_log, wanted);
    let text = home.run(&["init", "--deletion-protection"]).ended(3);
    assert!(text.stdout.contains("table trips.log: deletion_protection is off, not on"), "{text:?}");

    let changed = home.run(&[&words[..], &["--update"]].concat()).done();
    assert!(differences(&changed).iter().all(|one| one["changed"] == true), "{changed:?}");
    assert_eq!(differences(&changed).len(), 25);
    assert!(TABLES.iter().all(|table| recoverable(&dynamo, table)));
    assert_eq!(described(&dynamo, "default.parked")["DeletionProtectionEnabled"], true);
    dynamo.asked();
    home.run(&[&words[..], &["--update"]].concat()).done().says("nothing had to be changed");
    assert_eq!(writes(dynamo.rights()), []);
    let back = ["init", "--update", "--billing=on-demand", "--deletion-protection=false"];
    home.run(&[&back[..], &["--point-in-time-recovery=false", "--tag=team=bills"]].concat()).done();
    let told = described(&dynamo, "trips.cells");
    assert_eq!(
        (&told["BillingModeSummary"]["BillingMode"], recoverable(&dynamo, "trips.cells")),
        (&json!("PAY_PER_REQUEST"), false)
    );
    assert_eq!(told["DeletionProtectionEnabled"], false);
}

/// A key of the same attributes the other way round answers every request for an item, and is not ours all the same.
#[test]
fn a_table_with_another_key_is_refused() {
    let dynamo = Dynamo::start();
    let home = dynamo.home(TRIPS);
    let attribute = |name: &str| json!({"AttributeName": name, "AttributeType": "S"});
    let part = |name: &str, kind: &str| json!({"AttributeName": name, "KeyType": kind});
    dynamo.ask(
        "CreateTable",
        &json!({
            "TableName": "trips.cells", "BillingMode": "PAY_PER_REQUEST",
            "AttributeDefinitions": [attribute("row_key"), attribute("cell")],
            "KeySchema": [part("cell", "HASH"), part("row_key", "RANGE")],
        }),
    );
    home.run(&["init"]).ended(2).says("table trips.cells is not one of cellhook's: it has another key");
}

/// A store that never answers is most likely none: nobody waits for it as for a table that is being made.
#[test]
fn a_store_that_never_answers_is_not_asked_for_long() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(AtomicU32::new(0));
    let count = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            drop(stream);
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    let home = Home::with(&format!(
        "[store]\nkind = \"dynamodb\"\nendpoint = \"http://{address}\"\nregion = \"eu-central-1\"\n{TRIPS}"
    ));
    home.run(&["init"]).ended(5).says("trips.cells: no usable answer");
    // Those of one request, with what the HTTP client tries by itself.
    assert!(asked.load(Ordering::Relaxed) < 5, "{asked:?}");
}

#[test]
fn tables_in_a_file_have_no_such_settings() {
    let home = Home::with("[store]\nkind = \"embedded\"\n[datastores.trips]\n");
    home.run(&["init", "--deletion-protection"]).ended(2).says("its tables lie in a file");
    assert!(!home.path("config/cellhook.db").exists(), "nothing was begun");
    home.run(&["init"]).done();
    home.run(&["init"]).done().says("nothing was missing");
}

/// DynamoDB Local has billing and deletion protection, and knows neither tags nor backups: that is told, and is no endless wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dynamodb_local_takes_the_settings_that_it_knows() {
    let Some(server) = Server::start().await else { return };
    let endpoint = server.config().endpoint.unwrap();
    let home = Home::with(&format!(
        "[store]\nkind = \"dynamodb\"\nendpoint = \"{endpoint}\"\nregion = \"eu-central-1\"\n{TRIPS}"
    ));
    home.run(&["init"]).done();
    let known = &SETTINGS[..6];
    let told = home.run(known).ended(3);
    assert_eq!(differences(&told).len(), 10, "{told:?}");
    let changed = home.run(&[known, &["--update"]].concat()).done();
    assert!(differences(&changed).iter().all(|one| one["changed"] == true), "{changed:?}");
    home.run(known).done().says("nothing had to be changed");
    home.run(&["init", "--tag=a=b"]).ended(1).says("ListTagsOfResource on table trips.cells").says("Tagging is not");
    home.run(&["init", "--point-in-time-recovery"]).ended(1).says("DescribeContinuousBackups on table trips.cells");
}
