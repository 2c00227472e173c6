//! The events of a call, handled one after another.

use crate::cell::{Call, Event, Verdict};
use std::time::Duration;
use tokio::time::Instant;

/// When a call is late that began at a moment. A timeout beyond what the clock can hold is none that is ever reached.
pub(super) fn deadline(began: Instant, timeout: Duration) -> Instant {
    began.checked_add(timeout).unwrap_or_else(|| began + Duration::from_secs(u32::MAX.into()))
}

/// Runs the events of a call one after another, so that the order holds in a batch too. They share the call's time, of
/// which `run` is told the end; those that it does not reach come again, and that is not an attempt.
pub(super) async fn one_by_one<Fut: Future<Output = Verdict>>(
    call: Call,
    run: impl Fn(Event, Instant) -> Fut,
) -> Vec<Verdict> {
    let until = deadline(Instant::now(), call.timeout);
    let mut verdicts = Vec::with_capacity(call.events.len());
    for event in call.events {
        let late = !verdicts.is_empty() && Instant::now() >= until;
        verdicts.push(match late {
            true => Verdict::Snooze { after: Duration::ZERO },
            false => run(event, until).await,
        });
    }
    verdicts
}
