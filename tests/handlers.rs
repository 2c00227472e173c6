//! Handlers against real processes: what they do to the daemon, and what it must make of it.

mod carriers;
mod examples;
mod faults;
mod filters;

use cellhook::cell::{
    AddedId, Call, Cell, CellKey, Datastore, Epoch, Event, Handler, Incarnation, Millis, Name, PutCell, ShardId,
    Verdict,
};
use cellhook::handler::{Exec, ExecConfig};
use serde_json::{Value, json};
use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

/// A call that takes longer has failed in these tests: the machine may be slow, but not for ever.
const PATIENCE: Duration = Duration::from_secs(60);

fn trigger() -> Name {
    Name::new("bill_rider").unwrap()
}

fn event(added_id: u64, body: &Value) -> Event {
    Event {
        cell: Cell {
            key: CellKey { row_key: format!("row-{added_id}").into(), column: "BASE".into(), ref_key: 1 },
            shard: ShardId(5),
            added_id: AddedId(added_id),
            created_at: Millis(1_763_719_200_123),
            body: body.to_string().into(),
        },
        datastore: Arc::new(Datastore {
            name: Name::new("trips").unwrap(),
            shards: 64,
            incarnation: Incarnation::from_stored("k3v9"),
        }),
        trigger: trigger(),
        attempt: 1,
        epoch: Epoch(3),
        latest: Arc::new([]),
        alone: false,
    }
}

fn exec_config(command: &[&str]) -> ExecConfig {
    ExecConfig {
        command: command.iter().map(ToString::to_string).collect(),
        children: 1,
        dir: None,
        env: BTreeMap::new(),
        env_pass: vec!["PATH".to_owned()],
    }
}

/// A handler whose children run `tests/handlers/child.py`.
fn children(children: u32, mode: &[&str]) -> Arc<Exec> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/handlers/child.py");
    let mut config = exec_config(&[&["python3", script], mode].concat());
    config.children = children;
    config.build(&trigger()).unwrap()
}

/// Calls with one event, within [`PATIENCE`].
async fn call(handler: &Arc<Exec>, added_id: u64, body: Value) -> Verdict {
    call_event(handler, event(added_id, &body), PATIENCE).await
}

async fn call_event(handler: &Arc<Exec>, event: Event, timeout: Duration) -> Verdict {
    let mut verdicts = handler.clone().call(Call::new(vec![event], timeout)).await;
    assert_eq!(verdicts.len(), 1);
    verdicts.remove(0)
}

/// The body of the one cell that a verdict appends.
fn seen(verdict: &Verdict) -> Value {
    match verdict {
        Verdict::Done { put } => match &put[..] {
            [PutCell { row_key: None, ref_key: None, column, body }] if column == "SEEN" => {
                serde_json::from_str(body).unwrap()
            }
            other => panic!("not one cell: {other:?}"),
        },
        other => panic!("not done: {other:?}"),
    }
}

async fn pid(handler: &Arc<Exec>, added_id: u64) -> i64 {
    seen(&call(handler, added_id, json!({"do": "pid"})).await)["pid"].as_i64().unwrap()
}

/// Waits until something is so.
async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let begin = std::time::SystemTime::now();
    while !so() {
        assert!(begin.elapsed().unwrap_or_default() < PATIENCE, "{what}: waited for too long");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Whether a process runs; one that has ended and was not waited for yet does not.
fn runs(pid: i64) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with(['Z', 'X'])))
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}
