//! What becomes of each request: the fates, how likely they are, and the record of what happened.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// How likely each fate is, per request; and what a read is told, per read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    /// Never applied, no answer.
    pub(super) lost: f64,
    /// Applied, no answer.
    pub(super) reply_lost: f64,
    /// No answer, and applied up to half a minute later.
    pub(super) late: f64,
    /// Told 500, before or after it was applied.
    pub(super) broken: f64,
    pub(super) throttled: f64,
    /// Told a conflict; a transaction may be applied all the same, later.
    pub(super) conflict: f64,
    /// Applied, and the answer is no answer.
    pub(super) garbled: f64,
    /// An eventually consistent read shows what was.
    pub(super) stale: f64,
    /// A query beside a transaction sees part of it.
    pub(super) torn: f64,
    /// A page is shorter than it could be, or empty though more comes.
    pub(super) short: f64,
    /// A segment's bytes came over wrong.
    pub(super) damaged: f64,
    /// It takes up to a second and a half each way.
    pub(super) slow: f64,
}

/// What becomes of one request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fate {
    Fine,
    Lost,
    ReplyLost,
    Late(Duration),
    BrokenBefore,
    BrokenAfter,
    Throttled,
    Conflict,
    /// Conflict told, applied later: what holds the item is this very write.
    Applying(Duration),
    Garbled,
    Outage,
    Credentials,
    MissingTable,
}

impl Fate {
    fn name(self) -> &'static str {
        match self {
            Self::Fine => "fine",
            Self::Lost => "request lost",
            Self::ReplyLost => "reply lost",
            Self::Late(_) => "applied late",
            Self::BrokenBefore => "500 before",
            Self::BrokenAfter => "500 after",
            Self::Throttled => "throttled",
            Self::Conflict => "conflict",
            Self::Applying(_) => "conflict told, applied later",
            Self::Garbled => "answer garbled",
            Self::Outage => "outage",
            Self::Credentials => "credentials expired",
            Self::MissingTable => "table missing",
        }
    }
}

/// A request's way: what becomes of it, and how long each direction takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trip {
    pub(super) fate: Fate,
    pub(super) there: Duration,
    pub(super) back: Duration,
}

/// Which tables a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Datastore,
    Group,
}

/// What all networks of a world share.
pub(super) struct Weather {
    pub(super) rng: fastrand::Rng,
    pub(super) faults: Faults,
    /// Nobody reaches the store before then.
    pub(super) outage_until: Instant,
    /// These hosts are refused for their credentials.
    pub(super) expired_until: BTreeMap<u32, Instant>,
    /// These tables are not there.
    pub(super) missing_until: BTreeMap<Part, Instant>,
    /// Hosts of an older release, which knows plan 1 alone.
    pub(super) old: BTreeSet<u32>,
    /// Hosts that a cell has killed.
    pub(super) killed: Vec<u32>,
    pub(super) counts: BTreeMap<&'static str, u64>,
    pub(super) requests: u64,
    pub(super) trace: u64,
    line: String,
    pub(super) start: Instant,
    pub(super) told: bool,
}

pub(super) type SharedWeather = Arc<Mutex<Weather>>;

impl Weather {
    pub(super) fn new(seed: u64, faults: Faults, told: bool) -> Self {
        let start = Instant::now();
        Self {
            rng: fastrand::Rng::with_seed(seed ^ 0x5eed),
            faults,
            outage_until: start,
            expired_until: BTreeMap::new(),
            missing_until: BTreeMap::new(),
            old: BTreeSet::new(),
            killed: Vec::new(),
            counts: BTreeMap::new(),
            requests: 0,
            trace: 0,
            line: String::new(),
            start,
            told,
        }
    }

    /// A line of the trace, which is told or only hashed.
    pub(super) fn note(&mut self, text: std::fmt::Arguments<'_>) {
        use std::fmt::Write;
        let at = self.start.elapsed().as_millis();
        self.line.clear();
        write!(self.line, "{at:>7} {text}").expect("a line takes anything");
        self.trace = xxh3_64_with_seed(self.line.as_bytes(), self.trace);
        if self.told {
            println!("{}", self.line);
        }
    }

    /// Something happened: counted and told.
    pub(super) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// From now on everything is fine.
    pub(super) fn heal(&mut self) {
        self.note(format_args!("the world heals"));
        self.faults = Faults::default();
        self.outage_until = self.start;
        self.expired_until.clear();
        self.missing_until.clear();
    }

    fn draw(&mut self, host: u32, part: Part, is_transaction: bool) -> Fate {
        let now = Instant::now();
        if now < self.outage_until {
            return Fate::Outage;
        }
        if self.expired_until.get(&host).is_some_and(|until| now < *until) {
            return Fate::Credentials;
        }
        if self.missing_until.get(&part).is_some_and(|until| now < *until) {
            return Fate::MissingTable;
        }
        let faults = self.faults;
        let draw = self.rng.f64();
        let late = Duration::from_millis(self.rng.u64(500..30_000));
        let coin = self.rng.bool();
        let fates = [
            (faults.lost, Fate::Lost),
            (faults.reply_lost, Fate::ReplyLost),
            (faults.late, Fate::Late(late)),
            (faults.broken, if coin { Fate::BrokenBefore } else { Fate::BrokenAfter }),
            (faults.throttled, Fate::Throttled),
            (faults.conflict, if coin && is_transaction { Fate::Applying(late) } else { Fate::Conflict }),
            (faults.garbled, Fate::Garbled),
        ];
        let mut sum = 0.0;
        for (chance, fate) in fates {
            sum += chance;
            if draw < sum {
                return fate;
            }
        }
        Fate::Fine
    }

    /// What becomes of a request of a host.
    pub(super) fn trip(&mut self, host: u32, operation: &str, part: Part, is_transaction: bool) -> Trip {
        self.requests += 1;
        let fate = self.draw(host, part, is_transaction);
        if fate != Fate::Fine {
            self.count(fate.name());
        }
        let slow = self.rng.f64() < self.faults.slow;
        let most = if slow { 1500 } else { 10 };
        let mut delay = || Duration::from_millis(self.rng.u64(1..=most));
        let trip = Trip { fate, there: delay(), back: delay() };
        self.note(format_args!("host {host} {operation} {}", fate.name()));
        trip
    }

    /// Whether this read gets the better of a fault; with a generator for how.
    pub(super) fn hits(&mut self, name: &'static str, chance: fn(&Faults) -> f64) -> Option<fastrand::Rng> {
        let chance = chance(&self.faults);
        let hit = chance > 0.0 && self.rng.f64() < chance;
        hit.then(|| {
            self.count(name);
            fastrand::Rng::with_seed(self.rng.u64(..))
        })
    }
}

/// One host's network.
#[derive(Clone)]
pub(super) struct Network {
    pub(super) host: u32,
    pub(super) weather: SharedWeather,
}

impl Network {
    pub(super) fn hits(&self, name: &'static str, chance: fn(&Faults) -> f64) -> Option<fastrand::Rng> {
        self.weather.lock().unwrap().hits(name, chance)
    }
}
