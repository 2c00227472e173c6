//! `iam-policy`: the work of every role is done by the binary against a server that writes down each request, and the policy is
//! compared with it both ways: it is enough, and nothing in it is left unused.

use super::{
    dynamo::{Asked, Dynamo},
    home::*,
};
use cellhook::{
    cell::{AddedId, Name, SessionId, ShardId},
    store::{Config, Kind, Store},
    tail,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{collections::BTreeSet, fs};

/// What the config of this test has beside its store.
const REST: &str = r#"table_prefix = "p."
[datastores.trips]
shards = 8
retention = "30d"
[worker]
heartbeat = "100ms"
session = "400ms"
[checkpoint]
interval = "50ms"
[poll]
floor = "10ms"
ceiling = "50ms"
[metrics]
listen = "off"
[triggers.bill]
source = "trips"
columns = ["BASE"]
include = ["NOTE"]
handler = { kind = "exec", command = ["python3", "handler.py"], dir = ".." }
"#;

/// Answers a cell with another one, or what the body asks for.
const HANDLER: &str = r#"
import json, sys
print(json.dumps({"ready": {"protocol": 1, "concurrency": 8}}), flush=True)
for line in sys.stdin:
    event = json.loads(line)["event"]
    body = event["data"]["body"]
    answer = {"verdict": "done", "put": [{"column": "STATUS", "body": 1}]}
    if body == "dead":
        answer = {"verdict": "dead_letter", "error": "no"}
    if body == "later" and event["attempt"] == 1:
        answer = {"verdict": "failed", "error": "not yet", "retry_after_ms": 3600000}
    print(json.dumps({"id": event["id"], **answer}), flush=True)
"#;

fn allows(policy: &Value) -> Vec<(Asked, bool)> {
    let list = |value: &Value| value.as_array().unwrap().iter().map(|one| one.as_str().unwrap().to_owned()).collect();
    let mut allowed = Vec::new();
    for statement in policy["Statement"].as_array().unwrap() {
        assert_eq!(statement["Effect"], "Allow");
        let only_enclosed = match &statement["Condition"] {
            Value::Null => false,
            condition => {
                let enclosing = json!({"dynamodb:EnclosingOperation": ["TransactWriteItems"]});
                assert_eq!(*condition, json!({ "ForAnyValue:StringEquals": enclosing }));
                true
            }
        };
        let (actions, resources): (Vec<String>, Vec<String>) =
            (list(&statement["Action"]), list(&statement["Resource"]));
        for action in &actions {
            for resource in &resources {
                let action = action.strip_prefix("dynamodb:").unwrap().to_owned();
                let table =
                    resource.strip_prefix("arn:aws:dynamodb:eu-central-1:123456789012:table/").unwrap().to_owned();
                allowed.push((Asked { action, table, enclosed: only_enclosed }, only_enclosed));
            }
        }
    }
    allowed
}

/// Compares a role's policy with the rights that its work used.
fn compare(home: &Home, role: &str, used: &BTreeSet<Asked>) {
    let printed = home.run(&["iam-policy", role, "--account", "123456789012"]).done().stdout;
    let policy: Value = serde_json::from_str(&printed).unwrap();
    let allowed = allows(&policy);
    let same = |one: &Asked, other: &Asked| one.action == other.action && one.table == other.table;
    for asked in used {
        let enough = allowed.iter().any(|(right, only)| same(right, asked) && (asked.enclosed || !only));
        assert!(enough, "{role} is not allowed {asked:?}, which it needs: {printed}");
    }
    for (right, only) in &allowed {
        let is_used = used.iter().any(|asked| same(right, asked) && asked.enclosed == *only);
        assert!(is_used, "{role} is allowed {right:?}, which it does not need so");
    }
    let line = home.run(&["iam-policy", role, "--account", "123456789012", "--json"]).done().objects().remove(0);
    assert_eq!((&line["role"], &line["policy"]), (&role.into(), &policy));
}

/// The nouns and verbs that the help lists below some words.
fn verbs(home: &Home, words: &[&str]) -> Vec<String> {
    let help = home.run(&[words, &["--help"]].concat()).done().stdout;
    let list = help.split("Commands:\n").nth(1).unwrap_or_default().split("\n\n").next().unwrap_or_default();
    let names = list.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names = names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help");
    names.map(|name| [words, &[name]].concat().join(" ")).collect()
}

/// Every verb belongs to the work of a role, or asks the store for nothing.
fn nobody_is_forgotten(home: &Home, done: &BTreeSet<String>) {
    const ASKS_NOTHING: [&str; 6] = ["check", "bench", "iam-policy", "completions", "man", "health"];
    for noun in verbs(home, &[]).into_iter().filter(|noun| !ASKS_NOTHING.contains(&noun.as_str())) {
        let below = verbs(home, &[&noun]);
        for verb in if below.is_empty() { vec![noun] } else { below } {
            let is_done = done.iter().any(|words| *words == verb || words.starts_with(&format!("{verb} ")));
            assert!(is_done, "`{verb}` is in no role's work: add it below, and its rights to the table of the roles");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_role_has_the_rights_of_its_work_and_no_others() {
    let dynamo = Dynamo::start();
    let home = Home::with(&format!("group = \"night\"\n{}{REST}", dynamo.store()));
    fs::write(home.path("handler.py"), HANDLER).unwrap();
    let mut done = BTreeSet::from(["run".to_owned()]);
    let mut work = |words: &[&str], code: i32| {
        done.insert(words.join(" "));
        home.run(words).ended(code)
    };

    let settings = ["init", "--billing=on-demand", "--deletion-protection", "--point-in-time-recovery", "--tag=a=b"];
    work(&["init"], 0);
    work(&settings, 3);
    work(&[&settings[..], &["--update"]].concat(), 0);
    compare(&home, "init", &dynamo.rights());

    fs::write(home.path("cells"), "{\"row_key\":\"a\",\"column\":\"NOTE\",\"ref_key\":1,\"body\":1}\n").unwrap();
    for (row, body) in [("a", "\"now\""), ("b", "\"dead\""), ("c", "\"later\"")] {
        work(&["put", "trips", row, "BASE", body], 0);
    }
    work(&["put", "trips", "a", "BASE", "\"now\"", "--ref", "1"], 0);
    work(&["put", "trips", "a", "BASE", "0", "--ref", "1"], 3);
    work(&["put", "trips", "--file", "cells"], 0);
    compare(&home, "write", &dynamo.rights());

    work(&["get", "trips", "a"], 0);
    work(&["get", "trips", "a", "BASE"], 0);
    work(&["get", "trips", "a", "BASE", "--ref", "1"], 0);
    work(&["get", "trips", "--file", "cells"], 0);
    work(&["tail", "trips"], 0);
    compare(&home, "read", &dynamo.rights());

    let parked = || dynamo.ask("Scan", &json!({ "TableName": "p.night.parked" }))["Items"].as_array().unwrap().clone();
    let answered = || dynamo.ask("Scan", &json!({ "TableName": "p.trips.cells" }))["Count"] == 5;
    let mut worker = home.worker();
    until(|| parked().len() == 2 && answered()).unwrap_or_else(|| panic!("{:?} {}", parked(), worker.said()));
    worker.signal(Signal::KILL);
    worker.exit_code();
    // The time of the next attempt has come when the next worker takes over.
    for cell in parked().into_iter().filter(|cell| cell["state"]["S"] == "retrying") {
        let mut due = cell;
        due["next_attempt_at"] = json!({"N": "0"});
        dynamo.ask("PutItem", &json!({ "TableName": "p.night.parked", "Item": due }));
    }
    let mut worker = home.worker();
    until(|| parked().len() == 1).unwrap_or_else(|| panic!("{:?} {}", parked(), worker.said()));
    worker.signal(Signal::TERM);
    assert_eq!(worker.exit_code(), Some(0), "{}", worker.said());
    // What a worker does once an hour, and once a day.
    let config = Config {
        kind: Kind::Dynamodb,
        endpoint: Some(dynamo.endpoint()),
        table_prefix: "p.".into(),
        ..Config::default()
    };
    let store = Store::open(&config).await.unwrap();
    let log = store.datastore(&Name::new("trips").unwrap(), None).await.unwrap();
    tail::trim(&*log, &[], ShardId(0), AddedId(0), 1).await.unwrap();
    log.delete_segment(ShardId(0), AddedId(99)).await.unwrap();
    let ledger = store.ledger(&Name::new("night").unwrap()).await.unwrap();
    ledger.forget_session(&SessionId::from_stored("nobody")).await.unwrap();
    compare(&home, "run", &dynamo.rights());

    // Before anything is trimmed. One cell is undecodable, so that the others of its page are read one by one.
    work(&["verify", "--yes", "--sample", "100"], 0);
    work(&["verify", "--yes"], 0);
    let dead = parked().remove(0);
    let key = json!({ "row_key": dead["row_key"], "cell": { "S": format!("BASE#{:020}", 1) } });
    let cell = dynamo.ask("GetItem", &json!({ "TableName": "p.trips.cells", "Key": key }))["Item"].take();
    let mut damaged = cell.clone();
    damaged["added_id"] = json!({ "N": "0" });
    dynamo.ask("PutItem", &json!({ "TableName": "p.trips.cells", "Item": damaged }));
    work(&["verify", "--yes"], 1);
    dynamo.ask("PutItem", &json!({ "TableName": "p.trips.cells", "Item": cell }));
    compare(&home, "verify", &dynamo.rights());

    work(&["shards", "list"], 0);
    work(&["shards", "show", "trips", "0"], 0);
    let id = work(&["workers", "list", "--all", "--json"], 0).objects()[0]["id"].as_str().unwrap().to_owned();
    work(&["workers", "show", &id], 0);
    let dead = work(&["parked", "list", "--json"], 0).objects().remove(0);
    let (shard, place) = (dead["shard"].to_string(), dead["added_id"].to_string());
    work(&["parked", "show", "bill", &shard, &place], 0);
    work(&["parked", "retry", "--trigger", "bill", "--all"], 0);
    work(&["parked", "drop", "--trigger", "bill", "--all", "--yes"], 0);
    work(&["triggers", "list"], 0);
    work(&["triggers", "pause", "bill", "--reason", "night"], 0);
    work(&["triggers", "resume", "bill"], 0);
    work(&["triggers", "show", "bill"], 0);
    work(&["triggers", "pause", "bill", "--reason", "night", "--shard", &shard], 0);
    work(&["triggers", "rename", "bill", "charge"], 0);
    work(&["triggers", "rename", "charge", "bill"], 0);
    work(&["checkpoint", "show", "bill"], 0);
    work(&["checkpoint", "rewind", "bill", "--to", "oldest", "--yes"], 0);
    work(&["checkpoint", "skip", "bill", "--shard", &shard, "--added-id", &place, "--yes"], 0);
    work(&["retention", "trips"], 0);
    work(&["erase", "trips", "a", "--yes"], 0);
    work(&["trim", "trips", "--before", "0s", "--yes"], 0);
    work(&["trim", "trips", "--before", "0s", "--force", "--yes"], 0);
    work(&["triggers", "retire", "bill", "--force", "--drop-parked", "--yes"], 0);
    compare(&home, "operate", &dynamo.rights());
    nobody_is_forgotten(&home, &done);
}

#[test]
fn the_roles_are_listed_and_a_file_needs_no_policy() {
    let home = Home::with("[datastores.trips]\n");
    let listed = home.run(&["iam-policy"]).done().stdout;
    for role in ["init", "run", "write", "read", "operate", "verify"] {
        assert!(listed.contains(role), "{listed}");
        let policy = home.run(&["iam-policy", role]).done().says("store.kind is embedded, which needs no policy");
        assert!(policy.stdout.contains("arn:aws:dynamodb:*:*:table/trips.cells"), "{policy:?}");
    }
    assert_eq!(home.run(&["iam-policy", "--json"]).done().objects().len(), 6);
    home.run(&["iam-policy", "run", "--account", "me"]).ended(2).says("twelve digits");
    home.run(&["iam-policy", "run", "--region", "a:b"]).ended(2);
    home.run(&["iam-policy", "root"]).ended(2);
}
