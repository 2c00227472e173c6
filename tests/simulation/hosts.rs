//! A host of the simulation: one worker of the real engine with a clock of its own, that can be frozen and slowed.

use super::{oracle::Oracle, weather::SharedWeather};
use cellhook::{
    cell::{clock, *},
    dispatch::Order,
    worker::{Reload, TriggerSpec, WorkerError},
};
use futures_util::future::BoxFuture;
use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

/// How a host's clocks go: thousandths of the true pace, and by how many milliseconds its wall clock is ahead.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub(super) pace: u64,
    pub(super) off: i64,
}

/// SIGSTOP: while it is set, nothing of a worker is polled.
#[derive(Default)]
pub(super) struct Freezer {
    frozen: bool,
    /// Tasks of the host that ever were.
    tasks: u64,
    /// Those that are to be woken, in the order in which they began: tokio's `watch` wakes in none.
    wakers: BTreeMap<u64, Waker>,
}

pub(super) type SharedFreezer = Arc<Mutex<Freezer>>;

pub(super) fn freeze(freezer: &SharedFreezer) {
    freezer.lock().unwrap().frozen = true;
}

pub(super) fn thaw(freezer: &SharedFreezer) {
    let mut freezer = freezer.lock().unwrap();
    freezer.frozen = false;
    std::mem::take(&mut freezer.wakers).into_values().for_each(Waker::wake);
}

/// A task of a host: it sees the host's clocks, and stands still while the host is frozen.
pub(super) struct OnHost<T> {
    inner: BoxFuture<'static, T>,
    freezer: SharedFreezer,
    pace: Pace,
    task: u64,
}

impl<T> OnHost<T> {
    pub(super) fn new(inner: BoxFuture<'static, T>, freezer: SharedFreezer, pace: Pace) -> Self {
        let mut counted = freezer.lock().unwrap();
        counted.tasks += 1;
        let task = counted.tasks;
        drop(counted);
        Self { inner, freezer, pace, task }
    }
}

impl<T> Future for OnHost<T> {
    type Output = T;
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        {
            let mut freezer = self.freezer.lock().unwrap();
            if freezer.frozen {
                freezer.wakers.insert(self.task, context.waker().clone());
                return Poll::Pending;
            }
        }
        let Pace { pace, off } = self.pace;
        clock::set_pace(pace, off);
        let polled = self.inner.as_mut().poll(context);
        clock::set_pace(clock::TRUE_PACE, 0);
        polled
    }
}

/// The handler of a trigger: takes its time, fails, snoozes, hangs.
pub(super) struct Billing {
    pub(super) oracle: Arc<Oracle>,
    pub(super) weather: SharedWeather,
    pub(super) failing: u64,
    /// Milliseconds at most.
    pub(super) takes: u64,
    pub(super) order: Order,
    pub(super) host: u32,
    /// Where its calls are booked.
    pub(super) account: Name,
}

impl Billing {
    async fn one(&self, event: Event, timeout: Duration) -> Verdict {
        let event = Event { trigger: self.account.clone(), ..event };
        let mut rng = fastrand::Rng::with_seed(self.weather.lock().unwrap().rng.u64(..));
        let witnessed = self.oracle.call(self.host, clock::boot(), &event, self.order);
        let note = |what: &str| {
            let (host, trigger, cell) = (self.host, &event.trigger, &event.cell);
            self.weather.lock().unwrap().note(format_args!(
                "host {host} {trigger} {}/{} of {} attempt {} epoch {} {what}",
                cell.shard, cell.added_id, cell.key.row_key, event.attempt, event.epoch
            ));
        };
        note("starts");
        if event.cell.body.contains("lethal") {
            self.weather.lock().unwrap().killed.push(self.host);
            return std::future::pending().await;
        }
        let slowly = if rng.u8(..100) == 0 { 20 } else { 1 };
        sleep(Duration::from_millis(rng.u64(1..=self.takes * slowly))).await;
        let poison = event.cell.key.row_key.starts_with("poison");
        let draw = rng.u64(0..100);
        let verdict = if poison && draw < 90 || draw < self.failing {
            Verdict::failed("declined")
        } else if draw < self.failing + 2 {
            Verdict::Snooze { after: Duration::from_secs(rng.u64(0..20)) }
        } else if draw < self.failing + 3 {
            Verdict::DeadLetter { error: "never".into() }
        } else if draw < self.failing + 4 {
            sleep(timeout).await;
            Verdict::failed("timed out")
        } else if draw < self.failing + 20 && *event.cell.key.column == *"BASE" {
            let status =
                PutCell { row_key: None, column: "STATUS".into(), ref_key: None, body: "{\"done\":true}".into() };
            Verdict::Done { put: vec![status] }
        } else {
            Verdict::done()
        };
        if let Verdict::Done { put } = &verdict {
            let (row_key, ref_key) = (event.cell.key.row_key.clone(), event.cell.added_id.0);
            witnessed.finished(put.first().map(|put| CellKey { row_key, column: put.column.clone(), ref_key }));
        } else {
            witnessed.unfinished();
        }
        note(verdict.label());
        verdict
    }
}

impl Handler for Billing {
    fn call(self: Arc<Self>, call: Call) -> BoxFuture<'static, Vec<Verdict>> {
        Box::pin(async move {
            let timeout = call.timeout;
            let calls = call.events.into_iter().map(|event| self.one(event, timeout));
            futures_util::future::join_all(calls).await
        })
    }
}

/// A host with its worker.
pub(super) struct Host {
    pub(super) number: u32,
    /// Its triggers, and how they are replaced.
    pub(super) specs: Vec<TriggerSpec>,
    pub(super) reloads: mpsc::Sender<Reload>,
    pub(super) token: CancellationToken,
    pub(super) freezer: SharedFreezer,
    pub(super) task: tokio::task::AbortHandle,
    pub(super) frozen_until: Option<Instant>,
    /// It goes for so many milliseconds of each second until then.
    pub(super) slow: Option<(u64, Instant)>,
    pub(super) leaving: bool,
    /// Its worker has registered its triggers.
    pub(super) opened: Arc<AtomicBool>,
    /// The answer to its last reload, until it is there; and whether that was taken.
    pub(super) pending: Option<oneshot::Receiver<Result<usize, WorkerError>>>,
    pub(super) agreed: bool,
}

impl Host {
    /// What time does to a host that is frozen or goes slowly. To be called at the beginning of each second.
    pub(super) fn tick(&mut self, now: Instant) -> Option<(SharedFreezer, u64)> {
        if self.frozen_until.is_some_and(|until| until <= now) {
            self.frozen_until = None;
            thaw(&self.freezer);
        }
        self.slow = self.slow.filter(|(_, until)| *until > now);
        let (goes, _) = self.slow.filter(|_| self.frozen_until.is_none())?;
        Some((self.freezer.clone(), goes))
    }

    pub(super) fn has_opened(&self) -> bool {
        self.opened.load(Ordering::Relaxed)
    }

    /// Whether its worker registers nothing just now.
    pub(super) fn is_settled(&self) -> bool {
        self.has_opened() && self.pending.is_none()
    }

    /// Looks whether its last reload was taken.
    pub(super) fn hear(&mut self) {
        match self.pending.as_mut().map(oneshot::Receiver::try_recv) {
            None | Some(Err(oneshot::error::TryRecvError::Empty)) => {}
            Some(answer) => {
                self.agreed = matches!(answer, Ok(Ok(_)));
                self.pending = None;
            }
        }
    }

    /// Nothing holds it up any more.
    pub(super) fn heal(&mut self) {
        (self.frozen_until, self.slow) = (None, None);
        thaw(&self.freezer);
    }
}
