//! The crash guard: a cell whose call ends its worker is found and put aside, and no other is taken for it.

use super::*;
use cellhook::{
    cell::{Parked, ParkedState, ShardId, ShardRef},
    dispatch::Exhausted,
};
use std::sync::atomic::AtomicUsize;

/// Workers that are started again when they die, and a writer beside them.
struct Service {
    group: Group,
    writer: Cells,
    running: BTreeMap<usize, Running>,
    /// Numbers of workers whose process has ended.
    died: mpsc::UnboundedReceiver<usize>,
    dies: mpsc::UnboundedSender<usize>,
    started: usize,
    deaths: usize,
    handled: Handled,
    calls: Arc<Mutex<Vec<String>>>,
    /// How many calls are under way, and the most that there were.
    at_once: Arc<(AtomicUsize, AtomicUsize)>,
    change: fn(&mut Config),
}

impl Service {
    fn new(shards: u32, change: fn(&mut Config)) -> Self {
        let group = Group::new(&[("trips", shards)]);
        let writer = Cells::new(group.logs[&name("trips")].clone());
        let (dies, died) = mpsc::unbounded_channel();
        Self {
            group,
            writer,
            running: BTreeMap::new(),
            died,
            dies,
            started: 0,
            deaths: 0,
            handled: Handled::default(),
            calls: Arc::default(),
            at_once: Arc::default(),
            change,
        }
    }

    /// A worker whose process ends half a second after a call for a row `bad…`, and with the second call of a row `turns…`,
    /// the first of which fails; a row `slow…` takes a second.
    async fn start(&mut self) {
        let number = self.started;
        self.started += 1;
        let (dies, handled, calls, at_once) =
            (self.dies.clone(), self.handled.clone(), self.calls.clone(), self.at_once.clone());
        let handler = handler_fn(move |event: Event| {
            let row = event.cell.key.row_key.to_string();
            let before = calls.lock().unwrap().iter().filter(|called| **called == row).count();
            calls.lock().unwrap().push(row.clone());
            let (dies, handled, at_once) = (dies.clone(), handled.clone(), at_once.clone());
            async move {
                let now = at_once.0.fetch_add(1, SeqCst) + 1;
                at_once.1.fetch_max(now, SeqCst);
                let verdict = match &*row {
                    row if row.starts_with("turns") && before == 0 => {
                        Verdict::Failed { error: "no".into(), retry_after: Some(40 * SECOND) }
                    }
                    row if row.starts_with("bad") || row.starts_with("turns") => {
                        sleep(SECOND / 2).await;
                        dies.send(number).unwrap();
                        pending().await
                    }
                    row => {
                        sleep(if row.starts_with("slow") { SECOND } else { SECOND / 100 }).await;
                        handled.lock().unwrap().push((row.to_owned(), Instant::now()));
                        Verdict::done()
                    }
                };
                at_once.0.fetch_sub(1, SeqCst);
                verdict
            }
        });
        let mut spec = spec("a", "trips", handler);
        (self.change)(&mut spec.config);
        let worker = self.group.worker(&["trips"], 1 << 24, vec![spec]).await;
        self.running.insert(number, worker);
    }

    /// Lets time pass; whoever dies is gone at once, and another one starts.
    async fn pass(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while let Ok(Some(number)) = tokio::time::timeout_at(until, self.died.recv()).await {
            // A call that outlived its worker has no process to end.
            if self.running.remove(&number).is_some() {
                self.deaths += 1;
                self.at_once.0.store(0, SeqCst);
                self.start().await;
            }
        }
    }

    async fn kill_all(&mut self) {
        self.running.clear();
        self.at_once.0.store(0, SeqCst);
    }

    async fn put(&self, rows: impl IntoIterator<Item = String>) {
        for row in rows {
            let key = CellKey { row_key: row.into(), column: "C".into(), ref_key: 1 };
            self.writer.put(vec![NewCell { key, body: "1".into(), origin: None }]).await[0].as_ref().unwrap();
        }
    }

    /// The rows that were handled, each once.
    fn rows(&self) -> std::collections::BTreeSet<String> {
        self.handled.lock().unwrap().iter().map(|(row, _)| row.clone()).collect()
    }

    async fn parked(&self) -> Vec<Parked> {
        self.group.ledger.all_parked(None, 1000).await.unwrap()
    }

    fn called(&self, row: &str) -> usize {
        self.calls.lock().unwrap().iter().filter(|called| *called == row).count()
    }
}

/// A row of this shard, of two, with this beginning.
fn row_of(shard: u32, begins: &str, n: usize) -> String {
    let mut rows = (0..).map(|i| format!("{begins}-{n}-{i}"));
    rows.find(|row| ShardId::of(row, 2) == ShardId(shard)).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_cell_that_kills_its_workers_is_put_aside_and_no_other() {
    let mut service = Service::new(8, |_| {});
    service.put(rows(100).chain(["bad".to_owned()]).chain((100..200).map(|i| format!("row-{i}")))).await;
    for _ in 0..3 {
        service.start().await;
    }
    service.pass(300 * SECOND).await;
    assert_eq!(service.rows(), rows(200).collect(), "all but one are handled");
    let parked = service.parked().await;
    assert_eq!(
        parked.iter().map(|cell| (&*cell.row_key, cell.state)).collect::<Vec<_>>(),
        [("bad", ParkedState::Dead)]
    );
    let error = parked[0].errors.last().unwrap();
    assert!(error.contains("4 workers died with this cell in flight"), "{error}");
    assert_eq!((service.deaths, service.called("bad")), (4, 4), "two, one that names a suspect, one that proves it");
    // And all is as it was.
    service.at_once.1.store(0, SeqCst);
    service.put((200..400).map(|i| format!("row-{i}"))).await;
    service.pass(60 * SECOND).await;
    assert_eq!(service.rows().len(), 400);
    assert!(service.at_once.1.load(SeqCst) > 1, "side by side again");
    let leases = service.group.ledger.leases(&name("trips")).await.unwrap();
    assert!(leases.iter().all(|lease| lease.alone.is_none()));
    for (_, worker) in std::mem::take(&mut service.running) {
        worker.leave().await;
    }
    assert_eq!(service.deaths, 4);
}

/// While innocent cells of one shard are called one at a time, one of another shard, which is under no guard, kills the
/// worker again and again.
#[tokio::test(start_paused = true)]
async fn whoever_stands_beside_a_bad_cell_is_not_taken_for_it() {
    let mut service = Service::new(2, |_| {});
    let slow: Vec<String> = (0..30).map(|n| row_of(0, "slow", n)).collect();
    service.put(slow.iter().cloned()).await;
    service.put([row_of(0, "bad", 0)]).await;
    service.start().await;
    while service.deaths < 2 {
        service.pass(SECOND).await;
    }
    service.put((1..4).map(|n| row_of(1, "bad", n))).await;
    service.pass(1200 * SECOND).await;
    assert_eq!(service.rows(), slow.into_iter().collect());
    let parked: Vec<String> = service.parked().await.into_iter().map(|cell| cell.row_key).collect();
    let mut bad: Vec<String> = (1..4).map(|n| row_of(1, "bad", n)).chain([row_of(0, "bad", 0)]).collect();
    bad.sort();
    let sorted = |mut rows: Vec<String>| {
        rows.sort();
        rows
    };
    assert_eq!(sorted(parked), bad);
    assert!(service.deaths <= 4 * 4, "{} deaths for four bad cells", service.deaths);
}

/// A parked cell does not hold low-water, which moves on between the deaths.
#[tokio::test(start_paused = true)]
async fn a_parked_cell_that_kills_at_its_next_attempt_is_put_aside() {
    let mut service = Service::new(1, |_| {});
    service.put(["turns".to_owned()]).await;
    service.start().await;
    for i in 0..200 {
        service.put([format!("row-{i}")]).await;
        service.pass(2 * SECOND).await;
    }
    assert_eq!(service.rows(), rows(200).collect());
    let parked = service.parked().await;
    assert_eq!(
        parked.iter().map(|cell| (&*cell.row_key, cell.state)).collect::<Vec<_>>(),
        [("turns", ParkedState::Dead)]
    );
    assert_eq!(parked[0].errors.len(), 2, "the failure, and why it was put aside");
    assert_eq!(service.deaths, 4);
}

#[tokio::test(start_paused = true)]
async fn where_failures_block_a_bad_cell_pauses_its_shard() {
    let mut service = Service::new(1, |config| config.exhausted = Exhausted::Block);
    service.put(["bad".to_owned(), "row-0".to_owned()]).await;
    service.start().await;
    service.pass(300 * SECOND).await;
    assert_eq!((service.deaths, service.called("bad")), (4, 4));
    assert_eq!(service.parked().await, []);
    let standing = || service.running.values().next().unwrap().watch.standings.read();
    let paused = standing().into_values().find_map(|told| told[&name("a")].paused.clone());
    assert!(paused.as_ref().is_some_and(|reason| reason.starts_with("cell 1: 4 workers died")), "{paused:?}");
    let lag: u64 = standing().values().map(|told| told[&name("a")].lag).sum();
    assert!(lag >= 1, "it is passed by nobody");
}

#[tokio::test(start_paused = true)]
async fn idle_workers_that_are_killed_cost_nothing_later() {
    let mut service = Service::new(2, |_| {});
    for _ in 0..5 {
        service.start().await;
        service.pass(60 * SECOND).await;
        service.kill_all().await;
    }
    service.start().await;
    service.pass(60 * SECOND).await;
    let shard = |n| ShardRef { source: name("trips"), shard: ShardId(n) };
    for n in 0..2 {
        assert_eq!(service.group.ledger.lease(&shard(n)).await.unwrap().unwrap().deaths, 5);
    }
    service.put((0..20).map(|n| row_of(0, "slow", n))).await;
    service.pass(5 * SECOND).await;
    assert_eq!(service.rows().len(), 20, "side by side, not in twenty seconds");
    // Nor is anything held against the next cells when their worker dies once.
    service.put((20..40).map(|n| row_of(0, "slow", n))).await;
    service.pass(3 * SECOND / 2).await;
    service.kill_all().await;
    service.start().await;
    service.pass(17 * SECOND).await;
    assert_eq!(service.rows().len(), 40);
}

/// Workers that are killed for other reasons, each while it calls the first cell of all.
#[tokio::test(start_paused = true)]
async fn a_worker_that_is_killed_by_others_costs_no_cell() {
    let mut service = Service::new(1, |_| {});
    service.put((0..40).map(|i| format!("slow-{i}"))).await;
    let shard = ShardRef { source: name("trips"), shard: ShardId(0) };
    for round in 1..=3 {
        service.start().await;
        while service.calls.lock().unwrap().iter().filter(|row| *row == "slow-0").count() < round {
            service.pass(SECOND / 20).await;
        }
        service.pass(SECOND / 4).await;
        service.kill_all().await;
    }
    assert_eq!(service.handled.lock().unwrap().len(), 0, "none of them lived for a second");
    let lease = service.group.ledger.lease(&shard).await.unwrap().unwrap();
    let named = lease.alone.expect("the last one died while it called one cell alone");
    assert_eq!((named.added_id.0, named.quiet, lease.deaths), (1, false, 2));
    service.start().await;
    service.pass(120 * SECOND).await;
    assert_eq!(service.rows().len(), 40);
    assert_eq!(service.parked().await, []);
    assert_eq!(service.group.ledger.lease(&shard).await.unwrap().unwrap().alone, None);
}
