//! One case: a whole worker on the SDK's own clients, a server that answers it badly, and what came of it. In virtual time.
//!
//! The *subject* is the worker whose requests meet the fault. Beside it, where the phase has one, stands *the other*, which is well.
//! The operator appends cells, and looks.

use super::{
    faults::Fault,
    server::{Server, Watched},
};
use cellhook::{
    cell::{
        AddedId, Answer, CellKey, Checkpoint, Epoch, Event, Handler, LeaseWrite, Ledger, Log, Millis, Name, NewCell,
        NewDatastore, Nudge, PutCell, Session, SessionId, SessionState, ShardId, ShardRef, TriggerId, TriggerRecord,
        TriggerState, Verdict as Said, Written, chain, clock,
    },
    dispatch::{Config, Retry},
    handler::handler_fn,
    lease::{self, Identity},
    store::{Cells, Store},
    tail,
    worker::{Reload, Retention, Setup, TriggerSpec, Watch, Worker},
};
use futures_util::FutureExt;
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

const SECOND: Duration = Duration::from_secs(1);
const SHARDS: u32 = 2;
const NOW: Millis = Millis(1_700_000_000_000);
/// Between two looks of the operator.
const LOOK: Duration = Duration::from_millis(250);
/// How long a lasting fault lasts: longer than everything that is done once a minute.
const LASTS: Duration = Duration::from_secs(100);
/// Within this everything is handled once the fault has gone.
const RECOVERED: Duration = Duration::from_secs(120);
/// Within this a worker that is told to stop has ended, whatever is answered to it: 3 s in which the others see that it leaves, 10 s
/// of draining, 5 s for the last writes, and the last requests with their time-outs.
const LEFT: Duration = Duration::from_secs(40);

/// When the fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// From the first request of a process on, until it has caught up with what it finds: a log that was trimmed under a
    /// checkpoint, a segment that cannot be decoded, a lease of a session that is not there, a session that is long dead.
    StartUp,
    /// With another worker, while cells come, are parked, retried and answered with cells, and a handler pauses its trigger.
    Steady,
    /// Alone, while logs are trimmed by their retention.
    Trimming,
    /// From the death of another worker on.
    Takeover,
    /// From the signal to stop on, with calls under way and another worker there.
    Shutdown,
}

/// What came of the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    /// It works on, and keeps its shards. One that was to stop has handed them over.
    Retry,
    /// It works on, and a shard that it held has another owner or epoch. One that was to stop has left a shard behind.
    GiveUp,
    /// It has ended, with a message.
    Stop,
}

/// What a case showed.
pub(crate) struct Seen {
    pub(crate) verdict: Verdict,
    /// Why it ended, or could not begin.
    pub(crate) message: String,
    /// The warnings and errors of the subject from the fault on.
    pub(crate) log: String,
    pub(crate) watched: Watched,
    /// What should be and is not.
    pub(crate) wrong: Vec<String>,
}

/// Lives through a phase without a fault, or with one: once, or until it is healed.
pub(crate) fn live(phase: Phase, fault: Option<(&'static str, &'static Fault, bool)>, seed: u64) -> Seen {
    fastrand::seed(seed);
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter("cellhook=warn")
        .with_ansi(false)
        .without_time()
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        clock::simulate(NOW);
        World::new(lines).await.live(phase, fault).await
    })
}

/// What is logged.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the handlers were called for.
#[derive(Default)]
struct Calls {
    attempts: Mutex<BTreeMap<String, u32>>,
    handled: Mutex<BTreeSet<String>>,
}

impl Calls {
    /// The row's name says what is to come of it.
    async fn one(&self, event: Event) -> Said {
        let row = event.cell.key.row_key.to_string();
        let attempt = {
            let mut attempts = self.attempts.lock().unwrap();
            let attempts = attempts.entry(row.clone()).or_default();
            *attempts += 1;
            *attempts
        };
        let kind = row.split('-').next().unwrap_or_default().to_owned();
        sleep(if kind == "slow" { 2 * SECOND } else { SECOND / 20 }).await;
        let said = match (&*kind, attempt) {
            ("later", 1) => Said::Failed { error: "not yet".into(), retry_after: Some(12 * SECOND) },
            ("dead", _) => Said::DeadLetter { error: "never".into() },
            ("pause", 1) => Said::Pause { error: "a rest".into() },
            ("append", _) => {
                let cell = PutCell { row_key: None, column: "STATUS".into(), ref_key: None, body: "1".into() };
                Said::Done { put: vec![cell] }
            }
            _ => Said::done(),
        };
        if matches!(said, Said::Done { .. } | Said::DeadLetter { .. }) {
            self.handled.lock().unwrap().insert(row);
        }
        said
    }
}

/// A worker at work.
struct Running {
    stop: CancellationToken,
    watch: Watch,
    task: JoinSet<()>,
    _reloads: mpsc::Sender<Reload>,
}

impl Running {
    fn held(&self) -> BTreeMap<ShardRef, Epoch> {
        self.watch.view.borrow().grants.iter().map(|(shard, grant)| (shard.clone(), grant.lease.epoch)).collect()
    }

    fn session(&self) -> Option<SessionId> {
        self.watch.view.borrow().session.clone()
    }
}

struct World {
    server: Server,
    log: Arc<dyn Log>,
    ledger: Arc<dyn Ledger>,
    cells: Cells,
    calls: Arc<Calls>,
    lines: Lines,
    /// Rows to be handled.
    expected: BTreeSet<String>,
    bursts: u32,
    /// Rows whose handler's answer is there.
    appended: Mutex<BTreeSet<String>>,
    subject: Option<Running>,
    other: Option<Running>,
    /// What the subject held, and under which session, since it was watched.
    was_held: BTreeMap<ShardRef, Epoch>,
    sessions: BTreeSet<SessionId>,
    gave_up: bool,
    wrong: Vec<String>,
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn shard(number: u32) -> ShardRef {
    ShardRef { source: name("trips"), shard: ShardId(number) }
}

/// A row of that kind on that shard.
fn row(kind: &str, shard: u32, burst: u32) -> String {
    let rows = (0..).map(|i| format!("{kind}-{burst}-{i}"));
    rows.into_iter().find(|row| ShardId::of(row, SHARDS) == ShardId(shard)).unwrap()
}

fn cell(row: &str, column: &str) -> NewCell {
    let key = CellKey { row_key: row.into(), column: column.into(), ref_key: 1 };
    NewCell { key, body: "1".into(), origin: None }
}

impl World {
    async fn new(lines: Lines) -> Self {
        let server = Server::new();
        let store = Store::over(server.line(false));
        store.init_datastore(&NewDatastore { name: name("trips"), shards: SHARDS }).await.unwrap();
        store.init_group(&name("g")).await.unwrap();
        let log = store.datastore(&name("trips"), None).await.unwrap();
        let ledger = store.ledger(&name("g")).await.unwrap();
        Self {
            server,
            cells: Cells::new(log.clone()),
            log,
            ledger,
            calls: Arc::default(),
            lines,
            expected: BTreeSet::new(),
            bursts: 0,
            appended: Mutex::default(),
            subject: None,
            other: None,
            was_held: BTreeMap::new(),
            sessions: BTreeSet::new(),
            gave_up: false,
            wrong: Vec::new(),
        }
    }

    /// One cell of each kind on each shard.
    async fn burst(&mut self, kinds: &[&str]) {
        let mut cells = Vec::new();
        for (kind, shard) in kinds.iter().flat_map(|kind| (0..SHARDS).map(move |shard| (kind, shard))) {
            let row = row(kind, shard, self.bursts);
            // First, so that the call finds it.
            cells.push(cell(&row, "NOTE"));
            cells.push(cell(&row, if *kind == "pause" { "GATE" } else { "BASE" }));
            self.expected.insert(row);
        }
        self.bursts += 1;
        assert!(self.cells.put(cells).await.iter().all(Result::is_ok));
    }

    fn handler(&self) -> Arc<dyn Handler> {
        let calls = self.calls.clone();
        handler_fn(move |event: Event| {
            let calls = calls.clone();
            async move { calls.one(event).await }
        })
    }

    /// Begins as the daemon does.
    async fn begin(&self, watched: bool, trims: bool) -> Result<Running, String> {
        let told = |error: &dyn std::error::Error| chain(error);
        let store = Store::over(self.server.line(watched));
        let log = store.datastore(&name("trips"), Some(SHARDS)).await.map_err(|error| told(&error))?;
        let ledger = store.ledger(&name("g")).await.map_err(|error| told(&error))?;
        let of = |text: &str, column: &str, include: &[&str]| {
            let include = include.iter().map(|column| (*column).to_owned()).collect();
            let retry = Retry { max: 8 * SECOND, ..Retry::default() };
            let columns = vec![column.into()];
            let config = Config { columns, include, retry, breaker: None, ..Config::new(name("trips")) };
            TriggerSpec { name: name(text), config, handler: self.handler() }
        };
        let minute = 60 * SECOND;
        let lease = match trims {
            false => lease::Config { drain_deadline: 10 * SECOND, ..lease::Config::default() },
            true => lease::Config {
                heartbeat: minute,
                session: 3 * minute,
                membership: minute,
                drain_deadline: 10 * SECOND,
                ..lease::Config::default()
            },
        };
        let poll = match trims {
            false => tail::Config { floor: SECOND, ceiling: 4 * SECOND },
            true => tail::Config { floor: minute, ceiling: minute },
        };
        let open = move |_| {
            let store = store.clone();
            async move { store.ledger(&name("g")).await }.boxed()
        };
        let keep = trims.then(|| (name("trips"), 10 * minute)).into_iter().collect();
        let setup = Setup {
            lease,
            poll,
            checkpoint_interval: SECOND,
            memory: 1 << 24,
            group: name("g"),
            ledger,
            presence: None,
            identity: Identity::default(),
            sources: [(name("trips"), Cells::new(log))].into(),
            triggers: vec![of("bill", "BASE", &["NOTE"]), of("gate", "GATE", &[])],
            retention: Some(Retention { keep, every: Duration::from_hours(1), open: Arc::new(open) }),
            wrap: None,
        };
        let worker = Worker::new(setup).await.map_err(|error| told(&error))?;
        let (watch, stop) = (worker.watch(), CancellationToken::new());
        let (reloads, reload) = mpsc::channel(1);
        let mut task = JoinSet::new();
        task.spawn(worker.run(stop.clone(), reload));
        Ok(Running { stop, watch, task, _reloads: reloads })
    }

    /// What a worker finds that was away, and not alone, for long.
    async fn history(&mut self) {
        for _ in 0..5 {
            self.burst(&["plain"]).await;
        }
        let zero = ShardId(0);
        let keys = self.log.keys(zero, AddedId(0), 10).await.unwrap();
        // The first segment is trimmed, the third cannot be decoded: nobody is called for these. It is read together with the
        // fourth, which is well.
        assert!(self.log.raise_trim(zero, keys[0].last).await.unwrap());
        self.log.delete_segment(zero, keys[0].last).await.unwrap();
        self.server.ask(
            "UpdateItem",
            &json!({
                "TableName": "trips.log",
                "Key": { "shard": { "N": "0" }, "last": { "N": keys[2].last.0.to_string() } },
                "UpdateExpression": "REMOVE #cells",
                "ExpressionAttributeNames": { "#cells": "cells" },
            }),
        );
        for burst in [0, 2] {
            self.expected.remove(&row("plain", 0, burst));
        }
        let bill = TriggerRecord {
            id: TriggerId::random(),
            name: name("bill"),
            formerly: BTreeSet::new(),
            source: name("trips"),
            incarnation: self.log.datastore().incarnation.clone(),
            state: TriggerState::Active,
            generation: 0,
            start: None,
            revision: 0,
        };
        self.ledger.register(&bill).await.unwrap();
        let ghost = SessionId::random();
        let claimed = self.ledger.claim(&shard(0), &bill.incarnation, &ghost, None, NOW).await.unwrap();
        let Answer::Accepted(lease) = claimed else { panic!("{claimed:?}") };
        let write = LeaseWrite {
            shard: shard(0),
            owner: ghost,
            epoch: lease.epoch,
            seq: 1,
            checkpoints: [(bill.id, Checkpoint::default())].into(),
            lanes: Vec::new(),
            alone: None,
            release: false,
        };
        assert_eq!(self.ledger.write(&write).await.unwrap(), Written::Accepted);
        let long_dead = Session { started_at: Millis(1), beat_at: Millis(1), ..Session::dead(&SessionId::random()) };
        self.ledger.open_session(&long_dead).await.unwrap();
        self.burst(&["plain", "append", "later", "dead"]).await;
    }

    /// Time passes; what the subject holds is looked at, and a trigger that paused is resumed.
    async fn pass(&mut self) {
        sleep(LOOK).await;
        if let Some(subject) = &self.subject {
            let held = subject.held();
            self.gave_up |= self.was_held.iter().any(|(shard, epoch)| held.get(shard) != Some(epoch));
            self.was_held = held;
            self.sessions.extend(subject.session());
        }
        let handled = self.calls.handled.lock().unwrap().clone();
        if self.expected.iter().any(|row| row.starts_with("pause") && !handled.contains(row)) {
            for mut record in self.ledger.triggers().await.unwrap() {
                if matches!(record.state, TriggerState::Paused { .. }) {
                    record.state = TriggerState::Active;
                    record.generation += 1;
                    let _ = self.ledger.update_trigger(&record).await.unwrap();
                    lease::nudge_all(&*self.ledger).await.unwrap();
                }
            }
        }
    }

    /// Waits until it holds.
    async fn until(&mut self, what: &str, within: Duration, holds: impl Fn(&Self) -> bool) -> bool {
        let began = Instant::now();
        while !holds(self) {
            if began.elapsed() > within {
                self.wrong.push(format!("not {what} within {within:?}"));
                return false;
            }
            self.pass().await;
        }
        true
    }

    /// Rows whose handler has not said that it is done, or whose answer was not appended.
    fn unhandled(&self) -> Vec<String> {
        let mut appended = self.appended.lock().unwrap();
        let handled = self.calls.handled.lock().unwrap();
        let mut is_handled = |row: &String| {
            if !handled.contains(row) || !row.starts_with("append") || appended.contains(row) {
                return handled.contains(row);
            }
            let query = json!({
                "TableName": "trips.cells",
                "KeyConditionExpression": "row_key = :row AND begins_with(cell, :column)",
                "ExpressionAttributeValues": { ":row": { "S": row }, ":column": { "S": "STATUS#" } },
            });
            let is_appended = self.server.ask("Query", &query)["Count"] == 1;
            if is_appended {
                appended.insert(row.clone());
            }
            is_appended
        };
        self.expected.iter().filter(|row| !is_handled(row)).cloned().collect()
    }

    /// Two workers with a shard each, and nothing to do.
    async fn settle(&mut self) {
        self.burst(&["plain", "dead"]).await;
        self.other = Some(self.begin(false, false).await.unwrap());
        let holds = |running: &Option<Running>, n: usize| running.as_ref().is_some_and(|it| it.held().len() == n);
        self.until("all held by the other", 60 * SECOND, |world| holds(&world.other, 2)).await;
        self.subject = Some(self.begin(true, false).await.unwrap());
        let shared = |world: &Self| holds(&world.other, 1) && holds(&world.subject, 1) && world.unhandled().is_empty();
        self.until("shared", 120 * SECOND, shared).await;
        for _ in 0..12 {
            self.pass().await;
        }
        assert_eq!(self.wrong, [""; 0], "before anything was wrong");
        (self.was_held, self.gave_up) = (self.subject.as_ref().unwrap().held(), false);
        self.sessions.clear();
    }

    async fn live(mut self, phase: Phase, fault: Option<(&'static str, &'static Fault, bool)>) -> Seen {
        match phase {
            Phase::StartUp => self.history().await,
            Phase::Trimming => self.burst(&["plain"]).await,
            Phase::Steady | Phase::Takeover | Phase::Shutdown => self.settle().await,
        }
        if phase == Phase::Trimming {
            self.subject = Some(self.begin(true, true).await.unwrap());
            self.until("handled", 600 * SECOND, |world| world.unhandled().is_empty()).await;
        }
        let began = self.lines.0.lock().unwrap().len();
        self.server.watch();
        if let Some((statement, fault, once)) = fault {
            self.server.arm(statement, fault, once);
        }
        let once = fault.is_some_and(|(.., once)| once);
        let message = match phase {
            Phase::StartUp => self.start_up(once).await,
            Phase::Steady => self.steady(once).await,
            Phase::Trimming => self.trimming(once).await,
            Phase::Takeover => self.takeover(once).await,
            Phase::Shutdown => self.shutdown().await,
        };
        let stopped = !message.is_empty();
        let log = String::from_utf8_lossy(&self.lines.0.lock().unwrap()[began..]).into_owned();
        self.server.heal();
        if phase != Phase::Trimming {
            self.burst(&["plain", "append"]).await;
            self.until("handled", RECOVERED, |world| world.unhandled().is_empty()).await;
        }
        self.wrong.extend(self.unhandled().into_iter().map(|row| format!("never handled: {row}")));
        let watched = self.server.seen();
        self.end().await;
        self.wrong.extend(watched.unknown.iter().map(|request| format!("no statement that we know: {request}")));
        let whole = String::from_utf8_lossy(&self.lines.0.lock().unwrap()).into_owned();
        self.wrong.extend(whole.lines().filter(|line| line.contains("panic")).map(str::to_owned));
        // At the start there is nothing yet to be given up.
        let gave_up = phase != Phase::StartUp && (self.gave_up || self.sessions.len() > 1);
        let verdict = if stopped {
            Verdict::Stop
        } else if gave_up {
            Verdict::GiveUp
        } else {
            Verdict::Retry
        };
        Seen { verdict, message, log, watched, wrong: self.wrong }
    }

    /// While the fault lasts; one that strikes once, until it has.
    async fn fault_lasts(&mut self, once: bool, most: Duration) {
        let began = Instant::now();
        while began.elapsed() < most && !(once && self.server.met() > 0) {
            self.pass().await;
        }
    }

    async fn start_up(&mut self, once: bool) -> String {
        let mut message = String::new();
        match self.begin(true, false).await {
            Ok(running) => self.subject = Some(running),
            Err(error) => message = error,
        }
        self.fault_lasts(once, LASTS).await;
        self.server.heal();
        if self.subject.is_none() {
            match self.begin(true, false).await {
                Ok(running) => self.subject = Some(running),
                Err(error) => self.wrong.push(format!("it cannot begin after the fault either: {error}")),
            }
        }
        message
    }

    async fn steady(&mut self, once: bool) -> String {
        self.burst(&["plain", "append", "later", "dead", "pause"]).await;
        let me = self.subject.as_ref().unwrap().session().unwrap();
        self.ledger.nudge(&me, Nudge::Parked).await.unwrap();
        self.fault_lasts(once, LASTS / 2).await;
        self.burst(&["plain", "append", "later", "dead"]).await;
        self.fault_lasts(once, LASTS / 2).await;
        self.ended()
    }

    async fn takeover(&mut self, once: bool) -> String {
        self.burst(&["plain", "append", "slow"]).await;
        sleep(SECOND / 2).await;
        drop(self.other.take());
        self.fault_lasts(once, LASTS).await;
        self.ended()
    }

    async fn trimming(&mut self, once: bool) -> String {
        // A turn comes once an hour, more or less.
        self.fault_lasts(once, 80 * 60 * SECOND).await;
        self.server.heal();
        let began = Instant::now();
        for shard in 0..SHARDS {
            loop {
                let tip = self.log.tip(ShardId(shard)).await.unwrap().unwrap();
                if tip.trimmed_to == tip.tip && self.log.keys(ShardId(shard), AddedId(0), 1).await.unwrap().is_empty() {
                    break;
                }
                if began.elapsed() > 150 * 60 * SECOND {
                    self.wrong.push(format!("shard {shard} is not trimmed"));
                    break;
                }
                sleep(60 * SECOND).await;
            }
        }
        self.ended()
    }

    /// Why a worker that nobody stopped has ended.
    fn ended(&mut self) -> String {
        let ended = self.subject.as_mut().and_then(|running| running.task.try_join_next());
        ended.map_or_else(String::new, |ended| format!("it has ended: {ended:?}"))
    }

    async fn shutdown(&mut self) -> String {
        self.burst(&["plain", "append", "later", "dead", "slow"]).await;
        sleep(3 * SECOND / 2).await;
        let mut subject = self.subject.take().unwrap();
        let me = subject.session().unwrap();
        subject.stop.cancel();
        let began = Instant::now();
        match tokio::time::timeout(LEFT, subject.task.join_next()).await {
            Err(_) => self.wrong.push(format!("it does not leave within {LEFT:?}")),
            Ok(Some(Err(error))) => self.wrong.push(format!("it panicked: {error}")),
            Ok(_) => {}
        }
        let leases = self.ledger.leases(&name("trips")).await.unwrap();
        self.gave_up = leases.iter().any(|lease| lease.owner.as_ref() == Some(&me));
        let alive = |session: &Session| session.id == me && session.state != SessionState::Dead;
        self.gave_up |= self.ledger.sessions().await.unwrap().iter().any(alive);
        drop(subject);
        sleep(LASTS.saturating_sub(began.elapsed())).await;
        String::new()
    }

    /// All leave.
    async fn end(&mut self) {
        for mut running in self.subject.take().into_iter().chain(self.other.take()) {
            running.stop.cancel();
            match tokio::time::timeout(LEFT, running.task.join_next()).await {
                Err(_) => self.wrong.push("a worker does not leave at the end".into()),
                Ok(Some(Err(error))) => self.wrong.push(format!("a worker panicked: {error}")),
                Ok(_) => {}
            }
        }
    }
}
