//! The carrier `log`: prints the event, and is always done.

use super::lines::excerpt;
use crate::cell::{Call, Event, Handler, Verdict};
use futures_util::future::BoxFuture;
use std::sync::Arc;
use tracing::info;

/// Longest body that is printed, in bytes.
const BODY_MAX: usize = 16 * 1024;

/// A handler that prints each event at level INFO, target `cellhook::handler::log`.
pub struct Log {
    /// Whether the body is printed too, up to 16 KB of it.
    body: bool,
}

impl Log {
    pub(super) fn new(body: bool) -> Self {
        Self { body }
    }

    fn print(&self, event: &Event) {
        let Event { cell, trigger, attempt, epoch, .. } = event;
        let body = self.body.then(|| excerpt(cell.body.as_bytes(), BODY_MAX));
        info!(
            target: "cellhook::handler::log",
            id = event.id(),
            %trigger,
            row_key = &*cell.key.row_key,
            column = &*cell.key.column,
            ref_key = cell.key.ref_key,
            attempt,
            epoch = epoch.0,
            body,
            "event"
        );
    }
}

impl Handler for Log {
    fn call(self: Arc<Self>, call: Call) -> BoxFuture<'static, Vec<Verdict>> {
        for event in &call.events {
            self.print(event);
        }
        Box::pin(std::future::ready(vec![Verdict::done(); call.events.len()]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::fixture;

    #[tokio::test]
    async fn every_event_is_done() {
        for body in [false, true] {
            let call = fixture::call(1..=3, std::time::Duration::from_secs(1));
            assert_eq!(Arc::new(Log::new(body)).call(call).await, vec![Verdict::done(); 3]);
        }
    }
}
