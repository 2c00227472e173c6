//! The checker is proven: a good history passes, and each way in which it can be wrong is refused by the name of its rule.

use super::{Least, judged};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// A history, each line with a name of its own by which it is doctored.
#[derive(Clone)]
struct History(Vec<(String, Value)>);

/// Who calls: a worker and its handler's process.
type Caller = (u32, u32);
const A: Caller = (1, 11);
const B: Caller = (2, 12);
const B_AGAIN: Caller = (2, 22);
const C: Caller = (3, 13);

const LEAST: Least =
    Least { window: 2, cells: 6, rows: 2, kills: 1, freezes: 1, stops: 1, children: 1, shards: 1, stake: 2, cuts: 0 };

fn row(added_id: u64) -> &'static str {
    if [3, 4].contains(&added_id) { "r1" } else { "r0" }
}

fn call(at: &str, added_id: u64, epoch: u64, attempt: u32, (worker, pid): Caller) -> Value {
    json!({"at": at, "id": format!("d/i/0/{added_id}"), "row": row(added_id), "shard": 0, "added_id": added_id,
        "epoch": epoch, "attempt": attempt, "worker": worker, "pid": pid})
}

fn start(added_id: u64, epoch: u64, attempt: u32, caller: Caller) -> Value {
    call("start", added_id, epoch, attempt, caller)
}

fn end(added_id: u64, epoch: u64, attempt: u32, caller: Caller, verdict: &str) -> Value {
    let mut end = call("end", added_id, epoch, attempt, caller);
    end["verdict"] = verdict.into();
    end
}

fn blow(at: &str, (worker, _): Caller) -> Value {
    json!({"at": at, "worker": worker})
}

impl History {
    /// One shard, six cells of two rows, and one of each: a kill, a handler's process killed, a freeze, a graceful stop.
    fn good() -> Self {
        let mut history = Self(Vec::new());
        let mut add = |name: &str, line: Value| history.0.push((name.into(), line));
        let ack = |added_id| json!({"at": "ack", "row": row(added_id), "shard": 0, "added_id": added_id});
        add("ack 1", ack(1));
        add("start 1", start(1, 1, 1, A));
        add("ack 2", ack(2));
        add("end 1", end(1, 1, 1, A, "failed"));
        add("start 1 again", start(1, 1, 2, A));
        add("end 1 again", end(1, 1, 2, A, "done"));
        add("start 2", start(2, 1, 1, A));
        add("ack 3", ack(3));
        add("kill", blow("kill", A));
        add("start 2 anew", start(2, 2, 1, B));
        add("end 2", end(2, 1, 1, A, "done"));
        add("end 2 anew", end(2, 2, 1, B, "done"));
        add("start 3", start(3, 2, 1, B));
        add("child", json!({"at": "child", "pid": B.1}));
        add("start 3 again", start(3, 2, 1, B_AGAIN));
        add("end 3 again", end(3, 2, 1, B_AGAIN, "done"));
        add("ack 4", ack(4));
        add("start 4", start(4, 2, 1, B_AGAIN));
        add("freeze", blow("freeze", B));
        add("end 4", end(4, 2, 1, B_AGAIN, "done"));
        add("start 4 anew", start(4, 3, 1, C));
        add("end 4 anew", end(4, 3, 1, C, "done"));
        add("idle", json!({"at": "idle", "worker": B.0, "pid": B_AGAIN.1}));
        add("continue", blow("continue", B));
        add("ack 5", ack(5));
        add("start 5", start(5, 3, 1, C));
        add("ack 6", ack(6));
        add("stop", blow("stop", C));
        add("end 5", end(5, 3, 1, C, "done"));
        add("stopped", json!({"at": "stopped", "worker": C.0, "clean": true}));
        add("start 6", start(6, 4, 1, B_AGAIN));
        add("end 6", end(6, 4, 1, B_AGAIN, "done"));
        history
    }

    fn at(&self, name: &str) -> usize {
        self.0.iter().position(|(other, _)| other == name).unwrap_or_else(|| panic!("no line {name}"))
    }

    fn without(mut self, name: &str) -> Self {
        self.0.remove(self.at(name));
        self
    }

    fn with(mut self, after: &str, lines: impl IntoIterator<Item = Value>) -> Self {
        let at = self.at(after) + 1;
        self.0.splice(at..at, lines.into_iter().map(|line| ("new".into(), line)));
        self
    }

    /// A line elsewhere.
    fn moved(mut self, name: &str, after: &str) -> Self {
        let line = self.0.remove(self.at(name));
        self.0.insert(self.at(after) + 1, line);
        self
    }

    fn changed(mut self, name: &str, key: &str, value: impl Into<Value>) -> Self {
        let at = self.at(name);
        self.0[at].1[key] = value.into();
        self
    }

    fn text(&self) -> String {
        self.0.iter().map(|(_, line)| format!("{line}\n")).collect()
    }
}

/// What the checker says of a text, and the names of the rules that it refused it by.
fn refused(text: &str, least: &Least) -> (String, BTreeSet<String>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("history.ndjson");
    std::fs::write(&path, text).unwrap();
    let (sound, said) = judged(&path, least);
    let rules: BTreeSet<String> =
        said.lines().skip(1).filter_map(|line| Some(line.split_once(": ")?.0.to_owned())).collect();
    assert_eq!(sound, rules.is_empty(), "{said}");
    (said, rules)
}

#[track_caller]
fn passes(what: &str, history: &History) {
    passes_at(what, history, &LEAST);
}

#[track_caller]
fn passes_at(what: &str, history: &History, least: &Least) {
    let (said, rules) = refused(&history.text(), least);
    assert!(rules.is_empty(), "{what}: {said}");
}

/// By these rules and by no other; and says so.
#[track_caller]
fn fails_at(what: &str, text: &str, least: &Least, rules: &[&str], saying: &str) {
    let (said, found) = refused(text, least);
    assert_eq!(found, rules.iter().map(|rule| (*rule).to_owned()).collect(), "{what}: {said}");
    assert!(said.contains(saying), "{what}: {said}");
}

#[track_caller]
fn fails(what: &str, history: &History, rules: &[&str], saying: &str) {
    fails_at(what, &history.text(), &LEAST, rules, saying);
}

#[test]
fn a_good_history_passes() {
    let good = History::good;
    passes("as it is", &good());
    passes("what was on its way to a killed worker's handler is read late", &good().moved("start 2", "start 2 anew"));
    let late = good().moved("start 4", "start 4 anew").moved("end 4", "start 4");
    passes("and what was on its way to a frozen worker's handler", &late);
    passes("nobody counts what the killed process had not begun", &good().without("start 3"));
    let text = good().text().replace("{\"at\":\"child\"", "{\"at\":\"sta{\"at\":\"child\"");
    assert!(
        refused(&text, &LEAST).1.is_empty(),
        "the last line of a killed process is torn, and the next one behind it"
    );
}

#[test]
fn a_lost_cell_is_found() {
    let good = History::good;
    fails("a cell that was never done", &good().without("end 6"), &["handled"], "cell 6 was called and never done");
    let failed = good().changed("end 6", "verdict", "failed");
    fails("a cell that failed for good", &failed, &["handled"], "cell 6 was called and never done");
    let more = good().with("ack 6", [json!({"at": "ack", "row": "r2", "shard": 1, "added_id": 1})]);
    fails("an acknowledged cell that is not in the history", &more, &["called"], "shard 1 cell 1");
    fails("a call for another row", &good().changed("ack 3", "row", "r9"), &["known"], "cell 3 row r1");
}

#[test]
fn a_broken_order_is_found() {
    let good = History::good;
    let early = good().with("ack 2", [start(2, 1, 1, A), end(2, 1, 1, A, "failed")]).moved("end 1", "ack 2");
    let early = early.changed("start 2", "attempt", 2).changed("end 2", "attempt", 2);
    fails("a later cell before the retry of an earlier one", &early, &["order", "passed"], "after cell 2");
    let both = good().with("ack 2", [start(2, 1, 1, A)]).without("start 2");
    fails("two calls of a row at a time", &both, &["order", "passed"], "while cell 1 is under way");
    let skipped = good().without("end 2").moved("end 2 anew", "stopped").moved("start 2 anew", "stopped");
    let skipped = skipped.changed("start 2 anew", "epoch", 4).changed("end 2 anew", "epoch", 4);
    fails("a cell that a new owner passed over and a later one found", &skipped, &["passed"], "before cell 2 was done");
    let end_first = good().with("end 1", [end(1, 1, 2, A, "done")]);
    fails("an end before its start", &end_first, &["paired"], "an end before its start");
}

#[test]
fn two_owners_are_found() {
    let good = History::good;
    let two = good().changed("start 3 again", "worker", C.0).changed("end 3 again", "worker", C.0);
    fails("two workers under one epoch", &two, &["owner"], "under one epoch");
    let woken = good().moved("end 4", "continue").moved("start 4", "continue");
    fails("a woken worker that starts what it was about to", &woken, &["fenced"], "under a passed epoch: 3");
    let never_struck = good().changed("kill", "worker", 9).moved("start 2", "start 2 anew");
    fails("an old owner to whom nothing happened", &never_struck, &["fenced", "tested"], "under a passed epoch: 2");
}

#[test]
fn what_holds_of_a_frozen_worker_holds_of_one_that_is_cut_off() {
    let cut = || History::good().changed("freeze", "at", "cut").changed("continue", "at", "healed");
    let least = Least { freezes: 0, cuts: 1, ..LEAST };
    let late = cut().moved("start 4", "start 4 anew").moved("end 4", "start 4");
    passes_at("as it is", &cut(), &least);
    passes_at("what was on its way to its handler", &late, &least);
    let healed = cut().moved("end 4", "continue").moved("start 4", "continue");
    fails_at("it starts what it was about to", &healed.text(), &least, &["fenced"], "under a passed epoch: 3");
    let unnoticed = cut().moved("continue", "end 4");
    fails_at("nobody noticed", &unnoticed.text(), &least, &["tested"], "cuts: 0");
    let both = cut().with("start 4 anew", [blow("freeze", B), blow("continue", B)]);
    let both = both.moved("start 4", "end 4 anew").moved("end 4", "start 4");
    passes_at("frozen beside, and continued while it is still cut off", &both, &least);
}

#[test]
fn too_many_repeats_are_found() {
    let good = History::good;
    let twice = good().with("end 5", [start(5, 3, 2, C), end(5, 3, 2, C, "done")]);
    fails("a repeat without a reason", &twice, &["again"], "cell 5 epoch 3: 2 calls, 0 of them");
    let two = good().with("freeze", [start(3, 3, 1, C), end(3, 3, 1, C, "done")]);
    let narrow = Least { window: 1, ..LEAST };
    fails_at("more than a window at one change", &two.text(), &narrow, &["change"], "epoch 3: 2 cells");
    let none = Least { window: 0, ..LEAST };
    fails_at("more than all windows", &good().text(), &none, &["change", "repeats"], "shard 0: 3, at most 2 after 3");
}

#[test]
fn a_repeat_after_a_graceful_stop_is_found() {
    let repeat = || History::good().with("stopped", [start(5, 4, 1, B_AGAIN), end(5, 4, 1, B_AGAIN, "done")]);
    fails("done, and called again", &repeat(), &["graceful"], "which left gracefully");
    fails("left behind, and called again", &repeat().without("end 5"), &["graceful"], "did not end");
    let unclean = repeat().changed("stopped", "clean", false);
    fails("a stop that was not clean is not judged, and not counted", &unclean, &["tested"], "stops: 0");
    let earlier = History::good().with("stopped", [start(4, 4, 1, B_AGAIN), end(4, 4, 1, B_AGAIN, "done")]);
    fails("nor what it had done before it was asked to leave", &earlier, &["graceful"], "which left gracefully");
}

#[test]
fn a_history_in_which_nothing_happened_is_refused() {
    let good = History::good;
    let calm = good().moved("start 1", "ack 2").moved("start 5", "ack 6");
    fails("order is never at stake", &calm, &["tested"], "stake: 0");
    let settled = good().without("start 2").without("end 2").moved("ack 2", "kill").moved("ack 3", "ack 2");
    fails("no shard has work when its owner changes", &settled, &["tested"], "shards: 0");
    fails("a freeze that nobody noticed", &good().moved("continue", "end 4"), &["tested"], "freezes: 0");
    fails("a stop of a worker without calls", &good().moved("stop", "end 5"), &["tested"], "stops: 0");
    fails("a kill of a worker that never called", &good().changed("kill", "worker", 9), &["tested"], "kills: 0");
    for (least, saying) in [
        (Least { cells: 7, ..LEAST }, "cells: 6, and 7"),
        (Least { rows: 3, ..LEAST }, "rows: 2, and 3"),
        (Least { kills: 2, ..LEAST }, "kills: 1, and 2"),
        (Least { children: 2, ..LEAST }, "children: 1, and 2"),
        (Least { shards: 2, ..LEAST }, "shards: 1, and 2"),
    ] {
        fails_at("less than is wanted", &good().text(), &least, &["tested"], saying);
    }
    fails_at("nothing", "", &LEAST, &["tested"], "cells: 0");
    let text = good().text() + "{\"at\": \"sta\nnonsense\n";
    fails_at("lines that cannot be read", &text, &LEAST, &["readable"], "2 lines");
}
