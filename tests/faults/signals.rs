//! Signals at the worst moments.

use super::home::{Holder, Home, Worker, noting, until};
use rustix::process::Signal;
use std::time::{Duration, SystemTime};

/// A worker with one call under way.
fn busy(home: &Home) -> Worker {
    let worker = home.worker();
    home.put("row");
    until(|| home.calls().len() == 1).expect("the handler is called");
    worker
}

#[test]
fn a_second_sigterm_leaves_at_once_and_loses_nothing() {
    let home = Home::embedded(&noting("test -e quick || sleep 30"));
    let mut worker = busy(&home);
    worker.signal(Signal::TERM);
    worker.hears("stopping: calls under way are finished");
    worker.signal(Signal::TERM);
    worker.ends_with(143);
    std::fs::write(home.path("quick"), "").unwrap();
    let _next = home.worker();
    home.until_handled(1);
    let calls = home.called(1);
    assert_eq!(calls.iter().map(|(_, _, epoch)| *epoch).collect::<Vec<_>>(), [1, 2], "again, by the next owner");
}

#[test]
fn sigterm_is_obeyed_while_the_store_does_not_answer() {
    let config = Home::config("store.db", &noting("test -e quick || sleep 1"));
    let home = Home::new(&config.replace("drain_deadline = \"10s\"", "drain_deadline = \"1s\""));
    let mut worker = busy(&home);
    let holder = Holder::stopped(&home);
    let start = SystemTime::now();
    worker.signal(Signal::TERM);
    worker.hears("could not tell the others that this worker leaves; trying again");
    worker.hears("left before these shards were handed over");
    worker.hears("could not sign off");
    worker.ends_with(0);
    assert!(start.elapsed().unwrap() < Duration::from_secs(30), "drain deadline 1 s, and what requests take");
    assert!(worker.lines() < 60, "{}", worker.said());
    holder.goes_on();
    std::fs::write(home.path("quick"), "").unwrap();
    let mut next = home.worker();
    home.until_handled(1);
    assert_eq!(home.called(1).len(), 2, "its end could not be written: the next owner calls again");

    // And at once, when asked twice.
    let _holder = Holder::stopped(&home);
    next.signal(Signal::TERM);
    next.hears("stopping");
    let start = SystemTime::now();
    next.signal(Signal::TERM);
    next.ends_with(143);
    assert!(start.elapsed().unwrap() < Duration::from_secs(5));
}

#[test]
fn a_bad_file_at_sighup_changes_nothing_in_any_phase() {
    const BAD: &str = "[datastores.trips]\nshards = 4\n[trigers.bill]\n";
    let home = Home::embedded(&noting("until test -e quick; do sleep 0.1; done"));
    let good = std::fs::read_to_string(home.path("cellhook.toml")).unwrap();
    // At start, while somebody holds the lock.
    home.run(&["init"]).ended(0);
    let holder = Holder::stopped(&home);
    let mut worker = home.starting();
    worker.hears("long wait for the store's lock");
    home.configure(BAD);
    worker.signal(Signal::HUP);
    std::thread::sleep(Duration::from_millis(200));
    assert!(worker.runs(), "{}", worker.said());
    home.configure(&good);
    holder.goes_on();
    worker.hears("took shards");

    // While a call is under way.
    home.put("row");
    until(|| home.calls().len() == 1).unwrap_or_else(|| panic!("{}", worker.said()));
    home.configure(BAD);
    worker.signal(Signal::HUP);
    worker.hears("the reload is refused; nothing changed");
    worker.hears("did you mean `triggers`?");
    // And while it leaves. The reload that is refused last takes nothing away from the call that it still waits for.
    worker.signal(Signal::TERM);
    worker.hears("stopping");
    let refusals = worker.said_times("the reload is refused");
    worker.signal(Signal::HUP);
    worker.hears_times("the reload is refused", refusals + 1);
    home.configure(&good);
    worker.signal(Signal::HUP);
    until(|| worker.said_times("reload") > refusals + 1).unwrap_or_else(|| panic!("{}", worker.said()));
    assert!(worker.runs(), "{}", worker.said());
    std::fs::write(home.path("quick"), "").unwrap();
    worker.ends_with(0);
    home.until_handled(1);
    assert_eq!(home.called(1).len(), 1, "it was finished, written and handed over");
    let shards = home.until_shards("handed over", |shards| shards.iter().all(|shard| shard["owner"].is_null()));
    assert_eq!(shards.len(), 4);
}

#[test]
fn sigterm_before_the_first_shard_ends_well() {
    let home = Home::embedded(&noting("true"));
    home.run(&["init"]).ended(0);
    home.put("row");
    // While it opens the store.
    let holder = Holder::stopped(&home);
    let mut worker = home.starting();
    worker.hears("long wait for the store's lock");
    let start = SystemTime::now();
    worker.signal(Signal::TERM);
    worker.ends_with(0);
    assert!(start.elapsed().unwrap() < Duration::from_secs(5));
    holder.goes_on();
    // While it waits to be counted beside another one.
    let mut first = home.worker();
    let mut second = home.starting();
    second.hears("session opened");
    second.signal(Signal::TERM);
    second.ends_with(0);
    home.put("another");
    home.until_handled(2);
    first.signal(Signal::TERM);
    first.ends_with(0);
    assert_eq!(home.called(2).len(), 2);
}

/// Who changes the file and says so must not be forgotten, however early that is.
#[test]
fn a_reload_that_is_asked_for_at_start_is_done() {
    let home = Home::embedded(&noting("true"));
    let config = std::fs::read_to_string(home.path("cellhook.toml")).unwrap();
    home.run(&["init"]).ended(0);
    let holder = Holder::stopped(&home);
    let worker = home.starting();
    worker.hears("long wait for the store's lock");
    home.configure(&config.replace("bill", "charge"));
    worker.signal(Signal::HUP);
    std::thread::sleep(Duration::from_millis(200));
    holder.goes_on();
    worker.hears("took shards");
    until(|| home.run(&["triggers"]).stdout.contains("charge")).unwrap_or_else(|| panic!("{}", worker.said()));
}
