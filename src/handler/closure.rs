//! The carrier for those who link the crate: an async closure from an event to a verdict.

use super::{answer::bounded, turns::one_by_one};
use crate::cell::{Call, Event, Handler, Verdict};
use futures_util::{FutureExt, future::BoxFuture};
use std::{any::Any, panic::AssertUnwindSafe, sync::Arc};
use tokio::time::timeout_at;

/// A handler made of a closure; see [`handler_fn`].
pub struct HandlerFn<F>(F);

/// Makes a handler of a closure.
///
/// The events of a call run one after another, in log order, and share the call's time: at its end the closure's
/// future is dropped, and that event has failed; the events behind it come again, which is not an attempt. Set
/// `in_flight` for calls side by side. A panic in the closure is a failed attempt.
///
/// ```
/// use cellhook::{cell::{Event, Verdict}, handler::handler_fn};
///
/// let handler = handler_fn(|event: Event| async move {
///     println!("{} has a new {}", event.cell.key.row_key, event.cell.key.column);
///     Verdict::done()
/// });
/// ```
pub fn handler_fn<F, Fut>(closure: F) -> Arc<HandlerFn<F>>
where
    F: Fn(Event) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Verdict> + Send + 'static,
{
    Arc::new(HandlerFn(closure))
}

impl<F, Fut> Handler for HandlerFn<F>
where
    F: Fn(Event) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Verdict> + Send + 'static,
{
    fn call(self: Arc<Self>, call: Call) -> BoxFuture<'static, Vec<Verdict>> {
        Box::pin(async move {
            let (limit, closure) = (call.timeout, &self.0);
            let run = |event, until| async move {
                let work = AssertUnwindSafe(async { closure(event).await }).catch_unwind();
                match timeout_at(until, work).await {
                    Ok(Ok(verdict)) => verdict,
                    Ok(Err(panic)) => Verdict::failed(format_args!("the handler panicked: {}", words(&*panic))),
                    Err(_) => Verdict::failed(format_args!("no answer within {}", humantime::format_duration(limit))),
                }
            };
            one_by_one(call, run).await
        })
    }
}

/// What a panic says.
fn words(panic: &(dyn Any + Send)) -> String {
    let words = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    bounded(words.unwrap_or("(no message)").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::fixture;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn each_event_gets_a_verdict_in_order() {
        let handler = handler_fn(|event: Event| async move {
            match event.cell.added_id.0 {
                1 => Verdict::done(),
                2 => panic!("number {}", 2),
                3 => Verdict::Drop,
                4 => std::future::pending().await,
                _ => unreachable!("the time is over"),
            }
        });
        let verdicts = handler.call(fixture::call(1..=5, Duration::from_secs(3))).await;
        let expected = [
            Verdict::done(),
            Verdict::failed("the handler panicked: number 2"),
            Verdict::Drop,
            Verdict::failed("no answer within 3s"),
            Verdict::Snooze { after: Duration::ZERO },
        ];
        assert_eq!(verdicts, expected);
    }
}
