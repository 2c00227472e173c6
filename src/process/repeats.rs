//! Errors that come again and again are told once, and then counted: "the same 57 times more".
//!
//! One place for all loops of the process: a filter of the log. Two warnings or errors are the same when they come from the
//! same line of the code and say the same, but for the fields that tell where and how often. The first is told at once,
//! those that follow are counted, and the count is told once a minute for as long as they come. Some lines
//! are never held back: see [`ALWAYS`].

use std::{
    collections::HashMap,
    fmt::{self, Write},
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;
use tracing::{
    Event, Level, Metadata,
    callsite::Identifier,
    field::{Field, Visit},
};
use tracing_subscriber::layer::{Context, Filter};

/// How often the count of an error is told.
const TOLD_EVERY: Duration = Duration::from_mins(1);
/// Different errors that are remembered; one more is told whenever it comes.
const REMEMBERED: usize = 512;
/// Bytes of an error that are compared.
const COMPARED: usize = 1000;
/// Fields in which the same error may differ.
const WHERE: [&str; 8] = ["shard", "added_id", "attempts", "failures", "tries", "rest", "margin", "waited"];
/// Lines with one of these fields are about one cell, answer a signal, tell the count of others, or tell of something that
/// begins, whose end is told too: they are never held back.
const ALWAYS: [&str; 4] = ["row", "signal", "repeated", "begins"];

/// The errors of this process.
static SEEN: LazyLock<Mutex<Seen>> = LazyLock::new(Mutex::default);

fn seen() -> MutexGuard<'static, Seen> {
    SEEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Holds back what was told before.
pub(super) struct Repeats;

impl<S> Filter<S> for Repeats {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        let metadata = event.metadata();
        let always = ALWAYS.iter().any(|name| metadata.fields().field(name).is_some());
        if *metadata.level() > Level::WARN || always {
            return true;
        }
        let mut text = Text::default();
        event.record(&mut text);
        seen().is_new((metadata.callsite(), text.0), Instant::now())
    }
}

/// Tells the counts that are due.
pub(super) fn tell(all: bool) {
    // Not told while the errors are locked: telling asks the filter.
    let due = seen().due(Instant::now(), all);
    for (text, repeated) in due {
        tracing::warn!(repeated, error = text, "the same came more often");
    }
}

#[derive(Default)]
struct Seen(HashMap<(Identifier, String), Count>);

struct Count {
    told: Instant,
    since: u64,
}

impl Seen {
    fn is_new(&mut self, key: (Identifier, String), now: Instant) -> bool {
        if let Some(count) = self.0.get_mut(&key) {
            count.since += 1;
            return false;
        }
        if self.0.len() < REMEMBERED {
            self.0.insert(key, Count { told: now, since: 0 });
        }
        true
    }

    /// Those whose time has come, and how often they came since they were last told. One that did not come any more is
    /// forgotten.
    fn due(&mut self, now: Instant, all: bool) -> Vec<(String, u64)> {
        let mut due = Vec::new();
        self.0.retain(|(_, text), count| {
            if !all && now.saturating_duration_since(count.told) < TOLD_EVERY {
                return true;
            }
            if count.since > 0 {
                due.push((text.clone(), count.since));
            }
            count.told = now;
            std::mem::take(&mut count.since) > 0
        });
        due.sort();
        due
    }
}

/// What an event says, without where and how often.
#[derive(Default)]
struct Text(String);

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if WHERE.contains(&field.name()) {
            return;
        }
        let between = if self.0.is_empty() { "" } else { ", " };
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.0, "{between}{value:?}"),
            name => write!(self.0, "{between}{name}={value:?}"),
        };
        if self.0.len() > COMPARED {
            let end = (0..=COMPARED).rev().find(|end| self.0.is_char_boundary(*end)).unwrap_or(0);
            self.0.truncate(end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io, sync::Arc};
    use tracing_subscriber::{Layer, layer::SubscriberExt};

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Time stands still until it is advanced.
    #[tokio::test(start_paused = true)]
    async fn an_error_is_told_once_and_then_counted() {
        let written = Written::default();
        let writer = written.clone();
        let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(move || writer.clone());
        let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(lines.with_filter(Repeats)));
        let fails = |n: u32, error: &str| tracing::warn!(shard = n, failures = n, error, "cannot read the leases");
        let lines = || {
            let text = String::from_utf8(std::mem::take(&mut *written.0.lock().unwrap())).unwrap();
            text.lines().map(str::to_owned).collect::<Vec<_>>()
        };
        (0..50).for_each(|shard| fails(shard, "timeout"));
        fails(7, "denied");
        (0..3).for_each(|_| tracing::info!("not an error"));
        (0..2).for_each(|_| tracing::warn!(row = "a", "about a cell"));
        (0..2).for_each(|_| tracing::error!(begins = true, "nothing is called"));
        let told = lines();
        assert_eq!(told.len(), 2 + 3 + 2 + 2, "{told:#?}");
        assert!(told[0].contains("cannot read the leases") && told[0].contains("timeout"), "{told:#?}");
        assert!(told[1].contains("denied"), "{told:#?}");

        tell(false);
        assert_eq!(lines(), [""; 0], "a minute is not over");
        tokio::time::advance(TOLD_EVERY).await;
        tell(false);
        let told = lines();
        assert_eq!(told.len(), 1, "{told:#?}");
        assert!(told[0].contains("repeated=49") && told[0].contains("error=timeout"), "{told:#?}");

        fails(1, "denied");
        fails(1, "timeout");
        assert_eq!(lines().len(), 1, "what did not come again was forgotten, and is told as new");
        tell(true);
        let told = lines();
        assert!(told.len() == 1 && told[0].contains("repeated=1"), "at the end all is told: {told:#?}");
    }
}
