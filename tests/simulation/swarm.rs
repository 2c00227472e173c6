//! What a seed draws before it begins: some worlds are calm, some extreme.

use super::weather::Faults;

/// Where the simulation cuts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// At `Log` and `Ledger`, over the twins in memory.
    Port,
    /// At the HTTP connector of the real SDK, over the embedded store in memory.
    Sdk,
}

/// Chances a second that something befalls somebody.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Chaos {
    /// Some worker is gone, is frozen, goes slowly, is asked to leave; one more comes.
    pub(super) kill: f64,
    pub(super) freeze: f64,
    pub(super) slow: f64,
    pub(super) stop: f64,
    pub(super) join: f64,
    /// Nobody reaches the store; one host's credentials expire; tables are not there.
    pub(super) outage: f64,
    pub(super) expired: f64,
    pub(super) missing: f64,
    /// A worker's config is read again, with some triggers changed.
    pub(super) reload: f64,
    /// A shard is trimmed; a row is erased; a stored segment is damaged for good.
    pub(super) trim: f64,
    pub(super) erase: f64,
    pub(super) damage: f64,
    /// An operator touches parked cells or a checkpoint, or renames.
    pub(super) operate: f64,
    /// An operator retires a trigger, once.
    pub(super) retire: f64,
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Swarm {
    pub(super) level: Level,
    pub(super) workers: usize,
    pub(super) shards: u32,
    pub(super) cells: usize,
    pub(super) rows: usize,
    pub(super) seconds: u64,
    pub(super) triggers: usize,
    pub(super) window: u32,
    pub(super) in_flight: u32,
    pub(super) batch: u32,
    /// Of `worker.memory`.
    pub(super) memory: u64,
    /// Least and most milliseconds between two looks at the tips.
    pub(super) poll: (u64, u64),
    /// Milliseconds of a call at most, and of the longest wait before it is tried again.
    pub(super) call: u64,
    pub(super) retry: u64,
    /// Percent of attempts that fail.
    pub(super) failing: u64,
    pub(super) faults: Faults,
    pub(super) chaos: Chaos,
    /// How far the workers' clocks go apart: thousandths of pace, and milliseconds of the wall clock.
    pub(super) drift: u64,
    pub(super) off: i64,
    /// The workers' weights are drawn up to this.
    pub(super) weights: u32,
    /// Calls go on while the control table is out of reach.
    pub(super) continues: bool,
    /// One cell kills every worker that calls for it.
    pub(super) lethal: bool,
    /// An outage of hours at the end, after which all come back at once.
    pub(super) long_outage: bool,
    /// The config gets the name of a retired trigger again.
    pub(super) anew: bool,
    /// Seconds for which the workers keep logs, and between two trims of a shard.
    pub(super) retention: Option<(u64, u64)>,
    /// Some workers are of a release that knows plan 1 alone. At the ports only.
    pub(super) mixed: bool,
    /// Faults end after so many seconds. For shrinking.
    pub(super) faults_for: u64,
}

impl Swarm {
    pub(super) fn draw(level: Level, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let scale = if rng.u8(..8) == 0 { 0.0 } else { 0.08 * rng.f64() };
        let extreme = rng.u8(..16) == 0;
        let mut chance = |most: f64| match rng.u8(..3) {
            0 => 0.0,
            _ if extreme => most * (1.0 + rng.f64()),
            _ => most * rng.f64(),
        };
        let faults = Faults {
            lost: chance(scale),
            reply_lost: chance(scale),
            late: chance(scale),
            broken: chance(scale / 2.0),
            throttled: chance(scale),
            conflict: chance(scale),
            garbled: chance(scale / 4.0),
            stale: chance(0.3),
            torn: chance(0.2),
            short: chance(0.3),
            damaged: chance(0.02),
            slow: chance(0.1),
        };
        let chaos = Chaos {
            kill: chance(0.05),
            freeze: chance(0.05),
            slow: chance(0.03),
            stop: chance(0.03),
            join: chance(0.02),
            outage: chance(0.008),
            expired: chance(0.01),
            missing: chance(0.004),
            reload: chance(0.2),
            trim: chance(0.05),
            erase: chance(0.03),
            damage: 0.0,
            operate: chance(0.3),
            retire: 0.0,
        };
        let chaos = Chaos { damage: if rng.u8(..8) == 0 { 0.03 } else { 0.0 }, ..chaos };
        // At the level of the SDK a request costs twenty times as much: fewer of them are in vain.
        let (slower, parts) = if level == Level::Sdk { (4, 3..=8) } else { (1, 2..=6) };
        let floor = slower * rng.u64(200..1000);
        let (workers, shards) = if rng.u8(..4) == 0 { (rng.usize(2..=5), rng.u32(3..=12)) } else { (3, 8) };
        // Small worlds come to their end sooner, and see other things.
        let part = if rng.u8(..3) == 0 { 1 } else { rng.u64(parts) };
        let drawn = Self {
            level,
            workers,
            shards,
            cells: 500 / usize::try_from(part).expect("small"),
            rows: rng.usize(5..60),
            seconds: 120 / part,
            triggers: rng.usize(1..=3),
            window: rng.u32(4..40),
            in_flight: rng.u32(1..12),
            batch: rng.u32(1..4),
            memory: 1 << rng.u32(14..26),
            poll: (floor, floor.max(slower * rng.u64(1000..3000))),
            call: rng.u64(20..400),
            retry: rng.u64(2..40) * 1000,
            failing: rng.u64(0..25),
            faults,
            chaos,
            drift: match rng.u8(..4) {
                0 => 0,
                1 => 500,
                _ => rng.u64(1..50),
            },
            off: rng.i64(0..60_000),
            weights: if rng.u8(..3) == 0 { 4 } else { 1 },
            continues: rng.u8(..5) == 0,
            lethal: rng.u8(..12) == 0,
            long_outage: rng.u8(..50) == 0,
            anew: false,
            retention: None,
            mixed: false,
            faults_for: u64::MAX,
        };
        // Last, so that what was drawn before stays as it was.
        let retire = if rng.u8(..4) == 0 { 0.05 } else { 0.0 };
        let drawn = Self {
            chaos: Chaos { retire, ..drawn.chaos },
            anew: retire > 0.0 && rng.bool(),
            retention: (rng.u8(..5) == 0).then(|| (rng.u64(1..60), rng.u64(5..60))),
            mixed: level == Level::Port && drawn.weights > 1 && rng.bool(),
            ..drawn
        };
        // Over hours a wall clock is set right, whatever its pace: what one host stores as due is due for the others.
        Self { drift: if drawn.long_outage { drawn.drift.min(20) } else { drawn.drift }, ..drawn }
    }
}

/// What can be taken out of a world, by name.
type Knob = (&'static str, fn(&mut Swarm));

/// For shrinking: what is left out makes a world simpler. Sizes first, since they save the most reading.
pub(super) const KNOBS: &[Knob] = &[
    ("operators", |swarm| swarm.chaos.operate = 0.0),
    ("retire", |swarm| swarm.chaos.retire = 0.0),
    ("anew", |swarm| swarm.anew = false),
    ("retention", |swarm| swarm.retention = None),
    ("mixed", |swarm| swarm.mixed = false),
    ("reload", |swarm| swarm.chaos.reload = 0.0),
    ("trim", |swarm| swarm.chaos.trim = 0.0),
    ("erase", |swarm| swarm.chaos.erase = 0.0),
    ("damage", |swarm| swarm.chaos.damage = 0.0),
    ("kill", |swarm| swarm.chaos.kill = 0.0),
    ("freeze", |swarm| swarm.chaos.freeze = 0.0),
    ("slow-host", |swarm| swarm.chaos.slow = 0.0),
    ("stop", |swarm| swarm.chaos.stop = 0.0),
    ("join", |swarm| swarm.chaos.join = 0.0),
    ("outage", |swarm| swarm.chaos.outage = 0.0),
    ("long-outage", |swarm| swarm.long_outage = false),
    ("expired", |swarm| swarm.chaos.expired = 0.0),
    ("missing", |swarm| swarm.chaos.missing = 0.0),
    ("clocks", |swarm| (swarm.drift, swarm.off) = (0, 0)),
    ("weights", |swarm| swarm.weights = 1),
    ("continues", |swarm| swarm.continues = false),
    ("lethal", |swarm| swarm.lethal = false),
    ("failing", |swarm| swarm.failing = 0),
    ("lost", |swarm| swarm.faults.lost = 0.0),
    ("reply-lost", |swarm| swarm.faults.reply_lost = 0.0),
    ("late", |swarm| swarm.faults.late = 0.0),
    ("500", |swarm| swarm.faults.broken = 0.0),
    ("throttled", |swarm| swarm.faults.throttled = 0.0),
    ("conflict", |swarm| swarm.faults.conflict = 0.0),
    ("garbled", |swarm| swarm.faults.garbled = 0.0),
    ("stale", |swarm| swarm.faults.stale = 0.0),
    ("torn", |swarm| swarm.faults.torn = 0.0),
    ("short", |swarm| swarm.faults.short = 0.0),
    ("damaged", |swarm| swarm.faults.damaged = 0.0),
    ("slow-request", |swarm| swarm.faults.slow = 0.0),
];

impl Swarm {
    /// Leaves out what is named.
    pub(super) fn without(mut self, names: &[String]) -> Self {
        for (_, take_out) in KNOBS.iter().filter(|(name, _)| names.iter().any(|without| without == name)) {
            take_out(&mut self);
        }
        self
    }
}
