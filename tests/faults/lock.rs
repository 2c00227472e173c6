//! A process that holds the store's lock and is stopped in the middle.

use super::home::{Holder, Home, Worker, noting, until};
use rustix::process::Signal;

#[test]
fn a_stopped_holder_of_the_lock_is_named_and_waited_for() {
    let home = Home::embedded(&noting("true"));
    let mut workers = [home.worker(), home.starting()];
    home.until_shards("both have a share", |shards| {
        shards[0]["owner"].is_string() && shards.iter().any(|shard| shard["owner"] != shards[0]["owner"])
    });
    let mut bulk = home.bulk();
    bulk.give("before");
    bulk.is_acknowledged();
    home.until_handled(1);

    let holder = Holder::stopped(&home);
    let lines = workers.each_ref().map(Worker::lines);
    bulk.give("meanwhile");
    // Opening needs the lock too: a put and a get alike say who holds it.
    let put = home.begin(&["put", "trips", "refused", "BASE", "1"]);
    home.run(&["get", "trips", "before", "BASE"]).ended(5).says(&holder.named());
    super::home::Ended::of(put).ended(5).says(&holder.named());
    for (worker, lines) in workers.iter().zip(lines) {
        worker.hears("long wait for the store's lock");
        worker.hears(&format!("process {} (stopped", holder.pid()));
        let said = worker.lines() - lines;
        assert!(said <= 30, "{said} lines in about 10 s: {}", worker.said());
    }
    assert_eq!(home.calls().len(), 1, "nothing is handled by who cannot write");

    holder.goes_on();
    bulk.is_acknowledged();
    bulk.ended().ended(0);
    home.put("after");
    home.until_handled(3);

    // The same, and the holder is killed.
    let holder = Holder::stopped(&home);
    let waits = home.begin(&["put", "trips", "waits", "BASE", "1"]);
    until(|| workers.iter().all(|worker| worker.said().contains(&format!("process {} (stopped", holder.pid()))))
        .unwrap_or_else(|| panic!("{}", workers[0].said()));
    drop(holder);
    super::home::Ended::of(waits).ended(0);
    home.until_handled(4);
    home.called(4);
    for worker in &mut workers {
        worker.signal(Signal::TERM);
        worker.ends_with(0);
    }
}
