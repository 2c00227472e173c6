//! The Unix process: log set-up, the signals that a daemon listens to, and what its service manager is told.

mod manager;

mod repeats;

use crate::cell::setting::BadSetting;
pub use manager::Manager;
use serde::{Deserialize, Serialize};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
};
use std::{
    io::{self, IsTerminal},
    sync::{Arc, atomic::AtomicBool},
};
use tokio::signal::unix::{self, SignalKind};
use tracing_subscriber::{EnvFilter, Layer, filter::LevelFilter, layer::SubscriberExt, util::SubscriberInitExt};

/// What a line of the log looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// `[log]`: what is said on stderr while the process runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// `text` (default) or `json`.
    pub format: LogFormat,
    /// A level, or levels by module: `info` (default), `warn`, `cellhook=debug,warn`.
    pub level: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".into() }
    }
}

impl LogConfig {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// The key and the reason.
    pub fn check(&self) -> Result<(), BadSetting> {
        self.filter().map(drop)
    }

    fn filter(&self) -> Result<EnvFilter, BadSetting> {
        let wrong = |why: &str| {
            let reason = format!("{:?} is no level such as \"info\" or \"cellhook=debug,warn\": {why}", self.level);
            BadSetting::new("level", reason)
        };
        if self.level.trim().is_empty() {
            return Err(wrong("it is empty; \"off\" says nothing"));
        }
        // A word that is no level would mean a module of that name, and everything else be silent.
        let words = self.level.split(',').map(str::trim).filter(|part| !part.is_empty() && !part.contains('='));
        if let Some(word) = words.into_iter().find(|word| word.parse::<LevelFilter>().is_err()) {
            return Err(wrong(&format!("{word:?} is none of error, warn, info, debug, trace and off")));
        }
        EnvFilter::builder().parse(&self.level).map_err(|error| wrong(&error.to_string()))
    }
}

/// Sends the log of this process to stderr, from now on. A second call changes nothing.
///
/// # Errors
/// When the level cannot be read.
pub fn log_to_stderr(config: &LogConfig) -> Result<(), BadSetting> {
    let filter = config.filter()?;
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    // It would tell on stderr that stderr cannot be written to, and panic on the way.
    let lines = lines.log_internal_errors(false);
    let lines = match config.format {
        LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let _ = tracing_subscriber::registry().with(filter).with(lines.with_filter(repeats::Repeats)).try_init();
    Ok(())
}

/// Tells how often errors came that were told already, for those whose time has come. To be called now and then.
pub fn tell_repeated() {
    repeats::tell(false);
}

/// As [`tell_repeated`], for all of them: the process ends.
pub fn tell_all_repeated() {
    repeats::tell(true);
}

/// The name of this host, for people.
#[must_use]
pub fn host() -> String {
    let name =
        std::fs::read_to_string("/proc/sys/kernel/hostname").or_else(|_| std::fs::read_to_string("/etc/hostname"));
    name.map_or_else(|_| "unknown".into(), |name| name.trim().to_owned())
}

/// What the operator wants of a running process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Finish what is under way, then leave. With the signal's name.
    Stop(&'static str),
    /// Read the config again.
    Reload,
}

/// Listens to SIGTERM, SIGINT and SIGHUP.
///
/// The first SIGTERM or SIGINT is told by [`Signals::next`]; a second one of either ends the process at once with 128 + its
/// number. That happens in the signal's handler itself, so that it works even when no task of the process turns any more.
#[derive(Debug)]
pub struct Signals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
    hang_up: unix::Signal,
}

impl Signals {
    /// Begins to listen. Within a tokio runtime.
    ///
    /// # Errors
    /// When the system refuses a handler.
    pub fn listen() -> io::Result<Self> {
        let once = Arc::new(AtomicBool::new(false));
        // Actions of one signal run in the order of their registration: the exit looks at the flag before this same
        // delivery sets it.
        for signal in [SIGTERM, SIGINT] {
            flag::register_conditional_shutdown(signal, 128 + signal, once.clone())?;
            flag::register(signal, once.clone())?;
        }
        Ok(Self {
            terminate: unix::signal(SignalKind::terminate())?,
            interrupt: unix::signal(SignalKind::interrupt())?,
            hang_up: unix::signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one. May be dropped and called again; nothing is lost.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => Signal::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Signal::Stop("SIGINT"),
            _ = self.hang_up.recv() => Signal::Reload,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_checked() {
        let check = |level: &str| LogConfig { level: level.into(), ..LogConfig::default() }.check();
        for good in ["info", "off", "cellhook=debug,warn", "cellhook::lease=trace"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in ["", "cellhook=loud", "a=b=c", "warning", "infoo", "cellhook=debug,loud"] {
            assert_eq!(check(bad).unwrap_err().key, "level", "{bad}");
        }
    }
}
