//! The carrier `exec`: long-lived children, many calls in flight in each.
//!
//! Three kinds of task, each with plain state: one for each child's place (`child`), and the pool, which gives each
//! call to a child (`pool`). The calls themselves only wait for their answer. What they say to each other goes through
//! bounded channels: the pool never waits for a child, so a child may wait for the pool.

use super::{
    child::{Notice, Seat, Tally},
    group::Program,
    pool::Pool,
    talk::Job,
};
use crate::cell::{Call, Handler, Name, Verdict};
use futures_util::future::BoxFuture;
use std::{
    pin::pin,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

/// Calls that may wait in the pool; more wait at its door.
const WAITING_MAX: usize = 4096;
/// Messages in a channel.
const CHANNEL: usize = 1024;

/// A handler whose calls go to long-lived children. Dropping it kills them.
pub struct Exec {
    jobs: mpsc::Sender<Job>,
    stop: CancellationToken,
    tasks: Mutex<JoinSet<()>>,
    tally: Arc<Tally>,
}

/// What happened to the children of an [`Exec`] since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Starts, those that failed included.
    pub starts: u64,
    /// Starts that did not come to a ready line.
    pub failed_starts: u64,
    /// Lines that broke the protocol.
    pub faults: u64,
    /// Calls that took longer than their timeout.
    pub timeouts: u64,
}

impl Exec {
    /// Starts `children` children. To be called inside a tokio runtime, which the children's tasks then live in.
    pub(super) fn start(trigger: &Name, program: Program, children: usize) -> Self {
        let (jobs, jobs_in) = mpsc::channel(CHANNEL);
        let (notices, notices_in) = mpsc::channel(CHANNEL);
        let stop = CancellationToken::new();
        let tally = Arc::new(Tally::default());
        let program = Arc::new(program);
        let mut tasks = JoinSet::new();
        for index in 0..children {
            let seat = Seat {
                trigger: trigger.clone(),
                index,
                program: program.clone(),
                pool: notices.clone(),
                stop: stop.clone(),
                tally: tally.clone(),
            };
            tasks.spawn(seat.run());
        }
        tasks.spawn(share_out(children, jobs_in, notices_in, stop.clone()));
        Self { jobs, stop, tasks: Mutex::new(tasks), tally }
    }

    /// What happened so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            starts: self.tally.starts.load(Ordering::Relaxed),
            failed_starts: self.tally.failed_starts.load(Ordering::Relaxed),
            faults: self.tally.faults.load(Ordering::Relaxed),
            timeouts: self.tally.timeouts.load(Ordering::Relaxed),
        }
    }
}

impl Handler for Exec {
    fn call(self: Arc<Self>, call: Call) -> BoxFuture<'static, Vec<Verdict>> {
        Box::pin(async move {
            let events = call.events.len();
            if events == 0 {
                return Vec::new();
            }
            let (reply, answer) = oneshot::channel();
            let job = Job { call, reply, since: Instant::now() };
            if self.jobs.send(job).await.is_err() {
                return vec![stopping(); events];
            }
            answer.await.unwrap_or_else(|_| vec![stopping(); events])
        })
    }

    fn stop(self: Arc<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            self.stop.cancel();
            let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
            while tasks.join_next().await.is_some() {}
        })
    }
}

/// The verdict of a call that came too late: it was not tried.
fn stopping() -> Verdict {
    Verdict::Snooze { after: Duration::from_secs(1) }
}

/// The pool's task.
async fn share_out(
    children: usize,
    mut jobs: mpsc::Receiver<Job>,
    mut notices: mpsc::Receiver<Notice>,
    stop: CancellationToken,
) {
    let mut pool = Pool::new(children, Instant::now());
    let mut ways: Vec<Option<mpsc::Sender<Job>>> = vec![None; children];
    let mut stopped = pin!(stop.cancelled());
    let mut stopping_now = false;
    let far = Duration::from_secs(3600);
    let mut alarm = pin!(sleep_until(Instant::now() + far));
    loop {
        while let Some((seat, job)) = pool.next() {
            match &ways[seat] {
                Some(way) => {
                    if let Err(mpsc::error::TrySendError::Closed(job) | mpsc::error::TrySendError::Full(job)) =
                        way.try_send(job)
                    {
                        // It has just closed; its notice is on the way.
                        pool.closed(seat, vec![job]);
                    }
                }
                None => pool.closed(seat, vec![job]),
            }
        }
        if stopping_now {
            for job in pool.dismiss() {
                job.answer(&stopping());
            }
        }
        let due = pool.deadline().unwrap_or_else(|| Instant::now() + far);
        if due < alarm.deadline() || alarm.is_elapsed() {
            alarm.as_mut().reset(due);
        }
        tokio::select! {
            biased;
            () = &mut stopped, if !stopping_now => {
                stopping_now = true;
                jobs.close();
            }
            notice = notices.recv() => match notice {
                Some(Notice::Up { seat, concurrency, jobs }) => {
                    ways[seat] = Some(jobs);
                    pool.up(seat, concurrency);
                }
                Some(Notice::Freed { seat, freed }) => pool.freed(seat, freed),
                Some(Notice::Closed { seat, back }) => pool.closed(seat, back),
                Some(Notice::Down { seat, why, back }) => {
                    ways[seat] = None;
                    pool.down(seat, why, back, Instant::now());
                }
                // All places are empty: the handler has stopped.
                None => break,
            },
            Some(job) = jobs.recv(), if pool.waiting() < WAITING_MAX => pool.wait(job),
            () = &mut alarm => {
                let (late, why) = pool.expire(Instant::now());
                let verdict = Verdict::failed(why);
                for job in late {
                    job.answer(&verdict);
                }
            }
        }
    }
    while let Ok(job) = jobs.try_recv() {
        job.answer(&stopping());
    }
    for job in pool.dismiss() {
        job.answer(&stopping());
    }
}
