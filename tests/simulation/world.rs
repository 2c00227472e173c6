//! A world of one seed: the twins, the workers with their fates, the writers, and the end at which all must be done.

use super::{
    network::{FarLedger, FarLog, Faults, Network, Weather},
    oracle::Oracle,
};
use cellhook::{
    cell::{planted, *},
    dispatch::{Config, Exhausted, Order, Retry, WindowConfig},
    lease::{self, Identity},
    store::{Cells, memory::MemoryLog},
    tail,
    worker::{Reload, Setup, TriggerSpec, Worker},
};
use futures_util::future::BoxFuture;
use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

/// What a seed draws before it begins: some worlds are calm, some extreme.
#[derive(Clone, Debug)]
pub(super) struct Swarm {
    workers: usize,
    shards: u32,
    cells: usize,
    rows: usize,
    seconds: u64,
    window: u32,
    in_flight: u32,
    batch: u32,
    faults: Faults,
    /// Chance a second that some worker is killed, frozen, stopped; that everything is out of reach.
    kill: f64,
    freeze: f64,
    stop: f64,
    outage: f64,
    /// Chance a second that shards are trimmed.
    trim: f64,
    /// Chance a second that an operator touches parked cells, or rewinds a checkpoint.
    operate: f64,
    /// Chance a second that a worker's config is read again, with some triggers changed.
    reload: f64,
    /// Percent of attempts that fail.
    failing: u64,
}

impl Swarm {
    pub(super) fn draw(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let scale = if rng.u8(..8) == 0 { 0.0 } else { 0.08 * rng.f64() };
        let mut chance = |most: f64| if rng.u8(..3) == 0 { 0.0 } else { most * rng.f64() };
        let faults = Faults {
            lost: chance(scale),
            reply_lost: chance(scale),
            late: chance(scale),
            throttled: chance(scale),
            conflict: chance(scale),
            stale: chance(0.3),
            torn: chance(0.2),
            garbled: chance(0.02),
            slow: chance(0.1),
        };
        let (kill, freeze, stop, outage, trim, operate, reload) =
            (chance(0.05), chance(0.05), chance(0.03), chance(0.008), chance(0.05), chance(0.3), chance(0.2));
        Self {
            workers: rng.usize(2..=4),
            shards: rng.u32(3..=8),
            cells: 500,
            rows: rng.usize(5..60),
            seconds: 120,
            window: rng.u32(4..40),
            in_flight: rng.u32(1..12),
            batch: rng.u32(1..4),
            faults,
            kill,
            freeze,
            stop,
            outage,
            trim,
            operate,
            reload,
            failing: rng.u64(0..25),
        }
    }
}

/// How a seed ended.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub(super) violations: Vec<String>,
    pub(super) faults: BTreeMap<&'static str, u64>,
    pub(super) trace: u64,
    pub(super) requests: u64,
    pub(super) virtual_seconds: u64,
    pub(super) cells: u64,
    pub(super) calls: u64,
    pub(super) repeats: u64,
    pub(super) takeovers: u64,
    pub(super) hand_overs: u64,
    pub(super) parked: u64,
}

/// SIGSTOP: while it is set, nothing of a worker is polled.
#[derive(Default)]
struct Freezer {
    frozen: bool,
    wakers: Vec<Waker>,
}

type SharedFreezer = Arc<Mutex<Freezer>>;

fn thaw(freezer: &SharedFreezer) {
    let mut freezer = freezer.lock().unwrap();
    freezer.frozen = false;
    freezer.wakers.drain(..).for_each(Waker::wake);
}

struct Freezable<T> {
    inner: BoxFuture<'static, T>,
    freezer: SharedFreezer,
}

impl<T> Future for Freezable<T> {
    type Output = T;
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        {
            let mut freezer = self.freezer.lock().unwrap();
            if freezer.frozen {
                freezer.wakers.push(context.waker().clone());
                return Poll::Pending;
            }
        }
        self.inner.as_mut().poll(context)
    }
}

/// The handler of a trigger: takes its time, fails, snoozes, hangs.
struct Billing {
    oracle: Arc<Oracle>,
    weather: Arc<Mutex<Weather>>,
    failing: u64,
    order: Order,
    host: u32,
}

impl Billing {
    async fn one(&self, event: Event, timeout: Duration) -> Verdict {
        let mut rng = fastrand::Rng::with_seed(self.weather.lock().unwrap().rng.u64(..));
        let witnessed = self.oracle.call(&event, self.order);
        let note = |what: &str| {
            let (host, trigger, cell) = (self.host, &event.trigger, &event.cell);
            self.weather.lock().unwrap().note(format_args!(
                "host {host} {trigger} {}/{} attempt {} epoch {} {what}",
                cell.shard, cell.added_id, event.attempt, event.epoch
            ));
        };
        note("starts");
        sleep(Duration::from_millis(rng.u64(1..300))).await;
        let poison = event.cell.key.row_key.starts_with("poison");
        let draw = rng.u64(0..100);
        let verdict = if poison && draw < 90 || draw < self.failing {
            Verdict::failed("declined")
        } else if draw < self.failing + 2 {
            Verdict::Snooze { after: Duration::from_secs(rng.u64(0..20)) }
        } else if draw < self.failing + 3 {
            Verdict::DeadLetter { error: "never".into() }
        } else if draw < self.failing + 4 {
            sleep(timeout).await;
            Verdict::failed("timed out")
        } else if draw < self.failing + 20 && *event.cell.key.column == *"BASE" {
            let status =
                PutCell { row_key: None, column: "STATUS".into(), ref_key: None, body: "{\"done\":true}".into() };
            Verdict::Done { put: vec![status] }
        } else {
            Verdict::done()
        };
        if let Verdict::Done { put } = &verdict {
            let (row_key, ref_key) = (event.cell.key.row_key.clone(), event.cell.added_id.0);
            witnessed.finished(put.first().map(|put| CellKey { row_key, column: put.column.clone(), ref_key }));
        } else {
            witnessed.unfinished();
        }
        note(verdict.label());
        verdict
    }
}

impl Handler for Billing {
    fn call(self: Arc<Self>, call: Call) -> BoxFuture<'static, Vec<Verdict>> {
        Box::pin(async move {
            let timeout = call.timeout;
            let calls = call.events.into_iter().map(|event| self.one(event, timeout));
            futures_util::future::join_all(calls).await
        })
    }
}

struct Host {
    number: u32,
    /// Its triggers, and how they are replaced.
    specs: Vec<TriggerSpec>,
    reloads: mpsc::Sender<Reload>,
    token: CancellationToken,
    freezer: SharedFreezer,
    task: tokio::task::AbortHandle,
    frozen_until: Option<Instant>,
    leaving: bool,
}

struct World {
    swarm: Swarm,
    seed: u64,
    log: Arc<MemoryLog>,
    oracle: Arc<Oracle>,
    weather: Arc<Mutex<Weather>>,
    hosts: Vec<Host>,
    tasks: JoinSet<()>,
    next_host: u32,
    names: Vec<Name>,
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// What each trigger is called for.
fn columns(trigger: &Name) -> Vec<String> {
    if trigger.as_str() == "bill" { vec!["BASE".into()] } else { Vec::new() }
}

impl World {
    fn network(&mut self) -> Network {
        self.next_host += 1;
        Network { host: self.next_host, weather: self.weather.clone() }
    }

    fn triggers(&self, host: u32) -> Vec<TriggerSpec> {
        let spec = |trigger: &Name| {
            let order = match trigger.as_str() {
                "bill" => Order::Row,
                "strict" => Order::Shard,
                _ => Order::None,
            };
            let second = Duration::from_secs(1);
            let config = Config {
                columns: columns(trigger),
                order,
                in_flight: self.swarm.in_flight,
                batch: if order == Order::Shard { 1 } else { self.swarm.batch },
                timeout: 15 * second,
                window: WindowConfig { cells: self.swarm.window, bytes: 1 << 20 },
                retry: Retry { min: second, max: 40 * second, max_age: 3600 * second, attempts: Some(4) },
                exhausted: Exhausted::Park,
                breaker: None,
                include: if order == Order::Row { vec!["STATUS".into()] } else { Vec::new() },
                ..Config::new(name("trips"))
            };
            let handler = Arc::new(Billing {
                oracle: self.oracle.clone(),
                weather: self.weather.clone(),
                failing: self.swarm.failing,
                order,
                host,
            });
            TriggerSpec { name: trigger.clone(), config, handler }
        };
        self.names.iter().map(spec).collect()
    }

    fn start_worker(&mut self) {
        let network = self.network();
        let host = network.host;
        let second = Duration::from_secs(1);
        let log = Arc::new(FarLog { inner: self.log.clone(), network: network.clone() });
        let ledger = Arc::new(FarLedger { inner: self.oracle.clone(), network, before: Arc::default() });
        let freezer = SharedFreezer::default();
        let wrap = {
            let freezer = freezer.clone();
            Arc::new(move |inner: BoxFuture<'static, lease::EndedShard>| {
                let freezable = Freezable { inner, freezer: freezer.clone() };
                Box::pin(freezable) as BoxFuture<'static, lease::EndedShard>
            })
        };
        let triggers = self.triggers(host);
        let specs = triggers.clone();
        let (reloads, reload) = mpsc::channel(1);
        let token = CancellationToken::new();
        let stop = token.clone();
        let life = async move {
            let mut reload = Some(reload);
            loop {
                let setup = Setup {
                    lease: lease::Config { drain_deadline: 20 * second, ..lease::Config::default() },
                    poll: tail::Config { floor: second / 5, ceiling: 2 * second },
                    checkpoint_interval: 3 * second,
                    memory: 1 << 26,
                    group: name("g"),
                    ledger: ledger.clone(),
                    presence: None,
                    identity: Identity { host: format!("h{host}"), pid: host, version: "sim".into() },
                    sources: [(name("trips"), Cells::new(log.clone()))].into(),
                    triggers: triggers.clone(),
                    retention: None,
                    wrap: Some(wrap.clone()),
                };
                match Worker::new(setup).await {
                    Ok(worker) => return worker.run(stop, reload.take().expect("once")).await,
                    Err(_) if stop.is_cancelled() => return,
                    Err(_) => sleep(second).await,
                }
            }
        };
        let life = Freezable { inner: Box::pin(life), freezer: freezer.clone() };
        self.weather.lock().unwrap().note(format_args!("host {host} is started"));
        let task = self.tasks.spawn(life);
        self.hosts.push(Host {
            number: host,
            token,
            freezer,
            task,
            specs,
            reloads,
            frozen_until: None,
            leaving: false,
        });
    }

    fn start_writer(&mut self, written: Arc<Mutex<usize>>) {
        let network = self.network();
        let cells = Cells::new(Arc::new(FarLog { inner: self.log.clone(), network }));
        let mut rng = fastrand::Rng::with_seed(self.seed ^ u64::from(self.next_host));
        let (rows, seconds, n) = (self.swarm.rows, self.swarm.seconds, self.swarm.cells / 2);
        self.tasks.spawn(async move {
            let mut left = n;
            let mut ref_key = u64::from(rng.u32(..)) << 20;
            while left > 0 {
                let batch = rng.usize(1..=20.min(left));
                let pause = seconds * 700 / (n as u64 / 10);
                sleep(Duration::from_millis(rng.u64(0..pause.max(1) * 2))).await;
                let new: Vec<NewCell> = (0..batch)
                    .map(|_| {
                        ref_key += 1;
                        let row = rng.usize(..rows);
                        let kind = if row.is_multiple_of(17) { "poison" } else { "row" };
                        let column = if rng.u8(..4) == 0 { "NOTE" } else { "BASE" };
                        let key = CellKey { row_key: format!("{kind}-{row}").into(), column: column.into(), ref_key };
                        NewCell { key, body: format!("{{\"n\":{ref_key}}}").into(), origin: None }
                    })
                    .collect();
                // Until acknowledged, as a careful writer does; repeats are recognised.
                let mut open = new;
                while !open.is_empty() {
                    let answers = cells.put(open.clone()).await;
                    let before = open.len();
                    open = open
                        .into_iter()
                        .zip(answers)
                        .filter(|(_, answer)| answer.is_err())
                        .map(|(cell, _)| cell)
                        .collect();
                    *written.lock().unwrap() += before - open.len();
                }
                left -= batch;
            }
        });
    }

    /// What chance does in one second.
    fn disturb(&mut self) {
        let now = Instant::now();
        for host in &mut self.hosts {
            if host.frozen_until.is_some_and(|until| until <= now) {
                host.frozen_until = None;
                thaw(&host.freezer);
            }
        }
        self.hosts.retain(|host| !host.task.is_finished());
        let swarm = self.swarm.clone();
        let draw = |chance: f64| self.weather.lock().unwrap().rng.f64() < chance;
        let (kill, freeze, stop, outage) = (draw(swarm.kill), draw(swarm.freeze), draw(swarm.stop), draw(swarm.outage));
        let pick = |n: usize| self.weather.lock().unwrap().rng.usize(..n);
        let count = |what: &'static str| {
            let mut weather = self.weather.lock().unwrap();
            *weather.counts.entry(what).or_default() += 1;
            weather.note(format_args!("{what}"));
        };
        if kill && !self.hosts.is_empty() {
            count("kill");
            let host = self.hosts.remove(pick(self.hosts.len()));
            host.task.abort();
            thaw(&host.freezer);
        }
        if freeze && !self.hosts.is_empty() {
            count("freeze");
            let place = pick(self.hosts.len());
            let millis = self.weather.lock().unwrap().rng.u64(500..25_000);
            let host = &mut self.hosts[place];
            host.freezer.lock().unwrap().frozen = true;
            host.frozen_until = Some(now + Duration::from_millis(millis));
        }
        if stop && !self.hosts.is_empty() {
            count("graceful stop");
            let place = pick(self.hosts.len());
            let host = &mut self.hosts[place];
            host.token.cancel();
            host.leaving = true;
        }
        if draw(swarm.reload) && !self.hosts.is_empty() {
            count("reload");
            let (place, kept) = (pick(self.hosts.len()), pick(4));
            let fresh = self.triggers(self.hosts[place].number);
            let host = &mut self.hosts[place];
            for (i, (spec, fresh)) in host.specs.iter_mut().zip(fresh).enumerate() {
                if i != kept {
                    *spec = fresh;
                }
            }
            // One that is not taken yet is as good as none.
            let reload = Reload { triggers: host.specs.clone(), answer: oneshot::channel().0 };
            let _ = host.reloads.try_send(reload);
        }
        if outage {
            count("outages");
            let mut weather = self.weather.lock().unwrap();
            let millis = weather.rng.u64(1000..40_000);
            weather.outage_until = now + Duration::from_millis(millis);
        }
        while self.hosts.iter().filter(|host| !host.leaving).count() < swarm.workers {
            self.start_worker();
        }
    }

    /// An operator's trim of one shard, up to the lowest checkpoint.
    async fn trim(&mut self) {
        let shard = ShardId(self.weather.lock().unwrap().rng.u32(..self.swarm.shards));
        if self.oracle.triggers().await.unwrap().len() < self.names.len() {
            // One that is registered later begins with the oldest cell.
            return;
        }
        let keeper = tail::keeper(&*self.oracle, &name("g"), &name("trips"), shard).await.unwrap();
        let groups: [(Name, Arc<dyn Ledger>); 1] = [(name("g"), self.oracle.clone())];
        tail::trim(&*self.log, &groups, shard, keeper.map_or(AddedId(0), |keeper| keeper.low), u64::MAX).await.unwrap();
    }

    /// An operator at the parked cells of one trigger and shard, or at its checkpoint.
    async fn operate(&mut self) {
        let mut rng = fastrand::Rng::with_seed(self.weather.lock().unwrap().rng.u64(..));
        let shard = ShardRef { source: name("trips"), shard: ShardId(rng.u32(..self.swarm.shards)) };
        let triggers = self.oracle.triggers().await.unwrap();
        let Some(trigger) = rng.choice(triggers.iter()) else { return };
        let Ok(Some(lease)) = self.oracle.lease(&shard).await else { return };
        let lane = |kind| Lane { trigger: trigger.id.clone(), shard: shard.clone(), kind };
        let name_then = self.oracle.registered_as(&trigger.id);
        let what = match rng.u8(..5) {
            0 => {
                let dead = self.oracle.parked(&lane(LaneKind::Dead), AddedId(0), 50).await.unwrap();
                let Some(parked) = rng.choice(dead) else { return };
                self.oracle.revived(&name_then, shard.shard, parked.added_id);
                let revision = Parked::fresh_revision();
                let again = Parked {
                    revision,
                    state: ParkedState::Retrying,
                    attempts: 0,
                    next_attempt_at: clock::wall(),
                    ..parked.clone()
                };
                self.oracle.operate_parked(&[LaneChange::Delete(parked), LaneChange::Put(again)]).await.unwrap();
                "an operator retries a dead cell"
            }
            1 => {
                let active = self.oracle.parked(&lane(LaneKind::Active), AddedId(0), 50).await.unwrap();
                let Some(parked) = rng.choice(active) else { return };
                self.oracle.operate_parked(&[LaneChange::Delete(parked)]).await.unwrap();
                "an operator drops an active cell"
            }
            2 => {
                let active = self.oracle.parked(&lane(LaneKind::Active), AddedId(0), 50).await.unwrap();
                let retrying = active.into_iter().filter(|parked| parked.state == ParkedState::Retrying);
                let Some(parked) = rng.choice(retrying.collect::<Vec<_>>()) else { return };
                let now = Parked { next_attempt_at: clock::wall(), ..parked };
                self.oracle.operate_parked(&[LaneChange::Update(now)]).await.unwrap();
                "an operator retries a cell now"
            }
            3 => {
                // To and fro: the config says the first of them all the time.
                let names = ["", "_anew", "_again"].map(|end| Name::new(&format!("{name_then}{end}")).unwrap());
                let others: Vec<&Name> = names.iter().filter(|name| **name != trigger.name).collect();
                let answer = self.oracle.rename_trigger(trigger, rng.choice(others).unwrap()).await.unwrap();
                assert!(matches!(answer, Answer::Accepted(_)), "nobody else has these names: {answer:?}");
                "an operator renames"
            }
            _ => {
                let Some(checkpoint) = lease.checkpoints.get(&trigger.id) else { return };
                let tip = self.log.tip(shard.shard).await.unwrap();
                let trimmed = tip.map_or(AddedId(0), |tip| tip.trimmed_to);
                let low = AddedId(checkpoint.low.0.saturating_sub(rng.u64(1..10)).max(trimmed.0));
                let back = Checkpoint {
                    low,
                    generation: checkpoint.generation,
                    dead: checkpoint.dead,
                    ..Checkpoint::default()
                };
                self.oracle.rewound(&name_then, shard.shard);
                self.oracle.operate(&lease, &trigger.id, &back).await.unwrap();
                "an operator rewinds"
            }
        };
        if let Some(owner) = lease.owner {
            for about in [Nudge::Leases, Nudge::Parked] {
                self.oracle.nudge(&owner, about).await.unwrap();
            }
        }
        let mut weather = self.weather.lock().unwrap();
        *weather.counts.entry(what).or_default() += 1;
        weather.note(format_args!("{what} on {shard} of {}", trigger.name));
    }

    /// Whether everything is handled and owned.
    async fn is_done(&self) -> bool {
        self.left().await.is_none()
    }

    /// Something that is still to be done.
    async fn left(&self) -> Option<String> {
        for shard in self.log.datastore().all_shards() {
            let tip = self.log.tip(shard).await.unwrap().map_or(AddedId(0), |tip| tip.tip);
            let of = ShardRef { source: name("trips"), shard };
            let Some(lease) = self.oracle.lease(&of).await.unwrap() else { return Some(format!("{of} has no lease")) };
            let lows = lease.checkpoints.values().map(|checkpoint| checkpoint.low);
            let done = lease.owner.is_some()
                && lease.checkpoints.len() == self.names.len()
                && lows.clone().all(|low| low == tip);
            if !done {
                return Some(format!("the tip is {tip}, {lease:?}"));
            }
            for trigger in lease.checkpoints.keys() {
                let lane = Lane { trigger: trigger.clone(), shard: of.clone(), kind: LaneKind::Active };
                if let Some(parked) = self.oracle.parked(&lane, AddedId(0), 1).await.unwrap().first() {
                    return Some(format!("{parked:?}"));
                }
            }
        }
        None
    }

    /// I2: what lies in the log is dense, and each address once; the oracle learns which cells nobody is called for.
    async fn read_log(&self) -> u64 {
        let mut all = 0;
        let mut addresses = std::collections::BTreeSet::new();
        for shard in self.log.datastore().all_shards() {
            let tip = self.log.tip(shard).await.unwrap();
            let Some(tip) = tip else { continue };
            // The last segment that a trim reached into may have stayed.
            let mut next = tip.trimmed_to.next();
            for (i, segment) in
                self.log.page(shard, AddedId(0), u32::MAX, Consistency::Strong).await.unwrap().into_iter().enumerate()
            {
                let first = segment.key().first();
                if first > next || i > 0 && first != next {
                    self.oracle.violated(format!("I2: shard {shard}: {next} is missing"));
                }
                next = segment.last.next();
                for cell in cellhook::store::segment::unpack(shard, &segment).unwrap() {
                    if !addresses.insert(cell.key.clone()) {
                        self.oracle.violated(format!("I2: {:?} is stored twice", cell.key));
                    }
                }
            }
            if next != tip.tip.next() {
                self.oracle.violated(format!("I2: shard {shard} ends at {next}, its tip is {}", tip.tip));
            }
            all += tip.tip.0;
        }
        all
    }
}

/// Runs one seed to its end.
pub(super) fn run(seed: u64, swarm: Swarm, bug: &'static str, told: bool) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async move {
        clock::simulate(Millis(1_900_000_000_000));
        fastrand::seed(seed);
        planted::plant(bug);
        let start = Instant::now();
        let weather = Weather {
            rng: fastrand::Rng::with_seed(seed ^ 0x5eed),
            faults: swarm.faults,
            outage_until: start,
            counts: BTreeMap::new(),
            requests: 0,
            trace: 0xcbf2_9ce4_8422_2325,
            start,
            told,
        };
        let log = Arc::new(MemoryLog::new(&NewDatastore { name: name("trips"), shards: swarm.shards }));
        let mut world = World {
            seed,
            log,
            oracle: Arc::new(Oracle::new()),
            weather: Arc::new(Mutex::new(weather)),
            hosts: Vec::new(),
            tasks: JoinSet::new(),
            next_host: 0,
            names: ["bill", "copy", "strict"].map(name).to_vec(),
            swarm,
        };
        world.oracle.watch(world.log.clone(), columns);
        let written = Arc::new(Mutex::new(0));
        for _ in 0..2 {
            world.start_writer(written.clone());
        }
        for _ in 0..world.swarm.seconds {
            world.disturb();
            let trims = { world.weather.lock().unwrap().rng.f64() < world.swarm.trim };
            if trims {
                world.trim().await;
            }
            let operates = { world.weather.lock().unwrap().rng.f64() < world.swarm.operate };
            if operates {
                world.operate().await;
            }
            sleep(Duration::from_secs(1)).await;
            if !world.oracle.violations().is_empty() {
                break;
            }
        }
        // The world heals: everything must come to an end.
        {
            let mut weather = world.weather.lock().unwrap();
            weather.note(format_args!("the world heals"));
            weather.faults = Faults::default();
            weather.outage_until = start;
        }
        world.swarm = Swarm { kill: 0.0, freeze: 0.0, stop: 0.0, outage: 0.0, ..world.swarm };
        for host in &mut world.hosts {
            host.frozen_until = None;
            thaw(&host.freezer);
        }
        let healed = Instant::now();
        let all = world.swarm.cells / 2 * 2;
        loop {
            world.disturb();
            sleep(Duration::from_secs(1)).await;
            let whole = *written.lock().unwrap() == all;
            if !world.oracle.violations().is_empty() || whole && world.is_done().await {
                break;
            }
            if healed.elapsed() > Duration::from_secs(900) {
                let left = world.left().await;
                world.oracle.violated(format!("I7: not done {:?} after the world healed: {left:?}", healed.elapsed()));
                break;
            }
        }
        let cells = world.read_log().await;
        if world.oracle.violations().is_empty() {
            world.oracle.check_repeats(u64::from(world.swarm.window));
            for shard in world.log.datastore().all_shards() {
                let tip = world.log.tip(shard).await.unwrap().map_or(AddedId(0), |tip| tip.tip);
                world.oracle.check_all(shard, tip, &world.names);
            }
        }
        planted::plant("");
        let counts = world.oracle.counts();
        let weather = world.weather.lock().unwrap();
        Outcome {
            violations: world.oracle.violations(),
            faults: weather.counts.clone(),
            trace: weather.trace,
            requests: weather.requests,
            virtual_seconds: start.elapsed().as_secs(),
            cells,
            calls: counts.calls,
            repeats: counts.repeats,
            takeovers: counts.takeovers,
            hand_overs: counts.hand_overs,
            parked: counts.parked,
        }
    })
}
