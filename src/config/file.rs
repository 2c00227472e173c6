//! The shape of the file: what its tables are called, which keys they have, and what follows when a key is left out.

use super::{Config, Datastore};
use crate::{
    admin::Listen,
    cell::{
        AddedId, Name,
        setting::{BadSetting, DURATION_MAX, duration, lasts, size, within},
    },
    dispatch::{self, Start},
    filter::Filter,
    handler, lease, process, store, tail,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::Path, time::Duration};

/// Most triggers that tail one datastore.
const TRIGGERS_MAX: usize = 32;

/// The whole file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    #[serde(default = "default_group")]
    group: Name,
    #[serde(default)]
    store: store::Config,
    #[serde(default)]
    datastores: BTreeMap<Name, Datastore>,
    #[serde(default)]
    worker: Worker,
    #[serde(default)]
    checkpoint: Checkpoint,
    #[serde(default)]
    poll: Poll,
    #[serde(default)]
    metrics: Metrics,
    #[serde(default)]
    log: process::LogConfig,
    #[serde(default)]
    triggers: BTreeMap<Name, dispatch::Config>,
}

fn default_group() -> Name {
    Name::new("default").expect("a constant name is valid")
}

/// `[worker]`: [`lease::Config`], and the memory of its windows.
#[derive(Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Worker {
    #[serde(with = "duration")]
    heartbeat: Duration,
    #[serde(with = "duration")]
    session: Duration,
    #[serde(with = "duration")]
    drain_deadline: Duration,
    weight: u32,
    on_control_outage: lease::OnControlOutage,
    #[serde(with = "size")]
    memory: u64,
}

impl Default for Worker {
    fn default() -> Self {
        let lease::Config { heartbeat, session, drain_deadline, weight, on_control_outage, membership: _ } =
            lease::Config::default();
        Self { heartbeat, session, drain_deadline, weight, on_control_outage, memory: dispatch::MEMORY }
    }
}

/// `[checkpoint]`.
#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Checkpoint {
    #[serde(with = "duration::optional")]
    interval: Option<Duration>,
}

/// `[poll]`: [`tail::Config`].
#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Poll {
    #[serde(with = "duration::optional")]
    floor: Option<Duration>,
    #[serde(with = "duration::optional")]
    ceiling: Option<Duration>,
}

/// `[metrics]`.
#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Metrics {
    #[serde(skip_serializing_if = "Option::is_none")]
    listen: Option<String>,
    per_shard: bool,
}

impl Metrics {
    const OFF: &str = "off";

    /// `fixed`: even the default port was asked for.
    fn resolve(&self, fixed: bool) -> Result<Option<Listen>, BadSetting> {
        match self.listen.as_deref() {
            None => Ok(Some(Listen { fixed, ..Listen::default() })),
            Some(Self::OFF) => Ok(None),
            Some(text) => match text.parse() {
                Ok(address) => Ok(Some(Listen { address, fixed: true })),
                Err(_) => {
                    let reason = format!("{text:?} is no address and port such as \"127.0.0.1:9464\", nor \"off\"");
                    Err(BadSetting::new("metrics.listen", reason))
                }
            },
        }
    }
}

/// What the rest of a config does not say itself: it depends on the store.
pub(crate) struct Paces {
    pub(crate) checkpoint: Duration,
    pub(crate) poll: tail::Config,
    pub(crate) membership: Duration,
}

impl Paces {
    /// An embedded store's requests cost nothing; those of DynamoDB are paid for.
    pub(crate) fn of(kind: store::Kind, heartbeat: Duration) -> Self {
        let ms = Duration::from_millis;
        match kind {
            store::Kind::Embedded => Self {
                checkpoint: ms(1000),
                poll: tail::Config { floor: ms(10), ceiling: ms(200) },
                membership: ms(200).min(heartbeat),
            },
            store::Kind::Dynamodb => Self {
                checkpoint: ms(5000),
                poll: tail::Config { floor: ms(200), ceiling: ms(2000) },
                membership: heartbeat,
            },
        }
    }
}

impl File {
    /// Fills in what was left out and checks every value.
    pub(super) fn resolve(self, file: &Path, fixed_ports: bool) -> Result<Config, BadSetting> {
        let Self { group, store, datastores, worker, checkpoint, poll, metrics, log, triggers } = self;
        let paces = Paces::of(store.kind, worker.heartbeat);
        let Worker { heartbeat, session, drain_deadline, weight, on_control_outage, memory } = worker;
        let membership = paces.membership;
        let config = Config {
            file: file.to_owned(),
            group,
            lease: lease::Config { heartbeat, session, drain_deadline, weight, on_control_outage, membership },
            memory,
            checkpoint_interval: checkpoint.interval.unwrap_or(paces.checkpoint),
            poll: tail::Config {
                floor: poll.floor.unwrap_or(paces.poll.floor),
                // A floor above the default ceiling raises it.
                ceiling: poll.ceiling.unwrap_or_else(|| paces.poll.ceiling.max(poll.floor.unwrap_or_default())),
            },
            metrics: metrics.resolve(fixed_ports)?,
            per_shard: metrics.per_shard,
            store,
            datastores,
            log,
            triggers,
        };
        check(&config)?;
        Ok(config)
    }

    /// The file that loads as this config. `metrics.listen` is left out when nobody asked for the very port.
    pub(super) fn of(config: &Config) -> Self {
        let Config {
            file: _,
            group,
            store,
            datastores,
            lease,
            memory,
            checkpoint_interval,
            poll: tail::Config { floor, ceiling },
            metrics,
            per_shard,
            log,
            triggers,
        } = config.clone();
        let lease::Config { heartbeat, session, drain_deadline, weight, on_control_outage, membership: _ } = lease;
        let listen = match metrics {
            None => Some(Metrics::OFF.into()),
            Some(Listen { address, fixed: true }) => Some(address.to_string()),
            Some(Listen { fixed: false, .. }) => None,
        };
        Self {
            group,
            store,
            datastores,
            worker: Worker { heartbeat, session, drain_deadline, weight, on_control_outage, memory },
            checkpoint: Checkpoint { interval: Some(checkpoint_interval) },
            poll: Poll { floor: Some(floor), ceiling: Some(ceiling) },
            metrics: Metrics { listen, per_shard },
            log,
            triggers,
        }
    }
}

/// A room's complaint, with the key counted from the top of the file.
fn under(table: &str, checked: Result<(), BadSetting>) -> Result<(), BadSetting> {
    checked.map_err(|BadSetting { key, reason }| BadSetting { key: format!("{table}.{key}"), reason })
}

/// Refuses the name of a datastore that the file does not have.
fn known(config: &Config, key: &str, name: &Name) -> Result<(), BadSetting> {
    if config.datastores.contains_key(name) {
        return Ok(());
    }
    let known: Vec<&str> = config.datastores.keys().map(Name::as_str).collect();
    let reason = match known.as_slice() {
        [] => format!("\"{name}\" is no datastore: the file has none; write [datastores.{name}]"),
        known => format!("\"{name}\" is no datastore of this file; it has {}", known.join(", ")),
    };
    Err(BadSetting::new(key, reason))
}

fn check(config: &Config) -> Result<(), BadSetting> {
    for (name, datastore) in &config.datastores {
        within(&format!("datastores.{name}.shards"), datastore.shards, 1, 65_536)?;
        if let Some(retention) = datastore.retention {
            lasts(&format!("datastores.{name}.retention"), retention, Duration::from_hours(1), DURATION_MAX)?;
        }
    }
    under("worker", config.lease.check())?;
    let memory = config.memory;
    if !(4_000_000..=1_000_000_000_000).contains(&memory) {
        let reason = format!("{:?} is out of range; it must be \"4MB\" to \"1000GB\"", size::text(memory));
        return Err(BadSetting::new("worker.memory", reason));
    }
    let hour = Duration::from_hours(1);
    lasts("checkpoint.interval", config.checkpoint_interval, Duration::from_millis(1), hour)?;
    under("poll", config.poll.check())?;
    under("log", config.log.check())?;
    let mut of_source: BTreeMap<&Name, usize> = BTreeMap::new();
    for (name, trigger) in &config.triggers {
        let table = format!("triggers.{name}");
        under(&table, trigger.check())?;
        if let Err(error) = Filter::new(&trigger.columns, trigger.filter.as_deref()) {
            return Err(BadSetting::new(format!("{table}.filter"), error.to_string()));
        }
        let source = &trigger.source;
        known(config, &format!("{table}.source"), source)?;
        if let Start::Added(places) = &trigger.start {
            let shards = config.datastores[source].shards;
            for (shard, place) in places {
                let key = format!("{table}.start.{shard}");
                if shard.0 >= shards {
                    let reason = format!("{source} has no shard {shard}; its shards are 0 to {}", shards - 1);
                    return Err(BadSetting::new(key, reason));
                }
                within(&key, place.0, 0, AddedId::MAX.0)?;
            }
        }
        if let handler::Config::Cells(handler) = &trigger.handler {
            known(config, &format!("{table}.handler.datastore"), &handler.datastore)?;
        }
        let triggers = of_source.entry(source).or_default();
        *triggers += 1;
        if *triggers > TRIGGERS_MAX {
            let reason =
                format!("{source} has more than {TRIGGERS_MAX} triggers, the most that one datastore may have");
            return Err(BadSetting::new(format!("{table}.source"), reason));
        }
    }
    Ok(())
}
