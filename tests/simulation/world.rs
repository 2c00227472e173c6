//! A world of one seed: the store, the workers with their fates, the writers, and the end at which all must be done.

use super::{
    hosts::{Billing, Host, OnHost, Pace, SharedFreezer, freeze, thaw},
    operator::{Operator, Truth},
    oracle::{Oracle, account},
    retirement::{Next, Retirement, SETTLED},
    stage::Stage,
    swarm::Swarm,
    weather::{Network, Part, SharedWeather, Weather},
};
use cellhook::{
    cell::{clock, planted, *},
    dispatch::{Config, Exhausted, Order, Retry, WindowConfig},
    lease::{self, Identity},
    store::{Cells, OpenError, PutError},
    tail,
    worker::{Reload, Retention, Setup, TriggerSpec, Worker},
};
use futures_util::future::BoxFuture;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

const SECOND: Duration = Duration::from_secs(1);
/// Within this, all must be done once nothing goes wrong any more.
const DONE_WITHIN: Duration = Duration::from_secs(900);
/// When all is done it gets quiet: no lease is claimed for so many seconds.
const QUIET: u64 = 20;
/// Within this.
const QUIET_WITHIN: Duration = Duration::from_secs(300);
/// Claims of a lease after the world healed: those that were due, those of moves to the planned owner, and some more.
const CLAIMS_MAX: u32 = 8;

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

impl Outcome {
    pub(super) fn is_bad(&self) -> bool {
        !self.violations.is_empty()
    }

    /// The invariant that was broken first.
    pub(super) fn broke(&self) -> Option<&str> {
        self.violations.first().map(|violation| violation.split(':').next().unwrap_or_default())
    }
}

struct World {
    swarm: Swarm,
    seed: u64,
    stage: Stage,
    operator: Operator,
    oracle: Arc<Oracle>,
    weather: SharedWeather,
    hosts: Vec<Host>,
    tasks: JoinSet<()>,
    next_host: u32,
    /// The triggers of the config, and which of its name each is.
    names: Vec<(Name, usize)>,
    retirement: Retirement,
    is_healthy: bool,
    /// Since when all of its triggers are registered.
    registered: Option<Instant>,
    /// Cells that their writers know about.
    written: Arc<Mutex<usize>>,
}

pub(super) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// What each trigger is called for.
fn columns(trigger: &Name) -> Vec<String> {
    if trigger.as_str().starts_with("bill") { vec!["BASE".into()] } else { Vec::new() }
}

impl World {
    async fn new(seed: u64, swarm: Swarm, told: bool) -> Self {
        let weather = Arc::new(Mutex::new(Weather::new(seed, swarm.faults, told)));
        let keep = swarm.retention.map(|(keep, _)| Duration::from_secs(keep));
        let oracle = Arc::new(Oracle::new(columns, !swarm.continues, keep));
        let names: Vec<(Name, usize)> =
            ["bill", "copy", "strict"].map(|text| (name(text), 0)).into_iter().take(swarm.triggers).collect();
        let new = NewDatastore { name: name("trips"), shards: swarm.shards };
        let stage = Stage::new(swarm.level, &new, name("g"), weather.clone(), oracle.clone()).await;
        let truth: Truth = stage.truth();
        let operator = Operator {
            truth,
            oracle: oracle.clone(),
            weather: weather.clone(),
            source: new.name,
            group: name("g"),
            triggers: names.len(),
        };
        Self {
            swarm,
            seed,
            stage,
            operator,
            oracle,
            weather,
            hosts: Vec::new(),
            tasks: JoinSet::new(),
            next_host: 0,
            names,
            retirement: Retirement::new(),
            is_healthy: false,
            registered: None,
            written: Arc::default(),
        }
    }

    fn network(&mut self) -> Network {
        self.next_host += 1;
        Network { host: self.next_host, weather: self.weather.clone() }
    }

    fn triggers(&self, host: u32) -> Vec<TriggerSpec> {
        let swarm = &self.swarm;
        let spec = |(trigger, earlier): &(Name, usize)| {
            let order = match trigger.as_str() {
                "bill" => Order::Row,
                "strict" => Order::Shard,
                _ => Order::None,
            };
            let config = Config {
                columns: columns(trigger),
                order,
                in_flight: swarm.in_flight,
                batch: if order == Order::Shard { 1 } else { swarm.batch },
                timeout: 15 * SECOND,
                window: WindowConfig { cells: swarm.window, bytes: 1 << 20 },
                retry: Retry {
                    min: SECOND,
                    max: Duration::from_millis(swarm.retry),
                    max_age: 3600 * 24 * SECOND,
                    attempts: Some(4),
                },
                exhausted: Exhausted::Park,
                breaker: None,
                include: if order == Order::Row { vec!["STATUS".into()] } else { Vec::new() },
                ..Config::new(name("trips"))
            };
            let handler = Arc::new(Billing {
                oracle: self.oracle.clone(),
                weather: self.weather.clone(),
                failing: swarm.failing,
                takes: swarm.call,
                order,
                host,
                account: account(trigger, *earlier),
            });
            TriggerSpec { name: trigger.clone(), config, handler }
        };
        self.names.iter().map(spec).collect()
    }

    /// How the clocks of a new host go.
    fn pace(&self) -> Pace {
        let Swarm { drift, off, .. } = self.swarm;
        let mut weather = self.weather.lock().unwrap();
        let slower = 1000 - drift.min(500);
        Pace { pace: weather.rng.u64(slower..=1000 + 2 * drift.min(500)), off: weather.rng.i64(-off..=off) }
    }

    fn start_worker(&mut self) {
        let network = self.network();
        let host = network.host;
        if self.swarm.mixed && self.draw(0, 3) == 0 {
            self.count("of an older release", None);
            self.weather.lock().unwrap().old.insert(host);
        }
        let retention = self.swarm.retention;
        let opened = Arc::new(AtomicBool::new(false));
        let has_opened = opened.clone();
        let way = self.stage.way(network);
        let freezer = SharedFreezer::default();
        let pace = self.pace();
        let wrap = {
            let freezer = freezer.clone();
            Arc::new(move |inner: BoxFuture<'static, lease::EndedShard>| {
                Box::pin(OnHost::new(inner, freezer.clone(), pace)) as BoxFuture<'static, lease::EndedShard>
            })
        };
        let specs = self.triggers(host);
        let triggers = specs.clone();
        let (reloads, reload) = mpsc::channel(1);
        let token = CancellationToken::new();
        let stop = token.clone();
        let (floor, ceiling) = self.swarm.poll;
        let weight = u32::try_from(self.draw(1, u64::from(self.swarm.weights) + 1)).expect("small");
        let on_control_outage =
            if self.swarm.continues { lease::OnControlOutage::Continue } else { lease::OnControlOutage::Stop };
        let poll = tail::Config { floor: Duration::from_millis(floor), ceiling: Duration::from_millis(ceiling) };
        let memory = self.swarm.memory;
        let life = async move {
            let mut reload = Some(reload);
            loop {
                if let Some((log, ledger)) = way.open().await {
                    let setup = Setup {
                        lease: lease::Config {
                            drain_deadline: 20 * SECOND,
                            weight,
                            on_control_outage,
                            ..lease::Config::default()
                        },
                        poll: poll.clone(),
                        checkpoint_interval: 3 * SECOND,
                        memory,
                        group: name("g"),
                        retention: retention.map(|(keep, every)| trimming(keep, every, &ledger)),
                        ledger,
                        presence: None,
                        identity: Identity { host: format!("h{host}"), pid: host, version: "sim".into() },
                        sources: [(name("trips"), Cells::new(log))].into(),
                        triggers: triggers.clone(),
                        wrap: Some(wrap.clone()),
                    };
                    if let Ok(worker) = Worker::new(setup).await {
                        has_opened.store(true, Ordering::Relaxed);
                        return worker.run(stop, reload.take().expect("once")).await;
                    }
                }
                if stop.is_cancelled() {
                    return;
                }
                clock::sleep(SECOND).await;
            }
        };
        let life = OnHost::new(Box::pin(life), freezer.clone(), pace);
        self.weather.lock().unwrap().note(format_args!("host {host} is started, {pace:?}"));
        let task = self.tasks.spawn(life);
        self.hosts.push(Host {
            number: host,
            token,
            freezer,
            task,
            specs,
            reloads,
            frozen_until: None,
            slow: None,
            leaving: false,
            opened,
            pending: None,
            agreed: true,
        });
    }

    fn start_writer(&mut self, first: bool) {
        let network = self.network();
        let mut rng = fastrand::Rng::with_seed(self.seed ^ u64::from(network.host));
        let way = self.stage.way(network);
        let writer = Writer {
            oracle: self.oracle.clone(),
            rows: self.swarm.rows,
            next_ref: u64::from(rng.u32(..)) << 20,
            lethal_in: (first && self.swarm.lethal).then(|| rng.usize(1..50)),
            earlier: Vec::new(),
            rng,
        };
        let (seconds, n, written) = (self.swarm.seconds, self.swarm.cells / 2, self.written.clone());
        self.tasks.spawn(writer.run(way, seconds, n, written));
    }

    fn chance(&self, chance: f64) -> bool {
        chance > 0.0 && self.weather.lock().unwrap().rng.f64() < chance
    }

    fn draw(&self, from: u64, to: u64) -> u64 {
        self.weather.lock().unwrap().rng.u64(from..to)
    }

    /// Some host, if there is any.
    fn some_host(&self) -> Option<usize> {
        let n = self.hosts.len();
        (n > 0).then(|| self.weather.lock().unwrap().rng.usize(..n))
    }

    fn count(&self, what: &'static str, host: Option<usize>) {
        let mut weather = self.weather.lock().unwrap();
        weather.count(what);
        let host = host.map(|place| self.hosts[place].number);
        weather.note(format_args!("{what} {host:?}"));
    }

    fn kill(&mut self, what: &'static str, place: usize) {
        self.count(what, Some(place));
        let host = self.hosts.remove(place);
        host.task.abort();
        thaw(&host.freezer);
    }

    /// What chance does in one second.
    fn disturb(&mut self) {
        let now = Instant::now();
        self.hosts.retain(|host| !host.task.is_finished());
        for host in &mut self.hosts {
            if let Some((freezer, goes)) = host.tick(now) {
                thaw(&freezer);
                self.tasks.spawn(async move {
                    sleep(Duration::from_millis(goes)).await;
                    freeze(&freezer);
                    sleep(Duration::from_millis(999 - goes)).await;
                    thaw(&freezer);
                });
            }
        }
        let killed = std::mem::take(&mut self.weather.lock().unwrap().killed);
        for place in
            (0..self.hosts.len()).rev().filter(|place| killed.contains(&self.hosts[*place].number)).collect::<Vec<_>>()
        {
            self.kill("killed by a cell", place);
        }
        let chaos = self.swarm.chaos;
        if self.chance(chaos.kill)
            && let Some(place) = self.some_host()
        {
            self.kill("kill", place);
        }
        if self.chance(chaos.freeze)
            && let Some(place) = self.some_host()
        {
            self.count("freeze", Some(place));
            let until = now + Duration::from_millis(self.draw(500, 25_000));
            freeze(&self.hosts[place].freezer);
            self.hosts[place].frozen_until = Some(until);
        }
        if self.chance(chaos.slow)
            && let Some(place) = self.some_host()
        {
            self.count("slow host", Some(place));
            self.hosts[place].slow = Some((self.draw(1, 500), now + Duration::from_secs(self.draw(2, 40))));
        }
        if self.chance(chaos.stop)
            && let Some(place) = self.some_host()
        {
            self.count("graceful stop", Some(place));
            self.hosts[place].token.cancel();
            self.hosts[place].leaving = true;
        }
        if self.chance(chaos.join) && self.hosts.len() < self.swarm.workers + 2 {
            self.count("join", None);
            self.start_worker();
        }
        if self.chance(chaos.reload)
            && !self.retirement.is_under_way()
            && let Some(place) = self.some_host()
        {
            self.reload(place);
        }
        self.disturb_store(now);
        while self.hosts.iter().filter(|host| !host.leaving).count() < self.swarm.workers {
            self.start_worker();
        }
    }

    /// What chance does to the way to the store.
    fn disturb_store(&mut self, now: Instant) {
        let chaos = self.swarm.chaos;
        if self.chance(chaos.outage) {
            self.count("outages", None);
            let until = now + Duration::from_millis(self.draw(1000, 40_000));
            self.weather.lock().unwrap().outage_until = until;
        }
        if self.chance(chaos.expired)
            && let Some(place) = self.some_host()
        {
            self.count("expired credentials", Some(place));
            let until = now + Duration::from_millis(self.draw(1000, 60_000));
            self.weather.lock().unwrap().expired_until.insert(self.hosts[place].number, until);
        }
        if self.chance(chaos.missing) {
            self.count("missing tables", None);
            let until = now + Duration::from_millis(self.draw(1000, 30_000));
            let part = if self.draw(0, 2) == 0 { Part::Datastore } else { Part::Group };
            self.weather.lock().unwrap().missing_until.insert(part, until);
        }
    }

    fn reload(&mut self, place: usize) {
        self.count("reload", Some(place));
        let kept = self.draw(0, 4);
        let fresh = self.triggers(self.hosts[place].number);
        let host = &mut self.hosts[place];
        let same =
            |i: u64, fresh: &TriggerSpec| host.specs.iter().find(|spec| i == kept && spec.name == fresh.name).cloned();
        let triggers: Vec<TriggerSpec> = (0..).zip(fresh).map(|(i, fresh)| same(i, &fresh).unwrap_or(fresh)).collect();
        let (answer, answered) = oneshot::channel();
        if host.reloads.try_send(Reload { triggers: triggers.clone(), answer }).is_ok() {
            (host.specs, host.pending, host.agreed) = (triggers, Some(answered), false);
        }
    }

    /// A trigger is retired, once in a world's life, and perhaps registered anew.
    async fn tend_retirement(&mut self) {
        self.oracle.turned(self.hosts.iter().filter(|host| host.frozen_until.is_none()).map(|host| host.number));
        if self.swarm.chaos.retire == 0.0 && !self.retirement.is_begun() {
            return;
        }
        self.hosts.iter_mut().for_each(Host::hear);
        if !self.retirement.is_begun() {
            let registered = self.operator.truth.ledger.triggers().await.unwrap();
            if registered.len() == self.names.len() {
                self.registered.get_or_insert_with(Instant::now);
            }
            let is_settled = self.registered.is_some_and(|since| since.elapsed() > SETTLED);
            let is_due = self.names.len() > 1 && self.chance(self.swarm.chaos.retire);
            if !is_due || !is_settled || !self.hosts.iter().all(Host::is_settled) {
                return;
            }
            let which = self.draw(0, self.names.len() as u64);
            let (name, _) = self.names.remove(usize::try_from(which).unwrap());
            let record = registered.into_iter().find(|record| record.goes_by(&name)).expect("it is registered");
            self.count("retire", None);
            self.retirement.begin(&record, name);
        }
        let again = self.draw(0, 4) == 0;
        let (truth, anew, hosts) = (self.operator.truth.clone(), self.swarm.anew, &self.hosts);
        match self.retirement.tick(&truth, again, self.is_healthy, anew, hosts).await {
            Next::Nothing => {}
            Next::Ask => {
                self.count("retirement asked for", None);
                let network = self.network();
                let dies = !self.is_healthy && self.draw(0, 2) == 0;
                let patience = Duration::from_millis(if dies { self.draw(1, 15_000) } else { 600_000 });
                let task = self.retirement.ask(self.stage.way(network), self.oracle.clone(), patience);
                self.tasks.spawn(task);
            }
            Next::NameAnew => {
                self.count("named anew", None);
                self.names.push((self.retirement.name.clone().expect("it is begun"), 1));
            }
        }
        if self.retirement.is_under_way() && !self.is_healthy {
            return;
        }
        let one_in = if self.is_healthy { 4 } else { 20 };
        for place in 0..self.hosts.len() {
            let host = &self.hosts[place];
            let mut names = self.names.iter().map(|(name, _)| name);
            let is_so = host.specs.len() == self.names.len()
                && names.all(|name| host.specs.iter().any(|spec| spec.name == *name));
            if host.has_opened() && host.pending.is_none() && !(is_so && host.agreed) && self.draw(0, one_in) == 0 {
                self.reload(place);
            }
        }
    }

    /// One second with everything in it.
    async fn second(&mut self) {
        if let Some(panic) = PANICKED.take() {
            self.oracle.violated(format!("I9: {panic}"));
        }
        self.disturb();
        self.tend_retirement().await;
        let chaos = self.swarm.chaos;
        if self.chance(chaos.trim) {
            self.operator.trim().await;
        }
        if self.chance(chaos.erase) {
            self.operator.erase(self.swarm.rows).await;
        }
        if self.chance(chaos.damage) {
            self.operator.damage().await;
        }
        if self.chance(chaos.operate) {
            self.operator.operate().await;
        }
        sleep(SECOND).await;
    }

    /// From now on nothing goes wrong.
    fn heal(&mut self) {
        self.weather.lock().unwrap().heal();
        self.swarm.chaos = super::swarm::Chaos::default();
        self.is_healthy = true;
        self.hosts.iter_mut().for_each(Host::heal);
        self.oracle.healed();
    }

    /// Something that is still to be done.
    async fn left(&self) -> Option<String> {
        let Truth { log, ledger } = &self.operator.truth;
        if let Some(left) = self.retirement.left(&self.operator.truth).await {
            return Some(left);
        }
        let triggers = ledger.triggers().await.unwrap();
        if self.retirement.waits(self.swarm.anew) || triggers.len() != self.names.len() {
            return Some(format!("{} triggers are registered, the config has {:?}", triggers.len(), self.names));
        }
        for shard in log.datastore().all_shards() {
            let tip = log.tip(shard).await.unwrap().map_or(AddedId(0), |tip| tip.tip);
            let of = ShardRef { source: name("trips"), shard };
            let Some(lease) = ledger.lease(&of).await.unwrap() else { return Some(format!("{of} has no lease")) };
            let mut lows = lease.checkpoints.values().map(|checkpoint| checkpoint.low);
            let has_all = triggers.iter().all(|trigger| lease.checkpoints.contains_key(&trigger.id));
            let all = lease.owner.is_some() && has_all && lease.checkpoints.len() == triggers.len();
            if !all || !lows.all(|low| low == tip) {
                return Some(format!("the tip is {tip}, {lease:?}"));
            }
            for trigger in lease.checkpoints.keys() {
                let lane = Lane { trigger: trigger.clone(), shard: of.clone(), kind: LaneKind::Active };
                if let Some(parked) = ledger.parked(&lane, AddedId(0), 1).await.unwrap().first() {
                    return Some(format!("{parked:?}"));
                }
            }
        }
        None
    }

    /// Once the world is healed everything has to come to an end, and to rest.
    async fn come_to_rest(&mut self) {
        let healed = Instant::now();
        let all = self.swarm.cells / 2 * 2;
        loop {
            self.second().await;
            let whole = *self.written.lock().unwrap() == all;
            if self.oracle.is_violated() || whole && self.left().await.is_none() {
                break;
            }
            if healed.elapsed() > DONE_WITHIN {
                let left = self.left().await;
                self.oracle.violated(format!("I7: not done {:?} after the world healed: {left:?}", healed.elapsed()));
                return;
            }
        }
        if !self.swarm.lethal {
            self.oracle.check_claims(CLAIMS_MAX);
        }
        if self.seed.is_multiple_of(4) {
            // Those that came last may still be given their part.
            let (mut quiet, mut claims) = (0, self.oracle.claims());
            let done = Instant::now();
            while quiet < QUIET && done.elapsed() < QUIET_WITHIN {
                self.second().await;
                quiet = if self.oracle.claims() == claims { quiet + 1 } else { 0 };
                claims = self.oracle.claims();
            }
            if quiet < QUIET {
                self.oracle.violated(format!("I7: leases still change hands {QUIET_WITHIN:?} after all was done"));
            }
        }
    }

    /// I2: what lies in the log is what was appended; a segment that was damaged keeps its place.
    async fn read_log(&self) {
        let log = &self.operator.truth.log;
        let cells = self.oracle.cells();
        for shard in log.datastore().all_shards() {
            let Some(tip) = log.tip(shard).await.unwrap() else { continue };
            // The last segment that a trim reached into may have stayed.
            let mut next = tip.trimmed_to.next();
            let mut after = AddedId(0);
            loop {
                let page = log.page(shard, after, 1000, Consistency::Strong).await.unwrap();
                let Some(last) = page.last() else { break };
                for segment in &page {
                    let first = segment.key().first();
                    if first > next || after > tip.trimmed_to && first != next {
                        self.oracle.violated(format!("I2: shard {shard}: {next} is missing"));
                    }
                    // A trim deletes in no order.
                    next = segment.last.max(tip.trimmed_to).next();
                    let unpacked = cellhook::store::segment::unpack(shard, segment).unwrap_or_default();
                    for cell in unpacked {
                        if cells.get(&(shard, cell.added_id)) != Some(&cell.key) {
                            self.oracle.violated(format!("I2: {:?} was not appended there", cell.key));
                        }
                    }
                }
                after = last.last;
            }
            if next != tip.tip.next() {
                self.oracle.violated(format!("I2: shard {shard} ends at {next}, its tip is {}", tip.tip));
            }
        }
    }
}

/// How a worker trims. There is but one group.
fn trimming(keep: u64, every: u64, ledger: &Arc<dyn Ledger>) -> Retention {
    let ledger = ledger.clone();
    let open = move |_| -> BoxFuture<'static, Result<Arc<dyn Ledger>, OpenError>> {
        let ledger = ledger.clone();
        Box::pin(async move { Ok(ledger) })
    };
    let keep = [(name("trips"), Duration::from_secs(keep))].into();
    Retention { keep, every: Duration::from_secs(every), open: Arc::new(open) }
}

/// Who appends: until acknowledged, as a careful writer does, and sometimes what it appended before.
struct Writer {
    oracle: Arc<Oracle>,
    rng: fastrand::Rng,
    rows: usize,
    next_ref: u64,
    /// After so many cells comes one that kills.
    lethal_in: Option<usize>,
    earlier: Vec<NewCell>,
}

impl Writer {
    fn cell(&mut self) -> NewCell {
        self.next_ref += 1;
        let row = self.rng.usize(..self.rows);
        let kind = if row.is_multiple_of(17) { "poison" } else { "row" };
        let column = if self.rng.u8(..4) == 0 { "NOTE" } else { "BASE" };
        let key = CellKey { row_key: format!("{kind}-{row}").into(), column: column.into(), ref_key: self.next_ref };
        let what = if self.lethal_in == Some(0) { "lethal" } else { "n" };
        self.lethal_in = self.lethal_in.and_then(|cells| cells.checked_sub(1));
        NewCell { key, body: format!("{{\"{what}\":{}}}", self.next_ref).into(), origin: None }
    }

    /// Something that lies there already: the same again, or another body.
    fn again(&mut self) -> Option<NewCell> {
        if self.rng.u8(..4) > 0 {
            return None;
        }
        let mut cell = self.rng.choice(&self.earlier)?.clone();
        if self.rng.bool() {
            cell.body = "{\"other\":1}".into();
        }
        Some(cell)
    }

    async fn run(mut self, way: super::stage::Way, seconds: u64, n: usize, written: Arc<Mutex<usize>>) {
        let log = loop {
            match way.open().await {
                Some((log, _)) => break log,
                None => sleep(SECOND).await,
            }
        };
        let cells = Cells::new(log);
        let mut left = n;
        while left > 0 {
            let batch = self.rng.usize(1..=20.min(left));
            let pause = seconds * 700 / (n as u64 / 10);
            sleep(Duration::from_millis(self.rng.u64(0..pause.max(1) * 2))).await;
            let mut open: Vec<NewCell> = (0..batch).map(|_| self.cell()).collect();
            let fresh = open.clone();
            open.extend(self.again());
            while !open.is_empty() {
                let answers = cells.put(open.clone()).await;
                let answered = open.into_iter().zip(answers);
                open = answered.filter_map(|(cell, answer)| self.answered(cell, answer)).collect();
                if !open.is_empty() {
                    sleep(SECOND).await;
                }
            }
            self.earlier = fresh;
            *written.lock().unwrap() += batch;
            left -= batch;
        }
    }

    /// The cell again, where it is to be put again.
    fn answered(&self, cell: NewCell, answer: Result<cellhook::store::Placed, PutError>) -> Option<NewCell> {
        let other = *cell.body == *"{\"other\":1}";
        match answer {
            Ok(placed) if !other => self.oracle.acknowledged(&cell.key, placed.added_id),
            Ok(placed) => {
                self.oracle.violated(format!("I2: another body was taken for {:?} at {}", cell.key, placed.added_id));
            }
            Err(PutError::Conflict { existing }) if other => {
                self.oracle.acknowledged(&cell.key, existing.cell.added_id);
            }
            Err(PutError::Erased { .. }) => {}
            Err(PutError::Store(_)) => return Some(cell),
            Err(error) => self.oracle.violated(format!("I2: {:?} was answered with {error}", cell.key)),
        }
        None
    }
}

thread_local! {
    /// What panicked on this thread since it was last asked: tasks swallow their panics.
    static PANICKED: std::cell::RefCell<Option<String>> = const { std::cell::RefCell::new(None) };
}

/// From now on panics of threads that simulate are noted.
fn watch_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICKED.with_borrow_mut(|panicked| *panicked = Some(panic.to_string()));
            before(panic);
        }));
    });
}

/// Runs one seed to its end.
pub(super) fn run(seed: u64, swarm: Swarm, bug: &'static str, told: bool) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async move {
        watch_panics();
        PANICKED.take();
        clock::simulate(Millis(1_900_000_000_000));
        fastrand::seed(seed);
        let start = Instant::now();
        let mut world = World::new(seed, swarm, told).await;
        planted::plant(bug);
        for first in [true, false] {
            world.start_writer(first);
        }
        for second in 0..world.swarm.seconds {
            if second == world.swarm.faults_for {
                world.heal();
            }
            world.second().await;
            if world.oracle.is_violated() {
                break;
            }
        }
        if world.swarm.long_outage {
            world.count("outages of hours", None);
            let hours = world.draw(1, 4);
            world.weather.lock().unwrap().outage_until = Instant::now() + 3600 * SECOND * u32::try_from(hours).unwrap();
            sleep(3600 * SECOND * u32::try_from(hours).unwrap()).await;
        }
        world.heal();
        world.come_to_rest().await;
        world.read_log().await;
        if !world.oracle.is_violated() {
            world.oracle.check_repeats(u64::from(world.swarm.window));
            world.oracle.check_all();
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
            cells: counts.cells,
            calls: counts.calls,
            repeats: counts.repeats,
            takeovers: counts.takeovers,
            hand_overs: counts.hand_overs,
            parked: counts.parked,
        }
    })
}
