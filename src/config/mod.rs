//! The config file, made of every room's own `Config`: found, read, overridden by the environment, checked, and printed.

mod file;
#[cfg(test)]
mod hostile;
mod load;
#[cfg(test)]
mod tests;
mod tree;

use crate::{
    admin::Listen,
    cell::{Name, setting::duration},
    dispatch, lease,
    process::LogConfig,
    store, tail,
};
use file::File;
pub(crate) use file::Paces;
pub use load::{ConfigError, Environment, load};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

/// Everything that a process is told, checked and complete.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The file that said it.
    pub file: PathBuf,
    /// Workers of one group share the work; two groups never meet. Default `default`.
    pub group: Name,
    /// `[store]`: where the tables are.
    pub store: store::Config,
    /// `[datastores.NAME]`.
    pub datastores: BTreeMap<Name, Datastore>,
    /// `[worker]`: how a worker keeps its session.
    pub lease: lease::Config,
    /// `[worker] memory`: bytes of all windows and rings of the process. Default 128 MB; 4 MB to 1 TB.
    pub memory: u64,
    /// `[checkpoint] interval`: how long a finished cell may wait for its checkpoint. Default 1 s on the embedded store,
    /// else 5 s; 1 ms to an hour.
    pub checkpoint_interval: Duration,
    /// `[poll]`: how often the tips are read.
    pub poll: tail::Config,
    /// `[metrics] listen`; `None` when it is "off".
    pub metrics: Option<Listen>,
    /// `[metrics] per_shard`: whether lag and parked cells are exported for each shard too. Default false: 4096 shards are five
    /// times 4096 series for each trigger.
    pub per_shard: bool,
    /// `[log]`: what is said on stderr.
    pub log: LogConfig,
    /// `[triggers.NAME]`.
    pub triggers: BTreeMap<Name, dispatch::Config>,
}

/// `[datastores.NAME]`: one datastore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Datastore {
    /// Number of its logs, fixed when it is made. Default 64; 1 to 65,536.
    pub shards: u32,
    /// How long its logs are kept: the workers that hold its shards trim what is older and finished by every trigger, hourly.
    /// Default: they are kept for ever; an hour to ten years.
    #[serde(with = "duration::optional", skip_serializing_if = "Option::is_none")]
    pub retention: Option<Duration>,
}

impl Default for Datastore {
    fn default() -> Self {
        Self { shards: 64, retention: None }
    }
}

impl Config {
    /// The config as a file in which nothing is left out. Values of handlers' `env` are hidden; but for them it loads as
    /// the same config.
    #[must_use]
    pub fn effective(&self) -> String {
        let mut table = toml::Table::try_from(File::of(self)).expect("a config is made of text keys and plain values");
        let triggers = table.get_mut("triggers").and_then(toml::Value::as_table_mut);
        for (_, trigger) in triggers.into_iter().flatten() {
            let env = trigger.get_mut("handler").and_then(|handler| handler.get_mut("env"));
            for (_, value) in env.and_then(toml::Value::as_table_mut).into_iter().flatten() {
                *value = "***".into();
            }
        }
        let mut text = toml::to_string(&table).expect("a table of plain values can be written");
        if let Some(Listen { address, fixed: false }) = self.metrics {
            let note = format!("# listen = \"{address}\"  # the default; the next free port when it is taken\n");
            if let Some(at) = text.find("[metrics]\n") {
                text.insert_str(at + "[metrics]\n".len(), &note);
            }
        }
        text
    }

    /// The tables in which the two differ, but for `[triggers]`: what takes a restart to change.
    #[must_use]
    pub fn changed_beside_triggers(&self, other: &Self) -> Vec<&'static str> {
        let changes = [
            ("group", self.group != other.group),
            ("[store]", self.store != other.store),
            ("[datastores]", self.datastores != other.datastores),
            ("[worker]", self.lease != other.lease || self.memory != other.memory),
            ("[checkpoint]", self.checkpoint_interval != other.checkpoint_interval),
            ("[poll]", self.poll != other.poll),
            ("[metrics]", self.metrics != other.metrics || self.per_shard != other.per_shard),
            ("[log]", self.log != other.log),
        ];
        changes.into_iter().filter(|(_, changed)| *changed).map(|(table, _)| table).collect()
    }
}
