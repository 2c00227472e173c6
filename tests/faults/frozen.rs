//! A worker frozen beyond its session, and continued.

use super::home::{Home, Worker, until};
use rustix::process::Signal;
use std::{fs, path::Path};

/// Two workers with a share each, whose handlers take one call at a time, and much to do.
fn scene(in_flight: u32, cells: usize) -> (Home, Worker, Worker) {
    let handler = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/handler.py");
    let home = Home::embedded(&format!(
        "in_flight = {in_flight}\nhandler = {{ kind = \"exec\", command = [\"python3\", {handler:?}, \"calls\", \"0.2\"] }}\n"
    ));
    let (frozen, other) = (home.worker(), home.starting());
    home.until_shards("both have a share", |shards| {
        shards[0]["owner"].is_string() && shards.iter().any(|shard| shard["owner"] != shards[0]["owner"])
    });
    put(&home, "row", cells);
    (home, frozen, other)
}

fn put(home: &Home, rows: &str, cells: usize) {
    let mut bulk = home.bulk();
    for row in 0..cells {
        bulk.give(&format!("{rows} {row}"));
    }
    assert_eq!(bulk.ended().code, Some(0));
}

/// Cells that are put while a worker is frozen: some in each of the four shards.
const MORE: usize = 24;

/// Freezes the first worker while it has calls under way, until the other one has called for all of its shards, and longer
/// than any call takes. Gives the number of calls that it and its handler had made by then.
fn freeze(home: &Home, frozen: &Worker) -> usize {
    until(|| calls_of(home, frozen.pid()).len() >= 3).expect("it calls");
    frozen.signal(Signal::STOP);
    // On a slow machine it may have finished a shard already: each gets more to do.
    put(home, "more", MORE);
    let mine: Vec<u64> = calls_of(home, frozen.pid()).iter().map(|call| call[0]).collect();
    until(|| mine.iter().all(|shard| newest(home, *shard) > 1)).expect("the other one takes over");
    calls_of(home, frozen.pid()).len()
}

/// The calls of a worker: shard, added ID, epoch.
fn calls_of(home: &Home, worker: u32) -> Vec<[u64; 3]> {
    let all = all(home);
    all.into_iter().filter(|call| call[3] == u64::from(worker)).map(|call| [call[0], call[1], call[2]]).collect()
}

fn all(home: &Home) -> Vec<[u64; 4]> {
    let text = fs::read_to_string(home.path("calls")).unwrap_or_default();
    let numbers = |line: &str| line.split(' ').map(|number| number.parse().unwrap()).collect::<Vec<u64>>();
    text.lines().map(numbers).map(|numbers| numbers.try_into().unwrap()).collect()
}

fn newest(home: &Home, shard: u64) -> u64 {
    all(home).iter().filter(|call| call[0] == shard).map(|call| call[2]).max().unwrap_or(0)
}

/// The woken worker starts nothing under the epoch that it had, gets a session and a share again, and nothing is lost.
fn wake(home: &Home, mut frozen: Worker, mut other: Worker, before: usize, cells: u64) {
    frozen.signal(Signal::CONT);
    frozen.hears("this session was declared dead by another worker");
    frozen.hears_times("session opened", 2);
    frozen.hears_times("took shards", 2);
    home.until_handled(cells);
    // The other one may have handled everything meanwhile: new cells come until the woken one has called for some.
    let mut late = 0_u64;
    until(|| {
        late += 1;
        home.put(&format!("late-{late}"));
        calls_of(home, frozen.pid()).len() > before
    })
    .expect("it calls again");
    home.until_handled(cells + late);
    let woken = calls_of(home, frozen.pid()).split_off(before);
    assert!(woken.iter().all(|call| call[2] > 1), "calls under a passed epoch by the woken worker: {woken:?}");
    let mut cells_called: Vec<(u64, u64)> = all(home).iter().map(|call| (call[0], call[1])).collect();
    cells_called.sort_unstable();
    cells_called.dedup();
    assert_eq!(cells_called.len() as u64, cells + late);
    for worker in [&mut frozen, &mut other] {
        worker.signal(Signal::TERM);
        worker.ends_with(0);
    }
}

#[test]
fn a_woken_worker_starts_nothing_under_a_passed_epoch() {
    // What is in flight is with the handler's process: nothing waits in the frozen worker.
    let (home, frozen, other) = scene(1, 60);
    let before = freeze(&home, &frozen);
    wake(&home, frozen, other, before, 60 + MORE as u64);
}

#[test]
fn a_woken_worker_starts_nothing_of_what_waited_in_it() {
    let (home, frozen, other) = scene(8, 80);
    let before = freeze(&home, &frozen);
    wake(&home, frozen, other, before, 80 + MORE as u64);
}
