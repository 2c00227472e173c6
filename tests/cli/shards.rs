//! Shards, and who works on them.

use super::home::*;
use rustix::process::Signal;
use serde_json::{Value, json};

#[test]
fn a_shard_is_shown_with_its_owner_its_triggers_and_their_parked_cells() {
    let home = Home::with_trigger(&shell("case $(cat) in *dead*) exit 65;; *later*) exit 75;; esac"));
    home.run(&["init"]).done();
    let show = |shard: &str| home.run(&["shards", "show", "trips", shard, "--json"]);
    let empty = show("0").done().objects().remove(0);
    assert_eq!((&empty["owner"], &empty["epoch"], &empty["tip"]), (&Value::Null, &json!(0), &json!(0)));
    show("4").ended(2).says("its shards are 0 to 3");
    home.run(&["shards", "show", "none", "0"]).ended(2).says("has no datastore none");

    let mut worker = home.worker();
    let dead = home.run(&["put", "trips", "row", "BASE", "\"dead\"", "--json"]).done().objects().remove(0);
    home.run(&["put", "trips", "row", "NOTE", "1"]).done();
    let shard = dead["shard"].to_string();
    let words = ["shards", "show", "trips", &shard];
    let done = |shown: &[Value]| shown[0]["triggers"]["bill"]["lag_cells"] == 0 && shown[0]["tip"] == 2;
    let shown = home.until(&words, done).remove(0);
    let bill = &shown["triggers"]["bill"];
    assert_eq!(bill["parked"], json!({"retrying": 0, "waiting": 0, "dead": 1}));
    assert_eq!((&bill["low_water"], &bill["dead"], &bill["paused"]), (&json!(2), &json!(1), &Value::Null));
    let session = home.run(&["workers", "--json"]).done().objects().remove(0);
    for (of_shard, of_session) in [("owner", "id"), ("owner_state", "state"), ("host", "host"), ("pid", "pid")] {
        assert_eq!(shown[of_shard], session[of_session], "{of_shard}");
    }
    assert!(shown["beats"].is_u64() && shown["tip_at"].is_i64() && shown["beat_age_seconds"].is_f64(), "{shown}");
    assert!(shown["since"].as_i64() >= session["started_at"].as_i64(), "{shown} {session}");
    let text = home.run(&words).done().stdout;
    let owner = session["id"].as_str().unwrap();
    assert!(text.contains(&format!("held by {owner}: live")) && text.contains("tip 2 of "), "{text}");
    // The list is the same with its verb and without.
    let listed = home.run(&["shards", "list", "trips", "--json"]).done().objects();
    assert!(listed.iter().any(|one| one["shard"] == shown["shard"] && one["since"] == shown["since"]), "{listed:?}");
    assert_eq!(listed, home.run(&["shards", "trips", "--json"]).done().objects());
    assert_eq!(listed, home.run(&["shards", "--json"]).done().objects());
    assert_eq!(listed.len(), 4);

    home.run(&["triggers", "pause", "bill", "--shard", &shard, "--reason", "why"]).done();
    assert_eq!(show(&shard).done().objects()[0]["triggers"]["bill"]["paused"], "why");
    worker.signal(Signal::TERM);
    assert_eq!(worker.exit_code(), Some(0), "{}", worker.said());
    let left = show(&shard).done().objects().remove(0);
    for unknown in ["owner", "pid", "owner_state", "since", "beat_age_seconds"] {
        assert!(left[unknown].is_null(), "{unknown}: {left}");
    }
    assert!(home.run(&words).done().stdout.contains("held by nobody"));
}
