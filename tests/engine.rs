//! Whole workers over memory, in virtual time: what one trigger, row or datastore may do to the others.
//!
//! Each test names a way in which something could stand still, and shows that the rest goes on.

mod guard;
mod outage;
mod restored;
mod retention;
mod verbs;
mod weights;

use cellhook::{
    cell::{CellKey, Event, Handler, Ledger, Millis, Name, NewCell, NewDatastore, TriggerState, Verdict, clock},
    dispatch::{BreakerConfig, Config, Retry},
    handler::handler_fn,
    lease::{self, Identity},
    store::{
        Cells,
        memory::{MemoryLedger, MemoryLog},
    },
    tail,
    worker::{Reload, Retention, Setup, TriggerSpec, Watch, Worker, WorkerError},
};
use std::{
    collections::BTreeMap,
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

const SECOND: Duration = Duration::from_secs(1);

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// A group and its datastores.
struct Group {
    ledger: Arc<MemoryLedger>,
    logs: BTreeMap<Name, Arc<MemoryLog>>,
}

/// A worker at work.
struct Running {
    stop: CancellationToken,
    reloads: mpsc::Sender<Reload>,
    watch: Watch,
    cells: BTreeMap<Name, Cells>,
    task: JoinSet<()>,
}

/// Row keys with the moment at which they were handled.
type Handled = Arc<Mutex<Vec<(String, Instant)>>>;

impl Group {
    fn new(datastores: &[(&str, u32)]) -> Self {
        clock::simulate(Millis(1_700_000_000_000));
        let log = |(text, shards): &(&str, u32)| {
            let name = name(text);
            (name.clone(), Arc::new(MemoryLog::new(&NewDatastore { name, shards: *shards })))
        };
        Self { ledger: Arc::default(), logs: datastores.iter().map(log).collect() }
    }

    /// Starts a worker that has these datastores in its config.
    async fn worker(&self, sources: &[&str], memory: u64, triggers: Vec<TriggerSpec>) -> Running {
        self.worker_that_keeps(None, sources, memory, triggers).await
    }

    /// The same, with logs that are kept for a time only.
    async fn worker_that_keeps(
        &self,
        retention: Option<Retention>,
        sources: &[&str],
        memory: u64,
        triggers: Vec<TriggerSpec>,
    ) -> Running {
        self.worker_as(sources, memory, triggers, |setup| setup.retention = retention).await
    }

    /// The same, changed in some way.
    async fn worker_as(
        &self,
        sources: &[&str],
        memory: u64,
        triggers: Vec<TriggerSpec>,
        change: impl FnOnce(&mut Setup),
    ) -> Running {
        let source = |text: &&str| (name(text), Cells::new(self.logs[&name(text)].clone()));
        let cells: BTreeMap<Name, Cells> = sources.iter().map(source).collect();
        let mut setup = Setup {
            lease: lease::Config::default(),
            poll: tail::Config { floor: SECOND / 5, ceiling: 2 * SECOND },
            checkpoint_interval: SECOND,
            memory,
            group: name("g"),
            ledger: self.ledger.clone(),
            presence: None,
            identity: Identity::default(),
            sources: cells.clone(),
            triggers,
            retention: None,
            wrap: None,
        };
        change(&mut setup);
        let worker = Worker::new(setup).await.unwrap();
        let (watch, stop) = (worker.watch(), CancellationToken::new());
        let (reloads, reload) = mpsc::channel(1);
        let mut task = JoinSet::new();
        task.spawn(worker.run(stop.clone(), reload));
        Running { stop, reloads, watch, cells, task }
    }
}

impl Running {
    async fn put(&self, datastore: &str, rows: impl IntoIterator<Item = String>, size: usize) {
        let body = format!("\"{}\"", "x".repeat(size));
        let cell = |(i, row): (usize, String)| {
            let key = CellKey { row_key: row.into(), column: "C".into(), ref_key: i as u64 };
            NewCell { key, body: body.as_str().into(), origin: None }
        };
        let cells = rows.into_iter().enumerate().map(cell).collect();
        assert!(self.cells[&name(datastore)].put(cells).await.iter().all(Result::is_ok));
    }

    async fn reload(&self, triggers: Vec<TriggerSpec>) -> Result<usize, WorkerError> {
        let (sender, answer) = oneshot::channel();
        assert!(self.reloads.send(Reload { triggers, answer: sender }).await.is_ok());
        answer.await.unwrap()
    }

    async fn leave(mut self) {
        self.stop.cancel();
        self.task.join_next().await.unwrap().unwrap();
    }
}

fn spec(text: &str, source: &str, handler: Arc<dyn Handler>) -> TriggerSpec {
    let config = Config { breaker: None, ..Config::new(name(source)) };
    TriggerSpec { name: name(text), config, handler }
}

/// Handles everything and remembers it.
fn good() -> (Arc<dyn Handler>, Handled) {
    let handled = Handled::default();
    let all = handled.clone();
    let handler = handler_fn(move |event: Event| {
        all.lock().unwrap().push((event.cell.key.row_key.to_string(), Instant::now()));
        async { Verdict::done() }
    });
    (handler, handled)
}

/// Is never done.
fn hanging() -> Arc<dyn Handler> {
    handler_fn(|_| pending())
}

/// Waits until so many are handled.
async fn until(handled: &Handled, wanted: usize, within: Duration) {
    let all = async {
        while handled.lock().unwrap().len() < wanted {
            sleep(SECOND / 10).await;
        }
    };
    let told = timeout(within, all).await;
    assert!(told.is_ok(), "{} of {wanted} handled within {within:?}", handled.lock().unwrap().len());
}

fn rows(n: usize) -> impl Iterator<Item = String> {
    (0..n).map(|i| format!("row-{i}"))
}

#[tokio::test(start_paused = true)]
async fn a_paused_trigger_holds_nobody_up_when_memory_is_scarce() {
    let group = Group::new(&[("trips", 16)]);
    let (handler, handled) = good();
    let (other, _) = good();
    let worker =
        group.worker(&["trips"], 1 << 20, vec![spec("live", "trips", handler), spec("idle", "trips", other)]).await;
    worker.put("trips", rows(10), 10).await;
    until(&handled, 10, 60 * SECOND).await;
    let mut record = group.ledger.triggers().await.unwrap().into_iter().find(|r| r.name == name("idle")).unwrap();
    record.state = TriggerState::Paused { reason: "test".into() };
    group.ledger.update_trigger(&record).await.unwrap();
    lease::nudge_all(&*group.ledger).await.unwrap();
    sleep(5 * SECOND).await;
    // Twenty times the memory that there is.
    worker.put("trips", (0..20_000).map(|i| format!("more-{i}")), 1000).await;
    until(&handled, 20_010, 600 * SECOND).await;
    sleep(2 * SECOND).await;
    let lag: u64 = worker.watch.standings.read().values().map(|told| told[&name("idle")].lag).sum();
    assert_eq!(lag, 20_000, "the paused one has all before it");
    let oldest = worker.watch.standings.read().into_values().filter_map(|told| told[&name("idle")].oldest).count();
    assert_eq!(oldest, 16, "and it is known for how long");
    worker.leave().await;
}

#[tokio::test(start_paused = true)]
async fn a_hanging_handler_holds_nobody_up_when_memory_is_scarce() {
    let group = Group::new(&[("trips", 16)]);
    let (handler, handled) = good();
    let mut stuck = spec("stuck", "trips", hanging());
    stuck.config.timeout = Duration::from_hours(10);
    let worker = group.worker(&["trips"], 1 << 20, vec![stuck, spec("live", "trips", handler)]).await;
    worker.put("trips", rows(20_000), 1000).await;
    until(&handled, 20_000, 600 * SECOND).await;
}

/// An outage downstream of an hour, for each cell of which the handler complains at length.
#[tokio::test(start_paused = true)]
async fn parked_cells_take_no_more_memory_than_they_may() {
    let group = Group::new(&[("trips", 4)]);
    let (well, handled) = (Arc::new(AtomicBool::new(false)), Handled::default());
    let (is_well, all) = (well.clone(), handled.clone());
    let handler = handler_fn(move |event: Event| {
        let done = is_well.load(SeqCst);
        if done {
            all.lock().unwrap().push((event.cell.key.row_key.to_string(), Instant::now()));
        }
        let failed = || Verdict::Failed { error: "x".repeat(1000), retry_after: Some(3600 * SECOND) };
        async move { if done { Verdict::done() } else { failed() } }
    });
    // A quarter of it, 256 KB, for cells of more than 1.6 KB.
    let worker = group.worker(&["trips"], 1 << 20, vec![spec("a", "trips", handler)]).await;
    worker.put("trips", rows(2000), 10).await;
    sleep(1800 * SECOND).await;
    let parked = group.ledger.all_parked(None, 10_000).await.unwrap().len();
    assert!((40..=164).contains(&parked), "{parked} of 2000 are parked");
    well.store(true, SeqCst);
    until(&handled, 2000, 4 * 3600 * SECOND).await;
    sleep(10 * SECOND).await;
    assert_eq!(group.ledger.all_parked(None, 10).await.unwrap(), []);
    worker.leave().await;
}

#[tokio::test(start_paused = true)]
async fn a_reload_stops_none_of_the_triggers_that_stay() {
    let group = Group::new(&[("trips", 1)]);
    let (a, handled_a) = good();
    let mut stuck = spec("stuck", "trips", hanging());
    stuck.config.timeout = Duration::from_hours(10);
    let stay = spec("stay", "trips", a);
    let worker = group.worker(&["trips"], 1 << 24, vec![stay.clone(), stuck.clone()]).await;
    worker.put("trips", rows(5), 10).await;
    until(&handled_a, 5, 60 * SECOND).await;
    // One is added, one stays, one is changed while all of its calls hang.
    let (b, handled_b) = good();
    let (c, handled_c) = good();
    let changed = TriggerSpec { handler: c, ..stuck };
    let told = worker.reload(vec![stay.clone(), spec("added", "trips", b), changed]).await;
    assert_eq!(told.unwrap(), 3);
    until(&handled_b, 5, 10 * SECOND).await;
    worker.put("trips", (0..5).map(|i| format!("late-{i}")), 10).await;
    until(&handled_a, 10, 10 * SECOND).await;
    until(&handled_b, 10, 10 * SECOND).await;
    assert_eq!(handled_c.lock().unwrap().len(), 0, "its older form has the cells still in flight");
}

#[tokio::test(start_paused = true)]
async fn a_refused_reload_changes_nothing_and_is_told() {
    let group = Group::new(&[("trips", 1), ("rides", 1)]);
    let (a, handled) = good();
    let worker = group.worker(&["trips", "rides"], 1 << 24, vec![spec("a", "trips", a.clone())]).await;
    worker.put("trips", rows(1), 10).await;
    until(&handled, 1, 60 * SECOND).await;
    let told = worker.reload(vec![spec("a", "rides", a)]).await;
    assert!(matches!(told, Err(WorkerError::OtherSource { .. })), "{told:?}");
    worker.put("trips", (1..3).map(|i| format!("row-{i}")), 10).await;
    until(&handled, 3, 10 * SECOND).await;
    worker.leave().await;
}

#[tokio::test(start_paused = true)]
async fn the_first_trigger_of_a_datastore_may_come_with_a_reload() {
    let group = Group::new(&[("trips", 4), ("rides", 4)]);
    let (a, _) = good();
    let stay = spec("a", "trips", a);
    let worker = group.worker(&["trips", "rides"], 1 << 24, vec![stay.clone()]).await;
    worker.put("rides", rows(20), 10).await;
    sleep(20 * SECOND).await;
    assert!(
        worker.watch.view.borrow().grants.keys().all(|shard| shard.source == name("trips")),
        "nobody tails rides yet"
    );
    let (b, handled) = good();
    worker.reload(vec![stay, spec("b", "rides", b)]).await.unwrap();
    until(&handled, 20, 20 * SECOND).await;
    worker.leave().await;
}

#[tokio::test(start_paused = true)]
async fn shards_are_given_only_to_workers_that_have_the_datastore() {
    let group = Group::new(&[("trips", 16), ("rides", 16)]);
    let (a, handled_a) = good();
    let (b, handled_b) = good();
    let both = vec![spec("a", "trips", a.clone()), spec("b", "rides", b)];
    let first = group.worker(&["trips", "rides"], 1 << 24, both).await;
    let second = group.worker(&["trips"], 1 << 24, vec![spec("a", "trips", a)]).await;
    sleep(120 * SECOND).await;
    let shards = |worker: &Running, source: &str| {
        let source = name(source);
        worker.watch.view.borrow().grants.keys().filter(|shard| shard.source == source).count()
    };
    assert_eq!((shards(&first, "trips"), shards(&second, "trips")), (8, 8));
    assert_eq!((shards(&first, "rides"), shards(&second, "rides")), (16, 0));
    first.put("trips", rows(100), 10).await;
    first.put("rides", rows(100), 10).await;
    until(&handled_a, 100, 10 * SECOND).await;
    until(&handled_b, 100, 10 * SECOND).await;
    second.leave().await;
    first.leave().await;
}

#[tokio::test(start_paused = true)]
async fn all_shards_go_on_soon_after_an_outage_downstream() {
    let group = Group::new(&[("trips", 8)]);
    let broken = Arc::new(AtomicBool::new(true));
    let handled = Handled::default();
    let (is_broken, all) = (broken.clone(), handled.clone());
    let handler = handler_fn(move |event: Event| {
        let verdict = if is_broken.load(SeqCst) {
            Verdict::failed("out")
        } else {
            all.lock().unwrap().push((event.cell.key.row_key.to_string(), Instant::now()));
            Verdict::done()
        };
        async move {
            sleep(SECOND / 100).await;
            verdict
        }
    });
    let mut spec = spec("a", "trips", handler);
    spec.config.breaker = Some(BreakerConfig::default());
    let worker = group.worker(&["trips"], 1 << 24, vec![spec]).await;
    worker.put("trips", rows(400), 10).await;
    sleep(60 * SECOND).await;
    broken.store(false, SeqCst);
    // The cool-down, the other shards' next look, and retries that had been put off up to 10 s.
    until(&handled, 400, 20 * SECOND).await;
    worker.leave().await;
}

#[tokio::test(start_paused = true)]
async fn rows_that_always_fail_are_given_up_though_the_breaker_is_open() {
    let group = Group::new(&[("trips", 1)]);
    let handled = Handled::default();
    let all = handled.clone();
    let handler = handler_fn(move |event: Event| {
        let row = event.cell.key.row_key.to_string();
        let verdict = if row.starts_with("bad") { Verdict::failed("no") } else { Verdict::done() };
        if verdict == Verdict::done() {
            all.lock().unwrap().push((row, Instant::now()));
        }
        async { verdict }
    });
    let mut spec = spec("a", "trips", handler);
    spec.config.breaker = Some(BreakerConfig::default());
    spec.config.retry = Retry { attempts: Some(3), ..spec.config.retry };
    let worker = group.worker(&["trips"], 1 << 24, vec![spec]).await;
    worker.put("trips", (0..30).map(|i| format!("bad-{i}")), 10).await;
    sleep(60 * SECOND).await;
    worker.put("trips", rows(30), 10).await;
    until(&handled, 30, 60 * SECOND).await;
    sleep(600 * SECOND).await;
    let dead: u64 = worker.watch.standings.read().values().map(|told| told[&name("a")].parked[2].cells).sum();
    assert_eq!(dead, 30);
    worker.leave().await;
}

#[tokio::test(start_paused = true)]
async fn a_datastore_made_anew_under_a_worker_is_not_worked_on() {
    let group = Group::new(&[("trips", 1)]);
    let (handler, handled) = good();
    let worker = group.worker(&["trips"], 1 << 24, vec![spec("a", "trips", handler)]).await;
    worker.put("trips", rows(50), 10).await;
    until(&handled, 50, 60 * SECOND).await;
    sleep(5 * SECOND).await;
    group.logs[&name("trips")].make_anew();
    sleep(20 * SECOND).await;
    let stopped = |worker: &Running| {
        worker.watch.standings.read().into_values().find_map(|told| told[&name("a")].stopped.clone())
    };
    assert!(stopped(&worker).unwrap().contains("made anew"), "within 20 s, since the tips went back");
    // Somebody with the new tables writes as many cells as the checkpoint is high, and one more.
    let writer = Cells::new(group.logs[&name("trips")].clone());
    for i in 0..60 {
        let key = CellKey { row_key: format!("new-{i}").into(), column: "C".into(), ref_key: 1 };
        writer.put(vec![NewCell { key, body: "1".into(), origin: None }]).await[0].as_ref().unwrap();
    }
    sleep(120 * SECOND).await;
    assert_eq!(handled.lock().unwrap().len(), 50, "these are other cells than the checkpoint is about");
    worker.leave().await;
}

#[tokio::test(start_paused = true)]
async fn a_pause_that_a_handler_asks_for_holds_and_ends_with_a_resume() {
    let group = Group::new(&[("trips", 4)]);
    let broken = Arc::new(AtomicBool::new(true));
    let handled = Handled::default();
    let (is_broken, all) = (broken.clone(), handled.clone());
    let handler = handler_fn(move |event: Event| {
        let verdict = if is_broken.load(SeqCst) {
            Verdict::Pause { error: "the account is closed".into() }
        } else {
            all.lock().unwrap().push((event.cell.key.row_key.to_string(), Instant::now()));
            Verdict::done()
        };
        async { verdict }
    });
    let worker = group.worker(&["trips"], 1 << 24, vec![spec("a", "trips", handler)]).await;
    worker.put("trips", rows(20), 10).await;
    sleep(30 * SECOND).await;
    let record = || async { group.ledger.triggers().await.unwrap().pop().unwrap() };
    assert_eq!(record().await.state, TriggerState::Paused { reason: "the account is closed".into() });
    broken.store(false, SeqCst);
    sleep(120 * SECOND).await;
    assert_eq!(handled.lock().unwrap().len(), 0, "paused until a person resumes it");
    let mut resumed = record().await;
    resumed.state = TriggerState::Active;
    resumed.generation += 1;
    group.ledger.update_trigger(&resumed).await.unwrap();
    lease::nudge_all(&*group.ledger).await.unwrap();
    until(&handled, 20, 20 * SECOND).await;
    worker.leave().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_leaves_tells_nothing_of_its_shards_any_more() {
    let group = Group::new(&[("trips", 8)]);
    let (handler, handled) = good();
    let worker = group.worker(&["trips"], 1 << 24, vec![spec("a", "trips", handler)]).await;
    worker.put("trips", rows(20), 10).await;
    until(&handled, 20, 60 * SECOND).await;
    let standings = worker.watch.standings.clone();
    assert_eq!(standings.read().len(), 8);
    // Declared dead by somebody: its shards' tasks are dropped in the middle of whatever they do.
    let session = worker.watch.view.borrow().session.clone().unwrap();
    let beat = group.ledger.sessions().await.unwrap().into_iter().find(|s| s.id == session).unwrap().beat;
    group.ledger.declare_dead(&session, Some(beat)).await.unwrap();
    sleep(60 * SECOND).await;
    assert_ne!(worker.watch.view.borrow().session.clone().unwrap(), session, "it goes on with a new session");
    assert_eq!(standings.read().len(), 8);
    worker.leave().await;
    assert_eq!(standings.read().len(), 0);
}

/// Puts a cell of a new row every tenth of a second, and remembers when.
async fn trickle(cells: Cells, put: Arc<Mutex<BTreeMap<String, Instant>>>) {
    for i in 0_u64.. {
        let row = format!("trickle-{i}");
        let key = CellKey { row_key: row.as_str().into(), column: "C".into(), ref_key: i };
        put.lock().unwrap().insert(row, Instant::now());
        cells.put(vec![NewCell { key, body: "1".into(), origin: None }]).await[0].as_ref().unwrap();
        sleep(SECOND / 10).await;
    }
}

/// The longest that a cell put between two moments has waited for its handler.
fn longest(put: &BTreeMap<String, Instant>, handled: &Handled, from: Instant, to: Instant) -> Duration {
    let handled: BTreeMap<String, Instant> = handled.lock().unwrap().iter().cloned().collect();
    let within = put.iter().filter(|(_, at)| (from..to).contains(*at));
    within.map(|(row, at)| *handled.get(row).expect("every cell is handled") - *at).max().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_leaves_is_followed_within_a_second_and_nothing_runs_twice() {
    let group = Group::new(&[("trips", 16)]);
    let (handler, handled) = good();
    let spec = spec("a", "trips", handler);
    let first = group.worker(&["trips"], 1 << 24, vec![spec.clone()]).await;
    let second = group.worker(&["trips"], 1 << 24, vec![spec]).await;
    let put = Arc::default();
    let mut writer = JoinSet::new();
    // The writer's process is neither's: both learn of a cell from the tips.
    writer.spawn(trickle(Cells::new(group.logs[&name("trips")].clone()), Arc::clone(&put)));
    sleep(120 * SECOND).await;
    assert_eq!((first.watch.view.borrow().grants.len(), second.watch.view.borrow().grants.len()), (8, 8));
    let from = Instant::now();
    first.leave().await;
    sleep(30 * SECOND).await;
    writer.shutdown().await;
    sleep(10 * SECOND).await;
    assert_eq!(second.watch.view.borrow().grants.len(), 16);
    let before = longest(&put.lock().unwrap(), &handled, from - 60 * SECOND, from);
    let after = longest(&put.lock().unwrap(), &handled, from, Instant::now());
    assert!(after <= before + SECOND, "{after:?} while it left, {before:?} before");
    let calls = handled.lock().unwrap().len();
    assert_eq!(calls, put.lock().unwrap().len(), "each once");
    second.leave().await;
}

#[tokio::test(start_paused = true)]
async fn a_crash_is_taken_over_within_the_bound() {
    let group = Group::new(&[("trips", 16)]);
    let (handler, handled) = good();
    let spec = spec("a", "trips", handler);
    for round in 0..6_u32 {
        let first = group.worker(&["trips"], 1 << 24, vec![spec.clone()]).await;
        let second = group.worker(&["trips"], 1 << 24, vec![spec.clone()]).await;
        sleep(30 * SECOND + SECOND * round / 2).await;
        // The first one has not read the leases since the second claimed its part.
        let (victim, other) = if round % 2 == 0 { (first, second) } else { (second, first) };
        assert_eq!(victim.watch.view.borrow().grants.len(), 8);
        let crash = Instant::now();
        drop(victim);
        while other.watch.view.borrow().grants.len() < 16 {
            sleep(SECOND / 10).await;
        }
        // A reading sees the last beat, another one that it has stood still for long enough. Nothing else is waited for.
        let lease::Config { session, membership, .. } = lease::Config::default();
        let bound = session + 2 * membership;
        assert!(crash.elapsed() <= bound, "round {round}: {:?}, and the bound is {bound:?}", crash.elapsed());
        other.put("trips", (0..50).map(|i| format!("round-{round}-{i}")), 10).await;
        until(&handled, 50 * (round as usize + 1), 10 * SECOND).await;
        other.leave().await;
    }
}

#[tokio::test(start_paused = true)]
async fn four_thousand_shards_are_no_other_thing() {
    let group = Group::new(&[("trips", 4096)]);
    let (handler, handled) = good();
    let spec = spec("a", "trips", handler);
    let first = group.worker(&["trips"], 1 << 26, vec![spec.clone()]).await;
    let second = group.worker(&["trips"], 1 << 26, vec![spec]).await;
    sleep(300 * SECOND).await;
    assert_eq!((first.watch.view.borrow().grants.len(), second.watch.view.borrow().grants.len()), (2048, 2048));
    first.put("trips", rows(20_000), 10).await;
    until(&handled, 20_000, 30 * SECOND).await;
    second.leave().await;
    sleep(30 * SECOND).await;
    assert_eq!(first.watch.view.borrow().grants.len(), 4096);
    first.leave().await;
}
