//! What the file says of one trigger.

use super::breaker::REMEMBERED;
use crate::{
    cell::{
        AddedId, CellKey, Millis, Name, ShardId,
        setting::{BadSetting, duration, lasts, size, within},
    },
    handler,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

/// Bytes of all windows and rings of a process: `[worker] memory`. Default 128 MB.
pub const MEMORY: u64 = 128_000_000;
/// Most columns of `columns`, and of `include`; each included one is a read before each attempt.
const COLUMNS_MAX: usize = 64;

/// Where a trigger begins in a shard that it has no checkpoint of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// With the oldest cell that the log has.
    #[default]
    Oldest,
    /// With the cells appended after the trigger was first registered.
    Newest,
    /// With the first cell appended at or after this time.
    Time(Millis),
    /// After these places; shards that are not named begin with the oldest cell.
    Added(BTreeMap<ShardId, AddedId>),
}

/// Which cells wait for which.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// The cells of a row in log order; different rows at the same time.
    #[default]
    Row,
    /// Strict log order of the shard.
    Shard,
    /// None.
    None,
}

/// What happens to a cell whose attempts are used up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Exhausted {
    /// It is parked as dead.
    #[default]
    Park,
    /// It is tried for ever, and what its order puts behind it waits.
    Block,
    /// It is passed, and counted.
    Drop,
}

/// How many cells may be in hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WindowConfig {
    /// Cells of a shard in flight, or finished and not yet covered by a durable checkpoint. The bound on repeats.
    /// Default 1,000; 1 to 100,000.
    pub cells: u32,
    /// Bytes of them. Default 16 MB; 1 MB (more than the largest cell) to 1 GB.
    #[serde(with = "size")]
    pub bytes: u64,
}

impl Default for WindowConfig {
    fn default() -> Self {
        Self { cells: 1000, bytes: 16_000_000 }
    }
}

/// When a failed cell is tried again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retry {
    /// Bound of the first wait. Default 1 s; 1 ms to a day.
    #[serde(with = "duration")]
    pub min: Duration,
    /// Bound of all waits. Default 15 min; `min` to a week.
    #[serde(with = "duration")]
    pub max: Duration,
    /// Age from the first attempt at which a cell is exhausted. Default one day; up to a year.
    #[serde(with = "duration")]
    pub max_age: Duration,
    /// Attempts after which a cell is exhausted. Default: only age counts; 1 and more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            min: Duration::from_secs(1),
            max: Duration::from_mins(15),
            max_age: Duration::from_hours(24),
            attempts: None,
        }
    }
}

/// When calls stop because everything fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BreakerConfig {
    /// Failures that open it, when they are also more than half of the attempts. Default 20; 1 to 4,096.
    pub failures: u32,
    /// Within this time. Default 10 s; 100 ms to an hour.
    #[serde(with = "duration")]
    pub window: Duration,
    /// Until a probe is let through. Default 5 s; 10 ms to an hour.
    #[serde(with = "duration")]
    pub cool_down: Duration,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self { failures: 20, window: Duration::from_secs(10), cool_down: Duration::from_secs(5) }
    }
}

/// `[triggers.NAME]`: one trigger.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The datastore. No default.
    pub source: Name,
    /// Columns to be called for. Default none, which means every column; at most 64.
    #[serde(default)]
    pub columns: Vec<String>,
    /// CEL expression over the event that must hold. Default none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// Columns whose latest cells the event brings along. Default none; at most 64.
    #[serde(default)]
    pub include: Vec<String>,
    /// Where to begin: `oldest` (default), `newest`, a time, or `{ SHARD = ADDED_ID }`.
    #[serde(default, with = "start")]
    pub start: Start,
    /// Which cells wait for which: `row` (default), `shard` or `none`.
    #[serde(default)]
    pub order: Order,
    /// Calls at a time, per worker. Default 64; 1 to 10,000.
    #[serde(default = "default::in_flight")]
    pub in_flight: u32,
    /// Cells a call, at most. Default 1; 1 to 1,000 and no more than the window. With order `shard` only 1.
    #[serde(default = "default::batch")]
    pub batch: u32,
    /// How long a batch may wait to fill. Default 0; up to a minute.
    #[serde(default, with = "duration")]
    pub linger: Duration,
    /// Of one call. Default 30 s; 1 ms to a day.
    #[serde(default = "default::timeout", with = "duration")]
    pub timeout: Duration,
    /// Bounds of what is in hand.
    #[serde(default)]
    pub window: WindowConfig,
    /// Cells a second, per worker: written "500/s" or "30/min". Default no limit.
    #[serde(default, with = "rate", skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// When a failed cell is tried again.
    #[serde(default)]
    pub retry: Retry,
    /// What follows: `park` (default), `block` or `drop`.
    #[serde(default)]
    pub exhausted: Exhausted,
    /// Dead cells of a shard before the trigger pauses there. Default 1,000; 1 to 1,000,000.
    #[serde(default = "default::max_parked")]
    pub max_parked: u64,
    /// Cells of a row behind a retrying one. Default 1,000; 1 to 100,000.
    #[serde(default = "default::max_waiting")]
    pub max_waiting: u32,
    /// Off when `None`, which is written "off".
    #[serde(default = "default::breaker", with = "breaker")]
    pub breaker: Option<BreakerConfig>,
    /// The code that is called. No default.
    pub handler: handler::Config,
}

mod default {
    use super::BreakerConfig;
    use std::time::Duration;

    pub(super) fn in_flight() -> u32 {
        64
    }
    pub(super) fn batch() -> u32 {
        1
    }
    pub(super) fn timeout() -> Duration {
        Duration::from_secs(30)
    }
    pub(super) fn max_parked() -> u64 {
        1000
    }
    pub(super) fn max_waiting() -> u32 {
        1000
    }
    #[expect(clippy::unnecessary_wraps, reason = "the form that serde calls")]
    pub(super) fn breaker() -> Option<BreakerConfig> {
        Some(BreakerConfig::default())
    }
}

impl Config {
    /// The defaults, for a source; its handler prints the cells.
    #[must_use]
    pub fn new(source: Name) -> Self {
        Self {
            source,
            columns: Vec::new(),
            filter: None,
            include: Vec::new(),
            start: Start::Oldest,
            order: Order::Row,
            in_flight: default::in_flight(),
            batch: default::batch(),
            linger: Duration::ZERO,
            timeout: default::timeout(),
            window: WindowConfig::default(),
            rate: None,
            retry: Retry::default(),
            exhausted: Exhausted::Park,
            max_parked: default::max_parked(),
            max_waiting: default::max_waiting(),
            breaker: default::breaker(),
            handler: handler::Config::Log(handler::LogConfig::default()),
        }
    }

    /// Refuses what cannot work.
    ///
    /// # Errors
    /// The key and the reason.
    pub fn check(&self) -> Result<(), BadSetting> {
        let (ms, day) = (Duration::from_millis(1), Duration::from_hours(24));
        for (key, columns) in [("columns", &self.columns), ("include", &self.include)] {
            within(key, columns.len(), 0, COLUMNS_MAX)?;
            for (i, column) in columns.iter().enumerate() {
                let address = CellKey { row_key: "row".into(), column: column.as_str().into(), ref_key: 0 };
                address.check().map_err(|refusal| BadSetting::new(key, refusal.to_string()))?;
                if columns[..i].contains(column) {
                    return Err(BadSetting::new(key, format!("{column:?} is written twice")));
                }
            }
        }
        within("in_flight", self.in_flight, 1, 10_000)?;
        within("window.cells", self.window.cells, 1, 100_000)?;
        within("window.bytes", self.window.bytes, 1_000_000, 1_000_000_000)?;
        if self.order == Order::Shard && self.batch != 1 {
            let reason = "with order = \"shard\" a call takes one cell: in a batch a later cell could be done while an \
                          earlier one failed, and then the earlier one would come after it";
            return Err(BadSetting::new("batch", reason));
        }
        within("batch", self.batch, 1, 1000)?;
        if self.batch > self.window.cells {
            let reason = format!("{} is more than the window's {} cells", self.batch, self.window.cells);
            return Err(BadSetting::new("batch", reason));
        }
        lasts("linger", self.linger, Duration::ZERO, Duration::from_mins(1))?;
        lasts("timeout", self.timeout, ms, day)?;
        lasts("retry.min", self.retry.min, ms, day)?;
        lasts("retry.max", self.retry.max, self.retry.min, 7 * day)?;
        lasts("retry.max_age", self.retry.max_age, Duration::ZERO, 366 * day)?;
        within("retry.attempts", self.retry.attempts.unwrap_or(1), 1, u32::MAX)?;
        within("max_parked", self.max_parked, 1, 1_000_000)?;
        within("max_waiting", self.max_waiting, 1, 100_000)?;
        if let Some(breaker) = &self.breaker {
            within("breaker.failures", breaker.failures, 1, REMEMBERED)?;
            lasts("breaker.window", breaker.window, 100 * ms, Duration::from_hours(1))?;
            lasts("breaker.cool_down", breaker.cool_down, 10 * ms, Duration::from_hours(1))?;
        }
        self.handler.check().map_err(|error| BadSetting::new("handler", error.to_string()))
    }
}

/// A start as text or as a table of places.
mod start {
    use super::{AddedId, Millis, ShardId, Start};
    use jiff::Timestamp;
    use serde::{
        Deserializer, Serialize, Serializer,
        de::{Error, MapAccess, Visitor},
    };
    use std::{collections::BTreeMap, fmt};

    pub(super) fn serialize<S: Serializer>(start: &Start, serializer: S) -> Result<S::Ok, S::Error> {
        match start {
            Start::Oldest => serializer.serialize_str("oldest"),
            Start::Newest => serializer.serialize_str("newest"),
            Start::Time(time) => match Timestamp::from_millisecond(time.0) {
                Ok(time) => serializer.collect_str(&time),
                Err(error) => Err(serde::ser::Error::custom(error)),
            },
            Start::Added(places) => {
                let places = places.iter().map(|(shard, id)| (shard.to_string(), id.0));
                places.collect::<BTreeMap<String, u64>>().serialize(serializer)
            }
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Start, D::Error> {
        deserializer.deserialize_any(Written)
    }

    struct Written;

    impl<'de> Visitor<'de> for Written {
        type Value = Start;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("\"oldest\", \"newest\", a time such as \"2026-11-21T10:00:00Z\", or { SHARD = ADDED_ID }")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Start, E> {
            match text {
                "oldest" => Ok(Start::Oldest),
                "newest" => Ok(Start::Newest),
                _ => match text.parse::<Timestamp>() {
                    Ok(time) => Ok(Start::Time(Millis(time.as_millisecond()))),
                    Err(_) => Err(E::invalid_value(serde::de::Unexpected::Str(text), &self)),
                },
            }
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Start, A::Error> {
            let mut places = BTreeMap::new();
            while let Some(shard) = map.next_key::<String>()? {
                let number =
                    shard.parse().map_err(|_| A::Error::custom(format!("{shard:?} is no number of a shard")))?;
                places.insert(ShardId(number), AddedId(map.next_value()?));
            }
            Ok(Start::Added(places))
        }
    }
}

/// A rate as text: a number of cells and a unit of time.
mod rate {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    const UNITS: [(&str, f64); 4] = [("s", 1.0), ("min", 60.0), ("h", 3600.0), ("d", 86_400.0)];

    #[expect(clippy::ref_option, reason = "the form that serde calls")]
    pub(super) fn serialize<S: Serializer>(rate: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
        let Some(rate) = rate else { return serializer.serialize_none() };
        let whole = UNITS.iter().map(|(unit, seconds)| (unit, (rate * seconds).round(), seconds));
        #[expect(clippy::float_cmp, reason = "it has to come back as the same number")]
        let whole = whole.into_iter().find(|(_, cells, seconds)| cells / *seconds == *rate);
        match whole {
            Some((unit, cells, _)) => serializer.collect_str(&format_args!("{cells}/{unit}")),
            None => serializer.collect_str(&format_args!("{rate}/s")),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "off" {
            return Ok(None);
        }
        let per_second = text.split_once('/').and_then(|(cells, unit)| {
            let (_, seconds) = UNITS.iter().find(|(name, _)| *name == unit.trim())?;
            let cells = cells.trim().parse::<f64>().ok()?;
            Some(cells / seconds)
        });
        // Less than one cell in ten days is no rate but a stop; a billion a second is none either.
        match per_second {
            Some(rate) if (1e-6..=1e9).contains(&rate) => Ok(Some(rate)),
            _ => Err(D::Error::custom(format!(
                "{text:?} is no rate such as \"500/s\", \"30/min\", \"100/h\" or \"off\", above one in ten days"
            ))),
        }
    }
}

/// A breaker as a table, or the text "off".
mod breaker {
    use super::BreakerConfig;
    use serde::{
        Deserialize, Deserializer, Serialize, Serializer,
        de::{Error, MapAccess, Unexpected, Visitor, value::MapAccessDeserializer},
    };
    use std::fmt;

    #[expect(clippy::ref_option, reason = "the form that serde calls")]
    pub(super) fn serialize<S: Serializer>(breaker: &Option<BreakerConfig>, to: S) -> Result<S::Ok, S::Error> {
        match breaker {
            Some(breaker) => breaker.serialize(to),
            None => to.serialize_str("off"),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<BreakerConfig>, D::Error> {
        from.deserialize_any(Written)
    }

    struct Written;

    impl<'de> Visitor<'de> for Written {
        type Value = Option<BreakerConfig>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("{ failures, window, cool_down } or \"off\"")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
            if text == "off" { Ok(None) } else { Err(E::invalid_value(Unexpected::Str(text), &self)) }
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
            BreakerConfig::deserialize(MapAccessDeserializer::new(map)).map(Some)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(extra: &str) -> Result<Config, String> {
        let text = format!("source = \"trips\"\nhandler = {{ kind = \"log\" }}\n{extra}");
        toml::from_str(&text).map_err(|error: toml::de::Error| error.message().to_string())
    }

    #[test]
    fn a_trigger_of_two_keys_has_the_defaults() {
        let config = parse("").unwrap();
        assert_eq!(config, Config::new(Name::new("trips").unwrap()));
        assert_eq!(config.check(), Ok(()));
        assert!(parse("source_ = 1").unwrap_err().contains("unknown field `source_`"));
    }

    #[test]
    fn starts_rates_and_breakers_are_read_and_written() {
        let start = |text: &str| parse(&format!("start = {text}")).map(|config| config.start);
        assert_eq!(start("\"newest\""), Ok(Start::Newest));
        assert_eq!(start("\"1970-01-01T00:00:01Z\""), Ok(Start::Time(Millis(1000))));
        let places = BTreeMap::from([(ShardId(0), AddedId(12)), (ShardId(5), AddedId(99))]);
        assert_eq!(start("{ 0 = 12, 5 = 99 }"), Ok(Start::Added(places)));
        for bad in ["\"now\"", "{ x = 1 }", "{ 0 = -1 }", "7"] {
            assert!(start(bad).is_err(), "{bad}");
        }
        let rate = |text: &str| parse(&format!("rate = {text}")).map(|config| config.rate);
        assert_eq!(rate("\"500/s\""), Ok(Some(500.0)));
        assert_eq!(rate("\"30/min\""), Ok(Some(0.5)));
        for bad in ["\"500\"", "\"0/s\"", "\"-1/s\"", "\"NaN/s\"", "\"inf/s\"", "\"1/year\"", "500"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
        assert_eq!(parse("breaker = \"off\"").unwrap().breaker, None);
        let breaker = parse("breaker = { failures = 3 }").unwrap().breaker.unwrap();
        assert_eq!(breaker, BreakerConfig { failures: 3, ..BreakerConfig::default() });
        assert!(parse("breaker = \"on\"").is_err());
        for text in
            ["start = \"newest\"", "start = { 3 = 4 }", "rate = \"7/min\"", "rate = \"0.3/s\"", "breaker = \"off\""]
        {
            let config = parse(text).unwrap();
            assert_eq!(toml::from_str::<Config>(&toml::to_string(&config).unwrap()).unwrap(), config, "{text}");
        }
    }

    #[test]
    fn values_that_cannot_work_are_refused_by_key() {
        let refused = |extra: &str| parse(extra).unwrap().check().unwrap_err().key;
        assert_eq!(refused("order = \"shard\"\nbatch = 2"), "batch");
        assert_eq!(refused("window = { cells = 0 }"), "window.cells");
        assert_eq!(refused("window = { cells = 100001 }"), "window.cells");
        assert_eq!(refused("window = { cells = 5 }\nbatch = 6"), "batch");
        assert_eq!(refused("window = { bytes = \"1kB\" }"), "window.bytes");
        assert_eq!(refused("retry = { min = \"2s\", max = \"1s\" }"), "retry.max");
        assert_eq!(refused("columns = [\"a#b\"]"), "columns");
        assert_eq!(refused("include = [\"A\", \"A\"]"), "include");
        assert_eq!(refused("in_flight = 0"), "in_flight");
        assert_eq!(refused("breaker = { failures = 0 }"), "breaker.failures");
    }
}
